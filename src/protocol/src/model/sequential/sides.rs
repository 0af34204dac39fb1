//! What both sides' holders do, and what befalls them.

use super::host::{Host, Tasks};
use super::world::{Moves, Place, World, source, target};
use crate::rules::{Rule, holds};
use crate::{
    Driver, PodSeen, RecordState, SourceEvent, SourceMachine, SourcePhase, TargetEvent,
    TargetMachine, may_begin,
};

pub fn sources(world: &World, moves: &mut Moves) {
    let s = &world.s;
    if s.dead {
        return;
    }
    let with = |host: Option<Host<SourceMachine>>| host.map(|s| World { s, ..world.clone() });
    moves.sure("S works", with(s.work()));
    moves.sure("S's second holder works", with(s.second_works()));
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
    if s.tasks == Tasks::Absent && holds(Rule::TasksAreWatched) {
        let notices = source(world, SourceEvent::TasksLost);
        // Before the vote at the latest as its freeze or its dump fails.
        match s.holder.as_ref().is_some_and(|driver| driver.machine().is_before_vote()) {
            true => moves.sure("S notices its end", notices),
            false => moves.may("S notices its end late", notices),
        }
    }
    let recovered = || {
        let (machine, effects) =
            SourceMachine::recover_as(world.trial_part(), &s.journal, s.facts());
        Driver::new(machine, effects)
    };
    if s.holder.is_some() {
        let dies = world.with(|next| next.s.holder = None);
        moves.fault("S's holder dies", |left| &mut left.crashes, dies);
        let beside = with(s.beside(recovered));
        moves.fault("S has a second holder", |left| &mut left.seconds, beside);
    } else if s.word.outcome.is_none() {
        let starts = world.with(|next| next.s.holder = Some(recovered()));
        moves.sure("S's holder starts", starts);
    }
    if s.tasks != Tasks::Absent && s.word.outcome.is_none() {
        let dies = world.with(|next| {
            next.s.tasks = Tasks::Absent;
            next.s.orphan = false;
        });
        moves.fault("S's tasks die", |left| &mut left.ends, dies);
    }
    // Under another record, and in the cold order as long as nothing has ended, it is one like any other.
    let is_kept = matches!(s.record, Some(RecordState::Frozen | RecordState::Moved)) && !s.cold;
    let starts = s.record == Some(RecordState::Starting);
    if (is_kept || starts) && s.tasks != Tasks::Absent && !s.orphan {
        let dies = world.with(|next| next.s.orphan = true);
        moves.fault("S's shim dies", |left| &mut left.shims, dies);
    }
    let open = s.word.outcome.is_none();
    // Where it may begin there is nothing left to protect: not this model's business.
    if open && may_begin(s.record, open) {
        let begins = world.with(|next| {
            next.s.record = Some(RecordState::Open);
            if s.tasks == Tasks::Frozen {
                next.s.tasks = Tasks::Running;
            }
        });
        let what = "another Migration begins on S and gives up";
        moves.fault(what, |left| &mut left.others, begins);
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
    let s = &world.s;
    let freezing = |d: &&Driver<SourceMachine>| d.machine().phase() == SourcePhase::Freezing;
    let Some(holder) = s.holder.as_ref().filter(freezing) else {
        if s.dumping {
            let ends = world.with(|next| {
                next.s.dumping = false;
                if s.tasks == Tasks::Running {
                    next.s.tasks = Tasks::Frozen;
                }
            });
            moves.sure("a dump that nobody waits for ends, and undoes itself", ends);
        }
        return;
    };
    if !holder.is_idle() {
        return;
    }
    if s.torn {
        moves.sure("S's dump has failed", source(world, SourceEvent::LocalFailure));
        if s.tasks == Tasks::Running {
            let again = world.with(|next| next.s.tasks = Tasks::Frozen);
            moves.sure("what ran on is frozen again", again);
        }
    }
    let receives = world.trial.holder.is_some() && !world.trial.journal.is_empty();
    let stands_still = s.tasks == if world.cold { Tasks::Absent } else { Tasks::Frozen };
    if stands_still && receives && !s.stored && !world.cold && !s.dumping && !s.torn {
        let begins = world.with(|next| next.s.dumping = true);
        moves.sure("CRIU dumps S", begins);
    }
    if s.dumping && s.tasks == Tasks::Frozen {
        let dies = world.with(|next| {
            next.s.dumping = false;
            next.s.torn = true;
            next.s.tasks = Tasks::Running;
        });
        moves.fault("CRIU dies while it dumps S", |left| &mut left.dumps, dies);
    }
    let is_dumped = world.cold || s.dumping || (s.torn && !holds(Rule::DumpIsWhole));
    if stands_still && receives && !s.stored && is_dumped {
        let sent = world.with(|next| {
            next.s.dumping = false;
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
    moves.sure("T's second holder works", with(host.second_works()));
    let failed = with(host.fail()).or_else(|| target(world, place, TargetEvent::LocalFailure));
    moves.fault("T fails", |left| &mut left.failures, failed);
    if host.journal.is_empty() {
        if (world.exists || place != Place::Trial) && host.pod != PodSeen::Gone {
            moves.sure("T begins", target(world, place, TargetEvent::Begin));
        }
        return;
    }
    // By the operator; without a Migration the holder looks for itself, when nothing of the pod is left.
    let is_told = match world.exists {
        true => host.pod != PodSeen::Alive,
        false => host.pod == PodSeen::Gone,
    };
    if is_told {
        let told = target(world, place, TargetEvent::LocalFailure);
        moves.sure("T is told that its pod goes", told);
    }
    moves.may("T loses patience", target(world, place, TargetEvent::DeadlinePassed));
    let restores = host.record == Some(RecordState::Restore)
        && host.tasks == Tasks::Absent
        && host.pod == PodSeen::Alive;
    if restores && host.stored && !host.rebooted && !host.restored {
        let next = Host {
            tasks: Tasks::Frozen,
            restored: true,
            heard: host.heard || !host.cut,
            ..host.clone()
        };
        moves.sure("T is restored and held", with(Some(next)));
        restore_dies(host, moves, with);
    }
    if host.died && holds(Rule::RestoresAreWatched) {
        let notices = target(world, place, TargetEvent::LocalFailure);
        moves.sure("T notices that its restore died", notices);
    }
    let idle = host.holder.as_ref().is_some_and(Driver::is_idle);
    let is_ready = match host.cold {
        true => host.stored && !host.rebooted && host.record == Some(RecordState::Prepared),
        false => host.tasks == Tasks::Frozen && !host.died,
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
    let none = host.tasks == Tasks::Absent || host.is_lost_with_its_shim();
    let ended = none && (host.rebooted || host.restored);
    if ended && holds(Rule::TasksAreWatched) {
        moves.sure("T notices its end", target(world, place, TargetEvent::TasksLost));
    }
    let recovered = || recovered(world, place, host);
    if host.holder.is_some() {
        let dies = Host { holder: None, ..host.clone() };
        moves.fault("T's holder dies", |left| &mut left.crashes, with(Some(dies)));
        let beside = with(host.beside(recovered));
        moves.fault("T has a second holder", |left| &mut left.seconds, beside);
    } else if !host.word.closed {
        let starts = Host { holder: Some(recovered()), ..host.clone() };
        moves.sure("T's holder starts", with(Some(starts)));
    }
    if host.tasks != Tasks::Absent && !host.word.closed {
        let dies = Host { tasks: Tasks::Absent, loose: false, orphan: false, ..host.clone() };
        moves.fault("T's tasks die", |left| &mut left.ends, with(Some(dies)));
    }
    // Under an open record, and in the cold order until it starts, it is one like any other.
    let is_held = !host.cold && host.record != Some(RecordState::Open);
    let starts = host.record == Some(RecordState::Starting);
    if (is_held || starts) && host.tasks != Tasks::Absent && !host.orphan {
        let dies = Host { orphan: true, ..host.clone() };
        moves.fault("T's shim dies", |left| &mut left.shims, with(Some(dies)));
    }
    if !host.silent && !host.word.closed {
        // No dead-man counts here, but whoever did would tell this side too.
        let mut silent = target(world, place, TargetEvent::Lapsed).unwrap_or_else(|| world.clone());
        if let Some(host) = silent.target_mut(place) {
            host.silent = true;
        }
        moves.fault("nothing is heard of T for long", |left| &mut left.silences, Some(silent));
    }
    // Others take no notice of it.
    if !holds(Rule::AnewIsNotGone) && !host.anew && !host.word.closed {
        let anew = Host { anew: true, ..host.clone() };
        moves.fault("T's node registers anew", |left| &mut left.anew, with(Some(anew)));
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

/// CRIU, runc or the wrapper dies: what is restored stays, and so does the mount of its root. Between CRIU's last
/// stop and the freeze what was restored runs, until the script freezes it after all or it is killed; it has
/// run in either case (see [`super::super::overlap`]).
fn restore_dies(
    host: &Host<TargetMachine>,
    moves: &mut Moves,
    with: impl Fn(Option<Host<TargetMachine>>) -> Option<World>,
) {
    let dies =
        Host { tasks: Tasks::Frozen, restored: true, died: true, residue: true, ..host.clone() };
    let whole = !holds(Rule::RestoreIsWhole);
    let lets_go = Host {
        loose: true,
        ran: true,
        died: !whole,
        residue: !whole,
        heard: host.heard || (whole && !host.cut),
        ..dies.clone()
    };
    moves.fault("T's restore dies", |left| &mut left.restores, with(Some(dies)));
    moves.fault("T's restore dies and lets go", |left| &mut left.let_go, with(Some(lets_go)));
}

fn recovered(world: &World, place: Place, host: &Host<TargetMachine>) -> Driver<TargetMachine> {
    let part = match place {
        Place::Trial => world.trial_part(),
        Place::Again | Place::Former => world.again_part(host.at_source),
    };
    let (machine, effects) = TargetMachine::recover_as(part, &host.journal, host.facts());
    Driver::new(machine, effects)
}
