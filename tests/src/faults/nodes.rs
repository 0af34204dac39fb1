//! The sandbox around a cell: where the operators are, and that everything is well before and after.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::cluster::{Cluster, Pod, condition, of_kind};

/// Two nodes between which a pod moves to and fro.
pub type Pair = [&'static str; 2];

/// The pair of a sandbox of two nodes.
pub const NODES: Pair = ["node-a", "node-b"];
/// In a larger one the first node is nobody's: it keeps the operators and is the way to Services, and
/// whatever happens to one pair does not concern the others.
const PAIRS: [Pair; 4] =
    [["node-b", "node-c"], ["node-d", "node-e"], ["node-f", "node-g"], ["node-h", "node-i"]];
/// That node.
pub const FIRST: &str = "node-a";
/// How many the chart makes.
const OPERATORS: usize = 2;
const SYSTEM: &str = "--namespace=transship-system";
const PATIENCE: Duration = Duration::from_secs(120);
/// containerd's reason for the end of a container that it could not start.
const NEVER_STARTED: &str = "StartError";

/// A node's address in the network of the nodes.
pub fn address(cluster: &Cluster, node: &str) -> Result<String> {
    let path = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
    let addresses = cluster.kubectl(&["get", "node", node, "-o", path])?;
    // One of each family; everything that is cut speaks the first.
    Ok(addresses.split(' ').next().unwrap_or_default().to_owned())
}

/// The API server's address, as the nodes reach it.
pub fn api_server(cluster: &Cluster) -> Result<String> {
    let path = "jsonpath={.clusters[0].cluster.server}";
    let url = cluster.kubectl(&["config", "view", "-o", path])?;
    let host = url.trim_start_matches("https://").split(':').next().unwrap_or_default();
    Ok(host.to_owned())
}

fn ours(cluster: &Cluster, selector: &str) -> Result<Vec<Value>> {
    let text = cluster.kubectl(&[SYSTEM, "get", "pods", "-l", selector, "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// The operators' pods.
pub fn operators(cluster: &Cluster) -> Result<Vec<Pod>> {
    let pods = ours(cluster, "app.kubernetes.io/component=operator")?;
    Ok(pods.iter().map(Pod::of).collect())
}

/// The nodes that have one or more of them.
pub fn with_operators(cluster: &Cluster) -> Result<BTreeSet<String>> {
    Ok(operators(cluster)?.into_iter().map(|pod| pod.node).collect())
}

/// Waits until a node's agent has looked at it and told of it once more.
pub fn has_looked(cluster: &Cluster, node: &str) -> Result<()> {
    let told = || -> Result<Value> {
        Ok(cluster.get("nodes.transship.dev", node)?["status"]["heartbeatTime"].clone())
    };
    let before = told()?;
    cluster.await_that(&format!("{node} reports"), PATIENCE, || Ok(told()? != before))
}

/// The operator that leads.
pub fn leader(cluster: &Cluster) -> Result<Pod> {
    let path = "jsonpath={.spec.holderIdentity}";
    let holder = cluster.kubectl(&[SYSTEM, "get", "lease", "transship-operator", "-o", path])?;
    let leads = |pod: &Pod| holder.contains(&pod.name);
    operators(cluster)?.into_iter().find(leads).with_context(|| format!("{holder} is no pod"))
}

/// The pairs of nodes that the sandbox has.
pub fn pairs(cluster: &Cluster) -> Result<Vec<Pair>> {
    let names = names(cluster)?;
    let is_there = |pair: &Pair| pair.iter().all(|node| names.iter().any(|name| name == node));
    let apart: Vec<Pair> = PAIRS.into_iter().filter(is_there).collect();
    Ok(if apart.is_empty() { vec![NODES] } else { apart })
}

/// Asks the same of several nodes, side by side. Gives their answers in this order, or the first error in it.
pub fn each<N: AsRef<str> + Sync, T: Send>(
    nodes: &[N],
    ask: impl Fn(&str) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let ask = &ask;
    thread::scope(|scope| {
        let asked: Vec<_> =
            nodes.iter().map(|node| scope.spawn(move || ask(node.as_ref()))).collect();
        let answers = asked
            .into_iter()
            .map(|asked| asked.join().map_err(|_| anyhow!("asking a node panicked")).flatten());
        answers.collect()
    })
}

/// Names of all nodes.
pub fn names(cluster: &Cluster) -> Result<Vec<String>> {
    let names = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// Waits until these nodes, their agents and the operators are well.
pub fn healthy(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    let wanted = |name: &Value| name.as_str().is_some_and(|name| nodes.contains(&name));
    cluster.await_that("nodes, operators and agents are well", PATIENCE, || {
        let kinds = "nodes,nodes.transship.dev,pods";
        let text = cluster.kubectl(&[SYSTEM, "get", kinds, "-o", "json"])?;
        let mut list: Value = serde_json::from_str(&text)?;
        let all = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        // The cluster's object of each node, and ours.
        let mut objects: Vec<&Value> = of_kind(&all, "Node").collect();
        objects.retain(|node| wanted(&node["metadata"]["name"]));
        if objects.len() < 2 * nodes.len() || !objects.into_iter().all(is_ready) {
            return Ok(false);
        }
        let mut pods: Vec<&Value> = of_kind(&all, "Pod").collect();
        pods.retain(|pod| {
            is_of(pod, "operator") || (is_of(pod, "agent") && wanted(&pod["spec"]["nodeName"]))
        });
        Ok(pods.len() == nodes.len() + OPERATORS && pods.into_iter().all(is_ready))
    })
}

fn is_of(pod: &Value, component: &str) -> bool {
    pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
}

/// Whether an object's condition Ready is true and it stays.
pub fn is_ready(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_null() && condition(object, "Ready").0 == "True"
}

/// Whether a container of a pod has run and ended. kubelet counts also those that never started, as one whose restore
/// was refused.
pub fn has_ended_once(pod: &Value) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    let mut last =
        containers.into_iter().flatten().map(|status| &status["lastState"]["terminated"]);
    last.any(|last| last.is_object() && last["reason"] != NEVER_STARTED)
}

/// How often a pod's containers were started again.
pub fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array();
    containers.into_iter().flatten().filter_map(|status| status["restartCount"].as_u64()).sum()
}
