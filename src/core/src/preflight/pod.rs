//! What the pod's manifest has that cannot be moved.

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};

use super::{Check, Input, Violation};
use crate::migration::handover;
use crate::sequential_pod::is_exclusive;
use crate::target_pod;

/// The checks of the manifest.
pub const CHECKS: &[Check] = &[
    host_namespaces,
    user_namespace,
    shared_process_namespace,
    runtime_class,
    volumes,
    super::claims::claims,
    block_devices,
    devices,
    terminals,
    init_containers,
    post_start_hooks,
    host_name,
    owner_selector,
    all_containers_run,
];

fn spec<'a>(input: &Input<'a>) -> Option<&'a PodSpec> {
    input.pod?.spec.as_ref()
}

/// Application containers and sidecars: what is moved.
fn moved(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| target_pod::is_sidecar(c));
    spec.containers.iter().chain(sidecars)
}

fn violation(check: &'static str, message: impl Into<String>, remedy: &str) -> Option<Violation> {
    Some(Violation {
        check,
        message: message.into(),
        remedy: remedy.to_owned(),
        ..Violation::default()
    })
}

fn in_container(
    check: &'static str,
    container: &Container,
    message: impl Into<String>,
    remedy: &str,
) -> Option<Violation> {
    violation(check, message, remedy).map(|v| Violation { container: container.name.clone(), ..v })
}

fn host_namespaces(input: &Input<'_>) -> Option<Violation> {
    let spec = spec(input)?;
    let used: Vec<&str> = [
        ("hostNetwork", spec.host_network),
        ("hostPID", spec.host_pid),
        ("hostIPC", spec.host_ipc),
    ]
    .into_iter()
    .filter(|(_, on)| *on == Some(true))
    .map(|(name, _)| name)
    .collect();
    if used.is_empty() {
        return None;
    }
    violation(
        "HostNamespaces",
        format!("the pod shares namespaces with its node ({})", used.join(", ")),
        "run the application without them",
    )
}

fn user_namespace(input: &Input<'_>) -> Option<Violation> {
    if spec(input)?.host_users != Some(false) {
        return None;
    }
    violation(
        "UserNamespace",
        "the pod has a user namespace of its own, which cannot be restored",
        "leave out hostUsers: false",
    )
}

fn shared_process_namespace(input: &Input<'_>) -> Option<Violation> {
    if spec(input)?.share_process_namespace != Some(true) {
        return None;
    }
    violation(
        "SharedProcessNamespace",
        "the pod's containers share one process namespace",
        "leave out shareProcessNamespace: true",
    )
}

fn runtime_class(input: &Input<'_>) -> Option<Violation> {
    let class = spec(input)?.runtime_class_name.as_deref().filter(|c| !c.is_empty())?;
    violation(
        "RuntimeClass",
        format!(
            "the pod asks for the runtime class {class}; only the default one (runc) can be moved"
        ),
        "leave out runtimeClassName",
    )
}

/// What a volume is, if it does not move.
fn unmoved(volume: &Volume) -> Option<&'static str> {
    let moves = volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    if moves {
        return None;
    }
    Some(if volume.host_path.is_some() {
        "a directory of the node (hostPath)"
    } else if volume.persistent_volume_claim.is_some() {
        "a persistent volume, which is handed over only with pods of a StatefulSet and pods without an owner"
    } else if volume.ephemeral.is_some() {
        "an ephemeral persistent volume, which belongs to this one pod"
    } else if volume.csi.is_some() {
        "an inline CSI volume"
    } else if volume.nfs.is_some() {
        "an NFS mount, which cannot be handed over in this version"
    } else {
        "of a kind that cannot be moved"
    })
}

fn volumes(input: &Input<'_>) -> Option<Violation> {
    let spec = spec(input)?;
    let found: Vec<String> = spec
        .volumes
        .iter()
        .flatten()
        // Handed over with a pod of an exclusive name, as long as both nodes can attach it.
        .filter(|v| v.persistent_volume_claim.is_none() || !input.pod.is_some_and(is_exclusive))
        .filter_map(|v| unmoved(v).map(|what| format!("volume {} is {what}", v.name)))
        .collect();
    if found.is_empty() {
        return None;
    }
    violation(
        "Volumes",
        found.join(", "),
        "use emptyDir, configMap, secret, downwardAPI or projected volumes",
    )
}

fn block_devices(input: &Input<'_>) -> Option<Violation> {
    let container =
        moved(spec(input)?).find(|c| c.volume_devices.as_ref().is_some_and(|d| !d.is_empty()))?;
    in_container(
        "BlockDevices",
        container,
        "the container uses a block device",
        "use a file system volume",
    )
}

fn devices(input: &Input<'_>) -> Option<Violation> {
    let spec = spec(input)?;
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return violation(
            "Devices",
            "the pod holds devices by resource claims",
            "leave out resourceClaims",
        );
    }
    moved(spec).find_map(|container| {
        let resources = container.resources.as_ref()?;
        let device = resources
            .limits
            .iter()
            .chain(&resources.requests)
            .flat_map(|amounts| amounts.keys())
            // Extended resources have a domain; Kubernetes' own carry none or its own.
            .find(|name| name.contains('/') && !name.contains("kubernetes.io/"))?;
        in_container(
            "Devices",
            container,
            format!("the container holds the device {device}"),
            "run it without the device",
        )
    })
}

fn terminals(input: &Input<'_>) -> Option<Violation> {
    let container = moved(spec(input)?).find(|c| c.tty == Some(true))?;
    in_container(
        "Terminal",
        container,
        "the container's standard streams are a terminal of its node",
        "leave out tty: true",
    )
}

/// Init containers become no-ops on the target, so nothing they did outside the pod's volumes may
/// be needed there.
fn init_containers(input: &Input<'_>) -> Option<Violation> {
    let spec = spec(input)?;
    spec.init_containers.iter().flatten().filter(|c| !target_pod::is_sidecar(c)).find_map(|c| {
        let context = c.security_context.as_ref()?;
        let privileged = context.privileged == Some(true);
        let added = context.capabilities.as_ref().and_then(|c| c.add.as_deref()).unwrap_or_default();
        let network = added
            .iter()
            .find(|cap| matches!(cap.trim_start_matches("CAP_"), "NET_ADMIN" | "SYS_ADMIN" | "ALL"));
        let what = match (privileged, network) {
            (true, _) => "it is privileged".to_owned(),
            (false, Some(capability)) => format!("it has {capability}"),
            (false, None) => return None,
        };
        in_container(
            "InitContainers",
            c,
            format!("the init container may have changed the pod's network or node ({what}), and that does not move"),
            "take the privilege away, or do without the init container",
        )
    })
}

fn post_start_hooks(input: &Input<'_>) -> Option<Violation> {
    let pod = input.pod?;
    let has_hook = |c: &&Container| c.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
    let container = moved(pod.spec.as_ref()?).find(has_hook)?;
    match target_pod::post_start(pod) {
        Some("skip") => None,
        Some("run") => in_container(
            "PostStartHook",
            container,
            "running the postStart hook after a move is not available in this version",
            "annotate the pod with transship.dev/post-start: skip if the hook need not run again",
        ),
        _ => in_container(
            "PostStartHook",
            container,
            "the container has a postStart hook, which would run again in the middle of its life",
            "annotate the pod with transship.dev/post-start: skip if it need not run again",
        ),
    }
}

fn host_name(input: &Input<'_>) -> Option<Violation> {
    let pod = input.pod?;
    let target = target_pod::TargetFor {
        migration_namespace: "",
        migration_name: "",
        migration_uid: "",
        node: "",
        preserve_address: false,
    };
    let error = target_pod::target_pod(pod, &target).err()?;
    violation(
        "HostName",
        error.to_string(),
        "give the workload a name without dots, or set hostname in the pod template",
    )
}

/// Until the hand-over the target bears one label of ours and none of the source's. An owner whose
/// selector matches even that would adopt it beside the source, and remove one of the two.
fn owner_selector(input: &Input<'_>) -> Option<Violation> {
    let uid = input.migration.metadata.uid.clone().unwrap_or_default();
    let bare = [(transship_api::names::MIGRATION_LABEL.to_owned(), uid)].into();
    if !handover::matches(&input.owner?.spec.selector, &bare) {
        return None;
    }
    violation(
        "OwnerSelector",
        "the selector of the pod's ReplicaSet also matches pods without labels",
        "select by a label that the pods have (matchLabels, In or Exists)",
    )
}

fn all_containers_run(input: &Input<'_>) -> Option<Violation> {
    let pod = input.pod?;
    let status = pod.status.as_ref()?;
    let runs = |name: &str| {
        status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten()
            .any(|s| s.name == name && s.state.as_ref().is_some_and(|s| s.running.is_some()))
    };
    let container = moved(pod.spec.as_ref()?).find(|c| !runs(&c.name))?;
    in_container(
        "ContainerNotRunning",
        container,
        "the container does not run",
        "wait until all containers of the pod run",
    )
}
