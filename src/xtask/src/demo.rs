//! `cargo xtask demo`: the whole product on this machine, seen by a client.
//!
//! Brings up the sandbox with the chart, runs the example application with a client that holds one
//! TCP connection, applies the example Migration, and prints what happened. The cluster stays up.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args as ClapArgs;
use transship_tests::{
    cluster::{Cluster, Pod},
    counter::Client,
};

use crate::{
    images,
    sandbox::{self, layout},
};

/// Moves the example application.
#[derive(ClapArgs)]
pub struct Args {}

/// Runs the task.
pub fn run(_: Args) -> Result<ExitCode> {
    let root = layout::checkout()?;
    sandbox::ensure_tools()?;
    images::build(&root)?;
    sandbox::up()?;

    let cluster = Cluster::new(
        &layout::kubectl(),
        &layout::kubeconfig(),
        &std::env::current_exe()?,
        "default",
    );
    cluster.apply(&std::fs::read_to_string(root.join("examples/counter.yaml"))?)?;
    cluster.rolled_out("counter")?;
    let before = cluster.pod("app=counter")?;
    println!("\nThe application: pod {} on {}, address {}", before.name, before.node, before.ip);
    let client = Client::of(&before)?;
    println!("A client holds one TCP connection and asks for the next number every 2 ms.");

    let target = before.other_node();
    let manifest = std::fs::read_to_string(root.join("examples/migration.yaml"))?
        .replace("counter-to-b", "demo")
        .replace("POD", &before.name)
        .replace("node-b", target);
    cluster.kubectl(&["delete", "migration", "demo", "--ignore-not-found", "--timeout=60s"])?;
    println!(
        "\n$ sed \"s/POD/{}/; s/counter-to-b/demo/; s/node-b/{target}/\" examples/migration.yaml | kubectl apply -f -",
        before.name
    );
    let began = Instant::now();
    print!("{}", cluster.apply(&manifest)?);
    let waited =
        cluster.kubectl(&["wait", "--for=condition=Succeeded", "migration/demo", "--timeout=120s"]);
    let took = began.elapsed();

    let plugin = images::release_dir(&root).join("kubectl-transship");
    let described = std::process::Command::new(plugin)
        .env("KUBECONFIG", layout::kubeconfig())
        .args(["describe", "demo"])
        .output()?;
    println!("\n$ kubectl transship describe demo\n{}", String::from_utf8_lossy(&described.stdout));
    let report = client.stop();
    waited.context("the migration did not succeed; its description is above")?;
    let after = cluster.pod("app=counter")?;
    ensure!(after.node == target, "the pod is on {}", after.node);
    summary(&cluster, &before, &after, took, &report)
}

fn summary(
    cluster: &Cluster,
    before: &Pod,
    after: &Pod,
    took: Duration,
    report: &transship_tests::counter::Report,
) -> Result<ExitCode> {
    let object = cluster.get("migration", "demo")?;
    println!(
        "pod                  {} on {} → {} on {}",
        before.name, before.node, after.name, after.node
    );
    println!("address              {} → {}", before.ip, after.ip);
    println!("whole migration      {:.1} s", took.as_secs_f64());
    println!("freeze               {}", object["status"]["downtime"].as_str().unwrap_or("?"));
    println!("client's longest gap {} ms", report.longest_gap_ms);
    println!(
        "replies              {} (numbers {} to {})",
        report.replies, report.first, report.last
    );
    println!("lost or repeated     {}", report.jumps.len());
    if !report.is_whole() {
        bail!("the client saw a fault: {report:?}");
    }
    println!("\nThe connection survived and no reply was lost or repeated. The cluster is up:");
    println!("  export KUBECONFIG=$(cargo xtask sandbox kubeconfig)");
    Ok(ExitCode::SUCCESS)
}
