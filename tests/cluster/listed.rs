//! Which nodes there are: what the chart's value `discovery.nodes` lists gets a Node, and differences are told; what
//! has left the cluster has none.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use transship_tests::cluster::{Cluster, condition, path_in};

use crate::{placement::plugin, refusal::Undo, uninstall::helm};

const NODE_KIND: &str = "nodes.transship.dev";
const ABSENT: [&str; 2] = ["listed-08", "listed-09"];
/// How long ours stays when the cluster's node is gone.
const MINUTE: Duration = Duration::from_secs(60);

/// Upgrades the release to have this value of the chart, besides those that it has, and waits until all
/// operators know.
pub fn upgrade(set: &str, value: &str) -> Result<()> {
    let chart = path_in("TRANSSHIP_CHECKOUT")?.join("charts/transship").display().to_string();
    helm(&[
        "upgrade",
        "transship",
        &chart,
        "--namespace",
        "transship-system",
        "--reuse-values",
        set,
        value,
        "--wait",
        "--timeout",
        "3m",
    ])
}

/// Lists these nodes, as JSON.
fn list(nodes: &str) -> Result<()> {
    upgrade("--set-json", &format!("discovery.nodes={nodes}"))
}

#[test]
#[ignore = "the operators are replaced twice; a list of labelled Nodes is shown with the tests of placement"]
fn the_nodes_that_the_chart_lists_are_made_and_missed_until_the_list_is_gone() -> Result<()> {
    let cluster = Cluster::with_namespace("listed")?;
    let back = Undo(|| drop(list("[]")));
    list(r#"["node-a", "listed-[08:09]"]"#)?;
    cluster.await_that("all nodes are compared with the list", Duration::from_secs(60), || {
        for (node, status, reason) in [
            ("node-a", "True", "OnTheList"),
            (ABSENT[0], "True", "OnTheList"),
            (ABSENT[1], "True", "OnTheList"),
            ("node-b", "False", "NotOnTheList"),
        ] {
            let (is, why, _) = condition(&cluster.get(NODE_KIND, node)?, "Listed");
            ensure!((is.as_str(), why.as_str()) == (status, reason), "{node} is {is:?}: {why}");
        }
        Ok(true)
    })?;
    let (_, differences) = plugin(&["nodes"])?;
    for words in
        ["listed, but never joined: listed-08, listed-09", "joined, but not listed: node-b"]
    {
        ensure!(differences.contains(words), "{differences:?} does not say {words:?}");
    }
    drop(back);
    // There never was a cluster node of their names.
    cluster.await_that("who is not listed any more leaves", Duration::from_secs(150), || {
        for node in ABSENT {
            ensure!(cluster.get(NODE_KIND, node)?.is_null(), "{node} is still there");
        }
        Ok(condition(&cluster.get(NODE_KIND, "node-a")?, "Listed").0.is_empty())
    })
}

#[test]
#[ignore = "a minute for what is shown above of nodes that never came"]
fn the_node_of_one_that_has_left_the_cluster_goes_a_minute_later() -> Result<()> {
    const VISITOR: &str = "visitor";
    let cluster = Cluster::with_namespace("visitor")?;
    let remove = || {
        for kind in ["node", NODE_KIND] {
            drop(cluster.kubectl(&[
                "delete",
                kind,
                VISITOR,
                "--ignore-not-found",
                "--timeout=30s",
            ]));
        }
    };
    remove();
    let _removed = Undo(remove);
    for version in ["v1", "transship.dev/v1alpha1"] {
        let node = json!({"apiVersion": version, "kind": "Node", "metadata": {"name": VISITOR},
            "spec": {}});
        cluster.apply(&node.to_string())?;
    }
    cluster.await_that("an operator has looked at it", Duration::from_secs(30), || {
        Ok(cluster.get(NODE_KIND, VISITOR)?["status"]["healthIndicator"] == 0)
    })?;
    let left = Instant::now();
    cluster.kubectl(&["delete", "node", VISITOR])?;
    cluster.await_that("ours is gone as well", MINUTE + Duration::from_secs(15), || {
        Ok(cluster.get(NODE_KIND, VISITOR)?.is_null())
    })?;
    ensure!(left.elapsed() >= MINUTE, "it went after {:?}", left.elapsed());
    Ok(())
}
