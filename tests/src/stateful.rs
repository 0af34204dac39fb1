//! A StatefulSet's pod that counts requests in its memory and in a file, and what is to be true of it during
//! and after a move.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use transship_api::Role;

use crate::{
    cluster::{Cluster, Pod, condition},
    counter::Client,
    faults::{
        driver::Scene,
        judge::{no_mark_is_left, no_record_is_left},
        nodes::{is_ready, restarts},
    },
};

/// How long a client waits for a reply: longer than a node takes to start anew.
const PATIENCE: Duration = Duration::from_secs(240);
/// TCP tries again after twice the time that it has waited so far.
const RETRANSMISSION: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(90);

/// Counts requests in memory, answers each with its number and appends it to a file. Opens the files
/// among its arguments when it is sent SIGHUP, and keeps them open. The sentry knows it by its first line.
const SCRIPT: &str = r#"import mmap, socket, threading, os, signal, sys
memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
numbers = os.open("/data/numbers", os.O_RDWR | os.O_CREAT | os.O_APPEND)
others = []
signal.signal(signal.SIGHUP, lambda *_: others.extend(open(path) for path in sys.argv[1:]))
def serve(connection):
    while data := connection.recv(64):
        for _ in data:
            number = int.from_bytes(memory[:8], "little") + 1
            memory[:8] = number.to_bytes(8, "little")
            os.write(numbers, b"%d\n" % number)
            connection.sendall(b"%d\n" % number)
server = socket.create_server(("", 8080))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

/// In one line, as it stands in manifests of pods and of what makes pods.
const SPEC: &str = "{terminationGracePeriodSeconds: 1, volumes: [VOLUMES], containers: [{name: main, \
    image: 'localhost/transship-examples:1', imagePullPolicy: IfNotPresent, \
    command: [python3, -u, -c, SCRIPT, FILES], \
    volumeMounts: [{name: data, mountPath: /data}, MOUNTS], \
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 2}}]}";
/// An empty directory in the place of the volume.
pub const EMPTY_DIR: &str = "{name: data, emptyDir: {}}";

const STATEFUL: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: SPEC
  volumeClaimTemplates: [CLAIM]
"#;

/// A pod's spec with these volumes, further mounts, and files that the application opens at SIGHUP.
pub fn spec(volumes: &str, mounts: &str, files: &str) -> String {
    // JSON's quoted text is YAML's.
    let script = Value::from(SCRIPT).to_string();
    SPEC.replace("VOLUMES", volumes)
        .replace("MOUNTS", mounts)
        .replace("FILES", files)
        .replace("SCRIPT", &script)
}

/// A StatefulSet `web` with its Service.
pub fn stateful(spec: &str, claim: &str) -> String {
    STATEFUL.replace("CLAIM", claim).replace("SPEC", spec)
}

/// The pod, once it is Ready.
pub fn running(cluster: &Cluster, name: &str) -> Result<Pod> {
    let mut pod = Value::Null;
    cluster.await_that(&format!("pod {name} is Ready"), SOON, || {
        pod = cluster.get("pod", name)?;
        Ok(is_ready(&pod))
    })?;
    Ok(Pod::of(&pod))
}

/// A client of the pod's.
pub fn connect(pod: &Pod) -> Result<Client> {
    let address = format!("{}:8080", pod.ip).parse()?;
    Client::with_patience(address, Duration::from_millis(5), PATIENCE)
}

/// Waits until the connection is answered again.
pub fn goes_on(cluster: &Cluster, client: &Client) -> Result<()> {
    client.goes_on(cluster, RETRANSMISSION)
}

/// Every number came once over the one connection and stands once in the file, which is returned.
pub fn all_is_there(cluster: &Cluster, pod: &Pod, client: Client) -> Result<String> {
    let report = client.stop();
    ensure!(report.is_whole() && report.first == 1, "{report:?}");
    let numbers = cluster.kubectl(&["exec", &pod.name, "--", "cat", "/data/numbers"])?;
    let expected: String = (1..=report.last).map(|number| format!("{number}\n")).collect();
    let lines = numbers.lines().count();
    ensure!(numbers == expected, "{lines} lines for numbers up to {}", report.last);
    Ok(numbers)
}

/// Nothing of a migration is left in the namespace and on the nodes but its pod.
pub fn nothing_is_left(
    cluster: &Cluster,
    nodes: &[&str],
    migration: &str,
    pod: &str,
) -> Result<()> {
    cluster.await_that("nothing of the migration is left", SOON, || {
        // One that is gone has nothing to say.
        let object = cluster.get("migration", migration)?;
        let (succeeded, _, message) = condition(&object, "Succeeded");
        ensure!(succeeded != "Unknown", "{migration} goes on: {message}");
        no_mark_is_left(cluster)?;
        let pods = cluster.list("pods", "")?;
        let found: Vec<String> = pods.iter().map(|pod| Pod::of(pod).name).collect();
        ensure!(found == [pod], "there are pods {found:?}");
        Ok(true)
    })?;
    nodes.iter().try_for_each(|node| no_record_is_left(cluster, node))
}

/// Waits for the pod of the source's name that was made again, as the Migration knows it, and is as it is to be;
/// gives its UID.
pub fn made_again(scene: &Scene, is_it: impl Fn(&Value) -> bool) -> Result<String> {
    let mut uid = String::new();
    scene.cluster.await_that("the pod is made again", SOON, || {
        let pod = scene.cluster.get("pod", &scene.source.name)?;
        uid = Pod::of(&pod).uid;
        let known = scene.target_uid() == uid;
        Ok(!uid.is_empty() && uid != scene.source.uid && known && is_it(&pod))
    })?;
    Ok(uid)
}

/// Waits until the target's holder has begun for this pod, which was made again. Until then there is the journal of
/// the restore on trial, by which everything is over.
pub fn begins_anew(scene: &Scene, uid: &str) -> Result<()> {
    let (target, migration) = (scene.node(Role::Target), scene.migration_uid()?);
    let begun = format!(
        "cd /var/lib/transship/migrations/{migration}.target && grep -q {uid} task.json && [ ! -e closed ]"
    );
    scene.cluster.await_that("the target begins anew", SOON, || {
        Ok(scene.cluster.try_on_node(target, &["sh", "-c", &begun])?.status.success())
    })
}

/// Whether a pod was let go to a node.
pub fn has_node(pod: &Value) -> bool {
    pod["spec"]["nodeName"].is_string()
}

/// Whether this is the pod that the Migration has made: on the other node, with all its addresses, and nothing
/// in it was started again.
pub fn has_moved(scene: &Scene, pod: &Value) -> bool {
    let now = Pod::of(pod);
    now.uid == scene.target_uid()
        && now.node == scene.node(Role::Target)
        && now.ips == scene.source.ips
        && restarts(pod) == 0
}

/// Whether the pod of this name and UID is being deleted, or gone.
pub fn goes(cluster: &Cluster, name: &str, uid: &str) -> Result<bool> {
    let metadata = cluster.get("pod", name)?["metadata"].clone();
    Ok(metadata["uid"] != uid || !metadata["deletionTimestamp"].is_null())
}
