//! What lies on a node: taken before and after, the difference is what was left behind.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::cluster::Cluster;

/// Prints one line per thing that a migration could leave behind.
const INVENTORY: &str = r#"
ls /var/lib/transship/pods 2>/dev/null | sed 's/^/record /'
ls /var/lib/transship/migrations 2>/dev/null | sed 's/^/journal /'
ls /var/lib/transship/leases 2>/dev/null | sed 's/^/lent address /'
ls /run/transship/holders 2>/dev/null | sed 's/^/holder directory /'
for f in /var/lib/cni/networks/*/[0-9]*; do [ -e "$f" ] && echo "IP lease $f"; done
nft list tables 2>/dev/null | grep transship | sed 's/^/nft /'
awk '$5 ~ "transship|/kubelet/pods/|k8s.io" {print "mount " $5}' /proc/self/mountinfo
for c in freezer memory pids; do find /sys/fs/cgroup/$c/kubepods -mindepth 2 -type d 2>/dev/null | sed 's/^/cgroup /'; done
ctr -n k8s.io snapshots ls 2>/dev/null | awk '$3 == "Active" {print "snapshot " $1}'
ctr -n k8s.io containers ls -q | sed 's/^/container /'
ip -o link show type veth | awk '{sub(/@.*/, "", $2); print "link " $2}'
ls /var/lib/kubelet/pods | sed 's/^/pod directory /'
for p in /proc/[0-9]*; do
  [ "${p#/proc/}" = $$ ] && continue
  n=$(tr '\0' ' ' < $p/cmdline 2>/dev/null)
  case "$n" in
    *transship-holder\ run*|*criu*|*runc*restore*|*containerd-shim*) echo "process $n" ;;
  esac
done
true
"#;

/// The things on a node, one per line.
pub fn inventory(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let text = cluster.on_node(node, &["sh", "-c", INVENTORY])?;
    Ok(text.lines().map(|line| format!("{node}: {line}")).collect())
}
