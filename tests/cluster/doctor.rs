//! `kubectl transship doctor`: what it says of pods, nodes and the installation, and with which exit code; and
//! what authors are told before there is a pod.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use transship_tests::{
    cluster::{Cluster, plugin},
    faults::Gate,
};

use crate::{
    counter,
    preflight::{deployment, sleeper},
};

const PATIENCE: Duration = Duration::from_secs(120);

/// Exit code, and everything that it printed.
pub fn doctor(cluster: &Cluster, args: &[&str]) -> Result<(i32, String)> {
    let asked = ["doctor", "--namespace", &cluster.namespace];
    let output = plugin()?.args(asked).args(args).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

/// The exit code is 1, and all these words are there.
pub fn is_told(cluster: &Cluster, subject: &str, words: &[&str]) -> Result<()> {
    let (code, text) = doctor(cluster, &[subject])?;
    let missing: Vec<&&str> = words.iter().filter(|words| !text.contains(**words)).collect();
    ensure!(code == 1 && missing.is_empty(), "{code}, and not {missing:?}: {text}");
    Ok(())
}

#[test]
fn the_doctor_answers_for_pod_node_and_cluster_and_authors_are_warned() -> Result<()> {
    let cluster = Cluster::with_namespace("doctor")?;
    Gate::open_all(&cluster)?;
    let pod = counter(&cluster)?;
    let doctor = |args: &[&str]| doctor(&cluster, args);
    let (code, text) = doctor(&[])?;
    ensure!(code == 0, "{text}");
    for words in ["operator", "agents", "webhooks", "node node-a", "node node-b", "CRIU 4.2"] {
        ensure!(text.contains(words), "{words}: {text}");
    }
    let (code, text) = doctor(&["node/node-a"])?;
    ensure!(code == 0 && text.contains("PagemapScan") && text.contains("RuntimeReady"), "{text}");
    let (code, text) = doctor(&[&pod.name])?;
    ensure!(code == 0 && text.contains(&format!("can be moved to {}", pod.other_node())), "{text}");
    let (code, text) = doctor(&["no-such-thing"])?;
    ensure!(code == 1 && text.contains("no-such-thing"), "{text}");

    // A node that takes no pods, and a pod with something in its way.
    cluster.kubectl(&["cordon", pod.other_node()])?;
    let asked = doctor(&[&pod.name]);
    let node = doctor(&[pod.other_node()]);
    cluster.kubectl(&["uncordon", pod.other_node()])?;
    let (code, text) = asked?;
    ensure!(code == 1 && text.contains("cordoned"), "{text}");
    let (code, text) = node?;
    ensure!(code == 1 && text.contains("cordoned"), "{text}");
    // Nobody can answer while nothing is recorded.
    Gate::Admission.close(&cluster)?;
    let asked = doctor(&[&pod.name, "--timeout=1s"]);
    Gate::Admission.open(&cluster)?;
    let (code, text) = asked?;
    ensure!(code == 124 && text.contains(" ? "), "{code}: {text}");
    ensure!(cluster.list("migrations", "")?.is_empty(), "the questions are left");

    let spec = json!({"hostNetwork": true, "containers": [sleeper(&Value::Null)]});
    who_asks_is_warned(&cluster, &spec)?;
    every_kind_is_warned(&cluster, &spec)
}

/// When a workload is made or its template changed: one that asks, one that a policy selects, and none that does not
/// ask or says that it need not move.
fn who_asks_is_warned(cluster: &Cluster, spec: &Value) -> Result<()> {
    let apply = |name: &str, annotations: Value| -> Result<String> {
        let mut object: Value = serde_json::from_str(&deployment(name, spec))?;
        object["spec"]["replicas"] = json!(0);
        object["spec"]["template"]["metadata"]["annotations"] = annotations;
        let output = cluster.try_apply(&object.to_string())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for more in ["as it is made", "as it is changed"] {
        let asks = json!({"transship.dev/movable": "true", "example.com/note": more});
        let warned = apply("asks", asks)?;
        for word in ["Warning", "hostNetwork", "io_uring"] {
            ensure!(warned.contains(word), "{word}, {more}: {warned}");
        }
    }
    let other =
        cluster.try_kubectl(&["annotate", "deployment", "asks", "example.com/note=other"])?;
    let warned = String::from_utf8_lossy(&other.stderr);
    ensure!(other.status.success() && warned.is_empty(), "its template is what it was: {warned}");
    let policy = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
        "metadata": {"name": "selected"}, "spec": {"selector": {"matchLabels": {"app": "selected"}}}});
    cluster.apply(&policy.to_string())?;
    let warned = apply("selected", Value::Null)?;
    ensure!(warned.contains("hostNetwork"), "{warned}");
    let warned = apply("silent", Value::Null)?;
    ensure!(!warned.contains("Warning"), "{warned}");
    for name in ["selected", "stays"] {
        let stays = json!({"transship.dev/movable": "false", "transship.dev/post-start": "skip"});
        let warned = apply(name, stays)?;
        ensure!(!warned.contains("Warning"), "{name}: {warned}");
    }
    Ok(())
}

/// Whatever makes pods of a template that asks, and a pod itself: nothing is stored.
fn every_kind_is_warned(cluster: &Cluster, spec: &Value) -> Result<()> {
    let mut ending = spec.clone();
    ending["restartPolicy"] = json!("Never");
    let metadata =
        json!({"labels": {"app": "kind"}, "annotations": {"transship.dev/movable": "true"}});
    let template = json!({"metadata": metadata, "spec": spec});
    let job = json!({"template": {"metadata": metadata, "spec": ending}});
    let selected = json!({"selector": {"matchLabels": {"app": "kind"}}, "template": template});
    let mut served = selected.clone();
    served["serviceName"] = json!("kind");
    for (version, kind, spec) in [
        ("apps/v1", "DaemonSet", &selected),
        ("apps/v1", "Deployment", &selected),
        ("apps/v1", "ReplicaSet", &selected),
        ("apps/v1", "StatefulSet", &served),
        ("batch/v1", "CronJob", &json!({"schedule": "0 3 * * *", "jobTemplate": {"spec": job}})),
        ("batch/v1", "Job", &job),
        ("v1", "Pod", spec),
    ] {
        let mut object = json!({"apiVersion": version, "kind": kind,
            "metadata": {"name": "kind"}, "spec": spec});
        if kind == "Pod" {
            object["metadata"]["annotations"] = metadata["annotations"].clone();
        }
        let output = cluster.try_dry_apply(&object.to_string())?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_told = ["Warning", "hostNetwork", "io_uring"].iter().all(|word| told.contains(word));
        ensure!(output.status.success() && is_told, "{kind}: {told}");
        let alone = kind == "DaemonSet";
        ensure!(told.contains("DaemonSet") == alone, "{kind}: {told}");
    }
    Ok(())
}

#[test]
fn the_doctor_tells_what_is_in_a_pods_way_wherever_it_goes() -> Result<()> {
    let cluster = Cluster::with_namespace("doctor-oddities")?;
    let odd = |name: &str, oddity: &str| {
        let script = include_str!("oddities.py");
        let mut container = sleeper(&json!({
            "command": ["python3", "-c", script, "only", oddity],
            "securityContext": {"privileged": true},
        }));
        container["name"] = json!(name);
        container
    };
    cluster.apply(&deployment(
        "odd",
        &json!({
            "terminationGracePeriodSeconds": 0,
            "containers": [odd("web", "mptcp"), odd("helper", "userfaultfd")],
        }),
    ))?;
    cluster.rolled_out("odd")?;
    let pod = cluster.pod("app=odd")?;
    let all_is_told = || {
        is_told(
            &cluster,
            &pod.name,
            &[
                "cannot be moved.",
                "It would carry",
                "In its way, wherever it goes",
                "Mptcp (container web): process mptcp",
                "GODEBUG=multipathtcp=0",
                "Userfaultfd (container helper): process userfaultfd",
                "what is in the pod's way",
                pod.other_node(),
            ],
        )
    };
    // The processes may be Ready before they have what they are to have.
    cluster.await_that("all is told", PATIENCE, || all_is_told().map(|()| true))?;
    ensure!(cluster.list("migrations", "")?.is_empty(), "the questions are left");
    Ok(())
}
