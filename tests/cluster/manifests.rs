//! Wrong manifests are answered within a second, in one sentence that says what to write instead.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use transship_tests::{
    cluster::{Cluster, condition, migration, migration_in},
    counter::Client,
};

use crate::{counter, faults::source_goes_on};

/// Both the answer and its speed.
fn refused_by_condition(
    cluster: &Cluster,
    name: &str,
    manifest: &str,
    expected: &str,
    word: &str,
) -> Result<()> {
    cluster.apply(manifest)?;
    let began = Instant::now();
    cluster.ended(name, Duration::from_secs(10))?;
    let took = began.elapsed();
    let object = cluster.get("migration", name)?;
    for type_ in ["Admitted", "Succeeded"] {
        let (status, reason, message) = condition(&object, type_);
        ensure!(status == "False" && reason == expected, "{object:#}");
        ensure!(message.contains(word), "{name} ({reason}): {message:?} does not say {word:?}");
    }
    ensure!(took < Duration::from_millis(1500), "{name} was answered only after {took:?}");
    cluster.kubectl(&["delete", "migration", name, "--timeout=30s"])?;
    Ok(())
}

#[test]
fn errors_in_manifests_say_what_to_write_instead() -> Result<()> {
    let cluster = Cluster::with_namespace("manifests")?;
    let pod = counter(&cluster)?;
    let client = Client::of(&pod)?;

    for (name, manifest, reason, word) in [
        ("no-pod", migration("no-pod", "nothing-here", "node-b"), "PodNotFound", "nothing-here"),
        ("no-node", migration("no-node", &pod.name, "node-z"), "NodeNotFound", "node-z"),
        ("same", migration("same", &pod.name, &pod.node), "SameNode", pod.node.as_str()),
        (
            "precopy",
            migration_in("PreCopy", "precopy", &pod.name, pod.other_node()),
            "ModeNotAvailable",
            "StopAndCopy",
        ),
    ] {
        refused_by_condition(&cluster, name, &manifest, reason, word)?;
    }

    // Admission does not see what comes with a pod's status: this passes, as when no operator answers.
    let unread = r#"{"metadata":{"annotations":{"transship.dev/constraints":"region==us"}}}"#;
    let patch = ["patch", "pod", &pod.name, "--subresource=status", "--type=merge", "-p", unread];
    cluster.kubectl(&patch)?;
    let manifest = migration("unread", &pod.name, pod.other_node());
    let words = "write a JSON array of strings";
    refused_by_condition(&cluster, "unread", &manifest, "InvalidSpec", words)?;

    // What the API server itself answers.
    for (field, words) in [
        ("timeout: soon", "10m"),
        ("maxDowntime: 300", "300ms"),
        ("bandwidthLimit: fast", "200Mi"),
        ("mode: Warp", "StopAndCopy"),
    ] {
        let manifest = format!(
            "apiVersion: transship.dev/v1alpha1\nkind: Migration\nmetadata: {{name: bad}}\nspec:\n  podName: {}\n  {field}\n",
            pod.name
        );
        let output = cluster.try_apply(&manifest)?;
        let answer = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{field} was accepted");
        ensure!(answer.contains(words), "{field}: {answer:?} does not say {words:?}");
    }

    // A spec never changes.
    let paused = migration("fixed", "nothing-here", "node-b");
    cluster.apply(&paused)?;
    let output = cluster.try_apply(&paused.replace("node-b", "node-a"))?;
    let answer = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && answer.contains("create another Migration"), "{answer}");

    // Nor does a decision, not even for an administrator's patch of the status.
    let output = cluster.try_kubectl(&[
        "patch",
        "migration",
        "fixed",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"decision":"Commit"}}"#,
        "--as=mallory",
        "--as-group=system:masters",
    ])?;
    ensure!(!output.status.success(), "a decision could be forged");

    // The pod was never touched.
    source_goes_on(&cluster, &pod, client)
}

#[test]
fn a_user_who_may_create_pods_restores_and_runs_nothing_by_annotations() -> Result<()> {
    let cluster = Cluster::with_namespace("annotations")?;
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata:
  name: mallory
  annotations:
    org.criu.config: /tmp/evil.conf
    transship.dev/restore-from: anything
    transship.dev/restore: /tmp/images
    io.kubernetes.cri.sandbox-uid: 00000000-0000-0000-0000-000000000000
spec:
  terminationGracePeriodSeconds: 1
  nodeName: node-a
  containers:
    - name: c
      image: localhost/transship-examples:1
      imagePullPolicy: IfNotPresent
      command: [sleep, "3600"]
"#;
    cluster.apply(manifest)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/mallory", "--timeout=60s"])?;
    // An ordinary, fresh container: its process is what the manifest says.
    let process = cluster.kubectl(&["exec", "mallory", "--", "cat", "/proc/1/cmdline"])?;
    ensure!(process.starts_with("sleep"), "{process:?}");
    let uid =
        cluster.get("pod", "mallory")?["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    cluster
        .on_node("node-a", &["test", "!", "-e", &format!("/var/lib/transship/pods/{uid}")])
        .context("the host has a record for a pod that only bears annotations")
        .map(drop)
}
