//! What is put together of a Migration that has vanished, and what becomes of its pods.

use rstest::rstest;
use serde_json::json;
use transship_protocol::{SourceWord, TargetWord};

use super::super::state::{Report, Stage};
use super::super::testing::{World, owner, run_until, source_pod};
use super::*;

/// Lets the operator do what can be done at once for one that has vanished.
fn look(world: &mut World) -> Option<Fate> {
    let mut reached = None;
    for _ in 0..20 {
        let pods = [world.seen.source_pod.as_ref(), world.seen.target_pod.as_ref()];
        let migration = put_together("uid-m", "shop", pods, nodes(pods, [None, None]));
        world.seen.migration = migration;
        world.seen.vanished = true;
        let fate = settle(&mut world.seen, reached, world.now)?;
        let plan = plan(&world.seen, fate, world.now);
        plan.actions.iter().for_each(|action| world.act(action));
        if !plan.again.is_some_and(|pause| pause.is_zero()) {
            return Some(fate);
        }
        reached = plan.status.step;
    }
    panic!("it never waits: {:#?}", world.seen);
}

/// Looks until no pod bears a mark.
fn settle_all(world: &mut World, fate: Fate) {
    let marked = |pod: &Option<Pod>| pod.as_ref().is_some_and(|p| marks_of(&p.metadata).is_some());
    for _ in 0..20 {
        if !marked(&world.seen.source_pod) && !marked(&world.seen.target_pod) {
            return;
        }
        // Each by another operator.
        assert_eq!(look(world), Some(fate));
        world.kubelets();
        world.wait(1);
    }
    panic!("marks are left: {:#?}", world.seen);
}

/// A target's side that has ended so.
fn ended(pod_uid: &str, outcome: TargetOutcome) -> Side {
    let outcome = Some(outcome);
    let word = TargetWord { begun: true, outcome, closed: true, ..TargetWord::default() };
    Side::Reporting(Report {
        pod_uid: pod_uid.into(),
        target_word: Some(word),
        closed: true,
        ..Report::default()
    })
}

/// Both sides speak of the pods that are there.
fn name_pods(world: &mut World) {
    world.set(Role::Source, |report| report.pod_uid = "uid-s".into());
    world.set(Role::Target, |report| report.pod_uid = "uid-t".into());
}

#[test]
fn one_that_has_thawed_is_handed_over_as_ever() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.stage == Stage::Thawed));
    let target = world.seen.target_pod.as_mut().unwrap();
    target.status.get_or_insert_default().pod_ip = Some("10.244.1.5".into());
    name_pods(&mut world);
    assert_eq!(look(&mut world), None, "neither has said how it ended");
    assert_eq!(meanwhile(&world.seen), []);
    world.set(Role::Target, |report| report.closed = true);
    assert_eq!(look(&mut world), None, "the source is open");
    assert!(matches!(meanwhile(&world.seen)[..], [Action::MoveLease { .. }]));
    // It ends on the strength of the target's word.
    world.set(Role::Source, |report| {
        report.stage = Stage::Released;
        report.closed = true;
    });
    world.release = true;
    world.kubelets();
    settle_all(&mut world, Fate::Moved);
    let handed_over = [
        "freeze",
        "move lease",
        "mark resumed",
        "label target",
        "move claim",
        "have both claimed",
        "delete source",
        "unclaim target",
    ];
    assert!(world.done.ends_with(&handed_over), "{:?}", world.done);
    world.is_handed_over();
}

#[test]
fn the_source_is_what_its_owner_has_too_many_once_it_is_shown_as_ended() {
    let handed_over = |shown: Stage, meanwhile: fn(&mut World)| {
        let mut world = World::admitted();
        run_until(&mut world, |w| w.seen.target.report().is_some_and(|r| r.stage == Stage::Thawed));
        name_pods(&mut world);
        world.set(Role::Target, |report| report.closed = true);
        let outcome = Some(SourceOutcome::Released);
        let word = SourceWord { begun: true, outcome, ..SourceWord::default() };
        world.set(Role::Source, |report| {
            report.stage = shown;
            report.closed = true;
            report.source_word = Some(word);
        });
        world.release = true;
        for _ in 0..10 {
            world.kubelets();
            meanwhile(&mut world);
            assert_eq!(look(&mut world), Some(Fate::Moved));
            if world.done.contains(&"move claim") {
                break;
            }
            world.wait(1);
        }
        world.done
    };
    let done = handed_over(Stage::Released, |_| {});
    assert!(done.ends_with(&["move claim", "have both claimed", "delete source"]), "{done:?}");
    let done = handed_over(Stage::Voted, |_| {});
    assert_eq!(done.last(), Some(&"label target"), "kubelet shows it as running");
    // Of two that are not Ready the owner might end the target.
    let done = handed_over(Stage::Released, |world| {
        world.wait(60);
        let status = world.seen.target_pod.as_mut().unwrap().status.get_or_insert_default();
        status.conditions.get_or_insert_default().retain(|c| c.type_ != "Ready");
    });
    assert!(done.ends_with(&["move claim", "delete source"]), "{done:?}");
}

#[test]
fn one_that_was_given_up_leaves_the_source_as_it_was() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.freeze);
    name_pods(&mut world);
    world.fail(Role::Source);
    assert_eq!(look(&mut world), None, "the target is open");
    world.fail(Role::Target);
    world.kubelets();
    settle_all(&mut world, Fate::Stays);
    assert!(world.done.ends_with(&["unclaim source", "delete target"]), "{:?}", world.done);
    assert!(world.seen.target_pod.is_none());
    let mut before = source_pod();
    before.metadata.annotations.as_mut().unwrap().remove(names::CLAIM);
    assert_eq!(world.seen.source_pod.unwrap().metadata, before.metadata);
}

#[test]
fn of_a_source_without_a_mark_it_is_told_only_that_it_was_not_moved() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.freeze);
    name_pods(&mut world);
    world.fail(Role::Source);
    world.fail(Role::Target);
    let message = |world: &World| told(&world.seen, fate(&world.seen)).message;
    assert!(message(&world).ends_with("the pod stays on node-a"), "{}", message(&world));
    // Given back before the target has gone, or deleted.
    world.seen.source_pod = None;
    assert!(message(&world).ends_with("the pod was not moved"), "{}", message(&world));
}

#[test]
fn a_side_that_does_not_answer_is_waited_for_unless_its_word_is_known() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.freeze);
    name_pods(&mut world);
    world.fail(Role::Source);
    world.silence(Role::Target);
    assert_eq!(look(&mut world), None);
    world.wait(1_000_000);
    assert_eq!(look(&mut world), None, "however long");
    let note = told(&world.seen, None);
    assert!(note.warning && note.message.ends_with("how it ended on node-b"));
    world.fail(Role::Target);
    world.silence(Role::Target);
    world.kubelets();
    settle_all(&mut world, Fate::Stays);
}

#[test]
fn a_claim_comes_off_a_pod_to_which_nothing_was_done() {
    let mut world = World::admitted();
    settle_all(&mut world, Fate::Stays);
    assert_eq!(world.done, ["unclaim source"]);
    assert_eq!(told(&world.seen, Some(Fate::Stays)).reason, "MigrationVanished");
}

#[rstest]
#[case::resumed(Some(SourceOutcome::Released), Some(TargetOutcome::Resumed), Some(Fate::Moved))]
#[case::contradiction(Some(SourceOutcome::Opened), Some(TargetOutcome::Resumed), None)]
#[case::never(Some(SourceOutcome::Opened), Some(TargetOutcome::NeverThawed), Some(Fate::Stays))]
#[case::stopped(Some(SourceOutcome::Opened), Some(TargetOutcome::Stopped), Some(Fate::Stays))]
#[case::trial(Some(SourceOutcome::Opened), Some(TargetOutcome::Kept), Some(Fate::Stays))]
#[case::ended(Some(SourceOutcome::Released), Some(TargetOutcome::Kept), Some(Fate::Kept))]
#[case::source_open(None, Some(TargetOutcome::Resumed), None)]
#[case::target_open(Some(SourceOutcome::Opened), None, None)]
#[case::both_open(None, None, None)]
fn the_last_words_tell_which_pod_goes_on(
    #[case] source: Option<SourceOutcome>,
    #[case] target: Option<TargetOutcome>,
    #[case] expected: Option<Fate>,
) {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.freeze);
    name_pods(&mut world);
    world.set(Role::Source, |report| {
        report.source_word =
            Some(SourceWord { begun: true, outcome: source, ..SourceWord::default() });
    });
    world.set(Role::Target, |report| {
        report.target_word =
            Some(TargetWord { begun: true, outcome: target, ..TargetWord::default() });
    });
    assert_eq!(fate(&world.seen), expected);
    // What another pod's side says is nothing to these.
    world.set(Role::Target, |report| report.pod_uid = "uid-other".into());
    assert_eq!(fate(&world.seen), None);
}

#[test]
fn sides_that_are_forgotten_tell_nothing_of_a_pod_that_was_let_go() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target_pod.is_some());
    world.seen.source = Side::NotStarted;
    world.seen.target = Side::NotStarted;
    assert_eq!(fate(&world.seen), Some(Fate::Stays), "it has its gate");
    world.seen.target_pod.as_mut().unwrap().spec.as_mut().unwrap().scheduling_gates = None;
    assert_eq!(fate(&world.seen), None);
    let message = told(&world.seen, None).message;
    assert!(message.contains("nobody tells any more"), "{message}");
    world.seen.source = Side::Unknown;
    assert_eq!(fate(&world.seen), None, "it was not asked");
}

#[test]
fn a_pod_that_was_made_again_goes_on_or_is_left_alone() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target_pod.is_some());
    let mut again = world.seen.target_pod.take().unwrap();
    again.metadata.name = Some("web-1".into());
    world.seen.source_pod = None;
    world.seen.target_pod = Some(again.clone());
    world.seen.source = Side::NotStarted;
    world.seen.target = ended("uid-t", TargetOutcome::Stopped);
    assert_eq!(look(&mut world), Some(Fate::Kept));
    assert_eq!(world.seen.target_pod, Some(again), "nothing was done");
    assert!(world.seen.is_sequential());
    world.seen.target = ended("uid-t", TargetOutcome::Resumed);
    assert_eq!(look(&mut world), Some(Fate::Moved));
    world.seen.target_pod.as_mut().unwrap().spec.as_mut().unwrap().scheduling_gates = None;
    world.seen.target = Side::NotStarted;
    assert_eq!(fate(&world.seen), None, "nobody tells whether it is the pod that runs");
}

#[test]
fn a_pod_that_was_made_again_and_not_let_go_is_not_waited_for() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target_pod.is_some());
    let again = world.seen.target_pod.as_mut().unwrap();
    again.metadata.name = Some("web-1".into());
    again.metadata.uid = Some("uid-again".into());
    world.seen.source_pod = None;
    world.seen.source = Side::NotStarted;
    // The last that its node says is of the restore on trial.
    world.seen.target = ended("uid-t", TargetOutcome::Kept);
    assert_eq!(look(&mut world), Some(Fate::Kept));
    assert!(world.seen.target_pod.is_some(), "its owner would start another one afresh");
    world.seen.target_pod.as_mut().unwrap().spec.as_mut().unwrap().scheduling_gates = None;
    assert_eq!(fate(&world.seen), None, "its own side has not begun, or has not said anything");
}

#[test]
fn the_pod_of_a_trial_goes_and_the_source_that_has_ended_stays() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target_pod.is_some());
    world.seen.target = ended("uid-t", TargetOutcome::Kept);
    world.seen.source = Side::Reporting(Report {
        pod_uid: "uid-s".into(),
        stage: Stage::Released,
        closed: true,
        ..Report::default()
    });
    let source = world.seen.source_pod.clone();
    assert_eq!(look(&mut world), Some(Fate::Kept));
    assert_eq!(world.done.last(), Some(&"delete target"));
    assert_eq!(world.seen.source_pod, source);
    assert!(told(&world.seen, Some(Fate::Kept)).warning);
}

#[test]
fn what_the_pods_tell_is_put_together() {
    let source = source_pod();
    let mut world = World::admitted();
    run_until(&mut world, |w| w.seen.target_pod.is_some());
    let target = world.seen.target_pod.unwrap();
    assert_eq!(marks_of(&source.metadata), Some(("uid-m", Role::Source)));
    assert_eq!(marks_of(&target.metadata), Some(("uid-m", Role::Target)));
    let both = [Some(&source), Some(&target)];
    assert_eq!(nodes(both, [None, None]), ["node-a", "node-b"]);
    assert_eq!(nodes([None, Some(&target)], [None, None]), ["node-a", "node-b"], "moved-from");
    let published = [None, Some("node-c".to_owned())];
    assert_eq!(nodes([Some(&source), None], published), ["node-a", "node-c"]);
    assert_eq!(nodes([Some(&source), None], [None, None]), ["node-a", ""]);
    let migration = put_together("uid-m", "shop", both, ["node-a".into(), "node-b".into()]);
    assert_eq!(migration.metadata.name.as_deref(), Some("move"));
    let status = migration.status.unwrap();
    assert_eq!(status.chosen_network, Some(Network::Close), "it has no address yet");
    assert_eq!(status.target.unwrap().pod_uid, "uid-t");
    let mut target = target;
    target.status = serde_json::from_value(json!({
        "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}]}))
    .unwrap();
    for pods in [[Some(&source), Some(&target)], [None, Some(&target)]] {
        let status = put_together("uid-m", "shop", pods, nodes(pods, [None, None])).status.unwrap();
        assert_eq!(status.chosen_network, Some(Network::Preserve));
        assert_eq!(status.address.as_deref(), Some("10.244.1.5"));
        assert_eq!(status.other_addresses, ["fd00::5"]);
    }
}

#[test]
fn a_node_that_has_left_or_forgotten_says_nothing_more() {
    let mut world = World::admitted();
    run_until(&mut world, |w| w.freeze);
    name_pods(&mut world);
    world.set(Role::Source, |report| {
        report.stage = Stage::Released;
        report.closed = true;
    });
    assert_eq!(fate(&world.seen), None);
    world.seen.target = Side::NotStarted;
    assert_eq!(fate(&world.seen), Some(Fate::Moved), "it ends on the target's last word alone");
    world.seen.target_node_gone = true;
    assert_eq!(fate(&world.seen), Some(Fate::Moved));
    let source = world.seen.source_pod.as_mut().unwrap();
    assert_eq!(source.metadata.owner_references.take().unwrap()[0].uid, owner().uid);
    assert_eq!(fate(&world.seen), None, "in the other order it ends on its own");
}
