//! What effects do on a node, and what must hold when they are done.

use super::super::search::Broken;
use super::role::Role;
use super::world::{CONTAINERS, Inflight, Shim, Side, Tasks, World};
use crate::rules::{Rule, holds};
use crate::source::SourceEntry;
use crate::{
    Decision, Driver, Effect, Facts, Failure, Guard, Machine, RecordState, SourcePhase,
    TargetOutcome, TargetPhase,
};

enum Done {
    Yes,
    No(Failure),
    /// Must wait for something else.
    Blocked,
}

/// Which of two holders on a node (there should be one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    First,
    Second,
}

fn slot<R: Role>(world: &mut World, which: Which) -> &mut Option<Driver<R>> {
    let host = R::host_mut(world);
    match which {
        Which::First => &mut host.holder,
        Which::Second => &mut host.second,
    }
}

/// Effects that change nothing here are done together with what comes before them.
fn skip_idle_effects<R: Role>(driver: &mut Driver<R>) {
    while matches!(
        driver.next_effect(),
        Some(Effect::Announce | Effect::ReadRecorded | Effect::ReadPeer | Effect::ReadPod)
    ) {
        driver.done();
    }
}

/// The holder does its next effect. `None`: there is none, or it has to wait.
pub fn run_effect<R: Role>(world: &World, which: Which) -> Option<Result<World, Broken>> {
    let host = R::host(world);
    let driver = match which {
        Which::First => &host.holder,
        Which::Second => &host.second,
    };
    let effect = driver.as_ref()?.next_effect()?;
    let mut next = world.clone();
    let done = match perform::<R>(&mut next, effect) {
        Ok(done) => done,
        Err(broken) => return Some(Err(broken)),
    };
    let driver = slot::<R>(&mut next, which).as_mut()?;
    match done {
        Done::Yes => driver.done(),
        Done::No(failure) => {
            if !driver.failed(failure) {
                return None;
            }
        }
        Done::Blocked => return None,
    }
    skip_idle_effects(driver);
    Some(Ok(next))
}

/// The holder's next effect fails before the vote. (A journal that cannot be written ends the
/// holder: that is a crash.)
pub fn fail_effect<R: Role>(world: &World) -> Option<World> {
    let mut next = world.clone();
    let driver = slot::<R>(&mut next, Which::First).as_mut()?;
    if matches!(driver.next_effect()?, Effect::Journal(_) | Effect::Publish(_)) {
        return None;
    }
    driver.failed(Failure::Other).then_some(next)
}

fn perform<R: Role>(world: &mut World, effect: Effect<R::Entry, R::Word>) -> Result<Done, Broken> {
    let before_vote = R::host(world).holder.as_ref().is_some_and(|d| d.machine().is_before_vote());
    match effect {
        Effect::Journal(entry) => {
            let env = world.env(R::SIDE);
            if R::is_vote(entry) && env.tasks == Tasks::Absent && env.ended {
                return Err("a side votes though kubelet has ended its tasks");
            }
            if R::is_vote(entry) && R::SIDE == Side::S && world.torn {
                return Err("the source votes for a dump during which it ran");
            }
            if R::is_vote(entry) && env.loose {
                return Err("the target votes for tasks that ran before they were frozen");
            }
            R::host_mut(world).journal.push(entry);
        }
        Effect::Publish(word) => R::host_mut(world).word = word,
        Effect::WriteRecord(state) => {
            if R::SIDE == Side::S && state == RecordState::Open {
                source_may_go_on(world)?;
            }
            if state == RecordState::Open && holds(Rule::OrphansEndFirst) {
                world.env_mut(R::SIDE).end_orphans();
            }
            world.env_mut(R::SIDE).record = Some(state);
        }
        Effect::QuiesceWrapper => {
            let env = world.env_mut(R::SIDE);
            if env.inflight.is_some() {
                if env.record == Some(RecordState::Aborted) {
                    env.inflight = None;
                } else {
                    return Ok(Done::Blocked);
                }
            }
        }
        Effect::CloseNetwork => world.env_mut(R::SIDE).net = false,
        Effect::OpenNetwork(Guard::Deadman) if world.env(R::SIDE).lapsed => {
            return Ok(Done::No(Failure::Lapsed));
        }
        Effect::OpenNetwork(_) => world.env_mut(R::SIDE).net = true,
        Effect::FreezeTasks => {
            let env = world.env_mut(R::SIDE);
            match env.tasks {
                Tasks::Absent if before_vote => return Ok(Done::No(Failure::TasksLost)),
                Tasks::Absent => {}
                Tasks::Running | Tasks::Frozen => env.tasks = Tasks::Frozen,
            }
        }
        Effect::VerifyTasks => {
            let env = world.env(R::SIDE);
            let whole = R::SIDE == Side::S || env.whole == CONTAINERS;
            let orphaned = is_lost_with_its_shim(world, R::SIDE);
            if env.tasks != Tasks::Frozen || !whole || orphaned {
                return Ok(Done::No(Failure::TasksLost));
            }
        }
        Effect::ArmDeadman => {
            let env = world.env_mut(R::SIDE);
            env.armed = true;
            env.watched = true;
        }
        Effect::CheckDeadman if world.env(R::SIDE).lapsed => {
            return Ok(Done::No(Failure::Lapsed));
        }
        Effect::CheckDeadman => {}
        Effect::DisarmDeadman => {
            let env = world.env_mut(R::SIDE);
            env.armed = false;
            env.watched = false;
            env.lapsed = false;
        }
        Effect::DestroySockets => world.env_mut(R::SIDE).sockets_destroyed = true,
        Effect::ThawTasks(guard) => {
            if guard == Guard::Deadman && world.env(R::SIDE).lapsed {
                return Ok(Done::No(Failure::Lapsed));
            }
            if is_lost_with_its_shim(world, R::SIDE) {
                return Ok(Done::No(Failure::TasksLost));
            }
            if holds(Rule::DumpEndsBeforeThaw) {
                world.env_mut(R::SIDE).dumping = false;
            }
            if world.env(R::SIDE).tasks == Tasks::Frozen {
                world.env_mut(R::SIDE).tasks = Tasks::Running;
                match R::SIDE {
                    Side::S => source_may_run(world)?,
                    Side::T => target_may_run(world)?,
                }
            }
        }
        Effect::KillTasksFrozen => {
            kill_frozen(world, R::SIDE)?;
            if holds(Rule::LoserLeavesNothing) {
                world.env_mut(R::SIDE).residue = false;
            }
        }
        // The overlapping order keeps nothing on disks.
        Effect::FindTasks | Effect::EndTasks | Effect::KeepFiles | Effect::VerifyNeverRan => {}
        Effect::SyncState | Effect::Announce => {}
        Effect::ReadRecorded | Effect::ReadPeer | Effect::ReadPod => {}
    }
    Ok(Done::Yes)
}

/// A target has lost what lives without a shim; of a source that still is the state that moves.
pub fn is_lost_with_its_shim(world: &World, side: Side) -> bool {
    side == Side::T && world.t.env.is_orphan() && holds(Rule::OrphansAreLost)
}

/// An undecided source's own state must survive: nothing may be lost before the commit.
fn source_may_go_on(world: &World) -> Result<(), Broken> {
    let recorded = world.api.recorded;
    let voted = world.s.journal.contains(&SourceEntry::Voted);
    // Of what has vanished undecided nobody can read a Commit any more, on a node that has left or elsewhere.
    let is_out = world.target_is_out() || (world.t.env.left && recorded.decision.is_none());
    let allowed = !voted
        || recorded.decision == Some(Decision::Abort)
        || recorded.resolution.is_some()
        || (!world.api.exists && is_out);
    if allowed { Ok(()) } else { Err("a voted source goes on without a decision") }
}

/// What thaws the source leaves an ordinary pod, whatever comes next.
fn source_may_run(world: &World) -> Result<(), Broken> {
    if world.s.env.record != Some(RecordState::Open) || !world.s.env.net {
        return Err("the source was thawed behind a closed record or network");
    }
    Ok(())
}

fn target_may_run(world: &mut World) -> Result<(), Broken> {
    world.t_ran = true;
    if world.t.env.whole != CONTAINERS {
        return Err("a target that is not whole was thawed");
    }
    if world.t.env.is_orphan() {
        return Err("a target whose shim has died was thawed");
    }
    Ok(())
}

/// SIGKILL while frozen: nothing runs, but what is killed is lost.
fn kill_frozen(world: &mut World, side: Side) -> Result<(), Broken> {
    if world.env(side).tasks != Tasks::Absent {
        match side {
            Side::S => {
                // The pod is lost with a node that has left, or goes on there.
                let has_left = world.t.env.left && world.api.recorded.resumed_at;
                // Nobody wants the pod any more that went with its node's object.
                let is_over = matches!(world.t_phase(), TargetPhase::Closed(_));
                let unwanted = world.s.env.deleted && (is_over || !world.api.exists);
                let confirmed = world.t.env.dead
                    || has_left
                    || unwanted
                    || world.t_phase() == TargetPhase::Closed(TargetOutcome::Resumed);
                if !confirmed {
                    return Err("the source was killed before the target was confirmed");
                }
            }
            Side::T => target_may_be_ended(world)?,
        }
    }
    let env = world.env_mut(side);
    env.ended |= env.tasks != Tasks::Absent;
    env.tasks = Tasks::Absent;
    env.whole = 0;
    env.loose &= !holds(Rule::KillsByCgroup);
    Ok(())
}

fn target_may_be_ended(world: &World) -> Result<(), Broken> {
    match world.t_phase() {
        TargetPhase::Voted
        | TargetPhase::Committed
        | TargetPhase::Thawing
        | TargetPhase::Thawed => Err("a voted target was killed undecided"),
        _ => Ok(()),
    }
}

/// A verb that the wrapper let through comes to its end. `None`: it has to wait.
pub fn finish_verb(world: &World, side: Side) -> Option<Result<World, Broken>> {
    let mut next = world.clone();
    let verb = next.env_mut(side).inflight.take()?;
    let result = match verb {
        Inflight::Create => {
            let env = next.env_mut(side);
            if env.is_orphan() {
                return Some(Err("a container is made anew beside its tasks"));
            }
            if env.tasks == Tasks::Absent {
                env.shim = Shim::Lives;
                env.ended = false;
                env.tasks = Tasks::Running;
                env.net = true;
                if side == Side::T {
                    next.t_ran = true;
                }
            }
            Ok(())
        }
        Inflight::Restore => {
            if !next.sent {
                return None;
            }
            let env = next.env_mut(side);
            env.ended = false;
            env.tasks = Tasks::Frozen;
            env.whole += 1;
            env.restored += 1;
            env.heard |= env.restored == CONTAINERS && !env.cut;
            Ok(())
        }
        Inflight::Kill => runc_kill(&mut next, side),
        Inflight::KillFrozen => kill_frozen(&mut next, side).and_then(|()| {
            next.env_mut(side).residue &= !holds(Rule::DeleteDetaches);
            runc_delete(&next, side)
        }),
        Inflight::Delete => runc_delete(&next, side),
    };
    Some(result.map(|()| next))
}

/// runc's own kill: signals the container's init, and thaws what is frozen; the rest of a frozen
/// container runs until the kernel has reaped it.
fn runc_kill(world: &mut World, side: Side) -> Result<(), Broken> {
    if world.env(side).tasks == Tasks::Absent {
        return Ok(());
    }
    match side {
        Side::S if matches!(world.s_phase(), SourcePhase::Voted | SourcePhase::Committed) => {
            return Err("a voted source was ended undecided");
        }
        Side::S => {}
        Side::T => target_may_be_ended(world)?,
    }
    let env = world.env_mut(side);
    match env.tasks {
        Tasks::Frozen => {
            env.tasks = Tasks::Running;
            env.dying = true;
            if side == Side::T {
                world.t_ran = true;
            }
        }
        Tasks::Running | Tasks::Absent => {
            env.tasks = Tasks::Absent;
            env.whole = 0;
        }
    }
    Ok(())
}

/// runc's delete removes everything in its state of the container.
fn runc_delete(world: &World, side: Side) -> Result<(), Broken> {
    match world.env(side).residue {
        true => Err("runc's delete goes through the mounted root of the container"),
        false => Ok(()),
    }
}

/// The supervisor starts a holder (or a second one, where nothing keeps it from doing so).
pub fn start_holder<R: Role>(world: &World, which: Which) -> Option<World> {
    let host = R::host(world);
    if host.env.dead || host.journal.is_empty() {
        return None;
    }
    let free = match which {
        Which::First => host.holder.is_none() && !R::is_final(&host.word),
        Which::Second => host.holder.is_some() && host.second.is_none() && !holds(Rule::OneHolder),
    };
    if !free {
        return None;
    }
    let facts = Facts {
        same_boot: !host.env.rebooted,
        tasks: host.env.tasks != Tasks::Absent && !is_lost_with_its_shim(world, R::SIDE),
        lapsed: host.env.lapsed,
    };
    let (machine, effects) = <R as Role>::recover(&host.journal, facts);
    let mut next = world.clone();
    let mut driver = Driver::new(machine, effects);
    skip_idle_effects(&mut driver);
    *slot::<R>(&mut next, which) = Some(driver);
    Some(next)
}

/// An event for an idle holder. `None`: it is busy or absent, or the event changes nothing.
pub fn feed<R: Role>(world: &World, which: Which, event: <R as Machine>::Event) -> Option<World> {
    let host = R::host(world);
    let before = match which {
        Which::First => host.holder.as_ref()?,
        Which::Second => host.second.as_ref()?,
    };
    if !before.is_idle() {
        return None;
    }
    let mut driver = before.clone();
    driver.feed(event);
    skip_idle_effects(&mut driver);
    if driver == *before {
        return None;
    }
    let mut next = world.clone();
    *slot::<R>(&mut next, which) = Some(driver);
    Some(next)
}
