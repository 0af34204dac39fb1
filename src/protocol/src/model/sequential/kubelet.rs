//! kubelet, through the wrapper's verdicts. It may ask for a container whenever none runs, be it that one has
//! ended or that containerd was restarted and knows it no more; so no fault of its own stands for that.

use super::host::{Host, Tasks};
use super::world::{Moves, Place, TARGETS, World, source, target};
use crate::effect::Machine;
use crate::rules::{Rule, holds};
use crate::{
    PodSeen, RecordState, SourceEvent, TargetEvent, TargetMachine, Verb, Verdict, ends_leftovers,
    wrapper_verdict,
};

fn verdict<M: Machine>(host: &Host<M>, verb: Verb) -> Verdict {
    wrapper_verdict(host.record, verb, host.unfilled)
}

/// A container that kubelet makes where none runs.
fn create<M: Machine<Word: Default>>(host: &Host<M>, afresh: &mut bool) -> Option<Host<M>>
where
    Host<M>: Clone,
{
    if host.dead || (host.tasks != Tasks::Absent && !host.orphan) {
        return None;
    }
    let mut next = host.clone();
    match verdict(host, Verb::Create) {
        // An end and a loss of power before anything was kept are what they are for any pod.
        Verdict::Pass => *afresh |= host.unfilled && (host.durable || !host.rebooted),
        Verdict::Fill if host.record == Some(RecordState::Starting) => {
            *afresh |= host.unfilled && !host.stored && !host.rebooted;
            next.started_again = true;
        }
        // Restores are the sides' own business.
        _ => return None,
    }
    if host.orphan && host.record.is_some_and(|record| ends_leftovers(record, Verb::Create)) {
        next.kill_frozen();
    }
    next.beside |= next.orphan;
    next.tasks = Tasks::Running;
    next.unfilled = false;
    Some(next)
}

/// containerd has the containers of a dead shim deleted.
fn lose_shim<M: Machine<Word: Default>>(host: &Host<M>) -> Option<Host<M>>
where
    Host<M>: Clone,
{
    if host.dead || !host.orphan || verdict(host, Verb::Delete) == Verdict::Refuse {
        return None;
    }
    let mut next = host.clone();
    next.kill_frozen();
    Some(next)
}

/// What kubelet wants to end.
fn kill<M: Machine>(host: &Host<M>) -> Option<Host<M>>
where
    Host<M>: Clone,
{
    if host.dead || host.tasks == Tasks::Absent {
        return None;
    }
    let tasks = match (verdict(host, Verb::Kill), host.tasks) {
        // runc thaws what it has signalled.
        (Verdict::Pass, Tasks::Frozen) => Tasks::Running,
        (Verdict::Pass | Verdict::KillFrozen, _) => Tasks::Absent,
        _ => return None,
    };
    let loose = host.loose && tasks != Tasks::Absent;
    let orphan = host.orphan && tasks != Tasks::Absent;
    let ran = host.ran || tasks == Tasks::Running;
    Some(Host { tasks, loose, orphan, ran, ..host.clone() })
}

/// runc's delete of a container whose restore died: what is killed first, and whether it goes through what is
/// mounted in runc's state.
fn delete(host: &Host<TargetMachine>) -> Option<(Host<TargetMachine>, bool)> {
    if host.dead || !host.residue || verdict(host, Verb::Delete) != Verdict::KillFrozen {
        return None;
    }
    let mut next = host.clone();
    next.kill_frozen();
    next.residue &= !holds(Rule::DeleteDetaches);
    let through = next.residue;
    Some((next, through))
}

/// Somebody deletes a pod that was made again. Behind its gate no kubelet has it, and it is gone at once; the gate opens
/// when the record is there. What has come to its end is a pod like any other.
fn somebody_deletes(host: &Host<TargetMachine>) -> Option<Host<TargetMachine>> {
    let pod = if host.record.is_none() { PodSeen::Gone } else { PodSeen::Deleting };
    let may = host.pod == PodSeen::Alive && !host.dead && !host.word.closed;
    may.then(|| Host { pod, ..host.clone() })
}

/// kubelet gives a deleted pod's object up when nothing of it is left.
fn goes(host: &Host<TargetMachine>) -> Option<Host<TargetMachine>> {
    let may_delete = verdict(host, Verb::Delete) != Verdict::Refuse;
    let is_over = host.dead || (host.tasks == Tasks::Absent && may_delete);
    let may = host.pod == PodSeen::Deleting && is_over;
    may.then(|| Host { pod: PodSeen::Gone, ..host.clone() })
}

/// Whether every container was started with its files.
fn all_started<M: Machine>(host: &Host<M>) -> bool {
    host.record == Some(RecordState::Starting) && host.tasks == Tasks::Running && !host.unfilled
}

pub fn source_pod(world: &World, moves: &mut Moves) {
    let s = &world.s;
    let with = |s: Option<Host<_>>, afresh: bool| s.map(|s| World { s, afresh, ..world.clone() });
    if all_started(s) {
        moves.sure("S's containers were started", source(world, SourceEvent::AllStarted));
    }
    if !world.s_object {
        if world.s_deleting {
            moves.sure("S's holder sees that S is gone", source(world, SourceEvent::PodGone));
            moves.sure("kubelet kills S, which is gone", with(kill(s), world.afresh));
        }
        return;
    }
    let may_delete = verdict(s, Verb::Delete) != Verdict::Refuse;
    let mut afresh = world.afresh;
    if world.s_deleting {
        moves.sure("kubelet kills S, which is deleted", with(kill(s), afresh));
        if s.tasks == Tasks::Absent && (may_delete || s.dead) {
            moves.sure("S is gone", world.with(|next| next.s_object = false));
        }
    } else {
        let started = create(s, &mut afresh);
        moves.sure("kubelet starts S", with(started, afresh));
        moves.fault("kubelet kills S", |left| &mut left.kills, with(kill(s), world.afresh));
        let deleted = world.with(|next| next.s_deleting = true);
        moves.fault("somebody deletes S", |left| &mut left.deletes, deleted);
        let removed = world.with(|next| (next.s_deleting, next.s_object) = (true, false));
        moves.fault("somebody removes S by force", |left| &mut left.deletes, removed);
    }
    // As of T, below.
    moves.may("containerd loses S's shim", with(lose_shim(s), world.afresh));
    if s.unfilled && s.tasks == Tasks::Absent && may_delete && !s.stored && !s.rebooted {
        moves.may("S's containers are deleted", world.with(|next| next.s.collected = true));
    }
}

pub fn target_pods(world: &World, moves: &mut Moves) {
    if !world.trial_deleting {
        let deleted = world.with(|next| next.trial_deleting = true);
        moves.fault("somebody deletes the trial's pod", |left| &mut left.deletes, deleted);
    }
    for place in TARGETS {
        let Some(host) = world.target(place) else { continue };
        let with = |changed: Option<Host<_>>, afresh: bool| {
            changed.and_then(|changed| {
                let mut next = World { afresh, ..world.clone() };
                *next.target_mut(place)? = changed;
                Some(next)
            })
        };
        moves.fault("kubelet kills T", |left| &mut left.kills, with(kill(host), world.afresh));
        // It may be cut off, or fail.
        moves.may("containerd loses T's shim", with(lose_shim(host), world.afresh));
        // It need not ask for the end of a container whose creation failed.
        let deleted = delete(host).and_then(|(host, through)| {
            with(Some(host), world.afresh).map(|next| World { through_mount: through, ..next })
        });
        moves.may("kubelet deletes T's container", deleted);
        if all_started(host) {
            moves
                .sure("T's containers were started", target(world, place, TargetEvent::AllStarted));
        }
        if place == Place::Again {
            let deleted = with(somebody_deletes(host), world.afresh);
            moves.fault("somebody deletes T", |left| &mut left.deletes, deleted);
        }
        if host.pod == PodSeen::Deleting {
            moves.sure("kubelet kills T, which is deleted", with(kill(host), world.afresh));
            moves.sure("T is gone", with(goes(host), world.afresh));
        }
        // Before its record is there the scheduling gate keeps kubelet from it.
        let is_kubelets = host.record.is_some() && host.pod == PodSeen::Alive;
        if place != Place::Trial && is_kubelets {
            let mut afresh = world.afresh;
            let started = create(host, &mut afresh);
            moves.sure("kubelet starts T", with(started, afresh));
        }
    }
}
