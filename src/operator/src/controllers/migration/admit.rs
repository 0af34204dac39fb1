//! From a new Migration to an admitted one: screened by what the API server knows, inspected by
//! the agents, finalized, claimed and recorded, in this order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use transship_api::conditions::reasons;
use transship_api::{Migration, MigrationStatus, Mode, Step, names};
use transship_core::facts::PodFacts;
use transship_core::migration::Role;
use transship_core::migration::admission::{self, Admitted, Found, Screening};
use transship_core::migration::owner::{Controller, Kind};
use transship_core::migration::state::claimed_by;
use transship_core::placement::volumes::Volumes;
use transship_core::placement::{self, Load, Pending};
use transship_core::preflight::{self, Claim, Input, NodeView};
use transship_core::sequential_pod::controller;
use transship_core::witness::references;

use super::owner::Owners;
use super::{Error, Next, apply, ask, claims, status};
use crate::agents;
use crate::context::Context;

/// How soon a Migration that waits for its turn is looked at again.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// How soon an agent that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The same, where the pod is looked at again each time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Annotation of a mirror pod: the UID of its static pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";

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
    let claims = match &pod {
        Some(pod) => claims::of(pod, context).await?,
        None => Vec::new(),
    };
    let volumes = mounted(pod.as_ref(), &claims);
    let nodes = nodes(context);
    let policies = context.policies.state();
    let policy = pod
        .as_ref()
        .and_then(|pod| placement::policy::applying(policies.iter().map(Arc::as_ref), pod));
    let mut input = Input {
        migration,
        pod: pod.as_ref(),
        owner: owner.as_ref(),
        claims: &claims,
        policy,
        volumes: &volumes,
        nodes: &nodes,
        target: None,
        facts: None,
        target_facts: None,
        answer: None,
    };
    let loads = match admission::looks_at_pods(&input) {
        true => loads(context).await?,
        false => BTreeMap::new(),
    };
    let (target, given) = match screen(&input, loads, context).await {
        Screening::Refused(refusal) => {
            // Who only asks wants to know everything at once.
            let facts = match migration.spec.dry_run {
                true => inspected_all_the_same(&input, context).await,
                false => None,
            };
            input.facts = facts.as_ref();
            let violations = admission::judge(&input);
            let bytes = facts.as_ref().map(|facts| bytes_of(migration, facts));
            let found = Found { violations: &violations, bytes };
            let status = admission::refused(migration, &refusal, found, now);
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
    let migration_uid = migration.uid().unwrap_or_default();
    let (facts, target_facts, answer) = tokio::join!(
        context.agents.inspect(&source_node, &pod_uid),
        context.agents.inspect(&target, ""),
        ask::about_target(migration, pod, &target, context),
    );
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => {
            return unanswered(migration, pod, &target, Role::Source, &error, context).await;
        }
    };
    input.target = nodes.iter().find(|node| node.name == target);
    input.facts = Some(&facts);
    input.target_facts = target_facts.as_ref().ok();
    input.answer = answer.known.as_ref();
    let violations = admission::judge(&input);
    if let Some(message) = preflight::may_pass(&violations)
        && !migration.spec.dry_run
        && context.memory.note(&migration_uid, |notes| notes.may_be_seen(Instant::now()))
    {
        let message = format!("what could not be looked at is looked at again: {message}");
        let status = admission::waiting(migration, Step::Preflight, &message, now);
        status::patch(migration, &status, context).await?;
        return Ok(Next::After(LOOK_AGAIN));
    }
    if !violations.is_empty() {
        let found = Found { violations: &violations, bytes: Some(bytes_of(migration, &facts)) };
        let status = admission::violated(migration, &target, found, now);
        return end(migration, Some(pod), &status, context).await;
    }
    // After what stands in the way whatever it says.
    let target_facts = match &target_facts {
        Ok(target_facts) => target_facts,
        Err(error) => {
            return unanswered(migration, pod, &target, Role::Target, error, context).await;
        }
    };
    let Some(network) = admission::network(&input) else { return Ok(Next::After(ASK_AGAIN)) };
    let decided = Admitted {
        pod,
        sandbox: &facts.sandbox_id,
        target: &target,
        given,
        bytes: bytes_of(migration, &facts),
        network: &network,
        unknown: answer.unknown.as_deref(),
        incomplete: &[&facts.incomplete[..], &target_facts.incomplete[..]].concat(),
    };
    let status = admission::admitted(migration, &decided, now);
    if migration.spec.dry_run {
        return end(migration, Some(pod), &status, context).await;
    }
    let migration = prepare(migration, pod, &source_node, &target, context).await?;
    claim(&migration, pod, &pods).await?;
    context.memory.note(&migration_uid, |notes| notes.facts = Some(Arc::new(facts)));
    status::patch(&migration, &status, context).await?;
    Ok(Next::Now)
}

/// Judges the request and chooses the node, to which the pod is on its way from then on: migrations that
/// begin together go where they would have gone one after another.
async fn screen(input: &Input<'_>, loads: BTreeMap<String, Load>, context: &Context) -> Screening {
    let migration = input.migration;
    let uid = migration.uid().unwrap_or_default();
    let _turn = context.choosing.lock().await;
    let there: BTreeSet<String> =
        context.migrations.state().iter().filter_map(|migration| migration.uid()).collect();
    let expected = context.memory.pending_of_others(&uid, |uid| there.contains(uid));
    let active = active(migration, context);
    let overcommit = context.overcommit_percent;
    let screening = admission::screen_beside(input, &active, &loads, &expected, overcommit);
    let pending = match (&screening, input.pod) {
        (Screening::Ready { target, .. }, Some(pod)) if !migration.spec.dry_run => {
            let pod = Arc::new(pod.clone());
            Some(Pending { migration: uid.clone(), node: target.clone(), pod })
        }
        _ => None,
    };
    context.memory.note(&uid, |notes| notes.pending = pending);
    screening
}

/// An agent that does not answer is asked again, for as long as the Migration may take to begin; but not one that
/// would answer the same.
async fn unanswered(
    migration: &Migration,
    pod: &Pod,
    target: &str,
    role: Role,
    error: &agents::Error,
    context: &Context,
) -> Result<Next, Error> {
    let (what, pause) = match role {
        Role::Source => ("the pod", ASK_AGAIN),
        Role::Target => ("the target node", LOOK_AGAIN),
    };
    let now = Timestamp::now();
    if error.is_permanent() {
        let violations = [preflight::not_inspected(format!("{what} cannot be inspected: {error}"))];
        let found = Found { violations: &violations, bytes: None };
        let status = admission::violated(migration, target, found, now);
        return end(migration, Some(pod), &status, context).await;
    }
    let message = format!("{what} is to be inspected: {error}");
    let status = admission::waiting(migration, Step::Preflight, &message, now);
    status::patch(migration, &status, context).await?;
    Ok(Next::After(pause))
}

/// What would move.
fn bytes_of(migration: &Migration, facts: &PodFacts) -> u64 {
    match migration.spec.mode {
        Mode::Cold => facts.file_bytes(),
        _ => facts.total_bytes(),
    }
}

/// What the agent of a refused pod's node knows of it, where there is one to ask.
async fn inspected_all_the_same(input: &Input<'_>, context: &Context) -> Option<PodFacts> {
    let pod = input.pod?;
    // What kubelet tells the runtime: of a static pod, the UID is in the annotation.
    let uid = pod.annotations().get(STATIC_UID).cloned().or_else(|| pod.uid())?;
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    context
        .agents
        .inspect(node, &uid)
        .await
        .inspect_err(|error| tracing::debug!(node, %error, "a refused pod was not inspected"))
        .ok()
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
    let mut metadata = json!({
        "resourceVersion": migration.resource_version(),
        "finalizers": finalizers,
        "labels": labels,
    });
    if let (Some(references), Value::Object(fields)) =
        (references(migration, Some(pod)), &mut metadata)
        && let Value::Object(more) = references.metadata()
    {
        fields.extend(more);
    }
    let patch = json!({"metadata": metadata});
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

/// The pod's controller, if it is one whose pods are handed over and it is there to stay.
async fn owner(pod: Option<&Pod>, context: &Context) -> Result<Option<Controller>, Error> {
    let Some(pod) = pod else { return Ok(None) };
    let Some((claim, kind)) = controller(pod).and_then(|claim| Some((claim, Kind::of(claim)?)))
    else {
        return Ok(None);
    };
    let namespace = pod.namespace().unwrap_or_default();
    let owners = Owners { client: &context.client, namespace: &namespace };
    let found = owners.named(kind, &claim.name).await?;
    Ok(found.filter(|controller| controller.uid == claim.uid))
}

/// Which nodes the claims leave, as far as they are bound yet.
fn mounted(pod: Option<&Pod>, claims: &[Claim]) -> Volumes {
    let namespace = pod.and_then(ResourceExt::namespace).unwrap_or_default();
    let mut mounted = Volumes::default();
    for Claim { name, claim, bound, .. } in claims {
        if let Some(claim) = claim {
            mounted.add(format!("{namespace}/{name}"), claim, bound.as_ref());
        }
    }
    mounted
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

/// Pods in one answer: with all of a large cluster in one the operator would need gigabytes.
const PODS_AT_A_TIME: u32 = 500;

/// The pods of each node. A list of all pods: read only where they matter.
async fn loads(context: &Context) -> Result<BTreeMap<String, Load>, Error> {
    let pods: Api<Pod> = Api::all(context.client.clone());
    let mut there = ListParams::default().fields("spec.nodeName!=").limit(PODS_AT_A_TIME);
    let mut loads = BTreeMap::new();
    loop {
        let page = pods.list(&there).await.map_err(Error::api("list the pods"))?;
        Load::add_all(&mut loads, &page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => there = there.continue_token(&token),
            None => return Ok(loads),
        }
    }
}
