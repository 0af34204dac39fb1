//! What the runtime leaves of containers that have ended:
//!
//! * runc, of those that lost their shim while its calls were refused: containerd forgets them, and asks runc to forget
//!   them at most once;
//! * containerd, of those in whose start kubelet died: their tasks, with which they cannot be removed
//!   ([`transship_runtime::tasks`]).

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use transship_runtime::container::Container;
use transship_runtime::cri::{Cri, State};
use transship_runtime::{Layout, ending};

use crate::pod::Pod;

/// How long containerd may take to forget a container whose first process is gone.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);
/// How long runc may take for one of them.
const RUNC: Duration = Duration::from_secs(5);
/// How long containerd may take for a task: its shim waits for up to 10 s for the task's output to end.
const TASK: Duration = Duration::from_secs(30);

/// Has runc forget what containerd has forgotten of ended containers and of their sandbox, their state and cgroups.
/// Waits, for `patience` at most, until that is known of the containers. Without consequences where it fails.
pub async fn clear(layout: &Layout, runc: &Path, pod: &Pod, patience: Duration) {
    let end = Instant::now() + patience;
    let mut has_forgotten = false;
    for container in pod.containers.iter().filter(|container| !container.is_alive(layout)) {
        until_forgotten(layout, &container.id, end).await;
        has_forgotten |= forget(layout, runc, &container.id).await;
    }
    // One that lives is not waited for.
    if has_forgotten {
        until_forgotten(layout, &pod.sandbox_id, end).await;
    }
    forget(layout, runc, &pod.sandbox_id).await;
}

async fn until_forgotten(layout: &Layout, id: &str, end: Instant) {
    while is_known(layout, id) && Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether both runc and containerd know it. The bundle is the one that runc names, and not where it usually is.
fn is_known(layout: &Layout, id: &str) -> bool {
    Container::find(layout, id).is_ok_and(|found| found.bundle.try_exists().unwrap_or(true))
}

/// `true`: it was left, and is not any more.
async fn forget(layout: &Layout, runc: &Path, id: &str) -> bool {
    if Container::find(layout, id).is_err() || is_known(layout, id) {
        return false;
    }
    match timeout(RUNC, ending::delete(layout, runc, id)).await {
        Ok(Ok(true)) => {
            tracing::info!(id, "runc has forgotten it");
            return true;
        }
        Ok(Ok(false)) => tracing::warn!(id, "runc does not forget it"),
        Ok(Err(error)) => tracing::warn!(id, "{error}"),
        Err(_) => tracing::warn!(id, "runc hangs"),
    }
    false
}

/// Has containerd delete the tasks that it has left of a pod's ended containers. As long as a container may still be on
/// its way to its end, or a task cannot be deleted, it looks again, for `patience` at most. Without consequences where
/// it fails.
pub async fn delete_tasks(layout: &Layout, pod_uid: &str, patience: Duration) {
    let end = Instant::now() + patience;
    while let Err(error) = try_delete_tasks(layout, pod_uid).await {
        if Instant::now() >= end {
            tracing::warn!("containerd may have left tasks: {error:#}");
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn try_delete_tasks(layout: &Layout, pod_uid: &str) -> anyhow::Result<()> {
    let cri = Cri::connect_for(&layout.containerd_socket, TASK).await?;
    let containers = cri.containers_of_pod(pod_uid).await?;
    let mut left = Ok(());
    for container in &containers {
        match (container.state, container.id.as_str()) {
            (State::Exited, id) => match cri.delete_task(id).await {
                Ok(true) => tracing::info!(id, "containerd had left its task"),
                Ok(false) => {}
                Err(error) => left = Err(anyhow::Error::new(error).context(format!("task {id}"))),
            },
            // Its start, which was cancelled, is still being undone.
            (State::Created, id) => left = Err(anyhow::anyhow!("container {id} has not ended")),
            (State::Running | State::Unknown, _) => {}
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pod::tests::pod_of_self;
    use transship_host::files;

    #[tokio::test]
    async fn what_containerd_has_forgotten_runc_forgets_too() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { runc_root: root.path().join("runc"), ..Layout::default() };
        let bundle = root.path().join("bundle");
        let asked = root.path().join("asked");
        let runc = root.path().join("runc.sh");
        let text = format!("#!/bin/sh\necho \"$@\" >> {}\n", asked.display());
        std::fs::write(&runc, text).unwrap();
        std::fs::set_permissions(&runc, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut pod = pod_of_self();
        clear(&layout, &runc, &pod, PATIENCE).await;
        let state = serde_json::json!({
            "id": "c",
            "init_process_pid": 1,
            "init_process_start": 1,
            "cgroup_paths": {"": "/nonexistent"},
            "config": {"rootfs": "/nonexistent", "labels": [format!("bundle={}", bundle.display())]},
        });
        files::write_json(&layout.runc_root.join("c/state.json"), &state).unwrap();
        clear(&layout, &runc, &pod, PATIENCE).await;
        assert!(!asked.exists(), "it has no state, or lives");
        pod.containers[0].start_time += 1;
        std::fs::create_dir(&bundle).unwrap();
        clear(&layout, &runc, &pod, Duration::ZERO).await;
        assert!(!asked.exists(), "containerd will have it deleted");
        let forgets = async {
            // Not before it was looked for once.
            tokio::time::sleep(LOOK / 2).await;
            std::fs::remove_dir(&bundle).unwrap();
        };
        tokio::join!(clear(&layout, &runc, &pod, PATIENCE), forgets);
        let asked = std::fs::read_to_string(asked).unwrap();
        assert_eq!(asked, format!("--root {} delete --force c\n", layout.runc_root.display()));
    }
}
