//! A node's disk that becomes full.

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
