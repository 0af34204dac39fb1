//! Hard conditions of cluster nodes, and the choice among those that are left.

use k8s_openapi::api::core::v1 as corev1;
use serde_json::{Value, json};

use super::*;
use crate::placement::NO_LOAD;
use crate::placement::volumes::Volumes;

fn node(name: &str, extra: Value) -> NodeView {
    let mut core = json!({
        "metadata": {"name": name, "labels": {"disk": "ssd", "gen": "3"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}}
    });
    merge(&mut core, extra);
    let agent = json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": name},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Available",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    });
    NodeView {
        name: name.into(),
        core: Some(serde_json::from_value(core).unwrap()),
        agent: Some(serde_json::from_value(agent).unwrap()),
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn pod(spec: Value) -> Pod {
    let mut pod = json!({"metadata": {"name": "p"},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c"}]}});
    merge(&mut pod["spec"], spec);
    serde_json::from_value(pod).unwrap()
}

fn loaded(node: NodeView, pods: usize) -> (NodeView, Load) {
    let mut load = Load::default();
    (0..pods).for_each(|_| load.add(&pod(json!({}))));
    (node, load)
}

fn chosen(pod: &Pod, nodes: &[(NodeView, Load)]) -> Choice {
    let candidates: Vec<Candidate<'_>> =
        nodes.iter().map(|(node, load)| Candidate { node, load }).collect();
    choose(pod, &kubernetes::asked(pod, None, None).unwrap(), &candidates)
}

#[test]
fn the_node_with_the_fewest_pods_is_chosen_and_never_the_pods_own() {
    let nodes = [
        loaded(node("node-a", json!({})), 0),
        loaded(node("node-d", json!({})), 2),
        loaded(node("node-c", json!({})), 1),
        loaded(node("node-b", json!({})), 1),
    ];
    let choice = chosen(&pod(json!({})), &nodes);
    assert_eq!(choice.order, ["node-b", "node-c", "node-d"]);
    assert_eq!(choice.fates[0], ("node-d".into(), Fate::Ranked { weight: -800, rank: 3 }));
    assert_eq!(choice.fates[2], ("node-b".into(), Fate::Ranked { weight: -800, rank: 1 }));
}

#[test]
fn each_filter_objects_with_a_sentence_of_its_own() {
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    let required = |terms: Value| {
        json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    };
    for (node_extra, pod_spec, words) in [
        (
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
            json!({}),
            "not Ready",
        ),
        (json!({"spec": {"unschedulable": true}}), json!({}), "cordoned"),
        (json!({}), json!({"nodeSelector": {"disk": "hdd"}}), "disk=hdd"),
        (
            json!({}),
            required(
                json!([{"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["3"]}]}]),
            ),
            "affinity",
        ),
        (json!({}), required(json!([{}])), "affinity"),
        (taint.clone(), json!({}), "k:NoSchedule"),
        (
            taint.clone(),
            json!({"tolerations": [{"key": "k", "value": "w", "effect": "NoSchedule"}]}),
            "k:NoSchedule",
        ),
        (
            json!({}),
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2001m"}}}]}),
            "CPU",
        ),
        (
            json!({}),
            json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "2Gi"}}}]}),
            "memory",
        ),
        (json!({"status": {"allocatable": {"pods": "0"}}}), json!({}), "pods"),
    ] {
        let choice = chosen(&pod(pod_spec), &[loaded(node("node-b", node_extra), 0)]);
        assert!(choice.order.is_empty());
        let (name, why) = choice.against().next().unwrap();
        assert!(name == "node-b" && why.contains(words), "{words}: {choice:?}");
    }
    for (node_extra, pod_spec) in [
        (taint.clone(), json!({"tolerations": [{"operator": "Exists"}]})),
        (taint, json!({"tolerations": [{"key": "k", "value": "v", "effect": "NoSchedule"}]})),
        (
            json!({}),
            required(
                json!([{}, {"matchExpressions": [{"key": "gen", "operator": "Lt", "values": ["4"]}]}]),
            ),
        ),
        (
            json!({}),
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1.5", "memory": "512Mi"}}}]}),
        ),
    ] {
        let choice = chosen(&pod(pod_spec), &[loaded(node("node-b", node_extra), 0)]);
        assert_eq!(choice.order, ["node-b"]);
    }
}

#[test]
fn host_ports_are_compared_as_kubernetes_does_and_then_as_swarm_does() {
    let port = |number: i32, protocol: &str| {
        let port = json!({"containerPort": 80, "hostPort": number, "protocol": protocol});
        json!([port])
    };
    let sidecar = |ports: Value| {
        pod(json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "ports": ports}]}))
    };
    let mut load = Load::default();
    load.add(&sidecar(port(8080, "TCP")));
    let nodes = [(node("node-b", json!({})), load)];
    for (number, protocol, wanted) in
        [(8080, "TCP", Some("kubernetes")), (8080, "UDP", Some("port")), (8081, "TCP", None)]
    {
        let ports = port(number, protocol);
        let container = pod(json!({"containers": [{"name": "c", "ports": ports}]}));
        for pod in [container, sidecar(ports)] {
            let choice = chosen(&pod, &nodes);
            let by = match &choice.fates[0].1 {
                Fate::Removed { by, .. } => Some(*by),
                Fate::Ranked { .. } => None,
            };
            assert_eq!(by, wanted, "{number}/{protocol}: {choice:?}");
        }
    }
}

#[test]
fn a_volume_in_use_or_out_of_reach_decides() {
    let user = |name: &str, node: &str| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": {"nodeName": node, "containers": [{"name": "c"}], "volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]},
        }))
        .unwrap()
    };
    let volumes = |mode: &str, disk: &str| {
        let claim = json!({"spec": {"accessModes": [mode], "volumeName": "pv"}});
        let volume = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "disk", "operator": "In", "values": [disk]}]}]}}}});
        let mut volumes = Volumes::default();
        let volume: corev1::PersistentVolume = serde_json::from_value(volume).unwrap();
        volumes.add("shop/data".into(), &serde_json::from_value(claim).unwrap(), Some(&volume));
        volumes
    };
    let pod = user("mine", "node-a");
    let nodes = ["node-a", "node-b", "node-c"].map(|name| node(name, json!({})));
    // Who else mounts it, what it can do, where it is; and which nodes are left.
    for (other, mode, disk, wanted) in [
        (None, "ReadWriteOnce", "ssd", &["node-b", "node-c"][..]),
        (None, "ReadWriteOnce", "hdd", &[]),
        (Some("node-a"), "ReadWriteOnce", "ssd", &[]),
        (Some("node-c"), "ReadWriteOnce", "ssd", &["node-c"]),
        (Some("node-c"), "ReadWriteMany", "ssd", &["node-b", "node-c"]),
    ] {
        let other = other.map(|node| user("other", node));
        let loads = Load::by_node([&pod].into_iter().chain(&other));
        let load = |name: &str| loads.get(name).unwrap_or(&NO_LOAD);
        let candidates = nodes.iter().map(|node| Candidate { node, load: load(&node.name) });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        let asked = kubernetes::asked(&pod, None, None).unwrap();
        let asked = asked.with_volumes(volumes(mode, disk));
        let mut order = choose(&pod, &asked, &candidates).order;
        order.sort();
        assert_eq!(order, wanted, "{other:?} {mode} {disk}");
        assert_eq!(looks_at_pods(&pod, &asked), mode == "ReadWriteOnce");
        for candidate in &candidates[1..] {
            let objection = objection(&pod, &asked, candidate, &candidates);
            let fits = wanted.contains(&candidate.node.name.as_str());
            assert_eq!(objection.is_none(), fits, "{objection:?}");
            assert!(objection.is_none_or(|why| why.contains("shop/data")));
        }
    }
}

#[test]
fn the_reserve_is_kept_from_the_choice_and_from_a_named_node_of_our_scheduler() {
    let mut pod = pod(json!({
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "64Mi"}}}],
    }));
    // Of its two CPUs the node has one and a half left.
    let (node, mut load) = loaded(node("node-b", json!({})), 1);
    load.containers[0].cpus = 500;
    load.cpu_millis = 500;
    let candidate = Candidate { node: &node, load: &load };
    for (scheduler, percent, chosen, fits) in [
        (names::SCHEDULER, 0, true, true),
        (names::SCHEDULER, -25, true, true),
        (names::SCHEDULER, -26, false, false),
        ("default-scheduler", -26, false, true),
    ] {
        pod.spec.as_mut().unwrap().scheduler_name = Some(scheduler.to_owned());
        let asked = kubernetes::asked(&pod, None, None).unwrap().with_overcommit(percent);
        let choice = choose(&pod, &asked, &[candidate]);
        assert_eq!(!choice.order.is_empty(), chosen, "{scheduler} {percent}: {choice:?}");
        let why = objection(&pod, &asked, &candidate, &[candidate]);
        assert_eq!(why.is_none(), fits, "{scheduler} {percent}: {why:?}");
        let told =
            "node-b: no resources available to schedule container (26 % of the node are kept free)";
        assert!(why.is_none_or(|why| why == told));
        assert_eq!(looks_at_pods(&pod, &asked), scheduler == names::SCHEDULER);
    }
}

#[test]
fn a_named_node_is_asked_all_that_our_scheduler_asks() {
    let mut pod = pod(json!({"schedulerName": names::SCHEDULER}));
    let (mut node, load) = loaded(node("node-b", json!({})), 1);
    let labels = &mut node.agent.as_mut().unwrap().spec.labels;
    labels.insert("containerslots".into(), "1".into());
    let candidate = Candidate { node: &node, load: &load };
    let asked = kubernetes::asked(&pod, None, None).unwrap();
    let why = objection(&pod, &asked, &candidate, &[candidate]).unwrap();
    assert_eq!(why, "node-b: No node with enough open slots available in the cluster");
    pod.spec.as_mut().unwrap().scheduler_name = None;
    assert_eq!(objection(&pod, &asked, &candidate, &[candidate]), None);
}

#[test]
fn the_pin_of_an_earlier_migration_is_not_obeyed() {
    let pinned = json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]}]}}}});
    let mut pod = pod(pinned);
    let nodes = [loaded(node("node-b", json!({})), 0)];
    assert!(chosen(&pod, &nodes).order.is_empty(), "a pin by the user counts");
    pod.metadata.annotations = Some([(names::MOVED_FROM.into(), "node-b".into())].into());
    assert_eq!(chosen(&pod, &nodes).order, ["node-b"]);
}
