//! Writes what one look has led to into the status.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{MigrationStatus, Step};
use transship_protocol::{Resolution, TargetOutcome};

use super::again::{TRIES_ON_TARGET, pause_after};
use super::volumes::{note_asked, way_to_give_up};
use super::{Next, source_name, unwanted};
use crate::migration::plan::{Action, LOOK_AGAIN, Plan, Record};
use crate::migration::state::{Observed, Role};
use crate::migration::status::{self, Draft};
use crate::migration::voting;

/// The plan that a look has led to.
pub(super) fn finish(observed: &Observed, mut draft: Draft, next: Next) -> Plan {
    let now = draft.now();
    let plan = |draft: Draft, record, actions, again| Plan {
        status: draft.done(),
        record,
        actions,
        again: Some(again),
    };
    match next {
        Next::Do { actions, message, again } => {
            tell(observed, &mut draft, &message);
            plan(draft, None, actions, again)
        }
        Next::Stuck { reason, message } => {
            draft.stalled(reason, message);
            plan(draft, None, vec![], LOOK_AGAIN)
        }
        Next::Insist { actions, message } => {
            draft.stalled(reasons::TARGET_POD_FAILED, message);
            plan(draft, None, actions, Duration::ZERO)
        }
        Next::Ask { uid, message } => {
            draft
                .stalled(reasons::VOLUMES_NEWER, message)
                .with(|status| note_asked(status, uid, observed.is_deleting()));
            plan(draft, None, vec![], LOOK_AGAIN)
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
            tell(observed, &mut draft, "the pod is made again");
            draft.with(|status| {
                let target = status.target.get_or_insert_default();
                target.pod_uid = uid;
                target.pod_name = name;
            });
            plan(draft, None, vec![], Duration::ZERO)
        }
        Next::Failed { uid, why, goes_back } => failed(observed, draft, uid, &why, goes_back),
        Next::Anew { uid, why } => {
            tell(observed, &mut draft, &why);
            draft.with(|status| {
                status.failed_pod_uid = Some(uid);
                forget_target(status, None);
            });
            plan(draft, None, vec![], Duration::ZERO)
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

fn forget_target(status: &mut MigrationStatus, node: Option<String>) {
    let target = status.target.get_or_insert_default();
    target.pod_uid.clear();
    if let Some(node) = node {
        target.node = node;
    }
}

fn failed(observed: &Observed, mut draft: Draft, uid: String, why: &str, goes_back: bool) -> Plan {
    let now = draft.now();
    let source_node = observed.node(Role::Source).to_owned();
    let node = observed.node(Role::Target);
    let message = format!("the pod could not be restored on {node}: {why}");
    let failures = failures(observed) + 1;
    let pause = pause_after(failures);
    let then = match goes_back {
        true => format!("it goes back to {source_node}"),
        false if pause.is_zero() => "it is tried again".to_owned(),
        false => format!("it is tried again after {} s", pause.as_secs()),
    };
    if observed.recorded().resolution.is_none() {
        draft.set(c::RESTORED, ConditionStatus::False, reasons::RESTORE_FAILED, &message);
    }
    if failures > TRIES_ON_TARGET {
        // Everything that helps by itself has been tried.
        let or = way_to_give_up(observed).map_or_else(String::new, |way| format!(", or {way}"));
        let message = format!(
            "{message}; {then}, until it runs, and its state is kept meanwhile. Remove what keeps it from being restored ({failures} tries so far){or}"
        );
        draft.stalled(reasons::RESTORE_FAILED, message);
    } else {
        let reason = if goes_back { reasons::TARGET_LOST } else { reasons::RESTORE_FAILED };
        draft.waiting(reason, format!("{message}; {then}"));
    }
    draft.with(|status| {
        status.failed_restores = Some(failures);
        status.failed_restore_time = Some(Time(status::whole_seconds(now)));
        status.failed_pod_uid = Some(uid);
        forget_target(status, goes_back.then_some(source_node));
    });
    let record = goes_back.then_some(Record::Resolution(Resolution::SourceResumes));
    Plan { status: draft.done(), record, actions: vec![], again: Some(Duration::ZERO) }
}

/// How often the pod could not be restored.
pub(super) fn failures(observed: &Observed) -> i32 {
    observed.status().failed_restores.unwrap_or(0)
}

/// What is waited for. Where restoring has failed too often, that stays told until the pod runs.
fn tell(observed: &Observed, draft: &mut Draft, message: &str) {
    let failures = failures(observed);
    let runs = observed.target_word().outcome == Some(TargetOutcome::Resumed);
    if failures <= TRIES_ON_TARGET || runs {
        voting::describe_waiting(observed, draft, message);
        return;
    }
    let conditions = observed.status().conditions;
    let is_told = c::find(&conditions, c::STALLED)
        .is_some_and(|c| c.status == "True" && c.reason == reasons::RESTORE_FAILED);
    if is_told {
        draft.in_progress(reasons::RESTORE_FAILED, message);
    } else {
        let message = format!("the pod could not be restored {failures} times; {message}");
        draft.stalled(reasons::RESTORE_FAILED, message);
    }
}
