//! What each kind of object means to the state.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Node as CoreNode, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use transship_api::{self as api, names};
use transship_core::placement::{kubernetes, under_way, volumes};

use crate::mapping;
use crate::state::State;
use crate::waiting::Waiting;

/// A kind of object that is followed.
pub trait Source {
    /// What tells it from others of its kind.
    fn key(&self) -> String;
    /// It is new, or has changed.
    fn apply(&self, state: &mut State);
    /// It is gone.
    fn remove(&self, state: &mut State);
    /// Those that are not among `keys` are gone.
    fn retain(keys: &HashSet<String>, state: &mut State);
}

impl Source for Pod {
    fn key(&self) -> String {
        self.uid().unwrap_or_default()
    }

    fn apply(&self, state: &mut State) {
        let uid = self.key();
        let node = self.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        match node.filter(|node| !node.is_empty()) {
            Some(node) => {
                state.waiting.remove(&uid);
                let container = kubernetes::container(self);
                let has_ended = container.ended;
                state.cluster.bind(node, container);
                let (expected, cluster) = (&mut state.expected, &mut state.cluster);
                match has_ended {
                    true => expected.lose(&uid, made_for(self), cluster),
                    false => expected.meet(&uid, made_for(self), cluster),
                }
            }
            None => state.cluster.unbound(&uid, mapping::said(self)),
        }
    }

    fn remove(&self, state: &mut State) {
        let uid = self.key();
        state.forget(&uid);
        state.expected.lose(&uid, made_for(self), &mut state.cluster);
    }

    fn retain(keys: &HashSet<String>, state: &mut State) {
        state.cluster.retain_pods(keys);
        state.expected.retain_pods(keys, &mut state.cluster);
        state.waiting.retain(keys);
    }
}

/// UID of the Migration that the pod was made for.
fn made_for(pod: &Pod) -> Option<&str> {
    pod.labels().get(names::MIGRATION_LABEL).map(String::as_str)
}

impl Source for PersistentVolumeClaim {
    fn key(&self) -> String {
        format!("{}/{}", self.namespace().unwrap_or_default(), self.name_any())
    }

    fn apply(&self, state: &mut State) {
        let key = self.key();
        let is_news = match volumes::is_for_one_node(self) {
            true => state.for_one_node.insert(key.clone()),
            false => state.for_one_node.remove(&key),
        };
        if is_news {
            state.waiting.reconsider(namespace_of(&key));
        }
    }

    fn remove(&self, state: &mut State) {
        let key = self.key();
        if state.for_one_node.remove(&key) {
            state.waiting.reconsider(namespace_of(&key));
        }
    }

    fn retain(keys: &HashSet<String>, state: &mut State) {
        let State { for_one_node, waiting, .. } = state;
        for_one_node.retain(|key| stays(key, keys, waiting));
    }
}

impl Source for CoreNode {
    fn key(&self) -> String {
        self.name_any()
    }

    fn apply(&self, state: &mut State) {
        if state.catalog.set_core(self) {
            state.node_changed(&self.key());
        }
    }

    fn remove(&self, state: &mut State) {
        state.catalog.remove_core(&self.key());
        state.node_changed(&self.key());
    }

    fn retain(keys: &HashSet<String>, state: &mut State) {
        for name in state.catalog.core_besides(keys) {
            state.catalog.remove_core(&name);
            state.node_changed(&name);
        }
    }
}

impl Source for api::Node {
    fn key(&self) -> String {
        self.name_any()
    }

    fn apply(&self, state: &mut State) {
        if state.catalog.set_ours(self) {
            state.node_changed(&self.key());
        }
    }

    fn remove(&self, state: &mut State) {
        state.catalog.remove_ours(&self.key());
        state.node_changed(&self.key());
    }

    fn retain(keys: &HashSet<String>, state: &mut State) {
        for name in state.catalog.ours_besides(keys) {
            state.catalog.remove_ours(&name);
            state.node_changed(&name);
        }
    }
}

impl Source for api::MigrationPolicy {
    fn key(&self) -> String {
        format!("{}/{}", self.namespace().unwrap_or_default(), self.name_any())
    }

    fn apply(&self, state: &mut State) {
        let key = self.key();
        // Listed again, it says nothing new.
        if state.policies.get(&key).is_none_or(|known| known.spec != self.spec) {
            state.waiting.reconsider(namespace_of(&key));
        }
        state.policies.insert(key, self.clone());
    }

    fn remove(&self, state: &mut State) {
        let key = self.key();
        if state.policies.remove(&key).is_some() {
            state.waiting.reconsider(namespace_of(&key));
        }
    }

    fn retain(keys: &HashSet<String>, state: &mut State) {
        let State { policies, waiting, .. } = state;
        policies.retain(|key, _| stays(key, keys, waiting));
    }
}

impl Source for api::Migration {
    fn key(&self) -> String {
        self.uid().unwrap_or_default()
    }

    fn apply(&self, state: &mut State) {
        let (uid, cluster) = (self.key(), &mut state.cluster);
        match under_way(self) {
            Some((pod, node)) => state.expected.expect(&uid, pod, node, cluster),
            None => state.expected.give_up(&uid, cluster),
        }
    }

    fn remove(&self, state: &mut State) {
        state.expected.give_up(&self.key(), &mut state.cluster);
    }

    fn retain(keys: &HashSet<String>, state: &mut State) {
        state.expected.retain(keys, &mut state.cluster);
    }
}

/// Whether what is known by a key is still there; if not, pods of its namespace that were refused are
/// asked about again.
fn stays(key: &str, keys: &HashSet<String>, waiting: &mut Waiting) -> bool {
    let stays = keys.contains(key);
    if !stays {
        waiting.reconsider(namespace_of(key));
    }
    stays
}

/// Of a key `namespace/name`.
fn namespace_of(key: &str) -> &str {
    key.split_once('/').map_or("", |(namespace, _)| namespace)
}
