//! The sandbox's control groups on the host: `…/transship-sandbox/MACHINE` in every hierarchy.
//!
//! They are the means to find every process of the sandbox, whatever it was called and whoever
//! recorded it, and the root that a machine sees through its cgroup namespace.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{cmd::wait_for, process};

const ROOT: &str = "transship-sandbox";

/// On version 2 the group in a machine's own that holds its processes.
const SETTLED: &str = "init";

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Mount options that name it (`cpu`, `none,name=systemd`); none for version 2.
    pub v1: Option<String>,
}

/// All hierarchies that are mounted under /sys/fs/cgroup.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    Ok(parse_mountinfo(&text))
}

fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let right: Vec<&str> = right.split(' ').collect();
        let [kind, _, options] = right[..] else { continue };
        if !mount.starts_with("/sys/fs/cgroup") || found.iter().any(|h| h.mount == mount) {
            continue;
        }
        match kind {
            "cgroup2" => found.push(Hierarchy { mount, v1: None }),
            "cgroup" => {
                let names: Vec<&str> = options
                    .split(',')
                    .filter(|option| {
                        !matches!(*option, "rw" | "ro" | "xattr" | "clone_children")
                            && !option.starts_with("release_agent=")
                    })
                    .collect();
                let named = names.iter().any(|name| name.starts_with("name="));
                let prefix = if named { "none," } else { "" };
                found.push(Hierarchy { mount, v1: Some(format!("{prefix}{}", names.join(","))) });
            }
            _ => {}
        }
    }
    found
}

/// One machine's group, or that of the whole sandbox, in all hierarchies.
#[derive(Debug)]
pub struct Group {
    hierarchies: Vec<Hierarchy>,
    path: PathBuf,
}

impl Group {
    /// The group of one machine.
    pub fn machine(name: &str) -> Result<Self> {
        Ok(Self { hierarchies: hierarchies()?, path: Path::new(ROOT).join(name) })
    }

    /// The group that holds all machines.
    pub fn sandbox() -> Result<Self> {
        Ok(Self { hierarchies: hierarchies()?, path: ROOT.into() })
    }

    /// A group inside this one.
    pub fn child(&self, name: &str) -> Self {
        Self { hierarchies: self.hierarchies.clone(), path: self.path.join(name) }
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.path))
    }

    /// Its directories that exist.
    pub fn present(&self) -> impl Iterator<Item = PathBuf> {
        self.directories().filter(|directory| directory.exists())
    }

    /// Makes the group in every hierarchy.
    pub fn create(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let mut directory = hierarchy.mount.clone();
            for part in &self.path {
                if hierarchy.v1.is_none() {
                    delegate_controllers(&directory)?;
                }
                directory.push(part);
                make(&directory)?;
            }
        }
        Ok(())
    }

    /// Moves a process (0 is the caller) into the group.
    pub fn enter(&self, pid: i32) -> Result<()> {
        for directory in self.directories() {
            let file = directory.join("cgroup.procs");
            fs::write(&file, pid.to_string())
                .with_context(|| format!("moving process {pid} into {}", directory.display()))?;
        }
        Ok(())
    }

    /// Version 2 allows no process beside groups that have controllers: moves one that stands in the
    /// machine's root into its `init` group.
    pub fn settle(&self, pid: i32) -> Result<()> {
        for hierarchy in self.hierarchies.iter().filter(|hierarchy| hierarchy.v1.is_none()) {
            let directory = hierarchy.mount.join(&self.path).join(SETTLED);
            make(&directory)?;
            fs::write(directory.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("moving process {pid} into {}", directory.display()))?;
        }
        Ok(())
    }

    /// The files by which a further process of a running machine comes into its group: on version 2 into that
    /// of [`Self::settle`].
    pub fn gates(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|hierarchy| {
            let group = hierarchy.mount.join(&self.path);
            let group = if hierarchy.v1.is_none() { group.join(SETTLED) } else { group };
            group.join("cgroup.procs")
        })
    }

    /// Every process of the group and of those below it, in any hierarchy.
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for directory in self.directories() {
            visit(&directory, &mut |group| {
                let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
            });
        }
        pids.remove(&0);
        pids
    }

    /// Ends every process with SIGKILL, frozen ones included, and waits until none is left. None of
    /// them runs another instruction of its own: what is frozen has its SIGKILL before it is thawed.
    pub fn kill(&self) -> Result<()> {
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        wait_for(
            format!("the end of all processes in {}", self.path.display()),
            Duration::from_secs(20),
            || {
                let mut pids = self.processes();
                pids.remove(&me);
                if pids.is_empty() {
                    return Ok(Some(()));
                }
                pids.into_iter().for_each(process::kill);
                self.thaw();
                Ok(None)
            },
        )
    }

    /// The version 1 freezer keeps a killed process until it is thawed.
    fn thaw(&self) {
        for directory in self.directories() {
            visit(&directory, &mut |group| {
                let file = group.join("freezer.state");
                if fs::read_to_string(&file).is_ok_and(|state| state.trim() != "THAWED") {
                    let _ = fs::write(&file, "THAWED");
                }
            });
        }
    }

    /// Removes the group, which holds no process any more.
    pub fn remove(&self) -> Result<()> {
        for directory in self.directories() {
            // The kernel lets go of a group some time after its last process.
            wait_for(format!("removing {}", directory.display()), Duration::from_secs(10), || {
                match remove_tree(&directory) {
                    Ok(()) => Ok(Some(())),
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
                    Err(error) => {
                        Err(error).with_context(|| format!("removing {}", directory.display()))
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Directories of the group that exist.
    pub fn remains(&self) -> Vec<PathBuf> {
        self.directories().filter(|directory| directory.exists()).collect()
    }
}

fn make(directory: &Path) -> Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("creating {}", directory.display()));
        }
        _ => {}
    }
    seed_cpuset(directory)
}

/// A version 1 cpuset accepts processes only once it has processors and memory nodes.
pub fn seed_cpuset(directory: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        let empty = fs::read_to_string(&file).is_ok_and(|text| text.trim().is_empty());
        // Version 2 inherits when the file is empty.
        if empty && !directory.join("cgroup.controllers").exists() {
            let parent = directory.parent().context("a group has a parent")?;
            fs::write(&file, fs::read_to_string(parent.join(name))?)
                .with_context(|| format!("writing {}", file.display()))?;
        }
    }
    Ok(())
}

/// Version 2: lets the groups below use every controller that this one has.
pub fn delegate_controllers(directory: &Path) -> Result<()> {
    let file = directory.join("cgroup.controllers");
    let list = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    for controller in list.split_whitespace() {
        // Some (cpu with real-time tasks, for example) cannot be had everywhere: kubelet says so.
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Parents first.
fn visit(directory: &Path, see: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    see(directory);
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path(), see);
        }
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_once() {
        let found = parse_mountinfo(
            "23 27 0:22 / /sys rw - sysfs sysfs rw\n\
             31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             33 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
             50 31 0:38 / /elsewhere rw - cgroup2 cgroup2 rw\n",
        );
        let expected = [
            ("/sys/fs/cgroup/cpu", Some("cpu,cpuacct")),
            ("/sys/fs/cgroup/systemd", Some("none,name=systemd")),
            ("/sys/fs/cgroup/unified", None),
        ];
        let expected: Vec<Hierarchy> = expected
            .iter()
            .map(|(mount, v1)| Hierarchy { mount: mount.into(), v1: v1.map(Into::into) })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_tree_is_removed_from_its_leaves_and_a_missing_one_is_fine() {
        let work = tempfile::tempdir().unwrap();
        fs::create_dir_all(work.path().join("a/b/c")).unwrap();
        fs::create_dir_all(work.path().join("a/d")).unwrap();
        remove_tree(&work.path().join("a")).unwrap();
        assert!(!work.path().join("a").exists());
        remove_tree(&work.path().join("a")).unwrap();
    }
}
