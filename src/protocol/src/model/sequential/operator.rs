//! The operator, and whoever acts in its place.

use super::host::{Host, Tasks};
use super::world::{Moves, World, source};
use crate::rules::{Rule, holds};
use crate::{
    Decision, DecisionInput, PodSeen, Resolution, SourceEvent, SourceOutcome, TargetMachine,
    TargetOutcome, TargetWord, decide, gives_up_memory, has_failed, may_make_again,
    may_record_resumed, may_remove_finalizer, may_return, may_yield, must_be_asked_for,
};

/// How often the pod is made again, at most: once more than it can fail in any of the runs.
const TRIES: u8 = 4;

fn observe(world: &World, give_up: bool) -> DecisionInput {
    let seen = |deleting: bool| if deleting { PodSeen::Deleting } else { PodSeen::Alive };
    DecisionInput {
        recorded: world.recorded,
        migration_deleting: world.deleting,
        source: world.s.word,
        target: world.trial.word,
        source_pod: if world.s_object { seen(world.s_deleting) } else { PodSeen::Gone },
        target_pod: seen(world.trial_deleting),
        claim_held: true,
        source_node_dead: world.s.dead,
        target_node_dead: world.trial.dead,
        give_up,
    }
}

pub fn operator(world: &World, moves: &mut Moves) {
    if !world.exists {
        return;
    }
    let decides = |decision: Option<Decision>| {
        decision.and_then(|decision| world.with(|next| next.recorded.decision = Some(decision)))
    };
    moves.sure("the operator decides", decides(decide(&observe(world, false))));
    moves.may("the operator gives up", decides(decide(&observe(world, true))));

    // Only a pod that the operator has made itself is asked, and it makes one after the release.
    let released = world.s.word.outcome == Some(SourceOutcome::Released);
    let ended = released || world.s.dead;
    let (word, gone) = match &world.again {
        Some(again) => (again.word, is_gone(again)),
        None => (TargetWord::default(), world.trial.dead),
    };
    if ended && may_record_resumed(world.recorded, word, gone) {
        let resumed = world.with(|next| {
            next.recorded.resumed_at = true;
            next.resumed = true;
        });
        moves.sure("the operator records resumedAt", resumed);
    }
    let waits = is_asked_for(world) || world.unwanted;
    let tried = (world.tries > 0 || world.trial.dead) && !waits;
    if released && tried && !world.s.dead && may_return(world.recorded, word, gone) {
        let resolved =
            world.with(|next| next.recorded.resolution = Some(Resolution::SourceResumes));
        moves.sure("the operator records the resolution", resolved);
    }
    if ended && world.s_object {
        moves.sure("S's object goes", world.with(|next| next.s_object = false));
    }
    // As long as the object is there, and unless the pod runs already.
    let goes = |host: &Host<TargetMachine>| host.pod == PodSeen::Deleting && !host.word.thawed;
    if world.again.as_ref().is_some_and(goes) && !world.unwanted {
        let sees = world.with(|next| next.unwanted = true);
        moves.sure("the operator sees that the pod is not wanted", sees);
    }
    make(world, moves);
    ask(world, moves);
    let asked = may_yield(world.recorded, world.trial.word, world.trial.dead);
    if asked || !holds(Rule::YieldsOnlyAfterCommit) {
        let asks = source(world, SourceEvent::ReleaseRequested);
        moves.sure("the operator asks for the release", asks);
    }
    let s_over = world.s.word.outcome.is_some() || world.s.dead;
    let trial_over = world.trial.word.closed || world.trial.dead;
    let again_over = world.again.as_ref().is_none_or(|host| host.dead || host.word.closed);
    if !(world.recorded.decision.is_some() && s_over && trial_over && again_over) {
        let vanishes = world.with(|next| {
            next.exists = false;
            next.stripped = true;
        });
        moves.fault("the Migration vanishes", |left| &mut left.strips, vanishes);
    }
    if world.deleting {
        let unmeant = !is_finished(world) && is_given_up(world) && !world.meant;
        let goes = may_go(world).then(|| World { exists: false, unmeant, ..world.clone() });
        moves.sure("the Migration, which is deleted, goes", goes);
    } else {
        let deleted = world.with(|next| {
            next.deleting = true;
            next.meant |= next.asked;
        });
        moves.fault("somebody deletes the Migration", |left| &mut left.cancels, deleted);
    }
}

/// Whether a pod that was made again is taken for gone.
fn is_gone(again: &Host<TargetMachine>) -> bool {
    again.dead
        || (again.silent && !holds(Rule::SilenceIsNoProof))
        || (again.anew && !holds(Rule::AnewIsNotGone))
}

/// Whether the pod that was made again went before it ran, and nothing of its side is at work.
fn went(again: &Host<TargetMachine>) -> bool {
    let has_ended = again.dead || again.journal.is_empty() || again.word.closed;
    again.pod == PodSeen::Gone && has_ended && again.word.outcome != Some(TargetOutcome::Resumed)
}

/// Whether somebody has deleted the pod, and meant it: it is not made once more.
pub fn is_unwanted(world: &World) -> bool {
    world.unwanted && world.again.as_ref().is_some_and(went)
}

/// Somebody is asked, and answers.
fn ask(world: &World, moves: &mut Moves) {
    if !is_asked_for(world) {
        return;
    }
    if !world.asked {
        // Both are noted with one write, which fails if the Migration is deleted in between.
        let asked = world.with(|next| {
            next.asked = true;
            next.unasked = world.deleting;
        });
        return moves.sure("somebody is asked", asked);
    }
    let wanted = world.with(|next| {
        next.wanted = true;
        next.risked = true;
    });
    moves.may("somebody wants the pod restored once more", wanted);
    let answered = world.with(|next| {
        next.answered = true;
        next.meant = true;
    });
    moves.may("somebody gives the memory up", answered.filter(|_| !world.answered));
}

/// Whether it is for somebody to say what comes next. The pod of the model has volumes. Its gate opens when it has
/// its record.
pub fn is_asked_for(world: &World) -> bool {
    let must = |host: &Host<TargetMachine>| {
        let left = is_gone(host) && host.record.is_some();
        must_be_asked_for(host.word, left, world.cold, true)
    };
    !world.wanted && !world.unwanted && world.again.as_ref().is_some_and(must)
}

/// Whether the memory is given up: somebody was asked and has said so, and it may be older than its volumes, or it was
/// wanted on them and the last try has failed.
pub fn is_given_up(world: &World) -> bool {
    let said = gives_up_memory(world.deleting, world.unasked) || world.answered;
    let failed = |host: &Host<TargetMachine>| has_failed(host.word, is_gone(host));
    let wanted_in_vain = world.risked && world.again.as_ref().is_some_and(failed);
    world.asked && said && (is_asked_for(world) || wanted_in_vain)
}

/// Whether a Migration that is deleted has finished: after a Commit only when the pod runs again, nobody has
/// its state any more, or the state is given up with it.
fn may_go(world: &World) -> bool {
    let over = may_remove_finalizer(
        world.recorded,
        world.s.word,
        world.trial.word,
        world.s.dead,
        world.trial.dead,
    );
    over && (is_finished(world) || is_given_up(world) || !holds(Rule::DeletedFinishesFirst))
}

/// The pod runs, where it was or again, or nobody wants it, or nobody has its state any more.
fn is_finished(world: &World) -> bool {
    let runs = |host: &Host<TargetMachine>| {
        host.word.outcome == Some(TargetOutcome::Resumed) && host.word.closed
    };
    let again = world.again.as_ref();
    let nowhere = world.s.dead && (world.trial.dead || world.recorded.resolution.is_some());
    world.recorded.decision != Some(Decision::Commit)
        || again.is_some_and(|host| runs(host) || (world.resumed && host.dead))
        || nowhere
        || is_unwanted(world)
}

/// Somebody starts a pod of the state that has arrived, though nobody has decided anything.
pub fn forge(world: &World, moves: &mut Moves) {
    if world.again.is_some() || !world.trial.stored || world.trial.dead {
        return;
    }
    let forged = world.with(|next| {
        let part = world.again_part(false);
        let mut host = Host::new(Tasks::Absent, TargetMachine::of(part), part);
        host.stored = true;
        next.again = Some(host);
    });
    moves.fault("somebody makes a pod of the state", |left| &mut left.forged, forged);
}

/// The pod is made again.
fn make(world: &World, moves: &mut Moves) {
    let seen = if world.s_object && holds(Rule::AgainOnlyAfterReleased) {
        PodSeen::Alive
    } else {
        PodSeen::Gone
    };
    let free = match &world.again {
        None => true,
        Some(host) => {
            let is_over = has_failed(host.word, is_gone(host)) || went(host);
            is_over && world.former.is_none()
        }
    };
    let at_source = world.recorded.resolution.is_some();
    let node_gone = if at_source { world.s.dead } else { world.trial.dead };
    let allowed = may_make_again(world.recorded, world.s.word, world.s.dead, seen);
    let waits = is_asked_for(world) || is_given_up(world) || world.unwanted;
    if !free || node_gone || world.tries >= TRIES || !allowed || waits {
        return;
    }
    let made = world.with(|next| {
        let ran = |host: &Host<TargetMachine>| host.ran;
        next.dated = !world.cold && !world.wanted && world.again.as_ref().is_some_and(ran);
        next.wanted = false;
        // The former one stays in sight, in case that it lives against its word.
        let lives = |host: &Host<TargetMachine>| {
            let has_begun = !host.journal.is_empty();
            has_begun && !host.dead && (host.tasks != Tasks::Absent || !host.word.closed)
        };
        if let Some(former) = next.again.take().filter(lives) {
            next.former = Some(former);
        }
        let part = world.again_part(at_source);
        let mut host = Host::new(Tasks::Absent, TargetMachine::of(part), part);
        host.stored = if at_source { world.s.stored } else { world.trial.stored };
        host.durable = host.stored;
        next.again = Some(host);
        next.tries += 1;
    });
    moves.sure("the pod is made again", made);
}
