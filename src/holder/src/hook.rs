//! Runs one hook of a container in kubelet's place: a program in the container, a request from the node, a pause.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{sleep, timeout};
use transship_host::hook::{Hook, HookAction};
use transship_runtime::cri::Cri;

use crate::holder::Holder;
use crate::http;
use crate::pod::Pod;

/// How much longer containerd may take to end a program and say so.
const GRACE: Duration = Duration::from_secs(10);
/// containerd counts whole seconds, and none are no limit for it.
const LEAST: Duration = Duration::from_secs(1);
/// The most characters of what a program wrote.
const LOGGED: usize = 4000;

/// Runs it to its end, for `limit` at most.
pub async fn run(holder: &Holder, pod: &Pod, hook: &Hook, limit: Duration) -> Result<()> {
    let limit = limit.max(LEAST);
    within(limit + GRACE, run_unbounded(holder, pod, hook, limit)).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| bail!("it did not end within {limit:?}"))
}

async fn run_unbounded(holder: &Holder, pod: &Pod, hook: &Hook, limit: Duration) -> Result<()> {
    match &hook.action {
        HookAction::Exec { command } => {
            let container = pod.containers.iter().find(|found| found.name == hook.container);
            let container = container.context("the container is not known")?;
            let cri = Cri::connect_for(&holder.layout.containerd_socket, limit + GRACE).await?;
            let ended = cri.exec(&container.id, command, limit).await?;
            if ended.code != 0 {
                // Perhaps nothing for everybody who may read a Migration.
                let output: String = ended.output.trim().chars().take(LOGGED).collect();
                tracing::warn!(container = container.name, "the hook wrote: {output}");
                bail!("it exited with {}", ended.code);
            }
        }
        HookAction::HttpGet(request) => {
            let host = match &request.host {
                Some(host) => host.clone(),
                None => {
                    let cri = Cri::connect(&holder.layout.containerd_socket).await?;
                    let address = cri.address(&pod.sandbox_id).await?;
                    address.context("the pod has no address")?
                }
            };
            within(limit, http::get(&host, request)).await?;
        }
        HookAction::Sleep { seconds } => {
            let pause = async {
                sleep(Duration::from_secs(*seconds)).await;
                Ok(())
            };
            within(limit, pause).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_end_is_given_up() {
        let limit = Duration::from_millis(5);
        let error = within(limit, std::future::pending::<Result<()>>()).await.unwrap_err();
        assert_eq!(error.to_string(), "it did not end within 5ms");
        within(Duration::from_secs(60), async { Ok(()) }).await.unwrap();
    }
}
