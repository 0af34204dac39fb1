//! Room that is there when the checks look and gone when it is needed: the move is rolled back, the
//! source goes on with its connection, and the Migration says what is full and where.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::{
    cluster::{Cluster, Pod, condition, migration},
    counter::Client,
    faults::{
        Gate, disk,
        driver::{Scene, begin, explained},
        judge::no_record_is_left,
        moment::Moment,
        nodes::NODES,
    },
};

use crate::{
    counter,
    faults::source_goes_on,
    preflight::deployment,
    refusal::{Serving, refused, server},
    sequential::{EMPTY_DIR, running, spec, stateful},
};

const NAME: &str = "counter";
const PATIENCE: Duration = Duration::from_secs(60);
/// What the API server says of a pod too many.
const EXCEEDED: &str = "exceeded quota: late";
/// What is left on the disk, in KiB: room for everything but the application's 256 MiB.
const LITTLE: u32 = 8 << 10;
/// The same for an application of some MiB.
const LESS: u32 = 1 << 10;
/// An open file without a name, of more than that.
const NAMELESS: &str = "
import os
nameless = os.open('/tmp/nameless', os.O_CREAT | os.O_RDWR)
os.posix_fallocate(nameless, 0, 32 << 20)
os.unlink('/tmp/nameless')
";

/// Allows a namespace so many pods, once the ones that are there are counted.
pub fn allow_pods(cluster: &Cluster, quota: &str, count: usize) -> Result<()> {
    let manifest = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": quota},
        "spec": {"hard": {"pods": count.to_string()}}});
    cluster.apply(&manifest.to_string())?;
    cluster.await_that("the quota counts the pods", PATIENCE, || {
        Ok(cluster.get("resourcequota", quota)?["status"]["used"]["pods"].is_string())
    })
}

/// Takes a quota away again, if it is there.
pub fn say_no_more(cluster: &Cluster, quota: &str) -> Result<()> {
    cluster.kubectl(&["delete", "resourcequota", quota, "--ignore-not-found"]).map(drop)
}

/// The Migration was rolled back, and its message has all of these words.
fn rolled_back(cluster: &Cluster, words: &[&str]) -> Result<()> {
    cluster.ended(NAME, PATIENCE)?;
    let migration = cluster.get("migration", NAME)?;
    let status = &migration["status"];
    let (succeeded, reason, message) = condition(&migration, "Succeeded");
    ensure!(succeeded == "False" && status["phase"] == "RolledBack", "{reason}: {message}");
    ensure!(status["decision"] == "Abort" && status["resumedAt"].is_null(), "{status:#}");
    for word in words {
        ensure!(message.contains(word), "{word:?} is not in {reason}: {message}");
    }
    Ok(())
}

/// Forgets the Migration; nothing of it is left but the pod with its connection.
fn nothing_happened(cluster: &Cluster, pod: &Pod, client: Client) -> Result<()> {
    source_goes_on(cluster, pod, client)?;
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    NODES.iter().try_for_each(|node| no_record_is_left(cluster, node))
}

#[test]
fn a_quota_that_comes_after_the_checks_rolls_back_and_one_that_stands_is_found_by_them()
-> Result<()> {
    comes_late_and_stands("late-quota", counter, &one_pod(), EXCEEDED)
}

#[test]
#[ignore = "the other order of handing over makes its first pod by the same step"]
fn a_quota_that_comes_after_the_checks_of_a_stateful_sets_pod_rolls_back_and_is_found_later()
-> Result<()> {
    let of_a_stateful_set = |cluster: &Cluster| {
        cluster.apply(&stateful(&spec(EMPTY_DIR, "", ""), ""))?;
        running(cluster, "web-0")
    };
    comes_late_and_stands("late-stateful-quota", of_a_stateful_set, &one_pod(), EXCEEDED)
}

#[test]
#[ignore = "the API server refuses the pod as it does for the quota above"]
fn a_limit_that_comes_after_the_checks_rolls_back_and_one_that_stands_is_found_by_them()
-> Result<()> {
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "late"},
        "spec": {"limits": [{"type": "Pod", "max": {"memory": "1Mi"}}]}});
    comes_late_and_stands("late-limit", counter, &range, "maximum memory usage per Pod")
}

/// Has no room for a second pod.
fn one_pod() -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "late"},
        "spec": {"hard": {"pods": "1"}}})
}

/// A limit is made between the checks and the target pod, and the API server refuses the pod in these words from
/// then on.
fn comes_late_and_stands(
    namespace: &str,
    deploy: impl FnOnce(&Cluster) -> Result<Pod>,
    limit: &Value,
    words: &str,
) -> Result<()> {
    let cluster = Cluster::with_namespace(namespace)?;
    Gate::open_all(&cluster)?;
    let pod = deploy(&cluster)?;
    let client = Client::of(&pod)?;
    let outcome = comes_late(&cluster, &pod, limit, words);
    Gate::open_all(&cluster)?;
    outcome?;
    nothing_happened(&cluster, &pod, client)?;
    // It still stands: now the checks find it.
    let client = Client::of(&pod)?;
    refused(&cluster, &pod, &Value::Null, &[("TargetPod", words)])?;
    nothing_happened(&cluster, &pod, client)
}

/// Waits until the checks have passed and that alone is left to be recorded, which a gate keeps away: the claim is
/// the last thing before it.
pub fn checks_have_passed(cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster.await_that("the checks have passed", PATIENCE, || {
        let metadata = cluster.get("pod", &pod.name)?["metadata"].clone();
        Ok(!metadata["annotations"]["transship.dev/claim"].is_null())
    })
}

fn comes_late(cluster: &Cluster, pod: &Pod, limit: &Value, words: &str) -> Result<()> {
    Gate::Admission.close(cluster)?;
    cluster.apply(&migration(NAME, &pod.name, pod.other_node()))?;
    checks_have_passed(cluster, pod)?;
    cluster.apply(&limit.to_string())?;
    cluster.await_that("the limit is in force", PATIENCE, || {
        let probe = ["run", "probe", "--image=none", "--restart=Never", "--dry-run=server"];
        let answer = cluster.try_kubectl(&probe)?;
        Ok(String::from_utf8_lossy(&answer.stderr).contains(words))
    })?;
    Gate::Admission.open(cluster)?;
    rolled_back(cluster, &["the target pod was refused", words])
}

#[test]
fn a_disk_that_fills_up_at_the_target_rolls_back_and_one_that_is_full_is_found_by_the_checks()
-> Result<()> {
    let cluster = Cluster::with_namespace("full-disk")?;
    Gate::open_all(&cluster)?;
    let pod = counter(&cluster)?;
    let node = pod.other_node();
    // In the other order of handing over the state is kept there until the pod runs. On the same node.
    let placed = format!("{{nodeName: {}, ", pod.node);
    cluster.apply(&stateful(&spec(EMPTY_DIR, "", "").replacen('{', &placed, 1), ""))?;
    let sequential = running(&cluster, "web-0")?;
    let mut leaving = Leaving::deploy(&cluster, node)?;
    disk::make_small(&cluster, node)?;
    let outcome = fills_up(&cluster, &sequential, LESS)
        .context("in the sequential order")
        .and_then(|()| disk::empty(&cluster, node))
        .and_then(|()| has_room_again(&cluster, &pod))
        .and_then(|()| fills_up(&cluster, &pod, LITTLE))
        .and_then(|()| is_found(&cluster, &pod))
        .and_then(|()| leaving.are_refused(&cluster).context("at the source"));
    // Whatever came of it: others need the node.
    let emptied = disk::empty(&cluster, node);
    let opened = Gate::open_all(&cluster);
    let enlarged = disk::make_large(&cluster, node);
    outcome.and(emptied).and(opened).and(enlarged)
}

fn fills_up(cluster: &Cluster, pod: &Pod, left: u32) -> Result<()> {
    let node = pod.other_node();
    let client = Client::of(pod)?;
    let scene = Scene::new(cluster, NODES, pod.clone(), NAME);
    // Both sides have begun and nothing has been sent.
    let outcome = begin(&scene, Moment::Prepared, None)
        .and_then(|_| disk::fill(cluster, node, left))
        .and_then(|()| Gate::open_all(cluster))
        .and_then(|()| {
            rolled_back(cluster, &[node, "the disk with /var/lib/transship", "is full"])
        });
    explained(&scene, outcome)?;
    drop(scene);
    nothing_happened(cluster, pod, client)
}

/// The checks find nothing: the node tells of its room from time to time.
fn has_room_again(cluster: &Cluster, pod: &Pod) -> Result<()> {
    const QUESTION: &str = "room";
    let question = migration(QUESTION, &pod.name, pod.other_node());
    let question = question.replacen("spec: {", "spec: {dryRun: true, ", 1);
    let forget = ["delete", "migration", QUESTION, "--ignore-not-found", "--timeout=30s"];
    cluster.await_that("the checks find that there is room again", PATIENCE, || {
        cluster.kubectl(&forget)?;
        cluster.apply(&question)?;
        cluster.succeeded(QUESTION, PATIENCE).map(|_| true)
    })
}

/// The checks find that the disk is full.
fn is_found(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let node = pod.other_node();
    let client = Client::of(pod)?;
    let found = format!("{node} has ");
    let room = "free for receiving it in /var/lib/transship";
    cluster.await_that("the checks find that the disk is full", PATIENCE, || {
        let expected = [("Space", found.as_str()), ("Space", room)];
        refused(cluster, pod, &Value::Null, &expected).map(|()| true)
    })?;
    nothing_happened(cluster, pod, client)
}

/// The same application as the StatefulSet's, of a Deployment.
const DEPLOYED: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: SPEC}
";

#[test]
fn a_disk_that_has_no_room_for_the_pods_files_at_the_target_rolls_back() -> Result<()> {
    let manifest = DEPLOYED.replace("SPEC", &spec(EMPTY_DIR, "", ""));
    files_have_no_room("full-files", &manifest)
}

#[test]
#[ignore = "the other order of handing over puts the same files into the same place"]
fn a_disk_that_has_no_room_for_the_files_of_a_stateful_sets_pod_rolls_back() -> Result<()> {
    files_have_no_room("full-stateful-files", &stateful(&spec(EMPTY_DIR, "", ""), ""))
}

/// Of a pod with the label `app=web`: they lie on kubelet's disk, and everything that comes before them on ours.
fn files_have_no_room(namespace: &str, manifest: &str) -> Result<()> {
    let cluster = Cluster::with_namespace(namespace)?;
    Gate::open_all(&cluster)?;
    cluster.apply(manifest)?;
    cluster.await_that("there is a pod", PATIENCE, || cluster.pod("app=web").map(|_| true))?;
    let pod = running(&cluster, &cluster.pod("app=web")?.name)?;
    let write = ["exec", &pod.name, "--", "sh", "-c", "head -c 4M /dev/urandom > /data/much"];
    cluster.kubectl(&write)?;
    let client = Client::of(&pod)?;
    let scene = Scene::new(&cluster, NODES, pod.clone(), NAME);
    let outcome = have_no_room(&scene);
    let opened = Gate::open_all(&cluster);
    explained(&scene, outcome)?;
    opened?;
    drop(scene);
    nothing_happened(&cluster, &pod, client)
}

fn have_no_room(scene: &Scene) -> Result<()> {
    let (cluster, node) = (scene.cluster, scene.source.other_node());
    // The target pod is made and has no node yet.
    begin(scene, Moment::Prepared, None)?;
    cluster.await_that("the pod is recorded", PATIENCE, || Ok(!scene.target_uid().is_empty()))?;
    let target = scene.target_uid();
    disk::lay(cluster, node, &target, "data", LESS)?;
    let outcome = Gate::open_all(cluster).and_then(|()| {
        rolled_back(cluster, &[node, "the disk with the pod's files is full", "emptydir/data"])
    });
    outcome.and(disk::lift(cluster, node, &target, "data"))
}

/// Pods that would leave the node whose disk becomes full, in either order of handing over.
struct Leaving {
    overlap: Serving,
    sequential: Serving,
}

impl Leaving {
    fn deploy(cluster: &Cluster, node: &str) -> Result<Leaving> {
        let containers = [server(NAMELESS, &Value::Null)];
        let spec = json!({"nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": containers});
        let lone = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "lone", "labels": {"app": "lone"}}, "spec": spec});
        cluster.apply(&deployment("nameless", &spec))?;
        cluster.apply(&lone.to_string())?;
        Ok(Leaving {
            overlap: Serving::of(cluster, "app=nameless")?,
            sequential: Serving::of(cluster, "app=lone")?,
        })
    }

    /// What a move writes on their own node has no room there.
    fn are_refused(&mut self, cluster: &Cluster) -> Result<()> {
        let Leaving { overlap, sequential } = self;
        let there = format!("{} has ", overlap.pod.node);
        let saved = format!("are saved on the source first, and {there}");
        refused(cluster, &overlap.pod, &Value::Null, &[("Space", saved.as_str())])?;
        overlap.is_untouched(cluster)?;
        let kept = format!("are kept on the source as well, and {there}");
        refused(cluster, &sequential.pod, &Value::Null, &[("Space", kept.as_str())])?;
        let cold = [("Space", "of files, for which the source needs")];
        refused(cluster, &sequential.pod, &json!({"mode": "Cold"}), &cold)?;
        sequential.is_untouched(cluster)
    }
}
