//! Both kinds of node by name, without what no decision looks at, so that a heartbeat is no change.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Node as CoreNode, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use transship_api as api;
use transship_api::conditions;

/// The nodes.
#[derive(Debug, Default)]
pub struct Catalog {
    core: HashMap<String, CoreNode>,
    ours: HashMap<String, api::Node>,
}

impl Catalog {
    /// What is known of a name.
    pub fn get(&self, name: &str) -> (Option<&CoreNode>, Option<&api::Node>) {
        (self.core.get(name), self.ours.get(name))
    }

    /// Takes a cluster node; answers whether anything of use has changed.
    pub fn set_core(&mut self, node: &CoreNode) -> bool {
        let name = node.name_any();
        let status = node.status.as_ref();
        let trimmed = CoreNode {
            metadata: metadata(&node.metadata),
            spec: None,
            status: Some(NodeStatus {
                allocatable: status.and_then(|s| s.allocatable.clone()),
                node_info: status.and_then(|s| s.node_info.clone()),
                images: status.and_then(|s| s.images.clone()),
                ..NodeStatus::default()
            }),
        };
        if self.core.get(&name) == Some(&trimmed) {
            return false;
        }
        self.core.insert(name, trimmed);
        true
    }

    /// Takes one of our Nodes; answers whether anything of use has changed.
    pub fn set_ours(&mut self, node: &api::Node) -> bool {
        let name = node.name_any();
        let status = node.status.as_ref();
        let ready = status.map(|s| &s.conditions).into_iter().flatten();
        let runtime = status.and_then(|s| s.runtime.as_ref());
        let mut trimmed = api::Node::new(&name, node.spec.clone());
        trimmed.status = Some(api::NodeStatus {
            conditions: ready.filter(|c| c.type_ == conditions::READY).cloned().collect(),
            health_indicator: status.and_then(|s| s.health_indicator),
            runtime: runtime.map(|runtime| api::node::Runtime {
                snapshotter: runtime.snapshotter.clone(),
                ..api::node::Runtime::default()
            }),
            ..api::NodeStatus::default()
        });
        if self.ours.get(&name) == Some(&trimmed) {
            return false;
        }
        self.ours.insert(name, trimmed);
        true
    }

    /// The cluster node is gone.
    pub fn remove_core(&mut self, name: &str) {
        self.core.remove(name);
    }

    /// Our Node is gone.
    pub fn remove_ours(&mut self, name: &str) {
        self.ours.remove(name);
    }

    /// Names of cluster nodes that are not among `names`.
    pub fn core_besides(&self, names: &HashSet<String>) -> Vec<String> {
        self.core.keys().filter(|name| !names.contains(*name)).cloned().collect()
    }

    /// Names of our Nodes that are not among `names`.
    pub fn ours_besides(&self, names: &HashSet<String>) -> Vec<String> {
        self.ours.keys().filter(|name| !names.contains(*name)).cloned().collect()
    }
}

fn metadata(of: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: of.name.clone(),
        uid: of.uid.clone(),
        labels: of.labels.clone(),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;

    #[test]
    fn a_heartbeat_is_no_change() {
        let mut catalog = Catalog::default();
        let mut node = api::Node::new("node-a", api::NodeSpec::default());
        assert!(catalog.set_ours(&node));
        node.status = Some(api::NodeStatus::default());
        node.status.as_mut().unwrap().heartbeat_time = Some(MicroTime(Timestamp::UNIX_EPOCH));
        node.metadata.resource_version = Some("2".into());
        assert!(!catalog.set_ours(&node));
        node.status.as_mut().unwrap().health_indicator = Some(67);
        assert!(catalog.set_ours(&node));
        let runtime = api::node::Runtime { snapshotter: "zfs".into(), ..Default::default() };
        node.status.as_mut().unwrap().runtime = Some(runtime);
        assert!(catalog.set_ours(&node), "it is a label");
    }

    #[test]
    fn a_label_is_a_change_and_a_condition_is_none() {
        let mut catalog = Catalog::default();
        let mut node = CoreNode::default();
        node.metadata.name = Some("node-a".into());
        assert!(catalog.set_core(&node));
        node.status = Some(NodeStatus { conditions: Some(vec![]), ..NodeStatus::default() });
        node.metadata.resource_version = Some("2".into());
        assert!(!catalog.set_core(&node));
        node.labels_mut().insert("region".into(), "us".into());
        assert!(catalog.set_core(&node));
        assert_eq!(catalog.core_besides(&HashSet::new()), ["node-a"]);
    }
}
