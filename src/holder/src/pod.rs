//! The pod on this node as the holder needs it: sandbox, network namespace, containers and their
//! freezers. Found once through the CRI, then kept in a file, so that a restarted holder can thaw
//! and open everything without asking anybody.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use transship_host::files;
use transship_host::freezer::{CgroupVersion, Freezer, FreezerState};
use transship_host::network::NetNs;
use transship_host::paths::MigrationDir;
use transship_host::record::ContainerKind;
use transship_host::task::HolderTask;
use transship_runtime::container::{Container, start_time};
use transship_runtime::cri::{Cri, State};
use transship_runtime::{Layout, container};

/// Name of the file in the migration's directory.
const FILE: &str = "pod.json";

/// How long one freezer may take to reach its state.
pub const FREEZER_LIMIT: Duration = Duration::from_secs(5);

/// A pod with a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// containerd's id of the sandbox.
    pub sandbox_id: String,
    /// First process of the sandbox.
    pub sandbox_pid: u32,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its devices, without the loopback.
    pub devices: Vec<String>,
    /// The containers that move, in the task's order.
    pub containers: Vec<PodContainer>,
}

/// A container of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodContainer {
    /// Its name in the pod.
    pub name: String,
    /// containerd's id.
    pub id: String,
    /// Its first process.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot.
    pub start_time: u64,
    /// Parent of that process: the shim.
    #[serde(default)]
    pub parent: Option<u32>,
    /// Its bundle, by runc's word. containerd removes it when it forgets the container.
    #[serde(default)]
    pub bundle: Option<PathBuf>,
    /// Its freezer cgroup.
    #[serde(flatten)]
    pub freezer: Freezer,
    /// Its root file system as mounted on the node.
    pub rootfs: PathBuf,
}

impl Pod {
    /// Finds the sandbox of the task's pod; no containers yet.
    pub async fn find_sandbox(cri: &Cri, layout: &Layout, pod_uid: &str) -> Result<Self> {
        Self::of_sandbox(layout, cri.sandbox(pod_uid).await?.id)
    }

    fn of_sandbox(layout: &Layout, sandbox_id: String) -> Result<Self> {
        let pause = Container::find(layout, &sandbox_id)?;
        // From the bundle: the CRI's answer would need the sandbox's shim, which answers nothing
        // while a container's `create` waits in it.
        let netns = pause
            .namespace("network")?
            .context("the pod uses the node's network, which cannot be moved")?;
        let devices = NetNs::at(&netns).devices()?;
        Ok(Pod { sandbox_id, sandbox_pid: pid(pause.pid)?, netns, devices, containers: Vec::new() })
    }

    /// Finds sandbox and running containers of the task's pod. One that has another sandbox than the task's is not found.
    pub async fn find(cri: &Cri, layout: &Layout, task: &HolderTask) -> Result<Self> {
        let sandbox = cri.sandbox(&task.pod.uid).await?;
        if !is_checked(task, &sandbox.id) {
            return Err(AnotherSandbox.into());
        }
        let mut pod = Self::of_sandbox(layout, sandbox.id)?;
        let known = cri.containers(&pod.sandbox_id).await?;
        for wanted in moving(task) {
            let found = known
                .iter()
                .filter(|container| container.name == wanted)
                .max_by_key(|container| container.attempt);
            match found {
                Some(container) if container.state == State::Running => {
                    let found = Container::find(layout, &container.id)?;
                    pod.containers.push(PodContainer::of(layout, wanted, &found)?);
                }
                Some(container) => bail!("container {wanted} is {:?}", container.state),
                None => bail!("container {wanted} has not been made yet"),
            }
        }
        Ok(pod)
    }

    /// Reads what an earlier holder of this migration found.
    pub fn load(dir: &MigrationDir) -> Result<Option<Self>> {
        Ok(files::read_json_opt(&dir.path().join(FILE))?)
    }

    /// Keeps it for later holders, durably: before anything is frozen or closed.
    pub fn save(&self, dir: &MigrationDir) -> Result<()> {
        Ok(files::write_json(&dir.path().join(FILE), self)?)
    }

    /// Its network namespace.
    pub fn network(&self) -> NetNs {
        NetNs::at(&self.netns)
    }

    /// Whether every container's first process is the one that was found.
    pub fn is_alive(&self, layout: &Layout) -> bool {
        !self.containers.is_empty()
            && self.containers.iter().all(|container| container.is_alive(layout))
    }

    /// What the runtime cannot end or start any more, if anything: a container whose first process is gone, or
    /// lives on without its shim or its bundle. All containers of a pod have the same shim. A containerd that
    /// restarts finds its shims again; one that does not answer in time it takes for dead.
    pub fn lost(&self, layout: &Layout) -> Option<String> {
        if self.containers.is_empty() {
            return Some("nothing is restored".to_owned());
        }
        let dead = self.containers.iter().find(|container| !container.is_alive(layout));
        match dead {
            Some(dead) => Some(format!("the first process of container {} is gone", dead.name)),
            None => self.orphaned(layout),
        }
    }

    /// A container that lives on though the runtime has lost it, if there is one.
    pub fn orphaned(&self, layout: &Layout) -> Option<String> {
        self.containers.iter().find_map(|container| container.orphaned(layout))
    }

    /// How the runtime has lost a container before it had done with it, if that has come to pass. `is_held` is whether
    /// the wrapper still refuses to end the sandbox, which keeps its shim.
    pub fn lost_by_runtime(&self, layout: &Layout, is_held: impl Fn() -> bool) -> Option<String> {
        self.containers.iter().find_map(|container| container.lost_by_runtime(layout, &is_held))
    }

    /// Drops all frames at its devices. Those of a sandbox that kubelet takes for dead are gone.
    pub fn close_network(&self, nft: &Path) -> Result<()> {
        let network = self.network();
        if !network.exists() {
            return Ok(());
        }
        let mut left = network.devices()?;
        left.retain(|device| self.devices.contains(device));
        Ok(network.close(nft, &left)?)
    }

    /// Freezes all containers, one right after the other, and waits until each is frozen. Nothing
    /// passes between two of them but through the kernel, so all are at one consistent point.
    pub fn freeze(&self) -> Result<()> {
        freeze_all(self.containers.iter())
    }

    /// Freezes every container whose cgroup still exists.
    pub fn freeze_what_is_left(&self) -> Result<()> {
        freeze_all(self.containers.iter().filter(|container| container.freezer.exists()))
    }

    /// Thaws all containers together. One that is gone is thawed. The limit is one for all: under a
    /// guard the dead-man waits for it.
    pub fn thaw(&self) -> Result<()> {
        let end = Instant::now() + FREEZER_LIMIT;
        for container in &self.containers {
            // Asked for here; whether it came to it is asked below.
            let _ = container.freezer.thaw(Duration::ZERO);
        }
        let outcomes: Vec<_> = self
            .containers
            .iter()
            .map(|container| {
                let left = end.saturating_duration_since(Instant::now());
                (container, container.freezer.thaw(left))
            })
            .collect();
        // Every one is tried before the first failure is told.
        for (container, outcome) in outcomes {
            outcome.with_context(|| format!("container {} does not thaw", container.name))?;
        }
        Ok(())
    }

    /// Kills every task of every container while it is frozen.
    pub fn kill_frozen(&self) -> Result<()> {
        self.containers.iter().try_for_each(PodContainer::kill_frozen)
    }

    /// Kills, while they are frozen, the tasks of every container that the runtime has lost. It will start it
    /// afresh as soon as it may; the lost one must not run beside. Gives how the first of them was lost.
    pub fn kill_orphans(&self, layout: &Layout) -> Result<Option<String>> {
        let mut first = None;
        for container in &self.containers {
            if let Some(orphaned) = container.orphaned(layout) {
                tracing::error!("{orphaned}, so it is ended");
                container.kill_frozen()?;
                first.get_or_insert(orphaned);
            }
        }
        Ok(first)
    }

    /// As [`Pod::verify_frozen`], and that the runtime has not lost it.
    pub fn verify_held(&self, layout: &Layout) -> Result<()> {
        if let Some(lost) = self.lost(layout) {
            bail!(lost);
        }
        self.verify_frozen(layout)
    }

    /// Checks that every container lives and is frozen; one that some other program thawed is
    /// frozen again, and told as not whole, since it may have run.
    pub fn verify_frozen(&self, layout: &Layout) -> Result<()> {
        for container in &self.containers {
            let name = &container.name;
            if !container.is_alive(layout) {
                bail!("the first process of container {name} is gone");
            }
            if container.freezer.state()? != FreezerState::Frozen {
                bail!("container {name} is not frozen");
            }
        }
        Ok(())
    }
}

impl PodContainer {
    /// The container named `name` as the runtime describes it.
    pub fn of(layout: &Layout, name: &str, found: &Container) -> Result<Self> {
        let version = CgroupVersion::try_from(found.cgroup_version).map_err(anyhow::Error::msg)?;
        Ok(PodContainer {
            name: name.to_owned(),
            id: found.id.clone(),
            pid: pid(found.pid)?,
            start_time: found.start_time,
            parent: container::parent(layout, found.pid),
            bundle: Some(found.bundle.clone()),
            freezer: Freezer { dir: found.freezer.clone(), version },
            rootfs: found.rootfs.clone(),
        })
    }

    /// Kills its tasks while they are frozen.
    fn kill_frozen(&self) -> Result<()> {
        self.freezer
            .kill_all_frozen(FREEZER_LIMIT)
            .with_context(|| format!("tasks of container {} do not end", self.name))
    }

    /// Whether its first process is in the hands of a shim.
    pub fn has_shim(&self, layout: &Layout) -> bool {
        self.parent.is_some_and(|parent| container::is_shim(layout, parent))
    }

    /// How the runtime has lost it, if it lives on all the same. Its first process has another parent than when it
    /// was found: its shim is gone. Or its bundle is gone: containerd could not reach the shim and had the container
    /// deleted, which the wrapper has refused.
    fn orphaned(&self, layout: &Layout) -> Option<String> {
        let now = i32::try_from(self.pid).ok().and_then(|pid| container::parent(layout, pid));
        let has_died = self.parent.zip(now).is_some_and(|(shim, parent)| parent != shim);
        let is_forgotten = self.bundle.as_deref().is_some_and(is_gone);
        // Asked last: what ends in an orderly way loses its bundle, too.
        if !(has_died || is_forgotten) || !self.is_alive(layout) {
            return None;
        }
        Some(match has_died {
            true => self.shim_has_died(),
            false => format!("containerd has forgotten container {}", self.name),
        })
    }

    /// As [`PodContainer::orphaned`], also where it has ended since, as one does whose output nobody takes any more.
    /// What ends in an orderly way is not held when its shim ends, and has lost its bundle.
    fn lost_by_runtime(&self, layout: &Layout, is_held: impl Fn() -> bool) -> Option<String> {
        let has_died = |shim: u32| {
            let shim = shim.cast_signed();
            is_gone(&layout.of_process(shim, "stat")) || container::is_zombie(layout, shim)
        };
        // In this order: what still is when the shim has ended was when it ended. The bundle alone would not do: containerd
        // may remove it within milliseconds of the shim's death.
        let is_left = || self.bundle.as_ref().is_some_and(|bundle| bundle.exists());
        let ended = || self.parent.is_some_and(has_died) && (is_held() || is_left());
        self.orphaned(layout).or_else(|| ended().then(|| self.shim_has_died()))
    }

    fn shim_has_died(&self) -> String {
        format!("the shim of container {} has died", self.name)
    }

    /// Whether its first process is the one that was found, and not a zombie.
    pub fn is_alive(&self, layout: &Layout) -> bool {
        i32::try_from(self.pid).is_ok_and(|pid| {
            start_time(layout, pid) == Some(self.start_time) && !container::is_zombie(layout, pid)
        })
    }
}

/// What cannot be looked at is there for all that is known.
fn is_gone(path: &Path) -> bool {
    path.try_exists().is_ok_and(|is_there| !is_there)
}

/// Asks for all first and then waits for each: one that takes its time, or cannot be frozen, must
/// not let the others run on.
fn freeze_all<'a>(containers: impl Iterator<Item = &'a PodContainer> + Clone) -> Result<()> {
    for container in containers.clone() {
        // Whether it came to it is asked below.
        let _ = container.freezer.freeze(Duration::ZERO);
    }
    let outcomes: Vec<_> =
        containers.map(|container| (container, container.freezer.freeze(FREEZER_LIMIT))).collect();
    for (container, outcome) in outcomes {
        outcome.with_context(|| format!("container {} does not freeze", container.name))?;
    }
    Ok(())
}

/// Names of the containers that are dumped and restored, in the task's order.
pub fn moving(task: &HolderTask) -> impl Iterator<Item = &str> {
    task.containers
        .iter()
        .filter(|container| container.kind != ContainerKind::Init)
        .map(|container| container.name.as_str())
}

/// The pod has been restarted, with everything in it.
#[derive(Debug, thiserror::Error)]
#[error("the pod's sandbox, which was checked, has ended, and it has another one")]
pub struct AnotherSandbox;

/// Whether the checks were of this sandbox of the task's pod. An operator of an older version does not say which.
fn is_checked(task: &HolderTask, sandbox: &str) -> bool {
    task.sandbox.as_ref().is_none_or(|checked| checked == sandbox)
}

/// The path of the shared memory of a sandbox, if it has one of its own.
pub fn sandbox_shm(layout: &Layout, sandbox_id: &str) -> Option<PathBuf> {
    let path = layout.sandbox_shm(sandbox_id);
    path.is_dir().then_some(path)
}

/// Program of the real runc: what the installer noted, else the one on PATH.
pub fn runc_program(noted: &Path) -> PathBuf {
    match std::fs::read_to_string(noted) {
        Ok(path) if !path.trim().is_empty() => path.trim().into(),
        _ => "runc".into(),
    }
}

fn pid(pid: i32) -> Result<u32> {
    u32::try_from(pid).ok().filter(|pid| *pid > 0).context("the container has no process")
}

#[cfg(test)]
#[path = "pod_tests.rs"]
pub(crate) mod tests;
