//! How a migration ended: read from what runs where, and held against what the object says.

use std::fmt;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use transship_api::{Step, conditions::reasons};

use super::nodes::has_ended_once;
use crate::cluster::{Pod, condition};

/// What became of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    /// It goes on, on the target, with memory and connections.
    Moved,
    /// It goes on where it was, with memory and connections.
    Stayed,
    /// It starts afresh where it was: its node went down, or its container was ended.
    Restarted,
    /// It was moved, and started afresh there: that node went down, or its container was ended.
    RestartedThere,
    /// It goes on where it was, though it had been committed: the target was lost.
    TargetLost,
    /// Its owner made another pod.
    Replaced,
    /// It is gone, as somebody wanted.
    Gone,
}

impl Outcome {
    /// Memory and connections went on.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Moved | Self::Stayed)
    }

    /// The target may have run.
    pub fn may_have_run_on_the_target(self) -> bool {
        !matches!(self, Self::Stayed | Self::Restarted)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Moved => "moved",
            Self::Stayed => "stayed",
            Self::Restarted => "restarted",
            Self::RestartedThere => "moved, then restarted",
            Self::TargetLost => "target lost, source goes on",
            Self::Replaced => "replaced by its owner",
            Self::Gone => "gone as wanted",
        })
    }
}

/// What can be seen at one time.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The Migration as it is; as it was seen last when it is gone.
    pub migration: &'a Value,
    /// There is no such object any more.
    pub is_gone: bool,
    /// Pods of the application that are not being deleted.
    pub pods: &'a [Value],
    /// The pod as it was before.
    pub source: &'a Pod,
    /// UID of the target pod, where one was recorded.
    pub target_uid: &'a str,
    /// Somebody wanted the Migration to go.
    pub may_be_gone: bool,
}

impl Seen<'_> {
    /// The outcome, or why it is not settled.
    pub fn outcome(&self) -> Result<Outcome> {
        if self.is_gone {
            ensure!(self.may_be_gone, "the Migration is gone");
        } else {
            has_ended(self.migration)?;
        }
        let outcome = self.place()?;
        if !self.is_gone {
            tells(self.migration, outcome)?;
        }
        Ok(outcome)
    }

    fn place(&self) -> Result<Outcome> {
        let pod = match self.pods {
            [] => return Ok(Outcome::Gone),
            [pod] => pod,
            pods => bail!("{} pods", pods.len()),
        };
        let now = Pod::of(pod);
        let ready = condition(pod, "Ready");
        ensure!(ready.0 == "True", "{} on {} is not Ready: {}", now.name, now.node, ready.2);
        let afresh = has_ended_once(pod);
        if now.uid == self.target_uid {
            // After a loss of power its node gives it another one, as it does any pod.
            ensure!(
                afresh || now.ip == self.source.ip,
                "the address went from {} to {}",
                self.source.ip,
                now.ip
            );
            Ok(if afresh { Outcome::RestartedThere } else { Outcome::Moved })
        } else if now.uid != self.source.uid {
            Ok(Outcome::Replaced)
        } else if !self.migration["status"]["resolution"].is_null() {
            Ok(Outcome::TargetLost)
        } else {
            Ok(if afresh { Outcome::Restarted } else { Outcome::Stayed })
        }
    }
}

fn has_ended(migration: &Value) -> Result<()> {
    let (succeeded, reason, message) = condition(migration, "Succeeded");
    let step = &migration["status"]["step"];
    ensure!(matches!(succeeded.as_str(), "True" | "False"), "at {step}, {reason}: {message}");
    let step: Step = serde_json::from_value(step.clone())?;
    ensure!(step.is_final(), "Succeeded is {succeeded} at {step}");
    ensure!(condition(migration, "Reconciling").0 == "False", "it is over and still Reconciling");
    Ok(())
}

/// The object says what happened.
fn tells(migration: &Value, outcome: Outcome) -> Result<()> {
    let status = &migration["status"];
    let (succeeded, reason, message) = condition(migration, "Succeeded");
    let says =
        format!("{} is {}: {succeeded}, {reason}: {message}", status["phase"], status["decision"]);
    let is = |field: &str, wanted: &str| -> Result<()> {
        ensure!(status[field] == wanted, "{outcome}, but {field} is {} ({says})", status[field]);
        Ok(())
    };
    let none = |field: &str| -> Result<()> {
        ensure!(status[field].is_null(), "{outcome}, but {field} is {} ({says})", status[field]);
        Ok(())
    };
    match outcome {
        Outcome::Moved | Outcome::RestartedThere => {
            is("decision", "Commit")?;
            is("phase", "Succeeded")?;
            none("resolution")?;
            ensure!(succeeded == "True" && reason == reasons::MIGRATED, "{outcome}, but {says}");
            ensure!(!status["resumedAt"].is_null() && !status["downtime"].is_null(), "no downtime");
        }
        Outcome::Stayed | Outcome::Restarted => {
            ensure!(succeeded == "False", "{outcome}, but {says}");
            ensure!(status["decision"] != "Commit", "{outcome}, but {says}");
            let phase = status["phase"].as_str();
            ensure!(matches!(phase, Some("RolledBack" | "Failed")), "{outcome}, but {says}");
            none("resumedAt")?;
            none("resolution")?;
        }
        Outcome::TargetLost => {
            is("decision", "Commit")?;
            is("resolution", "SourceResumes")?;
            is("phase", "Failed")?;
            none("resumedAt")?;
            let is_lost = succeeded == "False" && reason == reasons::TARGET_LOST;
            ensure!(is_lost, "{outcome}, but {says}");
            ensure!(message.contains("in its state of "), "of when is not said ({says})");
        }
        // The pod is another matter by now. The Migration has ended, and says whether the target ran.
        Outcome::Replaced | Outcome::Gone => {
            let ran = !status["resumedAt"].is_null();
            ensure!((succeeded == "True") == ran, "{outcome}, but {says}");
            ensure!(!ran || status["decision"] == "Commit", "{outcome}, but {says}");
        }
    }
    ensure!(!reason.is_empty() && !message.is_empty(), "it does not say why ({says})");
    if outcome == Outcome::Stayed && !status["frozenAt"].is_null() {
        ensure!(!status["downtime"].is_null(), "it stood still, for how long is not said ({says})");
        let frozen = condition(migration, "Frozen");
        ensure!(frozen.0 == "False", "it goes on, but Frozen is {}: {}", frozen.0, frozen.2);
    }
    Ok(())
}

/// The object says that the pod's memory is lost, and of nothing that it goes on.
pub fn tells_of_loss(migration: &Value) -> Result<()> {
    let message = condition(migration, "Succeeded").2;
    ensure!(message.contains("memory is lost"), "its memory is lost, which is not said: {message}");
    let goes_on = ["go on", "goes on"].iter().any(|words| message.contains(words));
    ensure!(!goes_on, "its memory is lost, and something goes on: {message}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, restarts: u64) -> Value {
        let last =
            if restarts == 0 { json!({}) } else { json!({"terminated": {"reason": "Error"}}) };
        json!({"metadata": {"name": "p", "uid": uid}, "spec": {"nodeName": "node-a"},
            "status": {"podIP": "10.0.0.1",
                "containerStatuses": [{"restartCount": restarts, "lastState": last}],
                "conditions": [{"type": "Ready", "status": "True"}]}})
    }

    fn migration(step: &str, succeeded: &str, more: Value) -> Value {
        let reason = if succeeded == "True" { reasons::MIGRATED } else { "Because" };
        let mut status = json!({"step": step, "phase": step, "conditions": [
            {"type": "Succeeded", "status": succeeded, "reason": reason, "message": "of this"},
            {"type": "Reconciling", "status": "False"}]});
        let fields = more.as_object().cloned().unwrap_or_default();
        status.as_object_mut().unwrap().extend(fields);
        json!({"status": status})
    }

    fn seen(
        migration: &Value,
        pods: &[Value],
        may_be_gone: bool,
        is_gone: bool,
    ) -> Result<Outcome> {
        let source = Pod::of(&pod("s", 0));
        Seen { migration, is_gone, pods, source: &source, target_uid: "t", may_be_gone }.outcome()
    }

    fn outcome(migration: &Value, pods: &[Value]) -> Result<Outcome> {
        seen(migration, pods, false, false)
    }

    #[test]
    fn a_move_is_where_the_target_runs_and_the_object_says_so() {
        let told = json!({"decision": "Commit", "resumedAt": "now", "downtime": "1s"});
        let moved = migration("Succeeded", "True", told);
        assert_eq!(outcome(&moved, &[pod("t", 0)]).unwrap(), Outcome::Moved);
        assert_eq!(outcome(&moved, &[pod("t", 1)]).unwrap(), Outcome::RestartedThere);
        let mut tried_twice = pod("t", 1);
        tried_twice["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"] =
            json!("StartError");
        assert_eq!(outcome(&moved, &[tried_twice]).unwrap(), Outcome::Moved);
        outcome(&moved, &[pod("s", 0)]).unwrap_err();
        outcome(&moved, &[pod("s", 0), pod("t", 0)]).unwrap_err();
        seen(&moved, &[pod("t", 0)], false, true).unwrap_err();
    }

    #[test]
    fn of_one_that_is_gone_what_it_said_last_tells_whether_the_target_was_lost() {
        let gone = |more: Value| {
            let last = migration("SourceResuming", "Unknown", more);
            seen(&last, &[pod("s", 0)], true, true).unwrap()
        };
        let lost = json!({"decision": "Commit", "resolution": "SourceResumes"});
        assert_eq!(gone(lost), Outcome::TargetLost);
        assert_eq!(gone(json!({"decision": "Abort"})), Outcome::Stayed);
        assert_eq!(seen(&Value::Null, &[pod("s", 0)], true, true).unwrap(), Outcome::Stayed);
    }

    #[test]
    fn of_memory_that_is_lost_nothing_else_is_said() {
        let said = |message: &str| {
            let told = json!({"type": "Succeeded", "status": "False", "message": message});
            tells_of_loss(&json!({"status": {"conditions": [told]}}))
        };
        said("its shim has died on node-a, so the pod's memory is lost").unwrap();
        said("froze 1 container for 90 ms; they go on on node-a").unwrap_err();
        said("it goes on on node-a; the pod's memory is lost").unwrap_err();
        said("it gave up").unwrap_err();
    }

    #[test]
    fn a_rollback_says_for_how_long_the_pod_stood_still() {
        let aborted = migration("RolledBack", "False", json!({"decision": "Abort"}));
        assert_eq!(outcome(&aborted, &[pod("s", 0)]).unwrap(), Outcome::Stayed);
        assert_eq!(outcome(&aborted, &[pod("s", 1)]).unwrap(), Outcome::Restarted);
        assert_eq!(outcome(&aborted, &[pod("x", 0)]).unwrap(), Outcome::Replaced);
        let boasts = migration("Succeeded", "True", json!({"decision": "Commit"}));
        outcome(&boasts, &[pod("x", 0)]).unwrap_err();
        outcome(&boasts, &[]).unwrap_err();
        assert_eq!(outcome(&aborted, &[]).unwrap(), Outcome::Gone);
        outcome(&aborted, &[pod("t", 0)]).unwrap_err();
        let silent = json!({"decision": "Abort", "frozenAt": "then"});
        outcome(&migration("RolledBack", "False", silent), &[pod("s", 0)]).unwrap_err();
        let running = migration("Voting", "Unknown", json!({}));
        assert!(outcome(&running, &[pod("s", 0)]).unwrap_err().to_string().contains("Voting"));
    }
}
