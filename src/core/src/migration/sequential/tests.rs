//! What becomes of the pod in the sequential order, whatever happens meanwhile.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rstest::rstest;
use serde_json::json;
use transship_api::conditions as c;
use transship_api::{self as api, HandOver, Step};
use transship_protocol::{Decision, SourceOutcome, SourceWord, TargetWord};

use super::testing::{Fate, World, source};
use crate::migration::plan::{Action, Plan, Record, plan};
use crate::migration::state::{Owner, Report, Role, Side, Stage};
use crate::sequential_pod::controller;

#[test]
fn the_source_ends_before_the_pod_is_made_again_and_nothing_is_left() {
    let mut world = World::voted(&[Fate::Runs]);
    world.run();
    assert_eq!(
        world.done,
        [
            "hold name",
            "store manifest",
            "create trial",
            "start target",
            "start source",
            "remove gate",
            "freeze",
            "decision",
            "trial ends",
            "move lease",
            "release",
            "delete source",
            "create again",
            "delete trial",
            "start target",
            "remove gate",
            "resumedat",
            "move lease",
            "mark resumed",
            "free name",
        ]
    );
    let status = world.seen.status();
    assert_eq!(status.step, Some(Step::Succeeded));
    assert_eq!(status.hand_over, Some(HandOver::Sequential));
    assert!(status.trial.unwrap().contains("volume data"));
    assert_eq!(status.target.unwrap().pod_name, "web-0");
    assert_eq!(world.succeeded().0, "True");
    assert!(world.seen.manifest.is_none() && world.seen.target_pod.is_some());
}

#[test]
fn a_restore_that_fails_is_tried_again_on_the_target() {
    let mut world = World::voted(&[Fate::Fails, Fate::Runs]);
    world.run();
    assert_eq!(world.made, 2);
    let status = world.seen.status();
    assert_eq!((status.step, status.failed_restores), (Some(Step::Succeeded), Some(1)));
    assert_eq!(status.target.unwrap().node, "node-b");
}

#[test]
fn a_pod_that_cannot_be_restored_on_the_target_goes_back_and_stays() {
    let mut world = World::voted(&[Fate::Fails, Fate::Fails, Fate::Fails, Fate::Runs]);
    world.run();
    assert_eq!(world.made, 4, "on its own node it is tried until it runs");
    let status = world.seen.status();
    assert_eq!(status.resolution, Some(api::Resolution::SourceResumes));
    assert_eq!(status.step, Some(Step::Failed));
    assert_eq!(status.target.unwrap().node, "node-a");
    let (succeeded, message) = world.succeeded();
    assert_eq!(succeeded, "False");
    assert!(message.contains("node-b") && message.contains("goes on"), "{message}");
    assert!(world.seen.target_pod.is_some(), "the pod that was made again is the pod");
}

#[test]
fn a_node_that_is_gone_gets_no_second_try() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
    world.seen.target_node_gone = true;
    world.until(|w| w.seen.recorded().resolution.is_some());
    world.seen.target_node_gone = false;
    world.run();
    assert_eq!(world.seen.status().target.unwrap().node, "node-a");
}

#[test]
fn somebody_elses_deletion_is_carried_over() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    world.seen.source_pod.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(world.now));
    world.until(|w| w.done.iter().any(|d| d == "release"));
    world.seen.source_pod = None;
    world.run();
    assert_eq!(world.made, 0);
    assert!(world.succeeded().1.contains("deleted by somebody"));
    assert!(world.seen.trial_pod.is_none());
}

#[test]
fn a_deleted_pod_that_has_failed_was_meant_unless_kubelet_had_refused_it() {
    for (reason, made) in [(None, 0), (Some("NodeAffinity"), 1)] {
        let mut world = World::voted(&[Fate::Runs]);
        world.until(|w| w.committed());
        let source = world.seen.source_pod.as_mut().unwrap();
        source.metadata.deletion_timestamp = Some(Time(world.now));
        let status = source.status.as_mut().unwrap();
        status.phase = Some("Failed".into());
        status.reason = reason.map(str::to_owned);
        world.until(|w| w.done.iter().any(|d| d == "release"));
        world.seen.source_pod = None;
        world.run();
        assert_eq!(world.made, made, "{reason:?}");
    }
}

#[test]
fn an_eviction_means_the_node_and_not_the_pod() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    world.evict_source();
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (1, "True"));
}

#[test]
fn an_owner_that_goes_with_its_pods_gets_no_pod() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    world.seen.owner = Owner::Gone;
    // The garbage collector deletes what refers to it.
    world.seen.migration.metadata.deletion_timestamp = Some(Time(world.now));
    world.run();
    assert_eq!(world.made, 0);
    assert!(world.succeeded().1.contains("owner was deleted"));
}

#[test]
fn a_stateful_set_that_was_scaled_down_meanwhile_gets_no_pod() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
    let Owner::StatefulSet(set) = &mut world.seen.owner else { panic!("no StatefulSet") };
    set.spec.replicas = Some(0);
    world.run();
    assert_eq!(world.made, 0);
    let (succeeded, message) = world.succeeded();
    assert!(succeeded == "False" && message.contains("scaled down"), "{succeeded}: {message}");
    assert!(world.seen.trial_pod.is_none());
}

#[test]
fn nothing_is_concluded_from_a_deleted_owner_before_the_garbage_collector_has_spoken() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
    let looks = |world: &mut World| {
        for _ in 0..5 {
            world.look();
        }
        assert_eq!(world.made, 0);
        assert_eq!(world.succeeded().0, "Unknown");
    };
    // Whoever deletes the Migration as well has not yet said that the pod goes.
    world.seen.owner = Owner::Going;
    world.seen.migration.metadata.deletion_timestamp = Some(Time(world.now));
    looks(&mut world);
    world.seen.migration.metadata.deletion_timestamp = None;
    world.seen.owner = Owner::Gone;
    looks(&mut world);
    assert!(world.succeeded().1.contains("orphan"), "{:?}", world.succeeded());
}

#[test]
fn a_pod_that_its_owner_let_go_is_made_again_without_it() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
    world.seen.owner = Owner::Gone;
    world.seen.migration.metadata.owner_references = None;
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (1, "True"));
    assert!(controller(world.seen.target_pod.as_ref().unwrap()).is_none());
}

#[test]
fn a_pod_that_was_made_too_late_to_be_let_go_is_made_once_more() {
    // Behind its gate, and past it, where the garbage collector was faster.
    for let_go in [false, true] {
        let mut world = World::voted(&[Fate::DeletedBySomebody, Fate::Runs]);
        world.until(|w| w.made == 1 && (!let_go || w.is_let_go()));
        world.seen.owner = Owner::Gone;
        world.seen.migration.metadata.owner_references = None;
        world.run();
        assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
        assert!(controller(world.seen.target_pod.as_ref().unwrap()).is_none());
        assert_eq!(world.seen.status().failed_restores, let_go.then_some(1));
    }
}

#[test]
fn a_pod_whose_owner_is_deleted_waits_behind_its_gate_for_the_garbage_collectors_word() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.made == 1);
    world.seen.owner = Owner::Going;
    for _ in 0..10 {
        world.look();
    }
    assert!(!world.is_let_go() && world.seen.target_pod.is_some());
    assert!(world.succeeded().1.contains("orphan"), "{:?}", world.succeeded());
    let set = json!({"metadata": {"name": "web", "uid": "uid-sts"}});
    world.seen.owner = Owner::StatefulSet(Box::new(serde_json::from_value(set).unwrap()));
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (1, "True"));
}

#[test]
fn an_owner_that_the_source_has_lost_meanwhile_is_not_stored() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    world.seen.source_pod.as_mut().unwrap().metadata.owner_references = None;
    world.until(|w| w.seen.source_pod.is_none());
    assert!(controller(world.seen.manifest.as_ref().unwrap()).is_none());
}

#[test]
fn a_refusal_of_the_pod_is_told_as_long_as_it_lasts() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
    world.seen.refused = Some("pods \"web-0\" is forbidden: exceeded quota".into());
    let Plan { status, actions, .. } = plan(&world.seen, world.now);
    assert!(actions.iter().any(|action| matches!(action, Action::CreateTarget(_))), "it is tried");
    let makes_room = actions.iter().any(|action| matches!(action, Action::DeleteTrial));
    assert!(makes_room, "a quota may be full with the trial's pod");
    let stalled = c::find(&status.conditions, c::STALLED).unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "TargetPodFailed"));
    for words in ["cannot make pod web-0 on node node-b again", "exceeded quota", "change what"] {
        assert!(stalled.message.contains(words), "{}", stalled.message);
        let succeeded = c::find(&status.conditions, c::SUCCEEDED).unwrap();
        assert!(succeeded.message.contains(words), "{}", succeeded.message);
    }
    world.until(|w| w.made == 1);
    world.look();
    assert!(!c::is_true(&world.seen.status().conditions, c::STALLED));
    world.run();
    assert_eq!(world.succeeded().0, "True");
}

#[test]
fn a_pod_that_somebody_deletes_before_it_runs_is_not_made_again() {
    let mut world = World::voted(&[Fate::DeletedBySomebody]);
    world.run();
    assert_eq!(world.made, 1);
    assert!(world.succeeded().1.contains("by somebody"));
}

#[test]
fn a_pod_that_is_deleted_behind_its_gate_is_made_again_whether_that_is_seen_or_not() {
    for is_seen in [true, false] {
        let mut world = World::voted(&[Fate::Runs, Fate::Runs]);
        world.until(|w| w.seen.status().target.is_some_and(|target| target.pod_uid == "uid-1"));
        assert!(!world.is_let_go());
        if is_seen {
            let gone = Some(Time(world.now));
            world.seen.target_pod.as_mut().unwrap().metadata.deletion_timestamp = gone.clone();
            world.seen.again_pod.as_mut().unwrap().metadata.deletion_timestamp = gone;
            for _ in 0..5 {
                world.look();
            }
        }
        world.seen.again_pod = None;
        world.seen.target_pod = None;
        world.run();
        let ended = (world.made, world.succeeded().0);
        assert_eq!(ended, (2, "True".to_owned()), "{is_seen}: {:?}", world.done);
        assert_eq!(world.seen.status().failed_restores, Some(1), "one pod counts once");
    }
}

#[test]
fn a_life_that_is_heard_of_only_when_its_pod_is_gone_is_closed_before_the_next_begins() {
    let mut world = World::voted(&[Fate::Runs, Fate::Runs]);
    let is_target = |w: &World, uid: &str| w.seen.status().target.is_some_and(|t| t.pod_uid == uid);
    world.until(|w| is_target(w, "uid-1"));
    // Its side begins, and the answer is lost; somebody deletes it behind its gate.
    world.seen.again_pod = None;
    world.seen.target_pod = None;
    world.until(|w| is_target(w, "uid-2"));
    world.set(Role::Target, |r| *r = Report { pod_uid: "uid-1".into(), ..Report::default() });
    world.done.clear();
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"), "{:?}", world.done);
    let place = |what| world.done.iter().position(|done| done == what);
    let (closed, begun) = (place("give up"), place("start target"));
    assert!(closed.is_some() && closed < begun, "{:?}", world.done);
}

#[test]
fn a_pod_that_goes_with_its_node_or_unseen_is_made_again() {
    for fate in [Fate::Evicted, Fate::Vanishes] {
        let mut world = World::voted(&[fate, Fate::Runs]);
        world.run();
        assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"), "{fate:?}");
        assert_eq!(world.seen.status().failed_restores, Some(1), "one pod counts once");
    }
}

#[test]
fn nothing_is_concluded_from_a_side_that_is_not_known() {
    let mut world = World::voted(&[Fate::Vanishes]);
    world.until(|w| w.made == 1 && w.seen.again_pod.is_none());
    world.seen.target = Side::Unknown;
    let given_up = |w: &World| w.done.last().is_some_and(|d| d == "give up");
    world.until(given_up);
    assert_eq!(world.seen.status().failed_restores, None);
}

#[test]
fn a_manifest_that_is_missing_is_stored_again_as_long_as_there_is_a_source() {
    let mut world = World::voted(&[Fate::Runs]);
    world.seen.manifest = None;
    world.until(World::committed);
    assert!(world.seen.manifest.is_some(), "{:?}", world.done);
    world.seen.manifest = None;
    world.until(|w| w.done.iter().any(|d| d == "release"));
    assert!(world.seen.manifest.is_some(), "{:?}", world.done);
    let labels = &mut world.seen.source_pod.as_mut().unwrap().metadata.labels;
    labels.as_mut().unwrap().insert("role".into(), "replica".into());
    world.until(|w| w.seen.source_pod.is_none());
    let stored = world.seen.manifest.as_ref().unwrap().metadata.labels.as_ref().unwrap();
    assert_eq!(stored["role"], "replica");

    world.seen.manifest = None;
    for _ in 0..5 {
        world.look();
    }
    assert!(c::is_true(&world.seen.status().conditions, c::STALLED));
    assert_eq!(world.made, 0);
    world.seen.migration.metadata.deletion_timestamp = Some(Time(world.now));
    world.run();
    assert!(world.succeeded().1.contains("cannot be made again"));
}

#[test]
fn without_any_node_that_has_the_state_nothing_is_made() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
    (world.seen.source_node_gone, world.seen.target_node_gone) = (true, true);
    for _ in 0..5 {
        world.look();
    }
    assert!(c::is_true(&world.seen.status().conditions, c::STALLED));
    assert_eq!((world.made, world.seen.recorded().resolution), (0, None));
}

#[test]
fn the_end_of_a_pod_that_went_with_its_node_does_not_look_meant_when_the_node_is_back() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed() && w.seen.target.report().is_some_and(|r| r.closed));
    world.seen.source_node_gone = true;
    world.seen.source_pod = None;
    world.look();
    assert_eq!(world.made, 0);
    world.seen.source_node_gone = false;
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (1, "True"));
}

#[rstest]
#[case::its_node_answers(false)]
#[case::its_node_is_gone(true)]
fn a_source_that_is_removed_before_the_trial_has_ended_does_not_take_that_along(
    #[case] target_gone: bool,
) {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    let ended = world.seen.target.report().unwrap().clone();
    world.set(Role::Target, |r| {
        r.closed = false;
        r.target_word = Some(TargetWord { begun: true, voted: true, ..Default::default() });
    });
    world.seen.source_pod = None;
    let outcome = Some(SourceOutcome::Released);
    world.set(Role::Source, |r| {
        r.closed = true;
        r.source_word =
            Some(SourceWord { begun: true, voted: true, outcome, ..Default::default() });
    });
    world.look();
    assert!(world.seen.trial_pod.is_some(), "{:?}", world.done);
    match target_gone {
        true => world.seen.target_node_gone = true,
        false => world.set(Role::Target, |r| *r = ended),
    }
    world.until(|w| w.succeeded().0 == "False");
    assert!(world.succeeded().1.contains("deleted by somebody"));
}

#[test]
fn a_pod_does_not_go_back_to_a_node_that_is_gone() {
    let mut world = World::voted(&[Fate::Fails, Fate::Fails, Fate::Fails, Fate::Runs]);
    world.until(|w| w.made == 1);
    world.seen.source_node_gone = true;
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (4, "True"));
}

#[test]
fn a_fresh_pod_of_the_owner_makes_room_unless_it_ran_and_a_strangers_is_left() {
    for (owner, ran, deleted) in
        [("uid-sts", false, true), ("uid-sts", true, false), ("uid-x", false, false)]
    {
        let mut world = World::voted(&[Fate::Runs]);
        world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
        let mut fresh = source(json!([{"apiVersion": "apps/v1", "kind": "StatefulSet",
            "name": "web", "uid": owner, "controller": true}]));
        fresh.metadata.uid = Some("uid-fresh".into());
        if !ran {
            fresh.status = None;
        }
        world.seen.again_pod = Some(fresh);
        if deleted {
            world.run();
            assert!(world.done.iter().any(|d| d == "delete again"));
            continue;
        }
        for _ in 0..5 {
            world.look();
        }
        let conditions = world.seen.status().conditions;
        assert!(c::is_true(&conditions, c::STALLED), "{conditions:?}");
        assert_eq!(world.made, 0);
    }
}

#[test]
fn a_cold_one_takes_the_same_course_and_says_what_it_does() {
    let mut world = World::voted_in(api::Mode::Cold, &[Fate::Fails, Fate::Runs]);
    let status = world.seen.status();
    assert_eq!(status.chosen_mode, Some(api::Mode::Cold));
    assert!(status.choice_message.unwrap().contains("starts afresh with its files"));
    assert!(status.trial.unwrap().contains("nothing is started"));
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
    let conditions = world.seen.status().conditions;
    let restored = c::find(&conditions, c::RESTORED).unwrap();
    assert_eq!(restored.message, "started 1 container on node-b");
}

#[test]
fn what_has_ended_may_stay_so_until_the_time_is_up() {
    let mut world = World::voted_in(api::Mode::Cold, &[Fate::Runs]);
    world.seen.frozen_seen = Some(world.now);
    world.set(Role::Source, |r| {
        (r.stage, r.voted, r.source_word) = (Stage::Frozen, false, None);
    });
    world.set(Role::Target, |r| {
        (r.stage, r.voted, r.target_word) = (Stage::Connected, false, None);
    });
    world.now += jiff::SignedDuration::from_secs(300);
    assert_eq!(plan(&world.seen, world.now).record, None);
    world.now += jiff::SignedDuration::from_secs(300);
    assert_eq!(
        plan(&world.seen, world.now).record,
        Some(Record::Decision(Decision::Abort)),
        "spec.timeout"
    );
}
