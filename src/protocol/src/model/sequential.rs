//! The sequential order: a world with the source's machine, the trial's and those of the pods that are
//! made again, driven by the very transitions of the product.
//!
//! What may go wrong: holders die at any point, nodes reboot, effects fail before a vote, a side gives
//! up, the Migration vanishes, calls to begin come late. What must hold in every state: at most one
//! copy runs; a voted source that has not ended still has its state in memory or on a disk; from the
//! source's end until the pod runs again the state is durable on some disk; nothing starts afresh. And
//! from every state an end can be reached.

use std::collections::{HashMap, VecDeque};

use crate::effect::{Effect, Facts, Failure, Machine};
use crate::rules::{Rule, break_rule, holds};
use crate::{
    Decision, DecisionInput, Driver, Part, PodSeen, RecordState, Recorded, Resolution, SourceEntry,
    SourceEvent, SourceMachine, SourceOutcome, SourcePhase, SourceWord, TargetEntry, TargetEvent,
    TargetMachine, TargetOutcome, TargetWord, decide, has_failed, may_make_again,
    may_record_resumed, may_return, may_yield,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tasks {
    Absent,
    Running,
    Frozen,
}

/// A node, as far as one pod on it goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Host<M: Machine> {
    pub(super) tasks: Tasks,
    pub(super) record: Option<RecordState>,
    /// The state has arrived on the disk.
    pub(super) stored: bool,
    /// It is durable there.
    durable: bool,
    pub(super) rebooted: bool,
    journal: Vec<M::Entry>,
    pub(super) holder: Option<Driver<M>>,
    pub(super) word: M::Word,
    /// Only files move.
    cold: bool,
    /// Cold: its tasks were ended, or have not begun here, and its files are to be put into their place.
    pub(super) unfilled: bool,
    /// Cold: it was started with its files.
    pub(super) started_again: bool,
    /// Cold: and ended again.
    ended_again: bool,
}

impl<M: Machine<Word: Default>> Host<M> {
    fn new(tasks: Tasks, machine: M, part: Part) -> Self {
        Self {
            tasks,
            record: None,
            stored: false,
            durable: false,
            rebooted: false,
            journal: Vec::new(),
            holder: Some(Driver::new(machine, Vec::new())),
            word: M::Word::default(),
            cold: part.is_cold(),
            unfilled: part.is_cold() && part.is_again(),
            started_again: false,
            ended_again: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    cold: bool,
    recorded: Recorded,
    exists: bool,
    pub(super) s: Host<SourceMachine>,
    trial: Host<TargetMachine>,
    /// The pod that was made again last, and where.
    pub(super) again: Option<Host<TargetMachine>>,
    /// One that the operator should have waited for (only where that rule is broken).
    former: Option<Host<TargetMachine>>,
    pub(super) s_object: bool,
    tries: u8,
    /// The application ran again, and confirmed.
    resumed: bool,
    /// A pod started without its state.
    pub(super) afresh: bool,
    crashes: u8,
    reboots: u8,
    failures: u8,
    strips: u8,
    forged: u8,
}

/// How much may go wrong.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) crashes: u8,
    pub(super) reboots: u8,
    pub(super) failures: u8,
    pub(super) strips: u8,
    pub(super) forged: u8,
}

pub(super) type Outcome = Result<World, &'static str>;

/// Which of the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Trial,
    Again,
    Former,
}

const TARGETS: [Place; 3] = [Place::Trial, Place::Again, Place::Former];

impl World {
    fn new(bounds: Bounds, cold: bool) -> Self {
        let part = if cold { Part::Cold } else { Part::Trial };
        Self {
            cold,
            recorded: Recorded::default(),
            exists: true,
            s: Host::new(Tasks::Running, SourceMachine::of(part), part),
            trial: Host::new(Tasks::Absent, TargetMachine::of(part), part),
            again: None,
            former: None,
            s_object: true,
            tries: 0,
            resumed: false,
            afresh: false,
            crashes: bounds.crashes,
            reboots: bounds.reboots,
            failures: bounds.failures,
            strips: bounds.strips,
            forged: bounds.forged,
        }
    }

    fn target(&self, place: Place) -> Option<&Host<TargetMachine>> {
        match place {
            Place::Trial => Some(&self.trial),
            Place::Again => self.again.as_ref(),
            Place::Former => self.former.as_ref(),
        }
    }

    fn target_mut(&mut self, place: Place) -> Option<&mut Host<TargetMachine>> {
        match place {
            Place::Trial => Some(&mut self.trial),
            Place::Again => self.again.as_mut(),
            Place::Former => self.former.as_mut(),
        }
    }

    fn trial_part(&self) -> Part {
        if self.cold { Part::Cold } else { Part::Trial }
    }

    fn again_part(&self, at_source: bool) -> Part {
        match (self.cold, at_source) {
            (false, false) => Part::Again,
            (false, true) => Part::AgainAtSource,
            (true, false) => Part::ColdAgain,
            (true, true) => Part::ColdAgainAtSource,
        }
    }

    fn invariant(&self) -> Result<(), &'static str> {
        let running = |tasks: Tasks| usize::from(tasks == Tasks::Running);
        let copies = running(self.s.tasks)
            + TARGETS
                .into_iter()
                .filter_map(|p| self.target(p))
                .map(|h| running(h.tasks))
                .sum::<usize>();
        if copies > 1 {
            return Err("two copies run");
        }
        if self.trial.tasks == Tasks::Running {
            return Err("the trial runs");
        }
        if self.afresh {
            return Err("a pod starts afresh though its state is kept");
        }
        if self.s.ended_again {
            return Err("a source that goes on is ended once more");
        }
        let s_phase = self.s.holder.as_ref().map(|d| d.machine().phase());
        if s_phase == Some(SourcePhase::Voted) && self.s.tasks == Tasks::Running {
            return Err("a voted source runs undecided");
        }
        let ended = matches!(s_phase, Some(SourcePhase::Moved | SourcePhase::Released));
        if ended && self.recorded.decision != Some(Decision::Commit) && self.exists {
            return Err("the source ends without a Commit");
        }
        if ended && !self.resumed && !(self.s.durable && self.trial.durable) {
            return Err("the state is not durable in two places when the source ends");
        }
        Ok(())
    }

    /// Everything is over and one copy runs, or was lost in a reboot as an ordinary pod may be.
    fn is_end(&self) -> bool {
        let closed = |host: &Host<TargetMachine>| host.word.closed || host.journal.is_empty();
        let s_over = self.s.word.outcome.is_some() || self.s.journal.is_empty();
        let s_runs =
            self.s.tasks == Tasks::Running && self.s.word.outcome != Some(SourceOutcome::Released);
        let again_runs = self.again.as_ref().is_some_and(|h| {
            h.word.outcome == Some(TargetOutcome::Resumed) && h.tasks != Tasks::Frozen
        });
        let trial_gone = self.trial.tasks == Tasks::Absent;
        // Without its Migration nobody makes the pod again; its state stays on both disks.
        let orphaned = !self.exists
            && self.s.word.outcome == Some(SourceOutcome::Released)
            && self.again.is_none()
            && self.s.durable
            && self.trial.durable;
        s_over
            && closed(&self.trial)
            && trial_gone
            && (s_runs != again_runs || self.s.rebooted || orphaned)
    }
}

pub(super) fn source(world: &World, event: SourceEvent) -> Option<World> {
    let driver = world.s.holder.as_ref().filter(|d| d.is_idle())?;
    let mut next = world.clone();
    let mut driver = driver.clone();
    driver.feed(event);
    (Some(&driver) != world.s.holder.as_ref()).then(|| {
        next.s.holder = Some(driver);
        next
    })
}

fn target(world: &World, place: Place, event: TargetEvent) -> Option<World> {
    let host = world.target(place)?;
    let driver = host.holder.as_ref().filter(|d| d.is_idle())?;
    let mut driver = driver.clone();
    driver.feed(event);
    if Some(&driver) == host.holder.as_ref() {
        return None;
    }
    let mut next = world.clone();
    next.target_mut(place)?.holder = Some(driver);
    Some(next)
}

/// Something happens to the pod that was made again.
pub(super) fn again_event(world: &World, event: TargetEvent) -> Option<World> {
    target(world, Place::Again, event)
}

/// One effect of a host; `Err` is the failure that the machine is told.
fn perform<M: Machine>(
    host: &mut Host<M>,
    effect: Effect<M::Entry, M::Word>,
) -> Result<(), Failure> {
    match effect {
        Effect::Journal(entry) => host.journal.push(entry),
        Effect::Publish(word) => host.word = word,
        Effect::WriteRecord(state) => host.record = Some(state),
        Effect::FreezeTasks => match host.tasks {
            Tasks::Absent => return Err(Failure::TasksLost),
            Tasks::Running | Tasks::Frozen => host.tasks = Tasks::Frozen,
        },
        Effect::VerifyTasks if host.cold && host.tasks == Tasks::Absent => {}
        Effect::FindTasks if host.tasks != Tasks::Running => return Err(Failure::TasksLost),
        Effect::EndTasks => {
            host.ended_again |= host.started_again && host.tasks == Tasks::Running;
            host.unfilled |= host.tasks != Tasks::Absent;
            host.tasks = Tasks::Absent;
        }
        // What a reboot has taken cannot be kept any more.
        Effect::KeepFiles => {
            host.stored |= !host.rebooted;
            host.durable = host.stored;
        }
        Effect::VerifyTasks if host.tasks != Tasks::Frozen => return Err(Failure::TasksLost),
        Effect::SyncState => host.durable = host.stored,
        Effect::ThawTasks(_) if host.tasks == Tasks::Frozen => host.tasks = Tasks::Running,
        Effect::KillTasksFrozen => host.tasks = Tasks::Absent,
        _ => {}
    }
    Ok(())
}

/// The holder's next effect. `fails`: it cannot be done.
fn work<M: Machine<Word: Default> + Clone>(host: &Host<M>, fails: bool) -> Option<Host<M>> {
    let mut next = host.clone();
    let effect = next.holder.as_ref()?.next_effect()?;
    if fails {
        if matches!(effect, Effect::Journal(_) | Effect::Publish(_)) {
            return None;
        }
        return next.holder.as_mut()?.failed(Failure::Other).then_some(next);
    }
    match perform(&mut next, effect) {
        Ok(()) => next.holder.as_mut()?.done(),
        Err(failure) => {
            // Freezing what is gone is done, but for a source before its vote.
            if !next.holder.as_mut()?.failed(failure) {
                next.holder.as_mut()?.done();
            }
        }
    }
    Some(next)
}

fn facts<M: Machine>(host: &Host<M>) -> Facts {
    Facts { same_boot: !host.rebooted, tasks: host.tasks != Tasks::Absent, lapsed: false }
}

fn successors(world: &World) -> Vec<(&'static str, Outcome)> {
    let mut out: Vec<(&'static str, Outcome)> = Vec::new();
    let mut push = |what: &'static str, next: Option<World>| {
        if let Some(next) = next {
            out.push((what, Ok(next)));
        }
    };
    sources(world, &mut push);
    super::cold::kubelet(world, &mut push);
    for place in TARGETS {
        targets(world, place, &mut push);
    }
    operator(world, &mut push);
    forge(world, &mut push);
    out
}

fn sources(world: &World, push: &mut impl FnMut(&'static str, Option<World>)) {
    let with = |host: Option<Host<SourceMachine>>| host.map(|s| World { s, ..world.clone() });
    push("S works", with(work(&world.s, false)));
    if world.failures > 0 {
        let failed = with(work(&world.s, true));
        push("S fails", failed.map(|w| World { failures: w.failures - 1, ..w }));
    }
    if world.s.journal.is_empty() && world.exists && world.recorded.decision.is_none() {
        push("S begins", source(world, SourceEvent::Begin));
    }
    push("S is told to freeze", source(world, SourceEvent::FreezeNow));
    let freezing =
        |d: &Driver<SourceMachine>| d.is_idle() && d.machine().phase() == SourcePhase::Freezing;
    let is_freezing = world.s.holder.as_ref().is_some_and(freezing);
    let receives = world.trial.holder.is_some() && !world.trial.journal.is_empty();
    let stands_still = world.s.tasks == if world.cold { Tasks::Absent } else { Tasks::Frozen };
    if is_freezing && stands_still && receives && !world.s.stored {
        let mut next = world.clone();
        next.s.stored = true;
        next.trial.stored = true;
        push("everything is sent and kept", Some(next));
    }
    if is_freezing && world.s.stored {
        push("S is ready", source(world, SourceEvent::AllFrozenAndSent));
    }
    let started = !world.s.journal.is_empty();
    if started {
        let read = match world.exists {
            true => SourceEvent::DecisionRead(world.recorded),
            false => SourceEvent::ObjectGone,
        };
        push("S reads", source(world, read));
        push("S reads the trial's word", source(world, SourceEvent::PeerRead(world.trial.word)));
    }
    if world.s.tasks == Tasks::Absent && started {
        push("S notices its end", source(world, SourceEvent::TasksLost));
    }
    // kubelet, under the records of the product.
    let may_create = matches!(world.s.record, None | Some(RecordState::Open));
    if world.s.tasks == Tasks::Absent && world.s_object && may_create {
        let mut next = world.clone();
        next.s.tasks = Tasks::Running;
        next.afresh |= world.s.unfilled && !world.s.rebooted;
        next.s.unfilled = false;
        // Its memory was lost in a reboot before anything was kept, or given back as lost.
        push("kubelet starts S", Some(next));
    }
    if world.crashes > 0 && world.s.holder.is_some() && started {
        let mut next = world.clone();
        next.s.holder = None;
        next.crashes -= 1;
        push("S's holder dies", Some(next));
    }
    if world.s.holder.is_none() && world.s.word.outcome.is_none() {
        let mut next = world.clone();
        let (machine, effects) =
            SourceMachine::recover_as(world.trial_part(), &world.s.journal, facts(&world.s));
        next.s.holder = Some(Driver::new(machine, effects));
        push("S's holder starts", Some(next));
    }
    if world.reboots > 0 && started {
        let mut next = world.clone();
        next.s.holder = None;
        next.s.tasks = Tasks::Absent;
        next.s.rebooted = true;
        next.s.stored = next.s.durable;
        next.reboots -= 1;
        push("S's node reboots", Some(next));
    }
}

fn targets(world: &World, place: Place, push: &mut impl FnMut(&'static str, Option<World>)) {
    let Some(host) = world.target(place) else { return };
    let part = match place {
        Place::Trial => world.trial_part(),
        _ => world.again_part(world.recorded.resolution.is_some() && place == Place::Again),
    };
    let part = host.holder.as_ref().map_or(part, |d| d.machine().part());
    let with = |changed: Option<Host<TargetMachine>>| {
        changed.map(|changed| {
            let mut next = world.clone();
            if let Some(host) = next.target_mut(place) {
                *host = changed;
            }
            next
        })
    };
    push("T works", with(work(host, false)));
    if world.failures > 0 {
        let failed =
            with(work(host, true)).or_else(|| target(world, place, TargetEvent::LocalFailure));
        push("T fails", failed.map(|w| World { failures: w.failures - 1, ..w }));
    }
    if host.journal.is_empty() && (world.exists || place != Place::Trial) {
        push("T begins", target(world, place, TargetEvent::Begin));
    }
    let restores = host.record == Some(RecordState::Restore) && host.tasks == Tasks::Absent;
    if restores && host.stored && !host.rebooted {
        let mut next = host.clone();
        next.tasks = Tasks::Frozen;
        push("T is restored and held", with(Some(next)));
    }
    let idle = host.holder.as_ref().is_some_and(Driver::is_idle);
    let is_ready = match host.cold {
        true => host.stored && !host.rebooted && host.record == Some(RecordState::Prepared),
        false => host.tasks == Tasks::Frozen,
    };
    if idle && is_ready {
        push("T is ready", target(world, place, TargetEvent::AllRestoredAndFrozen));
    }
    if !host.journal.is_empty() {
        let read = match world.exists {
            true => TargetEvent::DecisionRead(world.recorded),
            false => TargetEvent::ObjectGone,
        };
        push("T reads", target(world, place, read));
    }
    if host.tasks == Tasks::Absent && !host.journal.is_empty() && host.rebooted {
        push("T notices its end", target(world, place, TargetEvent::TasksLost));
    }
    if world.crashes > 0 && host.holder.is_some() && !host.journal.is_empty() {
        let next = Host { holder: None, ..host.clone() };
        push("T's holder dies", with(Some(next)).map(|w| World { crashes: w.crashes - 1, ..w }));
    }
    if host.holder.is_none() && !host.word.closed {
        let (machine, effects) = TargetMachine::recover_as(part, &host.journal, facts(host));
        let next = Host { holder: Some(Driver::new(machine, effects)), ..host.clone() };
        push("T's holder starts", with(Some(next)));
    }
    if world.reboots > 0 && !host.journal.is_empty() && !host.rebooted {
        let next = Host {
            holder: None,
            tasks: Tasks::Absent,
            rebooted: true,
            stored: host.durable,
            ..host.clone()
        };
        push("T's node reboots", with(Some(next)).map(|w| World { reboots: w.reboots - 1, ..w }));
    }
}

fn operator(world: &World, push: &mut impl FnMut(&'static str, Option<World>)) {
    let again = world.again.as_ref();
    if world.exists {
        for give_up in [false, true] {
            let input = DecisionInput {
                recorded: world.recorded,
                migration_deleting: false,
                source: world.s.word,
                target: world.trial.word,
                source_pod: PodSeen::Alive,
                target_pod: PodSeen::Alive,
                claim_held: true,
                source_node_dead: false,
                target_node_dead: false,
                give_up,
            };
            if let Some(decision) = decide(&input) {
                let mut next = world.clone();
                next.recorded.decision = Some(decision);
                push("the operator decides", Some(next));
            }
        }
        let word = again.map_or(TargetWord::default(), |host| host.word);
        // Only a pod that the operator has made itself is asked, and it makes one after the release.
        let released = world.s.word.outcome == Some(SourceOutcome::Released);
        if released && may_record_resumed(world.recorded, word, false) {
            let mut next = world.clone();
            next.recorded.resumed_at = true;
            next.resumed = true;
            push("the operator records resumedAt", Some(next));
        }
        if world.tries > 0 && may_return(world.recorded, word, false) {
            let mut next = world.clone();
            next.recorded.resolution = Some(Resolution::SourceResumes);
            push("the operator records the resolution", Some(next));
        }
        if world.s.word.outcome == Some(SourceOutcome::Released) && world.s_object {
            let next = World { s_object: false, ..world.clone() };
            push("S's object goes", Some(next));
        }
        make(world, push);
    }
    let asked =
        may_yield(world.recorded, world.trial.word, false) || !holds(Rule::YieldsOnlyAfterCommit);
    if world.exists && asked {
        push("the operator asks for the release", source(world, SourceEvent::ReleaseRequested));
    }
    let over = world.recorded.decision.is_some()
        && world.s.word.outcome.is_some()
        && world.trial.word.closed;
    let strip = world.strips > 0 && world.exists && !over;
    if strip {
        let next = World { exists: false, strips: world.strips - 1, ..world.clone() };
        push("the Migration vanishes", Some(next));
    }
}

/// Somebody starts a pod of the state that has arrived, though nobody has decided anything.
fn forge(world: &World, push: &mut impl FnMut(&'static str, Option<World>)) {
    if world.forged == 0 || world.again.is_some() || !world.trial.stored {
        return;
    }
    let mut next = world.clone();
    let part = world.again_part(false);
    let mut host = Host::new(Tasks::Absent, TargetMachine::of(part), part);
    host.stored = true;
    next.again = Some(host);
    next.forged -= 1;
    push("somebody makes a pod of the state", Some(next));
}

/// The pod is made again.
fn make(world: &World, push: &mut impl FnMut(&'static str, Option<World>)) {
    let seen = if world.s_object && holds(Rule::AgainOnlyAfterReleased) {
        PodSeen::Alive
    } else {
        PodSeen::Gone
    };
    let free = match &world.again {
        None => true,
        Some(host) => has_failed(host.word, false) && world.former.is_none(),
    };
    let resolved = world.recorded.resolution.is_some();
    if !free || world.tries >= 3 || !may_make_again(world.recorded, world.s.word, false, seen) {
        return;
    }
    let mut next = world.clone();
    // The former one stays in sight, in case that it lives against its word.
    if let Some(former) =
        next.again.take().filter(|host| host.tasks != Tasks::Absent || !host.word.closed)
    {
        next.former = Some(former);
    }
    let part = world.again_part(resolved);
    let mut host = Host::new(Tasks::Absent, TargetMachine::of(part), part);
    host.stored = if resolved { world.s.stored } else { world.trial.stored };
    host.durable = host.stored;
    next.again = Some(host);
    next.tries += 1;
    push("the pod is made again", Some(next));
}

/// What a search found: states, ends, and the first thing that is wrong.
struct Found {
    states: usize,
    ends: usize,
    broken: Option<(&'static str, Vec<&'static str>)>,
}

fn explore(bounds: Bounds, cold: bool) -> Found {
    let start = World::new(bounds, cold);
    let mut index: HashMap<World, usize> = HashMap::from([(start.clone(), 0)]);
    let mut came: Vec<(usize, &'static str)> = vec![(0, "start")];
    let mut ends = Vec::new();
    let mut back: Vec<Vec<usize>> = vec![Vec::new()];
    let mut queue = VecDeque::from([start]);
    let trace = |came: &[(usize, &'static str)], mut at: usize| {
        let mut steps = Vec::new();
        while at != 0 {
            steps.push(came[at].1);
            at = came[at].0;
        }
        steps.reverse();
        steps
    };
    while let Some(world) = queue.pop_front() {
        let at = index[&world];
        if world.is_end() {
            ends.push(at);
        }
        for (what, next) in successors(&world) {
            let Ok(next) = next else { continue };
            if let Err(why) = next.invariant() {
                let mut steps = trace(&came, at);
                steps.push(what);
                return Found { states: came.len(), ends: ends.len(), broken: Some((why, steps)) };
            }
            let to = *index.entry(next.clone()).or_insert_with(|| {
                came.push((at, what));
                back.push(Vec::new());
                queue.push_back(next);
                came.len() - 1
            });
            let fault = what.contains("dies")
                || what.contains("reboots")
                || what.contains("fails")
                || what.contains("vanishes");
            if !fault {
                back[to].push(at);
            }
        }
    }
    let mut good = vec![false; came.len()];
    let mut work = ends.clone();
    for end in &ends {
        good[*end] = true;
    }
    while let Some(at) = work.pop() {
        for from in &back[at] {
            if !std::mem::replace(&mut good[*from], true) {
                work.push(*from);
            }
        }
    }
    let stuck = good.iter().position(|good| !good);
    let broken = stuck.map(|at| ("no end can be reached", trace(&came, at)));
    Found { states: came.len(), ends: ends.len(), broken }
}

pub(super) const NOTHING: Bounds =
    Bounds { crashes: 0, reboots: 0, failures: 0, strips: 0, forged: 0 };

fn passes(name: &str, bounds: Bounds) {
    passes_as(name, bounds, false);
}

pub(super) fn passes_as(name: &str, bounds: Bounds, cold: bool) {
    let found = explore(bounds, cold);
    println!("{name}: {} states, {} ends", found.states, found.ends);
    if let Some((why, steps)) = found.broken {
        panic!("{name}: {why}\n{}", steps.join("\n"));
    }
    assert!(found.ends > 0, "{name}: nothing ever ends");
}

fn fails(rule: Rule, bounds: Bounds) {
    fails_as(rule, bounds, false);
}

pub(super) fn fails_as(rule: Rule, bounds: Bounds, cold: bool) {
    break_rule(Some(rule));
    let found = explore(bounds, cold);
    break_rule(None);
    let (why, steps) =
        found.broken.unwrap_or_else(|| panic!("{rule:?} can be broken and nobody notices"));
    println!("{rule:?} broken: {why}\n{}", steps.join("\n"));
}

#[test]
fn the_sequential_order_is_safe_and_ends_without_faults() {
    passes("no faults", NOTHING);
}

#[test]
fn the_sequential_order_is_safe_and_ends_after_crashes() {
    passes("two crashes", Bounds { crashes: 2, ..NOTHING });
}

#[test]
fn the_sequential_order_is_safe_and_ends_after_reboots_and_failures() {
    passes("a reboot and a failure", Bounds { reboots: 1, failures: 1, ..NOTHING });
    passes("two reboots", Bounds { reboots: 2, ..NOTHING });
    passes("two failures", Bounds { failures: 2, ..NOTHING });
}

#[test]
fn the_sequential_order_is_safe_when_somebody_makes_a_pod_of_the_state() {
    passes("a forged start", Bounds { forged: 1, ..NOTHING });
}

#[test]
fn the_sequential_order_is_safe_when_the_migration_vanishes() {
    passes("it vanishes", Bounds { strips: 1, ..NOTHING });
    passes("it vanishes amid a crash", Bounds { strips: 1, crashes: 1, ..NOTHING });
}

macro_rules! each_rule_of_the_order_matters {
    ($($name:ident: $rule:ident $bounds:expr;)*) => {
        $(#[test] fn $name() { fails(Rule::$rule, $bounds); })*

        /// The rules that are broken here.
        pub(super) const BROKEN: &[Rule] = &[$(Rule::$rule),*];
    };
}

each_rule_of_the_order_matters! {
    votes_without_durable_state: StateIsDurable NOTHING;
    a_trial_that_thaws: TrialNeverThaws NOTHING;
    a_source_that_ends_before_the_commit: YieldsOnlyAfterCommit NOTHING;
    a_pod_made_again_beside_its_source: AgainOnlyAfterReleased Bounds { strips: 1, ..NOTHING };
    a_second_try_beside_the_first: AgainOnlyAfterLastWord NOTHING;
    a_pod_made_again_that_asks_nobody: AgainNeedsCommit Bounds { forged: 1, ..NOTHING };
}

#[test]
fn entries_of_the_order_are_stored_under_their_names() {
    let entry = serde_json::to_string(&SourceEntry::Yielded).unwrap();
    assert_eq!(entry, r#"{"kind":"yielded"}"#);
    let entry = TargetEntry::Closed { outcome: TargetOutcome::Kept };
    assert_eq!(serde_json::to_string(&entry).unwrap(), r#"{"kind":"closed","outcome":"kept"}"#);
    assert_eq!(SourceWord::default().outcome, None);
}
