//! The sequential hand-over, from the Commit to `resumedAt`: the restore on trial ends, the source
//! ends, its object goes, the pod is made again under its own name and restored from the images.
//! What may be done when is asked of `transship-protocol`.
//!
//! The source's deletion is announced in the status before it is asked for: one that nobody
//! announced is somebody else's wish, and the pod is not made again. A pod that was made again and
//! could not be restored is noted as failed before it is deleted, for the same reason.

mod again;
mod finish;
#[cfg(test)]
mod memory_tests;
mod owner;
mod source;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tries_tests;
mod volumes;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use transship_api::conditions::{self as c, reasons};
use transship_api::{Step, names};

use self::again::{make_again, restore_again};
use self::owner::{OwnersWord, is_replaced, is_wanted, owners_word};
use self::source::{somebody_deleted, source_ends};
use self::volumes::{exchanged, is_given_up};
use super::plan::{Action, Plan};
use super::state::{Observed, Role};
use super::status::Draft;

pub(crate) use crate::sequential_pod::trial_pod;

/// What must be there before anything can be lost, and is not yet. The name comes first: as long as the pod
/// is there it keeps nobody from anything, each API server has time to learn of it, and it is the trace by
/// which the stored manifest of a Migration that has vanished is found.
pub(super) fn lacks(observed: &Observed) -> Option<Action> {
    match observed.is_sequential() {
        true if !observed.name_is_held => Some(Action::HoldName),
        true if observed.manifest.is_none() => Some(Action::StoreManifest),
        _ => None,
    }
}

/// Before all others this is done.
pub(super) fn before_all(mut draft: Draft, action: Action) -> Plan {
    let message = match action {
        Action::HoldName => "creating a pod of the source's name is held back",
        _ => "the pod's manifest is stored, to make the pod again of it",
    };
    draft.waiting(reasons::IN_PROGRESS, message);
    let actions = vec![action];
    Plan { status: draft.done(), record: None, actions, again: Some(Duration::ZERO) }
}

/// What one look leads to.
enum Next {
    /// Things to do, and what is waited for.
    Do { actions: Vec<Action>, message: String, again: Duration },
    /// As [`Next::Do`], for something that only somebody else can mend.
    Stuck { reason: &'static str, message: String },
    /// As [`Next::Stuck`], for something that is tried all the same until it can be done.
    Insist { actions: Vec<Action>, message: String },
    /// What is to become of the memory of the pod that was made again is for somebody to say.
    Ask { uid: String, message: String },
    /// The source's deletion is announced, then done.
    Announce,
    /// This pod is the one that was made again.
    Adopt { uid: String },
    /// The pod that was made again cannot be restored.
    Failed { uid: String, why: String, goes_back: bool },
    /// The pod that was made again is not one that may be restored, and another is made: no try has failed.
    Anew { uid: String, why: String },
    /// Somebody deletes the pod that was made again.
    Unwanted,
    /// The target's node is gone: the pod goes back without another try.
    GoBack,
    /// The application runs on the target.
    Resumed,
    /// Nothing more is to be done.
    End { succeeded: bool, reason: &'static str, message: String, actions: Vec<Action> },
}

fn wait(message: impl Into<String>) -> Next {
    act(vec![], message)
}

fn act(actions: Vec<Action>, message: impl Into<String>) -> Next {
    Next::Do { actions, message: message.into(), again: Duration::from_millis(500) }
}

fn at_once(actions: Vec<Action>, message: impl Into<String>) -> Next {
    Next::Do { actions, message: message.into(), again: Duration::ZERO }
}

/// From the Commit to `resumedAt`, or to the end on the source's node.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed).step(Step::Committed);
    if observed.recorded().resolution.is_some() {
        draft.step(Step::SourceResuming);
    }
    let next = if made_again_uid(observed).is_empty() {
        source_ends(observed)
            .or_else(|| trial_goes(observed))
            .unwrap_or_else(|| make_again(observed, now))
    } else {
        restore_again(observed, now)
    };
    finish::finish(observed, draft, next)
}

fn source_name(observed: &Observed) -> &str {
    let status = observed.migration.status.as_ref();
    status.and_then(|s| s.source.as_ref()).map_or("", |s| s.pod_name.as_str())
}

/// UID of the pod that was made again, once it is recorded; the target is the trial's pod before.
fn made_again_uid(observed: &Observed) -> &str {
    let status = observed.migration.status.as_ref();
    let target = status.and_then(|s| s.target.as_ref());
    target.filter(|t| t.pod_name == source_name(observed)).map_or("", |t| t.pod_uid.as_str())
}

/// This Migration has made the pod again.
fn is_ours(observed: &Observed, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get(names::MIGRATION_LABEL)).is_some_and(|uid| uid == observed.uid())
}

/// No node is left that has the pod's state.
fn nowhere(observed: &Observed) -> bool {
    observed.target_node_gone
        && (observed.source_node_gone || observed.recorded().resolution.is_some())
}

/// Where nothing is made again, what is left is removed and the migration ends.
fn trial_goes(observed: &Observed) -> Option<Next> {
    let why = if somebody_deleted(observed) {
        (reasons::SOURCE_GONE, "the pod was deleted by somebody after the commit")
    } else if observed.is_deleting()
        && (observed.manifest.is_none() || nowhere(observed) || exchanged(observed).is_some())
    {
        (reasons::CANCELLED, "the Migration was deleted and the pod cannot be made again")
    } else if is_given_up(observed) {
        (reasons::CANCELLED, "the pod's memory was given up")
    } else if owners_word(observed) == OwnersWord::PodGoes {
        (reasons::SOURCE_GONE, "the pod's owner was deleted after the commit, with its pods")
    } else if !is_wanted(observed) {
        (reasons::SOURCE_GONE, "the pod's StatefulSet was scaled down after the commit")
    } else if is_replaced(observed) {
        (
            reasons::SOURCE_GONE,
            "the pod's StatefulSet was rolled after the commit and replaces it by a fresh one at once (podManagementPolicy: Parallel)",
        )
    } else {
        return None;
    };
    if observed.trial_pod.is_some() {
        return Some(act(vec![Action::DeleteTrial], "the pod of the restore on trial goes"));
    }
    // Made, and not recorded yet: nobody else would end it.
    let made = observed.again_pod.as_ref().filter(|pod| is_ours(observed, pod));
    if made.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()) {
        return Some(act(vec![Action::DeleteAgain], "the pod that was made again goes"));
    }
    Some(Next::End {
        succeeded: false,
        reason: why.0,
        message: format!("{}, so it is not made again", why.1),
        actions: vec![],
    })
}

fn unwanted(observed: &Observed) -> String {
    let node = observed.node(Role::Target);
    format!("the pod was deleted on {node} by somebody before it ran again")
}

fn deletion_is_noted(observed: &Observed) -> bool {
    let conditions = observed.status().conditions;
    c::find(&conditions, c::RESTORED)
        .is_some_and(|c| c.status == "False" && c.reason == reasons::TARGET_GONE)
}
