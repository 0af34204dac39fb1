//! The task of a side's holder, as the agent takes it.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt;
use transship_api as api;
use transship_api::{Migration, Network};
use transship_core::facts::NetworkFacts;
use transship_core::migration::Role;
use transship_core::migration::voting::frozen_limit;
use transship_core::post_start::{self, Asked};
use transship_core::sequential_pod::claims;
use transship_core::target_pod::{effective_host_name, is_sidecar};
use transship_host::hook::{Hook, HookAction, HttpGet};
use transship_host::paths;
use transship_host::record::{ContainerKind, ContainerRef, NetworkMode, RecordNetwork};
use transship_host::task::{EmptyDir, HolderTask, ObjectRef, Part, Peer, TASK_VERSION};

/// Everything that a task is made of.
pub struct Parts<'a> {
    /// The Migration.
    pub migration: &'a Migration,
    /// The side.
    pub role: Role,
    /// Which part the side plays.
    pub part: Part,
    /// The source pod, whose manifest counts on both sides.
    pub source: &'a Pod,
    /// The target pod.
    pub target: &'a Pod,
    /// Our Nodes, source first.
    pub nodes: [&'a api::Node; 2],
    /// The source pod's network.
    pub network: &'a NetworkFacts,
}

/// The task, or what is missing for it.
pub fn task(parts: &Parts<'_>) -> Result<HolderTask, String> {
    let [source_node, target_node] = parts.nodes;
    let (node, peer, pod) = match parts.role {
        Role::Source => (source_node, target_node, parts.source),
        Role::Target => (target_node, source_node, parts.target),
    };
    let spec = parts.source.spec.as_ref().ok_or("the source pod has no spec")?;
    let data_address = peer
        .status
        .as_ref()
        .and_then(|s| s.agent.as_ref())
        .map(|agent| agent.data_address.clone())
        .filter(|address| !address.is_empty())
        .ok_or_else(|| format!("{} has not reported its data address", peer.name_any()))?;
    Ok(HolderTask {
        version: TASK_VERSION,
        migration: reference(parts.migration),
        role: match parts.role {
            Role::Source => paths::Role::Source,
            Role::Target => paths::Role::Target,
        },
        node: node.name_any(),
        pod: reference(pod),
        peer: Peer { node: peer.name_any(), data_address },
        containers: containers(spec),
        empty_dirs: empty_dirs(spec),
        sandbox: match parts.role {
            Role::Source => {
                parts.migration.status.as_ref().and_then(|status| status.source_sandbox.clone())
            }
            Role::Target => None,
        },
        part: parts.part,
        stand_ins: claims(parts.source),
        hooks: match parts.role {
            // Nothing runs on trial, and what starts afresh has its hooks run by kubelet.
            Role::Target if parts.part != Part::Trial && !parts.part.is_cold() => {
                hooks(parts.source)?
            }
            Role::Source | Role::Target => Vec::new(),
        },
        ending: (parts.role == Role::Source && parts.part.is_cold())
            .then(|| super::ending::of(spec)),
        network: Some(network(parts.migration, parts.network, parts.part)),
        host_name: effective_host_name(parts.source),
        max_frozen_millis: u64::try_from(frozen_limit(parts.source).as_millis())
            .unwrap_or(u64::MAX),
        bandwidth_limit: bandwidth(parts.migration, parts.nodes),
        timeout_at_unix_millis: timeout_at(parts.migration),
        // The agent puts its own node's in.
        kubelet_root: PathBuf::from("/var/lib/kubelet"),
    })
}

fn network(migration: &Migration, facts: &NetworkFacts, part: Part) -> RecordNetwork {
    let chosen = migration.status.as_ref().and_then(|status| status.chosen_network);
    let mode = match chosen {
        Some(Network::Close) => NetworkMode::Close,
        _ => NetworkMode::Preserve,
    };
    let mut aliases = facts.loopback_addresses.clone();
    if part.is_cold() {
        // No socket remembers an address.
        aliases.clear();
    } else if mode == NetworkMode::Close {
        aliases.push(facts.ip.clone());
        aliases.extend(facts.other_ips().map(str::to_owned));
        aliases.sort();
        aliases.dedup();
    }
    RecordNetwork {
        mode,
        ip: facts.ip.clone(),
        other_ips: facts.other_ips().map(str::to_owned).collect(),
        mac: facts.mac.clone(),
        interface: facts.interface.clone(),
        aliases,
    }
}

fn reference(object: &impl ResourceExt) -> ObjectRef {
    ObjectRef {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
    }
}

/// In the order in which kubelet starts them.
fn containers(spec: &PodSpec) -> Vec<ContainerRef> {
    let inits = spec.init_containers.iter().flatten().map(|container| ContainerRef {
        name: container.name.clone(),
        kind: if is_sidecar(container) { ContainerKind::Sidecar } else { ContainerKind::Init },
    });
    let apps = spec
        .containers
        .iter()
        .map(|container| ContainerRef { name: container.name.clone(), kind: ContainerKind::App });
    inits.chain(apps).collect()
}

/// Those that are to be run when the pod has moved.
fn hooks(pod: &Pod) -> Result<Vec<Hook>, String> {
    if post_start::asked(pod) != Some(Asked::Run) {
        return Ok(Vec::new());
    }
    post_start::hooks(pod).iter().map(hook).collect()
}

/// A hook as a holder runs it.
pub(super) fn hook(found: &post_start::Hook<'_>) -> Result<Hook, String> {
    let container = found.container.name.clone();
    let refused = |why: &str| format!("the hook of {container} cannot be run: {why}");
    if let Some(problem) = found.problem() {
        return Err(refused(problem));
    }
    let handler = &found.handler;
    let action = match (&handler.exec, &handler.http_get, found.port(), &handler.sleep) {
        (Some(exec), ..) => HookAction::Exec { command: exec.command.clone().unwrap_or_default() },
        (None, Some(get), Some(port), _) => HookAction::HttpGet(HttpGet {
            https: get.scheme.as_deref() == Some("HTTPS"),
            host: get.host.clone().filter(|host| !host.is_empty()),
            port,
            path: get.path.clone().unwrap_or_default(),
            headers: get
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        }),
        (None, None, _, Some(sleep)) => {
            HookAction::Sleep { seconds: u64::try_from(sleep.seconds).unwrap_or(0) }
        }
        _ => return Err(refused("it is of an unknown kind")),
    };
    Ok(Hook { container, action })
}

fn empty_dirs(spec: &PodSpec) -> Vec<EmptyDir> {
    let volumes = spec.volumes.iter().flatten();
    volumes
        .filter_map(|volume| {
            let medium = volume.empty_dir.as_ref()?.medium.clone().unwrap_or_default();
            Some(EmptyDir { name: volume.name.clone(), medium })
        })
        .collect()
}

/// The smallest limit that anybody set, in bytes a second.
fn bandwidth(migration: &Migration, nodes: [&api::Node; 2]) -> u64 {
    let own = migration.spec.bandwidth_limit().ok().flatten();
    let nodes = nodes.into_iter().filter_map(|node| node.spec.bandwidth_limit().ok());
    own.into_iter().chain(nodes).min().unwrap_or(0)
}

/// Counted from the Migration's creation, as the operator counts it.
fn timeout_at(migration: &Migration) -> u64 {
    let created = migration.creation_timestamp().map_or(0, |t| t.0.as_millisecond());
    let limit = migration.spec.timeout().map_or(600_000, |t| t.as_millis());
    u64::try_from(created).unwrap_or(0).saturating_add(u64::try_from(limit).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, limit: &str) -> api::Node {
        let mut node = api::Node::new(
            name,
            api::NodeSpec { bandwidth_limit: limit.into(), ..api::NodeSpec::default() },
        );
        node.status = Some(api::NodeStatus {
            agent: Some(api::node::Agent {
                data_address: "192.0.2.7:9441".into(),
                ..api::node::Agent::default()
            }),
            ..api::NodeStatus::default()
        });
        node
    }

    fn pod(name: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {
                "initContainers": [{"name": "setup"}, {"name": "proxy", "restartPolicy": "Always"}],
                "containers": [{"name": "web", "livenessProbe": {"periodSeconds": 5}}],
                "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}},
                    {"name": "conf", "configMap": {"name": "c"}}]
            }
        }))
        .unwrap()
    }

    #[test]
    fn both_sides_get_the_sources_manifest_and_each_its_own_pod_and_peer() {
        let mut migration = Migration::new("move", api::MigrationSpec::for_pod("web-1"));
        migration.metadata.namespace = Some("shop".into());
        migration.metadata.uid = Some("uid-m".into());
        migration.spec.bandwidth_limit = Some("100Mi".into());
        migration.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                "2026-01-01T00:00:00Z".parse().unwrap(),
            ));
        let (source, target) = (pod("web-1"), pod("web-2"));
        let (a, b) = (node("node-a", "1Gi"), node("node-b", "50Mi"));
        let network = NetworkFacts {
            ip: "10.244.1.5".into(),
            other_addresses: vec!["fd00::5/64".into()],
            mac: "02:00:00:00:00:01".into(),
            interface: "eth0".into(),
            loopback_addresses: vec!["10.244.9.9".into()],
            ..NetworkFacts::default()
        };
        let make = |migration: &Migration, role| {
            let parts = Parts {
                migration,
                role,
                part: Part::Overlap,
                source: &source,
                target: &target,
                nodes: [&a, &b],
                network: &network,
            };
            task(&parts).unwrap()
        };
        let task = make(&migration, Role::Target);
        task.validate().unwrap();
        assert_eq!((task.node.as_str(), task.peer.node.as_str()), ("node-b", "node-a"));
        assert_eq!((task.pod.uid.as_str(), task.pod.namespace.as_str()), ("uid-web-2", "shop"));
        assert_eq!(task.host_name.as_deref(), Some("web-1"));
        let kinds: Vec<_> = task.containers.iter().map(|c| (c.name.as_str(), c.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("setup", ContainerKind::Init),
                ("proxy", ContainerKind::Sidecar),
                ("web", ContainerKind::App)
            ]
        );
        assert_eq!(task.network.as_ref().unwrap().other_ips, ["fd00::5"]);
        assert_eq!(task.empty_dirs.len(), 1);
        assert_eq!(task.bandwidth_limit, 50 << 20);
        assert_eq!(task.max_frozen_millis, 10_000);
        assert_eq!(task.timeout_at_unix_millis, 1_767_225_600_000 + 600_000);
        assert_eq!(task.network.unwrap().aliases, ["10.244.9.9"]);
        let task = make(&migration, Role::Source);
        task.validate().unwrap();
        assert_eq!((task.node.as_str(), task.pod.name.as_str()), ("node-a", "web-1"));

        assert_eq!(task.hooks, []);

        migration.status.get_or_insert_default().chosen_network = Some(Network::Close);
        let network = make(&migration, Role::Target).network.unwrap();
        assert_eq!(network.mode, NetworkMode::Close);
        assert_eq!(
            network.aliases,
            ["10.244.1.5", "10.244.9.9", "fd00::5"],
            "what sockets are bound to"
        );
    }

    #[test]
    fn hooks_are_carried_where_the_pod_asks_for_it() {
        let mut value = serde_json::to_value(pod("web-1")).unwrap();
        value["spec"]["initContainers"][1]["lifecycle"] =
            json!({"postStart": {"exec": {"command": ["x", "y"]}}});
        value["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
        value["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"httpGet": {
            "port": "web", "path": "/up?x", "scheme": "HTTPS",
            "httpHeaders": [{"name": "Host", "value": "h"}]}}});
        let made =
            |value: &serde_json::Value| hooks(&serde_json::from_value(value.clone()).unwrap());
        assert_eq!(made(&value), Ok(vec![]));
        value["metadata"]["annotations"] = json!({"transship.dev/post-start": "skip"});
        assert_eq!(made(&value), Ok(vec![]));
        value["metadata"]["annotations"] = json!({"transship.dev/post-start": "run"});
        let get = HttpGet {
            https: true,
            host: None,
            port: 8080,
            path: "/up?x".into(),
            headers: vec![("Host".into(), "h".into())],
        };
        assert_eq!(
            made(&value),
            Ok(vec![
                Hook {
                    container: "proxy".into(),
                    action: HookAction::Exec { command: vec!["x".into(), "y".into()] }
                },
                Hook { container: "web".into(), action: HookAction::HttpGet(get) }
            ])
        );
        value["spec"]["containers"][0]["lifecycle"] =
            json!({"postStart": {"tcpSocket": {"port": 1}}});
        assert!(made(&value).is_err());
    }

    #[test]
    fn a_cold_side_is_told_how_containers_end_and_keeps_no_old_address() {
        let mut migration = Migration::new("move", api::MigrationSpec::for_pod("web-1"));
        migration.metadata.namespace = Some("shop".into());
        migration.metadata.uid = Some("uid-m".into());
        migration.status.get_or_insert_default().chosen_network = Some(Network::Close);
        let mut value = serde_json::to_value(pod("web-1")).unwrap();
        value["metadata"]["annotations"] = json!({"transship.dev/post-start": "run"});
        value["spec"]["containers"][0]["lifecycle"] =
            json!({"postStart": {"exec": {"command": ["x"]}}});
        let source: Pod = serde_json::from_value(value).unwrap();
        let target = pod("web-2");
        let (a, b) = (node("node-a", "1Gi"), node("node-b", "50Mi"));
        let network = NetworkFacts {
            ip: "10.244.1.5".into(),
            mac: "02:00:00:00:00:01".into(),
            interface: "eth0".into(),
            ..NetworkFacts::default()
        };
        let parts = Parts {
            migration: &migration,
            role: Role::Source,
            part: Part::Cold,
            source: &source,
            target: &target,
            nodes: [&a, &b],
            network: &network,
        };
        let made = task(&parts).unwrap();
        made.validate().unwrap();
        assert_eq!(made.ending.map(|ending| ending.grace_seconds), Some(30));
        assert!(made.network.unwrap().aliases.is_empty());
        let again = task(&Parts { role: Role::Target, part: Part::ColdAgain, ..parts }).unwrap();
        assert_eq!((again.ending, again.hooks), (None, vec![]), "kubelet runs postStart itself");
    }
}
