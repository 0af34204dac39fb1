//! What was done to a pod from its node, and what stands between the two nodes, is found beforehand.
//! The pods are real; of the nodes, what two on one machine cannot differ in is made up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::{Cluster, condition};

use crate::{
    preflight::{container_id, dry_run, in_network},
    refusal::{Serving, Undo, refused, refused_for, refused_while, server},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Where runc keeps what it knows of containers.
const RUNC: &str = "/run/containerd/runc/k8s.io";

#[test]
fn what_was_done_to_a_pod_from_its_node_is_found() -> Result<()> {
    let cluster = Cluster::with_namespace("node-refusals")?;
    let mut web = Serving::deploy(&cluster, "")?;
    let pod = web.pod.clone();
    let id = container_id(&cluster, &pod)?;
    let on_node = |command: &[&str]| cluster.on_node(&pod.node, command);

    // Somebody has paused it.
    let runc = |verb: &str| on_node(&["runc", "--root", RUNC, verb, &id]);
    let resume = Undo(|| drop(runc("resume")));
    runc("pause")?;
    refused(&cluster, &pod, &Value::Null, &[("FrozenContainer", "paused already")])?;
    drop(resume);
    web.is_untouched(&cluster)?;

    // As runc notes it of a container whose runtime lets such an annotation through, which the
    // sandbox's does not.
    let note = r#""org.criu.config=/etc/criu/mine.conf","#;
    let file = format!("{RUNC}/{id}/state.json");
    let edit = |expression: &str| on_node(&["sed", "-i", expression, &file]);
    let forget = Undo(|| drop(edit(&format!("s|{note}||"))));
    edit(&format!(r#"s|"labels":\["|"labels":[{note}"|"#))?;
    refused(&cluster, &pod, &Value::Null, &[("CriuConfiguration", "/etc/criu/mine.conf")])?;
    drop(forget);
    web.is_untouched(&cluster)?;

    // Its network was added to.
    const FAR: &str = "10.9.0.0/16";
    const FAR_V6: &str = "fd09::/64";
    const ALONE: &str = "10.99.0.9/32";
    const FURTHER: &str = "10.244.99.99/32";
    const NEIGHBOUR: &str = "10.244.99.98";
    let within = |command: &[&str]| in_network(&cluster, &pod, command);
    let restore = Undo(|| {
        drop(within(&["ip", "rule", "del", "from", FAR, "lookup", "7"]));
        drop(within(&["ip", "route", "del", FAR]));
        drop(within(&["ip", "route", "del", ALONE]));
        drop(within(&["ip", "-6", "route", "del", FAR_V6]));
        drop(within(&["ip", "link", "del", "odd0"]));
        drop(within(&["ip", "address", "del", FURTHER, "dev", "eth0"]));
    });
    within(&["ip", "link", "add", "odd0", "type", "veth", "peer", "name", "odd1"])?;
    within(&["ip", "route", "add", FAR, "dev", "eth0"])?;
    within(&["ip", "route", "add", ALONE, "dev", "eth0"])?;
    within(&["ip", "-6", "route", "add", FAR_V6, "dev", "eth0"])?;
    within(&["ip", "rule", "add", "from", FAR, "lookup", "7"])?;
    within(&["ip", "address", "add", FURTHER, "dev", "eth0"])?;
    let expected = [
        ("NetworkDevices", "further addresses (10.244.99.99/32)"),
        ("NetworkDevices", "further interfaces (odd"),
        ("NetworkDevices", "further routes (10.9.0.0/16, 10.99.0.9/32, fd09::/64)"),
        ("NetworkDevices", "further routing rules ("),
    ];
    refused(&cluster, &pod, &Value::Null, &expected)?;
    drop(restore);
    web.is_untouched(&cluster)?;

    // It was set otherwise.
    let policy = |verb: &str| {
        let selector = ["src", FAR, "dst", "10.8.0.0/16", "dir", "out"];
        let action: &[&str] = if verb == "add" { &["action", "block"] } else { &[] };
        within(&[&["ip", "xfrm", "policy", verb][..], &selector, action].concat())
    };
    // Every namespace begins with 60 seconds.
    let fin_timeout =
        |seconds: &str| within(&["sysctl", "-w", &format!("net.ipv4.tcp_fin_timeout={seconds}")]);
    let restore = Undo(|| {
        drop(within(&["tc", "qdisc", "del", "dev", "eth0", "root"]));
        drop(within(&["tc", "qdisc", "del", "dev", "eth0", "ingress"]));
        drop(within(&["ip", "neigh", "del", NEIGHBOUR, "dev", "eth0"]));
        drop(policy("delete"));
        drop(fin_timeout("60"));
    });
    let bucket = ["tbf", "rate", "100mbit", "burst", "256k", "latency", "50ms"];
    within(&[&["tc", "qdisc", "add", "dev", "eth0", "root"][..], &bucket].concat())?;
    within(&["tc", "qdisc", "add", "dev", "eth0", "ingress"])?;
    let permanent = ["lladdr", "02:00:0a:f4:63:62", "nud", "permanent", "dev", "eth0"];
    within(&[&["ip", "neigh", "add", NEIGHBOUR][..], &permanent].concat())?;
    policy("add")?;
    fin_timeout("59")?;
    let expected = [
        ("NetworkSettings", "queueing disciplines (tbf dev eth0, ingress dev eth0)"),
        ("NetworkSettings", "static neighbours (10.244.99.98 dev eth0)"),
        ("NetworkSettings", "IPsec states and policies (policy from 10.9.0.0/16 to 10.8.0.0/16)"),
        ("NetworkSettings", "parameters of its own (net.ipv4.tcp_fin_timeout = 59)"),
    ];
    refused(&cluster, &pod, &Value::Null, &expected)?;
    drop(restore);
    web.is_untouched(&cluster)
}

#[test]
fn a_pod_of_which_the_agent_cannot_see_everything_is_refused() -> Result<()> {
    const NFT: &str = "/opt/transship/bin/nft";
    const ASIDE: &str = "/opt/transship/bin/nft.aside";
    let cluster = Cluster::with_namespace("unseen-refusals")?;
    let mut web = Serving::deploy(&cluster, "")?;
    let node = web.pod.node.clone();
    // The rules in the pod's network could be any.
    let restore = Undo(|| drop(cluster.on_node(&node, &["mv", "-f", ASIDE, NFT])));
    cluster.on_node(&node, &["mv", NFT, ASIDE])?;
    let expected = [("NotInspected", "the rules in the pod's network cannot be read: ")];
    refused(&cluster, &web.pod, &Value::Null, &expected)?;
    web.is_untouched(&cluster)?;
    drop(restore);
    let answer = dry_run(&cluster, &web.pod.name, Some(web.pod.other_node()))?;
    ensure!(condition(&answer, "Succeeded").1 == "DryRun", "{answer:#}");
    Ok(())
}

#[test]
fn a_pod_that_is_too_large_for_the_target_is_refused() -> Result<()> {
    let cluster = Cluster::with_namespace("size-refusals")?;
    // A System V segment of which no page is there yet: larger than any node, and it costs none anything.
    let mut web = Serving::deploy(
        &cluster,
        "import ctypes; assert ctypes.CDLL(None).shmget(0, ctypes.c_size_t(1 << 50), 0o11600) >= 0",
    )?;
    let expected =
        [("Space", "1.00 PiB of memory and files"), ("Memory", "needs 1.00 PiB of memory")];
    refused(&cluster, &web.pod, &Value::Null, &expected)?;
    web.is_untouched(&cluster)
}

/// All nodes of the sandbox are one machine, so the target is made up: a cluster node without kubelet,
/// and of our Node what its agent would write.
#[test]
fn a_target_that_is_another_machine_is_refused() -> Result<()> {
    const UNLIKE: &str = "node-unlike";
    let cluster = Cluster::with_namespace("machine-refusals")?;
    let mut web = Serving::deploy(&cluster, "")?;
    let source = cluster.get("nodes.transship.dev", &web.pod.node)?["status"].clone();
    let mut cpu = source["cpu"].clone();
    let lost = cpu["features"].as_array_mut().and_then(Vec::pop);
    let lost = lost.as_ref().and_then(Value::as_str).context("the source has no CPU features")?;
    let cgroups = source["runtime"]["cgroupVersion"].as_i64().context("no version of cgroups")?;
    let cgroups = 3 - cgroups;

    let clean = || {
        for kind in ["nodes.transship.dev", "node"] {
            let options = ["--ignore-not-found", "--timeout=30s"];
            drop(cluster.kubectl(&[&["delete", kind, UNLIKE], &options[..]].concat()));
        }
    };
    clean();
    let _undo = Undo(clean);
    let patch = |kind: &str, status: Value, user: &[&str]| -> Result<String> {
        let patch = json!({"status": status}).to_string();
        let what = ["patch", kind, UNLIKE, "--subresource=status", "--type=merge", "--patch"];
        cluster.kubectl(&[&what[..], &[patch.as_str()], user].concat())
    };
    // Without labels and room, so that no DaemonSet and no scheduler puts anything there.
    let core = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": UNLIKE}});
    cluster.apply(&core.to_string())?;
    let ready =
        json!({"type": "Ready", "status": "True", "reason": "MadeUp", "message": "made up"});
    patch("node", json!({"conditions": [ready]}), &[])?;
    cluster.await_that("the node takes pods", PATIENCE, || {
        let taints = cluster.get("node", UNLIKE)?["spec"]["taints"].clone();
        Ok(taints.as_array().is_none_or(Vec::is_empty))
    })?;
    let ours = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Node",
        "metadata": {"name": UNLIKE}, "spec": {}});
    cluster.apply(&ours.to_string())?;
    let status = json!({
        "arch": "arm64", "cpu": cpu, "criu": {"version": "1.0", "features": ["kcmp"]},
        "runtime": {"cgroupVersion": cgroups},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Available",
            "message": "made up", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    // Only the agent of a node may write this.
    let agent = "--as=system:serviceaccount:transship-system:transship-agent";
    let of_node = format!("--as-user-extra=authentication.kubernetes.io/node-name={UNLIKE}");
    patch("nodes.transship.dev", status, &[agent, &of_node])?;
    cluster.await_that("the operator has seen the node", PATIENCE, || {
        let node = cluster.get("nodes.transship.dev", UNLIKE)?;
        Ok(node["status"]["healthIndicator"] == 100)
    })?;

    let (lacks, version) = (format!("CPU lacks {lost}"), format!("the target version {cgroups}"));
    let expected = [
        ("Architecture", "the target arm64"),
        ("CpuFeatures", lacks.as_str()),
        ("KernelFeatures", "the target's kernel lacks"),
        ("CriuVersion", "and 1.0 on the target"),
        ("CgroupVersion", version.as_str()),
    ];
    refused(&cluster, &web.pod, &json!({"targetNode": UNLIKE}), &expected)?;
    web.is_untouched(&cluster)
}

#[test]
fn a_target_without_our_cni_plugin_takes_no_pod_with_its_old_or_a_new_address() -> Result<()> {
    const LIST: &str = "/etc/cni/net.d/10-sandbox.conflist";
    /// The agent looks every 15 seconds. Whoever asks so soon after a look has longer than that again.
    const FRESH: Duration = Duration::from_secs(7);
    let cluster = Cluster::with_namespace("plugin-refusals")?;
    let mut web = Serving::deploy(&cluster, "")?;
    let target = web.pod.other_node();
    let on_target = |command: &[&str]| cluster.on_node(target, command);
    let saved = format!("{LIST}.saved");
    let take_out = format!(
        r#"! grep -q transship-cni {LIST} || sed -i.saved 's/,{{"type":"transship-cni"}}//' {LIST}"#
    );
    let take_out = || on_target(&["sh", "-c", &take_out]);
    let restore = Undo(|| drop(on_target(&["mv", "-f", &saved, LIST])));
    let mut since: Option<Instant> = None;
    // Before each question, since a busy machine may take its time for each answer.
    let mut is_missing = || -> Result<()> {
        if since.is_some_and(|since| since.elapsed() < FRESH) {
            return Ok(());
        }
        take_out()?;
        // What is taken out right after the agent's look is missing until its next one.
        cluster.await_that("the agent has put it back", PATIENCE, || {
            Ok(on_target(&["cat", LIST])?.contains("transship-cni"))
        })?;
        since = Some(Instant::now());
        take_out().map(drop)
    };
    for (network, expected) in [
        ("Close", ("NetworkPlugin", "10-sandbox.conflist")),
        ("Preserve", ("Address", "transship-cni is not in the target's CNI configuration")),
    ] {
        let wishes = json!({"network": network});
        refused_while(&cluster, &web.pod, &wishes, &[expected], &mut is_missing)
            .context(network)?;
        web.is_untouched(&cluster).context(network)?;
    }
    drop(restore);
    Ok(())
}

#[test]
fn a_static_pod_stays_on_its_node() -> Result<()> {
    const FILE: &str = "/etc/kubernetes/manifests/transship-test.json";
    let cluster = Cluster::with_namespace("static-refusals")?;
    let manifest = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "fixed", "namespace": cluster.namespace, "labels": {"app": "fixed"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [server("", &Value::Null)]}});
    let on_node = |script: &str| cluster.on_node("node-a", &["sh", "-c", script]);
    let _undo = Undo(|| drop(on_node(&format!("rm -f {FILE}"))));
    // kubelet reads a file as soon as it has its name.
    on_node(&format!(
        "cat > /etc/kubernetes/fixed <<'END'\n{manifest}\nEND\nmv /etc/kubernetes/fixed {FILE}"
    ))?;
    let mut fixed = Serving::of(&cluster, "app=fixed")?;
    refused_for(&cluster, &fixed.pod, "OwnerNotSupported", &["a static pod of its node"])?;
    fixed.is_untouched(&cluster)
}

#[test]
fn a_pod_of_a_daemon_set_stays_on_its_node() -> Result<()> {
    let cluster = Cluster::with_namespace("daemon-refusals")?;
    let labels = json!({"app": "each"});
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "each"},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0,
                "nodeSelector": {"kubernetes.io/hostname": "node-a"},
                "containers": [server("", &Value::Null)]}}}});
    cluster.apply(&set.to_string())?;
    let mut each = Serving::of(&cluster, "app=each")?;
    refused_for(&cluster, &each.pod, "OwnerNotSupported", &["DaemonSet each"])?;
    // It is looked at all the same.
    let answer = dry_run(&cluster, &each.pod.name, Some("node-b"))?;
    let (_, reason, message) = condition(&answer, "Succeeded");
    ensure!(reason == "OwnerNotSupported" && message.contains("DaemonSet each"), "{answer:#}");
    ensure!(answer["status"]["forecast"]["bytes"].is_u64(), "{answer:#}");
    each.is_untouched(&cluster)
}
