//! Facts about a running pod, for the checks before a migration. Only looks; judges nothing and
//! changes nothing. What cannot be found out is named, and the rest is told all the same.

mod container;
mod descriptors;
mod ends;
mod mounts;
mod net_tables;
mod netlink;
mod network;
mod proc;
mod processes;
mod projected;
mod rules;
mod settings;
mod sizes;
mod sysctls;
mod watched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use transship_core::facts::{
    EmptyDirFacts, ImageFacts, IpcFacts, NetworkFacts, NodeFacts, Part, PodFacts, Unseen,
};
use transship_host::HostRoot;
use transship_host::bundle::calls_wrapper;
use transship_host::error::chain;
use transship_runtime::container::Container;
use transship_runtime::cri::{CriContainer, Sandbox, State};
use transship_runtime::mounts::{Mount, parse};
use transship_runtime::node::{ContainerImage, NodeImage};

use crate::hostns::HostNs;
use crate::runtime::Runtime;
use netlink::UnixSocket;

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
            Err(error) => {
                let message = format!("the node's images cannot be listed: {}", chain(&error));
                facts.unseen.push(Unseen::of_pod(Part::Rest, message));
            }
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
            let mut unseen = |what: &str, error: &transship_runtime::Error| {
                let message = format!("{what}: {}", chain(error));
                facts.unseen.push(Unseen::of_container(&container.name, Part::Rest, message));
            };
            let image = cri.image(&container.id).await.unwrap_or_else(|error| {
                unseen("its image is not known", &error);
                ContainerImage { image: String::new(), digest: String::new(), id: String::new() }
            });
            let running = container.state == State::Running;
            let known = if running {
                match Container::find(&self.runtime.layout, &container.id) {
                    Ok(known) => Some(known),
                    Err(error) => {
                        unseen("its processes cannot be found", &error);
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
            unseen: vec![Unseen::of_pod(Part::Rest, format!("looking at the pod failed: {error}"))],
            ..PodFacts::default()
        });
        match rules {
            Ok(tables) => facts.network.rule_tables.extend(tables),
            Err(error) => {
                let message = format!("the rules in the pod's network cannot be read: {error}");
                facts.unseen.push(Unseen::of_pod(Part::Rest, message));
            }
        }
        facts.network.rule_tables.sort();
        Ok(facts)
    }

    fn look(&self, facts: &mut PodFacts, uid: &str, sandbox: &Sandbox, found: Vec<Found>) {
        let host_mounts = read(&self.proc().join("1/mountinfo")).unwrap_or_else(|error| {
            let message = format!("the node's mounts cannot be read: {error}");
            facts.unseen.push(Unseen::of_pod(Part::Rest, message));
            String::new()
        });
        let host_mounts = parse(&host_mounts);
        let pod_dir = self.kubelet_root.join("pods").join(uid);
        let place =
            mounts::Node { mounts: &host_mounts, pod_dir: &pod_dir, sandbox_id: &sandbox.id };
        let bundle = self.runtime.layout.bundle(&sandbox.id);
        // A sandbox without a bundle has ended meanwhile: nothing is known of it.
        facts.without_wrapper = bundle.is_dir() && !calls_wrapper(&bundle);
        let pid = found.iter().find_map(|f| f.container.as_ref()).map(|container| container.pid);
        let mut seen = Vec::new();
        for one in found {
            let (container, looked) = self.container(one, place, facts);
            facts.containers.push(container);
            seen.push(looked);
        }
        facts.rss_bytes = facts.containers.iter().map(|container| container.rss_bytes).sum();
        facts.empty_dirs = self.empty_dirs(&pod_dir, &host_mounts, &mut facts.incomplete);
        self.look_at_cni(facts);
        // Of a pod without a container that runs there is nothing more to be seen.
        if let Some(pid) = pid {
            // After the descriptors: a socket that is in use is then listed.
            let unix = self.shared(facts, pid, &sandbox.id);
            for (container, looked) in facts.containers.iter_mut().zip(&seen) {
                let init = container.pid;
                let now = || self.now(init, looked);
                let judged = ends::judge(self.proc(), container, &looked.seen, unix.as_ref(), now);
                let name = &container.name;
                facts.unseen.extend(judged.err().map(|error| {
                    let message =
                        format!("with whom its processes are connected is not known: {error}");
                    Unseen::of_container(name, Part::Processes, message)
                }));
            }
        }
        for container in &mut facts.containers {
            processes::look_at_headless(self.proc(), container);
            facts.incomplete.extend(processes::bound(container));
        }
    }

    fn proc(&self) -> &Path {
        &self.runtime.layout.proc
    }

    fn look_at_cni(&self, facts: &mut PodFacts) {
        match network::cni(&self.host.join(&self.cni_conf_dir)) {
            Ok(cni) => facts.network.cni = cni,
            Err(error) => {
                let message = format!("the node's CNI configuration cannot be read: {error}");
                facts.unseen.push(Unseen::of_pod(Part::Rest, message));
            }
        }
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
                incomplete
                    .push(format!("emptyDir {name} has more than {} files", sizes::MAX_ENTRIES));
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
        let is_in_nodes = |kind| self.is_in_nodes(pid, kind);
        let both = is_in_nodes("net").and_then(|net| Ok((net, is_in_nodes("ipc")?)));
        let (host_network, host_ipc) = both.unwrap_or_else(|error| {
            let message =
                format!("the pod's namespaces cannot be compared with the node's: {error}");
            facts.unseen.push(Unseen::of_pod(Part::Rest, message));
            (false, false)
        });
        let mut unix = None;
        match network::look_within(self.proc(), pid) {
            Ok(within) => {
                let mut routes = net_tables::routes(&read("net/route"));
                routes.extend(net_tables::ipv6_routes(&read("net/ipv6_route")));
                let learned = net_tables::learned_addresses(&read("net/if_inet6"));
                let tables = [tcp.as_str(), tcp6.as_str()];
                let are_plain = settings::are_plain(&cni);
                routes.retain(|route| are_plain || !route.is_to_one());
                facts.network = network::facts(&within.interfaces, &routes, &learned, &tables);
                facts.network.routing_rules = within.rules;
                facts.network.ipsec = within.settings.ipsec;
                if are_plain {
                    facts.network.queueing_disciplines = within.settings.disciplines;
                    facts.network.static_neighbours =
                        network::static_neighbours(&within.settings.neighbours, &routes);
                    let bundle = self.runtime.layout.bundle(sandbox_id);
                    let written = sysctls::written(self.proc(), &bundle, &within.parameters);
                    facts.network.kernel_parameters = written.unwrap_or_else(|error| {
                        let message = format!(
                            "the kernel parameters of the pod's network cannot be compared: {error}"
                        );
                        facts.unseen.push(Unseen::of_pod(Part::Rest, message));
                        Vec::new()
                    });
                }
                unix = Some(within.unix);
                let [shm, sem, msg] = within.sysv.each_ref().map(|table| proc::sysv(table));
                facts.ipc.sysv_segments = shm.0;
                facts.ipc.sysv_shm_bytes = shm.1;
                facts.ipc.sysv_semaphores = sem.0;
                facts.ipc.sysv_queues = msg.0;
            }
            Err(error) => {
                facts.network = NetworkFacts::default();
                let message = format!("the pod's namespaces cannot be entered: {error}");
                facts.unseen.push(Unseen::of_pod(Part::Rest, message));
            }
        }
        facts.network.cni = cni;
        facts.network.host_network = host_network;
        let network = &mut facts.network;
        if let Err(error) = network::look_at_connections(self.proc(), pid, network) {
            let message = format!(
                "which of its connections cannot go on from another node is not known: {error}"
            );
            facts.unseen.push(Unseen::of_pod(Part::Connections, message));
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
        if shm.cut {
            facts.incomplete.push(format!("/dev/shm has more than {} files", sizes::MAX_ENTRIES));
        }
        facts.ipc = IpcFacts {
            host_ipc,
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

/// A text of `/proc`, in which names may be of any bytes.
fn read(path: &Path) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
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
