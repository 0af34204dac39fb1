//! Moments of a migration that can be seen in a node only, some of them a few milliseconds long.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{process, side::Side};

/// Pace at which a node is looked at.
const LOOK: Duration = Duration::from_micros(300);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The holder of this node has journalled something of this kind.
    Journal(&'static str),
    /// CRIU is at work.
    Criu,
    /// CRIU's script is called with every task restored and none running.
    Hold,
}

/// Kinds of journal entries that can be waited for.
const KINDS: [&str; 9] = [
    "begun",
    "freezing",
    "voted",
    "decided",
    "thawing",
    "thawed",
    "confirmed",
    "peer_resumed",
    "aborted_before_vote",
];

impl Moment {
    fn is_now(self, side: Option<&Side>) -> bool {
        match self {
            Self::Journal(kind) => side.is_some_and(|side| side.has_journalled(kind)),
            Self::Criu => side.is_some() && process::criu().is_some(),
            Self::Hold => process::holding().is_some(),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Journal(kind) => kind,
            Self::Criu => "criu",
            Self::Hold => "hold",
        })
    }
}

impl FromStr for Moment {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "criu" => Ok(Self::Criu),
            "hold" => Ok(Self::Hold),
            kind => {
                let known = KINDS.into_iter().find(|known| *known == kind);
                known.map(Self::Journal).with_context(|| format!("no moment is called {kind:?}"))
            }
        }
    }
}

/// Waits for the moment and gives this node's side in it.
pub fn wait(moment: Moment, namespace: &str, patience: Duration) -> Result<Option<Side>> {
    let end = Instant::now() + patience;
    let mut side = None;
    loop {
        if side.is_none() {
            side = Side::find(namespace);
        }
        if moment.is_now(side.as_ref()) {
            return Ok(side);
        }
        if Instant::now() >= end {
            bail!("{moment} did not come within {patience:?}");
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_it_is_written() {
        let kinds = KINDS.map(Moment::Journal);
        for moment in kinds.into_iter().chain([Moment::Criu, Moment::Hold]) {
            assert_eq!(moment.to_string().parse::<Moment>().unwrap(), moment);
        }
        assert!("later".parse::<Moment>().is_err());
    }
}
