//! The target's side: restores into frozen cgroups, votes, and either thaws or never does. It
//! decides nothing about the migration after its vote, except that it may find itself unable to
//! thaw (`neverThawed`).
//!
//! ```text
//! Idle → Begun → Voted → Committed → Thawing → Thawed → Confirmed → Closed(Resumed)
//!          └───────┴─────────┴→ NeverThawed ┊ Closed(NeverThawed)
//!                                      Thawing, Thawed ⇄ Lost → Stopping → Closed(Stopped)
//! ```
//! `Thawed` is the state of a *protected* pod: its dead-man is armed, its record still `held`.
//! Only `resumedAt`, read by itself, makes it an ordinary pod.

use serde::{Deserialize, Serialize};

use crate::effect::{Effect, Facts, Failure, Guard, Machine};
use crate::record::RecordState;
use crate::recorded::{Decision, Read, Recorded};
use crate::rules::{Rule, holds};
use crate::sequential::Part;
use crate::word::{TargetOutcome, TargetWord};

/// The target's journal. The host crate adds version, boot id and time to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TargetEntry {
    /// It has taken the migration on.
    Begun,
    /// Everything is restored, whole and frozen: from here only a recorded decision counts.
    Voted,
    /// It gave up before its vote.
    AbortedBeforeVote,
    /// It has read the decision.
    Decided {
        /// What was decided.
        decision: Decision,
    },
    /// It is about to thaw: from here nobody can say that it never ran.
    Thawing,
    /// It runs, and the network knows.
    Thawed,
    /// It may have run, and its tasks are gone.
    Lost,
    /// `resumedAt` was read: it is the pod.
    Confirmed,
    /// It did not thaw and never will.
    NeverThawed,
    /// It may have run, and the source goes on: it stops for good.
    Stopping,
    /// Last entry.
    Closed {
        /// How it ended.
        outcome: TargetOutcome,
    },
}

/// What happens to the target's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetEvent {
    /// Take the migration on (empty journal).
    Begin,
    /// Every container is Running in the CRI with the restored pid, frozen and alive. Cold: everything has
    /// arrived, or (of a pod that was made again) everything but what is each container's own is in its place.
    /// Either way the API server could be reached since, from which the decision is to be read.
    AllRestoredAndFrozen,
    /// Something failed on this side or on the way to the peer.
    LocalFailure,
    /// The patience before the vote has run out.
    DeadlinePassed,
    /// Tasks are gone, or their shim is: the runtime has lost them, and nobody else would ever end them.
    TasksLost,
    /// A pod made again that gives up: what was restored may have run before it was held.
    MayHaveRun,
    /// Cold: every container was started with its files.
    AllStarted,
    /// The dead-man expired: the tasks are frozen and the network is closed.
    Lapsed,
    /// Somebody says there is news (RPC, whatever it claims): read for yourself.
    Poked,
    /// A quorum read of the Migration of our UID.
    DecisionRead(Recorded),
    /// A quorum read: the Migration of our UID does not exist.
    ObjectGone,
}

impl From<Read> for TargetEvent {
    fn from(read: Read) -> Self {
        match read {
            Read::Recorded(recorded) => Self::DecisionRead(recorded),
            Read::Gone => Self::ObjectGone,
        }
    }
}

/// Where the target stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TargetPhase {
    /// Empty journal.
    #[default]
    Idle,
    /// Restoring; may still give up by itself.
    Begun,
    /// Voted, undecided.
    Voted,
    /// Commit; not yet on the way to thaw.
    Committed,
    /// It thaws, or has.
    Thawing,
    /// It runs, unconfirmed.
    Thawed,
    /// It may have run; the tasks are gone; neither `resumedAt` nor a resolution has been read.
    Lost,
    /// `resumedAt` was read: on the way to `Closed(Resumed)`.
    Confirmed,
    /// On the way to `Closed(NeverThawed)`.
    NeverThawed,
    /// On the way to `Closed(Stopped)`.
    Stopping,
    /// Closed.
    Closed(TargetOutcome),
}

/// An effect of the target.
pub type TargetEffect = Effect<TargetEntry, TargetWord>;

/// The target's machine. Rebuild it with [`TargetMachine::recover`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TargetMachine {
    phase: TargetPhase,
    voted: bool,
    thawed: bool,
    lost: bool,
    /// The dead-man has expired since the vote. Sticky: the operator may be about to record a
    /// resolution on the strength of it, at any later time.
    lapsed: bool,
    /// It has journalled by itself that it will never thaw, whatever was decided.
    denied: bool,
    part: Part,
    /// A pod made again: everything is restored and frozen.
    pub(crate) held: bool,
    /// A pod made again: the Migration has vanished.
    pub(crate) vanished: bool,
}

pub(crate) struct Plan {
    ahead: TargetMachine,
    pub(crate) effects: Vec<TargetEffect>,
}

impl Plan {
    pub(crate) fn of(machine: &TargetMachine) -> Self {
        Self { ahead: *machine, effects: Vec::new() }
    }

    pub(crate) fn journal(mut self, entry: TargetEntry) -> Self {
        self.ahead.apply(entry);
        self.with(Effect::Journal(entry))
    }

    pub(crate) fn with(mut self, effect: TargetEffect) -> Self {
        self.effects.push(effect);
        self
    }

    pub(crate) fn publish(self) -> Self {
        let word = self.ahead.word();
        self.with(Effect::Publish(word))
    }

    pub(crate) fn is_cold(&self) -> bool {
        self.ahead.part.is_cold()
    }

    /// After `NeverThawed`: the word goes out first (nothing can run here any more, so the source
    /// need not wait), then everything ends. For a pod that was made again nobody waits, and whether nothing of
    /// it has run, though it was never let, is known at the end.
    pub(crate) fn never(self) -> Self {
        let looks = self.ahead.part.is_restored_again();
        let mut plan = if looks { self } else { self.publish() };
        plan = plan.with(Effect::WriteRecord(RecordState::Aborted)).with(Effect::QuiesceWrapper);
        if holds(Rule::LoserIsReaped) {
            plan = plan.with(Effect::KillTasksFrozen);
        }
        if looks && holds(Rule::WhatRanIsToldOf) {
            plan = plan.with(Effect::VerifyNeverRan);
        }
        plan.with(Effect::DisarmDeadman)
            .journal(TargetEntry::Closed { outcome: TargetOutcome::NeverThawed })
            .publish()
    }

    /// After `Stopping`: the source goes on, so nothing is published before the tasks are dead.
    pub(crate) fn stop(self) -> Self {
        self.with(Effect::FreezeTasks)
            .with(Effect::CloseNetwork)
            .with(Effect::WriteRecord(RecordState::Aborted))
            .with(Effect::QuiesceWrapper)
            .with(Effect::KillTasksFrozen)
            .with(Effect::DisarmDeadman)
            .journal(TargetEntry::Closed { outcome: TargetOutcome::Stopped })
            .publish()
    }

    /// After `Lost`: before anybody is told, the sandbox, which may have outlived the tasks, gives up the
    /// address, and whatever else has outlived them is killed: another container, or tasks whose shim has
    /// died. The source may go on as soon as it is told.
    fn lost(mut self) -> Self {
        self = self.with(Effect::CloseNetwork);
        if holds(Rule::LostIsReaped) {
            self = self.with(Effect::KillTasksFrozen);
        }
        self.publish()
    }

    /// After `Confirmed`: an ordinary pod. The thaw is for one that the dead-man had frozen.
    pub(crate) fn open(self) -> Self {
        self.with(Effect::DisarmDeadman)
            .with(Effect::ThawTasks(Guard::None))
            .with(Effect::OpenNetwork(Guard::None))
            .with(Effect::Announce)
            .with(Effect::WriteRecord(RecordState::Open))
            .journal(TargetEntry::Closed { outcome: TargetOutcome::Resumed })
            .publish()
    }

    /// After `Thawing`.
    fn thaw(mut self) -> Self {
        let guard = if holds(Rule::ThawIsGuarded) { Guard::Deadman } else { Guard::None };
        if !holds(Rule::TargetOpensAfterThaw) {
            self = self.with(Effect::WriteRecord(RecordState::Open));
        }
        self = self
            .with(Effect::ThawTasks(guard))
            .with(Effect::OpenNetwork(guard))
            .with(Effect::Announce);
        if !holds(Rule::TargetOpensOnlyConfirmed) {
            self = self.with(Effect::WriteRecord(RecordState::Open));
        }
        self.journal(TargetEntry::Thawed).publish()
    }
}

impl TargetMachine {
    /// A machine with an empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`TargetMachine::new`], for this part.
    pub fn of(part: Part) -> Self {
        Self { part, ..Self::default() }
    }

    /// Rebuilds the machine after a restart of the holder (or the node) and returns what may be
    /// left to do. Before the vote that is always to give up.
    pub fn recover(entries: &[TargetEntry], facts: Facts) -> (Self, Vec<TargetEffect>) {
        Self::recover_as(Part::Overlap, entries, facts)
    }

    /// As [`TargetMachine::recover`], for this part.
    pub fn recover_as(
        part: Part,
        entries: &[TargetEntry],
        facts: Facts,
    ) -> (Self, Vec<TargetEffect>) {
        let mut machine = Self::of(part);
        for entry in entries {
            machine.apply(*entry);
        }
        let sequential = match part {
            Part::Overlap => None,
            part if part.is_trial() => Some(machine.recover_trial()),
            _ => Some(machine.recover_again(facts)),
        };
        if let Some(plan) = sequential {
            return (machine, plan.effects);
        }
        let alive = facts.same_boot && facts.tasks;
        machine.lapsed = facts.lapsed && facts.same_boot && holds(Rule::LapseIsSticky);
        let plan = Plan::of(&machine);
        let plan = match machine.phase {
            TargetPhase::Idle => plan,
            TargetPhase::Begun => machine.give_up(),
            TargetPhase::Voted if alive => plan.publish().with(Effect::ReadRecorded),
            // A lapsed one learns its end by reading (Commit: never thawed).
            TargetPhase::Committed if alive => plan.publish().with(Effect::ReadRecorded),
            TargetPhase::Voted | TargetPhase::Committed => machine.never(),
            TargetPhase::Thawing if !facts.same_boot && !holds(Rule::RebootIsNotNeverThawed) => {
                machine.never()
            }
            TargetPhase::Thawing if alive && !machine.lapsed => {
                plan.thaw().with(Effect::ReadRecorded)
            }
            TargetPhase::Thawing if alive => plan.publish().with(Effect::ReadRecorded),
            // Same boot: it ran and has ended by itself, as any application may.
            TargetPhase::Thawed if facts.same_boot => plan.publish().with(Effect::ReadRecorded),
            TargetPhase::Thawing | TargetPhase::Thawed => {
                plan.journal(TargetEntry::Lost).lost().with(Effect::ReadRecorded)
            }
            TargetPhase::Lost => plan.lost().with(Effect::ReadRecorded),
            TargetPhase::Confirmed => plan.open(),
            TargetPhase::NeverThawed => plan.never(),
            TargetPhase::Stopping => plan.stop(),
            TargetPhase::Closed(_) => plan.publish(),
        };
        (machine, plan.effects)
    }

    /// Where it stands.
    pub fn phase(&self) -> TargetPhase {
        self.phase
    }

    /// Its part.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Nothing is left to do but to keep the last word published.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, TargetPhase::Closed(_))
    }

    /// It may still give up by itself.
    pub fn is_before_vote(&self) -> bool {
        matches!(self.phase, TargetPhase::Idle | TargetPhase::Begun)
    }

    /// That it was never let run is said, for good.
    pub fn says_never_thawed(&self) -> bool {
        self.word().outcome == Some(TargetOutcome::NeverThawed)
    }

    /// Whether it signs off when it ends, so that nothing follows from its silence. One that will never thaw, and has
    /// not read an Abort, does not: a Commit may be written at the same moment, and where its word is lost with the
    /// node, its silence is all that tells.
    pub fn signs_off(&self) -> bool {
        !self.denied || self.part.is_sequential() || !holds(Rule::SignsOffOnlySettled)
    }

    fn word(&self) -> TargetWord {
        TargetWord {
            begun: self.phase != TargetPhase::Idle,
            voted: self.voted,
            thawed: self.thawed || (self.phase == TargetPhase::Thawing && self.lapsed),
            lost: self.lost,
            outcome: match self.phase {
                // It is not said before it is known (see `Plan::never`).
                TargetPhase::NeverThawed if self.part.is_restored_again() => None,
                TargetPhase::NeverThawed => Some(TargetOutcome::NeverThawed),
                TargetPhase::Closed(outcome) => Some(outcome),
                _ => None,
            },
            closed: self.is_closed(),
        }
    }

    pub(crate) fn give_up(&self) -> Plan {
        Plan::of(self).journal(TargetEntry::AbortedBeforeVote).never()
    }

    pub(crate) fn never(&self) -> Plan {
        Plan::of(self).journal(TargetEntry::NeverThawed).never()
    }

    pub(crate) fn stop(&self) -> Plan {
        Plan::of(self).journal(TargetEntry::Stopping).stop()
    }

    fn vote(&self) -> Plan {
        let mut plan = Plan::of(self);
        if holds(Rule::TargetHoldsBeforeVote) {
            plan = plan.with(Effect::WriteRecord(RecordState::Held));
        }
        if holds(Rule::TargetQuiesces) {
            plan = plan.with(Effect::QuiesceWrapper);
        }
        if holds(Rule::VotesOnlyWhenVerified) {
            plan = plan.with(Effect::VerifyTasks);
        }
        plan.with(Effect::ArmDeadman).journal(TargetEntry::Voted).publish()
    }

    /// Commit was read, and nothing that settles it otherwise.
    fn commit(&self) -> Plan {
        let mut plan = Plan::of(self);
        if self.phase != TargetPhase::Committed {
            plan = plan.journal(TargetEntry::Decided { decision: Decision::Commit });
        }
        plan = plan.with(Effect::VerifyTasks);
        if holds(Rule::ThawingIsJournalledFirst) {
            plan.journal(TargetEntry::Thawing).thaw()
        } else {
            let guard = Effect::ThawTasks(Guard::Deadman);
            plan.with(guard).journal(TargetEntry::Thawing).thaw()
        }
    }

    fn decided(&mut self, recorded: Recorded) -> Plan {
        use TargetPhase as P;
        let plan = Plan::of(self);
        if !recorded.is_lawful() {
            return plan;
        }
        match (recorded.decision, self.phase) {
            (None, _) => plan,
            (Some(Decision::Abort), P::Voted) => {
                plan.journal(TargetEntry::Decided { decision: Decision::Abort }).never()
            }
            // Written once: it cannot turn into an Abort after we have read Commit.
            (Some(Decision::Abort), _) => plan,
            (Some(Decision::Commit), _) if recorded.resumed_at => {
                plan.journal(TargetEntry::Confirmed).open()
            }
            (Some(Decision::Commit), P::Voted | P::Committed) => {
                if recorded.resolution.is_some() || self.lapsed {
                    self.never()
                } else {
                    self.commit()
                }
            }
            (Some(Decision::Commit), _) if recorded.resolution.is_some() => self.stop(),
            (Some(Decision::Commit), P::Thawing) if self.lapsed => plan.publish(),
            (Some(Decision::Commit), P::Thawing) => plan.thaw(),
            (Some(Decision::Commit), _) => plan,
        }
    }

    fn gone(&self) -> Plan {
        match self.phase {
            TargetPhase::Voted | TargetPhase::Committed => self.never(),
            // It runs, and its dead-man had not expired when the Migration was found gone: nobody
            // can have recorded a resolution.
            TargetPhase::Thawed if !holds(Rule::LapsedStopsWhenVanished) => {
                Plan::of(self).journal(TargetEntry::Confirmed).open()
            }
            TargetPhase::Thawed if !self.lapsed => {
                Plan::of(self).with(Effect::CheckDeadman).journal(TargetEntry::Confirmed).open()
            }
            _ => self.stop(),
        }
    }
}

impl Machine for TargetMachine {
    type Entry = TargetEntry;
    type Word = TargetWord;
    type Event = TargetEvent;

    fn step(&mut self, event: TargetEvent) -> Vec<TargetEffect> {
        use TargetEvent as E;
        use TargetPhase as P;
        let plan = Plan::of(self);
        let plan = match (self.phase, event) {
            (_, E::Poked) if !self.is_closed() => plan.with(Effect::ReadRecorded),
            // It is the pod. What its shim has left is not thawed once more, and kubelet starts it afresh.
            (P::Confirmed, E::TasksLost) => plan.with(Effect::KillTasksFrozen).open(),
            (P::Idle, E::Begin) => {
                let state = match self.part.is_cold() {
                    true => RecordState::Prepared,
                    false => RecordState::Restore,
                };
                plan.journal(TargetEntry::Begun).with(Effect::WriteRecord(state)).publish()
            }
            _ if self.part.is_again() => self.step_again(event),
            (P::Begun, E::AllRestoredAndFrozen) if self.part == Part::Overlap => self.vote(),
            (P::Begun, E::LocalFailure | E::DeadlinePassed | E::TasksLost | E::ObjectGone) => {
                self.give_up()
            }
            (P::Begun, E::DecisionRead(recorded)) if recorded.decision.is_some() => {
                if recorded.decision == Some(Decision::Commit) && !holds(Rule::CommitNeedsOwnVote) {
                    plan.journal(TargetEntry::Thawing).thaw()
                } else {
                    // A decision cannot be ours before our vote; whatever it says, we are out.
                    self.give_up()
                }
            }
            _ if self.part.is_trial() => self.step_trial(event),
            (P::Voted | P::Committed | P::Thawing | P::Thawed | P::Lost, E::DecisionRead(r)) => {
                self.decided(r)
            }
            (P::Voted | P::Committed | P::Thawing | P::Thawed | P::Lost, E::ObjectGone) => {
                self.gone()
            }
            (P::Voted | P::Committed, E::TasksLost) => self.never(),
            (P::Thawing, E::TasksLost) => plan.journal(TargetEntry::Lost).lost(),
            (P::Voted | P::Committed, E::Lapsed) => {
                self.lapsed = holds(Rule::LapseIsSticky);
                plan
            }
            (P::Thawing | P::Thawed, E::Lapsed) => {
                self.lapsed = holds(Rule::LapseIsSticky);
                Plan::of(self)
                    .with(Effect::FreezeTasks)
                    .with(Effect::CloseNetwork)
                    .publish()
                    .with(Effect::ReadRecorded)
            }
            _ => plan,
        };
        plan.effects
    }

    fn apply(&mut self, entry: TargetEntry) {
        use TargetPhase as P;
        self.phase = match entry {
            TargetEntry::Begun => P::Begun,
            TargetEntry::Voted => {
                self.voted = true;
                P::Voted
            }
            // A Commit without a vote of ours is not ours.
            TargetEntry::Decided { decision: Decision::Commit } if self.voted => P::Committed,
            TargetEntry::NeverThawed => {
                self.denied = true;
                P::NeverThawed
            }
            TargetEntry::AbortedBeforeVote | TargetEntry::Decided { .. } => P::NeverThawed,
            TargetEntry::Thawing => P::Thawing,
            TargetEntry::Thawed => {
                self.thawed = true;
                P::Thawed
            }
            TargetEntry::Lost => {
                self.lost = true;
                P::Lost
            }
            TargetEntry::Confirmed => P::Confirmed,
            TargetEntry::Stopping => P::Stopping,
            TargetEntry::Closed { outcome } => P::Closed(outcome),
        };
    }

    fn failed(&self, failure: Failure) -> Option<TargetEvent> {
        match (self.phase, failure) {
            (TargetPhase::Idle | TargetPhase::Begun, Failure::TasksLost) => {
                Some(TargetEvent::TasksLost)
            }
            (TargetPhase::Idle | TargetPhase::Begun, _) => Some(TargetEvent::LocalFailure),
            (
                TargetPhase::Committed | TargetPhase::Thawing | TargetPhase::Confirmed,
                Failure::TasksLost,
            ) => Some(TargetEvent::TasksLost),
            (TargetPhase::Thawing | TargetPhase::Thawed, Failure::Lapsed) => {
                Some(TargetEvent::Lapsed)
            }
            (TargetPhase::NeverThawed, Failure::MayHaveRun) => Some(TargetEvent::MayHaveRun),
            _ => None,
        }
    }
}
