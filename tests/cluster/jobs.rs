//! Pods of Jobs: they move and are counted once, as succeeded.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_tests::cluster::{Cluster, Pod};

const PATIENCE: Duration = Duration::from_secs(120);

/// Writes numbers in a row until it is told to finish, and fails if one is missing.
const SCRIPT: &str = "n=0; while [ ! -e /tmp/finish ]; do n=$((n+1)); echo $n >> /tmp/numbers; sleep 0.02; done; \
    seq $n > /tmp/expected; [ \\\"$(sha256sum < /tmp/expected)\\\" = \\\"$(sha256sum < /tmp/numbers)\\\" ]";

/// A CronJob that makes no Job by itself, and an indexed Job.
const MANIFEST: &str = r#"
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: "0 3 * * *"
  suspend: true
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          terminationGracePeriodSeconds: 1
          containers:
            - name: numbers
              image: localhost/transship-examples:1
              imagePullPolicy: IfNotPresent
              command: [sh, -c, "SCRIPT"]
---
apiVersion: batch/v1
kind: Job
metadata: {name: shards}
spec:
  completionMode: Indexed
  completions: 2
  parallelism: 2
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers:
        - name: numbers
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [sh, -c, "SCRIPT"]
"#;

fn deploy(name: &str) -> Result<Cluster> {
    let cluster = Cluster::with_namespace(name)?;
    cluster.apply(&MANIFEST.replace("SCRIPT", SCRIPT))?;
    Ok(cluster)
}

fn runs(cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster.await_that("the pod counts", Duration::from_secs(60), || {
        let numbers = cluster.try_kubectl(&["exec", &pod.name, "--", "cat", "/tmp/numbers"])?;
        Ok(numbers.stdout.len() > 20)
    })
}

fn moved(cluster: &Cluster, selector: &str) -> Result<Pod> {
    cluster.await_that("the pod is there", Duration::from_secs(60), || {
        let pod = cluster.pod(selector)?;
        let phase = &cluster.get("pod", &pod.name)?["status"]["phase"];
        Ok(phase == "Running")
    })?;
    let before = cluster.pod(selector)?;
    runs(cluster, &before)?;
    let migration = cluster.migrate(&before.name, before.other_node())?;
    cluster.succeeded(&migration, PATIENCE)?;
    let after = cluster.pod(selector)?;
    ensure!(after.node == before.other_node() && after.ip == before.ip, "{before:?} → {after:?}");
    Ok(after)
}

fn finish(cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster.kubectl(&["exec", &pod.name, "--", "touch", "/tmp/finish"]).map(drop)
}

/// The Job's status once it is complete; its controller made no more pods than it has completions.
fn complete(cluster: &Cluster, job: &str, completions: usize) -> Result<Value> {
    let wait = ["wait", "--for=condition=Complete", &format!("job/{job}"), "--timeout=60s"];
    cluster.kubectl(&wait).with_context(|| {
        let status = cluster.get("job", job).unwrap_or_default()["status"].clone();
        format!("the Job's status: {status:#}")
    })?;
    let status = cluster.get("job", job)?["status"].clone();
    ensure!(status["succeeded"] == completions, "{status:#}");
    ensure!(status["failed"].as_u64().unwrap_or(0) == 0, "a failure was counted: {status:#}");
    ensure!(status["uncountedTerminatedPods"].as_object().is_none_or(|pods| pods.is_empty()));
    let made = ["get", "events", "--field-selector", "reason=SuccessfulCreate", "-o", "json"];
    let events: Value = serde_json::from_str(&cluster.kubectl(&made)?)?;
    let made = events["items"].as_array().map_or(0, |events| {
        events.iter().filter(|event| event["involvedObject"]["name"] == job).count()
    });
    ensure!(made == completions, "the Job's controller made {made} pods");
    Ok(status)
}

#[test]
fn a_pod_of_a_cron_job_moves_to_and_fro_and_is_counted_once() -> Result<()> {
    let cluster = deploy("job")?;
    cluster.kubectl(&["delete", "job", "shards", "--wait=false"])?;
    cluster.kubectl(&["create", "job", "tonight", "--from=cronjob/nightly"])?;
    let selector = "batch.kubernetes.io/job-name=tonight";
    moved(&cluster, selector)?;
    let status = cluster.get("job", "tonight")?["status"].clone();
    ensure!(status["active"] == 1 && status["failed"].is_null(), "in its middle: {status:#}");
    let pod = moved(&cluster, selector)?;
    let labels = cluster.get("pod", &pod.name)?["metadata"].clone();
    ensure!(labels["ownerReferences"][0]["kind"] == "Job", "{labels:#}");
    finish(&cluster, &pod)?;
    complete(&cluster, "tonight", 1)?;
    // A pod that was counted is free to go, and goes with its Job.
    cluster.kubectl(&["delete", "job", "tonight", "--timeout=60s"])?;
    cluster.await_that("the pods go with their Job", Duration::from_secs(60), || {
        Ok(cluster.list("pods", selector)?.is_empty())
    })
}

#[test]
fn a_pod_of_an_indexed_job_keeps_its_index() -> Result<()> {
    let cluster = deploy("shards")?;
    let selector = |index: u32| {
        format!(
            "batch.kubernetes.io/job-name=shards,batch.kubernetes.io/job-completion-index={index}"
        )
    };
    let one = moved(&cluster, &selector(1))?;
    let host = cluster.kubectl(&["exec", &one.name, "--", "cat", "/proc/sys/kernel/hostname"])?;
    ensure!(host.trim() == "shards-1", "{host}");
    let zero = cluster.pod(&selector(0))?;
    finish(&cluster, &one)?;
    finish(&cluster, &zero)?;
    let status = complete(&cluster, "shards", 2)?;
    ensure!(status["completedIndexes"] == "0,1", "{status:#}");
    ensure!(status["failedIndexes"].is_null(), "{status:#}");
    Ok(())
}
