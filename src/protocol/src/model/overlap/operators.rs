//! The operators: two equals, either of which may be the stale leader.

use super::super::search::{Broken, Steps};
use super::actors::Action;
use super::world::{Intent, World};
use crate::rules::{Rule, holds};
use crate::{
    Decision, DecisionInput, PodSeen, Resolution, TargetProof, decide, may_leave,
    may_record_resumed, may_remove_finalizer, may_resolve_source_resumes, may_restore_version,
};

fn observe(world: &World, give_up: bool) -> DecisionInput {
    let cached = !holds(Rule::UncachedReads);
    let pod = |deleting: bool| if deleting && !cached { PodSeen::Deleting } else { PodSeen::Alive };
    DecisionInput {
        recorded: world.api.recorded,
        migration_deleting: world.api.deleting && !cached,
        source: world.s.word,
        target: world.t.word,
        source_pod: pod(world.api.s_deleting),
        target_pod: pod(world.api.t_deleting),
        claim_held: world.api.claim,
        source_node_dead: world.s.env.dead,
        target_node_dead: world.t.env.dead,
        give_up,
    }
}

pub(super) fn operators(world: &World, out: &mut Steps<World>) {
    let recorded = world.api.recorded;
    if world.api.exists {
        if world.ops.contains(&None) {
            let proof = if world.proof { TargetProof::NodeDead } else { TargetProof::None };
            let target = world.t.word;
            let own = decide(&observe(world, false));
            let forced = decide(&observe(world, true));
            let abort = match own {
                Some(Decision::Abort) => Action::OperatorReads(Intent::Abort),
                _ => Action::OperatorGivesUp,
            };
            let reads = Action::OperatorReads;
            let resumed = may_record_resumed(recorded, target, false);
            let resolve = may_resolve_source_resumes(recorded, target, proof);
            let wishes = [
                (own == Some(Decision::Commit), Intent::Commit, reads(Intent::Commit)),
                (forced == Some(Decision::Abort), Intent::Abort, abort),
                // The other operator need not have found what this one has.
                (resumed, Intent::Resumed, reads(Intent::Resumed)),
                (resolve, Intent::Resolve, reads(Intent::Resolve)),
            ];
            for (wish, intent, action) in wishes {
                if wish && !world.ops.contains(&Some(intent)) {
                    let mut next = world.clone();
                    next.ops[0] = Some(intent);
                    next.ops.sort();
                    out.push((action, lawful_wish(world, intent).map(|()| next)));
                }
            }
        }
        for slot in 0..2 {
            if let Some(intent) = world.ops[slot] {
                out.push((Action::OperatorWrites(intent), write(world, slot, intent)));
            }
        }
        if !world.proof && silent_for_long(world) {
            let mut next = world.clone();
            next.proof = true;
            out.push((Action::OperatorFindsSilence, Ok(next)));
        }
        let done = may_remove_finalizer(
            recorded,
            world.s.word,
            world.t.word,
            world.s.env.is_gone(),
            world.t.env.is_gone(),
        );
        if done {
            let mut next = world.clone();
            next.api.exists = false;
            next.ops = [None; 2];
            out.push((Action::RemoveFinalizer, Ok(next)));
        }
        let (s_dead, t_dead) = (world.s.env.dead, world.t.env.dead);
        if !world.replica && may_restore_version(recorded, world.s.word, s_dead, t_dead) {
            let mut next = world.clone();
            next.replica = true;
            out.push((Action::RestoreVersion, Ok(next)));
        }
    }
    if world.t.env.is_gone() && !world.t.env.left && no_commit_waits(world) {
        let mut next = world.clone();
        next.t.env.left = true;
        out.push((Action::NodeLeaves, Ok(next)));
    }
}

/// Whether T's node may leave our list. It has been gone for long then: longer than it takes to write a decision.
fn no_commit_waits(world: &World) -> bool {
    let is_being_written = world.ops.contains(&Some(Intent::Commit));
    !world.api.exists || (may_leave(world.api.recorded) && !is_being_written)
}

/// Whether T's signature may have been found unchanged for T₂. Where there is no Lease there is none, and one that
/// was taken off proves nothing.
fn silent_for_long(world: &World) -> bool {
    let env = &world.t.env;
    if !holds(Rule::ProofFollowsCommit) {
        // Before its vote a target may be silent for as long as it likes.
        return env.dead || env.lapsed || !env.armed;
    }
    if !world.api.recorded.is_open_commit() || env.left {
        return false;
    }
    let target = world.t_machine();
    match target.is_closed() {
        true => !target.signs_off(),
        false => env.dead || env.lapsed,
    }
}

/// What no operator may make up its mind to, judged by the truth at the moment of its read.
fn lawful_wish(world: &World, intent: Intent) -> Result<(), Broken> {
    if intent != Intent::Commit {
        return Ok(());
    }
    let s_voted = world.s.journal.contains(&crate::SourceEntry::Voted);
    let t_voted = world.t.journal.contains(&crate::TargetEntry::Voted);
    if world.api.deleting || world.api.t_deleting {
        return Err("Commit though the Migration or T is being deleted");
    }
    if world.api.s_deleting && !world.s.env.dead {
        return Err("Commit though S is being deleted");
    }
    if !world.api.claim && !world.s.env.dead {
        return Err("Commit though S is claimed by another");
    }
    if !(s_voted && t_voted) {
        return Err("Commit without both votes");
    }
    if !world.t.env.heard {
        return Err("Commit though the target has never been able to learn it");
    }
    Ok(())
}

fn write(world: &World, slot: usize, intent: Intent) -> Result<World, Broken> {
    let mut next = world.clone();
    next.ops[slot] = None;
    next.ops.sort();
    let recorded = &mut next.api.recorded;
    let before = *recorded;
    match intent {
        Intent::Commit => recorded.decision = Some(Decision::Commit),
        Intent::Abort => recorded.decision = Some(Decision::Abort),
        Intent::Resumed => recorded.resumed_at = true,
        Intent::Resolve => recorded.resolution = Some(Resolution::SourceResumes),
    }
    if before.decision.is_some() && before.decision != recorded.decision {
        return Err("the decision was changed");
    }
    bump(&mut next);
    Ok(next)
}

/// The object has another resourceVersion: writes on an older read fail.
pub(super) fn bump(world: &mut World) {
    if holds(Rule::ConditionalWrites) {
        world.ops = [None; 2];
    }
}
