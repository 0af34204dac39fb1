//! What the OCI bundle and runc's state of a container say about it: the pod, the container's name, its
//! cgroup.
//!
//! containerd writes the pod's UID and the names into the bundle's annotations itself; nobody who creates a
//! pod can set these keys. No other annotation is read here.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files;
use crate::freezer::Freezer;
use crate::invocation::Invocation;

const MAX_CONFIG: u64 = 16 << 20;

/// The program that becomes the runtime.
pub const WRAPPER: &str = "/opt/transship/bin/transship-runc";

/// A container of a pod, as its bundle describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// The bundle's directory; empty if only runc's state was found.
    pub dir: PathBuf,
    /// The pod's UID.
    pub pod_uid: Option<String>,
    /// The container's name; none for a sandbox.
    pub container: Option<String>,
    /// Whether this is the pod's sandbox container.
    pub sandbox: bool,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// `linux.cgroupsPath`.
    pub cgroups_path: String,
    /// Cgroup directories by controller (`""` for v2), from runc's state.
    pub cgroup_dirs: Vec<(String, PathBuf)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    annotations: Annotations,
    root: Root,
    linux: Linux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "io.kubernetes.cri.sandbox-uid")]
    sandbox_uid: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    container_name: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-type")]
    container_type: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Root {
    path: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    cgroups_path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct State {
    config: StateConfig,
    cgroup_paths: std::collections::BTreeMap<String, PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StateConfig {
    rootfs: PathBuf,
    labels: Vec<String>,
}

impl Bundle {
    /// Reads `config.json` of a bundle.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let content = files::read_bounded(&path, MAX_CONFIG)?;
        let config: Config =
            serde_json::from_slice(&content).map_err(|source| Error::Damaged { path, source })?;
        Ok(Self {
            dir: dir.to_path_buf(),
            pod_uid: config.annotations.sandbox_uid,
            container: config.annotations.container_name,
            sandbox: config.annotations.container_type.as_deref() == Some("sandbox"),
            rootfs: dir.join(config.root.path),
            cgroups_path: config.linux.cgroups_path,
            cgroup_dirs: Vec::new(),
        })
    }

    /// Reads runc's `state.json` of a container: runc keeps the bundle's annotations as labels.
    pub fn read_state(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join("state.json");
        let content = files::read_bounded(&path, MAX_CONFIG)?;
        let state: State =
            serde_json::from_slice(&content).map_err(|source| Error::Damaged { path, source })?;
        let label = |key: &str| {
            let labels = state.config.labels.iter();
            labels.filter_map(|l| l.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
        };
        Ok(Self {
            dir: label("bundle").map(PathBuf::from).unwrap_or_default(),
            pod_uid: label("io.kubernetes.cri.sandbox-uid").map(str::to_owned),
            container: label("io.kubernetes.cri.container-name").map(str::to_owned),
            sandbox: label("io.kubernetes.cri.container-type") == Some("sandbox"),
            rootfs: state.config.rootfs.clone(),
            cgroups_path: String::new(),
            cgroup_dirs: state.cgroup_paths.into_iter().collect(),
        })
    }

    /// The container that a command line of runc speaks of, where `cwd` is the caller's directory. `None`:
    /// it cannot be found, so it is no container of containerd's that exists (any more).
    pub fn of(invocation: &Invocation, cwd: &Path) -> Option<Self> {
        if let Some(bundle) = &invocation.bundle {
            return Self::read(&cwd.join(bundle)).ok();
        }
        if let Some(state_dir) = invocation.state_dir()
            && let Ok(found) = Self::read_state(&state_dir)
        {
            return Some(found);
        }
        let id = invocation.id.as_deref()?;
        // A shim works in the bundle of the container (or, when it serves a whole pod, of the sandbox), and
        // bundles are siblings named by container id.
        if cwd.file_name().is_some_and(|name| name == id) || invocation.verb.as_deref()? == "create"
        {
            return Self::read(cwd).ok();
        }
        Self::read(&cwd.parent()?.join(id)).ok()
    }

    /// The freezer cgroup of the container: from runc's state, else from the bundle. It may not exist (yet,
    /// or any more).
    pub fn freezer(&self) -> Result<Freezer> {
        let of = |controller: &str| {
            let mut dirs = self.cgroup_dirs.iter();
            dirs.find(|(name, _)| name == controller).map(|(_, dir)| dir.clone())
        };
        use crate::freezer::CgroupVersion::{V1, V2};
        if let Some(dir) = of("freezer") {
            return Ok(Freezer { dir, version: V1 });
        }
        if let Some(dir) = of("") {
            return Ok(Freezer { dir, version: V2 });
        }
        Freezer::at_cgroups_path(&self.cgroups_path)
    }
}

/// Whether the shim of the task in this bundle was configured to call the wrapper for it. The shim keeps the
/// program that it was started with in the bundle: `runtime` up to containerd 1.7, `options.json` as well.
pub fn calls_wrapper(dir: &Path) -> bool {
    ["options.json", "runtime"]
        .iter()
        .any(|file| fs::read_to_string(dir.join(file)).is_ok_and(|text| text.contains(WRAPPER)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::freezer::CgroupVersion;

    const CONFIG: &str = r#"{"ociVersion":"1.2.1","process":{"args":["/w"]},"root":{"path":"rootfs"},
        "annotations":{"io.kubernetes.cri.sandbox-uid":"p-1","io.kubernetes.cri.container-name":"web",
        "io.kubernetes.cri.container-type":"container","org.criu.config":"/x"},
        "linux":{"cgroupsPath":"/kubepods/p1/c1"}}"#;

    fn bundle(dir: &Path, id: &str) -> PathBuf {
        let bundle = dir.join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), CONFIG).unwrap();
        bundle
    }

    fn invocation(line: &str) -> Invocation {
        Invocation::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_bundle_tells_whether_the_wrapper_is_called_for_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!calls_wrapper(dir.path()), "the runtime's own default");
        let options = dir.path().join("options.json");
        fs::write(&options, r#"{"systemd_cgroup":false}"#).unwrap();
        assert!(!calls_wrapper(dir.path()));
        fs::write(&options, format!(r#"{{"binary_name":"{WRAPPER}"}}"#)).unwrap();
        assert!(calls_wrapper(dir.path()));
        fs::remove_file(&options).unwrap();
        fs::write(dir.path().join("runtime"), WRAPPER).unwrap();
        assert!(calls_wrapper(dir.path()));
    }

    #[test]
    fn a_bundle_tells_pod_container_and_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = bundle(dir.path(), "c1");
        let got = Bundle::read(&path).unwrap();
        assert_eq!(got.pod_uid.as_deref(), Some("p-1"));
        assert_eq!(got.container.as_deref(), Some("web"));
        assert!(!got.sandbox);
        assert_eq!(got.rootfs, path.join("rootfs"));
        assert_eq!(got.cgroups_path, "/kubepods/p1/c1");
    }

    #[test]
    fn runcs_state_tells_the_same_from_its_labels() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("state.json"),
            r#"{"id":"c1","config":{"rootfs":"/b/rootfs","labels":["io.kubernetes.cri.sandbox-uid=p-1",
               "io.kubernetes.cri.container-type=sandbox","bundle=/b"]},
               "cgroup_paths":{"":"/sys/fs/cgroup/unified/x","freezer":"/sys/fs/cgroup/freezer/x"}}"#,
        )
        .unwrap();
        let got = Bundle::read_state(dir.path()).unwrap();
        assert_eq!((got.pod_uid.as_deref(), got.sandbox), (Some("p-1"), true));
        assert_eq!(got.dir, Path::new("/b"));
        let freezer = got.freezer().unwrap();
        assert_eq!(freezer.version, CgroupVersion::V1, "a hybrid host freezes by v1");
        assert_eq!(freezer.dir, Path::new("/sys/fs/cgroup/freezer/x"));
    }

    #[test]
    fn the_bundle_is_found_from_each_verb() {
        let dir = tempfile::tempdir().unwrap();
        let own = bundle(dir.path(), "c1");
        let sandbox = dir.path().join("s1");
        fs::create_dir_all(&sandbox).unwrap();
        let root = format!("--root {}/none", dir.path().display());
        let cases = [
            (format!("create --bundle {} c1", own.display()), Path::new("/")),
            ("create c1".into(), own.as_path()),
            (format!("{root} kill c1 9"), own.as_path()),
            (format!("{root} kill c1 9"), sandbox.as_path()),
        ];
        for (line, cwd) in cases {
            let found = Bundle::of(&invocation(&line), cwd);
            assert_eq!(found.and_then(|b| b.pod_uid).as_deref(), Some("p-1"), "{line} in {cwd:?}");
        }
        assert_eq!(Bundle::of(&invocation(&format!("{root} kill c2 9")), &sandbox), None);
    }

    #[test]
    fn a_foreign_bundle_has_no_pod() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(Bundle::read(dir.path()).unwrap().pod_uid, None);
        fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(Bundle::read(dir.path()).is_err());
    }
}
