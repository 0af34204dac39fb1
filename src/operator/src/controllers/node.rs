//! Our Nodes, as far as they are the operator's: a node that does not report any more is not
//! Ready, a node that has left the cluster leaves our list, and both are counted.
//!
//! Silence is measured by our own clock, from the last change of the heartbeat that was seen here,
//! so that clocks need not agree and a new leader does not blame anybody for its own start.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{self as api, Role, names};

use super::migration::Error;
use crate::context::Context;
use crate::metrics::{KindReason, RoleLabel};
use crate::uninstall;

/// How often the nodes are looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// How long a cluster node must be gone before ours goes.
const LEAVE_AFTER: Duration = Duration::from_secs(30);

/// What is remembered of a node.
#[derive(Debug)]
struct Seen {
    heartbeat: Option<MicroTime>,
    changed: Instant,
    gone_since: Option<Instant>,
}

/// Looks at all nodes until `stop`. `ttl`: how long a node may be silent.
pub async fn run(context: Arc<Context>, ttl: Duration, stop: CancellationToken) {
    let mut seen: HashMap<String, Seen> = HashMap::new();
    let mut installation = None;
    loop {
        if installation.is_none() {
            // Until it is known no request is taken back.
            match uninstall::installation(&context.client).await {
                Ok(own) => installation = Some(own),
                Err(error) => tracing::warn!("this installation is not known yet: {error:#}"),
            }
        }
        for node in context.nodes.state() {
            if installation
                .as_deref()
                .is_some_and(|own| uninstall::is_of_former_installation(&node, own))
                && let Err(error) = take_request_back(&node, &context).await
            {
                tracing::warn!(
                    node = node.name_any(),
                    error = error.chain(),
                    "a node could not be looked after"
                );
            }
            if let Err(error) = look(&node, &mut seen, ttl, &context).await {
                let reason = error.reason();
                context.metrics.errors.get_or_create(&KindReason { kind: "node", reason }).inc();
                tracing::warn!(
                    node = node.name_any(),
                    error = error.chain(),
                    "a node could not be looked after"
                );
            }
        }
        seen.retain(|name, _| context.agents.node(name).is_some());
        count(&context);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// The agent may install its host side again.
async fn take_request_back(node: &api::Node, context: &Context) -> Result<(), Error> {
    let nodes: Api<api::Node> = Api::all(context.client.clone());
    let patch = json!({"metadata": {
        "uid": node.uid(),
        "annotations": {names::UNINSTALL: null, uninstall::ASKED_BY: null},
    }});
    nodes
        .patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(Error::api("take back the request to uninstall"))?;
    tracing::info!(
        node = node.name_any(),
        "took back a former installation's request to uninstall"
    );
    Ok(())
}

async fn look(
    node: &api::Node,
    seen: &mut HashMap<String, Seen>,
    ttl: Duration,
    context: &Context,
) -> Result<(), Error> {
    let name = node.name_any();
    let heartbeat = node.status.as_ref().and_then(|s| s.heartbeat_time.clone());
    let entry = seen.entry(name.clone()).or_insert_with(|| Seen {
        heartbeat: heartbeat.clone(),
        changed: Instant::now(),
        gone_since: None,
    });
    if entry.heartbeat != heartbeat {
        entry.heartbeat = heartbeat;
        entry.changed = Instant::now();
    }
    let gone = super::migration::node_gone(&name, context).await?;
    if !gone {
        entry.gone_since = None;
    } else if entry.gone_since.get_or_insert_with(Instant::now).elapsed() >= LEAVE_AFTER {
        return leave(node, context).await;
    }
    let silent = entry.changed.elapsed();
    match silence(node, silent, ttl) {
        Some(status) => write(node, &status, context).await,
        None => Ok(()),
    }
}

/// The status of a node that has been silent for longer than `ttl`, if it does not say so yet.
fn silence(node: &api::Node, silent: Duration, ttl: Duration) -> Option<api::NodeStatus> {
    if silent < ttl {
        return None;
    }
    let mut status = node.status.clone()?;
    let ready = c::find(&status.conditions, c::READY);
    // What the agent said about itself last, on purpose, stays.
    if ready.is_some_and(|r| {
        r.status != "True"
            && (r.reason == reasons::HEARTBEAT_MISSED || r.reason == reasons::UNINSTALLED)
    }) {
        return None;
    }
    let last = status.heartbeat_time.as_ref().map_or_else(
        || "never".to_owned(),
        |t| Timestamp::from_second(t.0.as_second()).unwrap_or(t.0).to_string(),
    );
    c::set_condition(
        &mut status.conditions,
        c::READY,
        ConditionStatus::False,
        reasons::HEARTBEAT_MISSED,
        &format!("the agent has not reported for {} seconds, last at {last}", ttl.as_secs()),
        node.metadata.generation,
        Timestamp::now(),
    );
    status.failure_count = Some(status.failure_count.unwrap_or(0).saturating_add(1));
    status.health_indicator = Some(0);
    Some(status)
}

async fn write(node: &api::Node, status: &api::NodeStatus, context: &Context) -> Result<(), Error> {
    let nodes: Api<api::Node> = Api::all(context.client.clone());
    let patch = json!({
        "metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
        "status": {
            "conditions": status.conditions,
            "failureCount": status.failure_count,
            "healthIndicator": status.health_indicator,
        },
    });
    match nodes.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await
    {
        Ok(_) => {
            tracing::warn!(node = node.name_any(), "the agent has fallen silent");
            Ok(())
        }
        // It has reported meanwhile, or is gone: the next look will see.
        Err(kube::Error::Api(answer)) if answer.is_conflict() || answer.is_not_found() => Ok(()),
        Err(error) => Err(Error::api("mark a node as silent")(error)),
    }
}

async fn leave(node: &api::Node, context: &Context) -> Result<(), Error> {
    let nodes: Api<api::Node> = Api::all(context.client.clone());
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: node.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match nodes.delete(&node.name_any(), &params).await {
        Ok(_) => {
            tracing::info!(node = node.name_any(), "the node has left the cluster");
            Ok(())
        }
        Err(kube::Error::Api(answer)) if answer.is_conflict() || answer.is_not_found() => Ok(()),
        Err(error) => Err(Error::api("remove a node that has left")(error)),
    }
}

fn count(context: &Context) {
    let nodes = context.nodes.state();
    let total = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let ready = |node: &&Arc<api::Node>| {
        node.status.as_ref().is_some_and(|s| c::is_true(&s.conditions, c::READY))
    };
    context.metrics.nodes.set(total(nodes.len()));
    context.metrics.nodes_ready.set(total(nodes.iter().filter(ready).count()));
    for (role, label) in [(Role::Source, "source"), (Role::Target, "target")] {
        let sides = nodes
            .iter()
            .filter_map(|node| node.status.as_ref())
            .flat_map(|status| &status.active_migrations)
            .filter(|side| side.role == role);
        let gauge = context.metrics.sides.get_or_create(&RoleLabel { role: label });
        gauge.set(total(sides.count()));
    }
    let active = context.migrations.state().into_iter().filter(|migration| {
        let step = migration.status.as_ref().and_then(|s| s.step);
        step.is_some_and(|s| !s.is_final())
    });
    context.metrics.active.set(total(active.count()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(40);

    fn node(status: ConditionStatus, reason: &str) -> api::Node {
        let mut node = api::Node::new("node-a", api::NodeSpec::default());
        let mut of = api::NodeStatus { failure_count: Some(2), ..api::NodeStatus::default() };
        let now = Timestamp::UNIX_EPOCH;
        c::set_condition(&mut of.conditions, c::READY, status, reason, "", None, now);
        node.status = Some(of);
        node
    }

    #[test]
    fn a_silent_node_is_not_ready_and_its_failures_are_counted() {
        let ready = node(ConditionStatus::True, reasons::AVAILABLE);
        assert_eq!(silence(&ready, TTL / 2, TTL), None);
        let silent = silence(&ready, TTL, TTL).unwrap();
        assert!(c::has_status(&silent.conditions, c::READY, ConditionStatus::False));
        assert_eq!(silent.failure_count, Some(3));
        assert_eq!(silent.health_indicator, Some(0));
        let told = node(ConditionStatus::False, reasons::HEARTBEAT_MISSED);
        assert_eq!(silence(&told, TTL * 9, TTL), None, "told once");
        let removed = node(ConditionStatus::False, reasons::UNINSTALLED);
        assert_eq!(silence(&removed, TTL * 9, TTL), None, "said by the agent on purpose");
    }
}
