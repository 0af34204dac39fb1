use k8s_openapi::api::apps::v1::ReplicaSet;
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
    policy: Value,
    selector: Value,
    nodes: Vec<Value>,
    facts: Value,
    target_facts: Value,
    answer: Option<TargetAnswer>,
}

fn node(name: &str) -> Value {
    json!({
        "core": {"metadata": {"name": name}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
        "agent": {
            "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": name},
            "spec": {},
            "status": {
                "arch": "amd64", "criu": {"version": "4.2.1", "features": ["rseq", "timens"]},
                "cpu": {"vendor": "X", "features": ["avx2", "sse2"]},
                "runtime": {"cgroupVersion": 1},
                "conditions": [{"type": "Ready", "status": "True", "reason": "Available",
                    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
            }
        }
    })
}

fn policy(constraint: &str) -> Value {
    json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
        "metadata": {"name": "all", "namespace": "shop"},
        "spec": {"selector": {}, "placement": {"constraints": [constraint]}}
    })
}

fn facts() -> Value {
    json!({
        "podUID": "uid-s",
        "node": {"freeBytes": 1_000_000, "availableMemoryBytes": 1_000_000,
            "images": [{"id": "sha256:1", "names": ["localhost/web:1"]}]},
        "rssBytes": 5000,
        "containers": [{"name": "web", "running": true, "imageId": "sha256:1",
            "anonymousBytes": 600, "sharedBytes": 400, "processes": [
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
            "spec": {"nodeName": "node-a", "containers": [{"name": "web", "image": "localhost/web:1",
                "lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 80}}}}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "web", "image": "", "imageID": "",
                "ready": true, "restartCount": 0, "state": {"running": {}}}]}
        });
        Self {
            migration,
            pod: Some(pod),
            owner: true,
            policy: Value::Null,
            selector: json!({"matchLabels": {"app": "web"}}),
            nodes: vec![node("node-a"), node("node-b")],
            facts: facts(),
            target_facts: facts(),
            answer: None,
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Input<'_>) -> T) -> T {
        let pod: Option<Pod> = self.pod.clone().map(|p| serde_json::from_value(p).unwrap());
        let owner: ReplicaSet =
            serde_json::from_value(json!({"spec": {"selector": self.selector}})).unwrap();
        let owner = Controller::from(owner);
        let policy: Option<api::MigrationPolicy> =
            serde_json::from_value(self.policy.clone()).unwrap();
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
            policy: policy.as_ref(),
            volumes: &Volumes::default(),
            nodes: &nodes,
            target: nodes.iter().find(|n| n.name == wanted),
            facts: Some(&facts),
            target_facts: Some(&target_facts),
            answer: self.answer.as_ref(),
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
#[case(|w: &mut World| w.migration.spec.mode = Mode::Hybrid, reasons::MODE_NOT_AVAILABLE, "or Cold")]
#[case(|w: &mut World| w.pod()["metadata"]["annotations"] = json!({"transship.dev/constraints": "[\"a==b\"]"}), reasons::INVALID_SPEC, "Key 'a' is invalid")]
#[case(|w: &mut World| w.policy = policy("region=us"), reasons::INVALID_SPEC, "MigrationPolicy all: spec.placement.constraints: One of operator ==, != is expected")]
#[case(|w: &mut World| w.policy = policy("region!=/(/"), reasons::INVALID_SPEC, "malformed pattern")]
#[case(|w: &mut World| w.migration.spec.timeout = "10".into(), reasons::INVALID_SPEC, "10m")]
#[case(|w: &mut World| w.pod = None, reasons::POD_NOT_FOUND, "kubectl get pods -n shop")]
#[case(|w: &mut World| w.pod()["status"]["phase"] = json!("Pending"), reasons::POD_NOT_RUNNING, "Pending")]
#[case(|w: &mut World| w.pod()["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"), reasons::POD_NOT_RUNNING, "being deleted")]
#[case(|w: &mut World| w.pod()["metadata"]["annotations"]["transship.dev/claim"] = json!("x"), reasons::POD_CLAIMED, "UID x")]
#[case(|w: &mut World| { w.pod()["metadata"]["annotations"] = json!({"transship.dev/claim": "x", "transship.dev/migration-name": "shop/other"}); }, reasons::POD_CLAIMED, "Migration shop/other")]
#[case(|w: &mut World| w.owner_is("example.com/v1", "StatefulSet"), reasons::OWNER_NOT_SUPPORTED, "StatefulSet web")]
#[case(|w: &mut World| w.owner_is("apps/v1", "DaemonSet"), reasons::OWNER_NOT_SUPPORTED, "one on each node")]
#[case(|w: &mut World| w.owner_is("example.com/v1", "Job"), reasons::OWNER_NOT_SUPPORTED, "Job web")]
#[case(|w: &mut World| w.owner_is("example.com/v1", "ReplicaSet"), reasons::OWNER_NOT_SUPPORTED, "ReplicaSet web")]
#[case(|w: &mut World| w.owner = false, reasons::OWNER_NOT_SUPPORTED, "is gone or being deleted")]
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
#[case(|w: &mut World| w.facts["withoutWrapper"] = json!(true), "SandboxWithoutWrapper", "before")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}]), "Volumes", "hostPath")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}}]), "Volumes", "huge pages")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]), "Volumes", "persistent")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "ephemeral": {}}]), "Volumes", "belongs to this one pod")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "csi": {"driver": "d"}}]), "Volumes", "inline CSI")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "nfs": {"server": "s", "path": "/"}}]), "Volumes", "NFS")]
#[case(|w: &mut World| w.pod()["spec"]["volumes"] = json!([{"name": "v", "image": {"reference": "i"}}]), "Volumes", "of a kind")]
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
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "Device", "detail": "/dev/kvm"}, {"kind": "Device", "detail": "/dev/fuse"}]), "Device", "/dev/fuse, /dev/kvm")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "RootfsWatch", "detail": "/var/log"}]), "RootfsWatch", "/var/log")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "ForeignSocket", "detail": "/run/x.sock"}]), "ForeignSocket", "/run/x.sock")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "Terminal", "detail": "/dev/pts/0"}]), "OpenTerminal", "other end")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "InheritedTerminal", "detail": "/dev/tty"}]), "OpenTerminal", "/dev/tty")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "MessageQueue", "detail": "/q"}]), "MessageQueue", "/q")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "AnonymousInode", "detail": "[landlock-ruleset]"}]), "KernelObject", "landlock")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "ForeignProcess", "detail": "pid 3"}]), "ForeignProcess", "pid 3")]
#[case(|w: &mut World| { w.facts["node"]["freeBytes"] = json!(1u64 << 40); w.process()["resources"] = json!([{"kind": "UnlinkedFile", "detail": "/big", "bytes": (256 << 20) + 4096}]); }, "UnlinkedFile", "/big")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "RemovedName", "detail": "/usr/lib/libx.so"}]), "RemovedName", "libx.so")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "ProjectedFile", "detail": "/etc/c/..2026_x/k"}]), "ProjectedFile", "..2026_x")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "RemadeFile", "detail": "/labels"}]), "RemadeFile", "other content: /labels")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "HugePages", "bytes": 2 << 20}]), "HugePages", "2.00 MiB")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "Userfaultfd"}]), "Userfaultfd", "userfaultfd")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "SecretMemory"}]), "SecretMemory", "secret")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "Fanotify"}]), "Fanotify", "fanotify")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "Bpf"}]), "Bpf", "BPF")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "PerfEvent"}]), "PerfEvent", "counter")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "OutsideFile", "detail": "/x"}]), "OutsideFile", "/x")]
#[case(|w: &mut World| w.process()["resources"] = json!([{"kind": "UnsupportedSocket", "detail": "address family 40"}]), "Socket", "family 40")]
#[case(|w: &mut World| { w.process()["state"] = json!("Zombie"); w.process()["threads"] = json!(2); }, "DeadMainThread", "main thread")]
#[case(|w: &mut World| w.facts["containers"][0]["mounts"] = json!([{"path": "/mnt", "fsType": "nfs4", "origin": "Application"}]), "Mounts", "nfs4 on /mnt")]
#[case(|w: &mut World| w.facts["network"]["routingRules"] = json!(["100: from 10.0.0.0/8 lookup 7"]), "NetworkDevices", "routing rules")]
#[case(|w: &mut World| w.answer = Some(TargetAnswer::Refused("exceeded quota: q".into())), "TargetPod", "exceeded quota")]
#[case(|w: &mut World| w.answer = Some(TargetAnswer::Taken(vec!["spec.containers[1]".into()])), "TargetPodChanged", "spec.containers[1]")]
#[case(|w: &mut World| w.nodes[1]["agent"]["status"]["criu"]["features"] = json!(["kcmp"]), "KernelFeatures", "timens")]
#[case(|w: &mut World| w.target_facts["node"]["availableMemoryBytes"] = json!(999), "Memory", "1000 B")]
#[case(|w: &mut World| { w.facts["node"]["freeBytes"] = json!(1); w.process()["resources"] = json!([{"kind": "UnlinkedFile", "detail": "/t", "bytes": 2}]); }, "Space", "unlinked")]
#[case(|w: &mut World| w.target_facts["node"]["images"] = json!([{"id": "sha256:1", "names": ["localhost/other:1"]}]), "Image", "no digest by which")]
#[case(|w: &mut World| w.target_facts["node"]["images"] = json!([{"id": "sha256:2", "names": ["localhost/web:1"]}]), "Image", "another image")]
#[case(|w: &mut World| w.facts["containers"][0]["userNamespace"] = json!(true), "UserNamespace", "user namespace")]
#[case(|w: &mut World| w.facts["containers"][0]["frozen"] = json!(true), "FrozenContainer", "paused")]
#[case(|w: &mut World| w.facts["containers"][0]["criuConfig"] = json!("/etc/criu/mine.conf"), "CriuConfiguration", "/etc/criu/mine.conf")]
#[case(|w: &mut World| w.facts["containers"][0]["criuConfig"] = json!("/var/lib/transship/../x"), "CriuConfiguration", "org.criu.config")]
#[case(|w: &mut World| w.facts["ipc"]["posixQueues"] = json!(2), "MessageQueue", "/dev/mqueue (2)")]
#[case(|w: &mut World| w.facts["network"]["ruleTables"] = json!(["ip nat"]), "NetworkRules", "ip nat")]
#[case(|w: &mut World| w.facts["network"]["furtherAddresses"] = json!(["10.244.99.99/32"]), "NetworkDevices", "further addresses (10.244.99.99/32)")]
#[case(|w: &mut World| w.facts["network"]["otherInterfaces"] = json!(["net1"]), "NetworkDevices", "net1")]
#[case(|w: &mut World| w.facts["network"]["queueingDisciplines"] = json!(["tbf dev eth0", "ingress dev eth0"]), "NetworkSettings", "queueing disciplines (tbf dev eth0, ingress dev eth0)")]
#[case(|w: &mut World| w.facts["network"]["staticNeighbours"] = json!(["10.244.1.9 dev eth0"]), "NetworkSettings", "static neighbours (10.244.1.9 dev eth0)")]
#[case(|w: &mut World| w.facts["network"]["ipsec"] = json!(["state to 10.9.0.1"]), "NetworkSettings", "IPsec states and policies (state to 10.9.0.1)")]
#[case(|w: &mut World| w.facts["network"]["kernelParameters"] = json!(["net.core.somaxconn = 17"]), "NetworkSettings", "kernel parameters of its own (net.core.somaxconn = 17)")]
#[case(|w: &mut World| { w.migration.spec.network = Network::Preserve; w.facts["network"]["cni"]["plugins"] = json!(["calico"]); }, "Address", "calico")]
#[case(|w: &mut World| { w.migration.spec.network = Network::Preserve; w.facts["network"]["cni"]["ipam"] = json!("whereabouts"); }, "Address", "whereabouts")]
#[case(|w: &mut World| { w.migration.spec.network = Network::Preserve; w.facts["network"]["cni"]["plugins"] = json!(["bridge"]); }, "Address", "transship-cni")]
#[case(|w: &mut World| { w.migration.spec.network = Network::Preserve; w.target_facts["network"]["cni"]["name"] = json!("other"); }, "Address", "other")]
#[case(|w: &mut World| { w.migration.spec.network = Network::Preserve; w.target_facts["network"]["cni"]["subnets"] = json!(["10.245.0.0/16"]); }, "Address", "10.245.0.0/16")]
#[case(|w: &mut World| w.target_facts["node"]["freeBytes"] = json!(1999), "Space", "node-b has 1.95 KiB free for receiving it in /var/lib/transship")]
#[case(|w: &mut World| w.facts["containers"][0]["running"] = json!(false), "ContainerNotRunning", "does not run")]
#[case(|w: &mut World| { w.facts["sandboxId"] = json!("s"); w.facts["containers"][0]["name"] = json!("debugger"); }, "ContainerNotRunning", "does not run")]
#[case(|w: &mut World| w.facts["unseen"] = json!([{"message": "the rules cannot be read: no nft"}]), "NotInspected", "no nft")]
#[case(|w: &mut World| { w.migration.spec.network = Network::Preserve; w.facts["network"] = json!({}); w.facts["unseen"] = json!([{"message": "the namespaces cannot be entered"}]); }, "NotInspected", "cannot be entered")]
#[case(|w: &mut World| w.facts["unseen"] = json!([{"container": "web", "part": "Processes", "message": "they cannot be listed"}]), "NotInspected", "they cannot be listed")]
#[case(|w: &mut World| w.target_facts["unseen"] = json!([{"part": "Rest", "message": "its images cannot be listed"}]), "NotInspected", "node-b: its images cannot be listed")]
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

#[rstest]
#[case(json!([{"configMap": {"name": "c"}}, {"secret": {"name": "s"}}]), "/..2026_x.1/key", true)]
#[case(json!([{"configMap": {"name": "c"}}]), "/..2026_x.1/key//deleted", false)]
#[case(json!([{"configMap": {"name": "c"}}, {"downwardAPI": {}}]), "/..2026_x.1/key", false)]
#[case(json!([{"serviceAccountToken": {"path": "token"}}]), "/..2026_x.1/key", false)]
fn a_file_of_a_projected_volume_that_is_the_same_for_every_pod_comes_again(
    #[case] sources: Value,
    #[case] root: &str,
    #[case] comes: bool,
) {
    let mut world = World::new();
    world.pod()["spec"]["volumes"] = json!([
        {"name": "other", "projected": {"sources": [{"configMap": {"name": "c"}}]}},
        {"name": "v", "projected": {"sources": sources}},
    ]);
    let mount = |path: &str, root: &str, volume: &str| -> Value {
        json!({"path": path, "root": root, "volume": volume, "origin": "Projected"})
    };
    world.facts["containers"][0]["mounts"] =
        json!([mount("/etc/c/key", root, "v"), mount("/etc/c", "/", "other")]);
    for file in ["/etc/c/key", "/etc/c/key (deleted)", "/etc/c/key/below"] {
        world.process()["resources"] = json!([{"kind": "RemadeFile", "detail": file}]);
        assert_eq!(world.look(violations).is_empty(), comes, "{file}");
    }
    world.process()["resources"] = json!([{"kind": "RemadeFile", "detail": "/etc/c/keys"}]);
    assert_eq!(world.look(violations), [], "it is of the other volume");
}

#[test]
fn a_source_keeps_everything_only_in_the_sequential_order() {
    let mut world = World::new();
    world.facts["node"]["freeBytes"] = json!(1001);
    world.process()["resources"] = json!([{"kind": "UnlinkedFile", "detail": "/t", "bytes": 2}]);
    assert_eq!(world.look(violations), []);
    world.owner_is("apps/v1", "StatefulSet");
    let found = world.look(violations);
    assert_eq!(found.iter().map(|v| v.check).collect::<Vec<_>>(), ["Space"], "{found:?}");
    assert!(found[0].message.contains("kept on the source"), "{}", found[0].message);
    world.facts["node"]["freeBytes"] = json!(1002);
    assert_eq!(world.look(violations), []);
}

#[test]
fn what_is_not_told_one_by_one_counts_as_well() {
    let mut world = World::new();
    world.process()["resources"] = json!([{"kind": "Device", "detail": "/dev/kvm"}]);
    world.process()["more"] = json!([{"kind": "Device", "count": 7}]);
    let found = world.look(violations);
    assert!(found[0].message.ends_with(": /dev/kvm and 7 more"), "{found:?}");
    world.process()["resources"] = json!([{"kind": "HugePages", "bytes": 1 << 20}]);
    world.process()["more"] = json!([{"kind": "HugePages", "count": 3, "bytes": 2 << 20}]);
    assert!(world.look(violations)[0].message.contains("3.00 MiB"));

    // What a child has from its parent counts once.
    world.process()["resources"] = json!([{"kind": "UnlinkedFile", "detail": "/t", "bytes": 2}]);
    world.process()["more"] = json!([{"kind": "UnlinkedFile", "count": 90, "bytes": 1000}]);
    let child = world.process().clone();
    world.facts["containers"][0]["processes"].as_array_mut().unwrap().push(child);
    world.facts["node"]["freeBytes"] = json!(1002);
    assert_eq!(world.look(violations), []);
    world.facts["node"]["freeBytes"] = json!(1001);
    assert_eq!(world.look(violations)[0].check, "Space");
}

#[test]
fn what_works_is_not_refused() {
    let mut world = World::new();
    world.process()["ownNamespaces"] = json!(["mnt"]);
    world.facts["containers"][0]["mounts"] =
        json!([{"path": "/made", "fsType": "tmpfs", "origin": "Application"}]);
    world.process()["resources"] = json!([
        {"kind": "Pty", "detail": "/dev/pts/0"}, {"kind": "PacketSocket"}, {"kind": "FileLock"},
        {"kind": "PeriodicTimer"}, {"kind": "UnlinkedFile", "detail": "/tmp/x", "bytes": 256 << 20},
    ]);
    world.facts["node"]["freeBytes"] = json!(1u64 << 40);
    world.nodes[1]["agent"]["status"]["criu"]["features"] = json!(["rseq", "timens", "and-more"]);
    assert_eq!(world.look(violations), []);
    // What `kubectl exec` brought does not move, and only keeps a dump waiting if it is stopped.
    world.process()["resources"] = json!([{"kind": "IoUring"}, {"kind": "Terminal"}]);
    world.process()["outside"] = json!(true);
    assert_eq!(world.look(violations), []);
    world.process()["state"] = json!("Stopped");
    assert_eq!(world.look(violations).len(), 1);
}

#[test]
fn an_ephemeral_container_does_not_move_and_is_not_judged() {
    let mut world = World::new();
    let mut debugger = world.facts["containers"][0].clone();
    debugger["name"] = json!("debugger");
    debugger["processes"][0]["resources"] = json!([{"kind": "Terminal"}, {"kind": "IoUring"}]);
    world.facts["containers"].as_array_mut().unwrap().push(debugger);
    assert_eq!(world.look(violations), []);
}

#[rstest]
#[case("docker.io/library/web:1", "sha256:2", 0)]
#[case("docker.io/library/web:2", "sha256:1", 1)]
fn an_image_with_a_digest_may_be_pulled(
    #[case] there: &str,
    #[case] id: &str,
    #[case] violations: usize,
) {
    let digest = format!("docker.io/library/web@sha256:{}", "a".repeat(64));
    let mut world = World::new();
    world.container()["image"] = json!("web:1");
    world.pod()["status"]["containerStatuses"][0]["imageID"] = json!(digest);
    world.target_facts["node"]["images"] = json!([{"id": id, "names": [there]}]);
    assert_eq!(world.look(super::violations), [], "kubelet pulls it by its digest");
    world.container()["imagePullPolicy"] = json!("Never");
    assert_eq!(world.look(super::violations).len(), 1, "by digest it is not there");
    world.pod()["status"]["containerStatuses"][0]["imageID"] = json!("");
    assert_eq!(world.look(super::violations).len(), violations.max(1), "{there}");
}

/// Init containers and containers by their images; `+` marks a sidecar.
#[rstest]
#[case::pulled_first(&[], &["web"], &[])]
#[case::pulled_later(&[], &["web", "side"], &["side"])]
#[case::pulled_with_the_first(&[], &["web", "web"], &[])]
#[case::there(&[], &["web", "there"], &[])]
#[case::pulled_for_an_init_container(&["setup"], &["web", "setup"], &[])]
#[case::pulled_after_a_sidecar(&["setup", "+web"], &["side"], &["side"])]
#[case::pulled_for_an_init_container_after_a_sidecar(&["+web", "setup"], &["there"], &["setup"])]
fn what_kubelet_would_pull_after_the_freeze_must_be_there(
    #[case] inits: &[&str],
    #[case] containers: &[&str],
    #[case] missing: &[&str],
) {
    let digest = |name: &str| format!("docker.io/library/{name}@sha256:{}", "a".repeat(64));
    let spec = |images: &[&str]| -> Value {
        let container = |image: &&str| {
            let name = image.trim_start_matches('+');
            let policy = (name != *image).then_some("Always");
            json!({"name": name, "image": name, "restartPolicy": policy})
        };
        images.iter().map(container).collect()
    };
    let statuses = |images: &[&str]| -> Value {
        let status = |image: &&str| {
            let name = image.trim_start_matches('+');
            json!({"name": name, "image": "", "imageID": digest(name), "ready": true,
                "restartCount": 0, "state": {"running": {}}})
        };
        images.iter().map(status).collect()
    };
    let mut world = World::new();
    world.pod()["spec"]["initContainers"] = spec(inits);
    world.pod()["spec"]["containers"] = spec(containers);
    world.pod()["status"]["initContainerStatuses"] = statuses(inits);
    world.pod()["status"]["containerStatuses"] = statuses(containers);
    world.target_facts["node"]["images"] = json!([{"id": "sha256:2", "names": [digest("there")]}]);
    let found = world.look(violations);
    let words = "only while the application stands still";
    assert!(found.iter().all(|v| v.check == "Image" && v.message.contains(words)), "{found:?}");
    let of: Vec<&str> = found.iter().map(|v| v.container.as_str()).collect();
    assert_eq!(of, missing);
    world.target_facts["node"]["images"] = json!([]);
    assert_eq!(world.look(violations), [], "it is not known what is there");
}

#[rstest]
#[case::another_has_pulled_it("IfNotPresent", "Never", &[])]
#[case::nobody_pulls_it("Never", "IfNotPresent", &["web", "side"])]
fn an_image_of_two_containers_is_pulled_for_the_first(
    #[case] web: &str,
    #[case] side: &str,
    #[case] missing: &[&str],
) {
    let digest = format!("docker.io/library/app@sha256:{}", "a".repeat(64));
    let spec = |(name, policy): (&str, &str)| json!({"name": name, "image": digest, "imagePullPolicy": policy});
    let mut world = World::new();
    world.pod()["spec"]["containers"] = [("web", web), ("side", side)].map(spec).into();
    world.target_facts["node"]["images"] = json!([{"id": "sha256:2", "names": ["other"]}]);
    let found = world.look(violations);
    let missed = found.iter().filter(|violation| violation.check == "Image");
    let of: Vec<&str> = missed.map(|violation| violation.container.as_str()).collect();
    assert_eq!(of, missing, "{found:?}");
}

#[test]
fn every_container_process_and_resource_is_named_and_the_same_is_said_once() {
    let mut world = World::new();
    let process = |pid: i32, resources: Value| {
        json!({"pid": pid, "containerPid": pid, "name": "db", "state": "Running",
            "resources": resources})
    };
    let rings = json!([{"kind": "IoUring"}]);
    let mut processes: Vec<Value> = (1..=7).map(|pid| process(pid, rings.clone())).collect();
    for pid in 8..20 {
        let own = json!([{"kind": "RemovedName", "detail": format!("/lib/{pid}")}]);
        processes.push(process(pid, own));
    }
    world.facts["containers"][0]["processes"] = json!(processes);
    let mut second = world.facts["containers"][0].clone();
    second["name"] = json!("second");
    second["processes"] = json!([process(3, rings.clone())]);
    world.facts["containers"].as_array_mut().unwrap().push(second);
    world.pod()["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "second"}));
    world.pod()["status"]["containerStatuses"].as_array_mut().unwrap().push(
        json!({"name": "second", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {}}}),
    );

    let found = world.look(violations);
    let rings: Vec<&Violation> = found.iter().filter(|v| v.check == "IoUring").collect();
    assert_eq!(rings.len(), 2, "{found:?}");
    assert_eq!(rings[0].process, "db (1), db (2), db (3), db (4), db (5) and 2 more");
    assert_eq!((rings[1].container.as_str(), rings[1].process.as_str()), ("second", "db (3)"));
    let removed: Vec<&Violation> = found.iter().filter(|v| v.check == "RemovedName").collect();
    assert_eq!(removed.len(), 9);
    assert!(removed[8].message.contains("4 more processes"), "{}", removed[8].message);
    // Cut, each check still has its say.
    let few = most_telling(&found, 3);
    let checks: Vec<&str> = few.iter().map(|v| v.check).collect();
    assert_eq!(checks, ["IoUring", "IoUring", "RemovedName"]);
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
#[case("skip", json!({"exec": {"command": ["x"]}}), &[])]
#[case("skip", json!({"tcpSocket": {"port": 1}}), &[])]
#[case("run", json!({"exec": {"command": ["x"]}}), &[])]
#[case("run", json!({"tcpSocket": {"port": 1}}), &["neither a command"])]
#[case("run", json!({"httpGet": {"port": "none"}}), &["no port"])]
#[case("Run", json!({"exec": {"command": ["x"]}}), &["in the middle"])]
fn what_becomes_of_a_post_start_hook_must_be_said(
    #[case] annotation: &str,
    #[case] hook: Value,
    #[case] words: &[&str],
    #[values(false, true)] moved_before: bool,
) {
    let mut world = World::new();
    if moved_before {
        let note = json!({world.container()["name"].as_str().unwrap(): hook}).to_string();
        world.pod()["metadata"]["annotations"]["transship.dev/post-start-hooks"] = json!(note);
    } else {
        world.container()["lifecycle"] = json!({"postStart": hook});
    }
    world.pod()["metadata"]["annotations"]["transship.dev/post-start"] = json!(annotation);
    let found = world.look(super::violations);
    assert_eq!(found.len(), words.len(), "{found:?}");
    for (violation, words) in found.iter().zip(words) {
        assert_eq!(violation.check, "PostStartHook");
        assert!(violation.message.contains(words), "{}", violation.message);
        assert!(violation.remedy.contains("run") && violation.remedy.contains("skip"));
    }
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
    world.facts["incomplete"] = json!(["emptyDir data has too many files"]);
    assert_eq!(world.look(violations), [], "only its size is not known");
    world.facts["containers"][0]["running"] = json!(false);
    world.process()["resources"] = json!([{"kind": "IoUring"}]);
    let found = world.look(violations);
    let checks: Vec<&str> = found.iter().map(|v| v.check).collect();
    assert_eq!(checks, ["ContainerNotRunning"], "an ended container does not move");
}

#[rstest]
#[case("Processes", "web", Mode::StopAndCopy, Network::Auto, true)]
#[case("Processes", "web", Mode::Cold, Network::Auto, false)]
#[case("Processes", "debugger", Mode::StopAndCopy, Network::Auto, false)]
#[case("Connections", "", Mode::StopAndCopy, Network::Preserve, true)]
#[case("Connections", "", Mode::StopAndCopy, Network::Auto, false)]
#[case("Connections", "", Mode::Cold, Network::Preserve, false)]
#[case("Rest", "web", Mode::Cold, Network::Close, true)]
#[case("Rest", "", Mode::StopAndCopy, Network::Close, true)]
#[case("OfALaterVersion", "", Mode::StopAndCopy, Network::Auto, true)]
fn what_was_not_looked_at_is_held_against_a_move_that_needs_it(
    #[case] part: &str,
    #[case] container: &str,
    #[case] mode: Mode,
    #[case] network: Network,
    #[case] refused: bool,
) {
    let mut world = cold();
    world.migration.spec.mode = mode;
    world.migration.spec.network = network;
    world.facts["unseen"] = json!([{"container": container, "part": part, "message": "denied"}]);
    let found = world.look(violations);
    assert_eq!(found.len(), usize::from(refused), "{found:?}");
    assert!(found.iter().all(|v| v.check == "NotInspected" && v.container == container));
}

#[test]
fn what_could_not_be_looked_at_may_pass_where_nothing_else_is_in_the_way() {
    let mut world = World::new();
    assert_eq!(may_pass(&world.look(violations)), None);
    world.facts["unseen"] =
        json!([{"container": "web", "message": "denied"}, {"message": "no nft"}]);
    let told = may_pass(&world.look(violations));
    assert_eq!(told.as_deref(), Some("container web: denied | no nft"));
    world.process()["resources"] = json!([{"kind": "IoUring"}]);
    assert_eq!(may_pass(&world.look(violations)), None);
    let nothing = not_inspected("its answer is too long".into());
    assert!(nothing.check == "NotInspected" && !nothing.remedy.is_empty());
    assert!(may_pass(&[nothing]).is_some());
}

#[test]
fn a_process_in_which_a_check_finds_something_stands_in_the_way() {
    let process =
        |process: Value| -> crate::facts::ProcessFacts { serde_json::from_value(process).unwrap() };
    for obstacle in [
        json!({"state": "Stopped"}),
        json!({"state": "Stopped", "outside": true}),
        json!({"state": "Zombie", "threads": 2}),
        json!({"tracerPid": 3}),
        json!({"ownNamespaces": ["net"]}),
        json!({"resources": [{"kind": "IoUring"}]}),
        json!({"resources": [{"kind": "RemadeFile", "detail": "/labels"}]}),
        json!({"resources": [{"kind": "UnlinkedFile", "bytes": (256 << 20) + 4096}]}),
    ] {
        assert!(stands_in_the_way(&process(obstacle.clone())), "{obstacle}");
    }
    for plain in [
        json!({"threads": 9}),
        json!({"ownNamespaces": ["mnt"]}),
        json!({"resources": [{"kind": "FileLock"}, {"kind": "UnlinkedFile", "bytes": 4096}]}),
        json!({"resources": [{"kind": "IoUring"}], "outside": true}),
    ] {
        assert!(!stands_in_the_way(&process(plain.clone())), "{plain}");
    }
}

/// docs/preflight.md has the tables of the checks as they stand here; with the environment variable
/// `TRANSSHIP_WRITE_DOCS` set, they are written into it.
#[test]
fn the_documentation_lists_every_check() {
    const BEGIN: &str = "<!-- the checks, written from the tables in src/core/src/preflight -->\n";
    const END: &str = "<!-- end of the checks -->\n";
    let row =
        |check: &Check| format!("| `{}` | {} | {} |\n", check.name, check.finds, check.remedy);
    let section = |title: &str, checks: &[Check]| {
        let rows: String = checks.iter().map(row).collect();
        format!("### {title}\n\n| check | what is found | remedy |\n| --- | --- | --- |\n{rows}\n")
    };
    let wanted = [
        section("The manifest", pod::CHECKS),
        section("The processes", process::CHECKS),
        section("The network", network::CHECKS),
        section("The nodes", nodes::CHECKS),
        section("Only with `mode: Cold`", cold::CHECKS),
    ]
    .concat();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/preflight.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (found, tail) = rest.split_once(END).unwrap();
    if std::env::var_os("TRANSSHIP_WRITE_DOCS").is_some() {
        std::fs::write(path, [head, BEGIN, &wanted, END, tail].concat()).unwrap();
        return;
    }
    assert_eq!(
        found, wanted,
        "write it anew with TRANSSHIP_WRITE_DOCS=1 cargo test -p transship-core"
    );
}

#[test]
fn names_of_checks_are_unique_and_fit_the_status() {
    let names: Vec<&str> = checks().map(|check| check.name).collect();
    let different: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), different.len());
    assert!(checks().all(|c| c.name.len() <= 64 && c.remedy.len() <= 1000 && !c.remedy.is_empty()));
}

/// A pod of a StatefulSet that is to be moved cold.
fn cold() -> World {
    let mut world = World::new();
    world.migration.spec.mode = Mode::Cold;
    world.owner_is("apps/v1", "StatefulSet");
    for node in [&mut world.facts, &mut world.target_facts] {
        node["node"]["freeBytes"] = json!(1u64 << 40);
    }
    world
}

/// A container that may be killed for its probe after 20 seconds, and would run its hook then.
fn impatient(world: &mut World) {
    world.container()["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 3}}});
    world.container()["livenessProbe"] = json!({"periodSeconds": 10, "failureThreshold": 3});
}

#[test]
fn what_only_a_dump_minds_does_not_keep_files_from_moving() {
    let mut world = cold();
    world.process()["resources"] = json!([{"kind": "IoUring"}, {"kind": "Mptcp"}]);
    world.nodes[1]["agent"]["status"]["cpu"]["features"] = json!(["sse2"]);
    world.nodes[1]["agent"]["status"]["criu"]["version"] = json!("3.19");
    world.container()["tty"] = json!(true);
    world.container()["lifecycle"]["postStart"] = json!({"exec": {"command": ["x"]}});
    assert_eq!(world.look(violations), []);
    world.migration.spec.mode = Mode::StopAndCopy;
    assert!(world.look(violations).len() >= 6);
}

#[rstest]
#[case(|w: &mut World| w.owner_is("apps/v1", "ReplicaSet"), "NoNameOfItsOwn")]
#[case(|w: &mut World| w.pod()["spec"]["restartPolicy"] = json!("OnFailure"), "RestartPolicy")]
#[case(|w: &mut World| w.container()["restartPolicy"] = json!("Never"), "RestartPolicy")]
#[case(|w: &mut World| w.container()["restartPolicyRules"] = json!([{"action": "Restart"}]), "RestartPolicy")]
#[case(|w: &mut World| w.pod()["spec"]["terminationGracePeriodSeconds"] = json!(600), "GracePeriod")]
#[case(|w: &mut World| w.migration.spec.timeout = "20s".into(), "GracePeriod")]
#[case(|w: &mut World| w.facts["containers"][0]["frozen"] = json!(true), "FrozenContainer")]
#[case(|w: &mut World| w.pod()["spec"]["hostNetwork"] = json!(true), "HostNamespaces")]
#[case(|w: &mut World| w.nodes[1]["agent"]["status"]["arch"] = json!("arm64"), "Architecture")]
#[case(|w: &mut World| w.facts["node"]["freeBytes"] = json!((1u64 << 30) - 1), "Space")]
#[case(|w: &mut World| w.target_facts["node"]["freeBytes"] = json!((1u64 << 30) - 1), "Space")]
#[case(|w: &mut World| {
    // 20 minutes at the usual rate.
    w.facts["emptyDirs"] = json!([{"name": "data", "bytes": 60u64 << 30}]);
}, "GracePeriod")]
#[case(|w: &mut World| {
    w.migration.spec.bandwidth_limit = Some("1Mi".into());
    w.facts["containers"][0]["rootfsChangedBytes"] = json!(600 << 20);
}, "GracePeriod")]
#[case(impatient, "PreStopHook")]
#[case(|w: &mut World| w.facts["containers"][0]["rootfsChangedFiles"] = json!(200_001), "RootFilesystem")]
fn what_files_and_their_pods_need_is_asked_for(
    #[case] change: fn(&mut World),
    #[case] check: &str,
) {
    let mut world = cold();
    change(&mut world);
    let found = world.look(violations);
    assert_eq!(found.iter().map(|v| v.check).collect::<Vec<_>>(), [check], "{found:?}");
}

#[test]
fn a_pod_that_ends_gracefully_may_be_moved_cold_whatever_its_hooks_and_signals() {
    let mut world = cold();
    world.container()["lifecycle"] = json!({"stopSignal": "SIGQUIT",
        "preStop": {"httpGet": {"port": 1, "scheme": "HTTPS"}}});
    assert_eq!(world.look(refusal), None);
    assert_eq!(world.look(violations), []);
    impatient(&mut world);
    world.pod()["spec"]["terminationGracePeriodSeconds"] = json!(20);
    assert_eq!(world.look(violations), [], "the probe is patient enough");
}

#[test]
fn files_that_would_not_be_in_their_place_in_time_are_told() {
    let mut world = cold();
    world.facts["containers"][0]["rootfsChangedBytes"] = json!((4u64 << 30) + 1);
    let found = world.look(violations);
    assert_eq!(found.iter().map(|v| v.check).collect::<Vec<_>>(), ["RootFilesystem"]);
    assert!(found[0].remedy.contains("volume"));
}

#[test]
fn names_of_the_checks_for_files_alone_are_no_others() {
    for own in cold::CHECKS {
        assert!(checks().all(|check| check.name != own.name), "{}", own.name);
        assert!(own.name.len() <= 64 && !own.remedy.is_empty());
    }
}

#[test]
fn of_several_pods_a_refusal_counts_first_and_every_change_once() {
    use TargetAnswer::{Refused, Taken};
    let taken = |changes: &[&str]| Taken(changes.iter().map(|c| (*c).to_owned()).collect());
    assert_eq!(TargetAnswer::of_all([]), None);
    assert_eq!(TargetAnswer::of_all([taken(&[])]), Some(taken(&[])));
    assert_eq!(TargetAnswer::of_all([taken(&["a"]), taken(&["a", "b"])]), Some(taken(&["a", "b"])));
    let refused = || Refused("no".into());
    assert_eq!(TargetAnswer::of_all([taken(&["a"]), refused()]), Some(refused()));
    assert_eq!(TargetAnswer::of_all([refused(), Refused("later".into())]), Some(refused()));
    assert_eq!(TargetAnswer::of_all([refused(), taken(&["a"])]), Some(refused()));
}
