//! The engine's words for Kubernetes' objects: a node is an engine, a pod a container.
//!
//! | Swarm | Kubernetes |
//! | --- | --- |
//! | engine | cluster node with our `Node` |
//! | container | pod bound to the node; one that has ended counts for slots and ties alone |
//! | CPUs, memory | the pod's requests, in thousandths and bytes; the node's allocatable |
//! | pending container | pod whose node the extender or a Migration has chosen, until it is seen bound |
//! | node id | UID of the cluster node |
//! | container id and names | UID; name, `namespace/name`, ids of its containers |
//! | engine labels | `spec.labels` of our `Node`, then the cluster node's labels, then its `nodeInfo` and the runtime's snapshotter |
//! | volumes | claims whose volume one node alone can mount at a time |
//! | images | the node's images and those of its pods, also by Docker's short names |
//!
//! Keys of expressions cannot hold a slash, so labels such as `topology.kubernetes.io/zone` are not
//! within reach; what is wanted of them goes into `spec.labels` of our `Node`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{self as corev1, Pod};
use transship_api::{self as api, MigrationPolicy, Placement, conditions};

use super::annotations::{Malformed, Wishes, validate_placement};
use super::resources::{Allocatable, requests};
use super::volumes::{self, Volumes};
use super::{
    Container, Image, Network, Node, Options, PortBinding, Request, strategy, with_overcommit,
};
use crate::target_pod::is_sidecar;

/// What is asked of a pod's node, by all who may ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// Strategy and filters.
    pub options: Options,
    /// Volumes that have to be in reach; for targets of migrations.
    pub volumes: Volumes,
    /// Swarm's overcommit by which the nodes are measured, in whole percents: 0, or negative to keep a
    /// reserve; for targets of migrations.
    pub overcommit_percent: i64,
}

impl Asked {
    /// Asks for the pod's volumes too.
    pub fn with_volumes(mut self, volumes: Volumes) -> Self {
        self.request.claims = volumes.for_one_node().map(str::to_owned).collect();
        self.volumes = volumes;
        self
    }

    /// Measures the nodes by this overcommit.
    pub fn with_overcommit(mut self, percent: i64) -> Self {
        self.overcommit_percent = percent;
        self
    }
}

/// Whose wish cannot be obeyed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unobeyable {
    /// A Migration's placement.
    #[error("{0}")]
    Migration(Malformed),
    /// That of the policy of this name.
    #[error("MigrationPolicy {0}: {1}")]
    Policy(String, Malformed),
    /// An annotation of the pod.
    #[error("{0}")]
    Pod(Malformed),
}

/// What the pod (but for its volumes), the policy that applies to it and a Migration's placement ask for. All their
/// expressions have to hold; the strategy is the Migration's, else the pod's, else the policy's,
/// else spread.
pub fn asked(
    pod: &Pod,
    policy: Option<&MigrationPolicy>,
    placement: Option<&Placement>,
) -> Result<Asked, Unobeyable> {
    placement.map_or(Ok(()), validate_placement).map_err(Unobeyable::Migration)?;
    let name = policy.and_then(|policy| policy.metadata.name.clone()).unwrap_or_default();
    let policy = policy.and_then(|policy| policy.spec.placement.as_ref());
    policy.map_or(Ok(()), validate_placement).map_err(|error| Unobeyable::Policy(name, error))?;
    let none = BTreeMap::new();
    let wishes = Wishes::read(pod.metadata.annotations.as_ref().unwrap_or(&none))
        .map_err(Unobeyable::Pod)?;
    let of_both = |list: fn(&Placement) -> &[String], own: Vec<String>| -> Vec<String> {
        let list = |placement: Option<&Placement>| placement.map_or(vec![], |p| list(p).to_vec());
        [list(policy), own, list(placement)].concat()
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let (cpus, memory) = requests(pod);
    let request = Request {
        cpus,
        memory,
        constraints: of_both(|p| &p.constraints, wishes.constraints),
        affinities: of_both(|p| &p.affinities, wishes.affinities),
        whitelists: wishes.whitelists,
        network: if in_host_network(pod) { Network::Host } else { Network::Bridge },
        ports: bindings(pod),
        exposed: exposed(pod),
        volumes_from: vec![],
        links: wishes.depends_on.iter().map(|name| format!("{namespace}/{name}")).collect(),
        claims: vec![],
    };
    let strategy = placement
        .and_then(|p| p.strategy)
        .or(wishes.strategy)
        .or_else(|| policy.and_then(|p| p.strategy))
        .unwrap_or_default();
    let seed = strategy::seed(pod.metadata.uid.as_deref().unwrap_or_default());
    let options = Options { strategy, seed, ..Options::default() };
    Ok(Asked { request, options, volumes: Volumes::default(), overcommit_percent: 0 })
}

/// A cluster node without its pods. `overcommit_percent` is 0, or negative to keep a reserve:
/// kubelet refuses what exceeds the allocatable.
pub fn node(core: &corev1::Node, agent: Option<&api::Node>, overcommit_percent: i64) -> Node {
    let meta = &core.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let mut node = Node::new(name, meta.uid.as_deref().unwrap_or_default());
    let allocatable = Allocatable::of(core);
    let total = |amount: Option<i64>| with_overcommit(amount.unwrap_or(0), overcommit_percent);
    node.total_cpus = total(allocatable.cpu_millis);
    node.total_memory = total(allocatable.memory_bytes);
    node.health = health(agent);
    node.set_labels(labels(core, agent));
    let images = core.status.as_ref().and_then(|s| s.images.as_deref()).unwrap_or_default();
    let images: Vec<Image> = images.iter().filter_map(image).collect();
    node.set_images(&images);
    node
}

/// 0 unless our Node is Ready, else what its status says.
fn health(agent: Option<&api::Node>) -> i64 {
    let Some(status) = agent.and_then(|node| node.status.as_ref()) else { return 0 };
    match conditions::is_true(&status.conditions, conditions::READY) {
        true => status.health_indicator.unwrap_or(100).into(),
        false => 0,
    }
}

fn labels(core: &corev1::Node, agent: Option<&api::Node>) -> BTreeMap<String, String> {
    let info = core.status.as_ref().and_then(|s| s.node_info.as_ref());
    let runtime = agent.and_then(|node| node.status.as_ref()?.runtime.as_ref());
    let snapshotter = runtime.map(|runtime| &runtime.snapshotter).filter(|name| !name.is_empty());
    let driver = snapshotter.map(|name| ("storagedriver", name));
    // Swarm's defaults, as far as Kubernetes and the agent know them.
    let defaults = info.into_iter().flat_map(|info| {
        [
            ("kernelversion", &info.kernel_version),
            ("operatingsystem", &info.os_image),
            ("ostype", &info.operating_system),
            ("architecture", &info.architecture),
        ]
    });
    let defaults = defaults.chain(driver).map(|(key, value)| (key.to_owned(), value.clone()));
    let own = agent.map(|node| node.spec.labels.clone()).unwrap_or_default();
    defaults.chain(core.metadata.labels.clone().unwrap_or_default()).chain(own).collect()
}

/// By the digest as its id; without a digest by its first name.
fn image(image: &corev1::ContainerImage) -> Option<Image> {
    let names = image.names.as_deref()?;
    let digest = names.iter().find_map(|name| Some(name.split_once('@')?.1));
    let id = digest.or(names.first().map(String::as_str))?.to_owned();
    Some(Image { id, tags: names.iter().flat_map(|name| image_names(name)).collect() })
}

/// An image's name as it stands, and as Docker shortens it: without Docker Hub's own parts.
fn image_names(name: &str) -> impl Iterator<Item = String> {
    let short = name.strip_prefix("docker.io/").map(|s| s.strip_prefix("library/").unwrap_or(s));
    [Some(name), short].into_iter().flatten().map(str::to_owned)
}

/// A pod as a container of its node.
pub fn container(pod: &Pod) -> Container {
    let id = pod.metadata.uid.clone().unwrap_or_default();
    if has_ended(pod) {
        return Container { id, ended: true, ..Container::default() };
    }
    let name = pod.metadata.name.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ids = statuses.filter_map(|s| s.container_id.as_deref());
    let ids = ids.map(|id| id.split_once("://").map_or(id, |(_, id)| id).to_owned());
    let (cpus, memory) = requests(pod);
    Container {
        id,
        aliases: [format!("{namespace}/{name}")].into_iter().chain(ids).collect(),
        name,
        labels: pod.metadata.labels.clone().unwrap_or_default().into(),
        images: containers(pod).filter_map(|c| c.image.as_deref()).flat_map(image_names).collect(),
        cpus,
        memory,
        host_network: in_host_network(pod),
        ports: bindings(pod),
        exposed: exposed(pod),
        claims: volumes::claims(pod).collect(),
        ended: false,
    }
}

/// A pod that has not ended, as it will be where a Migration brings it: not with the ids that it has.
pub fn moved(pod: &Container, id: String) -> Container {
    // Those of its containers follow its own name.
    let aliases = pod.aliases.iter().take(1).cloned().collect();
    Container { id, aliases, ..pod.clone() }
}

/// Finished pods hold neither ports nor resources.
pub(super) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Those that go on as long as the pod: sidecars are among them.
fn containers(pod: &Pod) -> impl Iterator<Item = &corev1::Container> {
    pod.spec.iter().flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(inits.filter(|container| is_sidecar(container)))
    })
}

pub(super) fn in_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true))
}

pub(super) fn container_ports(pod: &Pod) -> impl Iterator<Item = &corev1::ContainerPort> {
    containers(pod).flat_map(|container| container.ports.iter().flatten())
}

/// Host ports. In the host's network Swarm compares what is exposed instead.
fn bindings(pod: &Pod) -> Vec<PortBinding> {
    if in_host_network(pod) {
        return Vec::new();
    }
    let binding = |port: &corev1::ContainerPort| {
        let host_port = port.host_port.filter(|port| *port > 0)?;
        let host_ip = port.host_ip.clone().unwrap_or_default();
        Some(PortBinding { host_ip, host_port: host_port.to_string() })
    };
    container_ports(pod).filter_map(binding).collect()
}

/// Ports as Docker writes them, such as `80/tcp`.
fn exposed(pod: &Pod) -> Vec<String> {
    let protocol =
        |port: &corev1::ContainerPort| port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
    container_ports(pod).map(|port| format!("{}/{}", port.container_port, protocol(port))).collect()
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
