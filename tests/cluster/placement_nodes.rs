//! What a node takes, whether it lives and what a policy says of it decide where pods go. On three nodes.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::condition;

use crate::{
    placement::{NODES, PATIENCE, SENTENCE, Trial, list, plugin, pod, template},
    refusal::Undo,
};

const NODE_KIND: &str = "nodes.transship.dev";

fn constrained(name: &str, constraint: &str) -> String {
    let annotations = json!({"transship.dev/constraints": list(&[constraint])});
    pod(name, template(name, annotations, 10)).to_string()
}

/// Why a pod has no node, as its scheduler wrote it down last. Its events would do only for the first time:
/// further ones are counted, whatever they say.
fn said(trial: &Trial, pod: &str) -> Result<String> {
    Ok(condition(&trial.cluster.get("pod", pod)?, "PodScheduled").2)
}

/// The pod `second` waits for this reason as long as `first` is on the node, and then comes there.
fn comes_after_the_first(trial: &Trial, reason: &str) -> Result<()> {
    trial.cluster.await_that("the second pod says why it waits", PATIENCE, || {
        Ok(said(trial, "second")?.contains(reason))
    })?;
    let second = trial.cluster.get("pod", "second")?;
    ensure!(second["spec"]["nodeName"].is_null(), "{}", second["spec"]["nodeName"]);
    trial.cluster.kubectl(&["delete", "pod", "first", "--now"])?;
    let landed = trial.landed("app=second", 1)?;
    ensure!(landed.keys().eq(["node-a"]), "landed on {landed:?}");
    trial.cleared(&["pods", "--all", "--now"])
}

#[test]
fn a_node_takes_as_many_pods_as_its_slots() -> Result<()> {
    let trial = Trial::new("placement-slots")?;
    let on_node = "--field-selector=spec.nodeName=node-a";
    let pods = trial.cluster.kubectl(&["get", "pods", "-A", on_node, "-o", "name"])?;
    // The region comes with the slots: whoever knows of one knows of the other.
    let slots = (pods.lines().count() + 1).to_string();
    trial.label("node-a", json!({"region": "slotted", "containerslots": slots}))?;
    trial.cluster.apply(&constrained("first", "region==slotted"))?;
    trial.landed("app=first", 1)?;
    trial.cluster.apply(&constrained("second", "region==slotted"))?;
    comes_after_the_first(&trial, "No node with enough open slots available")
}

#[test]
fn a_port_of_the_host_is_taken_whatever_the_protocol() -> Result<()> {
    const PORT: u16 = 17_321;
    let trial = Trial::new("placement-port")?;
    let user = |name: &str, protocol: &str| {
        let annotations = json!({"transship.dev/constraints": list(&["node==node-a"])});
        let mut template = template(name, annotations, 10);
        template["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": PORT, "hostPort": PORT, "protocol": protocol}]);
        pod(name, template).to_string()
    };
    trial.cluster.apply(&user("first", "TCP"))?;
    trial.landed("app=first", 1)?;
    // To Kubernetes this would be another port.
    trial.cluster.apply(&user("second", "UDP"))?;
    let reason = format!("1 {SENTENCE}: unable to find a node with port {PORT} available");
    comes_after_the_first(&trial, &reason)
}

#[test]
fn a_policy_and_an_annotation_and_a_migration_have_to_hold_together() -> Result<()> {
    let trial = Trial::new("placement-policy")?;
    trial.labels()?;
    trial.cluster.apply(&constrained("canary", "disk==tape"))?;
    trial.cluster.await_that("it is refused for its annotation", PATIENCE, || {
        Ok(said(&trial, "canary")?.contains("disk==tape"))
    })?;
    let policy = |name: &str, selector: Value, constraint: &str| {
        let policy = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
            "metadata": {"name": name},
            "spec": {"selector": selector, "placement": {"constraints": [constraint]}}});
        trial.cluster.apply(&policy.to_string())
    };
    policy("american", json!({}), "region==us*")?;
    // kube-scheduler by itself would try again after five minutes.
    trial.cluster.await_that("it is refused for the policy", PATIENCE, || {
        Ok(said(&trial, "canary")?.contains("region==us*"))
    })?;
    // node-b has another disk, and node-c is elsewhere.
    trial.cluster.apply(&constrained("both", "disk==ssd"))?;
    let landed = trial.landed("app=both", 1)?;
    ensure!(landed.keys().eq(["node-a"]), "landed on {landed:?}");
    trial.cluster.kubectl(&["wait", "pod/both", "--for=condition=Ready", "--timeout=60s"])?;
    let migration = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Migration",
        "metadata": {"name": "away"},
        "spec": {"podName": "both", "placement": {"constraints": ["node!=node-z"]}}});
    trial.cluster.apply(&migration.to_string())?;
    trial.cluster.ended("away", PATIENCE)?;
    let (_, reason, message) = condition(&trial.cluster.get("migration", "away")?, "Succeeded");
    ensure!(reason == "NoNodeFits", "{reason}: {message}");
    for words in [
        "[region==us* disk==ssd node!=node-z]",
        "node-b: unable to find a node that satisfies the constraint disk==ssd",
        "node-c: unable to find a node that satisfies the constraint region==us*",
    ] {
        ensure!(message.contains(words), "{message:?} does not say {words:?}");
    }
    // Of two policies the one that says more of the pod counts alone: with the other no node would do.
    trial.cluster.apply(&constrained("european", "region==eu"))?;
    trial.cluster.await_that("it is refused for the first policy", PATIENCE, || {
        Ok(said(&trial, "european")?.contains("region==us*"))
    })?;
    policy("particular", json!({"matchLabels": {"app": "european"}}), "disk==ssd")?;
    let landed = trial.landed("app=european", 1)?;
    ensure!(landed.keys().eq(["node-c"]), "landed on {landed:?}");
    trial.cleared(&["pods", "--all", "--now"])
}

#[test]
fn a_node_that_is_silent_or_never_came_is_told_and_takes_no_pods() -> Result<()> {
    const SILENT: &str = "node-c";
    const LISTED: &str = "node-listed";
    let trial = Trial::new("placement-health")?;
    let cluster = &trial.cluster;
    let remove = || {
        drop(cluster.kubectl(&[
            "delete",
            NODE_KIND,
            LISTED,
            "--ignore-not-found",
            "--timeout=30s",
        ]));
    };
    remove();
    let removed = Undo(remove);
    let listed = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Node",
        "metadata": {"name": LISTED, "labels": {"transship.dev/static": "true"}}, "spec": {}});
    cluster.apply(&listed.to_string())?;

    // Stopped, not ended: what kubelet starts in its place is stopped as well.
    let agent = |signal| cluster.try_on_node(SILENT, &["pkill", signal, "-x", "transship-agent"]);
    let goes_on = Undo(|| drop(agent("-CONT")));
    ensure!(agent("-STOP")?.status.success(), "there is no agent to stop");
    let status = || -> Result<Value> { Ok(cluster.get(NODE_KIND, SILENT)?["status"].clone()) };
    for (failures, falls_to) in [(1, 67), (2, 34), (3, 0)] {
        cluster.await_that(&format!("its health falls to {falls_to}"), PATIENCE, || {
            agent("-STOP")?;
            let status = status()?;
            Ok(status["healthIndicator"] == falls_to && status["failureCount"] == failures)
        })?;
    }
    // Whoever knows of the label knows of the health.
    trial.label(SILENT, json!({"region": "silent"}))?;
    cluster.apply(&constrained("patient", "region==silent"))?;
    let mut tries = 0;
    cluster.await_that("it waits for a healthy node", PATIENCE, || {
        agent("-STOP")?;
        // The scheduler tries it again, should it have known of neither.
        tries += 1;
        let again = format!("example.com/again={tries}");
        cluster.kubectl(&["annotate", "pod", "patient", "--overwrite", &again])?;
        Ok(said(&trial, "patient")?.contains("No healthy node available in the cluster"))
    })?;
    let patient = cluster.get("pod", "patient")?;
    ensure!(patient["spec"]["nodeName"].is_null(), "{}", patient["spec"]["nodeName"]);
    drop(goes_on);
    cluster
        .await_that("it is healthy again", PATIENCE, || Ok(status()?["healthIndicator"] == 100))?;
    let landed = trial.landed("app=patient", 1)?;
    ensure!(landed.keys().eq([SILENT]), "landed on {landed:?}");

    cluster.await_that("the other one has never joined", PATIENCE, || {
        let node = cluster.get(NODE_KIND, LISTED)?;
        let (listed, reason, _) = condition(&node, "Listed");
        let (ready, why, _) = condition(&node, "Ready");
        Ok((listed.as_str(), reason.as_str()) == ("True", "OnTheList")
            && (ready.as_str(), why.as_str()) == ("False", "NotJoined"))
    })?;
    let (table, differences) = plugin(&["nodes"])?;
    ensure!(table.lines().any(|line| line.starts_with(LISTED)), "{table}");
    for words in [
        format!("listed, but never joined: {LISTED}"),
        format!("joined, but not listed: {}", NODES.join(", ")),
    ] {
        ensure!(differences.contains(&words), "{differences:?} does not say {words:?}");
    }
    drop(removed);
    cluster.await_that(
        "without a list nobody is said to be on it",
        Duration::from_secs(30),
        || Ok(condition(&cluster.get(NODE_KIND, "node-a")?, "Listed").0.is_empty()),
    )?;
    trial.cleared(&["pods", "--all", "--now"])
}
