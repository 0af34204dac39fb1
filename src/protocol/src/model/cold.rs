//! The cold order, in the world of the sequential one: what kubelet does when containers are started with
//! their files, and the rules that only this order has.

use super::sequential::{
    Bounds, Host, NOTHING, Tasks, World, again_event, fails_as, passes_as, source,
};
use crate::effect::Machine;
use crate::rules::Rule;
use crate::{RecordState, SourceEvent, TargetEvent};

/// A container that kubelet makes under this record, after its tasks have ended or before they began.
fn start<M: Machine<Word: Default>>(host: &Host<M>, afresh: &mut bool) -> Option<Host<M>>
where
    Host<M>: Clone,
{
    let starts = host.record == Some(RecordState::Starting) && host.tasks == Tasks::Absent;
    starts.then(|| {
        let mut next = host.clone();
        next.tasks = Tasks::Running;
        *afresh |= host.unfilled && !host.stored && !host.rebooted;
        next.unfilled = false;
        next.started_again = true;
        next
    })
}

/// Whether every container was started with its files.
fn all_started<M: Machine>(host: &Host<M>) -> bool {
    host.record == Some(RecordState::Starting) && host.tasks == Tasks::Running && !host.unfilled
}

pub(super) fn kubelet(world: &World, push: &mut impl FnMut(&'static str, Option<World>)) {
    let with = |change: &dyn Fn(&mut World)| {
        let mut next = world.clone();
        change(&mut next);
        Some(next)
    };
    let mut afresh = world.afresh;
    if world.s_object
        && let Some(s) = start(&world.s, &mut afresh)
    {
        let next = with(&|next| (next.s, next.afresh) = (s.clone(), afresh));
        push("kubelet starts S with its files", next);
    }
    if all_started(&world.s) {
        push("S's containers were started", source(world, SourceEvent::AllStarted));
    }
    let Some(again) = &world.again else { return };
    let mut afresh = world.afresh;
    if let Some(again) = start(again, &mut afresh) {
        let next = with(&|next| (next.again, next.afresh) = (Some(again.clone()), afresh));
        push("kubelet starts T with its files", next);
    }
    if all_started(again) {
        push("T's containers were started", again_event(world, TargetEvent::AllStarted));
    }
    // Opened too early, it starts like any other pod.
    if again.unfilled && again.record == Some(RecordState::Open) {
        push("kubelet starts T", with(&|next| next.afresh = true));
    }
}

fn passes(name: &str, bounds: Bounds) {
    passes_as(name, bounds, true);
}

#[test]
fn the_cold_order_is_safe_and_ends_without_faults() {
    passes("cold, no faults", NOTHING);
}

#[test]
fn the_cold_order_is_safe_and_ends_after_crashes() {
    passes("cold, two crashes", Bounds { crashes: 2, ..NOTHING });
}

#[test]
fn the_cold_order_is_safe_and_ends_after_reboots_and_failures() {
    passes("cold, a reboot and a failure", Bounds { reboots: 1, failures: 1, ..NOTHING });
    passes("cold, two reboots", Bounds { reboots: 2, ..NOTHING });
    passes("cold, two failures", Bounds { failures: 2, ..NOTHING });
}

#[test]
fn the_cold_order_is_safe_when_somebody_makes_a_pod_of_the_files() {
    passes("cold, a forged start", Bounds { forged: 1, ..NOTHING });
}

#[test]
fn the_cold_order_is_safe_when_the_migration_vanishes() {
    passes("cold, it vanishes", Bounds { strips: 1, ..NOTHING });
    passes("cold, it vanishes amid a crash", Bounds { strips: 1, crashes: 1, ..NOTHING });
}

macro_rules! each_rule_of_the_cold_order_matters {
    ($($name:ident: $rule:ident $bounds:expr;)*) => {
        $(#[test] fn $name() { fails_as(Rule::$rule, $bounds, true); })*

        /// The rules that are broken here.
        pub(super) const BROKEN: &[Rule] = &[$(Rule::$rule),*];
    };
}

each_rule_of_the_cold_order_matters! {
    a_cold_vote_without_durable_files: StateIsDurable NOTHING;
    a_cold_source_that_ends_before_the_commit: YieldsOnlyAfterCommit NOTHING;
    a_cold_pod_made_again_beside_its_source: AgainOnlyAfterReleased Bounds { strips: 1, ..NOTHING };
    a_cold_second_try_beside_the_first: AgainOnlyAfterLastWord NOTHING;
    a_cold_pod_made_again_that_asks_nobody: AgainNeedsCommit Bounds { forged: 1, ..NOTHING };
    a_source_that_ends_before_its_creation_is_refused: EndsOnlyRefused Bounds { crashes: 1, ..NOTHING };
    a_source_that_starts_again_without_its_files: StartNeedsFiles NOTHING;
    a_record_that_is_opened_before_the_containers_have_started: OpensOnlyStarted NOTHING;
    a_source_that_is_ended_once_more: StartIsJournalledFirst Bounds { crashes: 1, ..NOTHING };
}
