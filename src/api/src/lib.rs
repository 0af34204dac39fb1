//! The kinds of `transship.dev/v1alpha1`: their shapes, the rules by which the API server checks
//! them, the columns `kubectl get` prints, and every name that is a contract between people,
//! operator, agent and host (annotations, labels, finalizers, condition types and reasons).
//!
//! This crate decides nothing: what a status *should* say is decided in `transship-core`. It has
//! no client and does no input or output, so that command line, operator and agent can all use it.
//!
//! The kind `Node` is called like Kubernetes' own. Say `transship_api::Node` for ours and
//! `corev1::Node` for theirs; never import both bare.

pub mod checkpoint;
pub mod conditions;
pub mod duration;
pub mod limits;
pub mod migration;
pub mod names;
pub mod node;
pub mod policy;
pub mod quantity;
mod step;
mod validation;

pub use checkpoint::{Checkpoint, CheckpointSpec, CheckpointStatus};
pub use conditions::{ConditionStatus, set_condition};
pub use migration::{
    Decision, HandOver, Migration, MigrationSpec, MigrationStatus, Mode, Network, Phase, Placement,
    PodRef, Resolution, Step, Strategy, Violation,
};
pub use names::{GROUP, VERSION};
pub use node::{ActiveMigration, HolderState, Node, NodeSpec, NodeStatus, Role};
pub use policy::{MigrationPolicy, MigrationPolicySpec};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The definitions of all kinds, in the order in which people meet them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![Migration::crd(), MigrationPolicy::crd(), Checkpoint::crd(), Node::crd()]
}
