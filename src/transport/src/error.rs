//! What can go wrong on either side of the wire.

use std::io;

use thiserror::Error;

use crate::tree::TreeError;

/// A shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a transfer ended early.
#[derive(Debug, Error)]
pub enum Error {
    /// The connection broke.
    #[error("connection to the other node: {0}")]
    Io(#[source] io::Error),
    /// A frame is not what was sent.
    #[error("damaged stream: {0}")]
    Corrupt(#[from] Corruption),
    /// A frame that does not belong where it came, or a meta part that cannot be read.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The peer speaks another version.
    #[error("peer speaks version {theirs} of the transfer protocol, this side {ours}")]
    Version {
        /// Ours.
        ours: u32,
        /// Theirs.
        theirs: u32,
    },
    /// What arrived is not what was sent, although every frame was sound.
    #[error("totals of {what} differ: sent {sent}, received {received}")]
    Totals {
        /// The item, container or transfer.
        what: String,
        /// As the sender counted.
        sent: String,
        /// As the receiver counted.
        received: String,
    },
    /// The peer gave up and said why.
    #[error("the other node failed: {message} ({reason})")]
    Peer {
        /// A CamelCase word.
        reason: String,
        /// A sentence.
        message: String,
    },
    /// The stream ended in the middle.
    #[error("the other node closed the connection")]
    Closed,
    /// An acknowledgement did not come in time.
    #[error("no acknowledgement from the other node within {0:?}")]
    Timeout(std::time::Duration),
    /// The receiving side's handler refused.
    #[error("{}: {}", .0.reason, .0.message)]
    Refused(Refusal),
    /// A file tree could not be read or applied.
    #[error("tree {area}: {source}")]
    Tree {
        /// Which tree.
        area: String,
        /// What is wrong.
        #[source]
        source: TreeError,
    },
    /// A local file (an image, pages, a spool file) could not be read or written.
    #[error("{what}: {source}")]
    File {
        /// Which file.
        what: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// An image file that a checkpoint must not have.
    #[error("image {0:?} is not allowed in a checkpoint")]
    ImageName(String),
}

impl Error {
    /// A CamelCase word for events, metrics and the `Failed` message.
    pub fn reason(&self) -> &str {
        match self {
            Error::Io(_) | Error::Closed | Error::Timeout(_) => "ConnectionLost",
            Error::Corrupt(_) | Error::Totals { .. } => "StreamDamaged",
            Error::Protocol(_) => "ProtocolViolation",
            Error::Version { .. } => "VersionMismatch",
            Error::Peer { reason, .. } => reason,
            Error::Refused(refusal) => &refusal.reason,
            Error::Tree { .. } => "FilesNotTransferable",
            Error::File { .. } => "StorageFailed",
            Error::ImageName(_) => "ImageNotAllowed",
        }
    }
}

/// How a frame is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Corruption {
    /// Not the start of a frame.
    #[error("no frame where one should start")]
    Magic,
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// An encoding that this version does not know.
    #[error("unknown encoding {0}")]
    Encoding(u8),
    /// A length beyond the bounds, or lengths that do not agree.
    #[error("frame of impossible length")]
    Length,
    /// A frame is missing or came twice.
    #[error("frame {found} where {expected} should be")]
    Sequence {
        /// Its number.
        found: u32,
        /// The number it should have.
        expected: u32,
    },
    /// The check value does not fit the contents.
    #[error("frame fails its check")]
    Check,
    /// The compressed data cannot be decoded.
    #[error("compressed data cannot be decoded")]
    Lz4,
}

/// Why a handler refuses what it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A CamelCase word.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::new("StorageFailed", error.to_string())
    }
}
