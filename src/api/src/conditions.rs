//! Conditions: their types, the reasons they give, and how one is set.
//!
//! Rules of the field that hold here: a type is an adjective or a past participle; every type of a
//! kind is written at the first visit (`Unknown` if need be); a reason is never empty; `Succeeded`
//! is `Unknown` while a Migration runs and is the one to wait for. Reasons are also the reasons of
//! events and labels of metrics, so those that operator and agents give exist once, here. What a side calls its
//! own failure (`NotFrozen`, `DiskFull`, ...) stands where it arises, in `src/holder` and `src/transport`.
//!
//! Conditions are observations for people and tools. No decision is taken from them: decisions
//! stand in `status.decision` and its companions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

// --- Types: Migration --------------------------------------------------------------------------

/// The Migration is well-formed, its pod is claimed, and every check passed.
pub const ADMITTED: &str = "Admitted";
/// The target node is chosen.
pub const SCHEDULED: &str = "Scheduled";
/// Everything that is copied while the application runs has been copied.
pub const COPIED: &str = "Copied";
/// All containers of the source are frozen at one point.
pub const FROZEN: &str = "Frozen";
/// The containers exist on the target, complete, whether still held or running.
pub const RESTORED: &str = "Restored";
/// The pod runs on the target and the source is gone. Summary of a Migration.
pub const SUCCEEDED: &str = "Succeeded";
/// The postStart hooks ran after the move; there only if the pod asks for it. It says nothing about
/// the migration's success.
pub const HOOKS_RUN: &str = "HooksRun";

// --- Types: Node -------------------------------------------------------------------------------

/// Pods can be moved from and to this node. Summary of a Node and of a Checkpoint.
pub const READY: &str = "Ready";
/// CRIU and the kernel offer what is needed.
pub const CRIU_READY: &str = "CriuReady";
/// containerd and runc are reached, and the wrapper stands in runc's place.
pub const RUNTIME_READY: &str = "RuntimeReady";
/// The node reaches the checkpoint store.
pub const STORE_REACHABLE: &str = "StoreReachable";
/// The node keeps the state of a pod whose Migration vanished before the pod was made again of it.
pub const STATE_KEPT: &str = "StateKept";
/// The node is proven not to run protected pods any more. Written by the operator.
pub const FENCED: &str = "Fenced";
/// The node stands on the static list of nodes; there only if there is such a list. Written by the
/// operator.
pub const LISTED: &str = "Listed";

// --- Types: Checkpoint -------------------------------------------------------------------------

/// The state was taken from the pod.
pub const CAPTURED: &str = "Captured";
/// The version is whole in the store.
pub const STORED: &str = "Stored";
/// The version was read back and its hashes compared.
pub const VERIFIED: &str = "Verified";

// --- Types: every kind (kstatus) ---------------------------------------------------------------

/// The operator is at work on the object; with this Flux and kstatus know that it is not settled.
pub const RECONCILING: &str = "Reconciling";
/// The operator cannot go on without somebody's help.
pub const STALLED: &str = "Stalled";

/// Types of a Migration, in the order in which they become true, the summary last.
pub const MIGRATION_TYPES: [&str; 8] =
    [ADMITTED, SCHEDULED, COPIED, FROZEN, RESTORED, SUCCEEDED, RECONCILING, STALLED];
/// Types of a Node that its agent writes.
pub const NODE_AGENT_TYPES: [&str; 5] =
    [READY, CRIU_READY, RUNTIME_READY, STORE_REACHABLE, STATE_KEPT];
/// Types of a Checkpoint.
pub const CHECKPOINT_TYPES: [&str; 6] = [READY, CAPTURED, STORED, VERIFIED, RECONCILING, STALLED];

/// Reasons, grouped by where they appear.
pub mod reasons {
    // --- Any condition ---

    /// Nothing has been found out yet.
    pub const PENDING: &str = "Pending";
    /// Work towards the condition is under way.
    pub const IN_PROGRESS: &str = "InProgress";
    /// Work has ended; nothing more will happen.
    pub const COMPLETED: &str = "Completed";
    /// The migration ended before this was reached.
    pub const NOT_REACHED: &str = "NotReached";

    // --- Admitted=True, and Admitted=False (then Succeeded=False with the same reason) ---

    /// All checks passed.
    pub const CHECKS_PASSED: &str = "ChecksPassed";
    /// The chosen mode does not exist in this version.
    pub const MODE_NOT_AVAILABLE: &str = "ModeNotAvailable";
    /// No pod of this name exists.
    pub const POD_NOT_FOUND: &str = "PodNotFound";
    /// The pod is not running, or it is being deleted.
    pub const POD_NOT_RUNNING: &str = "PodNotRunning";
    /// Another Migration holds the pod.
    pub const POD_CLAIMED: &str = "PodClaimed";
    /// Pods of this kind of owner cannot be moved (DaemonSet, static pod) or not yet.
    pub const OWNER_NOT_SUPPORTED: &str = "OwnerNotSupported";
    /// `spec.targetNode` names no node of the cluster.
    pub const NODE_NOT_FOUND: &str = "NodeNotFound";
    /// The pod runs on `spec.targetNode` already.
    pub const SAME_NODE: &str = "SameNode";
    /// The source node cannot take part (agent, CRIU or runtime not ready).
    pub const SOURCE_NOT_READY: &str = "SourceNotReady";
    /// The target node cannot take part (agent, CRIU or runtime not ready, or unschedulable).
    pub const TARGET_NOT_READY: &str = "TargetNotReady";
    /// Checks found what cannot be moved: see `status.violations`.
    pub const PREFLIGHT_FAILED: &str = "PreflightFailed";
    /// The spec has a value that the API server could not refuse.
    pub const INVALID_SPEC: &str = "InvalidSpec";

    // --- Scheduled ---

    /// `spec.targetNode` decided.
    pub const TARGET_NODE_GIVEN: &str = "TargetNodeGiven";
    /// The placement engine decided.
    pub const TARGET_NODE_CHOSEN: &str = "TargetNodeChosen";
    /// No node satisfies the conditions.
    pub const NO_NODE_FITS: &str = "NoNodeFits";

    // --- Copied, Frozen, Restored ---

    /// The mode copies nothing before the freeze.
    pub const NOTHING_TO_COPY: &str = "NothingToCopy";
    /// All containers were frozen.
    pub const CONTAINERS_FROZEN: &str = "ContainersFrozen";
    /// The source was thawed and goes on.
    pub const SOURCE_RESUMED: &str = "SourceResumed";
    /// The containers run on the target; the source's were ended.
    pub const SOURCE_RELEASED: &str = "SourceReleased";
    /// The containers are restored on the target and frozen.
    pub const CONTAINERS_HELD: &str = "ContainersHeld";
    /// The containers run on the target.
    pub const CONTAINERS_RESUMED: &str = "ContainersResumed";
    /// The pod's memory is lost, on the source before it went on or on the target after the commit, and it starts
    /// afresh there.
    pub const MEMORY_LOST: &str = "MemoryLost";

    // --- HooksRun ---

    /// Every postStart hook ran and ended well.
    pub const HOOKS_ENDED_WELL: &str = "HooksEndedWell";
    /// A postStart hook failed after the move; the application goes on.
    pub const HOOK_FAILED: &str = "HookFailed";

    // --- Succeeded ---

    /// The pod runs on the target.
    pub const MIGRATED: &str = "Migrated";
    /// `spec.dryRun`: checks and forecast only.
    pub const DRY_RUN: &str = "DryRun";
    /// The Migration was deleted before its commit.
    pub const CANCELLED: &str = "Cancelled";
    /// `spec.timeout` passed before the commit.
    pub const TIMED_OUT: &str = "TimedOut";
    /// Making the target pod failed.
    pub const TARGET_POD_FAILED: &str = "TargetPodFailed";
    /// The stored target pod differs from what was sent (a webhook changed it).
    pub const TARGET_POD_CHANGED: &str = "TargetPodChanged";
    /// Dumping the source failed.
    pub const DUMP_FAILED: &str = "DumpFailed";
    /// Sending the state to the target failed.
    pub const TRANSFER_FAILED: &str = "TransferFailed";
    /// Restoring on the target failed.
    pub const RESTORE_FAILED: &str = "RestoreFailed";
    /// The source pod's manifest was changed before the commit, in what its state depends on.
    pub const SOURCE_CHANGED: &str = "SourceChanged";
    /// The source pod went away, or was being deleted, before the commit.
    pub const SOURCE_GONE: &str = "SourceGone";
    /// The target pod went away before the commit.
    pub const TARGET_GONE: &str = "TargetGone";
    /// The source node stopped answering before the commit.
    pub const SOURCE_UNREACHABLE: &str = "SourceUnreachable";
    /// The target node stopped answering before the commit.
    pub const TARGET_UNREACHABLE: &str = "TargetUnreachable";
    /// The target was lost after the commit; the source went on from its state.
    pub const TARGET_LOST: &str = "TargetLost";
    /// The source node restarted before the source went on: its memory is lost.
    pub const SOURCE_REBOOTED: &str = "SourceRebooted";

    // --- Reconciling, Stalled ---

    /// The source is to go on or to end, and its node does not succeed in something that must come before.
    pub const SOURCE_STUCK: &str = "SourceStuck";
    /// The target is to run, to end or to be left as it was, and its node does not succeed in that.
    pub const TARGET_STUCK: &str = "TargetStuck";
    /// A side must acknowledge before the operator can go on.
    pub const WAITING_FOR_NODE: &str = "WaitingForNode";
    /// The pod's stored manifest is not there any more, or was changed.
    pub const MANIFEST_MISSING: &str = "ManifestMissing";
    /// Somebody else made a pod of the name that the pod is to have again.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// No node is left that has the pod's state.
    pub const STATE_LOST: &str = "StateLost";
    /// A claim of the pod leads to another volume than the one that its state belongs to.
    pub const VOLUME_EXCHANGED: &str = "VolumeExchanged";
    /// A restore of the pod may have run and written to its volumes, so its memory may be older than they are:
    /// somebody has to choose.
    pub const VOLUMES_NEWER: &str = "VolumesNewer";
    /// The object is paused by annotation.
    pub const PAUSED: &str = "Paused";

    // --- Node ---

    /// Everything the condition asks for is there.
    pub const AVAILABLE: &str = "Available";
    /// The agent has not reported for too long.
    pub const HEARTBEAT_MISSED: &str = "HeartbeatMissed";
    /// The node is listed, but no agent has ever reported from it.
    pub const NOT_JOINED: &str = "NotJoined";
    /// The static list has the node.
    pub const ON_THE_LIST: &str = "OnTheList";
    /// The node joined, but the static list does not have it.
    pub const NOT_ON_THE_LIST: &str = "NotOnTheList";
    /// The agent is putting the host side in place.
    pub const INSTALLING: &str = "Installing";
    /// Installing the host side failed.
    pub const INSTALL_FAILED: &str = "InstallFailed";
    /// The host side was removed.
    pub const UNINSTALLED: &str = "Uninstalled";
    /// `criu check` failed or CRIU is too old.
    pub const CRIU_CHECK_FAILED: &str = "CriuCheckFailed";
    /// The kernel lacks a feature.
    pub const KERNEL_TOO_OLD: &str = "KernelTooOld";
    /// containerd does not answer.
    pub const RUNTIME_UNREACHABLE: &str = "RuntimeUnreachable";
    /// containerd runs another binary than the wrapper.
    pub const WRAPPER_NOT_ACTIVE: &str = "WrapperNotActive";
    /// containerd does not tell which binary it runs.
    pub const WRAPPER_UNKNOWN: &str = "WrapperUnknown";
    /// The node has neither a CriuReady nor a RuntimeReady of True.
    pub const COMPONENT_NOT_READY: &str = "ComponentNotReady";
    /// A Migration vanished: when the node had the state of its pod and the pod ran nowhere; of an event, before it
    /// was over.
    pub const MIGRATION_VANISHED: &str = "MigrationVanished";
    /// No state is kept that no Migration answers for.
    pub const NOTHING_KEPT: &str = "NothingKept";
    /// No store is configured.
    pub const NO_STORE: &str = "NoStore";
    /// Nothing suggests that the node must be fenced.
    pub const NOT_FENCED: &str = "NotFenced";
}

/// Longest message written, in bytes; Kubernetes lets none be longer.
pub const MAX_MESSAGE: usize = 32768;
/// Longest note of an event, in bytes; Kubernetes takes no longer ones.
pub const MAX_NOTE: usize = 1024;

/// The three values of a condition's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConditionStatus {
    /// The type holds.
    True,
    /// The type does not hold.
    False,
    /// It is not known yet whether the type holds.
    Unknown,
}

impl ConditionStatus {
    /// The value as it stands in a condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

impl std::fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Sets the condition `type_`, adding it if it is absent, and says whether anything but the
/// generation changed. `lastTransitionTime` moves only when the status does, truncated to seconds
/// as Kubernetes stores it; an empty reason becomes `Pending`, since the API forbids it.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: ConditionStatus,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let reason = if reason.is_empty() { reasons::PENDING } else { reason };
    let message = bounded(message, MAX_MESSAGE);
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let Some(existing) = conditions.iter_mut().find(|c| c.type_ == type_) else {
        conditions.push(Condition {
            type_: type_.to_owned(),
            status: status.as_str().to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: Time(now),
        });
        return true;
    };
    let transition = existing.status != status.as_str();
    let changed = transition || existing.reason != reason || existing.message != message;
    if transition {
        existing.last_transition_time = Time(now);
        existing.status = status.as_str().to_owned();
    }
    existing.reason = reason.to_owned();
    existing.message = message;
    existing.observed_generation = generation;
    changed
}

/// Adds each absent type of `types` as `Unknown/Pending`, so that every known condition is there
/// from the first visit on.
pub fn add_missing(
    conditions: &mut Vec<Condition>,
    types: &[&str],
    generation: Option<i64>,
    now: Timestamp,
) {
    for type_ in types {
        if find(conditions, type_).is_none() {
            set_condition(
                conditions,
                type_,
                ConditionStatus::Unknown,
                reasons::PENDING,
                "not reached yet",
                generation,
                now,
            );
        }
    }
}

/// The condition `type_`, if it was ever written.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition `type_` has this status. An absent one is `Unknown`.
pub fn has_status(conditions: &[Condition], type_: &str, status: ConditionStatus) -> bool {
    find(conditions, type_).map_or("Unknown", |c| c.status.as_str()) == status.as_str()
}

/// Whether the condition `type_` is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    has_status(conditions, type_, ConditionStatus::True)
}

/// A message of at most `limit` bytes: a longer one is cut at a character and ends in `…`.
pub fn bounded(message: &str, limit: usize) -> String {
    const CUT: char = '…';
    if message.len() <= limit {
        return message.to_owned();
    }
    let end = (0..=limit.saturating_sub(CUT.len_utf8()))
        .rev()
        .find(|&i| message.is_char_boundary(i))
        .unwrap_or(0);
    format!("{}{CUT}", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millisecond(second * 1000 + 900).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        use ConditionStatus::{False, True, Unknown};
        let mut conditions = vec![];
        for (status, reason, message, now, changed, transition) in [
            (Unknown, "Pending", "", 10, true, 10),
            (Unknown, "Pending", "", 11, false, 10),
            (Unknown, "InProgress", "copying", 12, true, 10),
            (True, "InProgress", "copying", 13, true, 13),
            (True, "Migrated", "done", 14, true, 13),
            (False, "TargetLost", "gone", 15, true, 15),
        ] {
            let got = set_condition(
                &mut conditions,
                SUCCEEDED,
                status,
                reason,
                message,
                Some(1),
                at(now),
            );
            assert_eq!(got, changed, "{reason} at {now}");
            let c = find(&conditions, SUCCEEDED).unwrap();
            assert_eq!((c.status.as_str(), c.reason.as_str()), (status.as_str(), reason));
            assert_eq!(c.last_transition_time.0.as_millisecond(), transition * 1000);
        }
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn an_empty_reason_is_never_written() {
        let mut conditions = vec![];
        set_condition(&mut conditions, READY, ConditionStatus::False, "", "", None, at(1));
        assert_eq!(conditions[0].reason, "Pending");
    }

    #[test]
    fn every_known_condition_is_there_after_the_first_visit_and_none_is_overwritten() {
        let mut conditions = vec![];
        set_condition(&mut conditions, ADMITTED, true.into(), "ChecksPassed", "", Some(1), at(1));
        add_missing(&mut conditions, &MIGRATION_TYPES, Some(1), at(2));
        assert_eq!(conditions.len(), MIGRATION_TYPES.len());
        assert!(is_true(&conditions, ADMITTED));
        assert!(has_status(&conditions, SUCCEEDED, ConditionStatus::Unknown));
        assert!(has_status(&conditions, "NeverWritten", ConditionStatus::Unknown));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let mut conditions = vec![];
        let message = "ä".repeat(MAX_MESSAGE);
        set_condition(&mut conditions, READY, true.into(), "Available", &message, None, at(1));
        assert!(conditions[0].message.len() <= MAX_MESSAGE);
        assert!(conditions[0].message.ends_with("ä…"));
        assert_eq!(bounded("äöü", 6), "äöü");
        assert_eq!(bounded("äöüß", 7), "äö…");
    }
}
