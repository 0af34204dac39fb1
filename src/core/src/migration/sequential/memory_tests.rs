//! Memory that may be older than the pod's volumes: who is asked, what answers, and that nothing comes of it before.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use transship_api::conditions::{self as c, reasons};
use transship_api::{Mode, names};

use super::testing::{Fate, World};
use super::tries_tests::{bind, stalled};
use crate::migration::state::Side;

/// A first try may have run and written to the pod's volume.
fn stopped(fates: &[Fate]) -> World {
    let mut world = World::voted(fates);
    bind(&mut world, "pv-1");
    world.until(|w| stalled(w).status == "True");
    world
}

fn annotate(world: &mut World, key: &str, value: &str) {
    let annotations = world.seen.migration.metadata.annotations.get_or_insert_default();
    annotations.insert(key.to_owned(), value.to_owned());
}

/// Somebody wants the memory of this pod on a volume that may be newer.
fn want(world: &mut World, uid: &str) {
    annotate(world, names::RESTORE_ANYWAY, uid);
}

fn delete(world: &mut World) {
    world.seen.migration.metadata.deletion_timestamp = Some(Time(world.now));
}

/// However often it is looked at, it asks and makes no other pod. Gives what it says.
#[track_caller]
fn goes_on_asking(world: &mut World) -> String {
    for _ in 0..20 {
        world.look();
    }
    let told = stalled(world);
    assert_eq!((world.made, told.reason.as_str()), (1, reasons::VOLUMES_NEWER), "{told:?}");
    told.message
}

/// The memory is wanted when the target's node has left: it goes back to the source's.
#[track_caller]
fn goes_back_when_wanted(mut world: World) {
    assert_eq!(world.seen.recorded().resolution, None);
    want(&mut world, "uid-1");
    world.until(|w| w.seen.recorded().resolution.is_some());
    (world.seen.target_node_gone, world.seen.target) = (false, Side::NotStarted);
    world.run();
    assert_eq!(world.made, 2);
    assert_eq!(world.seen.status().target.unwrap().node, "node-a");
}

/// The Migration was deleted after its commit, and then a try may have run.
fn stopped_after_deletion(fates: &[Fate]) -> World {
    let mut world = World::voted(fates);
    bind(&mut world, "pv-1");
    world.until(|w| w.committed());
    delete(&mut world);
    world.until(|w| stalled(w).status == "True");
    world
}

#[test]
fn memory_meets_a_volume_that_may_be_newer_only_when_somebody_wants_it() {
    let mut world = stopped(&[Fate::Stops, Fate::Stops, Fate::Runs]);
    let told = stalled(&world);
    assert_eq!(told.reason, reasons::VOLUMES_NEWER);
    for words in ["pod web-0", "pv-1 (claim data-web-0)", "2026-01-01T00:00:00Z", "delete the Migr"]
    {
        assert!(told.message.contains(words), "{}", told.message);
    }
    let command = format!("migration move -n shop {}=uid-1", names::RESTORE_ANYWAY);
    assert!(told.message.ends_with(&command), "{}", told.message);
    goes_on_asking(&mut world);
    assert_eq!(world.seen.status().failed_restores, None);

    want(&mut world, "uid-1");
    world.until(|w| w.made == 2);
    world.until(|w| stalled(w).status == "True");
    let told = stalled(&world).message;
    assert!(told.ends_with("=uid-2"), "it was wanted of that one only: {told}");
    assert!(told.contains(r#"says "uid-1", which is not the UID of this pod"#), "{told}");
    want(&mut world, "uid-2");
    world.run();
    assert_eq!(world.made, 3);
    assert_eq!(world.seen.status().failed_restores, Some(2));
}

#[test]
fn an_annotation_that_names_another_pod_is_told_of_and_restores_nothing() {
    let mut world = stopped(&[Fate::Stops, Fate::Runs]);
    let before = stalled(&world).message;
    assert!(!before.contains("changes nothing"), "{before}");
    for value in ["uid-s", "", "uid-1\n"] {
        want(&mut world, value);
        let told = goes_on_asking(&mut world);
        let answer = format!("{} says {value:?}, which is not the UID", names::RESTORE_ANYWAY);
        assert!(told.contains(&answer), "{told}");
        assert!(told.ends_with("=uid-1"), "{told}");
    }
    want(&mut world, &"x".repeat(5000));
    world.look();
    let told = stalled(&world).message;
    assert!(told.ends_with("=uid-1"), "what to do is cut off: {told}");
    want(&mut world, "uid-1");
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
}

#[test]
fn memory_that_was_wanted_in_vain_can_be_given_up_with_its_migration() {
    let mut world = stopped(&[Fate::Stops, Fate::Fails]);
    want(&mut world, "uid-1");
    world.until(|w| w.seen.status().failed_restores == Some(3));
    let told = stalled(&world);
    assert_eq!(told.reason, reasons::RESTORE_FAILED);
    assert!(told.message.contains("delete the Migration to give the memory up"), "{told:?}");
    delete(&mut world);
    world.run();
    assert_eq!(world.made, 3);
    assert!(world.succeeded().1.contains("memory was given up"), "{:?}", world.succeeded());
    assert!(world.seen.again_pod.is_none() && !world.seen.name_is_held, "a fresh one can come");
}

#[test]
fn a_migration_that_is_deleted_when_the_memory_was_wanted_finishes_a_try_first() {
    let mut world = stopped(&[Fate::Stops, Fate::Runs]);
    want(&mut world, "uid-1");
    world.until(|w| w.made == 2 && w.is_let_go());
    delete(&mut world);
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
}

#[test]
fn an_annotation_of_which_nobody_has_asked_gives_nothing_up() {
    let fails = &[Fate::Fails, Fate::Runs][..];
    for (has_volume, fates) in [(true, &[Fate::Runs][..]), (true, fails), (false, fails)] {
        let mut world = World::voted(fates);
        if has_volume {
            bind(&mut world, "pv-1");
        }
        want(&mut world, "uid-1");
        annotate(&mut world, names::GIVE_UP_MEMORY, "uid-1");
        world.until(|w| w.committed());
        delete(&mut world);
        world.run();
        assert_eq!(world.succeeded().0, "True", "{fates:?}");
    }
}

#[test]
fn memory_whose_volume_may_be_newer_is_given_up_with_its_migration() {
    let mut world = stopped(&[Fate::Stops]);
    delete(&mut world);
    world.run();
    assert_eq!(world.made, 1);
    assert!(
        world.succeeded().1.contains("memory of pod web-0 was given up"),
        "{:?}",
        world.succeeded()
    );
    assert!(world.seen.again_pod.is_none() && !world.seen.name_is_held, "a fresh one can come");
}

#[test]
fn a_pod_that_may_have_run_and_vanishes_is_asked_for_all_the_same() {
    let mut world = stopped(&[Fate::Stops]);
    (world.seen.target_pod, world.seen.again_pod) = (None, None);
    goes_on_asking(&mut world);
}

#[test]
fn what_was_asked_stays_asked_though_nobody_answers_for_the_node_any_more() {
    let silent = Side::Unreachable { since: "2026-01-01T00:00:00Z".parse().unwrap(), last: None };
    let sides = [Side::Unknown, silent, Side::NotStarted];
    for (side, node_gone) in sides.iter().flat_map(|side| [(side, false), (side, true)]) {
        // An operator that starts now hears nothing of the try.
        let mut world = stopped(&[Fate::Stops, Fate::Runs]);
        (world.seen.target_pod, world.seen.again_pod) = (None, None);
        world.seen.target = side.clone();
        world.seen.target_node_gone = node_gone;
        goes_on_asking(&mut world);
        match node_gone {
            true => goes_back_when_wanted(world),
            false => assert_eq!(world.seen.recorded().resolution, None),
        }
    }
}

#[test]
fn memory_is_given_up_though_somebody_elses_pod_has_its_name() {
    let mut world = stopped(&[Fate::Stops]);
    let mut other = world.seen.again_pod.take().unwrap();
    (other.metadata.uid, other.metadata.labels) = (Some("uid-x".into()), None);
    (world.seen.target_pod, world.seen.again_pod) = (None, Some(other));
    delete(&mut world);
    world.run();
    assert!(world.seen.again_pod.is_some() && world.done.iter().all(|done| done != "delete again"));
}

#[test]
fn what_has_run_without_a_volume_or_starts_afresh_is_tried_again_unasked() {
    let mut world = World::voted(&[Fate::Stops, Fate::Runs]);
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
    let mut world = World::voted_in(Mode::Cold, &[Fate::Stops, Fate::Runs]);
    bind(&mut world, "pv-1");
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
}

#[test]
fn a_deletion_from_before_it_was_asked_is_no_answer() {
    let mut world = stopped_after_deletion(&[Fate::Stops, Fate::Runs]);
    let told = goes_on_asking(&mut world);
    let give_up = format!("migration move -n shop {}=uid-1.", names::GIVE_UP_MEMORY);
    for words in ["deleted before this was asked", "its StatefulSet then starts", give_up.as_str()]
    {
        assert!(told.contains(words), "{told}");
    }
    assert!(!told.contains("delete the Migration"), "{told}");
    let restore = format!("{}=uid-1", names::RESTORE_ANYWAY);
    assert!(told.ends_with(&restore), "{told}");
    want(&mut world, "uid-1");
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
}

#[test]
fn memory_is_given_up_with_an_annotation_whether_the_migration_is_deleted_or_not() {
    for make in [stopped, stopped_after_deletion] {
        let mut world = make(&[Fate::Stops, Fate::Runs]);
        annotate(&mut world, names::GIVE_UP_MEMORY, "uid-s");
        let told = goes_on_asking(&mut world);
        let answer = format!("{} says \"uid-s\", which is not the UID", names::GIVE_UP_MEMORY);
        assert!(told.contains(&answer), "{told}");
        annotate(&mut world, names::GIVE_UP_MEMORY, "uid-1");
        world.run();
        let (succeeded, told) = world.succeeded();
        assert_eq!((world.made, succeeded.as_str()), (1, "False"));
        assert!(told.contains("given up"), "{told}");
        assert!(world.seen.again_pod.is_none() && !world.seen.name_is_held, "a fresh one can come");
    }
}

#[test]
fn memory_that_was_wanted_in_vain_is_kept_when_the_deletion_came_before() {
    let mut world = stopped_after_deletion(&[Fate::Stops, Fate::Fails]);
    want(&mut world, "uid-1");
    world.until(|w| w.seen.status().failed_restores == Some(3));
    let give_up = format!(
        "give the memory up: kubectl annotate --overwrite migration move -n shop {}=uid-1",
        names::GIVE_UP_MEMORY
    );
    assert!(stalled(&world).message.ends_with(&give_up), "{}", stalled(&world).message);
    world.until(|w| w.made == 4);
    annotate(&mut world, names::GIVE_UP_MEMORY, "uid-1");
    world.run();
    assert_eq!(world.made, 4);
    assert!(world.succeeded().1.contains("memory was given up"), "{:?}", world.succeeded());
}

#[test]
fn whoever_was_asked_once_and_deletes_then_is_not_asked_again() {
    let mut world = stopped(&[Fate::Stops, Fate::Hangs]);
    want(&mut world, "uid-1");
    world.until(|w| w.made == 2 && w.is_let_go());
    delete(&mut world);
    world.loses_it();
    world.run();
    assert_eq!(world.made, 2);
    assert!(world.succeeded().1.contains("given up"), "{:?}", world.succeeded());
}

#[test]
fn an_answer_that_stands_there_before_it_was_asked_counts_when_it_was() {
    let mut world = World::voted(&[Fate::Stops, Fate::Runs]);
    bind(&mut world, "pv-1");
    want(&mut world, "uid-1");
    world.until(|w| w.seen.status().asked_pod_uid.is_some());
    let told = stalled(&world);
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", reasons::VOLUMES_NEWER));
    assert!(!told.message.contains("changes nothing"), "{}", told.message);
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
}

#[test]
fn a_try_whose_node_has_left_before_it_told_is_asked_for() {
    for (there, hears) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut world = World::voted(&[Fate::Hangs, Fate::Runs]);
        bind(&mut world, "pv-1");
        world.until(|w| w.is_let_go());
        world.seen.target_node_gone = true;
        if !there {
            // With the node Kubernetes removes its pods.
            (world.seen.target_pod, world.seen.again_pod) = (None, None);
        }
        if !hears {
            world.seen.target = Side::Unknown;
        }
        let told = goes_on_asking(&mut world);
        assert!(told.contains("node-b: the node has left the cluster"), "{told}");
        goes_back_when_wanted(world);
    }
}

#[test]
fn a_try_that_cannot_have_run_on_a_node_that_has_left_goes_back_unasked() {
    let goes_back = |mut world: World| {
        world.seen.target_node_gone = true;
        world.until(|w| w.seen.recorded().resolution.is_some());
        assert_eq!(world.seen.status().asked_pod_uid, None);
    };
    // Its gate was closed, it has said that it never ran, it has no volume, or it starts afresh.
    let mut gated = World::voted(&[Fate::Hangs]);
    bind(&mut gated, "pv-1");
    gated.until(|w| w.made == 1);
    goes_back(gated);
    for (mode, has_volume, fate) in [
        (Mode::StopAndCopy, true, Fate::Fails),
        (Mode::StopAndCopy, false, Fate::Hangs),
        (Mode::Cold, true, Fate::Hangs),
    ] {
        let mut world = World::voted_in(mode, &[fate]);
        if has_volume {
            bind(&mut world, "pv-1");
        }
        world.until(|w| w.is_let_go());
        goes_back(world);
    }
}

#[test]
fn a_side_that_is_back_at_work_is_closed_before_its_memory_is_given_up() {
    let mut world = World::voted(&[Fate::Hangs]);
    bind(&mut world, "pv-1");
    world.until(|w| w.is_let_go());
    world.seen.target_node_gone = true;
    world.until(|w| stalled(w).reason == reasons::VOLUMES_NEWER);
    world.seen.target_node_gone = false;
    delete(&mut world);
    world.done.clear();
    world.run();
    assert_eq!(world.done[..2], ["give up", "delete again"]);
    assert!(world.succeeded().1.contains("given up"), "{:?}", world.succeeded());
}

#[test]
fn what_was_asked_is_noted_whatever_stalled_says() {
    let silent = Side::Unreachable { since: "2026-01-01T00:00:00Z".parse().unwrap(), last: None };
    let mut world = stopped(&[Fate::Stops, Fate::Runs]);
    let status = world.seen.migration.status.as_mut().unwrap();
    let (true_, waits) = (c::ConditionStatus::True, reasons::WAITING_FOR_NODE);
    c::set_condition(&mut status.conditions, c::STALLED, true_, waits, "", None, world.now);
    world.seen.target = silent;
    world.now += SignedDuration::from_hours(1);
    goes_on_asking(&mut world);
}

#[test]
fn memory_that_is_being_given_up_is_not_restored_by_an_operator_that_hears_of_nothing() {
    let mut world = stopped(&[Fate::Stops, Fate::Runs]);
    delete(&mut world);
    world.until(|w| w.done.last().is_some_and(|done| done == "delete again"));
    (world.seen.target, world.seen.target_node_gone) = (Side::Unknown, true);
    world.run();
    assert_eq!((world.made, world.seen.recorded().resolution), (1, None));
    assert!(world.succeeded().1.contains("given up"), "{:?}", world.succeeded());
}
