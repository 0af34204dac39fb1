//! What a Migration says at any time, also in the middle of its course, held against what runs.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_api::{Decision, MigrationStatus, Step, migration::phase};

use crate::cluster::condition;

/// Which of a Migration's two pods run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The pod as it was before.
    pub source: bool,
    /// The one that it makes.
    pub target: bool,
}

/// Whether what it says is so. `may_be_down`: the source was ended by what happened, and not for the
/// migration.
pub fn tells(migration: &Value, running: Running, may_be_down: bool) -> Result<()> {
    let status: MigrationStatus = serde_json::from_value(migration["status"].clone())?;
    let step = status.step.context("it says nothing yet")?;
    ensure!(status.phase == Some(phase(step)), "phase {:?} at {step}", status.phase);
    has_conditions_of(migration, step)?;

    let may_run = status.decision == Some(Decision::Commit) && status.resolution.is_none();
    ensure!(may_run || !running.target, "the target runs at {step}, {:?}", status.decision);
    match source_runs(step) {
        Some(true) => ensure!(running.source || may_be_down, "the source does not run at {step}"),
        Some(false) => ensure!(!running.source, "the source runs at {step}"),
        None => {}
    }
    let (frozen, _, message) = condition(migration, "Frozen");
    ensure!(
        frozen != "True" || !running.source || goes_on(step),
        "the source runs at {step}, and is said to be frozen: {message}"
    );
    Ok(())
}

/// Whether the source runs at a step, as the phase says; none where it may be about to.
fn source_runs(step: Step) -> Option<bool> {
    match step {
        step if step < Step::Freezing => Some(true),
        step if goes_on(step) => None,
        Step::RolledBack | Step::Failed => None,
        _ => Some(false),
    }
}

/// The source is thawed, and what it had come to is told when that is over.
fn goes_on(step: Step) -> bool {
    matches!(step, Step::Aborting | Step::SourceResuming)
}

/// It is at work exactly as long as its step is not a final one.
fn has_conditions_of(migration: &Value, step: Step) -> Result<()> {
    let (succeeded, reason, message) = condition(migration, "Succeeded");
    let says = format!("Succeeded is {succeeded} at {step}, {reason}: {message}");
    ensure!((succeeded == "Unknown") != step.is_final(), "{says}");
    ensure!(!reason.is_empty() && !message.is_empty(), "it does not say why ({says})");
    let reconciling = condition(migration, "Reconciling").0;
    let wanted = if step.is_final() { "False" } else { "True" };
    ensure!(reconciling == wanted, "Reconciling is {reconciling} ({says})");
    let stalled = condition(migration, "Stalled").0;
    ensure!(!step.is_final() || stalled == "False", "it is over and Stalled is {stalled} ({says})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn migration(step: Step, succeeded: &str, more: &Value) -> Value {
        let reconciling = if succeeded == "Unknown" { "True" } else { "False" };
        let condition = |of: &str, status: &str| {
            json!({"type": of, "status": status, "reason": "Because", "message": "of this",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let mut status = json!({"step": step, "phase": phase(step), "conditions": [
            condition("Succeeded", succeeded), condition("Reconciling", reconciling),
            condition("Stalled", "False"), condition("Frozen", "Unknown")]});
        let fields = more.as_object().cloned().unwrap_or_default();
        status.as_object_mut().unwrap().extend(fields);
        json!({"status": status})
    }

    const NONE: Running = Running { source: false, target: false };
    const SOURCE: Running = Running { source: true, target: false };
    const TARGET: Running = Running { source: false, target: true };

    #[test]
    fn each_pod_runs_only_where_the_migration_says_so() {
        let nothing = json!({});
        let early = migration(Step::WaitingForTarget, "Unknown", &nothing);
        tells(&early, SOURCE, false).unwrap();
        tells(&early, NONE, false).unwrap_err();
        tells(&early, NONE, true).unwrap();
        let votes = migration(Step::Voting, "Unknown", &nothing);
        tells(&votes, NONE, false).unwrap();
        tells(&votes, SOURCE, true).unwrap_err();
        tells(&votes, TARGET, false).unwrap_err();
        let commit = json!({"decision": "Commit"});
        let committed = migration(Step::Committed, "Unknown", &commit);
        tells(&committed, TARGET, false).unwrap();
        tells(&committed, SOURCE, false).unwrap_err();
        let lost = json!({"decision": "Commit", "resolution": "SourceResumes"});
        let resumes = migration(Step::SourceResuming, "Unknown", &lost);
        tells(&resumes, SOURCE, false).unwrap();
        tells(&resumes, TARGET, false).unwrap_err();
        tells(&migration(Step::Succeeded, "True", &commit), TARGET, false).unwrap();
    }

    #[test]
    fn a_step_has_its_conditions_and_its_phase() {
        let aborted = json!({"decision": "Abort"});
        tells(&migration(Step::RolledBack, "False", &aborted), SOURCE, false).unwrap();
        tells(&migration(Step::RolledBack, "Unknown", &aborted), SOURCE, false).unwrap_err();
        tells(&migration(Step::Aborting, "False", &aborted), SOURCE, false).unwrap_err();
        let other = json!({"decision": "Abort", "phase": "Frozen"});
        tells(&migration(Step::RolledBack, "False", &other), SOURCE, false).unwrap_err();
        let mut frozen = migration(Step::RolledBack, "False", &aborted);
        frozen["status"]["conditions"][3]["status"] = "True".into();
        tells(&frozen, SOURCE, false).unwrap_err();
        tells(&json!({}), SOURCE, false).unwrap_err();
    }
}
