//! What the cells of several lanes keep from each other.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::fault::Fault;

/// What they share.
#[derive(Debug, Default)]
pub struct Locks {
    /// Held for reading by a cell that concerns its own lane only, for writing by one that concerns all.
    cluster: RwLock<()>,
    /// Held for reading while what a cell has left is waited for to go, for writing by a fault that would keep it from
    /// going. Who writes has the cluster to himself already.
    tidying: RwLock<()>,
    /// The sandbox takes one order at a time; a fault that waited for another would come too late.
    power: Mutex<()>,
    /// What keeps a finalizer where it is, and is taken away for a moment: of two who do that one would put back
    /// what he has not found.
    finalizers: Mutex<()>,
}

/// What a cell holds while something may happen to its migration.
#[derive(Debug)]
pub struct Held<'a> {
    locks: &'a Locks,
    tidying: Option<RwLockWriteGuard<'a, ()>>,
    _power: Option<MutexGuard<'a, ()>>,
    _finalizers: Option<MutexGuard<'a, ()>>,
    _alone: Option<RwLockWriteGuard<'a, ()>>,
    _beside: Option<RwLockReadGuard<'a, ()>>,
}

impl Locks {
    /// Waits until nobody is in the way of the fault, nor it in anybody's.
    pub fn take(&self, fault: Fault) -> Held<'_> {
        let concerns_all = fault.concerns_all();
        let strips = fault.strips_finalizer();
        // The cluster first: nobody waits for it who has something else.
        let alone =
            concerns_all.then(|| self.cluster.write().unwrap_or_else(PoisonError::into_inner));
        let beside =
            (!concerns_all).then(|| self.cluster.read().unwrap_or_else(PoisonError::into_inner));
        Held {
            locks: self,
            tidying: fault
                .stops_agents()
                .then(|| self.tidying.write().unwrap_or_else(PoisonError::into_inner)),
            _power: matches!(fault, Fault::PowerOff(..)).then(|| lock(&self.power)),
            _finalizers: strips.then(|| lock(&self.finalizers)),
            _alone: alone,
            _beside: beside,
        }
    }
}

impl<'a> Held<'a> {
    /// Nothing more happens to the migration: others may begin. What comes back is held while what is left is waited
    /// for to go.
    pub fn over(self) -> RwLockReadGuard<'a, ()> {
        drop(self.tidying);
        // At once: the rest is dropped after it, and nobody writes who has not the cluster to himself.
        self.locks.tidying.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use transship_api::Role::Target;

    use super::*;
    use crate::{
        faults::fault::{
            Fault::{Kill, KillOperators, PauseApi},
            Length::Briefly,
        },
        node::process::Victim::{Agent, Holder},
    };

    #[test]
    fn cells_of_one_lane_go_on_side_by_side_and_those_of_the_cluster_alone() {
        let locks = Locks::default();
        let both = [Agent, Holder].map(|victim| locks.take(Kill(Target, victim)));
        assert!(locks.cluster.try_write().is_err());
        drop(both);
        let _alone = locks.take(KillOperators);
        assert!(locks.cluster.try_read().is_err());
    }

    #[test]
    fn what_is_left_goes_beside_dead_operators_but_not_beside_stopped_agents() {
        let locks = Locks::default();
        let going = locks.take(Kill(Target, Holder)).over();
        drop(locks.take(KillOperators));
        assert!(locks.tidying.try_write().is_err());
        drop(going);
        let paused = locks.take(PauseApi(Briefly));
        assert!(locks.tidying.try_read().is_err());
        let _going = paused.over();
        assert!(locks.cluster.try_write().is_ok() && locks.tidying.try_write().is_err());
    }
}
