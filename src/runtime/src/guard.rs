//! Keeps the tasks of a dump from running when its CRIU is killed.
//!
//! As long as CRIU dumps, its tasks are stopped by ptrace alone, and their connections are in TCP's repair mode. The
//! end of a tracer lets go what it traces, and a process that then sends or receives is told an error (see
//! [`crate::repair`]). But who traces CRIU itself is asked before it ends, whatever it dies of (`PTRACE_O_TRACEEXIT`
//! in ptrace(2)): then the tasks are frozen, while CRIU still has them. So they are when it gives up, since it does
//! that at once when a task is killed. A guard that dies first changes nothing for CRIU.

use std::collections::HashSet;
use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Layout;
use crate::container::{children, is_named};

/// The name of a CRIU.
const CRIU: &str = "criu";
/// How often is looked whether there is one: it has its tasks some ten milliseconds after its start.
const LOOK: Duration = Duration::from_millis(2);

/// Guards as long as it lives, and then what it guards already.
#[derive(Debug)]
pub struct Guard(Arc<AtomicBool>);

impl Guard {
    /// Guards every CRIU that this runc starts. `freeze` is called when one is about to end without success; until it
    /// returns no task goes on, and [`crate::checkpoint::processes_of`] finds that CRIU. So who thaws when nothing is
    /// found any more does so after the last `freeze`.
    pub fn start(layout: &Layout, runc: i32, freeze: impl Fn() + Send + 'static) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, layout) = (Arc::clone(&is_over), layout.clone());
        // All of ptrace is one thread's.
        let watch = move || {
            let mut known = HashSet::new();
            while !over.load(Ordering::Relaxed) {
                for child in children(&layout, runc).unwrap_or_default() {
                    if !is_named(&layout, child, CRIU) || !known.insert(child) {
                        continue;
                    }
                    let criu = Pid::from_raw(child);
                    if let Err(error) = ptrace::seize(criu, ptrace::Options::PTRACE_O_TRACEEXIT) {
                        // One that was asked for its version may have answered.
                        tracing::debug!(child, %error, "a CRIU is not guarded");
                    } else if let Err(error) = follow(criu, &freeze) {
                        tracing::warn!(child, %error, "the dump's CRIU is not guarded any more");
                        // It would wait for this thread.
                        return;
                    }
                }
                std::thread::sleep(LOOK);
            }
        };
        std::thread::Builder::new().name("criu-guard".into()).spawn(watch)?;
        Ok(Self(is_over))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Follows a process that is traced by this thread to its end.
fn follow(process: Pid, freeze: &impl Fn()) -> nix::Result<()> {
    loop {
        let went_on = match waitpid(process, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Ok(()),
            Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT)) => {
                // In doubt: one that has undone its dump has had everything frozen itself.
                if ptrace::getevent(process) != Ok(0) {
                    freeze();
                }
                ptrace::cont(process, None)
            }
            Ok(WaitStatus::PtraceEvent(_, signal, libc::PTRACE_EVENT_STOP))
                if signal != Signal::SIGTRAP =>
            {
                stay_stopped(process)
            }
            Ok(WaitStatus::Stopped(_, signal)) => ptrace::cont(process, signal),
            Ok(_) => ptrace::cont(process, None),
            Err(errno) => Err(errno),
        };
        match went_on {
            // Killed meanwhile, which is waited for.
            Ok(()) | Err(Errno::EINTR | Errno::ESRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Leaves a process that somebody has stopped in that state, until it is continued or killed.
fn stay_stopped(process: Pid) -> nix::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: the request uses neither of the two addresses.
    let result = unsafe {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        libc::ptrace(libc::PTRACE_LISTEN, process.as_raw(), nothing, nothing)
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::Instant;

    use nix::sys::signal::kill;

    use super::*;
    use crate::container::is_zombie;

    struct Scene {
        runc: Child,
        criu: i32,
        frozen: Arc<AtomicBool>,
        _guard: Guard,
        _dir: tempfile::TempDir,
    }

    fn await_that(what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(LOOK);
        }
    }

    fn state(pid: i32) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("State:"));
        line.unwrap_or_default().trim().chars().take(1).collect()
    }

    /// A program of CRIU's name that does this, when it is guarded.
    fn guarded(what: &str) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let criu = dir.path().join(CRIU);
        let fifo = dir.path().join("fifo");
        let script = format!("#!/bin/sh\nread line < {}\n{what}\n", fifo.display());
        std::fs::write(&criu, script).unwrap();
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        std::fs::set_permissions(&criu, PermissionsExt::from_mode(0o755)).unwrap();
        let runc = format!("{} & exec sleep 600", criu.display());
        let runc = Command::new("sh").args(["-c", &runc]).process_group(0).spawn().unwrap();
        let layout = Layout::default();
        let id = runc.id().cast_signed();
        let frozen = Arc::new(AtomicBool::new(false));
        let freeze = Arc::clone(&frozen);
        let guard =
            Guard::start(&layout, id, move || freeze.store(true, Ordering::Relaxed)).unwrap();
        let find = || children(&layout, id).unwrap_or_default().first().copied();
        await_that("it is started", || find().is_some());
        let scene = Scene { runc, criu: find().unwrap(), frozen, _guard: guard, _dir: dir };
        await_that("it is guarded", || scene.is_traced());
        std::fs::write(scene._dir.path().join("fifo"), "\n").unwrap();
        scene
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            crate::checkpoint::kill_group(self.runc.id().cast_signed());
            let _ = self.runc.wait();
        }
    }

    impl Scene {
        fn is_traced(&self) -> bool {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.criu));
            let traced = |line: &str| line.strip_prefix("TracerPid:").map(|pid| pid.trim() != "0");
            status.unwrap_or_default().lines().find_map(traced) == Some(true)
        }

        fn has_ended(&self) -> bool {
            is_zombie(&Layout::default(), self.criu)
        }
    }

    #[test]
    fn what_a_killed_criu_leaves_is_frozen_before_its_end_though_it_stood_still() {
        let scene = guarded("exec sleep 600");
        let criu = Pid::from_raw(scene.criu);
        kill(criu, Signal::SIGSTOP).unwrap();
        await_that("it stands still", || state(scene.criu) == "t");
        kill(criu, Signal::SIGCONT).unwrap();
        await_that("it goes on", || state(scene.criu) == "S");
        kill(criu, Signal::SIGSTOP).unwrap();
        await_that("it stands still again", || state(scene.criu) == "t");
        assert!(!scene.frozen.load(Ordering::Relaxed));
        kill(criu, Signal::SIGKILL).unwrap();
        await_that("it ends", || scene.has_ended());
        assert!(scene.frozen.load(Ordering::Relaxed));
    }

    #[test]
    fn what_a_criu_leaves_that_gives_up_is_frozen_and_not_what_it_has_dumped() {
        for (end, is_frozen) in [("exit 1", true), ("exit 0", false)] {
            let scene = guarded(end);
            await_that("it ends", || scene.has_ended());
            assert_eq!(scene.frozen.load(Ordering::Relaxed), is_frozen, "{end}");
        }
    }
}
