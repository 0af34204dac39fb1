//! What the processes have that cannot be saved or restored, as the source's agent found it.
//!
//! The table says what CRIU 4.2 refuses, and no more: what it keeps must not be refused here.

use std::path::Path;

use k8s_openapi::api::core::v1::VolumeProjection;
use transship_api as api;

use super::pod::{moved, moves};
use super::{Check, Input, NAMES_SHOWN, Violation, list_some, list_up_to};
use crate::facts::{
    ContainerFacts, MoreResources, MountOrigin, PodFacts, ProcessFacts, ProcessState, REMOVED_NAME,
    REMOVED_ROOT, Resource, ResourceKind,
};
use crate::placement::volumes::Volumes;

/// The largest unlinked file that moves: the `ghost-limit` that the holder gives CRIU.
pub const GHOST_LIMIT: u64 = 256 << 20;

/// The checks of the processes.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "FrozenContainer",
        finds: "a container that is paused, not by this migration",
        remedy: "resume it first",
        look: frozen_containers,
    },
    Check {
        name: "CriuConfiguration",
        finds: "an annotation `org.criu.config`, which would change how the container is saved",
        remedy: "take the annotation off the pod template, and let the pod start anew",
        look: criu_configuration,
    },
    Check {
        name: "StoppedProcess",
        finds: "a process stopped by a signal: a dump would wait for it",
        remedy: "continue it (SIGCONT) or end it",
        look: stopped_processes,
    },
    Check {
        name: "TracedProcess",
        finds: "a process under a debugger or tracer",
        remedy: "end the debugger or tracer",
        look: traced_processes,
    },
    Check {
        name: "DeadMainThread",
        finds: "a process whose main thread has ended while others run",
        remedy: "end the process, or let its main thread wait for the others",
        look: dead_main_threads,
    },
    Check {
        name: "NestedNamespaces",
        finds: "a process in PID, user, network, IPC, UTS, cgroup or time namespaces of its own",
        remedy: "run it in the container's own namespaces",
        look: own_namespaces,
    },
    Check {
        name: "Mounts",
        finds: "a file system that the application has mounted, of a kind that CRIU does not restore",
        remedy: "unmount it, or let the pod mount it as a volume",
        look: mounts,
    },
    Check {
        name: "IoUring",
        finds: "io_uring (newer libuv, MariaDB and others use it where they can)",
        remedy: "set seccompProfile type RuntimeDefault in the pod template, with which it falls back to other calls, and let the pod start anew",
        look: |input| {
            resources(input, ResourceKind::IoUring, "it uses io_uring, which CRIU cannot save")
        },
    },
    Check {
        name: "Mptcp",
        finds: "multipath TCP sockets (Go 1.24 and later listens with them)",
        remedy: "set the environment variable GODEBUG=multipathtcp=0 in the pod template (Go programs), and let the pod start anew",
        look: |input| {
            resources(
                input,
                ResourceKind::Mptcp,
                "it has a multipath TCP socket, which CRIU cannot save",
            )
        },
    },
    Check {
        name: "Socket",
        finds: "sockets of other kinds than TCP, UDP, ICMP, raw, Unix, netlink and packet, such as SCTP and VSOCK",
        remedy: "close it, or do without it",
        look: |input| {
            resources(
                input,
                ResourceKind::UnsupportedSocket,
                "it has a socket of an unsupported kind",
            )
        },
    },
    Check {
        name: "ForeignSocket",
        finds: "a Unix socket connected to a process outside the container, also to another container of the pod or a `kubectl exec`",
        remedy: "end the connection, or let the two talk over TCP",
        look: |input| {
            resources(
                input,
                ResourceKind::ForeignSocket,
                "it has a Unix socket whose other end is outside the container",
            )
        },
    },
    Check {
        name: "RootfsWatch",
        finds: "inotify on the container's root file system (`tail -F`, file watchers), but for /etc, /var/log and /var/spool, where CRIU finds the file again",
        remedy: "watch a directory of an emptyDir instead",
        look: |input| {
            resources(
                input,
                ResourceKind::RootfsWatch,
                "it has a file watch on the container's root file system",
            )
        },
    },
    Check {
        name: "Fanotify",
        finds: "fanotify descriptors",
        remedy: "do without it",
        look: |input| resources(input, ResourceKind::Fanotify, "it has a fanotify descriptor"),
    },
    Check {
        name: "OpenTerminal",
        finds: "a terminal whose other end is outside the container, or a /dev/tty without its terminal",
        remedy: "end the session that uses it",
        look: terminals,
    },
    Check {
        name: "Userfaultfd",
        finds: "an open userfaultfd",
        remedy: "do without it",
        look: |input| resources(input, ResourceKind::Userfaultfd, "it has a userfaultfd"),
    },
    Check {
        name: "Device",
        finds: "open or mapped devices other than those every container has (null, zero, random, ...)",
        remedy: "run it without the device",
        look: |input| resources(input, ResourceKind::Device, "it has an open device"),
    },
    Check {
        name: "MessageQueue",
        finds: "POSIX message queues",
        remedy: "close and unlink them, or use System V message queues",
        look: message_queues,
    },
    Check {
        name: "SecretMemory",
        finds: "memfd_secret areas",
        remedy: "do without it",
        look: |input| resources(input, ResourceKind::SecretMemory, "it has a secret memory area"),
    },
    Check {
        name: "HugePages",
        finds: "memory of huge pages (hugetlb; transparent huge pages are fine)",
        remedy: "run it with ordinary pages; transparent huge pages are fine",
        look: huge_pages,
    },
    Check {
        name: "Bpf",
        finds: "BPF maps, programs and links",
        remedy: "do without it",
        look: |input| resources(input, ResourceKind::Bpf, "it has a BPF object"),
    },
    Check {
        name: "PerfEvent",
        finds: "performance counters",
        remedy: "end the measurement",
        look: |input| resources(input, ResourceKind::PerfEvent, "it has a performance counter"),
    },
    Check {
        name: "KernelObject",
        finds: "descriptors of any other kind that CRIU does not know",
        remedy: "close it, or do without it",
        look: |input| {
            resources(
                input,
                ResourceKind::AnonymousInode,
                "it has a descriptor of a kind that CRIU does not know",
            )
        },
    },
    Check {
        name: "ForeignProcess",
        finds: "a pidfd of a process outside the container",
        remedy: "close it",
        look: |input| {
            resources(
                input,
                ResourceKind::ForeignProcess,
                "it has a descriptor for a process outside the container",
            )
        },
    },
    Check {
        name: "UnlinkedFile",
        finds: "open or mapped files without a name of more than 256 MiB; smaller ones move",
        remedy: "close it, or keep its name",
        look: unlinked_files,
    },
    Check {
        name: "RemovedName",
        finds: "open or mapped files whose name was removed while others stay: files of the image, or hard links",
        remedy: "let the process open the file anew, or restart it (often a library that was replaced)",
        look: |input| {
            resources(
                input,
                ResourceKind::RemovedName,
                "it has a file open whose name was removed, and that still exists",
            )
        },
    },
    Check {
        name: "ProjectedFile",
        finds: "files or watches below the `..<time>` directory of a ConfigMap, Secret or projected volume: it has another name on the target",
        remedy: "close the file after reading it; watch the volume's directory, not the files in it",
        look: |input| {
            resources(
                input,
                ResourceKind::ProjectedFile,
                "it has a file open that has another name on the target",
            )
        },
    },
    Check {
        name: "RemadeFile",
        finds: "files of a volume that is mounted by `subPath`, of the downward API or a projected one with the downward API or a token in it, or with a ConfigMap or Secret that has changed since: on the target they have other content",
        remedy: "close the file after reading it",
        look: remade_files,
    },
    Check {
        name: "OutsideFile",
        finds: "files from outside the container",
        remedy: "close it; it is often left by 'kubectl exec' or a debugger",
        look: |input| {
            resources(input, ResourceKind::OutsideFile, "it has a file from outside the container")
        },
    },
];

/// Whether a check finds something in a process, whatever the pod.
pub fn stands_in_the_way(process: &ProcessFacts) -> bool {
    let processes = vec![process.clone()];
    let container = ContainerFacts { running: true, processes, ..ContainerFacts::default() };
    let facts = PodFacts { containers: vec![container], ..PodFacts::default() };
    let migration = api::Migration::new("", api::MigrationSpec::for_pod(""));
    let volumes = Volumes::default();
    let input = Input { facts: Some(&facts), ..Input::of(&migration, &volumes) };
    CHECKS.iter().any(|check| !(check.look)(&input).is_empty())
}

/// The containers that are moved, as they were found running.
fn containers<'a>(input: &Input<'a>) -> impl Iterator<Item = &'a ContainerFacts> {
    let found = input.facts.into_iter().flat_map(|facts| &facts.containers);
    found.filter(move |c| c.running && moves(input, &c.name))
}

fn in_containers(
    input: &Input<'_>,
    what: impl Fn(&ContainerFacts) -> Option<String>,
) -> Vec<Violation> {
    containers(input).filter_map(|c| Some(Violation::of_container(&c.name, what(c)?))).collect()
}

/// What `what` says of each process. Processes of a container of which the same is said are named
/// together.
fn processes(
    input: &Input<'_>,
    what: impl Fn(&ContainerFacts, &ProcessFacts) -> Option<String>,
) -> Vec<Violation> {
    /// Different things said of one container; the rest is counted.
    const SHOWN: usize = 8;
    let mut found = Vec::new();
    for container in containers(input) {
        let mut said: Vec<(String, Vec<String>)> = Vec::new();
        for process in &container.processes {
            let Some(message) = what(container, process) else { continue };
            let name = format!("{} ({})", process.name, process.container_pid);
            match said.iter_mut().find(|(before, _)| *before == message) {
                Some((_, names)) => names.push(name),
                None => said.push((message, vec![name])),
            }
        }
        let more: usize = said.iter().skip(SHOWN).map(|(_, names)| names.len()).sum();
        said.truncate(SHOWN);
        found.extend(said.into_iter().map(|(message, names)| Violation {
            process: list_some(names.iter().map(String::as_str).collect()),
            ..Violation::of_container(&container.name, message)
        }));
        if more > 0 {
            let message = format!("{more} more processes have the like");
            found.push(Violation::of_container(&container.name, message));
        }
    }
    found
}

/// As [`processes`], of those that a dump takes along.
fn dumped(
    input: &Input<'_>,
    what: impl Fn(&ContainerFacts, &ProcessFacts) -> Option<String>,
) -> Vec<Violation> {
    let judged = |container: &ContainerFacts, process: &ProcessFacts| {
        if process.outside { None } else { what(container, process) }
    };
    processes(input, judged)
}

/// Processes with resources of a kind, each resource by name.
fn resources(input: &Input<'_>, kind: ResourceKind, what: &str) -> Vec<Violation> {
    resources_that(input, kind, what, |_, _| true)
}

/// Processes with resources of a kind that count, each resource by name. Of those that are not told one by one all
/// may.
fn resources_that(
    input: &Input<'_>,
    kind: ResourceKind,
    what: &str,
    counts: impl Fn(&ContainerFacts, &Resource) -> bool,
) -> Vec<Violation> {
    dumped(input, |container, process| {
        let found: Vec<&Resource> =
            of_kind(process, kind).filter(|resource| counts(container, resource)).collect();
        let more: u64 = more(process, kind).map(|more| more.count).sum();
        if found.is_empty() && more == 0 {
            return None;
        }
        let names = listed(&found, more);
        Some(if names.is_empty() { what.to_owned() } else { format!("{what}: {names}") })
    })
}

fn of_kind(process: &ProcessFacts, kind: ResourceKind) -> impl Iterator<Item = &Resource> {
    process.resources.iter().filter(move |resource| resource.kind == kind)
}

fn more(process: &ProcessFacts, kind: ResourceKind) -> impl Iterator<Item = &MoreResources> {
    process.more.iter().filter(move |more| more.kind == kind)
}

/// What resources are called, each once, and how many `more` there are.
fn listed(resources: &[&Resource], more: u64) -> String {
    let mut names: Vec<&str> = resources.iter().map(|r| r.detail.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !name.is_empty());
    if names.is_empty() { String::new() } else { list_up_to(NAMES_SHOWN, names, more) }
}

fn frozen_containers(input: &Input<'_>) -> Vec<Violation> {
    in_containers(input, |c| {
        c.frozen.then(|| "the container is paused already, not by this migration".into())
    })
}

fn criu_configuration(input: &Input<'_>) -> Vec<Violation> {
    /// Where the host side keeps its own, which a container has that was restored before.
    const OURS: &str = "/var/lib/transship/";
    in_containers(input, |c| {
        let file = &c.criu_config;
        let ours = file.starts_with(OURS) && !file.contains("/../");
        (!file.is_empty() && !ours).then(|| {
            format!(
                "its annotation org.criu.config names {file}, which would change how CRIU saves it"
            )
        })
    })
}

fn stopped_processes(input: &Input<'_>) -> Vec<Violation> {
    processes(input, |_, p| {
        (p.state == ProcessState::Stopped)
            .then(|| "it was stopped by a signal, and a dump would wait for it".into())
    })
}

fn traced_processes(input: &Input<'_>) -> Vec<Violation> {
    processes(input, |_, p| {
        (p.tracer_pid != 0 || p.state == ProcessState::Traced)
            .then(|| format!("process {} of the node traces it", p.tracer_pid))
    })
}

fn dead_main_threads(input: &Input<'_>) -> Vec<Violation> {
    dumped(input, |_, p| {
        (p.state == ProcessState::Zombie && p.threads > 1)
            .then(|| "its main thread has ended while others run".into())
    })
}

fn own_namespaces(input: &Input<'_>) -> Vec<Violation> {
    dumped(input, |_, p| {
        let own = p.own_namespaces.iter().map(String::as_str);
        // CRIU restores mount namespaces made by the application.
        let found: Vec<&str> = own.filter(|ns| *ns != "mnt").collect();
        (!found.is_empty()).then(|| format!("it has namespaces of its own ({})", found.join(", ")))
    })
}

fn mounts(input: &Input<'_>) -> Vec<Violation> {
    /// What CRIU makes anew, with its contents where it has any.
    const RESTORED: [&str; 17] = [
        "autofs",
        "binfmt_misc",
        "cgroup",
        "cgroup2",
        "debugfs",
        "devpts",
        "devtmpfs",
        "fusectl",
        "mqueue",
        "overlay",
        "proc",
        "pstore",
        "securityfs",
        "sysfs",
        "tmpfs",
        "tracefs",
        "nsfs",
    ];
    in_containers(input, |c| {
        let found: Vec<String> = c
            .mounts
            .iter()
            .filter(|mount| mount.origin == MountOrigin::Application)
            .filter(|mount| !RESTORED.contains(&mount.fs_type.as_str()))
            .map(|mount| format!("{} on {}", mount.fs_type, mount.path))
            .collect();
        (!found.is_empty()).then(|| {
            let found = list_some(found.iter().map(String::as_str).collect());
            format!("the application has mounted what cannot be restored ({found})")
        })
    })
}

fn terminals(input: &Input<'_>) -> Vec<Violation> {
    // The manifest says it already, and better.
    let asked = |name: &str| {
        let spec = input.pod.and_then(|pod| pod.spec.as_ref());
        spec.is_some_and(|spec| moved(spec).any(|c| c.name == name && c.tty == Some(true)))
    };
    let other_end = resources(
        input,
        ResourceKind::Terminal,
        "it has a terminal whose other end is outside the container",
    );
    let without = resources(
        input,
        ResourceKind::InheritedTerminal,
        "it has /dev/tty open and not the terminal that it stands for",
    );
    let found = other_end.into_iter().chain(without);
    found.filter(|violation| !asked(&violation.container)).collect()
}

fn remade_files(input: &Input<'_>) -> Vec<Violation> {
    let what = "it has a file open that is written anew on the target, with other content";
    resources_that(input, ResourceKind::RemadeFile, what, |container, resource| {
        !comes_again(input, container, resource)
    })
}

/// Whether a file of a projected volume is the same for every pod, and has not changed since it was mounted.
fn comes_again(input: &Input<'_>, container: &ContainerFacts, file: &Resource) -> bool {
    let path = Path::new(file.detail.strip_suffix(REMOVED_NAME).unwrap_or(&file.detail));
    let around = container.mounts.iter().filter(|mount| path.starts_with(&mount.path));
    let Some(mount) = around.max_by_key(|mount| mount.path.len()) else { return false };
    let spec = input.pod.and_then(|pod| pod.spec.as_ref());
    let volumes = spec.and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let volume = volumes.iter().find(|volume| volume.name == mount.volume);
    let sources = volume.and_then(|volume| volume.projected.as_ref()?.sources.as_deref());
    !mount.root.ends_with(REMOVED_ROOT) && sources.is_some_and(|s| s.iter().all(is_the_same))
}

/// Anything else is made for one pod alone: what tells of it, tokens, certificates.
fn is_the_same(source: &VolumeProjection) -> bool {
    source.config_map.is_some() || source.secret.is_some() || source.cluster_trust_bundle.is_some()
}

fn message_queues(input: &Input<'_>) -> Vec<Violation> {
    let open = resources(input, ResourceKind::MessageQueue, "it has a POSIX message queue");
    let there = input.facts.map_or(0, |facts| facts.ipc.posix_queues);
    let there = (there > 0).then(|| {
        Violation::of_pod(format!(
            "there are POSIX message queues in /dev/mqueue ({there}), which CRIU cannot save"
        ))
    });
    open.into_iter().chain(there).collect()
}

fn huge_pages(input: &Input<'_>) -> Vec<Violation> {
    dumped(input, |_, p| {
        let told = || of_kind(p, ResourceKind::HugePages);
        told().next()?;
        let more = more(p, ResourceKind::HugePages).map(|more| more.bytes);
        let bytes: u64 = told().map(|r| r.bytes).chain(more).sum();
        Some(format!("it has {} of memory in huge pages", api::quantity::human_bytes(bytes)))
    })
}

fn unlinked_files(input: &Input<'_>) -> Vec<Violation> {
    dumped(input, |_, p| {
        let large: Vec<String> = of_kind(p, ResourceKind::UnlinkedFile)
            .filter(|r| r.bytes > GHOST_LIMIT)
            .map(|r| format!("{} of {}", r.detail, api::quantity::human_bytes(r.bytes)))
            .collect();
        (!large.is_empty()).then(|| {
            format!(
                "it has a file open that has no name and is larger than {}: {}",
                api::quantity::human_bytes(GHOST_LIMIT),
                list_some(large.iter().map(String::as_str).collect())
            )
        })
    })
}

/// What unlinked files occupy, those that several processes have open counted once.
pub(super) fn unlinked_bytes(facts: &PodFacts) -> u64 {
    const KIND: ResourceKind = ResourceKind::UnlinkedFile;
    let processes = facts.containers.iter().filter(|c| c.running).flat_map(|c| &c.processes);
    let mut seen: Vec<(&str, u64)> = Vec::new();
    for process in processes.filter(|p| !p.outside) {
        seen.extend(of_kind(process, KIND).map(|file| (file.detail.as_str(), file.bytes)));
        seen.extend(more(process, KIND).map(|more| ("", more.bytes)));
    }
    seen.sort_unstable();
    seen.dedup();
    seen.iter().map(|(_, bytes)| bytes).sum()
}
