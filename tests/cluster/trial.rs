//! The restore on trial that does not succeed, and the one after the commit: what the pod was is not given up for
//! either of them.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use transship_api::Role;
use transship_tests::{
    cluster::{Cluster, condition},
    faults::{
        Gate,
        driver::{Scene, begin, explained},
        judge,
        moment::Moment,
        nodes::{NODES, restarts},
        outcome::Outcome,
        sentry::Sentry,
    },
};

use crate::{
    faults::criu_refuses,
    refusal::refused,
    sequential::{
        EMPTY_DIR, all_is_there, connect, goes_on, known_by, nothing_is_left, running, spec,
        stateful,
    },
};

const NAME: &str = "web";
const POD: &str = "web-0";
const PATIENCE: Duration = Duration::from_secs(90);
/// How long three restores may take, with the pod made again for each.
const TRIES: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_refused_restore_on_trial_leaves_the_source_running() -> Result<()> {
    let cluster = Cluster::with_namespace("trial")?;
    Gate::open_all(&cluster)?;
    // A pod that is made for a move has other labels, so the file that tells them has another length
    // there: CRIU refuses to open it in the place of the one that the source has open.
    let labels = "{name: info, downwardAPI: {items: [{path: labels, \
                  fieldRef: {fieldPath: metadata.labels}}]}}";
    let volumes = format!("{EMPTY_DIR}, {labels}");
    let mount = "{name: info, mountPath: /labels, subPath: labels}";
    cluster.apply(&stateful(&spec(&volumes, mount, "/labels"), ""))?;
    let before = running(&cluster, POD)?;
    let client = connect(&before)?;
    let known = known_by(&cluster.get("pod", POD)?);

    let scene = Scene::new(&cluster, NODES, before.clone(), NAME);
    let outcome = opened_after_the_checks(&scene);
    Gate::open_all(&cluster)?;
    explained(&scene, outcome)?;
    drop(scene);

    cluster.ended(NAME, PATIENCE)?;
    let object = cluster.get("migration", NAME)?;
    let status = &object["status"];
    let (succeeded, reason, message) = condition(&object, "Succeeded");
    ensure!(succeeded == "False" && reason == "RestoreFailed", "{status:#}");
    ensure!(message.contains("bad size"), "it failed for another reason: {message}");
    ensure!(status["phase"] == "RolledBack" && !status["frozenAt"].is_null(), "{status:#}");
    ensure!(status["sourceDeletionTime"].is_null(), "{status:#}");

    nothing_is_left(&cluster, &object, POD)?;
    let now = running(&cluster, POD)?;
    ensure!(now == before, "{before:?} became {now:?}");
    let pod = cluster.get("pod", POD)?;
    ensure!(known_by(&pod) == known && restarts(&pod) == 0, "{pod:#}");
    goes_on(&cluster, &client)?;

    // The checks find a file that is open when they look.
    refused(&cluster, &before, &Value::Null, &[("RemadeFile", "other content: /labels")])?;
    goes_on(&cluster, &client)?;
    all_is_there(&cluster, &before, client).map(drop)
}

/// The checks have passed and nobody stands still yet: now the application opens the file.
fn opened_after_the_checks(scene: &Scene) -> Result<()> {
    let cluster = scene.cluster;
    begin(scene, Moment::Prepared, None)?;
    cluster.kubectl(&["exec", POD, "--", "sh", "-c", "kill -HUP 1"])?;
    cluster.await_that("the application has opened the file", SOON, || {
        let open = cluster.kubectl(&["exec", POD, "--", "ls", "-l", "/proc/1/fd"])?;
        Ok(open.contains("-> /labels"))
    })
}

#[test]
fn a_pod_that_the_target_cannot_restore_after_the_commit_is_restored_where_it_was() -> Result<()> {
    let cluster = Cluster::with_namespace("back")?;
    Gate::open_all(&cluster)?;
    cluster.apply(&stateful(&spec(EMPTY_DIR, "", ""), ""))?;
    let before = running(&cluster, POD)?;
    let client = connect(&before)?;
    let known = known_by(&cluster.get("pod", POD)?);
    let sentry = Sentry::start(&cluster, &NODES)?;
    let scene = Scene::new(&cluster, NODES, before.clone(), NAME);
    let outcome = refused_after_the_commit(&scene);
    Gate::open_all(&cluster)?;
    explained(&scene, outcome)?;

    let object = cluster.get("migration", NAME)?;
    let status = &object["status"];
    let (succeeded, reason, message) = condition(&object, "Succeeded");
    ensure!(succeeded == "False" && reason == "TargetLost", "{status:#}");
    let again = format!("it was made again on {}", before.node);
    ensure!(message.contains(&again), "{message}");
    ensure!(status["resolution"] == "SourceResumes" && status["failedRestores"] == 2, "{status:#}");

    nothing_is_left(&cluster, &object, POD)?;
    let now = running(&cluster, POD)?;
    ensure!(
        now.uid != before.uid && now.node == before.node && now.ips == before.ips,
        "{before:?} became {now:?}"
    );
    let pod = cluster.get("pod", POD)?;
    ensure!(known_by(&pod) == known && restarts(&pod) == 0, "{pod:#}");
    goes_on(&cluster, &client)?;
    all_is_there(&cluster, &now, client)?;
    let looks = sentry.stop(false)?;
    judge::one_copy_ran(&scene, &looks, Outcome::TargetLost, false)?;
    scene.history.kept_its_word()
}

/// The restore on trial was good, and from the commit on the target's CRIU refuses the pod.
fn refused_after_the_commit(scene: &Scene) -> Result<()> {
    let cluster = scene.cluster;
    begin(scene, Moment::Voted, None)?;
    let _refuses = criu_refuses(cluster, scene.node(Role::Target))?;
    Gate::Decision.open(cluster)?;
    cluster.ended(NAME, TRIES)
}
