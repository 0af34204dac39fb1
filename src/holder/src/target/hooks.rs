//! Runs the postStart hooks of a pod that has moved, in kubelet's place and order, once the pod is an
//! ordinary one: its thaw is confirmed, its network open, its record open, and the machine closed. So a hook
//! can neither run in a pod that is given up after all nor hold anything up.
//!
//! At least once, as with kubelet: the side is not closed before the hooks have run, and a holder that is
//! started again runs those of which nothing is noted. Unlike with kubelet a hook that fails ends nothing: the
//! application has lived for long and goes on. What went wrong is told.

use std::time::Duration;

use anyhow::{Context, Result};
use transship_host::hook::Hook;

use crate::holder::Holder;
use crate::hook;
use crate::pod::Pod;

/// How long one hook may take. kubelet sets no limit, but here a migration is kept open for it.
const LIMIT: Duration = Duration::from_secs(300);
/// The most characters told about a failure.
const LENGTH: usize = 300;

/// Whether there are hooks of which nothing is noted yet.
pub fn are_left(holder: &Holder) -> bool {
    left(holder).next().is_some()
}

fn left(holder: &Holder) -> impl Iterator<Item = &Hook> {
    holder.task.hooks.iter().filter(|hook| !holder.board.has_run_hook(&hook.container))
}

/// Runs the hooks that are left, one after the other, and notes how each ended.
pub async fn run(holder: &Holder, pod: Option<&Pod>) {
    for hook in left(holder) {
        let container = hook.container.as_str();
        let outcome = run_one(holder, pod, hook).await;
        if let Err(error) = &outcome {
            tracing::warn!(container, "the postStart hook failed: {error:#}");
        } else {
            tracing::info!(container, "the postStart hook was run");
        }
        let told = outcome.map_err(|error| format!("{error:#}").chars().take(LENGTH).collect());
        holder.board.hook(container, told);
    }
    holder.board.closed();
}

async fn run_one(holder: &Holder, pod: Option<&Pod>, hook: &Hook) -> Result<()> {
    let pod = pod.context("the pod is not known any more")?;
    hook::run(holder, pod, hook, LIMIT).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::areas::tests::task;
    use crate::pod::tests::pod_of_self;
    use transship_host::HostRoot;
    use transship_host::hook::{HookAction, HttpGet};
    use transship_runtime::Layout;

    fn hook(container: &str, action: HookAction) -> Hook {
        Hook { container: container.into(), action }
    }

    fn holder(root: &std::path::Path, hooks: Vec<Hook>) -> Holder {
        let host = HostRoot::at(root);
        let mut task = task();
        task.hooks = hooks;
        let dir = host.migration(&task.migration.uid, task.role).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let layout = Layout { containerd_socket: root.join("no.sock"), ..Layout::default() };
        Holder::new(host, layout, dir, task)
    }

    #[tokio::test]
    async fn every_hook_is_run_once_and_what_fails_is_told() {
        let root = tempfile::tempdir().unwrap();
        let hooks = vec![
            hook("web", HookAction::Exec { command: vec!["x".into()] }),
            hook("aux", HookAction::Sleep { seconds: 0 }),
        ];
        let first = holder(root.path(), hooks.clone());
        assert!(are_left(&first));
        run(&first, Some(&pod_of_self())).await;
        assert!(!are_left(&first));
        let status = first.board.subscribe().borrow().clone();
        assert!(status.closed);
        assert!(status.hooks["web"].contains("cannot connect to containerd"), "{status:?}");
        assert_eq!(status.hooks["aux"], "");

        // One that died before it had noted the second runs that again, and only that.
        first.board.update(|status| {
            status.hooks.remove("aux");
            status.closed = false;
        });
        let second = holder(root.path(), hooks);
        assert_eq!(left(&second).map(|hook| hook.container.as_str()).collect::<Vec<_>>(), ["aux"]);
        run(&second, None).await;
        let status = second.board.subscribe().borrow().clone();
        assert!(status.closed);
        assert_eq!(status.hooks["aux"], "the pod is not known any more");
    }

    #[tokio::test]
    async fn a_request_goes_to_the_host_that_it_names() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let root = tempfile::tempdir().unwrap();
        let request = HttpGet {
            https: false,
            host: Some("127.0.0.1".into()),
            port,
            path: "/".into(),
            headers: vec![],
        };
        let holder = holder(root.path(), vec![hook("web", HookAction::HttpGet(request))]);
        run(&holder, Some(&pod_of_self())).await;
        let status = holder.board.subscribe().borrow().clone();
        let wanted = format!("cannot connect to 127.0.0.1:{port}");
        assert!(status.hooks["web"].starts_with(&wanted), "{status:?}");
    }
}
