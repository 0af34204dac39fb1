//! Reports this node: makes its `Node` object, writes its status, says that it is alive.
//!
//! The status is applied by server-side apply under the agents' field manager, and only when it
//! says something new; the heartbeat is a small patch of its own. What the operator owns (the
//! condition Fenced, failure count, health) is left alone.

pub mod cpu;
pub mod criu;
pub mod usage;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transship_api::conditions::{
    self, ConditionStatus, FENCED, NODE_AGENT_TYPES, READY, STATE_KEPT, reasons, set_condition,
};
use transship_api::node::{
    ActiveMigration, Agent, Amounts, Cpu, Criu, HostSideState, NodeSpec, NodeStatus,
    Runtime as ApiRuntime,
};
use transship_api::{Node, names};
use transship_core::facts::NodeFacts;
use transship_host::{HostRoot, files};

use crate::args::Args;
use crate::certs::Current;
use crate::cluster::Cluster;
use crate::events::Events;
use crate::hostns::HostNs;
use crate::identity::Identity;
use crate::install::HostSide;
use crate::kept;
use crate::migrations;
use crate::supervisor;
use crate::telemetry::{Kind, Telemetry};
use crate::uninstall::{self, Asked};

/// How often CRIU is asked again.
const PROBE_AGAIN: Duration = Duration::from_secs(1800);
/// How often capacity and usage are looked at.
const COUNT_AGAIN: Duration = Duration::from_secs(30);
/// How often holders' last words are looked at.
const WORDS_LOOK: Duration = Duration::from_millis(100);
/// How long one request to the API server may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Field manager of the one condition that this agent writes once and never again.
const FIRST_MANAGER: &str = "transship-agent-first";

/// What does not change while the kernel runs.
#[derive(Debug, Clone)]
struct Machine {
    kernel: String,
    cpu: Cpu,
    boot_id: String,
    cgroup_version: u8,
}

impl Machine {
    fn look(host: &HostRoot) -> Self {
        // Through the host's own mounts, as holders read it.
        let read = |path: &str| std::fs::read_to_string(host.join(path)).unwrap_or_default();
        // Version 2 has its control files at the root; hybrid hosts use version 1 for containers.
        let unified = host.join("/sys/fs/cgroup/cgroup.controllers").exists();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu::parse(&read("/proc/cpuinfo")),
            boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            cgroup_version: if unified { 2 } else { 1 },
        }
    }
}

/// What holders have said. The other side, and the operator, may wait for a final word: it is
/// published at once, not with the next heartbeat.
#[derive(Default)]
struct Words {
    said: Vec<ActiveMigration>,
    changed: Option<std::time::SystemTime>,
}

impl Words {
    /// Whether something else is to be published than was.
    fn are_news(&mut self, host: &HostRoot) -> bool {
        let names = files::list(&host.migrations()).unwrap_or_default();
        let changed = |name: &String| {
            let dir = host.migrations().join(name);
            let at = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
            at(&dir.join("status.json")).max(at(&dir))
        };
        // Cheap, and enough to know that nothing happened.
        let changed = names.iter().filter_map(changed).max();
        if changed == self.changed && names.len() == self.said.len() {
            return false;
        }
        self.changed = changed;
        let now = migrations::list(host).unwrap_or_default();
        now.len() != self.said.len()
            || now.iter().zip(&self.said).any(|(side, said)| side.published() != *said)
    }
}

/// Reports.
pub struct Reporter {
    /// What the agent was told.
    pub args: Args,
    /// Who this is.
    pub identity: Arc<Identity>,
    /// The API.
    pub cluster: Cluster,
    /// The host.
    pub host: HostRoot,
    /// Commands on the host.
    pub hostns: HostNs,
    /// What is installed.
    pub side: watch::Receiver<HostSide>,
    /// Why no supervisor runs, if none does.
    pub supervisor: watch::Receiver<supervisor::State>,
    /// TLS in force.
    pub tls: Current,
    /// What the Node asks for.
    pub asked: watch::Sender<Asked>,
    /// For inspections.
    pub facts: watch::Sender<NodeFacts>,
    /// Counters.
    pub telemetry: Arc<Telemetry>,
    /// Events.
    pub events: Events,
}

/// What a status is made of, besides the live object.
struct Found<'a> {
    machine: &'a Machine,
    criu: Option<&'a criu::Probe>,
    side: &'a HostSide,
    supervisor: &'a supervisor::State,
    certified: bool,
    amounts: &'a (Amounts, Amounts),
    sides: &'a [migrations::Side],
}

impl Reporter {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let machine = Machine::look(&self.host);
        let mut beat = tokio::time::interval(Duration::from_secs(self.args.heartbeat_seconds));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut probe: Option<(tokio::time::Instant, criu::Probe)> = None;
        let mut amounts: Option<(tokio::time::Instant, (Amounts, Amounts))> = None;
        let mut quick = tokio::time::interval(WORDS_LOOK);
        quick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut words = Words::default();
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                // Sooner when something changed that others wait for.
                changed = self.side.changed() => {
                    if changed.is_err() { return }
                    probe = None;
                }
                changed = self.supervisor.changed() => if changed.is_err() { return },
                _ = quick.tick() => if !words.are_news(&self.host) { continue },
                () = stop.cancelled() => return,
            }
            self.telemetry.round();
            let side = self.side.borrow_and_update().clone();
            if side.state == HostSideState::Installed
                && probe.as_ref().is_none_or(|(then, _)| then.elapsed() > PROBE_AGAIN)
            {
                let found = criu::probe(&self.hostns).await;
                probe = Some((tokio::time::Instant::now(), found));
            }
            if amounts.as_ref().is_none_or(|(then, _)| then.elapsed() > COUNT_AGAIN)
                && let Ok(Some(counted)) = tokio::time::timeout(REQUEST_LIMIT, self.count()).await
            {
                amounts = Some((tokio::time::Instant::now(), counted));
            }
            let sides = match migrations::list(&self.host) {
                Ok(sides) => sides,
                Err(error) => {
                    // Publishing an empty list would mean that nothing goes on.
                    tracing::warn!(error = error.chain(), "migrations cannot be read");
                    continue;
                }
            };
            words.said = sides.iter().map(migrations::Side::published).collect();
            let open = sides.iter().filter(|side| !side.closed).count();
            self.telemetry.active.set(i64::try_from(open).unwrap_or(i64::MAX));
            let supervisor = self.supervisor.borrow_and_update().clone();
            let found = Found {
                machine: &machine,
                criu: probe.as_ref().map(|(_, probe)| probe),
                side: &side,
                supervisor: &supervisor,
                certified: self.tls.borrow().is_some(),
                amounts: &amounts.as_ref().map(|(_, amounts)| amounts.clone()).unwrap_or_default(),
                sides: &sides,
            };
            self.facts.send_replace(self.node_facts(&found));
            let reported = tokio::time::timeout(REQUEST_LIMIT, self.report(&found)).await;
            let reported = reported.map_err(anyhow::Error::from).and_then(|result| result);
            let kind = if reported.is_ok() { "ok" } else { "error" };
            self.telemetry.heartbeats.get_or_create(&Kind { kind }).inc();
            match reported {
                Ok(()) => self.telemetry.reported(),
                Err(error) => {
                    // The next heartbeat compares with what is stored and says it again.
                    tracing::warn!(error = format!("{error:#}"), "the node could not be reported");
                }
            }
        }
    }

    async fn count(&self) -> Option<(Amounts, Amounts)> {
        let node = self.cluster.core_node(&self.identity.node).await.ok()??;
        let pods = self.cluster.pods().await?;
        Some((usage::capacity(&node), usage::usage(pods.iter().map(Arc::as_ref))))
    }

    fn node_facts(&self, found: &Found<'_>) -> NodeFacts {
        // Perhaps a disk of its own.
        let free = rustix::fs::statvfs(self.host.state());
        NodeFacts {
            name: self.identity.node.clone(),
            kernel: found.machine.kernel.clone(),
            arch: cpu::architecture().to_owned(),
            cpu_vendor: found.machine.cpu.vendor.clone(),
            cpu_features: found.machine.cpu.features.clone(),
            criu_version: found.criu.map(|criu| criu.version.clone()).unwrap_or_default(),
            runc_version: found.side.runc.clone(),
            cgroup_version: found.machine.cgroup_version,
            free_bytes: free.map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize)),
            // Looked at when somebody asks.
            ..NodeFacts::default()
        }
    }

    /// Heartbeat, and the status where it differs from what is stored.
    async fn report(&self, found: &Found<'_>) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.cluster.client.clone());
        let name = &self.identity.node;
        let now = Timestamp::now();
        let beat = json!({"status": {"heartbeatTime": MicroTime(now)}});
        let params =
            PatchParams { field_manager: Some(names::AGENT_MANAGER.into()), ..Default::default() };
        let node = match nodes.patch_status(name, &params, &Patch::Merge(&beat)).await {
            Ok(node) => node,
            Err(kube::Error::Api(status)) if status.is_not_found() => self.create(&nodes).await?,
            Err(error) => return Err(error).context("the heartbeat was not taken"),
        };
        match self.asked(&node).await {
            Ok(asked) => {
                self.asked.send_if_modified(|now| std::mem::replace(now, asked) != asked);
            }
            // What was known before stands.
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "nobody can tell which installation asks for the removal of the host side"
            ),
        }
        let live = node.status.clone().unwrap_or_default();
        let wanted = self.status(found, &live, node.metadata.generation, now);
        if differs(&wanted, &live)? {
            let applied = json!({
                "apiVersion": "transship.dev/v1alpha1",
                "kind": "Node",
                "metadata": {"name": name},
                "status": wanted,
            });
            let params = PatchParams::apply(names::AGENT_MANAGER).force();
            nodes
                .patch_status(name, &params, &Patch::Apply(&applied))
                .await
                .context("the status was not taken")?;
        }
        if conditions::find(&live.conditions, FENCED).is_none() {
            self.first_fenced(&nodes, now).await?;
        }
        // The summary repeats the others and names what has no condition of its own.
        if let Some(ready) = conditions::find(&wanted.conditions, READY) {
            let well = ready.status == ConditionStatus::True.as_str();
            self.events.tell(&node, READY, well, &ready.reason, &ready.message).await;
        }
        if let Some(kept) = conditions::find(&wanted.conditions, STATE_KEPT) {
            let well = kept.status == ConditionStatus::False.as_str();
            self.events.tell(&node, STATE_KEPT, well, &kept.reason, &kept.message).await;
        }
        Ok(())
    }

    async fn asked(&self, node: &Node) -> anyhow::Result<Asked> {
        let installation = match node.annotations().contains_key(names::UNINSTALL_BY) {
            true => self.cluster.installation(&self.args.namespace).await?,
            false => None,
        };
        Ok(uninstall::asked(node, installation.as_deref()))
    }

    async fn create(&self, nodes: &Api<Node>) -> anyhow::Result<Node> {
        let node = Node::new(&self.identity.node, NodeSpec::default());
        let params = PostParams {
            field_manager: Some(names::AGENT_MANAGER.into()),
            ..PostParams::default()
        };
        match nodes.create(&params, &node).await {
            Ok(node) => {
                tracing::info!(node = self.identity.node, "the Node object was made");
                Ok(node)
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                Ok(nodes.get(&self.identity.node).await?)
            }
            Err(error) => Err(error).context("the Node object could not be made"),
        }
    }

    /// Every known condition is there from the first visit on; this one then belongs to the
    /// operator, so it is written once, under another manager.
    async fn first_fenced(&self, nodes: &Api<Node>, now: Timestamp) -> anyhow::Result<()> {
        let mut first = Vec::new();
        let message = "nothing suggests that the node must be fenced";
        let status = ConditionStatus::False;
        set_condition(&mut first, FENCED, status, reasons::NOT_FENCED, message, None, now);
        let applied = json!({
            "apiVersion": "transship.dev/v1alpha1",
            "kind": "Node",
            "metadata": {"name": self.identity.node},
            "status": {"conditions": first},
        });
        let params = PatchParams::apply(FIRST_MANAGER);
        match nodes.patch_status(&self.identity.node, &params, &Patch::Apply(&applied)).await {
            // The operator was first.
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
            other => other.map(|_| ()).context("the condition Fenced was not taken"),
        }
    }

    fn status(
        &self,
        found: &Found<'_>,
        live: &NodeStatus,
        generation: Option<i64>,
        now: Timestamp,
    ) -> NodeStatus {
        let conditions = judge(found, &live.conditions, generation, now);
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let version = |state| match state {
            HostSideState::Installed => env!("CARGO_PKG_VERSION").to_owned(),
            _ => String::new(),
        };
        let mut status = NodeStatus {
            observed_generation: generation,
            conditions,
            criu: found.criu.map(|criu| Criu {
                version: criu.version.clone(),
                features: criu.features.clone(),
                path: HostRoot::host().bin("criu").display().to_string(),
                // The pod's devices are closed before a dump; CRIU need not lock anything.
                network_lock: "skip".into(),
                page_tracking: criu.page_tracking().into(),
            }),
            kernel: some(&found.machine.kernel),
            cpu: Some(found.machine.cpu.clone()),
            arch: Some(cpu::architecture().to_owned()),
            runtime: Some(ApiRuntime {
                name: found.side.runtime.0.clone(),
                version: found.side.runtime.1.clone(),
                runc: found.side.runc.clone(),
                snapshotter: found.side.snapshotter.clone(),
                cgroup_version: Some(i32::from(found.machine.cgroup_version)),
            }),
            boot_id: some(&found.machine.boot_id),
            capacity: Some(found.amounts.0.clone()),
            usage: Some(found.amounts.1.clone()),
            agent: Some(Agent {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                address: self.identity.control.to_string(),
                data_address: self.identity.data.to_string(),
                host_side_version: version(found.side.state),
                host_side_state: found.side.state,
            }),
            ..NodeStatus::default()
        };
        // Those that are over stay until they are forgotten: the other side may have to read how
        // they ended. Open ones first, should there be more than a status holds.
        let mut sides: Vec<_> = found.sides.iter().collect();
        sides.sort_by_key(|side| side.closed);
        status.set_active(sides.iter().take(128).map(|side| side.published()).collect());
        status
    }
}

/// The conditions that belong to the agent, with the transition times of the live ones.
fn judge(
    found: &Found<'_>,
    live: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    use ConditionStatus::{False, True, Unknown};
    let mut conditions: Vec<Condition> = live
        .iter()
        .filter(|condition| NODE_AGENT_TYPES.contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    let mut set = |type_: &str, status, reason: &str, message: &str| {
        set_condition(&mut conditions, type_, status, reason, message, generation, now);
    };
    let mut missing: Vec<String> = Vec::new();
    let criu = match found.criu {
        None => {
            (Unknown, reasons::PENDING, "CRIU is looked at when the host side is installed".into())
        }
        Some(criu::Probe { problem: Some((reason, message)), .. }) => {
            (False, *reason, message.clone())
        }
        Some(criu) => {
            (True, reasons::AVAILABLE, format!("CRIU {} can dump and restore here", criu.version))
        }
    };
    if criu.0 != True {
        missing.push(criu.2.clone());
    }
    set(conditions::CRIU_READY, criu.0, criu.1, &criu.2);
    let runtime = match &found.side.problem {
        Some((reason, message)) if *reason == reasons::PENDING => {
            (Unknown, *reason, message.clone())
        }
        Some((reason, message)) => (False, *reason, message.clone()),
        None if found.side.state != HostSideState::Installed => {
            (False, reasons::INSTALLING, "the host side is being installed".to_owned())
        }
        None => {
            let (name, version) = &found.side.runtime;
            (True, reasons::AVAILABLE, format!("{name} {version} calls runc through the wrapper"))
        }
    };
    if runtime.0 != True {
        missing.push(runtime.2.clone());
    }
    set(conditions::RUNTIME_READY, runtime.0, runtime.1, &runtime.2);
    set(conditions::STORE_REACHABLE, Unknown, reasons::NO_STORE, "no store is configured");
    match kept::told(found.sides) {
        Some(message) => set(STATE_KEPT, True, reasons::MIGRATION_VANISHED, &message),
        None => set(STATE_KEPT, False, reasons::NOTHING_KEPT, ""),
    }
    if found.side.state == HostSideState::Installed
        && let Some(problem) = found.supervisor
    {
        missing.push(format!("the supervisor of holders does not run on the host: {problem}"));
    }
    if !found.certified {
        missing.push("the operator has issued no certificate yet".into());
    }
    let problem = found.side.problem.as_ref().map(|(reason, _)| *reason);
    let reason = match (problem, found.side.state) {
        (Some(reason @ (reasons::UNINSTALLED | reasons::INSTALL_FAILED)), _) => reason,
        (Some(reasons::INSTALLING | reasons::PENDING), _) => reasons::INSTALLING,
        (None, HostSideState::Installing | HostSideState::Absent) => reasons::INSTALLING,
        _ => reasons::COMPONENT_NOT_READY,
    };
    if reason == reasons::UNINSTALLED {
        set(READY, False, reason, &runtime.2);
    } else if missing.is_empty() {
        set(READY, True, reasons::AVAILABLE, "pods can be moved from and to this node");
    } else {
        set(READY, False, reason, &missing.join("; "));
    }
    conditions
}

/// Whether what the agent wants to say is not what is stored. Fields of others are not looked at.
fn differs(wanted: &NodeStatus, live: &NodeStatus) -> serde_json::Result<bool> {
    let wanted = serde_json::to_value(wanted)?;
    let live = serde_json::to_value(live)?;
    Ok(!contains(&live, &wanted))
}

/// Whether `live` says everything that `wanted` says. Lists are compared whole, but for
/// conditions, among which are those of others.
fn contains(live: &Value, wanted: &Value) -> bool {
    let (Value::Object(live), Value::Object(wanted)) = (live, wanted) else {
        return live == wanted;
    };
    let same = wanted.iter().all(|(key, wanted)| match (key.as_str(), live.get(key)) {
        (_, None) => wanted.as_array().is_some_and(Vec::is_empty) || wanted.is_null(),
        ("conditions", Some(Value::Array(live))) => {
            wanted.as_array().is_some_and(|wanted| wanted.iter().all(|c| live.contains(c)))
        }
        (_, Some(live)) => contains(live, wanted),
    });
    // What the agent once said and no longer says.
    let withdrawn = ["activeMigrations", "criu"]
        .iter()
        .any(|key| live.contains_key(*key) && !wanted.contains_key(*key));
    same && !withdrawn
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
