//! The source's side: freezes, votes, and either goes on as if nothing had happened or is killed
//! while frozen. It decides nothing about the migration after its vote.
//!
//! ```text
//! Idle → Begun → Freezing → Voted → Committed → Moved → Released
//!          └────────┴──────────┴→ Aborting │                          pre-vote failure, Abort
//!                                Resuming ←┘ → Opened                 resolution, target's last word
//!                                (cold: Aborting, Resuming → Starting → Opened)
//! ```

use serde::{Deserialize, Serialize};

use crate::effect::{Effect, Facts, Failure, Guard, Machine};
use crate::record::RecordState;
use crate::recorded::{Decision, Read, Recorded};
use crate::rules::{Rule, holds};
use crate::sequential::Part;
use crate::word::{SourceOutcome, SourceWord, TargetOutcome, TargetWord};

/// What becomes of established connections when the source goes on after a Commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sockets {
    /// The target never ran: they are as they were.
    Keep,
    /// The target may have run and answered on them: they are destroyed first.
    Destroy,
}

/// The source's journal. The host crate adds version, boot id and time to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SourceEntry {
    /// It has taken the migration on; the pod is untouched.
    Begun,
    /// It is about to touch the pod.
    Freezing,
    /// Cold: the containers are found, and are about to be ended.
    Ending,
    /// Everything is frozen and sent: from here only a recorded decision counts.
    Voted,
    /// It gave up before its vote.
    AbortedBeforeVote,
    /// It has read the decision.
    Decided {
        /// What was decided.
        decision: Decision,
    },
    /// The Commit came to nothing and the source goes on: a resolution was read, or the target's
    /// last word when the Migration has vanished.
    Resolved {
        /// What becomes of established connections.
        sockets: Sockets,
    },
    /// Sequential order: Commit was read and the release asked for; the tasks end, the state stays. In any order: the
    /// migration was ended without this node, and the pod is gone or goes.
    Yielded,
    /// Cold: the source goes on; its ended containers may be started again, with their files.
    Starting,
    /// `resumedAt` was read, and the target's last word `resumed`: the pod runs elsewhere.
    PeerResumed,
    /// Last entry: an ordinary pod again.
    Opened {
        /// Its tasks were gone; it starts fresh.
        memory_lost: bool,
    },
    /// Last entry: its tasks are dead.
    Released,
}

/// What happens to the source's holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// Take the migration on (empty journal; see [`may_begin`]).
    Begin,
    /// Freeze now.
    FreezeNow,
    /// All containers are frozen and everything has been sent; no task ran while it was dumped.
    AllFrozenAndSent,
    /// Something failed on this side or on the way to the peer.
    LocalFailure,
    /// The patience before the vote has run out.
    DeadlinePassed,
    /// Cold: every container was started again with its files.
    AllStarted,
    /// The API server has the pod no more. Cold, also: kubelet has removed it, so that nothing of it will be started again.
    PodGone,
    /// It is being deleted, which nobody can take back.
    PodGoes,
    /// The tasks are gone, or were ended since the runtime had lost them. After the vote that may come late or never:
    /// nothing depends on it but what the word says of the memory.
    TasksLost,
    /// Somebody says there is news (RPC, whatever it claims): read for yourself.
    Poked,
    /// A quorum read of the Migration of our UID.
    DecisionRead(Recorded),
    /// A quorum read: the Migration of our UID does not exist.
    ObjectGone,
    /// A quorum read of what the target published for this Migration.
    PeerRead(TargetWord),
    /// The target's node object is gone: an administrator vouches that the node does not run.
    PeerNodeGone,
    /// Hand-over: kill the tasks, as soon as it is settled that the target is the pod.
    ReleaseRequested,
}

impl From<Read> for SourceEvent {
    fn from(read: Read) -> Self {
        match read {
            Read::Recorded(recorded) => Self::DecisionRead(recorded),
            Read::Gone => Self::ObjectGone,
        }
    }
}

/// Where the source stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourcePhase {
    /// Empty journal.
    #[default]
    Idle,
    /// Begun; the pod runs and is untouched.
    Begun,
    /// Frozen, or on the way to it; may still give up by itself.
    Freezing,
    /// Voted, undecided.
    Voted,
    /// Commit; still frozen and refused, until it is settled which side goes on.
    Committed,
    /// Abort, its own or the recorded one: on the way to `Opened`.
    Aborting,
    /// After a Commit on the way to `Opened`.
    Resuming(Sockets),
    /// Cold: kubelet starts the containers again, each with its files; then `Opened`.
    Starting,
    /// The pod runs elsewhere; the tasks are still frozen, for the hand-over.
    Moved,
    /// Closed.
    Opened,
    /// Closed.
    Released,
}

/// An effect of the source.
pub type SourceEffect = Effect<SourceEntry, SourceWord>;

/// The source's machine. Rebuild it with [`SourceMachine::recover`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceMachine {
    phase: SourcePhase,
    voted: bool,
    memory_lost: bool,
    /// The Migration has vanished: the target's last word decides.
    gone: bool,
    /// A resolution was read; the target's word is wanted, for the connections' sake.
    resolved: bool,
    /// `resumedAt` was read; the target's last word is wanted before anything here may end.
    resumed: bool,
    /// A release was asked for before it was allowed: it follows as soon as it is.
    release_wanted: bool,
    /// The Migration is over, or has vanished, and the target's node tells nothing of it: its last word was not kept for
    /// this node, which had left the cluster.
    forgotten: bool,
    /// Cold: containers were ended, or were about to be.
    ending: bool,
    part: Part,
}

/// Whether a pod may be taken on by a (further) migration: no journal of another migration of the
/// pod is open, and its record leaves it an ordinary pod. The host crate asks before `Begin`.
pub fn may_begin(record: Option<RecordState>, another_journal_is_open: bool) -> bool {
    let free = !another_journal_is_open && matches!(record, None | Some(RecordState::Open));
    free || !holds(Rule::OneMigration)
}

/// Collects effects; words are those of the moment at which they are published.
pub(crate) struct Plan {
    ahead: SourceMachine,
    effects: Vec<SourceEffect>,
}

impl Plan {
    fn of(machine: &SourceMachine) -> Self {
        Self { ahead: *machine, effects: Vec::new() }
    }

    pub(crate) fn journal(mut self, entry: SourceEntry) -> Self {
        self.ahead.apply(entry);
        self.with(Effect::Journal(entry))
    }

    pub(crate) fn with(mut self, effect: SourceEffect) -> Self {
        self.effects.push(effect);
        self
    }

    pub(crate) fn publish(self) -> Self {
        let word = self.ahead.word();
        self.with(Effect::Publish(word))
    }

    pub(crate) fn memory_lost(&self) -> bool {
        self.ahead.memory_lost
    }

    /// Back to an ordinary pod: record open (fsynced) → network open and announced → thaw.
    fn resume(mut self, sockets: Sockets) -> Self {
        if self.ahead.ending {
            return self.give_back();
        }
        if sockets == Sockets::Destroy {
            self = self.with(Effect::DestroySockets);
        }
        let order = [
            Effect::WriteRecord(RecordState::Open),
            Effect::OpenNetwork(Guard::None),
            Effect::Announce,
            Effect::ThawTasks(Guard::None),
        ];
        if holds(Rule::SourceOpensBeforeThaw) {
            self.effects.extend(order);
        } else {
            self.effects.extend(order.into_iter().rev());
        }
        let memory_lost = self.ahead.memory_lost;
        self.journal(SourceEntry::Opened { memory_lost }).publish()
    }

    /// Sequential order: the pod is made again elsewhere once this has ended. Or nobody wants what is here any more.
    fn yield_to_images(self) -> Self {
        self.journal(SourceEntry::Yielded)
            .with(Effect::WriteRecord(RecordState::Moved))
            .publish()
            .release()
    }

    fn release(self) -> Self {
        self.with(Effect::KillTasksFrozen).journal(SourceEntry::Released).publish()
    }
}

impl SourceMachine {
    /// A machine with an empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`SourceMachine::new`], for this part.
    pub fn of(part: Part) -> Self {
        Self { part, ..Self::default() }
    }

    /// Rebuilds the machine after a restart of the holder (or the node) and returns what may be
    /// left to do. Before the vote that is always to give up.
    pub fn recover(entries: &[SourceEntry], facts: Facts) -> (Self, Vec<SourceEffect>) {
        Self::recover_as(Part::Overlap, entries, facts)
    }

    /// As [`SourceMachine::recover`], for this part.
    pub fn recover_as(
        part: Part,
        entries: &[SourceEntry],
        facts: Facts,
    ) -> (Self, Vec<SourceEffect>) {
        let mut machine = Self::of(part);
        for entry in entries {
            machine.apply(*entry);
        }
        machine.memory_lost |= match machine.phase {
            // What it has gone through is told by its last entry; what comes later may befall any pod.
            SourcePhase::Idle | SourcePhase::Opened | SourcePhase::Released => false,
            // Nothing keeps an untouched one from ending by itself.
            SourcePhase::Begun => !facts.same_boot,
            // Of a cold one only files count, and those are kept from the vote on.
            _ if part.is_cold() => !facts.same_boot && !machine.voted,
            _ => !(facts.same_boot && facts.tasks),
        };
        let plan = Plan::of(&machine);
        let plan = match machine.phase {
            SourcePhase::Idle => plan,
            SourcePhase::Begun | SourcePhase::Freezing => machine.give_up(),
            SourcePhase::Voted if !facts.same_boot && !holds(Rule::SourceWaitsAfterReboot) => {
                machine.give_up()
            }
            SourcePhase::Voted | SourcePhase::Committed => {
                plan.publish().with(Effect::ReadRecorded)
            }
            SourcePhase::Aborting => plan.resume(Sockets::Keep),
            SourcePhase::Resuming(sockets) => plan.resume(sockets),
            SourcePhase::Starting => plan.start_again(),
            SourcePhase::Moved => plan
                .with(Effect::WriteRecord(RecordState::Moved))
                .publish()
                .with(Effect::ReadRecorded),
            SourcePhase::Opened | SourcePhase::Released => plan.publish(),
        };
        (machine, plan.effects)
    }

    /// Where it stands.
    pub fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// Nothing is left to do but to keep the last word published.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, SourcePhase::Opened | SourcePhase::Released)
    }

    /// It may still give up by itself.
    pub fn is_before_vote(&self) -> bool {
        matches!(self.phase, SourcePhase::Idle | SourcePhase::Begun | SourcePhase::Freezing)
    }

    /// What it had in memory is gone: if it goes on, it starts afresh.
    pub fn has_lost_memory(&self) -> bool {
        self.memory_lost
    }

    fn word(&self) -> SourceWord {
        SourceWord {
            begun: self.phase != SourcePhase::Idle,
            voted: self.voted,
            memory_lost: self.memory_lost,
            outcome: match self.phase {
                SourcePhase::Opened => Some(SourceOutcome::Opened),
                SourcePhase::Released => Some(SourceOutcome::Released),
                _ => None,
            },
        }
    }

    fn give_up(&self) -> Plan {
        Plan::of(self).journal(SourceEntry::AbortedBeforeVote).resume(Sockets::Keep)
    }

    fn resume_without_memory(&mut self, sockets: Sockets) -> Plan {
        self.memory_lost = true;
        Plan::of(self).resume(sockets)
    }

    fn vote(&self) -> Plan {
        let mut plan = Plan::of(self);
        if holds(Rule::VotesOnlyWhenVerified) {
            plan = plan.with(Effect::VerifyTasks);
        }
        if self.part.is_sequential() && holds(Rule::StateIsDurable) {
            plan = plan.with(Effect::SyncState);
        }
        if holds(Rule::VoteIsJournalledFirst) {
            plan.journal(SourceEntry::Voted).publish()
        } else {
            let mut ahead = *self;
            ahead.apply(SourceEntry::Voted);
            plan.with(Effect::Publish(ahead.word())).journal(SourceEntry::Voted)
        }
    }

    fn decided(&mut self, recorded: Recorded) -> Plan {
        let plan = Plan::of(self);
        match recorded.decision {
            None => plan,
            Some(Decision::Abort) => plan
                .journal(SourceEntry::Decided { decision: Decision::Abort })
                .resume(Sockets::Keep),
            Some(Decision::Commit) => {
                let plan = if self.phase == SourcePhase::Voted {
                    plan.journal(SourceEntry::Decided { decision: Decision::Commit })
                } else {
                    plan
                };
                if self.part.is_sequential() {
                    // What follows is between the images and the pod that is made of them.
                    return match self.release_wanted {
                        true => plan.yield_to_images(),
                        // Where its node had left the cluster, nobody asks.
                        false => plan.with(Effect::ReadPod),
                    };
                }
                if recorded.resumed_at && !holds(Rule::KilledOnlyAfterLastWord) {
                    Self::moved(plan)
                } else if recorded.resumed_at {
                    self.resumed = true;
                    plan.with(Effect::ReadPeer)
                } else if recorded.resolution.is_some() {
                    self.resolved = true;
                    plan.with(Effect::ReadPeer)
                } else {
                    plan
                }
            }
        }
    }

    fn moved(plan: Plan) -> Plan {
        let release_wanted = plan.ahead.release_wanted;
        let plan = plan
            .journal(SourceEntry::PeerResumed)
            .with(Effect::WriteRecord(RecordState::Moved))
            .publish();
        if release_wanted { plan.release() } else { plan }
    }

    /// The target's word counts only where the Migration has said that the source goes on, or can
    /// say nothing any more.
    fn peer_read(&mut self, word: TargetWord) -> Plan {
        self.forgotten = !word.begun && (self.gone || self.resumed);
        let plan = Plan::of(self);
        let go_on =
            |plan: Plan, sockets| plan.journal(SourceEntry::Resolved { sockets }).resume(sockets);
        let unknown =
            if holds(Rule::UnknownDestroysSockets) { Sockets::Destroy } else { Sockets::Keep };
        match word.outcome {
            Some(TargetOutcome::NeverThawed) if self.resolved || self.gone => {
                go_on(plan, Sockets::Keep)
            }
            _ if self.resolved => go_on(plan, unknown),
            Some(TargetOutcome::Stopped) if self.gone => go_on(plan, unknown),
            // A trial: nothing ran there, and nobody makes the pod again.
            Some(TargetOutcome::Kept) if self.gone => go_on(plan, Sockets::Keep),
            Some(TargetOutcome::Resumed) if self.gone && !self.release_wanted => {
                Self::moved(plan).release()
            }
            Some(TargetOutcome::Resumed) if self.resumed || self.gone => Self::moved(plan),
            None if self.gone && word.lost && !holds(Rule::OnlyTheLastWordCounts) => {
                go_on(plan, unknown)
            }
            None if self.forgotten => plan.with(Effect::ReadPod),
            _ => plan,
        }
    }
}

impl Machine for SourceMachine {
    type Entry = SourceEntry;
    type Word = SourceWord;
    type Event = SourceEvent;

    fn step(&mut self, event: SourceEvent) -> Vec<SourceEffect> {
        use SourceEvent as E;
        use SourcePhase as P;
        let plan = Plan::of(self);
        let plan = match (self.phase, event) {
            (_, E::Poked) if !self.is_closed() => plan.with(Effect::ReadRecorded),
            (P::Idle, E::Begin) => plan.journal(SourceEntry::Begun).publish(),
            (P::Begun, E::FreezeNow) => {
                let plan = plan.journal(SourceEntry::Freezing);
                if self.part.is_cold() && !holds(Rule::EndsOnlyRefused) {
                    return plan.end().with(Effect::WriteRecord(RecordState::Frozen)).effects;
                }
                let plan = plan.with(Effect::WriteRecord(RecordState::Frozen));
                let plan = if holds(Rule::SourceQuiesces) {
                    plan.with(Effect::QuiesceWrapper)
                } else {
                    plan
                };
                if self.part.is_cold() {
                    return plan.end().effects;
                }
                plan.with(Effect::CloseNetwork).with(Effect::FreezeTasks)
            }
            (P::Freezing, E::AllFrozenAndSent) => self.vote(),
            // What it was to freeze had gone before it looked.
            (P::Begun, E::TasksLost) => {
                self.memory_lost = true;
                self.give_up()
            }
            (
                P::Begun | P::Freezing,
                E::LocalFailure | E::DeadlinePassed | E::TasksLost | E::ObjectGone,
            ) => self.give_up(),
            // A decision cannot be ours before our vote; whatever it says, we are out.
            (P::Begun | P::Freezing, E::DecisionRead(recorded)) if recorded.decision.is_some() => {
                self.give_up()
            }
            (P::Voted, E::LocalFailure | E::DeadlinePassed)
                if !holds(Rule::SourceObeysAfterVote) =>
            {
                self.give_up()
            }
            (P::Voted, E::ObjectGone) if !holds(Rule::VanishedIsNotAbort) => self.give_up(),
            (P::Committed, E::ReleaseRequested) if self.part.is_sequential() => {
                plan.yield_to_images()
            }
            (P::Voted, E::ReleaseRequested)
                if self.part.is_sequential() && !holds(Rule::YieldsOnlyAfterCommit) =>
            {
                plan.yield_to_images()
            }
            (P::Committed, E::ReleaseRequested) if !holds(Rule::KilledOnlyAfterResumed) => {
                plan.release()
            }
            (P::Voted | P::Committed, E::DecisionRead(recorded)) if recorded.is_lawful() => {
                self.decided(recorded)
            }
            (P::Voted | P::Committed, E::ObjectGone) => {
                self.gone = true;
                plan.with(Effect::ReadPeer)
            }
            (P::Voted | P::Committed, E::PeerRead(word)) => self.peer_read(word),
            (P::Voted | P::Committed, E::PeerNodeGone) if self.gone || self.resolved => plan
                .journal(SourceEntry::Resolved { sockets: Sockets::Destroy })
                .resume(Sockets::Destroy),
            (P::Committed, E::PeerNodeGone) if self.resumed => Self::moved(plan),
            (P::Voted | P::Committed, E::ReleaseRequested) => {
                self.release_wanted = true;
                plan.with(Effect::ReadRecorded)
            }
            (P::Voted | P::Committed, E::TasksLost) if !self.part.is_cold() => {
                self.memory_lost = true;
                plan
            }
            // Found when it was about to go on: the way back is the same, and its end says so.
            (P::Aborting, E::TasksLost) => self.resume_without_memory(Sockets::Keep),
            (P::Resuming(sockets), E::TasksLost) => self.resume_without_memory(sockets),
            (P::Starting, E::AllStarted) => plan.started(),
            (P::Starting, E::PodGone) if holds(Rule::StartEndsWithPod) => plan.started(),
            // When the hand-over is done, or there is nothing to hand over any more.
            (P::Moved, E::ReleaseRequested | E::ObjectGone | E::TasksLost | E::PodGone) => {
                plan.release()
            }
            (P::Moved, E::DecisionRead(_)) => plan.with(Effect::ReadPod),
            // Both have voted, so the state is durable on two disks.
            (P::Committed, E::PodGone) if self.part.is_sequential() => plan.yield_to_images(),
            // Whatever was decided, this is not to go on: its pod is gone, and there is nobody to be told.
            (P::Voted | P::Committed, E::PodGone)
                if self.forgotten && holds(Rule::ForgottenEndsWithPod) =>
            {
                plan.yield_to_images()
            }
            // It waits for this to end. One that has vanished may be undecided, and the target has told nothing yet.
            (P::Voted | P::Committed, E::PodGoes) if self.forgotten && self.resumed => {
                plan.yield_to_images()
            }
            _ => plan,
        };
        plan.effects
    }

    fn apply(&mut self, entry: SourceEntry) {
        use SourcePhase as P;
        self.phase = match entry {
            SourceEntry::Begun => P::Begun,
            SourceEntry::Freezing => P::Freezing,
            SourceEntry::Ending => {
                self.ending = true;
                P::Freezing
            }
            SourceEntry::Voted => {
                self.voted = true;
                // Whatever its journal says: what has voted has ended, and older ones do not note it.
                self.ending |= self.part.is_cold();
                P::Voted
            }
            // A Commit without a vote of ours is not ours.
            SourceEntry::Decided { decision: Decision::Commit } if self.voted => P::Committed,
            SourceEntry::AbortedBeforeVote | SourceEntry::Decided { .. } => P::Aborting,
            SourceEntry::Resolved { sockets } => P::Resuming(sockets),
            SourceEntry::Starting => P::Starting,
            SourceEntry::PeerResumed | SourceEntry::Yielded => P::Moved,
            SourceEntry::Opened { memory_lost } => {
                self.memory_lost |= memory_lost;
                P::Opened
            }
            SourceEntry::Released => P::Released,
        };
    }

    fn failed(&self, failure: Failure) -> Option<SourceEvent> {
        let goes_back = matches!(self.phase, SourcePhase::Aborting | SourcePhase::Resuming(_));
        match failure {
            Failure::TasksLost if self.is_before_vote() || goes_back => {
                Some(SourceEvent::TasksLost)
            }
            _ if self.is_before_vote() => Some(SourceEvent::LocalFailure),
            _ => None,
        }
    }
}
