//! The restore on trial that does not succeed: nothing has been given up for it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, condition},
    faults::{
        Gate,
        driver::{Scene, begin, explained},
        moment::Moment,
        nodes::{NODES, restarts},
    },
};

use crate::{
    refusal::refused,
    sequential::{
        EMPTY_DIR, all_is_there, connect, goes_on, known_by, nothing_is_left, running, spec,
        stateful,
    },
};

const NAME: &str = "web";
const POD: &str = "web-0";
const PATIENCE: Duration = Duration::from_secs(90);
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
