//! What every reconciliation shares: clients, caches, agents, and what is remembered between two
//! looks at the same migration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node as CoreNode;
use kube::Client;
use kube::runtime::reflector::Store;
use transship_api as api;
use transship_core::facts::PodFacts;
use transship_core::placement::Pending;
use transship_protocol::Signatures;

use crate::agents::Agents;
use crate::controllers::migration::watch_sides::Registry;
use crate::events::Events;
use crate::metrics::Metrics;

/// A webhook that cannot be called for no longer than this may be restarting.
const RESTARTS: Duration = Duration::from_secs(2);
/// What an agent could not look at may be seen within this time: its node is busy, or something restarts there.
const PASSING: Duration = Duration::from_secs(15);

/// Shared by all reconciliations.
pub struct Context {
    /// Talks to the API server.
    pub client: Client,
    /// Namespace of operator and agents.
    pub namespace: String,
    /// Cluster nodes.
    pub core_nodes: Store<CoreNode>,
    /// Our Nodes.
    pub nodes: Store<api::Node>,
    /// All MigrationPolicies.
    pub policies: Store<api::MigrationPolicy>,
    /// All Migrations.
    pub migrations: Store<api::Migration>,
    /// The agents.
    pub agents: Agents,
    /// What sides say.
    pub sides: Registry,
    /// Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Swarm's overcommit by which nodes are measured, in percent: 0, or negative to keep a part of each
    /// node free.
    pub overcommit_percent: i64,
    /// Held while a node is chosen: one at a time, each knowing what the others have chosen.
    pub choosing: tokio::sync::Mutex<()>,
    /// What is remembered by Migration UID; nothing here is needed to go on after a restart.
    pub memory: Memory,
}

/// Notes about one migration.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Facts about the source pod, found at admission.
    pub facts: Option<Arc<PodFacts>>,
    /// The pod where it is to go, from the choice of the node to the migration's end.
    pub pending: Option<Pending>,
    /// A step failed for good.
    pub failure: Option<(&'static str, String)>,
    /// Errors in a row, for the pause before the next try.
    pub errors: u32,
    /// Why the API server last refused the pod that is to be made again, or its manifest.
    pub refused: Option<String>,
    /// Since when it has refused, with no look that succeeded between.
    pub refusing_since: Option<Instant>,
    /// Since when nothing is in the pod's way but that an agent could not look at everything, and when it was
    /// so last.
    pub unseen: Option<(Instant, Instant)>,
    /// The target's signs of life since the Commit was first seen.
    pub signatures: Signatures,
}

impl Notes {
    /// Notes a refusal. One that may be passing counts when it has lasted for some seconds.
    pub fn refuse(&mut self, why: String, is_passing: bool, now: Instant) {
        let since = *self.refusing_since.get_or_insert(now);
        if !is_passing || now.duration_since(since) >= RESTARTS {
            self.refused = Some(why);
        }
    }

    /// Whether what an agent could not look at may be seen yet. What was so long before is over, and begins anew.
    pub fn may_be_seen(&mut self, now: Instant) -> bool {
        let lasting = self.unseen.filter(|(_, last)| now.duration_since(*last) < 2 * PASSING);
        let since = lasting.map_or(now, |(since, _)| since);
        self.unseen = Some((since, now));
        now.duration_since(since) < PASSING
    }

    /// A look has succeeded.
    pub fn succeed(&mut self) {
        self.errors = 0;
        self.refused = None;
        self.refusing_since = None;
    }
}

/// Notes by Migration UID.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<HashMap<String, Notes>>>);

impl Memory {
    /// A copy of the notes.
    pub fn get(&self, uid: &str) -> Notes {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.get(uid).cloned().unwrap_or_default()
    }

    /// Changes the notes and gives what `change` gives.
    pub fn note<T>(&self, uid: &str, change: impl FnOnce(&mut Notes) -> T) -> T {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(notes.entry(uid.to_owned()).or_default())
    }

    /// What all migrations but this one are to bring somewhere. One that was deleted while it was looked at may have
    /// left a note, so each has to be `there`.
    pub fn pending_of_others(&self, uid: &str, there: impl Fn(&str) -> bool) -> Vec<Pending> {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = notes.iter().filter(|(other, _)| *other != uid && there(other));
        others.filter_map(|(_, notes)| notes.pending.clone()).collect()
    }

    /// Forgets a migration.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_are_to_bring_is_known_until_they_are_forgotten_or_gone() {
        let memory = Memory::default();
        for uid in ["a", "b", "c", "deleted"] {
            let pending =
                Pending { migration: uid.into(), node: "node-b".into(), pod: Arc::default() };
            memory.note(uid, |notes| notes.pending = Some(pending));
        }
        memory.note("d", Notes::succeed);
        memory.forget("c");
        let others = memory.pending_of_others("a", |uid| uid != "deleted");
        assert_eq!(others.iter().map(|p| p.migration.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn what_an_agent_could_not_look_at_is_awaited_for_a_while() {
        let (mut notes, begun) = (Notes::default(), Instant::now());
        let mut at = |after: Duration| notes.may_be_seen(begun + after);
        assert!(at(Duration::from_secs(1)));
        assert!(at(PASSING));
        assert!(!at(PASSING + Duration::from_secs(1)));
        assert!(at(4 * PASSING), "this is another time");
    }

    #[test]
    fn a_webhook_that_restarts_has_refused_nothing_until_that_lasts() {
        let (mut notes, begun) = (Notes::default(), Instant::now());
        let mut refuse = |is_passing: bool, after: Duration| {
            notes.refuse("no endpoints".into(), is_passing, begun + after);
            notes.refused.take().is_some()
        };
        assert!(!refuse(true, Duration::ZERO));
        assert!(!refuse(true, Duration::from_secs(1)));
        assert!(refuse(false, Duration::from_secs(1)));
        assert!(refuse(true, RESTARTS));
        notes.succeed();
        notes.refuse("no endpoints".into(), true, begun + RESTARTS);
        assert_eq!(notes.refused, None);
    }
}
