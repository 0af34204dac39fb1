//! What the Migration's status says about the commit, and what a quorum read of it means to a
//! holder. It decides which readings count; it does not read anything itself.

use serde::{Deserialize, Serialize};

use crate::rules::{Rule, holds};

/// The one decision of a Migration (`status.decision`), written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// The target runs on; the source is killed once `resumedAt` is recorded.
    Commit,
    /// The source runs on; the target is killed.
    Abort,
}

/// How a Commit that did not lead to a running target was settled (`status.resolution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Resolution {
    /// The target did not run, or was proven to have stopped: the source goes on.
    SourceResumes,
}

/// The three write-once fields of a Migration's status, as one quorum read showed them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// `status.decision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Whether `status.resumedAt` is set.
    #[serde(default)]
    pub resumed_at: bool,
    /// `status.resolution`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
}

impl Recorded {
    /// `resumedAt` and `resolution` follow only a Commit and exclude each other. The API server
    /// enforces it (CEL); a holder that reads anything else does nothing.
    pub fn is_lawful(self) -> bool {
        match self.decision {
            Some(Decision::Commit) => !(self.resumed_at && self.resolution.is_some()),
            _ => !self.resumed_at && self.resolution.is_none(),
        }
    }

    /// A Commit about which nothing more has been recorded.
    pub fn is_open_commit(self) -> bool {
        self.decision == Some(Decision::Commit) && !self.resumed_at && self.resolution.is_none()
    }
}

/// The meaning of one quorum read of a Migration, made by [`judge_read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Read {
    /// The object with our UID says this.
    Recorded(Recorded),
    /// No object with our UID exists (any more).
    Gone,
}

/// Judges a successful quorum read: `seen` is the UID and content found under the Migration's
/// name, or `None` for "not found". A failed read (no API, time-out, forbidden) is no reading at
/// all and must not be passed here. An object of another UID is a stranger with the same name:
/// its decision is not ours.
pub fn judge_read(own_uid: &str, seen: Option<(&str, Recorded)>) -> Read {
    match seen {
        Some((uid, recorded)) if uid == own_uid || !holds(Rule::DecisionIsOfOwnUid) => {
            Read::Recorded(recorded)
        }
        _ => Read::Gone,
    }
}
