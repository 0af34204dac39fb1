//! A pod that serves, its Migration that is refused, and that the pod was left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    line::Line,
};

use crate::preflight::{checks, deployment, sleeper, state};

const PATIENCE: Duration = Duration::from_secs(60);
/// Where a server listens whose container has no environment variable of this name.
const PORT: u16 = 8080;
/// Answers each byte with the number of bytes that have come so far, on any connection.
const SERVER: &str = "
import os, socket
server = socket.create_server(('', int(os.environ.get('PORT', 8080))))
count = 0
while True:
    connection, _ = server.accept()
    while connection.recv(1):
        count += 1
        connection.sendall(b'%d\\n' % count)
";
/// What people are told to do about each finding.
const DOCUMENTATION: &str = include_str!("../../docs/preflight.md");

/// A container that serves once it has done what `first`, in Python, says.
pub fn server(first: &str, extra: &Value) -> Value {
    let mut container = sleeper(extra);
    container["command"] = json!(["python3", "-u", "-c", format!("{first}{SERVER}")]);
    container
}

/// A pod with such a container, and how it was before anybody asked about it.
pub struct Serving {
    /// The pod.
    pub pod: Pod,
    line: Line,
    answers: u64,
    state: BTreeMap<String, String>,
}

impl Serving {
    /// A Deployment `web` with one such container, once it serves.
    pub fn deploy(cluster: &Cluster, first: &str) -> Result<Serving> {
        let containers = [server(first, &Value::Null)];
        cluster.apply(&deployment(
            "web",
            &json!({"terminationGracePeriodSeconds": 0, "containers": containers}),
        ))?;
        Serving::of(cluster, "app=web")
    }

    /// Waits until the one pod with the label serves.
    pub fn of(cluster: &Cluster, label: &str) -> Result<Serving> {
        Serving::at(cluster, label, PORT)
    }

    /// The same of one that listens on another port.
    pub fn at(cluster: &Cluster, label: &str, port: u16) -> Result<Serving> {
        let mut found = None;
        cluster.await_that(&format!("the pod with {label} serves"), PATIENCE, || {
            let pod = cluster.pod(label)?;
            ensure!(!pod.ip.is_empty(), "{} has no address yet", pod.name);
            let mut line = Line::connect(&pod, port)?;
            let answers: u64 = line.ask()?.parse()?;
            // It may serve before kubelet has told that it runs.
            let state = state(cluster, &pod.name)?;
            found = Some(Serving { pod, line, answers, state });
            Ok(true)
        })?;
        found.context("it does not serve")
    }

    /// The pod is what it was, unclaimed, and goes on with the same connection.
    pub fn is_untouched(&mut self, cluster: &Cluster) -> Result<()> {
        let object = cluster.get("pod", &self.pod.name)?;
        let now = Pod::of(&object);
        ensure!(now == self.pod, "{:?} became {now:?}", self.pod);
        ensure!(object["metadata"]["annotations"]["transship.dev/claim"].is_null(), "{object:#}");
        let state = state(cluster, &self.pod.name)?;
        ensure!(state == self.state, "it was touched:\n{:#?}\n{state:#?}", self.state);
        self.answers += 1;
        let answer = self.line.ask()?;
        ensure!(answer == self.answers.to_string(), "{answer} comes before {}", self.answers);
        Ok(())
    }
}

/// Asks about a move to the other node, with further `wishes` for the Migration's spec, and then means
/// it. Both times these checks and no others find something, in a message with these words and with the
/// remedy that is documented.
pub fn refused(
    cluster: &Cluster,
    pod: &Pod,
    wishes: &Value,
    expected: &[(&str, &str)],
) -> Result<()> {
    refused_while(cluster, pod, wishes, expected, || Ok(()))
}

/// The same, where something has to be true that does not last: made so `before` each of the two.
pub fn refused_while(
    cluster: &Cluster,
    pod: &Pod,
    wishes: &Value,
    expected: &[(&str, &str)],
    mut before: impl FnMut() -> Result<()>,
) -> Result<()> {
    let names: BTreeSet<String> = expected.iter().map(|(check, _)| (*check).to_owned()).collect();
    for dry_run in [true, false] {
        before()?;
        let name = format!("{}-{}", pod.name, if dry_run { "asked" } else { "meant" });
        cluster.kubectl(&["delete", "migration", &name, "--ignore-not-found", "--timeout=30s"])?;
        let mut spec =
            json!({"podName": pod.name, "targetNode": pod.other_node(), "dryRun": dry_run});
        for (key, value) in wishes.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let manifest = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Migration",
            "metadata": {"name": name}, "spec": spec});
        cluster.apply(&manifest.to_string())?;
        cluster.ended(&name, PATIENCE)?;
        let answer = cluster.get("migration", &name)?;
        for type_ in ["Admitted", "Succeeded"] {
            let (status, reason, _) = condition(&answer, type_);
            ensure!(status == "False" && reason == "PreflightFailed", "{:#}", answer["status"]);
        }
        ensure!(checks(&answer) == names, "not {names:?}: {:#}", answer["status"]);
        let violations = answer["status"]["violations"].as_array().cloned().unwrap_or_default();
        for &(check, words) in expected {
            let text = |violation: &Value, key: &str| {
                violation[key].as_str().unwrap_or_default().to_owned()
            };
            let violation = violations
                .iter()
                .find(|v| v["check"] == check && text(v, "message").contains(words))
                .with_context(|| format!("{check} with {words:?} is not in {violations:#?}"))?;
            let row = DOCUMENTATION
                .lines()
                .find(|line| line.starts_with(&format!("| `{check}` |")))
                .with_context(|| format!("{check} is not documented"))?;
            let remedy = text(violation, "remedy");
            ensure!(row.ends_with(&format!("| {remedy} |")), "{remedy:?} is not that of {row}");
        }
    }
    no_pod_was_made(cluster)
}

/// A Migration of the pod to the other node is refused for this reason, which is not that a check has found
/// something, and with these words. No pod is made for it.
pub fn refused_for(cluster: &Cluster, pod: &Pod, reason: &str, words: &[&str]) -> Result<()> {
    let migration = cluster.migrate(&pod.name, pod.other_node())?;
    cluster.ended(&migration, PATIENCE)?;
    let object = cluster.get("migration", &migration)?;
    for type_ in ["Admitted", "Succeeded"] {
        let (status, told, message) = condition(&object, type_);
        let all = words.iter().all(|words| message.contains(words));
        ensure!(status == "False" && told == reason && all, "{type_}: {:#}", object["status"]);
    }
    no_pod_was_made(cluster)
}

/// There is no pod that was made for a Migration.
pub fn no_pod_was_made(cluster: &Cluster) -> Result<()> {
    let targets = cluster.list("pods", "transship.dev/migration")?;
    ensure!(targets.is_empty(), "pods were made for what was refused: {targets:#?}");
    Ok(())
}

/// Undoes something when it is dropped, also after a failure.
pub struct Undo<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Undo<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
