//! Pods of Jobs: they move with their connections and are counted once, as succeeded.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    counter::Client,
    faults::{
        Gate,
        driver::{Scene, begin, explained},
        judge::no_record_is_left,
        moment::Moment,
        nodes::NODES,
    },
};

use crate::sequential::{connect, goes_on, made_by_the_controller};

const PATIENCE: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);

/// Writes numbers in a row until it is told to finish, and fails if one is missing. Meanwhile it answers
/// each request with its number.
const SCRIPT: &str = r#"import os, socket, sys, threading, time
count = 0
lock = threading.Lock()
def serve(connection):
    global count
    while data := connection.recv(64):
        for _ in data:
            with lock:
                count += 1
                answer = b"%d\n" % count
            connection.sendall(answer)
server = socket.create_server(("", 8080))
def listen():
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
threading.Thread(target=listen, daemon=True).start()
n = 0
with open("/tmp/numbers", "a") as numbers:
    while not os.path.exists("/tmp/finish"):
        n += 1
        print(n, file=numbers, flush=True)
        time.sleep(0.02)
written = open("/tmp/numbers").read().split()
sys.exit(0 if written == [str(number) for number in range(1, n + 1)] else 1)
"#;

/// A CronJob that makes no Job by itself, and an indexed Job whose containers are restarted if they fail.
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
              command: [python3, -u, -c, SCRIPT]
---
apiVersion: batch/v1
kind: Job
metadata: {name: shards}
spec:
  completionMode: Indexed
  completions: 2
  parallelism: 2
  backoffLimit: 3
  template:
    spec:
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 1
      containers:
        - name: numbers
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [python3, -u, -c, SCRIPT]
"#;

fn deploy(name: &str) -> Result<Cluster> {
    let cluster = Cluster::with_namespace(name)?;
    // JSON's quoted text is YAML's.
    cluster.apply(&MANIFEST.replace("SCRIPT", &Value::from(SCRIPT).to_string()))?;
    Ok(cluster)
}

/// The pod, once it counts.
fn started(cluster: &Cluster, selector: &str) -> Result<Pod> {
    let mut found = None;
    cluster.await_that("the pod counts", SOON, || {
        let pod = cluster.pod(selector)?;
        ensure!(!pod.ip.is_empty(), "{} has no address yet", pod.name);
        let numbers = cluster.try_kubectl(&["exec", &pod.name, "--", "cat", "/tmp/numbers"])?;
        let counts = numbers.stdout.len() > 20;
        found = Some(pod);
        Ok(counts)
    })?;
    found.context("no pod")
}

fn moved(cluster: &Cluster, selector: &str, before: &Pod, client: &Client) -> Result<Pod> {
    let after = cluster.moved(selector, before)?;
    goes_on(cluster, client)?;
    Ok(after)
}

/// Every number came once over the one connection.
fn was_served(client: Client) -> Result<()> {
    let report = client.stop();
    ensure!(report.is_whole() && report.first == 1, "{report:?}");
    Ok(())
}

fn finish(cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster.kubectl(&["exec", &pod.name, "--", "touch", "/tmp/finish"]).map(drop)
}

/// A number that is out of order makes it fail.
fn spoil(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let spoil = "echo 0 >> /tmp/numbers; touch /tmp/finish";
    cluster.kubectl(&["exec", &pod.name, "--", "sh", "-c", spoil]).map(drop)
}

/// The Job's status once it is complete; its controller made no more pods than it has completions.
fn complete(cluster: &Cluster, job: &str, completions: u64) -> Result<Value> {
    let wait = ["wait", "--for=condition=Complete", &format!("job/{job}"), "--timeout=60s"];
    cluster.kubectl(&wait).with_context(|| {
        let status = cluster.get("job", job).unwrap_or_default()["status"].clone();
        format!("the Job's status: {status:#}")
    })?;
    let status = cluster.get("job", job)?["status"].clone();
    ensure!(status["succeeded"] == completions, "{status:#}");
    ensure!(status["failed"].as_u64().unwrap_or(0) == 0, "a failure was counted: {status:#}");
    ensure!(status["uncountedTerminatedPods"].as_object().is_none_or(|pods| pods.is_empty()));
    let made = made_by_the_controller(cluster, job)?;
    ensure!(made == completions, "the Job's controller made {made} pods");
    Ok(status)
}

#[test]
fn a_pod_of_a_cron_job_moves_to_and_fro_and_is_counted_once() -> Result<()> {
    let cluster = deploy("job")?;
    cluster.kubectl(&["delete", "job", "shards", "--wait=false"])?;
    cluster.kubectl(&["create", "job", "tonight", "--from=cronjob/nightly"])?;
    let selector = "batch.kubernetes.io/job-name=tonight";
    let pod = started(&cluster, selector)?;
    let client = connect(&pod)?;
    let pod = moved(&cluster, selector, &pod, &client)?;
    let status = cluster.get("job", "tonight")?["status"].clone();
    ensure!(status["active"] == 1 && status["failed"].is_null(), "in its middle: {status:#}");
    let pod = moved(&cluster, selector, &pod, &client)?;
    was_served(client)?;
    let metadata = cluster.get("pod", &pod.name)?["metadata"].clone();
    ensure!(metadata["ownerReferences"][0]["kind"] == "Job", "{metadata:#}");
    finish(&cluster, &pod)?;
    complete(&cluster, "tonight", 1)?;
    // A pod that was counted is free to go, and goes with its Job.
    cluster.kubectl(&["delete", "job", "tonight", "--timeout=60s"])?;
    cluster.await_that("the pods go with their Job", SOON, || {
        Ok(cluster.list("pods", selector)?.is_empty())
    })
}

#[test]
#[ignore = "a CronJob's pod moves above, and what counts as a failure is shown below"]
fn a_pod_of_an_indexed_job_keeps_its_index_and_restarts_its_container_on_failure() -> Result<()> {
    let cluster = deploy("shards")?;
    let selector = |index: u32| {
        format!(
            "batch.kubernetes.io/job-name=shards,batch.kubernetes.io/job-completion-index={index}"
        )
    };
    let one = started(&cluster, &selector(1))?;
    let client = connect(&one)?;
    let one = moved(&cluster, &selector(1), &one, &client)?;
    was_served(client)?;
    let host = cluster.kubectl(&["exec", &one.name, "--", "cat", "/proc/sys/kernel/hostname"])?;
    ensure!(host.trim() == "shards-1", "{host}");

    spoil(&cluster, &one)?;
    cluster.await_that("kubelet starts the moved container anew", SOON, || {
        let status = cluster.get("pod", &one.name)?["status"]["containerStatuses"][0].clone();
        Ok(status["restartCount"] == 1
            && status["lastState"]["terminated"]["exitCode"] == 1
            && status["state"]["running"].is_object())
    })?;
    ensure!(started(&cluster, &selector(1))? == one, "another pod took its place");
    let zero = started(&cluster, &selector(0))?;
    finish(&cluster, &one)?;
    finish(&cluster, &zero)?;
    let status = complete(&cluster, "shards", 2)?;
    ensure!(status["completedIndexes"] == "0,1", "{status:#}");
    ensure!(status["failedIndexes"].is_null(), "{status:#}");
    Ok(())
}

#[test]
fn a_move_that_is_cancelled_counts_no_failure_of_its_job() -> Result<()> {
    const NAME: &str = "tonight";
    let cluster = deploy("job-cancelled")?;
    Gate::open_all(&cluster)?;
    cluster.kubectl(&["delete", "job", "shards", "--wait=false"])?;
    cluster.kubectl(&["create", "job", NAME, "--from=cronjob/nightly"])?;
    let selector = "batch.kubernetes.io/job-name=tonight";
    let before = started(&cluster, selector)?;
    let client = connect(&before)?;
    let scene = Scene::new(&cluster, NODES, before.clone(), NAME);
    let outcome = cancelled(&scene);
    Gate::open_all(&cluster)?;
    explained(&scene, outcome)?;
    drop(scene);

    let now = cluster.pod(selector)?;
    ensure!(now == before, "{before:?} became {now:?}");
    goes_on(&cluster, &client)?;
    let targets = cluster.list("pods", "transship.dev/migration")?;
    ensure!(targets.is_empty(), "{targets:#?}");
    let status = cluster.get("job", NAME)?["status"].clone();
    ensure!(status["active"] == 1 && status["failed"].as_u64().unwrap_or(0) == 0, "{status:#}");
    NODES.iter().try_for_each(|node| no_record_is_left(&cluster, node))?;

    // One that is not cancelled counts none either. What then fails by itself is not started again, and counts once.
    let after = moved(&cluster, selector, &before, &client)?;
    was_served(client)?;
    spoil(&cluster, &after)?;
    cluster.kubectl(&["wait", "--for=condition=Failed", "job/tonight", "--timeout=60s"])?;
    let status = cluster.get("job", NAME)?["status"].clone();
    ensure!(status["failed"] == 1 && status["succeeded"].as_u64().unwrap_or(0) == 0, "{status:#}");
    let made = made_by_the_controller(&cluster, NAME)?;
    ensure!(made == 1, "the Job's controller made {made} pods");
    Ok(())
}

/// Somebody deletes the Migration when both sides stand still and have voted, and it goes.
pub fn cancelled(scene: &Scene) -> Result<()> {
    let cluster = scene.cluster;
    begin(scene, Moment::Voted, None)?;
    cluster.kubectl(&["delete", "migration", &scene.migration, "--wait=false"])?;
    Gate::open_all(cluster)?;
    cluster.await_that("the Migration is gone", PATIENCE, || {
        Ok(cluster.get("migration", &scene.migration)?.is_null())
    })?;
    cluster.await_that("it has told why", SOON, || {
        let (succeeded, reason, message) = condition(&scene.history.latest(), "Succeeded");
        ensure!(succeeded == "False" && reason == "Cancelled", "{succeeded}, {reason}: {message}");
        Ok(true)
    })
}
