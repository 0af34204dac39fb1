//! The extender as kube-scheduler meets it: over HTTP, with objects as the API server writes them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "extender/migrations.rs"]
mod migrations;
#[path = "extender/questions.rs"]
mod questions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{Node as CoreNode, PersistentVolumeClaim, Pod};
use rstest::rstest;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt;
use transship_api as api;
use transship_extender::sources::Source;
use transship_extender::{Counters, Extender, routes};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
const SENTENCE: &str = "Unable to find a node that satisfies the following conditions";

fn of<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn core(name: &str) -> CoreNode {
    of(json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"disk": "ssd"}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    }))
}

fn ours(name: &str, region: &str, ready: bool) -> api::Node {
    of(json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": name},
        "spec": {"labels": {"region": region}},
        "status": {"healthIndicator": if ready { 100 } else { 0 }, "conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" }, "reason": "x",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    }))
}

fn pod(name: &str, annotations: Value, cpu: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"app": "web"}, "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "web:1",
            "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}}]},
    })
}

fn extender() -> Arc<Extender> {
    extender_with(0)
}

/// Three healthy nodes in three regions, listed as a whole.
fn extender_with(overcommit: i64) -> Arc<Extender> {
    let extender = Arc::new(Extender::new(overcommit, Counters::default()));
    for (name, region) in NODES.into_iter().zip(["us-east", "us-west", "eu"]) {
        core(name).apply(&mut extender.state());
        ours(name, region, true).apply(&mut extender.state());
    }
    while !extender.is_complete() {
        extender.listed_one();
    }
    extender
}

async fn post(extender: &Arc<Extender>, verb: &str, body: impl Into<Body>) -> (StatusCode, String) {
    let request = Request::post(format!("/{verb}")).body(body.into()).unwrap();
    let response = routes(extender.clone()).oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn ask(extender: &Arc<Extender>, verb: &str, pod: &Value, names: &[&str]) -> Value {
    let question = json!({"Pod": pod, "Nodes": null, "NodeNames": names}).to_string();
    let (status, body) = post(extender, verb, question).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// What kube-scheduler does: the only node that is left, or the one with the top score.
async fn schedule(extender: &Arc<Extender>, pod: &Value) -> Option<String> {
    let filtered = ask(extender, "filter", pod, &NODES).await;
    let left: Vec<&str> =
        filtered["NodeNames"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    if left.len() < 2 {
        return left.first().map(|name| (*name).to_owned());
    }
    let scores = ask(extender, "prioritize", pod, &left).await;
    let scores = scores.as_array().unwrap();
    let best: Vec<&Value> = scores.iter().filter(|s| s["Score"] == 10).collect();
    assert_eq!(best.len(), 1, "{scores:?}");
    assert!(scores.iter().all(|s| (0..=10).contains(&s["Score"].as_i64().unwrap())), "{scores:?}");
    best[0]["Host"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_burst_is_placed_as_one_after_another_though_nothing_is_bound_yet() {
    for (strategy, expected) in [("spread", vec![10, 10, 10]), ("binpack", vec![30])] {
        let extender = extender();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for number in 0..30 {
            let annotations = json!({"transship.dev/strategy": strategy});
            let pod = pod(&format!("p-{number}"), annotations, "100m");
            *counts.entry(schedule(&extender, &pod).await.unwrap()).or_default() += 1;
        }
        assert_eq!(counts.into_values().collect::<Vec<_>>(), expected, "{strategy}");
    }
}

#[tokio::test]
async fn a_pod_that_is_asked_about_again_does_not_stand_in_its_own_way() {
    let extender = extender();
    let large = pod("large", json!({}), "4");
    for _ in 0..3 {
        assert_eq!(schedule(&extender, &large).await.as_deref(), Some("node-a"));
    }
    assert_eq!(extender.state().cluster.assumptions(), 1);
    for name in ["two", "three"] {
        assert!(schedule(&extender, &pod(name, json!({}), "4")).await.is_some());
    }
    assert_eq!(schedule(&extender, &pod("four", json!({}), "4")).await, None);
    // One of them was not bound after all.
    Pod::remove(&of(large), &mut extender.state());
    assert_eq!(schedule(&extender, &pod("four", json!({}), "4")).await.as_deref(), Some("node-a"));
}

#[tokio::test]
async fn each_node_is_refused_in_swarms_words() {
    let extender = extender();
    ours("node-c", "mars", false).apply(&mut extender.state());
    let annotations = json!({"transship.dev/constraints": r#"["region==mars"]"#});
    let filtered = ask(&extender, "filter", &pod("p", annotations, "1"), &NODES).await;
    assert_eq!(filtered["NodeNames"], json!([]));
    assert_eq!(filtered["FailedNodes"], json!({}));
    let reasons = &filtered["FailedAndUnresolvableNodes"];
    for node in ["node-a", "node-b"] {
        let reason = reasons[node].as_str().unwrap();
        assert!(reason.starts_with(SENTENCE) && reason.contains("region==mars"), "{reason}");
        assert!(!reason.contains('\n'), "{reason}");
    }
    let reason = reasons["node-c"].as_str().unwrap();
    assert!(reason.contains("No healthy node available in the cluster"), "{reason}");
}

#[tokio::test]
async fn the_whitelist_leaves_the_nodes_that_it_names_and_no_end_of_a_pod_helps_the_others() {
    let extender = extender();
    let filter = async |name: &str, whitelist: &str| {
        let annotations = json!({"transship.dev/whitelist": whitelist});
        ask(&extender, "filter", &pod(name, annotations, "1"), &NODES).await
    };
    let filtered = filter("p", r#"["node-b"]"#).await;
    assert_eq!(filtered["NodeNames"], json!(["node-b"]));
    let reason = "unable to find a node that satisfies the whitelist node==node-b";
    assert_eq!(filtered["FailedNodes"], json!({}));
    let others = json!({"node-a": reason, "node-c": reason});
    assert_eq!(filtered["FailedAndUnresolvableNodes"], others);
    let filtered = filter("q", r#"["node-x", "node-y"]"#).await;
    let reason = format!(
        "{SENTENCE}: unable to find a node that satisfies the whitelist node==node-x|node-y"
    );
    let all: BTreeMap<&str, &str> = NODES.iter().map(|node| (*node, reason.as_str())).collect();
    assert_eq!(filtered["FailedAndUnresolvableNodes"], json!(all));
    assert_eq!((&filtered["NodeNames"], &filtered["FailedNodes"]), (&json!([]), &json!({})));
}

#[tokio::test]
async fn what_another_pods_end_may_help_is_told_from_what_it_may_not() {
    let extender = extender();
    let filtered = ask(&extender, "filter", &pod("p", json!({}), "5"), &NODES).await;
    assert_eq!(filtered["FailedAndUnresolvableNodes"], json!({}));
    assert_eq!(filtered["FailedNodes"]["node-a"], "no resources available to schedule container");
}

#[tokio::test]
async fn a_reserve_is_kept_free_on_each_node() {
    let extender = extender_with(-25);
    assert_eq!(schedule(&extender, &pod("large", json!({}), "3500m")).await, None);
    for name in ["one", "two", "three"] {
        assert!(schedule(&extender, &pod(name, json!({}), "3")).await.is_some(), "{name}");
    }
    assert_eq!(schedule(&extender, &pod("small", json!({}), "100m")).await, None);
}

#[tokio::test]
async fn nodes_that_are_not_known_yet_are_refused_and_do_not_disturb() {
    let extender = extender();
    let filtered = ask(&extender, "filter", &pod("p", json!({}), "1"), &["new", "node-b"]).await;
    assert_eq!(filtered["NodeNames"], json!(["node-b"]));
    assert!(filtered["FailedNodes"]["new"].as_str().unwrap().contains("not known"));
}

#[tokio::test]
async fn annotations_that_cannot_be_read_are_told_to_whoever_looks_at_the_pod() {
    let extender = extender();
    let annotations = json!({"transship.dev/constraints": r#"["region=mars"]"#});
    let filtered = ask(&extender, "filter", &pod("p", annotations, "1"), &NODES).await;
    for node in NODES {
        let reason = filtered["FailedAndUnresolvableNodes"][node].as_str().unwrap();
        assert!(reason.contains("One of operator ==, != is expected"), "{reason}");
    }
}

#[tokio::test]
async fn the_policy_that_applies_is_obeyed_too() {
    let extender = extender();
    let policy: api::MigrationPolicy = of(json!({
        "apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}},
            "placement": {"constraints": ["region==us*"]}},
    }));
    policy.apply(&mut extender.state());
    let annotations = json!({"transship.dev/constraints": r#"["node!=node-a"]"#});
    assert_eq!(schedule(&extender, &pod("p", annotations, "1")).await.unwrap(), "node-b");
    let mut malformed = policy.clone();
    malformed.spec.placement.as_mut().unwrap().constraints = vec!["region!=/(/".into()];
    malformed.apply(&mut extender.state());
    let filtered = ask(&extender, "filter", &pod("r", json!({}), "1"), &NODES).await;
    let reason = filtered["FailedAndUnresolvableNodes"]["node-a"].as_str().unwrap();
    assert!(reason.contains("MigrationPolicy web: spec.placement.constraints: "), "{reason}");
    policy.remove(&mut extender.state());
    let annotations = json!({"transship.dev/constraints": r#"["region==eu"]"#});
    assert_eq!(schedule(&extender, &pod("q", annotations, "1")).await.unwrap(), "node-c");
}

#[tokio::test]
async fn a_refused_pod_is_touched_once_when_a_node_comes_up() {
    let extender = extender();
    let annotations = json!({"transship.dev/constraints": r#"["region==mars"]"#});
    let martian = pod("martian", annotations, "1");
    assert_eq!(schedule(&extender, &martian).await, None);
    let due = || extender.state().due(Instant::now());
    assert_eq!(due(), []);
    ours("node-b", "venus", true).apply(&mut extender.state());
    assert_eq!(due(), []);
    ours("node-b", "mars", true).apply(&mut extender.state());
    let named: Vec<String> = due().into_iter().map(|pod| pod.name).collect();
    assert_eq!(named, ["martian"]);
    assert_eq!(due(), [], "once per change");
    assert_eq!(schedule(&extender, &martian).await.unwrap(), "node-b");
    ours("node-c", "mars", true).apply(&mut extender.state());
    assert_eq!(due(), [], "it does not wait any more");
}

#[tokio::test]
async fn a_refused_pod_is_touched_once_when_its_policy_changes() {
    let extender = extender();
    let policy = |namespace: &str, region: &str| -> api::MigrationPolicy {
        of(json!({
            "apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
            "metadata": {"name": "all", "namespace": namespace},
            "spec": {"selector": {}, "placement": {"constraints": [format!("region=={region}")]}},
        }))
    };
    policy("shop", "mars").apply(&mut extender.state());
    let pod = pod("p", json!({}), "1");
    assert_eq!(schedule(&extender, &pod).await, None);
    let due = || extender.state().due(Instant::now()).len();
    policy("shop", "mars").apply(&mut extender.state());
    policy("bank", "eu").apply(&mut extender.state());
    assert_eq!(due(), 0, "listed again, and another namespace's");
    policy("shop", "venus").apply(&mut extender.state());
    assert_eq!((due(), due()), (1, 0), "once");
    assert_eq!(schedule(&extender, &pod).await, None);
    policy("shop", "/(/").apply(&mut extender.state());
    assert_eq!(due(), 1);
    assert_eq!(schedule(&extender, &pod).await, None, "its policy cannot be read");
    ours("node-b", "(", true).apply(&mut extender.state());
    assert_eq!(due(), 0, "no node helps");
    policy("shop", "venus").apply(&mut extender.state());
    assert_eq!((due(), due()), (1, 0), "it is mended");
    assert_eq!(schedule(&extender, &pod).await, None);
    let kept = ["bank/all".to_owned()].into();
    api::MigrationPolicy::retain(&kept, &mut extender.state());
    assert_eq!((due(), due()), (1, 0), "it is gone from the list");
    assert!(schedule(&extender, &pod).await.is_some());
    policy("shop", "eu").apply(&mut extender.state());
    assert_eq!(due(), 0, "it does not wait any more");
}

#[tokio::test]
async fn a_node_that_kube_scheduler_does_not_offer_is_no_reason_to_touch() {
    let extender = extender();
    let annotations = json!({"transship.dev/constraints": r#"["region==mars"]"#});
    ours("node-c", "mars", true).apply(&mut extender.state());
    // node-c has a taint, say.
    let offered = ["node-a", "node-b"];
    ask(&extender, "filter", &pod("p", annotations, "1"), &offered).await;
    Pod::apply(&of(bound("other", "node-a")), &mut extender.state());
    assert_eq!(extender.state().due(Instant::now()), []);
    ours("node-a", "mars", true).apply(&mut extender.state());
    assert_eq!(extender.state().due(Instant::now()).len(), 1);
}

#[tokio::test]
async fn a_pod_goes_where_its_volume_is_in_use_and_anywhere_when_it_is_not_any_more() {
    let extender = extender();
    let claim = |name: &str, mode: &str| -> PersistentVolumeClaim {
        of(json!({
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"accessModes": [mode]},
        }))
    };
    claim("data", "ReadWriteOnce").apply(&mut extender.state());
    claim("shared", "ReadWriteMany").apply(&mut extender.state());
    let user = |mut pod: Value, claim: &str| {
        pod["spec"]["volumes"] =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
        pod
    };
    let holder: Pod = of(user(bound("holder", "node-c"), "data"));
    holder.apply(&mut extender.state());
    // Spread would take one that is empty.
    let second = user(pod("second", json!({}), "1"), "data");
    assert_eq!(schedule(&extender, &second).await.unwrap(), "node-c");
    assert_ne!(
        schedule(&extender, &user(pod("free", json!({}), "1"), "shared")).await.unwrap(),
        "node-c"
    );
    Pod::remove(&of(second), &mut extender.state());
    // Whoever wants it elsewhere waits.
    let annotations = json!({"transship.dev/constraints": r#"["node==node-b"]"#});
    let third = user(pod("third", annotations, "1"), "data");
    let filtered = ask(&extender, "filter", &third, &NODES).await;
    for node in ["node-a", "node-b"] {
        let reason = filtered["FailedAndUnresolvableNodes"][node].as_str().unwrap();
        assert!(reason.contains("--volumes-from=shop/data"), "{reason}");
    }
    assert_eq!(extender.state().due(Instant::now()), []);
    holder.remove(&mut extender.state());
    assert_eq!(extender.state().due(Instant::now()).len(), 1, "nobody uses it any more");
    assert_eq!(schedule(&extender, &third).await.unwrap(), "node-b");
    // What its volume can do may become known later.
    let annotations = json!({"transship.dev/constraints": r#"["node==node-c"]"#});
    let fifth = user(pod("fifth", annotations, "1"), "data");
    assert_eq!(schedule(&extender, &fifth).await, None);
    claim("data", "ReadWriteMany").apply(&mut extender.state());
    assert_eq!(extender.state().due(Instant::now()).len(), 1, "it is for any node");
    assert_eq!(schedule(&extender, &fifth).await.unwrap(), "node-c");
    Pod::remove(&of(fifth), &mut extender.state());
    claim("data", "ReadWriteOnce").apply(&mut extender.state());
    // What is assumed to go somewhere uses it there.
    let fourth = user(pod("fourth", json!({}), "1"), "data");
    assert_eq!(schedule(&extender, &fourth).await.unwrap(), "node-b");
}

fn bound(name: &str, node: &str) -> Value {
    let mut pod = pod(name, json!({}), "1");
    pod["spec"]["nodeName"] = node.into();
    pod
}

#[rstest]
#[case("not json")]
#[case("{}")]
#[case("")]
#[case(r#"{"Pod": {"metadata": {"uid": "u"}}, "NodeNames": null}"#)]
#[case(r#"{"Pod": {"metadata": {"name": "p"}}, "NodeNames": ["node-a"]}"#)]
#[case(r#"{"Pod": {"metadata": {"uid": "u"}}, "NodeNames": ["node-a", 7]}"#)]
#[case(r#"{"Pod": {"metadata": {"uid": "u"}, "spec": {"containers": 1}}, "NodeNames": []}"#)]
#[case(&"[".repeat(100_000))]
#[tokio::test]
async fn a_malformed_question_is_answered_with_400_and_the_reason(#[case] body: &str) {
    let extender = extender();
    for verb in ["filter", "prioritize"] {
        let (status, reason) = post(&extender, verb, body.to_owned()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(reason.contains("ExtenderArgs"), "{reason}");
    }
    assert!(schedule(&extender, &pod("p", json!({}), "1")).await.is_some(), "and it goes on");
}

#[tokio::test]
async fn nothing_is_decided_before_the_whole_cluster_was_seen() {
    let extender = Arc::new(Extender::new(0, Counters::default()));
    let question = json!({"Pod": pod("p", json!({}), "1"), "NodeNames": NODES}).to_string();
    let (status, _) = post(&extender, "filter", question).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}
