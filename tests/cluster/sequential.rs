//! Pods whose name or volume is exclusive: restored on trial, ended, and made again under their own
//! name.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    counter::Client,
    residue,
};

const COUNTER: &str = include_str!("../../examples/counter.yaml");
const PATIENCE: Duration = Duration::from_secs(180);

/// Indents the pod spec of the example by `spaces` and leaves out its Deployment.
fn pod_spec(spaces: usize) -> String {
    let begin = COUNTER.find("      terminationGracePeriodSeconds").expect("the pod's spec");
    let end = COUNTER.find("\n---").expect("the Service");
    COUNTER[begin..end]
        .lines()
        .map(|line| {
            format!("{}{}\n", " ".repeat(spaces), line.strip_prefix("      ").unwrap_or(line))
        })
        .collect()
}

fn bare_pod() -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: alone\n  labels: {{app: alone}}\nspec:\n{}",
        pod_spec(2)
    )
}

/// A StatefulSet `db` with one replica; `volumes` goes below its template's spec and container.
fn stateful_set(container: &str, template: &str, set: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: db}}\nspec:\n  clusterIP: None\n  selector: {{app: db}}\n  ports: [{{port: 8080}}]\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec:\n  serviceName: db\n  replicas: 1\n  selector: {{matchLabels: {{app: db}}}}\n\
         {set}  template:\n    metadata:\n      labels: {{app: db}}\n    spec:\n{}{container}{template}",
        pod_spec(6)
    )
}

fn ready(cluster: &Cluster, name: &str) -> Result<Pod> {
    cluster.await_that(&format!("pod {name} is Ready"), Duration::from_secs(120), || {
        Ok(condition(&cluster.get("pod", name)?, "Ready").0 == "True")
    })?;
    Ok(Pod::of(&cluster.get("pod", name)?))
}

fn address(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.ip.parse().expect("podIP is an address"), 8080)
}

fn restarts(pod: &Value) -> i64 {
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    statuses.iter().filter_map(|status| status["restartCount"].as_i64()).sum()
}

/// Moves the pod with a client on a connection, and gives back what it is afterwards.
fn moves_with_its_connection(cluster: &Cluster, before: &Pod) -> Result<(Pod, Value)> {
    let client = Client::connect(address(before), Duration::from_millis(5))?;
    let migration = cluster.migrate(&before.name, before.other_node())?;
    let object = cluster.succeeded(&migration, PATIENCE)?;
    let replies = client.replies();
    cluster.await_that("the connection goes on", Duration::from_secs(10), || {
        Ok(client.replies() > replies)
    })?;
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");
    let pod = cluster.get("pod", &before.name)?;
    let after = Pod::of(&pod);
    ensure!(after.name == before.name && after.uid != before.uid, "{after:?}");
    ensure!(after.node == before.other_node() && after.ip == before.ip, "{after:?}");
    ensure!(restarts(&pod) == 0, "it was started afresh");
    ensure!(object["status"]["handOver"] == "Sequential", "{object:#}");
    // Nothing of the hand-over stays: pod of the trial, Secret, marks on the namespace.
    let pods: Value = serde_json::from_str(&cluster.kubectl(&["get", "pods", "-o", "json"])?)?;
    ensure!(pods["items"].as_array().is_some_and(|pods| pods.len() == 1), "{pods:#}");
    let secrets = cluster.kubectl(&["get", "secrets", "-o", "name"])?;
    ensure!(!secrets.contains("transship-manifest"), "{secrets}");
    cluster.await_that("the name is free", Duration::from_secs(10), || {
        let namespace = cluster.get("namespace", &cluster.namespace)?;
        Ok(namespace["metadata"]["labels"]["transship.dev/handover"].is_null())
    })?;
    Ok((after, object))
}

#[test]
fn a_statefulset_pod_moves_to_and_fro_under_its_name_with_its_connection() -> Result<()> {
    let cluster = Cluster::with_namespace("sequential-set")?;
    cluster.apply(&stateful_set("", "", ""))?;
    let first = ready(&cluster, "db-0")?;
    let before = residue::both_nodes(&cluster)?;
    let (second, _) = moves_with_its_connection(&cluster, &first)?;
    let owners = cluster.get("pod", "db-0")?["metadata"]["ownerReferences"].clone();
    ensure!(owners[0]["kind"] == "StatefulSet" && owners[0]["controller"] == true, "{owners}");
    let (third, _) = moves_with_its_connection(&cluster, &second)?;
    ensure!(third.node == first.node);
    // And behaves like any pod of its set.
    cluster.kubectl(&["delete", "pod", "db-0", "--timeout=60s"])?;
    let fresh = ready(&cluster, "db-0")?;
    ensure!(fresh.uid != third.uid);
    residue::nothing_new(&cluster, &before)
}

#[test]
fn a_bare_pod_moves_under_its_name_with_its_connection() -> Result<()> {
    let cluster = Cluster::with_namespace("sequential-bare")?;
    cluster.apply(&bare_pod())?;
    let pod = ready(&cluster, "alone")?;
    moves_with_its_connection(&cluster, &pod)?;
    Ok(())
}

#[test]
fn a_refused_restore_on_trial_leaves_the_source_running_with_its_connection() -> Result<()> {
    let cluster = Cluster::with_namespace("sequential-trial")?;
    // The process keeps a file open that has another size in any new pod: a mount by subPath is not
    // updated in the running one.
    cluster.kubectl(&["create", "configmap", "note", "--from-literal=text=short"])?;
    let hold = "          volumeMounts: [{name: note, mountPath: /note, subPath: text}]\n";
    let volume = "      volumes: [{name: note, configMap: {name: note}}]\n";
    let manifest = stateful_set(hold, volume, "").replace(
        "lock, n = threading.Lock(), 0",
        "lock, n, note = threading.Lock(), 0, open('/note')",
    );
    cluster.apply(&manifest)?;
    let pod = ready(&cluster, "db-0")?;
    cluster.kubectl(&[
        "patch",
        "configmap",
        "note",
        "-p",
        r#"{"data":{"text":"much longer than before"}}"#,
    ])?;
    let client = Client::connect(address(&pod), Duration::from_millis(5))?;
    let migration = cluster.migrate("db-0", pod.other_node())?;
    cluster.ended(&migration, PATIENCE)?;
    let object = cluster.get("migration", &migration)?;
    let (status, reason, message) = condition(&object, "Succeeded");
    ensure!(status == "False" && reason == "RestoreFailed", "{reason}: {message}");
    ensure!(message.contains("bad size"), "{message}");
    ensure!(object["status"]["decision"] == "Abort", "{object:#}");
    let replies = client.replies();
    cluster.await_that("the connection goes on", Duration::from_secs(10), || {
        Ok(client.replies() > replies)
    })?;
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");
    let now = cluster.get("pod", "db-0")?;
    ensure!(Pod::of(&now).uid == pod.uid && restarts(&now) == 0);
    Ok(())
}

#[test]
fn a_source_node_that_restarts_after_the_commit_does_not_start_the_pod_again() -> Result<()> {
    let cluster = Cluster::with_namespace("sequential-reboot")?;
    cluster.apply(&stateful_set("", "", ""))?;
    let pod = ready(&cluster, "db-0")?;
    let client = Client::connect(address(&pod), Duration::from_millis(5))?;
    let before = client.replies();
    ensure!(before > 0);
    let migration = cluster.migrate("db-0", pod.other_node())?;
    cluster.await_that("the commit is recorded", PATIENCE, || {
        Ok(cluster.get("migration", &migration)?["status"]["decision"] == "Commit")
    })?;
    cluster.sandbox(&["kill", &pod.node])?;
    // The source is not asked again before its node is back.
    let began = Instant::now();
    cluster.sandbox(&["start", &pod.node])?;
    let object = cluster.succeeded(&migration, PATIENCE)?;
    println!("after the restart: {:?}; {}", began.elapsed(), object["status"]["downtime"]);
    let after = ready(&cluster, "db-0")?;
    ensure!(after.node == pod.other_node() && after.uid != pod.uid, "{after:?}");
    let number = Client::connect(address(&after), Duration::from_millis(5))?.stop().first;
    ensure!(number >= before, "it counts from {number}: started afresh");
    Ok(())
}

/// A directory that both nodes see, in the place of network storage, and a claim of it that one pod
/// at a time may use.
fn shared_volume(cluster: &Cluster, mode: &str) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {namespace}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  accessModes: [{mode}]\n  \
         persistentVolumeReclaimPolicy: Retain\n  storageClassName: shared\n  claimRef: {{namespace: {namespace}, name: data-db-0}}\n  local: {{path: /var/lib/transship-shared}}\n  \
         nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [node-a, node-b]}}]}}]}}}}\n",
        namespace = cluster.namespace
    ))?;
    Ok(())
}

#[test]
fn a_volume_that_one_node_at_a_time_may_attach_goes_with_its_statefulset_pod() -> Result<()> {
    let cluster = Cluster::with_namespace("sequential-volume")?;
    for node in ["node-a", "node-b"] {
        let there = cluster.try_on_node(node, &["test", "-d", "/var/lib/transship-shared"])?;
        ensure!(there.status.success(), "{node} does not see the shared directory");
    }
    cluster.kubectl(&["delete", "pv", &cluster.namespace, "--ignore-not-found"])?;
    shared_volume(&cluster, "ReadWriteOncePod")?;
    let mount = "          volumeMounts: [{name: data, mountPath: /data}]\n";
    let claims = "  volumeClaimTemplates:\n    - metadata: {name: data}\n      spec: {accessModes: [ReadWriteOncePod], storageClassName: shared, resources: {requests: {storage: 1Gi}}}\n";
    let manifest = stateful_set(mount, "", claims)
        .replace("print(\"served\", n, flush=True)", "print(n, file=log, flush=True)");
    let manifest = manifest.replace(
        "lock, n = threading.Lock(), 0",
        "lock, n, log = threading.Lock(), 0, open('/data/log', 'a')",
    );
    cluster.apply(&manifest)?;
    let pod = ready(&cluster, "db-0")?;
    let (after, object) = moves_with_its_connection(&cluster, &pod)?;
    let trial = object["status"]["trial"].as_str().context("no word about the trial")?;
    ensure!(trial.contains("volume data"), "{trial}");
    // The open file goes on where it was.
    let lines = |cluster: &Cluster| -> Result<usize> {
        let log = cluster.kubectl(&["exec", "db-0", "--", "cat", "/data/log"])?;
        let numbers: Vec<u64> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(numbers.is_sorted(), "the file was begun anew: {numbers:?}");
        Ok(numbers.len())
    };
    let written = lines(&cluster)?;
    cluster
        .await_that("the file grows", Duration::from_secs(10), || Ok(lines(&cluster)? > written))?;
    ensure!(after.node != pod.node);
    cluster.kubectl(&["delete", "statefulset", "db", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "pvc", "data-db-0", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "pv", &cluster.namespace, "--timeout=60s"])?;
    Ok(())
}
