//! Facts about a running pod, for the checks before a migration. Only looks; judges nothing and
//! changes nothing. What cannot be found out is named, and the rest is told all the same.

mod descriptors;
mod ends;
mod mounts;
mod net_tables;
mod netlink;
mod network;
mod proc;
mod projected;
mod rules;
mod sizes;
mod watched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use transship_core::facts::{
    ContainerFacts, EmptyDirFacts, ImageFacts, IpcFacts, MAX_PROCESSES, MountOrigin, NetworkFacts,
    NodeFacts, PodFacts, ProcessFacts, Resource, ResourceKind,
};
use transship_host::HostRoot;
use transship_host::bundle::calls_wrapper;
use transship_host::freezer::{CgroupVersion, Freezer, FreezerState};
use transship_runtime::container::Container;
use transship_runtime::cri::{CriContainer, Sandbox, State};
use transship_runtime::mounts::{Mount, parse, upper_dir};
use transship_runtime::node::{ContainerImage, NodeImage};

use crate::hostns::HostNs;
use crate::runtime::Runtime;
use descriptors::{Seen, Surroundings};
use netlink::UnixSocket;
use proc::Status;
use projected::Projected;

/// How long a helper program may take.
const HELPER_LIMIT: Duration = Duration::from_secs(5);

/// Where to look.
#[derive(Debug, Clone)]
pub struct Inspector {
    /// The host.
    pub host: HostRoot,
    /// Commands on the host.
    pub hostns: HostNs,
    /// containerd.
    pub runtime: Runtime,
    /// kubelet's root directory, on the host.
    pub kubelet_root: PathBuf,
    /// CNI configuration, on the host.
    pub cni_conf_dir: PathBuf,
}

/// A container as found so far.
struct Found {
    cri: CriContainer,
    image: ContainerImage,
    container: Option<Container>,
}

impl Inspector {
    /// What is known without a pod: the node, its images and its CNI configuration.
    pub async fn node(&self, node: NodeFacts) -> PodFacts {
        let mut facts = PodFacts { node, ..PodFacts::default() };
        let meminfo = std::fs::read_to_string(self.proc().join("meminfo")).unwrap_or_default();
        facts.node.available_memory_bytes = proc::available_memory(&meminfo);
        let images = match self.runtime.cri().await {
            Ok(cri) => cri.node_images().await,
            Err(error) => Err(error),
        };
        match images {
            Ok(images) => {
                let fact = |image: NodeImage| ImageFacts { id: image.id, names: image.names };
                facts.node.images = images.into_iter().map(fact).collect();
            }
            Err(error) => facts.incomplete.push(format!("the node's images: {error}")),
        }
        self.look_at_cni(&mut facts);
        facts
    }

    /// Everything about a pod with a ready sandbox.
    pub async fn pod(&self, uid: &str, node: NodeFacts) -> transship_runtime::Result<PodFacts> {
        let cri = self.runtime.cri().await?;
        let sandbox = cri.sandbox(uid).await?;
        let mut facts = PodFacts {
            pod_uid: uid.to_owned(),
            sandbox_id: sandbox.id.clone(),
            node,
            ..PodFacts::default()
        };
        let all = cri.all_sandboxes().await?;
        if let Some(found) = all.into_iter().find(|other| other.id == sandbox.id) {
            (facts.pod_namespace, facts.pod_name) = (found.namespace, found.name);
        }
        let mut found = Vec::new();
        for container in newest(cri.containers(&sandbox.id).await?) {
            let image = cri.image(&container.id).await.unwrap_or_else(|error| {
                facts.incomplete.push(format!("the image of {}: {error}", container.name));
                ContainerImage { image: String::new(), digest: String::new(), id: String::new() }
            });
            let running = container.state == State::Running;
            let known = if running {
                match Container::find(&self.runtime.layout, &container.id) {
                    Ok(known) => Some(known),
                    Err(error) => {
                        facts.incomplete.push(format!("container {}: {error}", container.name));
                        None
                    }
                }
            } else {
                None
            };
            found.push(Found { cri: container, image, container: known });
        }
        let pid = found.iter().find_map(|f| f.container.as_ref()).map(|container| container.pid);
        let rules = match pid {
            Some(pid) => self.rule_tables(pid).await,
            None => Ok(Vec::new()),
        };
        // From here on it is reading files: not for a thread that serves others.
        let inspector = self.clone();
        let uid = uid.to_owned();
        let looking = tokio::task::spawn_blocking(move || {
            inspector.look(&mut facts, &uid, &sandbox, found);
            facts
        });
        let mut facts = looking.await.unwrap_or_else(|error| PodFacts {
            incomplete: vec![format!("looking at the pod failed: {error}")],
            ..PodFacts::default()
        });
        match rules {
            Ok(tables) => facts.network.rule_tables.extend(tables),
            Err(error) => facts.incomplete.push(format!("rules in the pod's network: {error}")),
        }
        facts.network.rule_tables.sort();
        Ok(facts)
    }

    fn look(&self, facts: &mut PodFacts, uid: &str, sandbox: &Sandbox, found: Vec<Found>) {
        let host_mounts =
            parse(&std::fs::read_to_string(self.proc().join("1/mountinfo")).unwrap_or_default());
        let pod_dir = self.kubelet_root.join("pods").join(uid);
        let place =
            mounts::Node { mounts: &host_mounts, pod_dir: &pod_dir, sandbox_id: &sandbox.id };
        let bundle = self.runtime.layout.bundle(&sandbox.id);
        // A sandbox without a bundle has ended meanwhile: nothing is known of it.
        facts.without_wrapper = bundle.is_dir() && !calls_wrapper(&bundle);
        let pid = found.iter().find_map(|f| f.container.as_ref()).map(|container| container.pid);
        let mut seen = Vec::new();
        for one in found {
            let (container, processes) = self.container(one, place, &mut facts.incomplete);
            facts.containers.push(container);
            seen.push(processes);
        }
        facts.rss_bytes = facts.containers.iter().map(|container| container.rss_bytes).sum();
        facts.empty_dirs = self.empty_dirs(&pod_dir, &host_mounts, &mut facts.incomplete);
        match pid {
            // After the descriptors: a socket that is in use is then listed.
            Some(pid) => {
                let unix = self.shared(facts, pid, &sandbox.id);
                for (container, seen) in facts.containers.iter_mut().zip(&seen) {
                    ends::judge(self.proc(), container, seen, unix.as_ref());
                }
            }
            None => facts.incomplete.push("no container of the pod runs".into()),
        }
        for container in &mut facts.containers {
            container.processes.truncate(MAX_PROCESSES);
        }
        self.look_at_cni(facts);
    }

    fn proc(&self) -> &Path {
        &self.runtime.layout.proc
    }

    fn look_at_cni(&self, facts: &mut PodFacts) {
        match network::cni(&self.host.join(&self.cni_conf_dir)) {
            Ok(cni) => facts.network.cni = cni,
            Err(error) => facts.incomplete.push(format!("CNI configuration: {error}")),
        }
    }

    fn container(
        &self,
        found: Found,
        place: mounts::Node<'_>,
        incomplete: &mut Vec<String>,
    ) -> (ContainerFacts, Vec<Seen>) {
        let mut facts = ContainerFacts {
            name: found.cri.name,
            id: found.cri.id,
            running: found.cri.state == State::Running,
            attempt: found.cri.attempt,
            image: found.image.image,
            image_digest: found.image.digest,
            image_id: found.image.id,
            ..ContainerFacts::default()
        };
        let Some(container) = found.container else { return (facts, Vec::new()) };
        facts.pid = container.pid;
        facts.criu_config.clone_from(&container.criu_config);
        let dir = self.proc().join(container.pid.to_string());
        let own_mounts = parse(&std::fs::read_to_string(dir.join("mountinfo")).unwrap_or_default());
        facts.mounts = mounts::classify(&own_mounts, place);
        let root = own_mounts.iter().rev().find(|mount| mount.point == Path::new("/"));
        if let Some(root) = root {
            facts.rootfs_type = root.fs_type.clone();
            if let Some(upper) = upper_dir(&root.super_options) {
                let size = sizes::of(&self.host.join(upper));
                facts.rootfs_changed_bytes = size.bytes;
                facts.rootfs_changed_files = size.entries;
                if size.cut {
                    incomplete.push(format!(
                        "container {} has changed more than {} files; their size is too low",
                        facts.name,
                        sizes::MAX_ENTRIES
                    ));
                }
            }
        }
        facts.user_namespace = self.differs(container.pid, 1, "user");
        let freezer = Freezer {
            dir: self.host.join(&container.freezer),
            version: if container.cgroup_version == 1 {
                CgroupVersion::V1
            } else {
                CgroupVersion::V2
            },
        };
        facts.frozen = freezer.state().is_ok_and(|state| state != FreezerState::Thawed);
        let volumes = facts.mounts.iter().filter(|m| m.origin == MountOrigin::Projected);
        let volumes = volumes.map(|mount| mount.path.clone()).collect();
        let around = Surroundings {
            rootfs_device: root.and_then(|mount| proc::packed_device(&mount.device)),
            mount_ids: mount_ids(&dir),
            projected: Projected::look(&dir.join("root"), volumes),
            remade: mounts::remade(&own_mounts, place),
        };
        let pids = freezer.tasks().unwrap_or_else(|error| {
            incomplete.push(format!("processes of {}: {}", facts.name, error.chain()));
            Vec::new()
        });
        facts.process_count = pids.len() as u64;
        let pids = pids.into_iter().filter_map(|pid| i32::try_from(pid).ok());
        let statuses: BTreeMap<i32, Status> =
            pids.filter_map(|pid| Some((pid, self.status(pid)?))).collect();
        let mut all = Vec::new();
        for (pid, status) in &statuses {
            let (mut process, seen) = self.process(*pid, status, container.pid, &around);
            process.outside = !descends(*pid, container.pid, &statuses);
            facts.rss_bytes += process.rss_bytes;
            if !process.outside {
                facts.anonymous_bytes += status.anonymous_bytes;
                let rollup = self.proc().join(format!("{pid}/smaps_rollup"));
                let rollup = std::fs::read_to_string(rollup).unwrap_or_default();
                facts.shared_bytes += proc::shared_bytes(&rollup);
            }
            facts.processes.push(process);
            all.push(seen);
        }
        (facts, all)
    }

    fn status(&self, pid: i32) -> Option<Status> {
        let path = self.proc().join(format!("{pid}/status"));
        Some(proc::status(&std::fs::read_to_string(path).ok()?))
    }

    fn process(
        &self,
        pid: i32,
        status: &Status,
        init: i32,
        around: &Surroundings,
    ) -> (ProcessFacts, Seen) {
        let own_namespaces: Vec<String> =
            ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
                .into_iter()
                .filter(|kind| self.differs(pid, init, kind))
                .map(str::to_owned)
                .collect();
        let own_mounts = own_namespaces.iter().any(|kind| kind == "mnt").then(|| {
            let mount_ids = mount_ids(&self.proc().join(pid.to_string()));
            Surroundings { mount_ids, ..around.clone() }
        });
        let around = own_mounts.as_ref().unwrap_or(around);
        let mut seen = descriptors::of_process(self.proc(), pid, around);
        let mut resources = std::mem::take(&mut seen.resources);
        if status.huge_bytes > 0 && !resources.iter().any(|r| r.kind == ResourceKind::HugePages) {
            resources.push(Resource {
                kind: ResourceKind::HugePages,
                fd: -1,
                detail: "huge pages".into(),
                bytes: status.huge_bytes,
            });
        }
        let facts = ProcessFacts {
            pid,
            container_pid: status.container_pid,
            name: status.name.clone(),
            state: status.state,
            uid: status.uid,
            threads: status.threads,
            rss_bytes: status.rss_bytes,
            outside: false,
            tracer_pid: status.tracer_pid,
            own_namespaces,
            resources,
            descriptors: seen.count,
        };
        (facts, seen)
    }

    /// Whether two processes are in different namespaces of a kind; `false` when it cannot be told.
    fn differs(&self, one: i32, other: i32, kind: &str) -> bool {
        let of = |pid: i32| std::fs::read_link(self.proc().join(format!("{pid}/ns/{kind}"))).ok();
        matches!((of(one), of(other)), (Some(a), Some(b)) if a != b)
    }

    fn empty_dirs(
        &self,
        pod_dir: &Path,
        host_mounts: &[Mount],
        incomplete: &mut Vec<String>,
    ) -> Vec<EmptyDirFacts> {
        let volumes = pod_dir.join("volumes/kubernetes.io~empty-dir");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.host.join(&volumes)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let point = volumes.join(&name);
            let size = sizes::of(&entry.path());
            if size.cut {
                incomplete.push(format!("emptyDir {name} has too many files to count its size"));
            }
            found.push(EmptyDirFacts {
                memory: host_mounts.iter().any(|m| m.point == point && m.fs_type == "tmpfs"),
                name,
                bytes: size.bytes,
                files: size.entries,
            });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// What the containers share: network and IPC of the sandbox. Gives its Unix sockets.
    fn shared(
        &self,
        facts: &mut PodFacts,
        pid: i32,
        sandbox_id: &str,
    ) -> Option<BTreeMap<u64, UnixSocket>> {
        let dir = self.proc().join(pid.to_string());
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let (tcp, tcp6) = (read("net/tcp"), read("net/tcp6"));
        let cni = std::mem::take(&mut facts.network.cni);
        let mut unix = None;
        match network::look_within(self.proc(), pid) {
            Ok(within) => {
                let mut routes = net_tables::routes(&read("net/route"));
                routes.extend(net_tables::ipv6_routes(&read("net/ipv6_route")));
                let learned = net_tables::learned_addresses(&read("net/if_inet6"));
                let tables = [tcp.as_str(), tcp6.as_str()];
                facts.network = network::facts(&within.interfaces, &routes, &learned, &tables);
                facts.network.routing_rules = within.rules;
                unix = Some(within.unix);
                let [shm, sem, msg] = within.sysv.each_ref().map(|table| proc::sysv(table));
                facts.ipc.sysv_segments = shm.0;
                facts.ipc.sysv_shm_bytes = shm.1;
                facts.ipc.sysv_semaphores = sem.0;
                facts.ipc.sysv_queues = msg.0;
            }
            Err(error) => {
                facts.network = NetworkFacts::default();
                facts.incomplete.push(format!("the pod's namespaces: {error}"));
            }
        }
        facts.network.cni = cni;
        facts.network.host_network = !self.differs(pid, 1, "net");
        match network::translated(&facts.network) {
            Ok(peers) => facts.network.translated = peers,
            Err(error) => facts.incomplete.push(format!("tracked connections: {error}")),
        }
        let lines = |text: &str| text.lines().skip(1).count() as u64;
        facts.network.unsupported_sockets =
            lines(&read("net/sctp/eps")) + lines(&read("net/sctp/assocs"));
        let legacy = [("ip", "net/ip_tables_names"), ("ip6", "net/ip6_tables_names")];
        for (family, file) in legacy {
            facts
                .network
                .rule_tables
                .extend(read(file).lines().map(|table| format!("{family}-legacy {table}")));
        }
        let queues = std::fs::read_dir(dir.join("root/dev/mqueue")).into_iter().flatten().count();
        let shm = sizes::of(&self.runtime.layout.sandbox_shm(sandbox_id));
        facts.ipc = IpcFacts {
            host_ipc: !self.differs(pid, 1, "ipc"),
            posix_shm_bytes: shm.bytes,
            posix_shm_files: shm.entries,
            posix_queues: queues as u64,
            ..facts.ipc.clone()
        };
        unix
    }

    /// Tables of nftables that do something in the network namespace of a process, our own left
    /// out.
    async fn rule_tables(&self, pid: i32) -> Result<Vec<String>, String> {
        let nft = HostRoot::host().bin("nft");
        let namespace = format!("--net=/proc/{pid}/ns/net");
        let nft = nft.to_string_lossy();
        let argv = ["nsenter", &namespace, "--", &nft, "list", "ruleset"];
        let output =
            self.hostns.run(&argv, HELPER_LIMIT).await.map_err(|error| error.to_string())?;
        if !output.success {
            return Err(output.complaint());
        }
        Ok(rules::tables(&output.stdout))
    }
}

/// Whether a process descends from `init`, by the parents of all that are in the cgroup.
fn descends(mut pid: i32, init: i32, all: &BTreeMap<i32, Status>) -> bool {
    // A parent that has ended meanwhile has left its children to init.
    for _ in 0..=all.len() {
        if pid == init {
            return true;
        }
        match all.get(&pid) {
            Some(status) => pid = status.parent,
            None => return false,
        }
    }
    false
}

/// The last attempt of each container, in the order of their names.
fn newest(mut containers: Vec<CriContainer>) -> Vec<CriContainer> {
    containers.sort_by(|a, b| {
        // A running one counts whatever the attempts say.
        let rank = |c: &CriContainer| (c.state == State::Running, c.attempt);
        a.name.cmp(&b.name).then(rank(b).cmp(&rank(a)))
    });
    containers.dedup_by(|a, b| a.name == b.name);
    containers
}

/// Ids of the mounts in the mount namespace of a process.
fn mount_ids(dir: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, state: State, attempt: u32) -> CriContainer {
        CriContainer { id: format!("{name}{attempt}"), name: name.into(), state, attempt }
    }

    #[test]
    fn the_running_or_else_the_last_attempt_of_each_container_counts() {
        let found = newest(vec![
            container("web", State::Exited, 0),
            container("init", State::Exited, 1),
            container("web", State::Running, 2),
            container("web", State::Exited, 3),
            container("init", State::Exited, 0),
        ]);
        let ids: Vec<_> = found.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["init1", "web2"]);
    }

    #[test]
    fn what_came_from_outside_is_no_descendant_of_the_first_process() {
        let parent = |parent| Status { parent, ..Status::default() };
        let all = [
            (10, parent(1)),
            (11, parent(10)),
            (12, parent(11)),
            (20, parent(1)),
            (21, parent(20)),
        ];
        let all = BTreeMap::from(all);
        for (pid, inside) in [(10, true), (12, true), (20, false), (21, false), (99, false)] {
            assert_eq!(descends(pid, 10, &all), inside, "{pid}");
        }
    }

    /// What is refused is what the holder's CRIU would refuse.
    #[test]
    fn the_limit_of_unlinked_files_is_the_one_that_criu_is_given() {
        let limit = format!("ghost-limit {}\n", transship_core::preflight::GHOST_LIMIT);
        assert!(transship_runtime::checkpoint::CRIU_CONFIG.contains(&limit));
    }

    /// Prints the facts of a pod: run on a node as root, with `POD_UID=… --ignored --nocapture`.
    #[tokio::test]
    #[ignore = "needs a node with a running pod"]
    async fn a_real_pod_is_inspected() {
        use clap::Parser;
        let uid = std::env::var("POD_UID").unwrap();
        let args = crate::args::Args::try_parse_from(["agent", "--node-name", "x"]).unwrap();
        let host = HostRoot::host();
        let inspector = Inspector {
            host: host.clone(),
            hostns: HostNs::new(host.root()),
            runtime: Runtime::new(&host, &args),
            kubelet_root: args.kubelet_root,
            cni_conf_dir: args.cni_conf_dir,
        };
        let started = std::time::Instant::now();
        let facts = inspector.pod(&uid, NodeFacts::default()).await.unwrap();
        println!("{}", serde_json::to_string_pretty(&facts).unwrap());
        println!("took {:?}", started.elapsed());
        assert!(!facts.containers.is_empty());
    }
}
