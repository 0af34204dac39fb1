//! From a new Migration to an admitted one: screened by what the API server knows, inspected by
//! the agents, finalized, claimed and recorded, in this order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use transship_api::conditions::reasons;
use transship_api::{Migration, MigrationStatus, Step, names};
use transship_core::migration::admission::{self, Admitted, Screening};
use transship_core::migration::state::claimed_by;
use transship_core::placement::{self, Load};
use transship_core::preflight::{Input, NodeView};

use super::{Error, Next, apply, claims, status};
use crate::context::Context;

/// How soon a Migration that waits for its turn is looked at again.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// How soon an agent that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One look at a Migration that has not been admitted.
pub async fn admit(migration: &Migration, context: &Context) -> Result<Next, Error> {
    let now = Timestamp::now();
    let namespace = migration.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let pod = pods.get_opt(&migration.spec.pod_name).await.map_err(Error::api("read the pod"))?;
    if migration.metadata.deletion_timestamp.is_some() {
        let message = "the Migration was deleted before anything was done";
        let status = admission::given_up(migration, reasons::CANCELLED, message, now);
        return end(migration, pod.as_ref(), &status, context).await;
    }
    if let Some(message) = timed_out(migration, now) {
        let status = admission::given_up(migration, reasons::TIMED_OUT, &message, now);
        return end(migration, pod.as_ref(), &status, context).await;
    }
    let owner = owner(pod.as_ref(), context).await?;
    let nodes = nodes(context);
    let policies = context.policies.state();
    let policy = pod
        .as_ref()
        .and_then(|pod| placement::policy::applying(policies.iter().map(Arc::as_ref), pod));
    let claims;
    let mut input = Input {
        migration,
        pod: pod.as_ref(),
        owner: owner.as_ref(),
        claims: &[],
        policy,
        nodes: &nodes,
        target: None,
        facts: None,
        target_facts: None,
    };
    let loads = match admission::looks_at_pods(&input) {
        true => loads(context).await?,
        false => BTreeMap::new(),
    };
    let (target, given) = match admission::screen(&input, &active(migration, context), &loads) {
        Screening::Refused(refusal) => {
            let status = admission::refused(migration, &refusal, now);
            return end(migration, pod.as_ref(), &status, context).await;
        }
        Screening::Busy(message) => {
            let status = admission::waiting(migration, Step::Pending, &message, now);
            status::patch(migration, &status, context).await?;
            return Ok(Next::After(BUSY_PAUSE));
        }
        Screening::Ready { target, given } => (target, given),
    };
    let Some(pod) = pod.as_ref() else { return Ok(Next::After(ASK_AGAIN)) };
    let source_node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    let pod_uid = pod.uid().unwrap_or_default();
    let (facts, target_facts) = tokio::join!(
        context.agents.inspect(&source_node, &pod_uid),
        context.agents.inspect(&target, ""),
    );
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let message = format!("the pod is to be inspected: {error}");
            let status = admission::waiting(migration, Step::Preflight, &message, now);
            status::patch(migration, &status, context).await?;
            return Ok(Next::After(ASK_AGAIN));
        }
    };
    let target_facts = target_facts.inspect_err(|error| {
        tracing::info!(target, %error, "the target node could not be inspected");
    });
    claims = claims::of(pod, context).await?;
    input.claims = &claims;
    input.target = nodes.iter().find(|node| node.name == target);
    input.facts = Some(&facts);
    input.target_facts = target_facts.as_ref().ok();
    let violations = admission::judge(&input);
    if !violations.is_empty() {
        let status = admission::violated(migration, &target, &violations, now);
        return end(migration, Some(pod), &status, context).await;
    }
    let decided = Admitted { pod, target: &target, given, bytes: facts.total_bytes() };
    let status = admission::admitted(migration, &decided, now);
    if migration.spec.dry_run {
        return end(migration, Some(pod), &status, context).await;
    }
    let migration = prepare(migration, pod, &source_node, &target, context).await?;
    claim(&migration, pod, &pods).await?;
    let uid = migration.uid().unwrap_or_default();
    context.memory.note(&uid, |notes| notes.facts = Some(Arc::new(facts)));
    status::patch(&migration, &status, context).await?;
    Ok(Next::Now)
}

/// The end before anything was touched: whatever a former look left is taken back.
async fn end(
    migration: &Migration,
    pod: Option<&Pod>,
    status: &MigrationStatus,
    context: &Context,
) -> Result<Next, Error> {
    if let Some(pod) = pod.filter(|pod| claimed_by(pod, &migration.uid().unwrap_or_default())) {
        let namespace = migration.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        let patch = json!({"metadata": {
            "uid": pod.uid(),
            "annotations": {names::CLAIM: null, names::MIGRATION_NAME: null},
        }});
        pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(Error::api("take the claim off the pod"))?;
    }
    status::patch(migration, status, context).await?;
    if migration.finalizers().iter().any(|f| f == names::FINALIZER) {
        apply::remove_finalizer(migration, context).await?;
    }
    Ok(Next::WhenChanged)
}

fn timed_out(migration: &Migration, now: Timestamp) -> Option<String> {
    let created = migration.creation_timestamp()?.0;
    let limit = migration.spec.timeout().ok()?;
    let passed = Duration::try_from(now.duration_since(created)).unwrap_or_default();
    (passed >= limit)
        .then(|| format!("it could not begin within spec.timeout ({})", migration.spec.timeout))
}

/// Finalizer and labels, before the claim: what is claimed can be found and is given back.
async fn prepare(
    migration: &Migration,
    pod: &Pod,
    source: &str,
    target: &str,
    context: &Context,
) -> Result<Migration, Error> {
    let mut finalizers = migration.finalizers().to_vec();
    if !finalizers.iter().any(|f| f == names::FINALIZER) {
        finalizers.push(names::FINALIZER.to_owned());
    }
    let pod_uid = pod.uid().unwrap_or_default();
    let labels: BTreeMap<&str, &str> = [
        (names::POD_UID_LABEL, pod_uid.as_str()),
        (names::SOURCE_NODE_LABEL, source),
        (names::TARGET_NODE_LABEL, target),
    ]
    .into_iter()
    // Names of nodes may be longer than values of labels.
    .filter(|(_, value)| value.len() <= 63)
    .collect();
    let patch = json!({"metadata": {
        "resourceVersion": migration.resource_version(),
        "finalizers": finalizers,
        "labels": labels,
    }});
    let namespace = migration.namespace().unwrap_or_default();
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &namespace);
    migrations
        .patch(&migration.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(Error::api("set the finalizer"))
}

/// Claims the pod if it is still as it was read; a conflict leads to another look.
async fn claim(migration: &Migration, pod: &Pod, pods: &Api<Pod>) -> Result<(), Error> {
    let uid = migration.uid().unwrap_or_default();
    if claimed_by(pod, &uid) {
        return Ok(());
    }
    let name = format!("{}/{}", migration.namespace().unwrap_or_default(), migration.name_any());
    let patch = json!({"metadata": {
        "uid": pod.uid(),
        "resourceVersion": pod.resource_version(),
        "annotations": {names::CLAIM: uid, names::MIGRATION_NAME: name},
    }});
    pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(Error::api("claim the pod"))?;
    Ok(())
}

/// The pod's ReplicaSet, if that is its owner and it is there to stay.
async fn owner(pod: Option<&Pod>, context: &Context) -> Result<Option<ReplicaSet>, Error> {
    let Some(pod) = pod else { return Ok(None) };
    let claim = pod.owner_references().iter().find(|owner| {
        owner.controller == Some(true)
            && owner.kind == "ReplicaSet"
            && owner.api_version.starts_with("apps/")
    });
    let Some(claim) = claim else { return Ok(None) };
    let namespace = pod.namespace().unwrap_or_default();
    let sets: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &namespace);
    let found = sets.get_opt(&claim.name).await.map_err(Error::api("read the ReplicaSet"))?;
    Ok(found.filter(|set| {
        set.uid().as_deref() == Some(claim.uid.as_str())
            && set.metadata.deletion_timestamp.is_none()
    }))
}

/// All nodes, as both kinds show them.
fn nodes(context: &Context) -> Vec<NodeView> {
    let core = context.core_nodes.state();
    let agents = context.nodes.state();
    NodeView::join(core.iter().map(|n| (**n).clone()), agents.iter().map(|n| (**n).clone()))
}

/// Migrations under way by node, this one left out.
fn active(migration: &Migration, context: &Context) -> BTreeMap<String, usize> {
    let mut active = BTreeMap::new();
    for other in context.migrations.state() {
        let Some(status) = other.status.as_ref().filter(|_| other.uid() != migration.uid()) else {
            continue;
        };
        if status.step.is_some_and(|s| s.is_final()) {
            continue;
        }
        // Admitted ones alone: before that, nothing is asked of the nodes.
        let (Some(source), Some(target)) = (&status.source, &status.target) else { continue };
        for side in [source, target] {
            *active.entry(side.node.clone()).or_default() += 1;
        }
    }
    active
}

/// The pods of each node. A list of all pods: read only where they matter.
async fn loads(context: &Context) -> Result<BTreeMap<String, Load>, Error> {
    let pods: Api<Pod> = Api::all(context.client.clone());
    let there = ListParams::default().fields("spec.nodeName!=");
    let pods = pods.list(&there).await.map_err(Error::api("list the pods"))?.items;
    Ok(Load::by_node(&pods))
}
