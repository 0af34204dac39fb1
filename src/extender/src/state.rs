//! What an extender remembers, and how it answers: pure but for the clock, which is an argument.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use transship_api::{MigrationPolicy, names};
use transship_core::placement::{Container, Prepared, kubernetes};

use crate::answer::{Answer, Places};
use crate::catalog::Catalog;
use crate::cluster::Cluster;
use crate::expected::Expected;
use crate::waiting::{PodName, Waiting};
use crate::wire::{BEST, Score};

/// A pod that is to be placed.
#[derive(Debug)]
pub struct Question {
    /// Its names.
    pub pod: PodName,
    /// What it will be on a node; its id is the pod's UID.
    pub container: Container,
    /// What it asks for.
    pub request: Prepared,
    /// What it says of its scheduling: the message of its condition PodScheduled.
    pub said: Option<String>,
}

/// The cluster, and what was answered.
#[derive(Debug, Default)]
pub struct State {
    /// Both kinds of node.
    pub catalog: Catalog,
    /// Policies, by `namespace/name`.
    pub policies: BTreeMap<String, MigrationPolicy>,
    /// Claims whose volume one node alone can mount at a time, as `namespace/name`.
    pub for_one_node: HashSet<String>,
    /// The cluster, as far as it matters to decisions.
    pub cluster: Cluster,
    /// Pods that Migrations are to bring.
    pub expected: Expected,
    /// Pods that were refused.
    pub waiting: Waiting,
    /// UID of the pod that was asked about last, and the nodes that it can use.
    last: Option<(String, Places)>,
    /// Swarm's overcommit in whole percents: 0, or negative to keep a reserve.
    overcommit: i64,
}

impl State {
    /// Nothing is known yet.
    pub fn new(overcommit: i64) -> Self {
        Self { overcommit, ..Self::default() }
    }

    /// The catalogue says something else of a node than before.
    pub fn node_changed(&mut self, name: &str) {
        let (core, ours) = self.catalog.get(name);
        match core {
            Some(core) => self.cluster.set_node(kubernetes::node(core, ours, self.overcommit)),
            None => self.cluster.remove_node(name),
        }
    }

    /// Decides among the nodes that kube-scheduler offers, and remembers the choice.
    pub fn filter<'a>(
        &mut self,
        question: Question,
        names: &'a [&'a str],
        now: Instant,
    ) -> Answer<'a> {
        self.cluster.expire(now);
        // Asked again: nothing has come of a former choice.
        self.cluster.release(&question.pod.uid);
        let made_for = question.container.labels.get(names::MIGRATION_LABEL);
        self.expected.meet(&question.pod.uid, made_for, &mut self.cluster);
        let answer = decide(&self.cluster, &question.request, names);
        let uid = question.pod.uid.clone();
        match answer.best() {
            Some(best) => {
                self.waiting.remove(&uid);
                self.cluster.assume(best, question.container, question.said, now);
            }
            None => {
                self.waiting.add(question.pod, question.request, names, &self.cluster, now);
            }
        }
        self.last = Some((uid, answer.places()));
        answer
    }

    /// Remembers that nothing can be decided for a pod, as what it asks for cannot be read.
    pub fn refuse(&mut self, pod: PodName, now: Instant) {
        self.cluster.release(&pod.uid);
        self.waiting.add_unread(pod, now);
    }

    /// Scores the nodes that were left of those that [`State::filter`] gave back. Where another
    /// extender removed the winner, the choice is corrected.
    pub fn prioritize<'a>(
        &mut self,
        question: Question,
        names: &'a [&'a str],
        now: Instant,
    ) -> Vec<Score<'a>> {
        let uid = &question.pod.uid;
        if self.last.as_ref().is_none_or(|(known, _)| known != uid) {
            self.cluster.release(uid);
            let places = decide(&self.cluster, &question.request, names).places();
            self.last = Some((uid.clone(), places));
        }
        let scores: Vec<Score<'a>> =
            self.last.iter().flat_map(|(_, places)| places.scores(names)).collect();
        if let Some(best) = scores.iter().find(|score| score.score == BEST) {
            self.cluster.assume(best.host, question.container, question.said, now);
        }
        scores
    }

    /// The pod is gone.
    pub fn forget(&mut self, uid: &str) {
        self.cluster.remove(uid);
        self.waiting.remove(uid);
    }

    /// Pods whose scheduler is to look at them again.
    pub fn due(&mut self, now: Instant) -> Vec<PodName> {
        self.cluster.expire(now);
        self.waiting.due(&self.cluster, now)
    }
}

fn decide<'a>(cluster: &Cluster, request: &Prepared, names: &'a [&'a str]) -> Answer<'a> {
    let mut slots = Vec::with_capacity(names.len());
    let positions = names
        .iter()
        .map(|name| {
            slots.push(cluster.find(name)?);
            Some(slots.len() - 1)
        })
        .collect();
    Answer::new(names, positions, cluster.place(request, &slots))
}
