//! The freezer cgroup of a container, on cgroup v1 (also hybrid) and v2.
//!
//! Freezing goes by the cgroup file system and not through the container runtime: containerd would answer
//! PAUSED as an unexpected status after a restart, and kubelet would kill the container. What is reported
//! here is the kernel's own view: `Frozen` means that every task has stopped, not that stopping was asked for.
//!
//! Process ids are those of the reader's PID namespace: callers run in the host's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

pub use crate::cgroup::CgroupVersion;
use crate::cgroup::{cgroup_at, cgroup_of};
use crate::error::{Error, Result};

/// The kernel's view of a freezer cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezerState {
    /// Its tasks run.
    Thawed,
    /// It was asked to freeze and not every task has stopped yet.
    Freezing,
    /// Every task has stopped.
    Frozen,
}

/// A freezer cgroup. In JSON: `{"freezer": DIR, "version": 1|2}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freezer {
    /// Its directory.
    #[serde(rename = "freezer")]
    pub dir: PathBuf,
    /// Its interface.
    pub version: CgroupVersion,
}

impl Freezer {
    /// The freezer cgroup of a container, by one of its processes.
    ///
    /// The topmost cgroup is refused: it cannot be frozen, it holds whatever has no cgroup of its own, and a
    /// process that has died seems to be in it.
    pub fn of(pid: u32) -> Result<Self> {
        let freezer = Self::around(pid)?;
        if !freezer.can_freeze() {
            let reason = "it is in the topmost cgroup, or has ended".to_owned();
            return Err(Error::NoFreezer { pid, reason });
        }
        Ok(freezer)
    }

    /// The cgroup of the freezer's hierarchy that a process is in, be it the topmost.
    pub fn around(pid: u32) -> Result<Self> {
        let (dir, version) = cgroup_of(pid, "freezer")?;
        Ok(Self { dir, version })
    }

    /// Every cgroup has the file but the topmost of all. That of a cgroup namespace has it, as on a node that is a
    /// container itself, and is what is told of a process that has died there.
    fn can_freeze(&self) -> bool {
        let file = match self.version {
            CgroupVersion::V1 => "freezer.state",
            CgroupVersion::V2 => "cgroup.freeze",
        };
        self.dir.join(file).exists() && self.dir.parent().is_some_and(is_cgroup)
    }

    /// The freezer cgroup that runc makes for a bundle's `linux.cgroupsPath` (`/a/b` with the cgroupfs
    /// driver, `slice:prefix:name` with systemd's). It may not exist.
    pub fn at_cgroups_path(cgroups_path: &str) -> Result<Self> {
        let (dir, version) = cgroup_at("freezer", cgroups_path)?;
        Ok(Self { dir, version })
    }

    /// Whether the cgroup still exists.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Asks for freezing and waits until every task has stopped.
    ///
    /// On failure the request stands (the caller decides between thawing and killing). The topmost cgroup is refused,
    /// as in [`Self::of`].
    pub fn freeze(&self, limit: Duration) -> Result<()> {
        if !self.can_freeze() {
            let source = std::io::ErrorKind::Unsupported.into();
            return Err(Error::Io { action: "freeze", path: self.dir.clone(), source });
        }
        self.reach(FreezerState::Frozen, limit)
    }

    /// Lets the tasks run and waits until the kernel says so. A cgroup that is gone is thawed.
    ///
    /// A frozen *parent* keeps tasks stopped; then this times out.
    pub fn thaw(&self, limit: Duration) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        self.reach(FreezerState::Thawed, limit)
    }

    /// The kernel's view now.
    pub fn state(&self) -> Result<FreezerState> {
        match self.version {
            CgroupVersion::V1 => {
                let path = self.dir.join("freezer.state");
                let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                Ok(match text.trim() {
                    "FROZEN" => FreezerState::Frozen,
                    "FREEZING" => FreezerState::Freezing,
                    _ => FreezerState::Thawed,
                })
            }
            CgroupVersion::V2 => {
                let path = self.dir.join("cgroup.events");
                let events = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                if events.lines().any(|line| line == "frozen 1") {
                    return Ok(FreezerState::Frozen);
                }
                let path = self.dir.join("cgroup.freeze");
                let asked = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                Ok(if asked.trim() == "1" { FreezerState::Freezing } else { FreezerState::Thawed })
            }
        }
    }

    /// The process ids in this cgroup and those below it, sorted.
    pub fn tasks(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for dir in subtree(&self.dir)? {
            let path = dir.join("cgroup.procs");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // A child cgroup may go away between listing and reading.
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(Error::io("read", &path)(error)),
            };
            // 0 stands for a process of a PID namespace that we cannot see.
            pids.extend(
                text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|p| *p != 0),
            );
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every task without letting one of them run an instruction: freezes first (if not frozen), sends
    /// SIGKILL to all, thaws, and waits until the cgroup is empty.
    ///
    /// A cgroup that is gone has nothing to kill. If the tasks cannot be frozen within a third of `limit`
    /// they are killed all the same: the caller wants them dead.
    pub fn kill_all_frozen(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        if !self.exists() || self.tasks()?.is_empty() {
            return self.thaw(limit);
        }
        let frozen = self.freeze(limit / 3);
        self.kill_tasks(&[])?;
        if frozen.is_ok() {
            // Nothing can fork now, but a process may have been moved in between; look until all are hit.
            self.kill_tasks(&[])?;
        }
        loop {
            // Each time: an action script that is still at work may have frozen them again. All: a container that runs
            // containers may have stopped one.
            for dir in subtree(&self.dir)? {
                Self { dir, version: self.version }.request(FreezerState::Thawed)?;
            }
            let left = self.tasks()?;
            if left.is_empty() {
                return Ok(());
            }
            if start.elapsed() >= limit {
                return Err(Error::TimedOut {
                    what: format!("the end of all tasks in {}", self.dir.display()),
                    millis: limit.as_millis(),
                    state: format!("alive: {left:?}"),
                });
            }
            self.kill_tasks(&[])?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends SIGKILL to every task but `spare`, and does not wait. Those in a frozen v1 cgroup die when it
    /// thaws, before anything else.
    ///
    /// The topmost cgroup is left alone, as in [`Self::of`].
    pub fn kill_tasks(&self, spare: &[u32]) -> Result<()> {
        if !self.can_freeze() {
            return Ok(());
        }
        for pid in self.tasks()? {
            if spare.contains(&pid) {
                continue;
            }
            let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(Error::errno("kill the tasks in", &self.dir)(errno)),
            }
        }
        Ok(())
    }

    /// Moves a process into this cgroup.
    pub fn admit(&self, pid: u32) -> Result<()> {
        let path = self.dir.join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(Error::io("move a process into", &path))
    }

    /// The cgroup to which a process moves that must not be frozen with the others: the root of the freezer
    /// hierarchy (v1), the parent (v2, where the root may lie beyond the delegated part).
    pub fn outside(&self) -> Result<Self> {
        let dir = match self.version {
            CgroupVersion::V2 => self.dir.parent().map(Path::to_path_buf),
            CgroupVersion::V1 => {
                self.dir.ancestors().take_while(|dir| is_cgroup(dir)).last().map(Path::to_path_buf)
            }
        };
        match dir {
            Some(dir) if dir != self.dir && is_cgroup(&dir) => {
                Ok(Self { dir, version: self.version })
            }
            _ => Err(Error::Io {
                action: "find a cgroup outside",
                path: self.dir.clone(),
                source: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }

    fn request(&self, state: FreezerState) -> Result<()> {
        let (file, word) = match (self.version, state) {
            (CgroupVersion::V1, FreezerState::Thawed) => ("freezer.state", "THAWED"),
            (CgroupVersion::V1, _) => ("freezer.state", "FROZEN"),
            (CgroupVersion::V2, FreezerState::Thawed) => ("cgroup.freeze", "0"),
            (CgroupVersion::V2, _) => ("cgroup.freeze", "1"),
        };
        let path = self.dir.join(file);
        match fs::write(&path, word) {
            Err(error) if state == FreezerState::Thawed && gone(&error) => Ok(()),
            result => result.map_err(Error::io("write", &path)),
        }
    }

    fn reach(&self, wanted: FreezerState, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            // On v1 a task that was forked at the wrong moment leaves the cgroup FREEZING until asked again.
            self.request(wanted)?;
            let now = match self.state() {
                Err(error) if wanted == FreezerState::Thawed && error.is_not_found() => {
                    return Ok(());
                }
                state => state?,
            };
            if now == wanted {
                return Ok(());
            }
            if start.elapsed() >= limit {
                return Err(Error::TimedOut {
                    what: format!("{wanted:?} of {}", self.dir.display()),
                    millis: limit.as_millis(),
                    state: format!("{now:?}"),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }
}

/// Only cgroups have this file: the mount point is the topmost directory with it.
fn is_cgroup(dir: &Path) -> bool {
    dir.join("cgroup.procs").exists()
}

/// Whether an error on a cgroup file says that the cgroup was removed.
fn gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// A cgroup and all below it.
fn subtree(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![dir.to_path_buf()];
    let mut next = 0;
    while next < all.len() {
        let entries = match fs::read_dir(&all[next]) {
            Ok(entries) => entries,
            Err(error) if gone(&error) => {
                next += 1;
                continue;
            }
            Err(error) => return Err(Error::io("list", &all[next])(error)),
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.push(entry.path());
            }
        }
        next += 1;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freezer_has_a_fixed_form_in_json() {
        let freezer = Freezer { dir: "/c".into(), version: CgroupVersion::V1 };
        let text = serde_json::to_string(&freezer).unwrap();
        assert_eq!(text, r#"{"freezer":"/c","version":1}"#);
        assert_eq!(serde_json::from_str::<Freezer>(&text).unwrap(), freezer);
        assert!(serde_json::from_str::<Freezer>(r#"{"freezer":"/c","version":3}"#).is_err());
    }

    #[test]
    fn a_missing_cgroup_is_thawed_and_empty() {
        let freezer = Freezer { dir: "/nonexistent/cgroup".into(), version: CgroupVersion::V1 };
        freezer.thaw(Duration::ZERO).unwrap();
        freezer.kill_all_frozen(Duration::ZERO).unwrap();
        assert!(freezer.freeze(Duration::ZERO).is_err());
    }
}
