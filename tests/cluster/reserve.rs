//! The chart's value `scheduler.overcommitPercent`: a part of each node is kept free.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use transship_tests::{
    cluster::{Cluster, condition},
    faults::nodes::{NODES, operators},
    simulation::millis,
};

use crate::{
    listed::upgrade,
    placement::{plugin, pod, template},
    refusal::Undo,
};

const PATIENCE: Duration = Duration::from_secs(60);
const REASON: &str = "no resources available to schedule container";

fn overcommit(percent: &str) -> Result<()> {
    upgrade("--set", &format!("scheduler.overcommitPercent={percent}"))
}

#[test]
#[ignore = "the operators are replaced twice; that a reserve is kept is shown without a cluster"]
fn a_pod_that_fits_only_without_the_reserve_waits_until_there_is_none() -> Result<()> {
    let cluster = Cluster::with_namespace("reserve")?;
    let cpu = cluster.get("node", NODES[0])?["status"]["allocatable"]["cpu"].clone();
    let more_than_half = millis(&cpu)? * 55 / 100;
    let back = Undo(|| drop(overcommit("0")));
    overcommit("-50")?;
    // Who was before knows of no reserve.
    cluster.await_that("the former operators are gone", PATIENCE, || {
        Ok(operators(&cluster)?.len() == 2)
    })?;
    cluster.apply(&pod("large", template("large", json!({}), more_than_half)).to_string())?;
    cluster.await_that("its scheduler says why it waits", PATIENCE, || {
        let (_, _, message) = condition(&cluster.get("pod", "large")?, "PodScheduled");
        ensure!(message.contains(REASON), "{message:?}");
        Ok(true)
    })?;
    let (table, whole) = plugin(&["place", "large", "--namespace", &cluster.namespace])?;
    for node in NODES {
        let cells = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let row = format!("{node} - - strategy {REASON}");
        ensure!(table.lines().any(|line| cells(line) == row), "no {row:?} in {table}");
    }
    ensure!(whole.contains(REASON), "{whole}");
    let waiting = cluster.get("pod", "large")?;
    ensure!(waiting["spec"]["nodeName"].is_null(), "{}", waiting["spec"]["nodeName"]);
    drop(back);
    cluster.await_that("it has a node", PATIENCE, || {
        Ok(cluster.get("pod", "large")?["spec"]["nodeName"].is_string())
    })
}
