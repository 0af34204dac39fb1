//! A node's disk that becomes full.

use anyhow::Result;

use crate::cluster::Cluster;

/// What lies on it.
const STATE: &str = "/var/lib/transship";

/// Gives a node a disk of its own, of 640 MiB: the nodes share one with everybody else.
pub fn make_small(cluster: &Cluster, node: &str) -> Result<()> {
    let script = format!(
        "set -e; new=/var/tmp/small-disk; mkdir -p $new; mount -t tmpfs -o size=640m,mode=755 none $new; \
         cp -a {STATE}/. $new; mount --bind $new {STATE}; umount $new; rmdir $new"
    );
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Fills it but for so many KiB.
pub fn fill(cluster: &Cluster, node: &str, left: u32) -> Result<()> {
    // Others write meanwhile, so that what was free may not be any more.
    let script = format!(
        "for try in $(seq 20); do free=$(df --output=avail -k {STATE} | tail -1); \
         [ $free -le {left} ] || fallocate -l $((free - {left}))K {STATE}/filler && exit 0; done; exit 1"
    );
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Takes away what it was filled with, if it was.
pub fn empty(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.on_node(node, &["rm", "-f", &format!("{STATE}/filler")]).map(drop)
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
