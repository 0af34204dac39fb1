//! The sequential hand-over: a pod with a name of its own ends before it is made again on the other
//! node, with its memory, its connections, its files and everything that others know it by.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use transship_tests::{
    cluster::{Cluster, Pod},
    counter::Client,
    faults::{
        Gate,
        judge::{events, is_said},
        nodes::{NODES, healthy, restarts},
        sentry::{Sentry, doubles, ran},
    },
    prober::unix_ms,
    stateful::has_node,
};

pub use transship_tests::stateful::{
    EMPTY_DIR, all_is_there, connect, goes_on, running, spec, stateful,
};

/// How long a move may take, with a node that starts anew in its middle.
const PATIENCE: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(90);

const BARE: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: lone
  labels: {app: lone, team: a}
  annotations: {example.com/note: kept}
  finalizers: [example.com/kept]
spec: SPEC
"#;

/// What network storage would be: directories that both nodes have.
const SHARED: &str = "/var/lib/transship-shared";
/// Directory, volume and class bear the name of the test's namespace, to which they do not belong.
const VOLUME: &str = r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: NAME}
spec:
  capacity: {storage: 16Mi}
  accessModes: [ReadWriteOncePod]
  storageClassName: NAME
  persistentVolumeReclaimPolicy: Retain
  local: {path: SHARED/NAME}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-a, node-b]}]
"#;
const CLAIM: &str = "{metadata: {name: data}, spec: {accessModes: [ReadWriteOncePod], \
    storageClassName: NAME, resources: {requests: {storage: 16Mi}}}}";

/// What of a pod others rely on.
pub fn known_by(pod: &Value) -> Value {
    let metadata = &pod["metadata"];
    let annotations: Map<String, Value> = metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !key.starts_with("transship.dev/"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    json!({
        "labels": metadata["labels"],
        "annotations": annotations,
        "ownerReferences": metadata["ownerReferences"],
        "finalizers": metadata["finalizers"],
    })
}

/// Moves a pod to the other node, where it is another object and to everybody the same pod.
pub fn moved(
    cluster: &Cluster,
    before: &Pod,
    client: &Client,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Pod> {
    let known = known_by(&cluster.get("pod", &before.name)?);
    let migration = cluster.migrate(&before.name, before.other_node())?;
    meanwhile().with_context(|| {
        let object = cluster.get("migration", &migration).unwrap_or_default();
        format!("meanwhile; status: {:#}", object["status"])
    })?;
    let object = cluster.succeeded(&migration, PATIENCE)?;
    let status = &object["status"];
    ensure!(status["handOver"] == "Sequential", "{status:#}");
    ensure!(status["failedRestores"].is_null(), "not at the first try: {status:#}");
    let after = running(cluster, &before.name)?;
    ensure!(
        after.uid != before.uid && after.node == before.other_node() && after.ips == before.ips,
        "{before:?} → {after:?}"
    );
    nothing_is_left(cluster, &object, &before.name)?;
    let pod = cluster.get("pod", &before.name)?;
    ensure!(known_by(&pod) == known, "{known:#} became {:#}", known_by(&pod));
    ensure!(restarts(&pod) == 0, "{:#}", pod["status"]);
    goes_on(cluster, client)?;
    Ok(after)
}

/// Nothing of a migration is left in the namespace and on the nodes but its pod.
pub fn nothing_is_left(cluster: &Cluster, migration: &Value, pod: &str) -> Result<()> {
    let name = migration["metadata"]["name"].as_str().context("no name")?;
    transship_tests::stateful::nothing_is_left(cluster, &NODES, name, pod)
}

/// The StatefulSet counts the pod, and the Service leads to it.
pub fn owner_and_service_have(cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster.await_that("StatefulSet and Service have the pod", SOON, || {
        let status = cluster.get("statefulset", "web")?["status"].clone();
        ensure!(status["replicas"] == 1 && status["readyReplicas"] == 1, "{status:#}");
        let slices = cluster.list("endpointslices", "kubernetes.io/service-name=web")?;
        let mut endpoints = slices.iter().flat_map(|s| s["endpoints"].as_array()).flatten();
        let is_it = |endpoint: &Value| {
            endpoint["targetRef"]["uid"] == pod.uid
                && endpoint["hostname"] == pod.name
                && endpoint["nodeName"] == pod.node
                && endpoint["conditions"]["ready"] == true
        };
        ensure!(endpoints.any(is_it), "{slices:?}");
        Ok(true)
    })
}

/// How often the controller of an owner of this name has made a pod.
pub fn made_by_the_controller(cluster: &Cluster, owner: &str) -> Result<u64> {
    times_told(cluster, &format!("reason=SuccessfulCreate,involvedObject.name={owner}"))
}

/// How often the events with these fields have been told.
pub fn times_told(cluster: &Cluster, fields: &str) -> Result<u64> {
    let told = events(cluster, fields)?;
    Ok(told.iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum())
}

#[test]
fn a_stateful_set_pod_moves_to_and_fro_with_its_name_memory_and_connections() -> Result<()> {
    let cluster = Cluster::with_namespace("stateful")?;
    cluster.apply(&stateful(&spec(EMPTY_DIR, "", ""), ""))?;
    let mut pod = running(&cluster, "web-0")?;
    let client = connect(&pod)?;
    for _ in 0..2 {
        pod = moved(&cluster, &pod, &client, || Ok(()))?;
        owner_and_service_have(&cluster, &pod)?;
    }
    all_is_there(&cluster, &pod, client)?;
    // Whatever the controller tried while the name was free was refused.
    let made = made_by_the_controller(&cluster, "web")?;
    ensure!(made == 1, "the StatefulSet's controller made {made} pods");

    // And it is in charge as before.
    cluster.kubectl(&["scale", "statefulset/web", "--replicas=2"])?;
    running(&cluster, "web-1")?;
    let now = running(&cluster, "web-0")?;
    ensure!(now == pod, "{pod:?} became {now:?}");
    cluster.kubectl(&["scale", "statefulset/web", "--replicas=0"])?;
    cluster.await_that("both pods are gone", SOON, || Ok(cluster.list("pods", "")?.is_empty()))
}

#[test]
fn a_bare_pod_moves_to_and_fro_with_all_that_its_user_wrote_on_it() -> Result<()> {
    let cluster = Cluster::with_namespace("bare")?;
    let result = bare_pod_moves(&cluster);
    // Neither the pod nor the namespace could go.
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    cluster.try_kubectl(&["patch", "pod", "lone", "--type=merge", "-p", patch])?;
    result
}

fn bare_pod_moves(cluster: &Cluster) -> Result<()> {
    cluster.apply(&BARE.replace("SPEC", &spec(EMPTY_DIR, "", "")))?;
    let mut pod = running(cluster, "lone")?;
    let client = connect(&pod)?;
    for _ in 0..2 {
        // Whoever has put the finalizer there takes it off the object that goes.
        pod = moved(cluster, &pod, &client, || {
            cluster.await_that("the source pod is being deleted", PATIENCE, || {
                let metadata = cluster.get("pod", &pod.name)?["metadata"].clone();
                Ok(metadata["uid"] == pod.uid && !metadata["deletionTimestamp"].is_null())
            })?;
            let patch = json!({"metadata": {"uid": pod.uid, "finalizers": null}}).to_string();
            cluster.kubectl(&["patch", "pod", &pod.name, "--type=merge", "-p", &patch]).map(drop)
        })?;
    }
    all_is_there(cluster, &pod, client).map(drop)
}

#[test]
fn a_source_node_that_restarts_after_the_commit_does_not_start_the_pod_again() -> Result<()> {
    let cluster = Cluster::with_namespace("restarted")?;
    Gate::open_all(&cluster)?;
    cluster.apply(&stateful(&spec(EMPTY_DIR, "", ""), ""))?;
    let before = running(&cluster, "web-0")?;
    let client = connect(&before)?;
    let sentry = Sentry::start(&cluster, &NODES)?;

    // kubelet has every reason to start a pod again that is not about to go.
    Gate::SourceDeletion.close(&cluster)?;
    let mut lost_at = 0;
    let outcome = moved(&cluster, &before, &client, || {
        let decided = ["transship-probe", "await", &cluster.namespace, "decided", "90"];
        cluster.on_node(&before.node, &decided)?;
        lost_at = unix_ms();
        let lost = cluster.sandbox(&["kill", &before.node]);
        // Whatever came of it: others need the node.
        cluster.sandbox(&["start", &before.node])?;
        lost?;
        // It begins with a sandbox, for which the network's plugin and the runtime's wrapper have the same words.
        let fields = format!("reason=FailedCreatePodSandBox,involvedObject.uid={}", before.uid);
        is_said(&cluster, &fields, "the pod is the source of migration", SOON)?;
        Gate::SourceDeletion.open(&cluster)
    });
    Gate::open_all(&cluster)?;
    let looks = sentry.stop(true)?;
    healthy(&cluster, &NODES)?;
    let after = outcome?;
    owner_and_service_have(&cluster, &after)?;
    all_is_there(&cluster, &after, client)?;

    ensure!(ran(&looks, &before.uid) && ran(&looks, &after.uid), "nobody looked: {looks:?}");
    if let Some(double) = doubles(&looks, |_| true) {
        bail!("two copies ran: {double}");
    }
    for (node, look) in &looks {
        let again = look.at > lost_at && look.running.contains(&before.uid);
        ensure!(!again, "the source ran again on {node} at {}", look.at);
        let of_the_pod = |uid: &String| *uid == before.uid || *uid == after.uid;
        ensure!(look.running.iter().all(of_the_pod), "another pod ran on {node}: {look:?}");
    }
    Ok(())
}

#[test]
fn a_volume_that_one_pod_alone_may_use_moves_with_its_pod_to_and_fro() -> Result<()> {
    let cluster = Cluster::with_namespace("exclusive")?;
    with_exclusive_volume(&cluster, |directory| volume_moves(&cluster, directory))
}

/// Runs a test of the StatefulSet `web`, whose pod has a volume that it alone may use; gives it the directory.
pub fn with_exclusive_volume(
    cluster: &Cluster,
    test: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let name = cluster.namespace.as_str();
    let directory = format!("{SHARED}/{name}");
    cluster.kubectl(&["delete", "pv", name, "--ignore-not-found", "--timeout=60s"])?;
    let make = format!("rm -rf {directory} && mkdir {directory}");
    cluster.on_node("node-a", &["sh", "-c", &make])?;
    let result = cluster
        .apply(&VOLUME.replace("SHARED", SHARED).replace("NAME", name))
        .and_then(|_| cluster.apply(&stateful(&spec("", "", ""), &CLAIM.replace("NAME", name))))
        .and_then(|_| test(&directory));
    // The volume goes as soon as its claim has gone with the namespace.
    cluster.kubectl(&["delete", "pv", name, "--ignore-not-found", "--wait=false"])?;
    cluster.on_node("node-a", &["rm", "-rf", &directory])?;
    result
}

/// As long as the pod is there no other one with its volume gets a node.
fn nobody_else_gets_it(cluster: &Cluster) -> Result<()> {
    const CLAIMED: &str = "{name: data, persistentVolumeClaim: {claimName: data-web-0}}";
    let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: other}\nspec: ";
    cluster.apply(&[head, &spec(CLAIMED, "", "")].concat())?;
    let fields = "reason=FailedScheduling,involvedObject.name=other";
    is_said(cluster, fields, "ReadWriteOncePod", SOON)?;
    let other = cluster.get("pod", "other")?;
    ensure!(!has_node(&other), "it has got one: {other:#}");
    cluster.kubectl(&["delete", "pod", "other", "--timeout=30s"]).map(drop)
}

fn volume_moves(cluster: &Cluster, directory: &str) -> Result<()> {
    let mut pod = running(cluster, "web-0")?;
    nobody_else_gets_it(cluster)?;
    let client = connect(&pod)?;
    for _ in 0..2 {
        pod = moved(cluster, &pod, &client, || Ok(()))?;
    }
    let migrations = cluster.list("migrations", "")?;
    let trials: Vec<&Value> = migrations.iter().map(|m| &m["status"]["trial"]).collect();
    let is_told = |told: &&Value| told.as_str().is_some_and(|told| told.contains("volume data"));
    ensure!(trials.len() == 2 && trials.iter().all(is_told), "{trials:?}");
    let numbers = all_is_there(cluster, &pod, client)?;
    // The volume itself, and not what stood in for it.
    let shared = cluster.on_node(pod.other_node(), &["cat", &format!("{directory}/numbers")])?;
    ensure!(shared == numbers, "the pod has left its volume");
    Ok(())
}
