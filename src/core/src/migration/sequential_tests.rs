//! The sequential hand-over, carried out in a small world: sides answer at once and as told.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;
use transship_api::conditions as c;
use transship_api::{self as api, HandOver, Migration, MigrationSpec, Step, names};
use transship_protocol::{Decision, SourceOutcome, SourceWord, TargetOutcome, TargetWord};

use super::admission::{self, Admitted};
use super::plan::{Action, Plan, Record, plan};
use super::state::{Observed, Owner, Report, Role, Side, Stage};
use crate::sequential_pod::{controller, witness};

/// What becomes of the pods that are made again, in order; the last counts for all that follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Runs,
    Fails,
    DeletedBySomebody,
    Evicted,
    /// Between two looks.
    Vanishes,
}

struct World {
    seen: Observed,
    now: Timestamp,
    fates: Vec<Fate>,
    made: usize,
    done: Vec<String>,
}

fn source(owners: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web-0", "generateName": "web-", "namespace": "shop", "uid": "uid-s",
            "labels": {"app": "web"}, "annotations": {names::CLAIM: "uid-m"},
            "ownerReferences": owners},
        "spec": {"nodeName": "node-a", "containers": [{"name": "web", "image": "localhost/web:1"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}]},
        "status": {"phase": "Running", "podIP": "10.244.1.5", "containerStatuses": [
            {"name": "web", "image": "localhost/web:1", "imageID": "sha256:1", "ready": true,
             "restartCount": 0, "state": {"running": {}}}]}
    }))
    .unwrap()
}

impl World {
    /// Both sides have voted.
    fn voted(fates: &[Fate]) -> Self {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut migration = Migration::new("move", MigrationSpec::for_pod("web-0"));
        migration.metadata.namespace = Some("shop".into());
        migration.metadata.uid = Some("uid-m".into());
        migration.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        migration.metadata.creation_timestamp = Some(Time(now));
        let pod = source(json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web",
            "uid": "uid-sts", "controller": true}]));
        migration.metadata.owner_references = witness(&pod).map(|witness| vec![witness]);
        let decided = Admitted {
            pod: &pod,
            target: "node-b",
            given: true,
            bytes: 1 << 20,
            network: &crate::migration::testing::preserved(),
        };
        migration.status = Some(admission::admitted(&migration, &decided, now));
        let mut seen = Observed::of(migration);
        seen.source_pod = Some(pod);
        seen.source = Side::NotStarted;
        seen.target = Side::NotStarted;
        let set = json!({"metadata": {"name": "web", "uid": "uid-sts"}});
        seen.owner = Owner::StatefulSet(Box::new(serde_json::from_value(set).unwrap()));
        let mut world = Self { seen, now, fates: fates.to_vec(), made: 0, done: Vec::new() };
        world.until(|w| w.seen.source.report().is_some());
        world.set(Role::Target, |r| r.waiting = vec!["web".into()]);
        world.set(Role::Source, |r| r.stage = Stage::Connected);
        world.until(|w| w.done.last().is_some_and(|d| d == "freeze"));
        world.set(Role::Source, |r| {
            r.stage = Stage::Voted;
            r.voted = true;
            r.frozen_at = Some("2026-01-01T00:00:00Z".parse().unwrap());
            r.source_word = Some(SourceWord { begun: true, voted: true, ..Default::default() });
        });
        world.set(Role::Target, |r| {
            r.stage = Stage::Voted;
            r.voted = true;
            r.target_word = Some(TargetWord { begun: true, voted: true, ..Default::default() });
        });
        world
    }

    fn fate(&self) -> Fate {
        *self.fates.get(self.made - 1).or(self.fates.last()).unwrap_or(&Fate::Runs)
    }

    fn set(&mut self, role: Role, change: impl FnOnce(&mut Report)) {
        let mut report = self.seen.side(role).report().cloned().unwrap_or_default();
        change(&mut report);
        match role {
            Role::Source => self.seen.source = Side::Reporting(report),
            Role::Target => self.seen.target = Side::Reporting(report),
        }
    }

    /// Lets the operator look until something holds.
    fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..200 {
            if holds(self) {
                return;
            }
            self.look();
        }
        panic!("in vain; {:#?} {:?}", self.seen.status(), self.done);
    }

    fn run(&mut self) {
        self.until(|w| w.seen.migration.metadata.finalizers.is_none());
    }

    fn look(&mut self) {
        self.now += jiff::SignedDuration::from_secs(1);
        let Plan { mut status, record, actions, .. } = plan(&self.seen, self.now);
        match record {
            Some(Record::Decision(Decision::Commit)) => {
                status.decision = Some(api::Decision::Commit)
            }
            Some(Record::Decision(Decision::Abort)) => status.decision = Some(api::Decision::Abort),
            Some(Record::ResumedAt(at)) => status.resumed_at = Some(MicroTime(at)),
            Some(Record::Resolution(_)) => {
                status.resolution = Some(api::Resolution::SourceResumes);
            }
            None => {}
        }
        if let Some(record) = record {
            self.note(&format!("{record:?}").split(['(', ' ']).next().unwrap().to_lowercase());
        }
        self.seen.migration.status = Some(status);
        assert!(self.seen.recorded().is_lawful());
        for action in &actions {
            self.act(action);
        }
        self.kubelet();
    }

    fn note(&mut self, what: &str) {
        if self.done.last().is_none_or(|last| last != what) {
            self.done.push(what.to_owned());
        }
    }

    fn committed(&self) -> bool {
        self.seen.recorded().decision == Some(Decision::Commit)
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::StoreManifest => {
                assert!(self.seen.source_pod.is_some(), "as long as there is a source");
                self.note("store manifest");
                self.seen.manifest.clone_from(&self.seen.source_pod);
            }
            Action::CreateTarget(pod) => self.create(pod),
            Action::StartSide(role) => {
                self.note(if *role == Role::Source { "start source" } else { "start target" });
                let pod_uid = match role {
                    Role::Source => "uid-s".to_owned(),
                    Role::Target => self.seen.status().target.unwrap().pod_uid,
                };
                self.set(*role, |r| *r = Report { pod_uid, ..Report::default() });
            }
            Action::RemoveGate => {
                if self.committed() {
                    assert!(self.seen.trial_pod.is_none(), "two sandboxes with one address");
                }
                let pod = self.seen.target_pod.as_mut().unwrap();
                pod.spec.as_mut().unwrap().scheduling_gates = None;
                self.note("remove gate");
                self.restore();
            }
            Action::Freeze => self.note("freeze"),
            Action::Hint(Role::Target) if self.committed() && self.made == 0 => {
                self.note("trial ends");
                self.set(Role::Target, |r| {
                    r.closed = true;
                    let outcome = Some(TargetOutcome::Kept);
                    let word = TargetWord { begun: true, voted: true, ..Default::default() };
                    r.target_word = Some(TargetWord { outcome, closed: true, ..word });
                });
            }
            Action::Hint(_) | Action::NoteLease { .. } => {}
            Action::HoldName => {
                self.note("hold name");
                self.seen.name_is_held = true;
            }
            Action::FreeName => {
                self.note("free name");
                self.seen.name_is_held = false;
            }
            Action::MoveLease { .. } => self.note("move lease"),
            Action::Release => {
                assert!(self.committed());
                self.note("release");
                self.set(Role::Source, |r| {
                    r.closed = true;
                    r.stage = Stage::Released;
                    let outcome = Some(SourceOutcome::Released);
                    let word = SourceWord { begun: true, voted: true, ..Default::default() };
                    r.source_word = Some(SourceWord { outcome, ..word });
                });
                if let Some(pod) = &mut self.seen.source_pod {
                    pod.status.as_mut().unwrap().container_statuses = None;
                }
            }
            Action::DeleteSource => {
                assert!(self.seen.status().source_deletion_time.is_some(), "announced first");
                self.note("delete source");
                self.seen.source_pod = None;
            }
            Action::DeleteTrial => {
                self.note("delete trial");
                self.seen.trial_pod = None;
            }
            Action::DeleteAgain => {
                self.note("delete again");
                self.seen.again_pod = None;
                self.seen.target_pod = None;
            }
            Action::MarkResumed => {
                self.note("mark resumed");
                let now = self.now.to_string();
                let pod = self.seen.target_pod.as_mut().unwrap();
                pod.status.get_or_insert_default().conditions = serde_json::from_value(json!([
                    {"type": names::RESUMED_GATE, "status": "True", "lastTransitionTime": now},
                    {"type": "Ready", "status": "True", "lastTransitionTime": now},
                ]))
                .unwrap();
            }
            Action::UnclaimTarget => {
                let pod = self.seen.target_pod.as_mut().unwrap();
                pod.metadata.labels.as_mut().unwrap().remove(names::MIGRATION_LABEL);
                pod.metadata.annotations.as_mut().unwrap().remove(names::CLAIM);
            }
            Action::DeleteManifest => self.seen.manifest = None,
            Action::GiveUp(Role::Target) => {
                self.note("give up");
                self.set(Role::Target, |r| {
                    r.closed = true;
                    let outcome = Some(TargetOutcome::NeverThawed);
                    r.target_word = Some(TargetWord {
                        begun: true,
                        outcome,
                        closed: true,
                        ..Default::default()
                    });
                });
            }
            Action::Forget(Role::Source) => self.seen.source = Side::NotStarted,
            Action::Forget(Role::Target) => self.seen.target = Side::NotStarted,
            Action::RemoveFinalizer => self.seen.migration.metadata.finalizers = None,
            other => panic!("{other:?} is not of this order"),
        }
    }

    fn create(&mut self, pod: &Pod) {
        let mut pod = pod.clone();
        if !self.committed() {
            self.note("create trial");
            pod.metadata.uid = Some("uid-trial".into());
            self.seen.target_pod = Some(pod.clone());
            self.seen.trial_pod = Some(pod);
            return;
        }
        assert!(self.seen.source_pod.is_none(), "beside its source");
        assert!(self.seen.name_is_held);
        self.made += 1;
        self.note("create again");
        assert_eq!(pod.metadata.name.as_deref(), Some("web-0"));
        pod.metadata.uid = Some(format!("uid-{}", self.made));
        pod.metadata.creation_timestamp = Some(Time(self.now));
        self.seen.again_pod = Some(pod);
    }

    /// The pod that is recorded is the one that is found; one that is being deleted goes when nothing is
    /// left of it.
    fn kubelet(&mut self) {
        let goes = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        if self.seen.target_pod.as_ref().is_some_and(goes)
            && self.seen.target.report().is_none_or(|report| report.closed)
        {
            self.seen.target_pod = None;
            self.seen.again_pod = None;
        }
        let recorded = self.seen.status().target.map(|t| t.pod_uid).unwrap_or_default();
        if let Some(pod) = self.seen.again_pod.as_ref()
            && pod.metadata.uid.as_deref() == Some(recorded.as_str())
            && self.seen.target_pod.as_ref().and_then(|p| p.metadata.uid.as_deref())
                != Some(recorded.as_str())
        {
            self.seen.target_pod.clone_from(&self.seen.again_pod);
        }
    }

    fn restore(&mut self) {
        if !self.committed() {
            return;
        }
        let begun = TargetWord { begun: true, ..Default::default() };
        match self.fate() {
            Fate::Runs => {
                let at = self.now;
                self.set(Role::Target, |r| {
                    r.stage = Stage::Thawed;
                    r.closed = true;
                    r.thawed_at = Some(at);
                    let outcome = Some(TargetOutcome::Resumed);
                    r.target_word =
                        Some(TargetWord { thawed: true, outcome, closed: true, ..begun });
                });
            }
            Fate::Fails => self.set(Role::Target, |r| {
                r.stage = Stage::Aborted;
                r.closed = true;
                r.message = "no".into();
                let outcome = Some(TargetOutcome::NeverThawed);
                r.target_word = Some(TargetWord { outcome, closed: true, ..begun });
            }),
            Fate::DeletedBySomebody | Fate::Evicted => {
                let evicted = self.fate() == Fate::Evicted;
                let pod = self.seen.target_pod.as_mut().unwrap();
                pod.metadata.deletion_timestamp = Some(Time(self.now));
                let reason = json!([{"type": "DisruptionTarget", "status": "True"}]);
                if evicted {
                    pod.status.get_or_insert_default().conditions =
                        serde_json::from_value(reason).unwrap();
                }
            }
            Fate::Vanishes => {
                self.seen.again_pod = None;
                self.seen.target_pod = None;
            }
        }
    }

    fn succeeded(&self) -> (String, String) {
        let conditions = self.seen.status().conditions;
        let condition = c::find(&conditions, c::SUCCEEDED).unwrap();
        (condition.status.clone(), condition.message.clone())
    }
}

#[test]
fn the_source_ends_before_the_pod_is_made_again_and_nothing_is_left() {
    let mut world = World::voted(&[Fate::Runs]);
    world.run();
    assert_eq!(
        world.done,
        [
            "store manifest",
            "hold name",
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
fn an_eviction_means_the_node_and_not_the_pod() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.committed());
    let source = world.seen.source_pod.as_mut().unwrap();
    source.metadata.deletion_timestamp = Some(Time(world.now));
    source.status.as_mut().unwrap().conditions =
        serde_json::from_value(json!([{"type": "DisruptionTarget", "status": "True"}])).unwrap();
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
fn nothing_is_concluded_from_a_deleted_owner_before_the_garbage_collector_has_spoken() {
    let mut world = World::voted(&[Fate::Runs]);
    world.until(|w| w.done.last().is_some_and(|d| d == "delete source"));
    let Owner::StatefulSet(set) = world.seen.owner.clone() else { panic!("it has an owner") };
    let looks = |world: &mut World| {
        for _ in 0..5 {
            world.look();
        }
        assert_eq!(world.made, 0);
        assert_eq!(world.succeeded().0, "Unknown");
    };
    // Whoever deletes the Migration as well has not yet said that the pod goes.
    world.seen.owner = Owner::Going(set);
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
    let mut world = World::voted(&[Fate::DeletedBySomebody, Fate::Runs]);
    world.until(|w| w.made == 1);
    world.seen.owner = Owner::Gone;
    world.seen.migration.metadata.owner_references = None;
    world.run();
    assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"));
    assert!(controller(world.seen.target_pod.as_ref().unwrap()).is_none());
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
fn a_pod_that_goes_with_its_node_or_unseen_is_made_again() {
    for fate in [Fate::Evicted, Fate::Vanishes] {
        let mut world = World::voted(&[fate, Fate::Runs]);
        world.run();
        assert_eq!((world.made, world.succeeded().0.as_str()), (2, "True"), "{fate:?}");
        assert_eq!(world.seen.status().failed_restores, Some(1));
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
