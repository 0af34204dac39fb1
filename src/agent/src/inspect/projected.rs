//! The directories of a container's ConfigMap, Secret and projected volumes that kubelet names by
//! the time: `..2026_11_25_18_00_00.1234`. They have other names on another node, so whatever is
//! open below them cannot be found there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::proc::kernel_device;

/// Entries looked at in all; volumes of this kind are small.
const MAX_ENTRIES: usize = 10_000;

/// What lies below such directories.
#[derive(Debug, Clone, Default)]
pub struct Projected {
    /// Where the volumes are mounted.
    mounts: Vec<String>,
    /// Device and inode of each entry, and its path in the container.
    inodes: Vec<(u64, u64, String)>,
}

impl Projected {
    /// Looks at volumes mounted at `mounts`, in the process's root directory `root`.
    pub fn look(root: &Path, mounts: Vec<String>) -> Self {
        let mut inodes = Vec::new();
        for mount in &mounts {
            let volume = root.join(mount.trim_start_matches('/'));
            let entries = std::fs::read_dir(volume).into_iter().flatten().flatten();
            let mut pending: Vec<_> = entries
                .filter(|entry| is_dated(&entry.file_name().to_string_lossy()))
                .map(|entry| entry.path())
                .collect();
            while let Some(path) = pending.pop() {
                let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
                if inodes.len() >= MAX_ENTRIES {
                    break;
                }
                let below = path.strip_prefix(root).unwrap_or(&path);
                let name = format!("/{}", below.display());
                inodes.push((kernel_device(metadata.dev()), metadata.ino(), name));
                if metadata.is_dir() {
                    let below = std::fs::read_dir(&path).into_iter().flatten().flatten();
                    pending.extend(below.map(|entry| entry.path()));
                }
            }
        }
        Self { mounts, inodes }
    }

    /// Whether a path of the container lies below such a directory.
    pub fn names(&self, path: &str) -> bool {
        self.mounts.iter().any(|mount| {
            let below = path.strip_prefix(mount.as_str()).and_then(|rest| rest.strip_prefix('/'));
            below.is_some_and(is_dated)
        })
    }

    /// The path of an inode, by the kernel's number of its device, that is such a directory or
    /// below one.
    pub fn holds(&self, device: u64, inode: u64) -> Option<&str> {
        let found = self.inodes.iter().find(|(d, i, _)| (*d, *i) == (device, inode));
        found.map(|(_, _, path)| path.as_str())
    }

    #[cfg(test)]
    pub fn of<const N: usize>(mounts: &[&str], inodes: [(u64, u64, &str); N]) -> Self {
        Self {
            mounts: mounts.iter().map(|m| (*m).to_owned()).collect(),
            inodes: inodes.map(|(device, inode, path)| (device, inode, path.to_owned())).into(),
        }
    }
}

/// Whether a name is one that kubelet makes of the time; `..data` is a link to it.
pub fn is_dated(name: &str) -> bool {
    name.strip_prefix("..").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_a_dated_directory_is_known_by_path_and_by_inode() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("etc/c");
        let dated = volume.join("..2026_11_25_18_00_00.12");
        std::fs::create_dir_all(&dated).unwrap();
        std::fs::write(dated.join("key"), "v").unwrap();
        std::os::unix::fs::symlink("..2026_11_25_18_00_00.12", volume.join("..data")).unwrap();
        std::fs::write(volume.join("plain"), "v").unwrap();
        let found = Projected::look(root.path(), vec!["/etc/c".into()]);
        for (path, named) in [
            ("/etc/c/..2026_11_25_18_00_00.12/key", true),
            ("/etc/c/..2026_11_25_18_00_00.12", true),
            ("/etc/c/..data", false),
            ("/etc/c/plain", false),
            ("/etc/c", false),
            ("/etc/config/..2026/key", false),
        ] {
            assert_eq!(found.names(path), named, "{path}");
        }
        let holds = |path: &Path| {
            let metadata = std::fs::metadata(path).unwrap();
            let device = kernel_device(metadata.dev());
            found.holds(device, metadata.ino()).map(str::to_owned)
        };
        assert!(holds(&dated).is_some());
        assert_eq!(holds(&dated.join("key")).unwrap(), "/etc/c/..2026_11_25_18_00_00.12/key");
        assert_eq!((holds(&volume), holds(&volume.join("plain"))), (None, None));
    }
}
