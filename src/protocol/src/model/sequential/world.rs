//! The state of the modelled cluster, and how its steps are collected.

use super::super::search::Steps;
use super::host::{Host, Tasks};
use crate::{Driver, Part, Recorded, SourceEvent, SourceMachine, TargetEvent, TargetMachine};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub cold: bool,
    pub recorded: Recorded,
    pub exists: bool,
    /// Somebody has deleted the Migration, which finishes first.
    pub deleting: bool,
    /// It vanished all the same.
    pub stripped: bool,
    pub s: Host<SourceMachine>,
    pub trial: Host<TargetMachine>,
    /// The pod that was made again last, and where.
    pub again: Option<Host<TargetMachine>>,
    /// One that the operator should have waited for (only where that rule is broken).
    pub former: Option<Host<TargetMachine>>,
    pub s_object: bool,
    /// Somebody deletes S.
    pub s_deleting: bool,
    /// Somebody deletes the pod in which the trial is.
    pub trial_deleting: bool,
    pub tries: u8,
    /// The application ran again, and confirmed.
    pub resumed: bool,
    /// Somebody wants it restored once more though its last try may have written to its volumes.
    pub wanted: bool,
    /// Somebody has wanted that at some time.
    pub risked: bool,
    /// The operator has seen that somebody deleted the pod that was made again, and it was meant.
    pub unwanted: bool,
    /// Somebody was asked what is to become of the memory.
    pub asked: bool,
    /// The Migration had been deleted before that.
    pub unasked: bool,
    /// Somebody who was asked has given the memory up, otherwise than by deleting the Migration.
    pub answered: bool,
    /// Somebody who was asked has given it up, in either way (ghost).
    pub meant: bool,
    /// It is given up, and nobody meant that.
    pub unmeant: bool,
    /// It was made again on volumes that may be newer than its memory, and nobody wanted it.
    pub dated: bool,
    /// A pod started without its state.
    pub afresh: bool,
    /// runc's delete went through the mounted root of a container.
    pub through_mount: bool,
    pub left: Bounds,
}

/// How much may (still) go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// A holder dies.
    pub crashes: u8,
    /// A node reboots.
    pub reboots: u8,
    /// A node goes down for ever, and its object is removed.
    pub deaths: u8,
    /// An effect fails before a vote, or a side gives up.
    pub failures: u8,
    /// The Migration vanishes.
    pub strips: u8,
    /// Somebody makes a pod of the state.
    pub forged: u8,
    /// kubelet wants to kill a container.
    pub kills: u8,
    /// Somebody deletes S, the trial's pod, or the one that was made again.
    pub deletes: u8,
    /// The trial's node loses the API server before its vote.
    pub cuts: u8,
    /// CRIU dies while it dumps S, which runs on.
    pub dumps: u8,
    /// CRIU, runc or the wrapper dies in a restore.
    pub restores: u8,
    /// The same, and what was restored is let go before it is frozen.
    pub let_go: u8,
    /// The shim of what is frozen or was restored dies.
    pub shims: u8,
    /// Tasks end by themselves.
    pub ends: u8,
    /// Nothing is heard of a target for long.
    pub silences: u8,
    /// A target's node registers anew.
    pub anew: u8,
    /// The Migration is deleted.
    pub cancels: u8,
    /// A second holder is started beside the first.
    pub seconds: u8,
    /// Another Migration begins on S and gives up at once.
    pub others: u8,
    /// All of these together.
    pub total: u8,
}

pub const NOTHING: Bounds = Bounds {
    crashes: 0,
    reboots: 0,
    deaths: 0,
    failures: 0,
    strips: 0,
    forged: 0,
    kills: 0,
    deletes: 0,
    cuts: 0,
    dumps: 0,
    restores: 0,
    let_go: 0,
    shims: 0,
    ends: 0,
    silences: 0,
    anew: 0,
    cancels: 0,
    seconds: 0,
    others: 0,
    total: u8::MAX,
};

/// Any faults, so many in all. A forged start has a run of its own: once the Migration has vanished a pod that
/// was made again takes its being made for the proof that the source has ended.
pub const fn any(total: u8) -> Bounds {
    Bounds {
        crashes: total,
        reboots: total,
        deaths: 1,
        failures: total,
        strips: 1,
        forged: 0,
        kills: total,
        deletes: total,
        cuts: 1,
        dumps: 1,
        restores: total,
        let_go: 1,
        shims: 1,
        ends: total,
        silences: 1,
        anew: 1,
        cancels: 1,
        seconds: 1,
        others: 1,
        total,
    }
}

/// Which of the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Trial,
    Again,
    Former,
}

pub const TARGETS: [Place; 3] = [Place::Trial, Place::Again, Place::Former];

impl World {
    pub fn new(left: Bounds, cold: bool) -> Self {
        let part = if cold { Part::Cold } else { Part::Trial };
        Self {
            cold,
            recorded: Recorded::default(),
            exists: true,
            deleting: false,
            stripped: false,
            s: Host { source: true, ..Host::new(Tasks::Running, SourceMachine::of(part), part) },
            trial: Host::new(Tasks::Absent, TargetMachine::of(part), part),
            again: None,
            former: None,
            s_object: true,
            s_deleting: false,
            trial_deleting: false,
            tries: 0,
            resumed: false,
            wanted: false,
            risked: false,
            unwanted: false,
            asked: false,
            unasked: false,
            answered: false,
            meant: false,
            unmeant: false,
            dated: false,
            afresh: false,
            through_mount: false,
            left,
        }
    }

    pub fn target(&self, place: Place) -> Option<&Host<TargetMachine>> {
        match place {
            Place::Trial => Some(&self.trial),
            Place::Again => self.again.as_ref(),
            Place::Former => self.former.as_ref(),
        }
    }

    pub fn target_mut(&mut self, place: Place) -> Option<&mut Host<TargetMachine>> {
        match place {
            Place::Trial => Some(&mut self.trial),
            Place::Again => self.again.as_mut(),
            Place::Former => self.former.as_mut(),
        }
    }

    pub fn trial_part(&self) -> Part {
        if self.cold { Part::Cold } else { Part::Trial }
    }

    pub fn again_part(&self, at_source: bool) -> Part {
        match (self.cold, at_source) {
            (false, false) => Part::Again,
            (false, true) => Part::AgainAtSource,
            (true, false) => Part::ColdAgain,
            (true, true) => Part::ColdAgainAtSource,
        }
    }

    /// This world, changed.
    pub fn with(&self, change: impl FnOnce(&mut World)) -> Option<World> {
        let mut next = self.clone();
        change(&mut next);
        Some(next)
    }
}

/// An event for the source's idle holder. `None`: it is busy or absent, or nothing changes.
pub fn source(world: &World, event: SourceEvent) -> Option<World> {
    let before = world.s.holder.as_ref().filter(|driver| driver.is_idle())?;
    let mut driver = before.clone();
    driver.feed(event);
    (driver != *before).then_some(())?;
    world.with(|next| next.s.holder = Some(driver))
}

/// An event for a target's idle holder. `None`: it is busy or absent, or nothing changes.
pub fn target(world: &World, place: Place, event: TargetEvent) -> Option<World> {
    let before = world.target(place)?.holder.as_ref().filter(|driver| driver.is_idle())?;
    let mut driver: Driver<TargetMachine> = before.clone();
    driver.feed(event);
    (driver != *before).then_some(())?;
    let mut next = world.clone();
    next.target_mut(place)?.holder = Some(driver);
    Some(next)
}

/// An action: what happens, and whether it does without anything going wrong or anybody losing patience.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub what: &'static str,
    pub sure: bool,
}

/// Collects what can happen next.
pub struct Moves<'a> {
    pub out: &'a mut Steps<World>,
}

impl Moves<'_> {
    /// It happens by itself.
    pub fn sure(&mut self, what: &'static str, next: Option<World>) {
        self.out.extend(next.map(|next| (Step { what, sure: true }, Ok(next))));
    }

    /// It may happen.
    pub fn may(&mut self, what: &'static str, next: Option<World>) {
        self.out.extend(next.map(|next| (Step { what, sure: false }, Ok(next))));
    }

    /// It goes wrong, as often as the bounds allow.
    pub fn fault(
        &mut self,
        what: &'static str,
        left: fn(&mut Bounds) -> &mut u8,
        next: Option<World>,
    ) {
        let Some(mut next) = next else { return };
        let of_kind = left(&mut next.left);
        if *of_kind == 0 {
            return;
        }
        *of_kind -= 1;
        next.left.total -= 1;
        if next.left.total == 0 {
            // What is left by kind no longer matters.
            next.left = Bounds { total: 0, ..NOTHING };
        }
        self.may(what, Some(next));
    }
}
