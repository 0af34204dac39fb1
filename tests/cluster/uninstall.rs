//! `helm uninstall` leaves the nodes as they were; running pods go on and can be stopped.

use std::{process::Command, time::Duration};

use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use transship_tests::{
    cluster::{Cluster, path_in},
    counter::Client,
};

use crate::{counter, faults::source_goes_on, refusal::refused};

pub fn helm(args: &[&str]) -> Result<()> {
    let output = Command::new(path_in("TRANSSHIP_HELM")?).args(args).output()?;
    ensure!(output.status.success(), "helm {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What the product changes on a node, as text. While a shim lives that was started with the wrapper
/// (of a pod of somebody else, say), a link to runc stays in its place, and a process that waits.
const TRACES: &str = "find /opt/transship -mindepth 1 ! -type d ! -type l ! -name .removing 2>/dev/null; \
    [ -e /opt/transship ] || find /sys/fs/cgroup/freezer /sys/fs/cgroup/memory -maxdepth 1 -name '*transship*'; \
    ls -d /etc/containerd/conf.d/transship.toml 2>/dev/null; \
    grep -l transship /etc/containerd/config.toml /etc/cni/net.d/* 2>/dev/null; \
    ls /usr/lib/cni/transship-cni 2>/dev/null; \
    for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -E '^/opt/transship|transship-(holder|agent)'; done; true";

#[test]
fn helm_uninstall_leaves_nodes_as_they_were_and_running_pods_alone() -> Result<()> {
    let cluster = Cluster::with_namespace("uninstall")?;
    let before = counter(&cluster)?;
    let migration = cluster.migrate(&before.name, before.other_node())?;
    cluster.succeeded(&migration, Duration::from_secs(90))?;
    cluster.kubectl(&["delete", "migration", &migration, "--timeout=60s"])?;
    let pod = cluster.pod("app=counter")?;
    let client = Client::of(&pod)?;

    let uninstalling = std::thread::spawn(|| {
        helm(&[
            "uninstall",
            "transship",
            "--namespace",
            "transship-system",
            "--wait",
            "--timeout",
            "3m",
        ])
    });
    // Operators that start again in the middle of it do not take the request back; nor does the Job end
    // with its first pod.
    cluster.await_that("the nodes are asked", Duration::from_secs(60), || {
        let path = r"jsonpath={.items[*].metadata.annotations.transship\.dev/uninstall}";
        Ok(cluster.kubectl(&["get", "nodes.transship.dev", "-o", path])?.contains("true"))
    })?;
    for node in ["node-a", "node-b"] {
        cluster.try_on_node(node, &["transship-probe", "kill", &cluster.namespace, "operator"])?;
    }
    uninstalling.join().map_err(|_| anyhow!("helm panicked"))??;
    let leases =
        cluster.kubectl(&["--namespace=transship-system", "get", "leases", "-o", "name"])?;
    ensure!(!leases.contains("transship-node-"), "left behind: {leases}");

    // The moved pod and everything else runs on, can be looked into, and can be stopped.
    ensure!(cluster.kubectl(&["exec", &pod.name, "--", "echo", "alive"])? == "alive\n");
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");
    cluster.kubectl(&["delete", "deployment", "counter", "--timeout=60s"])?;
    cluster.await_that("the pod is gone", Duration::from_secs(60), || {
        Ok(cluster.list("pods", "app=counter")?.is_empty())
    })?;
    // A fresh pod starts without the product.
    counter(&cluster)?;
    for node in ["node-a", "node-b"] {
        // The last process of the product ends some seconds after the last shim that it waited for.
        cluster.await_that("the node is as it was", Duration::from_secs(60), || {
            let left = cluster.on_node(node, &["sh", "-c", TRACES])?;
            ensure!(left.trim().is_empty(), "{node} still has {left}");
            Ok(true)
        })?;
    }

    // And back, for the tests that follow.
    let checkout = path_in("TRANSSHIP_CHECKOUT")?;
    let path = |relative: &str| checkout.join(relative).display().to_string();
    helm(&[
        "install",
        "transship",
        &path("charts/transship"),
        "--namespace",
        "transship-system",
        "--values",
        &path("src/xtask/sandbox-assets/values.yaml"),
        "--wait",
        "--timeout",
        "3m",
    ])?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "nodes.transship.dev",
        "--all",
        "--timeout=60s",
    ])?;
    let pod = cluster.pod("app=counter")?;
    // It was started without the wrapper, which so could not refuse what kubelet starts beside it.
    let why = "before the node's runtime wrapper was in effect";
    let client = Client::of(&pod)?;
    refused(&cluster, &pod, &json!({}), &[("SandboxWithoutWrapper", why)])?;
    source_goes_on(&cluster, &pod, client)?;
    cluster.kubectl(&["rollout", "restart", "deployment/counter"])?;
    cluster.rolled_out("counter")?;
    cluster.kubectl(&["wait", "--for=delete", &format!("pod/{}", pod.name), "--timeout=60s"])?;
    cluster.moved("app=counter", &cluster.pod("app=counter")?)?;
    Ok(())
}
