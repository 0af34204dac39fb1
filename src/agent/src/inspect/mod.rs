//! Facts about a running pod, for the checks before a migration. Only looks; judges nothing and
//! changes nothing. What cannot be found out is named, and the rest is told all the same.

mod descriptors;
mod mounts;
mod network;
mod proc;
mod sizes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use transship_core::facts::{
    ContainerFacts, EmptyDirFacts, IpcFacts, MAX_PROCESSES, NetworkFacts, NodeFacts, PodFacts,
    ProcessFacts,
};
use transship_host::HostRoot;
use transship_host::freezer::{CgroupVersion, Freezer, FreezerState};
use transship_runtime::container::Container;
use transship_runtime::cri::{CriContainer, Sandbox, State};
use transship_runtime::mounts::{Mount, parse, upper_dir};

use crate::hostns::HostNs;
use crate::runtime::Runtime;

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
    image: String,
    digest: String,
    container: Option<Container>,
}

impl Inspector {
    /// What is known without a pod: the node, and its CNI configuration.
    pub fn node(&self, node: NodeFacts) -> PodFacts {
        let mut facts = PodFacts { node, ..PodFacts::default() };
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
            let image = cri.image(&container.id).await;
            let (image, digest) = match image {
                Ok(image) => (image.image, image.digest),
                Err(error) => {
                    facts.incomplete.push(format!("the image of {}: {error}", container.name));
                    Default::default()
                }
            };
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
            found.push(Found { cri: container, image, digest, container: known });
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
        let pid = found.iter().find_map(|f| f.container.as_ref()).map(|container| container.pid);
        for one in found {
            facts.containers.push(self.container(one, place, &mut facts.incomplete));
        }
        facts.rss_bytes = facts.containers.iter().map(|container| container.rss_bytes).sum();
        facts.empty_dirs = self.empty_dirs(&pod_dir, &host_mounts, &mut facts.incomplete);
        match pid {
            Some(pid) => self.shared(facts, pid, &sandbox.id),
            None => facts.incomplete.push("no container of the pod runs".into()),
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
    ) -> ContainerFacts {
        let mut facts = ContainerFacts {
            name: found.cri.name,
            id: found.cri.id,
            running: found.cri.state == State::Running,
            attempt: found.cri.attempt,
            image: found.image,
            image_digest: found.digest,
            ..ContainerFacts::default()
        };
        let Some(container) = found.container else { return facts };
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
        let around = descriptors::Surroundings {
            rootfs_device: root.and_then(|mount| proc::packed_device(&mount.device)),
            mount_ids: mount_ids(&dir),
        };
        match freezer.tasks() {
            Ok(pids) => {
                facts.process_count = pids.len() as u64;
                for pid in pids.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
                    let Some(process) = self.process(pid, container.pid, &around) else { continue };
                    facts.rss_bytes += process.rss_bytes;
                    if facts.processes.len() < MAX_PROCESSES {
                        facts.processes.push(process);
                    }
                }
            }
            Err(error) => {
                incomplete.push(format!("processes of {}: {}", facts.name, error.chain()))
            }
        }
        facts
    }

    fn process(
        &self,
        pid: i32,
        init: i32,
        around: &descriptors::Surroundings,
    ) -> Option<ProcessFacts> {
        let dir = self.proc().join(pid.to_string());
        let status = proc::status(&std::fs::read_to_string(dir.join("status")).ok()?);
        let (mut resources, descriptors) = descriptors::of_process(self.proc(), pid, around);
        if status.huge_bytes > 0 {
            resources.push(transship_core::facts::Resource {
                kind: transship_core::facts::ResourceKind::HugePages,
                fd: -1,
                detail: "huge pages".into(),
                bytes: status.huge_bytes,
            });
        }
        let own_namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
            .into_iter()
            .filter(|kind| self.differs(pid, init, kind))
            .map(str::to_owned)
            .collect();
        Some(ProcessFacts {
            pid,
            container_pid: status.container_pid,
            name: status.name,
            state: status.state,
            uid: status.uid,
            threads: status.threads,
            rss_bytes: status.rss_bytes,
            tracer_pid: status.tracer_pid,
            own_namespaces,
            resources,
            descriptors,
        })
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

    /// What the containers share: network and IPC of the sandbox.
    fn shared(&self, facts: &mut PodFacts, pid: i32, sandbox_id: &str) {
        let dir = self.proc().join(pid.to_string());
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let (tcp, tcp6) = (read("net/tcp"), read("net/tcp6"));
        let cni = std::mem::take(&mut facts.network.cni);
        match network::look_within(self.proc(), pid) {
            Ok(within) => {
                let routes = proc::routes(&read("net/route"));
                facts.network = network::facts(&within.interfaces, &routes, &[&tcp, &tcp6]);
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
        match network::translated(&facts.network.ip) {
            Ok(peers) => facts.network.translated = peers,
            Err(error) => facts.incomplete.push(format!("tracked connections: {error}")),
        }
        facts.network.host_network = !self.differs(pid, 1, "net");
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
    }

    /// Tables of nftables in the network namespace of a process, our own left out.
    async fn rule_tables(&self, pid: i32) -> Result<Vec<String>, String> {
        let nft = HostRoot::host().bin("nft");
        let namespace = format!("--net=/proc/{pid}/ns/net");
        let nft = nft.to_string_lossy();
        let argv = ["nsenter", &namespace, "--", &nft, "list", "tables"];
        let output =
            self.hostns.run(&argv, HELPER_LIMIT).await.map_err(|error| error.to_string())?;
        if !output.success {
            return Err(output.complaint());
        }
        Ok(tables(&output.stdout))
    }
}

/// `table inet filter` → `inet filter`.
fn tables(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("table "))
        .filter(|table| !table.ends_with(&format!(" {}", transship_host::network::TABLE)))
        .map(str::to_owned)
        .collect()
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
    fn our_own_table_is_not_the_applications() {
        assert_eq!(tables("table inet mesh\ntable netdev transship\n"), ["inet mesh"]);
        assert!(tables("").is_empty());
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
