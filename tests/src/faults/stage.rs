//! What stays from cell to cell: a namespace with the example application, which is moved to and
//! fro and made again only where a cell has ended it or its connections; and what lies on the nodes
//! beside it when all is well. Each pair of nodes has a stage of its own.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    gate::Gate,
    link,
    nodes::{self, Pair},
};
use crate::{
    cluster::{Cluster, Pod, of_kind},
    residue::{self, Kinds},
};

/// The application's name.
pub const NAME: &str = "counter";
const APPLICATION: &str = include_str!("../../../examples/counter.yaml");
/// Where the application may run is put before this line of its pod's template.
const BEFORE: &str = "      terminationGracePeriodSeconds";
/// Put before [`PROBE`]: a probe that lets kubelet kill what stands still for [`IMPATIENCE`].
const LIVENESS: &str = "          livenessProbe: {tcpSocket: {port: tcp}, periodSeconds: 5, \
     timeoutSeconds: 3, failureThreshold: 4}\n";
const PROBE: &str = "          readinessProbe";
/// How long the application with that probe may stand still.
pub const IMPATIENCE: Duration = Duration::from_secs(20);
/// Everybody who takes something away between two cells does so within seconds, but not all at once; and sandboxes that
/// a loss of power has ended kubelet collects once a minute.
const SOON: Duration = Duration::from_secs(90);

/// The application and its surroundings.
pub struct Stage {
    /// The cluster, in the application's namespace.
    pub cluster: Cluster,
    /// The nodes that it is moved between.
    pub nodes: Pair,
    /// What lies on the nodes without the application.
    empty: Kinds,
    /// What the application adds to the node it is on, its address apart.
    application: Kinds,
}

impl Stage {
    /// Puts everything in order, whatever an earlier run has left, and starts the application.
    pub fn set(nodes: Pair) -> Result<Stage> {
        let cluster = Cluster::with_namespace(&format!("faults-{}", nodes[0]))?;
        // After a run that was broken off, too.
        Gate::open_all(&cluster)?;
        nodes.iter().try_for_each(|node| link::mend(&cluster, node))?;
        nodes::healthy(&cluster, &nodes)?;
        let quiet = cluster.await_that("nothing of an earlier run is left", SOON, || {
            let all = residue::on_all(&cluster, &nodes)?;
            let ours = |thing: &String| {
                ["record", "journal", "lent"]
                    .iter()
                    .any(|kind| thing.contains(&format!(": {kind} ")))
            };
            Ok(!all.iter().any(ours) && !residue::has_gone_pods(&cluster, &all)?)
        });
        if let Err(error) = quiet {
            // Who left it has failed already; the others are to be tried all the same.
            eprintln!("{error:#}");
        }
        let empty = present(&cluster, &nodes, None)?;
        let mut stage = Stage { cluster, nodes, empty, application: Kinds::new() };
        let pod = stage.start(false)?;
        let with = present(&stage.cluster, &nodes, Some(&pod))?;
        stage.application = difference(&with, &stage.empty, &pod.node);
        Ok(stage)
    }

    fn start(&self, impatient: bool) -> Result<Pod> {
        let mut manifest = on_nodes(APPLICATION, &self.nodes);
        if impatient {
            manifest = manifest.replacen(PROBE, &(LIVENESS.to_owned() + PROBE), 1);
        }
        self.cluster.apply(&manifest)?;
        self.cluster.rolled_out(NAME)?;
        self.cluster.pod("app=counter")
    }

    /// The application's pod, running as if nothing had ever happened to it. An impatient one has a
    /// liveness probe.
    pub fn pod(&self, impatient: bool) -> Result<Pod> {
        nodes::healthy(&self.cluster, &self.nodes)?;
        let all = self.cluster.list("pods,deployments", "")?;
        let mut pods: Vec<&Value> = of_kind(&all, "Pod").collect();
        pods.retain(|pod| pod["metadata"]["labels"]["app"] == NAME);
        let mut deployments = of_kind(&all, "Deployment");
        if let [pod] = pods.as_slice()
            && nodes::is_ready(pod)
            && nodes::restarts(pod) == 0
            && pod["spec"]["containers"][0]["livenessProbe"].is_null() != impatient
            && deployments.any(|deployment| deployment["metadata"]["name"] == NAME)
        {
            return Ok(Pod::of(pod));
        }
        self.clear()?;
        self.start(impatient)
    }

    /// Removes the application.
    pub fn clear(&self) -> Result<()> {
        let cluster = &self.cluster;
        cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
        cluster.kubectl(&["delete", "deployment", NAME, "--ignore-not-found", "--timeout=60s"])?;
        cluster.kubectl(&["delete", "service", NAME, "--ignore-not-found"])?;
        cluster.await_that("the application's pods are gone", SOON, || {
            Ok(cluster.list("pods", "app=counter")?.is_empty())
        })
    }

    /// Between two cells: nothing of the last one is left, on any node, beside the application.
    pub fn nothing_is_left(&self) -> Result<()> {
        let live = self.cluster.list("pods", "app=counter")?;
        let pod = match live.as_slice() {
            [pod] => Some(Pod::of(pod)),
            _ => {
                // Ended, replaced or doubled: what is looked for is seen best without it.
                self.clear()?;
                None
            }
        };
        let mut allowed = self.empty.clone();
        if let Some(pod) = &pod {
            for (kind, count) in &self.application {
                *allowed.entry(format!("{}: {kind}", pod.node)).or_default() += count;
            }
        }
        self.no_more_than(&allowed, pod.as_ref())
    }

    fn no_more_than(&self, allowed: &Kinds, pod: Option<&Pod>) -> Result<()> {
        let counts = |thing: &str| counts(thing, pod);
        let found = residue::no_more_than(&self.cluster, &self.nodes, allowed, SOON, counts);
        found.map_err(|(error, after)| {
            let too_many = |thing: &&String| {
                residue::kinds([*thing]).into_keys().any(|kind| {
                    let there = after.iter().filter(|other| other.starts_with(&kind)).count();
                    there > allowed.get(&kind).copied().unwrap_or(0)
                })
            };
            let too_many: Vec<&String> = after.iter().filter(too_many).collect();
            error.context(format!("more than {allowed:?}: {too_many:#?}"))
        })
    }

    /// After the last cell: without the application all is as it was before it.
    pub fn strike(self) -> Result<()> {
        self.clear()?;
        self.no_more_than(&self.empty, None)
    }
}

/// The application's manifest, for these nodes only.
fn on_nodes(manifest: &str, nodes: &Pair) -> String {
    manifest.replacen(BEFORE, &format!("      {}\n{BEFORE}", affinity(nodes)), 1)
}

/// A field of a pod's spec, in one line: it may run on these nodes only.
pub fn affinity(nodes: &Pair) -> String {
    format!(
        "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: \
         [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{}]}}]}}]}}}}}}",
        nodes.join(", ")
    )
}

/// What lies on the nodes.
fn present(cluster: &Cluster, nodes: &Pair, pod: Option<&Pod>) -> Result<Kinds> {
    let all = residue::on_all(cluster, nodes).context("looking at the nodes")?;
    Ok(residue::kinds(all.iter().filter(|thing| counts(thing, pod))))
}

/// Whether a thing counts when nothing is to be left beside this pod.
pub fn counts(thing: &str, pod: Option<&Pod>) -> bool {
    // kubelet's own to remove, in its own time; it keeps one of each container of a living pod.
    if thing.contains(": ended ") {
        return false;
    }
    // The address stays with the pod: reserved on the node it came from, wherever the pod is.
    let is_address = thing.contains(": lent address ") || thing.contains(": IP lease ");
    let of_pod = |pod: &Pod| {
        let name = thing.rsplit(['/', ' ']).next().unwrap_or_default();
        pod.ips.iter().any(|ip| name.strip_suffix(".json").unwrap_or(name) == ip)
    };
    !(is_address && pod.is_some_and(of_pod))
}

/// What there is more on a node, by kind without the node's name.
fn difference(with: &Kinds, without: &Kinds, node: &str) -> Kinds {
    let prefix = format!("{node}: ");
    with.iter()
        .filter_map(|(kind, count)| {
            let more = count.saturating_sub(without.get(kind).copied().unwrap_or(0));
            Some((kind.strip_prefix(&prefix)?.to_owned(), more)).filter(|(_, more)| *more > 0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        let ip = "10.0.0.4".to_owned();
        Pod { name: "p".into(), uid: "u".into(), node: "node-b".into(), ips: vec![ip.clone()], ip }
    }

    #[test]
    fn the_address_of_the_living_pod_does_not_count_and_every_other_does() {
        let pod = pod();
        for (thing, counted) in [
            ("node-a: lent address 10.0.0.4.json", false),
            ("node-a: IP lease /var/lib/cni/networks/n/10.0.0.4", false),
            ("node-a: lent address 10.0.0.42.json", true),
            ("node-a: IP lease /var/lib/cni/networks/n/10.0.0.14", true),
            ("node-a: link veth10.0.0.4", true),
            ("node-a: ended container 10.0.0.4", false),
        ] {
            assert_eq!(counts(thing, Some(&pod)), counted, "{thing}");
        }
        assert!(counts("node-a: lent address 10.0.0.4.json", None));
    }

    #[test]
    fn the_application_runs_on_its_pair_of_nodes_only() {
        let manifest = on_nodes(APPLICATION, &["node-d", "node-e"]);
        let line = manifest.lines().find(|line| line.contains("affinity")).unwrap();
        assert!(line.ends_with("operator: In, values: [node-d, node-e]}]}]}}}"), "{line}");
        assert_eq!(line.matches('{').count(), line.matches('}').count());
        assert_eq!(manifest.lines().count(), APPLICATION.lines().count() + 1);
        assert_eq!(APPLICATION.matches(PROBE).count(), 1);
    }

    #[test]
    fn what_the_application_adds_is_counted_on_its_own_node() {
        let kinds = |list: &[(&str, usize)]| -> Kinds {
            list.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
        };
        let without = kinds(&[("node-b: link", 2), ("node-a: link", 1)]);
        let with = kinds(&[("node-b: link", 3), ("node-b: mount", 2), ("node-a: link", 2)]);
        assert_eq!(difference(&with, &without, "node-b"), kinds(&[("link", 1), ("mount", 2)]));
    }
}
