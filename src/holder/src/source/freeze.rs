//! Closing the pod's network at a good moment.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use transship_host::network::half_open_connections;

use crate::pod::Pod;

/// How long handshakes that are under way may take to end. Clients send a lost SYN again after a
/// second, so the wait must be short.
const HANDSHAKES: Duration = Duration::from_millis(100);
/// How often they are counted.
const LOOK: Duration = Duration::from_millis(2);

/// Refuses a pod with a process that somebody has stopped (SIGSTOP, a debugger): a dump would wait
/// for it for minutes.
pub fn refuse_stopped(pod: &Pod) -> Result<()> {
    for container in &pod.containers {
        for pid in container.freezer.tasks()? {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if is_stopped(&stat) {
                anyhow::bail!(
                    "process {pid} of container {} is stopped; continue it with SIGCONT first",
                    container.name
                );
            }
        }
    }
    Ok(())
}

/// Whether the text of a process's `stat` says that it is stopped or traced.
fn is_stopped(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't']))
}

/// Lets handshakes end that are under way, then drops every frame of the pod in both directions.
/// A connection that is half open when the pod freezes would be lost.
pub async fn close_network(pod: &Pod, nft: &Path) -> Result<()> {
    let network = pod.network();
    if half_open_connections(pod.sandbox_pid)? > 0 {
        network.drop_new_syns(nft, &pod.devices).context("cannot hold back new connections")?;
        let deadline = Instant::now() + HANDSHAKES;
        while half_open_connections(pod.sandbox_pid)? > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
    network.close(nft, &pod.devices).context("cannot close the pod's network")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_is_told_from_one_that_is_named_like_it() {
        for (stat, stopped) in [
            ("7 (sh) T 1 7", true),
            ("7 (sh) t 1 7", true),
            ("7 (a) T) S 1 7", false),
            ("7 (sh) R 1 7", false),
            ("", false),
        ] {
            assert_eq!(is_stopped(stat), stopped, "{stat}");
        }
    }
}
