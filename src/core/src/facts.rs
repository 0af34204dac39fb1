//! What an agent finds out about a running pod and about its node: the input of the checks before
//! a migration. The agent answers `Inspect` with [`PodFacts`] as JSON.
//!
//! Nothing here judges: whether a fact forbids a move is decided by the table of checks. Every
//! field has a default and unknown fields are ignored, so that an operator and agents of
//! neighbouring versions understand each other; a list that could not be found out is empty and
//! the reason stands in [`PodFacts::unseen`].

use serde::{Deserialize, Serialize};

/// Everything about one pod, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodFacts {
    /// UID of the pod (for a mirror pod that of the static pod, as kubelet tells the runtime).
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Id of the ready sandbox.
    pub sandbox_id: String,
    /// The sandbox was made before the node's runtime wrapper was in effect: what the runtime is asked of its
    /// containers does not pass the wrapper.
    pub without_wrapper: bool,
    /// The node it runs on.
    pub node: NodeFacts,
    /// The newest container of each name, ended ones included (see [`ContainerFacts::running`]).
    pub containers: Vec<ContainerFacts>,
    /// The pod's network.
    pub network: NetworkFacts,
    /// Volumes of kind emptyDir, by their directories on the node.
    pub empty_dirs: Vec<EmptyDirFacts>,
    /// What the containers share through the sandbox.
    pub ipc: IpcFacts,
    /// Resident memory of all processes in bytes, shared pages counted once per process.
    pub rss_bytes: u64,
    /// What could not be counted to its end, one sentence each: sizes are too low.
    pub incomplete: Vec<String>,
    /// What could not be looked at, and may hide what cannot be moved.
    pub unseen: Vec<Unseen>,
}

/// Something that could not be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Unseen {
    /// Container it concerns; empty for the whole pod, or its node.
    pub container: String,
    /// What it belongs to.
    pub part: Part,
    /// What could not be looked at, and why.
    pub message: String,
}

/// What something belongs to that could not be looked at; not every move minds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Processes: they matter where they move.
    Processes,
    /// What the node does to the pod's connections: it matters where those are to go on.
    Connections,
    /// Anything else: it matters to every move.
    #[default]
    #[serde(other)]
    Rest,
}

/// A cluster node, as far as restored programs depend on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeFacts {
    /// Name of the node.
    pub name: String,
    /// Kernel release, such as 6.18.0.
    pub kernel: String,
    /// Architecture as Kubernetes names it, such as amd64.
    pub arch: String,
    /// CPU vendor, such as AuthenticAMD.
    pub cpu_vendor: String,
    /// Instruction set features, as the kernel lists them, sorted.
    pub cpu_features: Vec<String>,
    /// Version of the CRIU that is used.
    pub criu_version: String,
    /// Version of runc behind the wrapper.
    pub runc_version: String,
    /// cgroup version of the containers, 1 or 2; 0 when it is not known.
    pub cgroup_version: u8,
    /// Free bytes where images and files are received.
    pub free_bytes: u64,
    /// Memory in bytes that programs can still get without swapping; 0 when it is not known.
    pub available_memory_bytes: u64,
    /// The images that are there. Told of a node that is inspected by itself.
    pub images: Vec<ImageFacts>,
}

/// An image on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageFacts {
    /// Digest of its configuration, `sha256:…`: the same wherever the content is the same.
    pub id: String,
    /// Its names, with a tag or a digest.
    pub names: Vec<String>,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerFacts {
    /// Name in the pod.
    pub name: String,
    /// Id at the runtime.
    pub id: String,
    /// Whether it runs.
    pub running: bool,
    /// Starts of this container before this one, as kubelet counts them.
    pub attempt: u32,
    /// Image as written in the pod.
    pub image: String,
    /// Image by digest, such as `docker.io/library/redis@sha256:…`; the bare id of the image
    /// where the runtime knows no digest (an imported image).
    pub image_digest: String,
    /// Digest of the image's configuration, `sha256:…`.
    pub image_id: String,
    /// The first process, in the node's process namespace; 0 when none runs.
    pub pid: i32,
    /// Type of the root file system, such as overlay.
    pub rootfs_type: String,
    /// Bytes in the writable layer of the root file system.
    pub rootfs_changed_bytes: u64,
    /// Files and directories in the writable layer.
    pub rootfs_changed_files: u64,
    /// Mounts in the container's mount namespace, the root left out.
    pub mounts: Vec<MountFacts>,
    /// Its processes; where there are more than [`MAX_PROCESSES`], those in which a check finds something come first.
    pub processes: Vec<ProcessFacts>,
    /// Resident memory in bytes, shared pages counted once per process.
    pub rss_bytes: u64,
    /// Memory of its own, which a dump carries: resident anonymous pages of each process.
    pub anonymous_bytes: u64,
    /// Shared memory that is mapped (shared anonymous, memfd, tmpfs files), each page once.
    pub shared_bytes: u64,
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Whether its cgroup is frozen.
    pub frozen: bool,
    /// The file by which the container's annotation `org.criu.config` changes what CRIU does.
    pub criu_config: String,
}

/// The most processes that are told one by one.
pub const MAX_PROCESSES: usize = 512;

/// How the kernel ends the path of an open or mapped file whose name was removed.
pub const REMOVED_NAME: &str = " (deleted)";

/// How the kernel ends the [`root`](MountFacts::root) of what was removed since it was mounted.
pub const REMOVED_ROOT: &str = "//deleted";

/// One mount in a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MountFacts {
    /// Where it is mounted in the container.
    pub path: String,
    /// Type of the file system, such as ext4, tmpfs or nfs4.
    pub fs_type: String,
    /// Which directory of the file system is mounted.
    pub root: String,
    /// Whether it is writable.
    pub writable: bool,
    /// What it is, by its place on the node.
    pub origin: MountOrigin,
    /// Name of the volume, where the mount belongs to one.
    pub volume: String,
}

/// What a mount is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountOrigin {
    /// Made by the runtime: proc, sysfs, masked paths, /dev and below.
    #[default]
    Runtime,
    /// The sandbox's shared memory.
    SandboxShm,
    /// Files that kubelet or the runtime make for each pod: hosts, resolv.conf, hostname,
    /// termination log.
    PodFile,
    /// An emptyDir.
    EmptyDir,
    /// ConfigMap, Secret, downward API or projected.
    Projected,
    /// A persistent volume, or one of a CSI driver.
    Persistent,
    /// A path of the node.
    HostPath,
    /// Made by the application itself.
    Application,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessFacts {
    /// Its id on the node.
    pub pid: i32,
    /// Its id in the container.
    pub container_pid: i32,
    /// Its command name (at most 15 bytes).
    pub name: String,
    /// What it does.
    pub state: ProcessState,
    /// Real user id, as the node sees it.
    pub uid: u32,
    /// Threads.
    pub threads: u32,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// Whether it came into the container from outside, as `kubectl exec` brings it, and is no
    /// descendant of the first process: a dump leaves it out.
    pub outside: bool,
    /// The process that traces it; 0 for none.
    pub tracer_pid: i32,
    /// Namespaces in which it differs from the container's first process, such as pid or mnt.
    pub own_namespaces: Vec<String>,
    /// What it has open or mapped that matters for a move; of each kind at most [`MAX_RESOURCES`].
    pub resources: Vec<Resource>,
    /// How much more it has of a kind.
    pub more: Vec<MoreResources>,
    /// Open file descriptors in all.
    pub descriptors: u64,
}

/// The most resources of a kind that are told of a process one by one.
pub const MAX_RESOURCES: usize = 64;

/// Resources of a kind that are not told one by one: of those with a size the smaller ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MoreResources {
    /// What they are.
    pub kind: ResourceKind,
    /// How many.
    pub count: u64,
    /// Their size in all, where one is known.
    pub bytes: u64,
}

/// What a process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// It runs or waits.
    #[default]
    Running,
    /// It waits in the kernel and cannot be interrupted (also: it is frozen on cgroup version 1).
    Uninterruptible,
    /// It was stopped by a signal; CRIU would wait for it.
    Stopped,
    /// A tracer holds it.
    Traced,
    /// It has ended and its parent has not asked for it.
    Zombie,
}

/// Something a process has open or mapped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// The descriptor; -1 for a mapping without one.
    pub fd: i32,
    /// What a person would recognise it by: a path, an address, a handle.
    pub detail: String,
    /// Its size where one is known.
    pub bytes: u64,
}

/// Kinds of resources that matter for a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResourceKind {
    /// An io_uring.
    IoUring,
    /// A multipath TCP socket.
    Mptcp,
    /// A socket of a family or protocol that CRIU has no support for; `detail` names it.
    UnsupportedSocket,
    /// A packet socket.
    PacketSocket,
    /// An inotify or fanotify watch on the root file system of the container.
    RootfsWatch,
    /// A fanotify descriptor.
    Fanotify,
    /// The slave or master of a pseudo terminal.
    Pty,
    /// A terminal whose other end is outside the container.
    Terminal,
    /// `/dev/tty`, held by a process that does not hold the terminal it stands for.
    InheritedTerminal,
    /// A userfaultfd.
    Userfaultfd,
    /// A device other than null, zero, full, random, urandom and tty.
    Device,
    /// A POSIX message queue.
    MessageQueue,
    /// A file that is open or mapped and has no name any more; `bytes` is what it occupies.
    UnlinkedFile,
    /// A file that is open or mapped under a name that was removed, and has others: names of its
    /// own, or that in a layer of the image.
    RemovedName,
    /// A file below the `..<timestamp>` directory of a ConfigMap, Secret or projected volume, or a
    /// watch there.
    ProjectedFile,
    /// A file of a volume that is mounted by subPath, and that is written anew on the target; that of a projected
    /// volume may come with the same content, which its sources tell.
    RemadeFile,
    /// A Unix socket whose other end is outside the container.
    ForeignSocket,
    /// A descriptor for a process outside the container.
    ForeignProcess,
    /// A secret memory area (memfd_secret).
    SecretMemory,
    /// A BPF map, program or link.
    Bpf,
    /// A performance counter.
    PerfEvent,
    /// A descriptor or mapping of a kind that is not known to CRIU; `detail` names it.
    AnonymousInode,
    /// A timer descriptor that expires periodically.
    PeriodicTimer,
    /// A file outside the container's mounts (opened before a chroot or passed from outside).
    OutsideFile,
    /// A file lock.
    FileLock,
    /// Huge pages in a private or shared mapping.
    HugePages,
    /// Something of a kind that was not known when this was written.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The pod's network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkFacts {
    /// Whether the pod uses the node's network.
    pub host_network: bool,
    /// The main interface, such as eth0.
    pub interface: String,
    /// Its first global address.
    pub ip: String,
    /// Length of the address's network prefix.
    pub prefix: u8,
    /// Hardware address, such as 02:42:ac:11:00:02.
    pub mac: String,
    /// The gateway of the default route; empty without one.
    pub gateway: String,
    /// All global addresses but [`ip`](Self::ip), `address/prefix`, on any interface but the loopback device;
    /// the [`further_addresses`](Self::further_addresses) are among them.
    pub other_addresses: Vec<String>,
    /// Addresses of the main interface besides the one of each family, `address/prefix`: the network plugin
    /// gave them, or somebody added them. What the kernel learns from advertisements is not among them.
    pub further_addresses: Vec<String>,
    /// Addresses of the loopback device besides the usual ones: former addresses of a moved pod to
    /// which sockets may be bound.
    pub loopback_addresses: Vec<String>,
    /// Interfaces besides the main one and the loopback.
    pub other_interfaces: Vec<String>,
    /// Routes that the main interface's address does not imply, `destination/prefix via gateway`.
    pub other_routes: Vec<String>,
    /// The node's CNI configuration.
    pub cni: CniFacts,
    /// Established connections by peer; at most [`MAX_PEERS`].
    pub peers: Vec<PeerFacts>,
    /// Connections that leave with the node's own address, by peer with its port (of UDP with `/UDP`); at most
    /// [`MAX_PEERS`].
    pub translated: Vec<PeerFacts>,
    /// How many more of those peers there are.
    pub translated_more: u64,
    /// Connections to virtual services of the node's IPVS, by peer as those; at most [`MAX_PEERS`].
    pub balanced: Vec<PeerFacts>,
    /// How many more of those peers there are.
    pub balanced_more: u64,
    /// Established connections in all, those within the pod left out.
    pub connections: u64,
    /// Ports on which TCP listens.
    pub listening: Vec<ListenFacts>,
    /// Tables of nftables and of iptables in the pod's network namespace that do something, `family
    /// name`.
    pub rule_tables: Vec<String>,
    /// Rules by which routes are chosen, besides the kernel's own.
    pub routing_rules: Vec<String>,
    /// Queueing disciplines that somebody made, `kind dev interface`, with which filters and classes come; at most
    /// [`MAX_SETTINGS`].
    pub queueing_disciplines: Vec<String>,
    /// Neighbours that somebody made permanent, `address dev interface`, gateways left out; at most
    /// [`MAX_SETTINGS`].
    pub static_neighbours: Vec<String>,
    /// States and policies of IPsec; at most [`MAX_SETTINGS`].
    pub ipsec: Vec<String>,
    /// Kernel parameters that somebody wrote, `name = value`; those left out that come with every pod of the manifest.
    pub kernel_parameters: Vec<String>,
    /// SCTP, DCCP and other sockets of transports that CRIU does not know, counted.
    pub unsupported_sockets: u64,
}

/// The most peers that are told one by one.
pub const MAX_PEERS: usize = 256;

/// The most settings of a kind that are told: enough to see what they are.
pub const MAX_SETTINGS: usize = 64;

/// What the node's CNI configuration says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniFacts {
    /// File that the runtime uses.
    pub file: String,
    /// Name of the network.
    pub name: String,
    /// Types of its plugins in their order, such as bridge, transship-cni.
    pub plugins: Vec<String>,
    /// Type of the address management of the first plugin, such as host-local.
    pub ipam: String,
    /// The subnets from which addresses come, such as 10.244.0.0/16.
    pub subnets: Vec<String>,
    /// The bridge or master device of the first plugin.
    pub device: String,
}

/// Connections with one peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerFacts {
    /// Address of the other side.
    pub address: String,
    /// Connections with it.
    pub connections: u64,
    /// Ports of this side, the first 8.
    pub local_ports: Vec<u16>,
}

/// A listening socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenFacts {
    /// Address it is bound to.
    pub address: String,
    /// Port.
    pub port: u16,
}

/// An emptyDir.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EmptyDirFacts {
    /// Name of the volume.
    pub name: String,
    /// Whether it is in memory (a tmpfs).
    pub memory: bool,
    /// Bytes that its files occupy.
    pub bytes: u64,
    /// Files and directories.
    pub files: u64,
}

/// What the containers of a pod share through the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpcFacts {
    /// Whether the pod uses the node's IPC namespace.
    pub host_ipc: bool,
    /// Bytes in the sandbox's `/dev/shm`.
    pub posix_shm_bytes: u64,
    /// Files in the sandbox's `/dev/shm`.
    pub posix_shm_files: u64,
    /// System V shared memory segments.
    pub sysv_segments: u64,
    /// Their size in bytes.
    pub sysv_shm_bytes: u64,
    /// System V semaphore sets.
    pub sysv_semaphores: u64,
    /// System V message queues.
    pub sysv_queues: u64,
    /// POSIX message queues.
    pub posix_queues: u64,
}

impl Unseen {
    /// Of the whole pod, or of its node.
    pub fn of_pod(part: Part, message: impl Into<String>) -> Self {
        Self { container: String::new(), part, message: message.into() }
    }

    /// Of one container.
    pub fn of_container(name: &str, part: Part, message: impl Into<String>) -> Self {
        Self { container: name.to_owned(), ..Self::of_pod(part, message) }
    }
}

impl NetworkFacts {
    /// Its further addresses, without the lengths of their prefixes.
    pub fn other_ips(&self) -> impl Iterator<Item = &str> {
        self.other_addresses.iter().map(|text| text.split('/').next().unwrap_or(text))
    }
}

impl PodFacts {
    /// What `Inspect` answered. The error is that of the JSON reader.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Bytes of memory that a move carries; an agent that cannot tell it says what is resident.
    fn memory_bytes(&self) -> u64 {
        match self.containers.iter().map(|c| c.anonymous_bytes + c.shared_bytes).sum() {
            0 => self.rss_bytes,
            known => known,
        }
    }

    /// Bytes of files that move with the pod: its containers' changes, its emptyDirs.
    pub fn file_bytes(&self) -> u64 {
        let rootfs: u64 = self.containers.iter().map(|c| c.rootfs_changed_bytes).sum();
        let volumes: u64 = self.empty_dirs.iter().map(|dir| dir.bytes).sum();
        rootfs + volumes
    }

    /// Bytes of memory and files that a move carries, at most: memory, changed files, emptyDirs,
    /// shared memory.
    pub fn total_bytes(&self) -> u64 {
        self.memory_bytes() + self.file_bytes() + self.ipc.posix_shm_bytes + self.ipc.sysv_shm_bytes
    }

    /// Bytes of memory that the pod will need on another node, at least: what is mapped may be the
    /// same as what lies in shared memory and in emptyDirs in memory, and then counts once.
    pub fn needed_memory_bytes(&self) -> u64 {
        let anonymous: u64 = self.containers.iter().map(|c| c.anonymous_bytes).sum();
        let mapped: u64 = self.containers.iter().map(|c| c.shared_bytes).sum();
        let in_memory = self.empty_dirs.iter().filter(|dir| dir.memory).map(|dir| dir.bytes);
        let stored = in_memory.sum::<u64>() + self.ipc.posix_shm_bytes + self.ipc.sysv_shm_bytes;
        anonymous + mapped.max(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_their_json() {
        let facts = PodFacts {
            pod_uid: "u1".into(),
            containers: vec![ContainerFacts {
                name: "app".into(),
                processes: vec![ProcessFacts {
                    state: ProcessState::Stopped,
                    resources: vec![Resource {
                        kind: ResourceKind::IoUring,
                        fd: 7,
                        ..Resource::default()
                    }],
                    ..ProcessFacts::default()
                }],
                ..ContainerFacts::default()
            }],
            ..PodFacts::default()
        };
        let text = serde_json::to_string(&facts).unwrap();
        assert!(text.contains(r#""podUID":"u1""#), "{text}");
        assert!(text.contains(r#""kind":"IoUring""#), "{text}");
        assert_eq!(PodFacts::from_json(&text).unwrap(), facts);
    }

    #[test]
    fn facts_of_another_version_are_understood() {
        let facts = PodFacts::from_json(
            r#"{"podUID":"u1","future":1,"containers":[{"name":"a","processes":[
                {"resources":[{"kind":"QuantumLink","fd":3}]}]}],"unseen":[{"part":"Entanglement"}]}"#,
        )
        .unwrap();
        assert_eq!(facts.unseen, [Unseen::of_pod(Part::Rest, "")]);
        assert_eq!(facts.containers[0].processes[0].resources[0].kind, ResourceKind::Unknown);
        assert_eq!(PodFacts::from_json("{}").unwrap(), PodFacts::default());
    }

    #[test]
    fn the_total_counts_memory_files_and_shared_memory() {
        let facts = PodFacts {
            rss_bytes: 1,
            containers: vec![ContainerFacts { rootfs_changed_bytes: 10, ..Default::default() }],
            empty_dirs: vec![EmptyDirFacts { bytes: 100, ..Default::default() }],
            ipc: IpcFacts { posix_shm_bytes: 1000, sysv_shm_bytes: 10000, ..Default::default() },
            ..PodFacts::default()
        };
        assert_eq!(facts.total_bytes(), 11_111);
    }
}
