//! Whatever is asked is answered, or refused with the reason, and the extender goes on.

use std::collections::BTreeSet;

use futures::executor::block_on;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const VERBS: &[&str] = &["filter", "prioritize"];
/// What may stand anywhere in a question, also where it makes no sense.
const TEXTS: &[&str] = &[
    "",
    "0",
    "-1",
    "-9223372036854775808m",
    "9223372036854775807",
    "99999999999999999999",
    "99Ei",
    "1e400",
    "-1e400",
    "NaN",
    "0.0000000001",
    "1.",
    "1 Gi",
    "m",
    "\u{e9}",
    "random",
    "False",
    "node-a",
    "uid-other",
    "one\ntwo",
    "[]",
    r#"["node==node-b"]"#,
    r#"["app!=~/(/"]"#,
];

/// A question with everything that the extender looks at.
fn whole() -> Value {
    let annotations = json!({
        "transship.dev/constraints": r#"["region!=mars", "disk==~ssd"]"#,
        "transship.dev/affinities": r#"["container!=web-*", "app==~db"]"#,
        "transship.dev/whitelist": r#"["node-a", "node-b"]"#,
        "transship.dev/depends-on": "[]",
        "transship.dev/strategy": "binpack",
    });
    let mut pod = pod("p", annotations, "100m");
    pod["metadata"]["labels"]["transship.dev/migration"] = "uid-move".into();
    let spec = &mut pod["spec"];
    spec["hostNetwork"] = false.into();
    spec["overhead"] = json!({"cpu": "1m", "memory": "1Mi"});
    spec["initContainers"] = json!([{"name": "i", "image": "init:1", "restartPolicy": "Always",
        "resources": {"requests": {"cpu": "1m"}}}]);
    spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 8080,
        "hostIP": "0.0.0.0", "protocol": "TCP"}]);
    spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    pod["status"] = json!({"conditions": [{"type": "PodScheduled", "status": "False",
        "message": "0/3 nodes are available"}]});
    json!({"Pod": pod, "Nodes": null, "NodeNames": NODES})
}

/// The JSON pointers of a value and of all that is in it.
fn pointers(value: &Value, to: &str) -> Vec<String> {
    let within: Vec<String> = match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, field)| pointers(field, &format!("{to}/{}", key.replace('/', "~1"))))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .flat_map(|(at, item)| pointers(item, &format!("{to}/{at}")))
            .collect(),
        _ => Vec::new(),
    };
    [vec![to.to_owned()], within].concat()
}

/// Puts something in the place of what is there, or takes a field away.
fn change(question: &mut Value, pointer: &str, to: Option<Value>) {
    match (to, pointer.rsplit_once('/')) {
        (Some(value), _) => {
            if let Some(found) = question.pointer_mut(pointer) {
                *found = value;
            }
        }
        (None, Some((parent, key))) => {
            if let Some(Value::Object(fields)) = question.pointer_mut(parent) {
                fields.remove(&key.replace("~1", "/"));
            }
        }
        (None, None) => {}
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => select(TEXTS).prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!(true)),
        1 => Just(json!([])),
        1 => Just(json!({})),
    ]
}

/// About some nodes, some of them several times or unknown, and with some changes.
fn any_question() -> impl Strategy<Value = Value> {
    let names = prop::collection::vec(select(&["node-a", "node-b", "node-c", "new"][..]), 0..6);
    let pointer = select(pointers(&whole(), ""));
    let changes = prop::collection::vec((pointer, prop::option::weighted(0.8, any_value())), 0..4);
    (names, changes).prop_map(|(names, changes)| {
        let mut question = whole();
        question["NodeNames"] = json!(names);
        for (pointer, to) in changes {
            change(&mut question, &pointer, to);
        }
        question
    })
}

/// Whether an answer says of each node that was asked about what becomes of it, or which one is the best.
fn is_answer(verb: &str, names: &[&str], answer: &Value) -> bool {
    let asked: BTreeSet<&str> = names.iter().copied().collect();
    if verb == "filter" {
        let usable = answer["NodeNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let refused = ["FailedNodes", "FailedAndUnresolvableNodes"].into_iter();
        let refused = refused.flat_map(|of| answer[of].as_object().into_iter().flatten());
        return usable.chain(refused.map(|(name, _)| name.as_str())).collect::<BTreeSet<_>>()
            == asked;
    }
    let Some(scores) = answer.as_array() else { return false };
    let best = scores.iter().filter(|score| score["Score"] == 10);
    let best: BTreeSet<&str> = best.filter_map(|score| score["Host"].as_str()).collect();
    best.len() <= 1 && best.is_subset(&asked)
}

fn config() -> ProptestConfig {
    // What has failed would be kept beside a library's sources, and this is none.
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_refused_with_the_reason(
        bytes in prop::collection::vec(any::<u8>(), 0..300), verb in select(VERBS),
    ) {
        let (status, reason) = block_on(post(&extender(), verb, bytes));
        prop_assert_eq!(status, StatusCode::BAD_REQUEST);
        prop_assert!(reason.contains("ExtenderArgs"), "{reason}");
    }

    #[test]
    fn any_question_is_answered_or_refused_with_the_reason(
        questions in prop::collection::vec((select(VERBS), any_question()), 1..5),
    ) {
        let extender = extender();
        for (verb, question) in questions {
            let (status, answer) = block_on(post(&extender, verb, question.to_string()));
            if status == StatusCode::BAD_REQUEST {
                prop_assert!(answer.contains("ExtenderArgs"), "{answer}");
                continue;
            }
            prop_assert_eq!(status, StatusCode::OK, "{}", answer);
            let names = question["NodeNames"].as_array().into_iter().flatten();
            let names: Vec<&str> = names.filter_map(Value::as_str).collect();
            let answer: Value = serde_json::from_str(&answer).unwrap();
            prop_assert!(is_answer(verb, &names, &answer), "{verb} of {question}: {answer}");
        }
        let answer = block_on(ask(&extender, "filter", &pod("next", json!({}), "1"), &NODES));
        prop_assert!(is_answer("filter", &NODES, &answer), "{answer}");
    }
}
