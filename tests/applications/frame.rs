//! What all applications have in common: how they are deployed, loaded, moved and judged.
//!
//! Each session is one connection that lives through all moves and makes one acknowledged write
//! after another. The session says what the application answered to the n-th; at the end the
//! application itself says how much it has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::{Cluster, Pod, condition};

const IMAGE: &str = "localhost/transship-applications:1";
/// The longest that a migration may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Writes of each session before the first move, and after each.
const WRITES: u64 = 50;

/// One application.
pub struct Application {
    /// Name of its Deployment and value of its label `app`.
    pub name: &'static str,
    /// How its container starts, for `sh`; a last `exec` makes the application the first process.
    pub script: &'static str,
    /// Port that says that it is ready, if it has one.
    pub port: Option<u16>,
    /// Files that it finds in `/code`.
    pub files: &'static [(&'static str, &'static str)],
    /// What its container needs beside that: merged into it, lists appended.
    pub container: Value,
    /// The same of the pod's spec.
    pub pod: Value,
    /// Without which it cannot be moved.
    pub setting: Option<Setting>,
    /// Connections that write at the same time and live through all moves. Where there are none a session is
    /// opened before the first move and after each, and ends before the next.
    pub sessions: usize,
    /// What must be there before the first session: tables, queues.
    pub prepare: fn(&World, &Pod) -> Result<()>,
    /// Opens a session.
    pub open: fn(&World, &Pod, usize) -> Result<Box<dyn Session>>,
    /// Compares what the application has with the writes it acknowledged, by session.
    pub verify: fn(&World, &Pod, &[u64]) -> Result<()>,
}

/// What keeps an application from what cannot be moved.
pub struct Setting {
    /// The check that refuses the pod without it.
    pub check: &'static str,
    /// What its remedy names.
    pub remedy: &'static str,
    /// What the container needs.
    container: Value,
    /// What the pod's spec needs.
    pod: Value,
    /// What the container has in place of it.
    without: Value,
}

impl Setting {
    /// The runtime's seccomp profile.
    pub fn without_io_uring() -> Setting {
        Setting {
            check: "IoUring",
            remedy: "seccompProfile type RuntimeDefault",
            container: Value::Null,
            pod: json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
            without: Value::Null,
        }
    }

    /// The switch of the Go runtime. What the packages have was built with it off; without it, it is as
    /// programs are that are built of modules of Go 1.24 and newer.
    pub fn without_mptcp() -> Setting {
        let switch = |value: &str| json!({"env": [{"name": "GODEBUG", "value": value}]});
        Setting {
            check: "Mptcp",
            remedy: "GODEBUG=multipathtcp=0",
            container: switch("multipathtcp=0"),
            pod: Value::Null,
            without: switch("multipathtcp=2"),
        }
    }
}

/// One connection of a client.
pub trait Session: Send {
    /// Makes the n-th write, n from 1, and returns when it is acknowledged. An answer that does not
    /// follow from the writes before is an error.
    fn write(&mut self, n: u64) -> Result<()>;
}

/// Nothing to prepare.
pub fn nothing(_: &World, _: &Pod) -> Result<()> {
    Ok(())
}

/// Where the applications run. Dropping it removes them.
pub struct World {
    /// The cluster, in the applications' namespace.
    pub cluster: Cluster,
}

impl World {
    /// Deploys all applications, and a pod for client programs. Returns before they run.
    pub fn deploy(applications: &[Arc<Application>]) -> Result<World> {
        let cluster = Cluster::with_namespace("applications")?;
        let mut items = vec![client_pod()];
        for application in applications {
            items.push(files(application));
            items.push(deployment(application, application.name, true));
        }
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        Ok(World { cluster })
    }

    /// The pod with client programs, once it runs.
    pub fn client(&self) -> Result<&'static str> {
        self.cluster.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=120s"])?;
        Ok("client")
    }
}

fn client_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsUser": 65532, "runAsGroup": 65532},
            "containers": [{
                "name": "client", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "infinity"],
            }],
        }
    })
}

fn files(application: &Application) -> Value {
    let data: serde_json::Map<String, Value> =
        application.files.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": application.name},
        "data": data,
    })
}

/// With the setting that it needs, if it needs one, or without.
fn deployment(application: &Application, name: &str, is_set: bool) -> Value {
    let mut container = json!({
        "name": application.name, "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-ec", application.script],
        "workingDir": "/tmp",
        "env": [{"name": "HOME", "value": "/tmp"}],
        "volumeMounts": [{"name": "code", "mountPath": "/code"}],
    });
    if let Some(port) = application.port {
        let probe = json!({"tcpSocket": {"port": port}, "periodSeconds": 2});
        merge(&mut container, &json!({"readinessProbe": probe}));
    }
    merge(&mut container, &application.container);
    if let Some(setting) = &application.setting {
        merge(&mut container, if is_set { &setting.container } else { &setting.without });
    }
    let mut spec = json!({
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsUser": 65532, "runAsGroup": 65532},
        "containers": [container],
        "volumes": [{"name": "code", "configMap": {"name": application.name}}],
    });
    merge(&mut spec, &application.pod);
    if let Some(setting) = application.setting.as_ref().filter(|_| is_set) {
        merge(&mut spec, &setting.pod);
    }
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        }
    })
}

/// Objects key by key, lists one behind the other.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(more)) => into.extend(more.iter().cloned()),
        (_, Value::Null) => {}
        (into, more) => *into = more.clone(),
    }
}

/// The load: a thread for each session.
struct Load {
    stop: Arc<AtomicBool>,
    written: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(world: &World, application: &Application, pod: &Pod) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Load { stop, written: vec![], threads: vec![] };
        for client in 0..application.sessions {
            let mut session = (application.open)(world, pod, client)
                .with_context(|| format!("opening session {client}"))?;
            let (stop, count) = (load.stop.clone(), Arc::new(AtomicU64::new(0)));
            load.written.push(count.clone());
            load.threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let n = count.load(Ordering::Relaxed) + 1;
                    session.write(n).with_context(|| format!("session {client}, write {n}"))?;
                    count.store(n, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            }));
        }
        Ok(load)
    }

    fn counts(&self) -> Vec<u64> {
        self.written.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every session has made more writes; says why one does not.
    fn goes_on(&mut self, world: &World, application: &Application, pod: &Pod) -> Result<()> {
        if application.sessions == 0 {
            let mut session = (application.open)(world, pod, 0)?;
            return (1..=WRITES).try_for_each(|n| session.write(n));
        }
        let before = self.counts();
        let threads = &self.threads;
        let went_on =
            world.cluster.await_that("every session goes on", Duration::from_secs(60), || {
                let now = self.counts();
                Ok(threads.iter().any(JoinHandle::is_finished)
                    || now.iter().zip(&before).all(|(now, before)| *now >= before + WRITES))
            });
        if self.threads.iter().any(JoinHandle::is_finished) {
            self.end()?;
            bail!("a session ended by itself");
        }
        went_on.with_context(|| format!("writes by session: {before:?}, then {:?}", self.counts()))
    }

    /// Ends all sessions after the write under way.
    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = vec![];
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(format!("{error:#}")),
                Err(_) => failures.push("a session's thread panicked".into()),
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }
}

/// The pod of a Deployment, once it is Ready.
fn started(cluster: &Cluster, name: &str) -> Result<Pod> {
    let selector = format!("app={name}");
    cluster
        .kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=300s"])
        .with_context(|| {
            cluster.kubectl(&["logs", "-l", &selector, "--tail=30"]).unwrap_or_default()
        })?;
    cluster.pod(&selector)
}

/// Started without its setting, an application is refused by a check that names the setting, and nothing else
/// speaks against its move: when it is asked for, and when it is meant. The pod is left alone.
pub fn is_refused_without(
    world: &World,
    application: &Application,
    setting: &Setting,
) -> Result<()> {
    let cluster = &world.cluster;
    let name = format!("{}-unset", application.name);
    cluster.apply(&deployment(application, &name, false).to_string())?;
    let pod = started(cluster, &name)?;
    let before = cluster.get("pod", &pod.name)?;
    let has_it = |violation: &Value| {
        let remedy = violation["remedy"].as_str().unwrap_or_default();
        violation["check"] == setting.check && remedy.contains(setting.remedy)
    };
    for dry_run in [true, false] {
        let migration = format!("{name}-{}", if dry_run { "asked" } else { "meant" });
        let manifest = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Migration",
            "metadata": {"name": migration},
            "spec": {"podName": pod.name, "targetNode": pod.other_node(), "dryRun": dry_run}});
        cluster.apply(&manifest.to_string())?;
        cluster.ended(&migration, PATIENCE)?;
        let object = cluster.get("migration", &migration)?;
        let (status, reason, message) = condition(&object, "Succeeded");
        ensure!(status == "False" && reason == "PreflightFailed", "{reason}: {message}");
        let status = &object["status"];
        let found = status["violations"].as_array().context("nothing was found")?;
        ensure!(!found.is_empty() && found.iter().all(has_it), "{status:#}");
        ensure!(status["frozenAt"].is_null() && status["target"]["podUID"].is_null(), "{status:#}");
    }
    let after = cluster.get("pod", &pod.name)?;
    ensure!(Pod::of(&after) == pod, "{pod:?} became {after:#}");
    ensure!(after["metadata"]["annotations"]["transship.dev/claim"].is_null(), "{after:#}");
    let container = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        [status["containerID"].clone(), status["restartCount"].clone(), status["state"].clone()]
    };
    ensure!(container(&after) == container(&before), "{before:#} became {after:#}");
    // The others need the machine.
    cluster.kubectl(&["delete", "deployment", &name, "--wait=false"]).map(drop)
}

/// The whole test of one application.
pub fn moves_to_and_fro(world: &World, application: &Application) -> Result<()> {
    let cluster = &world.cluster;
    let name = application.name;
    let selector = format!("app={name}");
    let mut pod = started(cluster, name)?;
    (application.prepare)(world, &pod)?;
    let mut load = Load::start(world, application, &pod)?;
    load.goes_on(world, application, &pod).context("before the first move")?;
    for round in ["there", "back"] {
        let migration = cluster.migrate(&pod.name, pod.other_node())?;
        let object = cluster.succeeded(&migration, PATIENCE)?;
        let after = cluster.pod(&selector)?;
        ensure!(after.node == pod.other_node(), "still on {}", after.node);
        ensure!(after.ip == pod.ip, "the address changed from {} to {}", pod.ip, after.ip);
        eprintln!(
            "{name} {round}: stood still for {}, {} bytes",
            object["status"]["downtime"].as_str().unwrap_or("?"),
            object["status"]["bytesTotal"]
        );
        load.goes_on(world, application, &after)
            .with_context(|| format!("after the move {round}"))?;
        pod = after;
    }
    load.end()?;
    let counts = load.counts();
    (application.verify)(world, &pod, &counts)?;
    let status = cluster.get("pod", &pod.name)?["status"]["containerStatuses"][0].clone();
    ensure!(status["restartCount"] == 0, "the container was restarted: {status:#}");
    // The others need the machine.
    cluster.kubectl(&["delete", "deployment", name, "--wait=false"])?;
    eprintln!(
        "{name}: {} acknowledged writes on {} connections",
        counts.iter().sum::<u64>(),
        counts.len()
    );
    Ok(())
}
