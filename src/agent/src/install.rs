//! Keeps the host side in place: the programs under /opt/transship, containerd's configuration
//! that puts the wrapper in runc's place, the entry in the CNI list. Installs, upgrades, repairs,
//! and removes it all when the annotation `transship.dev/uninstall` asks for it.
//!
//! What is written how is `transship_host::install`'s business; this module decides when, restarts
//! containerd, and finds out whether the wrapper is in effect.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use transship_api::conditions::reasons;
use transship_api::node::HostSideState;
use transship_host::HostRoot;
use transship_host::install::{self, Plan};
use transship_host::task::Part;
use transship_runtime::node::default_runtime;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::ended::{awaited, ended_pod};
use crate::hostns::HostNs;
use crate::migrations;
use crate::runtime::Runtime;
use crate::supervisor::Wanted;
use crate::uninstall::{self, Asked};

/// How often everything is looked at.
const LOOK: Duration = Duration::from_secs(15);
/// How long the command that restarts containerd may take, and containerd after it.
const RESTART_LIMIT: Duration = Duration::from_secs(90);
/// Not more often than this is containerd restarted because the wrapper is not in effect.
const RESTART_PAUSE: Duration = Duration::from_secs(600);
/// For commands that only tell something.
const ASK_LIMIT: Duration = Duration::from_secs(15);

/// What is known of the runtime and the host side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSide {
    /// State of what is installed.
    pub state: HostSideState,
    /// Name and version of the runtime, empty while it does not answer.
    pub runtime: (String, String),
    /// Version of runc behind the wrapper.
    pub runc: String,
    /// What keeps the containers' files; empty while the runtime has not told.
    pub snapshotter: String,
    /// Its removal waits for nothing any more: what were started now would do without what has gone.
    pub tearing_down: bool,
    /// Nothing, or reason and message of what is wrong with the runtime or the wrapper.
    pub problem: Option<(&'static str, String)>,
}

impl HostSide {
    /// Whether a side that plays this part may be started. A removal that waits for a migration must not keep it from
    /// its end, for which its pod may have to be made again here.
    pub fn takes(&self, part: Part) -> bool {
        match self.state {
            HostSideState::Removing => part.is_again() && !self.tearing_down,
            HostSideState::Removed => false,
            _ => true,
        }
    }
}

impl Default for HostSide {
    fn default() -> Self {
        Self {
            state: HostSideState::Absent,
            runtime: Default::default(),
            runc: String::new(),
            snapshotter: String::new(),
            tearing_down: false,
            problem: Some((reasons::PENDING, "the runtime was not looked at yet".into())),
        }
    }
}

/// Installs and watches.
pub struct Installer {
    args: Args,
    host: HostRoot,
    hostns: HostNs,
    runtime: Runtime,
    /// The API.
    cluster: Cluster,
    /// What the Node asks for.
    asked: watch::Receiver<Asked>,
    /// Whether a supervisor should run.
    supervise: watch::Sender<Wanted>,
    current: watch::Sender<HostSide>,
    /// Held while a side of a migration is started: see [`crate::grpc::Service`].
    writing: Arc<Mutex<()>>,
    restarted: Option<Instant>,
    /// Whether this agent's programs are in place.
    looked: bool,
    /// What this process had made at its start (sockets, the holders' access to the API server) has gone with the
    /// host side, wholly or in part.
    torn: bool,
    removed: bool,
}

impl Installer {
    /// Nothing is touched before `run`.
    pub fn new(
        args: Args,
        host: HostRoot,
        runtime: Runtime,
        cluster: Cluster,
        asked: watch::Receiver<Asked>,
        supervise: watch::Sender<Wanted>,
        writing: Arc<Mutex<()>>,
    ) -> (Self, watch::Receiver<HostSide>) {
        let (current, side) = watch::channel(HostSide::default());
        let installer = Self {
            hostns: HostNs::new(&args.host_root),
            args,
            host,
            runtime,
            cluster,
            asked,
            supervise,
            current,
            writing,
            restarted: None,
            looked: false,
            torn: false,
            removed: false,
        };
        (installer, side)
    }

    /// Runs until `stop`. What is installed stays.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            if self.torn && *self.asked.borrow() == Asked::Stay {
                tracing::info!("to be installed again: the agent starts afresh");
                stop.cancel();
                return;
            }
            self.round().await;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                changed = self.asked.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    fn publish(&self, change: impl FnOnce(&mut HostSide)) {
        self.current.send_if_modified(|side| {
            let before = side.clone();
            change(side);
            *side != before
        });
    }

    fn supervise(&self, wanted: Wanted) {
        self.supervise.send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
    }

    async fn round(&mut self) {
        let asked = *self.asked.borrow_and_update();
        let version = match self.version().await {
            Ok(version) => version,
            Err(error) => {
                let message = format!(
                    "containerd does not answer at {}: {error:#}; start it, or set agent.containerd.socket",
                    self.args.containerd_socket.display()
                );
                self.publish(|side| {
                    side.problem = Some((reasons::RUNTIME_UNREACHABLE, message));
                });
                return;
            }
        };
        let snapshotter = self.snapshotter().await;
        self.publish(|side| {
            side.runtime = version.clone();
            // What it has told once stays: it is a label, by which pods are placed.
            if let Some(snapshotter) = snapshotter {
                side.snapshotter = snapshotter;
            }
        });
        let result = match asked {
            Asked::Unknown => self.go_on(&version.1).await,
            Asked::Stay => self.keep_installed(&version.1).await,
            Asked::Go => self.keep_removed(&version.1).await,
        };
        let problem = result.err().map(|error| (reason(&error), format!("{error:#}")));
        if let Some((reason, message)) = &problem {
            if self.current.borrow().problem != problem {
                tracing::warn!(reason, message, "the host side is not as it should be");
            }
            // A removal that failed goes on: what is started meanwhile would do without what has gone already.
            if *reason == reasons::INSTALL_FAILED && asked == Asked::Stay {
                self.publish(|side| side.state = HostSideState::Failed);
            }
        }
        self.publish(|side| side.problem = problem);
    }

    async fn version(&self) -> anyhow::Result<(String, String)> {
        let version = self.runtime.cri().await?.version().await?;
        Ok((version.name, version.version))
    }

    async fn snapshotter(&self) -> Option<String> {
        let told = async { self.runtime.cri().await?.snapshotter().await }.await;
        told.inspect_err(|error| tracing::debug!(%error, "the snapshotter is not known"))
            .ok()
            .flatten()
    }

    fn plan(&self, runtime_version: &str) -> Plan {
        Plan {
            host: self.host.clone(),
            payload: self.args.payload.clone(),
            containerd_config: self.args.containerd_config.clone(),
            containerd_major: major(runtime_version),
            cni_conf_dir: self.args.cni_conf_dir.clone(),
            cni_bin_dir: self.args.cni_bin_dir.clone(),
        }
    }

    /// Before the Node was read: a host side that is there works on, so that what is under way is brought to its end
    /// also where the API server is away; nothing is installed that might have to go again.
    async fn go_on(&self, runtime_version: &str) -> anyhow::Result<()> {
        let plan = self.plan(runtime_version);
        if self.args.no_install || on_disk(&plan, install::is_installed).await? {
            self.supervise(Wanted::Running);
        }
        Err(not_asked())
    }

    async fn keep_installed(&mut self, runtime_version: &str) -> anyhow::Result<()> {
        let plan = self.plan(runtime_version);
        // Where sides may be started again a further removal has to look for them again.
        self.publish(|side| side.tearing_down = false);
        // At first always: the programs may be those of another version.
        let complete = self.looked && on_disk(&plan, install::is_installed).await?;
        if !self.args.no_install && !complete {
            uninstall::cancel(&self.host)?;
            self.publish(|side| {
                if side.state != HostSideState::Installed {
                    side.state = HostSideState::Installing;
                }
            });
            let report = on_disk(&plan, install::install).await?;
            if !report.changed.is_empty() {
                tracing::info!(
                    changed = ?report.changed,
                    restart = report.restart_containerd,
                    "the host side was installed"
                );
            }
            if report.restart_containerd {
                self.check_configuration().await?;
                self.spare_ended()?;
                self.restart(&plan).await?;
            }
            if report.cni_conflist.is_none() {
                return Err(problem(
                    reasons::INSTALLING,
                    format!(
                        "{} holds no CNI list yet; install a network plugin, or set agent.cni.confDir",
                        self.args.cni_conf_dir.display()
                    ),
                ));
            }
            self.looked = true;
        }
        self.supervise(Wanted::Running);
        let runc = self.runc_version().await;
        self.publish(|side| side.runc = runc);
        if let Err(error) = self.wrapper_in_effect().await {
            // Configured and not in effect: containerd still runs with what it read before.
            let recently = self.restarted.is_some_and(|then| then.elapsed() < RESTART_PAUSE);
            if self.args.no_install || recently {
                return Err(error);
            }
            self.check_configuration().await?;
            if !is_without_wrapper(&error) {
                self.spare_ended()?;
            }
            self.restart(&plan).await?;
            self.wrapper_in_effect().await?;
        }
        self.publish(|side| side.state = HostSideState::Installed);
        Ok(())
    }

    /// Asks containerd's own parser before it is restarted: a containerd that does not come up
    /// takes the node down with it.
    async fn check_configuration(&self) -> anyhow::Result<()> {
        let config = self.args.containerd_config.to_string_lossy();
        let argv = ["containerd", "--config", &config, "config", "dump"];
        match self.hostns.run(&argv, ASK_LIMIT).await {
            Ok(output) if output.success => Ok(()),
            Ok(output) => bail!(
                "containerd refuses its configuration {config}: {}; repair it, or set agent.containerd.config",
                output.complaint()
            ),
            // Not on PATH (k3s and others carry their own): nobody to ask.
            Err(_) => Ok(()),
        }
    }

    /// Puts a restart off for containers that have ended: the last look before it. One that is to bring the
    /// wrapper back must not wait: they wait for the wrapper.
    fn spare_ended(&self) -> anyhow::Result<()> {
        if let Some(side) = ended_pod(&self.host, &migrations::list(&self.host)?) {
            // Its holder must run for it to be over.
            self.supervise(Wanted::Running);
            return Err(problem(reasons::IN_PROGRESS, awaited(side)));
        }
        Ok(())
    }

    async fn restart(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let command = &self.args.restart_command;
        tracing::info!(command, "restarting containerd");
        self.restarted = Some(Instant::now());
        let output = self.hostns.shell(command, RESTART_LIMIT).await?;
        if !output.success {
            bail!(
                "`{command}` failed: {}; restart containerd by hand, and set agent.containerd.restartCommand",
                output.complaint()
            );
        }
        let answers = async {
            while self.version().await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(RESTART_LIMIT, answers)
            .await
            .context("containerd does not answer after its restart; look at its log")?;
        on_disk(plan, install::restarted).await
    }

    /// Whether containerd's default runtime calls our wrapper.
    async fn wrapper_in_effect(&self) -> anyhow::Result<()> {
        let status = self.runtime.cri().await?.status().await?;
        let wanted = HostRoot::host().bin("transship-runc");
        match default_runtime_binary(&status.config) {
            Some(binary) if binary == wanted => {}
            Some(binary) => {
                let other = if binary.as_os_str().is_empty() {
                    "runc".to_owned()
                } else {
                    binary.display().to_string()
                };
                return Err(problem(
                    reasons::WRAPPER_NOT_ACTIVE,
                    format!(
                        "containerd's default runtime calls {other}, not {}; let {} import conf.d/transship.toml beside it and restart containerd",
                        wanted.display(),
                        self.args.containerd_config.display()
                    ),
                ));
            }
            None => {
                return Err(problem(
                    reasons::WRAPPER_UNKNOWN,
                    "containerd does not tell its runtime configuration; use containerd 1.7 or newer with the runtime io.containerd.runc.v2 as default",
                ));
            }
        }
        if !status.ready {
            return Err(problem(
                reasons::RUNTIME_UNREACHABLE,
                format!("containerd says that it is not ready: {}", status.message),
            ));
        }
        Ok(())
    }

    async fn runc_version(&self) -> String {
        let path = std::fs::read_to_string(self.host.runc_path_file());
        let runc = path.map_or_else(|_| "runc".to_owned(), |path| path.trim().to_owned());
        match self.hostns.run(&[&runc, "--version"], ASK_LIMIT).await {
            Ok(output) if output.success => runc_version(&output.stdout),
            _ => String::new(),
        }
    }

    async fn keep_removed(&mut self, runtime_version: &str) -> anyhow::Result<()> {
        if self.removed {
            return Err(removed());
        }
        self.publish(|side| side.state = HostSideState::Removing);
        // No side of a further migration is started from now on; one that is being started is waited for, and seen.
        let writing = self.writing.lock().await;
        if !self.current.borrow().tearing_down {
            if let Some(awaited) = uninstall::awaited(&self.host, &self.cluster).await? {
                // Its holder must run for it to be over, also on a node that was restarted meanwhile.
                self.supervise(Wanted::Running);
                return Err(problem(
                    reasons::IN_PROGRESS,
                    format!("the host side is removed later: {awaited}"),
                ));
            }
            // Nor is the pod of one made again here.
            self.publish(|side| side.tearing_down = true);
        }
        drop(writing);
        self.supervise(Wanted::Ended);
        if self.args.no_install {
            bail!("the agent was told to leave the host as it is; remove the host side by hand");
        }
        let plan = self.plan(runtime_version);
        let report = on_disk(&plan, install::remove_configuration).await?;
        if report.restart_containerd {
            self.restart(&plan).await?;
        }
        if self.wrapper_in_effect().await.is_ok() {
            bail!("containerd still calls the wrapper; restart it by hand");
        }
        on_disk(&plan, install::link_wrapper_to_runc).await?;
        let used =
            on_disk(&plan, move |plan| install::wrapper_in_use(plan, Path::new("/run/containerd")));
        let used = used.await?;
        self.torn = true;
        uninstall::finish(&self.host, &self.hostns, &used).await?;
        self.removed = true;
        self.looked = false;
        tracing::info!("the host side was removed");
        self.publish(|side| side.state = HostSideState::Removed);
        Err(removed())
    }
}

/// Reason of an error.
fn reason(error: &anyhow::Error) -> &'static str {
    error.downcast_ref::<Problem>().map_or(reasons::INSTALL_FAILED, |problem| problem.reason)
}

/// Whether an error says that the wrapper is not in effect; most say only that nobody knows.
fn is_without_wrapper(error: &anyhow::Error) -> bool {
    reason(error) == reasons::WRAPPER_NOT_ACTIVE
}

/// A problem whose reason is known; any other error counts as a failed installation.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Problem {
    reason: &'static str,
    message: String,
}

fn problem(reason: &'static str, message: impl Into<String>) -> anyhow::Error {
    Problem { reason, message: message.into() }.into()
}

fn not_asked() -> anyhow::Error {
    problem(
        reasons::PENDING,
        "what this Node object asks for is not known yet; until then nothing is installed or removed on the host",
    )
}

fn removed() -> anyhow::Error {
    problem(
        reasons::UNINSTALLED,
        "the host side was removed; take the annotation transship.dev/uninstall off to install it again",
    )
}

/// Work with fsync, off the threads that serve others.
async fn on_disk<T: Send + 'static>(
    plan: &Plan,
    work: impl FnOnce(&Plan) -> transship_host::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let plan = plan.clone();
    tokio::task::spawn_blocking(move || work(&plan))
        .await?
        .map_err(|error| anyhow::anyhow!("{}", error.chain()))
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

/// `runc version 1.3.6`.
fn runc_version(text: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix("runc version "))
        .map(|version| version.trim().chars().take(64).collect())
        .unwrap_or_default()
}

/// The binary of the default runtime in containerd's effective CRI configuration; empty when none
/// is set, that is runc.
fn default_runtime_binary(config: &Value) -> Option<PathBuf> {
    let options = default_runtime(config)?.get("options");
    let named = |name: &str| options.and_then(|options| options.get(name));
    let binary = ["BinaryName", "binary_name"].into_iter().find_map(named);
    Some(binary.and_then(Value::as_str).map(PathBuf::from).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wrapper_that_is_known_to_be_out_of_effect_is_brought_back_at_once() {
        let cases = [
            (problem(reasons::WRAPPER_NOT_ACTIVE, "it calls runc"), true),
            (problem(reasons::WRAPPER_NOT_ACTIVE, "it calls runc").context("at its start"), true),
            (problem(reasons::WRAPPER_UNKNOWN, "it does not tell"), false),
            (problem(reasons::RUNTIME_UNREACHABLE, "it is not ready"), false),
            (anyhow::anyhow!("no answer"), false),
        ];
        for (error, known) in cases {
            assert_eq!(is_without_wrapper(&error), known, "{error:#}");
        }
    }

    #[test]
    fn a_removal_that_waits_for_a_migration_lets_its_pod_be_made_again() {
        use HostSideState::{Absent, Installed, Removed, Removing};
        for (state, tearing_down, part, taken) in [
            (Installed, false, Part::Overlap, true),
            (Absent, false, Part::Trial, true),
            (Removing, false, Part::Overlap, false),
            (Removing, false, Part::Trial, false),
            (Removing, false, Part::Again, true),
            (Removing, false, Part::ColdAgainAtSource, true),
            (Removing, true, Part::Again, false),
            (Removed, true, Part::Again, false),
        ] {
            let side = HostSide { state, tearing_down, ..HostSide::default() };
            assert_eq!(side.takes(part), taken, "{state:?} {tearing_down} {part:?}");
        }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(major("2.1.9"), 2);
        assert_eq!(major("1.7.24"), 1);
        assert_eq!(major(""), 0);
        assert_eq!(runc_version("runc version 1.3.6\ncommit: x\nspec: 1.2.1\n"), "1.3.6");
        assert_eq!(runc_version("crun version 1\n"), "");
    }

    #[test]
    fn the_binary_of_the_default_runtime_is_found() {
        let config = |options: Value| {
            serde_json::json!({"containerd": {"defaultRuntimeName": "runc", "runtimes": {
                "other": {"options": {"BinaryName": "/x"}}, "runc": {"options": options}}}})
        };
        let wrapper = serde_json::json!({"BinaryName": "/opt/transship/bin/transship-runc"});
        assert_eq!(
            default_runtime_binary(&config(wrapper)),
            Some("/opt/transship/bin/transship-runc".into())
        );
        assert_eq!(default_runtime_binary(&config(serde_json::json!({}))), Some(PathBuf::new()));
        assert_eq!(default_runtime_binary(&config(Value::Null)), Some(PathBuf::new()));
        assert_eq!(default_runtime_binary(&Value::Null), None);
    }
}
