//! What processes, network and nodes have that cannot be moved, as the agents found it.

use transship_api as api;

use super::{Check, Input, NodeView, Violation};
use crate::facts::{ContainerFacts, ProcessFacts, ProcessState, ResourceKind};

/// The checks of what was found.
pub const CHECKS: &[Check] = &[
    architecture,
    cpu_features,
    criu_versions,
    cgroup_versions,
    stopped_processes,
    traced_processes,
    own_namespaces,
    container_user_namespace,
    frozen_containers,
    criu_configuration,
    io_uring,
    mptcp,
    unsupported_resources,
    message_queues,
    network_rules,
    network_devices,
    space,
];

fn violation(check: &'static str, message: impl Into<String>, remedy: &str) -> Option<Violation> {
    Some(Violation {
        check,
        message: message.into(),
        remedy: remedy.to_owned(),
        ..Violation::default()
    })
}

/// The first process for which `what` says something.
fn process(
    input: &Input<'_>,
    check: &'static str,
    remedy: &str,
    what: impl Fn(&ContainerFacts, &ProcessFacts) -> Option<String>,
) -> Option<Violation> {
    let facts = input.facts?;
    facts.containers.iter().filter(|c| c.running).find_map(|container| {
        container.processes.iter().find_map(|process| {
            let message = what(container, process)?;
            violation(check, message, remedy).map(|v| Violation {
                container: container.name.clone(),
                process: format!("{} ({})", process.name, process.container_pid),
                ..v
            })
        })
    })
}

fn both<'a, T>(
    input: &'a Input<'_>,
    get: impl Fn(&'a api::NodeStatus) -> Option<T>,
) -> Option<(T, T)> {
    let status = |node: &'a NodeView| get(node.agent.as_ref()?.status.as_ref()?);
    Some((status(input.source()?)?, status(input.target?)?))
}

fn architecture(input: &Input<'_>) -> Option<Violation> {
    let (source, target) = both(input, |s| s.arch.as_deref())?;
    if source == target {
        return None;
    }
    violation(
        "Architecture",
        format!("the source is {source}, the target {target}"),
        "choose a target of the same architecture",
    )
}

fn cpu_features(input: &Input<'_>) -> Option<Violation> {
    let (source, target) = both(input, |s| s.cpu.as_ref())?;
    let missing: Vec<&str> = source
        .features
        .iter()
        .filter(|f| !target.features.contains(f))
        .map(String::as_str)
        .collect();
    if missing.is_empty() || target.features.is_empty() {
        return None;
    }
    let shown = missing.iter().take(8).copied().collect::<Vec<_>>().join(" ");
    let more = missing.len().saturating_sub(8);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    violation(
        "CpuFeatures",
        format!("the target's CPU lacks {shown}{more}, which the program may have begun to use"),
        "choose a target whose CPU has all features of the source's",
    )
}

fn criu_versions(input: &Input<'_>) -> Option<Violation> {
    let (source, target) = both(input, |s| s.criu.as_ref().map(|c| c.version.as_str()))?;
    if source == target {
        return None;
    }
    violation(
        "CriuVersion",
        format!("CRIU is {source} on the source and {target} on the target"),
        "wait until the agents of both nodes run the same version",
    )
}

fn cgroup_versions(input: &Input<'_>) -> Option<Violation> {
    let (source, target) = both(input, |s| s.runtime.as_ref()?.cgroup_version)?;
    if source == target {
        return None;
    }
    violation(
        "CgroupVersion",
        format!("the source uses cgroup version {source}, the target version {target}"),
        "choose a target with the same cgroup version",
    )
}

fn stopped_processes(input: &Input<'_>) -> Option<Violation> {
    process(input, "StoppedProcess", "continue it (SIGCONT) or end it", |_, p| {
        (p.state == ProcessState::Stopped)
            .then(|| "it was stopped by a signal, and a dump would wait for it".into())
    })
}

fn traced_processes(input: &Input<'_>) -> Option<Violation> {
    process(input, "TracedProcess", "end the debugger or tracer", |_, p| {
        (p.tracer_pid != 0 || p.state == ProcessState::Traced)
            .then(|| format!("process {} traces it", p.tracer_pid))
    })
}

fn own_namespaces(input: &Input<'_>) -> Option<Violation> {
    process(input, "NestedNamespaces", "run it in the container's own namespaces", |_, p| {
        let found: Vec<&str> = p
            .own_namespaces
            .iter()
            .map(String::as_str)
            // CRIU restores mount, UTS, IPC and network namespaces made by the application.
            .filter(|ns| matches!(*ns, "pid" | "user" | "cgroup" | "time"))
            .collect();
        (!found.is_empty()).then(|| format!("it has namespaces of its own ({})", found.join(", ")))
    })
}

fn container_user_namespace(input: &Input<'_>) -> Option<Violation> {
    let container = input.facts?.containers.iter().find(|c| c.running && c.user_namespace)?;
    violation(
        "UserNamespace",
        "the container has a user namespace of its own, which cannot be restored",
        "leave out hostUsers: false",
    )
    .map(|v| Violation { container: container.name.clone(), ..v })
}

fn frozen_containers(input: &Input<'_>) -> Option<Violation> {
    let container = input.facts?.containers.iter().find(|c| c.running && c.frozen)?;
    violation(
        "FrozenContainer",
        "the container is paused already, not by this migration",
        "resume it first",
    )
    .map(|v| Violation { container: container.name.clone(), ..v })
}

fn criu_configuration(input: &Input<'_>) -> Option<Violation> {
    /// Where the host side keeps its own, which a container has that was restored before.
    const OURS: &str = "/var/lib/transship/";
    let containers = &input.facts?.containers;
    let container = containers.iter().find(|container| {
        let file = &container.criu_config;
        let ours = file.starts_with(OURS) && !file.contains("/../");
        container.running && !file.is_empty() && !ours
    })?;
    violation(
        "CriuConfiguration",
        format!(
            "its annotation org.criu.config names {}, which would change how CRIU saves it",
            container.criu_config
        ),
        "take the annotation off the pod template, and let the pod start anew",
    )
    .map(|v| Violation { container: container.name.clone(), ..v })
}

fn has(process: &ProcessFacts, kind: ResourceKind) -> Option<&str> {
    process.resources.iter().find(|r| r.kind == kind).map(|r| r.detail.as_str())
}

fn io_uring(input: &Input<'_>) -> Option<Violation> {
    process(
        input,
        "IoUring",
        "set seccompProfile type RuntimeDefault in the pod template, with which it falls back to other calls, and let the pod start anew",
        |_, p| {
            has(p, ResourceKind::IoUring).map(|_| "it uses io_uring, which CRIU cannot save".into())
        },
    )
}

fn mptcp(input: &Input<'_>) -> Option<Violation> {
    process(
        input,
        "Mptcp",
        "set the environment variable GODEBUG=multipathtcp=0 in the pod template (Go programs), and let the pod start anew",
        |_, p| {
            has(p, ResourceKind::Mptcp)
                .map(|_| "it has a multipath TCP socket, which CRIU cannot save".into())
        },
    )
}

fn unsupported_resources(input: &Input<'_>) -> Option<Violation> {
    /// Kind, check, what it is, remedy.
    const TABLE: [(ResourceKind, &str, &str, &str); 11] = [
        (
            ResourceKind::UnsupportedSocket,
            "Socket",
            "a socket of an unsupported kind",
            "close it, or do without it",
        ),
        (
            ResourceKind::RootfsWatch,
            "RootfsWatch",
            "a file watch on the container's root file system",
            "watch a directory of an emptyDir instead",
        ),
        (ResourceKind::Fanotify, "Fanotify", "a fanotify descriptor", "do without it"),
        (
            ResourceKind::Terminal,
            "Terminal",
            "a terminal of the node",
            "end the session that uses it",
        ),
        (ResourceKind::Userfaultfd, "Userfaultfd", "a userfaultfd", "do without it"),
        (ResourceKind::Device, "Device", "an open device", "run it without the device"),
        (
            ResourceKind::MessageQueue,
            "MessageQueue",
            "a POSIX message queue",
            "close it, or do without it",
        ),
        (ResourceKind::SecretMemory, "SecretMemory", "a secret memory area", "do without it"),
        (ResourceKind::Bpf, "Bpf", "a BPF object", "do without it"),
        (ResourceKind::PerfEvent, "PerfEvent", "a performance counter", "end the measurement"),
        (
            ResourceKind::OutsideFile,
            "OutsideFile",
            "a file from outside the container",
            "close it; it is often left by 'kubectl exec' or a debugger",
        ),
    ];
    TABLE.iter().find_map(|(kind, check, what, remedy)| {
        process(input, check, remedy, |_, p| {
            has(p, *kind).map(|detail| match detail {
                "" => format!("it has {what}"),
                detail => format!("it has {what}: {detail}"),
            })
        })
    })
}

fn message_queues(input: &Input<'_>) -> Option<Violation> {
    let queues = input.facts?.ipc.posix_queues;
    if queues == 0 {
        return None;
    }
    violation(
        "MessageQueue",
        format!("the pod has {queues} POSIX message queues, which CRIU cannot save"),
        "unlink them, or use System V message queues",
    )
}

fn network_rules(input: &Input<'_>) -> Option<Violation> {
    let ours = |table: &str| {
        table
            .split(' ')
            .next_back()
            .is_some_and(|n| n.starts_with("transship") || n.starts_with("CRIU"))
    };
    let tables: Vec<&str> = input
        .facts?
        .network
        .rule_tables
        .iter()
        .map(String::as_str)
        .filter(|table| !ours(table))
        .collect();
    if tables.is_empty() {
        return None;
    }
    violation(
        "NetworkRules",
        format!(
            "packet filter tables were put into the pod's network ({}), and they do not move",
            tables.join(", ")
        ),
        "run the pod without a mesh or init container that makes them",
    )
}

fn network_devices(input: &Input<'_>) -> Option<Violation> {
    let network = &input.facts?.network;
    let found: Vec<&str> =
        network.other_interfaces.iter().chain(&network.other_routes).map(String::as_str).collect();
    if found.is_empty() {
        return None;
    }
    violation(
        "NetworkDevices",
        format!("the pod has further interfaces or routes ({})", found.join(", ")),
        "run the pod with its one interface",
    )
}

/// Images and files are received before they are used: twice the amount leaves room for both.
fn space(input: &Input<'_>) -> Option<Violation> {
    let needed = input.facts?.total_bytes();
    let free = input.target_facts?.node.free_bytes;
    // Zero means that the agent could not say.
    if free == 0 || free >= needed.saturating_mul(2) {
        return None;
    }
    violation(
        "Space",
        format!(
            "the pod has {} of memory and files, the target {} free for receiving it",
            api::quantity::human_bytes(needed),
            api::quantity::human_bytes(free)
        ),
        "make room on the target or choose another",
    )
}
