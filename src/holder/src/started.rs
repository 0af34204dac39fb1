//! Containers that start afresh with files: putting the files into a root (for the runtime's wrapper), and
//! seeing to it that every container was started with them. And whether a pod is still asked for at all.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use transship_host::HostRoot;
use transship_host::markers::Filled;
use transship_host::paths::{MigrationDir, PodDir, Role};
use transship_protocol::PodSeen;
use transship_runtime::cri::Cri;
use transship_transport::tree::{Kinds, apply_spool};

use crate::decision::{Reader, Seen};
use crate::holder::Holder;
use crate::logs;
use crate::pod::moving;
use crate::source::files;

/// How often it is looked whether a container was started.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is asked whether the pod is still to be started at all.
const ASK: Duration = Duration::from_secs(2);

/// Puts the files of a container of the migration in `dir` into its root. On a node that it has come to, its
/// log begins with what it has printed before.
pub fn fill(host: &HostRoot, dir: &MigrationDir, container: &str, root: &Path) -> Result<ExitCode> {
    let tree = dir.rootfs_tree(container)?;
    let task = dir.read_task()?.context("the migration has no task")?;
    if task.role == Role::Source && files::lost(dir).iter().any(|lost| lost == container) {
        return Ok(ExitCode::SUCCESS);
    }
    apply_spool(&tree, root, Kinds::All)
        .with_context(|| format!("{} cannot be applied to {}", tree.display(), root.display()))?;
    if task.role == Role::Target
        && let Err(error) = logs::carry_one(host, dir, &task.pod, container)
    {
        tracing::warn!(container, "its log begins with the move: {error:#}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets every container of the pod be started once with its files, those of which are lost without.
pub fn grant(holder: &Holder) -> Result<()> {
    let pod = holder.host.pod(&holder.task.pod.uid)?;
    for container in moving(&holder.task) {
        pod.grant_ticket(container)?;
    }
    Ok(())
}

/// Says `started` as soon as every container was started with its files, or `gone` when kubelet has removed
/// the pod before that.
pub fn watch<E: Send + 'static>(holder: Arc<Holder>, events: mpsc::Sender<E>, started: E, gone: E) {
    tokio::spawn(async move {
        let (mut reader, mut asked) = (holder.reader(), Instant::now());
        loop {
            match look(&holder).await {
                Ok(true) => return drop(events.send(started).await),
                Ok(false) if is_removed(&holder) => return drop(events.send(gone).await),
                Ok(false) => {}
                Err(error) => tracing::warn!("whether all are started is not known: {error:#}"),
            }
            if asked.elapsed() >= ASK {
                asked = Instant::now();
                match has_gone(&holder, &mut reader).await {
                    Ok(true) => return drop(events.send(gone).await),
                    Ok(false) => {}
                    Err(error) => tracing::warn!("whether the pod is gone is not known: {error:#}"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = events.closed() => return,
            }
        }
    });
}

/// Returns when nobody asks for the pod any more: its Migration has vanished, and it is gone. While there is one, that
/// says what becomes of the pod's state.
pub async fn is_abandoned(holder: &Holder) {
    let mut reader = holder.reader();
    loop {
        tokio::time::sleep(ASK).await;
        let abandoned = async {
            anyhow::Ok(reader.read().await? == Seen::Gone && has_gone(holder, &mut reader).await?)
        };
        match abandoned.await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!("whether the pod is still asked for: {error:#}"),
        }
    }
}

/// kubelet removes a pod's directory when nothing of the pod is left to be done.
fn is_removed(holder: &Holder) -> bool {
    let task = &holder.task;
    let pods = task.kubelet_root.join("pods");
    pods.is_dir() && matches!(pods.join(&task.pod.uid).try_exists(), Ok(false))
}

/// Nothing of it runs and its object is gone. Its directory may stay for other reasons, a volume that cannot be
/// taken off.
async fn has_gone(holder: &Holder, reader: &mut Reader) -> Result<bool> {
    let pod = &holder.task.pod;
    let cri = Cri::connect(&holder.layout.containerd_socket).await?;
    let runs = !cri.sandboxes(&pod.uid).await?.is_empty();
    Ok(!runs && reader.pod(&pod.name, &pod.uid).await? == PodSeen::Gone)
}

/// Takes the tickets of those that were started; whether none is left.
async fn look(holder: &Holder) -> Result<bool> {
    let pod = holder.host.pod(&holder.task.pod.uid)?;
    let left = waiting(holder, &pod)?;
    if left.is_empty() {
        return Ok(true);
    }
    let cri = Cri::connect(&holder.layout.containerd_socket).await?;
    let mut all = true;
    for container in left {
        let filled = pod.marked::<Filled>(&container)?;
        let was_started = match &filled {
            // One that containerd does not know any more is followed by another.
            Some(filled) => cri.was_started(&filled.container_id).await.unwrap_or(false),
            None => false,
        };
        if was_started {
            pod.consume_ticket(&container)?;
            tracing::info!(container, "started with its files");
        }
        all &= was_started;
    }
    Ok(all)
}

/// Containers that were not seen started yet.
fn waiting(holder: &Holder, pod: &PodDir) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for container in moving(&holder.task) {
        if pod.has_ticket(container)? {
            left.push(container.to_owned());
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use transship_runtime::Layout;
    use transship_transport::tree::capture_dir;

    use super::*;
    use crate::areas::tests::task;

    fn holder(root: &Path) -> Arc<Holder> {
        let (host, mut task) = (HostRoot::at(root), task());
        task.kubelet_root = root.join("kubelet");
        let dir = host.migration(&task.migration.uid, Role::Target).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        Arc::new(Holder::new(host, Layout::default(), dir, task))
    }

    #[test]
    fn captured_files_come_into_a_root_and_what_was_printed_into_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let holder = holder(dir.path());
        holder.dir.write_task(&holder.task).unwrap();
        let (from, root) = (dir.path().join("from"), dir.path().join("root"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(from.join("data"), "kept").unwrap();
        assert!(fill(&holder.host, &holder.dir, "web", &root).is_err(), "nothing has arrived");
        let tree = holder.dir.rootfs_tree("web").unwrap();
        std::fs::create_dir_all(tree.parent().unwrap()).unwrap();
        capture_dir(&from, &mut std::fs::File::create(&tree).unwrap()).unwrap();
        fill(&holder.host, &holder.dir, "web", &root).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("data")).unwrap(), "kept");

        let pod = &holder.task.pod;
        let logs = format!("/var/log/pods/{}_{}_{}/web", pod.namespace, pod.name, pod.uid);
        let log = holder.host.join(logs).join("0.log");
        transship_host::files::write_atomic(&log, b"").unwrap();
        let printed = crate::beside::of(&holder.dir).join("logs/web");
        transship_host::files::write_atomic(&printed, b"before\n").unwrap();
        fill(&holder.host, &holder.dir, "web", &root).unwrap();
        assert_eq!(std::fs::read_to_string(log).unwrap(), "before\n");
    }

    #[tokio::test]
    async fn all_are_started_when_no_ticket_is_left() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        grant(&holder).unwrap();
        let pod = holder.host.pod(&holder.task.pod.uid).unwrap();
        assert_eq!(waiting(&holder, &pod).unwrap(), ["web", "aux"]);
        pod.consume_ticket("aux").unwrap();
        let (events, mut received) = mpsc::channel(1);
        watch(Arc::clone(&holder), events, "started", "gone");
        pod.consume_ticket("web").unwrap();
        assert_eq!(received.recv().await, Some("started"));
    }

    #[test]
    fn a_pod_is_removed_when_kubelet_has_no_directory_of_it() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        assert!(!is_removed(&holder), "without kubelet's directories nothing is known");
        let pods = holder.task.kubelet_root.join("pods");
        std::fs::create_dir_all(pods.join(&holder.task.pod.uid)).unwrap();
        assert!(!is_removed(&holder));
        std::fs::remove_dir(pods.join(&holder.task.pod.uid)).unwrap();
        assert!(is_removed(&holder));
    }
}
