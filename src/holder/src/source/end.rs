//! Cold: the containers end as they would at the pod's deletion: hook, stop signal, patience, SIGKILL; the
//! applications together, then the sidecars in the reverse of their order. kubelet is not told.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::join_all;
use transship_host::ending::Ending;
use transship_host::record::ContainerKind;
use transship_runtime::container::Container;
use transship_runtime::cri::{Cri, CriContainer, State};
use transship_runtime::ending;

use crate::holder::Holder;
use crate::hook;
use crate::pod::{Pod, PodContainer, runc_program};

use super::files;

/// What a container has at least between its signal and SIGKILL, however long its hook took.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// How often it is looked whether a container has ended.
const LOOK: Duration = Duration::from_millis(20);

/// kubelet may have started a container anew since the pod was looked up. Now that the pod's record keeps it from
/// that, those that run are the ones that end and move.
pub async fn look_again(holder: &Holder, pod: &mut Pod) -> Result<()> {
    let cri = Cri::connect(&holder.layout.containerd_socket).await?;
    if cri.sandboxes(&holder.task.pod.uid).await?.is_empty() {
        // The node has restarted: nothing of it runs.
        return Ok(());
    }
    let mut now = Pod::find_sandbox(&cri, &holder.layout, &holder.task.pod.uid).await?;
    let known = cri.containers(&now.sandbox_id).await?;
    let mut others = Vec::new();
    for noted in &pod.containers {
        let mut container = noted.clone();
        if let Some(successor) = successor(noted, &known) {
            let found = Container::find(&holder.layout, &successor.id)?;
            container = PodContainer::of(&holder.layout, &noted.name, &found)?;
            others.push(container.clone());
        }
        now.containers.push(container);
    }
    if !others.is_empty()
        && let Err(error) = files::note_uppers(holder, &others)
    {
        // It has ended again; it starts like any other, or the transfer fails.
        tracing::warn!("{error:#}");
    }
    if now != *pod {
        now.save(&holder.dir)?;
        *pod = now;
    }
    Ok(())
}

/// The container that runs in the place of the noted one, if that was started anew.
fn successor<'a>(noted: &PodContainer, known: &'a [CriContainer]) -> Option<&'a CriContainer> {
    let of_name = known.iter().filter(|container| container.name == noted.name);
    let newest = of_name.max_by_key(|container| container.attempt)?;
    (newest.id != noted.id && newest.state == State::Running).then_some(newest)
}

/// Ends every container of the pod; may be done again. When this returns nothing of them is left.
pub async fn end(holder: &Arc<Holder>, pod: &Pod) -> Result<()> {
    let ending = holder.task.ending.clone().unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(ending.grace_seconds.into());
    let runc = runc_program(&holder.host.runc_path_file());
    let one = Ender { holder, pod, ending: &ending, runc: &runc, deadline };
    let (sidecars, applications): (Vec<_>, Vec<_>) =
        pod.containers.iter().partition(|container| is_sidecar(holder, &container.name));
    join_all(applications.into_iter().map(|container| one.end(container))).await;
    for container in sidecars.into_iter().rev() {
        one.end(container).await;
    }
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

struct Ender<'a> {
    holder: &'a Arc<Holder>,
    pod: &'a Pod,
    ending: &'a Ending,
    runc: &'a Path,
    deadline: Instant,
}

impl Ender<'_> {
    /// Ends one container, or leaves it to the SIGKILL that follows.
    async fn end(&self, container: &PodContainer) {
        let name = &container.name;
        if !container.is_alive(&self.holder.layout) {
            return;
        }
        if let Some(hook) = self.ending.hook(name)
            && let Err(error) = hook::run(self.holder, self.pod, hook, self.left()).await
        {
            // As with kubelet: the container ends all the same.
            tracing::warn!(container = name, "its preStop hook failed: {error:#}");
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
        let sent = ending::signal(layout, self.runc, &container.id, &signal).await?;
        if !sent && container.is_alive(layout) {
            bail!("runc does not send {signal:?}");
        }
        Ok(())
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
    use super::*;
    use crate::areas::tests::task;
    use crate::pod::tests::pod_of_self;
    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    #[test]
    fn what_was_started_anew_ends_in_the_place_of_what_was_noted() {
        let known = |containers: &[(&str, u32, State)]| -> Vec<CriContainer> {
            let one = |(id, attempt, state): &(&str, u32, State)| CriContainer {
                id: (*id).to_owned(),
                name: "web".into(),
                state: *state,
                attempt: *attempt,
            };
            containers.iter().map(one).collect()
        };
        let noted = pod_of_self().containers.remove(0);
        let running = ("c", 0, State::Running);
        let ended = ("c", 0, State::Exited);
        for (containers, wanted) in [
            (vec![running], None),
            (vec![ended], None),
            (vec![], None),
            (vec![ended, ("d", 1, State::Running)], Some("d")),
            (vec![("e", 2, State::Running), ended, ("d", 1, State::Exited)], Some("e")),
            (vec![ended, ("d", 1, State::Exited)], None),
        ] {
            let known = known(&containers);
            let found = successor(&noted, &known).map(|container| container.id.as_str());
            assert_eq!(found, wanted, "{containers:?}");
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
