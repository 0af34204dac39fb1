//! Migrations without a target go where their pods, policies and they themselves say. On three nodes.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::{Cluster, Pod};

use crate::placement::{NODES, PATIENCE, Trial, deployment, list, plugin, template};

const MOVE: Duration = Duration::from_secs(90);

/// The example application by another name and with less memory, with constraints and our scheduler. It
/// requests nothing, so that the number of pods decides.
fn application(app: &str, constraints: &[&str]) -> Result<String> {
    const TEMPLATE: &str = "      labels: {app: counter}\n    spec:\n";
    let example = include_str!("../../examples/counter.yaml");
    ensure!(example.contains(TEMPLATE), "the example has changed");
    let annotations = json!({"transship.dev/constraints": list(constraints)});
    let placed = format!(
        "      labels: {{app: counter}}\n      annotations: {annotations}\n    \
         spec:\n      schedulerName: transship\n"
    );
    let manifest = example.replace(TEMPLATE, &placed);
    Ok(manifest.replace("counter", app).replace("256 << 20", "16 << 20"))
}

fn deployed(cluster: &Cluster, app: &str, constraints: &[&str]) -> Result<Pod> {
    cluster.apply(&application(app, constraints)?)?;
    cluster.rolled_out(app)?;
    cluster.pod(&format!("app={app}"))
}

fn migration(name: &str, pod: &Pod, placement: Value) -> Value {
    json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Migration", "metadata": {"name": name},
        "spec": {"podName": pod.name, "placement": placement}})
}

/// Gives a node pods until it has so many more than another one, or more than that already.
fn burden(trial: &Trial, node: &str, other: &str, more: usize) -> Result<()> {
    let nodes = "jsonpath={.items[*].spec.nodeName}";
    let pods = trial.cluster.kubectl(&["get", "pods", "--all-namespaces", "-o", nodes])?;
    let on = |node: &str| pods.split_whitespace().filter(|name| *name == node).count();
    let count = (on(other) + more).saturating_sub(on(node));
    let annotations = json!({"transship.dev/constraints": list(&[&format!("node=={node}")])});
    let app = format!("ballast-{node}");
    trial.cluster.apply(&deployment(&app, count, &template(&app, annotations, 1)))?;
    trial.landed(&format!("app={app}"), count)?;
    Ok(())
}

/// The nodes that `kubectl transship place POD` gives a rank, in its order, each with its weight.
fn place(cluster: &Cluster, pod: &Pod) -> Result<Vec<(String, String)>> {
    let (table, _) = plugin(&["place", &pod.name, "--namespace", &cluster.namespace])?;
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ranked = rows.filter(|cells| cells.get(1).is_some_and(|rank| *rank != "-"));
    Ok(ranked.map(|cells| (cells[0].to_owned(), cells[2].to_owned())).collect())
}

#[test]
fn a_migration_without_a_target_goes_where_place_says_unless_it_says_more() -> Result<()> {
    let trial = Trial::new("placement-migration")?;
    // What the policy and the pod ask for leaves all nodes.
    let policy = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
        "metadata": {"name": "all"},
        "spec": {"selector": {}, "placement": {"constraints": ["region!=mars"]}}});
    trial.cluster.apply(&policy.to_string())?;
    let before = deployed(&trial.cluster, "counter", &["disk!=tape"])?;
    // The better node comes later by its name.
    let others: Vec<&str> = NODES.into_iter().filter(|node| *node != before.node).collect();
    let [worse, better] = others[..] else { bail!("it runs on {}", before.node) };
    burden(&trial, worse, better, 1)?;
    let ranked = place(&trial.cluster, &before)?;
    // 100 each for the CPU and the memory that it does not request, less ten times the health.
    let expected = [better, worse].map(|node| (node.to_owned(), "-800".to_owned()));
    ensure!(ranked == expected, "place ranks {ranked:?}, but {better} has fewer pods");
    trial.cluster.apply(&migration("anywhere", &before, json!({})).to_string())?;
    trial.cluster.succeeded("anywhere", MOVE)?;
    let there = trial.cluster.pod("app=counter")?;
    ensure!(there.node == better, "went to {}, but place said {better}", there.node);

    trial.cluster.await_that("it can be moved again", PATIENCE, || {
        let pod = trial.cluster.get("pod", &there.name)?;
        Ok(pod["metadata"]["annotations"]["transship.dev/claim"].is_null())
    })?;
    let ranked = place(&trial.cluster, &there)?;
    let [(first, _), (second, _)] = &ranked[..] else { bail!("place ranks {ranked:?}") };
    let placement = json!({"constraints": [format!("node!={first}")]});
    trial.cluster.apply(&migration("elsewhere", &there, placement).to_string())?;
    trial.cluster.succeeded("elsewhere", MOVE)?;
    let after = trial.cluster.pod("app=counter")?;
    ensure!(after.node == *second, "went to {}, but was to avoid {first}", after.node);
    Ok(())
}

#[test]
fn migrations_that_begin_together_go_to_different_nodes() -> Result<()> {
    let trial = Trial::new("placement-together")?;
    let [source, others @ ..] = NODES;
    // Preferred at the start, and left out where it cannot be.
    let preferred = format!("node==~{source}");
    let mut migrations = Vec::new();
    for app in ["one", "another"] {
        let pod = deployed(&trial.cluster, app, &[&preferred])?;
        ensure!(pod.node == source, "{app} began on {}", pod.node);
        migrations.push(migration(app, &pod, json!({})));
    }
    // As many pods on both: the first by name is the best for each.
    burden(&trial, others[0], others[1], 0)?;
    burden(&trial, others[1], others[0], 0)?;
    let together = json!({"apiVersion": "v1", "kind": "List", "items": migrations});
    trial.cluster.apply(&together.to_string())?;
    let mut targets = BTreeSet::new();
    for app in ["one", "another"] {
        trial.cluster.succeeded(app, MOVE)?;
        targets.insert(trial.cluster.pod(&format!("app={app}"))?.node);
    }
    ensure!(targets.iter().eq(others.iter()), "both went to {targets:?}");
    Ok(())
}
