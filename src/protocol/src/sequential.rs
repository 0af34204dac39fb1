//! The sequential order, for pods whose name or volume is exclusive: the source ends before the pod
//! is made again on the target, from its images.
//!
//! ```text
//! S vote      tasks verified → state durable → journal Voted → publish
//! S commit    journal Decided(Commit) … release: journal Yielded → record moved → kill frozen → journal Released
//! trial vote  record held → wrapper quiet → tasks verified → state durable → journal Voted → publish
//! trial commit journal Decided(Commit) → record aborted → wrapper quiet → kill frozen → journal Closed(Kept) → publish
//! again       journal Begun → record restore … all restored and frozen: record held → wrapper quiet → tasks verified
//!             → read Commit (with a resolution exactly if it runs on the source's node) → tasks verified
//!             → journal Thawing → thaw → network open → announce → journal Thawed → publish
//!             → journal Confirmed → record open → journal Closed(Resumed)
//! again gives up journal AbortedBeforeVote → record aborted → wrapper quiet → kill frozen → look whether anything may
//!             have run → journal Closed(NeverThawed) → publish, or journal Stopping → … → Closed(Stopped) → publish
//! ```
//!
//! * Both votes are promises about the **disk**: from there on the whole state is in two places, and
//!   neither a reboot nor the end of the tasks takes a vote back.
//! * The trial is a restore like any other, held and then killed. It has no way to a thaw at all.
//! * The source is killed once it has itself read Commit and was asked to release. Until then it goes
//!   on with its connections when the Migration vanishes, whatever the trial says: nobody else runs,
//!   since the pod is made again only after the source's word `Released`.
//! * At most one copy runs by order: the source is released and its object gone before the first
//!   pod is made again, and each further try is made only after the last word of the one before. No
//!   dead-man and no proof from silence is needed, and none is used.
//! * A try that may have run and was lost closes as `Stopped`, be it that it was thawed or that a killed CRIU let
//!   it go before it was held. The next one starts from the images; where the pod has persistent volumes, which the
//!   lost one may have written to, only when somebody has asked for it ([`must_be_asked_for`]). So it is where the
//!   node has left the cluster before it said what became of the try. Who is asked may as well give the memory up
//!   ([`gives_up_memory`]).

use serde::{Deserialize, Serialize};

use crate::effect::{Effect, Facts, Guard};
use crate::record::RecordState;
use crate::recorded::{Decision, Recorded};
use crate::rules::{Rule, holds};
use crate::target::{Plan, TargetEntry, TargetEvent, TargetMachine, TargetPhase};
use crate::word::{SourceOutcome, SourceWord, TargetOutcome, TargetWord};
use crate::{PodSeen, TargetProof};

/// Which part a side plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Target beside source.
    #[default]
    Overlap,
    /// Sequential order, until the Commit: the source, and on the target a restore on trial.
    Trial,
    /// Sequential order: the pod that was made again on the target.
    Again,
    /// The same on the source's node, after the resolution.
    AgainAtSource,
    /// Cold, until the Commit: the source, whose containers end, and on the target the place for its files.
    Cold,
    /// Cold: the pod that was made again on the target.
    ColdAgain,
    /// The same on the source's node, after the resolution.
    ColdAgainAtSource,
}

impl Part {
    /// The source ends before the pod is made again.
    pub fn is_sequential(self) -> bool {
        self != Self::Overlap
    }

    /// The pod that was made again.
    pub fn is_again(self) -> bool {
        matches!(self, Self::Again | Self::ColdAgain) || self.is_at_source()
    }

    /// The pod that was made again, with its memory.
    pub fn is_restored_again(self) -> bool {
        self.is_again() && !self.is_cold()
    }

    /// The pod that was made again on the source's node.
    pub fn is_at_source(self) -> bool {
        matches!(self, Self::AgainAtSource | Self::ColdAgainAtSource)
    }

    /// Nothing but files moves: the application ends and starts afresh.
    pub fn is_cold(self) -> bool {
        matches!(self, Self::Cold | Self::ColdAgain | Self::ColdAgainAtSource)
    }

    /// The target's side until the Commit, where the source ends before the pod is made again.
    pub(crate) fn is_trial(self) -> bool {
        matches!(self, Self::Trial | Self::Cold)
    }
}

/// The source may be asked to end its tasks: Commit is recorded and the trial has ended.
pub fn may_yield(recorded: Recorded, trial: TargetWord, target_node_gone: bool) -> bool {
    recorded.is_open_commit() && (trial.outcome == Some(TargetOutcome::Kept) || target_node_gone)
}

/// The pod may be made again: the source has ended for good and its object is gone. Each further
/// try needs the last word of the one before it ([`has_failed`]).
pub fn may_make_again(
    recorded: Recorded,
    source: SourceWord,
    source_node_gone: bool,
    source_pod: PodSeen,
) -> bool {
    let ended = source.outcome == Some(SourceOutcome::Released) || source_node_gone;
    let ended = ended || !holds(Rule::AgainOnlyAfterReleased);
    recorded.is_lawful()
        && recorded.decision == Some(Decision::Commit)
        && !recorded.resumed_at
        && source_pod == PodSeen::Gone
        && ended
}

/// A try has ended, and nothing of it will ever run. Silence is no proof here.
pub fn has_failed(again: TargetWord, node_gone: bool) -> bool {
    let over = matches!(again.outcome, Some(TargetOutcome::NeverThawed | TargetOutcome::Stopped));
    (over && again.closed) || node_gone || !holds(Rule::AgainOnlyAfterLastWord)
}

/// Somebody has to be asked before a pod with persistent volumes is restored once more: this try may have
/// written to them, and the memory of the freeze would meet newer files. What only files move for starts afresh
/// with what it finds there, as after any crash. `left`: the try was let go to a node that has left the cluster
/// since. Whoever removes a node means that its pods are to go on elsewhere, and an autoscaler means nothing; neither
/// knows what the node has written, and only its word that nothing of the try ever ran tells.
pub fn must_be_asked_for(again: TargetWord, left: bool, is_cold: bool, has_volumes: bool) -> bool {
    let ended_as = |outcome| again.closed && again.outcome == Some(outcome);
    let untold = left && !ended_as(TargetOutcome::NeverThawed);
    let may_have_run =
        ended_as(TargetOutcome::Stopped) || (untold && holds(Rule::GoneNodesAreAskedFor));
    may_have_run && !is_cold && has_volumes && holds(Rule::NewerVolumesAreAskedFor)
}

/// Whether a Migration that is deleted takes the pod's memory with it, once somebody was asked about it: who deletes
/// it then knows that. `unasked`: it was deleted when nobody had been asked yet. That deletion meant a migration
/// which finishes first, and does not answer a question that was put later.
pub fn gives_up_memory(deleting: bool, unasked: bool) -> bool {
    deleting && (!unasked || !holds(Rule::OnlyTheAskedGiveUp))
}

/// The pod may go back to its source's node: the tries on the target have ended ([`has_failed`]).
pub fn may_return(recorded: Recorded, again: TargetWord, node_gone: bool) -> bool {
    let proof = if node_gone { TargetProof::NodeDead } else { TargetProof::None };
    has_failed(again, node_gone) && crate::may_resolve_source_resumes(recorded, again, proof)
}

impl TargetMachine {
    pub(crate) fn recover_trial(&self) -> Plan {
        let plan = Plan::of(self);
        match self.phase() {
            TargetPhase::Idle => plan,
            TargetPhase::Begun => self.give_up(),
            TargetPhase::Committed => plan.keep(),
            TargetPhase::NeverThawed => plan.never(),
            TargetPhase::Closed(_) => plan.publish(),
            // What was voted for is on the disk.
            _ => plan.publish().with(Effect::ReadRecorded),
        }
    }

    pub(crate) fn recover_again(&self, facts: Facts) -> Plan {
        let plan = Plan::of(self);
        match self.phase() {
            TargetPhase::Idle => plan,
            TargetPhase::Begun => self.give_up(),
            TargetPhase::Thawing if self.part().is_cold() => plan.start_with_files(),
            TargetPhase::Thawing if facts.same_boot && facts.tasks => plan.resume_again(),
            TargetPhase::Thawed => plan.journal(TargetEntry::Confirmed).open(),
            TargetPhase::Confirmed => plan.open(),
            TargetPhase::NeverThawed => plan.never(),
            TargetPhase::Closed(_) => plan.publish(),
            // It may have run, and its memory is gone: the images are still there.
            TargetPhase::Stopping => plan.stop(),
            _ => self.stop(),
        }
    }

    pub(crate) fn step_trial(&mut self, event: TargetEvent) -> Plan {
        use TargetEvent as E;
        use TargetPhase as P;
        let plan = Plan::of(self);
        match (self.phase(), event) {
            (P::Begun, E::AllRestoredAndFrozen) => {
                let plan = plan
                    .with(Effect::WriteRecord(RecordState::Held))
                    .with(Effect::QuiesceWrapper)
                    .with(Effect::VerifyTasks);
                plan.sync().journal(TargetEntry::Voted).publish()
            }
            (P::Voted, E::DecisionRead(recorded)) if recorded.is_lawful() => {
                match recorded.decision {
                    None => plan,
                    Some(Decision::Abort) => {
                        plan.journal(TargetEntry::Decided { decision: Decision::Abort }).never()
                    }
                    Some(Decision::Commit) => {
                        plan.journal(TargetEntry::Decided { decision: Decision::Commit }).keep()
                    }
                }
            }
            // Nothing has run here, and without the Migration nobody makes the pod again.
            (P::Voted, E::ObjectGone) => self.never(),
            (P::Committed, E::DecisionRead(_) | E::ObjectGone) => plan.keep(),
            _ => plan,
        }
    }

    pub(crate) fn step_again(&mut self, event: TargetEvent) -> Plan {
        use TargetEvent as E;
        use TargetPhase as P;
        let plan = Plan::of(self);
        let cold = self.part().is_cold();
        match (self.phase(), event) {
            (P::Begun, E::AllRestoredAndFrozen) if cold => {
                self.held = true;
                if self.vanished { plan.go() } else { plan.with(Effect::ReadRecorded) }
            }
            (P::Begun, E::AllRestoredAndFrozen) => {
                self.held = true;
                let plan = plan
                    .with(Effect::WriteRecord(RecordState::Held))
                    .with(Effect::QuiesceWrapper)
                    .with(Effect::VerifyTasks);
                if self.vanished { plan.go() } else { plan.with(Effect::ReadRecorded) }
            }
            (P::Begun, E::LocalFailure | E::TasksLost) => self.give_up(),
            (P::Begun, E::DecisionRead(recorded)) => {
                let ours = recorded.decision == Some(Decision::Commit)
                    && !recorded.resumed_at
                    && recorded.resolution.is_some() == self.part().is_at_source();
                match (ours, self.held) {
                    (true, true) => plan.go(),
                    (true, false) => plan,
                    (false, true) if !holds(Rule::AgainNeedsCommit) => plan.go(),
                    (false, _) => self.give_up(),
                }
            }
            // The source has ended and nobody else will be made: this is the pod.
            (P::Begun, E::ObjectGone) => {
                self.vanished = true;
                if self.held { plan.go() } else { plan }
            }
            (P::Thawing, E::AllStarted) if cold => {
                plan.journal(TargetEntry::Thawed).publish().journal(TargetEntry::Confirmed).open()
            }
            // Some of it may have run; the next try starts from the files that are kept.
            (P::Thawing, E::LocalFailure) if cold => self.stop(),
            (P::Thawing, E::TasksLost) | (P::NeverThawed, E::MayHaveRun) => self.stop(),
            _ => plan,
        }
    }
}

impl Plan {
    /// The whole state is on the disk before anything is promised about it.
    fn sync(self) -> Self {
        if holds(Rule::StateIsDurable) { self.with(Effect::SyncState) } else { self }
    }

    /// After `Decided(Commit)` of a trial: its tasks end, the state stays.
    fn keep(self) -> Self {
        if !holds(Rule::TrialNeverThaws) {
            return self.resume_again();
        }
        self.with(Effect::WriteRecord(RecordState::Aborted))
            .with(Effect::QuiesceWrapper)
            .with(Effect::KillTasksFrozen)
            .journal(TargetEntry::Closed { outcome: TargetOutcome::Kept })
            .publish()
    }

    fn go(self) -> Self {
        if self.is_cold() {
            return self.journal(TargetEntry::Thawing).start_with_files();
        }
        self.with(Effect::VerifyTasks).journal(TargetEntry::Thawing).resume_again()
    }

    /// After `Thawing` of a pod that was made again.
    fn resume_again(self) -> Self {
        self.with(Effect::ThawTasks(Guard::None))
            .with(Effect::OpenNetwork(Guard::None))
            .with(Effect::Announce)
            .journal(TargetEntry::Thawed)
            .publish()
            .journal(TargetEntry::Confirmed)
            .open()
    }
}
