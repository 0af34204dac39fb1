//! The main job: a Deployment's pod moves and goes on.

use std::{
    io::BufReader,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_api::duration;
use transship_tests::{
    cluster::{Cluster, Pod, plugin},
    counter::Client,
    residue,
};

use crate::{
    counter,
    preflight::{dry_run, forecast},
};

const PATIENCE: Duration = Duration::from_secs(90);

/// Watches objects of a kind; the receiver gets each state until the guard is dropped.
struct Watch {
    kubectl: std::process::Child,
    states: mpsc::Receiver<Value>,
}

impl Watch {
    fn start(cluster: &Cluster, args: &[&str]) -> Result<Watch> {
        let all = [&["get"], args, &["--watch", "-o", "json", "--output-watch-events"]].concat();
        let mut kubectl = cluster.spawn_kubectl(&all)?;
        let stdout = kubectl.stdout.take().context("no stdout")?;
        let (sender, states) = mpsc::channel();
        std::thread::spawn(move || {
            let events =
                serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Value>();
            for event in events.map_while(Result::ok) {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { kubectl, states })
    }

    fn finish(mut self) -> Vec<Value> {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
        self.states.iter().collect()
    }
}

/// Moves the pod to the other node; gives it as it is there, and the status of its Migration.
fn moved(cluster: &Cluster, before: &Pod) -> Result<(Pod, Value)> {
    let migration = cluster.migrate(&before.name, before.other_node())?;
    let object = cluster.succeeded(&migration, PATIENCE)?;
    let after = cluster.pod("app=counter")?;
    ensure!(after.node == before.other_node(), "still on {}", after.node);
    ensure!(after.ip == before.ip, "address changed from {} to {}", before.ip, after.ip);
    let status = &object["status"];
    eprintln!("{} → {}: stood still for {}", before.node, after.node, status["downtime"]);
    Ok((after, status.clone()))
}

/// As much was carried as was forecast, and the pod stood still for about as long: that depends on the machine and
/// on what else it does.
fn has_come_true((bytes, freeze): (u64, Duration), status: &Value) -> Result<()> {
    let carried = status["bytesTotal"].as_u64().context("what was carried is not told")?;
    ensure!(carried.abs_diff(bytes) <= bytes / 4, "{bytes} bytes were forecast: {status:#}");
    let downtime = duration::parse(status["downtime"].as_str().context("no downtime")?)?;
    let about = freeze / 5..=freeze * 5;
    ensure!(about.contains(&downtime), "{freeze:?} were forecast: {status:#}");
    Ok(())
}

#[test]
fn a_deployments_pod_moves_with_memory_and_connection_and_behaves_like_any_pod() -> Result<()> {
    let cluster = Cluster::with_namespace("move")?;
    let before = counter(&cluster)?;
    let client = Client::of(&before)?;
    let expected = forecast(&dry_run(&cluster, &before.name, Some(before.other_node()))?)?;
    let deployments = Watch::start(&cluster, &["deployment", "counter"])?;
    let pods = Watch::start(&cluster, &["pods"])?;

    let (after, status) = moved(&cluster, &before)?;
    has_come_true(expected, &status)?;

    let deployments = deployments.finish();
    ensure!(!deployments.is_empty(), "the watch saw no Deployment");
    for event in &deployments {
        let status = &event["object"]["status"];
        for count in ["replicas", "readyReplicas", "availableReplicas"] {
            ensure!(status[count] == 1, "{count} was {} during the move", status[count]);
        }
    }
    for event in pods.finish() {
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(name == before.name || name == after.name, "an extra pod appeared: {name}");
    }
    ensure!(after.uid != before.uid);

    // The connection went on, and the numbers without a gap.
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");

    // logs, exec, probes, Service.
    cluster.await_that("logs of the moved pod go on", Duration::from_secs(10), || {
        Ok(cluster.kubectl(&["logs", &after.name])?.contains("served"))
    })?;
    let uptime = cluster.kubectl(&["exec", &after.name, "--", "cat", "/proc/1/comm"])?;
    ensure!(uptime.trim() == "python3", "{uptime}");
    let host = cluster.kubectl(&["exec", &after.name, "--", "cat", "/proc/sys/kernel/hostname"])?;
    ensure!(host.trim() == before.name, "the host name changed to {host}");
    let pod = cluster.get("pod", &after.name)?;
    ensure!(transship_tests::cluster::condition(&pod, "Ready").0 == "True");
    ensure!(pod["metadata"]["labels"]["pod-template-hash"].is_string());
    ensure!(pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet");
    let service = cluster.get("service", "counter")?;
    let ip = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
    for node in ["node-a", "node-b"] {
        // What the source had is taken away at this time, so a connection may take longer.
        cluster.await_that("the Service answers", Duration::from_secs(30), || {
            let connect = ["transship-probe", "connect", &format!("{ip}:8080"), "1"];
            let probe: Value = serde_json::from_str(&cluster.on_node(node, &connect)?)?;
            ensure!(probe["misses"].as_array().is_some_and(Vec::is_empty), "from {node}: {probe}");
            Ok(true)
        })?;
    }

    // A crash is a fresh start, never a replay of old memory.
    let mut client = Client::of(&after)?;
    ensure!(client.stop().first > report.last);
    let crash = "kill -9 $(pgrep -f -o 'mmap, socket, threading')";
    cluster.on_node(&after.node, &["sh", "-c", crash])?;
    cluster.await_that("the container is restarted", Duration::from_secs(60), || {
        let pod = cluster.get("pod", &after.name)?;
        let container = &pod["status"]["containerStatuses"][0];
        Ok(container["restartCount"] == 1 && container["ready"] == true)
    })?;
    client = Client::of(&after)?;
    ensure!(client.stop().first < 1000, "the restarted container went on with old memory");

    // And back.
    let client = Client::of(&after)?;
    moved(&cluster, &after)?;
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");
    Ok(())
}

#[test]
fn moves_in_a_row_leave_nothing_behind() -> Result<()> {
    nothing_is_left_behind_by(2)
}

#[test]
#[ignore = "two of them are made above"]
fn ten_moves_in_a_row_leave_nothing_behind() -> Result<()> {
    nothing_is_left_behind_by(10)
}

/// So many moves in a row, and the end of the pod.
fn nothing_is_left_behind_by(moves: u32) -> Result<()> {
    let cluster = Cluster::with_namespace("residue")?;
    let mut pod = counter(&cluster)?;
    // The pod's own things have other names after a move, so what is compared is their number by
    // kind, with the pod on the node where it began.
    let take = || residue::both_nodes(&cluster);
    let before = residue::settled(&cluster)?;
    let client = Client::of(&pod)?;
    let began = Instant::now();
    for _ in 0..moves {
        (pod, _) = moved(&cluster, &pod)?;
    }
    eprintln!("{moves} moves took {:?}", began.elapsed());
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    let mut after = take()?;
    let settled =
        cluster.await_that("nothing of the moves is left", Duration::from_secs(60), || {
            after = take()?;
            Ok(residue::kinds(&after).iter().all(|(kind, count)| {
                // The target record of the pod that lives stays as long as the pod does.
                let allowed = if kind.ends_with(" record") { 1 } else { 0 };
                *count <= residue::kinds(&before).get(kind).copied().unwrap_or(0) + allowed
            }))
        });
    settled.with_context(|| {
        let new: Vec<_> = after.difference(&before).collect();
        format!("left behind, or new: {new:#?}\nbefore: {:#?}", residue::kinds(&before))
    })?;

    // With the pod goes the rest.
    cluster.kubectl(&["delete", "deployment", "counter", "--timeout=60s"])?;
    cluster
        .await_that("the records go with the pod", Duration::from_secs(60), || {
            after = take()?;
            Ok(!after.iter().any(|thing| {
                thing.contains(" record ")
                    || thing.contains(" lent address ")
                    || thing.contains(&pod.ip)
            }))
        })
        .with_context(|| format!("{after:#?}"))
}

#[test]
fn the_plugin_moves_a_pod_and_shows_each_step() -> Result<()> {
    let cluster = Cluster::with_namespace("plugin")?;
    let before = counter(&cluster)?;
    let run = |args: &[&str]| -> Result<(bool, String, String)> {
        let output = plugin()?
            .args(["--namespace", &cluster.namespace])
            .args(args)
            .stdin(std::process::Stdio::null())
            .output()?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    let target = before.other_node();
    let (done, stdout, stderr) =
        run(&["migrate", &before.name, "--to", target, "--name", "by-plugin", "--wait"])?;
    ensure!(done, "{stdout}{stderr}");
    ensure!(stdout == "migration.transship.dev/by-plugin created\n", "{stdout}");
    ensure!(stderr.lines().any(|line| line.contains("stood still for")), "{stderr}");
    let (done, stdout, stderr) = run(&["describe", "by-plugin"])?;
    ensure!(
        done && stdout.contains("Timeline") && stdout.contains("target runs"),
        "{stdout}{stderr}"
    );
    let (done, stdout, stderr) = run(&["nodes"])?;
    ensure!(done && stdout.contains("node-a") && stdout.contains("node-b"), "{stdout}{stderr}");
    let (done, _, stderr) = run(&["cancel", "no-such-migration"])?;
    ensure!(!done && stderr.contains("not found"), "{stderr}");
    Ok(())
}
