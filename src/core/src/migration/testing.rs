//! A small world for tests of the plan: pods, holders, kubelets and the owner, each a few lines.
//! Plans are carried out in it as the operator would, whole or broken off.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::json;
use transship_api::{self as api, Migration, MigrationSpec, Network, Step, names};
use transship_protocol::{Decision, Resolution, TargetOutcome};

use super::admission::{self, Admitted};
use super::owner::Controller;
use super::plan::{Action, Leaves, Plan, Record, plan};
use super::state::{Observed, Owner, Report, Role, Side, Stage, any_container_runs};
use crate::preflight::NetworkChoice;

/// The world of one migration of pod `web-1` from node-a to node-b.
#[derive(Clone, Debug)]
pub struct World {
    /// What is observed of it.
    pub seen: Observed,
    /// Now.
    pub now: Timestamp,
    /// Everything recorded, in order.
    pub records: Vec<Record>,
    /// Actions carried out, in order.
    pub done: Vec<&'static str>,
    /// The source was told to freeze.
    pub freeze: bool,
    /// The source was told to end its tasks.
    pub release: bool,
    /// The address's home node knows the target.
    pub lease_moved: bool,
    /// A new operator has heard nothing of the sides yet.
    pub deaf: bool,
}

/// A pod of ReplicaSet web-abc with a Service's label, running on node-a.
pub fn source_pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "web-1", "generateName": "web-", "namespace": "shop", "uid": "uid-s",
            "labels": {"app": "web", "pod-template-hash": "abc"},
            "annotations": {names::CLAIM: "uid-m"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc",
                "uid": "uid-rs", "controller": true}]
        },
        "spec": {"nodeName": "node-a", "containers": [{"name": "web", "image": "localhost/web:1"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.5", "containerStatuses": [
            {"name": "web", "image": "localhost/web:1", "imageID": "sha256:1", "ready": true,
             "restartCount": 0, "state": {"running": {}}}]}
    }))
    .unwrap()
}

/// Its owner.
pub fn owner() -> Controller {
    let set: ReplicaSet = serde_json::from_value(json!({
        "metadata": {"name": "web-abc", "namespace": "shop", "uid": "uid-rs"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "web", "pod-template-hash": "abc"}},
            "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": "abc"}},
                "spec": {"containers": []}}
        }
    }))
    .unwrap();
    set.into()
}

/// The choice of a flat network.
pub fn preserved() -> NetworkChoice {
    NetworkChoice { network: Network::Preserve, why: "the network is flat".into() }
}

impl World {
    /// An admitted migration.
    pub fn admitted() -> Self {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut migration = Migration::new("move", MigrationSpec::for_pod("web-1"));
        migration.spec.target_node = Some("node-b".into());
        migration.metadata.namespace = Some("shop".into());
        migration.metadata.uid = Some("uid-m".into());
        migration.metadata.generation = Some(1);
        migration.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        migration.metadata.creation_timestamp = Some(Time(now));
        let pod = source_pod();
        let decided = Admitted {
            pod: &pod,
            sandbox: "s-1",
            target: "node-b",
            given: true,
            bytes: 1 << 20,
            network: &preserved(),
            unknown: None,
            incomplete: &[],
        };
        migration.status = Some(admission::admitted(&migration, &decided, now));
        let mut seen = Observed::of(migration);
        seen.source_pod = Some(pod);
        seen.owner = Owner::Controller(Box::new(owner()));
        seen.services = vec![[("app".to_owned(), "web".to_owned())].into()];
        seen.source = Side::NotStarted;
        seen.target = Side::NotStarted;
        Self {
            seen,
            now,
            records: Vec::new(),
            done: Vec::new(),
            freeze: false,
            release: false,
            lease_moved: false,
            deaf: false,
        }
    }

    /// Where it stands.
    pub fn step(&self) -> Step {
        self.seen.status().step.unwrap_or_default()
    }

    /// Nothing more will happen: ended, and the finalizer is gone.
    pub fn is_settled(&self) -> bool {
        self.seen.migration.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)
    }

    /// Checks that the target has the source's place, its labels and its owner, and nobody else is there.
    pub fn is_handed_over(&self) {
        assert_eq!(self.seen.source_pod, None);
        let target = &self.seen.target_pod.as_ref().unwrap().metadata;
        let labels: Vec<_> = target.labels.iter().flatten().map(|(key, _)| key).collect();
        assert_eq!(labels, ["app", "pod-template-hash"]);
        assert_eq!(target.owner_references.as_ref().unwrap()[0].uid, "uid-rs");
    }

    /// The plan as of now.
    pub fn plan(&self) -> Plan {
        let mut seen = self.seen.clone();
        if self.deaf {
            seen.source = Side::Unknown;
            seen.target = Side::Unknown;
        }
        plan(&seen, self.now)
    }

    /// Lets the operator look once. `budget`: how many writes and actions it lives to carry out.
    pub fn operator(&mut self, mut budget: usize) {
        let plan = self.plan();
        let mut alive = || {
            let more = budget > 0;
            budget = budget.saturating_sub(1);
            more
        };
        if !alive() {
            return;
        }
        self.write(&plan);
        for action in &plan.actions {
            if !alive() {
                return;
            }
            self.act(action);
        }
    }

    fn write(&mut self, plan: &Plan) {
        let old = self.seen.status();
        let mut status = plan.status.clone();
        assert_eq!(
            (status.decision, &status.resumed_at, status.resolution),
            (old.decision, &old.resumed_at, old.resolution),
            "a plan never touches the write-once fields by itself"
        );
        if let Some(record) = plan.record {
            self.records.push(record);
            match record {
                Record::Decision(decision) => {
                    assert_eq!(old.decision, None, "decided twice");
                    status.decision = Some(match decision {
                        Decision::Commit => api::Decision::Commit,
                        Decision::Abort => api::Decision::Abort,
                    });
                }
                Record::ResumedAt(at) => {
                    assert!(old.resumed_at.is_none() && old.resolution.is_none());
                    status.resumed_at = Some(MicroTime(at));
                }
                Record::Resolution(Resolution::SourceResumes) => {
                    assert!(old.resumed_at.is_none() && old.resolution.is_none());
                    status.resolution = Some(api::Resolution::SourceResumes);
                }
            }
        }
        let before = old.step.unwrap_or_default();
        let after = status.step.unwrap_or_default();
        assert!(after >= before, "went back from {before} to {after}");
        self.seen.migration.status = Some(status);
        let recorded = self.seen.recorded();
        assert!(recorded.is_lawful());
    }

    fn target_labels(&mut self) -> &mut std::collections::BTreeMap<String, String> {
        let target = self.seen.target_pod.as_mut().unwrap();
        target.metadata.labels.get_or_insert_default()
    }

    fn note(&mut self, name: &'static str) {
        if self.done.last() != Some(&name) {
            self.done.push(name);
        }
    }

    /// Carries out one action.
    pub fn act(&mut self, action: &Action) {
        let confirmed = self.seen.target_word().outcome == Some(TargetOutcome::Resumed);
        match action {
            Action::CreateTarget(pod) => {
                self.note("create");
                if self.seen.target_pod.is_none() {
                    let mut pod = (**pod).clone();
                    pod.metadata.uid = Some("uid-t".into());
                    pod.metadata.namespace = Some("shop".into());
                    self.seen.target_pod = Some(pod);
                }
            }
            Action::StartSide(role) => {
                assert_eq!(self.seen.recorded().decision, None, "started after the decision");
                self.note(if *role == Role::Source { "start source" } else { "start target" });
                let target = self.seen.status().target.unwrap();
                assert_eq!(target.pod_uid, "uid-t", "recorded before anything is started");
                self.set(*role, |_| {});
            }
            Action::RemoveGate => {
                assert!(self.seen.source.report().is_some() && self.seen.target.report().is_some());
                self.note("remove gate");
                let spec = self.seen.target_pod.as_mut().unwrap().spec.as_mut().unwrap();
                spec.scheduling_gates = None;
            }
            Action::Freeze => {
                self.note("freeze");
                self.freeze = true;
            }
            Action::Hint(_) => {}
            Action::MarkResumed => {
                assert!(self.seen.recorded().resumed_at);
                self.note("mark resumed");
                let now = self.now.to_string();
                let target = self.seen.target_pod.as_mut().unwrap();
                target.status.get_or_insert_default().conditions = serde_json::from_value(json!([
                    {"type": names::RESUMED_GATE, "status": "True", "lastTransitionTime": now},
                ]))
                .unwrap();
            }
            Action::LabelTarget(labels) => {
                assert!(confirmed);
                self.note("label target");
                if self.seen.owner != Owner::None {
                    assert!(!labels.contains_key("pod-template-hash"), "would be adopted");
                }
                self.target_labels().extend(labels.clone());
            }
            Action::MoveClaim { claim, labels, source } => {
                assert!(confirmed && claim.uid == "uid-rs");
                self.note("move claim");
                let metadata = &mut self.seen.migration.metadata;
                metadata
                    .labels
                    .get_or_insert_default()
                    .insert(names::HANDOVER_LABEL.into(), claim.uid.clone());
                match source {
                    Leaves::Before => {}
                    Leaves::Stripped => self.strip(),
                    Leaves::AsSurplus => self.note("have both claimed"),
                }
                self.target_labels().extend(labels.clone());
                let target = self.seen.target_pod.as_mut().unwrap();
                target.metadata.owner_references = Some(vec![claim.clone()]);
            }
            Action::StripSource => {
                assert!(confirmed);
                self.strip();
            }
            Action::ReturnClaim(claim) => {
                self.note("return claim");
                let source = &mut self.seen.source_pod.as_mut().unwrap().metadata;
                assert!(source.deletion_timestamp.is_some(), "it would be counted twice");
                source.owner_references = Some(vec![claim.clone()]);
            }
            Action::Release => {
                assert!(confirmed && self.lease_moved);
                self.note("release");
                self.release = true;
            }
            Action::EndHandover => {
                self.note("end hand-over");
                let labels = self.seen.migration.metadata.labels.as_mut().unwrap();
                labels.remove(names::HANDOVER_LABEL);
            }
            Action::MoveLease { address, home } => {
                assert_eq!((address.as_str(), home.as_str()), ("10.244.1.5", "node-a"));
                self.note("move lease");
                self.lease_moved = true;
            }
            Action::DeleteSource => {
                assert!(confirmed && self.release);
                self.note("delete source");
                let source = self.seen.source_pod.as_mut().unwrap();
                assert!(!any_container_runs(source), "its preStop hook would run");
                source.metadata.deletion_timestamp = Some(Time(self.now));
            }
            Action::DeleteTarget => {
                self.note("delete target");
                let target = self.seen.target_pod.as_mut().unwrap();
                // Where its owner is gone it goes as it would have gone with it.
                let ordinary = self.seen.owner == Owner::Gone && confirmed;
                assert!(ordinary || !any_container_runs(target), "its preStop hook would run");
                target.metadata.deletion_timestamp.get_or_insert(Time(self.now));
            }
            Action::UnclaimSource => {
                self.note("unclaim source");
                unclaim(self.seen.source_pod.as_mut().unwrap());
            }
            Action::UnclaimTarget => {
                self.note("unclaim target");
                self.target_labels().remove(names::MIGRATION_LABEL);
                unclaim(self.seen.target_pod.as_mut().unwrap());
            }
            Action::Forget(role) => {
                assert!(self.seen.side(*role).report().unwrap().closed);
                *self.side(*role) = Side::NotStarted;
            }
            Action::StoreManifest
            | Action::DropWitness
            | Action::HoldName
            | Action::FreeName
            | Action::DeleteTrial
            | Action::DeleteAgain
            | Action::NoteLease { .. }
            | Action::GiveUp(_) => panic!("{action:?} is not of the overlapping order"),
            Action::RemoveFinalizer => {
                assert!(self.step().is_final());
                self.note("remove finalizer");
                self.seen.migration.metadata.finalizers = None;
            }
        }
    }

    fn strip(&mut self) {
        if let Some(source) = &mut self.seen.source_pod {
            source.metadata.labels = None;
            source.metadata.owner_references = None;
        }
    }

    fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Source => &mut self.seen.source,
            Role::Target => &mut self.seen.target,
        }
    }

    /// Changes a side's report; begins one if there is none.
    pub fn set(&mut self, role: Role, change: impl FnOnce(&mut Report)) {
        let mut report = self.seen.side(role).report().cloned().unwrap_or_default();
        change(&mut report);
        *self.side(role) = Side::Reporting(report);
    }

    /// The agent of this side falls silent.
    pub fn silence(&mut self, role: Role) {
        let last = self.seen.side(role).report().cloned();
        *self.side(role) = Side::Unreachable { since: self.now, last };
    }

    /// Time passes.
    pub fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// A holder does its next step, having read the Migration.
    pub fn holder(&mut self, role: Role) {
        let Some(report) = self.seen.side(role).report().cloned() else { return };
        if report.closed {
            return;
        }
        let recorded = self.seen.recorded();
        let now = self.now;
        let other = match role {
            Role::Source => self.seen.target.report().cloned(),
            Role::Target => self.seen.source.report().cloned(),
        };
        let both = other.is_some();
        let abort = |r: &mut Report| {
            r.never_thawed = role == Role::Target;
            r.stage = Stage::Aborted;
            r.thawed_at = r.frozen_at.map(|_| now);
            r.closed = true;
        };
        match (recorded.decision, role) {
            (Some(Decision::Abort), _) => self.set(role, abort),
            (Some(Decision::Commit), Role::Target) if recorded.resolution.is_some() => {
                self.set(role, abort);
            }
            (Some(Decision::Commit), Role::Target) => self.set(role, |r| {
                r.decision_read = Some(Decision::Commit);
                r.thawed_at.get_or_insert(now);
                r.closed = r.stage == Stage::Thawed && recorded.resumed_at;
                r.stage = Stage::Thawed;
            }),
            (Some(Decision::Commit), Role::Source) if recorded.resolution.is_some() => {
                self.set(role, abort);
            }
            (Some(Decision::Commit), Role::Source) => {
                let release = self.release;
                self.set(role, |r| {
                    r.decision_read = Some(Decision::Commit);
                    if release && recorded.resumed_at {
                        r.stage = Stage::Released;
                        r.closed = true;
                    }
                });
            }
            (None, _) if report.stage == Stage::Started && both => {
                self.set(role, |r| r.stage = Stage::Connected);
            }
            (None, Role::Source) if report.stage == Stage::Connected && self.freeze => {
                self.seen.frozen_seen = Some(now);
                self.set(role, |r| {
                    r.stage = Stage::Frozen;
                    r.frozen_at = Some(now);
                });
            }
            (None, Role::Source) if report.stage == Stage::Frozen => self.set(role, |r| {
                r.stage = Stage::Voted;
                r.voted = true;
            }),
            (None, Role::Target) if report.stage == Stage::Connected => {
                let gone = self.seen.target_pod.is_none();
                let gated = self.seen.target_pod.as_ref().is_some_and(|pod| {
                    pod.spec.as_ref().is_some_and(|s| s.scheduling_gates.is_some())
                });
                if gone || gated {
                    return;
                }
                if other.is_some_and(|s| s.voted) {
                    self.set(role, |r| {
                        r.stage = Stage::Restored;
                        r.waiting.clear();
                        r.restored = vec!["web".into()];
                    });
                } else {
                    self.set(role, |r| r.waiting = vec!["web".into()]);
                }
            }
            (None, Role::Target) if report.stage == Stage::Restored => self.set(role, |r| {
                r.stage = Stage::Voted;
                r.voted = true;
            }),
            _ => {}
        }
    }

    /// A side gives up before its vote.
    pub fn fail(&mut self, role: Role) {
        let can = self.seen.side(role).report().is_some_and(|r| !r.voted && !r.closed);
        if can && self.seen.recorded().decision.is_none() {
            let now = self.now;
            self.set(role, |r| {
                r.reason = "RestoreFailed".into();
                r.message = "criu said no".into();
                r.stage = Stage::Aborted;
                r.never_thawed = role == Role::Target;
                r.thawed_at = r.frozen_at.map(|_| now);
                r.closed = true;
            });
        }
    }

    /// The target's tasks die between its vote and its thaw.
    pub fn lose_target(&mut self) {
        if self.seen.target.report().is_some_and(|r| r.stage == Stage::Voted) {
            self.set(Role::Target, |r| {
                r.stage = Stage::Lost;
                r.never_thawed = true;
                r.closed = true;
            });
        }
    }

    /// Both kubelets bring the pods' statuses up to date; pods that may go, go.
    pub fn kubelets(&mut self) {
        let stage = |side: &Side| side.report().map(|r| r.stage);
        let source_runs = !matches!(stage(&self.seen.source), Some(Stage::Released));
        let target_runs = matches!(
            stage(&self.seen.target),
            Some(Stage::Restored | Stage::Voted | Stage::Thawed)
        );
        update(&mut self.seen.source_pod, source_runs, self.now);
        update(&mut self.seen.target_pod, target_runs, self.now);
        let seen = &mut self.seen;
        let labels = seen.target_pod.as_ref().and_then(|p| p.metadata.labels.as_ref());
        seen.endpoints_know_target = labels.is_some_and(|l| l.contains_key("app"));
    }

    /// Everybody does a round.
    pub fn round(&mut self) {
        self.deaf = false;
        self.operator(usize::MAX);
        for role in Role::BOTH {
            // Silent ones answer again.
            if let Side::Unreachable { last, .. } = self.seen.side(role).clone() {
                *self.side(role) = last.map_or(Side::NotStarted, Side::Reporting);
            }
            self.holder(role);
        }
        self.kubelets();
        self.now += SignedDuration::from_millis(200);
    }

    /// Rounds until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            if self.is_settled() {
                return;
            }
            self.round();
        }
        panic!("not settled after 200 rounds: {:#?}", self.plan());
    }
}

/// Rounds until `until`, which must come.
pub fn run_until(world: &mut World, until: impl Fn(&World) -> bool) {
    for _ in 0..100 {
        if until(world) {
            return;
        }
        world.round();
    }
    panic!("never came: {:#?}", world.plan());
}

fn unclaim(pod: &mut Pod) {
    pod.metadata.annotations.get_or_insert_default().remove(names::CLAIM);
}

fn update(pod: &mut Option<Pod>, runs: bool, now: Timestamp) {
    let Some(of) = pod else { return };
    if of.metadata.deletion_timestamp.is_some() && !runs {
        *pod = None;
        return;
    }
    let status = of.status.get_or_insert_default();
    if runs {
        status.phase = Some("Running".into());
    }
    let state = match runs {
        true => json!({"running": {}}),
        false => json!({"terminated": {"exitCode": 137}}),
    };
    status.container_statuses = serde_json::from_value(json!([
        {"name": "web", "image": "", "imageID": "", "ready": runs, "restartCount": 0, "state": state}
    ]))
    .unwrap();
    let conditions = status.conditions.get_or_insert_default();
    let resumed = conditions.iter().any(|c| c.type_ == names::RESUMED_GATE);
    if runs && resumed && !conditions.iter().any(|c| c.type_ == "Ready") {
        let ready =
            json!({"type": "Ready", "status": "True", "lastTransitionTime": now.to_string()});
        conditions.push(serde_json::from_value(ready).unwrap());
    }
}
