//! From the source's connection to the vote: receives, prepares containers as kubelet asks for
//! them, and sees to it that all of them are restored, frozen and known to the CRI. And the other
//! way out: ending restores and killing whatever they have left, by cgroup.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use transship_host::bundle::Bundle;
use transship_host::freezer::{Freezer, FreezerState};
use transship_host::markers::{Failed, Held, Restored, Waiting};
use transship_host::network::nft_program;
use transship_host::paths::PodDir;
use transship_host::{files, quiesce, unfinished};
use transship_protocol::{TargetEvent, Verb};
use transship_rpc::Stage;
use transship_runtime::container::Container;
use transship_runtime::cri::{Cri, State};
use transship_transport::{Area, Link, Progress, receive};

use super::apply;
use super::receive::{Arrivals, Receiver, Tree};
use crate::connections;
use crate::dirwatch::DirWatch;
use crate::holder::Holder;
use crate::pod::{FREEZER_LIMIT, Pod, PodContainer, moving};
use crate::signing::Contact;
use crate::{logs, names};

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
/// that it would promise to obey, and after a Commit the source would wait for nothing, frozen.
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
            both.await?;
            contact.is_made().await;
            finish(&holder).await
        };
        conclude(&holder, all, &stop, &events).await;
    });
    Ok(())
}

/// What arrives, or was kept, and where it is to arrive.
pub(super) fn prepared(holder: &Holder) -> Result<(Arc<Arrivals>, Option<UnixListener>)> {
    if holder.task.part.is_again() {
        return Ok((Arc::new(Arrivals::kept(holder)?), None));
    }
    let run = holder.host.holder(&holder.task.migration.uid, holder.task.role)?;
    Ok((Arc::default(), Some(crate::control::bind(&run.data())?)))
}

/// Does all that comes before the vote, and tells what has come of it, unless it is stopped.
pub(super) async fn conclude(
    holder: &Holder,
    all: impl Future<Output = Result<()>>,
    stop: &CancellationToken,
    events: &mpsc::Sender<TargetEvent>,
) {
    let outcome = tokio::select! {
        outcome = all => outcome,
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
    use transship_transport::Error;
    let transport = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    let reason = match transport {
        Some(Error::File { source, .. }) if source.kind() == ErrorKind::StorageFull => {
            let message = format!("the disk with {} is full: {error:#}", dir.display());
            return ("DiskFull".to_owned(), message);
        }
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

/// Prepares the containers one after the other as kubelet asks for them, until all are restored.
async fn restore_all(holder: Arc<Holder>, arrivals: Arc<Arrivals>) -> Result<()> {
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
    let mut began = None;
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
    let held = pod.clone();
    holder.blocking("connections", move |holder| connections::end(holder, &held)).await?;
    if let Some(began) = began {
        holder.board.took("restore", began.elapsed());
    }
    holder.board.update(|status| status.stage = status.stage.max(Stage::Restored as i32));
    Ok(())
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
        if container.freezer.state()? != FreezerState::Frozen {
            bail!("container {name} is not frozen after its restore");
        }
        pod.containers.push(container);
    }
    Ok(pod)
}

/// Kills restores that are under way, with everything they have started: nothing of them may
/// come to life after the containers' cgroups were emptied.
pub fn end_restores(holder: &Holder) -> Result<()> {
    for work in quiesce::at_work(&holder.host, &holder.task.pod.uid)? {
        if work.verb == Verb::Create && !work.bundle.sandbox {
            // Its own end first looked up, since CRIU may have left the cgroup by then; the tasks
            // are killed while frozen, as CRIU's death alone would let them run.
            let programs = descendants(work.pid);
            if let Ok(freezer) = work.bundle.freezer()
                && let Err(error) = freezer.kill_all_frozen(FREEZER_LIMIT)
            {
                tracing::warn!("{}", error.chain());
            }
            for pid in programs.into_iter().chain([work.pid]) {
                kill(pid);
            }
        }
    }
    Ok(())
}

/// Everything below a process, deepest last.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let mut queue = vec![pid];
    while let Some(pid) = queue.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            for child in children.unwrap_or_default().split_ascii_whitespace() {
                if let Ok(child) = child.parse()
                    && !found.contains(&child)
                {
                    found.push(child);
                    queue.push(child);
                }
            }
        }
    }
    found
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Gone is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Kills every task that a restore of this pod can have made, while it is frozen, and removes what a killed
/// restore has left besides.
pub fn kill_frozen(holder: &Holder) -> Result<()> {
    for freezer in freezers(holder)? {
        freezer.kill_all_frozen(FREEZER_LIMIT)?;
    }
    // Containers that start afresh are containerd's from the beginning.
    if holder.task.part.is_cold() {
        return Ok(());
    }
    remove_unfinished(holder)
}

/// A container that may have run before it was held, of those that have been restored in this pod.
pub fn may_have_run(holder: &Holder) -> Result<Option<String>> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    for name in moving(&holder.task) {
        if dir.may_have_run(name)? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// What the runtime's wrapper would have removed, had it not been killed. A container that was restored is
/// containerd's, which has it deleted.
fn remove_unfinished(holder: &Holder) -> Result<()> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    for name in moving(&holder.task) {
        if dir.marked::<Restored>(name)?.is_none()
            && let Some(waiting) = dir.marked::<Waiting>(name)?
            && let Some(state_dir) = waiting.state_dir()
        {
            unfinished::remove(&state_dir)?;
        }
    }
    Ok(())
}

/// The freezers of the pod's containers, from every trace that they may have left.
fn freezers(holder: &Holder) -> Result<Vec<Freezer>> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    let mut found: Vec<Freezer> = Vec::new();
    let mut add = |freezer: Freezer| {
        if !found.contains(&freezer) {
            found.push(freezer);
        }
    };
    for name in moving(&holder.task) {
        if let Some(restored) = dir.marked::<Restored>(name)? {
            add(restored.freezer);
        }
        if let Some(held) = dir.marked::<Held>(name)? {
            add(held.freezer);
        }
        if let Some(waiting) = dir.marked::<Waiting>(name)?
            && let Some(freezer) = waiting.freezer.or_else(|| of_bundle(&waiting.bundle))
        {
            add(freezer);
        }
    }
    if let Some(pod) = Pod::load(&holder.dir)? {
        pod.containers.into_iter().for_each(|container| add(container.freezer));
    }
    Ok(found)
}

/// As wrappers told it that did not name the freezer.
fn of_bundle(bundle: &Path) -> Option<Freezer> {
    Bundle::read(bundle).ok()?.freezer().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A target's, with the directory of its migration below `root`.
    fn holder(root: &Path) -> Holder {
        let (host, task) = (transship_host::HostRoot::at(root), crate::areas::tests::task());
        let migration = host.migration(&task.migration.uid, task.role).unwrap();
        std::fs::create_dir_all(migration.path()).unwrap();
        Holder::new(host, transship_runtime::Layout::default(), migration, task)
    }

    #[test]
    fn everything_that_a_process_has_started_is_found_and_killed() {
        let mut parent = Command::new("sh")
            .args(["-c", "sh -c 'sleep 1000; :' & echo started; read -r _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 8];
        std::io::Read::read_exact(parent.stdout.as_mut().unwrap(), &mut line).unwrap();
        // Open to the end, so that only a kill ends the reader.
        let _read_from = parent.stdin.take();
        let deadline = Instant::now() + Duration::from_secs(10);
        let all = loop {
            let all = descendants(parent.id());
            if all.len() >= 2 || Instant::now() > deadline {
                break all;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(all.len(), 2, "shell and sleep");
        for pid in all.iter().copied().chain([parent.id()]) {
            kill(pid);
        }
        assert!(!parent.wait().unwrap().success());
    }

    #[test]
    fn a_wrapper_that_is_killed_without_a_word_has_failed() {
        let root = tempfile::tempdir().unwrap();
        let dir = transship_host::HostRoot::at(root.path()).pod("p").unwrap();
        let mut wrapper = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut wrappers = Wrappers::default();
        wrappers.add(wrapper.id(), "web");
        wrappers.check(&dir).unwrap();
        wrapper.kill().unwrap();
        wrapper.wait().unwrap();
        let error = wrappers.check(&dir).unwrap_err();
        assert_eq!(told(&error, Path::new("/dir"), "node-a").0, "RestoreFailed");
        dir.mark("web", &Failed { message: "no".into(), log: String::new() }).unwrap();
        wrappers.check(&dir).unwrap();
        wrappers.add(wrapper.id(), "gone-before");
        assert!(wrappers.check(&dir).is_err());
    }

    #[test]
    fn a_container_that_was_let_go_before_it_was_held_is_found() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let dir = holder.host.pod(&holder.task.pod.uid).unwrap();
        assert_eq!(may_have_run(&holder).unwrap(), None);
        dir.mark("web", &transship_host::markers::Unheld { pid: 1 }).unwrap();
        assert_eq!(may_have_run(&holder).unwrap().as_deref(), Some("web"));
        let mut wrappers = Wrappers::default();
        wrappers.0.insert("web".into(), None);
        let error = wrappers.check(&dir).unwrap_err().to_string();
        assert!(error.contains("was killed while") && error.contains("may have run"), "{error}");
    }

    #[test]
    fn what_a_killed_restore_has_left_goes_with_its_tasks_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let runc_root = root.path().join("runc");
        for id in ["killed", "restored", "foreign"] {
            std::fs::create_dir_all(runc_root.join(id)).unwrap();
            std::fs::write(runc_root.join(id).join("state.json"), "{}").unwrap();
        }
        let pod = holder.host.pod(&holder.task.pod.uid).unwrap();
        for (container, id) in [("web", "killed"), ("aux", "restored")] {
            let waiting = Waiting {
                container_id: id.into(),
                bundle: "/nonexistent".into(),
                rootfs: "/nonexistent/rootfs".into(),
                runc_root: runc_root.clone(),
                pid: 1,
                freezer: None,
            };
            pod.mark(container, &waiting).unwrap();
        }
        let restored = Restored {
            container_id: "restored".into(),
            pid: 1,
            freezer: Freezer {
                dir: "/nonexistent".into(),
                version: transship_host::freezer::CgroupVersion::V1,
            },
            runc_root: runc_root.clone(),
            bundle: "/nonexistent".into(),
        };
        pod.mark("aux", &restored).unwrap();
        kill_frozen(&holder).unwrap();
        kill_frozen(&holder).unwrap();
        assert_eq!(files::list(&runc_root).unwrap(), ["foreign", "restored"]);
    }

    #[test]
    fn a_failure_is_called_by_its_cause() {
        use transship_transport::Error;
        let dir = Path::new("/var/lib/transship/migrations/m");
        let told = |error: anyhow::Error| told(&error, dir, "node-a");
        let failed = RestoreFailed { container: "web".into(), message: "no".into() };
        assert_eq!(told(failed.into()).0, "RestoreFailed");
        assert_eq!(told(Error::Closed.into()).0, "ConnectionLost");
        let peer = Error::Peer { reason: "DumpFailed".into(), message: "no".into() };
        assert_eq!(told(peer.into()), ("DumpFailed".into(), "node-a failed: no".into()));
        assert_eq!(told(anyhow::anyhow!("x")).0, "TargetFailed");
        let file =
            |kind: ErrorKind| Error::File { what: "pages-1.img".into(), source: kind.into() };
        assert_eq!(told(file(ErrorKind::PermissionDenied).into()).0, "StorageFailed");
        let (reason, message) = told(file(ErrorKind::StorageFull).into());
        assert_eq!(reason, "DiskFull");
        assert!(message.contains("migrations/m is full: pages-1.img"), "{message}");
    }

    #[test]
    fn a_marker_of_a_failed_restore_is_told_with_crius_words() {
        let root = tempfile::tempdir().unwrap();
        let dir = transship_host::HostRoot::at(root.path()).pod("p").unwrap();
        check_failures(&dir).unwrap();
        let log = "(00.1) Error (criu/x.c:1): Can't restore this\n".to_owned();
        dir.mark("web", &Failed { message: "runc exited with 1".into(), log }).unwrap();
        let error = check_failures(&dir).unwrap_err().to_string();
        assert_eq!(
            error,
            "container web was not restored: runc exited with 1 (Can't restore this)"
        );
    }

    #[test]
    fn a_restore_is_found_by_its_freezer_though_its_bundle_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let pod = holder.host.pod(&holder.task.pod.uid).unwrap();
        let version = transship_host::freezer::CgroupVersion::V1;
        let freezer = Freezer { dir: root.path().join("cgroup"), version };
        let mut waiting = Waiting {
            container_id: "c-1".into(),
            bundle: "/nonexistent".into(),
            rootfs: "/nonexistent/rootfs".into(),
            runc_root: root.path().join("runc"),
            pid: 1,
            freezer: None,
        };
        pod.mark("web", &waiting).unwrap();
        assert_eq!(freezers(&holder).unwrap(), []);
        waiting.freezer = Some(freezer.clone());
        pod.mark("web", &waiting).unwrap();
        assert_eq!(freezers(&holder).unwrap(), [freezer]);
    }
}
