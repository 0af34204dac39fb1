//! The sequential hand-over, carried out in a small world: sides answer at once and as told.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;
use transship_api::conditions as c;
use transship_api::{self as api, Migration, MigrationSpec, MigrationStatus, names};
use transship_protocol::{Decision, SourceOutcome, SourceWord, TargetOutcome, TargetWord};

use crate::migration::admission::{self, Admitted};
use crate::migration::patch;
use crate::migration::plan::{Action, Plan, Record, plan};
use crate::migration::state::{Observed, Owner, Report, Role, Side, Stage};
use crate::migration::voting::has_gate;
use crate::sequential_pod::manifest;
use crate::witness::references;

/// What becomes of the pods that are made again, in order; the last counts for all that follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Runs,
    Fails,
    /// It may have run, and was lost.
    Stops,
    DeletedBySomebody,
    Evicted,
    /// Between two looks.
    Vanishes,
    /// Nothing is heard of it.
    Hangs,
}

pub(super) struct World {
    pub(super) seen: Observed,
    pub(super) now: Timestamp,
    fates: Vec<Fate>,
    pub(super) made: usize,
    pub(super) done: Vec<String>,
}

pub(super) fn source(owners: serde_json::Value) -> Pod {
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
    pub(super) fn voted(fates: &[Fate]) -> Self {
        Self::voted_in(api::Mode::StopAndCopy, fates)
    }

    pub(super) fn voted_in(mode: api::Mode, fates: &[Fate]) -> Self {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut migration = Migration::new("move", MigrationSpec::for_pod("web-0"));
        migration.spec.mode = mode;
        migration.metadata.namespace = Some("shop".into());
        migration.metadata.uid = Some("uid-m".into());
        migration.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        migration.metadata.creation_timestamp = Some(Time(now));
        let pod = source(json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web",
            "uid": "uid-sts", "controller": true}]));
        let witness = references(&migration, Some(&pod)).unwrap();
        migration.metadata.owner_references = Some(witness.owners);
        migration.metadata.annotations =
            witness.witness.map(|uid| [(names::WITNESS.to_owned(), uid)].into());
        let decided = Admitted {
            pod: &pod,
            sandbox: "s-1",
            target: "node-b",
            given: true,
            bytes: 1 << 20,
            network: &crate::migration::testing::preserved(),
            unknown: None,
            incomplete: &[],
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

    pub(super) fn set(&mut self, role: Role, change: impl FnOnce(&mut Report)) {
        let mut report = self.seen.side(role).report().cloned().unwrap_or_default();
        change(&mut report);
        match role {
            Role::Source => self.seen.source = Side::Reporting(report),
            Role::Target => self.seen.target = Side::Reporting(report),
        }
    }

    /// Lets the operator look until something holds.
    pub(super) fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..200 {
            if holds(self) {
                return;
            }
            self.look();
        }
        panic!("in vain; {:#?} {:?}", self.seen.status(), self.done);
    }

    pub(super) fn run(&mut self) {
        self.until(|w| w.seen.migration.metadata.finalizers.is_none());
    }

    pub(super) fn look(&mut self) {
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
        // With a record the whole status is replaced.
        let kept = if record.is_some() { status } else { self.patched(&status) };
        self.seen.migration.status = Some(kept);
        assert!(self.seen.recorded().is_lawful());
        for action in &actions {
            self.act(action);
        }
        self.kubelet();
    }

    /// What the API server keeps when the operator patches the status: what the patch does not name stays.
    fn patched(&self, status: &MigrationStatus) -> MigrationStatus {
        let mut kept = serde_json::to_value(self.seen.status()).unwrap();
        let new = serde_json::to_value(status).unwrap();
        if let Some(change) = patch::difference(kept.clone(), new) {
            patch::apply(&mut kept, change);
        }
        let kept: MigrationStatus = serde_json::from_value(kept).unwrap();
        assert_eq!(kept, *status, "a status that was written otherwise than it was meant");
        kept
    }

    fn note(&mut self, what: &str) {
        if self.done.last().is_none_or(|last| last != what) {
            self.done.push(what.to_owned());
        }
    }

    /// The pod that was made again is not kept from its node any more.
    pub(super) fn is_let_go(&self) -> bool {
        let uid = format!("uid-{}", self.made);
        let again = self.seen.target_pod.as_ref();
        again.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&uid) && !has_gate(pod))
    }

    pub(super) fn committed(&self) -> bool {
        self.seen.recorded().decision == Some(Decision::Commit)
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::StoreManifest => {
                assert!(self.seen.name_is_held, "nobody would find it");
                self.note("store manifest");
                let source = self.seen.source_pod.as_ref().expect("as long as there is a source");
                self.seen.manifest = Some(manifest(source, self.seen.manifest.as_ref()));
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
                let spec = pod.spec.as_mut().unwrap();
                (spec.scheduling_gates, spec.node_name) = (None, Some("node-b".into()));
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
                self.seen.manifest = None;
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
            Action::DropWitness => {
                let left = references(&self.seen.migration, None).unwrap();
                self.seen.migration.metadata.owner_references = Some(left.owners);
                self.seen.migration.metadata.annotations = None;
            }
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
        let fate = self.fate();
        match fate {
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
            Fate::Fails | Fate::Stops => self.set(Role::Target, |r| {
                r.stage = Stage::Aborted;
                r.closed = true;
                r.message = "no".into();
                let outcome = match fate {
                    Fate::Stops => Some(TargetOutcome::Stopped),
                    _ => Some(TargetOutcome::NeverThawed),
                };
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
            Fate::Hangs => {}
            Fate::Vanishes => {
                self.seen.again_pod = None;
                self.seen.target_pod = None;
            }
        }
    }

    /// The pod that was made again is lost when it may have run.
    pub(super) fn loses_it(&mut self) {
        self.set(Role::Target, |r| {
            (r.stage, r.closed) = (Stage::Aborted, true);
            let outcome = Some(TargetOutcome::Stopped);
            r.target_word =
                Some(TargetWord { begun: true, outcome, closed: true, ..Default::default() });
        });
    }

    /// Somebody evicts the source, which does not go at once.
    pub(super) fn evict_source(&mut self) {
        let source = self.seen.source_pod.as_mut().unwrap();
        source.metadata.deletion_timestamp = Some(Time(self.now));
        source.status.as_mut().unwrap().conditions =
            serde_json::from_value(json!([{"type": "DisruptionTarget", "status": "True"}]))
                .unwrap();
    }

    pub(super) fn succeeded(&self) -> (String, String) {
        let conditions = self.seen.status().conditions;
        let condition = c::find(&conditions, c::SUCCEEDED).unwrap();
        (condition.status.clone(), condition.message.clone())
    }
}
