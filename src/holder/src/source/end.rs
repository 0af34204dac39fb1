//! Cold: the containers end as they would at the pod's deletion: hook, stop signal, patience, SIGKILL. All hooks
//! begin at once; the applications get their signal after theirs, and sidecars in the reverse of their order when
//! what was started after them has ended. kubelet is not told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::join_all;
use tokio::sync::watch;
use transship_host::ending::Ending;
use transship_host::files;
use transship_host::paths::MigrationDir;
use transship_host::record::ContainerKind;
use transship_runtime::cri::Cri;
use transship_runtime::ending;

use crate::holder::Holder;
use crate::hook;
use crate::pod::{Pod, PodContainer, runc_program};

/// What a container has at least between its signal and SIGKILL, however long its hook took.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// How often it is looked whether a container has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Ends every container of the pod; may be done again. When this returns nothing of them is left.
pub async fn end(holder: &Arc<Holder>, pod: &Pod) -> Result<()> {
    let ending = holder.task.ending.clone().unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(ending.grace_seconds.into());
    let runc = runc_program(&holder.host.runc_path_file());
    let one = Ender { holder, pod, ending: &ending, runc: &runc, deadline };
    let turns = Turns::of(pod.containers.len());
    let (one, turns) = (&one, &turns);
    let ends = pod.containers.iter().enumerate().map(|(at, container)| async move {
        // They stand in kubelet's starting order, sidecars before what they serve.
        let is_last = !is_sidecar(holder, &container.name);
        one.end(container, turns.turn(at, is_last)).await;
        turns.has_come(at);
    });
    join_all(ends).await;
    let left = pod.clone();
    holder.blocking("kill", move |_| left.kill_frozen()).await?;
    verify(holder, pod)
}

fn is_sidecar(holder: &Holder, name: &str) -> bool {
    let containers = &holder.task.containers;
    containers.iter().any(|c| c.name == name && c.kind == ContainerKind::Sidecar)
}

/// Nothing is left of any container.
pub fn verify(holder: &Holder, pod: &Pod) -> Result<()> {
    for container in &pod.containers {
        if container.is_alive(&holder.layout) || !container.freezer.tasks()?.is_empty() {
            bail!("container {} has not ended", container.name);
        }
    }
    Ok(())
}

/// Who has ended.
struct Turns(Vec<watch::Sender<bool>>);

impl Turns {
    fn of(count: usize) -> Self {
        Self((0..count).map(|_| watch::Sender::new(false)).collect())
    }

    fn has_come(&self, at: usize) {
        self.0[at].send_replace(true);
    }

    /// Waits until all that come after this one have ended; one that is among the last waits for nobody.
    async fn turn(&self, at: usize, is_last: bool) {
        for later in self.0.iter().skip(at + 1).filter(|_| !is_last) {
            let mut later = later.subscribe();
            // All live as long as this one.
            let _ = later.wait_for(|ended| *ended).await;
        }
    }
}

/// File that says that a container's preStop hook has run: an end that is begun again does not repeat it.
fn hook_marker(dir: &MigrationDir, container_id: &str) -> PathBuf {
    dir.path().join(format!("hook-run.{container_id}"))
}

struct Ender<'a> {
    holder: &'a Arc<Holder>,
    pod: &'a Pod,
    ending: &'a Ending,
    runc: &'a Path,
    deadline: Instant,
}

impl Ender<'_> {
    /// Ends one container, or leaves it to the SIGKILL that follows. Its signal waits for its turn.
    async fn end(&self, container: &PodContainer, turn: impl Future<Output = ()>) {
        let name = &container.name;
        if !container.is_alive(&self.holder.layout) {
            return;
        }
        let marker = hook_marker(&self.holder.dir, &container.id);
        // As with kubelet: without any grace there is no hook.
        if let Some(hook) = self.ending.hook(name)
            && !self.left().is_zero()
            && !marker.exists()
        {
            if let Err(error) = hook::run(self.holder, self.pod, hook, self.left()).await {
                // As with kubelet: the container ends all the same.
                tracing::warn!(container = name, "its preStop hook failed: {error:#}");
            }
            if let Err(error) = files::write_atomic(&marker, b"") {
                tracing::warn!(
                    container = name,
                    "its preStop hook may run again: {}",
                    error.chain()
                );
            }
        }
        if tokio::time::timeout(self.left(), turn).await.is_err() {
            tracing::warn!(container = name, "it ends before those that it serves have ended");
        }
        if let Err(error) = self.signal(container).await {
            tracing::warn!(container = name, "it is not asked to end: {error:#}");
            return;
        }
        let end = self.deadline.max(Instant::now() + LEAST_GRACE);
        while container.is_alive(&self.holder.layout) {
            if Instant::now() >= end {
                tracing::warn!(container = name, "it did not end in its grace period");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        tracing::info!(container = name, "ended");
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    async fn signal(&self, container: &PodContainer) -> Result<()> {
        let layout = &self.holder.layout;
        let signal = match self.ending.signals.get(&container.name) {
            Some(signal) => signal.clone(),
            None => self.images_signal(container).await,
        };
        // An image may name what is no signal; the usual one is better than none.
        for signal in [signal.as_str(), ""] {
            let sent = ending::signal(layout, self.runc, &container.id, signal).await?;
            if sent || !container.is_alive(layout) {
                return Ok(());
            }
            tracing::warn!(container = container.name, "runc does not send {signal:?}");
        }
        bail!("runc sends it no signal")
    }

    /// The usual one is better than no word at all.
    async fn images_signal(&self, container: &PodContainer) -> String {
        let asked = async {
            let cri = Cri::connect(&self.holder.layout.containerd_socket).await?;
            cri.stop_signal(&container.id).await
        };
        let signal = asked.await.unwrap_or_else(|error| {
            tracing::warn!(container = container.name, %error, "its stop signal is not known");
            None
        });
        signal.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::areas::tests::task;
    use crate::pod::tests::pod_of_self;
    use transship_host::HostRoot;
    use transship_host::hook::{Hook, HookAction};
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    /// In which order containers get their signal, those that end at once last: `sidecars` first.
    async fn order(sidecars: usize, count: usize) -> Vec<usize> {
        let turns = Turns::of(count);
        let signalled = std::sync::Mutex::new(Vec::new());
        let (turns, signalled) = (&turns, &signalled);
        join_all((0..count).map(|at| async move {
            turns.turn(at, at >= sidecars).await;
            signalled.lock().unwrap().push(at);
            tokio::task::yield_now().await;
            turns.has_come(at);
        }))
        .await;
        signalled.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn applications_come_together_and_sidecars_after_all_that_they_serve() {
        assert_eq!(order(0, 2).await, [0, 1]);
        assert_eq!(order(2, 4).await, [2, 3, 1, 0]);
        assert_eq!(order(1, 1).await, [0]);
    }

    #[tokio::test]
    async fn a_hook_that_has_run_does_not_run_again() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let runc = root.path().join("runc.sh");
        std::fs::write(&runc, "#!/bin/sh\nexit 1\n").unwrap();
        std::fs::set_permissions(&runc, std::fs::Permissions::from_mode(0o755)).unwrap();
        files::write_atomic(&host.runc_path_file(), runc.to_str().unwrap().as_bytes()).unwrap();
        let pod = pod_of_self();
        let mut task = task();
        let dir = host.migration(&task.migration.uid, Role::Source).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        for seconds in [0, 3600] {
            assert_eq!(hook_marker(&dir, "c").exists(), seconds > 0);
            let action = HookAction::Sleep { seconds };
            let hooks = vec![Hook { container: "web".into(), action }];
            task.ending = Some(Ending { grace_seconds: 7200, hooks, ..Ending::default() });
            let layout =
                Layout { containerd_socket: root.path().join("no.sock"), ..Layout::default() };
            let holder = Arc::new(Holder::new(host.clone(), layout, dir.clone(), task.clone()));
            let ended = tokio::time::timeout(Duration::from_secs(60), end(&holder, &pod));
            assert!(ended.await.unwrap().is_err(), "nobody ends this process");
        }
    }

    #[tokio::test]
    async fn what_has_ended_is_not_asked_to_end_and_what_lives_has_not_ended() {
        let root = tempfile::tempdir().unwrap();
        let (host, task) = (HostRoot::at(root.path()), task());
        let dir = host.migration(&task.migration.uid, Role::Source).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let layout = Layout { containerd_socket: root.path().join("no.sock"), ..Layout::default() };
        let holder = Arc::new(Holder::new(host, layout, dir, task));
        let mut pod = pod_of_self();
        assert!(verify(&holder, &pod).is_err());
        // Another process of the same number.
        pod.containers[0].start_time += 1;
        end(&holder, &pod).await.unwrap();
    }
}
