//! Makes durable what a vote promises about this node's disk: everything that was written for a
//! migration, and what the pod has written to its persistent volumes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
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

/// File in the migration's directory that names them, once they were noted.
const VOLUMES: &str = "volumes.json";

/// All data and names of the file system that holds the migration's directory are on the disk when
/// this returns. One call for thousands of files; what others write waits with it.
pub fn durable(dir: &MigrationDir) -> Result<()> {
    sync([dir.path()], |_| ())
}

/// The same of a source in the sequential order, and of the file systems of the pod's persistent
/// volumes: the memory that is kept takes what was written there for written. `limit` is what is left
/// of `what`, the freeze: storage that does not answer must not keep the pod frozen.
pub async fn durable_with_volumes(
    holder: &Holder,
    pod: &Pod,
    limit: Duration,
    what: &str,
) -> Result<()> {
    let places = places(holder, pod)?;
    // What this process runs from, even where an upgrade has replaced the file.
    let mut command = Command::new("/proc/self/exe");
    command.arg("sync").args(&places);
    let first = holder.dir.path().to_path_buf();
    let Some(place) = within(limit, first, command).await? else { return Ok(()) };
    let pod_dir = holder.task.kubelet_root.join("pods").join(&holder.task.pod.uid);
    bail!(
        "{} was not written through in the {:.1} s that were left of {what}; see whether its storage answers",
        name(&place, &pod_dir),
        limit.as_secs_f64()
    )
}

/// Notes the pod's persistent volumes: the bundles that tell of them go with containers that end.
pub fn note_volumes(holder: &Holder, pod: &Pod) -> Result<()> {
    Ok(files::write_json(&holder.dir.path().join(VOLUMES), &persistent(holder, pod)?)?)
}

/// Waits for a [`told`] sync no longer than `limit`; then it gives the place that it is still at, which is
/// `first` until it says another. In a process of its own, which nothing waits for then: it may hang in the kernel,
/// and as a thread it would keep this process from ending, and its journal locked.
async fn within(limit: Duration, first: PathBuf, mut command: Command) -> Result<Option<PathBuf>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the sync")?;
    let told = child.stdout.take().context("the sync tells nothing")?;
    let mut at = first;
    let outcome = tokio::time::timeout(limit, follow(&mut child, told, &mut at)).await;
    match outcome {
        Ok(ended) => ended.map(|()| None),
        Err(_) => {
            // It ends when the kernel lets it.
            let _ = child.start_kill();
            Ok(Some(at))
        }
    }
}

async fn follow(child: &mut Child, told: ChildStdout, at: &mut PathBuf) -> Result<()> {
    let mut lines = BufReader::new(told).lines();
    let mut failure = None;
    while let Some(line) = lines.next_line().await.context("cannot follow the sync")? {
        match line.split_once(' ') {
            Some((AT, place)) => *at = PathBuf::from(place),
            Some((FAILED, why)) => failure = Some(why.to_owned()),
            _ => {}
        }
    }
    let status = child.wait().await.context("cannot follow the sync")?;
    match failure {
        Some(why) => bail!(why),
        None if status.success() => Ok(()),
        None => bail!("the sync ended unexpectedly ({status})"),
    }
}

/// How the lines begin that a sync in a process of its own tells.
const AT: &str = "at";
const FAILED: &str = "failed";

/// Makes the file systems of these places durable, and writes down which one it is at, and why it failed.
pub fn told(places: &[PathBuf], mut tell: impl Write) -> ExitCode {
    // Nobody listens when the time is up.
    let mut line = |what: &str, text: &str| {
        let _ = writeln!(tell, "{what} {}", text.replace('\n', " "));
    };
    let places = places.iter().map(PathBuf::as_path);
    match sync(places, |place| line(AT, &place.display().to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            line(FAILED, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// What people call the place: a volume by the name of its directory, which is that of its
/// PersistentVolume or, with sub-paths, of the pod's volume.
fn name(place: &Path, pod_dir: &Path) -> String {
    let below = place.strip_prefix(pod_dir).unwrap_or(Path::new(""));
    let mut parts = below.iter().map(|part| part.to_string_lossy());
    let volume = match parts.next().as_deref() {
        Some("volumes") => parts.nth(1),
        Some("volume-subpaths") => parts.next(),
        _ => None,
    };
    match volume {
        Some(volume) => format!("volume {volume} ({})", place.display()),
        None => place.display().to_string(),
    }
}

/// The migration's directory, and the pod's persistent volumes.
fn places(holder: &Holder, pod: &Pod) -> Result<Vec<PathBuf>> {
    let mut places = vec![holder.dir.path().to_path_buf()];
    let noted = files::read_json_opt::<BTreeSet<PathBuf>>(&holder.dir.path().join(VOLUMES))?;
    places.extend(noted.map_or_else(|| persistent(holder, pod), Ok)?);
    Ok(places)
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

/// Every file system that holds one of the paths is on its disk when this returns, each asked once;
/// `began` is told each path before.
fn sync<'a>(
    places: impl IntoIterator<Item = &'a Path>,
    mut began: impl FnMut(&Path),
) -> Result<()> {
    let mut done = BTreeSet::new();
    for place in places {
        began(place);
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
        sync([path.as_path()], |_| ()).unwrap();
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

    #[tokio::test]
    async fn storage_that_does_not_answer_is_waited_for_no_longer_than_the_freeze_lasts() {
        let root = tempfile::tempdir().unwrap();
        let script = |text: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", text]).current_dir(root.path());
            command
        };
        let first = || PathBuf::from("/first");
        let made = script("mkfifo never").status().await.unwrap();
        assert!(made.success());
        let hangs = script("echo at /srv/data; read -r line < never");
        let late = within(Duration::from_secs(2), first(), hangs).await.unwrap();
        assert_eq!(late, Some("/srv/data".into()));
        let late = within(Duration::ZERO, first(), script("read -r line < never")).await.unwrap();
        assert_eq!(late, Some(first()), "nothing was begun");
        let minute = Duration::from_secs(60);
        assert_eq!(within(minute, first(), script("echo at /srv/data")).await.unwrap(), None);
        for (text, expected) in [
            ("echo at /srv/data; echo failed no room; exit 1", "no room"),
            ("exit 3", "the sync ended unexpectedly"),
        ] {
            let error = within(minute, first(), script(text)).await.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_sync_tells_where_it_is_and_why_it_failed() {
        let root = tempfile::tempdir().unwrap();
        let [there, missing] = ["", "missing"].map(|name| root.path().join(name));
        let mut text = Vec::new();
        assert_eq!(told(std::slice::from_ref(&there), &mut text), ExitCode::SUCCESS);
        assert_eq!(String::from_utf8(text).unwrap(), format!("at {}\n", there.display()));
        let mut text = Vec::new();
        assert_eq!(told(&[there, missing.clone()], &mut text), ExitCode::FAILURE);
        let text = String::from_utf8(text).unwrap();
        let expected = format!("failed cannot open {}: ", missing.display());
        assert!(text.lines().last().unwrap().starts_with(&expected), "{text}");
    }

    #[test]
    fn a_volume_is_told_by_its_name() {
        let pod_dir = Path::new("/var/lib/kubelet/pods/u");
        for (place, expected) in [
            ("volumes/kubernetes.io~nfs/pvc-1", "volume pvc-1 ("),
            ("volumes/kubernetes.io~csi/pvc-1/mount", "volume pvc-1 ("),
            ("volume-subpaths/data/web/0", "volume data ("),
            ("/srv/data", "/srv/data"),
        ] {
            let place = pod_dir.join(place);
            let name = name(&place, pod_dir);
            assert!(name.starts_with(expected), "{name}");
            assert!(name.contains(&place.display().to_string()), "{name}");
        }
    }

    #[tokio::test]
    async fn persistent_volumes_are_durable_with_the_state() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let mut task = task();
        task.kubelet_root = root.path().join("kubelet");
        let dir = host.migration(&task.migration.uid, Role::Source).unwrap();
        let volumes = task.kubelet_root.join("pods").join(&task.pod.uid).join("volumes");
        let claim = volumes.join("kubernetes.io~csi/pvc-1/mount");
        let layout = Layout { tasks: root.path().join("tasks"), ..Layout::default() };
        let pod = pod_of_self();
        let bundle = layout.bundle(&pod.containers[0].id);
        let mut holder = Holder::new(host, layout, dir.clone(), task);
        let own = dir.path().to_path_buf();
        let alone = places(&holder, &pod).expect("a pod without claims needs no bundle");
        assert_eq!(alone, std::slice::from_ref(&own));

        holder.task.stand_ins = vec!["data".into()];
        assert!(places(&holder, &pod).is_err(), "its mounts are not known");
        std::fs::create_dir_all(&bundle).unwrap();
        let config = json!({"mounts": [
            {"destination": "/proc", "source": "proc"},
            {"destination": "/cache", "source": volumes.join("kubernetes.io~empty-dir/cache")},
            {"destination": "/data", "source": claim},
            {"destination": "/again", "source": claim}
        ]});
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        assert_eq!(places(&holder, &pod).unwrap(), [own, claim]);
    }
}
