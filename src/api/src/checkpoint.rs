//! `Checkpoint`: one stored version of a pod's state. It outlives its pod.

// Parts of different columns and rules look alike to the lint.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validation;

/// What the application does after its state was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AfterCheckpoint {
    /// It goes on.
    #[default]
    Continue,
    /// It is ended.
    Stop,
}

/// When the state is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Trigger {
    /// At once.
    #[default]
    Now,
    /// When every container listens on its declared ports.
    WhenListening,
    /// When the application says so.
    WhenNotified,
}

/// What is to be stored.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "transship.dev",
    version = "v1alpha1",
    kind = "Checkpoint",
    plural = "checkpoints",
    namespaced,
    shortname = "ckpt",
    category = "transship",
    derive = "PartialEq",
    cel,
    status = "CheckpointStatus",
    doc = "Checkpoint is one stored version of a pod's state. It outlives its pod; deleting it releases what no other version needs. Wait for its condition Ready.",
    selectable = ".spec.podName",
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.podName"),
    printcolumn(name = "Version", type_ = "integer", json_path = ".status.version"),
    printcolumn(
        name = "Size",
        type_ = "integer",
        json_path = ".status.sizeBytes",
        description = "Bytes of the state"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new(
        "self.podName == oldSelf.podName && self.containers == oldSelf.containers && \
         self.storeName == oldSelf.storeName && self.trigger == oldSelf.trigger && \
         self.afterCheckpoint == oldSelf.afterCheckpoint"
    )
    .message("only ttl and pin may change; create another Checkpoint instead")
)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointSpec {
    /// Name of the pod, in the Checkpoint's own namespace.
    #[schemars(length(max = 253))]
    #[x_kube(validation = validation::pod_name())]
    pub pod_name: String,
    /// Containers to store; empty for all.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub containers: Vec<String>,
    /// Name of the CheckpointStore.
    #[serde(default = "default_store")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = validation::object_name())]
    pub store_name: String,
    /// Continue or Stop.
    #[serde(default)]
    pub after_checkpoint: AfterCheckpoint,
    /// Now, WhenListening or WhenNotified.
    #[serde(default)]
    pub trigger: Trigger,
    /// How long the version is kept; without it, until it is deleted.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "validation::read_optional_text"
    )]
    #[schemars(schema_with = "validation::optional_text_or_number")]
    #[x_kube(validation = validation::duration("720h"))]
    pub ttl: Option<String>,
    /// Keep the version whatever ttl and retention say.
    #[serde(default)]
    pub pin: bool,
}

fn default_store() -> String {
    "default".to_owned()
}

impl CheckpointSpec {
    /// A spec with every default, as the API server would fill it in.
    pub fn for_pod(pod_name: impl Into<String>) -> Self {
        Self {
            pod_name: pod_name.into(),
            containers: vec![],
            store_name: default_store(),
            after_checkpoint: AfterCheckpoint::default(),
            trigger: Trigger::default(),
            ttl: None,
            pin: false,
        }
    }
}

/// A container whose state is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoredContainer {
    /// Name in the pod.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Image as the pod names it.
    #[schemars(length(max = 1024))]
    pub image: String,
    /// Digest of the image that ran.
    #[schemars(length(max = 256))]
    pub image_digest: String,
}

/// What a node must have to restore the version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Compatibility {
    /// CPU vendor and the features that were in use.
    #[schemars(length(max = 4096))]
    pub cpu: String,
    /// Kernel release.
    #[schemars(length(max = 128))]
    pub kernel: String,
    /// CRIU version.
    #[schemars(length(max = 64))]
    pub criu: String,
    /// Architecture, such as amd64.
    #[schemars(length(max = 32))]
    pub arch: String,
}

/// What was stored. Written by the operator alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready (the one to wait for), Captured, Stored, Verified, and kstatus' Reconciling and
    /// Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Node the state was taken on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// What the pod belongs to, such as deployment/web or pod/web-0; versions count per workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub workload: Option<String>,
    /// Counts up per workload, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// Name of the Checkpoint this one is stored as a difference to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub parent: Option<String>,
    /// How long the application stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub freeze: Option<String>,
    /// Bytes of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Bytes that were new in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<i64>,
    /// Containers whose state is stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub containers: Vec<StoredContainer>,
    /// What a node must have to restore the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility: Option<Compatibility>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(edit: impl FnOnce(&mut CheckpointSpec)) -> Checkpoint {
        let mut spec = CheckpointSpec::for_pod("web-0");
        edit(&mut spec);
        Checkpoint::new("web-0-1", spec)
    }

    #[test]
    fn a_checkpoint_is_accepted_or_answered_with_what_to_write() {
        checkpoint(|_| {}).validate_cel().unwrap();
        checkpoint(|s| s.ttl = Some("720h".into())).validate_cel().unwrap();
        for (object, answer) in [
            (checkpoint(|s| s.pod_name = "Web".into()), "such as web-0"),
            (checkpoint(|s| s.ttl = Some("30d".into())), "such as 720h"),
            (checkpoint(|s| s.store_name = "a/b".into()), "such as default"),
        ] {
            let errors = object.validate_cel().unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].message.contains(answer), "{errors:?}");
        }
    }

    #[test]
    fn only_retention_of_a_checkpoint_may_change() {
        let old = checkpoint(|_| {});
        checkpoint(|s| s.pin = true).validate_cel_update(&old).unwrap();
        checkpoint(|s| s.ttl = Some("1h".into())).validate_cel_update(&old).unwrap();
        for changed in [
            checkpoint(|s| s.pod_name = "web-1".into()),
            checkpoint(|s| s.containers = vec!["app".into()]),
            checkpoint(|s| s.trigger = Trigger::WhenListening),
            checkpoint(|s| s.after_checkpoint = AfterCheckpoint::Stop),
            checkpoint(|s| s.store_name = "other".into()),
        ] {
            let errors = changed.validate_cel_update(&old).unwrap_err();
            assert!(errors[0].message.starts_with("only ttl and pin may change"), "{errors:?}");
        }
    }
}
