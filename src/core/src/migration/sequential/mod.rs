//! The sequential hand-over, from the Commit to `resumedAt`: the restore on trial ends, the source
//! ends, its object goes, the pod is made again under its own name and restored from the images.
//! What may be done when is asked of `transship-protocol`.
//!
//! The source's deletion is announced in the status before it is asked for: one that nobody
//! announced is somebody else's wish, and the pod is not made again. A pod that was made again and
//! could not be restored is noted as failed before it is deleted, for the same reason.

mod again;
mod owner;
mod source;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use transship_api::Step;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_protocol::Resolution;

use self::again::{make_again, restore_again};
use self::owner::{OwnersWord, is_wanted, owners_word};
use self::source::{somebody_deleted, source_ends};
use super::plan::{Action, LOOK_AGAIN, Plan, Record};
use super::state::{Observed, Role};
use super::status::{self, Draft};
use super::voting;

pub(crate) use crate::sequential_pod::trial_pod;

/// The first thing of all: what the pod is made of again must be stored before anything can be lost.
pub(super) fn store_manifest(draft: Draft) -> Plan {
    let message = "the pod's manifest is stored, to make the pod again of it";
    before_all(draft, Action::StoreManifest, message)
}

/// The second: when the source has gone nobody else may make a pod of its name.
pub(super) fn hold_name(draft: Draft) -> Plan {
    before_all(draft, Action::HoldName, "creating a pod of the source's name is held back")
}

fn before_all(mut draft: Draft, action: Action, message: &str) -> Plan {
    draft.waiting(reasons::IN_PROGRESS, message);
    let actions = vec![action];
    Plan { status: draft.done(), record: None, actions, again: Some(Duration::ZERO) }
}

/// What one look leads to.
enum Next {
    /// Things to do, and what is waited for.
    Do { actions: Vec<Action>, message: String, again: Duration },
    /// As [`Next::Do`], for something that only somebody else can mend.
    Stuck { message: String },
    /// As [`Next::Stuck`], for something that is tried all the same until it can be done.
    Insist { actions: Vec<Action>, message: String },
    /// The source's deletion is announced, then done.
    Announce,
    /// This pod is the one that was made again.
    Adopt { uid: String },
    /// The pod that was made again cannot be restored.
    Failed { uid: String, why: String, goes_back: bool },
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
            .unwrap_or_else(|| make_again(observed))
    } else {
        restore_again(observed, now)
    };
    finish(observed, draft, next)
}

fn finish(observed: &Observed, mut draft: Draft, next: Next) -> Plan {
    let now = draft.now();
    let plan = |draft: Draft, record, actions, again| Plan {
        status: draft.done(),
        record,
        actions,
        again: Some(again),
    };
    match next {
        Next::Do { actions, message, again } => {
            voting::describe_waiting(observed, &mut draft, &message);
            plan(draft, None, actions, again)
        }
        Next::Stuck { message } => {
            draft.stalled(reasons::WAITING_FOR_NODE, message);
            plan(draft, None, vec![], LOOK_AGAIN)
        }
        Next::Insist { actions, message } => {
            draft.stalled(reasons::TARGET_POD_FAILED, message);
            plan(draft, None, actions, Duration::ZERO)
        }
        Next::Announce => {
            let node = observed.node(Role::Source);
            draft.waiting(reasons::IN_PROGRESS, format!("the source pod goes from {node}")).with(
                |status| status.source_deletion_time = Some(Time(status::whole_seconds(now))),
            );
            plan(draft, None, vec![Action::DeleteSource], Duration::ZERO)
        }
        Next::Adopt { uid } => {
            let name = source_name(observed).to_owned();
            draft.waiting(reasons::IN_PROGRESS, "the pod is made again").with(|status| {
                let target = status.target.get_or_insert_default();
                target.pod_uid = uid;
                target.pod_name = name;
            });
            plan(draft, None, vec![], Duration::ZERO)
        }
        Next::Failed { uid, why, goes_back } => {
            let node = observed.node(Role::Target).to_owned();
            let source_node = observed.node(Role::Source).to_owned();
            let message = format!("the pod could not be restored on {node}: {why}");
            let what = match goes_back {
                true => format!("{message}; it goes back to {source_node}"),
                false => format!("{message}; it is tried again"),
            };
            let reason = if goes_back { reasons::TARGET_LOST } else { reasons::RESTORE_FAILED };
            if observed.recorded().resolution.is_none() {
                draft.set(c::RESTORED, ConditionStatus::False, reasons::RESTORE_FAILED, &message);
            }
            draft.waiting(reason, what).with(|status| {
                status.failed_restores = Some(status.failed_restores.unwrap_or(0) + 1);
                status.failed_pod_uid = Some(uid);
                forget_target(status, goes_back.then_some(source_node));
            });
            let record = goes_back.then_some(Record::Resolution(Resolution::SourceResumes));
            plan(draft, record, vec![], Duration::ZERO)
        }
        Next::Unwanted => {
            let message = unwanted(observed);
            draft
                .set(c::RESTORED, ConditionStatus::False, reasons::TARGET_GONE, &message)
                .waiting(reasons::TARGET_GONE, message);
            plan(draft, None, vec![], Duration::ZERO)
        }
        Next::GoBack => {
            let source_node = observed.node(Role::Source).to_owned();
            let node = observed.node(Role::Target);
            let message =
                format!("node {node} is gone; the pod is restored on {source_node} instead");
            draft
                .waiting(reasons::TARGET_LOST, message)
                .with(|status| forget_target(status, Some(source_node)));
            let record = Record::Resolution(Resolution::SourceResumes);
            plan(draft, Some(record), vec![], Duration::ZERO)
        }
        Next::Resumed => voting::resumed(observed, draft),
        Next::End { succeeded, reason, message, actions } => {
            draft.end(Step::Failed, succeeded, reason, message);
            plan(draft, None, actions, Duration::ZERO)
        }
    }
}

fn forget_target(status: &mut transship_api::MigrationStatus, node: Option<String>) {
    let target = status.target.get_or_insert_default();
    target.pod_uid.clear();
    if let Some(node) = node {
        target.node = node;
    }
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

/// No node is left that has the pod's state.
fn nowhere(observed: &Observed) -> bool {
    observed.target_node_gone
        && (observed.source_node_gone || observed.recorded().resolution.is_some())
}

/// Where nothing is made again, what is left is removed and the migration ends.
fn trial_goes(observed: &Observed) -> Option<Next> {
    let why = if somebody_deleted(observed) {
        (reasons::SOURCE_GONE, "the pod was deleted by somebody after the commit")
    } else if observed.is_deleting() && (observed.manifest.is_none() || nowhere(observed)) {
        (reasons::CANCELLED, "the Migration was deleted and the pod cannot be made again")
    } else if owners_word(observed) == OwnersWord::PodGoes {
        (reasons::SOURCE_GONE, "the pod's owner was deleted after the commit, with its pods")
    } else if !is_wanted(observed) {
        (reasons::SOURCE_GONE, "the pod's StatefulSet was scaled down after the commit")
    } else {
        return None;
    };
    if observed.trial_pod.is_some() {
        return Some(act(vec![Action::DeleteTrial], "the pod of the restore on trial goes"));
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
