//! Is the request one that can be carried out at all? In the order in which people would ask.

use k8s_openapi::api::core::v1::Pod;
use transship_api::conditions::{self, reasons};
use transship_api::{Mode, names};

use crate::migration::owner::Kind;
use crate::placement::kubernetes::{self, Asked, Unobeyable};
use crate::sequential_pod::{controller, is_exclusive};

use super::{Input, NodeView, Refusal, RequestCheck, name_some};

/// The checks, in order; the first that fails answers.
pub const CHECKS: &[RequestCheck] = &[
    mode_is_available,
    spec_can_be_read,
    pod_exists,
    placement_can_be_read,
    target_node_exists,
    nodes_differ,
    pod_is_running,
    pod_is_free,
    owner_is_supported,
    source_is_ready,
    target_is_ready,
];

fn refuse(reason: &'static str, message: String) -> Option<Refusal> {
    Some(Refusal { reason, message })
}

fn mode_is_available(input: &Input<'_>) -> Option<Refusal> {
    match input.migration.spec.mode {
        Mode::Auto | Mode::StopAndCopy | Mode::Cold => None,
        mode => refuse(
            reasons::MODE_NOT_AVAILABLE,
            format!(
                "mode {mode:?} is not available in this version; write mode: StopAndCopy, Auto or Cold"
            ),
        ),
    }
}

fn spec_can_be_read(input: &Input<'_>) -> Option<Refusal> {
    let spec = &input.migration.spec;
    let error = spec
        .max_downtime()
        .err()
        .map(|e| format!("spec.maxDowntime: {e}"))
        .or_else(|| spec.timeout().err().map(|e| format!("spec.timeout: {e}")))
        .or_else(|| spec.bandwidth_limit().err().map(|e| format!("spec.bandwidthLimit: {e}")));
    error.map(|message| Refusal { reason: reasons::INVALID_SPEC, message })
}

fn pod_exists(input: &Input<'_>) -> Option<Refusal> {
    if input.pod.is_some() {
        return None;
    }
    let namespace = input.migration.metadata.namespace.as_deref().unwrap_or("default");
    refuse(
        reasons::POD_NOT_FOUND,
        format!(
            "there is no pod {:?} in namespace {namespace}; write the name of a running pod as 'kubectl get pods -n {namespace}' prints it",
            input.migration.spec.pod_name
        ),
    )
}

fn placement_can_be_read(input: &Input<'_>) -> Option<Refusal> {
    asked(input).err()
}

/// What the pod, its policy and the Migration ask of the target node.
pub fn asked(input: &Input<'_>) -> Result<Asked, Refusal> {
    let refused = |message| Refusal { reason: reasons::INVALID_SPEC, message };
    let pod = input.pod.ok_or_else(|| refused("the pod is not known yet".into()))?;
    let placement = input.migration.spec.placement.as_ref();
    match kubernetes::asked(pod, input.policy, placement) {
        Ok(asked) => Ok(asked.with_volumes(input.volumes.clone())),
        Err(error) => Err(refused(match error {
            Unobeyable::Migration(_) => format!("{error}; create another Migration"),
            Unobeyable::Policy(..) => format!("{error}; mend the policy"),
            Unobeyable::Pod(_) => format!("the pod's {error}; mend it in the pod's template"),
        })),
    }
}

fn pod_is_running(input: &Input<'_>) -> Option<Refusal> {
    let pod = input.pod?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some() {
        return refuse(
            reasons::POD_NOT_RUNNING,
            format!("pod {name} is being deleted; write the name of a pod that stays"),
        );
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    if phase != "Running" {
        return refuse(
            reasons::POD_NOT_RUNNING,
            format!("pod {name} is {phase}; only a running pod can be moved, wait until it runs"),
        );
    }
    None
}

fn pod_is_free(input: &Input<'_>) -> Option<Refusal> {
    let pod = input.pod?;
    let annotations = pod.metadata.annotations.as_ref()?;
    let holder = annotations.get(names::CLAIM)?;
    if input.migration.metadata.uid.as_deref() == Some(holder) {
        return None;
    }
    let by = annotations
        .get(names::MIGRATION_NAME)
        .map_or_else(|| format!("the Migration with UID {holder}"), |n| format!("Migration {n}"));
    refuse(
        reasons::POD_CLAIMED,
        format!("{by} holds the pod; wait until it has ended, then create this one again"),
    )
}

/// What the pod's controller is: one whose pods stand side by side, one that gives each pod a name of
/// its own, or none.
fn owner_is_supported(input: &Input<'_>) -> Option<Refusal> {
    let pod = input.pod?;
    let not_supported = |message: String| refuse(reasons::OWNER_NOT_SUPPORTED, message);
    if is_static(pod) {
        return not_supported(
            "the pod is a static pod of its node, which cannot be moved; move a pod of a Deployment"
                .into(),
        );
    }
    if is_exclusive(pod) {
        return None;
    }
    let owner = controller(pod)?;
    let (kind, name) = (owner.kind.as_str(), owner.name.as_str());
    if Kind::of(owner).is_some() {
        if input.owner.is_some() {
            return None;
        }
        return not_supported(format!(
            "the pod's owner, {kind} {name}, is gone or being deleted; move a pod that is to stay"
        ));
    }
    match (kind, owner.api_version.split('/').next()) {
        ("DaemonSet", Some("apps")) => not_supported(format!(
            "the pod belongs to DaemonSet {name}, which runs one on each node and cannot be moved; move a pod of a Deployment"
        )),
        _ => not_supported(format!(
            "the pod belongs to {kind} {name}, whose pods cannot be moved in this version; move a pod of a Deployment, ReplicaSet, StatefulSet or Job, or one without an owner"
        )),
    }
}

/// Why a pod can never be moved, whatever the version: what it is shows in its manifest.
pub(super) fn never_moved(pod: &Pod) -> Option<String> {
    if is_static(pod) {
        return Some("static pods of a node are not moved".into());
    }
    let owner = controller(pod).filter(|owner| owner.kind == "DaemonSet")?;
    Some(format!("pods of DaemonSet {} run one on each node and are not moved", owner.name))
}

fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
}

fn target_node_exists(input: &Input<'_>) -> Option<Refusal> {
    let wanted = input.migration.spec.target_node.as_deref()?;
    let known = || input.nodes.iter().filter(|n| n.core.is_some()).map(|n| n.name.as_str());
    if known().any(|name| name == wanted) {
        return None;
    }
    refuse(
        reasons::NODE_NOT_FOUND,
        format!("there is no node {wanted:?}; write one of {}", name_some(known())),
    )
}

fn nodes_differ(input: &Input<'_>) -> Option<Refusal> {
    let wanted = input.migration.spec.target_node.as_deref()?;
    let source = input.pod?.spec.as_ref()?.node_name.as_deref()?;
    if wanted != source {
        return None;
    }
    let others = input.nodes.iter().map(|n| n.name.as_str()).filter(|n| *n != source);
    let others = name_some(others);
    let advice = match others.as_str() {
        "" => "the cluster has no other node".to_owned(),
        others => format!("write another targetNode, such as {others}, or leave it out"),
    };
    refuse(reasons::SAME_NODE, format!("the pod runs on {wanted} already; {advice}"))
}

fn source_is_ready(input: &Input<'_>) -> Option<Refusal> {
    let pod_node = input.pod?.spec.as_ref()?.node_name.as_deref()?;
    let problem = match input.source() {
        Some(source) => not_ready(source)?,
        None => format!("node {pod_node} does not exist any more"),
    };
    refuse(
        reasons::SOURCE_NOT_READY,
        format!(
            "the pod's node cannot take part: {problem}; see 'kubectl get tn {pod_node} -o wide'"
        ),
    )
}

fn target_is_ready(input: &Input<'_>) -> Option<Refusal> {
    let target = input.target?;
    let problem = not_ready(target).or_else(|| takes_no_pods(target))?;
    let name = &target.name;
    refuse(
        reasons::TARGET_NOT_READY,
        format!(
            "the target node cannot take part: {problem}; write another targetNode, or see 'kubectl get tn {name} -o wide'"
        ),
    )
}

/// Why a node cannot take part in a migration at all.
pub(crate) fn not_ready(node: &NodeView) -> Option<String> {
    let name = &node.name;
    let Some(core) = &node.core else { return Some(format!("{name} is not a cluster node")) };
    let conditions = core.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if !conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
        return Some(format!("{name} is not Ready"));
    }
    let Some(agent) = &node.agent else {
        return Some(format!("no Transship agent has reported from {name}"));
    };
    let ours = agent.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    if conditions::is_true(ours, conditions::READY) {
        return None;
    }
    Some(match conditions::find(ours, conditions::READY) {
        Some(c) if c.message.is_empty() => {
            format!("Transship on {name} is not Ready ({})", c.reason)
        }
        Some(c) => format!("Transship on {name} is not Ready ({}: {})", c.reason, c.message),
        None => format!("the Transship agent of {name} has not reported yet"),
    })
}

/// Why a node takes no pods, though it could.
pub(crate) fn takes_no_pods(node: &NodeView) -> Option<String> {
    let name = &node.name;
    if node.agent.as_ref().is_some_and(|n| n.spec.unschedulable) {
        return Some(format!("nodes.transship.dev/{name} says unschedulable"));
    }
    let core = node.core.as_ref()?.spec.as_ref()?;
    (core.unschedulable == Some(true)).then(|| format!("{name} is cordoned"))
}
