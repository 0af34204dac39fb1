//! A node's disk that becomes full: ours, or the one with a pod's files.

use anyhow::Result;

use crate::cluster::Cluster;

/// What lies on it.
const STATE: &str = "/var/lib/transship";

/// How much a disk of its own can hold: what the checks of every order want to be free. Nothing of it is taken
/// from the machine before it is written to.
const SIZE: &str = "3g";

/// Gives a node a disk of its own: the nodes share one with everybody else.
pub fn make_small(cluster: &Cluster, node: &str) -> Result<()> {
    let script = format!(
        "set -e; new=/var/tmp/small-disk; mkdir -p $new; mount -t tmpfs -o size={SIZE},mode=755 none $new; \
         cp -a {STATE}/. $new; mount --bind $new {STATE}; umount $new; rmdir $new"
    );
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Lets it hold no more than it does, and so many KiB.
pub fn fill(cluster: &Cluster, node: &str, left: u32) -> Result<()> {
    // Others write meanwhile, and it cannot be made smaller than what it holds.
    let script = format!(
        "for try in $(seq 20); do used=$(df --output=used -k {STATE} | tail -1); \
         mount -o remount,size=$((used + {left}))k {STATE} && exit 0; done; exit 1"
    );
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Gives it its size back, if it is there.
pub fn empty(cluster: &Cluster, node: &str) -> Result<()> {
    let script = format!("mountpoint -q {STATE} || exit 0; mount -o remount,size={SIZE} {STATE}");
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Takes the small disk away, if there is one; what it holds by now stays.
pub fn make_large(cluster: &Cluster, node: &str) -> Result<()> {
    // Lazily: whoever has a file open there is about to close it.
    let (parent, name) = STATE.rsplit_once('/').unwrap_or_default();
    let script = format!(
        "mountpoint -q {STATE} || exit 0; set -e; under=/var/tmp/under; mkdir -p $under; \
         mount --bind {parent} $under; find $under/{name} -mindepth 1 -delete; \
         cp -a {STATE}/. $under/{name}; umount $under; rmdir $under; umount --lazy {STATE}"
    );
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Where kubelet makes a pod's empty directory.
fn empty_dir(pod_uid: &str, volume: &str) -> String {
    format!("/var/lib/kubelet/pods/{pod_uid}/volumes/kubernetes.io~empty-dir/{volume}")
}

/// Puts a disk of so many KiB in the place where a pod that has no node yet will have an empty directory. kubelet leaves
/// alone what is mounted there, takes it for memory when the pod has come, and takes it away with the pod.
pub fn lay(cluster: &Cluster, node: &str, pod_uid: &str, volume: &str, size: u32) -> Result<()> {
    let place = empty_dir(pod_uid, volume);
    let script = format!("mkdir -p {place} && mount -t tmpfs -o size={size}k none {place}");
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Takes it away, should its pod never have come.
pub fn lift(cluster: &Cluster, node: &str, pod_uid: &str, volume: &str) -> Result<()> {
    let place = empty_dir(pod_uid, volume);
    let script = format!("! mountpoint -q {place} || umount {place} || ! mountpoint -q {place}");
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}
