//! The operator's side: when it may write which of the write-once fields, and what may follow.
//! Every write is a `replaceStatus` with the resourceVersion of the very read that the answer was
//! computed from; a conflict means: read again, ask again. Pure; several operators (a stale leader
//! among them) may follow these rules at once.

use crate::recorded::{Decision, Recorded};
use crate::rules::{Rule, holds};
use crate::word::{SourceOutcome, SourceWord, TargetOutcome, TargetWord};

/// A pod as an uncached read by name showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodSeen {
    /// The UID we know, no deletionTimestamp.
    Alive,
    /// The UID we know, with a deletionTimestamp.
    Deleting,
    /// Not found, or another UID.
    Gone,
}

/// What the decision depends on. Migration and pods are read uncached, the Migration first: the
/// decision is then written with that read's resourceVersion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecisionInput {
    /// The Migration's write-once fields.
    pub recorded: Recorded,
    /// The Migration has a deletionTimestamp.
    pub migration_deleting: bool,
    /// Word of the source.
    pub source: SourceWord,
    /// Word of the target.
    pub target: TargetWord,
    /// S.
    pub source_pod: PodSeen,
    /// T.
    pub target_pod: PodSeen,
    /// S carries the claim of this Migration.
    pub claim_held: bool,
    /// S's node is proven dead (§8): fail-over asks for the decision.
    pub source_node_dead: bool,
    /// T's node is proven dead.
    pub target_node_dead: bool,
    /// The Migration's time is up, a step failed for good, or somebody cancelled.
    pub give_up: bool,
}

/// The decision to record now, or `None`: wait (or it has been written).
pub fn decide(obs: &DecisionInput) -> Option<Decision> {
    if obs.recorded.decision.is_some() {
        return None;
    }
    let both_voted = obs.source.voted && obs.target.voted;
    let out = obs.source.outcome.is_some() || obs.target.outcome.is_some();
    // A dead node's pods get a deletionTimestamp by themselves (taint eviction, fail-over); what
    // the target holds is then newer than any stored version.
    let source_stands = match obs.source_pod {
        PodSeen::Alive => obs.claim_held || !holds(Rule::CommitNeedsClaim),
        PodSeen::Deleting | PodSeen::Gone => obs.source_node_dead,
    };
    let stands = !obs.migration_deleting
        && source_stands
        && obs.target_pod == PodSeen::Alive
        && !obs.target_node_dead
        && !out
        && !obs.give_up;
    if both_voted && stands {
        Some(Decision::Commit)
    } else if !stands || (obs.source_node_dead && !both_voted) {
        Some(Decision::Abort)
    } else if !holds(Rule::CommitNeedsBothVotes) && obs.target.voted {
        Some(Decision::Commit)
    } else {
        None
    }
}

/// `resumedAt` may be recorded: the target runs, or has run and can go on.
/// `target_node_dead`: proven, see [`TargetProof::NodeDead`].
pub fn may_record_resumed(recorded: Recorded, target: TargetWord, target_node_dead: bool) -> bool {
    recorded.is_open_commit()
        && target.thawed
        && !target.lost
        && !target_node_dead
        && matches!(target.outcome, None | Some(TargetOutcome::Resumed))
}

/// Why the target will not run, or not run on, without `resumedAt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetProof {
    /// None.
    None,
    /// The target's signature in its node's Lease has not changed for T₂, counted from reads
    /// *after* the one that showed Commit ([`crate::Signatures`]): its dead-man has expired since
    /// its vote, or the node is off.
    NodeDead,
}

/// `resolution: SourceResumes` may be recorded. Only its write, which `resumedAt` excludes, allows
/// the source to go on.
pub fn may_resolve_source_resumes(
    recorded: Recorded,
    target: TargetWord,
    proof: TargetProof,
) -> bool {
    let proven = proof == TargetProof::NodeDead
        || target.lost
        || matches!(target.outcome, Some(TargetOutcome::NeverThawed | TargetOutcome::Stopped));
    recorded.is_open_commit() && (proven || !holds(Rule::ResolutionNeedsProof))
}

/// The hand-over may begin (labels, claim, release of the tasks, deletion of S). The source itself
/// kills nothing before it has also read the target's last word `resumed`.
pub fn may_release_source(recorded: Recorded) -> bool {
    recorded.is_lawful() && recorded.resumed_at
}

/// The finalizer may go: both sides have finished, never begun, or their node object is gone.
pub fn may_remove_finalizer(
    recorded: Recorded,
    source: SourceWord,
    target: TargetWord,
    source_node_gone: bool,
    target_node_gone: bool,
) -> bool {
    let source_done = source.outcome.is_some() || !source.begun || source_node_gone;
    let target_done = target.closed || !target.begun || target_node_gone;
    // Undecided sides that had not begun could still begin by a late call: decide first.
    let settled = recorded.decision.is_some() || !(source.begun || target.begun);
    settled && source_done && target_done
}

/// As far as a Migration is concerned whose target is there, a node that the cluster has no more may leave: its word and
/// the Lease with its signatures go. While the Commit stands open the target's silence is counted by that Lease.
pub fn may_leave(recorded: Recorded) -> bool {
    !recorded.is_open_commit() || !holds(Rule::LeavesOnlyWhenSettled)
}

/// Fail-over may restore a stored version of the pod elsewhere: the decision is written and
/// neither side can run. The node proofs are those of §8 for *protected* pods or real fencing.
pub fn may_restore_version(
    recorded: Recorded,
    source: SourceWord,
    source_node_dead: bool,
    target_node_dead: bool,
) -> bool {
    if !recorded.is_lawful() {
        return false;
    }
    match recorded.decision {
        None => source_node_dead && !holds(Rule::FailoverDecidesFirst),
        // The target never thaws after an Abort, the source may.
        Some(Decision::Abort) => source_node_dead,
        // The source never goes on after it has read `resumedAt`; that it has, its end tells.
        Some(Decision::Commit) if recorded.resumed_at => {
            target_node_dead
                && (source_node_dead || source.outcome == Some(SourceOutcome::Released))
        }
        // The target never goes on after a resolution.
        Some(Decision::Commit) if recorded.resolution.is_some() => source_node_dead,
        Some(Decision::Commit) => source_node_dead && !holds(Rule::FailoverOnlyIfNeitherRuns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> DecisionInput {
        DecisionInput {
            recorded: Recorded::default(),
            migration_deleting: false,
            source: SourceWord { begun: true, voted: true, ..Default::default() },
            target: TargetWord { begun: true, voted: true, ..Default::default() },
            source_pod: PodSeen::Alive,
            target_pod: PodSeen::Alive,
            claim_held: true,
            source_node_dead: false,
            target_node_dead: false,
            give_up: false,
        }
    }

    #[test]
    fn both_votes_and_nothing_against_it_are_a_commit() {
        assert_eq!(decide(&ready()), Some(Decision::Commit));
    }

    #[test]
    fn anything_against_it_is_an_abort_even_with_both_votes() {
        let never = Some(TargetOutcome::NeverThawed);
        type Change = fn(&mut DecisionInput);
        let against: [(&str, Change); 9] = [
            ("migration deleted", |o| o.migration_deleting = true),
            ("S deleted", |o| o.source_pod = PodSeen::Deleting),
            ("S replaced", |o| o.source_pod = PodSeen::Gone),
            ("T deleted", |o| o.target_pod = PodSeen::Deleting),
            ("T replaced", |o| o.target_pod = PodSeen::Gone),
            ("claim lost", |o| o.claim_held = false),
            ("T's node dead", |o| o.target_node_dead = true),
            ("gave up", |o| o.give_up = true),
            ("S opened", |o| o.source.outcome = Some(SourceOutcome::Opened)),
        ];
        for (name, change) in against {
            let mut obs = ready();
            change(&mut obs);
            assert_eq!(decide(&obs), Some(Decision::Abort), "{name}");
        }
        let mut obs = ready();
        obs.target.outcome = never;
        assert_eq!(decide(&obs), Some(Decision::Abort));
    }

    #[test]
    fn a_missing_vote_waits_and_a_written_decision_is_final() {
        let mut obs = ready();
        obs.source.voted = false;
        assert_eq!(decide(&obs), None);
        obs.source_node_dead = true;
        assert_eq!(decide(&obs), Some(Decision::Abort), "fail-over does not wait");
        let mut obs = ready();
        obs.recorded.decision = Some(Decision::Abort);
        assert_eq!(decide(&obs), None);
    }

    #[test]
    fn a_dead_source_with_both_votes_in_is_a_commit_though_its_pod_is_being_deleted() {
        let mut obs = ready();
        obs.source_node_dead = true;
        obs.source_pod = PodSeen::Deleting;
        assert_eq!(decide(&obs), Some(Decision::Commit));
    }

    #[test]
    fn resumed_and_resolution_exclude_each_other() {
        let commit = Recorded { decision: Some(Decision::Commit), ..Default::default() };
        let thawed = TargetWord { begun: true, voted: true, thawed: true, ..Default::default() };
        assert!(may_record_resumed(commit, thawed, false));
        assert!(!may_record_resumed(commit, thawed, true), "its node is dead");
        assert!(!may_record_resumed(commit, TargetWord { lost: true, ..thawed }, false));
        assert!(!may_record_resumed(commit, TargetWord { thawed: false, ..thawed }, false));
        assert!(!may_resolve_source_resumes(commit, thawed, TargetProof::None));
        assert!(may_resolve_source_resumes(commit, thawed, TargetProof::NodeDead));
        let resumed = Recorded { resumed_at: true, ..commit };
        let resolved = Recorded { resolution: Some(crate::Resolution::SourceResumes), ..commit };
        assert!(!may_resolve_source_resumes(resumed, thawed, TargetProof::NodeDead));
        assert!(!may_record_resumed(resolved, thawed, false));
        assert!(may_release_source(resumed) && !may_release_source(resolved));
        assert!(!may_leave(commit) && may_leave(resumed) && may_leave(resolved));
    }
}
