//! Where a Migration stands ([`Step`]), and the column derived from it ([`Phase`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a Migration's state machine stands. Steps follow each other in this order; `Aborting` may
/// follow any step before `Committed`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum Step {
    /// Accepted by the API server; nothing has been done. The pod is not claimed yet.
    #[default]
    Pending,
    /// Processes are inspected, the nodes are compared, the pod is claimed.
    Preflight,
    /// The target node is being chosen.
    Scheduling,
    /// Memory and files are copied while the application runs. Left out by modes that copy
    /// nothing live.
    Copying,
    /// The target pod is made, its record and its holder are put on the target node; it still
    /// bears its scheduling gate.
    PreparingTarget,
    /// The gate is gone: the target pod's sandbox comes up closed and the `create` of its first
    /// container waits for the images.
    WaitingForTarget,
    /// The source is told to freeze; its state is dumped and sent.
    Freezing,
    /// The state is restored into a frozen cgroup on the target; votes are awaited.
    Voting,
    /// `status.decision` is `Commit`: the target thaws, `status.resumedAt` is awaited.
    Committed,
    /// `status.resumedAt` is recorded: the pod runs on the target.
    Resumed,
    /// Service traffic and the owner's claim go from the source pod to the target pod.
    HandingOver,
    /// The source's tasks are ended, its pod is deleted, both sides are asked to acknowledge.
    Releasing,
    /// `status.resolution` is `SourceResumes`: the target was lost after the commit and the source
    /// goes on.
    SourceResuming,
    /// Ended: the pod runs on the target (or, with `dryRun`, every check passed).
    Succeeded,
    /// `status.decision` is `Abort`, or nothing was frozen yet and the attempt is given up: the
    /// target is ended, the source thawed.
    Aborting,
    /// Ended: the source runs as before.
    RolledBack,
    /// Ended before anything was touched, or with the target lost after the commit.
    Failed,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 17] = [
        Self::Pending,
        Self::Preflight,
        Self::Scheduling,
        Self::Copying,
        Self::PreparingTarget,
        Self::WaitingForTarget,
        Self::Freezing,
        Self::Voting,
        Self::Committed,
        Self::Resumed,
        Self::HandingOver,
        Self::Releasing,
        Self::SourceResuming,
        Self::Succeeded,
        Self::Aborting,
        Self::RolledBack,
        Self::Failed,
    ];

    /// The name as it stands in `status.step`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Preflight => "Preflight",
            Self::Scheduling => "Scheduling",
            Self::Copying => "Copying",
            Self::PreparingTarget => "PreparingTarget",
            Self::WaitingForTarget => "WaitingForTarget",
            Self::Freezing => "Freezing",
            Self::Voting => "Voting",
            Self::Committed => "Committed",
            Self::Resumed => "Resumed",
            Self::HandingOver => "HandingOver",
            Self::Releasing => "Releasing",
            Self::SourceResuming => "SourceResuming",
            Self::Succeeded => "Succeeded",
            Self::Aborting => "Aborting",
            Self::RolledBack => "RolledBack",
            Self::Failed => "Failed",
        }
    }

    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::RolledBack | Self::Failed)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A coarse view of `step` for columns and people. Nothing is decided by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nothing has been done.
    #[default]
    Pending,
    /// Checks run; the application notices nothing.
    Preflight,
    /// Memory and files are copied while the application runs.
    Copying,
    /// The target pod is made; the application still runs on the source.
    Preparing,
    /// The application stands still.
    Frozen,
    /// The target has won (or has been lost since); it runs or is about to.
    Committed,
    /// The pod runs on the target.
    Succeeded,
    /// The source runs as before, or is about to.
    RolledBack,
    /// Ended without a move.
    Failed,
}

/// The phase that belongs to a step.
pub fn phase(step: Step) -> Phase {
    match step {
        Step::Pending => Phase::Pending,
        Step::Preflight | Step::Scheduling => Phase::Preflight,
        Step::Copying => Phase::Copying,
        Step::PreparingTarget | Step::WaitingForTarget => Phase::Preparing,
        Step::Freezing | Step::Voting => Phase::Frozen,
        Step::Committed
        | Step::Resumed
        | Step::HandingOver
        | Step::Releasing
        | Step::SourceResuming => Phase::Committed,
        Step::Succeeded => Phase::Succeeded,
        Step::Aborting | Step::RolledBack => Phase::RolledBack,
        Step::Failed => Phase::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_listed_once_in_order_under_the_name_it_is_stored_with() {
        assert!(Step::ALL.is_sorted());
        for step in Step::ALL {
            assert_eq!(serde_json::to_value(step).unwrap(), step.as_str());
        }
    }

    #[test]
    fn a_final_step_has_a_final_phase_and_only_it() {
        for step in Step::ALL {
            let final_phase =
                matches!(phase(step), Phase::Succeeded | Phase::RolledBack | Phase::Failed);
            assert_eq!(step.is_final() || step == Step::Aborting, final_phase, "{step}");
        }
    }
}
