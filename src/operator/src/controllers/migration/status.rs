//! Writing the status: the write-once fields by `replaceStatus` with the resourceVersion of the
//! read that the plan was made of, everything else by a patch that is left out when nothing
//! changed. Both fail with a conflict if somebody else wrote in between.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Map, Value, json};
use transship_api::conditions as c;
use transship_api::{Decision, Migration, MigrationStatus, Resolution, duration};
use transship_core::migration::plan::Record;
use transship_core::migration::{Plan, events};
use transship_protocol as protocol;

use super::Error;
use crate::context::Context;
use crate::metrics::Outcome;

/// Fields that only [`Record`]s write.
const WRITTEN_ONCE: [&str; 3] = ["decision", "resumedAt", "resolution"];

/// Writes what the plan says about the status.
pub async fn write(migration: &Migration, plan: &Plan, context: &Context) -> Result<(), Error> {
    match plan.record {
        Some(record) => replace(migration, plan.status.clone(), record, context).await?,
        None => patch(migration, &plan.status, context).await?,
    }
    Ok(())
}

/// Patches the status if it changed.
pub async fn patch(
    migration: &Migration,
    status: &MigrationStatus,
    context: &Context,
) -> Result<(), Error> {
    let old = migration.status.as_ref().map(serde_json::to_value).transpose()?;
    let Some(change) = difference(old.unwrap_or_default(), serde_json::to_value(status)?) else {
        return Ok(());
    };
    let body = json!({
        "metadata": {"resourceVersion": migration.resource_version()},
        "status": change,
    });
    api(migration, context)
        .patch_status(&migration.name_any(), &PatchParams::default(), &Patch::Merge(body))
        .await
        .map_err(Error::api("write the status"))?;
    tell(migration, status, context).await;
    Ok(())
}

async fn replace(
    migration: &Migration,
    mut status: MigrationStatus,
    record: Record,
    context: &Context,
) -> Result<(), Error> {
    match record {
        Record::Decision(protocol::Decision::Commit) => status.decision = Some(Decision::Commit),
        Record::Decision(protocol::Decision::Abort) => status.decision = Some(Decision::Abort),
        Record::ResumedAt(at) => status.resumed_at = Some(MicroTime(at)),
        Record::Resolution(protocol::Resolution::SourceResumes) => {
            status.resolution = Some(Resolution::SourceResumes);
        }
    }
    let mut object = migration.clone();
    object.status = Some(status.clone());
    api(migration, context)
        .replace_status(&migration.name_any(), &PostParams::default(), &object)
        .await
        .map_err(Error::api("record the decision"))?;
    tell(migration, &status, context).await;
    Ok(())
}

fn api(migration: &Migration, context: &Context) -> Api<Migration> {
    Api::namespaced(context.client.clone(), &migration.namespace().unwrap_or_default())
}

/// The fields that changed, as a merge patch; `None` when none did. The write-once fields are left
/// out, whatever they say.
fn difference(mut old: Value, mut new: Value) -> Option<Value> {
    for fields in [&mut old, &mut new].into_iter().filter_map(Value::as_object_mut) {
        fields.retain(|key, _| !WRITTEN_ONCE.contains(&key.as_str()));
    }
    merge_patch(old, new)
}

/// What makes the one of the other (RFC 7396); `None` when they are alike. A field within a field that
/// is there no more has to be said to be null too, or it stays.
fn merge_patch(old: Value, new: Value) -> Option<Value> {
    let (mut old, new) = match (old, new) {
        (Value::Object(old), Value::Object(new)) => (old, new),
        (Value::Null, Value::Object(new)) => (Map::new(), new),
        (old, new) => return (old != new).then_some(new),
    };
    let mut change = Map::new();
    for (key, value) in new {
        let before = old.remove(&key);
        // An empty object that was not there is something new all the same.
        let is_new = before.is_none() && value.is_object();
        match merge_patch(before.unwrap_or_default(), value) {
            Some(value) => _ = change.insert(key, value),
            None if is_new => _ = change.insert(key, json!({})),
            None => {}
        }
    }
    change.extend(old.into_iter().map(|(key, _)| (key, Value::Null)));
    (!change.is_empty()).then_some(Value::Object(change))
}

/// Events and metrics of what has changed. In a task of its own: nothing waits for it, least of
/// all a frozen application.
async fn tell(before: &Migration, after: &MigrationStatus, context: &Context) {
    let notes = events::between(before.status.as_ref(), after);
    let was_final = before.status.as_ref().and_then(|s| s.step).is_some_and(|s| s.is_final());
    if !was_final && after.step.is_some_and(|s| s.is_final()) {
        count(after, context);
    }
    if notes.is_empty() {
        return;
    }
    let mut migration = before.clone();
    migration.status = Some(after.clone());
    let events = context.events.clone();
    tokio::spawn(async move { events.publish(&migration, notes).await });
}

fn count(status: &MigrationStatus, context: &Context) {
    let metrics = &context.metrics;
    let reason = c::find(&status.conditions, c::SUCCEEDED).map(|c| c.reason.clone());
    let phase = status.phase.map(|p| format!("{p:?}")).unwrap_or_default();
    let outcome = Outcome { phase, reason: reason.unwrap_or_default() };
    metrics.ended.get_or_create(&outcome).inc();
    if let Some(downtime) = status.downtime.as_deref().and_then(|d| duration::parse(d).ok()) {
        metrics.downtime.observe(downtime.as_secs_f64());
    }
    if let Some(bytes) = status.bytes_transferred.and_then(|b| u64::try_from(b).ok()) {
        metrics.transferred.inc_by(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written_and_never_a_write_once_field() {
        let old =
            json!({"step": "Voting", "address": "10.0.0.1", "frozenAt": "x", "decision": "Commit"});
        let new = json!({"step": "Committed", "address": "10.0.0.1", "resumedAt": "y"});
        assert_eq!(
            difference(old.clone(), new),
            Some(json!({"step": "Committed", "frozenAt": null}))
        );
        assert_eq!(difference(old.clone(), old), None);
        assert_eq!(
            difference(Value::Null, json!({"step": "Pending"})),
            Some(json!({"step": "Pending"}))
        );
    }

    #[test]
    fn what_is_no_more_within_a_field_goes() {
        let old = json!({"target": {"node": "a", "podUID": "1"}, "rounds": [1]});
        let new = json!({"target": {"node": "a"}, "rounds": [1], "forecast": {}});
        let change = json!({"target": {"podUID": null}, "forecast": {}});
        assert_eq!(difference(old, new), Some(change));
    }
}
