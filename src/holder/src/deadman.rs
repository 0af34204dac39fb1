//! The dead-man of a target between its vote and the reading of `resumedAt`.
//!
//! The operator may let the source go on when this node's Lease has not been renewed for long
//! enough. So a target that may run (or is about to) must stop by itself before that: as soon as
//! the last good renewal, counted from the moment it was *sent*, is older than [`PATIENCE`], its
//! tasks are frozen and its network is closed. What expired stays expired, also over a restart of
//! the holder. The agent notes each good renewal in a file; as long as it notes none, there is no
//! Lease that anybody could take for a proof, and nothing expires.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use transship_host::files;
use transship_protocol::TargetEvent;

use crate::holder::Holder;
use crate::pod::Pod;

/// T₁: how old the last good renewal may be.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Name of the file under `/run/transship` in which the agent writes when it sent the last renewal
/// that succeeded: milliseconds of CLOCK_BOOTTIME, decimal.
pub const RENEWED: &str = "lease-renewed";
/// Name of the dead-man's own file in the migration's directory.
const FILE: &str = "deadman.json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    lapsed: bool,
}

/// The dead-man of one target.
pub struct Deadman {
    renewed: PathBuf,
    file: PathBuf,
    /// None: not armed.
    state: Mutex<Option<State>>,
}

impl Deadman {
    /// The dead-man as an earlier holder of this migration left it.
    pub fn new(holder: &Holder) -> Result<Self> {
        let file = holder.dir.path().join(FILE);
        let state = Mutex::new(files::read_json_opt(&file)?);
        Ok(Deadman { renewed: holder.host.run().join(RENEWED), file, state })
    }

    /// Whether it has expired since it was armed.
    pub fn has_lapsed(&self) -> bool {
        self.state().is_some_and(|state| state.lapsed)
    }

    /// Arms it; armed already is fine.
    pub fn arm(&self) -> Result<()> {
        let mut state = self.state();
        if state.is_none() {
            *state = Some(self.keep(State { lapsed: false })?);
        }
        Ok(())
    }

    /// Disarms and forgets.
    pub fn disarm(&self) -> Result<()> {
        let mut state = self.state();
        files::remove_durably(&self.file)?;
        *state = None;
        Ok(())
    }

    /// Does `work` unless the dead-man has expired; it cannot expire meanwhile.
    pub fn unless_lapsed<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.state();
        let lapsed = state.is_some_and(|state| state.lapsed)
            || (state.is_some() && self.age().is_some_and(|age| age > PATIENCE));
        (!lapsed).then(work)
    }

    /// Watches for as long as somebody listens.
    pub async fn watch(self: Arc<Self>, pod: Pod, nft: PathBuf, events: mpsc::Sender<TargetEvent>) {
        let mut tick = tokio::time::interval(LOOK);
        while !events.is_closed() {
            tick.tick().await;
            match self.look(&pod, &nft) {
                Ok(true) => {
                    let _ = events.send(TargetEvent::Lapsed).await;
                }
                Ok(false) => {}
                // Tried again at the next look.
                Err(error) => tracing::error!("the dead-man cannot act: {error:#}"),
            }
        }
    }

    /// Freezes and closes if it expires now; whether it did.
    fn look(&self, pod: &Pod, nft: &std::path::Path) -> Result<bool> {
        let mut state = self.state();
        let expires = matches!(*state, Some(State { lapsed: false }))
            && self.age().is_some_and(|age| age > PATIENCE);
        if !expires {
            return Ok(false);
        }
        tracing::error!("this node's Lease is older than {PATIENCE:?}: freezing and closing");
        let frozen = pod.freeze();
        let closed = pod.network().close(nft, &pod.devices);
        *state = Some(self.keep(State { lapsed: true })?);
        frozen.and(closed.context("cannot close the pod's network"))?;
        Ok(true)
    }

    /// Age of the last good renewal; none if none was ever noted.
    fn age(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(&self.renewed).ok()?;
        let sent = Duration::from_millis(text.trim().parse().ok()?);
        let now = clock_gettime(ClockId::Boottime);
        let now = Duration::new(now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
        Some(now.saturating_sub(sent))
    }

    fn keep(&self, state: State) -> Result<State> {
        files::write_json(&self.file, &state)?;
        Ok(state)
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        // Every change is whole before the lock is released.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of_self;

    fn deadman(dir: &std::path::Path) -> Deadman {
        let file = dir.join(FILE);
        let state = Mutex::new(files::read_json_opt(&file).unwrap());
        Deadman { renewed: dir.join(RENEWED), file, state }
    }

    #[test]
    fn without_any_renewal_nothing_expires() {
        let dir = tempfile::tempdir().unwrap();
        let deadman = deadman(dir.path());
        deadman.arm().unwrap();
        assert!(!deadman.look(&pod_of_self(), "nft".as_ref()).unwrap());
        assert_eq!(deadman.unless_lapsed(|| 7), Some(7));
    }

    #[test]
    fn what_expired_stays_expired_until_it_is_disarmed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(RENEWED), "0\n").unwrap();
        let first = deadman(dir.path());
        first.arm().unwrap();
        assert_eq!(first.unless_lapsed(|| 7), None, "an old renewal guards the thaw");
        // The pod of this test cannot be frozen; the lapse is kept all the same.
        assert!(first.look(&pod_of_self(), "/nonexistent/nft".as_ref()).is_err());
        assert!(first.has_lapsed());
        let now = clock_gettime(ClockId::Boottime).tv_sec * 1000;
        std::fs::write(dir.path().join(RENEWED), now.to_string()).unwrap();
        let second = deadman(dir.path());
        second.arm().unwrap();
        assert!(second.has_lapsed());
        assert_eq!(second.unless_lapsed(|| 7), None);
        second.disarm().unwrap();
        assert_eq!(second.unless_lapsed(|| 7), Some(7));
        assert!(!deadman(dir.path()).has_lapsed());
    }

    #[test]
    fn a_dead_man_that_is_not_armed_never_acts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(RENEWED), "0").unwrap();
        let deadman = deadman(dir.path());
        assert!(!deadman.look(&pod_of_self(), "nft".as_ref()).unwrap());
        assert_eq!(deadman.unless_lapsed(|| 7), Some(7));
    }
}
