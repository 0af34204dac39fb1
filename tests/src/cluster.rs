//! The sandbox cluster as the tests see it: kubectl, the nodes' shells, and conditions to await.
//!
//! `cargo xtask test` brings the sandbox up and says in the environment where its parts are; a
//! test does not start or configure the cluster.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::node::process::Victim;

/// How long a move may take.
const MOVE: Duration = Duration::from_secs(120);
/// The pause between two looks is as long as the first of them took, within these: looking takes from the machine
/// what is waited for.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// The cluster and the namespace to work in. Dropping it deletes a namespace made for a test.
pub struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    xtask: PathBuf,
    /// Namespace in which `kubectl` works.
    pub namespace: String,
    temporary: bool,
}

impl Cluster {
    /// The cluster of a kubeconfig; `xtask` is the program whose `sandbox` commands reach the nodes.
    pub fn new(kubectl: &Path, kubeconfig: &Path, xtask: &Path, namespace: &str) -> Cluster {
        Cluster {
            kubectl: kubectl.into(),
            kubeconfig: kubeconfig.into(),
            xtask: xtask.into(),
            namespace: namespace.into(),
            temporary: false,
        }
    }

    /// The running sandbox, in a namespace that there may be or not.
    pub fn running(namespace: &str) -> Result<Cluster> {
        Ok(Cluster::new(
            &path_in("TRANSSHIP_KUBECTL")?,
            &path_in("KUBECONFIG")?,
            &path_in("TRANSSHIP_XTASK")?,
            namespace,
        ))
    }

    /// A fresh namespace in the running sandbox.
    pub fn with_namespace(name: &str) -> Result<Cluster> {
        let mut cluster = Cluster::running(&format!("test-{name}"))?;
        cluster.temporary = true;
        cluster.delete_namespace()?;
        cluster.kubectl(&["create", "namespace", &cluster.namespace])?;
        cluster.await_that(
            "the default service account exists",
            Duration::from_secs(30),
            || Ok(cluster.try_kubectl(&["get", "serviceaccount", "default"])?.status.success()),
        )?;
        Ok(cluster)
    }

    /// The same namespace, for another thread; dropping it deletes nothing.
    pub fn view(&self) -> Cluster {
        Cluster::new(&self.kubectl, &self.kubeconfig, &self.xtask, &self.namespace)
    }

    fn delete_namespace(&self) -> Result<()> {
        self.kubectl(&[
            "delete",
            "namespace",
            &self.namespace,
            "--ignore-not-found",
            "--timeout=120s",
        ])?;
        Ok(())
    }

    /// Deletes the namespace and waits for what others would meet on the nodes. That the rest takes its time
    /// concerns nobody: it has a name of its own.
    fn vacate(&self) -> Result<()> {
        self.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"])?;
        let gone = ["wait", "--for=delete", "pods,migrations", "--all", "--timeout=120s"];
        let waited = self.try_kubectl(&gone)?;
        let none = String::from_utf8_lossy(&waited.stderr).contains("no matching resources");
        // What cannot be waited for so goes with the whole.
        if waited.status.success() || none { Ok(()) } else { self.delete_namespace() }
    }

    /// kubectl with arguments, not started.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(["--namespace", &self.namespace]);
        command.args(args);
        command
    }

    /// Runs kubectl and returns what it did, success or not.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<Output> {
        self.kubectl_command(args).stdin(Stdio::null()).output().context("running kubectl")
    }

    /// Runs kubectl; an error is its stderr. Returns its stdout.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        succeed(self.try_kubectl(args)?, args)
    }

    /// Starts kubectl in the background, its stdout piped.
    pub fn spawn_kubectl(&self, args: &[&str]) -> Result<Child> {
        Ok(self
            .kubectl_command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?)
    }

    /// `kubectl apply` of a manifest given as text. Returns what kubectl said, success or not.
    pub fn try_apply(&self, manifest: &str) -> Result<Output> {
        self.told(&["apply", "-f", "-"], manifest)
    }

    /// The same, and nothing is stored.
    pub fn try_dry_apply(&self, manifest: &str) -> Result<Output> {
        self.told(&["apply", "--dry-run=server", "-f", "-"], manifest)
    }

    /// Runs kubectl with a manifest on its standard input.
    fn told(&self, args: &[&str], manifest: &str) -> Result<Output> {
        use std::io::Write;
        let mut child = self
            .kubectl_command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no stdin")?.write_all(manifest.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// `kubectl apply` of a manifest given as text.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        succeed(self.try_apply(manifest)?, &["apply"])
    }

    /// `kubectl get … -o json`, or null when there is no such object.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"])?;
        if text.trim().is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }

    /// The items of a list, or of several one after another: to ask for them at once takes less from the machine.
    pub fn list(&self, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let text = self.kubectl(&["get", kind, "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The one live pod with a label.
    pub fn pod(&self, selector: &str) -> Result<Pod> {
        let mut live: Vec<Value> = self.list("pods", selector)?;
        live.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        match live.as_slice() {
            [pod] => Ok(Pod::of(pod)),
            pods => bail!("{} live pods with {selector}, expected one", pods.len()),
        }
    }

    /// Waits until the Deployment is rolled out.
    pub fn rolled_out(&self, deployment: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=90s"])?;
        Ok(())
    }

    /// Runs a command in a node and returns its stdout.
    pub fn on_node(&self, node: &str, command: &[&str]) -> Result<String> {
        let output = self.try_on_node(node, command)?;
        succeed(output, command)
    }

    /// Runs a command in a node.
    pub fn try_on_node(&self, node: &str, command: &[&str]) -> Result<Output> {
        Ok(self.on_node_command(node, command).stdin(Stdio::null()).output()?)
    }

    /// kill -9, in a node, of a process that takes part in this namespace's migration.
    pub fn kill(&self, node: &str, victim: Victim) -> Result<()> {
        let probe = ["transship-probe", "kill", &self.namespace, victim.as_str()];
        self.on_node(node, &probe).map(drop)
    }

    /// A command in a node, not started.
    pub fn on_node_command(&self, node: &str, command: &[&str]) -> Command {
        let mut run = Command::new(&self.xtask);
        // Cargo's word about the package under test would mislead the task about its checkout.
        run.env_remove("CARGO_MANIFEST_DIR");
        run.args(["sandbox", "exec", node, "--"]).args(command);
        run
    }

    /// Runs `cargo xtask sandbox …`.
    pub fn sandbox(&self, args: &[&str]) -> Result<String> {
        let output =
            Command::new(&self.xtask).arg("sandbox").args(args).stdin(Stdio::null()).output()?;
        succeed(output, args)
    }

    /// Awaits a condition; the error says which and, if it failed, how.
    pub fn await_that(
        &self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let [shortest, longest] = PAUSES;
        let end = Instant::now() + patience;
        loop {
            let begun = Instant::now();
            let last = holds();
            let took = begun.elapsed();
            if matches!(last, Ok(true)) {
                return Ok(());
            }
            if Instant::now() >= end {
                return match last {
                    Err(error) => Err(error).context(format!("waited {patience:?} until {what}")),
                    _ => bail!("waited {patience:?} in vain until {what}"),
                };
            }
            std::thread::sleep(took.clamp(shortest, longest));
        }
    }

    /// Applies a Migration of `pod` to `target` and returns its name.
    pub fn migrate(&self, pod: &str, target: &str) -> Result<String> {
        self.migrate_in("Auto", pod, target)
    }

    /// The same in a mode.
    pub fn migrate_in(&self, mode: &str, pod: &str, target: &str) -> Result<String> {
        let name = format!("{pod}-to-{target}");
        self.kubectl(&["delete", "migration", &name, "--ignore-not-found", "--timeout=60s"])?;
        self.apply(&migration_in(mode, &name, pod, target))?;
        Ok(name)
    }

    /// Moves the one live pod with a label to the other node, and gives it as it is there, with all its addresses.
    pub fn moved(&self, selector: &str, before: &Pod) -> Result<Pod> {
        let migration = self.migrate(&before.name, before.other_node())?;
        self.succeeded(&migration, MOVE)?;
        let after = self.pod(selector)?;
        ensure!(
            after.node == before.other_node() && after.ips == before.ips,
            "{before:?} → {after:?}"
        );
        Ok(after)
    }

    /// Awaits a Migration's success; a failure shows its whole status and events.
    pub fn succeeded(&self, migration: &str, patience: Duration) -> Result<Value> {
        self.ended(migration, patience)?;
        let object = self.get("migration", migration)?;
        if condition(&object, "Succeeded").0 != "True" {
            let events =
                self.kubectl(&["get", "events", "--sort-by=.metadata.creationTimestamp"])?;
            bail!("{migration} did not succeed:\n{:#}\n{events}", object["status"]);
        }
        Ok(object)
    }

    /// Awaits a Migration's end, whichever.
    pub fn ended(&self, migration: &str, patience: Duration) -> Result<()> {
        self.await_that(&format!("migration {migration} has ended"), patience, || {
            let (status, _, _) = condition(&self.get("migration", migration)?, "Succeeded");
            Ok(status == "True" || status == "False")
        })
        .with_context(|| self.story(migration))
    }

    /// What a reader of a failure wants to know of a Migration; what tells most comes last.
    fn story(&self, migration: &str) -> String {
        let said =
            |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| format!("{error:#}\n"));
        let logs = ["agent", "operator"].map(|part| {
            let selector = format!("--selector=app.kubernetes.io/component={part}");
            said(&["--namespace=transship-system", "logs", "--prefix", "--tail=6", &selector])
        });
        let object = self.get("migration", migration).unwrap_or_default();
        format!(
            "{}{}{:#}\n{}",
            logs.concat(),
            said(&["get", "events", "--sort-by=.metadata.creationTimestamp"]),
            object["status"],
            said(&["get", "pods", "-o", "wide"]),
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A failed test leaves its objects for a look; the next run removes them.
        if self.temporary && !std::thread::panicking() {
            let _ = self.vacate();
        }
    }
}

/// The path that `cargo xtask test` says in this variable of the environment.
pub fn path_in(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.with_context(|| format!("{variable} is not set; run these tests with `cargo xtask test`"))
}

/// `kubectl transship`, not started.
pub fn plugin() -> Result<Command> {
    Ok(Command::new(path_in("TRANSSHIP_PLUGIN")?))
}

/// A Migration manifest.
pub fn migration(name: &str, pod: &str, target: &str) -> String {
    migration_in("Auto", name, pod, target)
}

/// A Migration manifest in a mode.
pub fn migration_in(mode: &str, name: &str, pod: &str, target: &str) -> String {
    format!(
        "apiVersion: transship.dev/v1alpha1\nkind: Migration\nmetadata: {{name: {name}}}\n\
         spec: {{podName: {pod}, targetNode: {target}, mode: {mode}}}\n"
    )
}

/// What a test needs to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub ip: String,
    /// All its addresses, the first one included.
    pub ips: Vec<String>,
}

impl Pod {
    /// From its JSON.
    pub fn of(pod: &Value) -> Pod {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
        Pod {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            node: text(&pod["spec"]["nodeName"]),
            ip: text(&pod["status"]["podIP"]),
            ips: ips.map(|ip| text(&ip["ip"])).collect(),
        }
    }

    /// The other one of the two nodes.
    pub fn other_node(&self) -> &'static str {
        if self.node == "node-a" { "node-b" } else { "node-a" }
    }
}

/// Those objects of a list that are of a kind.
pub fn of_kind<'a>(all: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    all.iter().filter(move |object| object["kind"] == kind)
}

/// Status, reason and message of a condition; empty where it is not set.
pub fn condition(object: &Value, type_: &str) -> (String, String, String) {
    let found = object["status"]["conditions"]
        .as_array()
        .and_then(|conditions| conditions.iter().find(|condition| condition["type"] == type_));
    let text = |key: &str| {
        found.and_then(|condition| condition[key].as_str()).unwrap_or_default().to_owned()
    };
    (text("status"), text("reason"), text("message"))
}

fn succeed(output: Output, args: &[&str]) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{args:?} failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
