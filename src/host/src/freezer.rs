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

use crate::error::{Error, Result};

/// Which interface a cgroup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum CgroupVersion {
    /// `freezer.state`.
    V1,
    /// `cgroup.freeze`.
    V2,
}

impl TryFrom<u8> for CgroupVersion {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            _ => Err(format!("cgroup version {number} does not exist")),
        }
    }
}

impl From<CgroupVersion> for u8 {
    fn from(version: CgroupVersion) -> Self {
        match version {
            CgroupVersion::V1 => 1,
            CgroupVersion::V2 => 2,
        }
    }
}

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
    /// The freezer cgroup that a process is in.
    pub fn of(pid: u32) -> Result<Self> {
        let no_freezer = |reason: &str| Error::NoFreezer { pid, reason: reason.to_owned() };
        let cgroup = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let cgroup = fs::read_to_string(&cgroup).map_err(Error::io("read", &cgroup))?;
        let mounts = Path::new("/proc/self/mountinfo");
        let mounts = fs::read_to_string(mounts).map_err(Error::io("read", mounts))?;
        let freezer = locate(&cgroup, &mounts).map_err(no_freezer)?;
        if !freezer.dir.is_dir() {
            return Err(no_freezer(&format!("{} is not there", freezer.dir.display())));
        }
        Ok(freezer)
    }

    /// The freezer cgroup that runc makes for a bundle's `linux.cgroupsPath` (`/a/b` with the cgroupfs
    /// driver, `slice:prefix:name` with systemd's). It may not exist.
    pub fn at_cgroups_path(cgroups_path: &str) -> Result<Self> {
        let mounts = Path::new("/proc/self/mountinfo");
        let mounts = fs::read_to_string(mounts).map_err(Error::io("read", mounts))?;
        let path = expand(cgroups_path).ok_or_else(|| Error::Invalid {
            what: "cgroupsPath",
            value: cgroups_path.chars().take(80).collect(),
            rule: "must be an absolute path or SLICE:PREFIX:NAME",
        })?;
        let v1 = format!("1:freezer:{path}");
        let v2 = format!("0::{path}");
        locate(&v1, &mounts)
            .or_else(|_| locate(&v2, &mounts))
            .map_err(|reason| Error::NoFreezer { pid: 0, reason: reason.to_owned() })
    }

    /// Whether the cgroup still exists.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Asks for freezing and waits until every task has stopped.
    ///
    /// On failure the request stands (the caller decides between thawing and killing).
    pub fn freeze(&self, limit: Duration) -> Result<()> {
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
        self.request(FreezerState::Thawed)?;
        loop {
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
    pub fn kill_tasks(&self, spare: &[u32]) -> Result<()> {
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
                // Only cgroups have this file; the mount point is the topmost directory with it.
                self.dir
                    .ancestors()
                    .take_while(|dir| dir.join("cgroup.procs").exists())
                    .last()
                    .map(Path::to_path_buf)
            }
        };
        match dir {
            Some(dir) if dir != self.dir && dir.join("cgroup.procs").exists() => {
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

/// Finds the freezer cgroup from the texts of `/proc/PID/cgroup` and `/proc/self/mountinfo`: the v1 freezer
/// hierarchy if there is one (hybrid hosts have a v2 tree too, which runc does not use), else the v2 tree.
fn locate(cgroup: &str, mountinfo: &str) -> Result<Freezer, &'static str> {
    let mut v2 = None;
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if controllers.split(',').any(|c| c == "freezer") {
            let dir = mounted(mountinfo, "cgroup", Some("freezer"), path)?;
            return Ok(Freezer { dir, version: CgroupVersion::V1 });
        }
        if id == "0" && controllers.is_empty() {
            v2 = Some(path);
        }
    }
    let path = v2.ok_or("it is in no freezer and no v2 cgroup")?;
    Ok(Freezer { dir: mounted(mountinfo, "cgroup2", None, path)?, version: CgroupVersion::V2 })
}

/// The cgroup path that a `linux.cgroupsPath` stands for: `a-b.slice:p:n` is `/a.slice/a-b.slice/p-n.scope`.
fn expand(cgroups_path: &str) -> Option<String> {
    if cgroups_path.starts_with('/') {
        return Some(cgroups_path.to_owned());
    }
    let mut parts = cgroups_path.splitn(3, ':');
    let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
    let stem = slice.strip_suffix(".slice")?;
    let mut path = String::new();
    if stem != "-" {
        for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
            path.push('/');
            path.push_str(&stem[..end]);
            path.push_str(".slice");
        }
    }
    let unit =
        if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    Some(format!("{path}/{unit}"))
}

/// Where `path` of a cgroup hierarchy is visible in the file system.
fn mounted(
    mountinfo: &str,
    fs_type: &str,
    option: Option<&str>,
    path: &str,
) -> Result<PathBuf, &'static str> {
    if path.split('/').any(|part| part == "..") {
        return Err("its cgroup lies outside this cgroup namespace");
    }
    for line in mountinfo.lines() {
        // ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAGS…] - TYPE SOURCE SUPER_OPTIONS
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        if right.next() != Some(fs_type) {
            continue;
        }
        let super_options = right.nth(1).unwrap_or_default();
        if option.is_some_and(|wanted| !super_options.split(',').any(|o| o == wanted)) {
            continue;
        }
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(mount_point)) = (left.next(), left.next()) else { continue };
        let below = if root == "/" {
            path
        } else if let Some(below) = path.strip_prefix(root)
            && (below.is_empty() || below.starts_with('/'))
        {
            below
        } else {
            continue;
        };
        return Ok(Path::new(&unescape(mount_point)).join(below.trim_start_matches('/')));
    }
    Err("its cgroup hierarchy is not mounted here")
}

/// Undoes mountinfo's octal escapes (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
30 25 0:26 / /sys/fs/cgroup/freezer rw,relatime shared:9 - cgroup cgroup rw,freezer
31 25 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "30 25 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
    const BOUND: &str =
        "30 25 0:26 /kube /mnt/my\\040cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_freezer_is_found_on_each_layout() {
        let cases = [
            ("6:freezer:/a/b\n0::/x\n", HYBRID, "/sys/fs/cgroup/freezer/a/b", CgroupVersion::V1),
            ("3:cpu:/q\n0::/a/b\n", UNIFIED, "/sys/fs/cgroup/a/b", CgroupVersion::V2),
            ("0::/\n", UNIFIED, "/sys/fs/cgroup/", CgroupVersion::V2),
            ("0::/kube/p1\n", BOUND, "/mnt/my cgroup/p1", CgroupVersion::V2),
        ];
        for (cgroup, mounts, dir, version) in cases {
            assert_eq!(
                locate(cgroup, mounts),
                Ok(Freezer { dir: dir.into(), version }),
                "{cgroup}"
            );
        }
    }

    #[test]
    fn a_cgroup_that_is_not_visible_is_an_error() {
        assert!(locate("6:freezer:/a\n", UNIFIED).is_err());
        assert!(locate("0::/../a\n", UNIFIED).is_err());
        assert!(locate("0::/kubepods\n", BOUND).is_err(), "a common prefix is not a parent");
        assert!(locate("3:cpu:/a\n", UNIFIED).is_err());
    }

    #[test]
    fn a_cgroups_path_of_either_driver_is_understood() {
        let cases = [
            ("/kubepods/pod1/c1", Some("/kubepods/pod1/c1")),
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:c1",
                Some(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-c1.scope",
                ),
            ),
            ("-.slice:runc:c1", Some("/runc-c1.scope")),
            ("c1", None),
            ("", None),
        ];
        for (given, wanted) in cases {
            assert_eq!(expand(given).as_deref(), wanted, "{given}");
        }
    }

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
