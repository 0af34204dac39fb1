//! What no check can see beforehand shows when a move is tried: the pod goes on as it was, and the Migration
//! says why and what to do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::{Cluster, condition};

use crate::{
    preflight::{IMAGE, deployment, sleeper},
    refusal::{Serving, Undo, refused, server},
};

const PATIENCE: Duration = Duration::from_secs(120);
/// A process that from here on can reach no abstract Unix socket from before, which CRIU talks to it by.
const CONFINED: &str = "
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
scoped = ctypes.create_string_buffer(struct.pack('QQQ', 0, 0, 1), 24)
ruleset = libc.syscall(444, scoped, 24, 0)
assert ruleset >= 0 and libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, ruleset, 0) == 0
libc.close(ruleset)
";

#[test]
fn what_shows_only_when_a_move_is_tried_leaves_the_pod_as_it_was() -> Result<()> {
    let cluster = Cluster::with_namespace("unseen")?;
    let ctr = |args: &[&str]| {
        cluster.on_node("node-a", &[&["ctr", "-n", "k8s.io", "images"][..], args].concat())
    };
    // A name by digest under which one node has the image; where a registry would be, nothing listens.
    let listed = ctr(&["ls", &format!("name=={IMAGE}")])?;
    let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:"));
    let named = format!("127.0.0.1:9/app@{}", digest.context("the image has no digest")?);
    ctr(&["tag", "--force", IMAGE, &named])?;
    let _undo = Undo(|| drop(ctr(&["rm", &named])));
    let never = json!({"image": named, "imagePullPolicy": "Never"});
    let second = sleeper(&json!({"name": "second", "image": named}));
    for (name, containers) in [
        ("image", json!([server("", &json!({"image": named}))])),
        ("never", json!([server("", &never)])),
        ("further", json!([server("", &Value::Null), second])),
    ] {
        cluster.apply(&deployment(
            name,
            &json!({"nodeName": "node-a", "terminationGracePeriodSeconds": 0,
                "containers": containers}),
        ))?;
    }
    // The second container runs as well.
    cluster.rolled_out("further")?;
    let mut confined = Serving::deploy(&cluster, CONFINED)?;
    let mut image = Serving::of(&cluster, "app=image")?;

    // What kubelet would not pull, or not before the application stands still, is seen.
    for (label, words) in [
        ("app=never", "and imagePullPolicy is Never"),
        ("app=further", "which kubelet would pull only while the application stands still"),
    ] {
        let mut pod = Serving::of(&cluster, label)?;
        let words = format!("the target does not have {named}, {words}");
        refused(&cluster, &pod.pod, &Value::Null, &[("Image", words.as_str())])?;
        pod.is_untouched(&cluster)?;
    }

    // kubelet says only after a while that it cannot pull.
    let of_image = cluster.migrate(&image.pod.name, "node-b")?;
    let of_confined = cluster.migrate(&confined.pod.name, confined.pod.other_node())?;
    let status = failed(
        &cluster,
        &of_confined,
        "DumpFailed",
        &["confined itself with Landlock", "run it without"],
    )?;
    ensure!(!status["frozenAt"].is_null(), "nothing was tried: {status:#}");
    confined.is_untouched(&cluster)?;
    let status = failed(
        &cluster,
        &of_image,
        "TargetPodFailed",
        &[named.as_str(), "load or push its image", "node-b"],
    )?;
    ensure!(status["frozenAt"].is_null(), "it stood still for nothing: {status:#}");
    image.is_untouched(&cluster)?;
    cluster.await_that("no pod of the attempts is left", PATIENCE, || {
        Ok(cluster.list("pods", "transship.dev/migration")?.is_empty())
    })
}

/// The status of a Migration that passes the checks, fails for this reason and says these words.
fn failed(cluster: &Cluster, migration: &str, reason: &str, words: &[&str]) -> Result<Value> {
    cluster.ended(migration, PATIENCE)?;
    let object = cluster.get("migration", migration)?;
    let status = object["status"].clone();
    ensure!(condition(&object, "Admitted").0 == "True", "{status:#}");
    let (succeeded, why, message) = condition(&object, "Succeeded");
    ensure!(succeeded == "False" && why == reason, "{status:#}");
    ensure!(status["phase"] == "RolledBack", "{status:#}");
    for word in words {
        ensure!(message.contains(word), "{word:?} is not in {message}");
    }
    Ok(status)
}
