//! File trees: what a container or a volume looks like, as an archive, and back.
//!
//! [`capture_dir`] takes a whole directory (an emptyDir, the sandbox's /dev/shm);
//! [`capture_upper`] takes an overlay's upper directory, that is a container's changes to its
//! image. Both write an archive ([`record`]) to any writer. [`Applier`] (or [`apply_spool`], from
//! a file) applies one to a directory: an emptyDir, /dev/shm, or the merged mount of the target
//! container's overlay.
//!
//! Kept exactly: names as bytes, contents with their holes, owner, mode with setuid bits,
//! modification time to the nanosecond, extended attributes (ACLs and file capabilities among
//! them), hard links within the tree, symbolic links, fifos, sockets' inodes and device nodes.
//! Not kept: access times, inode numbers, `chattr` flags, hard links to names outside the tree.
//!
//! # Nothing in a rootfs is left out
//! The upper directory also holds what the runtime itself put there: empty files and directories
//! as mount points (/etc/resolv.conf, /etc/hosts, /etc/hostname, /dev, /proc, /sys,
//! /var/run/secrets/…). They are carried like everything else. The target's spec has the same
//! mounts, its runtime makes the same mount points when they are absent and leaves them alone when
//! they are there, and the mounts hide them in both places. Leaving them out would need a list
//! that could hit an application's file, and would leave directories with other modification
//! times than the source had. What lies on a mount is never captured: a mount point below the
//! source is skipped with everything under it.
//!
//! # A tree is untrusted
//! The archive comes from another node and its names from a container. Paths are relative, without
//! `.` and `..`; every directory is opened below the destination with `openat2`
//! (`RESOLVE_BENEATH`, no symbolic links, no other mounts), and names are only used relative to a
//! directory opened like that. Device nodes are recreated as they were: the device cgroup of the
//! container decides about their use, as it did where they were made.

use std::io;

use thiserror::Error;

mod apply;
mod capture;
mod inode;
pub mod record;

pub use apply::{Applier, Kinds, apply_spool};
pub use capture::{TreeSummary, capture_dir, capture_upper, measure_dir, measure_upper};

/// Deepest nesting of directories; each level holds one file descriptor.
pub const MAX_DEPTH: usize = 256;

/// Why a tree could not be captured or applied.
#[derive(Debug, Error)]
pub enum TreeError {
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// Relative to the tree's root.
        path: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("archive: {0}")]
    Output(#[source] io::Error),
    /// The spool file could not be read.
    #[error("archive: {0}")]
    Input(#[source] io::Error),
    /// Something that cannot be carried faithfully.
    #[error("{path}: {what}")]
    Unsupported {
        /// Relative to the tree's root.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A file got shorter while it was read.
    #[error("{path}: file shrank while it was read")]
    Shrunk {
        /// Relative to the tree's root.
        path: String,
    },
    /// The archive is not one, or says impossible things.
    #[error("invalid archive: {0}")]
    Format(String),
}

impl TreeError {
    pub(crate) fn io(path: &[u8], source: impl Into<io::Error>) -> Self {
        TreeError::Io { path: shown(path), source: source.into() }
    }

    pub(crate) fn unsupported(path: &[u8], what: &'static str) -> Self {
        TreeError::Unsupported { path: shown(path), what }
    }

    pub(crate) fn format(what: impl Into<String>) -> Self {
        TreeError::Format(what.into())
    }
}

/// A path for messages; the root is ".".
pub(crate) fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".into() } else { String::from_utf8_lossy(path).into_owned() }
}

#[cfg(test)]
mod tests;
