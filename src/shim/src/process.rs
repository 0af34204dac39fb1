//! Programs that the wrapper starts, and what these start.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

/// A program ends when the wrapper does: containerd's shim kills only the wrapper when it gives up.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    #[allow(unsafe_code)]
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have ended before the request.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
        });
    }
}

/// What a process has started and not outlived.
pub(crate) fn children(pid: u32) -> Vec<OwnedFd> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids = lists.collect::<String>();
    pids.split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect()
}

/// Waits until there is something to read, or a process of a pidfd has ended; `false`: not within `limit`.
pub(crate) fn wait_readable(fd: &impl AsFd, limit: Duration) -> std::io::Result<bool> {
    let limit =
        Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;

    use rustix::process::pidfd_send_signal;

    use super::*;

    #[test]
    fn what_a_process_has_started_is_found_and_ended() {
        let script = "sleep 600 & echo; wait";
        let mut shell =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        shell.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let started = children(shell.id());
        assert_eq!(started.len(), 1);
        pidfd_send_signal(&started[0], Signal::KILL).unwrap();
        shell.wait().unwrap();
        assert!(children(shell.id()).is_empty());
    }
}
