//! Everything that can happen next.

use super::host::{Broken, Which, fail_effect, feed, finish_verb, run_effect, start_holder};
use super::world::{Fault, Inflight, Intent, Role, Side, Tasks, World};
use crate::rules::{Rule, holds};
use crate::source::SourceEvent;
use crate::target::TargetEvent;
use crate::{
    Decision, DecisionInput, PodSeen, Read, RecordState, Recorded, Resolution, SourceMachine,
    SourcePhase, TargetMachine, TargetPhase, TargetProof, Verb, Verdict, decide, judge_read,
    may_begin, may_record_resumed, may_remove_finalizer, may_resolve_source_resumes,
    may_restore_version, wrapper_verdict,
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

type Next = (Action, Result<World, Broken>);

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

fn push(out: &mut Vec<Next>, action: Action, next: Option<World>) {
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
            if world.sent || !holds(Rule::VotesOnlyWhenVerified) {
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
fn ask(world: &World, side: Side, verb: Verb, action: Action, out: &mut Vec<Next>) {
    let mut next = world.clone();
    let env = next.env_mut(side);
    let ticket = env.tickets > 0;
    env.inflight = match (wrapper_verdict(env.record, verb, ticket), verb) {
        (Verdict::Pass, Verb::Create) => Some(Inflight::Create),
        (Verdict::Pass, _) => Some(Inflight::Kill),
        (Verdict::Restore, _) => {
            if holds(Rule::TicketIsConsumed) {
                env.tickets -= 1;
            }
            Some(Inflight::Restore)
        }
        (Verdict::KillFrozen, _) => Some(Inflight::KillFrozen),
        (Verdict::Refuse | Verdict::SkipStart, _) => return,
    };
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
            let gone = world.t.env.dead || world.t.env.lapsed;
            let proof = if gone { TargetProof::NodeDead } else { TargetProof::None };
            let target = world.t.word;
            let wishes = [
                (decide(&observe(world, false)) == Some(Decision::Commit), Intent::Commit),
                (decide(&observe(world, true)) == Some(Decision::Abort), Intent::Abort),
                (may_record_resumed(recorded, target, gone && world.t.env.dead), Intent::Resumed),
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
fn bump(world: &mut World) {
    if holds(Rule::ConditionalWrites) {
        world.ops = [None; 2];
    }
}

fn spend(world: &mut World, fault: Fault) {
    world.left[fault as usize] -= 1;
    world.total -= 1;
    if world.total == 0 {
        // What is left by kind no longer matters.
        world.left = [0; super::world::FAULTS];
    }
}

fn faults(world: &World, out: &mut Vec<Next>) {
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
            happens(Fault::Die, &|next| {
                lose_holder(next, side);
                let env = next.env_mut(side);
                env.power_cut();
                env.dead = true;
            });
        }
        if has(Fault::DeletePod) && !world.pod_deleting(side) {
            happens(Fault::DeletePod, &|next| match side {
                Side::S => next.api.s_deleting = true,
                Side::T => next.api.t_deleting = true,
            });
        }
        if has(Fault::TasksDie) && world.env(side).tasks != Tasks::Absent {
            happens(Fault::TasksDie, &|next| {
                let env = next.env_mut(side);
                env.tasks = Tasks::Absent;
                env.whole = 0;
                env.dying = false;
            });
        }
        let env = world.env(side);
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
    if has(Fault::Strip) && world.api.exists {
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
    let s_voted = world.s.journal.contains(&crate::SourceEntry::Voted);
    let t_begun = world.t_phase() == TargetPhase::Begun;
    let undecided = world.api.exists && world.api.recorded.decision.is_none();
    if has(Fault::ForgedCommit) && s_voted && t_begun && undecided {
        happens(Fault::ForgedCommit, Side::T, &|next| {
            next.api.recorded.decision = Some(Decision::Commit);
            next.forged = true;
            bump(next);
        });
    }
    let env = &world.t.env;
    if has(Fault::Lapse) && env.armed && !env.lapsed && !env.dead {
        happens(Fault::Lapse, Side::T, &|next| {
            let env = &mut next.t.env;
            env.lapsed = true;
            if holds(Rule::DeadmanFreezes) {
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

/// The holder process is gone. One without a journal is merely the agent waiting for a call.
fn lose_holder(world: &mut World, side: Side) {
    match side {
        Side::S => {
            world.s.second = None;
            world.s.holder = world
                .s
                .journal
                .is_empty()
                .then(|| crate::Driver::new(SourceMachine::new(), vec![]));
        }
        Side::T => {
            world.t.second = None;
            world.t.holder = world
                .t
                .journal
                .is_empty()
                .then(|| crate::Driver::new(TargetMachine::new(), vec![]));
        }
    }
}

fn forged_hints(world: &World, out: &mut Vec<Next>) {
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

fn late_begins(world: &World, out: &mut Vec<Next>) {
    fn late<R: Role>(world: &World, out: &mut Vec<Next>) {
        let host = R::host(world);
        if host.journal.is_empty() && !host.env.dead {
            if let Some(mut next) = feed::<R>(world, Which::First, R::begin()) {
                spend(&mut next, Fault::LateBegin);
                out.push((Action::Fault(Fault::LateBegin, R::SIDE), Ok(next)));
            }
        }
    }
    let late_now = !world.api.exists || world.api.recorded.decision.is_some();
    if late_now {
        late::<SourceMachine>(world, out);
        late::<TargetMachine>(world, out);
    }
}
