//! Watching one Migration: a live line on a terminal, plain lines elsewhere.

use std::{io::IsTerminal, time::Duration};

use anyhow::Result;
use futures::{Stream, TryStreamExt, pin_mut};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, runtime::watcher};
use transship_api::{Migration, MigrationStatus, Step, Violation, conditions};

use crate::Outcome;

/// The state of a Migration at each change; `None` when it does not exist.
fn changes(
    api: &Api<Migration>,
    name: &str,
) -> impl Stream<Item = Result<Option<Migration>, watcher::Error>> {
    watcher::watch_object(api.clone(), name)
}

/// Shows each step until the Migration has ended, at most `patience`.
pub async fn until_ended(api: &Api<Migration>, name: &str, patience: Duration) -> Result<Outcome> {
    let display = Display::new(name);
    let ended = async {
        let stream = changes(api, name);
        pin_mut!(stream);
        let mut last = None;
        while let Some(migration) = stream.try_next().await? {
            let Some(migration) = migration else {
                display.finish(&format!("{name} was deleted"));
                return Ok(Outcome::Failed);
            };
            let status = migration.status.unwrap_or_default();
            if last != status.step {
                last = status.step;
                display.step(&status);
            }
            if status.step.is_some_and(Step::is_final) {
                display.finish(&summary(name, &status));
                return Ok(if status.step == Some(Step::Succeeded) {
                    Outcome::Done
                } else {
                    Outcome::Failed
                });
            }
        }
        Ok(Outcome::Failed)
    };
    match tokio::time::timeout(patience, ended).await {
        Ok(outcome) => outcome,
        Err(_) => {
            display.finish(&format!(
                "{name} still runs after {patience:?}; look with `kubectl transship describe {name}`"
            ));
            Ok(Outcome::TimedOut)
        }
    }
}

/// The Migration once it has ended; none if it has not within `patience`.
pub async fn end_of(
    api: &Api<Migration>,
    name: &str,
    patience: Duration,
) -> Result<Option<Migration>> {
    let ended = async {
        let stream = changes(api, name);
        pin_mut!(stream);
        while let Some(migration) = stream.try_next().await? {
            let Some(migration) = migration else { anyhow::bail!("{name} was deleted") };
            let step = migration.status.as_ref().and_then(|status| status.step);
            if step.is_some_and(Step::is_final) {
                return Ok(Some(migration));
            }
        }
        Ok(None)
    };
    tokio::time::timeout(patience, ended).await.unwrap_or(Ok(None))
}

/// Waits until the object is gone, at most `patience`.
pub async fn until_gone(api: &Api<Migration>, name: &str, patience: Duration) -> Result<Outcome> {
    let gone = async {
        let stream = changes(api, name);
        pin_mut!(stream);
        while let Some(migration) = stream.try_next().await? {
            if migration.is_none() {
                return Ok(Outcome::Done);
            }
        }
        Ok(Outcome::Failed)
    };
    match tokio::time::timeout(patience, gone).await {
        Ok(outcome) => outcome,
        Err(_) => {
            eprintln!("{name} is still there after {patience:?}");
            Ok(Outcome::TimedOut)
        }
    }
}

/// One sentence about an ended Migration.
pub fn summary(name: &str, status: &MigrationStatus) -> String {
    let node = |side: &Option<transship_api::PodRef>| {
        side.as_ref().map_or_else(|| "?".to_owned(), |side| side.node.clone())
    };
    let of = |type_| conditions::find(&status.conditions, type_);
    let succeeded = of(conditions::SUCCEEDED);
    let restored = of(conditions::RESTORED);
    let is_whole = restored.is_none_or(|it| it.reason != conditions::reasons::MEMORY_LOST);
    let runs_there = status.target.is_some() && status.resumed_at.is_some();
    match status.step {
        Some(Step::Succeeded) if runs_there && is_whole => {
            let pod = status.target.as_ref().map(|side| side.pod_name.as_str()).unwrap_or_default();
            format!(
                "{name}: {} → {}, now pod {pod}; stood still for {}",
                node(&status.source),
                node(&status.target),
                status.downtime.as_deref().unwrap_or("?"),
            )
        }
        _ => {
            let findings = &status.violations;
            let why = succeeded.map_or("ended", |condition| message(findings, condition));
            let listed: String = findings.iter().map(|v| format!("\n  {}", finding(v))).collect();
            format!("{name}: {why}{listed}")
        }
    }
}

/// A condition's message; only a hint where it repeats findings that are listed.
pub fn message<'a>(findings: &[Violation], condition: &'a Condition) -> &'a str {
    match condition.reason.as_str() {
        conditions::reasons::PREFLIGHT_FAILED if !findings.is_empty() => {
            "refused for what is listed"
        }
        _ => &condition.message,
    }
}

/// A finding in one line.
pub fn finding(violation: &Violation) -> String {
    let place = match violation.container.as_str() {
        "" => String::new(),
        container => format!(" (container {container})"),
    };
    format!("{}{place}: {}. {}", violation.check, violation.message, violation.remedy)
}

/// A spinner on a terminal, lines elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    name: String,
}

impl Display {
    fn new(name: &str) -> Display {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Display { bar, name: name.to_owned() }
    }

    fn step(&self, status: &MigrationStatus) {
        let step = status.step.map_or("Pending", Step::as_str);
        let text = format!("{}: {step}", self.name);
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => eprintln!("{text}"),
        }
    }

    fn finish(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{text}");
    }
}
