//! The runs of the cold order, in the world of the sequential one.
//!
//! A holder that dies in the grace period is a crash between "S's application ends, as it was asked to" and
//! the end of that effect; an Abort after the files were kept is the operator's, who may give up at any time.

use super::super::search;
use super::host::Tasks;
use super::world::{Bounds, NOTHING, World, any};
use crate::rules::Rule;
use crate::{Driver, Effect};

fn passes(name: &str, bounds: Bounds) {
    search::passes(name, &World::new(bounds, true));
}

#[test]
fn the_cold_order_is_safe_and_ends_without_faults() {
    passes("cold, no faults", NOTHING);
}

#[test]
fn the_cold_order_is_safe_and_ends_after_any_two_faults() {
    passes("cold, any two faults", any(2));
}

/// Some three million states.
#[test]
#[ignore = "long; run it after every change of a transition"]
fn the_cold_order_is_safe_and_ends_after_any_three_faults() {
    passes("cold, any three faults", any(3));
}

#[test]
fn the_cold_order_is_safe_when_somebody_makes_a_pod_of_the_files() {
    passes("cold, a forged start amid a crash", Bounds { forged: 1, crashes: 1, ..NOTHING });
}

#[test]
fn an_application_may_end_by_itself_just_before_it_is_asked_to() {
    let start = World::new(Bounds { ends: 1, ..NOTHING }, true);
    search::reaches("ended by itself", &start, |world| {
        let next = world.s.holder.as_ref().and_then(Driver::next_effect);
        world.s.tasks == Tasks::Absent && !world.s.unfilled && next == Some(Effect::EndTasks)
    });
}

macro_rules! each_rule_of_the_cold_order_matters {
    ($($name:ident: $rule:ident $bounds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                search::fails(Rule::$rule, [World::new($bounds, true)]);
            }
        )*

        /// The rules that are broken here.
        pub const BROKEN: &[Rule] = &[$(Rule::$rule),*];
    };
}

each_rule_of_the_cold_order_matters! {
    a_cold_vote_without_durable_files: StateIsDurable NOTHING;
    a_cold_source_that_ends_before_the_commit: YieldsOnlyAfterCommit NOTHING;
    a_cold_pod_made_again_beside_its_source: AgainOnlyAfterReleased Bounds { strips: 1, ..NOTHING };
    a_cold_second_try_beside_the_first: AgainOnlyAfterLastWord NOTHING;
    a_cold_pod_made_again_that_asks_nobody: AgainNeedsCommit Bounds { forged: 1, ..NOTHING };
    a_cold_place_that_votes_out_of_contact: VotesOnlyInContact Bounds { cuts: 1, ..NOTHING };
    an_ended_source_that_kubelet_makes_anew: FrozenRefusesCreate NOTHING;
    an_ended_source_whose_containers_are_deleted: FrozenRefusesDelete NOTHING;
    an_ended_source_that_is_made_anew_though_it_has_moved: MovedRefusesCreate NOTHING;
    a_source_that_is_deleted_while_it_should_start: StartEndsWithPod Bounds { deletes: 1, ..NOTHING };
    a_source_that_ends_before_its_creation_is_refused: EndsOnlyRefused Bounds { crashes: 1, ..NOTHING };
    a_source_that_starts_again_without_its_files: StartNeedsFiles NOTHING;
    a_record_that_is_opened_before_the_containers_have_started: OpensOnlyStarted NOTHING;
    a_cold_silent_pod_that_is_made_again: SilenceIsNoProof Bounds { silences: 1, ..NOTHING };
    a_deleted_cold_migration_that_leaves_the_pod_unmade:
        DeletedFinishesFirst Bounds { cancels: 1, ..NOTHING };
    two_holders_of_a_cold_side: OneHolder Bounds { seconds: 1, ..NOTHING };
    two_migrations_of_an_ended_pod: OneMigration Bounds { others: 1, ..NOTHING };
    a_source_that_is_ended_once_more: StartIsJournalledFirst Bounds { crashes: 1, ..NOTHING };
}
