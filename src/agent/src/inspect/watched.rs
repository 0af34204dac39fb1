//! Where CRIU finds a watched file of an overlay again. The kernel gives handles for such files and
//! takes none back, so CRIU searches a few directories for the inode, and gives up otherwise.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::proc::{Watch, kernel_device};

/// The directories of CRIU's own list (`criu/irmap.c`) that a container may have; and the root
/// directory itself, but nothing else in it.
const SEARCHED: [&str; 8] = [
    "etc",
    "var/spool",
    "var/log",
    "usr/share/dbus-1/services",
    "usr/share/dbus-1/system-services",
    "var/lib/polkit-1/localauthority",
    "usr/share/polkit-1/actions",
    "lib/udev",
];
/// Entries looked at before the search is given up.
const MAX_ENTRIES: usize = 100_000;

/// Whether a search finds what is watched, in a process's root directory.
pub fn is_found(root: &Path, watch: Watch) -> bool {
    let is_it = |path: &Path| {
        std::fs::symlink_metadata(path).is_ok_and(|metadata| {
            (kernel_device(metadata.dev()), metadata.ino()) == (watch.device, watch.inode)
        })
    };
    // The link to a root directory is followed.
    if is_it(&root.join(".")) {
        return true;
    }
    let mut pending: Vec<_> = SEARCHED.iter().map(|directory| root.join(directory)).collect();
    for _ in 0..MAX_ENTRIES {
        let Some(path) = pending.pop() else { return false };
        if is_it(&path) {
            return true;
        }
        if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| entry.path()));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_found_and_a_file_elsewhere_is_not() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["var/log/app", "usr/bin"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        std::fs::write(root.path().join("var/log/app/a.log"), "").unwrap();
        let found = |path: &str| {
            let metadata = std::fs::metadata(root.path().join(path)).unwrap();
            let device = kernel_device(metadata.dev());
            is_found(root.path(), Watch { device, inode: metadata.ino() })
        };
        assert!(found("var/log/app/a.log") && found("var/log") && found("."));
        assert!(!found("usr/bin"));
    }
}
