use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;
use transship_api::conditions::{self as c, reasons};
use transship_api::{self as api, Step, names};
use transship_protocol::{
    Decision, Resolution, SourceOutcome, SourceWord, TargetOutcome, TargetProof, TargetWord,
};

use super::plan::{Action, Record};
use super::state::{Owner, Role, Stage, any_container_runs};
use super::testing::{World, run_until};

fn reason(world: &World) -> String {
    let conditions = world.seen.status().conditions;
    c::find(&conditions, c::SUCCEEDED).unwrap().reason.clone()
}

fn message(world: &World) -> String {
    let conditions = world.seen.status().conditions;
    c::find(&conditions, c::SUCCEEDED).unwrap().message.clone()
}

#[test]
fn a_migration_that_goes_well_takes_every_step_in_order() {
    let mut world = World::admitted();
    world.settle();
    assert_eq!(world.step(), Step::Succeeded);
    assert_eq!(
        world.done,
        [
            "create",
            "start target",
            "start source",
            "remove gate",
            "freeze",
            "move lease",
            "mark resumed",
            "label target",
            "move claim",
            "move lease",
            "release",
            "end hand-over",
            "delete source",
            "unclaim target",
            "remove finalizer",
        ]
    );
    assert!(matches!(
        world.records[..],
        [Record::Decision(Decision::Commit), Record::ResumedAt(_)]
    ));
    world.is_handed_over();
}

#[test]
fn the_end_tells_how_long_the_application_stood_still() {
    let mut world = World::admitted();
    world.settle();
    assert!(message(&world).contains("stood still for"), "{}", message(&world));
    let conditions = world.seen.status().conditions;
    let restored = c::find(&conditions, c::RESTORED).unwrap();
    assert!(restored.message.starts_with("froze 1 container for "), "{}", restored.message);
    for type_ in c::MIGRATION_TYPES {
        let condition = c::find(&conditions, type_).unwrap();
        assert_ne!(condition.status, "Unknown", "{type_}");
        assert!(!condition.reason.is_empty());
    }
}

#[test]
fn a_hook_that_fails_is_told_and_changes_nothing() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.stage == Stage::Thawed));
    world.set(Role::Target, |r| {
        r.hooks = [("web".into(), "it exited with 1".into()), ("aux".into(), String::new())].into();
    });
    world.settle();
    assert_eq!((world.step(), reason(&world)), (Step::Succeeded, reasons::MIGRATED.to_owned()));
    let conditions = world.seen.status().conditions;
    let hooks = c::find(&conditions, c::HOOKS_RUN).unwrap();
    assert_eq!((hooks.status.as_str(), hooks.reason.as_str()), ("False", reasons::HOOK_FAILED));
    assert!(hooks.message.ends_with("failed there: container web: it exited with 1"), "{hooks:?}");
}

#[test]
fn a_hook_that_outlasts_the_migration_is_waited_for_and_told() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.step() == Step::Succeeded);
    let word = TargetWord {
        outcome: Some(TargetOutcome::Resumed),
        closed: true,
        ..world.seen.target_word()
    };
    world.set(Role::Target, |r| {
        r.target_word = Some(word);
        r.closed = false;
    });
    let waits = world.plan();
    assert!(!waits.actions.contains(&Action::Forget(Role::Target)), "{:?}", waits.actions);
    assert!(!waits.actions.contains(&Action::UnclaimTarget), "{:?}", waits.actions);
    assert!(c::find(&waits.status.conditions, c::HOOKS_RUN).is_none());
    world.set(Role::Target, |r| {
        r.hooks = [("web".into(), String::new())].into();
        r.closed = true;
    });
    let ended = world.plan();
    assert!(ended.actions.contains(&Action::Forget(Role::Target)), "{:?}", ended.actions);
    assert!(c::is_true(&ended.status.conditions, c::HOOKS_RUN));
    world.settle();
    assert!(world.is_settled());
}

#[rstest]
#[case::deleted(|w: &mut World| w.seen.migration.metadata.deletion_timestamp =
    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(w.now)), reasons::CANCELLED)]
#[case::source_deleted(|w: &mut World| w.seen.source_pod.as_mut().unwrap().metadata.deletion_timestamp =
    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(w.now)), reasons::SOURCE_GONE)]
#[case::claim_taken(|w: &mut World| { w.seen.source_pod.as_mut().unwrap().metadata.annotations = None; },
    reasons::POD_CLAIMED)]
#[case::timed_out(|w: &mut World| w.wait(601), reasons::TIMED_OUT)]
#[case::step_failed(|w: &mut World| w.seen.failure = Some((reasons::TARGET_POD_FAILED, "quota".into())),
    reasons::TARGET_POD_FAILED)]
#[case::source_silent(|w: &mut World| { w.silence(Role::Source); w.wait(31); }, reasons::SOURCE_UNREACHABLE)]
#[case::target_silent(|w: &mut World| { w.silence(Role::Target); w.wait(31); }, reasons::TARGET_UNREACHABLE)]
#[case::node_gone(|w: &mut World| w.seen.target_node_gone = true, reasons::TARGET_UNREACHABLE)]
#[case::restore_failed(|w: &mut World| w.fail(Role::Target), "RestoreFailed")]
#[case::word_before_reason(|w: &mut World| w.set(Role::Target, |r| r.never_thawed = true), reasons::RESTORE_FAILED)]
fn whatever_goes_wrong_before_the_votes_rolls_back(
    #[case] wrong: fn(&mut World),
    #[case] wanted: &str,
    #[values(Stage::Started, Stage::Connected, Stage::Frozen)] when: Stage,
) {
    let mut world = World::admitted();
    run_until(&mut world, |w| {
        w.seen.source.report().is_some_and(|r| r.stage >= when) && w.seen.target.report().is_some()
    });
    wrong(&mut world);
    world.settle();
    assert_eq!(world.step(), Step::RolledBack);
    assert_eq!(world.records, [Record::Decision(Decision::Abort)]);
    assert_eq!(reason(&world), wanted, "{}", message(&world));
    assert!(world.seen.target_pod.is_none(), "the target pod is deleted");
    assert!(!world.done.contains(&"move claim"));
    if let Some(source) = &world.seen.source_pod {
        let claim = source.metadata.annotations.iter().flatten().find(|(k, _)| *k == names::CLAIM);
        assert_eq!(claim, None, "the claim comes off");
    }
}

#[test]
fn before_the_target_pod_exists_it_is_rolled_back_too() {
    let mut world = World::admitted();
    world.seen.failure = Some((reasons::TARGET_POD_FAILED, "exceeded quota".into()));
    world.settle();
    assert_eq!(world.step(), Step::RolledBack);
    assert_eq!(message(&world), "exceeded quota");
    assert_eq!(world.done, ["unclaim source", "remove finalizer"]);
}

#[test]
fn a_target_that_a_webhook_changed_is_given_up_before_anything_is_started() {
    let mut world = World::admitted();
    world.operator(usize::MAX);
    let target = world.seen.target_pod.as_mut().unwrap();
    target.metadata.labels.as_mut().unwrap().insert("mesh".into(), "on".into());
    world.settle();
    assert_eq!(reason(&world), reasons::TARGET_POD_CHANGED);
    assert!(message(&world).contains("metadata.labels"), "{}", message(&world));
    assert!(!world.done.contains(&"start target"));
}

#[rstest]
#[case(json!({"phase": "Failed", "message": "Pod was rejected"}), "Pod was rejected")]
#[case(json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
    "message": "0/2 nodes are available", "lastTransitionTime": "2025-12-31T23:59:00Z"}]}), "0/2 nodes")]
#[case(json!({"containerStatuses": [{"name": "web", "image": "localhost/web:1", "imageID": "", "ready": false,
    "restartCount": 0, "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "no image"}}}]}),
    "load or push its image localhost/web:1")]
fn a_target_pod_that_cannot_run_is_given_up(
    #[case] status: serde_json::Value,
    #[case] words: &str,
) {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.done.contains(&"remove gate"));
    world.seen.target_pod.as_mut().unwrap().status = serde_json::from_value(status).unwrap();
    assert_eq!(world.plan().record, Some(Record::Decision(Decision::Abort)));
    world.settle();
    assert_eq!(reason(&world), reasons::TARGET_POD_FAILED);
    assert!(message(&world).contains(words), "{}", message(&world));
}

#[test]
fn a_source_frozen_for_too_long_is_let_go() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.source.report().is_some_and(|r| r.stage == Stage::Frozen));
    world.wait(65);
    assert_eq!(world.plan().record, None, "the side's own patience ends first");
    world.wait(10);
    assert_eq!(world.plan().record, Some(Record::Decision(Decision::Abort)));
}

#[test]
fn with_both_votes_in_neither_silence_nor_the_clock_prevents_the_commit() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.voted));
    world.silence(Role::Source);
    world.silence(Role::Target);
    world.wait(3600);
    assert_eq!(world.plan().record, Some(Record::Decision(Decision::Commit)));
}

#[test]
fn after_the_commit_a_silent_target_is_waited_for_without_end() {
    let mut world = World::admitted();
    run_until(&mut world, |w| !w.records.is_empty());
    world.set(Role::Target, |r| {
        r.stage = Stage::Voted;
        r.closed = false;
        r.thawed_at = None;
    });
    world.silence(Role::Target);
    for _ in 0..50 {
        world.operator(usize::MAX);
        world.wait(3600);
    }
    assert_eq!(world.records.len(), 1);
    assert_eq!(reason(&world), reasons::WAITING_FOR_NODE);
    assert!(message(&world).contains("node-b"), "{}", message(&world));
    assert!(c::is_true(&world.seen.status().conditions, c::STALLED));
}

#[test]
fn a_target_whose_silence_is_a_proof_lets_the_source_go_on() {
    for thawed in [false, true] {
        let mut world = World::admitted();
        run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.voted));
        world.operator(1);
        world.silence(Role::Target);
        if thawed {
            world.set(Role::Target, |r| r.stage = Stage::Thawed);
            world.silence(Role::Target);
        }
        world.seen.target_proof = TargetProof::NodeDead;
        world.operator(1);
        assert_eq!(
            world.records,
            [Record::Decision(Decision::Commit), Record::Resolution(Resolution::SourceResumes)]
        );
        assert!(message(&world).contains("no sign of life for 30 seconds"), "{}", message(&world));
        assert!(message(&world).contains("in its state of 2026-01-01T00:00:"));
    }
}

/// The target's node goes off when `until` has come, and stays off.
fn without_target(until: impl Fn(&World) -> bool) -> World {
    let mut world = World::admitted();
    run_until(&mut world, until);
    world.silence(Role::Target);
    world
}

/// Everybody but the target's node does a few rounds.
fn rounds_without_target(world: &mut World) {
    for _ in 0..10 {
        world.operator(usize::MAX);
        world.holder(Role::Source);
        world.wait(10);
    }
}

fn claim(world: &World) -> Option<&String> {
    world.seen.source_pod.as_ref()?.metadata.annotations.as_ref()?.get(names::CLAIM)
}

#[test]
fn a_target_that_is_off_before_the_commit_keeps_neither_the_pod_nor_the_migration() {
    let mut world = without_target(|w| {
        w.seen.source.report().is_some_and(|r| r.stage >= Stage::Frozen)
            && w.seen.target_pod.as_ref().is_some_and(any_container_runs)
    });
    rounds_without_target(&mut world);
    assert_eq!(world.records, [Record::Decision(Decision::Abort)]);
    assert_eq!(world.step(), Step::RolledBack);
    assert_eq!(claim(&world), None, "another migration may take the pod");
    assert!(message(&world).contains("goes when node-b answers again"), "{}", message(&world));
    assert!(!world.is_settled() && !world.done.contains(&"delete target"));
    world.settle();
    assert!(world.seen.target_pod.is_none(), "it goes when its node is back");
}

#[test]
fn a_claim_does_not_wait_for_a_target_that_closes_slowly() {
    let mut world =
        without_target(|w| Role::BOTH.iter().all(|role| w.seen.side(*role).report().is_some()));
    world.fail(Role::Source);
    for _ in 0..3 {
        world.operator(usize::MAX);
        world.holder(Role::Source);
    }
    assert_eq!((claim(&world), world.step()), (None, Step::Aborting));
}

#[test]
fn a_source_that_goes_on_after_the_commit_is_free_while_the_targets_node_is_off() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.voted));
    world.operator(1);
    world.silence(Role::Target);
    world.seen.target_proof = TargetProof::NodeDead;
    rounds_without_target(&mut world);
    assert_eq!((world.step(), reason(&world).as_str()), (Step::Failed, reasons::TARGET_LOST));
    assert_eq!(claim(&world), None);
    world.settle();
    assert!(world.seen.target_pod.is_none());
}

#[rstest]
#[case(|w: &mut World| w.seen.source_node_gone = true, reasons::SOURCE_GONE, "has left the cluster")]
#[case(|w: &mut World| {
    w.seen.source_pod.as_mut().unwrap().metadata.deletion_timestamp =
        w.seen.migration.metadata.creation_timestamp.clone();
}, reasons::SOURCE_GONE, "the pod was deleted meanwhile on node-a")]
#[case(|w: &mut World| w.set(Role::Source, |r| {
    r.stage = Stage::Lost;
    r.reason = "SourceRebooted".into();
    r.closed = true;
}), reasons::SOURCE_REBOOTED, "memory is lost")]
#[case(|w: &mut World| lose_memory(w, "the shim of container web has died"), reasons::MEMORY_LOST,
    "the shim of container web has died on node-a, so the pod's memory is lost")]
fn a_source_that_does_not_simply_go_on_is_not_said_to(
    #[case] wrong: fn(&mut World),
    #[case] wanted: &str,
    #[case] words: &str,
) {
    let mut world = World::admitted();
    run_until(&mut world, |w| {
        c::is_true(&w.seen.status().conditions, c::FROZEN) && w.records.is_empty()
    });
    wrong(&mut world);
    run_until(&mut world, |w| w.step() == Step::RolledBack);
    let conditions = world.seen.status().conditions;
    let frozen = c::find(&conditions, c::FROZEN).unwrap();
    assert_eq!((frozen.status.as_str(), frozen.reason.as_str()), ("False", wanted));
    assert!(message(&world).contains(words), "{}", message(&world));
}

/// The source has given up and starts afresh; how its memory was lost is empty if its node restarted.
fn lose_memory(world: &mut World, how: &str) {
    let outcome = Some(SourceOutcome::Opened);
    world.set(Role::Source, |r| {
        r.source_word = Some(SourceWord { begun: true, voted: false, memory_lost: true, outcome });
        r.memory_lost = how.into();
        r.closed = true;
    });
}

#[test]
fn a_pod_that_loses_its_memory_before_the_freeze_is_not_said_to_be_as_it_was() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.source.report().is_some_and(|r| r.stage == Stage::Connected));
    lose_memory(&mut world, "");
    world.settle();
    assert_eq!(world.step(), Step::RolledBack);
    let words = "node-a restarted meanwhile, so the pod's memory is lost and it starts afresh";
    assert!(message(&world).ends_with(words), "{}", message(&world));
}

#[rstest]
#[case("the shim of container web has died", false)]
#[case("its node restarted", true)]
fn memory_that_is_lost_after_the_commit_is_told(#[case] how: &str, #[case] rebooted: bool) {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.recorded().resumed_at);
    let word = TargetWord {
        lost: rebooted,
        outcome: Some(TargetOutcome::Resumed),
        closed: true,
        ..world.seen.target_word()
    };
    world.set(Role::Target, |r| {
        r.target_word = Some(word);
        if !rebooted {
            r.memory_lost = how.into();
        }
    });
    world.settle();
    assert_eq!((world.step(), reason(&world)), (Step::Succeeded, reasons::MIGRATED.to_owned()));
    let told = message(&world);
    assert!(told.contains(&format!("memory is lost, since {how} after the commit")), "{told}");
    assert!(!told.contains("stood still"), "it has begun anew: {told}");
    let conditions = world.seen.status().conditions;
    let restored = c::find(&conditions, c::RESTORED).unwrap();
    assert_eq!(
        (restored.status.as_str(), restored.reason.as_str()),
        ("False", reasons::MEMORY_LOST)
    );
}

/// A cold one that has ended its source's containers and is given up.
fn ended_in_vain() -> World {
    let mut world = World::admitted();
    run_until(&mut world, |w| {
        c::is_true(&w.seen.status().conditions, c::FROZEN) && w.records.is_empty()
    });
    let status = world.seen.migration.status.as_mut().unwrap();
    status.chosen_mode = Some(api::Mode::Cold);
    world
}

#[test]
fn whose_files_are_lost_is_told_where_the_pod_starts_again() {
    for (lost, words) in [
        (vec![], "they were started again on node-a"),
        (
            vec!["web".to_owned(), "log".to_owned()],
            "started again on node-a, but what container web, log had changed outside of volumes is lost",
        ),
    ] {
        let mut world = ended_in_vain();
        world.set(Role::Source, |r| {
            r.files_lost = lost;
            r.reason = "SourceFailed".into();
            r.closed = true;
        });
        run_until(&mut world, |w| w.step() == Step::RolledBack);
        assert!(message(&world).ends_with(words), "{}", message(&world));
    }
}

#[test]
fn what_a_node_does_not_succeed_in_is_told_with_the_way_out() {
    let mut world = ended_in_vain();
    world.set(Role::Source, |r| {
        r.reason = "SourceFailed".into();
        r.stuck = "FilesNotKept: no space left on device".into();
    });
    world.operator(usize::MAX);
    assert_eq!(world.step(), Step::Aborting);
    world.operator(usize::MAX);
    let conditions = world.seen.status().conditions;
    let stalled = c::find(&conditions, c::STALLED).unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", reasons::SOURCE_STUCK));
    for words in ["node-a tries in vain", "no space left", "transship-holder give-up-files uid-m"] {
        assert!(stalled.message.contains(words), "{}", stalled.message);
    }
    world.set(Role::Source, |r| r.stuck.clear());
    world.operator(usize::MAX);
    let conditions = world.seen.status().conditions;
    assert_eq!(c::find(&conditions, c::STALLED).unwrap().status, "False");
}

#[test]
fn what_the_target_does_not_succeed_in_after_the_commit_is_told_too() {
    let mut world = World::admitted();
    run_until(&mut world, |w| !w.records.is_empty());
    world.set(Role::Target, |r| {
        r.stage = Stage::Voted;
        r.thawed_at = None;
        r.stuck = "NetworkNotOpen: no nft".into();
    });
    let conditions = world.plan().status.conditions;
    let stalled = c::find(&conditions, c::STALLED).unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", reasons::TARGET_STUCK));
    assert!(
        stalled.message.contains("node-b tries in vain (NetworkNotOpen: no nft)"),
        "{stalled:?}"
    );
    world.set(Role::Target, |r| r.stuck.clear());
    let conditions = world.plan().status.conditions;
    assert_eq!(c::find(&conditions, c::STALLED).unwrap().status, "False");
}

#[test]
fn waiting_for_a_node_for_long_is_one_transition() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.voted));
    world.operator(1);
    world.silence(Role::Target);
    world.wait(3600);
    let since = |world: &mut World| {
        world.operator(usize::MAX);
        world.wait(60);
        let conditions = world.seen.status().conditions;
        c::find(&conditions, c::STALLED).unwrap().last_transition_time.clone()
    };
    assert_eq!(since(&mut world), since(&mut world));
}

#[test]
fn a_target_that_provably_never_ran_lets_the_source_go_on() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.voted));
    world.operator(1);
    assert_eq!(world.records, [Record::Decision(Decision::Commit)]);
    world.lose_target();
    world.settle();
    assert_eq!(world.records[1], Record::Resolution(Resolution::SourceResumes));
    assert_eq!((world.step(), reason(&world).as_str()), (Step::Failed, reasons::TARGET_LOST));
    assert!(world.seen.source_pod.is_some() && world.seen.target_pod.is_none());
}

#[test]
fn a_deletion_after_the_commit_finishes_first() {
    let mut world = World::admitted();
    run_until(&mut world, |w| !w.records.is_empty());
    world.seen.migration.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now));
    world.settle();
    assert_eq!(world.step(), Step::Succeeded);
}

#[test]
fn an_owner_that_went_away_takes_the_target_with_it() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.recorded().resumed_at);
    world.seen.owner = Owner::Gone;
    run_until(&mut world, |w| w.step() == Step::Succeeded);
    assert!(message(&world).contains("owner was deleted"), "{}", message(&world));
    assert!(!world.done.contains(&"move claim"));
}

#[test]
fn an_owner_that_only_the_source_tells_of_takes_the_target_with_it() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.recorded().resumed_at);
    world.seen.owner = Owner::Gone;
    run_until(&mut world, |w| w.seen.source_pod.is_none());
    // The target was never claimed, so from now on nobody can say whose it was.
    world.seen.owner = Owner::None;
    run_until(&mut world, |w| w.step() == Step::Succeeded);
    let target = world.seen.target_pod.as_ref().unwrap();
    assert!(target.metadata.deletion_timestamp.is_some(), "nobody would ever end it");
    assert!(message(&world).contains("has been deleted there"), "{}", message(&world));
}

#[test]
fn a_pod_that_its_owner_let_go_moves_without_a_claim() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.recorded().resumed_at);
    world.seen.owner = Owner::None;
    world.settle();
    assert_eq!(world.step(), Step::Succeeded);
    assert!(!world.done.contains(&"move claim"));
    assert!(world.seen.target_pod.unwrap().metadata.labels.unwrap().contains_key("app"));
}

#[test]
fn an_owner_that_has_deleted_the_source_before_it_knew_is_shown_that_it_goes() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.done.contains(&"move claim"));
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now);
    let source = world.seen.source_pod.as_mut().unwrap();
    assert_eq!(source.metadata.owner_references, None);
    source.metadata.deletion_timestamp = Some(now);
    world.settle();
    assert_eq!(world.done.iter().filter(|done| **done == "return claim").count(), 1);
    assert!(!world.done.contains(&"delete source"), "it has been: {:?}", world.done);
    assert_eq!(world.step(), Step::Succeeded);
    world.is_handed_over();
}

#[test]
fn minimum_ready_seconds_pass_before_the_source_goes() {
    let mut world = World::admitted();
    let Owner::Controller(controller) = &mut world.seen.owner else { panic!() };
    controller.min_ready = std::time::Duration::from_secs(5);
    let begun = world.now;
    run_until(&mut world, |w| w.done.contains(&"mark resumed"));
    let marked = world.now;
    run_until(&mut world, |w| w.done.contains(&"label target"));
    let waited = world.now.duration_since(marked).as_secs();
    assert!((5..=7).contains(&waited), "{waited} s after {begun}");
}

#[test]
fn an_unready_target_holds_the_hand_over_up_for_its_bound_and_no_longer() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.done.contains(&"mark resumed"));
    let marked = world.now;
    for _ in 0..100 {
        if world.done.contains(&"label target") {
            break;
        }
        for conditions in
            world.seen.target_pod.iter_mut().filter_map(|p| p.status.as_mut()?.conditions.as_mut())
        {
            conditions.retain(|c| c.type_ != "Ready");
        }
        world.round();
    }
    let waited = world.now.duration_since(marked).as_secs();
    assert!((9..=11).contains(&waited), "{waited} s");
}

#[test]
fn an_agent_that_falls_silent_after_its_side_closed_does_not_keep_the_migration() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.step() == Step::Succeeded);
    world.silence(Role::Source);
    world.set(Role::Target, |_| {});
    for _ in 0..5 {
        world.operator(usize::MAX);
    }
    assert!(world.is_settled(), "{:?}", world.plan().actions);
}

#[test]
fn a_final_migration_without_finalizer_is_left_alone() {
    let mut world = World::admitted();
    world.settle();
    let plan = world.plan();
    assert_eq!(plan.actions, []);
    assert_eq!((plan.record, plan.again), (None, None));
    assert_eq!(Some(plan.status), world.seen.migration.status);
}

/// What may happen to a migration at any moment.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The operator looks, and dies after so many writes and actions.
    Operator(usize),
    Holder(Role),
    Kubelets,
    Fail(Role),
    Silence(Role),
    LoseTarget,
    DeleteMigration,
    DeleteSource,
    DeleteTarget,
    Wait(i64),
    /// A new operator has heard nothing yet.
    Restart,
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Source), Just(Role::Target)]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => (0usize..5).prop_map(Event::Operator),
        20 => role().prop_map(Event::Holder),
        10 => Just(Event::Kubelets),
        1 => role().prop_map(Event::Fail),
        1 => role().prop_map(Event::Silence),
        1 => Just(Event::LoseTarget),
        1 => Just(Event::DeleteMigration),
        1 => Just(Event::DeleteSource),
        1 => Just(Event::DeleteTarget),
        2 => (0i64..20).prop_map(Event::Wait),
        2 => Just(Event::Restart),
    ]
}

fn happen(world: &mut World, event: Event) {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    let now = world.now;
    let delete = |pod: &mut Option<k8s_openapi::api::core::v1::Pod>| {
        if let Some(pod) = pod {
            pod.metadata.deletion_timestamp.get_or_insert(Time(now));
        }
    };
    world.deaf &= matches!(event, Event::Operator(_));
    match event {
        Event::Operator(budget) => world.operator(budget),
        Event::Holder(role) => world.holder(role),
        Event::Kubelets => world.kubelets(),
        Event::Fail(role) => world.fail(role),
        Event::Silence(role) => world.silence(role),
        Event::LoseTarget => world.lose_target(),
        Event::DeleteMigration => {
            world.seen.migration.metadata.deletion_timestamp.get_or_insert(Time(now));
        }
        Event::DeleteSource => delete(&mut world.seen.source_pod),
        Event::DeleteTarget => delete(&mut world.seen.target_pod),
        Event::Wait(seconds) => world.wait(seconds),
        Event::Restart => world.deaf = true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The world asserts on the way that nothing is decided twice, started after the decision,
    /// taken from the source before the target is confirmed, or deleted while it runs.
    #[test]
    fn every_course_ends_with_one_outcome_and_leaves_nothing_behind(
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = World::admitted();
        for event in events {
            if world.is_settled() {
                break;
            }
            happen(&mut world, event);
        }
        world.settle();
        prop_assert!(world.step().is_final());
        let decisions = world.records.iter().filter(|r| matches!(r, Record::Decision(_))).count();
        prop_assert_eq!(decisions, 1);
        let labels = world.seen.migration.metadata.labels.clone().unwrap_or_default();
        prop_assert!(!labels.contains_key(names::HANDOVER_LABEL));
        if world.step() != Step::Succeeded {
            prop_assert!(world.seen.target_pod.is_none());
        }
        for pod in [&world.seen.source_pod, &world.seen.target_pod].into_iter().flatten() {
            let annotations = pod.metadata.annotations.clone().unwrap_or_default();
            prop_assert!(!annotations.contains_key(names::CLAIM));
        }
    }

    /// A plan is a function of what is observed, and carrying it out twice does no more than once.
    #[test]
    fn a_plan_may_be_carried_out_twice(rounds in 0usize..30) {
        let mut world = World::admitted();
        for _ in 0..rounds {
            world.round();
        }
        let plan = world.plan();
        prop_assert_eq!(&plan, &world.plan());
        let mut once = world.clone();
        once.operator(usize::MAX);
        // Broken off at every point, then carried out again from what is there.
        for budget in 0..plan.actions.len() + 1 {
            let mut twice = world.clone();
            twice.operator(budget);
            for _ in 0..3 {
                if twice.done == once.done && twice.seen.status() == once.seen.status() {
                    break;
                }
                twice.operator(usize::MAX);
            }
            prop_assert!(twice.done.len() >= once.done.len().saturating_sub(1));
        }
    }
}

#[test]
fn hints_go_to_sides_that_need_them_only() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.voted));
    world.operator(1);
    assert_eq!(world.plan().actions, [Action::Hint(Role::Target)]);
    world.set(Role::Target, |r| r.decision_read = Some(Decision::Commit));
    assert_eq!(world.plan().actions, []);
}
