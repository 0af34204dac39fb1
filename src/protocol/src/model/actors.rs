//! Everything that can happen next.

use super::faults::{faults, spend};
use super::host::{Broken, Which, feed, finish_verb, run_effect, start_holder};
use super::world::{Fault, Inflight, Intent, Role, Side, Tasks, World};
use crate::rules::{Rule, holds};
use crate::source::SourceEvent;
use crate::target::TargetEvent;
use crate::{
    Decision, DecisionInput, PodSeen, Read, RecordState, Recorded, Resolution, SourceMachine,
    SourcePhase, TargetMachine, TargetProof, Verb, Verdict, decide, judge_read, may_begin,
    may_record_resumed, may_remove_finalizer, may_resolve_source_resumes, may_restore_version,
    wrapper_verdict,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    DoEffect(Side, Which),
    StartHolder(Side, Which),
    Begin(Side),
    FreezeNow,
    SendEverything,
    ReportReady(Side, Which),
    Deadline(Side, Which),
    ReadMigration(Side, Which),
    ReadPeer,
    PeerNodeGone,
    NoticeTasksLost(Side),
    NoticeLapse,
    /// T's Lease is renewed after all, and the dead-man forgets (only where that rule is broken).
    ForgetLapse,
    AskRelease,
    KubeletAsks(Side, Verb),
    VerbEnds(Side),
    Reap(Side),
    OperatorReads(Intent),
    OperatorWrites(Intent),
    OperatorFindsSilence,
    RemoveFinalizer,
    RestoreVersion,
    Fault(Fault, Side),
    Forge(Side, Decision),
}

impl Action {
    /// Happens without anything going wrong: the continuations that must lead to an end.
    pub fn is_benign(self) -> bool {
        !matches!(
            self,
            Action::Fault(..) | Action::Forge(..) | Action::StartHolder(_, Which::Second)
        )
    }
}

pub(super) type Next = (Action, Result<World, Broken>);

/// All successors of `world`.
pub fn successors(world: &World, out: &mut Vec<Next>) {
    holder::<SourceMachine>(world, out);
    holder::<TargetMachine>(world, out);
    source_events(world, out);
    target_events(world, out);
    for side in [Side::S, Side::T] {
        kubelet(world, side, out);
    }
    operators(world, out);
    if world.total > 0 {
        faults(world, out);
    }
}

pub(super) fn push(out: &mut Vec<Next>, action: Action, next: Option<World>) {
    if let Some(next) = next {
        out.push((action, Ok(next)));
    }
}

/// What both sides' holders do.
fn holder<R: Role>(world: &World, out: &mut Vec<Next>) {
    let host = R::host(world);
    if host.env.dead {
        return;
    }
    for which in [Which::First, Which::Second] {
        if let Some(result) = run_effect::<R>(world, which) {
            out.push((Action::DoEffect(R::SIDE, which), result));
        }
        push(out, Action::StartHolder(R::SIDE, which), start_holder::<R>(world, which));
        let driver = match which {
            Which::First => &host.holder,
            Which::Second => &host.second,
        };
        let Some(driver) = driver.as_ref().filter(|driver| driver.is_idle()) else { continue };
        if driver.machine().is_idle_phase() {
            continue;
        }
        let read = Action::ReadMigration(R::SIDE, which);
        push(out, read, feed::<R>(world, which, R::read(quorum_read(world))));
        let deadline = Action::Deadline(R::SIDE, which);
        push(out, deadline, feed::<R>(world, which, R::deadline()));
    }
    let first_idle = host.holder.as_ref().is_some_and(|driver| driver.is_idle());
    let empty = host.journal.is_empty() && first_idle;
    let on_time = world.api.exists && world.api.recorded.decision.is_none();
    if empty && on_time && (R::SIDE == Side::T || may_begin(host.env.record, false)) {
        push(out, Action::Begin(R::SIDE), feed::<R>(world, Which::First, R::begin()));
    }
    if host.env.tasks == Tasks::Absent && !host.journal.is_empty() {
        let event = R::tasks_lost();
        push(out, Action::NoticeTasksLost(R::SIDE), feed::<R>(world, Which::First, event));
    }
}

fn quorum_read(world: &World) -> Read {
    if world.api.exists {
        judge_read("uid-a", Some(("uid-a", world.api.recorded)))
    } else if world.api.imposter {
        let commit = Recorded { decision: Some(Decision::Commit), ..Recorded::default() };
        judge_read("uid-a", Some(("uid-b", commit)))
    } else {
        judge_read("uid-a", None)
    }
}

fn source_events(world: &World, out: &mut Vec<Next>) {
    if world.s.env.dead {
        return;
    }
    let first = |event| feed::<SourceMachine>(world, Which::First, event);
    for which in [Which::First, Which::Second] {
        let driver = match which {
            Which::First => &world.s.holder,
            Which::Second => &world.s.second,
        };
        let Some(driver) = driver.as_ref().filter(|driver| driver.is_idle()) else { continue };
        if driver.machine().phase() == SourcePhase::Freezing {
            // The target acknowledges, so it has begun.
            let acknowledged = !world.t.journal.is_empty() && world.t.holder.is_some();
            if world.s.env.tasks == Tasks::Frozen && !world.sent && acknowledged {
                let mut next = world.clone();
                next.sent = true;
                out.push((Action::SendEverything, Ok(next)));
            }
            if world.sent {
                let event = SourceEvent::AllFrozenAndSent;
                let next = feed::<SourceMachine>(world, which, event);
                push(out, Action::ReportReady(Side::S, which), next);
            }
        }
    }
    push(out, Action::FreezeNow, first(SourceEvent::FreezeNow));
    push(out, Action::AskRelease, first(SourceEvent::ReleaseRequested));
    push(out, Action::ReadPeer, first(SourceEvent::PeerRead(world.t.word)));
    if world.t.env.dead {
        push(out, Action::PeerNodeGone, first(SourceEvent::PeerNodeGone));
    }
}

fn target_events(world: &World, out: &mut Vec<Next>) {
    if world.t.env.dead {
        return;
    }
    let env = &world.t.env;
    for which in [Which::First, Which::Second] {
        if env.restored == super::world::CONTAINERS {
            let next = feed::<TargetMachine>(world, which, TargetEvent::AllRestoredAndFrozen);
            push(out, Action::ReportReady(Side::T, which), next);
        }
    }
    if env.lapsed {
        let next = feed::<TargetMachine>(world, Which::First, TargetEvent::Lapsed);
        push(out, Action::NoticeLapse, next);
        if !holds(Rule::LapseIsSticky) {
            let mut next = world.clone();
            next.t.env.lapsed = false;
            out.push((Action::ForgetLapse, Ok(next)));
        }
    }
}

fn kubelet(world: &World, side: Side, out: &mut Vec<Next>) {
    let env = world.env(side);
    if env.dead {
        return;
    }
    if env.dying {
        let mut next = world.clone();
        let env = next.env_mut(side);
        env.dying = false;
        env.tasks = Tasks::Absent;
        env.whole = 0;
        out.push((Action::Reap(side), Ok(next)));
    }
    if env.inflight.is_some() {
        if let Some(result) = finish_verb(world, side) {
            out.push((Action::VerbEnds(side), result));
        }
        return;
    }
    // The scheduling gate keeps kubelet from seeing T before its record is there.
    let seen = side == Side::S || env.record.is_some() || !holds(Rule::GateUntilRecord);
    let restoring = side == Side::T && env.record == Some(RecordState::Restore) && env.tickets > 0;
    if !world.pod_deleting(side) && seen && (env.tasks == Tasks::Absent || restoring) {
        ask(world, side, Verb::Create, Action::KubeletAsks(side, Verb::Create), out);
    }
    if world.pod_deleting(side) && env.tasks != Tasks::Absent {
        ask(world, side, Verb::Kill, Action::KubeletAsks(side, Verb::Kill), out);
    }
}

/// kubelet asks for a verb and the wrapper judges; the verb's end is a later step.
pub(super) fn ask(world: &World, side: Side, verb: Verb, action: Action, out: &mut Vec<Next>) {
    let env = world.env(side);
    let inflight = match (wrapper_verdict(env.record, verb, env.tickets > 0), verb) {
        (Verdict::Pass, Verb::Create) => Inflight::Create,
        (Verdict::Pass, _) => Inflight::Kill,
        (Verdict::Restore, _) => Inflight::Restore,
        (Verdict::KillFrozen, _) => Inflight::KillFrozen,
        // Only in the cold order, which has a world of its own.
        (Verdict::Refuse | Verdict::SkipStart | Verdict::Fill, _) => return,
    };
    let mut next = world.clone();
    let env = next.env_mut(side);
    env.inflight = Some(inflight);
    if inflight == Inflight::Restore && holds(Rule::TicketIsConsumed) {
        env.tickets -= 1;
    }
    if let Action::Fault(fault, _) = action {
        spend(&mut next, fault);
    }
    out.push((action, Ok(next)));
}

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

fn operators(world: &World, out: &mut Vec<Next>) {
    let recorded = world.api.recorded;
    if world.api.exists {
        if world.ops.contains(&None) {
            let proof = if world.proof { TargetProof::NodeDead } else { TargetProof::None };
            let target = world.t.word;
            let wishes = [
                (decide(&observe(world, false)) == Some(Decision::Commit), Intent::Commit),
                (decide(&observe(world, true)) == Some(Decision::Abort), Intent::Abort),
                // The other operator need not have found what this one has.
                (may_record_resumed(recorded, target, false), Intent::Resumed),
                (may_resolve_source_resumes(recorded, target, proof), Intent::Resolve),
            ];
            for (wish, intent) in wishes {
                if wish && !world.ops.contains(&Some(intent)) {
                    let mut next = world.clone();
                    next.ops[0] = Some(intent);
                    next.ops.sort();
                    out.push((
                        Action::OperatorReads(intent),
                        lawful_wish(world, intent).map(|()| next),
                    ));
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
            world.s.env.dead,
            world.t.env.dead,
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
}

/// Whether T's signature may have been found unchanged for T₂.
fn silent_for_long(world: &World) -> bool {
    let env = &world.t.env;
    if holds(Rule::ProofFollowsCommit) {
        world.api.recorded.is_open_commit() && (env.dead || env.lapsed)
    } else {
        // Before its vote a target may be silent for as long as it likes.
        env.dead || env.lapsed || !env.armed
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
