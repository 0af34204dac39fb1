//! What lies on a node: taken before and after, the difference is what was left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    cluster::Cluster,
    faults::nodes::{NODES, each},
};

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
# Of its own kind: one mount more is not seen where there is another one less.
for d in /run/containerd/runc/k8s.io/*/criu-root; do [ -e $d ] && echo "restore $d"; done
# Of a container that was never made, because its runc died with containerd: kubelet removes it with the pod.
is_empty() { [ ! -e /run/containerd/runc/k8s.io/${1##*/} ] && [ -z "$(find $1 -name cgroup.procs -exec cat {} + 2>/dev/null)" ]; }
for c in freezer memory pids; do
  for d in $(find /sys/fs/cgroup/$c/kubepods -mindepth 2 -type d 2>/dev/null); do
    pod=${d%/*}
    case ${pod##*/} in pod*) is_empty $d && echo "ended cgroup $d" || echo "cgroup $d" ;; *) echo "cgroup $d" ;; esac
  done
done
# What has no task any more is only a name and a directory: kubelet removes it, once a minute.
tasks=$(ctr -n k8s.io tasks ls -q)
has_task() { case "$tasks" in *$1*) echo "$2 $1" ;; *) echo "ended $2 $1" ;; esac; }
for s in $(ctr -n k8s.io snapshots ls 2>/dev/null | awk '$3 == "Active" {print $1}'); do has_task $s snapshot; done
for c in $(ctr -n k8s.io containers ls -q); do has_task $c container; done
ip -o link show type veth | awk '{sub(/@.*/, "", $2); print "link " $2}'
ls /var/lib/kubelet/pods | sed 's/^/pod directory /'
for p in /proc/[0-9]*; do
  [ "${p#/proc/}" = $$ ] && continue
  n=$(tr '\0' ' ' < $p/cmdline 2>/dev/null)
  case "$n" in
    *containerd-shim*)
      # One that lives on when containerd has forgotten it has no bundle any more.
      id=${n#*-id }; [ -d /run/containerd/io.containerd.runtime.v2.task/k8s.io/${id%% *} ] && is= || is=forgotten
      echo "process $n $is" ;;
    *transship-holder\ run*|*criu*|*runc*restore*) echo "process $n" ;;
  esac
done
true
"#;

/// The things on a node, one per line.
pub fn inventory(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let text = cluster.on_node(node, &["sh", "-c", INVENTORY])?;
    Ok(text.lines().map(|line| format!("{node}: {line}")).collect())
}

/// The things on both nodes of a sandbox of two.
pub fn both_nodes(cluster: &Cluster) -> Result<BTreeSet<String>> {
    on_all(cluster, &NODES)
}

/// The things on several nodes.
pub fn on_all(cluster: &Cluster, nodes: &[&str]) -> Result<BTreeSet<String>> {
    let all = each(nodes, |node| inventory(cluster, node))?;
    Ok(all.into_iter().flatten().collect())
}

/// Whether kubelet has yet to do with pods that are gone: what lies there of them would count as always there.
pub fn has_gone_pods(cluster: &Cluster, things: &BTreeSet<String>) -> Result<bool> {
    let uids = "jsonpath={.items[*].metadata.uid}";
    let living = cluster.kubectl(&["get", "pods", "--all-namespaces", "-o", uids])?;
    let mut there = things.iter().filter_map(|thing| Some(thing.split_once(": pod directory ")?.1));
    Ok(there.any(|uid| !living.contains(uid)))
}

/// The things on both nodes, once kubelet has done with the pods of earlier tests.
pub fn settled(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let quiet = cluster.await_that("nothing of gone pods is left", Duration::from_secs(45), || {
        Ok(!has_gone_pods(cluster, &both_nodes(cluster)?)?)
    });
    if let Err(error) = quiet {
        // Who left it has failed already.
        eprintln!("{error:#}");
    }
    both_nodes(cluster)
}

/// How many things there are of each kind on each node.
pub type Kinds = BTreeMap<String, usize>;

/// Names change with every pod, kinds do not.
pub fn kinds<'a>(things: impl IntoIterator<Item = &'a String>) -> Kinds {
    let mut counts = BTreeMap::new();
    for thing in things {
        let kind: Vec<&str> = thing.split_whitespace().take(2).collect();
        *counts.entry(kind.join(" ")).or_default() += 1;
    }
    counts
}

/// The same of several nodes together: what belongs to a pod goes with it from one to another.
pub fn together<'a>(things: impl IntoIterator<Item = &'a String>) -> Kinds {
    let mut counts = Kinds::new();
    for kind in things.into_iter().filter_map(|thing| thing.split_whitespace().nth(1)) {
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    counts
}

/// Waits until there is no more of anything that `counts` on these nodes together than is allowed.
pub fn no_more_together(
    cluster: &Cluster,
    nodes: &[&str],
    allowed: &Kinds,
    patience: Duration,
    counts: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut there = BTreeSet::new();
    let settled = cluster.await_that("nothing is left behind", patience, || {
        there = on_all(cluster, nodes)?;
        there.retain(|thing| counts(thing));
        Ok(fits(&together(&there), allowed))
    });
    settled.with_context(|| format!("more than {allowed:?}: {there:#?}"))
}

/// Waits until there is no more of anything than `before`.
pub fn nothing_new(cluster: &Cluster, before: &BTreeSet<String>) -> Result<()> {
    let allowed = kinds(before);
    let patience = Duration::from_secs(90);
    no_more_than(cluster, &NODES, &allowed, patience, |_| true).map_err(|(error, after)| {
        let new: Vec<_> = after.difference(before).collect();
        error.context(format!("left behind, or new: {new:#?}\nbefore: {allowed:#?}"))
    })
}

/// Waits until there is no more of anything that `counts` on these nodes than is allowed. An error comes
/// with what there is.
pub fn no_more_than<'n>(
    cluster: &Cluster,
    nodes: &[&'n str],
    allowed: &Kinds,
    patience: Duration,
    counts: impl Fn(&str) -> bool,
) -> Result<(), (anyhow::Error, BTreeSet<String>)> {
    let mut after: BTreeSet<String> = BTreeSet::new();
    // Looks at some of the nodes, and tells on which of all there is too much.
    let mut look = |asked: &[&'n str]| -> Result<Vec<&'n str>> {
        let found = on_all(cluster, asked)?;
        after.retain(|thing| !asked.iter().any(|node| is_on(node, thing)));
        after.extend(found.into_iter().filter(|thing| counts(thing)));
        let has_too_much = |node: &&str| {
            let there = after.iter().filter(|thing| is_on(node, thing));
            !fits(&kinds(there), allowed)
        };
        Ok(nodes.iter().copied().filter(has_too_much).collect())
    };
    let mut asked = nodes.to_vec();
    let settled = cluster.await_that("nothing is left behind", patience, || {
        let mut left = look(&asked)?;
        if left.is_empty() && asked.len() < nodes.len() {
            // On all of them at one time.
            left = look(nodes)?;
        }
        // Looking takes from the machine what takes things away: next time only where there is too much.
        asked = left;
        Ok(asked.is_empty())
    });
    settled.map_err(|error| (error, after))
}

fn is_on(node: &str, thing: &str) -> bool {
    thing.strip_prefix(node).is_some_and(|rest| rest.starts_with(": "))
}

/// Whether nothing is more than is allowed.
fn fits(kinds: &Kinds, allowed: &Kinds) -> bool {
    kinds.iter().all(|(kind, count)| allowed.get(kind).is_some_and(|allowed| count <= allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_of_a_kind_is_too_much_and_another_name_is_not() {
        let things = |names: &[&str]| -> BTreeSet<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let before = kinds(&things(&["node-a: link x", "node-a: link y", "node-b: link z"]));
        assert_eq!(before["node-a: link"], 2);
        assert!(fits(&kinds(&things(&["node-a: link p", "node-a: link q"])), &before));
        assert!(!fits(&kinds(&things(&["node-b: link p", "node-b: link q"])), &before));
        assert!(!fits(&kinds(&things(&["node-a: record u"])), &before));
        let before = together(&things(&["node-a: link x", "node-b: link y"]));
        assert!(fits(&together(&things(&["node-b: link p", "node-b: link q"])), &before));
        let more = things(&["node-a: link x", "node-b: link y", "node-b: link z"]);
        assert!(!fits(&together(&more), &before));
    }
}
