//! Between the source's end and the pod's new beginning: what is made when, what is told, and what must not
//! be lost meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::json;
use transship_api::conditions::{self as c, reasons};
use transship_protocol::Decision;

use super::again::pause_after;
use super::testing::{Fate, World};
use crate::migration::plan::{Record, plan};
use crate::migration::state::Owner;

pub(super) fn stalled(world: &World) -> Condition {
    let conditions = world.seen.status().conditions;
    c::find(&conditions, c::STALLED).unwrap().clone()
}

#[test]
fn a_source_that_vanishes_with_its_node_after_the_commit_is_made_again() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    // The node is removed from the cluster, and its pods with it.
    world.seen.source_node_gone = true;
    world.seen.source_pod = None;
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (1, "True"));
}

#[test]
fn a_manifest_that_is_missing_is_stored_of_a_source_that_is_being_evicted() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    world.seen.manifest = None;
    world.evict_source();
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (1, "True"));
}

#[test]
fn a_manifest_is_not_stored_while_the_name_is_free() {
    let mut world = World::voted(&[Fate::Runs]);
    (world.seen.manifest, world.seen.name_is_held) = (None, false);
    world.done.clear();
    world.until(|w| w.committed());
    assert_eq!(world.done[..3], ["hold name", "store manifest", "decision"]);
}

#[test]
fn an_image_that_is_changed_before_the_commit_rolls_back() {
    let mut world = World::voted(&[Fate::Runs]);
    let source = world.seen.source_pod.as_mut().unwrap();
    source.spec.as_mut().unwrap().containers[0].image = Some("localhost/web:2".into());
    let planned = plan(&world.seen, world.now);
    assert_eq!(planned.record, Some(Record::Decision(Decision::Abort)));
    let told = c::find(&planned.status.conditions, c::SUCCEEDED).unwrap();
    assert_eq!(told.reason, reasons::SOURCE_CHANGED);
    assert!(told.message.contains("container web"), "{}", told.message);
}

#[test]
fn an_image_that_is_changed_after_the_commit_is_told_and_not_taken_over() {
    for fates in [&[Fate::Runs][..], &[Fate::Fails, Fate::Fails, Fate::Runs]] {
        let mut world = World::voted(fates);
        world.until(|w| w.committed());
        let source = world.seen.source_pod.as_mut().unwrap();
        source.spec.as_mut().unwrap().containers[0].image = Some("localhost/web:2".into());
        world.run();
        let pod = world.seen.target_pod.as_ref().unwrap();
        let image = pod.spec.as_ref().unwrap().containers[0].image.as_deref();
        assert_eq!(image, Some("localhost/web:1"));
        let told = world.succeeded().1;
        assert!(told.contains("container web was changed after the commit"), "{told}");
    }
}

#[test]
fn what_cannot_be_restored_is_told_and_tried_ever_more_seldom() {
    for (failures, seconds) in
        [(0, 0), (1, 0), (2, 0), (3, 2), (4, 4), (7, 32), (8, 60), (i32::MAX, 60)]
    {
        assert_eq!(pause_after(failures), Duration::from_secs(seconds), "{failures}");
    }
    let mut world = World::voted(&[Fate::Fails, Fate::Fails, Fate::Fails, Fate::Fails, Fate::Runs]);
    world.until(|w| w.seen.status().failed_restores == Some(2));
    assert_eq!(stalled(&world).status, "False", "it can still go back");
    world.until(|w| w.seen.status().failed_restores == Some(3));
    let told = stalled(&world);
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", reasons::RESTORE_FAILED));
    assert!(told.message.contains("could not be restored on node-a: no"), "{}", told.message);
    let failed_at = world.now;
    while world.made < 4 {
        world.look();
        assert_eq!(stalled(&world).status, "True");
    }
    assert!(world.now.duration_since(failed_at) >= SignedDuration::from_secs(2));
    world.until(|w| w.seen.status().failed_restores == Some(4));
    assert_eq!(stalled(&world).last_transition_time, told.last_transition_time, "told once");
    world.run();
    assert_eq!((world.made, stalled(&world).status.as_str()), (5, "False"));
}

#[test]
fn the_time_to_be_restored_begins_when_the_pod_is_let_go_to_its_node() {
    let mut world = World::voted(&[Fate::Hangs]);
    world.until(|w| w.made == 1);
    world.now += SignedDuration::from_secs(700);
    world.until(|w| w.is_let_go());
    let scheduled = json!([{"type": "PodScheduled", "status": "True",
        "lastTransitionTime": world.now.to_string()}]);
    let pod = world.seen.target_pod.as_mut().unwrap();
    pod.status.get_or_insert_default().conditions = serde_json::from_value(scheduled).unwrap();
    for _ in 0..5 {
        world.look();
    }
    let gives_up = |w: &World| w.done.iter().any(|done| done == "give up");
    assert!(!gives_up(&world));
    world.now += SignedDuration::from_secs(600);
    world.until(gives_up);
}

#[test]
fn a_pod_that_was_made_and_not_recorded_goes_when_nobody_wants_it() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.made == 1);
    let Owner::StatefulSet(set) = &mut world.seen.owner else { panic!("no StatefulSet") };
    set.spec.replicas = Some(0);
    world.run();
    assert_eq!(world.made, 1);
    assert!(world.seen.again_pod.is_none(), "{:?}", world.done);
    assert!(world.succeeded().1.contains("scaled down"));
}

#[test]
fn a_pod_that_its_set_would_replace_before_it_runs_is_left_to_its_set() {
    for made in [0, 1] {
        let mut world = World::voted(&[Fate::Hangs]);
        let label = ("controller-revision-hash".to_owned(), "1".to_owned());
        let source = world.seen.source_pod.as_mut().unwrap();
        source.metadata.labels.get_or_insert_default().extend([label]);
        world.until(|w| w.committed() && w.made == made);
        let set = json!({"metadata": {"name": "web", "uid": "uid-sts", "generation": 2},
            "spec": {"podManagementPolicy": "Parallel"},
            "status": {"replicas": 1, "updateRevision": "2", "observedGeneration": 2}});
        world.seen.owner = Owner::StatefulSet(Box::new(serde_json::from_value(set).unwrap()));
        // Its controller deletes it; behind its gate it is gone at once.
        world.seen.target_pod = None;
        world.run();
        assert_eq!(world.made, made);
        assert!(world.succeeded().1.contains("was rolled after the commit"), "{:?}", world.done);
    }
}

/// The pod's claim was bound to one volume, and leads to this one now.
pub(super) fn bind(world: &mut World, volume: &str) {
    let bound = |volume: &str| BTreeMap::from([("data-web-0".to_owned(), volume.to_owned())]);
    world.seen.volumes = bound("pv-1");
    world.seen.volumes_now = Some(bound(volume));
}

#[test]
fn memory_is_not_restored_on_another_volume_than_its_own() {
    for (made, exchanged) in [(0, "pv-2"), (1, "pv-2"), (1, "")] {
        let mut world = World::voted(&[Fate::Runs]);
        bind(&mut world, "pv-1");
        let is_gone = |w: &World| w.done.iter().any(|done| done == "delete source");
        world.until(|w| is_gone(w) && w.made == made);
        bind(&mut world, exchanged);
        world.until(|w| stalled(w).status == "True");
        let told = stalled(&world);
        assert_eq!(told.reason, reasons::VOLUME_EXCHANGED);
        for words in ["data-web-0", exchanged, "spec.volumeName: pv-1"] {
            assert!(told.message.contains(words), "{}", told.message);
        }
        assert_eq!(world.made, made);
        assert!(world.seen.again_pod.is_none(), "it must not mount the volume");

        bind(&mut world, "pv-1");
        world.run();
        assert_eq!((world.made, world.succeeded().0.as_str()), (made + 1, "True"));
        assert_eq!(world.seen.status().failed_restores, None);
    }
}

#[test]
fn a_state_whose_volume_is_gone_is_given_up_with_its_migration() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.made == 1);
    bind(&mut world, "");
    world.until(|w| stalled(w).status == "True");
    world.seen.migration.metadata.deletion_timestamp = Some(Time(world.now));
    world.run();
    assert_eq!(world.made, 1);
    assert!(world.succeeded().1.contains("cannot be made again"));
    assert!(world.seen.target_pod.is_none() && world.seen.trial_pod.is_none());
}

#[test]
fn a_volume_that_was_not_noted_is_not_taken_for_the_same() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    bind(&mut world, "");
    world.seen.volumes = world.seen.volumes_now.clone().unwrap();
    world.until(|w| stalled(w).status == "True");
    let told = stalled(&world);
    assert_eq!((world.made, told.reason.as_str()), (0, reasons::VOLUME_EXCHANGED));
    assert!(told.message.contains("is not known"), "{}", told.message);
}

#[test]
fn a_volume_that_is_exchanged_before_the_pod_has_a_node_is_not_mounted() {
    let mut world = World::voted(&[Fate::Hangs, Fate::Runs]);
    bind(&mut world, "pv-1");
    world.until(|w| w.is_let_go());
    world.seen.target_pod.as_mut().unwrap().spec.as_mut().unwrap().node_name = None;
    bind(&mut world, "pv-2");
    world.look();
    assert_eq!(world.done.last().map(String::as_str), Some("give up"), "{:?}", world.done);
}

#[test]
fn a_changed_manifest_that_is_refused_keeps_nobody_waiting() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    world.done.clear();
    world.seen.source_pod.as_mut().unwrap().metadata.owner_references = None;
    world.seen.refused = Some("exceeded quota".into());
    world.until(|w| w.done.iter().any(|done| done == "delete source"));
    assert!(world.done.iter().all(|done| done != "store manifest"), "{:?}", world.done);
}

#[test]
fn a_clock_that_is_set_back_does_not_keep_the_next_try_waiting() {
    let mut world = World::voted(&[Fate::Fails, Fate::Fails, Fate::Fails, Fate::Runs]);
    world.until(|w| w.seen.status().failed_restores == Some(3));
    world.now -= SignedDuration::from_hours(1);
    world.until(|w| w.made == 4);
}
