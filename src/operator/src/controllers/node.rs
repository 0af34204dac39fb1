//! Our Nodes, as far as they are the operator's: a node that does not report any more is not
//! Ready, a node that has left the cluster leaves our list, and both are counted. Where there is a
//! static list of nodes, each Node says how it differs from it.
//!
//! Silence is measured by our own clock, from the last change of the heartbeat that was seen here,
//! so that clocks need not agree and a new leader does not blame anybody for its own start.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{self as api, Role, names};
use transship_core::liveness;
use transship_core::migration::state::recorded;
use transship_protocol::may_leave;

use super::migration::Error;
use crate::context::Context;
use crate::metrics::{KindReason, RoleLabel};
use crate::uninstall;

/// How often the nodes are looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// How long a cluster node must be gone before ours goes, and its targets' signatures with it. An API server may take
/// them for ten seconds still (it remembers for so long that a token was good), and then a target runs on for
/// [`PATIENCE`](transship_protocol::PATIENCE).
const LEAVE_AFTER: Duration = Duration::from_secs(60);

/// What is remembered of a node.
#[derive(Debug)]
struct Seen {
    heartbeat: Option<MicroTime>,
    /// When the heartbeat changed last, or when this process first saw the node.
    changed: Instant,
    /// This process has seen it change.
    heard: bool,
    gone_since: Option<Instant>,
}

/// What is expected of nodes.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// How long a node may be silent.
    pub ttl: Duration,
    /// Names of the nodes that ought to be there, from the operator's arguments.
    pub listed: BTreeSet<String>,
}

/// Looks at all nodes until `stop`.
pub async fn run(context: Arc<Context>, expectation: Expectation, stop: CancellationToken) {
    let mut seen: HashMap<String, Seen> = HashMap::new();
    let mut installation = None;
    // By a cache that is not filled yet no target would be waited for.
    tokio::select! {
        ready = context.migrations.wait_until_ready() => if ready.is_err() { return },
        () = stop.cancelled() => return,
    }
    loop {
        for name in &expectation.listed {
            if context.agents.node(name).is_none()
                && let Err(error) = create(name, &context).await
            {
                tracing::warn!(node = name, error = error.chain(), "a node could not be listed");
            }
        }
        let list = static_list(&expectation.listed, &context.nodes.state());
        if installation.is_none() {
            // Until it is known no request is taken back.
            match uninstall::installation(&context.client).await {
                Ok(own) => installation = Some(own),
                Err(error) => tracing::warn!("this installation is not known yet: {error:#}"),
            }
        }
        for node in context.nodes.state() {
            if installation.as_deref().is_some_and(|own| node.is_asked_by_another(own))
                && let Err(error) = take_request_back(&node, &context).await
            {
                tracing::warn!(
                    node = node.name_any(),
                    error = error.chain(),
                    "a node could not be looked after"
                );
            }
            let listed = list.as_ref().map(|list| list.contains(&node.name_any()));
            let looked = look(&node, &mut seen, expectation.ttl, listed, &context);
            if let Err(error) = looked.await {
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
        "annotations": {names::UNINSTALL: null, names::UNINSTALL_BY: null},
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

/// The names that ought to be there, if anybody has said which.
fn static_list(listed: &BTreeSet<String>, nodes: &[Arc<api::Node>]) -> Option<BTreeSet<String>> {
    let labelled =
        nodes.iter().filter(|node| is_labelled(node)).map(|node| node.name_any()).collect();
    let list: BTreeSet<String> = listed | &labelled;
    (!list.is_empty()).then_some(list)
}

fn is_labelled(node: &api::Node) -> bool {
    node.labels().get(names::STATIC_LABEL).is_some_and(|value| value == "true")
}

/// A Node for a name that ought to be there, so that its absence can be seen.
async fn create(name: &str, context: &Context) -> Result<(), Error> {
    let nodes: Api<api::Node> = Api::all(context.client.clone());
    let params =
        PostParams { field_manager: Some(names::OPERATOR_MANAGER.into()), ..PostParams::default() };
    match nodes.create(&params, &api::Node::new(name, api::NodeSpec::default())).await {
        Ok(_) => {
            tracing::info!(node = name, "made a Node for a name on the static list");
            Ok(())
        }
        Err(kube::Error::Api(answer)) if answer.is_already_exists() => Ok(()),
        Err(error) => Err(Error::api("make a Node for a name on the static list")(error)),
    }
}

async fn look(
    node: &api::Node,
    seen: &mut HashMap<String, Seen>,
    ttl: Duration,
    listed: Option<bool>,
    context: &Context,
) -> Result<(), Error> {
    let name = node.name_any();
    let heartbeat = node.status.as_ref().and_then(|s| s.heartbeat_time.clone());
    let entry = seen.entry(name.clone()).or_insert_with(|| Seen {
        heartbeat: heartbeat.clone(),
        changed: Instant::now(),
        heard: false,
        gone_since: None,
    });
    if entry.heartbeat != heartbeat {
        entry.heartbeat = heartbeat;
        entry.changed = Instant::now();
        entry.heard = true;
    }
    let silence = Silence { lasts: entry.changed.elapsed(), heard: entry.heard };
    // What ought to be there stays, so that everybody sees that it is not.
    let gone = listed != Some(true) && super::migration::node_gone(&name, context).await?;
    if !gone {
        entry.gone_since = None;
    } else if entry.gone_since.get_or_insert_with(Instant::now).elapsed() >= LEAVE_AFTER
        && !is_awaited(&name, &context.migrations.state())
    {
        return leave(node, context).await;
    }
    match judge(node, silence, ttl, listed, Timestamp::now()) {
        Some(status) => write(node, &status, context).await,
        None => Ok(()),
    }
}

/// How long a node has not been heard of.
#[derive(Clone, Copy, Debug)]
struct Silence {
    lasts: Duration,
    /// It was heard by this process; if not, the silence may have begun long before.
    heard: bool,
}

/// The operator's part of a node's status, if it is to say something else than it does.
/// `listed`: whether the static list has the node, if there is one.
fn judge(
    node: &api::Node,
    silence: Silence,
    ttl: Duration,
    listed: Option<bool>,
    now: Timestamp,
) -> Option<api::NodeStatus> {
    let live = node.status.clone().unwrap_or_default();
    let mut status = live.clone();
    let mut failures = liveness::failures(silence.lasts, ttl);
    if !silence.heard {
        failures = failures.max(status.failure_count.unwrap_or(0)).min(liveness::FAILURE_RETRY);
    }
    if silence.lasts >= ttl
        && let Some((reason, message)) = silent_reason(&status, ttl)
    {
        let generation = node.metadata.generation;
        let conditions = &mut status.conditions;
        let no = ConditionStatus::False;
        c::set_condition(conditions, c::READY, no, reason, &message, generation, now);
    }
    match listed {
        None => status.conditions.retain(|condition| condition.type_ != c::LISTED),
        Some(listed) => {
            let (reason, message) = match listed {
                true => (reasons::ON_THE_LIST, "the static list has this node"),
                false => (reasons::NOT_ON_THE_LIST, "the static list does not have this node"),
            };
            let generation = node.metadata.generation;
            let conditions = &mut status.conditions;
            c::set_condition(
                conditions,
                c::LISTED,
                listed.into(),
                reason,
                message,
                generation,
                now,
            );
        }
    }
    let ready = c::is_true(&status.conditions, c::READY);
    status.failure_count = Some(failures);
    status.health_indicator = Some(liveness::health_indicator(ready, failures));
    // That another generation was looked at is no news.
    let says = |s: &api::NodeStatus| {
        let conditions: Vec<_> = s
            .conditions
            .iter()
            .map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone()))
            .collect();
        (conditions, s.failure_count, s.health_indicator)
    };
    (says(&status) != says(&live)).then_some(status)
}

/// What is to be said of a silent node, if it does not say so yet.
fn silent_reason(status: &api::NodeStatus, ttl: Duration) -> Option<(&'static str, String)> {
    let ready = c::find(&status.conditions, c::READY);
    let says = |reason| ready.is_some_and(|r| r.status != "True" && r.reason == reason);
    let Some(last) = &status.heartbeat_time else {
        let message = "no agent has ever reported from this node";
        return Some((reasons::NOT_JOINED, message.to_owned()));
    };
    // What the agent said about itself last, on purpose, stays.
    if says(reasons::HEARTBEAT_MISSED) || says(reasons::UNINSTALLED) {
        return None;
    }
    let last = Timestamp::from_second(last.0.as_second()).unwrap_or(last.0);
    let seconds = ttl.as_secs();
    Some((
        reasons::HEARTBEAT_MISSED,
        format!("the agent has not reported for {seconds} seconds, last at {last}"),
    ))
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
            tracing::info!(
                node = node.name_any(),
                failures = status.failure_count,
                health = status.health_indicator,
                "the node's health has changed"
            );
            Ok(())
        }
        // It has reported meanwhile, or is gone: the next look will see.
        Err(kube::Error::Api(answer)) if answer.is_conflict() || answer.is_not_found() => Ok(()),
        Err(error) => Err(Error::api("write a node's health")(error)),
    }
}

/// Removes the Lease that targets on this node have signed, if there is one. A target that still runs
/// makes it again with its next signature.
pub async fn remove_lease(client: &Client, namespace: &str, node: &str) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    match leases.delete(&names::node_lease(node), &DeleteParams::default()).await {
        Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// Takes off what the target of a Migration may have left of its signature when it ended: it counts no more.
pub async fn remove_signature(
    client: &Client,
    namespace: &str,
    node: &str,
    migration_uid: &str,
) -> kube::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"metadata": {"annotations": {names::signature(migration_uid): null}}});
    let name = names::node_lease(node);
    match leases.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(answer)) if answer.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

/// Whether a target on this node is still waited for. In the sequential order nothing follows from its silence.
fn is_awaited(name: &str, migrations: &[Arc<api::Migration>]) -> bool {
    migrations.iter().any(|migration| {
        let Some(status) = &migration.status else { return false };
        let is_there = status.target.as_ref().is_some_and(|target| target.node == name);
        is_there && !status.is_sequential() && !may_leave(recorded(migration))
    })
}

async fn leave(node: &api::Node, context: &Context) -> Result<(), Error> {
    // First: without the Node nobody would look for it.
    remove_lease(&context.client, &context.namespace, &node.name_any())
        .await
        .map_err(Error::api("remove the Lease of a node that has left"))?;
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
        let now = Timestamp::UNIX_EPOCH;
        let mut of = api::NodeStatus {
            failure_count: Some(2),
            heartbeat_time: Some(MicroTime(now)),
            ..api::NodeStatus::default()
        };
        c::set_condition(&mut of.conditions, c::READY, status, reason, "", None, now);
        node.status = Some(of);
        node
    }

    fn after(seconds: u64) -> Silence {
        Silence { lasts: Duration::from_secs(seconds), heard: true }
    }

    fn judged(node: &api::Node, silence: Silence, listed: Option<bool>) -> Option<api::NodeStatus> {
        judge(node, silence, TTL, listed, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn health_falls_with_silence_and_returns_with_a_heartbeat() {
        let mut node = node(ConditionStatus::True, reasons::AVAILABLE);
        for (seconds, failures, health) in
            [(0, 0, 100), (14, 1, 67), (27, 2, 34), (40, 3, 0), (1, 0, 100)]
        {
            if seconds == 1 {
                // The agent itself says that it is back.
                let conditions = &mut node.status.as_mut().unwrap().conditions;
                let (yes, now) = (ConditionStatus::True, Timestamp::UNIX_EPOCH);
                c::set_condition(conditions, c::READY, yes, reasons::AVAILABLE, "", None, now);
            }
            let status = judged(&node, after(seconds), None).unwrap();
            assert_eq!(status.failure_count, Some(failures), "after {seconds} s");
            assert_eq!(status.health_indicator, Some(health), "after {seconds} s");
            let ready = c::is_true(&status.conditions, c::READY);
            assert_eq!(ready, seconds < 40, "after {seconds} s");
            node.status = Some(status);
            assert_eq!(judged(&node, after(seconds), None), None, "said once");
        }
    }

    #[test]
    fn who_has_just_begun_to_listen_takes_no_failure_back() {
        let node = node(ConditionStatus::True, reasons::AVAILABLE);
        let unheard = Silence { lasts: Duration::ZERO, heard: false };
        assert_eq!(judged(&node, unheard, None).unwrap().failure_count, Some(2));
        assert_eq!(judged(&node, after(0), None).unwrap().failure_count, Some(0));
    }

    #[test]
    fn what_the_agent_said_on_purpose_stays() {
        for reason in [reasons::HEARTBEAT_MISSED, reasons::UNINSTALLED] {
            let node = node(ConditionStatus::False, reason);
            let status = judged(&node, after(400), None).unwrap();
            assert_eq!(c::find(&status.conditions, c::READY).unwrap().reason, reason);
            assert_eq!((status.failure_count, status.health_indicator), (Some(3), Some(0)));
        }
    }

    #[test]
    fn a_listed_node_that_never_joined_says_so() {
        let mut node = api::Node::new("node-x", api::NodeSpec::default());
        let early = judged(&node, after(1), Some(true)).unwrap();
        assert_eq!(c::find(&early.conditions, c::READY), None, "it may be on its way");
        let late = judged(&node, after(40), Some(true)).unwrap();
        assert_eq!(c::find(&late.conditions, c::READY).unwrap().reason, reasons::NOT_JOINED);
        assert!(c::is_true(&late.conditions, c::LISTED));
        node.status = Some(late);
        assert_eq!(judged(&node, after(80), Some(true)), None);
    }

    #[test]
    fn a_node_says_whether_it_is_listed_only_while_there_is_a_list() {
        let mut node = node(ConditionStatus::True, reasons::AVAILABLE);
        let status = judged(&node, after(0), Some(false)).unwrap();
        assert_eq!(c::find(&status.conditions, c::LISTED).unwrap().reason, "NotOnTheList");
        node.status = Some(status);
        let status = judged(&node, after(0), None).unwrap();
        assert_eq!(c::find(&status.conditions, c::LISTED), None);
    }

    #[test]
    fn a_node_does_not_leave_while_the_silence_of_a_target_there_is_counted() {
        let migration = |change: fn(&mut api::MigrationStatus)| {
            let mut migration = api::Migration::new("m", api::MigrationSpec::for_pod("p"));
            let mut status = api::MigrationStatus {
                target: Some(api::PodRef { node: "node-b".into(), ..Default::default() }),
                decision: Some(api::Decision::Commit),
                ..Default::default()
            };
            change(&mut status);
            migration.status = Some(status);
            [Arc::new(migration)]
        };
        let open = migration(|_| {});
        assert!(is_awaited("node-b", &open) && !is_awaited("node-a", &open));
        let settled: [fn(&mut api::MigrationStatus); 4] = [
            |status| status.decision = Some(api::Decision::Abort),
            |status| status.resumed_at = Some(MicroTime(Timestamp::UNIX_EPOCH)),
            |status| status.resolution = Some(api::Resolution::SourceResumes),
            |status| status.hand_over = Some(api::HandOver::Sequential),
        ];
        for (nth, change) in settled.into_iter().enumerate() {
            assert!(!is_awaited("node-b", &migration(change)), "{nth}");
        }
    }

    #[test]
    fn the_list_is_what_the_values_name_and_what_is_labelled() {
        let mut labelled = api::Node::new("node-g", api::NodeSpec::default());
        labelled.labels_mut().insert(names::STATIC_LABEL.into(), "true".into());
        let plain = api::Node::new("node-p", api::NodeSpec::default());
        let nodes = [Arc::new(labelled), Arc::new(plain)];
        let listed = BTreeSet::from(["node-v".to_owned()]);
        let both = BTreeSet::from(["node-g".to_owned(), "node-v".to_owned()]);
        assert_eq!(static_list(&listed, &nodes), Some(both));
        assert_eq!(static_list(&BTreeSet::new(), &nodes[1..]), None);
    }
}
