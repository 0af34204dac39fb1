//! What each kind of object means to the state.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Node as CoreNode, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use transship_api as api;
use transship_core::placement::{kubernetes, volumes};

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
                state.cluster.bind(node, kubernetes::container(self));
            }
            None => state.cluster.unbound(&uid, mapping::said(self)),
        }
    }

    fn remove(&self, state: &mut State) {
        state.forget(&self.key());
    }

    fn retain(keys: &HashSet<String>, state: &mut State) {
        state.cluster.retain_pods(keys);
        state.waiting.retain(keys);
    }
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
