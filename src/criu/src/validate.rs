//! Which files an image set may hold.
//!
//! A checkpoint is untrusted input, and CRIU runs as root: it feeds some images to `ip`,
//! `iptables-restore` and the like, and others recreate things that no ordinary container has.
//! The check works on names and file types, with an allow list: a file that is not known to be
//! needed is refused by name. What it does not do: look inside the images.
//!
//! Refused on purpose: raw network images (`netdev`, `ifaddr`, `route`, `route6`, `rule`,
//! `iptables`, `ip6tables`, `nftables`, `netns-ct`, `netns-exp`; the pod's network comes from the
//! target's CNI), tun devices, cgroup properties (`cgroup`; runc makes the cgroups), user
//! namespaces, `binfmt_misc`, `autofs`, BPF maps, the irmap cache, parent links, and files of
//! CRIU plugins.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use thiserror::Error;

/// Most files in one image set. A process needs about ten.
pub const MAX_FILES: usize = 200_000;
/// Longest name of an image.
pub const MAX_NAME: usize = 128;

/// Images that exist at most once in a set.
const SINGLE: &[&str] = &[
    "inventory.img",
    "pstree.img",
    "files.img",
    "seccomp.img",
    "apparmor.img",
    "cpuinfo.img",
    "timerfd.img",
    "filelocks.img",
    "fifo-data.img",
    "pipes-data.img",
    "sk-queues.img",
    "tty-info.img",
    "tty-data.img",
    "tty.img",
    "remap-fpath.img",
    "memfd.img",
    "inotify.img",
    "inotify-wd.img",
    "fanotify.img",
    "fanotify-mark.img",
    "eventfd.img",
    "eventpoll.img",
    "eventpoll-tfd.img",
    "signalfd.img",
    "reg-files.img",
    "ext-files.img",
    "ns-files.img",
    "pipes.img",
    "fifo.img",
    "unixsk.img",
    "inetsk.img",
    "packetsk.img",
    "netlinksk.img",
    "pidfd.img",
    "stats-dump",
    // runc's note of where stdin, stdout and stderr led.
    "descriptors.json",
];

/// Images with a decimal number.
const NUMBERED: &[(&str, &str)] = &[
    ("core-", ".img"),
    ("ids-", ".img"),
    ("mm-", ".img"),
    ("creds-", ".img"),
    ("fs-", ".img"),
    ("fdinfo-", ".img"),
    ("vmas-", ".img"),
    ("sigacts-", ".img"),
    ("itimers-", ".img"),
    ("posix-timers-", ".img"),
    ("rlimit-", ".img"),
    ("signal-s-", ".img"),
    ("signal-p-", ".img"),
    ("pagemap-", ".img"),
    ("pagemap-shmem-", ".img"),
    ("pages-", ".img"),
    ("utsns-", ".img"),
    ("timens-", ".img"),
    ("pidns-", ".img"),
    ("ipcns-var-", ".img"),
    ("ipcns-shm-", ".img"),
    ("ipcns-msg-", ".img"),
    ("ipcns-sem-", ".img"),
    ("netns-", ".img"),
    ("mountpoints-", ".img"),
    ("tmpfs-", ".tar.gz.img"),
    ("tmpfs-dev-", ".tar.gz.img"),
];

/// Images with a hexadecimal number.
const HEX_NUMBERED: &[(&str, &str)] = &[("ghost-file-", ".img"), ("tcp-stream-", ".img")];

/// Why an image set is refused.
#[derive(Debug, Error)]
pub enum ValidateError {
    /// The directory could not be read.
    #[error("image set: {0}")]
    Io(#[from] io::Error),
    /// More files than any container has.
    #[error("image set has more than {MAX_FILES} files")]
    TooMany,
    /// A file that a container's image set never has or must not have.
    #[error("image {0:?} is not allowed in a checkpoint")]
    Name(String),
    /// A directory, link or special file.
    #[error("image {0:?} is not a regular file")]
    Type(String),
    /// A file without which nothing can be restored.
    #[error("image set has no {0}")]
    Missing(&'static str),
}

/// What a valid set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageSet {
    /// Number of files.
    pub files: usize,
    /// Their sizes added up.
    pub bytes: u64,
}

/// Whether an image set may have a file of this name.
pub fn is_allowed_name(name: &str) -> bool {
    if name.len() > MAX_NAME {
        return false;
    }
    let numbered = |list: &[(&str, &str)], digit: fn(u8) -> bool| {
        list.iter().any(|(prefix, suffix)| {
            name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix)).is_some_and(
                |number| !number.is_empty() && number.len() <= 20 && number.bytes().all(digit),
            )
        })
    };
    SINGLE.contains(&name)
        || numbered(NUMBERED, |b| b.is_ascii_digit())
        || numbered(HEX_NUMBERED, |b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Checks every file of an image set. Call it before CRIU sees the directory.
pub fn validate_image_set(dir: &Path) -> Result<ImageSet, ValidateError> {
    let mut set = ImageSet::default();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        set.files += 1;
        if set.files > MAX_FILES {
            return Err(ValidateError::TooMany);
        }
        let name = entry.file_name();
        let shown = || String::from_utf8_lossy(name.as_bytes()).into_owned();
        if !name.to_str().is_some_and(is_allowed_name) {
            return Err(ValidateError::Name(shown()));
        }
        // Does not follow links.
        let meta = entry.metadata()?;
        if !meta.is_file() {
            return Err(ValidateError::Type(shown()));
        }
        set.bytes = set.bytes.saturating_add(meta.len());
    }
    for needed in ["inventory.img", "pstree.img"] {
        if !dir.join(needed).is_file() {
            return Err(ValidateError::Missing(needed));
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ordinary_dumps_are_allowed() {
        for name in [
            "core-1.img",
            "pagemap-shmem-65538.img",
            "pages-65537.img",
            "tmpfs-dev-73.tar.gz.img",
            "tcp-stream-1a2f.img",
            "ghost-file-b.img",
            "descriptors.json",
            "timens-0.img",
            "utsns-11.img",
        ] {
            assert!(is_allowed_name(name), "{name}");
        }
    }

    #[test]
    fn foreign_network_cgroup_and_path_like_names_are_not() {
        for name in [
            "",
            "..",
            "../core-1.img",
            "core-.img",
            "core-1.img/x",
            "core-1a.img",
            "core-123456789012345678901.img",
            "netdev-9.img",
            "ifaddr-9.img",
            "route-9.img",
            "route6-9.img",
            "rule-9.img",
            "iptables-9.img",
            "ip6tables-9.img",
            "nftables-9.img",
            "netns-ct-9.img",
            "netns-exp-9.img",
            "tunfile.img",
            "cgroup.img",
            "userns-9.img",
            "parent",
            "irmap-cache",
            "amdgpu-kfd-1.img",
            "criu.conf",
        ] {
            assert!(!is_allowed_name(name), "{name}");
        }
    }

    #[test]
    fn a_set_is_refused_by_the_file_that_does_not_belong() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(matches!(
            validate_image_set(dir.path()),
            Err(ValidateError::Missing("inventory.img"))
        ));
        for name in ["inventory.img", "pstree.img", "core-1.img"] {
            fs::write(path(name), "1234").unwrap();
        }
        assert_eq!(validate_image_set(dir.path()).unwrap(), ImageSet { files: 3, bytes: 12 });
        std::os::unix::fs::symlink("/etc/passwd", path("files.img")).unwrap();
        assert_eq!(
            validate_image_set(dir.path()).unwrap_err().to_string(),
            "image \"files.img\" is not a regular file"
        );
        fs::remove_file(path("files.img")).unwrap();
        fs::write(path("netdev-4.img"), "").unwrap();
        assert_eq!(
            validate_image_set(dir.path()).unwrap_err().to_string(),
            "image \"netdev-4.img\" is not allowed in a checkpoint"
        );
    }
}
