//! Programs that the wrapper starts, and what these start.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

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

/// Whether a child of a process has ended, by its name, for which the process has not waited yet.
pub(crate) fn has_zombie(pid: u32, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children = lists.collect::<String>();
    let is_one = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.starts_with(&format!("{pid} ({name}) Z"))
    };
    children.split_whitespace().any(is_one)
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
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    use rustix::process::{Pid, kill_process};
    use transship_host::markers::wait_for;

    use super::*;

    #[test]
    fn a_child_that_has_ended_is_seen_until_it_is_waited_for() {
        // What becomes of the shell waits for no child.
        let script = "sleep 600 & echo $!; exec sleep 600";
        let mut shell =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let child = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        // Both bear the shell's name at first.
        for pid in [shell.id(), child.as_raw_nonzero().get().cast_unsigned()] {
            let name = format!("/proc/{pid}/comm");
            let sleeps = || Ok((fs::read_to_string(&name).unwrap() == "sleep\n").then_some(()));
            assert!(wait_for(Duration::from_secs(60), sleeps).unwrap().is_some());
        }
        assert!(!has_zombie(shell.id(), "sleep"), "it lives");
        kill_process(child, Signal::KILL).unwrap();
        let look = || Ok(has_zombie(shell.id(), "sleep").then_some(()));
        assert!(wait_for(Duration::from_secs(60), look).unwrap().is_some());
        assert!(!has_zombie(shell.id(), "slee") && !has_zombie(shell.id(), "leep"));
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert!(!has_zombie(shell.id(), "sleep"));
    }
}
