//! One node: whether pods can be moved from and to it, with what, and how to mend what is missing.

use anyhow::{Result, bail};
use kube::Client;
use transship_api::{NodeStatus, conditions};
use transship_core::preflight::{self, NodeView};

use crate::Outcome;
use crate::table::{self, or_dash};

/// Runs the command.
pub async fn run(client: Client, name: &str) -> Result<Outcome> {
    let nodes = super::nodes(&client).await?;
    let Some(node) = nodes.iter().find(|node| node.name == name) else {
        bail!(
            "there is no node {name:?}; write a name that `kubectl get nodes` prints, or pod/{name}"
        );
    };
    print!("{}", show(node));
    let others: Vec<Vec<String>> = nodes
        .iter()
        .filter(|other| other.name != name && other.agent.is_some())
        .map(|other| {
            let way = |from: &NodeView, to: &NodeView| {
                let found = preflight::between(from, to);
                if found.is_empty() { "-".into() } else { preflight::summary(&found) }
            };
            vec![format!("  {}", other.name), way(node, other), way(other, node)]
        })
        .collect();
    if !others.is_empty() {
        println!("\nWhat stands between it and other nodes");
        print!("{}", table::format(&["  NODE", "FROM HERE", "TO HERE"], &others));
    }
    match preflight::objection(node) {
        None => {
            println!("\nPods can be moved from and to {name}.");
            Ok(Outcome::Done)
        }
        Some(why) => {
            println!("\nPods cannot be moved to {name}: {why}");
            Ok(Outcome::Failed)
        }
    }
}

fn show(node: &NodeView) -> String {
    let none = NodeStatus::default();
    let status = node.agent.as_ref().and_then(|node| node.status.as_ref()).unwrap_or(&none);
    let criu = status.criu.clone().unwrap_or_default();
    let runtime = status.runtime.clone().unwrap_or_default();
    let agent = status.agent.clone().unwrap_or_default();
    let cgroup = runtime.cgroup_version.map(|version| version.to_string());
    let engine = format!("{} {}, runc {}", runtime.name, runtime.version, runtime.runc);
    let mut text = String::new();
    for (label, value) in [
        ("Node", node.name.clone()),
        ("Agent", or_dash(Some(&agent.version))),
        ("Host side", format!("{:?} {}", agent.host_side_state, agent.host_side_version)),
        ("CRIU", or_dash(Some(&criu.version))),
        ("Changed pages", or_dash(Some(&criu.page_tracking))),
        ("Network lock", or_dash(Some(&criu.network_lock))),
        ("Runtime", if runtime.name.is_empty() { "-".into() } else { engine }),
        ("Cgroups", or_dash(cgroup.as_deref())),
        ("Kernel", or_dash(status.kernel.as_deref())),
        ("CPU", or_dash(status.cpu.as_ref().map(|cpu| cpu.model.as_str()))),
        ("Features", or_dash(Some(&criu.features.join(" ")))),
    ] {
        text += &format!("{label:<14} {}\n", value.trim_end());
    }
    text += "\nConditions\n";
    let rows: Vec<Vec<String>> = [
        conditions::READY,
        conditions::CRIU_READY,
        conditions::RUNTIME_READY,
        conditions::STORE_REACHABLE,
        conditions::STATE_KEPT,
        conditions::FENCED,
        conditions::LISTED,
    ]
    .into_iter()
    .filter_map(|type_| conditions::find(&status.conditions, type_))
    .map(|c| vec![format!("  {}", c.type_), c.status.clone(), c.reason.clone(), c.message.clone()])
    .collect();
    if rows.is_empty() {
        text += "  no agent has reported; see `kubectl get daemonset -A -l app.kubernetes.io/name=transship`\n";
    } else {
        text += &table::format(&["  TYPE", "STATUS", "REASON", "MESSAGE"], &rows);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_that_decides_is_shown_and_what_is_missing_says_how_to_mend_it() {
        let agent = serde_json::from_value(json!({
            "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": "a"},
            "spec": {}, "status": {
                "criu": {"version": "4.2.1", "features": ["rseq"], "pageTracking": "PagemapScan"},
                "conditions": [{"type": "RuntimeReady", "status": "False",
                    "reason": "WrapperNotActive", "message": "x.toml sets BinaryName; remove it",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        }))
        .unwrap();
        let text = show(&NodeView { name: "a".into(), core: None, agent: Some(agent) });
        for words in ["4.2.1", "PagemapScan", "rseq", "WrapperNotActive", "remove it"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let nothing = show(&NodeView { name: "b".into(), ..NodeView::default() });
        assert!(nothing.contains("no agent has reported"), "{nothing}");
    }
}
