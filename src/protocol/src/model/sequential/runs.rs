//! The runs of the sequential order.

use super::super::search;
use super::operator::{is_asked_for, is_unwanted};
use super::world::{Bounds, NOTHING, World, any};
use crate::rules::Rule;
use crate::{Decision, PodSeen, SourceEntry, SourceWord, TargetEntry, TargetOutcome};

fn passes(name: &str, bounds: Bounds) {
    search::passes(name, &World::new(bounds, false));
}

#[test]
fn the_sequential_order_is_safe_and_ends_without_faults() {
    passes("no faults", NOTHING);
}

#[test]
fn the_sequential_order_is_safe_and_ends_after_any_two_faults() {
    passes("any two faults", any(2));
}

/// Millions of states.
#[test]
#[ignore = "long; run it after every change of a transition"]
fn the_sequential_order_is_safe_and_ends_after_any_three_faults() {
    passes("any three faults", any(3));
}

#[test]
fn the_sequential_order_is_safe_when_somebody_makes_a_pod_of_the_state() {
    passes("a forged start amid a crash", Bounds { forged: 1, crashes: 1, ..NOTHING });
}

/// A kind of fault.
type Kind = fn(&mut Bounds) -> &mut u8;

/// What goes wrong in either order. A second holder, a second Migration and a node that registers anew come to
/// something only where their rule is broken.
const FAULTS: [(&str, Kind); 12] = [
    ("crashes", |bounds| &mut bounds.crashes),
    ("reboots", |bounds| &mut bounds.reboots),
    ("deaths", |bounds| &mut bounds.deaths),
    ("failures", |bounds| &mut bounds.failures),
    ("strips", |bounds| &mut bounds.strips),
    ("forged", |bounds| &mut bounds.forged),
    ("kills", |bounds| &mut bounds.kills),
    ("deletes", |bounds| &mut bounds.deletes),
    ("cuts", |bounds| &mut bounds.cuts),
    ("ends", |bounds| &mut bounds.ends),
    ("silences", |bounds| &mut bounds.silences),
    ("cancels", |bounds| &mut bounds.cancels),
];

/// What goes wrong only where memory moves.
const FAULTS_OF_MEMORY: [(&str, Kind); 4] = [
    ("dumps", |bounds| &mut bounds.dumps),
    ("restores", |bounds| &mut bounds.restores),
    ("let_go", |bounds| &mut bounds.let_go),
    ("shims", |bounds| &mut bounds.shims),
];

#[test]
fn every_fault_happens() {
    let memory = FAULTS.iter().chain(&FAULTS_OF_MEMORY).map(|fault| (fault, false));
    for ((name, kind), cold) in memory.chain(FAULTS.iter().map(|fault| (fault, true))) {
        let mut bounds = NOTHING;
        *kind(&mut bounds) = 1;
        search::reaches(name, &World::new(bounds, cold), |world| {
            let mut left = world.left;
            *kind(&mut left) == 0
        });
    }
}

/// What cannot be excluded: see [`super::super::overlap`].
#[test]
fn what_a_dead_restore_let_go_may_run_beside_the_source_until_it_is_killed() {
    let start = World::new(Bounds { let_go: 1, ..NOTHING }, false);
    search::reaches("let go beside the source", &start, |world| {
        world.s.runs() && world.trial.loose
    });
}

#[test]
fn the_pod_runs_again_though_its_first_restore_after_the_commit_dies() {
    let start = World::new(Bounds { restores: 1, ..NOTHING }, false);
    search::reaches("restored again", &start, |world| {
        world.resumed && world.tries == 2 && world.left.restores == 0
    });
}

#[test]
fn the_pod_is_restored_again_when_its_shim_dies_before_it_runs() {
    let start = World::new(Bounds { shims: 1, ..NOTHING }, false);
    search::reaches("restored again with another shim", &start, |world| {
        world.resumed && world.tries == 2 && world.left.shims == 0
    });
}

#[test]
fn a_source_whose_shim_dies_moves_all_the_same() {
    let start = World::new(Bounds { shims: 1, ..NOTHING }, false);
    search::reaches("voted and committed without its shim", &start, |world| {
        let voted = world.s.journal.contains(&SourceEntry::Voted);
        voted && world.s.orphan && world.recorded.decision == Some(Decision::Commit)
    });
}

/// And not given up for that: no such end is taken for one in the runs above.
#[test]
fn a_pod_that_is_deleted_behind_its_gate_is_made_again() {
    let start = World::new(Bounds { deletes: 1, ..NOTHING }, false);
    search::reaches("deleted behind its gate", &start, |world| {
        let gone = world.again.as_ref().filter(|again| again.pod == PodSeen::Gone);
        gone.is_some_and(|again| again.record.is_none()) && !world.unwanted
    });
    search::reaches("made again", &start, |world| {
        world.resumed && world.tries == 2 && world.left.deletes == 0
    });
}

#[test]
fn a_pod_that_is_deleted_on_its_node_is_not_made_again_where_that_was_seen() {
    for cold in [false, true] {
        let start = World::new(Bounds { deletes: 1, ..NOTHING }, cold);
        search::reaches("not wanted any more", &start, |world| {
            is_unwanted(world) && world.tries == 1 && !world.resumed
        });
    }
}

#[test]
fn a_pod_of_which_a_dead_restore_ran_is_restored_once_more_when_somebody_wants_it() {
    let start = World::new(Bounds { let_go: 1, ..NOTHING }, false);
    search::reaches("restored again as it was wanted", &start, |world| {
        world.resumed && world.tries == 2 && world.left.let_go == 0
    });
}

#[test]
fn a_pod_of_which_a_dead_restore_ran_is_given_up_with_its_migration() {
    let start = World::new(Bounds { let_go: 1, cancels: 1, ..NOTHING }, false);
    search::reaches("given up", &start, |world| {
        world.deleting && !world.exists && !world.resumed && is_asked_for(world)
    });
}

#[test]
fn a_pod_whose_memory_was_wanted_is_given_up_with_its_migration_as_long_as_it_does_not_run() {
    let start = World::new(Bounds { let_go: 1, cancels: 1, ..NOTHING }, false);
    search::reaches("wanted and given up", &start, |world| {
        world.deleting && !world.exists && !world.resumed && world.wanted
    });
}

#[test]
fn a_deletion_that_nobody_had_asked_for_leaves_the_choice() {
    let start = World::new(Bounds { let_go: 1, cancels: 1, ..NOTHING }, false);
    search::reaches("deleted, asked, wanted and restored", &start, |world| {
        world.unasked && world.resumed && world.tries == 2
    });
    search::reaches("deleted, asked and given up", &start, |world| {
        world.unasked && world.answered && !world.exists && !world.resumed
    });
}

#[test]
fn a_pod_whose_node_has_left_before_it_told_goes_back_when_somebody_wants_it() {
    let start = World::new(Bounds { deaths: 1, ..NOTHING }, false);
    search::reaches("wanted after its node has left", &start, |world| {
        let back = world.again.as_ref().filter(|again| again.at_source);
        let outcome = back.and_then(|again| again.word.outcome);
        world.risked && outcome == Some(TargetOutcome::Resumed)
    });
    search::reaches("given up after its node has left", &start, |world| {
        world.answered && is_asked_for(world) && world.trial.dead
    });
}

macro_rules! each_rule_of_the_order_matters {
    ($($name:ident: $rule:ident $bounds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                search::fails(Rule::$rule, [World::new($bounds, false)]);
            }
        )*

        /// The rules that are broken here.
        pub const BROKEN: &[Rule] = &[$(Rule::$rule),*];
    };
}

each_rule_of_the_order_matters! {
    votes_without_durable_state: StateIsDurable NOTHING;
    a_trial_that_thaws: TrialNeverThaws NOTHING;
    a_source_that_ends_before_the_commit: YieldsOnlyAfterCommit NOTHING;
    a_pod_made_again_beside_its_source: AgainOnlyAfterReleased Bounds { strips: 1, ..NOTHING };
    a_second_try_beside_the_first: AgainOnlyAfterLastWord NOTHING;
    a_pod_made_again_that_asks_nobody: AgainNeedsCommit Bounds { forged: 1, ..NOTHING };
    a_trial_that_votes_out_of_contact: VotesOnlyInContact Bounds { cuts: 1, ..NOTHING };
    a_frozen_source_that_kubelet_kills: FrozenRefusesKill Bounds { kills: 1, ..NOTHING };
    a_frozen_source_that_kubelet_makes_anew: FrozenRefusesCreate Bounds { reboots: 1, ..NOTHING };
    a_source_that_kubelet_makes_anew_though_it_has_moved: MovedRefusesCreate NOTHING;
    a_dump_of_what_ran: DumpIsWhole Bounds { dumps: 1, ..NOTHING };
    a_thaw_beside_a_dump: DumpEndsBeforeThaw NOTHING;
    a_dead_restore_that_is_left_to_patience: RestoresAreWatched Bounds { restores: 1, ..NOTHING };
    a_delete_through_a_mount: DeleteDetaches Bounds { restores: 1, ..NOTHING };
    a_mount_that_is_left_behind: LoserLeavesNothing Bounds { restores: 1, ..NOTHING };
    a_dead_restore_that_counts: RestoreIsWhole Bounds { let_go: 1, ..NOTHING };
    what_a_dead_restore_let_go_and_nobody_tells_of: WhatRanIsToldOf Bounds { let_go: 1, ..NOTHING };
    older_memory_on_newer_volumes: NewerVolumesAreAskedFor Bounds { let_go: 1, ..NOTHING };
    older_memory_after_a_node_that_left: GoneNodesAreAskedFor Bounds { deaths: 1, ..NOTHING };
    a_deletion_that_was_not_an_answer:
        OnlyTheAskedGiveUp Bounds { let_go: 1, cancels: 1, ..NOTHING };
    what_a_dead_restore_let_go_and_nobody_kills: KillsByCgroup Bounds { let_go: 1, ..NOTHING };
    a_silent_pod_that_is_made_again: SilenceIsNoProof Bounds { silences: 1, ..NOTHING };
    a_pod_that_is_made_again_as_its_node_registers_anew:
        AnewIsNotGone Bounds { anew: 1, ..NOTHING };
    a_deleted_migration_that_leaves_the_pod_unmade:
        DeletedFinishesFirst Bounds { cancels: 1, ..NOTHING };
    two_holders_of_a_side: OneHolder Bounds { seconds: 1, ..NOTHING };
    two_migrations_of_a_pod_that_is_to_end: OneMigration Bounds { others: 1, ..NOTHING };
    a_side_whose_tasks_ended_and_that_waits: TasksAreWatched Bounds { ends: 1, ..NOTHING };
    a_record_that_opens_beside_tasks_without_a_shim:
        OrphansEndFirst Bounds { shims: 1, ..NOTHING };
}

#[test]
fn entries_of_the_order_are_stored_under_their_names() {
    let entry = serde_json::to_string(&SourceEntry::Yielded).unwrap();
    assert_eq!(entry, r#"{"kind":"yielded"}"#);
    let entry = TargetEntry::Closed { outcome: TargetOutcome::Kept };
    assert_eq!(serde_json::to_string(&entry).unwrap(), r#"{"kind":"closed","outcome":"kept"}"#);
    assert_eq!(SourceWord::default().outcome, None);
}
