//! Writing the status: the write-once fields by `replaceStatus` with the resourceVersion of the
//! read that the plan was made of, everything else by a patch that is left out when nothing
//! changed. Both fail with a conflict if somebody else wrote in between.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use transship_api::conditions as c;
use transship_api::{Decision, Migration, MigrationStatus, Resolution, duration};
use transship_core::migration::plan::Record;
use transship_core::migration::{Plan, events, patch as fields};
use transship_protocol as protocol;

use super::Error;
use crate::context::Context;
use crate::metrics::Outcome;

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
    let new = serde_json::to_value(status)?;
    let Some(change) = fields::difference(old.unwrap_or_default(), new) else { return Ok(()) };
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
