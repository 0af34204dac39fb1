//! Moments of a migration that can be seen in a node only, some of them a few milliseconds long.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    process::{self, Victim},
    side::Side,
};

/// Pace at which a node is looked at.
const LOOK: Duration = Duration::from_micros(300);
/// As long as it has no part in the migration, which comes a good second before any moment.
const EARLY: Duration = Duration::from_millis(3);
/// In the error about a moment that has passed.
pub const MISSED: &str = "was over before it was seen";

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The holder of this node has journalled something of this kind.
    Journal(&'static str),
    /// CRIU is in the middle of a dump, and stopped there: see [`process::go_on`].
    Criu,
    /// CRIU rebuilds tasks, and is stopped in the middle of it.
    Restore,
    /// CRIU's script has frozen the tasks, of which none has run, and is stopped.
    Hold,
}

/// Kinds of journal entries that can be waited for.
const KINDS: [&str; 10] = [
    "begun",
    "freezing",
    "voted",
    "decided",
    "thawing",
    "thawed",
    "confirmed",
    "peer_resumed",
    "resolved",
    "aborted_before_vote",
];

/// Whether a moment is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Coming,
    Now,
    Over,
}

impl Moment {
    /// A CRIU is at work, and can be stopped so that the moment lasts.
    pub fn has_criu(self) -> bool {
        matches!(self, Self::Criu | Self::Restore | Self::Hold)
    }

    fn look(self, side: Option<&Side>) -> Is {
        let journalled = |kind| side.is_some_and(|side| side.has_journalled(kind));
        let now_if = |stands: bool| if stands { Is::Now } else { Is::Over };
        // A pod that was made again is let go without a vote.
        let is_restored = || journalled("voted") || journalled("thawing");
        match self {
            // An entry stays.
            Self::Journal(kind) if journalled(kind) => Is::Now,
            Self::Criu if side.is_some_and(Side::has_begun_to_dump_memory) => {
                now_if(process::stop_criu())
            }
            Self::Restore if is_restored() => Is::Over,
            // Not before that: all processes are looked through.
            Self::Restore if side.is_some_and(Side::has_begun_to_restore) => {
                match process::holding() {
                    Some(_) => Is::Over,
                    None if process::criu_rebuilds() => now_if(process::stop_criu()),
                    None => Is::Coming,
                }
            }
            Self::Hold if is_restored() => Is::Over,
            Self::Hold => match process::holding_frozen() {
                Some(script) => now_if(process::stop(script)),
                None => Is::Coming,
            },
            _ => Is::Coming,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Journal(kind) => kind,
            Self::Criu => "criu",
            Self::Restore => "restore",
            Self::Hold => "hold",
        })
    }
}

impl FromStr for Moment {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "criu" => Ok(Self::Criu),
            "restore" => Ok(Self::Restore),
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
        match moment.look(side.as_ref()) {
            Is::Now => return Ok(side),
            Is::Over => bail!("{moment} {MISSED}"),
            Is::Coming if Instant::now() >= end => {
                bail!("{moment} did not come within {patience:?}")
            }
            Is::Coming => {}
        }
        std::thread::sleep(if side.is_some() { LOOK } else { EARLY });
    }
}

/// An error if a side has come to its end before its shim is killed: then that is one of an ordinary pod, whose memory
/// goes with it and of which no migration tells any more.
pub fn is_in_time(moment: Moment, victim: Victim, side: Option<&Side>) -> Result<()> {
    let is_journalled = matches!(moment, Moment::Journal(_));
    let ended = |side: &Side| ["opened", "closed"].iter().any(|kind| side.has_journalled(kind));
    match is_journalled && victim == Victim::Shim && side.is_some_and(ended) {
        true => bail!("{moment} {MISSED}"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_it_is_written() {
        let kinds = KINDS.map(Moment::Journal);
        for moment in kinds.into_iter().chain([Moment::Criu, Moment::Restore, Moment::Hold]) {
            assert_eq!(moment.to_string().parse::<Moment>().unwrap(), moment);
        }
        assert!("later".parse::<Moment>().is_err());
    }
}
