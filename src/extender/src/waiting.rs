//! Pods that were refused, and when it is worth to look at them again.
//!
//! kube-scheduler does not know what our answers depend on, so it would leave a refused pod alone
//! for minutes. When the cluster changes, the decision is made again for each refused pod; if a node
//! can be used now that could not, the pod is *touched*: its scheduler then tries again. Nodes that
//! could be used already, but were not offered by kube-scheduler, are its business and are left out.
//!
//! What is decided again is what the pod asked for when it was refused. Where that itself may have
//! changed, by a policy or a claim of its namespace, the pod is touched without a decision; so it is with what
//! could not be read.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use transship_core::placement::{Node, Prepared};

use crate::cluster::Cluster;

/// kube-scheduler asks again by itself after five minutes; a pod that it has not asked about for
/// longer is another scheduler's by now.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Decisions in one go: nobody is answered meanwhile.
const AT_A_TIME: usize = 4;

/// A pod as the API names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A pod that was refused.
#[derive(Debug)]
struct Refused {
    pod: PodName,
    /// What it asked for; none where that could not be read.
    request: Option<Prepared>,
    /// Nodes that could be used already.
    elsewhere: HashSet<String>,
    /// The cluster's version that was looked at.
    version: u64,
    /// It may ask for something else by now.
    stale: bool,
    since: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Waiting {
    pods: HashMap<String, Refused>,
}

impl Waiting {
    /// How many pods wait.
    pub fn count(&self) -> usize {
        self.pods.len()
    }

    /// The pod was refused on all of `offered`.
    pub fn add(
        &mut self,
        pod: PodName,
        request: Prepared,
        offered: &[&str],
        cluster: &Cluster,
        now: Instant,
    ) {
        let offered: HashSet<&str, RandomState> = offered.iter().copied().collect();
        let others = || cluster.nodes().filter(|(_, n)| !offered.contains(n.name.as_str()));
        let mut elsewhere = HashSet::new();
        // Twice at most: nodes of the soft pass hide those of the hard one.
        loop {
            let others = others().filter(|(_, n)| !elsewhere.contains(&n.name));
            let usable = usable(&request, others, cluster);
            if usable.is_empty() {
                break;
            }
            elsewhere.extend(usable);
        }
        self.insert(pod, Some(request), elsewhere, cluster.version(), now);
    }

    /// What the pod asks for, by itself or by its policy, cannot be read: no change of the cluster helps it.
    pub fn add_unread(&mut self, pod: PodName, now: Instant) {
        self.insert(pod, None, HashSet::new(), 0, now);
    }

    fn insert(
        &mut self,
        pod: PodName,
        request: Option<Prepared>,
        elsewhere: HashSet<String>,
        version: u64,
        since: Instant,
    ) {
        let uid = pod.uid.clone();
        self.pods.insert(uid, Refused { pod, request, elsewhere, version, stale: false, since });
    }

    /// The pod does not wait any more.
    pub fn remove(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// Pods that are not among `uids` are gone.
    pub fn retain(&mut self, uids: &HashSet<String>) {
        self.pods.retain(|uid, _| uids.contains(uid));
    }

    /// What pods of a namespace ask for may have changed.
    pub fn reconsider(&mut self, namespace: &str) {
        let here = self.pods.values_mut().filter(|refused| refused.pod.namespace == namespace);
        here.for_each(|refused| refused.stale = true);
    }

    /// Pods that are to be touched now. Each is named once per change that helps it, or may help it.
    pub fn due(&mut self, cluster: &Cluster, now: Instant) -> Vec<PodName> {
        self.pods.retain(|_, refused| now.duration_since(refused.since) < FORGET_AFTER);
        let version = cluster.version();
        let mut due = Vec::new();
        for refused in self.pods.values_mut().filter(|refused| refused.stale) {
            // Its scheduler asks again, with what it asks for now.
            (refused.stale, refused.version) = (false, version);
            due.push(refused.pod.clone());
        }
        let is_to_be_decided =
            |refused: &&mut Refused| refused.request.is_some() && refused.version != version;
        let mut turns: Vec<&mut Refused> =
            self.pods.values_mut().filter(is_to_be_decided).collect();
        // Those first that were looked at longest ago.
        turns.sort_by(|a, b| (a.version, &a.pod.uid).cmp(&(b.version, &b.pod.uid)));
        for refused in turns.into_iter().take(AT_A_TIME) {
            refused.version = version;
            let others = cluster.nodes().filter(|(_, n)| !refused.elsewhere.contains(&n.name));
            let Some(request) = &refused.request else { continue };
            let usable = usable(request, others, cluster);
            if !usable.is_empty() {
                refused.elsewhere.extend(usable);
                due.push(refused.pod.clone());
            }
        }
        due
    }
}

/// Names of the nodes that a request could use, of these with their slots.
fn usable<'a>(
    request: &Prepared,
    nodes: impl Iterator<Item = (usize, &'a Node)>,
    cluster: &Cluster,
) -> Vec<String> {
    let (slots, nodes): (Vec<usize>, Vec<&Node>) = nodes.unzip();
    let decision = cluster.place(request, &slots);
    decision.ranking().map(|position| nodes[position].name.clone()).collect()
}
