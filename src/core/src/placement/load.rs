//! What is on the nodes: their pods, and those that Migrations are to bring.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use transship_api::{Migration, Step, names};

use super::Container;
use super::kubernetes;
use super::resources::{Allocatable, requests};
use crate::preflight::NodeView;

/// The pods of a node, and what they ask for together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Pods that have not ended.
    pub pods: usize,
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Host ports in use.
    pub ports: Vec<HostPort>,
    /// Every pod, ended ones included, as the engine sees it.
    pub containers: Vec<Container>,
}

/// The load of a node without pods.
pub static NO_LOAD: Load =
    Load { pods: 0, cpu_millis: 0, memory_bytes: 0, ports: Vec::new(), containers: Vec::new() };

/// A pod that a Migration is to bring to a node: from the choice of the node on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// UID of the Migration.
    pub migration: String,
    /// The node.
    pub node: String,
    /// The pod as it was when the node was chosen.
    pub pod: Arc<Pod>,
}

/// UID of the pod that a Migration is to bring, and the node: from its admission until it has ended.
pub fn under_way(migration: &Migration) -> Option<(&str, &str)> {
    let status = migration.status.as_ref()?;
    let (source, target) = (status.source.as_ref()?, status.target.as_ref()?);
    let has_ended = status.step.is_some_and(Step::is_final);
    (!has_ended).then_some((source.pod_uid.as_str(), target.node.as_str()))
}

impl Pending {
    /// What a Migration is to bring, if it is under way and its source pod is among these, and has not ended.
    pub fn of(migration: &Migration, pods: &[Pod]) -> Option<Self> {
        let (source, node) = under_way(migration)?;
        let mut live = pods.iter().filter(|pod| !kubernetes::has_ended(pod));
        let pod = live.find(|pod| pod.metadata.uid.as_deref() == Some(source))?;
        Some(Self {
            migration: migration.metadata.uid.clone()?,
            node: node.to_owned(),
            pod: Arc::new(pod.clone()),
        })
    }
}

impl Load {
    /// The load of each node, from pods that may or may not be bound.
    pub fn by_node<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeMap<String, Self> {
        let mut loads = BTreeMap::new();
        Self::add_all(&mut loads, pods);
        loads
    }

    /// Adds pods that may or may not be bound to the loads of their nodes.
    pub fn add_all<'a>(
        loads: &mut BTreeMap<String, Self>,
        pods: impl IntoIterator<Item = &'a Pod>,
    ) {
        for pod in pods {
            if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) {
                loads.entry(node.clone()).or_default().add(pod);
            }
        }
    }

    /// Adds a pod that is to come to the load of its node, unless it has come by now. As with Swarm's
    /// pending containers, one that would not even fit the empty node is left out.
    pub fn add_pending(loads: &mut BTreeMap<String, Self>, pending: &Pending, nodes: &[NodeView]) {
        let core =
            nodes.iter().find(|node| node.name == pending.node).and_then(|n| n.core.as_ref());
        let most = core.map(Allocatable::of).unwrap_or_default();
        let (cpu_millis, memory_bytes) = requests(&pending.pod);
        let exceeds = |wanted: i64, most: Option<i64>| most.is_some_and(|most| wanted > most);
        if exceeds(cpu_millis, most.cpu_millis) || exceeds(memory_bytes, most.memory_bytes) {
            return;
        }
        let load = loads.entry(pending.node.clone()).or_default();
        if load.containers.iter().any(|container| is_target(container, &pending.migration)) {
            return;
        }
        let mut pod = Pod::clone(&pending.pod);
        // These are the source's.
        pod.metadata.uid = None;
        pod.status = None;
        load.add(&pod);
    }

    /// Adds a pod of the node.
    pub fn add(&mut self, pod: &Pod) {
        self.containers.push(kubernetes::container(pod));
        if kubernetes::has_ended(pod) {
            return;
        }
        let (cpu_millis, memory_bytes) = requests(pod);
        self.pods += 1;
        self.cpu_millis = self.cpu_millis.saturating_add(cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(memory_bytes);
        self.ports.extend(host_ports(pod));
    }
}

/// Whether a Migration has brought the pod, and it has not ended.
fn is_target(container: &Container, migration: &str) -> bool {
    !container.ended && container.labels.get(names::MIGRATION_LABEL) == Some(migration)
}

/// A port of the host, as Kubernetes compares them: with its protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address; empty or `0.0.0.0` for all.
    ip: String,
    /// Port and protocol.
    pub(super) port: (i32, String),
}

impl HostPort {
    pub(super) fn clashes(&self, other: &Self) -> bool {
        let all = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port && (self.ip == other.ip || all(&self.ip) || all(&other.ip))
    }
}

/// Those that a pod asks for; in the host's network every port of its containers is one.
pub(super) fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let in_host_network = kubernetes::in_host_network(pod);
    let host_port = move |port: &ContainerPort| {
        let number = port.host_port.or(in_host_network.then_some(port.container_port));
        Some(HostPort {
            ip: port.host_ip.clone().unwrap_or_default(),
            port: (
                number.filter(|number| *number > 0)?,
                port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            ),
        })
    };
    kubernetes::container_ports(pod).filter_map(host_port)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use transship_api::MigrationSpec;

    use super::*;

    fn pod(labels: Value, node: Option<&str>, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "uid-s", "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "c",
                "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}}}]},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    fn node(cpu: &str) -> NodeView {
        let core = json!({"metadata": {"name": "node-b"},
            "status": {"allocatable": {"cpu": cpu, "memory": "1Gi"}}});
        let core = serde_json::from_value(core).unwrap();
        NodeView { name: "node-b".into(), core: Some(core), agent: None }
    }

    #[test]
    fn a_pod_counts_where_it_is_to_go_until_it_is_there() {
        let source = pod(json!({"app": "web"}), Some("node-a"), "Running");
        let pending = Pending {
            migration: "uid-m".into(),
            node: "node-b".into(),
            pod: Arc::new(source.clone()),
        };
        let of = |phase| pod(json!({names::MIGRATION_LABEL: "uid-m"}), Some("node-b"), phase);
        // What is on the node, and how many pods count there then.
        for (there, live, all) in [
            (None, 1, 1),
            (Some(of("Running")), 1, 1),
            (Some(of("Failed")), 1, 2),
            (Some(pod(json!({}), Some("node-b"), "Running")), 2, 2),
        ] {
            let mut loads = Load::by_node([&source].into_iter().chain(&there));
            Load::add_pending(&mut loads, &pending, &[node("1")]);
            let load = &loads["node-b"];
            assert_eq!((load.pods, load.containers.len()), (live, all), "{there:?}");
            assert_eq!(load.cpu_millis, 500 * live as i64, "{there:?}");
            assert_eq!(loads["node-a"].pods, 1);
        }
        let mut loads = BTreeMap::new();
        Load::add_pending(&mut loads, &pending, &[node("1")]);
        let container = &loads["node-b"].containers[0];
        assert_eq!((container.id.as_str(), container.labels.get("app")), ("", Some("web")));
    }

    #[test]
    fn a_migration_brings_its_pod_from_its_admission_until_it_has_ended() {
        let pods = [pod(json!({}), Some("node-a"), "Running")];
        let mut migration = Migration::new("move", MigrationSpec::for_pod("web-1"));
        migration.metadata.uid = Some("uid-m".into());
        let mut brings = |status: Value| {
            migration.status = serde_json::from_value(status).unwrap();
            Pending::of(&migration, &pods)
        };
        let status = |step: &str, source: &str| {
            json!({"step": step, "source": {"node": "node-a", "podUID": source},
                "target": {"node": "node-b"}})
        };
        assert_eq!(brings(json!({"step": "Pending"})), None);
        let pending = brings(status("Freezing", "uid-s")).unwrap();
        assert_eq!((pending.migration.as_str(), pending.node.as_str()), ("uid-m", "node-b"));
        assert_eq!(*pending.pod, pods[0]);
        assert_eq!(brings(status("Freezing", "uid-gone")), None);
        assert_eq!(brings(status("RolledBack", "uid-s")), None);
        let ended = [pod(json!({}), Some("node-a"), "Failed")];
        migration.status = serde_json::from_value(status("Freezing", "uid-s")).unwrap();
        assert_eq!(Pending::of(&migration, &ended), None);
    }

    #[test]
    fn what_would_not_fit_the_empty_node_is_not_pending_there() {
        let pod = Arc::new(pod(json!({}), None, "Running"));
        let pending = Pending { migration: "uid-m".into(), node: "node-b".into(), pod };
        for (cpu, counts) in [("499m", false), ("500m", true)] {
            let mut loads = BTreeMap::new();
            Load::add_pending(&mut loads, &pending, &[node(cpu)]);
            assert_eq!(loads.contains_key("node-b"), counts, "{cpu}");
        }
    }
}
