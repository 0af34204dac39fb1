//! The cluster that is measured, as the API server would describe it.

use k8s_openapi::api::core::v1::{Node as CoreNode, Pod};
use serde_json::{Value, json};
use transship_api as api;

/// Hexadecimal digits without an order, as UIDs and ids of containers have: SplitMix64's.
fn scrambled(number: usize) -> u64 {
    let z = (number as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn uid(number: usize, what: &str) -> String {
    let (high, low) = (scrambled(number), scrambled(number + what.len()));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

pub fn node_name(number: usize) -> String {
    format!("worker-{number:05}.cluster.example")
}

/// A node with 64 CPUs and 256 GiB, labels of three zones and two disks, and 20 images.
pub fn node(number: usize) -> (CoreNode, api::Node) {
    let name = node_name(number);
    let images: Vec<Value> = (0..20)
        .map(|image| {
            let name = format!("registry.example/team-{}/app-{image}", number % 7);
            json!({"names": [format!("{name}@sha256:{image:064x}"), format!("{name}:v{image}")],
                "sizeBytes": 1 << 28})
        })
        .collect();
    let core = json!({
        "metadata": {"name": name, "uid": format!("{number:08x}-0000-4000-8000-000000000000"),
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                "zone": (["us-east", "us-west", "eu"][number % 3]),
                "disk": (["ssd", "hdd"][number % 2]), "containerslots": "110"}},
        "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "110"},
            "nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "",
                "kernelVersion": "6.18.0", "kubeProxyVersion": "", "kubeletVersion": "",
                "machineID": "", "operatingSystem": "linux", "osImage": "Debian", "systemUUID": ""},
            "images": images},
    });
    let ours = json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": name},
        "spec": {"labels": {"rack": format!("r{}", number / 40)}},
        "status": {"healthIndicator": 100, "failureCount": 0, "conditions": [{"type": "Ready",
            "status": "True", "reason": "Available", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    (serde_json::from_value(core).unwrap(), serde_json::from_value(ours).unwrap())
}

/// A pod of one of 500 applications that runs on a node.
pub fn pod(number: usize, nodes: usize) -> Pod {
    let application = number % 500;
    let mut pod = pending(number, "running", json!({}));
    pod["metadata"]["labels"] =
        json!({"app": format!("app-{application}"), "pod-template-hash": format!("{number:x}")});
    // Uneven, as clusters are.
    pod["spec"]["nodeName"] = node_name((number * 7919 + number / 3) % nodes).into();
    pod["status"] = json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "i",
        "imageID": "", "ready": true, "restartCount": 0,
        "containerID": format!("containerd://{}", format!("{:016x}", scrambled(number)).repeat(4))}]});
    serde_json::from_value(pod).unwrap()
}

/// A pod without a node, with what a pod usually has.
pub fn pending(number: usize, what: &str, annotations: Value) -> Value {
    json!({
        "metadata": {"name": format!("{what}-{number:06}-x7k2p"), "namespace": format!("team-{}", number % 40),
            "uid": uid(number, what),
            "labels": {"app": what}, "annotations": annotations},
        "spec": {"schedulerName": "transship", "serviceAccountName": "default",
            "containers": [{"name": "c", "image": format!("registry.example/team-1/app-{}:v1", number % 20),
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
                "env": (0..20).map(|n| json!({"name": format!("NAME_{n}"), "value": "some value"})).collect::<Vec<_>>(),
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets"}]}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}]},
    })
}

/// Kinds of pods that are placed, with their annotations.
pub fn kinds() -> Vec<(&'static str, Value)> {
    let list = |expressions: &[&str]| serde_json::to_string(expressions).unwrap();
    vec![
        ("plain", json!({})),
        ("binpack", json!({"transship.dev/strategy": "binpack"})),
        ("random", json!({"transship.dev/strategy": "random"})),
        (
            "constraints",
            json!({"transship.dev/constraints": list(&["zone==us*", "disk==ssd", "rack!=/r1[0-9]$/"])}),
        ),
        ("label", json!({"transship.dev/affinities": list(&["app!=app-17"])})),
        ("container", json!({"transship.dev/affinities": list(&["container!=running-0000*"])})),
        (
            "container name",
            json!({"transship.dev/affinities": list(&["container!=running-000007-x7k2p"])}),
        ),
        ("container ending", json!({"transship.dev/affinities": list(&["container!=*-nowhere"])})),
        (
            "container regex",
            json!({"transship.dev/affinities": list(&["container!=/^running-0000[0-9]+-(x7|y8)/"])}),
        ),
        (
            "container UID",
            json!({"transship.dev/affinities":
                list(&[&format!("container!={}*", &uid(7, "running")[..9])])}),
        ),
        ("depends-on", json!({"transship.dev/depends-on": list(&["running-000007-x7k2p"])})),
        ("image", json!({"transship.dev/affinities": list(&["image==*/app-3:v3"])})),
        ("soft", json!({"transship.dev/constraints": list(&["zone==~nowhere", "disk==ssd"])})),
        ("refused", json!({"transship.dev/constraints": list(&["zone==nowhere"])})),
    ]
}
