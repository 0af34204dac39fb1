//! What goes wrong: one action per fault that the bounds still allow.

use super::super::search::Steps;
use super::actors::{Action, ask, push, read_node};
use super::host::{Which, fail_effect, feed, start_holder};
use super::operators::bump;
use super::role::Role;
use super::world::{CONTAINERS, FAULTS, Fault, Inflight, Shim, Side, Tasks, World};
use crate::rules::{Rule, holds};
use crate::{
    Decision, Driver, Read, RecordState, Recorded, SourceEntry, SourceMachine, TargetMachine,
    TargetPhase, TargetWord, Verb, judge_node, may_begin,
};

pub(super) fn spend(world: &mut World, fault: Fault) {
    world.left[fault as usize] -= 1;
    world.total -= 1;
    if world.total == 0 {
        // What is left by kind no longer matters.
        world.left = [0; FAULTS];
    }
}

pub(super) fn faults(world: &World, out: &mut Steps<World>) {
    let has = |fault: Fault| world.left[fault as usize] > 0;
    let with = |fault: Fault, change: &dyn Fn(&mut World)| {
        let mut next = world.clone();
        spend(&mut next, fault);
        change(&mut next);
        next
    };
    for side in [Side::S, Side::T] {
        if world.env(side).dead {
            continue;
        }
        let mut happens = |fault: Fault, change: &dyn Fn(&mut World)| {
            out.push((Action::Fault(fault, side), Ok(with(fault, change))));
        };
        if has(Fault::Crash) && alive(world, side) {
            happens(Fault::Crash, &|next| lose_holder(next, side));
        }
        if has(Fault::Reboot) {
            happens(Fault::Reboot, &|next| {
                let begun = match side {
                    Side::S => !next.s.journal.is_empty(),
                    Side::T => !next.t.journal.is_empty(),
                };
                lose_holder(next, side);
                let env = next.env_mut(side);
                env.power_cut();
                env.rebooted |= begun;
            });
        }
        if has(Fault::Die) {
            happens(Fault::Die, &|next| die(next, side));
        }
        if has(Fault::DeletePod) && !world.pod_deleting(side) {
            happens(Fault::DeletePod, &|next| next.delete_pod(side));
        }
        // Where the Migration has vanished, the source goes by the word of whoever does this. So it does not vanish
        // afterwards either.
        if has(Fault::NodeDeleted) && world.api.exists && !world.env(side).deleted {
            happens(Fault::NodeDeleted, &|next| {
                next.env_mut(side).deleted = true;
                next.delete_pod(side);
            });
        }
        if has(Fault::TasksDie) && world.env(side).tasks != Tasks::Absent {
            happens(Fault::TasksDie, &|next| {
                let env = next.env_mut(side);
                env.tasks = Tasks::Absent;
                env.whole = 0;
                env.dying = false;
                env.loose = false;
            });
        }
        let env = world.env(side);
        let has_shim = env.tasks != Tasks::Absent && env.shim == Shim::Lives;
        // A verb that is at work dies with it.
        if has(Fault::ShimDies) && has_shim && env.inflight.is_none() {
            happens(Fault::ShimDies, &|next| next.env_mut(side).shim = Shim::Died);
        }
        if has(Fault::KubeletKill) && env.tasks != Tasks::Absent && env.inflight.is_none() {
            let action = Action::Fault(Fault::KubeletKill, side);
            ask(world, side, Verb::Kill, action, out);
        }
    }
    let mut happens = |fault: Fault, side: Side, change: &dyn Fn(&mut World)| {
        out.push((Action::Fault(fault, side), Ok(with(fault, change))));
    };
    if has(Fault::DeleteMigration) && world.api.exists && !world.api.deleting {
        happens(Fault::DeleteMigration, Side::S, &|next| {
            next.api.deleting = true;
            bump(next);
        });
    }
    if has(Fault::Strip) && world.api.exists && !world.t.env.deleted {
        happens(Fault::Strip, Side::S, &|next| {
            next.api.exists = false;
            next.ops = [None; 2];
        });
    }
    if has(Fault::Imposter) && !world.api.exists && !world.api.imposter {
        happens(Fault::Imposter, Side::S, &|next| next.api.imposter = true);
    }
    if has(Fault::ClaimLost) && world.api.claim {
        happens(Fault::ClaimLost, Side::S, &|next| next.api.claim = false);
    }
    let s_voted = world.s.journal.contains(&SourceEntry::Voted);
    let t_begun = world.t_phase() == TargetPhase::Begun;
    let undecided = world.api.exists && world.api.recorded.decision.is_none();
    // The silence of a target that has not voted and whose node has left is never a proof, nor need it be.
    if has(Fault::ForgedCommit) && s_voted && t_begun && undecided && !world.t.env.left {
        happens(Fault::ForgedCommit, Side::T, &|next| {
            next.api.recorded.decision = Some(Decision::Commit);
            bump(next);
        });
    }
    if has(Fault::DumpDies) && world.s.env.dumping && world.s.env.tasks == Tasks::Frozen {
        happens(Fault::DumpDies, Side::S, &|next| {
            next.torn = true;
            next.s.env.dumping = false;
            next.s.env.tasks = Tasks::Running;
        });
    }
    let env = &world.t.env;
    let TargetWord { begun, voted, .. } = world.t.word;
    let unheard = TargetWord { begun, voted, ..TargetWord::default() };
    if has(Fault::DieUnheard) && !env.dead && voted && world.t.word != unheard {
        happens(Fault::DieUnheard, Side::T, &|next| {
            die(next, Side::T);
            next.t.word = unheard;
        });
    }
    if has(Fault::RestoreDies) && env.inflight == Some(Inflight::Restore) {
        happens(Fault::RestoreDies, Side::T, &|next| {
            let restored = next.sent;
            let env = &mut next.t.env;
            env.inflight = None;
            env.died = true;
            if restored {
                env.tasks = Tasks::Frozen;
                env.residue = true;
            }
        });
    }
    if has(Fault::RestoreLetsGo) && env.inflight == Some(Inflight::Restore) && world.sent {
        happens(Fault::RestoreLetsGo, Side::T, &|next| {
            let env = &mut next.t.env;
            env.inflight = None;
            env.loose = true;
            env.tasks = Tasks::Frozen;
            if holds(Rule::RestoreIsWhole) {
                env.died = true;
                env.residue = true;
            } else {
                env.whole += 1;
                env.restored += 1;
                env.heard |= env.restored == CONTAINERS && !env.cut;
            }
        });
    }
    if has(Fault::CutOff) && !env.dead && !env.cut && !env.heard {
        happens(Fault::CutOff, Side::T, &|next| next.t.env.cut = true);
    }
    if has(Fault::Lapse) && env.armed && !env.lapsed && !env.dead {
        happens(Fault::Lapse, Side::T, &|next| {
            let env = &mut next.t.env;
            env.lapsed = true;
            if holds(Rule::DeadmanFreezes) && env.watched {
                env.net = false;
                if env.tasks == Tasks::Running {
                    env.tasks = Tasks::Frozen;
                }
            }
        });
    }
    if has(Fault::SecondMigration) && !world.s.journal.is_empty() {
        let open = world.s.word.outcome.is_none();
        // Where it may begin there is nothing left to protect: not this model's business.
        if may_begin(world.s.env.record, open) && open {
            happens(Fault::SecondMigration, Side::S, &|next| {
                next.s.env.record = Some(RecordState::Open);
                next.s.env.net = true;
                if next.s.env.tasks == Tasks::Frozen {
                    next.s.env.tasks = Tasks::Running;
                }
            });
        }
    }
    if has(Fault::EffectFails) {
        let sides = [
            (Side::S, fail_effect::<SourceMachine>(world)),
            (Side::T, fail_effect::<TargetMachine>(world)),
        ];
        for (side, failed) in sides {
            if let Some(mut next) = failed {
                spend(&mut next, Fault::EffectFails);
                out.push((Action::Fault(Fault::EffectFails, side), Ok(next)));
            }
        }
    }
    if has(Fault::SecondHolder) {
        let mut beside = |action, next: Option<World>| {
            if let Some(mut next) = next {
                spend(&mut next, Fault::SecondHolder);
                out.push((action, Ok(next)));
            }
        };
        let second = Which::Second;
        beside(
            Action::Fault(Fault::SecondHolder, Side::S),
            start_holder::<SourceMachine>(world, second),
        );
        beside(
            Action::Fault(Fault::SecondHolder, Side::T),
            start_holder::<TargetMachine>(world, second),
        );
    }
    if has(Fault::ForgedHint) {
        forged_hints(world, out);
    }
    if has(Fault::NodeAnew) && !world.t.env.dead {
        let seen = judge_node::<TargetWord>(None, true);
        if let Some(mut next) = read_node(world, seen) {
            spend(&mut next, Fault::NodeAnew);
            out.push((Action::Fault(Fault::NodeAnew, Side::T), Ok(next)));
        }
    }
    if has(Fault::LateBegin) {
        late_begins(world, out);
    }
}

fn alive(world: &World, side: Side) -> bool {
    match side {
        Side::S => world.s.holder.is_some() && !world.s.journal.is_empty(),
        Side::T => world.t.holder.is_some() && !world.t.journal.is_empty(),
    }
}

/// The node goes down for ever.
fn die(world: &mut World, side: Side) {
    lose_holder(world, side);
    let env = world.env_mut(side);
    env.power_cut();
    env.dead = true;
}

/// The holder process is gone. One without a journal is merely the agent waiting for a call.
fn lose_holder(world: &mut World, side: Side) {
    match side {
        Side::S => {
            world.s.second = None;
            world.s.holder =
                world.s.journal.is_empty().then(|| Driver::new(SourceMachine::new(), vec![]));
        }
        Side::T => {
            world.t.second = None;
            world.t.env.watched &= holds(Rule::DeadmanOutlivesHolder);
            world.t.holder =
                world.t.journal.is_empty().then(|| Driver::new(TargetMachine::new(), vec![]));
        }
    }
}

fn forged_hints(world: &World, out: &mut Steps<World>) {
    fn told<R: Role>(world: &World, decision: Decision) -> Option<World> {
        if R::host(world).env.dead {
            return None;
        }
        let forged = Recorded { decision: Some(decision), ..Recorded::default() };
        let event = if holds(Rule::HintsAreNotDecisions) {
            R::poked()
        } else {
            R::read(Read::Recorded(forged))
        };
        let mut next = feed::<R>(world, Which::First, event)?;
        spend(&mut next, Fault::ForgedHint);
        Some(next)
    }
    for decision in [Decision::Commit, Decision::Abort] {
        push(out, Action::Forge(Side::S, decision), told::<SourceMachine>(world, decision));
        push(out, Action::Forge(Side::T, decision), told::<TargetMachine>(world, decision));
    }
}

fn late_begins(world: &World, out: &mut Steps<World>) {
    fn late<R: Role>(world: &World, out: &mut Steps<World>) {
        let host = R::host(world);
        if host.journal.is_empty()
            && !host.env.dead
            && let Some(mut next) = feed::<R>(world, Which::First, R::begin())
        {
            spend(&mut next, Fault::LateBegin);
            out.push((Action::Fault(Fault::LateBegin, R::SIDE), Ok(next)));
        }
    }
    let late_now = !world.api.exists || world.api.recorded.decision.is_some();
    if late_now {
        late::<SourceMachine>(world, out);
        late::<TargetMachine>(world, out);
    }
}
