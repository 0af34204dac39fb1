//! What the engine looks at: nodes with their containers, and a request for one more container.
//!
//! Amounts of CPU may be in any unit as long as nodes, containers and request share it: whole CPUs
//! in Swarm, thousandths in Kubernetes. Memory is in bytes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::lines::is_hex;
use super::symbol::Symbol;
use super::words::Words;

/// Label by which Swarm knows a container over its life.
const SWARM_ID_LABEL: &str = "com.docker.swarm.id";
/// Node label with the number of containers it takes.
const SLOTS_LABEL: &str = "containerslots";

/// A port of the host that a container binds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortBinding {
    /// Address that is bound; empty, `0.0.0.0` and `::` stand for all.
    pub host_ip: String,
    /// Port; empty where the runtime chooses one, which then clashes with nothing.
    pub host_port: String,
}

impl PortBinding {
    /// Whether both cannot be bound on one host. Protocols are not compared, as in Swarm.
    pub fn clashes(&self, other: &Self) -> bool {
        !other.host_port.is_empty()
            && self.host_port == other.host_port
            && (self.host_ip == other.host_ip || self.binds_all() || other.binds_all())
    }

    fn binds_all(&self) -> bool {
        self.host_ip.is_empty()
            || self.host_ip.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_unspecified())
    }
}

/// How a container is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// A network of its own, reached through bound ports.
    #[default]
    Bridge,
    /// The host's network: its exposed ports are the host's.
    Host,
    /// The network of another container, by its name or id.
    Container(String),
}

/// A container on a node, running or not; in Kubernetes a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its id, unique in the cluster; empty for one that is yet to come (see [`Load::add_pending`]).
    ///
    /// [`Load::add_pending`]: super::Load::add_pending
    pub id: String,
    /// Its name; empty if it has none, then no affinity to containers sees it.
    pub name: String,
    /// More words that it answers to, in affinities and as a dependency: in Kubernetes
    /// `namespace/name` and the ids of its containers, in Swarm none.
    pub aliases: Vec<String>,
    /// Its labels.
    pub labels: Labels,
    /// Images it runs, for affinities to images. Swarm looks at the node's alone.
    pub images: Vec<String>,
    /// CPU that is reserved for it.
    pub cpus: i64,
    /// Bytes of memory that are reserved for it.
    pub memory: i64,
    /// Whether it is in the host's network.
    pub host_network: bool,
    /// Ports of the host that it binds.
    pub ports: Vec<PortBinding>,
    /// Ports that it exposes, such as `80/tcp`; they count in the host's network.
    pub exposed: Vec<String>,
    /// Volumes that it mounts: in Kubernetes `namespace/name` of its claims, in Swarm none.
    pub claims: Vec<String>,
    /// It has ended and given everything back, yet still exists: it counts for slots and ties, and
    /// for nothing else. So it is with finished pods; Swarm's stopped containers keep what they have.
    pub ended: bool,
}

impl Container {
    fn swarm_id(&self) -> &str {
        self.labels.get(SWARM_ID_LABEL).unwrap_or_default()
    }

    /// What affinities to containers look at: its id, its name and its aliases, if it has a name and
    /// has not ended.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let is_looked_at = !self.ended && !self.name.is_empty();
        let words = [&self.id, &self.name].into_iter().chain(&self.aliases);
        words.filter(move |_| is_looked_at).map(String::as_str)
    }

    /// Whether it may be looked up by what is no word of it and no beginning of one.
    fn is_elusive(&self) -> bool {
        self.name.is_empty() || self.id.contains(':') || !self.swarm_id().is_empty()
    }
}

/// A container's labels, in little memory: most containers share theirs with others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Symbol, Symbol)]>);

impl Labels {
    /// A label's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *key).map(|(_, value)| &**value)
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self(labels.iter().map(|(key, value)| (Symbol::of(key), Symbol::of(value))).collect())
    }
}

/// An image on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its id or digest.
    pub id: String,
    /// Names with tag, such as `reg.io:5000/app:v2`.
    pub tags: Vec<String>,
}

/// A request for one more container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// CPU that is to be reserved; 0 reserves none.
    pub cpus: i64,
    /// Bytes of memory that are to be reserved; 0 reserves none.
    pub memory: i64,
    /// Expressions about the node.
    pub constraints: Vec<String>,
    /// Expressions about containers and images on the node.
    pub affinities: Vec<String>,
    /// Expressions that list the nodes that may be used.
    pub whitelists: Vec<String>,
    /// How it is to be connected.
    pub network: Network,
    /// Ports of the host that it is to bind.
    pub ports: Vec<PortBinding>,
    /// Ports that it exposes.
    pub exposed: Vec<String>,
    /// Containers whose volumes it uses, such as `db:ro`.
    pub volumes_from: Vec<String>,
    /// Containers that it links to, such as `db:alias`.
    pub links: Vec<String>,
    /// Volumes that it mounts and that one node alone can mount at a time, as in
    /// [`Container::claims`]. Where one is in use, the node is given; Swarm knows none.
    pub claims: Vec<String>,
}

/// A node with its containers, and sums and indexes over them.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name; equal nodes are ordered by it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// CPU it has, overcommit included (see [`with_overcommit`]).
    pub total_cpus: i64,
    /// Bytes of memory it has, overcommit included.
    pub total_memory: i64,
    /// 0 (not to be used) to 100 (see [`health_indicator`]).
    pub health: i64,
    labels: Vec<(Symbol, Symbol)>,
    slots: Option<i64>,
    containers: Vec<Container>,
    live: usize,
    /// Live containers that answer to more than their words.
    elusive: usize,
    used_cpus: i64,
    used_memory: i64,
    /// How many live containers have a label with a value, by label.
    label_values: Vec<(Symbol, Vec<(Symbol, usize)>)>,
    /// Names and other words of the live containers that have a name.
    container_names: Words,
    /// Their words for which [`is_hex`] holds, UIDs and ids: most of the text, and nothing that an
    /// affinity usually looks for.
    container_hex: Words,
    /// Of each of the node's own images its names, as [`Words::text`].
    images: Vec<Symbol>,
    /// The same of the images of live containers.
    running_images: Vec<Symbol>,
    bindings: Vec<PortBinding>,
    exposed: Vec<String>,
    claims: Vec<String>,
}

impl Node {
    /// A node without labels and containers.
    pub fn new(name: impl Into<String>, id: impl Into<String>) -> Self {
        Self { name: name.into(), id: id.into(), ..Self::default() }
    }

    /// Replaces its labels.
    pub fn set_labels(&mut self, labels: impl IntoIterator<Item = (String, String)>) {
        // Of several with the same key the last counts.
        let labels: BTreeMap<String, String> = labels.into_iter().collect();
        // What is no number limits nothing.
        self.slots = labels.get(SLOTS_LABEL).and_then(|slots| slots.parse().ok());
        let symbols = labels.iter().map(|(key, value)| (Symbol::of(key), Symbol::of(value)));
        self.labels = symbols.collect();
    }

    /// Replaces its images.
    pub fn set_images<'a>(&mut self, images: impl IntoIterator<Item = &'a Image>) {
        let names = images.into_iter().map(|image| {
            let mut words = Words::default();
            words.add(&image.id);
            image.tags.iter().for_each(|tag| add_image_name(&mut words, tag));
            Symbol::of(words.text())
        });
        self.images = names.collect();
    }

    /// Adds a container.
    pub fn add(&mut self, container: Container) {
        self.used_cpus = self.used_cpus.wrapping_add(container.cpus);
        self.used_memory = self.used_memory.wrapping_add(container.memory);
        if !container.ended {
            self.live += 1;
            self.elusive += usize::from(container.is_elusive());
            self.index(&container);
        }
        self.containers.push(container);
    }

    /// Removes the container with this id and gives it back, if it is here.
    pub fn remove(&mut self, id: &str) -> Option<Container> {
        let position = self.containers.iter().position(|c| c.id == id)?;
        let container = self.containers.swap_remove(position);
        self.used_cpus = self.used_cpus.wrapping_sub(container.cpus);
        self.used_memory = self.used_memory.wrapping_sub(container.memory);
        if !container.ended {
            self.live -= 1;
            self.elusive -= usize::from(container.is_elusive());
            self.unindex(&container);
        }
        Some(container)
    }

    /// Its containers, in no order.
    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| **known == *key).map(|(_, value)| &**value)
    }

    /// Its labels by key, in order. They are few: faster than a map.
    pub(super) fn labels(&self) -> &[(Symbol, Symbol)] {
        &self.labels
    }

    /// CPU reserved by its containers, pending ones included.
    pub fn used_cpus(&self) -> i64 {
        self.used_cpus
    }

    /// Bytes of memory reserved by its containers, pending ones included.
    pub fn used_memory(&self) -> i64 {
        self.used_memory
    }

    /// Whether a live container mounts a volume.
    pub fn mounts(&self, claim: &str) -> bool {
        self.claims.iter().any(|mounted| mounted == claim)
    }

    pub(super) fn has_free_slot(&self) -> bool {
        self.slots.is_none_or(|slots| (self.containers.len() as i64) < slots)
    }

    pub(super) fn binds(&self, wanted: &PortBinding) -> bool {
        self.bindings.iter().any(|bound| wanted.clashes(bound))
    }

    /// Whether a container in the host's network exposes the port.
    pub(super) fn exposes(&self, port: &str) -> bool {
        self.exposed.iter().any(|exposed| exposed == port)
    }

    pub(super) fn container_names(&self) -> &Words {
        &self.container_names
    }

    pub(super) fn container_hex(&self) -> &Words {
        &self.container_hex
    }

    /// The images of the node and of its live containers: of each its names, as [`Words::text`].
    pub(super) fn images(&self) -> impl Iterator<Item = &Symbol> {
        self.images.iter().chain(&self.running_images)
    }

    /// Each value that a label has on the node's containers; empty for containers without it.
    pub(super) fn container_label(&self, key: &str) -> impl Iterator<Item = &Symbol> {
        let values = self.label_values.iter().find(|(known, _)| **known == *key);
        let values = values.map_or(&[][..], |(_, values)| values);
        let labelled: usize = values.iter().map(|(_, count)| count).sum();
        let lacking = (labelled < self.live).then_some(Symbol::empty());
        values.iter().map(|(value, _)| value).chain(lacking)
    }

    /// Whether [`Self::has_container`] may find one none of whose words begins like what is wanted.
    pub(super) fn may_hide(&self, wanted: &str) -> bool {
        self.elusive > 0 || wanted.starts_with(&self.name) || wanted.starts_with(&self.id)
    }

    /// Whether a container is here, looked up as Swarm does: by id or the first 12 characters of
    /// it, by Swarm's id, by name (`name` or `node/name`), then by the beginning of an id. A name or
    /// beginning that fits several is none.
    pub(super) fn has_container(&self, wanted: &str) -> bool {
        if wanted.is_empty() {
            return false;
        }
        let live = || self.containers.iter().filter(|c| !c.ended);
        let is_id = |id: &str| !id.is_empty() && (id == wanted || short(id) == wanted);
        if live().any(|c| is_id(&c.id) || is_id(c.swarm_id())) {
            return true;
        }
        let here = [&self.name, &self.id]
            .into_iter()
            .find_map(|node| wanted.strip_prefix(node.as_str())?.strip_prefix('/'));
        let named = |name: &str| !name.is_empty() && (name == wanted || Some(name) == here);
        match live().filter(|c| named(&c.name) || c.aliases.iter().any(|a| named(a))).count() {
            0 => {}
            count => return count == 1,
        }
        let begins = |id: &str| usize::from(id.starts_with(wanted));
        live().map(|c| begins(&c.id) + begins(c.swarm_id())).sum::<usize>() == 1
    }

    fn index(&mut self, container: &Container) {
        for (key, value) in &container.labels.0 {
            let position = self.label_values.iter().position(|(known, _)| known == key);
            let position = position.unwrap_or_else(|| {
                self.label_values.push((key.clone(), Vec::new()));
                self.label_values.len() - 1
            });
            let values = &mut self.label_values[position].1;
            match values.iter_mut().find(|(known, _)| known == value) {
                Some((_, count)) => *count += 1,
                None => values.push((value.clone(), 1)),
            }
        }
        self.index_lists(container);
    }

    fn unindex(&mut self, container: &Container) {
        for (key, value) in &container.labels.0 {
            let of_key = self.label_values.iter_mut().find(|(known, _)| known == key);
            let Some((_, values)) = of_key else { continue };
            values.retain_mut(|(known, count)| {
                *count -= usize::from(known == value);
                *count > 0
            });
        }
        self.label_values.retain(|(_, values)| !values.is_empty());
        self.container_names.clear();
        self.container_hex.clear();
        self.running_images.clear();
        self.bindings.clear();
        self.exposed.clear();
        self.claims.clear();
        let containers = std::mem::take(&mut self.containers);
        containers.iter().filter(|c| !c.ended).for_each(|other| self.index_lists(other));
        self.containers = containers;
    }

    /// What is indexed without being counted.
    fn index_lists(&mut self, container: &Container) {
        for word in container.words() {
            match is_hex(word) {
                true => self.container_hex.add(word),
                false => self.container_names.add(word),
            }
        }
        self.running_images.extend(container.images.iter().map(|image| {
            let mut words = Words::default();
            add_image_name(&mut words, image);
            Symbol::of(words.text())
        }));
        self.bindings.extend_from_slice(&container.ports);
        if container.host_network {
            self.exposed.extend_from_slice(&container.exposed);
        }
        self.claims.extend_from_slice(&container.claims);
    }
}

/// An image's name, and the same without tag or digest.
fn add_image_name(words: &mut Words, name: &str) {
    words.add(name);
    words.add(repository(name));
}

/// An image's name without digest or tag; a colon before a slash belongs to the registry's port.
fn repository(name: &str) -> &str {
    if let Some((repository, _)) = name.split_once('@') {
        return repository;
    }
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// Docker's short form of an id: the first 12 characters behind a `sha256:`.
fn short(id: &str) -> &str {
    let id = id.split_once(':').map_or(id, |(_, id)| id);
    id.char_indices().nth(12).map_or(id, |(end, _)| &id[..end])
}

/// What a node offers with overcommit, as Swarm counts: whole percents, rounded towards nothing.
/// `percent` is `int64(100 * swarm.overcommit)`: 5 in Swarm unless told otherwise, negative to keep
/// a reserve.
pub fn with_overcommit(total: i64, percent: i64) -> i64 {
    total.wrapping_add(total.wrapping_mul(percent) / 100)
}

/// How healthy a node is: 0 (not to be used) to 100, less with each failure in a row. `retry` is
/// the number of failures after which it is not used.
pub fn health_indicator(healthy: bool, failures: i64, retry: i64) -> i64 {
    if !healthy || retry <= 0 || failures >= retry {
        return 0;
    }
    100 - failures * 100 / retry
}
