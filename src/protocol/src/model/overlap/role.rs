//! What the model needs to know of a side's machine.

use super::world::{Host, Side, World};
use crate::source::{SourceEntry, SourceEvent, SourceMachine, SourcePhase};
use crate::target::{TargetEntry, TargetEvent, TargetMachine, TargetPhase};
use crate::{Effect, Facts, Machine, Read, SourceWord, TargetWord};

/// Effects of a machine.
pub type Effects<M> = Vec<Effect<<M as Machine>::Entry, <M as Machine>::Word>>;

/// A side's machine.
pub trait Role: Machine<Entry: PartialEq, Word: PartialEq> + Clone + PartialEq {
    const SIDE: Side;
    fn recover(entries: &[Self::Entry], facts: Facts) -> (Self, Effects<Self>);
    fn is_vote(entry: Self::Entry) -> bool;
    fn read(read: Read) -> Self::Event;
    fn begin() -> Self::Event;
    fn poked() -> Self::Event;
    fn deadline() -> Self::Event;
    fn tasks_lost() -> Self::Event;
    fn is_idle_phase(&self) -> bool;
    fn is_before_vote(&self) -> bool;
    fn is_final(word: &Self::Word) -> bool;
    fn host(world: &World) -> &Host<Self>;
    fn host_mut(world: &mut World) -> &mut Host<Self>;
}

impl Role for SourceMachine {
    const SIDE: Side = Side::S;
    fn recover(entries: &[SourceEntry], facts: Facts) -> (Self, Effects<Self>) {
        SourceMachine::recover(entries, facts)
    }
    fn is_vote(entry: SourceEntry) -> bool {
        entry == SourceEntry::Voted
    }
    fn read(read: Read) -> SourceEvent {
        read.into()
    }
    fn begin() -> SourceEvent {
        SourceEvent::Begin
    }
    fn poked() -> SourceEvent {
        SourceEvent::Poked
    }
    fn deadline() -> SourceEvent {
        SourceEvent::DeadlinePassed
    }
    fn tasks_lost() -> SourceEvent {
        SourceEvent::TasksLost
    }
    fn is_idle_phase(&self) -> bool {
        self.phase() == SourcePhase::Idle
    }
    fn is_before_vote(&self) -> bool {
        SourceMachine::is_before_vote(self)
    }
    fn is_final(word: &SourceWord) -> bool {
        word.outcome.is_some()
    }
    fn host(world: &World) -> &Host<Self> {
        &world.s
    }
    fn host_mut(world: &mut World) -> &mut Host<Self> {
        &mut world.s
    }
}

impl Role for TargetMachine {
    const SIDE: Side = Side::T;
    fn recover(entries: &[TargetEntry], facts: Facts) -> (Self, Effects<Self>) {
        TargetMachine::recover(entries, facts)
    }
    fn is_vote(entry: TargetEntry) -> bool {
        entry == TargetEntry::Voted
    }
    fn read(read: Read) -> TargetEvent {
        read.into()
    }
    fn begin() -> TargetEvent {
        TargetEvent::Begin
    }
    fn poked() -> TargetEvent {
        TargetEvent::Poked
    }
    fn deadline() -> TargetEvent {
        TargetEvent::DeadlinePassed
    }
    fn tasks_lost() -> TargetEvent {
        TargetEvent::TasksLost
    }
    fn is_idle_phase(&self) -> bool {
        self.phase() == TargetPhase::Idle
    }
    fn is_before_vote(&self) -> bool {
        TargetMachine::is_before_vote(self)
    }
    fn is_final(word: &TargetWord) -> bool {
        word.closed
    }
    fn host(world: &World) -> &Host<Self> {
        &world.t
    }
    fn host_mut(world: &mut World) -> &mut Host<Self> {
        &mut world.t
    }
}
