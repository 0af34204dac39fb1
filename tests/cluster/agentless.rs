//! A node whose agent is away: ordinary pods start and stop there as ever, and none is moved to it or from it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::{
    cluster::Cluster,
    faults::nodes::{NODES, healthy, is_ready},
};

use crate::{
    doctor::{doctor, is_told},
    preflight::{deployment, sleeper},
    refusal::{Serving, refused_for, server},
};

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_node_without_its_agent_runs_ordinary_pods_gives_and_takes_none_and_says_so() -> Result<()> {
    let cluster = Cluster::with_namespace("no-agent")?;
    let mut here = Serving::deploy(&cluster, "")?;
    let (home, lacking) = (here.pod.node.clone(), here.pod.other_node());
    cluster.apply(&deployment(
        "there",
        &json!({
            "nodeName": lacking, "terminationGracePeriodSeconds": 0,
            "containers": [server("", &Value::Null)],
        }),
    ))?;
    let mut there = Serving::of(&cluster, "app=there")?;

    let expression = json!({"key": "kubernetes.io/hostname", "operator": "NotIn",
        "values": [lacking]});
    let terms = json!([{"matchExpressions": [expression]}]);
    let required = json!({"nodeSelectorTerms": terms});
    let elsewhere =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
    let outcome = agents_run(&cluster, &elsewhere)
        .and_then(|()| ordinary_pods_start_and_stop(&cluster, lacking))
        .and_then(|()| is_missing(&cluster, &mut here, &mut there))
        .with_context(|| format!("{lacking} without its agent, the pods on {home} and there"));
    // Whatever came of it: others need the node.
    let restored = agents_run(&cluster, &Value::Null).and_then(|()| healthy(&cluster, &NODES));
    outcome.and(restored)?;
    let (code, text) = doctor(&cluster, &[&format!("node/{lacking}")])?;
    ensure!(code == 0, "{text}");
    here.is_untouched(&cluster)?;
    there.is_untouched(&cluster)
}

/// The agents run where this affinity lets them.
fn agents_run(cluster: &Cluster, affinity: &Value) -> Result<()> {
    const AGENTS: [&str; 2] = ["--namespace=transship-system", "daemonset/transship-agent"];
    let [namespace, agents] = AGENTS;
    let patch = json!({"spec": {"template": {"spec": {"affinity": affinity}}}}).to_string();
    cluster.kubectl(&[namespace, "patch", agents, "--type=merge", "-p", &patch])?;
    cluster.kubectl(&[namespace, "rollout", "status", agents, "--timeout=120s"]).map(drop)
}

/// Whatever lies where the records of moved pods are, nobody needs the agent for a pod that has none.
fn ordinary_pods_start_and_stop(cluster: &Cluster, node: &str) -> Result<()> {
    const DAMAGE: &str = "mkdir -p /var/lib/transship/pods && cd /var/lib/transship/pods && \
        mkdir -p not-a-uid 22222222-2222-2222-2222-222222222222 && \
        echo '{' > not-a-uid/record.json && \
        head -c 4096 /dev/urandom > 22222222-2222-2222-2222-222222222222/record.json";
    const REPAIR: &str = "cd /var/lib/transship/pods && \
        rm -rf not-a-uid 22222222-2222-2222-2222-222222222222";
    let on_this = format!("--field-selector=spec.nodeName={node}");
    let agents = [
        "--namespace=transship-system",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/component=agent",
        "-o",
        "name",
        &on_this,
    ];
    cluster
        .await_that("the agent is gone", PATIENCE, || Ok(cluster.kubectl(&agents)?.is_empty()))?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ordinary"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [sleeper(&Value::Null)]}});
    let outcome = cluster
        .on_node(node, &["sh", "-c", DAMAGE])
        .and_then(|_| cluster.apply(&pod.to_string()))
        .and_then(|_| {
            let ready = ["wait", "--for=condition=Ready", "pod/ordinary", "--timeout=60s"];
            cluster.kubectl(&ready)
        })
        .and_then(|_| cluster.kubectl(&["delete", "pod", "ordinary", "--timeout=60s"]));
    let repaired = cluster.on_node(node, &["sh", "-c", REPAIR]);
    outcome.and(repaired).map(drop)
}

/// One pod may not go to the node without an agent, the other may not leave it.
fn is_missing(cluster: &Cluster, here: &mut Serving, there: &mut Serving) -> Result<()> {
    let (home, lacking) = (here.pod.node.clone(), there.pod.node.clone());
    cluster.await_that("the node is not Ready any more", PATIENCE, || {
        Ok(!is_ready(&cluster.get("nodes.transship.dev", &lacking)?))
    })?;
    cluster.await_that("the other one is", PATIENCE, || {
        Ok(is_ready(&cluster.get("nodes.transship.dev", &home)?))
    })?;
    let why = "the agent has not reported for";
    refused_for(cluster, &here.pod, "TargetNotReady", &[&lacking, why])?;
    here.is_untouched(cluster)?;
    refused_for(cluster, &there.pod, "SourceNotReady", &[&lacking, why])?;
    there.is_untouched(cluster)?;

    let node = format!("node/{lacking}");
    let cannot = format!("Pods cannot be moved to {lacking}: ");
    is_told(cluster, &node, &[&cannot, "HeartbeatMissed", why])?;
    is_told(cluster, &here.pod.name, &["cannot be moved.", "TargetNotReady", why])?;
    is_told(cluster, &there.pod.name, &["cannot be moved.", "SourceNotReady", why])?;
    let (code, text) = doctor(cluster, &[])?;
    ensure!(code == 1 && text.contains(why), "{text}");
    Ok(())
}
