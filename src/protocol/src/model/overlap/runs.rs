//! The runs: the protocol as it is within several bounds, and with each rule broken.

use super::super::search::Space;
use super::super::{lent, search, sequential};
use super::world::{Fault, World};
use crate::rules::Rule;
use crate::{Decision, TargetEntry};

fn passes(name: &str, bounds: &[(Fault, u8)], total: u8) {
    search::passes(name, &World::new(bounds, total));
}

/// Breaks `rule` and searches with more and more of the given faults until something shows.
fn fails(rule: Rule, bounds: &[(Fault, u8)]) {
    let most: u8 = bounds.iter().map(|(_, n)| n).sum();
    search::fails(rule, (0..=most).map(|total| World::new(bounds, total)));
}

const ALL: [(Fault, u8); 25] = [
    (Fault::Crash, 3),
    (Fault::Reboot, 2),
    (Fault::Die, 2),
    (Fault::DieUnheard, 1),
    (Fault::KubeletKill, 2),
    (Fault::DeletePod, 2),
    (Fault::DeleteMigration, 1),
    (Fault::Strip, 1),
    (Fault::ForgedHint, 1),
    (Fault::ForgedCommit, 1),
    (Fault::Imposter, 1),
    (Fault::ClaimLost, 1),
    (Fault::SecondMigration, 1),
    (Fault::Lapse, 1),
    (Fault::SecondHolder, 1),
    (Fault::LateBegin, 1),
    (Fault::EffectFails, 1),
    (Fault::TasksDie, 2),
    (Fault::DumpDies, 1),
    (Fault::RestoreDies, 2),
    (Fault::RestoreLetsGo, 1),
    (Fault::CutOff, 1),
    (Fault::ShimDies, 2),
    (Fault::NodeDeleted, 1),
    (Fault::NodeAnew, 1),
];

#[test]
fn the_protocol_is_safe_and_ends_without_faults() {
    passes("no faults", &[], 0);
}

#[test]
fn the_protocol_is_safe_and_ends_after_any_two_faults() {
    passes("any two faults", &ALL, 2);
}

#[test]
fn the_protocol_is_safe_and_ends_after_three_crashes() {
    passes("three crashes", &[(Fault::Crash, 3)], 3);
}

#[test]
fn the_protocol_is_safe_and_ends_after_crashes_a_reboot_and_a_lapse() {
    let bounds = [(Fault::Crash, 2), (Fault::Reboot, 1), (Fault::Lapse, 1)];
    passes("two crashes, a reboot, a lapse", &bounds, 4);
}

#[test]
fn the_protocol_is_safe_and_ends_when_a_vanished_migration_meets_a_dying_node() {
    let bounds = [
        (Fault::Strip, 1),
        (Fault::Imposter, 1),
        (Fault::Lapse, 1),
        (Fault::Die, 1),
        (Fault::Crash, 1),
        (Fault::Reboot, 1),
    ];
    passes("vanished, imposter, lapse, death, crash, reboot", &bounds, 3);
}

/// Some thirty million states, about four minutes.
#[test]
#[ignore = "long; run it after every change of a transition"]
fn the_protocol_is_safe_and_ends_after_any_three_faults() {
    passes("any three faults", &ALL, 3);
}

#[test]
fn a_target_whose_shim_dies_starts_afresh_where_it_is_or_its_source_goes_on() {
    let start = World::new(&[(Fault::ShimDies, 1)], 1);
    let source_goes_on = |world: &World| {
        let never = world.t.journal.contains(&TargetEntry::NeverThawed);
        never && world.is_end() && world.s.env.runs() && !world.s.env.sockets_destroyed
    };
    search::reaches("the source goes on, aborted", &start, |world| {
        source_goes_on(world) && world.api.recorded.decision == Some(Decision::Abort)
    });
    search::reaches("the source goes on, committed", &start, |world| {
        source_goes_on(world) && world.api.recorded.resolution.is_some()
    });
    // What was restored is not what runs.
    search::reaches("it starts afresh as the pod", &start, |world| {
        let resumed = world.is_end() && world.api.recorded.resumed_at;
        resumed && world.t.env.runs() && world.t.env.whole == 0
    });
}

/// Also when containerd has nothing deleted of a pod that is over with its migration.
#[test]
fn what_has_lost_its_shim_does_not_run_beside_what_is_made_in_its_place() {
    passes("shims", &[(Fault::ShimDies, 2)], 2);
}

#[test]
fn every_fault_happens() {
    for (fault, _) in ALL {
        // These come to something only where their rule is broken.
        if matches!(
            fault,
            Fault::SecondMigration | Fault::SecondHolder | Fault::ForgedHint | Fault::NodeAnew
        ) {
            continue;
        }
        let start = World::new(&[(fault, 1), (Fault::Strip, 1)], 3);
        search::reaches(&format!("{fault:?}"), &start, |world| world.left[fault as usize] == 0);
    }
}

/// What cannot be excluded: see [`super`].
#[test]
fn what_a_dead_restore_let_go_may_run_beside_the_source_until_it_is_killed() {
    let start = World::new(&[(Fault::RestoreLetsGo, 1)], 1);
    search::reaches("let go beside the source", &start, |world| {
        world.s.env.runs() && world.t.env.loose
    });
}

macro_rules! each_rule_matters {
    ($($name:ident: $rule:ident $bounds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                fails(Rule::$rule, &$bounds);
            }
        )*

        #[test]
        fn every_rule_has_a_test_that_breaks_it() {
            let tested = [$(Rule::$rule),*];
            for rule in Rule::ALL {
                let broken = tested.contains(rule) || lent::BROKEN.contains(rule)
                    || sequential::BROKEN.iter().any(|broken| broken.contains(rule));
                assert!(broken, "{rule:?} is never broken");
            }
        }
    };
}

each_rule_matters! {
    writes_without_a_resource_version_fail: ConditionalWrites [];
    decisions_on_cached_reads_fail: UncachedReads [(Fault::DeletePod, 1)];
    a_commit_with_one_vote_fails: CommitNeedsBothVotes [];
    a_commit_without_the_claim_fails: CommitNeedsClaim [(Fault::ClaimLost, 1)];
    a_resolution_without_proof_fails: ResolutionNeedsProof [];
    fail_over_without_a_decision_fails: FailoverDecidesFirst [(Fault::Die, 1)];
    fail_over_while_a_side_can_run_fails: FailoverOnlyIfNeitherRuns [(Fault::Die, 1)];
    obeying_a_call_fails: HintsAreNotDecisions [(Fault::ForgedHint, 1)];
    obeying_a_stranger_of_the_same_name_fails:
        DecisionIsOfOwnUid [(Fault::Strip, 1), (Fault::Imposter, 1)];
    a_commit_without_an_own_vote_fails: CommitNeedsOwnVote [(Fault::ForgedCommit, 1)];
    publishing_a_vote_before_journalling_it_fails: VoteIsJournalledFirst [(Fault::Crash, 1)];
    voting_unverified_fails: VotesOnlyWhenVerified [(Fault::KubeletKill, 1)];
    giving_up_after_the_vote_fails: SourceObeysAfterVote [];
    starting_fresh_after_a_reboot_before_the_decision_fails:
        SourceWaitsAfterReboot [(Fault::Reboot, 1)];
    thawing_the_source_before_it_is_open_fails: SourceOpensBeforeThaw [];
    freezing_while_a_verb_is_under_way_fails: SourceQuiesces [(Fault::KubeletKill, 1)];
    taking_a_vanished_migration_for_an_abort_fails: VanishedIsNotAbort [(Fault::Strip, 1)];
    acting_on_a_word_that_is_not_final_fails:
        OnlyTheLastWordCounts [(Fault::Reboot, 1), (Fault::Strip, 1)];
    killing_the_source_before_resumed_at_fails: KilledOnlyAfterResumed [];
    killing_the_source_before_the_last_word_fails: KilledOnlyAfterLastWord [];
    forgetting_a_last_word_that_nobody_has_heard_fails:
        WordsStayUntilHeard [(Fault::Strip, 1)];
    waiting_for_a_word_that_is_forgotten_fails: ForgottenEndsWithPod [(Fault::NodeDeleted, 1)];
    taking_a_node_that_registers_anew_for_one_that_has_left_fails:
        AnewIsNotGone [(Fault::Strip, 1), (Fault::NodeAnew, 1)];
    letting_a_node_leave_whose_silence_is_counted_fails: LeavesOnlyWhenSettled [(Fault::Die, 1)];
    keeping_connections_that_were_served_elsewhere_fails:
        UnknownDestroysSockets [(Fault::Lapse, 1)];
    voting_before_the_record_is_held_fails: TargetHoldsBeforeVote [(Fault::KubeletKill, 1)];
    voting_while_a_verb_is_under_way_fails: TargetQuiesces [(Fault::KubeletKill, 1)];
    thawing_before_journalling_it_fails: ThawingIsJournalledFirst [(Fault::Reboot, 1)];
    thawing_unguarded_fails: ThawIsGuarded [(Fault::Lapse, 1)];
    forgetting_a_lapse_fails: LapseIsSticky [(Fault::Lapse, 1), (Fault::Crash, 1)];
    a_dead_man_that_does_not_freeze_fails: DeadmanFreezes [(Fault::Lapse, 1)];
    a_dead_man_that_dies_with_its_holder_fails:
        DeadmanOutlivesHolder [(Fault::Crash, 1), (Fault::Lapse, 1)];
    counting_a_silence_from_before_the_commit_fails: ProofFollowsCommit [];
    signing_off_while_a_commit_may_stand_open_fails:
        SignsOffOnlySettled [(Fault::ShimDies, 1), (Fault::DieUnheard, 1)];
    opening_the_target_before_the_thaw_fails: TargetOpensAfterThaw [(Fault::Crash, 1), (Fault::Reboot, 1)];
    opening_the_target_unconfirmed_fails:
        TargetOpensOnlyConfirmed [(Fault::Reboot, 1), (Fault::Lapse, 1)];
    denying_a_run_after_a_reboot_fails: RebootIsNotNeverThawed [(Fault::Reboot, 1)];
    running_on_after_a_lapse_when_the_migration_vanished_fails:
        LapsedStopsWhenVanished [(Fault::Lapse, 1), (Fault::Strip, 1)];
    leaving_the_loser_frozen_fails: LoserIsReaped [];
    leaving_a_lost_target_alive_fails: LostIsReaped [(Fault::ShimDies, 1), (Fault::Crash, 1)];
    thawing_tasks_without_their_shim_fails: OrphansAreLost [(Fault::ShimDies, 1)];
    opening_the_record_beside_tasks_without_a_shim_fails: OrphansEndFirst [(Fault::ShimDies, 1)];
    creating_on_an_undecided_source_fails: FrozenRefusesCreate [(Fault::Reboot, 1)];
    killing_on_an_undecided_source_fails: FrozenRefusesKill [(Fault::KubeletKill, 1)];
    creating_on_a_held_target_fails: HeldRefusesCreate [(Fault::Reboot, 1)];
    killing_on_a_held_target_fails: HeldRefusesKill [(Fault::KubeletKill, 1)];
    creating_on_a_moved_source_fails: MovedRefusesCreate [];
    creating_on_a_target_that_lost_fails: AbortedRefusesCreate [];
    killing_the_loser_by_runc_fails: LoserIsKilledFrozen [(Fault::KubeletKill, 1)];
    restoring_twice_fails: TicketIsConsumed [(Fault::KubeletKill, 1)];
    binding_the_target_before_its_record_fails: GateUntilRecord [];
    two_holders_fail: OneHolder [(Fault::SecondHolder, 1)];
    two_migrations_of_a_pod_fail: OneMigration [(Fault::SecondMigration, 1)];
    sending_a_dump_of_what_ran_fails: DumpIsWhole [(Fault::DumpDies, 1)];
    thawing_beside_a_dump_fails: DumpEndsBeforeThaw [(Fault::Crash, 1)];
    voting_without_contact_fails: VotesOnlyInContact [(Fault::CutOff, 1)];
    leaving_a_dead_restore_to_patience_fails: RestoresAreWatched [(Fault::RestoreDies, 1)];
    deleting_through_a_mount_fails: DeleteDetaches [(Fault::RestoreDies, 1)];
    leaving_a_mount_behind_fails: LoserLeavesNothing [(Fault::RestoreDies, 1)];
    leaving_ended_tasks_to_patience_fails: TasksAreWatched [(Fault::TasksDie, 1)];
    counting_what_a_dead_restore_let_go_fails: RestoreIsWhole [(Fault::RestoreLetsGo, 1)];
    leaving_what_a_dead_restore_let_go_fails: KillsByCgroup [(Fault::RestoreLetsGo, 1)];
}
