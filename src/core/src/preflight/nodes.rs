//! Whether the target node is such that what runs on the source can run there.

use k8s_openapi::api::core::v1::{Container, Pod};
use transship_api as api;

use super::{Check, Input, NodeView, Violation, list_some};
use crate::facts::{ContainerFacts, ImageFacts};
use crate::sequential_pod::is_exclusive;
use crate::target_pod::{is_sidecar, normal_reference, pinned_image};

/// The checks of the target node.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "Architecture",
        finds: "nodes of different architectures",
        remedy: "choose a target of the same architecture",
        look: architecture,
    },
    Check {
        name: "CpuFeatures",
        finds: "CPU features of the source that the target lacks",
        remedy: "choose a target whose CPU has all features of the source's",
        look: cpu_features,
    },
    Check {
        name: "KernelFeatures",
        finds: "kernel features that the source's CRIU saves and the target's cannot restore",
        remedy: "choose a target whose kernel has them",
        look: kernel_features,
    },
    Check {
        name: "CriuVersion",
        finds: "different versions of CRIU",
        remedy: "wait until the agents of both nodes run the same version",
        look: criu_versions,
    },
    Check {
        name: "CgroupVersion",
        finds: "different versions of cgroups",
        remedy: "choose a target with the same cgroup version",
        look: cgroup_versions,
    },
    Check {
        name: "Image",
        finds: "an image that the target lacks and no registry can be asked for in time: without a digest, with imagePullPolicy: Never, or of a further container; or that is another one there",
        remedy: "have it on the target beforehand (start a pod of that image there, or load it), name a node that has it in targetNode, or run the pod from a registry's image",
        look: images,
    },
    Check {
        name: "Space",
        finds: "too little disk, where /var/lib/transship is, on the target for memory and files, or on the source for unlinked files and, in the sequential order, for its own copy",
        remedy: "make room on the node or choose another",
        look: space,
    },
    Check {
        name: "Memory",
        finds: "too little memory on the target",
        remedy: "make room on the target or choose another",
        look: memory,
    },
    super::unseen::CHECK,
];

fn both<'a, T>(
    input: &'a Input<'_>,
    get: impl Fn(&'a api::NodeStatus) -> Option<T>,
) -> Option<(T, T)> {
    let status = |node: &'a NodeView| get(node.agent.as_ref()?.status.as_ref()?);
    Some((status(input.source()?)?, status(input.target?)?))
}

fn found(message: Option<String>) -> Vec<Violation> {
    message.map(Violation::of_pod).into_iter().collect()
}

fn architecture(input: &Input<'_>) -> Vec<Violation> {
    let differ = both(input, |s| s.arch.as_deref()).filter(|(source, target)| source != target);
    found(differ.map(|(source, target)| format!("the source is {source}, the target {target}")))
}

fn cpu_features(input: &Input<'_>) -> Vec<Violation> {
    let Some((source, target)) = both(input, |s| s.cpu.as_ref()) else { return Vec::new() };
    let missing = missing(&source.features, &target.features, |_| true);
    found(missing.map(|missing| {
        format!("the target's CPU lacks {missing}, which the program may have begun to use")
    }))
}

/// What of the source the target lacks, the first few; nothing where the target could not say.
fn missing(source: &[String], target: &[String], counts: impl Fn(&str) -> bool) -> Option<String> {
    let missing: Vec<&str> = source
        .iter()
        .map(String::as_str)
        .filter(|f| counts(f) && !target.iter().any(|there| there == f))
        .collect();
    (!missing.is_empty() && !target.is_empty()).then(|| list_some(missing))
}

fn kernel_features(input: &Input<'_>) -> Vec<Violation> {
    /// What images of a dump with the feature cannot be restored without.
    const FOR_RESTORE: [&str; 7] = [
        "clone3_set_tid",
        "ipv6_freebind",
        "move_mount_set_group",
        "openat2",
        "rseq",
        "seccomp_filters",
        "timens",
    ];
    let Some((source, target)) = both(input, |s| s.criu.as_ref()) else { return Vec::new() };
    let missing = missing(&source.features, &target.features, |f| FOR_RESTORE.contains(&f));
    found(missing.map(|missing| {
        format!("the target's kernel lacks {missing}, as 'criu check --feature' names it")
    }))
}

fn criu_versions(input: &Input<'_>) -> Vec<Violation> {
    let versions = both(input, |s| s.criu.as_ref().map(|c| c.version.as_str()));
    let differ = versions.filter(|(source, target)| source != target);
    found(differ.map(|(source, target)| {
        format!("CRIU is {source} on the source and {target} on the target")
    }))
}

fn cgroup_versions(input: &Input<'_>) -> Vec<Violation> {
    let versions = both(input, |s| s.runtime.as_ref()?.cgroup_version);
    let differ = versions.filter(|(source, target)| source != target);
    found(differ.map(|(source, target)| {
        format!("the source uses cgroup version {source}, the target version {target}")
    }))
}

/// The target pod names its images by digest where the runtime knows one, and kubelet pulls what
/// is not there. Otherwise the name's image must be there, and be the same.
///
/// kubelet pulls and starts one container after the other, in every order of handing over, and the
/// first that moves is held until the source stands still: what comes behind it must be there too.
fn images(input: &Input<'_>) -> Vec<Violation> {
    let (Some(pod), Some(facts), Some(target)) = (input.pod, input.facts, input.target_facts)
    else {
        return Vec::new();
    };
    // An agent that could not say leaves the list empty.
    let there = &target.node.images;
    if there.is_empty() {
        return Vec::new();
    }
    let Some(spec) = &pod.spec else { return Vec::new() };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let first = inits.iter().position(is_sidecar).unwrap_or(inits.len());
    let in_order = || inits.iter().chain(&spec.containers);
    let early: Vec<String> = in_order()
        .take(first + 1)
        .filter(|c| pulls(c))
        .filter_map(|c| wanted_image(pod, c))
        .collect();
    in_order()
        .skip(first)
        .filter_map(|container| {
            let wanted = wanted_image(pod, container)?;
            let in_time = early.contains(&wanted);
            // An init container that has ended runs nothing of its image on the target.
            let source = facts.containers.iter().find(|c| c.running && c.name == container.name);
            let runs = source.map_or("", image_of);
            let message = image_is_there(container, &wanted, in_time, runs, there)?;
            Some(Violation::of_container(&container.name, message))
        })
        .collect()
}

/// The image that the target pod asks for, with its name spelled out.
fn wanted_image(pod: &Pod, container: &Container) -> Option<String> {
    let image = container.image.as_deref()?;
    let pinned = pinned_image(image, image_id(pod, &container.name));
    Some(normal_reference(pinned.as_deref().unwrap_or(image)))
}

/// What is to be said against a container's image, `wanted` by this name on the target, which would pull it `in_time`
/// or not. The container `runs` this one on the source, where that is known.
fn image_is_there(
    container: &Container,
    wanted: &str,
    in_time: bool,
    runs: &str,
    there: &[ImageFacts],
) -> Option<String> {
    let image = container.image.as_deref()?;
    let by_digest = wanted.contains('@');
    let named = there.iter().find(|i| i.names.iter().any(|name| normal_reference(name) == wanted));
    match named {
        Some(found) if !by_digest && differ(&found.id, runs) => Some(format!(
            "{image} is another image on the target ({}) than the container runs ({runs})",
            found.id
        )),
        Some(_) => None,
        None if by_digest && in_time => None,
        None if !pulls(container) => {
            Some(format!("the target does not have {wanted}, and imagePullPolicy is Never"))
        }
        None if !by_digest => Some(format!(
            "the target does not have {image}, which has no digest by which a registry would serve it"
        )),
        None => Some(format!(
            "the target does not have {wanted}, which kubelet would pull only while the application stands still"
        )),
    }
}

/// Whether kubelet pulls the container's image where a node lacks it.
fn pulls(container: &Container) -> bool {
    container.image_pull_policy.as_deref() != Some("Never")
}

/// The digest of the configuration of a container's image, where it is known. Of an image without
/// a name by digest, runtimes tell it in that name's place.
fn image_of(container: &ContainerFacts) -> &str {
    let told = [&container.image_id, &container.image_digest];
    told.into_iter().find(|id| id.starts_with("sha256:")).map_or("", String::as_str)
}

fn differ(one: &str, other: &str) -> bool {
    !one.is_empty() && !other.is_empty() && one != other
}

fn image_id<'a>(pod: &'a Pod, container: &str) -> &'a str {
    let status = pod.status.as_ref();
    let statuses = status
        .into_iter()
        .flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
    let of = statuses.filter(|s| s.name == container).map(|s| s.image_id.as_str()).next();
    of.unwrap_or_default()
}

/// Where a node keeps what it receives.
const STATE: &str = "/var/lib/transship";

fn space(input: &Input<'_>) -> Vec<Violation> {
    if super::cold::is_cold(input) {
        return super::cold::space(input);
    }
    let Some(facts) = input.facts else { return Vec::new() };
    // Zero means that the agent could not say.
    let lacks = |free: u64, needed: u64| free != 0 && free < needed;
    let people = api::quantity::human_bytes;
    let needed = facts.total_bytes();
    let free = input.target_facts.map_or(0, |target| target.node.free_bytes);
    // Images and files are received before they are used: twice the amount leaves room for both.
    let target = lacks(free, needed.saturating_mul(2)).then(|| {
        format!(
            "the pod has {} of memory and files, {} has {} free for receiving it in {STATE}",
            people(needed),
            input.target.map_or("the target", |target| target.name.as_str()),
            people(free)
        )
    });
    // CRIU writes files without a name into its images.
    let unlinked = super::process::unlinked_bytes(facts);
    let free = facts.node.free_bytes;
    let node = input.source().map_or("the source", |source| source.name.as_str());
    let source = if input.pod.is_some_and(is_exclusive) {
        // In the sequential order everything else is kept there as well.
        let kept = needed.saturating_add(unlinked);
        lacks(free, kept).then(|| {
            format!(
                "the pod's {} of memory and files are kept on the source as well, and {node} has {} free in {STATE}",
                people(kept),
                people(free)
            )
        })
    } else {
        lacks(free, unlinked).then(|| {
            format!(
                "unlinked files of {} are saved on the source first, and {node} has {} free in {STATE}",
                people(unlinked),
                people(free)
            )
        })
    };
    [found(target), found(source)].concat()
}

fn memory(input: &Input<'_>) -> Vec<Violation> {
    let (Some(facts), Some(target)) = (input.facts, input.target_facts) else { return Vec::new() };
    let needed = facts.needed_memory_bytes();
    let available = target.node.available_memory_bytes;
    let lacks = available != 0 && available < needed;
    found(lacks.then(|| {
        format!(
            "the pod needs {} of memory, the target has {} available",
            api::quantity::human_bytes(needed),
            api::quantity::human_bytes(available)
        )
    }))
}
