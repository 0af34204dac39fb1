//! New connections through the Service while its pod moves: from each node and from outside.

use std::{
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::Cluster,
    prober::{Report, probe},
};

use crate::counter;

/// What a client may notice on top of the freeze, on a machine that has other things to do; how much it is
/// is for `cargo xtask bench` to say.
const GRACE_MS: u64 = 3000;
/// How long one attempt may take before it counts as a miss.
const PATIENCE_MS: u64 = 250;
/// How long is tried at least, in seconds, however quickly the pod moves.
const AT_LEAST: &str = "8";

/// Begins to try, until the child's stdin is closed.
fn start(cluster: &Cluster, node: &str, address: &str) -> Result<Child> {
    let patience = PATIENCE_MS.to_string();
    let connect = ["transship-probe", "connect", address, AT_LEAST, "--with-stdin"];
    Ok(cluster
        .on_node_command(node, &[&connect[..], &["--patience", patience.as_str()]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?)
}

fn freeze_ms(migration: &Value) -> Result<u64> {
    let text = migration["status"]["downtime"].as_str().context("no downtime")?;
    transship_api::duration::parse(text)
        .map(|freeze| freeze.as_millis() as u64)
        .map_err(|error| anyhow::anyhow!("{text}: {error}"))
}

#[test]
fn new_connections_through_the_service_fail_only_around_the_freeze() -> Result<()> {
    let cluster = Cluster::with_namespace("service")?;
    let before = counter(&cluster)?;
    let service = cluster.get("service", "counter")?;
    let address =
        format!("{}:8080", service["spec"]["clusterIP"].as_str().context("no clusterIP")?);
    // A fresh Service is refused until kube-proxy knows it; that is not ours.
    for node in ["node-a", "node-b"] {
        cluster.await_that("the Service answers", Duration::from_secs(30), || {
            let probe = cluster.on_node(node, &["transship-probe", "connect", &address, "1"])?;
            Ok(serde_json::from_str::<Report>(&probe)?.misses.is_empty())
        })?;
    }
    let nodes: Vec<(&str, Child)> = ["node-a", "node-b"]
        .into_iter()
        .map(|node| Ok((node, start(&cluster, node, &address)?)))
        .collect::<Result<_>>()?;
    // The host stands outside the nodes, and its way to Services leads through one of them.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let socket = address.parse()?;
    let outside = std::thread::spawn(move || {
        probe(socket, Duration::from_millis(10), Duration::from_millis(PATIENCE_MS), || {
            stopped.load(Ordering::Relaxed)
        })
    });

    let migration = cluster.migrate(&before.name, before.other_node())?;
    let object = cluster.succeeded(&migration, Duration::from_secs(90))?;
    let freeze = freeze_ms(&object)?;
    // To the end of the pod that bore the address before.
    cluster.await_that("the source is gone", Duration::from_secs(60), || {
        Ok(cluster.get("pod", &before.name)?.is_null())
    })?;

    let mut reports: Vec<(&str, Report)> = Vec::new();
    for (node, child) in nodes {
        // This closes its stdin.
        let output = child.wait_with_output()?;
        let report =
            serde_json::from_slice(&output.stdout).with_context(|| format!("from {node}"))?;
        reports.push((node, report));
    }
    stop.store(true, Ordering::Relaxed);
    reports.push(("outside", outside.join().expect("prober")));
    for (from, report) in &reports {
        eprintln!(
            "{from}: {} attempts, {} missed within {} ms; freeze {freeze} ms",
            report.attempts,
            report.misses.len(),
            report.outage_ms()
        );
        ensure!(report.attempts > 500, "from {from}: only {} attempts", report.attempts);
        // Times of misses are those of the attempts' begin, so the span between them is what a
        // client sees as the outage.
        ensure!(
            report.outage_ms() <= freeze + GRACE_MS,
            "from {from}: freeze {freeze} ms, {report:?}"
        );
    }
    Ok(())
}
