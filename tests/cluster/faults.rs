//! What fails before the commit leaves the source running with its connection, and no residue.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    counter::Client,
    faults::{
        judge::{events_tell, no_record_is_left},
        nodes::{NODES, healthy},
    },
    node::process::Victim,
};

use crate::{counter, refusal::Undo};

/// The source must be the same pod, running, connected; the target gone on both counts.
pub fn source_goes_on(cluster: &Cluster, before: &Pod, client: Client) -> Result<()> {
    let labels = cluster.get("pod", &before.name)?["metadata"]["labels"].clone();
    let app = labels["app"].as_str().context("it is gone, or has no label app")?;
    let now = cluster.pod(&format!("app={app}"))?;
    ensure!(&now == before, "{before:?} became {now:?}");
    // The pod may stand still for half a minute here, and TCP's next try comes within twice that time.
    client.goes_on(cluster, Duration::from_secs(60))?;
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");
    cluster.await_that("the target pod is gone", Duration::from_secs(60), || {
        Ok(cluster.list("pods", "transship.dev/migration")?.is_empty())
    })?;
    let claim = &cluster.get("pod", &now.name)?["metadata"]["annotations"]["transship.dev/claim"];
    ensure!(claim.is_null(), "the claim is still there: {claim}");
    Ok(())
}

/// Until this is dropped a program has the place of a node's CRIU that refuses as CRIU does, with an exit
/// status: the real one is given no reason to refuse by a pod that passed preflight.
pub fn criu_refuses<'a>(cluster: &'a Cluster, node: &'a str) -> Result<Undo<impl FnMut() + 'a>> {
    const REPLACE: &str = "cd /opt/transship/bin && cp criu criu.kept && \
        printf '#!/bin/sh\\necho refused by a test >&2\\nexit 1\\n' > criu.new && \
        chmod 755 criu.new && mv criu.new criu";
    const RESTORE: &str = "cd /opt/transship/bin && mv criu.kept criu";
    cluster.on_node(node, &["sh", "-c", REPLACE])?;
    Ok(Undo(move || drop(cluster.on_node(node, &["sh", "-c", RESTORE]))))
}

#[test]
fn a_restore_that_criu_refuses_is_rolled_back() -> Result<()> {
    let cluster = Cluster::with_namespace("refused")?;
    let before = counter(&cluster)?;
    let client = Client::of(&before)?;
    let target = before.other_node();
    let refuses = criu_refuses(&cluster, target)?;
    let migration = cluster.migrate(&before.name, target)?;
    cluster.ended(&migration, Duration::from_secs(90))?;
    let object = cluster.get("migration", &migration)?;
    ensure!(condition(&object, "Succeeded").0 == "False", "{object:#}");
    ensure!(object["status"]["phase"] == "RolledBack", "{:#}", object["status"]);
    // That the checks have passed, that the source goes on, and as a warning why it was rolled back.
    let told = [("Normal", "Admitted"), ("Normal", "Frozen"), ("Warning", "Succeeded")];
    events_tell(&cluster, &object, &told)?;
    cluster.kubectl(&["delete", "migration", &migration, "--timeout=60s"])?;
    drop(refuses);
    source_goes_on(&cluster, &before, client)?;
    no_record_is_left(&cluster, target)
}

#[test]
fn a_deleted_migration_leaves_the_source_running() -> Result<()> {
    let cluster = Cluster::with_namespace("deleted")?;
    let before = counter(&cluster)?;
    let client = Client::of(&before)?;
    let migration = cluster.migrate(&before.name, before.other_node())?;
    cluster.await_that("the target pod exists", Duration::from_secs(30), || {
        Ok(!cluster.list("pods", "transship.dev/migration")?.is_empty())
    })?;
    cluster.kubectl(&["delete", "migration", &migration, "--timeout=90s"])?;
    source_goes_on(&cluster, &before, client)?;
    no_record_is_left(&cluster, before.other_node())?;
    no_record_is_left(&cluster, &before.node)
}

#[test]
fn a_killed_target_agent_leaves_one_running_copy_with_its_connection() -> Result<()> {
    let cluster = Cluster::with_namespace("agent")?;
    let before = counter(&cluster)?;
    let client = Client::of(&before)?;
    let target = before.other_node();
    let migration = cluster.migrate(&before.name, target)?;
    cluster.await_that("the target pod exists", Duration::from_secs(30), || {
        Ok(!cluster.list("pods", "transship.dev/migration")?.is_empty())
    })?;
    // The stream runs through the agents, so this cuts it.
    cluster.kill(target, Victim::Agent)?;
    cluster.ended(&migration, Duration::from_secs(120))?;
    let object = cluster.get("migration", &migration)?;
    let succeeded = condition(&object, "Succeeded");
    eprintln!("the agent was killed; the migration ended with {succeeded:?}");
    if succeeded.0 == "False" {
        source_goes_on(&cluster, &before, client)?;
    } else {
        // Killed too late to matter: the holders had all they needed.
        let report = client.stop();
        ensure!(report.is_whole(), "{report:?}");
    }
    cluster.kubectl(&["delete", "migration", &migration, "--timeout=60s"])?;
    healthy(&cluster, &NODES)
}
