//! What the pod's manifest has that cannot be moved, and what the API server says of its successor.

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};

use super::{Check, Input, TargetAnswer, Violation};
use crate::migration::handover;
use crate::post_start::{self, Asked};
use crate::sequential_pod::is_exclusive;
use crate::target_pod;

/// The checks of the manifest.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "HostNamespaces",
        finds: "`hostNetwork`, `hostPID` or `hostIPC`",
        remedy: "run the application without them",
        look: host_namespaces,
    },
    Check {
        name: "UserNamespace",
        finds: "`hostUsers: false`, or a container in a user namespace of its own",
        remedy: "leave out hostUsers: false, or start the application without a user namespace of its own",
        look: user_namespace,
    },
    Check {
        name: "SharedProcessNamespace",
        finds: "`shareProcessNamespace: true`",
        remedy: "leave out shareProcessNamespace: true",
        look: shared_process_namespace,
    },
    Check {
        name: "RuntimeClass",
        finds: "a `runtimeClassName`: only the default runtime is wrapped",
        remedy: "leave out runtimeClassName",
        look: runtime_class,
    },
    Check {
        name: "SandboxWithoutWrapper",
        finds: "a pod that has run since before Transship was installed on its node: nothing would keep kubelet from starting its containers afresh in the middle of a move",
        remedy: "let the pod start anew once, as in kubectl rollout restart",
        look: sandbox_without_wrapper,
    },
    Check {
        name: "Volumes",
        finds: "volumes other than emptyDir, ConfigMap, Secret, projected and downward API: hostPath, NFS, inline CSI, ephemeral and image volumes, persistent volumes of a pod without a name of its own; an emptyDir of huge pages",
        remedy: "use emptyDir without huge pages, ConfigMap, Secret or projected volumes",
        look: volumes,
    },
    super::claims::CHECK,
    Check {
        name: "BlockDevices",
        finds: "`volumeDevices`",
        remedy: "use a file system volume",
        look: block_devices,
    },
    Check {
        name: "Devices",
        finds: "extended resources (GPUs and the like) and `resourceClaims`",
        remedy: "run it without the device",
        look: devices,
    },
    Check {
        name: "Terminal",
        finds: "`tty: true`",
        remedy: "leave out tty: true",
        look: terminals,
    },
    Check {
        name: "InitContainers",
        finds: "init containers that could have changed the pod's network or node: privileged, or with NET_ADMIN or SYS_ADMIN",
        remedy: "take the privilege away, or do without the init container",
        look: init_containers,
    },
    Check {
        name: "PostStartHook",
        finds: "a postStart hook, which kubelet would run again",
        remedy: "annotate the pod with transship.dev/post-start: run if it is to run again when the pod has moved, or skip if it need not",
        look: post_start_hooks,
    },
    Check {
        name: "HostName",
        finds: "a host name that no other pod can have",
        remedy: "give the workload a name without dots, or set hostname in the pod template",
        look: host_name,
    },
    Check {
        name: "OwnerSelector",
        finds: "a ReplicaSet that selects pods without labels",
        remedy: "select by a label that the pods have (matchLabels, In or Exists)",
        look: owner_selector,
    },
    Check {
        name: "ContainerNotRunning",
        finds: "a container that does not run",
        remedy: "wait until all containers of the pod run",
        look: all_containers_run,
    },
    Check {
        name: "TargetPod",
        finds: "a target pod that the API server would refuse beside the source: ResourceQuota, LimitRange, Pod Security, a policy or a webhook",
        remedy: "for the time of the move both pods exist: make room in the quota, or change what the message names",
        look: target_pod_is_taken,
    },
    Check {
        name: "TargetPodChanged",
        finds: "a mutating webhook that would change the target pod",
        remedy: "leave pods with the label transship.dev/migration out of the webhook (objectSelector)",
        look: target_pod_is_unchanged,
    },
];

fn spec<'a>(input: &Input<'a>) -> Option<&'a PodSpec> {
    input.pod?.spec.as_ref()
}

/// Application containers and sidecars: what is moved.
pub(super) fn moved(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| target_pod::is_sidecar(c));
    spec.containers.iter().chain(sidecars)
}

/// Whether a container of this name is moved; of a pod that is not known, each.
pub(super) fn moves(input: &Input<'_>, name: &str) -> bool {
    spec(input).is_none_or(|spec| moved(spec).any(|container| container.name == name))
}

/// What `what` says of the pod's manifest.
fn in_spec(input: &Input<'_>, what: impl FnOnce(&PodSpec) -> Option<String>) -> Vec<Violation> {
    spec(input).and_then(what).map(Violation::of_pod).into_iter().collect()
}

/// What `what` says of each container that is moved.
fn in_containers(input: &Input<'_>, what: impl Fn(&Container) -> Option<String>) -> Vec<Violation> {
    let containers = spec(input).into_iter().flat_map(moved);
    containers.filter_map(|c| Some(Violation::of_container(&c.name, what(c)?))).collect()
}

fn host_namespaces(input: &Input<'_>) -> Vec<Violation> {
    in_spec(input, |spec| {
        let used: Vec<&str> = [
            ("hostNetwork", spec.host_network),
            ("hostPID", spec.host_pid),
            ("hostIPC", spec.host_ipc),
        ]
        .into_iter()
        .filter(|(_, on)| *on == Some(true))
        .map(|(name, _)| name)
        .collect();
        (!used.is_empty())
            .then(|| format!("the pod shares namespaces with its node ({})", used.join(", ")))
    })
}

fn user_namespace(input: &Input<'_>) -> Vec<Violation> {
    let asked = in_spec(input, |spec| {
        (spec.host_users == Some(false))
            .then(|| "the pod has a user namespace of its own, which cannot be restored".into())
    });
    if !asked.is_empty() {
        return asked;
    }
    let facts = input.facts.into_iter().flat_map(|facts| &facts.containers);
    facts
        .filter(|c| c.running && c.user_namespace)
        .map(|c| {
            let message = "the container has a user namespace of its own, which cannot be restored";
            Violation::of_container(&c.name, message)
        })
        .collect()
}

fn shared_process_namespace(input: &Input<'_>) -> Vec<Violation> {
    in_spec(input, |spec| {
        (spec.share_process_namespace == Some(true))
            .then(|| "the pod's containers share one process namespace".into())
    })
}

fn runtime_class(input: &Input<'_>) -> Vec<Violation> {
    in_spec(input, |spec| {
        let class = spec.runtime_class_name.as_deref().filter(|c| !c.is_empty())?;
        Some(format!(
            "the pod asks for the runtime class {class}; only the default one (runc) can be moved"
        ))
    })
}

fn sandbox_without_wrapper(input: &Input<'_>) -> Vec<Violation> {
    let is_without = input.facts.is_some_and(|facts| facts.without_wrapper);
    let message = "the pod's sandbox was made before the node's runtime wrapper was in effect";
    is_without.then(|| Violation::of_pod(message)).into_iter().collect()
}

/// What a volume is, if it does not move.
fn unmoved(volume: &Volume) -> Option<&'static str> {
    let medium = volume.empty_dir.as_ref().and_then(|dir| dir.medium.as_deref());
    if medium.is_some_and(|medium| medium.starts_with("HugePages")) {
        return Some("an emptyDir of huge pages, whose files are not carried");
    }
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

fn volumes(input: &Input<'_>) -> Vec<Violation> {
    let volumes = spec(input).into_iter().flat_map(|spec| spec.volumes.iter().flatten());
    // Handed over with a pod of an exclusive name, as long as both nodes can attach it.
    let handed_over =
        |v: &&Volume| v.persistent_volume_claim.is_some() && input.pod.is_some_and(is_exclusive);
    volumes
        .filter(|v| !handed_over(v))
        .filter_map(|v| Some(format!("volume {} is {}", v.name, unmoved(v)?)))
        .map(Violation::of_pod)
        .collect()
}

fn block_devices(input: &Input<'_>) -> Vec<Violation> {
    in_containers(input, |c| {
        let devices = c.volume_devices.as_ref().filter(|devices| !devices.is_empty())?;
        let names: Vec<&str> = devices.iter().map(|d| d.device_path.as_str()).collect();
        Some(format!("the container uses block devices ({})", names.join(", ")))
    })
}

fn devices(input: &Input<'_>) -> Vec<Violation> {
    let claims = in_spec(input, |spec| {
        let claims = spec.resource_claims.as_ref().filter(|claims| !claims.is_empty())?;
        let names: Vec<&str> = claims.iter().map(|claim| claim.name.as_str()).collect();
        Some(format!("the pod holds devices by resource claims ({})", names.join(", ")))
    });
    let extended = in_containers(input, |c| {
        let resources = c.resources.as_ref()?;
        let mut names: Vec<&str> = resources
            .limits
            .iter()
            .chain(&resources.requests)
            .flat_map(|amounts| amounts.keys())
            // Extended resources have a domain; Kubernetes' own carry none or its own.
            .filter(|name| name.contains('/') && !name.contains("kubernetes.io/"))
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        names.dedup();
        (!names.is_empty()).then(|| format!("the container holds devices ({})", names.join(", ")))
    });
    [claims, extended].concat()
}

fn terminals(input: &Input<'_>) -> Vec<Violation> {
    in_containers(input, |c| {
        (c.tty == Some(true))
            .then(|| "the container's standard streams are a terminal of its node".into())
    })
}

/// Init containers become no-ops on the target, so nothing they did outside the pod's volumes may
/// be needed there.
fn init_containers(input: &Input<'_>) -> Vec<Violation> {
    let inits = spec(input).into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
    inits
        .filter(|c| !target_pod::is_sidecar(c))
        .filter_map(|c| {
            let context = c.security_context.as_ref()?;
            let privileged = context.privileged == Some(true);
            let added =
                context.capabilities.as_ref().and_then(|c| c.add.as_deref()).unwrap_or_default();
            let network = added.iter().find(|capability| {
                matches!(capability.trim_start_matches("CAP_"), "NET_ADMIN" | "SYS_ADMIN" | "ALL")
            });
            let what = match (privileged, network) {
                (true, _) => "it is privileged".to_owned(),
                (false, Some(capability)) => format!("it has {capability}"),
                (false, None) => return None,
            };
            let message = format!(
                "the init container may have changed the pod's network or node ({what}), and that does not move"
            );
            Some(Violation::of_container(&c.name, message))
        })
        .collect()
}

fn post_start_hooks(input: &Input<'_>) -> Vec<Violation> {
    let Some(pod) = input.pod else { return Vec::new() };
    let asked = post_start::asked(pod);
    post_start::hooks(pod)
        .iter()
        .filter_map(|hook| {
            let message = match asked {
                Some(Asked::Skip) => return None,
                Some(Asked::Run) => {
                    format!("the postStart hook cannot be run after a move: {}", hook.problem()?)
                }
                None => "the container has a postStart hook, which would run again in the middle of its life".into(),
            };
            Some(Violation::of_container(&hook.container.name, message))
        })
        .collect()
}

fn host_name(input: &Input<'_>) -> Vec<Violation> {
    let target = target_pod::TargetFor {
        migration_namespace: "",
        migration_name: "",
        migration_uid: "",
        node: "",
        preserve_address: false,
        starts_afresh: false,
    };
    let error = input.pod.and_then(|pod| target_pod::target_pod(pod, &target).err());
    error.map(|error| Violation::of_pod(error.to_string())).into_iter().collect()
}

/// Until the hand-over the target bears one label of ours and none of the source's. An owner whose
/// selector matches even that would adopt it beside the source, and remove one of the two.
fn owner_selector(input: &Input<'_>) -> Vec<Violation> {
    let uid = input.migration.metadata.uid.clone().unwrap_or_default();
    let bare = [(transship_api::names::MIGRATION_LABEL.to_owned(), uid)].into();
    let owner = input.owner.filter(|owner| handover::matches(&owner.selector, &bare));
    let message =
        |kind: &str| format!("the selector of the pod's {kind} also matches pods without labels");
    owner.map(|owner| Violation::of_pod(message(owner.kind.as_str()))).into_iter().collect()
}

fn all_containers_run(input: &Input<'_>) -> Vec<Violation> {
    let Some(status) = input.pod.and_then(|pod| pod.status.as_ref()) else { return Vec::new() };
    let runs = |name: &str| {
        status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten()
            .any(|s| s.name == name && s.state.as_ref().is_some_and(|s| s.running.is_some()))
    };
    // kubelet tells it a while later.
    let has_ended = |name: &str| {
        input.facts.is_some_and(|facts| {
            match facts.containers.iter().find(|container| container.name == name) {
                Some(container) => !container.running,
                // The runtime has none of this name; without a sandbox nothing at all was found out.
                None => !facts.sandbox_id.is_empty(),
            }
        })
    };
    in_containers(input, |c| {
        (!runs(&c.name) || has_ended(&c.name)).then(|| "the container does not run".into())
    })
}

fn target_pod_is_taken(input: &Input<'_>) -> Vec<Violation> {
    match input.answer {
        Some(TargetAnswer::Refused(why)) => {
            vec![Violation::of_pod(format!("the API server would not take the target pod: {why}"))]
        }
        _ => Vec::new(),
    }
}

fn target_pod_is_unchanged(input: &Input<'_>) -> Vec<Violation> {
    match input.answer {
        Some(TargetAnswer::Taken(changes)) if !changes.is_empty() => vec![Violation::of_pod(
            format!("the API server would change the target pod: {}", changes.join(", ")),
        )],
        _ => Vec::new(),
    }
}
