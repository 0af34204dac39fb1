//! A container as runc's `state.json` and its bundle describe it. No daemon is asked, so this
//! works while containerd restarts.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Error, Layout, Result, mounts};

/// Annotation of a container that names a configuration file for CRIU.
const CRIU_CONFIG: &str = "org.criu.config";

/// A container with a first process (running or frozen).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// runc's and containerd's id.
    pub id: String,
    /// The first process, in the node's process namespace.
    pub pid: i32,
    /// Start time of that process in clock ticks since boot: with the pid it names the process
    /// for ever.
    pub start_time: u64,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// The root file system as mounted for the container on the node.
    pub rootfs: PathBuf,
    /// Its freezer cgroup: version 1 the directory of the freezer hierarchy, version 2 the
    /// container's directory.
    pub freezer: PathBuf,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// The file by which an annotation of the container changes what CRIU does; empty for none.
    pub criu_config: String,
}

/// The part of runc's `state.json` that we rely on.
#[derive(Deserialize)]
struct RuncState {
    id: String,
    init_process_pid: i32,
    init_process_start: u64,
    cgroup_paths: std::collections::HashMap<String, PathBuf>,
    config: RuncConfig,
}

#[derive(Deserialize)]
struct RuncConfig {
    rootfs: PathBuf,
    #[serde(default)]
    labels: Vec<String>,
}

impl Container {
    /// Reads what runc knows about container `id`.
    pub fn find(layout: &Layout, id: &str) -> Result<Self> {
        let path = layout.runc_root.join(id).join("state.json");
        let text = crate::read(&path)?;
        Self::parse(&text, &path)
    }

    /// Reads the text of a `state.json`; `path` is for errors.
    fn parse(text: &str, path: &Path) -> Result<Self> {
        let malformed = |message: String| Error::Malformed { path: path.to_path_buf(), message };
        let state: RuncState =
            serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        // runc keeps the bundle's annotations and a few notes of its own.
        let label = |name: &str| {
            let labels = state.config.labels.iter();
            labels.filter_map(|label| label.split_once('=')).find(|(key, _)| *key == name)
        };
        let bundle = label("bundle")
            .map(|(_, path)| PathBuf::from(path))
            .ok_or_else(|| malformed("no bundle is named".into()))?;
        let (freezer, cgroup_version) = freezer(&state.cgroup_paths)
            .ok_or_else(|| malformed("the container has no freezer cgroup".into()))?;
        Ok(Container {
            id: state.id,
            pid: state.init_process_pid,
            start_time: state.init_process_start,
            bundle,
            rootfs: state.config.rootfs,
            freezer,
            cgroup_version,
            criu_config: label(CRIU_CONFIG).map(|(_, file)| file.to_owned()).unwrap_or_default(),
        })
    }

    /// The writable layer of the container's root file system.
    pub fn upper(&self, layout: &Layout) -> Result<PathBuf> {
        mounts::upper_of(&layout.proc.join("self/mountinfo"), &self.rootfs)
    }

    /// Whether the first process is still the one that `state.json` names.
    pub fn is_alive(&self, layout: &Layout) -> bool {
        start_time(layout, self.pid) == Some(self.start_time)
    }

    /// Paths of the namespaces that the bundle's config joins, by type (`network`, `ipc`, `uts`).
    pub fn namespace(&self, kind: &str) -> Result<Option<PathBuf>> {
        let path = self.bundle.join("config.json");
        let config: serde_json::Value = serde_json::from_str(&crate::read(&path)?)
            .map_err(|error| Error::Malformed { path, message: error.to_string() })?;
        Ok(config
            .pointer("/linux/namespaces")
            .and_then(|list| list.as_array())
            .and_then(|list| list.iter().find(|namespace| namespace["type"] == kind))
            .and_then(|namespace| namespace["path"].as_str())
            .filter(|path| !path.is_empty())
            .map(PathBuf::from))
    }
}

/// Version 2 has one path under the empty key, version 1 one per hierarchy.
fn freezer(paths: &std::collections::HashMap<String, PathBuf>) -> Option<(PathBuf, u8)> {
    paths
        .get("freezer")
        .map(|path| (path.clone(), 1))
        .or_else(|| paths.get("").map(|path| (path.clone(), 2)))
}

/// Start time of a process in clock ticks since boot (field 22 of `stat`).
pub fn start_time(layout: &Layout, pid: i32) -> Option<u64> {
    after_name(layout, pid)?.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Parent of a process (field 4 of `stat`): for a container's first process the shim, until that dies.
pub fn parent(layout: &Layout, pid: i32) -> Option<u32> {
    after_name(layout, pid)?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// What a process has started and not waited for yet, with all its threads.
///
/// Errors: it has ended, or one of its threads meanwhile, which hands its own on.
pub fn children(layout: &Layout, pid: i32) -> std::io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir(layout.of_process(pid, "task"))? {
        let children = std::fs::read_to_string(thread?.path().join("children"))?;
        found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(found)
}

/// Name of containerd's shims, as the kernel keeps it.
pub const SHIM: &str = "containerd-shim";

/// Whether a process is one of containerd's shims.
pub fn is_shim(layout: &Layout, pid: u32) -> bool {
    is_named(layout, pid.cast_signed(), SHIM)
}

/// The command name in a process's `stat`, which may hold spaces and brackets itself.
fn name(stat: &str) -> Option<&str> {
    let (head, _) = stat.rsplit_once(')')?;
    head.split_once('(').map(|(_, name)| name)
}

/// Whether a process has this name.
pub fn is_named(layout: &Layout, pid: i32, wanted: &str) -> bool {
    let stat = std::fs::read_to_string(layout.of_process(pid, "stat"));
    stat.is_ok_and(|stat| name(&stat) == Some(wanted))
}

/// Whether a process has ended and waits for its parent to notice.
pub fn is_zombie(layout: &Layout, pid: i32) -> bool {
    after_name(layout, pid).is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}

/// The fields of a process's `stat` from the third on: what follows the command name, which may hold
/// spaces and brackets, begins behind its last bracket.
fn after_name(layout: &Layout, pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(layout.of_process(pid, "stat")).ok()?;
    stat.rsplit_once(')').map(|(_, rest)| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = r#"{"id":"c1","init_process_pid":42,"init_process_start":777,
        "created":"2026-01-01T00:00:00Z",
        "config":{"rootfs":"/run/b/c1/rootfs","labels":["io.kubernetes.cri.x=y","bundle=/run/b/c1"]},
        "cgroup_paths":{"cpu":"/sys/fs/cgroup/cpu/kubepods/c1","freezer":"/sys/fs/cgroup/freezer/kubepods/c1"}}"#;

    #[test]
    fn a_configuration_for_criu_is_found_among_the_annotations() {
        let find =
            |text: &str| Container::parse(text, Path::new("state.json")).unwrap().criu_config;
        assert_eq!(find(V1), "");
        assert_eq!(find(&V1.replace("io.kubernetes.cri.x=y", "org.criu.config=/a=b")), "/a=b");
    }

    #[test]
    fn a_state_file_of_cgroup_version_1_is_understood() {
        let container = Container::parse(V1, Path::new("state.json")).unwrap();
        assert_eq!(container.pid, 42);
        assert_eq!(container.start_time, 777);
        assert_eq!(container.bundle, Path::new("/run/b/c1"));
        assert_eq!(container.freezer, Path::new("/sys/fs/cgroup/freezer/kubepods/c1"));
        assert_eq!(container.cgroup_version, 1);
    }

    #[test]
    fn a_state_file_of_cgroup_version_2_is_understood() {
        let text = V1
            .replace(r#""cpu":"/sys/fs/cgroup/cpu/kubepods/c1","#, "")
            .replace(r#""freezer":"/sys/fs/cgroup/freezer"#, r#""":"/sys/fs/cgroup"#);
        let container = Container::parse(&text, Path::new("state.json")).unwrap();
        assert_eq!(container.freezer, Path::new("/sys/fs/cgroup/kubepods/c1"));
        assert_eq!(container.cgroup_version, 2);
    }

    #[test]
    fn a_state_file_without_bundle_or_freezer_is_refused_by_name() {
        for text in [V1.replace("bundle=", "b="), V1.replace("freezer", "fridge")] {
            let error = Container::parse(&text, Path::new("/r/state.json")).unwrap_err();
            assert!(error.to_string().starts_with("/r/state.json: "), "{error}");
        }
    }

    #[test]
    fn a_shim_is_known_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { proc: root.path().to_path_buf(), ..Layout::default() };
        for (pid, text) in [
            ("1", "1 (systemd) S 0"),
            ("7", "7 (containerd-shim) S 1"),
            ("8", "8 (a (containerd-shim) S 1"),
            ("9", "9 (containerd-shim"),
        ] {
            std::fs::create_dir(root.path().join(pid)).unwrap();
            std::fs::write(root.path().join(pid).join("stat"), text).unwrap();
        }
        let shims: Vec<u32> = (1..=10).filter(|pid| is_shim(&layout, *pid)).collect();
        assert_eq!(shims, [7]);
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let layout = Layout::default();
        let me = std::process::id() as i32;
        assert!(start_time(&layout, me).is_some());
        assert_eq!(start_time(&layout, 0), None);
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { proc: root.path().to_path_buf(), ..Layout::default() };
        std::fs::create_dir(root.path().join("7")).unwrap();
        let odd = "7 (a) R (b) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 12 0 5 0 0\n";
        std::fs::write(root.path().join("7/stat"), odd).unwrap();
        assert_eq!(start_time(&layout, 7), Some(5));
    }
}
