//! The cluster as the placement engine looks at it, kept up to date by single changes in whatever
//! order they come: a pod may be seen before its node.
//!
//! A pod for which a node was chosen and which is not bound yet counts as if it were there, as
//! Swarm's pending containers do: without that a burst of pods would all go to one node. Such an
//! assumption ends when the pod is seen bound, refused or deleted, or after [`ASSUMED_FOR`].

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use transship_core::placement::{Container, Decision, Node, Prepared};

use crate::beginnings::Beginnings;

/// How long a choice counts that nothing has become of.
pub const ASSUMED_FOR: Duration = Duration::from_secs(60);

/// Nodes with the pods on them.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Where each node is in the lists below, by its name. A question names thousands of nodes: what
    /// finds them fits into the processor's cache, and they themselves do not.
    slots: HashMap<Box<str>, usize, RandomState>,
    nodes: Vec<Node>,
    /// Whether the cluster has the node; otherwise pods alone have named it so far.
    known: Vec<bool>,
    /// Slots whose node is gone.
    free: Vec<usize>,
    /// Slots of the nodes where pods are, or are assumed to go, by UID.
    places: HashMap<String, usize>,
    beginnings: Beginnings,
    assumed: HashMap<String, Assumed>,
    version: u64,
}

/// A choice that is not a fact yet.
#[derive(Debug)]
struct Assumed {
    since: Instant,
    /// What the pod said of its scheduling when the node was chosen.
    said: Option<String>,
}

impl Cluster {
    /// Grows with every change that may matter to a decision.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many choices are not facts yet.
    pub fn assumptions(&self) -> usize {
        self.assumed.len()
    }

    /// The slot of a node that exists, which is its own as long as it does.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.slots.get(name).copied().filter(|&slot| self.known[slot])
    }

    /// All nodes that exist, with their slots.
    pub fn nodes(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(move |(slot, _)| self.known[*slot])
    }

    /// A pod that is on a node, or assumed to go there.
    pub fn pod(&self, uid: &str) -> Option<&Container> {
        let slot = *self.places.get(uid)?;
        self.nodes[slot].containers().iter().find(|pod| pod.id == uid)
    }

    /// The node of such a pod.
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.places.get(uid).map(|&slot| self.nodes[slot].name.as_str())
    }

    /// Decides among the nodes in these slots.
    pub fn place(&self, request: &Prepared, slots: &[usize]) -> Decision {
        let nodes: Vec<&Node> = slots.iter().map(|&slot| &self.nodes[slot]).collect();
        // Pods on other nodes matter too, those included that are assumed to go there.
        let in_use = |claim: &str| self.nodes.iter().any(|node| node.mounts(claim));
        request.place_among(&nodes, in_use, |beginnings| {
            let mut begins = vec![false; self.nodes.len()];
            self.beginnings.slots(beginnings).for_each(|slot| begins[slot] = true);
            Some(slots.iter().map(|&slot| begins[slot]).collect())
        })
    }

    /// Adds or replaces a node; the pods on it stay. `node` comes without containers.
    pub fn set_node(&mut self, mut node: Node) {
        self.version += 1;
        let slot = self.slot(&node.name);
        self.nodes[slot].containers().iter().for_each(|container| node.add(container.clone()));
        self.nodes[slot] = node;
        self.known[slot] = true;
    }

    /// The cluster does not have the node any more. Its pods stay until they are gone themselves.
    pub fn remove_node(&mut self, name: &str) {
        let Some(&slot) = self.slots.get(name) else { return };
        self.version += 1;
        self.known[slot] = false;
        self.free_if_unused(slot);
    }

    /// The pod is on a node: that is a fact. Its UID is the container's id.
    pub fn bind(&mut self, node: &str, pod: Container) {
        self.assumed.remove(&pod.id);
        self.put(node, pod);
    }

    /// The pod is to go to a node. `said`: what it says of its scheduling so far.
    pub fn assume(&mut self, node: &str, pod: Container, said: Option<String>, now: Instant) {
        let uid = pod.id.clone();
        self.put(node, pod);
        self.assumed.insert(uid, Assumed { since: now, said });
    }

    /// The pod is not bound, and says this of its scheduling. If that is something new, its
    /// scheduler has not followed our choice.
    pub fn unbound(&mut self, uid: &str, says: Option<&str>) {
        let refused = |assumed: &Assumed| says.is_some() && says != assumed.said.as_deref();
        if self.assumed.get(uid).is_some_and(refused) {
            self.remove(uid);
        }
    }

    /// Takes a choice back that is no fact yet.
    pub fn release(&mut self, uid: &str) {
        if self.assumed.contains_key(uid) {
            self.remove(uid);
        }
    }

    /// Takes back what has been assumed for too long.
    pub fn expire(&mut self, now: Instant) {
        let old = |assumed: &Assumed| now.duration_since(assumed.since) >= ASSUMED_FOR;
        let uids: Vec<String> =
            self.assumed.iter().filter(|(_, a)| old(a)).map(|(uid, _)| uid.clone()).collect();
        uids.iter().for_each(|uid| self.remove(uid));
    }

    /// The pod is gone.
    pub fn remove(&mut self, uid: &str) {
        self.assumed.remove(uid);
        let Some(slot) = self.places.remove(uid) else { return };
        self.version += 1;
        if let Some(pod) = self.nodes[slot].remove(uid) {
            self.beginnings.remove(slot, &pod);
        }
        self.free_if_unused(slot);
    }

    /// Removes every pod that is neither among `uids` nor assumed.
    pub fn retain_pods(&mut self, uids: &HashSet<String>) {
        let gone: Vec<String> = self
            .places
            .keys()
            .filter(|uid| !uids.contains(*uid) && !self.assumed.contains_key(*uid))
            .cloned()
            .collect();
        gone.iter().for_each(|uid| self.remove(uid));
    }

    /// Puts a pod onto a node, unless just that pod is there: a choice is made twice, by `filter` and by
    /// `prioritize`.
    fn put(&mut self, node: &str, pod: Container) {
        let former = self.places.get(&pod.id).map(|&slot| &self.nodes[slot]);
        if former.is_some_and(|there| there.name == node && there.containers().contains(&pod)) {
            return;
        }
        self.remove(&pod.id);
        self.version += 1;
        let slot = self.slot(node);
        self.places.insert(pod.id.clone(), slot);
        self.beginnings.add(slot, &pod);
        self.nodes[slot].add(pod);
    }

    /// The slot of a node that may exist or not.
    fn slot(&mut self, name: &str) -> usize {
        if let Some(&slot) = self.slots.get(name) {
            return slot;
        }
        let slot = self.free.pop().unwrap_or(self.nodes.len());
        if slot == self.nodes.len() {
            self.nodes.push(Node::default());
            self.known.push(false);
        }
        self.nodes[slot] = Node::new(name, "");
        self.slots.insert(name.into(), slot);
        slot
    }

    fn free_if_unused(&mut self, slot: usize) {
        if !self.known[slot] && self.nodes[slot].containers().is_empty() {
            let node = std::mem::take(&mut self.nodes[slot]);
            self.slots.remove(node.name.as_str());
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use transship_core::placement::{Options, Request, prepare};

    use super::*;

    fn pod(uid: &str, cpus: i64) -> Container {
        Container { id: uid.into(), name: uid.into(), cpus, ..Container::default() }
    }

    /// What becomes of a choice.
    type Fate = fn(&mut Cluster, Instant);

    fn used(cluster: &Cluster, node: &str) -> i64 {
        cluster.find(node).map_or(-1, |slot| cluster.nodes[slot].used_cpus())
    }

    #[test]
    fn a_pod_may_be_seen_before_its_node() {
        let mut cluster = Cluster::default();
        cluster.bind("node-a", pod("p", 2));
        assert_eq!(cluster.nodes().count(), 0);
        cluster.set_node(Node::new("node-a", "a"));
        assert_eq!(used(&cluster, "node-a"), 2);
        cluster.set_node(Node::new("node-a", "a"));
        assert_eq!(used(&cluster, "node-a"), 2, "a node that changes keeps its pods");
        cluster.remove_node("node-a");
        assert!(cluster.find("node-a").is_none());
        cluster.remove("p");
        assert!(cluster.slots.is_empty() && cluster.places.is_empty());
        cluster.set_node(Node::new("node-b", "b"));
        assert_eq!(cluster.find("node-b"), Some(0), "in the slot that has become free");
        assert_eq!(used(&cluster, "node-b"), 0);
    }

    #[test]
    fn what_has_not_changed_makes_no_new_version() {
        let mut cluster = Cluster::default();
        cluster.assume("node-a", pod("p", 2), None, Instant::now());
        let version = cluster.version();
        cluster.assume("node-a", pod("p", 2), None, Instant::now());
        cluster.bind("node-a", pod("p", 2));
        cluster.bind("node-a", pod("p", 2));
        assert_eq!(cluster.version(), version);
        cluster.bind("node-a", pod("p", 3));
        assert_ne!(cluster.version(), version);
    }

    #[test]
    fn a_choice_counts_until_it_is_a_fact_refused_gone_or_too_old() {
        let now = Instant::now();
        let ends: [(&str, Fate, i64); 7] = [
            ("bound there", |c, _| c.bind("node-a", pod("p", 2)), 2),
            ("bound elsewhere", |c, _| c.bind("node-b", pod("p", 2)), 0),
            ("refused", |c, _| c.unbound("p", Some("0/2 nodes are available: full.")), 0),
            ("still what it said before", |c, _| c.unbound("p", Some("before")), 2),
            ("deleted", |c, _| c.remove("p"), 0),
            ("old", |c, now| c.expire(now + ASSUMED_FOR), 0),
            ("not so old", |c, now| c.expire(now + ASSUMED_FOR / 2), 2),
        ];
        for (what, end, expected) in ends {
            let mut cluster = Cluster::default();
            cluster.set_node(Node::new("node-a", "a"));
            cluster.set_node(Node::new("node-b", "b"));
            cluster.assume("node-a", pod("p", 2), Some("before".into()), now);
            assert_eq!(used(&cluster, "node-a"), 2);
            end(&mut cluster, now);
            assert_eq!(used(&cluster, "node-a"), expected, "{what}");
        }
    }

    /// The nodes that an affinity leaves, as the engine by itself says too.
    fn left(cluster: &Cluster, affinity: &str) -> Vec<String> {
        let request = Request { affinities: vec![affinity.to_owned()], ..Request::default() };
        let prepared = prepare(&request, &Options::default());
        let (slots, nodes): (Vec<usize>, Vec<&Node>) = cluster.nodes().unzip();
        let names = |decision: Decision| {
            let mut names: Vec<String> =
                decision.ranking().map(|at| nodes[at].name.clone()).collect();
            names.sort();
            names
        };
        let found = names(cluster.place(&prepared, &slots));
        assert_eq!(found, names(prepared.place_where(&nodes, |_| false)), "{affinity}");
        found
    }

    #[test]
    fn pods_are_found_by_the_beginnings_of_their_words_wherever_they_have_gone() {
        let mut cluster = Cluster::default();
        let set = |cluster: &mut Cluster, name: &str| {
            let mut node = Node::new(name, name);
            node.health = 100;
            cluster.set_node(node);
        };
        ["node-a", "node-b", "node-c"].iter().for_each(|name| set(&mut cluster, name));
        let long = "the-name-of-an-application-that-is-long";
        let named = |uid: &str, name: &str| Container { name: name.into(), ..pod(uid, 0) };
        let found = |cluster: &Cluster, wanted: &[&str]| {
            for affinity in ["container==web*", "container==web-0", "container==/^we[bc]-/"] {
                assert_eq!(left(cluster, affinity), wanted, "{affinity}");
            }
        };
        cluster.bind("node-a", named("1f00", "web-0"));
        cluster.bind("node-a", named("2f00", "web-0"));
        cluster.bind("node-a", named("4f00", long));
        cluster.assume("node-b", named("3f00", "web-0"), None, Instant::now());
        found(&cluster, &["node-a", "node-b"]);
        assert_eq!(left(&cluster, "container!=web*"), ["node-c"]);
        assert_eq!(left(&cluster, "container==3f*"), ["node-b"]);
        assert_eq!(left(&cluster, &format!("container=={long}")), ["node-a"]);
        assert!(left(&cluster, &format!("container=={long}-or-longer")).is_empty());
        cluster.remove("1f00");
        found(&cluster, &["node-a", "node-b"]);
        cluster.bind("node-c", named("3f00", "web-0"));
        found(&cluster, &["node-a", "node-c"]);
        cluster.bind("node-a", Container { ended: true, ..named("2f00", "web-0") });
        found(&cluster, &["node-c"]);
        set(&mut cluster, "node-c");
        found(&cluster, &["node-c"]);
        ["2f00", "3f00", "4f00"].iter().for_each(|uid| cluster.remove(uid));
        found(&cluster, &[]);
        assert_eq!(cluster.beginnings, Beginnings::default());
    }

    #[test]
    fn a_fact_is_not_taken_back() {
        let mut cluster = Cluster::default();
        cluster.set_node(Node::new("node-a", "a"));
        cluster.bind("node-a", pod("p", 2));
        cluster.release("p");
        cluster.unbound("p", Some("old news"));
        cluster.expire(Instant::now() + 2 * ASSUMED_FOR);
        assert_eq!(used(&cluster, "node-a"), 2);
    }

    #[test]
    fn a_new_list_drops_what_is_not_in_it_but_no_choice() {
        let mut cluster = Cluster::default();
        cluster.set_node(Node::new("node-a", "a"));
        cluster.bind("node-a", pod("gone", 1));
        cluster.bind("node-a", pod("stays", 2));
        cluster.assume("node-a", pod("chosen", 4), None, Instant::now());
        cluster.retain_pods(&HashSet::from(["stays".to_owned()]));
        assert_eq!(used(&cluster, "node-a"), 6);
    }
}
