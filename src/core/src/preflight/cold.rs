//! Cold: nothing of the processes moves, so what CRIU cannot save does not matter. What keeps files from moving,
//! or an ended pod from being started again where the move comes to nothing, does.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use transship_api::Mode;
use transship_api::limits::{ROOT_BYTES, ROOT_ENTRIES, room_for};
use transship_api::quantity::human_bytes;

use super::{Check, Input, Violation, process};
use crate::facts::PodFacts;
use crate::migration::state::probe_patience;
use crate::sequential_pod::is_exclusive;

/// How fast files go to the other node where no limit is given, in bytes a second.
const USUAL_RATE: u64 = 50 << 20;
/// How long kubelet lets a pod end that does not say.
const GRACE_SECONDS: u64 = 30;

/// Checks that are about memory, connections or the frozen moment although they are no processes' checks.
const NOT_OF_FILES: [&str; 6] = [
    "Terminal",
    "PostStartHook",
    "TranslatedConnections",
    "CpuFeatures",
    "KernelFeatures",
    "CriuVersion",
];
/// A paused container cannot end by itself.
const OF_PROCESSES: &str = "FrozenContainer";

/// Only for this mode.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "NoNameOfItsOwn",
        finds: "a pod that others can stand in for: of a ReplicaSet or a Job",
        remedy: "delete the pod, for which its owner makes another, or write mode: StopAndCopy",
        look: no_name_of_its_own,
    },
    Check {
        name: "RestartPolicy",
        finds: "a restartPolicy other than Always, or rules of a container's own: where the move fails kubelet would not start it again",
        remedy: "write mode: StopAndCopy",
        look: restart_policy,
    },
    Check {
        name: "GracePeriod",
        finds: "a pod that may take as long to end, and its files to be copied, as the whole move",
        remedy: "write a spec.timeout that is longer than the pod's terminationGracePeriodSeconds, by as long as copying its files may take",
        look: grace_period,
    },
    Check {
        name: "PreStopHook",
        finds: "a container with a preStop hook whose liveness probe may give up while the pod ends: kubelet would run the hook once more",
        remedy: "let the liveness probe be patient (periodSeconds, failureThreshold) for longer than terminationGracePeriodSeconds, or do without one of them",
        look: pre_stop_hook,
    },
    Check {
        name: "RootFilesystem",
        finds: "a container that has changed more than 4 GiB, or 200000 files, outside of volumes",
        remedy: "keep the data in a volume",
        look: root_file_systems,
    },
];

/// Whether only files move.
pub(super) fn is_cold(input: &Input<'_>) -> bool {
    input.migration.spec.mode == Mode::Cold
}

/// Whether a check counts where only files move.
pub(super) fn counts(check: &Check) -> bool {
    let of_processes = process::CHECKS.iter().any(|other| other.name == check.name);
    !NOT_OF_FILES.contains(&check.name) && (!of_processes || check.name == OF_PROCESSES)
}

fn no_name_of_its_own(input: &Input<'_>) -> Vec<Violation> {
    let others = input.pod.is_some_and(|pod| !is_exclusive(pod));
    let message = "the pod has no name of its own, and cannot be moved cold in this version";
    others.then(|| Violation::of_pod(message)).into_iter().collect()
}

fn spec<'a>(input: &Input<'a>) -> Option<&'a PodSpec> {
    input.pod?.spec.as_ref()
}

fn restart_policy(input: &Input<'_>) -> Vec<Violation> {
    let Some(spec) = spec(input) else { return Vec::new() };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    if policy != "Always" {
        return vec![Violation::of_pod(format!("the pod's restartPolicy is {policy}"))];
    }
    let has_rules = |container: &&Container| {
        container.restart_policy.as_deref().is_some_and(|policy| policy != "Always")
            || container.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty())
    };
    super::pod::moved(spec)
        .filter(has_rules)
        .map(|c| Violation::of_container(&c.name, "it has a restart policy of its own"))
        .collect()
}

fn grace_seconds(input: &Input<'_>) -> u64 {
    let grace = spec(input).and_then(|spec| spec.termination_grace_period_seconds);
    grace.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(GRACE_SECONDS)
}

fn grace_period(input: &Input<'_>) -> Vec<Violation> {
    let asked = &input.migration.spec;
    // What cannot be read is refused as such.
    let (Ok(timeout), Ok(rate)) = (asked.timeout(), asked.bandwidth_limit()) else {
        return Vec::new();
    };
    let grace = grace_seconds(input);
    let bytes = input.facts.map_or(0, PodFacts::file_bytes);
    let copying = bytes / rate.unwrap_or(USUAL_RATE).max(1);
    let message = || {
        let files = match copying {
            0 => String::new(),
            _ => format!(" and {copying} s to have its {} of files copied", human_bytes(bytes)),
        };
        format!("the pod may take {grace} s to end{files}, and the whole move {}", asked.timeout)
    };
    let is_longer = Duration::from_secs(grace.saturating_add(copying)) >= timeout;
    is_longer.then(|| Violation::of_pod(message())).into_iter().collect()
}

fn pre_stop_hook(input: &Input<'_>) -> Vec<Violation> {
    let Some(spec) = spec(input) else { return Vec::new() };
    let grace = grace_seconds(input);
    let impatient = |container: &Container| {
        container.lifecycle.as_ref()?.pre_stop.as_ref()?;
        let patience = probe_patience(container.liveness_probe.as_ref()?).as_secs();
        (patience < grace).then(|| {
            Violation::of_container(
                &container.name,
                format!(
                    "its liveness probe gives up after {patience} s, and the pod may take {grace} s to end"
                ),
            )
        })
    };
    super::pod::moved(spec).filter_map(impatient).collect()
}

fn root_file_systems(input: &Input<'_>) -> Vec<Violation> {
    let containers = input.facts.into_iter().flat_map(|facts| &facts.containers);
    containers
        .filter(|container| container.running)
        .filter_map(|container| {
            let (bytes, files) = (container.rootfs_changed_bytes, container.rootfs_changed_files);
            (bytes > ROOT_BYTES || files > ROOT_ENTRIES).then(|| {
                let bytes = human_bytes(bytes);
                let message = format!(
                    "the container has changed {bytes} in {files} files outside of volumes"
                );
                Violation::of_container(&container.name, message)
            })
        })
        .collect()
}

/// The files go to the target's disk and to the source's own, and from there to their places.
pub(super) fn space(input: &Input<'_>) -> Vec<Violation> {
    let Some(facts) = input.facts else { return Vec::new() };
    let needed = facts.file_bytes();
    let target = input.target_facts.map_or(0, |target| target.node.free_bytes);
    [
        ("the target", target, room_for(needed.saturating_mul(2))),
        ("the source", facts.node.free_bytes, room_for(needed)),
    ]
    .into_iter()
    // Zero means that the agent could not say.
    .filter(|(_, free, wanted)| *free != 0 && free < wanted)
    .map(|(node, free, wanted)| {
        Violation::of_pod(format!(
            "the pod has {} of files, for which {node} needs {} and has {} free",
            human_bytes(needed),
            human_bytes(wanted),
            human_bytes(free)
        ))
    })
    .collect()
}
