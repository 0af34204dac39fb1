//! Makes durable what a vote promises about this node's disk: everything that was written for a
//! migration, and what the pod has written to its persistent volumes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use transship_host::files;
use transship_host::paths::MigrationDir;

use crate::holder::Holder;
use crate::pod::Pod;

/// Where in the pod's directory kubelet has the volumes that it makes itself. They are sent, or made
/// anew.
const MADE_BY_KUBELET: [&str; 5] = [
    "volumes/kubernetes.io~configmap",
    "volumes/kubernetes.io~downward-api",
    "volumes/kubernetes.io~empty-dir",
    "volumes/kubernetes.io~projected",
    "volumes/kubernetes.io~secret",
];

/// All data and names of the file system that holds the migration's directory are on the disk when
/// this returns. One call for thousands of files; what others write waits with it.
pub fn durable(dir: &MigrationDir) -> Result<()> {
    sync([dir.path()])
}

/// The same of a source in the sequential order, and of the file systems of the pod's persistent
/// volumes: the memory that is kept takes what was written there for written.
pub fn durable_with_volumes(holder: &Holder, pod: &Pod) -> Result<()> {
    let volumes = persistent(holder, pod)?;
    sync(std::iter::once(holder.dir.path()).chain(volumes.iter().map(PathBuf::as_path)))
}

/// Where the persistent volumes that the containers have mounted lie on the node.
fn persistent(holder: &Holder, pod: &Pod) -> Result<BTreeSet<PathBuf>> {
    let task = &holder.task;
    let mut places = BTreeSet::new();
    if task.stand_ins.is_empty() {
        return Ok(places);
    }
    let pod_dir = task.kubelet_root.join("pods").join(&task.pod.uid);
    for container in &pod.containers {
        let bundle = holder.layout.bundle(&container.id);
        let config: Value = files::read_json(&bundle.join("config.json"))?;
        let mounts = config["mounts"].as_array().into_iter().flatten();
        let sources = mounts.filter_map(|mount| mount["source"].as_str()).map(Path::new);
        places.extend(
            sources
                .filter(|source| is_persistent(source, &pod_dir, &pod.sandbox_id))
                .map(Path::to_path_buf),
        );
    }
    Ok(places)
}

/// Whether a mount comes from a volume that outlives the pod. These are called after the
/// PersistentVolume, which the pod does not name, so they are told by what they are not. Of sub-paths
/// the kind does not show; one file system too many does no harm.
fn is_persistent(source: &Path, pod_dir: &Path, sandbox_id: &str) -> bool {
    match source.strip_prefix(pod_dir) {
        Ok(below) if below.starts_with("volumes") => {
            !MADE_BY_KUBELET.iter().any(|volumes| below.starts_with(volumes))
        }
        Ok(below) => below.starts_with("volume-subpaths"),
        // A directory of the node (hostPath), if it is not one of the sandbox's files.
        Err(_) => source.is_absolute() && !source.iter().any(|part| part == sandbox_id),
    }
}

/// Every file system that holds one of the paths is on its disk when this returns, each asked once.
fn sync<'a>(places: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut done = BTreeSet::new();
    for place in places {
        // A sub-path may be a FIFO, which must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(place, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", place.display()))?;
        let stat = rustix::fs::fstat(&file)
            .with_context(|| format!("cannot look at {}", place.display()))?;
        if done.insert(stat.st_dev) {
            rustix::fs::syncfs(&file)
                .with_context(|| format!("{} cannot be made durable", place.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    use super::*;
    use crate::areas::tests::task;
    use crate::pod::tests::pod_of_self;

    #[test]
    fn a_directory_is_made_durable_and_a_missing_one_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        durable(&MigrationDir::at(root.path())).unwrap();
        assert!(durable(&MigrationDir::at(root.path().join("missing"))).is_err());
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("fifo");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        sync([path.as_path()]).unwrap();
    }

    #[test]
    fn what_outlives_the_pod_is_told_by_its_place() {
        let pod_dir = Path::new("/var/lib/kubelet/pods/u");
        for (source, expected) in [
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1/mount", true),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~local-volume/local-1", true),
            ("/var/lib/kubelet/pods/u/volume-subpaths/pvc-1/web/0", true),
            ("/srv/data", true),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache", false),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~projected/token", false),
            ("/var/lib/kubelet/pods/u/etc-hosts", false),
            ("/var/lib/kubelet/pods/u/containers/web/8d3a", false),
            ("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s/shm", false),
            ("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s/hostname", false),
            ("proc", false),
        ] {
            assert_eq!(is_persistent(Path::new(source), pod_dir, "s"), expected, "{source}");
        }
    }

    #[test]
    fn persistent_volumes_are_durable_with_the_state() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let mut task = task();
        task.kubelet_root = root.path().join("kubelet");
        let dir = host.migration(&task.migration.uid, Role::Source).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let volumes = task.kubelet_root.join("pods").join(&task.pod.uid).join("volumes");
        let claim = volumes.join("kubernetes.io~csi/pvc-1/mount");
        let layout = Layout { tasks: root.path().join("tasks"), ..Layout::default() };
        let pod = pod_of_self();
        let bundle = layout.bundle(&pod.containers[0].id);
        let mut holder = Holder::new(host, layout, dir, task);
        durable_with_volumes(&holder, &pod).expect("a pod without claims needs no bundle");

        holder.task.stand_ins = vec!["data".into()];
        assert!(durable_with_volumes(&holder, &pod).is_err(), "its mounts are not known");
        std::fs::create_dir_all(&bundle).unwrap();
        let config = json!({"mounts": [
            {"destination": "/proc", "source": "proc"},
            {"destination": "/cache", "source": volumes.join("kubernetes.io~empty-dir/cache")},
            {"destination": "/data", "source": claim},
            {"destination": "/again", "source": claim}
        ]});
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        assert_eq!(persistent(&holder, &pod).unwrap(), BTreeSet::from([claim.clone()]));
        let error = format!("{:#}", durable_with_volumes(&holder, &pod).unwrap_err());
        assert!(error.contains("pvc-1"), "{error}");
        std::fs::create_dir_all(&claim).unwrap();
        durable_with_volumes(&holder, &pod).unwrap();
    }
}
