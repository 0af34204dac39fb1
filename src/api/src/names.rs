//! Names that are a contract: group, annotations, labels, gates, finalizers, fixed object names.
//!
//! On pods, annotations and labels are *requests to the operator or its notes*; nothing on a host
//! acts on them. Those marked "operator only" are kept from others by admission policies in the
//! chart.

/// The API group of all kinds.
pub const GROUP: &str = "transship.dev";
/// The served and stored version.
pub const VERSION: &str = "v1alpha1";

// --- Pods: annotations -------------------------------------------------------------------------

/// UID of the Migration that holds the pod; written with the pod's resourceVersion, so at most one
/// migration, suspension, fail-over or eviction works on a pod at a time. Operator only.
pub const CLAIM: &str = "transship.dev/claim";
/// On the source and target pod: `namespace/name` of the Migration, for people. Operator only.
pub const MIGRATION_NAME: &str = "transship.dev/migration-name";
/// Address that was lent to this pod by another node, `<ip>@<home node>`. Operator only.
pub const LEASE: &str = "transship.dev/lease";
/// Node that the pod came from in its last migration. Operator only.
pub const MOVED_FROM: &str = "transship.dev/moved-from";
/// UID of the Migration that made this pod: once the application runs in it, that Migration's kept state
/// is needed no longer. Operator only.
pub const MOVED_BY: &str = "transship.dev/moved-by";
/// Containers whose image was changed when their state could not follow any more. It is there until the
/// Migration has ended, and decides nothing.
pub const IMAGES_LEFT: &str = "transship.dev/images-left";
/// `run` or `skip`: whether postStart hooks run again when the pod has moved. Set by people; without
/// it a pod with such hooks is refused.
pub const POST_START: &str = "transship.dev/post-start";
/// postStart hooks that a moved pod's manifest has no more, as JSON by container: the next move needs
/// them. Operator only.
pub const POST_START_HOOKS: &str = "transship.dev/post-start-hooks";
/// `"true"`: the pod is meant to be moved, so its author is warned at creation of what would keep it
/// from being moved; `"false"`: no such warnings. It decides nothing. Set by people.
pub const MOVABLE: &str = "transship.dev/movable";
/// Name of the Checkpoint a pod asks to start from. Set by people; counts only with a Restore or
/// MigrationPolicy that allows it.
pub const RESTORE_FROM: &str = "transship.dev/restore-from";
/// JSON array of Swarm constraint expressions. Set by people.
pub const CONSTRAINTS: &str = "transship.dev/constraints";
/// JSON array of Swarm affinity expressions. Set by people.
pub const AFFINITIES: &str = "transship.dev/affinities";
/// JSON array of node names, or of Swarm whitelist expressions. Set by people.
pub const WHITELIST: &str = "transship.dev/whitelist";
/// JSON array of names of pods of the same namespace that must be on the node. Set by people.
pub const DEPENDS_ON: &str = "transship.dev/depends-on";
/// `spread`, `binpack` or `random`. Set by people.
pub const STRATEGY: &str = "transship.dev/strategy";
/// `on-node-failure` or `off`. Set by people.
pub const RESCHEDULE: &str = "transship.dev/reschedule";
/// `auto`: take a checkpoint once the application is initialised and start replicas from it. Set
/// by people.
pub const WARM_START: &str = "transship.dev/warm-start";

/// Set on a pod that waits for a node, with the time, when it may find one now: a node has come up that
/// it could go to, or what it asks for may have changed with a MigrationPolicy or a claim. Its scheduler
/// looks at it again. It decides nothing.
pub const TOUCHED: &str = "transship.dev/nodes-changed-at";

// --- Pods: gates and labels --------------------------------------------------------------------

/// Scheduling gate of a target pod, until its record is on the node. Operator only.
pub const PREPARE_GATE: &str = "transship.dev/prepare";
/// Readiness gate and condition type of a target pod, True once it may take traffic. Operator only.
pub const RESUMED_GATE: &str = "transship.dev/resumed";
/// Label on the target pod: UID of its Migration. Operator only.
pub const MIGRATION_LABEL: &str = "transship.dev/migration";

// --- Our own objects ---------------------------------------------------------------------------

/// Finalizer of a Migration: stays until both sides have acknowledged. Operator only.
pub const FINALIZER: &str = "transship.dev/finalizer";
/// Finalizer of a Checkpoint: its chunks are released first. Operator only.
pub const CHECKPOINT_FINALIZER: &str = "transship.dev/checkpoint-data";
/// Label on a Migration while its pod changes owners: UID of the controller whose creates are
/// denied. Operator only.
pub const HANDOVER_LABEL: &str = "transship.dev/handover";
/// Annotation beside [`HANDOVER_LABEL`]: when the hand-over began (RFC 3339 with microseconds).
/// Operator only.
pub const HANDOVER_TIME: &str = "transship.dev/handover-at";
/// Annotation on a Migration: UID of the owner reference that the operator has added, and takes off again.
/// Operator only.
pub const WITNESS: &str = "transship.dev/witness";
/// Annotation on a Migration that is stalled as `VolumesNewer`: UID of the pod whose restore may have run. Whoever
/// sets it wants the memory restored once more, on volumes that may be newer.
pub const RESTORE_ANYWAY: &str = "transship.dev/restore-anyway";
/// The other answer on such a Migration, with the same UID: the memory is given up. Deleting the Migration says so as
/// well, if that is done when it is stalled.
pub const GIVE_UP_MEMORY: &str = "transship.dev/give-up-memory";
/// Labels on a Migration, for selecting: UID of the pod that moves.
pub const POD_UID_LABEL: &str = "transship.dev/pod-uid";
/// Label on a Migration: name of the source node.
pub const SOURCE_NODE_LABEL: &str = "transship.dev/source-node";
/// Label on a Migration: name of the target node.
pub const TARGET_NODE_LABEL: &str = "transship.dev/target-node";
/// Annotation on any of our kinds: `"true"` makes the operator leave the object alone.
pub const PAUSED: &str = "transship.dev/paused";
/// Annotation on a Node: `"true"` makes its agent remove the host side. Set at `helm uninstall`, or
/// by an administrator to take one node out.
pub const UNINSTALL: &str = "transship.dev/uninstall";
/// Annotation beside [`UNINSTALL`], where an installation asks at its end: which one, by the UID of the operator's
/// service account, which is made with the chart, kept by its upgrades and removed with it. Of a later one's neither
/// operator nor agents obey it.
pub const UNINSTALL_BY: &str = "transship.dev/uninstall-by";
/// Label on a Node: `"true"` puts it onto the static list of nodes that ought to be there.
pub const STATIC_LABEL: &str = "transship.dev/static";
/// Label on a namespace in which creating pods of certain names is held back during a sequential
/// hand-over. Operator only.
pub const HANDOVER_NAMESPACE_LABEL: &str = "transship.dev/handover";

/// How annotations on a namespace begin that name a pod whose creation is held back.
pub const HELD_NAME_PREFIX: &str = "handover.transship.dev/";

// --- Fixed names -------------------------------------------------------------------------------

/// Name of the operator's Deployment, Service and service account.
pub const OPERATOR: &str = "transship-operator";
/// Name of the agent's DaemonSet and service account.
pub const AGENT: &str = "transship-agent";
/// Secret with the key and certificate of the authority, in the operator's namespace.
pub const CA_SECRET: &str = "transship-ca";
/// ConfigMap with the authority's certificates, in the operator's namespace.
pub const CA_BUNDLE: &str = "transship-ca-bundle";
/// Key in [`CA_BUNDLE`].
pub const CA_BUNDLE_KEY: &str = "ca.crt";
/// Lease by which the operator's replicas elect a leader, in the operator's namespace.
pub const LEADER_LEASE: &str = "transship-operator";
/// Name of the scheduler for pods that go where Docker Swarm would put them.
pub const SCHEDULER: &str = "transship";
/// Audience of the tokens that agents show to the operator.
pub const AUDIENCE: &str = "transship";
/// Category of all kinds: `kubectl get transship`.
pub const CATEGORY: &str = "transship";
/// Field manager of the operator.
pub const OPERATOR_MANAGER: &str = "transship-operator";
/// Field manager of the agents.
pub const AGENT_MANAGER: &str = "transship-agent";

/// Name of a node's Lease in the agents' namespace, written by the holders on that node. Prefixed,
/// because the operator's own election shares the namespace and a node may have any name.
pub fn node_lease(node: &str) -> String {
    format!("transship-node-{node}")
}

/// Annotation on a namespace with [`HANDOVER_NAMESPACE_LABEL`]: the name of the pod that nobody but
/// the operator may create while this Migration hands it over.
pub fn held_name(migration_uid: &str) -> String {
    format!("{HELD_NAME_PREFIX}{migration_uid}")
}

/// Secrets with the manifest of a pod that is handed over sequentially, in its namespace: a new one is
/// stored beside the one that counts, before that goes.
pub fn manifest_secrets(migration_uid: &str) -> [String; 2] {
    ["", "-2"].map(|end| format!("transship-manifest-{migration_uid}{end}"))
}

/// Annotation on a node's Lease by which the target of a Migration signs: when, by its node's clock.
/// Only that it changes matters.
pub fn signature(migration_uid: &str) -> String {
    format!("{GROUP}/target-{migration_uid}")
}
