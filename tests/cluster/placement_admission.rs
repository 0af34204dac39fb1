//! What cannot be read is refused when it is written, or asked, and who asks for nothing is not looked at.

use std::process::Output;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use transship_tests::{
    cluster::{Cluster, Pod},
    faults::nodes::restarts,
};

use crate::{
    placement::{PATIENCE, Trial, list, pod, template},
    preflight::in_network,
};

/// A pod of our scheduler with one annotation.
fn annotated(name: &str, annotation: &str, value: &str) -> Value {
    pod(name, template(name, json!({annotation: value}), 10))
}

fn object(kind: &str, spec: &Value) -> String {
    let object = json!({"apiVersion": "transship.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "judged"}, "spec": spec});
    object.to_string()
}

/// Whether the API server has refused something with this reason, or without any taken it.
fn judged(output: &Output, told: Option<&str>) -> Result<()> {
    let answer = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() == told.is_none(), "instead of {told:?}: {answer}");
    // Before it a line says who refuses what, and behind it nothing.
    let is_told = |reason: &str| answer.lines().any(|line| line.ends_with(reason));
    ensure!(told.is_none_or(is_told), "instead of {told:?}: {answer}");
    Ok(())
}

#[test]
fn what_is_malformed_is_refused_and_other_pods_never_looked_at() -> Result<()> {
    let trial = Trial::new("placement-admission")?;
    for (annotation, value, problem) in [
        ("constraints", r#"["region=us"]"#, r#"One of operator ==, != is expected in "region=us""#),
        ("constraints", r#"["9==us"]"#, r#"Key '9' is invalid in "9==us""#),
        (
            "constraints",
            r#"["region==/us-(/"]"#,
            r#""region==/us-(/" has a malformed pattern; write a name, a glob like us* or /REGEX/"#,
        ),
        ("affinities", r#"["image=="]"#, r#"Value '' is invalid in "image==""#),
        ("affinities", "web", r#"write a JSON array of strings, such as ["container!=web*"]"#),
        (
            "affinities",
            r#"["container==/web(/"]"#,
            r#""container==/web(/" has a malformed pattern; write a name, a glob like us* or /REGEX/"#,
        ),
        ("whitelist", r#"["node=a"]"#, r#"One of operator ==, != is expected in "node=a""#),
        ("depends-on", r#"["shop/db"]"#, r#""shop/db" is no name of a pod"#),
        ("strategy", "fair", r#"unknown strategy "fair"; write spread, binpack or random"#),
        ("reschedule", "always", "invalid reschedule policy: always"),
        ("reschedule", r#"["off", "off"]"#, "too many reschedule policies"),
    ] {
        let annotation = format!("transship.dev/{annotation}");
        let pod = annotated("malformed", &annotation, value);
        let reason = format!("metadata.annotations[{annotation}]: {problem}");
        judged(&trial.cluster.try_apply(&pod.to_string())?, Some(&reason))?;
    }
    for (field, value, problem) in [
        (
            "constraints",
            json!(["region=us"]),
            r#"One of operator ==, != is expected in "region=us""#,
        ),
        ("constraints", json!(["9==us"]), r#"Key '9' is invalid in "9==us""#),
        (
            "constraints",
            json!(["region==/(/"]),
            r#""region==/(/" has a malformed pattern; write a name, a glob like us* or /REGEX/"#,
        ),
        ("affinities", json!(["image=="]), r#"Value '' is invalid in "image==""#),
        // By the kind's own schema.
        (
            "strategy",
            json!("fair"),
            r#"Unsupported value: "fair": supported values: "spread", "binpack", "random""#,
        ),
    ] {
        let placement = json!({field: value});
        let reason = format!("spec.placement.{field}: {problem}");
        for (kind, spec) in [
            ("Migration", json!({"podName": "web-0", "placement": placement})),
            ("MigrationPolicy", json!({"selector": {}, "placement": placement})),
        ] {
            judged(&trial.cluster.try_apply(&object(kind, &spec))?, Some(&reason))?;
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
            Some(
                r#"spec.placement.affinities: "app==/(/" has a malformed pattern; write a name, a glob like us* or /REGEX/"#,
            ),
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
        (
            r#"transship.dev/constraints=["region=us"]"#,
            Some(
                r#"metadata.annotations[transship.dev/constraints]: One of operator ==, != is expected in "region=us""#,
            ),
        ),
        (
            "transship.dev/strategy=fair",
            Some(
                r#"metadata.annotations[transship.dev/strategy]: unknown strategy "fair"; write spread, binpack or random"#,
            ),
        ),
        (r#"example.com/constraints=["region=us"]"#, None),
        (r#"transship.dev/constraints=["region!=venus"]"#, None),
    ] {
        let annotate = ["annotate", "pod", "changed", "--overwrite", annotation];
        judged(&trial.cluster.try_kubectl(&annotate)?, told)?;
    }
    trial.cleared(&["pods", "--all", "--now"])
}

#[test]
fn a_question_that_cannot_be_read_is_answered_with_the_reason() -> Result<()> {
    // Nobody but the scheduler in the same pod reaches it.
    const EXTENDER: &str = "http://127.0.0.1:9444/v1/placement";
    let trial = Trial::new("placement-question")?;
    let system = Cluster::running("transship-system")?;
    let operators = || system.list("pods", "app.kubernetes.io/component=operator");
    let before = operators()?;
    for pod in before.iter().map(Pod::of) {
        for (verb, question) in [
            ("filter", "no JSON"),
            ("prioritize", r#"{"Pod": {"metadata": {"uid": 7}}, "NodeNames": ["node-a"]}"#),
        ] {
            let (question, url) = (format!("'{question}'"), format!("{EXTENDER}/{verb}"));
            let ask = ["curl", "-sS", "--data", &question, "--write-out", "' %{http_code}'", &url];
            // One that has just started says first that it does not know the cluster yet.
            trial.cluster.await_that("the question is refused", PATIENCE, || {
                let answer = in_network(&system, &pod, &ask)?;
                let reason = "this is no ExtenderArgs with NodeNames: ";
                let is_refused = answer.starts_with(reason) && answer.ends_with(" 400");
                ensure!(is_refused, "{} answers {answer:?}", pod.name);
                Ok(true)
            })?;
        }
    }
    trial.cluster.apply(&pod("next", template("next", json!({}), 10)).to_string())?;
    trial.landed("app=next", 1)?;
    let lives = |pods: &[Value]| -> Vec<(String, u64)> {
        pods.iter().map(|pod| (Pod::of(pod).uid, restarts(pod))).collect()
    };
    let (before, after) = (lives(&before), lives(&operators()?));
    ensure!(before == after, "{before:?} before the questions, {after:?} after them");
    trial.cleared(&["pods", "--all", "--now"])
}
