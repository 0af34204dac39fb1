//! `describe`: one Migration as a person wants to read it, with its timeline.

use anyhow::Result;
use clap::Args as ClapArgs;
use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{Api, Client, ResourceExt, api::ListParams};
use transship_api::{Migration, PodRef, Step, conditions};

use crate::{
    Outcome,
    connect::explain,
    progress::{finding, message},
    table::{self, or_dash},
};

/// `kubectl transship describe NAME`.
#[derive(ClapArgs)]
pub struct Args {
    /// Name of the migration.
    #[arg(value_name = "MIGRATION")]
    name: String,
}

/// Runs the command.
pub async fn run(args: Args, client: Client, namespace: &str) -> Result<Outcome> {
    let name = args.name.rsplit('/').next().unwrap_or(&args.name);
    let api: Api<Migration> = Api::namespaced(client.clone(), namespace);
    let migration = api
        .get(name)
        .await
        .map_err(|error| explain(error, "list what there is with `kubectl get migrations`"))?;
    let selector = format!(
        "involvedObject.kind=Migration,involvedObject.uid={}",
        migration.uid().unwrap_or_default()
    );
    let events: Api<Event> = Api::namespaced(client, namespace);
    let events = events.list(&ListParams::default().fields(&selector)).await?.items;
    print!("{}", describe(&migration, &events));
    Ok(Outcome::Done)
}

fn describe(migration: &Migration, events: &[Event]) -> String {
    let status = migration.status.clone().unwrap_or_default();
    let side = |side: &Option<PodRef>| {
        side.as_ref().map_or_else(
            || "-".to_owned(),
            |side| format!("{} (pod {})", or_dash(Some(&side.node)), or_dash(Some(&side.pod_name))),
        )
    };
    let mode = status.chosen_mode.unwrap_or(migration.spec.mode);
    let network = status.chosen_network.unwrap_or(migration.spec.network);
    let addresses: Vec<String> = status.address.into_iter().chain(status.other_addresses).collect();
    let mut text = String::new();
    for (label, value) in [
        ("Name", migration.name_any()),
        ("Pod", migration.spec.pod_name.clone()),
        ("From", side(&status.source)),
        ("To", side(&status.target)),
        ("Address", or_dash(Some(&addresses.join(", ")))),
        ("Mode", format!("{mode:?}, network {network:?}")),
        ("Choice", or_dash(status.choice_message.as_deref())),
        ("Step", status.step.map_or("Pending", Step::as_str).to_owned()),
        ("Decision", status.decision.map_or("-".to_owned(), |decision| format!("{decision:?}"))),
        ("Stood still", or_dash(status.downtime.as_deref())),
        ("Bytes", bytes(status.bytes_total, status.bytes_transferred)),
    ] {
        text += &format!("{label:<12} {value}\n");
    }
    for violation in &status.violations {
        text += &format!("{:<12} {}\n", "Refused", finding(violation));
    }
    text += "\nTimeline\n";
    text += &timeline(migration, events);
    text += "\nConditions\n";
    let rows: Vec<Vec<String>> = conditions::MIGRATION_TYPES
        .iter()
        .chain([&conditions::HOOKS_RUN])
        .filter_map(|type_| status.conditions.iter().find(|condition| condition.type_ == *type_))
        .map(|condition| {
            vec![
                format!("  {}", condition.type_),
                condition.status.clone(),
                condition.reason.clone(),
                message(&status.violations, condition).to_owned(),
            ]
        })
        .collect();
    text += &table::format(&["  TYPE", "STATUS", "REASON", "MESSAGE"], &rows);
    text
}

fn bytes(total: Option<i64>, sent: Option<i64>) -> String {
    match (total, sent) {
        (Some(total), Some(sent)) => format!("{} MiB, sent as {} MiB", total >> 20, sent >> 20),
        (Some(total), None) => format!("{} MiB", total >> 20),
        _ => "-".to_owned(),
    }
}

/// What happened when, counted from the creation.
fn timeline(migration: &Migration, events: &[Event]) -> String {
    let status = migration.status.clone().unwrap_or_default();
    let mut points: Vec<(Timestamp, String)> = Vec::new();
    let created = migration.creation_timestamp().map(|time| time.0);
    points.extend(created.map(|time| (time, "created".to_owned())));
    points.extend(status.frozen_at.map(|time| (time.0, "source frozen".to_owned())));
    points.extend(status.resumed_at.map(|time| (time.0, "target runs".to_owned())));
    points.extend(status.completion_time.map(|time| (time.0, "completed".to_owned())));
    points.extend(events.iter().filter_map(|event| {
        let time = event
            .event_time
            .as_ref()
            .map(|time| time.0)
            .or_else(|| event.first_timestamp.as_ref().map(|time| time.0))?;
        let reason = event.reason.clone().unwrap_or_default();
        Some((time, format!("{reason}: {}", event.message.clone().unwrap_or_default())))
    }));
    points.sort_by_key(|(time, _)| *time);
    let Some(start) = points.first().map(|(time, _)| *time) else { return String::new() };
    points
        .iter()
        .map(|(time, what)| {
            let seconds = time.duration_since(start).as_secs_f64();
            format!("  {seconds:>8.3} s  {what}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
    use transship_api::{MigrationSpec, MigrationStatus};

    #[test]
    fn a_finding_is_told_once_and_so_is_what_was_chosen() {
        let mut migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
        let message = "IoUring (container web): it uses io_uring; do without";
        let condition = |type_: &str| {
            serde_json::json!({"type": type_, "status": "False", "reason": "PreflightFailed",
                "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let mut status = serde_json::json!({
            "choiceMessage": "the network is flat",
            "conditions": [condition("Admitted"), condition("Succeeded")],
        });
        migration.status = serde_json::from_value(status.clone()).unwrap();
        let text = describe(&migration, &[]);
        assert!(text.contains("Choice       the network is flat\n"), "{text}");
        assert_eq!(text.matches(message).count(), 2, "there is no list: {text}");
        status["violations"] = serde_json::json!([{"check": "IoUring", "container": "web",
            "message": "it uses io_uring", "remedy": "do without"}]);
        migration.status = serde_json::from_value(status).unwrap();
        let text = describe(&migration, &[]);
        let listed = "Refused      IoUring (container web): it uses io_uring. do without\n";
        assert!(text.contains(listed), "{text}");
        assert_eq!(text.matches("it uses io_uring").count(), 1, "{text}");
    }

    #[test]
    fn the_timeline_counts_from_the_creation() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let mut migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
        migration.metadata.creation_timestamp = Some(Time(at(1_000)));
        migration.status = Some(MigrationStatus {
            frozen_at: Some(MicroTime(at(2_500))),
            resumed_at: Some(MicroTime(at(2_750))),
            ..MigrationStatus::default()
        });
        assert_eq!(
            timeline(&migration, &[]),
            "     0.000 s  created\n     1.500 s  source frozen\n     1.750 s  target runs\n"
        );
    }
}
