//! Cold: how containers end, what keeps them from it, and what becomes of a pod whose runtime dies while it has
//! ended and is copied.

use anyhow::{Result, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    faults::{
        judge::no_record_is_left,
        nodes::{NODES, restarts},
    },
    node::process::Victim,
};

use crate::cold::{BARE, PATIENCE, SOON, files_say, lines, lingers, manifest, says, sh, watched};
use crate::sequential::{nothing_is_left, running};

/// Some seconds at the rate at which it is copied.
const BLOB: &str = "dd if=/dev/urandom of=/data/blob bs=1M count=20 2>/dev/null";
const RATE: &str = "2Mi";

/// `main` takes as long to end as the hook of the sidecar, which notes when it got its signal.
const SERVED: &str = "{terminationGracePeriodSeconds: 25, volumes: [{name: data, emptyDir: {}}], \
    initContainers: [{name: helper, restartPolicy: Always, image: 'localhost/transship-examples:1', \
    imagePullPolicy: IfNotPresent, command: [python3, -u, -c, SCRIPT, helper], \
    volumeMounts: [{name: data, mountPath: /data}], lifecycle: {preStop: {sleep: {seconds: 8}}}}], \
    containers: [{name: main, image: 'localhost/transship-examples:1', imagePullPolicy: IfNotPresent, \
    command: [python3, -u, -c, SCRIPT, main], volumeMounts: [{name: data, mountPath: /data}]}]}";

/// Notes when it gets its signal and, the application, when it has ended.
const NOTES: &str = r#"import signal, sys, time
def end(*_):
    with open(f"/data/{sys.argv[1]}", "a") as file:
        print(time.time(), file=file, flush=True)
        if sys.argv[1] == "main":
            time.sleep(8)
            print(time.time(), file=file, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"#;

fn served() -> String {
    let spec = SERVED.replace("SCRIPT", &Value::from(NOTES).to_string());
    BARE.replace("lone", "served").replace("SPEC", &spec)
}

/// Begins to move a pod slowly, and waits until it has ended and is copied.
fn ended_and_copied(cluster: &Cluster, pod: &Pod) -> Result<String> {
    let (name, target) = (format!("{}-slowly-to-{}", pod.name, pod.other_node()), pod.other_node());
    cluster.kubectl(&["delete", "migration", &name, "--ignore-not-found", "--timeout=60s"])?;
    cluster.apply(&format!(
        "apiVersion: transship.dev/v1alpha1\nkind: Migration\nmetadata: {{name: {name}}}\n\
         spec: {{podName: {}, targetNode: {target}, mode: Cold, bandwidthLimit: {RATE}}}\n",
        pod.name
    ))?;
    cluster.await_that("the pod has ended", SOON, || {
        Ok(condition(&cluster.get("migration", &name)?, "Frozen").0 == "True")
    })?;
    Ok(name)
}

/// Kills something of the runtime while the pod has ended: it is moved, or starts again where it was, with all its
/// files, or it is said which are lost. How often it was started and has ended before.
fn survives(cluster: &Cluster, before: &Pod, victim: Victim, times: usize) -> Result<Pod> {
    let (object, _) = watched(cluster, || {
        let migration = ended_and_copied(cluster, before)?;
        cluster.kill(&before.node, victim)?;
        cluster.ended(&migration, PATIENCE)?;
        cluster.get("migration", &migration)
    })?;
    let (succeeded, _, message) = condition(&object, "Succeeded");
    let node = if succeeded == "True" { before.other_node() } else { before.node.as_str() };
    nothing_is_left(cluster, &object, &before.name)?;
    let now = running(cluster, &before.name)?;
    ensure!(now.node == node, "{message}: {before:?} became {now:?}");
    says(cluster, &now.name, "/data", times + 1, times)?;
    match message.contains("outside of volumes is lost") {
        true => says(cluster, &now.name, "/srv", 1, 0)?,
        false => says(cluster, &now.name, "/srv", times + 1, times)?,
    }
    println!("{}: {message}", victim.as_str());
    Ok(now)
}

#[test]
#[ignore = "runtimes and shims die at these steps among the faults; this one waits for kubelet twice"]
fn a_runtime_that_dies_while_a_pod_has_ended_loses_nothing_unsaid() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-runtime")?;
    cluster.apply(&manifest(BARE))?;
    let pod = running(&cluster, "lone")?;
    sh(&cluster, "lone", BLOB)?;
    let pod = survives(&cluster, &pod, Victim::Containerd, 1)?;
    // That a containerd restarts costs nothing at all.
    files_say(&cluster, "lone", 2, 1)?;
    survives(&cluster, &pod, Victim::Shim, 2).map(drop)
}

#[test]
#[ignore = "what ends well is shown by `cold`"]
fn a_pod_ends_as_kubelet_would_end_it_and_not_at_all_where_its_files_cannot_move() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-ends")?;
    let no_grace = manifest(BARE)
        .replace("terminationGracePeriodSeconds: 20", "terminationGracePeriodSeconds: 0");
    cluster.apply(&format!("{no_grace}\n---\n{}", served()))?;
    let (lone, served) = (running(&cluster, "lone")?, running(&cluster, "served")?);
    let slow = cluster.migrate_in("Cold", "served", served.other_node())?;
    let deep = "python3 -c 'import os; os.makedirs(\"/srv/\" + \"d/\" * 300)'";
    sh(&cluster, "lone", deep)?;
    is_not_ended(&cluster, &lone, "nested too deeply")?;
    sh(&cluster, "lone", "rm -r /srv/d")?;
    lingers(&cluster, "lone", 0)?;
    let moved = cluster.migrate_in("Cold", "lone", lone.other_node())?;
    cluster.succeeded(&moved, PATIENCE)?;
    let now = running(&cluster, "lone")?;
    ensure!(now.node == lone.other_node(), "{lone:?} became {now:?}");
    files_say(&cluster, "lone", 2, 1)?;
    let hooks = lines(&cluster, "lone", "/data/stopping")?;
    ensure!(hooks.is_empty(), "without a grace period there is no hook: {hooks:?}");

    cluster.succeeded(&slow, PATIENCE)?;
    running(&cluster, "served")?;
    let times = |file: &str| -> Result<Vec<f64>> {
        let found = lines(&cluster, "served", &format!("/data/{file}"))?;
        Ok(found.iter().map(|line| line.parse()).collect::<Result<_, _>>()?)
    };
    let (main, helper) = (times("main")?, times("helper")?);
    ensure!(main.len() == 2 && helper.len() == 1, "{main:?}, {helper:?}");
    let (told, ended, after) = (main[0], main[1], helper[0]);
    ensure!(after >= ended, "the sidecar ended before what it serves: {main:?}, {helper:?}");
    ensure!(after - told < 14.0, "its hook waited for the application's end: {main:?}, {helper:?}");
    NODES.iter().try_for_each(|node| no_record_is_left(&cluster, node))
}

/// A move is rolled back for this reason, and the application has noticed nothing.
fn is_not_ended(cluster: &Cluster, before: &Pod, why: &str) -> Result<()> {
    let migration = cluster.migrate_in("Cold", &before.name, before.other_node())?;
    cluster.ended(&migration, PATIENCE)?;
    let object = cluster.get("migration", &migration)?;
    let (succeeded, _, message) = condition(&object, "Succeeded");
    ensure!(succeeded == "False" && message.contains(why), "{:#}", object["status"]);
    ensure!(!message.contains("started again"), "{message}");
    let now = running(cluster, &before.name)?;
    ensure!(now == *before, "{before:?} became {now:?}");
    ensure!(restarts(&cluster.get("pod", &before.name)?) == 0, "it was started again");
    files_say(cluster, &before.name, 1, 0)
}
