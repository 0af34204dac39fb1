//! The one error type of this crate: what was done to which path, and why it did not work.

use std::path::{Path, PathBuf};

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something on the host could not be read, written or brought about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb: `read`, `rename`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason given by the system.
        #[source]
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it departs from its format.
        #[source]
        source: serde_json::Error,
    },
    /// A file was written by a version that this one does not know.
    #[error("{path} has format version {found}, and this program knows only version {known}")]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version this program writes.
        known: u32,
    },
    /// A name, UID or field has a value that must not be used.
    #[error("{what} {value:?} {rule}")]
    Invalid {
        /// Which field.
        what: &'static str,
        /// The offending value.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// Another process holds the lock.
    #[error("{path} is in use by another process")]
    InUse {
        /// The locked file.
        path: PathBuf,
    },
    /// A condition was not reached in time.
    #[error("{what} was not reached within {millis} ms (now: {state})")]
    TimedOut {
        /// The condition.
        what: String,
        /// How long was waited.
        millis: u128,
        /// What was seen last.
        state: String,
    },
    /// A process has no cgroup that this host can reach (process 0: none has the wanted path).
    #[error("the cgroup of process {pid} is not reachable: {reason}")]
    NoFreezer {
        /// The process.
        pid: u32,
        /// Why.
        reason: String,
    },
    /// A helper program failed.
    #[error("{program} failed: {message}")]
    Program {
        /// The program's path.
        program: String,
        /// Its standard error, or how it ended.
        message: String,
    },
    /// A request to the kernel's network configuration failed.
    #[error("cannot {action}")]
    Network {
        /// What was tried.
        action: String,
        /// The reason given by the system.
        #[source]
        source: std::io::Error,
    },
    /// The user's configuration cannot be extended without changing its meaning.
    #[error("{path}: {reason}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is in the way, and what to do.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `action` on `path`; made for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// As [`Error::io`], for the system-call crate's error numbers.
    pub fn errno(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source: source.into() }
    }

    /// An [`Error::Network`] for `action`; made for `map_err`.
    pub fn network(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Network { action, source }
    }

    /// Whether the file (or its directory) does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// The whole chain of causes in one line, for logs that have room for one line only.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// As [`Error::chain`], of any error.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
