//! What becomes of pods, nodes and policies in Swarm's terms.

use serde_json::{Value, json};
use transship_api::Strategy;

use super::*;
use crate::placement::{Load, prepare};

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn core_node() -> corev1::Node {
    read(json!({
        "metadata": {"name": "node-a", "uid": "uid-a",
            "labels": {"region": "us", "pool": "old", "ostype": "mine"}},
        "status": {
            "allocatable": {"cpu": "3800m", "memory": "1Gi"},
            "images": [
                {"names": ["docker.io/library/nginx@sha256:77", "docker.io/library/nginx:1"]},
                {"names": ["reg.io:5000/app:v2"]}],
            "nodeInfo": {"kernelVersion": "6.1.0", "osImage": "Debian GNU/Linux 13",
                "operatingSystem": "linux", "architecture": "amd64", "bootID": "",
                "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "",
                "machineID": "", "systemUUID": ""}
        }
    }))
}

fn agent(ready: &str, health: Option<i32>) -> api::Node {
    read(json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"labels": {"pool": "new", "containerslots": "1"}},
        "status": {"healthIndicator": health, "runtime": {"snapshotter": "overlayfs"},
            "conditions": [{"type": "Ready", "status": ready, "reason": "X", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    }))
}

#[test]
fn random_draws_anew_for_each_pod_and_always_the_same_for_one() {
    let seed = |name| asked(&pod(name, json!({})), None, None).unwrap().options.seed;
    assert_eq!(seed("web"), seed("web"));
    assert_ne!(seed("web"), seed("db"));
}

fn pod(name: &str, extra: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"app": name}, "annotations": {}},
        "spec": {"containers": [{"name": "c", "image": "docker.io/library/redis:7",
            "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}}]},
        "status": {"phase": "Running",
            "containerStatuses": [{"name": "c", "containerID": "containerd://0ff1ce", "image": "",
                "imageID": "", "ready": true, "restartCount": 0}]}
    });
    for (pointer, value) in extra.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    read(pod)
}

#[test]
fn labels_are_the_agents_then_the_clusters_then_what_the_node_says_of_itself() {
    let node = node(&core_node(), Some(&agent("True", None)), 0);
    for (key, value) in [
        ("pool", Some("new")),
        ("region", Some("us")),
        ("ostype", Some("mine")),
        ("kernelversion", Some("6.1.0")),
        ("operatingsystem", Some("Debian GNU/Linux 13")),
        ("architecture", Some("amd64")),
        ("storagedriver", Some("overlayfs")),
        ("zone", None),
    ] {
        assert_eq!(node.label(key), value, "{key}");
    }
    assert_eq!(self::node(&core_node(), None, 0).label("storagedriver"), None);
    assert_eq!((node.total_cpus, node.total_memory), (3800, 1 << 30));
}

#[test]
fn a_reserve_is_kept_from_what_is_allocatable() {
    let node = node(&core_node(), None, -10);
    assert_eq!((node.total_cpus, node.total_memory), (3420, (1 << 30) - (1 << 30) / 10));
}

#[test]
fn a_node_is_as_healthy_as_its_agent_is_ready() {
    let health = |agent: Option<&api::Node>| node(&core_node(), agent, 0).health;
    assert_eq!(health(None), 0);
    assert_eq!(health(Some(&agent("False", Some(67)))), 0);
    assert_eq!(health(Some(&agent("True", Some(67)))), 67);
    assert_eq!(health(Some(&agent("True", None))), 100);
}

/// Whether a node with the pod `db` can be used for a pod with these annotations.
fn fits(annotations: Value) -> bool {
    let mut node = node(&core_node(), Some(&agent("True", None)), 0);
    node.set_labels([]);
    node.add(container(&pod("db", json!({}))));
    let asked =
        asked(&pod("web", json!({"/metadata/annotations": annotations})), None, None).unwrap();
    prepare(&asked.request, &asked.options).place(&[&node]).best().is_some()
}

#[test]
fn pods_and_images_are_found_by_all_their_names() {
    for affinity in [
        "container==db",
        "container==shop/db",
        "container==uid-db",
        "container==0ff1ce",
        "app==db",
        "image==redis",
        "image==docker.io/library/redis:7",
        "image==nginx:1",
        "image==docker.io/library/nginx",
        "image==sha256:77",
        "image==reg.io:5000/app",
    ] {
        assert!(
            fits(json!({"transship.dev/affinities": json!([affinity]).to_string()})),
            "{affinity}"
        );
        let not = affinity.replace("==", "!=");
        assert!(!fits(json!({"transship.dev/affinities": json!([not]).to_string()})), "{not}");
    }
    assert!(fits(json!({"transship.dev/depends-on": r#"["db"]"#})));
    assert!(!fits(json!({"transship.dev/depends-on": r#"["cache"]"#})));
    assert!(fits(json!({"transship.dev/constraints": r#"["node==uid-a"]"#})));
    assert!(!fits(json!({"transship.dev/whitelist": r#"["node-b"]"#})));
}

#[test]
fn what_all_ask_for_is_asked_and_the_nearest_strategy_counts() {
    let policy: MigrationPolicy = read(json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
        "metadata": {"name": "p"}, "spec": {"selector": {},
            "placement": {"strategy": "random", "constraints": ["aa==1"]}}
    }));
    let placement: Placement =
        read(json!({"strategy": "spread", "constraints": ["cc==3"], "affinities": ["dd!=4"]}));
    let annotations = json!({"transship.dev/strategy": "binpack",
        "transship.dev/constraints": r#"["bb==2"]"#, "transship.dev/whitelist": r#"["x", "y"]"#});
    let pod = pod("web", json!({"/metadata/annotations": annotations}));
    let all = asked(&pod, Some(&policy), Some(&placement)).unwrap();
    assert_eq!(all.request.constraints, ["aa==1", "bb==2", "cc==3"]);
    assert_eq!(all.request.affinities, ["dd!=4"]);
    assert_eq!(all.request.whitelists, ["node==x|y"]);
    assert_eq!((all.request.cpus, all.request.memory), (250, 64 << 20));
    assert_eq!(all.options.strategy, Strategy::Spread);
    let strategy = |policy, pod| asked(pod, policy, None).unwrap().options.strategy;
    assert_eq!(strategy(Some(&policy), &pod), Strategy::Binpack);
    let plain = self::pod("web", json!({}));
    assert_eq!(strategy(Some(&policy), &plain), Strategy::Random);
    assert_eq!(strategy(None, &plain), Strategy::Spread);
}

#[test]
fn what_a_policy_asks_for_in_vain_is_told_with_its_name() {
    let told = |constraint: &str| {
        let policy: MigrationPolicy = read(json!({
            "apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
            "metadata": {"name": "p"}, "spec": {"selector": {},
                "placement": {"constraints": [constraint]}}
        }));
        asked(&pod("web", json!({})), Some(&policy), None).unwrap_err().to_string()
    };
    assert_eq!(
        told("region=us"),
        r#"MigrationPolicy p: spec.placement.constraints: One of operator ==, != is expected in "region=us""#
    );
    assert!(told("region!=/(/").contains("malformed pattern"));
}

#[test]
fn ports_are_bound_outside_and_exposed_inside_the_hosts_network() {
    let ports = json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"},
        {"containerPort": 53, "protocol": "UDP"}]);
    let bridge = pod("a", json!({"/spec/containers/0/ports": ports}));
    let binding = PortBinding { host_ip: "10.0.0.1".into(), host_port: "8080".into() };
    assert_eq!(container(&bridge).ports, [binding]);
    let host = json!({"/spec/containers/0/ports": ports, "/spec/hostNetwork": true});
    let host = container(&pod("a", host));
    assert!(host.ports.is_empty() && host.host_network);
    assert_eq!(host.exposed, ["80/tcp", "53/udp"]);
}

#[test]
fn an_ended_pod_counts_and_holds_nothing() {
    let ended = pod("old", json!({"/status/phase": "Succeeded", "/spec/nodeName": "node-a"}));
    let running = pod("new", json!({"/spec/nodeName": "node-a"}));
    let unbound = pod("none", json!({}));
    let loads = Load::by_node([&ended, &running, &unbound]);
    assert_eq!(loads.len(), 1);
    let load = &loads["node-a"];
    assert_eq!((load.pods, load.containers.len(), load.cpu_millis), (1, 2, 250));
    let mut node = node(&core_node(), Some(&agent("True", None)), 0);
    node.add(container(&ended));
    assert_eq!((node.used_cpus(), node.used_memory()), (0, 0));
    assert!(!node.has_free_slot(), "its one slot is taken");
}
