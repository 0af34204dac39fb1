//! The invariants, the same for every cell.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use transship_api::{Role, duration};

use super::{
    driver::Scene,
    nodes::Pair,
    outcome::Outcome,
    sentry::{Looks, Sentry, doubles, ran},
};
use crate::{
    cluster::{Cluster, Pod, condition},
    counter::{Client, Report},
};

/// By how much the client's clock and the nodes' may differ, and a request be under way already.
const CLOCKS: u64 = 100;

/// Never two copies; and the target ran only if that was decided.
pub fn one_copy_ran(
    scene: &Scene,
    looks: &Looks,
    outcome: Outcome,
    fresh_allowed: bool,
) -> Result<()> {
    let target = scene.target_uid();
    let of_migration = |pod: &str| pod == scene.source.uid || pod == target;
    if let Some(double) = doubles(looks, |pod| !fresh_allowed || of_migration(pod)) {
        anyhow::bail!("two copies ran: {double}");
    }
    let decision = scene.history.latest()["status"]["decision"].clone();
    let may = outcome.may_have_run_on_the_target() && decision != "Abort";
    ensure!(may || target.is_empty() || !ran(looks, &target), "the target ran ({decision})");
    Ok(())
}

/// The source runs again before the fault ends. A client may find out later, at TCP's own pace.
pub fn it_goes_on_meanwhile(scene: &Scene, sentry: &Sentry, patience: Duration) -> Result<()> {
    let (node, source) = (scene.node(Role::Source), &scene.source.uid);
    scene
        .cluster
        .await_that("the source goes on by itself", patience, || Ok(sentry.sees(node, source)))
}

/// No number was lost or came twice; what went on with its connections is still answered on them.
/// Gives what the client saw.
pub fn the_client_was_served(
    scene: &Scene,
    client: Client,
    outcome: Outcome,
    downtime: Option<&str>,
) -> Result<Report> {
    if outcome.is_whole() {
        let so_far = client.replies();
        scene.cluster.await_that("the connection goes on", Duration::from_secs(30), || {
            Ok(client.replies() > so_far + 50)
        })?;
    }
    let report = client.stop();
    ensure!(report.jumps.is_empty(), "numbers were lost or repeated: {report:?}");
    ensure!(report.is_whole() || !outcome.is_whole(), "{outcome}, but {report:?}");
    if let Some(told) = downtime.and_then(|text| duration::parse(text).ok())
        && outcome.is_whole()
    {
        let told = told.as_millis() as u64;
        let waited = report.longest_gap_ms;
        ensure!(told <= waited + CLOCKS, "{told} ms of standstill told, {waited} ms waited");
    }
    Ok(report)
}

/// Nothing of the migration is left while the pod runs on.
pub fn nothing_is_left_beside_the_pod(cluster: &Cluster, nodes: &Pair) -> Result<()> {
    cluster.await_that("no target pod or claim is left", Duration::from_secs(30), || {
        for migration in cluster.list("migrations", "")? {
            let (succeeded, _, message) = condition(&migration, "Succeeded");
            let name = &migration["metadata"]["name"];
            ensure!(matches!(succeeded.as_str(), "True" | "False"), "{name} goes on: {message}");
        }
        let marked = cluster.list("pods", "transship.dev/migration")?;
        let names: Vec<String> = marked.iter().map(|pod| Pod::of(pod).name).collect();
        ensure!(names.is_empty(), "still marked: {names:?}");
        for pod in cluster.list("pods", "app=counter")? {
            let claim = &pod["metadata"]["annotations"]["transship.dev/claim"];
            ensure!(claim.is_null(), "{} is still claimed", Pod::of(&pod).name);
        }
        Ok(true)
    })?;
    nodes.iter().try_for_each(|node| no_record_is_left(cluster, node))
}

/// No record or task of the test's namespace is left on a node.
pub fn no_record_is_left(cluster: &Cluster, node: &str) -> Result<()> {
    // The record of a pod that runs on stays, open, for as long as the pod does.
    let script = format!(
        "cd /var/lib/transship; for f in $(grep -l '\"{}\"' pods/*/record.json migrations/*/task.json 2>/dev/null); \
         do grep -q '\"state\":\"open\"' $f || echo $f; done",
        cluster.namespace
    );
    cluster
        .await_that(&format!("no record is left on {node}"), Duration::from_secs(60), || {
            let left = cluster.on_node(node, &["sh", "-c", &script])?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(true)
        })
        .context("residue")
}
