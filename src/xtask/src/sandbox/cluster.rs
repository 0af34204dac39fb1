//! The cluster seen through its API, by way of kubectl.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    caches::kubernetes_directory,
    cmd::{output, run, wait_for},
    layout::{Node, kubeconfig},
};

/// What the API says about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its Ready condition is True.
    pub ready: bool,
    /// The boot that kubelet reported.
    pub boot_id: String,
}

/// kubectl for the sandbox.
pub fn kubectl(arguments: &[&str]) -> Command {
    client("kubectl", arguments)
}

/// One of the programs that speak to the API: kubectl or helm.
pub fn client(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(kubernetes_directory().join(program));
    command.env("KUBECONFIG", kubeconfig()).args(arguments);
    command
}

/// Waits until the API server says that it is ready.
pub fn wait_for_api() -> Result<()> {
    wait_for("the API server is ready", Duration::from_secs(90), || {
        let mut ask = kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"]);
        Ok(ask.output()?.status.success().then_some(()))
    })
}

/// All nodes that the API knows.
pub fn nodes() -> Result<BTreeMap<String, NodeView>> {
    let text = output(&mut kubectl(&["get", "nodes", "--output=json", "--request-timeout=5s"]))?;
    parse_nodes(&serde_json::from_str(&text)?)
}

fn parse_nodes(list: &Value) -> Result<BTreeMap<String, NodeView>> {
    let items = list["items"].as_array().context("a list of nodes without items")?;
    Ok(items
        .iter()
        .map(|node| {
            let conditions = node["status"]["conditions"].as_array();
            let ready = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let boot_id = text(&node["status"]["nodeInfo"]["bootID"]);
            (text(&node["metadata"]["name"]), NodeView { ready, boot_id })
        })
        .collect())
}

/// Waits until these nodes are Ready in the given boots.
pub fn wait_for_nodes(boots: &BTreeMap<Node, String>) -> Result<()> {
    let names: Vec<String> = boots.keys().map(|node| node.name()).collect();
    wait_for(format!("{} Ready", names.join(", ")), Duration::from_secs(120), || {
        let Ok(views) = nodes() else { return Ok(None) };
        let ready = |(node, boot): (&Node, &String)| {
            views.get(&node.name()).is_some_and(|view| view.ready && view.boot_id == *boot)
        };
        Ok(boots.iter().all(ready).then_some(()))
    })
}

/// Waits until pods can be made in the default namespace.
pub fn wait_for_service_account() -> Result<()> {
    wait_for("the default service account", Duration::from_secs(60), || {
        let mut ask = kubectl(&["get", "serviceaccount", "default", "--namespace=default"]);
        Ok(ask.output()?.status.success().then_some(()))
    })
}

/// Whether a namespace holds a Helm release of this name that was installed to its end.
pub fn deployed(release: &str, namespace: &str) -> Result<bool> {
    let arguments = ["status", release, "--namespace", namespace, "--output=json"];
    let answer = client("helm", &arguments).output().context("running helm")?;
    let status: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
    Ok(status["info"]["status"] == "deployed")
}

/// Makes every pod of the workloads in a namespace anew and waits for them.
pub fn restart_workloads(namespace: &str) -> Result<()> {
    let namespace = format!("--namespace={namespace}");
    let names = output(&mut kubectl(&[
        "get",
        "deployments,daemonsets,statefulsets",
        "--output=name",
        &namespace,
    ]))?;
    for name in names.lines() {
        run(&mut kubectl(&["rollout", "restart", name, &namespace]))?;
    }
    for name in names.lines() {
        if let Err(error) =
            run(&mut kubectl(&["rollout", "status", name, &namespace, "--timeout=180s"]))
        {
            bail!("{name} does not come up again: {error:#}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_ready_when_its_condition_is_true() {
        let node = |name: &str, status: &str| {
            json!({"metadata": {"name": name}, "status": {
                "conditions": [{"type": "MemoryPressure", "status": "True"},
                               {"type": "Ready", "status": status}],
                "nodeInfo": {"bootID": "b"}}})
        };
        let nodes =
            parse_nodes(&json!({"items": [node("node-a", "True"), node("node-b", "Unknown")]}));
        let nodes = nodes.unwrap();
        assert_eq!(nodes["node-a"], NodeView { ready: true, boot_id: "b".into() });
        assert!(!nodes["node-b"].ready);
        assert!(parse_nodes(&json!({})).is_err());
    }
}
