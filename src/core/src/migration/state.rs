//! What the operator has observed of one migration: the input of every decision.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use transship_api::{self as api, Migration, names};
use transship_protocol::{
    Decision, PodSeen, Recorded, Resolution, SourceOutcome, SourceWord, TargetOutcome, TargetProof,
    TargetWord,
};

use super::owner::Controller;

/// A side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Where the pod comes from.
    Source,
    /// Where it goes.
    Target,
}

impl Role {
    /// Both, source first.
    pub const BOTH: [Self; 2] = [Self::Source, Self::Target];

    /// `source` or `target`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a holder is. The order is that of a migration that goes well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It runs.
    #[default]
    Started,
    /// Both holders are connected.
    Connected,
    /// Source: frozen.
    Frozen,
    /// Everything is sent (source) or received (target).
    Sent,
    /// Target: every container is restored and frozen.
    Restored,
    /// It has voted.
    Voted,
    /// Target: the application runs.
    Thawed,
    /// Source: tasks ended after the commit.
    Released,
    /// Source: runs again. Target: tasks ended.
    Aborted,
    /// The tasks are gone.
    Lost,
}

/// What a holder last said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// UID of the pod that it speaks of.
    pub pod_uid: String,
    /// How far it is.
    pub stage: Stage,
    /// It has promised to obey the decision.
    pub voted: bool,
    /// Nothing is left to do.
    pub closed: bool,
    /// Target: the application was not let run, and never will be (see `TargetOutcome::NeverThawed`).
    pub never_thawed: bool,
    /// Target: containers whose creation waits for images.
    pub waiting: Vec<String>,
    /// Target: containers restored and frozen.
    pub restored: Vec<String>,
    /// Target: postStart hooks that were run, by container: empty, or what went wrong.
    pub hooks: BTreeMap<String, String>,
    /// Why it failed or aborted, PascalCase; empty if it did not.
    pub reason: String,
    /// The same as a sentence.
    pub message: String,
    /// Source, cold: containers that start again there without what they had changed outside of volumes.
    pub files_lost: Vec<String>,
    /// What does not succeed there however often it is tried, and why; empty while nothing is.
    pub stuck: String,
    /// How the memory that the pod had there was lost, where that was not with the node's power; empty if it was not.
    pub memory_lost: String,
    /// When the source was frozen, by its node's clock.
    pub frozen_at: Option<Timestamp>,
    /// When the application ran again, by that node's clock.
    pub thawed_at: Option<Timestamp>,
    /// Bytes of memory and files.
    pub bytes_total: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// What it last read from the API server.
    pub decision_read: Option<Decision>,
    /// The source's word in the protocol's own terms, where its holder sends it.
    pub source_word: Option<SourceWord>,
    /// The same of the target.
    pub target_word: Option<TargetWord>,
}

impl Report {
    /// It gave up, or its tasks are gone.
    pub fn is_out(&self) -> bool {
        self.closed || self.stage >= Stage::Aborted || !self.reason.is_empty()
    }
}

/// What is known of one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// Nobody has asked the agent, or it has not answered yet.
    #[default]
    Unknown,
    /// The agent says that it has no such holder.
    NotStarted,
    /// The agent or its holder does not answer, since then; this is the last that was heard.
    Unreachable {
        /// Since when.
        since: Timestamp,
        /// What was heard before.
        last: Option<Report>,
    },
    /// The newest word.
    Reporting(Report),
}

impl Side {
    /// The newest report, also of a side that does not answer any more: what a side has said stays
    /// true, since every promise only ever goes from unset to set.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Reporting(report) | Self::Unreachable { last: Some(report), .. } => Some(report),
            Self::Unknown | Self::NotStarted | Self::Unreachable { last: None, .. } => None,
        }
    }

    /// How long the side has not answered.
    pub fn silent_for(&self, now: Timestamp) -> Option<Duration> {
        match self {
            Self::Unreachable { since, .. } => {
                Some(Duration::try_from(now.duration_since(*since)).unwrap_or_default())
            }
            _ => None,
        }
    }

    /// Nothing is left to do there.
    pub fn is_done(&self, node_gone: bool) -> bool {
        node_gone || *self == Self::NotStarted || self.report().is_some_and(|r| r.closed)
    }
}

/// Whose the pod is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Owner {
    /// Nobody's: its owner let it go, or it never had one.
    #[default]
    None,
    /// This controller's: the one that claims the source, or that the hand-over remembers.
    Controller(Box<Controller>),
    /// This StatefulSet's.
    StatefulSet(Box<StatefulSet>),
    /// Its StatefulSet is being deleted, and is still there.
    Going,
    /// It had one, which is gone (a controller: or is being deleted).
    Gone,
}

impl Owner {
    /// The controller.
    pub fn controller(&self) -> Option<&Controller> {
        match self {
            Self::Controller(controller) => Some(controller),
            Self::None | Self::StatefulSet(_) | Self::Going | Self::Gone => None,
        }
    }
}

/// Everything that a plan may depend on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Migration, read from the API server.
    pub migration: Migration,
    /// The source pod, where one with the recorded UID exists.
    pub source_pod: Option<Pod>,
    /// The target pod, found by its label or name.
    pub target_pod: Option<Pod>,
    /// The source's holder.
    pub source: Side,
    /// The target's holder.
    pub target: Side,
    /// The cluster has no node of the source's name any more.
    pub source_node_gone: bool,
    /// The cluster has no node of the target's name any more.
    pub target_node_gone: bool,
    /// Whether the target's silence proves that it has stopped; looked for while a Commit stands
    /// open.
    pub target_proof: TargetProof,
    /// The pod's owner.
    pub owner: Owner,
    /// Sequential: the source pod's manifest, as it was stored before the freeze.
    pub manifest: Option<Pod>,
    /// Sequential: the source pod's network, stored with its manifest.
    pub network: Option<crate::facts::NetworkFacts>,
    /// Sequential: the volume that each of the source pod's claims was bound to, stored with its manifest.
    pub volumes: BTreeMap<String, String>,
    /// Sequential: what they are bound to now, empty for none; looked at before the pod that is made again
    /// may mount them.
    pub volumes_now: Option<BTreeMap<String, String>>,
    /// Sequential, after the commit: the pod of the restore on trial.
    pub trial_pod: Option<Pod>,
    /// Sequential, after the commit: the pod with the source's name that is not the source.
    pub again_pod: Option<Pod>,
    /// Sequential: creating a pod of the source's name is held back.
    pub name_is_held: bool,
    /// Selectors of the namespace's Services.
    pub services: Vec<BTreeMap<String, String>>,
    /// Every Service that selects the target lists it as an endpoint.
    pub endpoints_know_target: bool,
    /// When the operator first heard that the source is frozen, by its own clock.
    pub frozen_seen: Option<Timestamp>,
    /// A step failed in a way that trying again cannot mend: a reason and a sentence.
    pub failure: Option<(&'static str, String)>,
    /// Sequential: why the API server last refused the pod that is to be made again, or its manifest.
    pub refused: Option<String>,
    /// There is no such object any more: it was put together, see [`super::vanished`].
    pub vanished: bool,
}

impl Observed {
    /// A Migration of which nothing else is known yet.
    pub fn of(migration: Migration) -> Self {
        Self {
            migration,
            source_pod: None,
            target_pod: None,
            source: Side::Unknown,
            target: Side::Unknown,
            source_node_gone: false,
            target_node_gone: false,
            target_proof: TargetProof::None,
            owner: Owner::None,
            manifest: None,
            network: None,
            volumes: BTreeMap::new(),
            volumes_now: None,
            trial_pod: None,
            again_pod: None,
            name_is_held: false,
            services: Vec::new(),
            endpoints_know_target: false,
            frozen_seen: None,
            failure: None,
            refused: None,
            vanished: false,
        }
    }

    /// The Migration's UID.
    pub fn uid(&self) -> &str {
        self.migration.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The status, empty at first.
    pub fn status(&self) -> api::MigrationStatus {
        self.migration.status.clone().unwrap_or_default()
    }

    /// The write-once fields.
    pub fn recorded(&self) -> Recorded {
        recorded(&self.migration)
    }

    /// One side.
    pub fn side(&self, role: Role) -> &Side {
        match role {
            Role::Source => &self.source,
            Role::Target => &self.target,
        }
    }

    /// Whether that side's node is gone from the cluster.
    pub fn node_gone(&self, role: Role) -> bool {
        match role {
            Role::Source => self.source_node_gone,
            Role::Target => self.target_node_gone,
        }
    }

    /// Name of that side's node.
    pub fn node(&self, role: Role) -> &str {
        let status = self.migration.status.as_ref();
        let side = match role {
            Role::Source => status.and_then(|s| s.source.as_ref()),
            Role::Target => status.and_then(|s| s.target.as_ref()),
        };
        side.map_or("", |s| s.node.as_str())
    }

    /// The source ends before the pod is made again.
    pub fn is_sequential(&self) -> bool {
        self.migration.status.as_ref().is_some_and(api::MigrationStatus::is_sequential)
    }

    /// Only files move: the application ends and starts afresh.
    pub fn is_cold(&self) -> bool {
        let chosen = self.migration.status.as_ref().and_then(|status| status.chosen_mode);
        chosen == Some(api::Mode::Cold)
    }

    /// The Migration is being deleted.
    pub fn is_deleting(&self) -> bool {
        self.migration.metadata.deletion_timestamp.is_some()
    }

    /// The source pod as the protocol sees it.
    pub fn source_seen(&self) -> PodSeen {
        let uid = self.migration.status.as_ref().and_then(|s| s.source.as_ref());
        seen(self.source_pod.as_ref(), uid.map_or("", |s| s.pod_uid.as_str()))
    }

    /// The target pod as the protocol sees it.
    pub fn target_seen(&self) -> PodSeen {
        let uid = self.migration.status.as_ref().and_then(|s| s.target.as_ref());
        seen(self.target_pod.as_ref(), uid.map_or("", |s| s.pod_uid.as_str()))
    }

    /// The source pod bears this Migration's claim.
    pub fn claim_held(&self) -> bool {
        self.source_pod.as_ref().is_some_and(|pod| claimed_by(pod, self.uid()))
    }

    /// The source's word as the protocol knows it.
    pub fn source_word(&self) -> SourceWord {
        let Some(report) = self.source.report() else { return SourceWord::default() };
        if let Some(word) = report.source_word {
            return word;
        }
        let outcome = match report.stage {
            Stage::Released => Some(SourceOutcome::Released),
            Stage::Aborted => Some(SourceOutcome::Opened),
            _ if report.closed => Some(SourceOutcome::Opened),
            _ => None,
        };
        SourceWord {
            begun: true,
            voted: report.voted,
            memory_lost: report.stage == Stage::Lost,
            outcome: outcome.filter(|_| report.closed),
        }
    }

    /// The target's word as the protocol knows it.
    pub fn target_word(&self) -> TargetWord {
        let Some(report) = self.target.report() else { return TargetWord::default() };
        if let Some(word) = report.target_word {
            return word;
        }
        let outcome = match report.stage {
            _ if report.never_thawed => Some(TargetOutcome::NeverThawed),
            Stage::Thawed if report.closed => Some(TargetOutcome::Resumed),
            _ if report.closed => Some(TargetOutcome::Stopped),
            _ => None,
        };
        TargetWord {
            begun: true,
            voted: report.voted,
            thawed: report.stage == Stage::Thawed,
            lost: report.stage == Stage::Lost && !report.never_thawed,
            outcome,
            closed: report.closed,
        }
    }
}

/// The write-once fields of a Migration.
pub fn recorded(migration: &Migration) -> Recorded {
    let Some(status) = &migration.status else { return Recorded::default() };
    Recorded {
        decision: status.decision.map(|decision| match decision {
            api::Decision::Commit => Decision::Commit,
            api::Decision::Abort => Decision::Abort,
        }),
        resumed_at: status.resumed_at.is_some(),
        resolution: status
            .resolution
            .map(|api::Resolution::SourceResumes| Resolution::SourceResumes),
    }
}

/// A pod against the UID that is recorded for it. Without a recorded UID nothing can be its pod.
pub fn seen(pod: Option<&Pod>, uid: &str) -> PodSeen {
    match pod {
        Some(pod) if !uid.is_empty() && pod.metadata.uid.as_deref() == Some(uid) => {
            if pod.metadata.deletion_timestamp.is_some() {
                PodSeen::Deleting
            } else {
                PodSeen::Alive
            }
        }
        _ => PodSeen::Gone,
    }
}

/// Whether a pod bears the claim of the Migration with this UID.
pub fn claimed_by(pod: &Pod, migration_uid: &str) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    !migration_uid.is_empty()
        && annotations.and_then(|a| a.get(names::CLAIM)).is_some_and(|c| c == migration_uid)
}

/// Whether a container of the pod runs, as its status shows it.
pub fn any_container_runs(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| {
        status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten()
            .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
    })
}

/// Whether the pod is Ready, and since when.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// How long the pod may take to become Ready after it runs: its slowest probe's delay and two
/// periods, and at least ten seconds.
pub fn ready_bound(pod: &Pod) -> Duration {
    let seconds = |probe: &Option<Probe>| {
        probe.as_ref().map_or(0, |p| {
            p.initial_delay_seconds.unwrap_or(0) + 2 * p.period_seconds.unwrap_or(10)
        })
    };
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    let slowest = containers
        .map(|c| seconds(&c.startup_probe) + seconds(&c.readiness_probe))
        .max()
        .unwrap_or(0);
    Duration::from_secs(u64::try_from(slowest.max(10)).unwrap_or(10))
}

/// How long the pod's containers may stand still before kubelet would kill one: the shortest
/// period × threshold of any liveness probe, less one period; `None` without such probes.
pub fn liveness_patience(pod: &Pod) -> Option<Duration> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.filter_map(|c: &Container| c.liveness_probe.as_ref()).map(probe_patience).min()
}

/// How long a container may stand still before kubelet would kill it for this liveness probe.
pub fn probe_patience(probe: &Probe) -> Duration {
    let period = probe.period_seconds.unwrap_or(10).max(1);
    let threshold = probe.failure_threshold.unwrap_or(3).max(1);
    // A first failure may come right after the freeze, so one period less; a probe with
    // threshold 1 still leaves its time-out.
    let whole = period * (threshold - 1);
    let shortest = probe.timeout_seconds.unwrap_or(1).max(1);
    Duration::from_secs(u64::try_from(whole.max(shortest)).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        Observed::of(Migration::new("m", api::MigrationSpec::for_pod("p")))
    }

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_silent_side_keeps_its_word() {
        let vote = Report { voted: true, stage: Stage::Voted, ..Report::default() };
        let silent = Side::Unreachable { since: Timestamp::UNIX_EPOCH, last: Some(vote.clone()) };
        let observed = Observed { source: silent, ..observed() };
        assert!(observed.source_word().voted);
        assert!(!observed.target_word().begun);
    }

    #[test]
    fn words_follow_from_reports() {
        let word = |report: Report| {
            Observed { target: Side::Reporting(report), ..observed() }.target_word()
        };
        let thawed = Report { stage: Stage::Thawed, voted: true, ..Report::default() };
        assert!(word(thawed.clone()).thawed && word(thawed.clone()).outcome.is_none());
        assert_eq!(word(Report { closed: true, ..thawed }).outcome, Some(TargetOutcome::Resumed));
        let lost = Report { stage: Stage::Lost, ..Report::default() };
        assert!(word(lost.clone()).lost && word(lost.clone()).outcome.is_none());
        assert_eq!(
            word(Report { closed: true, ..lost.clone() }).outcome,
            Some(TargetOutcome::Stopped)
        );
        let never = word(Report { never_thawed: true, ..lost });
        assert_eq!(never.outcome, Some(TargetOutcome::NeverThawed));
        assert!(!never.lost);
        let source = |stage, closed| {
            let report = Report { stage, closed, ..Report::default() };
            Observed { source: Side::Reporting(report), ..observed() }.source_word()
        };
        assert_eq!(source(Stage::Released, true).outcome, Some(SourceOutcome::Released));
        assert_eq!(source(Stage::Aborted, false).outcome, None);
        assert_eq!(source(Stage::Aborted, true).outcome, Some(SourceOutcome::Opened));
        assert!(source(Stage::Lost, true).memory_lost);
    }

    #[test]
    fn a_pod_is_known_by_its_uid_alone() {
        let alive = pod(serde_json::json!({"metadata": {"uid": "a"}}));
        let deleting = pod(serde_json::json!({
            "metadata": {"uid": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert_eq!(seen(Some(&alive), "a"), PodSeen::Alive);
        assert_eq!(seen(Some(&alive), "b"), PodSeen::Gone);
        assert_eq!(seen(Some(&alive), ""), PodSeen::Gone);
        assert_eq!(seen(Some(&deleting), "a"), PodSeen::Deleting);
        assert_eq!(seen(None, "a"), PodSeen::Gone);
    }

    #[test]
    fn patience_ends_before_the_shortest_liveness_probe_would_kill() {
        for (probe, wanted) in [
            (serde_json::json!({}), 20),
            (serde_json::json!({"periodSeconds": 5, "failureThreshold": 3}), 10),
            (
                serde_json::json!({"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 3}),
                3,
            ),
        ] {
            let pod = pod(serde_json::json!({"spec": {"containers": [
                {"name": "a"}, {"name": "b", "livenessProbe": probe}]}}));
            assert_eq!(liveness_patience(&pod), Some(Duration::from_secs(wanted)));
        }
        let none = pod(serde_json::json!({"spec": {"containers": [{"name": "a"}]}}));
        assert_eq!(liveness_patience(&none), None);
    }

    #[test]
    fn readiness_is_awaited_for_two_periods_of_the_slowest_probe() {
        for (probe, wanted) in [
            (serde_json::json!(null), 10),
            (serde_json::json!({"periodSeconds": 1}), 10),
            (serde_json::json!({"periodSeconds": 30, "initialDelaySeconds": 5}), 65),
        ] {
            let pod = pod(serde_json::json!({"spec": {"containers": [
                {"name": "a", "readinessProbe": probe}]}}));
            assert_eq!(ready_bound(&pod), Duration::from_secs(wanted));
        }
    }
}
