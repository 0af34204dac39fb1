//! `Migration`: one attempt to move one pod to another node.
//!
//! The spec never changes. The status is written by the operator alone; `decision`, `resumedAt`
//! and `resolution` carry the commit protocol and are written once, which the API server enforces
//! with rules at the root of the kind.

// Parts of different columns and rules look alike to the lint.
#![allow(clippy::duplicated_attributes)]

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::{self, ParseDurationError};
use crate::quantity::{self, ParseQuantityError};
pub use crate::step::{Phase, Step, phase};
use crate::validation;

/// How memory is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// The operator chooses by the forecast.
    #[default]
    Auto,
    /// Rounds of copying while the application runs, then a short freeze for the rest.
    PreCopy,
    /// A short freeze without memory; pages follow when they are touched.
    PostCopy,
    /// Rounds of copying, then what is missing follows when it is touched.
    Hybrid,
    /// Everything is copied while frozen.
    StopAndCopy,
    /// A graceful stop; files and volumes move, the application starts afresh.
    Cold,
}

/// What becomes of the pod's address and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Network {
    /// Preserve where the network allows it, else close.
    #[default]
    Auto,
    /// The pod's address and its TCP connections are kept, or preflight fails.
    Preserve,
    /// The pod gets a new address; its connections are closed.
    Close,
}

/// How the placement engine ranks the nodes that are left by the filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The least loaded node.
    #[default]
    Spread,
    /// The most loaded node that has room.
    Binpack,
    /// Any node.
    Random,
}

/// Conditions for the target node, in Docker Swarm's language.
// Expressions have no rule here: the API server asks rules before webhooks, and the operator's says in
// Swarm's words what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// How the nodes that are left are ranked: spread, binpack or random. Without it, the pod's
    /// annotation or the operator's default (spread) counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// What the node must be, such as "region==us*", "node!=node-a" or "disk==~ssd" (preferred).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub constraints: Vec<String>,
    /// What must or must not run on the node, such as "container!=web*" or "image==redis".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub affinities: Vec<String>,
}

/// What is to be moved, and how.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "transship.dev",
    version = "v1alpha1",
    kind = "Migration",
    plural = "migrations",
    namespaced,
    shortname = "mig",
    category = "transship",
    derive = "PartialEq",
    cel,
    status = "MigrationStatus",
    doc = "Migration moves the containers of one running pod to another node. It is one attempt: its spec never changes, and another try is another Migration. Wait for its condition Succeeded. Deleting it before the commit cancels it.",
    validation = validation::status_written_once("decision"),
    validation = validation::status_written_once("resumedAt"),
    validation = validation::status_written_once("resolution"),
    validation = only_one_outcome(),
    validation = outcome_needs_commit(),
    selectable = ".spec.podName",
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.podName", description = "Pod that moves"),
    printcolumn(name = "Source", type_ = "string", json_path = ".status.source.node", description = "Node it comes from"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target.node", description = "Node it goes to"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".status.chosenMode", description = "Mode chosen by the operator"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where it stands"),
    printcolumn(name = "Succeeded", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].status", description = "Unknown while it runs"),
    printcolumn(name = "Downtime", type_ = "string", json_path = ".status.downtime", description = "From the freeze to the thaw"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Succeeded\")].reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    cel,
    validation = Rule::new("self == oldSelf").message("spec is immutable; create another Migration instead"),
    validation = validation::shorter("maxDowntime", "timeout", "300ms with 10m")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationSpec {
    /// Name of the pod to move, in the Migration's own namespace.
    #[schemars(length(max = 253))]
    #[x_kube(validation = validation::pod_name())]
    pub pod_name: String,
    /// Node to move the pod to. Without it the placement engine chooses; with it, that one node is
    /// checked against `placement`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = validation::node_name())]
    pub target_node: Option<String>,
    /// How the pod moves: Auto, PreCopy, PostCopy, Hybrid, StopAndCopy, or Cold (a graceful stop and a
    /// fresh start with its files).
    #[serde(default)]
    pub mode: Mode,
    /// How long the application may stand still. Auto and PreCopy work towards it, and say so
    /// when it cannot be met.
    #[serde(default = "default_max_downtime", deserialize_with = "validation::read_text")]
    #[schemars(schema_with = "validation::text_or_number")]
    #[x_kube(validation = validation::duration("300ms"))]
    pub max_downtime: String,
    /// What becomes of address and connections: Auto, Preserve or Close.
    #[serde(default)]
    pub network: Network,
    /// The most bytes per second that are sent between the nodes, as a quantity such as 200Mi.
    /// Without it the limits of the two Nodes count alone.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "validation::read_optional_text"
    )]
    #[schemars(schema_with = "validation::optional_text_or_number")]
    #[x_kube(validation = validation::rate())]
    pub bandwidth_limit: Option<String>,
    /// How long it may take from its creation to the commit; then it is rolled back.
    #[serde(default = "default_timeout", deserialize_with = "validation::read_text")]
    #[schemars(schema_with = "validation::text_or_number")]
    #[x_kube(validation = validation::duration("10m"))]
    pub timeout: String,
    /// Conditions for the target node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Only check and forecast; touch nothing.
    #[serde(default)]
    pub dry_run: bool,
}

fn default_max_downtime() -> String {
    "300ms".to_owned()
}

fn default_timeout() -> String {
    "10m".to_owned()
}

/// At the root: `resumedAt` (the target ran) and `resolution` (the source goes on) exclude each
/// other.
fn only_one_outcome() -> Rule {
    Rule::new("!has(self.status) || !(has(self.status.resumedAt) && has(self.status.resolution))")
        .message("leave out status.resolution where status.resumedAt is written: the target runs")
}

/// At the root: both belong to a commit.
fn outcome_needs_commit() -> Rule {
    Rule::new(
        "!has(self.status) || !(has(self.status.resumedAt) || has(self.status.resolution)) || \
         (has(self.status.decision) && self.status.decision == 'Commit')",
    )
    .message("write status.decision Commit before status.resumedAt or status.resolution")
}

impl MigrationSpec {
    /// A spec with every default, as the API server would fill it in.
    pub fn for_pod(pod_name: impl Into<String>) -> Self {
        Self {
            pod_name: pod_name.into(),
            target_node: None,
            mode: Mode::default(),
            max_downtime: default_max_downtime(),
            network: Network::default(),
            bandwidth_limit: None,
            timeout: default_timeout(),
            placement: None,
            dry_run: false,
        }
    }

    /// `maxDowntime` as a duration.
    pub fn max_downtime(&self) -> Result<Duration, ParseDurationError> {
        duration::parse(&self.max_downtime)
    }

    /// `timeout` as a duration.
    pub fn timeout(&self) -> Result<Duration, ParseDurationError> {
        duration::parse(&self.timeout)
    }

    /// `bandwidthLimit` in bytes per second.
    pub fn bandwidth_limit(&self) -> Result<Option<u64>, ParseQuantityError> {
        self.bandwidth_limit.as_deref().map(quantity::parse_bytes).transpose()
    }
}

/// The outcome of the vote. Written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Decision {
    /// The target runs, the source ends.
    Commit,
    /// The target ends, the source runs.
    Abort,
}

/// What follows when the target was lost after the commit. Written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Resolution {
    /// The source runs on.
    SourceResumes,
}

/// In which order a pod goes from one node to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum HandOver {
    /// The target pod is restored beside the source pod, under another name.
    Overlap,
    /// The source pod ends before the pod is made again under its own name, from its state on disk:
    /// for pods whose name or volume is exclusive.
    Sequential,
}

/// One side of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Name of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub node: String,
    /// Name of the pod. Empty until it is made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// UID of the pod. Empty until it is made.
    #[serde(rename = "podUID", default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub pod_uid: String,
}

/// One round of copying memory while the application runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Counts from 1.
    pub index: i32,
    /// Pages sent.
    pub pages: i64,
    /// Bytes sent, before compression.
    pub bytes: i64,
    /// How long the round took.
    #[schemars(length(max = 32))]
    pub duration: String,
}

/// What is expected before the freeze.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// Bytes of memory and files to be moved.
    pub bytes: i64,
    /// How long the application will stand still.
    #[schemars(length(max = 32))]
    pub freeze: String,
}

/// Something that cannot be moved, found before anything was touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Name of the check, PascalCase.
    #[schemars(length(max = 64))]
    pub check: String,
    /// Container it concerns; empty for the whole pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub container: String,
    /// What was found.
    #[schemars(length(max = 8192))]
    pub message: String,
    /// What to do about it.
    #[schemars(length(max = 1024))]
    pub remedy: String,
}

/// What was observed and decided. Written by the operator alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Admitted, Scheduled, Copied, Frozen, Restored, Succeeded (Unknown while it runs; the one to
    /// wait for), and kstatus' Reconciling and Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Where the state machine stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Derived from step, for columns only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The outcome of the vote. Written once, never changed or removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// When the target thawed. Written once, only after Commit, never with resolution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<MicroTime>,
    /// SourceResumes: the target was lost after the commit and the source goes on. Written once,
    /// only after Commit, never with resumedAt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// Where the pod comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<PodRef>,
    /// Where the pod goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PodRef>,
    /// The mode that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_mode: Option<Mode>,
    /// What becomes of address and connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_network: Option<Network>,
    /// In which order the pod goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<HandOver>,
    /// Sequential: what the restore on trial covered, and what it could not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub trial: Option<String>,
    /// Sequential: when the operator recorded that it deletes the source pod, or that the pod went with its node. A
    /// deletion that is not preceded by it is somebody else's wish, and the pod is not made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_deletion_time: Option<Time>,
    /// Sequential: how often the pod was made again and could not be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_restores: Option<i32>,
    /// Sequential: when that was last; the pauses between the tries count from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_restore_time: Option<Time>,
    /// Sequential: UID of the pod that was made again last and could not be restored, or must be made anew.
    #[serde(rename = "failedPodUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub failed_pod_uid: Option<String>,
    /// Sequential: UID of the pod made again of which it was asked last what is to become of the memory, since its volumes
    /// may be newer. It stays when that is answered.
    #[serde(rename = "askedPodUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub asked_pod_uid: Option<String>,
    /// Sequential: the Migration had been deleted when that was asked first, so its deletion does not give the memory up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_unasked: Option<bool>,
    /// Why mode and network were chosen, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub choice_message: Option<String>,
    /// Id of the source pod's sandbox when it was checked. Another one has nothing of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub source_sandbox: Option<String>,
    /// The pod's address, where it moves with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub address: Option<String>,
    /// Its further addresses: that of the other family in a dual-stack cluster. They move with it, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub other_addresses: Vec<String>,
    /// When work on it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the source's network was closed, to freeze its containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    /// When it ended, whichever way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How long the application stood still for its clients, from the closing of the network before
    /// the freeze to its opening after the thaw (of the target, or of the source after a roll-back).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub downtime: Option<String>,
    /// Bytes of memory and files of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<i64>,
    /// Bytes sent over the network, after compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_transferred: Option<i64>,
    /// Rounds of copying memory while the application ran; the newest 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rounds: Vec<Round>,
    /// Sequential: SHA-256 of the stored manifest; a Secret with another content is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub manifest_digest: Option<String>,
    /// What was expected before the freeze.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// What preflight found; the first 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub violations: Vec<Violation>,
}

/// The most rounds a status holds.
pub const MAX_ROUNDS: usize = 64;
/// The longest `choiceMessage`, in characters.
pub const MAX_CHOICE_MESSAGE: usize = 16384;
/// The longest `message` of a violation, in characters.
pub const MAX_VIOLATION_MESSAGE: usize = 8192;
/// The longest `remedy` of a violation, in characters.
pub const MAX_REMEDY: usize = 1024;
/// The most violations a status holds.
pub const MAX_VIOLATIONS: usize = 32;

impl MigrationStatus {
    /// The source ends before the pod is made again.
    pub fn is_sequential(&self) -> bool {
        self.hand_over == Some(HandOver::Sequential)
    }

    /// Sets `step`, and `phase` with it.
    pub fn set_step(&mut self, step: Step) {
        self.step = Some(step);
        self.phase = Some(phase(step));
    }
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;
