//! What a restore on trial has in the place of a volume that only one node may attach: an empty
//! directory with files of the same names, types and lengths, without content. CRIU opens files by
//! name and checks type and length, so the trial shows that every descriptor, mapping and working
//! directory can be restored, and says nothing about what the volume holds.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use transship_criu::named_files::{NamedFile, named_files};
use transship_host::files;

use crate::holder::Holder;

const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const FIFO: u32 = 0o010_000;

/// Makes what the images of a container need in the volumes that have a stand-in.
pub fn prepare(holder: &Holder, bundle: &Path, images: &Path) -> Result<()> {
    let task = &holder.task;
    if task.stand_ins.is_empty() || task.part.is_again() {
        return Ok(());
    }
    let pod_dir = task.kubelet_root.join("pods").join(&task.pod.uid);
    let config: Value = files::read_json(&bundle.join("config.json"))?;
    let places = places(&config, &pod_dir, &task.stand_ins);
    for file in named_files(images).context("the dump's files cannot be told")? {
        // The deepest mount holds it.
        let place = places
            .iter()
            .filter(|(inside, _)| file.path.starts_with(inside))
            .max_by_key(|(inside, _)| inside.as_os_str().len());
        if let Some((inside, outside)) = place {
            let below = file.path.strip_prefix(inside).unwrap_or(Path::new(""));
            make(outside, below, &file)
                .with_context(|| format!("no stand-in for {}", file.path.display()))?;
        }
    }
    Ok(())
}

/// Mount points in the container and where they lie on the node.
fn places(config: &Value, pod_dir: &Path, stand_ins: &[String]) -> Vec<(PathBuf, PathBuf)> {
    let mounts = config["mounts"].as_array().into_iter().flatten();
    mounts
        .filter_map(|mount| {
            let source = PathBuf::from(mount["source"].as_str()?);
            let inside = PathBuf::from(mount["destination"].as_str()?);
            stand_ins
                .iter()
                .any(|volume| {
                    ["volumes/kubernetes.io~empty-dir", "volume-subpaths"]
                        .iter()
                        .any(|kind| source.starts_with(pod_dir.join(kind).join(volume)))
                })
                .then_some((inside, source))
        })
        .collect()
}

fn make(root: &Path, below: &Path, file: &NamedFile) -> Result<()> {
    // Nothing but us writes here, so there are no links to follow; and none of the names may be one.
    if below.components().any(|part| !matches!(part, Component::Normal(_))) {
        bail!("its name leaves the volume");
    }
    let path = root.join(below);
    let there = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    if file.mode & TYPE_MASK == DIRECTORY {
        fs::create_dir_all(&path)?;
        if path != root {
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode & 0o7777))?;
        }
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match file.mode & TYPE_MASK {
        REGULAR => {
            let made = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            made.set_len(file.size)?;
            Ok(made.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))?)
        }
        FIFO => {
            let mode = rustix::fs::Mode::from_raw_mode(file.mode & 0o7777);
            let made =
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0);
            Ok(there(made.map_err(Into::into))?)
        }
        _ => bail!("it is neither a file, a directory nor a FIFO"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use serde_json::json;

    use super::*;

    #[test]
    fn only_mounts_of_the_volumes_count() {
        let pod = Path::new("/var/lib/kubelet/pods/u");
        let config = json!({"mounts": [
            {"destination": "/data", "source": "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/data"},
            {"destination": "/part", "source": "/var/lib/kubelet/pods/u/volume-subpaths/data/web/0"},
            {"destination": "/tmp", "source": "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/tmp"},
            {"destination": "/x", "source": "/var/lib/kubelet/pods/v/volumes/kubernetes.io~empty-dir/data"},
            {"destination": "/proc", "source": "proc"}
        ]});
        let found = places(&config, pod, &["data".into()]);
        let inside: Vec<_> = found.iter().map(|(inside, _)| inside.to_str().unwrap()).collect();
        assert_eq!(inside, ["/data", "/part"]);
    }

    #[test]
    fn a_stand_in_has_type_mode_and_length() {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str, size, mode| NamedFile { path: path.into(), size, mode };
        let made = [
            file("a/log", 5000, 0o100_640),
            file("a", 0, 0o040_750),
            file("pipe", 0, 0o010_600),
            file("a/log", 5000, 0o100_640),
            file("", 0, 0o040_700),
        ];
        for file in &made {
            make(root.path(), &file.path, file).unwrap();
        }
        let log = fs::metadata(root.path().join("a/log")).unwrap();
        assert_eq!((log.len(), log.mode() & 0o7777), (5000, 0o640));
        assert_eq!(fs::metadata(root.path().join("a")).unwrap().mode() & 0o7777, 0o750);
        assert!(fs::metadata(root.path().join("pipe")).unwrap().file_type().is_fifo());
    }

    #[test]
    fn nothing_is_made_outside_the_volume() {
        let root = tempfile::tempdir().unwrap();
        for (path, mode) in [("../x", 0o100_600), ("/etc/x", 0o100_600), ("dev", 0o020_600)] {
            let file = NamedFile { path: path.into(), size: 1, mode };
            assert!(make(root.path(), &file.path, &file).is_err(), "{path}");
        }
        assert!(fs::read_dir(root.path()).unwrap().next().is_none());
    }
}
