//! What both sides' holders do, and what befalls them.

use super::host::{Host, Tasks};
use super::world::{Moves, Place, World, source, target};
use crate::rules::{Rule, holds};
use crate::{
    Driver, RecordState, SourceEvent, SourceMachine, SourcePhase, TargetEvent, TargetMachine,
};

pub fn sources(world: &World, moves: &mut Moves) {
    let s = &world.s;
    if s.dead {
        return;
    }
    let with = |host: Option<Host<SourceMachine>>| host.map(|s| World { s, ..world.clone() });
    moves.sure("S works", with(s.work()));
    moves.fault("S fails", |left| &mut left.failures, with(s.fail()));
    moves.sure("S's application ends, as it was asked to", with(s.ends()));
    if s.journal.is_empty() && world.exists && world.recorded.decision.is_none() {
        moves.sure("S begins", source(world, SourceEvent::Begin));
    }
    moves.sure("S is told to freeze", source(world, SourceEvent::FreezeNow));
    send(world, moves);
    if s.journal.is_empty() {
        return;
    }
    let read = match world.exists {
        true => SourceEvent::DecisionRead(world.recorded),
        false => SourceEvent::ObjectGone,
    };
    moves.sure("S reads", source(world, read));
    moves.sure("S reads the trial's word", source(world, SourceEvent::PeerRead(world.trial.word)));
    moves.may("S loses patience", source(world, SourceEvent::DeadlinePassed));
    if world.trial.dead {
        moves.sure("S learns that T's node is gone", source(world, SourceEvent::PeerNodeGone));
    }
    if s.tasks == Tasks::Absent {
        moves.sure("S notices its end", source(world, SourceEvent::TasksLost));
    }
    if s.holder.is_some() {
        let dies = world.with(|next| next.s.holder = None);
        moves.fault("S's holder dies", |left| &mut left.crashes, dies);
    } else if s.word.outcome.is_none() {
        let (machine, effects) =
            SourceMachine::recover_as(world.trial_part(), &s.journal, s.facts());
        let starts = world.with(|next| next.s.holder = Some(Driver::new(machine, effects)));
        moves.sure("S's holder starts", starts);
    }
    let reboots = world.with(|next| {
        next.s.power_cut();
        next.s.rebooted = true;
    });
    moves.fault("S's node reboots", |left| &mut left.reboots, reboots);
    let ends = world.with(|next| {
        next.s.power_cut();
        next.s.dead = true;
        if let Some(again) = next.again.as_mut().filter(|again| again.at_source) {
            again.power_cut();
            again.dead = true;
        }
    });
    moves.fault("S's node is gone", |left| &mut left.deaths, ends);
}

fn send(world: &World, moves: &mut Moves) {
    let freezing =
        |d: &Driver<SourceMachine>| d.is_idle() && d.machine().phase() == SourcePhase::Freezing;
    if !world.s.holder.as_ref().is_some_and(freezing) {
        return;
    }
    let receives = world.trial.holder.is_some() && !world.trial.journal.is_empty();
    let stands_still = world.s.tasks == if world.cold { Tasks::Absent } else { Tasks::Frozen };
    if stands_still && receives && !world.s.stored {
        let sent = world.with(|next| {
            next.s.stored = true;
            next.trial.stored = true;
            next.trial.heard |= world.cold && !world.trial.cut;
        });
        moves.sure("everything is sent and kept", sent);
    }
    if world.s.stored {
        moves.sure("S is ready", source(world, SourceEvent::AllFrozenAndSent));
    }
}

pub fn targets(world: &World, place: Place, moves: &mut Moves) {
    let Some(host) = world.target(place) else { return };
    if host.dead {
        return;
    }
    let with = |changed: Option<Host<TargetMachine>>| {
        changed.map(|changed| {
            let mut next = world.clone();
            if let Some(host) = next.target_mut(place) {
                *host = changed;
            }
            next
        })
    };
    moves.sure("T works", with(host.work()));
    let failed = with(host.fail()).or_else(|| target(world, place, TargetEvent::LocalFailure));
    moves.fault("T fails", |left| &mut left.failures, failed);
    if host.journal.is_empty() {
        if world.exists || place != Place::Trial {
            moves.sure("T begins", target(world, place, TargetEvent::Begin));
        }
        return;
    }
    moves.may("T loses patience", target(world, place, TargetEvent::DeadlinePassed));
    let restores = host.record == Some(RecordState::Restore) && host.tasks == Tasks::Absent;
    if restores && host.stored && !host.rebooted && !host.restored {
        let next = Host {
            tasks: Tasks::Frozen,
            restored: true,
            heard: host.heard || !host.cut,
            ..host.clone()
        };
        moves.sure("T is restored and held", with(Some(next)));
    }
    let idle = host.holder.as_ref().is_some_and(Driver::is_idle);
    let is_ready = match host.cold {
        true => host.stored && !host.rebooted && host.record == Some(RecordState::Prepared),
        false => host.tasks == Tasks::Frozen,
    };
    let in_contact = place != Place::Trial || host.heard || !holds(Rule::VotesOnlyInContact);
    if idle && is_ready && in_contact {
        moves.sure("T is ready", target(world, place, TargetEvent::AllRestoredAndFrozen));
    }
    if host.cut {
        let arrived = if host.cold { host.stored } else { host.restored };
        let back = Host { cut: false, heard: host.heard || arrived, ..host.clone() };
        moves.sure("T's node reaches the API server again", with(Some(back)));
    } else {
        let read = match world.exists {
            true => TargetEvent::DecisionRead(world.recorded),
            false => TargetEvent::ObjectGone,
        };
        moves.sure("T reads", target(world, place, read));
        if place == Place::Trial && !host.heard {
            let cut = Host { cut: true, ..host.clone() };
            let what = "T's node does not reach the API server any more";
            moves.fault(what, |left| &mut left.cuts, with(Some(cut)));
        }
    }
    if host.tasks == Tasks::Absent && (host.rebooted || host.restored) {
        moves.sure("T notices its end", target(world, place, TargetEvent::TasksLost));
    }
    if host.holder.is_some() {
        let dies = Host { holder: None, ..host.clone() };
        moves.fault("T's holder dies", |left| &mut left.crashes, with(Some(dies)));
    } else if !host.word.closed {
        moves.sure("T's holder starts", with(Some(restarted(world, place, host))));
    }
    if !host.rebooted {
        let mut reboots = Host { rebooted: true, ..host.clone() };
        reboots.power_cut();
        moves.fault("T's node reboots", |left| &mut left.reboots, with(Some(reboots)));
    }
    if place == Place::Trial {
        let ends = world.with(|next| {
            let again = next.again.as_mut().filter(|again| !again.at_source);
            for host in [Some(&mut next.trial), again].into_iter().flatten() {
                host.power_cut();
                host.dead = true;
            }
        });
        moves.fault("T's node is gone", |left| &mut left.deaths, ends);
    }
}

fn restarted(world: &World, place: Place, host: &Host<TargetMachine>) -> Host<TargetMachine> {
    let part = match place {
        Place::Trial => world.trial_part(),
        Place::Again | Place::Former => world.again_part(host.at_source),
    };
    let (machine, effects) = TargetMachine::recover_as(part, &host.journal, host.facts());
    Host { holder: Some(Driver::new(machine, effects)), ..host.clone() }
}
