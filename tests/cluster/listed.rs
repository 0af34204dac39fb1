//! The chart's value `discovery.nodes`: what it lists gets a Node, and differences are told.

use std::time::Duration;

use anyhow::{Result, ensure};
use transship_tests::cluster::{Cluster, condition, path_in};

use crate::{placement::plugin, refusal::Undo, uninstall::helm};

const NODE_KIND: &str = "nodes.transship.dev";
const ABSENT: [&str; 2] = ["listed-08", "listed-09"];

/// Lists these nodes, as JSON, and waits until all operators know.
fn list(nodes: &str) -> Result<()> {
    let chart = path_in("TRANSSHIP_CHECKOUT")?.join("charts/transship").display().to_string();
    helm(&[
        "upgrade",
        "transship",
        &chart,
        "--namespace",
        "transship-system",
        "--reuse-values",
        "--set-json",
        &format!("discovery.nodes={nodes}"),
        "--wait",
        "--timeout",
        "3m",
    ])
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
