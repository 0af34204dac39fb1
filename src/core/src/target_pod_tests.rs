use rstest::rstest;
use serde_json::{Value, json};

use super::*;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn target() -> TargetFor<'static> {
    TargetFor {
        migration_namespace: "shop",
        migration_name: "move-web",
        migration_uid: "6e1f2a5c-0000-4000-8000-000000000001",
        node: "node-b",
        preserve_address: true,
        starts_afresh: false,
    }
}

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

/// A pod as the API server has it: defaults filled in, token injected, scheduled, running.
fn source() -> Pod {
    pod(json!({
        "metadata": {
            "name": "web-6f9c8d7b5-x2x4k", "generateName": "web-6f9c8d7b5-", "namespace": "shop",
            "uid": "uid-s", "resourceVersion": "17",
            "labels": {"app": "web", "pod-template-hash": "6f9c8d7b5"},
            "annotations": {
                "transship.dev/claim": "6e1f2a5c-0000-4000-8000-000000000001",
                "transship.dev/migration-name": "shop/move-web",
                "transship.dev/restore-from": "ckpt-1",
                "transship.dev/constraints": "[\"region==us*\"]",
                "prometheus.io/scrape": "true",
                "cni.projectcalico.org/podIP": "10.244.1.5/32"
            },
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6f9c8d7b5",
                "uid": "uid-rs", "controller": true, "blockOwnerDeletion": true}]
        },
        "spec": {
            "nodeName": "node-a", "schedulerName": "default-scheduler", "priority": 0,
            "preemptionPolicy": "PreemptLowerPriority", "serviceAccountName": "default",
            "restartPolicy": "Always",
            "readinessGates": [{"conditionType": "example.com/load-balancer"}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}],
            "initContainers": [
                {"name": "setup", "image": "busybox:1", "imagePullPolicy": "Always",
                 "startupProbe": {"tcpSocket": {"port": 1}},
                 "volumeMounts": [{"name": "kube-api-access-abcde",
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]},
                {"name": "proxy", "image": "localhost/proxy:1", "restartPolicy": "Always",
                 "startupProbe": {"tcpSocket": {"port": 1}}}
            ],
            "containers": [
                {"name": "web", "image": "redis:7", "imagePullPolicy": "Always",
                 "readinessProbe": {"tcpSocket": {"port": 80}, "initialDelaySeconds": 30, "periodSeconds": 5},
                 "livenessProbe": {"tcpSocket": {"port": 80}, "initialDelaySeconds": 30},
                 "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": 80}}},
                 "volumeMounts": [{"name": "data", "mountPath": "/data"},
                    {"name": "kube-api-access-abcde",
                     "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]}
            ],
            "ephemeralContainers": [{"name": "debug", "image": "busybox:1"}],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "kube-api-access-abcde", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}
            ]
        },
        "status": {
            "phase": "Running", "podIP": "10.244.1.5",
            "initContainerStatuses": [
                {"name": "setup", "image": "busybox:1", "imageID": "", "ready": true, "restartCount": 0},
                {"name": "proxy", "image": "localhost/proxy:1", "imageID": "sha256:feed", "ready": true, "restartCount": 0}],
            "containerStatuses": [{"name": "web", "image": "docker.io/library/redis:7",
                "imageID": format!("docker.io/library/redis@{DIGEST}"), "ready": true, "restartCount": 0}]
        }
    }))
}

#[test]
fn the_target_takes_over_what_it_must_and_nothing_else() {
    insta::assert_yaml_snapshot!(target_pod(&source(), &target()).unwrap());
}

#[test]
fn the_name_follows_from_the_migration_and_looks_like_a_siblings() {
    let name = target_name(&source(), "uid-1");
    assert_eq!(name, target_name(&source(), "uid-1"));
    assert_ne!(name, target_name(&source(), "uid-2"));
    let suffix = name.strip_prefix("web-6f9c8d7b5-").unwrap();
    assert_eq!(suffix.len(), 5);
    let mut long = source();
    long.metadata.generate_name = Some("x".repeat(80));
    assert_eq!(target_name(&long, "uid-1").len(), 63);
    let mut bare = source();
    bare.metadata.generate_name = None;
    assert!(target_name(&bare, "uid-1").starts_with("web-6f9c8d7b5-x2x4k-"));
}

#[rstest]
#[case(json!({"metadata": {"name": "web-1"}, "spec": {"containers": []}}), "web-1")]
#[case(json!({"metadata": {"name": "web-1"}, "spec": {"containers": [], "hostname": "db"}}), "db")]
#[case(json!({"metadata": {"name": "web-1"}, "spec": {"containers": [], "hostname": ""}}), "web-1")]
#[case(json!({"metadata": {"name": format!("{}-.x", "a".repeat(61))}, "spec": {"containers": []}}), &"a".repeat(61))]
fn the_host_name_is_the_one_that_the_application_had(#[case] of: Value, #[case] wanted: &str) {
    assert_eq!(effective_host_name(&pod(of)).as_deref(), Some(wanted));
}

#[test]
fn a_host_name_that_another_pod_cannot_have_is_refused() {
    let mut dotted = source();
    dotted.metadata.name = Some("web.v2-abc".into());
    assert_eq!(target_pod(&dotted, &target()), Err(TargetPodError::HostName("web.v2-abc".into())));
}

#[rstest]
#[case("redis:7", &format!("docker.io/library/redis@{DIGEST}"), Some(format!("docker.io/library/redis@{DIGEST}")))]
#[case("redis", &format!("docker-pullable://redis@{DIGEST}"), Some(format!("redis@{DIGEST}")))]
#[case("quay.io:443/a/b:1", &format!("quay.io:443/a/b@{DIGEST}"), Some(format!("quay.io:443/a/b@{DIGEST}")))]
#[case(&format!("redis@{DIGEST}"), &format!("docker.io/library/redis@{DIGEST}"), Some(format!("docker.io/library/redis@{DIGEST}")))]
// Loaded by hand: no digest, or one under a name that no registry serves.
#[case("localhost/app:1", "sha256:feed", None)]
#[case("localhost/app:1", &format!("localhost/app@{DIGEST}"), None)]
#[case("app:1", &format!("docker.io/library/import-2026-01-01@{DIGEST}"), None)]
#[case("redis:7", "", None)]
#[case("redis:7", "docker.io/library/redis@sha256:short", None)]
fn images_are_pinned_where_the_digest_can_be_pulled(
    #[case] image: &str,
    #[case] image_id: &str,
    #[case] wanted: Option<String>,
) {
    assert_eq!(pinned_image(image, image_id), wanted);
}

fn terms(pod: &Pod) -> Value {
    serde_json::to_value(pod).unwrap()["spec"]["affinity"]["nodeAffinity"]
        ["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        .clone()
}

fn with_terms(terms: Value) -> Pod {
    let mut value = serde_json::to_value(source()).unwrap();
    value["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] =
        terms;
    pod(value)
}

fn pin_to(node: &str) -> Value {
    json!({"key": "metadata.name", "operator": "In", "values": [node]})
}

#[test]
fn every_term_is_pinned_since_terms_are_alternatives() {
    let zone = |z: &str| json!([{"key": "zone", "operator": "In", "values": [z]}]);
    let source =
        with_terms(json!([{"matchExpressions": zone("a")}, {"matchExpressions": zone("b")}, {}]));
    let made = target_pod(&source, &target()).unwrap();
    assert_eq!(
        terms(&made),
        json!([
            {"matchExpressions": zone("a"), "matchFields": [pin_to("node-b")]},
            {"matchExpressions": zone("b"), "matchFields": [pin_to("node-b")]},
        ])
    );
    assert_eq!(pinned_node(&made), Some("node-b"));
    assert_eq!(pinned_node(&source), None);
}

#[test]
fn a_target_pod_is_told_by_its_name_from_one_that_was_made_again() {
    let mut pod = target_pod(&source(), &target()).unwrap();
    assert!(is_named_beside(&pod, target().migration_uid));
    assert!(!is_named_beside(&pod, "another-uid"));
    pod.metadata.name = source().metadata.name;
    assert!(!is_named_beside(&pod, target().migration_uid));
}

#[test]
fn a_second_move_replaces_the_pin_of_the_first_but_not_the_users() {
    let first = target_pod(&source(), &target()).unwrap();
    assert_eq!(terms(&first), json!([{"matchFields": [pin_to("node-b")]}]));
    let mut second = first.clone();
    second.spec.as_mut().unwrap().node_name = Some("node-b".into());
    let back = TargetFor { node: "node-a", migration_uid: "another", ..target() };
    let made = target_pod(&second, &back).unwrap();
    assert_eq!(terms(&made), json!([{"matchFields": [pin_to("node-a")]}]));
    let gates = made.spec.as_ref().unwrap().readiness_gates.as_ref().unwrap();
    assert_eq!(gates.len(), 2, "the gate is not doubled");
    assert_eq!(made.metadata.labels.as_ref().unwrap()["transship.dev/migration"], "another");
    assert_eq!(
        made.spec.as_ref().unwrap().hostname.as_deref(),
        Some("web-6f9c8d7b5-x2x4k"),
        "still the first pod's host name"
    );

    let pinned_by_user = with_terms(json!([{"matchFields": [pin_to("node-a")]}]));
    let made = target_pod(&pinned_by_user, &target()).unwrap();
    assert_eq!(terms(&made), json!([{"matchFields": [pin_to("node-a"), pin_to("node-b")]}]));
}

#[test]
fn the_chain_of_lent_addresses_is_kept_and_ends_at_home() {
    let annotation =
        |pod: &Pod| pod.metadata.annotations.as_ref().unwrap().get("transship.dev/lease").cloned();
    let mut first = target_pod(&source(), &target()).unwrap();
    assert_eq!(annotation(&first).as_deref(), Some("10.244.1.5@node-a"));
    first.spec.as_mut().unwrap().node_name = Some("node-b".into());
    first.status = source().status;
    assert_eq!(lease(&first), Some(("10.244.1.5".into(), "node-a".into())));
    let third = target_pod(&first, &TargetFor { node: "node-c", ..target() }).unwrap();
    assert_eq!(annotation(&third).as_deref(), Some("10.244.1.5@node-a"));
    let home = target_pod(&first, &TargetFor { node: "node-a", ..target() }).unwrap();
    assert_eq!(annotation(&home), None);
    let without = TargetFor { preserve_address: false, ..target() };
    assert_eq!(annotation(&target_pod(&source(), &without).unwrap()), None);
}

#[rstest]
#[case(Some("skip"), true)]
#[case(Some("run"), true)]
#[case(Some("Run"), false)]
#[case(None, false)]
fn a_post_start_hook_is_left_to_nobody_but_us(#[case] says: Option<&str>, #[case] ours: bool) {
    let mut value = serde_json::to_value(source()).unwrap();
    let hook = json!({"exec": {"command": ["x"]}});
    value["spec"]["containers"][0]["lifecycle"] =
        json!({"postStart": hook, "preStop": {"exec": {"command": ["y"]}}});
    if let Some(says) = says {
        value["metadata"]["annotations"]["transship.dev/post-start"] = json!(says);
    }
    let made = target_pod(&pod(value), &target()).unwrap();
    let lifecycle = made.spec.as_ref().unwrap().containers[0].lifecycle.clone().unwrap();
    assert_eq!(lifecycle.post_start.is_none(), ours);
    assert!(lifecycle.pre_stop.is_some());
    let again = target_pod(&made, &target()).unwrap();
    for made in [made, again] {
        let note = made.metadata.annotations.as_ref().unwrap().get(names::POST_START_HOOKS);
        let note = note.map(|text| serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(note, ours.then(|| json!({"web": hook})), "the next move knows it too");
    }
}

#[test]
fn a_pod_that_starts_afresh_has_all_that_kubelet_does_at_a_start() {
    let mut value = serde_json::to_value(source()).unwrap();
    let hook = json!({"exec": {"command": ["x"]}});
    let probe = json!({"tcpSocket": {"port": 1}, "initialDelaySeconds": 20});
    value["spec"]["containers"][0]["lifecycle"] = json!({"postStart": hook});
    value["spec"]["containers"][0]["readinessProbe"] = probe.clone();
    value["spec"]["initContainers"] = json!([
        {"name": "proxy", "image": "x", "restartPolicy": "Always", "startupProbe": probe}]);
    value["metadata"]["annotations"]["transship.dev/post-start"] = json!("run");
    let source = pod(value);
    let fresh = TargetFor { starts_afresh: true, ..target() };
    // One that has moved with its memory before has lost the hook, but not the note of it.
    let mut moved = target_pod(&source, &target()).unwrap();
    moved.spec.as_mut().unwrap().init_containers = source.spec.clone().unwrap().init_containers;
    moved.spec.as_mut().unwrap().containers[0].readiness_probe =
        source.spec.as_ref().unwrap().containers[0].readiness_probe.clone();
    for before in [source, moved] {
        let made = target_pod(&before, &fresh).unwrap();
        let spec = serde_json::to_value(made.spec.as_ref().unwrap()).unwrap();
        assert_eq!(spec["containers"][0]["lifecycle"]["postStart"], hook);
        assert_eq!(spec["containers"][0]["readinessProbe"]["initialDelaySeconds"], 20);
        assert_eq!(spec["initContainers"][0]["startupProbe"]["initialDelaySeconds"], 20);
        let annotations = made.metadata.annotations.unwrap();
        assert!(!annotations.contains_key(names::POST_START_HOOKS));
        assert!(annotations.contains_key(names::POST_START), "for its next move");
    }
}

/// What the API server makes of a pod that is sent to it.
fn admitted(sent: &Pod, change: impl FnOnce(&mut Value)) -> Pod {
    let mut value = serde_json::to_value(sent).unwrap();
    value["metadata"]["uid"] = json!("uid-t");
    value["metadata"]["resourceVersion"] = json!("18");
    let spec = &mut value["spec"];
    spec["priority"] = json!(0);
    spec["preemptionPolicy"] = json!("PreemptLowerPriority");
    let token = json!({"name": "kube-api-access-fghij", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}});
    spec["volumes"].as_array_mut().unwrap().push(token);
    let mount = json!({"name": "kube-api-access-fghij",
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true});
    let container = &mut spec["containers"][0]["volumeMounts"];
    container.as_array_mut().unwrap().push(mount);
    value["metadata"]["annotations"]["example.com/seen"] = json!("yes");
    change(&mut value);
    pod(value)
}

#[test]
fn what_the_api_server_fills_in_is_no_change() {
    let sent = target_pod(&source(), &target()).unwrap();
    assert!(changes_by_admission(&sent, &admitted(&sent, |_| {})).is_empty());
    let scheduled = admitted(&sent, |v| {
        v["spec"]["nodeName"] = json!("node-b");
        v["spec"]["schedulingGates"] = Value::Null;
    });
    assert!(changes_by_admission(&sent, &scheduled).is_empty());
}

#[rstest]
#[case(|v: &mut Value| v["metadata"]["labels"]["mesh"] = json!("on"), "metadata.labels.mesh")]
#[case(|v: &mut Value| v["spec"]["containers"][0]["image"] = json!("other"), "spec.containers[web].image")]
#[case(|v: &mut Value| v["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar"})), "spec.containers")]
#[case(|v: &mut Value| v["spec"]["hostname"] = json!("x"), "spec.hostname")]
#[case(|v: &mut Value| v["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "x", "emptyDir": {}})), "spec.volumes")]
#[case(|v: &mut Value| v["metadata"]["annotations"]["transship.dev/claim"] = json!("x"), "metadata.annotations[transship.dev/claim]")]
#[case(|v: &mut Value| v["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x"}]), "metadata.ownerReferences")]
fn what_a_webhook_changes_is_named(#[case] change: fn(&mut Value), #[case] path: &str) {
    let sent = target_pod(&source(), &target()).unwrap();
    assert_eq!(changes_by_admission(&sent, &admitted(&sent, change)), [path]);
}
