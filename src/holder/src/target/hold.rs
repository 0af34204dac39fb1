//! From the source's connection to the vote: receives, prepares containers as kubelet asks for
//! them, and sees to it that all of them are restored, frozen and known to the CRI. The other way out is
//! [`super::undo`].

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use transship_host::files;
use transship_host::freezer::FreezerState;
use transship_host::markers::{Failed, Restored, Waiting};
use transship_host::network::nft_program;
use transship_host::paths::PodDir;
use transship_host::task::HolderTask;
use transship_protocol::TargetEvent;
use transship_rpc::Stage;
use transship_runtime::Layout;
use transship_runtime::container::{self, Container};
use transship_runtime::cri::{Cri, State};
use transship_transport::{Area, Link, Progress, receive};

use super::apply;
use super::receive::{Arrivals, Receiver, Tree};
use crate::connections;
use crate::dirwatch::DirWatch;
use crate::holder::Holder;
use crate::pod::{Pod, PodContainer, moving};
use crate::signing::Contact;
use crate::{logs, names, started};

/// How often markers are looked at without any event.
const TICK: Duration = Duration::from_millis(100);
/// Pace of questions to the CRI while a container starts.
const CRI_PACE: Duration = Duration::from_millis(10);
/// Directories whose files tell how far the restores are.
const MARKERS: [&str; 4] = ["waiting", "held", "restored", "failed"];

/// Starts receiving and preparing. What comes of it is an event: all restored and frozen, or a
/// failure of this side. `stop` ends it without any.
///
/// A target that cannot reach the API server does not come to its vote: it could not read the decision
/// that it would promise to obey, and after a Commit the source would wait for nothing, frozen. It gives up
/// before long; see [`patience`].
pub fn start(
    holder: Arc<Holder>,
    mut contact: Contact,
    stop: CancellationToken,
    events: mpsc::Sender<TargetEvent>,
) -> Result<()> {
    let (arrivals, listener) = prepared(&holder)?;
    tokio::spawn(async move {
        let both = async {
            let receiving = async {
                match listener {
                    Some(listener) => {
                        let (holder, arrivals) = (Arc::clone(&holder), Arc::clone(&arrivals));
                        receive_all(holder, listener, arrivals, stop.clone()).await
                    }
                    None => Ok(()),
                }
            };
            tokio::try_join!(receiving, restore_all(Arc::clone(&holder), Arc::clone(&arrivals)))
        };
        let all = async {
            let ((), held) = both.await?;
            match patience(&holder.task, held.elapsed()) {
                Some(left) => contact.is_made_within(left).await?,
                None => contact.is_made().await,
            }
            finish(&holder).await
        };
        conclude(&holder, all, &stop, &events).await;
    });
    Ok(())
}

/// How much longer what has been held for so long may wait for its vote: not until a liveness probe, which fails on
/// what is frozen, would have kubelet kill it. A pod that was made again waits for as long as it takes: nobody else
/// runs meanwhile, and its next try would wait for the same.
fn patience(task: &HolderTask, held: Duration) -> Option<Duration> {
    let limit = Duration::from_millis(task.max_frozen_millis);
    (!task.part.is_again()).then(|| limit.saturating_sub(held))
}

/// What arrives, or was kept, and where it is to arrive.
pub(super) fn prepared(holder: &Holder) -> Result<(Arc<Arrivals>, Option<UnixListener>)> {
    if holder.task.part.is_again() {
        return Ok((Arc::new(Arrivals::kept(holder)?), None));
    }
    let run = holder.host.holder(&holder.task.migration.uid, holder.task.role)?;
    Ok((Arc::default(), Some(crate::control::bind(&run.data())?)))
}

/// Does all that comes before the vote, and tells what has come of it, unless it is stopped. A pod that was made
/// again and is not asked for any more will never come so far.
pub(super) async fn conclude(
    holder: &Holder,
    all: impl Future<Output = Result<()>>,
    stop: &CancellationToken,
    events: &mpsc::Sender<TargetEvent>,
) {
    let outcome = tokio::select! {
        outcome = all => outcome,
        () = started::is_abandoned(holder), if holder.task.part.is_again() => {
            Err(anyhow!("its Migration has vanished, and the pod was deleted before it was restored"))
        }
        () = stop.cancelled() => return,
    };
    let event = match outcome {
        Ok(()) => TargetEvent::AllRestoredAndFrozen,
        Err(error) => {
            let (reason, message) = told(&error, holder.dir.path(), &holder.task.peer.node);
            holder.board.failed(&reason, &message);
            TargetEvent::LocalFailure
        }
    };
    let _ = events.send(event).await;
}

/// Everything has arrived, and nothing has run: the last moment for what is beside.
async fn finish(holder: &Arc<Holder>) -> Result<()> {
    let finish = |holder: &Holder| {
        logs::carry_over(holder);
        if let Some(pod) = Pod::load(&holder.dir)? {
            names::take_back(holder, &pod);
        }
        Ok(())
    };
    holder.blocking("logs", finish).await
}

/// A restore failed; the runtime's or CRIU's own words follow.
#[derive(Debug, thiserror::Error)]
#[error("container {container} was not restored: {message}")]
struct RestoreFailed {
    container: String,
    message: String,
}

/// Reason and message of a failure; `dir` is where everything is received. What the peer has said of itself is
/// told under its name.
fn told(error: &anyhow::Error, dir: &Path, peer: &str) -> (String, String) {
    use transship_transport::{Error, tree::TreeError};
    let transport = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    let tree = error.chain().find_map(|cause| cause.downcast_ref::<TreeError>());
    let is_full = |source: &std::io::Error| source.kind() == ErrorKind::StorageFull;
    let full = match (tree, transport) {
        // They are where the pod has them, which may be another disk: kubelet's, or the runtime's.
        (Some(TreeError::Io { source, .. }), _) if is_full(source) => {
            Some("the pod's files".to_owned())
        }
        (_, Some(Error::File { source, .. })) if is_full(source) => Some(dir.display().to_string()),
        _ => None,
    };
    if let Some(what) = full {
        return ("DiskFull".to_owned(), format!("the disk with {what} is full: {error:#}"));
    }
    let reason = match transport {
        Some(Error::Peer { reason, message }) => {
            return (reason.clone(), format!("{peer} failed: {message}"));
        }
        Some(transport) => transport.reason(),
        None if error.is::<RestoreFailed>() => "RestoreFailed",
        None => "TargetFailed",
    };
    (reason.to_owned(), format!("{error:#}"))
}

/// Takes the source's connection and everything that comes over it.
pub(super) async fn receive_all(
    holder: Arc<Holder>,
    listener: UnixListener,
    arrivals: Arc<Arrivals>,
    stop: CancellationToken,
) -> Result<()> {
    let (stream, _) = listener.accept().await.context("the source did not connect")?;
    // One source, one connection.
    drop(listener);
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    holder.board.update(|status| status.stage = status.stage.max(Stage::Connected as i32));
    let link = Link::unix(stream)?;
    let closer = link.closer();
    let _close_at_end = tokio::spawn(async move {
        stop.cancelled().await;
        closer();
    });
    let progress = Arc::new(Progress::default());
    let mut receiver = Receiver { holder: Arc::clone(&holder), arrivals };
    let counted = Arc::clone(&progress);
    holder.blocking("receive", move |_| Ok(receive(link, &mut receiver, &counted)?)).await?;
    holder.board.update(|status| {
        status.stage = status.stage.max(Stage::Sent as i32);
        status.bytes_total = progress.pages() * transship_criu::PAGE_SIZE;
        status.bytes_total = status.bytes_total.max(progress.plain_bytes());
        status.bytes_sent = progress.wire_bytes();
    });
    Ok(())
}

/// Prepares the containers one after the other as kubelet asks for them, until all are restored. Gives since when the
/// first of them has been held.
async fn restore_all(holder: Arc<Holder>, arrivals: Arc<Arrivals>) -> Result<Instant> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    let watch = DirWatch::new()?;
    for marker in MARKERS {
        let path = dir.path().join(marker);
        files::make_dir(&path)?;
        watch.add(&path)?;
    }
    let wanted: Vec<String> = moving(&holder.task).map(str::to_owned).collect();
    let mut prepared: Vec<String> = Vec::new();
    let mut wrappers = Wrappers::default();
    let (mut began, mut held) = (None, None);
    loop {
        wrappers.check(&dir)?;
        check_failures(&dir)?;
        note_waiting(&holder, &dir, &arrivals).await?;
        let (owner, state) = (Arc::clone(&holder), Arc::clone(&arrivals));
        tokio::task::spawn_blocking(move || apply::apply_trees(&owner, &state)).await??;
        for container in apply::preparable(&holder, &arrivals, &prepared) {
            began.get_or_insert_with(Instant::now);
            if let Some(waiting) = arrivals.state().waiting.get(&container) {
                wrappers.add(waiting.pid, &container);
            }
            apply::prepare(&holder, &arrivals, &container)?;
            prepared.push(container);
        }
        let restored = dir.all_marked::<Restored>()?;
        check_restored(&holder.layout, &dir, &restored)?;
        if !restored.is_empty() {
            held.get_or_insert_with(Instant::now);
        }
        holder.board.update(|status| status.restored.clone_from(&restored));
        if wanted.iter().all(|name| restored.contains(name)) {
            break;
        }
        tokio::select! {
            () = watch.changed(TICK) => {}
            () = arrivals.changed.notified() => {}
        }
    }
    let pod = await_running(&holder, &dir, &arrivals).await?;
    pod.save(&holder.dir)?;
    let whole = pod.clone();
    holder.blocking("connections", move |holder| connections::end(holder, &whole)).await?;
    if let Some(began) = began {
        holder.board.took("restore", began.elapsed());
    }
    holder.board.update(|status| status.stage = status.stage.max(Stage::Restored as i32));
    Ok(held.unwrap_or_else(Instant::now))
}

/// A container that could not be restored ends the migration.
fn check_failures(dir: &PodDir) -> Result<()> {
    for container in dir.all_marked::<Failed>()? {
        let Some(failed) = dir.marked::<Failed>(&container)? else { continue };
        tracing::error!(container, message = failed.message, "restore failed\n{}", failed.log);
        let causes = transship_runtime::checkpoint::errors_of_criu(&failed.log);
        let message = match causes {
            Some(causes) => format!("{} ({causes})", failed.message),
            None => failed.message,
        };
        return Err(RestoreFailed { container, message }.into());
    }
    Ok(())
}

/// What is restored is lost when its shim dies while others are still being restored: it does not come back.
fn check_restored(layout: &Layout, dir: &PodDir, restored: &[String]) -> Result<()> {
    for name in restored {
        let Some(marker) = dir.marked::<Restored>(name)? else { continue };
        let pid = i32::try_from(marker.pid).ok();
        // runc has ended before the marker was made, so the process is its shim's.
        let parent = pid.and_then(|pid| container::parent(layout, pid));
        if parent.is_none_or(|parent| !container::is_shim(layout, parent)) {
            let message = "it has ended, or its shim has died, before the pod was whole".to_owned();
            return Err(RestoreFailed { container: name.clone(), message }.into());
        }
    }
    Ok(())
}

/// The runtime's wrappers that were let to restore, by container.
#[derive(Default)]
struct Wrappers(BTreeMap<String, Option<OwnedFd>>);

impl Wrappers {
    fn add(&mut self, pid: u32, container: &str) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // One that is gone already has none.
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        self.0.insert(container.to_owned(), process);
    }

    /// One that has ended without a word was killed. kubelet tries again, but a restore is not done twice.
    fn check(&self, dir: &PodDir) -> Result<()> {
        for (container, process) in &self.0 {
            // It leaves its word before it ends, so this is the order to look in.
            if process.as_ref().is_none_or(has_ended)
                && dir.marked::<Restored>(container)?.is_none()
                && dir.marked::<Failed>(container)?.is_none()
            {
                let why = "the runtime was killed while it restored";
                let message = dir.told_of_failure(container, why);
                return Err(RestoreFailed { container: container.clone(), message }.into());
            }
        }
        Ok(())
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Notes containers whose `create` waits, and the sandbox, which is there by then. kubelet tries
/// again with a new container when one has waited for too long; files that went to the old one's
/// root are lost with it.
pub(super) async fn note_waiting(holder: &Holder, dir: &PodDir, arrivals: &Arrivals) -> Result<()> {
    for container in dir.all_marked::<Waiting>()? {
        let Some(waiting) = dir.marked::<Waiting>(&container)? else { continue };
        if arrivals.state().waiting.get(&container) == Some(&waiting) {
            continue;
        }
        if arrivals.state().sandbox.is_none() {
            let cri = Cri::connect(&holder.layout.containerd_socket).await?;
            let sandbox = Pod::find_sandbox(&cri, &holder.layout, &holder.task.pod.uid).await?;
            // From here on a holder that is started again knows what to close.
            sandbox.save(&holder.dir)?;
            if !sandbox.network().is_closed(&nft_program(&holder.host), &sandbox.devices)? {
                bail!("the pod's network is open: transship-cni was not called for it");
            }
            arrivals.state().sandbox = Some(sandbox);
        }
        let mut state = arrivals.state();
        let tree = state.trees.get(&Area::Rootfs(container.clone()));
        if matches!(tree, Some(Tree::Arriving | Tree::Applied))
            && state.waiting.contains_key(&container)
        {
            bail!("container {container} was made anew while its files were arriving");
        }
        state.waiting.insert(container, waiting);
    }
    let names: Vec<String> = arrivals.state().waiting.keys().cloned().collect();
    holder.board.update(|status| status.waiting = names);
    Ok(())
}

/// Waits until the CRI says that every container runs, with the restored process, and all are
/// frozen.
async fn await_running(holder: &Holder, dir: &PodDir, arrivals: &Arrivals) -> Result<Pod> {
    let sandbox = arrivals.state().sandbox.clone();
    let mut pod = sandbox.context("the pod has no sandbox")?;
    let cri = Cri::connect(&holder.layout.containerd_socket).await?;
    for name in moving(&holder.task) {
        let restored = dir.marked::<Restored>(name)?.context("a marker has vanished")?;
        loop {
            check_failures(dir)?;
            let known = cri.containers(&pod.sandbox_id).await?;
            let state = known.iter().find(|known| known.id == restored.container_id);
            match state.map(|known| known.state) {
                Some(State::Running) => break,
                Some(State::Exited) => bail!("container {name} has ended"),
                // `create` or `start` has not returned to containerd yet.
                _ => tokio::time::sleep(CRI_PACE).await,
            }
        }
        let pid = cri.pid(&restored.container_id).await?;
        if pid.and_then(|pid| u32::try_from(pid).ok()) != Some(restored.pid) {
            bail!("container {name} runs as {pid:?} and was restored as {}", restored.pid);
        }
        let found = Container::find(&holder.layout, &restored.container_id)?;
        let container = PodContainer::of(&holder.layout, name, &found)?;
        // From here on its death is seen by whose child the process is.
        if !container.has_shim(&holder.layout) {
            bail!("the shim of container {name} has died, or is not called {}", container::SHIM);
        }
        if container.freezer.state()? != FreezerState::Frozen {
            bail!("container {name} is not frozen after its restore");
        }
        pod.containers.push(container);
    }
    Ok(pod)
}

#[cfg(test)]
#[path = "hold_tests.rs"]
mod tests;
