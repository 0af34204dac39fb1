//! Pods that are on their way to another node.

use std::collections::HashSet;

use super::*;

/// What a migrated pod asks for.
const CPUS: usize = 3;

/// A Migration of `web` from node-a.
fn migration(step: &str, target: &str) -> api::Migration {
    of(json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "Migration",
        "metadata": {"name": "move-web", "namespace": "shop", "uid": "uid-move"},
        "spec": {"podName": "web"},
        "status": {"step": step, "source": {"node": "node-a", "podName": "web", "podUID": "uid-web"},
            "target": {"node": target, "podName": "web-2"}},
    }))
}

fn web(name: &str, node: Option<&str>, phase: &str) -> Value {
    let mut pod = pod(name, json!({}), &CPUS.to_string());
    pod["spec"]["nodeName"] = json!(node);
    pod["status"] = json!({"phase": phase});
    pod
}

/// The pod that is made for the Migration.
fn made(node: Option<&str>, phase: &str) -> Value {
    let mut pod = web("web-2", node, phase);
    pod["metadata"]["labels"] = json!({"transship.dev/migration": "uid-move"});
    pod
}

/// How many CPUs are left on a node.
async fn room(extender: &Arc<Extender>, node: &str) -> usize {
    for cpus in (1..=4).rev() {
        let annotations = json!({"transship.dev/whitelist": format!("[\"{node}\"]")});
        let probe = pod("probe", annotations, &cpus.to_string());
        let landed = schedule(extender, &probe).await;
        Pod::remove(&of(probe), &mut extender.state());
        if landed.is_some() {
            return cpus;
        }
    }
    0
}

#[tokio::test]
async fn a_pod_counts_where_its_migration_brings_it_until_that_ends() {
    // Both are listed at the beginning, in any order.
    for pod_first in [true, false] {
        let extender = extender();
        let source: Pod = of(web("web", Some("node-a"), "Running"));
        if pod_first {
            source.apply(&mut extender.state());
        }
        migration("PreparingTarget", "node-b").apply(&mut extender.state());
        source.apply(&mut extender.state());
        let elsewhere = pod("other", json!({}), "1");
        assert_eq!(schedule(&extender, &elsewhere).await.as_deref(), Some("node-c"));
        Pod::remove(&of(elsewhere), &mut extender.state());
        let listed = HashSet::from(["uid-web".to_owned()]);
        Pod::retain(&listed, &mut extender.state());
        assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "listed again");
        source.remove(&mut extender.state());
        migration("Committed", "node-b").apply(&mut extender.state());
        assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "the source goes first");
        migration("SourceResuming", "node-a").apply(&mut extender.state());
        assert_eq!(room(&extender, "node-b").await, 4);
        assert_eq!(room(&extender, "node-a").await, 4 - CPUS, "it goes back");
        migration("RolledBack", "node-a").apply(&mut extender.state());
        assert_eq!(room(&extender, "node-a").await, 4);
        migration("PreparingTarget", "node-a").apply(&mut extender.state());
        assert_eq!(room(&extender, "node-a").await, 4, "its pod is not known");
    }
}

#[tokio::test]
async fn a_pod_that_goes_back_counts_there_beside_the_one_that_was_made() {
    let extender = extender();
    let source: Pod = of(web("web", Some("node-a"), "Running"));
    source.apply(&mut extender.state());
    migration("Committed", "node-b").apply(&mut extender.state());
    source.remove(&mut extender.state());
    Pod::apply(&of(made(Some("node-b"), "Pending")), &mut extender.state());
    assert_eq!(room(&extender, "node-a").await, 4);
    migration("Committed", "node-a").apply(&mut extender.state());
    assert_eq!(
        room(&extender, "node-a").await,
        4 - CPUS,
        "its node is gone, its object is not yet"
    );
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS);
    Pod::apply(&of(made(Some("node-a"), "Running")), &mut extender.state());
    assert_eq!(room(&extender, "node-a").await, 4 - CPUS, "made there");
}

#[tokio::test]
async fn a_migration_that_is_gone_brings_nothing() {
    let extender = extender();
    let moving = migration("Freezing", "node-b");
    Pod::apply(&of(web("web", Some("node-a"), "Running")), &mut extender.state());
    moving.apply(&mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS);
    moving.remove(&mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4);
    moving.apply(&mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS);
    api::Migration::retain(&HashSet::new(), &mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4, "not in a new list");
}

#[tokio::test]
async fn the_pod_that_a_migration_has_made_counts_once_and_finds_its_room() {
    let extender = extender();
    Pod::apply(&of(web("web", Some("node-a"), "Running")), &mut extender.state());
    migration("PreparingTarget", "node-b").apply(&mut extender.state());
    Pod::apply(&of(made(None, "Pending")), &mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "behind its gate");
    let filtered = ask(&extender, "filter", &made(None, "Pending"), &["node-b"]).await;
    assert_eq!(filtered["NodeNames"], json!(["node-b"]), "it is not in its own way: {filtered}");
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "chosen");
    let bound: Pod = of(made(Some("node-b"), "Running"));
    bound.apply(&mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "bound");
    migration("WaitingForTarget", "node-b").apply(&mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "bound, and the Migration goes on");
    Pod::apply(&of(made(Some("node-b"), "Failed")), &mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "another is to be made");
    bound.apply(&mut extender.state());
    bound.remove(&mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4 - CPUS, "and now");
    migration("RolledBack", "node-b").apply(&mut extender.state());
    assert_eq!(room(&extender, "node-b").await, 4);
}
