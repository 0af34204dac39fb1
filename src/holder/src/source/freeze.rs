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

/// How often a pod is let go for a moment, at most, because one of its processes waits for a child that
/// it has made by vfork.
const BIRTHS: u32 = 50;
/// For how long.
const BIRTH: Duration = Duration::from_millis(2);

/// Freezes all containers at a point that can be dumped. A process that has made a child by vfork does
/// nothing, not even for a debugger, until the child has called exec; frozen between the two, the dump
/// would wait for both in vain.
pub fn freeze(pod: &Pod) -> Result<()> {
    for birth in 0.. {
        pod.freeze()?;
        let parents: Vec<u32> = pod
            .containers
            .iter()
            .flat_map(|container| container.freezer.tasks().unwrap_or_default())
            .filter(|pid| waits_for_a_birth(*pid))
            .collect();
        if parents.is_empty() {
            return Ok(());
        }
        if birth == BIRTHS {
            // Perhaps it is none after all; CRIU will say so.
            tracing::warn!(?parents, "frozen between vfork and exec");
            return Ok(());
        }
        tracing::info!(?parents, "thawed to let vfork end");
        pod.thaw()?;
        std::thread::sleep(BIRTH);
    }
    Ok(())
}

/// Whether a thread of a frozen process is in a call that can be a vfork.
fn waits_for_a_birth(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("syscall")).ok())
        .any(|syscall| can_be_vfork(&syscall))
}

/// Judges the text of `/proc/PID/syscall`: the number of the call and its arguments.
fn can_be_vfork(syscall: &str) -> bool {
    const CLONE_VFORK: u64 = 0x4000;
    let mut words = syscall.split_ascii_whitespace();
    match words.next() {
        // vfork on x86-64
        Some("58") => true,
        // clone there, with the flags first
        Some("56") => words
            .next()
            .and_then(|flags| u64::from_str_radix(flags.trim_start_matches("0x"), 16).ok())
            .is_some_and(|flags| flags & CLONE_VFORK != 0),
        // clone3, whose flags are in the process's memory
        Some("435") => true,
        _ => false,
    }
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
    fn a_call_that_waits_for_a_child_is_told_from_others() {
        for (syscall, waits) in [
            ("58 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f00", true),
            ("56 0x4111 0x7f 0x0 0x0 0x0 0x0 0x7ffc 0x7f00", true),
            ("56 0x1200011 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f00", false),
            ("435 0x7ffc 0x58 0x0 0x0 0x0 0x0 0x7ffc 0x7f00", true),
            ("202 0x7f 0x80 0x0 0x0 0x0 0x0 0x7ffc 0x7f00", false),
            ("-1 0x7ffc 0x7f00", false),
            ("running", false),
            ("", false),
        ] {
            assert_eq!(can_be_vfork(syscall), waits, "{syscall}");
        }
    }

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
