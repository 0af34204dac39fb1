//! After an abort, after a resolution, and the cleaning up at the end of every migration.

use std::time::Duration;

use jiff::Timestamp;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{Step, names};
use transship_protocol::{Decision, may_remove_finalizer};

use super::plan::{Action, LOOK_AGAIN, Plan};
use super::state::{Observed, Role, Side, any_container_runs, claimed_by};
use super::status::{self, Draft};
use super::voting::{describe_waiting, hints};

/// The decision is Abort: both sides close, the target pod goes, the claim comes off the source.
pub fn abort(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed).step(Step::Aborting);
    let (reason, message) = told(observed);
    match give_back(observed, |read| read != Some(Decision::Abort)) {
        Some((actions, waiting)) => {
            describe_aborting(observed, &mut draft, &reason, &message, &waiting);
            Plan { status: draft.done(), record: None, actions, again: Some(LOOK_AGAIN / 5) }
        }
        None => {
            let message = goes_on(observed, &mut draft, &message);
            draft.end(Step::RolledBack, false, &reason, message);
            ended(draft)
        }
    }
}

/// The target was lost after the commit: the source goes on, the rest as after an abort.
pub fn source_resumes(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed).step(Step::SourceResuming);
    let (_, message) = told(observed);
    // The decision that both have read is Commit; what matters now is the resolution.
    match give_back(observed, |_| true) {
        Some((actions, waiting)) => {
            describe_aborting(observed, &mut draft, reasons::TARGET_LOST, &message, &waiting);
            Plan { status: draft.done(), record: None, actions, again: Some(LOOK_AGAIN / 5) }
        }
        None => {
            let message = goes_on(observed, &mut draft, &message);
            draft.end(Step::Failed, false, reasons::TARGET_LOST, message);
            ended(draft)
        }
    }
}

fn ended(draft: Draft) -> Plan {
    Plan { status: draft.done(), record: None, actions: vec![], again: Some(Duration::ZERO) }
}

/// Why it is rolled back, as the decision's writer said in `Succeeded`.
fn told(observed: &Observed) -> (String, String) {
    let conditions = observed.status().conditions;
    match c::find(&conditions, c::SUCCEEDED) {
        Some(told) => {
            // What is waited for was appended behind this mark.
            let message = told.message.split(WAITING_MARK).next().unwrap_or_default();
            (told.reason.clone(), message.to_owned())
        }
        None => (reasons::NOT_REACHED.to_owned(), "it was given up".to_owned()),
    }
}

/// Separates why something is rolled back from what is still waited for.
const WAITING_MARK: &str = "; rolling back: ";

fn describe_aborting(
    observed: &Observed,
    draft: &mut Draft,
    reason: &str,
    message: &str,
    waiting: &str,
) {
    describe_waiting(observed, draft, waiting);
    let text = format!("{message}{WAITING_MARK}{waiting}");
    draft.set(c::SUCCEEDED, ConditionStatus::Unknown, reason, text);
}

/// Closes both sides, ends the target pod and takes the claim off: what to do and what is waited
/// for, or `None` when all is done.
fn give_back(
    observed: &Observed,
    needs_hint: impl Fn(Option<Decision>) -> bool,
) -> Option<(Vec<Action>, String)> {
    let open: Vec<Role> = Role::BOTH
        .into_iter()
        .filter(|role| !observed.side(*role).is_done(observed.node_gone(*role)))
        .collect();
    // The source first of all: the application stands still. What the target still has in hand
    // delays only the end of its pod.
    let mut actions = hints(observed, |_, read| needs_hint(read));
    if !open.is_empty() {
        let names: Vec<&str> = open.iter().map(|role| observed.node(*role)).collect();
        return Some((actions, format!("{} is to close its side", names.join(" and "))));
    }
    if let Some(target) = &observed.target_pod {
        let node = observed.node(Role::Target);
        if target.metadata.deletion_timestamp.is_some() {
            return Some((actions, format!("the target pod goes from {node}")));
        }
        if any_container_runs(target) && !observed.target_node_gone {
            // A pod whose containers run would get its preStop hook.
            return Some((actions, format!("{node} is to show the target's containers as ended")));
        }
        actions.push(Action::DeleteTarget);
        return Some((actions, format!("the target pod goes from {node}")));
    }
    if observed.claim_held() {
        actions.push(Action::UnclaimSource);
        return Some((actions, "the claim comes off the source pod".into()));
    }
    None
}

/// Writes that the source goes on, and after how long; gives the message of the end.
fn goes_on(observed: &Observed, draft: &mut Draft, message: &str) -> String {
    let report = observed.source.report();
    let node = observed.node(Role::Source).to_owned();
    if observed.source_word().memory_lost {
        return format!(
            "{message}; {node} restarted meanwhile, so the pod's memory is lost and it starts afresh"
        );
    }
    let frozen =
        observed.status().frozen_at.is_some() || report.is_some_and(|r| r.frozen_at.is_some());
    if !frozen {
        return message.to_owned();
    }
    let thawed = report.and_then(|r| r.thawed_at);
    let still = match draft.downtime(thawed) {
        Some(time) => format!("froze {} for {time}; they go on on {node}", status::count(observed)),
        None => format!("the containers go on on {node}"),
    };
    draft.set(c::FROZEN, ConditionStatus::False, reasons::SOURCE_RESUMED, &still);
    draft.set(c::RESTORED, ConditionStatus::False, reasons::NOT_REACHED, "");
    format!("{message}; {still}")
}

/// After the end: the agents forget, claims and labels come off, the finalizer goes.
pub fn clean_up(observed: &Observed) -> Plan {
    let status = observed.status();
    let has_finalizer = observed
        .migration
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == names::FINALIZER);
    if !has_finalizer {
        return Plan { status, ..Plan::default() };
    }
    let mut actions =
        hints(observed, |role, _| !matches!(observed.side(role), Side::Unknown | Side::NotStarted));
    let mut done = true;
    for role in Role::BOTH {
        // A side that closed before its agent fell silent is collected there by itself, once the
        // Migration is gone.
        let closed_and_silent = matches!(observed.side(role),
            Side::Unreachable { last: Some(report), .. } if report.closed);
        if observed.node_gone(role) || *observed.side(role) == Side::NotStarted || closed_and_silent
        {
            continue;
        }
        done = false;
        if let Side::Reporting(report) = observed.side(role)
            && report.closed
        {
            actions.push(Action::Forget(role));
        }
    }
    if observed.claim_held() {
        actions.push(Action::UnclaimSource);
        done = false;
    }
    if observed.target_pod.as_ref().is_some_and(|pod| {
        let labels = pod.metadata.labels.as_ref();
        claimed_by(pod, observed.uid())
            || labels.is_some_and(|l| l.contains_key(names::MIGRATION_LABEL))
    }) {
        actions.push(Action::UnclaimTarget);
        done = false;
    }
    let lawful = may_remove_finalizer(
        observed.recorded(),
        observed.source_word(),
        observed.target_word(),
        observed.source_node_gone,
        observed.target_node_gone,
    );
    if done && lawful {
        actions.push(Action::RemoveFinalizer);
        return Plan { status, record: None, actions, again: None };
    }
    // Forgetting is quick; a node that does not answer is asked again and again.
    Plan { status, record: None, actions, again: Some(Duration::from_millis(500)) }
}
