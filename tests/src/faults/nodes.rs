//! The sandbox around a cell: where the operators are, and that everything is well before and after.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::{Cluster, Pod, condition};

/// The two nodes that pods move between.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
const SYSTEM: &str = "--namespace=transship-system";
const PATIENCE: Duration = Duration::from_secs(120);

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

/// The operator that leads.
pub fn leader(cluster: &Cluster) -> Result<Pod> {
    let path = "jsonpath={.spec.holderIdentity}";
    let holder = cluster.kubectl(&[SYSTEM, "get", "lease", "transship-operator", "-o", path])?;
    let leads = |pod: &Pod| holder.contains(&pod.name);
    operators(cluster)?.into_iter().find(leads).with_context(|| format!("{holder} is no pod"))
}

/// Waits until nodes, operators and agents are well.
pub fn healthy(cluster: &Cluster) -> Result<()> {
    cluster.await_that("nodes, operators and agents are well", PATIENCE, || {
        for kind in ["nodes", "nodes.transship.dev"] {
            let text = cluster.kubectl(&["get", kind, "-o", "json"])?;
            let list: Value = serde_json::from_str(&text)?;
            let all = list["items"].as_array().cloned().unwrap_or_default();
            if all.len() < NODES.len() || !all.iter().all(is_ready) {
                return Ok(false);
            }
        }
        let pods = ours(cluster, "app.kubernetes.io/component in (agent,operator)")?;
        Ok(pods.len() == 2 * NODES.len() && pods.iter().all(is_ready))
    })
}

/// Whether an object's condition Ready is true and it stays.
pub fn is_ready(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_null() && condition(object, "Ready").0 == "True"
}

/// How often a pod's containers were started again.
pub fn restarts(pod: &Value) -> u64 {
    let containers = pod["status"]["containerStatuses"].as_array();
    containers.into_iter().flatten().filter_map(|status| status["restartCount"].as_u64()).sum()
}
