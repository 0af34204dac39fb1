//! How an observation is written into a Migration's status.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use transship_api::conditions::{self as c, ConditionStatus, add_missing, reasons, set_condition};
use transship_api::{Migration, MigrationStatus, Step, duration};

use super::state::{Observed, Role, Stage};
use crate::target_pod::is_sidecar;

/// A status in the making.
pub(crate) struct Draft {
    status: MigrationStatus,
    generation: Option<i64>,
    now: Timestamp,
}

impl Draft {
    /// Begins with what is there; every known condition is added.
    pub(crate) fn of(migration: &Migration, now: Timestamp) -> Self {
        let mut status = migration.status.clone().unwrap_or_default();
        let generation = migration.metadata.generation;
        add_missing(&mut status.conditions, &c::MIGRATION_TYPES, generation, now);
        status.observed_generation = generation;
        Self { status, generation, now }
    }

    /// Begins with what is there, and adds nothing to it: for a migration that has ended.
    pub(crate) fn of_ended(migration: &Migration, now: Timestamp) -> Self {
        let status = migration.status.clone().unwrap_or_default();
        Self { status, generation: migration.metadata.generation, now }
    }

    /// The time as of which it is written.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// Sets a condition.
    pub(crate) fn set(
        &mut self,
        type_: &str,
        status: ConditionStatus,
        reason: &str,
        message: impl AsRef<str>,
    ) -> &mut Self {
        set_condition(
            &mut self.status.conditions,
            type_,
            status,
            reason,
            message.as_ref(),
            self.generation,
            self.now,
        );
        self
    }

    /// Sets the step (and the phase with it); it never goes back.
    pub(crate) fn step(&mut self, step: Step) -> &mut Self {
        if self.status.step.is_none_or(|s| s < step) {
            self.status.set_step(step);
        }
        self
    }

    /// What is waited for: `Succeeded` stays Unknown and says it.
    pub(crate) fn waiting(&mut self, reason: &str, message: impl AsRef<str>) -> &mut Self {
        self.in_progress(reason, message.as_ref());
        self.set(c::STALLED, ConditionStatus::False, reasons::IN_PROGRESS, "")
    }

    /// As [`Draft::waiting`], for something that needs somebody's help.
    pub(crate) fn stalled(&mut self, reason: &str, message: impl AsRef<str>) -> &mut Self {
        self.in_progress(reason, message.as_ref());
        self.set(c::STALLED, ConditionStatus::True, reason, message)
    }

    /// As [`Draft::waiting`], while somebody's help is needed as before.
    pub(crate) fn in_progress(&mut self, reason: &str, message: &str) -> &mut Self {
        self.set(c::SUCCEEDED, ConditionStatus::Unknown, reason, message);
        self.set(c::RECONCILING, ConditionStatus::True, reason, message)
    }

    /// The end. Conditions that were not reached say so.
    pub(crate) fn end(
        &mut self,
        step: Step,
        succeeded: bool,
        reason: &str,
        message: impl AsRef<str>,
    ) -> &mut Self {
        self.step(step);
        for type_ in [c::ADMITTED, c::SCHEDULED, c::COPIED, c::FROZEN, c::RESTORED] {
            if c::has_status(&self.status.conditions, type_, ConditionStatus::Unknown) {
                self.set(type_, ConditionStatus::False, reasons::NOT_REACHED, "");
            }
        }
        self.set(c::SUCCEEDED, succeeded.into(), reason, message);
        self.set(c::RECONCILING, ConditionStatus::False, reasons::COMPLETED, "");
        self.set(c::STALLED, ConditionStatus::False, reasons::COMPLETED, "");
        if self.status.completion_time.is_none() {
            self.status.completion_time = Some(Time(whole_seconds(self.now)));
        }
        self
    }

    /// Writes what the sides report: freeze, restore, bytes.
    pub(crate) fn sides(&mut self, observed: &Observed) -> &mut Self {
        let containers = count(observed);
        if let Some(source) = observed.source.report() {
            if let Some(at) = source.frozen_at {
                self.status.frozen_at.get_or_insert(MicroTime(at));
            }
            if source.bytes_total > 0 {
                self.status.bytes_total = i64::try_from(source.bytes_total).ok();
            }
            if source.bytes_sent > 0 {
                self.status.bytes_transferred = i64::try_from(source.bytes_sent).ok();
            }
            if (Stage::Frozen..=Stage::Voted).contains(&source.stage) {
                let node = observed.node(Role::Source);
                let message = match observed.is_cold() {
                    true => format!("{containers} on {node} ended"),
                    false => format!("{containers} on {node} frozen at one point"),
                };
                self.set(c::FROZEN, ConditionStatus::True, reasons::CONTAINERS_FROZEN, message);
            }
        }
        if let Some(target) = observed.target.report()
            && (Stage::Restored..=Stage::Voted).contains(&target.stage)
        {
            let node = observed.node(Role::Target);
            let on_trial = observed.is_sequential() && target.pod_uid != made_again(&self.status);
            let message = match on_trial {
                true => format!("{containers} restored on {node} on trial and held"),
                false => format!("{containers} restored on {node} and held"),
            };
            self.set(c::RESTORED, ConditionStatus::True, reasons::CONTAINERS_HELD, message);
        }
        self.hooks(observed)
    }

    /// Writes what became of the pod's postStart hooks: a failure at once, a good end when all have run.
    pub(crate) fn hooks(&mut self, observed: &Observed) -> &mut Self {
        let Some(target) = observed.target.report().filter(|r| !r.hooks.is_empty()) else {
            return self;
        };
        let node = observed.node(Role::Target);
        let failed: Vec<String> = target
            .hooks
            .iter()
            .filter(|(_, why)| !why.is_empty())
            .map(|(container, why)| format!("container {container}: {why}"))
            .collect();
        if !failed.is_empty() {
            let message = format!(
                "the pod runs on {node}, and a postStart hook failed there: {}",
                failed.join("; ")
            );
            self.set(c::HOOKS_RUN, ConditionStatus::False, reasons::HOOK_FAILED, message);
        } else if target.closed {
            let containers: Vec<&str> = target.hooks.keys().map(String::as_str).collect();
            let message = format!(
                "the postStart hook of container {} was run on {node}",
                containers.join(", ")
            );
            self.set(c::HOOKS_RUN, ConditionStatus::True, reasons::HOOKS_ENDED_WELL, message);
        }
        self
    }

    /// Writes how long the application stood still until `thawed`, and gives it back as text.
    pub(crate) fn downtime(&mut self, thawed: Option<Timestamp>) -> Option<String> {
        if self.status.downtime.is_none() {
            let frozen = self.status.frozen_at.as_ref()?.0;
            let frozen_for = Duration::try_from(thawed?.duration_since(frozen)).ok()?;
            self.status.downtime = Some(duration::format(frozen_for));
        }
        self.status.downtime.as_deref().and_then(|d| duration::parse(d).ok()).map(for_people)
    }

    /// Changes what has no function of its own here.
    pub(crate) fn with(&mut self, change: impl FnOnce(&mut MigrationStatus)) -> &mut Self {
        change(&mut self.status);
        self
    }

    /// The finished status.
    pub(crate) fn done(self) -> MigrationStatus {
        self.status
    }
}

/// UID of the pod that was made again under the source's name; empty if there is none.
fn made_again(status: &MigrationStatus) -> &str {
    match (&status.source, &status.target) {
        (Some(source), Some(target)) if source.pod_name == target.pod_name => &target.pod_uid,
        _ => "",
    }
}

/// `184 ms` or `2.3 s`.
pub(crate) fn for_people(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..10_000 => format!("{millis} ms"),
        millis => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
    }
}

/// `2 containers`, by the source's manifest.
pub(crate) fn count(observed: &Observed) -> String {
    let pod = observed.source_pod.as_ref().or(observed.target_pod.as_ref());
    let count = pod.and_then(|pod| pod.spec.as_ref()).map_or(0, |spec| {
        let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).count();
        spec.containers.len() + sidecars
    });
    match count {
        0 => "the containers".to_owned(),
        1 => "1 container".to_owned(),
        count => format!("{count} containers"),
    }
}

pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
