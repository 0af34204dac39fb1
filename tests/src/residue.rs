//! What lies on a node: taken before and after, the difference is what was left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::cluster::Cluster;

/// Prints one line per thing that a migration could leave behind.
const INVENTORY: &str = r#"
for d in /var/lib/transship/pods/*/; do
  u=$(basename $d)
  # The record of a pod that lives is not left behind.
  [ -d /var/lib/kubelet/pods/$u ] && grep -q '"state":"open"' $d/record.json 2>/dev/null && continue
  [ -d $d ] && echo "record $u"
done
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

/// The things on both nodes.
pub fn both_nodes(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut all = inventory(cluster, "node-a")?;
    all.extend(inventory(cluster, "node-b")?);
    Ok(all)
}

/// How many things there are of each kind on each node: their names change with every pod.
pub fn kinds(things: &BTreeSet<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for thing in things {
        let kind: Vec<&str> = thing.split_whitespace().take(2).collect();
        *counts.entry(kind.join(" ")).or_default() += 1;
    }
    counts
}

/// Waits until there is no more of anything than `before`.
pub fn nothing_new(cluster: &Cluster, before: &BTreeSet<String>) -> Result<()> {
    let (allowed, mut after) = (kinds(before), BTreeSet::new());
    let settled = cluster.await_that("nothing is left behind", Duration::from_secs(60), || {
        after = both_nodes(cluster)?;
        let fits = |(kind, count): (&String, &usize)| allowed.get(kind).is_some_and(|a| count <= a);
        Ok(kinds(&after).iter().all(fits))
    });
    settled.with_context(|| {
        let new: Vec<_> = after.difference(before).collect();
        format!("left behind, or new: {new:#?}\nbefore: {allowed:#?}")
    })
}
