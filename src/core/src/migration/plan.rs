//! What is to be done next. [`plan`] looks only at what was observed, never at what it planned
//! before: any step may be repeated, and a new leader continues where the last one died.
//!
//! The write-once fields divide a migration's life; each part has a module: [`super::voting`] until
//! the decision, [`super::takeover`] after a commit, [`super::rollback`] after an abort and at the
//! end. What may be recorded is asked of `transship-protocol` alone.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use transship_api::{MigrationStatus, Step};
use transship_protocol::{Decision, Resolution};

use super::handover::Labels;
use super::state::{Observed, Role};
use super::{rollback, sequential, takeover, voting};

/// A write-once field to be written now, by `replaceStatus` with the resourceVersion of the very
/// read that the plan was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// `status.decision`.
    Decision(Decision),
    /// `status.resumedAt`.
    ResumedAt(Timestamp),
    /// `status.resolution`.
    Resolution(Resolution),
}

/// How the source leaves its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// It has left.
    Before,
    /// Labels and claim come off.
    Stripped,
    /// It keeps both until it goes. Meanwhile its owner has one pod too many, and this is to be the one.
    AsSurplus,
}

/// Something to be done. Every action may be repeated and finds its work done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the target pod.
    CreateTarget(Box<Pod>),
    /// Let an agent start the holder of a side (for the target, with record and tickets first).
    StartSide(Role),
    /// Take the scheduling gate off the target.
    RemoveGate,
    /// Tell the source to freeze, dump and send.
    Freeze,
    /// Tell a side that something was recorded.
    Hint(Role),
    /// Set the target's readiness gate condition to True.
    MarkResumed,
    /// Give the target these labels.
    LabelTarget(Labels),
    /// Move the owner's claim, back to back, while creates by the owner's controller and shrinking
    /// counts are held back.
    MoveClaim {
        /// The owner's claim.
        claim: OwnerReference,
        /// What the target's labels still lack.
        labels: Labels,
        /// How the source leaves it, which comes first.
        source: Leaves,
    },
    /// Take all labels off the source that somebody may select it by.
    StripSource,
    /// Give the source, which somebody has deleted, its owner's claim back.
    ReturnClaim(OwnerReference),
    /// Tell the source to end its frozen tasks.
    Release,
    /// The hand-over has ended: creates are held back no longer.
    EndHandover,
    /// Tell the address's home node that the target uses it.
    MoveLease {
        /// The address.
        address: String,
        /// The home node.
        home: String,
    },
    /// The same before the target runs: what cannot be done now is done then.
    NoteLease {
        /// The address.
        address: String,
        /// The home node.
        home: String,
    },
    /// Delete the source pod (with its UID as a precondition).
    DeleteSource,
    /// Delete the target pod (with its UID as a precondition).
    DeleteTarget,
    /// Take the claim off the source.
    UnclaimSource,
    /// Take claim and label off the target.
    UnclaimTarget,
    /// Let an agent forget a finished side.
    Forget(Role),
    /// Sequential: nobody else may create a pod of the source's name from now on.
    HoldName,
    /// Sequential: store the source pod's manifest in a Secret, which the held name gives away.
    StoreManifest,
    /// Sequential: neither the Secret is needed any longer nor the name.
    FreeName,
    /// Sequential: take the Migration's reference to its pod's owner off.
    DropWitness,
    /// Sequential: delete the pod of the restore on trial (with its UID as a precondition).
    DeleteTrial,
    /// Sequential: delete the pod that took the source's name (with its UID as a precondition).
    DeleteAgain,
    /// Tell a side to give up.
    GiveUp(Role),
    /// Take the finalizer off the Migration.
    RemoveFinalizer,
}

/// What to do, in this order: write `status` (with `record`, if any), carry out `actions`, look
/// again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The status as it should be, by what was observed. The write-once fields are as they were.
    pub status: MigrationStatus,
    /// What to record.
    pub record: Option<Record>,
    /// What to do then.
    pub actions: Vec<Action>,
    /// When to look again at the latest, if nothing happens before.
    pub again: Option<Duration>,
}

/// How often a migration under way is looked at when nothing happens.
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The next step of an admitted migration.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let step = observed.status().step.unwrap_or_default();
    if step.is_final() {
        return rollback::clean_up(observed, now);
    }
    let recorded = observed.recorded();
    match (recorded.decision, recorded.resumed_at, recorded.resolution) {
        (None, ..) => voting::plan(observed, now),
        (Some(Decision::Abort), ..) => rollback::abort(observed, now),
        (Some(Decision::Commit), true, _) => takeover::plan(observed, now),
        (Some(Decision::Commit), false, _) if observed.is_sequential() => {
            sequential::plan(observed, now)
        }
        (Some(Decision::Commit), false, None) => voting::committed(observed, now),
        (Some(Decision::Commit), false, Some(Resolution::SourceResumes)) => {
            rollback::source_resumes(observed, now)
        }
    }
}

/// Whether a step was left behind: used to show progress, never to decide.
pub(crate) fn reached(observed: &Observed, step: Step) -> bool {
    observed.migration.status.as_ref().and_then(|s| s.step).is_some_and(|s| s >= step)
}
