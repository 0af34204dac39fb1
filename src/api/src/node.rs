//! `Node` of our group: what one cluster node offers for moving pods, under the same name as
//! Kubernetes' own node. Its spec belongs to people, its status to the node's agent; only the
//! conditions `Fenced` and `Listed`, `Ready` of a node that stopped reporting, failure count and
//! health are the operator's.

// Parts of different columns and rules look alike to the lint.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names;
use crate::quantity::{self, ParseQuantityError};
use crate::validation;

/// What people want of the node.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "transship.dev",
    version = "v1alpha1",
    kind = "Node",
    plural = "nodes",
    singular = "node",
    shortname = "tn",
    category = "transship",
    derive = "PartialEq",
    cel,
    status = "NodeStatus",
    doc = "Node says what one cluster node offers for moving pods. Its name is the cluster node's; the agent of that node makes it.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "CRIU", type_ = "string", json_path = ".status.criu.version"),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernel", priority = 1),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.runtime.version"),
    printcolumn(
        name = "Active",
        type_ = "string",
        json_path = ".status.activeMigrations[*].role",
        description = "Roles in migrations under way"
    ),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.agent.version",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// Move no pods to this node.
    #[serde(default)]
    pub unschedulable: bool,
    /// Labels for placement, over those of the cluster node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(k, k.size() <= 317 && self[k].size() <= 63)").message("write label keys of at most 317 and values of at most 63 characters"))]
    pub labels: BTreeMap<String, String>,
    /// How many migrations may use the node at a time, as source and target together.
    #[serde(default = "default_max_parallel_migrations")]
    #[schemars(range(min = 0, max = 64))]
    pub max_parallel_migrations: i32,
    /// The most bytes per second that the node's migrations send together, as a quantity.
    #[serde(default = "default_bandwidth_limit", deserialize_with = "validation::read_text")]
    #[schemars(schema_with = "validation::text_or_number")]
    #[x_kube(validation = validation::rate())]
    pub bandwidth_limit: String,
}

fn default_max_parallel_migrations() -> i32 {
    2
}

fn default_bandwidth_limit() -> String {
    "1Gi".to_owned()
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            unschedulable: false,
            labels: BTreeMap::new(),
            max_parallel_migrations: default_max_parallel_migrations(),
            bandwidth_limit: default_bandwidth_limit(),
        }
    }
}

impl Node {
    /// Whether another installation than `own` asked the host side to go: the Nodes outlive the chart, and a new
    /// installation must not be undone by the end of the former. What people ask for stands.
    pub fn is_asked_by_another(&self, own: &str) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(names::UNINSTALL_BY)).is_some_and(|by| by != own)
    }
}

impl NodeSpec {
    /// `bandwidthLimit` in bytes per second.
    pub fn bandwidth_limit(&self) -> Result<u64, ParseQuantityError> {
        quantity::parse_bytes(&self.bandwidth_limit)
    }
}

/// The CRIU that restores and dumps on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Criu {
    /// Version, such as 4.2.1.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub version: String,
    /// Features of CRIU and kernel that were probed and found, such as pagemap_scan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub features: Vec<String>,
    /// Path of the program on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub path: String,
    /// What locks the network during a dump, as chosen: nftables, iptables or skip.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub network_lock: String,
    /// How changed pages are found: PagemapScan, SoftDirty or None.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub page_tracking: String,
}

/// The CPU, as far as restored programs may depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Vendor, such as AuthenticAMD.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub vendor: String,
    /// Model name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub model: String,
    /// Instruction set features, as the kernel lists them, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub features: Vec<String>,
}

/// The container runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Name, such as containerd.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub name: String,
    /// Version, such as 2.1.9.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub version: String,
    /// Version of runc behind the wrapper.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub runc: String,
    /// What keeps the containers' files, as the runtime calls it, such as overlayfs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub snapshotter: String,
    /// cgroup version, 1 or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_version: Option<i32>,
}

/// Amounts as Docker Swarm counts them: sums of requests over all pods that exist on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Amounts {
    /// Thousandths of a CPU.
    #[serde(default)]
    pub cpu_millis: i64,
    /// Bytes.
    #[serde(default)]
    pub memory_bytes: i64,
    /// Containers (pods, in Swarm's terms), finished ones that still exist included. In a
    /// capacity: how many the node takes.
    #[serde(default)]
    pub containers: i64,
}

/// The side of a migration that a node takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    /// The pod comes from here.
    Source,
    /// The pod goes here.
    Target,
}

/// Where a holder stands. Published so that a Migration that vanished can still be brought to an
/// end: both sides see what the other has promised or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HolderState {
    /// Nothing is frozen or restored yet. The side may abort by itself.
    Preparing,
    /// Source: all containers are frozen. The side may abort by itself.
    Frozen,
    /// Target: all containers are restored and frozen. The side may abort by itself.
    Held,
    /// The side has promised to obey the decision.
    Voted,
    /// Target: the decision is Commit; thawing has begun, and it is not known whether a task ran.
    Thawing,
    /// Target: the tasks ran.
    Resumed,
    /// Target: the tasks were ended and had never been let run. Final.
    NeverThawed,
    /// Source: thawed after an abort or a resolution. Final.
    SourceResumed,
    /// Source: ended after the commit. Final.
    Moved,
    /// Target: the tasks were ended, and it is not known that none of them ran. Final.
    Aborted,
    /// Target of a sequential hand-over: restored on trial and ended; the state is kept. Final.
    Kept,
    /// The node restarted while tasks were frozen: they are gone.
    Rebooted,
}

/// What this node's holder publishes about one migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActiveMigration {
    /// UID of the Migration.
    #[serde(rename = "migrationUID")]
    #[schemars(length(max = 64))]
    pub migration_uid: String,
    /// `namespace/name` of the Migration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 320))]
    pub migration: String,
    /// The side that this node takes.
    pub role: Role,
    /// UID of the pod on this side.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Where the holder stands.
    pub state: HolderState,
    /// Whether the side has voted; stays true afterwards.
    #[serde(default)]
    pub voted: bool,
    /// Target: when its tasks were thawed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<MicroTime>,
    /// Since when the holder is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<MicroTime>,
    /// What went wrong, if anything, in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// State of what the agent installs on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HostSideState {
    /// Nothing is installed.
    #[default]
    Absent,
    /// Being put in place.
    Installing,
    /// In place and in use by the runtime.
    Installed,
    /// Being removed.
    Removing,
    /// Removed; a link to runc stays while old shims live.
    Removed,
    /// Installing failed; the Ready condition says why.
    Failed,
}

/// The agent and what it put on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub version: String,
    /// `host:port` of its gRPC service for the operator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 261))]
    pub address: String,
    /// `host:port` where it takes the data of other agents.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 261))]
    pub data_address: String,
    /// Version of what is installed on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub host_side_version: String,
    /// State of what is installed on the host.
    #[serde(default)]
    pub host_side_state: HostSideState,
}

/// What the node offers and does. Written by the node's agent; see the module for the exceptions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready (summary), CriuReady, RuntimeReady, StoreReachable, StateKept, Fenced, Listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// CRIU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criu: Option<Criu>,
    /// Kernel release, such as 6.18.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub kernel: Option<String>,
    /// CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Architecture as Kubernetes names it, such as amd64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub arch: Option<String>,
    /// Container runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Which boot of the kernel this is; another value means that every frozen task is gone.
    #[serde(rename = "bootID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// When the agent last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_time: Option<MicroTime>,
    /// Failures in a row, as Swarm counts them: thirds of the time to live without a heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_count: Option<i32>,
    /// 0 to 100, as Swarm computes it; 0 takes no pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub health_indicator: Option<i32>,
    /// What the node has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Amounts>,
    /// What is used of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Amounts>,
    /// Migrations in which this node has a part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["migrationUID".into()]))]
    pub active_migrations: Vec<ActiveMigration>,
    /// Length of activeMigrations, for the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_count: Option<i32>,
    /// The agent and what it put on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
}

impl NodeStatus {
    /// Sets `activeMigrations`, and `activeCount` with it.
    pub fn set_active(&mut self, active: Vec<ActiveMigration>) {
        self.active_count = Some(i32::try_from(active.len()).unwrap_or(i32::MAX));
        self.active_migrations = active;
    }

    /// Whether the agent has told anything. Where a node registers anew its object is empty at first.
    pub fn has_told(&self) -> bool {
        self.active_count.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_migrations_has_told_so_and_an_empty_status_nothing() {
        let mut status = NodeStatus::default();
        assert!(!status.has_told());
        status.set_active(Vec::new());
        assert!(status.has_told());
    }

    #[test]
    fn a_request_ends_with_the_installation_that_it_was_made_for() {
        for (asked_by, former) in [(Some("uid-1"), true), (Some("uid-2"), false), (None, false)] {
            let mut node = Node::new("node-a", NodeSpec::default());
            let annotations = node.metadata.annotations.get_or_insert_default();
            annotations.insert(names::UNINSTALL.into(), "true".into());
            if let Some(by) = asked_by {
                annotations.insert(names::UNINSTALL_BY.into(), by.into());
            }
            assert_eq!(node.is_asked_by_another("uid-2"), former, "{asked_by:?}");
        }
    }

    #[test]
    fn a_node_is_accepted_or_answered_with_what_to_write() {
        Node::new("node-a", NodeSpec::default()).validate_cel().unwrap();
        for (limit, accepted) in [
            ("500M", true),
            ("1.5Gi", true),
            ("0", false),
            ("fast", false),
            ("1GB", false),
            ("10m", false),
        ] {
            let node = Node::new(
                "node-a",
                NodeSpec { bandwidth_limit: limit.into(), ..NodeSpec::default() },
            );
            assert_eq!(node.validate_cel().is_ok(), accepted, "{limit}");
        }
        let labels = BTreeMap::from([("region".to_owned(), "x".repeat(64))]);
        let node = Node::new("node-a", NodeSpec { labels, ..NodeSpec::default() });
        assert!(node.validate_cel().is_err());
    }

    #[test]
    fn an_empty_manifest_means_the_defaults() {
        let spec: NodeSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(spec, NodeSpec::default());
        assert_eq!(spec.bandwidth_limit(), Ok(1 << 30));
    }

    #[test]
    fn names_with_uid_and_id_are_spelled_as_kubernetes_spells_them() {
        let status = NodeStatus {
            boot_id: Some("b".into()),
            active_migrations: vec![ActiveMigration {
                migration_uid: "m".into(),
                migration: "default/web".into(),
                role: Role::Target,
                pod_uid: "p".into(),
                state: HolderState::Voted,
                voted: true,
                resumed_at: None,
                since: None,
                message: String::new(),
            }],
            ..NodeStatus::default()
        };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["bootID"], "b");
        assert_eq!(json["activeMigrations"][0]["migrationUID"], "m");
        assert_eq!(json["activeMigrations"][0]["podUID"], "p");
        assert_eq!(json["activeMigrations"][0]["state"], "Voted");
    }
}
