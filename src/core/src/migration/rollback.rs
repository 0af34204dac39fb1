//! After an abort, after a resolution, and the cleaning up at the end of every migration.

use std::time::Duration;

use jiff::Timestamp;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{Step, names};
use transship_protocol::{Decision, PodSeen, may_remove_finalizer};

use super::plan::{Action, LOOK_AGAIN, Plan};
use super::state::{Observed, Role, Side, any_container_runs, claimed_by};
use super::status::{self, Draft};
use super::voting::{SILENCE_LIMIT, describe_waiting, hints, stuck};
use crate::witness::references;

/// The decision is Abort: both sides close, the target pod goes, the claim comes off the source.
pub fn abort(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed).step(Step::Aborting);
    let (reason, message) = told(observed);
    match give_back(observed, now, |read| read != Some(Decision::Abort)) {
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
    match give_back(observed, now, |_| true) {
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
    let waiting = match stuck(observed) {
        Some((reason, stuck)) => {
            let waiting = format!("{waiting}; {stuck}");
            draft.stalled(reason, &waiting);
            waiting
        }
        None => {
            describe_waiting(observed, draft, waiting);
            waiting.to_owned()
        }
    };
    let text = format!("{message}{WAITING_MARK}{waiting}");
    draft.set(c::SUCCEEDED, ConditionStatus::Unknown, reason, text);
}

/// Whose files the source has lost.
fn lost_files(observed: &Observed) -> Option<String> {
    let lost = &observed.source.report()?.files_lost;
    (!lost.is_empty()).then(|| {
        format!("what container {} had changed outside of volumes is lost", lost.join(", "))
    })
}

/// Closes both sides, ends the target pod and takes the claim off: what to do and what is waited
/// for, or `None` when all is done that can be. The target can never run any more, so neither the
/// source nor its claim waits for a target that does not answer: what is left there goes when it
/// does ([`clean_up`]).
fn give_back(
    observed: &Observed,
    now: Timestamp,
    needs_hint: impl Fn(Option<Decision>) -> bool,
) -> Option<(Vec<Action>, String)> {
    let is_open = |role: &Role| !observed.side(*role).is_done(observed.node_gone(*role));
    let open: Vec<&str> =
        Role::BOTH.iter().filter(|role| is_open(role)).map(|role| observed.node(*role)).collect();
    // The source first of all: the application stands still. What the target still has in hand
    // delays only the end of its pod.
    let mut actions = hints(observed, |_, read| needs_hint(read));
    let closing = format!("{} is to close its side", open.join(" and "));
    if is_open(&Role::Source) {
        return Some((actions, closing));
    }
    if observed.claim_held() {
        actions.push(Action::UnclaimSource);
    }
    if !is_silent(observed, now) {
        if is_open(&Role::Target) {
            return Some((actions, closing));
        }
        if let Some((action, waiting)) = target_goes(observed) {
            actions.extend(action);
            return Some((actions, waiting));
        }
    }
    observed.claim_held().then(|| (actions, "the claim comes off the source pod".into()))
}

/// The target's node has not answered for so long that nobody should wait for it.
fn is_silent(observed: &Observed, now: Timestamp) -> bool {
    !observed.target_node_gone
        && observed.target.silent_for(now).is_some_and(|time| time >= SILENCE_LIMIT)
}

/// The next step to the end of the target pod, whose side is closed; `None` when it is gone.
pub(super) fn target_goes(observed: &Observed) -> Option<(Option<Action>, String)> {
    let target = observed.target_pod.as_ref()?;
    let node = observed.node(Role::Target);
    if target.metadata.deletion_timestamp.is_none() {
        if any_container_runs(target) && !observed.target_node_gone {
            // A pod whose containers run would get its preStop hook.
            return Some((None, format!("{node} is to show the target's containers as ended")));
        }
        return Some((Some(Action::DeleteTarget), format!("the target pod goes from {node}")));
    }
    Some((None, format!("the target pod goes from {node}")))
}

/// Writes what became of the source, and after how long; gives the message of the end.
fn goes_on(observed: &Observed, draft: &mut Draft, message: &str) -> String {
    let report = observed.source.report();
    let node = observed.node(Role::Source);
    let target = observed.node(Role::Target);
    let mut message = message.to_owned();
    if observed.target_pod.is_some() {
        message = format!("{message}; the target pod goes when {target} answers again");
    }
    let frozen =
        observed.status().frozen_at.is_some() || report.is_some_and(|r| r.frozen_at.is_some());
    let deleted = observed.source_seen() != PodSeen::Alive;
    let (reason, still) = if observed.source_node_gone {
        (reasons::SOURCE_GONE, format!("{node} has left the cluster, and the pod with it"))
    } else if observed.source_word().memory_lost && !deleted {
        let lost = match (observed.is_cold(), lost_files(observed)) {
            (true, Some(lost)) => format!("and {lost}"),
            (true, None) => "so changes outside of the pod's volumes may be lost".to_owned(),
            (false, _) => "so the pod's memory is lost and it starts afresh".to_owned(),
        };
        match report.map_or("", |report| report.memory_lost.as_str()) {
            "" => (reasons::SOURCE_REBOOTED, format!("{node} restarted meanwhile, {lost}")),
            how => (reasons::MEMORY_LOST, format!("{how} on {node}, {lost}")),
        }
    } else if !frozen {
        return message;
    } else {
        let reason = if deleted { reasons::SOURCE_GONE } else { reasons::SOURCE_RESUMED };
        let now = if deleted { "the pod was deleted meanwhile" } else { "they go on" };
        let still = match draft.downtime(report.and_then(|r| r.thawed_at)) {
            _ if observed.is_cold() && !deleted => {
                let again =
                    format!("ended {}; they were started again on {node}", status::count(observed));
                match lost_files(observed) {
                    Some(lost) => format!("{again}, but {lost}"),
                    None => again,
                }
            }
            Some(time) => format!("froze {} for {time}; {now} on {node}", status::count(observed)),
            None if deleted => format!("{now} on {node}"),
            None => format!("the containers go on on {node}"),
        };
        (reason, still)
    };
    draft.set(c::FROZEN, ConditionStatus::False, reason, &still);
    draft.set(c::RESTORED, ConditionStatus::False, reasons::NOT_REACHED, "");
    format!("{message}; {still}")
}

/// After the end: the agents forget, claims and labels come off, the finalizer goes. postStart hooks may
/// still run.
pub fn clean_up(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of_ended(&observed.migration, now);
    draft.hooks(observed);
    let status = draft.done();
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
    if references(&observed.migration, None).is_some() {
        // Not with the finalizer: what becomes of the pod's owner is no matter of the Migration any more,
        // and a node may be silent for long.
        actions.push(Action::DropWitness);
        done = false;
    }
    let target_works = observed.target.report().is_some_and(|report| !report.closed);
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
        // The target's record is kept for as long as there is a pod that loses.
        let needed = role == Role::Target && loses(observed) && observed.target_pod.is_some();
        if let Side::Reporting(report) = observed.side(role)
            && report.closed
            && !needed
        {
            actions.push(Action::Forget(role));
        }
    }
    if observed.claim_held() {
        actions.push(Action::UnclaimSource);
        done = false;
    }
    if loses(observed) {
        if observed.target.is_done(observed.target_node_gone)
            && let Some((action, _)) = target_goes(observed)
        {
            actions.extend(action);
        }
        done &= observed.target_pod.is_none();
    } else if observed.target_pod.as_ref().is_some_and(|pod| {
        let labels = pod.metadata.labels.as_ref();
        claimed_by(pod, observed.uid())
            || labels.is_some_and(|l| l.contains_key(names::MIGRATION_LABEL))
    }) {
        // While a hook runs the pod cannot be moved again.
        if !target_works {
            actions.push(Action::UnclaimTarget);
        }
        done = false;
    }
    let lawful = may_remove_finalizer(
        observed.recorded(),
        observed.source_word(),
        observed.target_word(),
        observed.source_node_gone,
        observed.target_node_gone,
    );
    if observed.manifest.is_some() || observed.name_is_held {
        actions.push(Action::FreeName);
        done = false;
    }
    if done && lawful {
        actions.push(Action::RemoveFinalizer);
        return Plan { status, record: None, actions, again: None };
    }
    // Forgetting is quick; a node that does not answer, or is at work, tells when it does or is not.
    let silent =
        Role::BOTH.iter().any(|role| matches!(observed.side(*role), Side::Unreachable { .. }));
    let again = if silent || target_works { LOOK_AGAIN } else { Duration::from_millis(500) };
    Plan { status, record: None, actions, again: Some(again) }
}

/// It ended without the target.
fn loses(observed: &Observed) -> bool {
    // After the Commit of a sequential hand-over the pod that was made again is the pod, wherever.
    let made_again =
        observed.is_sequential() && observed.recorded().decision == Some(Decision::Commit);
    observed.status().step != Some(Step::Succeeded) && !made_again
}
