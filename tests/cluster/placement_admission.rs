//! What cannot be read is refused when it is written, and who asks for nothing is not looked at.

use std::process::Output;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::placement::{Trial, list, pod, template};

/// A pod of our scheduler with one annotation.
fn annotated(name: &str, annotation: &str, value: &str) -> Value {
    pod(name, template(name, json!({annotation: value}), 10))
}

fn object(kind: &str, spec: &Value) -> String {
    let object = json!({"apiVersion": "transship.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "judged"}, "spec": spec});
    object.to_string()
}

/// Whether the API server has refused something with these words, or without any taken it.
fn judged(output: &Output, told: Option<&str>) -> Result<()> {
    let answer = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() == told.is_none(), "instead of {told:?}: {answer}");
    ensure!(told.is_none_or(|words| answer.contains(words)), "instead of {told:?}: {answer}");
    Ok(())
}

#[test]
fn what_is_malformed_is_refused_and_other_pods_never_looked_at() -> Result<()> {
    let trial = Trial::new("placement-admission")?;
    for (annotation, value, words) in [
        ("constraints", r#"["region=us"]"#, "One of operator ==, != is expected"),
        ("constraints", r#"["9==us"]"#, "Key '9' is invalid"),
        ("affinities", r#"["image=="]"#, "Value '' is invalid"),
        ("affinities", "web", "transship.dev/affinities"),
        ("strategy", "fair", "spread, binpack or random"),
    ] {
        let pod = annotated("malformed", &format!("transship.dev/{annotation}"), value);
        judged(&trial.cluster.try_apply(&pod.to_string())?, Some(words))?;
    }
    for (expression, words) in [
        (
            "region=us",
            r#"spec.placement.constraints: One of operator ==, != is expected in "region=us""#,
        ),
        ("9==us", r#"Key '9' is invalid in "9==us""#),
        ("region==/(/", r#""region==/(/" has a malformed pattern"#),
    ] {
        let placement = json!({"constraints": [expression]});
        for (kind, spec) in [
            ("Migration", json!({"podName": "web-0", "placement": placement})),
            ("MigrationPolicy", json!({"selector": {}, "placement": placement})),
        ] {
            judged(&trial.cluster.try_apply(&object(kind, &spec))?, Some(words))?;
        }
    }
    // Whoever is looked at is told of the scheduler.
    const WARNING: &str = "write schedulerName: transship instead of default-scheduler";
    for (name, annotation, is_looked_at) in [
        ("ours", "transship.dev/constraints", true),
        ("ordinary", "example.com/constraints", false),
    ] {
        let mut pod = annotated(name, annotation, &list(&["region!=mars"]));
        if let Some(spec) = pod["spec"].as_object_mut() {
            spec.remove("schedulerName");
        }
        let output = trial.cluster.try_apply(&pod.to_string())?;
        judged(&output, None)?;
        let answer = String::from_utf8_lossy(&output.stderr);
        ensure!(answer.contains(WARNING) == is_looked_at, "{name}: {answer:?}");
    }
    trial.landed("placed", 2)?;
    trial.cleared(&["pods", "--all", "--now"])
}

#[test]
fn what_is_changed_is_judged_like_what_is_new() -> Result<()> {
    let trial = Trial::new("placement-changes")?;
    let good = json!({"selector": {}, "placement": {"constraints": ["region!=mars"]}});
    trial.cluster.apply(&object("MigrationPolicy", &good))?;
    for (placement, told) in [
        (
            json!({"constraints": ["region=us"]}),
            Some(
                r#"spec.placement.constraints: One of operator ==, != is expected in "region=us""#,
            ),
        ),
        (
            json!({"affinities": ["app==/(/"]}),
            Some(r#"spec.placement.affinities: "app==/(/" has a malformed pattern"#),
        ),
        (json!({"constraints": ["region!=venus"]}), None),
    ] {
        let patch = json!({"spec": {"placement": placement}}).to_string();
        let patch = ["patch", "migrationpolicy", "judged", "--type=merge", "--patch", &patch];
        judged(&trial.cluster.try_kubectl(&patch)?, told)?;
    }
    let policy = trial.cluster.get("migrationpolicy", "judged")?;
    let placement = &policy["spec"]["placement"];
    ensure!(*placement == json!({"constraints": ["region!=venus"]}), "{placement}");

    let good = annotated("changed", "transship.dev/constraints", &list(&["region!=mars"]));
    trial.cluster.apply(&good.to_string())?;
    for (annotation, told) in [
        (r#"transship.dev/constraints=["region=us"]"#, Some("One of operator ==, != is expected")),
        ("transship.dev/strategy=fair", Some("spread, binpack or random")),
        (r#"example.com/constraints=["region=us"]"#, None),
        (r#"transship.dev/constraints=["region!=venus"]"#, None),
    ] {
        let annotate = ["annotate", "pod", "changed", "--overwrite", annotation];
        judged(&trial.cluster.try_kubectl(&annotate)?, told)?;
    }
    trial.cleared(&["pods", "--all", "--now"])
}
