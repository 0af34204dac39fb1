//! A disk that one node has at a time: Kubernetes attaches it to another when it is detached from the first, and not
//! before. A disk of Fibre Channel needs no driver for that: its attaching is a note in the node's status, and kubelet
//! takes whatever device bears its identifier. All nodes have the devices of the one machine.

use std::{env, fs, process, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, Pod},
    faults::judge::is_said,
};

use crate::{
    preflight_volumes::{delete, unplug},
    refusal::Undo,
    sequential::{all_is_there, connect, moved, running, spec, stateful},
};

const SOON: Duration = Duration::from_secs(60);
/// Identifies the disk, and is its volume's name. Without hyphens, at which kubelet would take it apart.
const DISK: &str = "transshiptest";
/// What is on the disk, where all nodes see it.
const FILE: &str = "/var/lib/transship-shared/transshiptest";
/// The device, by the identifier.
const LINK: &str = "/dev/disk/by-id/scsi-transshiptest";
/// Where kubelet mounts it on the node that has it.
const MOUNTED: &str = "/var/lib/kubelet/plugins/kubernetes.io/fc/transshiptest";
const VOLUME: &str = "
apiVersion: v1
kind: PersistentVolume
metadata: {name: transshiptest}
spec:
  capacity: {storage: 16Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: transshiptest
  persistentVolumeReclaimPolicy: Retain
  fc: {wwids: [transshiptest], fsType: ext4}
";
const CLAIM: &str = "{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], \
    storageClassName: transshiptest, resources: {requests: {storage: 16Mi}}}}";

/// Gives the nodes the disk. Its file system is made here, for which they have no program.
fn plug_in(cluster: &Cluster) -> Result<()> {
    let image = env::temp_dir().join(format!("{DISK}-{}", process::id()));
    let mut make = process::Command::new("/usr/sbin/mkfs.ext4");
    let made = make.arg("-q").arg(&image).arg("16M").output().context("running mkfs.ext4")?;
    let opened = fs::File::open(&image);
    // One that is open needs no name.
    drop(fs::remove_file(&image));
    ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr));
    let script = format!(
        "set -e; cat > {FILE}; mkdir -p /dev/disk/by-id; device=$(losetup --find --show {FILE}); \
         ln -sf $device {LINK}"
    );
    let plug = ["sh", "-c", &script];
    let plugged = cluster.on_node_command("node-a", &plug).stdin(opened?).output()?;
    ensure!(plugged.status.success(), "{}", String::from_utf8_lossy(&plugged.stderr));
    Ok(())
}

/// Takes it away from them.
fn take_away(cluster: &Cluster) {
    unplug(cluster, FILE);
    let script =
        format!("rm -f {LINK}; rmdir --ignore-fail-on-non-empty /dev/disk/by-id /dev/disk");
    drop(cluster.on_node("node-a", &["sh", "-c", &script]));
}

/// The nodes that have it, as the controller that attaches notes it.
fn attached_to(cluster: &Cluster) -> Result<Vec<String>> {
    let has_it = |node: &&Value| {
        let mut attached = node["status"]["volumesAttached"].as_array().into_iter().flatten();
        attached.any(|volume| volume["name"].as_str().is_some_and(|name| name.contains(DISK)))
    };
    let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(cluster.list("nodes", "")?.iter().filter(has_it).map(name).collect())
}

#[test]
fn a_disk_that_one_node_has_at_a_time_is_attached_to_the_other_with_its_pod() -> Result<()> {
    let cluster = Cluster::with_namespace("attached")?;
    let clean = || {
        let owner = ["statefulset", "web", "--cascade=foreground"];
        delete(&cluster, &[&["pod", "other"], &owner, &["pvc", "--all"], &["pv", DISK]]);
        take_away(&cluster);
    };
    clean();
    let _undo = Undo(clean);
    plug_in(&cluster)?;
    cluster.apply(VOLUME)?;
    cluster.apply(&stateful(&spec("", "", ""), CLAIM))?;
    disk_moves(&cluster)
}

fn disk_moves(cluster: &Cluster) -> Result<()> {
    let before = running(cluster, "web-0")?;
    no_other_node_gets_it(cluster, &before)?;
    let client = connect(&before)?;
    let after = moved(cluster, &before, &client, || Ok(()))?;
    let nodes = attached_to(cluster)?;
    ensure!(nodes == [after.node.as_str()], "{nodes:?} have it, and the pod runs on {after:?}");
    let numbers = all_is_there(cluster, &after, client)?;
    // The disk itself, and not what stood in for it on trial.
    let on_disk = cluster.on_node(&after.node, &["cat", &format!("{MOUNTED}/numbers")])?;
    ensure!(on_disk == numbers, "the pod has left its disk");
    Ok(())
}

/// A pod that is bound to the other node waits there for the disk as long as the first one has it.
fn no_other_node_gets_it(cluster: &Cluster, first: &Pod) -> Result<()> {
    const CLAIMED: &str = "{name: data, persistentVolumeClaim: {claimName: data-web-0}}";
    let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: other}\nspec: ";
    let bound = format!("{{nodeName: {}, ", first.other_node());
    cluster.apply(&[head, &spec(CLAIMED, "", "").replacen('{', &bound, 1)].concat())?;
    let fields = "reason=FailedAttachVolume,involvedObject.name=other";
    is_said(cluster, fields, "already used by pod(s) web-0", SOON)?;
    let nodes = attached_to(cluster)?;
    ensure!(nodes == [first.node.as_str()], "{nodes:?} have it, and the pod runs on {first:?}");
    cluster.kubectl(&["delete", "pod", "other", "--timeout=60s"]).map(drop)
}
