use rstest::rstest;
use serde_json::{Value, json};
use transship_api::conditions::reasons;
use transship_api::{self as api, Migration, MigrationSpec, Mode, Network};

use super::*;

/// Everything that checks look at, in a state in which they all pass.
struct World {
    migration: Migration,
    pod: Option<Value>,
    owner: bool,
    selector: Value,
    nodes: Vec<Value>,
    facts: Value,
    target_facts: Value,
}

fn node(name: &str) -> Value {
    json!({
        "core": {"metadata": {"name": name}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
        "agent": {
            "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": name},
            "spec": {},
            "status": {
                "arch": "amd64", "criu": {"version": "4.2.1"},
                "cpu": {"vendor": "X", "features": ["avx2", "sse2"]},
                "runtime": {"cgroupVersion": 1},
                "conditions": [{"type": "Ready", "status": "True", "reason": "Available",
                    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
            }
        }
    })
}

fn facts() -> Value {
    json!({
        "podUID": "uid-s",
        "node": {"freeBytes": 1_000_000},
        "rssBytes": 1000,
        "containers": [{"name": "web", "running": true, "processes": [
            {"pid": 7, "containerPid": 1, "name": "web", "state": "Running", "resources": []}]}],
        "network": {"interface": "eth0", "ip": "10.244.1.5", "ruleTables": ["netdev transship"],
            "cni": {"name": "flat", "plugins": ["bridge", "transship-cni"], "ipam": "host-local",
                "subnets": ["10.244.0.0/16"]}}
    })
}

impl World {
    fn new() -> Self {
        let mut migration = Migration::new("move", MigrationSpec::for_pod("web-1"));
        migration.metadata.namespace = Some("shop".into());
        migration.metadata.uid = Some("uid-m".into());
        migration.spec.target_node = Some("node-b".into());
        let pod = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "uid-s",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                    "uid": "rs", "controller": true}]},
            "spec": {"nodeName": "node-a", "containers": [{"name": "web",
                "lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 80}}}}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "web", "image": "", "imageID": "",
                "ready": true, "restartCount": 0, "state": {"running": {}}}]}
        });
        Self {
            migration,
            pod: Some(pod),
            owner: true,
            selector: json!({"matchLabels": {"app": "web"}}),
            nodes: vec![node("node-a"), node("node-b")],
            facts: facts(),
            target_facts: facts(),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Input<'_>) -> T) -> T {
        let pod: Option<Pod> = self.pod.clone().map(|p| serde_json::from_value(p).unwrap());
        let owner: ReplicaSet =
            serde_json::from_value(json!({"spec": {"selector": self.selector}})).unwrap();
        let nodes: Vec<NodeView> = self
            .nodes
            .iter()
            .map(|node| {
                let core: Option<Node> = serde_json::from_value(node["core"].clone()).unwrap();
                let agent: Option<api::Node> =
                    serde_json::from_value(node["agent"].clone()).unwrap();
                let name = [&node["core"], &node["agent"]]
                    .into_iter()
                    .find_map(|n| n["metadata"]["name"].as_str())
                    .unwrap()
                    .to_owned();
                NodeView { name, core, agent }
            })
            .collect();
        let facts: PodFacts = serde_json::from_value(self.facts.clone()).unwrap();
        let target_facts: PodFacts = serde_json::from_value(self.target_facts.clone()).unwrap();
        let wanted = self.migration.spec.target_node.clone().unwrap_or("node-b".into());
        look(&Input {
            migration: &self.migration,
            pod: pod.as_ref(),
            owner: self.owner.then_some(&owner),
            claims: &[],
            policy: None,
            nodes: &nodes,
            target: nodes.iter().find(|n| n.name == wanted),
            facts: Some(&facts),
            target_facts: Some(&target_facts),
        })
    }

    fn pod(&mut self) -> &mut Value {
        self.pod.as_mut().unwrap()
    }

    fn container(&mut self) -> &mut Value {
        &mut self.pod()["spec"]["containers"][0]
    }

    fn process(&mut self) -> &mut Value {
        &mut self.facts["containers"][0]["processes"][0]
    }

    fn owner_is(&mut self, version: &str, kind: &str) {
        self.pod()["metadata"]["ownerReferences"][0]["apiVersion"] = json!(version);
        self.pod()["metadata"]["ownerReferences"][0]["kind"] = json!(kind);
    }
}

#[test]
fn an_ordinary_pod_passes_every_check() {
    let world = World::new();
    assert_eq!(world.look(refusal), None);
    assert_eq!(world.look(violations), []);
}

#[rstest]
#[case(|w: &mut World| w.migration.spec.mode = Mode::PreCopy, reasons::MODE_NOT_AVAILABLE, "write mode: StopAndCopy")]
#[case(|w: &mut World| w.migration.spec.mode = Mode::Cold, reasons::MODE_NOT_AVAILABLE, "Cold")]
#[case(|w: &mut World| w.migration.spec.network = Network::Close, reasons::NETWORK_NOT_AVAILABLE, "write network: Preserve")]
#[case(|w: &mut World| w.pod()["metadata"]["annotations"] = json!({"transship.dev/constraints": "[\"a==b\"]"}), reasons::INVALID_SPEC, "Key 'a' is invalid")]
#[case(|w: &mut World| w.migration.spec.timeout = "10".into(), reasons::INVALID_SPEC, "10m")]
#[case(|w: &mut World| w.pod = None, reasons::POD_NOT_FOUND, "kubectl get pods -n shop")]
#[case(|w: &mut World| w.pod()["status"]["phase"] = json!("Pending"), reasons::POD_NOT_RUNNING, "Pending")]
#[case(|w: &mut World| w.pod()["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"), reasons::POD_NOT_RUNNING, "being deleted")]
#[case(|w: &mut World| w.pod()["metadata"]["annotations"]["transship.dev/claim"] = json!("x"), reasons::POD_CLAIMED, "UID x")]
#[case(|w: &mut World| { w.pod()["metadata"]["annotations"] = json!({"transship.dev/claim": "x", "transship.dev/migration-name": "shop/other"}); }, reasons::POD_CLAIMED, "Migration shop/other")]
#[case(|w: &mut World| w.owner_is("apps/v1", "StatefulSet"), reasons::OWNER_NOT_SUPPORTED, "StatefulSet web")]
#[case(|w: &mut World| w.owner_is("apps/v1", "DaemonSet"), reasons::OWNER_NOT_SUPPORTED, "one on each node")]
#[case(|w: &mut World| w.owner_is("batch/v1", "Job"), reasons::OWNER_NOT_SUPPORTED, "Job web")]
#[case(|w: &mut World| w.owner_is("example.com/v1", "ReplicaSet"), reasons::OWNER_NOT_SUPPORTED, "ReplicaSet web")]
#[case(|w: &mut World| w.owner = false, reasons::OWNER_NOT_SUPPORTED, "is gone or being deleted")]
#[case(|w: &mut World| w.pod()["metadata"]["ownerReferences"] = json!([]), reasons::OWNER_NOT_SUPPORTED, "no owner")]
#[case(|w: &mut World| w.pod()["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x"), reasons::OWNER_NOT_SUPPORTED, "static pod")]
#[case(|w: &mut World| w.migration.spec.target_node = Some("node-z".into()), reasons::NODE_NOT_FOUND, "write one of node-a, node-b")]
#[case(|w: &mut World| w.migration.spec.target_node = Some("node-a".into()), reasons::SAME_NODE, "such as node-b")]
#[case(|w: &mut World| w.nodes[0]["agent"] = Value::Null, reasons::SOURCE_NOT_READY, "no Transship agent has reported from node-a")]
#[case(|w: &mut World| { w.nodes.remove(0); }, reasons::SOURCE_NOT_READY, "does not exist")]
#[case(|w: &mut World| w.nodes[1]["agent"] = Value::Null, reasons::TARGET_NOT_READY, "no Transship agent has reported from node-b")]
#[case(|w: &mut World| w.nodes[1]["agent"]["status"]["conditions"][0]["status"] = json!("False"), reasons::TARGET_NOT_READY, "Transship on node-b is not Ready")]
#[case(|w: &mut World| w.nodes[1]["core"]["status"]["conditions"][0]["status"] = json!("Unknown"), reasons::TARGET_NOT_READY, "node-b is not Ready")]
#[case(|w: &mut World| w.nodes[1]["agent"]["spec"]["unschedulable"] = json!(true), reasons::TARGET_NOT_READY, "says unschedulable")]
#[case(|w: &mut World| w.nodes[1]["core"]["spec"]["unschedulable"] = json!(true), reasons::TARGET_NOT_READY, "cordoned")]
fn a_request_that_cannot_be_carried_out_is_answered_in_one_sentence(
    #[case] change: fn(&mut World),
    #[case] reason: &str,
    #[case] words: &str,
) {
    let mut world = World::new();
    change(&mut world);
    let refusal = world.look(refusal).expect("must be refused");
    assert_eq!(refusal.reason, reason, "{}", refusal.message);
    assert!(refusal.message.contains(words), "{}", refusal.message);
    assert!(!refusal.message.contains(". "), "one sentence: {}", refusal.message);
}

#[rstest]
#[case(|w: &mut World| w.pod()["spec"]["hostNetwork"] = json!(true), "HostNamespaces", "hostNetwork")]
#[case(|w: &mut World| w.pod()["spec"]["hostPID"] = json!(true), "HostNamespaces", "hostPID")]
#[case(|w: &mut World| w.pod()["spec"]["hostUsers"] = json!(false), "UserNamespace", "user namespace")]
#[case(|w: &mut World| w.pod()["spec"]["shareProcessNamespace"] = json!(true), "SharedProcessNamespace", "one process namespace")]
#[case(|w: &mut World| w.pod()["spec"]["runtimeClassName"] = json!("gvisor"), "RuntimeClass", "gvisor")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}]), "Volumes", "hostPath")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]), "Volumes", "persistent")]
#[case(|w: &mut World| w.container()["volumeDevices"] = json!([{"name": "v", "devicePath": "/dev/x"}]), "BlockDevices", "block device")]
#[case(|w: &mut World| w.container()["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}}), "Devices", "nvidia.com/gpu")]
#[case(|w: &mut World| w.container()["tty"] = json!(true), "Terminal", "terminal")]
#[case(|w: &mut World| w.pod()["spec"]["initContainers"] = json!([{"name": "i", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]), "InitContainers", "NET_ADMIN")]
#[case(|w: &mut World| w.pod()["spec"]["initContainers"] = json!([{"name": "i", "securityContext": {"privileged": true}}]), "InitContainers", "privileged")]
#[case(|w: &mut World| w.container()["lifecycle"] = json!({"postStart": {"exec": {"command": ["x"]}}}), "PostStartHook", "again in the middle")]
#[case(|w: &mut World| w.pod()["metadata"]["name"] = json!("web.v2"), "HostName", "web.v2")]
#[case(|w: &mut World| w.pod()["status"]["containerStatuses"][0]["state"] = json!({"waiting": {}}), "ContainerNotRunning", "does not run")]
#[case(|w: &mut World| w.selector = json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), "OwnerSelector", "without labels")]
#[case(|w: &mut World| w.nodes[1]["agent"]["status"]["arch"] = json!("arm64"), "Architecture", "arm64")]
#[case(|w: &mut World| w.nodes[1]["agent"]["status"]["cpu"]["features"] = json!(["sse2"]), "CpuFeatures", "lacks avx2")]
#[case(|w: &mut World| w.nodes[1]["agent"]["status"]["criu"]["version"] = json!("4.3"), "CriuVersion", "4.3")]
#[case(|w: &mut World| w.nodes[1]["agent"]["status"]["runtime"]["cgroupVersion"] = json!(2), "CgroupVersion", "version 2")]
#[case(|w: &mut World| w.process()["state"] = json!("Stopped"), "StoppedProcess", "stopped")]
#[case(|w: &mut World| w.process()["tracerPid"] = json!(3), "TracedProcess", "process 3")]
#[case(|w: &mut World| w.process()["ownNamespaces"] = json!(["pid"]), "NestedNamespaces", "pid")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "IoUring"}]), "IoUring", "io_uring")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "Mptcp"}]), "Mptcp", "multipath")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "Device", "detail": "/dev/kvm"}]), "Device", "/dev/kvm")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "RootfsWatch", "detail": "/var/log"}]), "RootfsWatch", "/var/log")]
#[case(|w: &mut World| w.facts["containers"][0]["userNamespace"] = json!(true), "UserNamespace", "user namespace")]
#[case(|w: &mut World| w.facts["containers"][0]["frozen"] = json!(true), "FrozenContainer", "paused")]
#[case(|w: &mut World| w.facts["containers"][0]["criuConfig"] = json!("/etc/criu/mine.conf"), "CriuConfiguration", "/etc/criu/mine.conf")]
#[case(|w: &mut World| w.facts["containers"][0]["criuConfig"] = json!("/var/lib/transship/../x"), "CriuConfiguration", "org.criu.config")]
#[case(|w: &mut World| w.facts["ipc"]["posixQueues"] = json!(2), "MessageQueue", "2 POSIX")]
#[case(|w: &mut World| w.facts["network"]["ruleTables"] = json!(["ip nat"]), "NetworkRules", "ip nat")]
#[case(|w: &mut World| w.facts["network"]["otherInterfaces"] = json!(["net1"]), "NetworkDevices", "net1")]
#[case(|w: &mut World| w.facts["network"]["cni"]["plugins"] = json!(["calico"]), "Address", "calico")]
#[case(|w: &mut World| w.facts["network"]["cni"]["ipam"] = json!("whereabouts"), "Address", "whereabouts")]
#[case(|w: &mut World| w.facts["network"]["cni"]["plugins"] = json!(["bridge"]), "Address", "transship-cni")]
#[case(|w: &mut World| w.target_facts["network"]["cni"]["name"] = json!("other"), "Address", "other")]
#[case(|w: &mut World| w.target_facts["network"]["cni"]["subnets"] = json!(["10.245.0.0/16"]), "Address", "10.245.0.0/16")]
#[case(|w: &mut World| w.target_facts["node"]["freeBytes"] = json!(1999), "Space", "free")]
fn what_cannot_be_moved_is_found_and_remedied(
    #[case] change: fn(&mut World),
    #[case] check: &str,
    #[case] words: &str,
) {
    let mut world = World::new();
    change(&mut world);
    let found = world.look(violations);
    assert_eq!(found.iter().map(|v| v.check).collect::<Vec<_>>(), [check], "{found:?}");
    assert!(found[0].message.contains(words), "{}", found[0].message);
    assert!(!found[0].remedy.is_empty());
}

#[test]
fn everything_is_told_at_once_with_place_and_remedy() {
    let mut world = World::new();
    world.container()["tty"] = json!(true);
    world.process()["resources"] = json!([{"kind": "IoUring"}]);
    let found = world.look(violations);
    assert_eq!(found.len(), 2);
    let text = summary(&found);
    assert!(text.contains("Terminal (container web)"), "{text}");
    assert!(text.contains("process web (1): it uses io_uring"), "{text}");
    assert!(text.contains("seccompProfile"), "{text}");
    assert_eq!(
        found[1].to_status().message,
        "process web (1): it uses io_uring, which CRIU cannot save"
    );
}

#[rstest]
#[case("skip", 0)]
#[case("run", 1)]
fn a_post_start_hook_may_be_skipped(#[case] annotation: &str, #[case] violations: usize) {
    let mut world = World::new();
    world.container()["lifecycle"] = json!({"postStart": {"exec": {"command": ["x"]}}});
    world.pod()["metadata"]["annotations"]["transship.dev/post-start"] = json!(annotation);
    assert_eq!(world.look(super::violations).len(), violations);
}

#[test]
fn a_container_that_was_restored_before_moves_again() {
    let mut world = World::new();
    world.facts["containers"][0]["criuConfig"] = json!("/var/lib/transship/pods/u/criu/web.conf");
    assert_eq!(world.look(violations), []);
}

#[test]
fn what_an_agent_could_not_say_is_not_held_against_the_pod() {
    let mut world = World::new();
    world.target_facts = json!({});
    world.nodes[1]["agent"]["status"]["cpu"] = Value::Null;
    assert_eq!(world.look(violations), []);
    world.facts["containers"][0]["running"] = json!(false);
    world.process()["resources"] = json!([{"kind": "IoUring"}]);
    assert_eq!(world.look(violations), [], "an ended container does not move");
}

#[rstest]
#[case("10.244.0.0/16", "10.244.9.1", true)]
#[case("10.244.1.0/24", "10.244.9.1", false)]
#[case("0.0.0.0/0", "10.244.9.1", true)]
#[case("10.244.9.1/32", "10.244.9.1", true)]
#[case("fd00::/8", "fd12::1", true)]
#[case("fd00::/8", "10.0.0.1", false)]
#[case("10.244.0.0", "10.244.0.1", false)]
#[case("10.244.0.0/99", "10.244.0.1", false)]
fn subnets_are_compared(#[case] subnet: &str, #[case] address: &str, #[case] within: bool) {
    assert_eq!(facts::contains(subnet, address), within);
}
