//! What server, feed and touch share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::counters::Counters;
use crate::state::State;

/// Kinds that are followed.
const KINDS: usize = 6;

/// One extender.
#[derive(Debug)]
pub struct Extender {
    state: Mutex<State>,
    /// Kinds that have not been listed yet.
    missing: AtomicUsize,
    /// What it counts.
    pub counters: Counters,
}

impl Extender {
    /// An extender that knows nothing yet. `overcommit`: Swarm's, in whole percents; 0, or negative
    /// to keep a reserve.
    pub fn new(overcommit: i64, counters: Counters) -> Self {
        let state = Mutex::new(State::new(overcommit));
        Self { state, missing: AtomicUsize::new(KINDS), counters }
    }

    /// Its state. Decisions take milliseconds; nobody else may hold it longer.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more kind has been listed for the first time.
    pub fn listed_one(&self) {
        self.missing.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether the whole cluster has been seen: only then it answers.
    pub fn is_complete(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }
}
