//! Everything that can happen next.

use super::super::search::Steps;
use super::faults::{faults, spend};
use super::host::{Which, feed, finish_verb, is_lost_with_its_shim, run_effect, start_holder};
use super::operators::operators;
use super::role::Role;
use super::world::{CONTAINERS, Fault, Inflight, Intent, Shim, Side, Tasks, World};
use crate::rules::{Rule, holds};
use crate::source::SourceEvent;
use crate::target::TargetEvent;
use crate::{
    Decision, Driver, NodeSeen, Read, RecordState, Recorded, SourceMachine, SourcePhase,
    TargetMachine, TargetPhase, TargetWord, Verb, Verdict, ends_leftovers, judge_node, judge_read,
    may_begin, wrapper_verdict,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    DoEffect(Side, Which),
    StartHolder(Side, Which),
    Begin(Side),
    FreezeNow,
    DumpBegins,
    /// One that nobody waits for any more undoes itself, freezer included.
    DumpEnds,
    /// What ran on when a dump died is frozen again.
    FreezeAgain,
    DumpFails,
    SendEverything,
    ReportReady(Side, Which),
    Deadline(Side, Which),
    ReadMigration(Side, Which),
    ReadPeer,
    ReadThatPeerHasLeft,
    ReadThatPodIsGone,
    ReadThatPodGoes,
    /// T's node forgets its last word before S has heard it: S's node has left the cluster (or that rule is broken).
    ForgetWord,
    NoticeTasksLost(Side),
    /// A source may notice it late, or never, once it has voted.
    LearnTasksLost,
    NoticeRestoreDied,
    LinkIsBack,
    NoticeLapse,
    /// T's Lease is renewed after all, and the dead-man forgets (only where that rule is broken).
    ForgetLapse,
    AskRelease,
    KubeletAsks(Side, Verb),
    VerbEnds(Side),
    Reap(Side),
    /// containerd has the containers of a dead shim deleted.
    CleanUp(Side),
    /// That is cut off, or fails.
    Forget(Side),
    OperatorReads(Intent),
    OperatorGivesUp,
    OperatorWrites(Intent),
    OperatorFindsSilence,
    /// T's node, which is gone from the cluster, leaves our list.
    NodeLeaves,
    RemoveFinalizer,
    RestoreVersion,
    Fault(Fault, Side),
    Forge(Side, Decision),
}

impl Action {
    /// See [`super::super::search::Space::is_sure`]. Kubelet need not ask for the end of a container whose
    /// creation failed.
    pub fn is_sure(self) -> bool {
        !matches!(
            self,
            Action::Fault(..)
                | Action::Forge(..)
                | Action::StartHolder(_, Which::Second)
                | Action::Deadline(..)
                | Action::OperatorGivesUp
                | Action::LearnTasksLost
                | Action::Forget(_)
                | Action::KubeletAsks(_, Verb::Delete)
        )
    }
}

/// All successors of `world`.
pub fn successors(world: &World, out: &mut Steps<World>) {
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

pub(super) fn push(out: &mut Steps<World>, action: Action, next: Option<World>) {
    if let Some(next) = next {
        out.push((action, Ok(next)));
    }
}

/// What both sides' holders do.
fn holder<R: Role>(world: &World, out: &mut Steps<World>) {
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
        if !host.env.cut {
            let read = Action::ReadMigration(R::SIDE, which);
            push(out, read, feed::<R>(world, which, R::read(quorum_read(world))));
        }
        let deadline = Action::Deadline(R::SIDE, which);
        push(out, deadline, feed::<R>(world, which, R::deadline()));
    }
    let first_idle = host.holder.as_ref().is_some_and(|driver| driver.is_idle());
    let empty = host.journal.is_empty() && first_idle;
    let on_time = world.api.exists && world.api.recorded.decision.is_none();
    if empty && on_time && (R::SIDE == Side::T || may_begin(host.env.record, false)) {
        push(out, Action::Begin(R::SIDE), feed::<R>(world, Which::First, R::begin()));
    }
    let orphaned = is_lost_with_its_shim(world, R::SIDE);
    let ended = (host.env.tasks == Tasks::Absent || orphaned) && !host.journal.is_empty();
    if ended && holds(Rule::TasksAreWatched) {
        let driver = host.holder.as_ref();
        let before_vote = driver.is_some_and(|driver| driver.machine().is_before_vote());
        // A source's before the vote at the latest as its freeze or its dump fails.
        let action = match R::SIDE == Side::T || before_vote {
            true => Action::NoticeTasksLost(R::SIDE),
            false => Action::LearnTasksLost,
        };
        push(out, action, feed::<R>(world, Which::First, R::tasks_lost()));
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

fn source_events(world: &World, out: &mut Steps<World>) {
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
            dump(world, out);
            if world.sent {
                let event = SourceEvent::AllFrozenAndSent;
                let next = feed::<SourceMachine>(world, which, event);
                push(out, Action::ReportReady(Side::S, which), next);
            }
        }
    }
    if world.torn && is_freezing(world) {
        push(out, Action::DumpFails, first(SourceEvent::LocalFailure));
    }
    push(out, Action::FreezeNow, first(SourceEvent::FreezeNow));
    push(out, Action::AskRelease, first(SourceEvent::ReleaseRequested));
    push(out, Action::ReadPeer, read_node(world, NodeSeen::Tells(world.t.word)));
    let settled = !world.api.exists || (world.s.env.deleted && world.api.recorded.resumed_at);
    let heard = !settled || world.s.word.outcome.is_some();
    let waits = !world.s.env.deleted && holds(Rule::WordsStayUntilHeard);
    // What everybody has heard may be forgotten, and makes no difference.
    if world.t.word.closed && world.t.word.begun && !heard && !waits {
        let mut next = world.clone();
        next.t.word = TargetWord { closed: true, ..TargetWord::default() };
        out.push((Action::ForgetWord, Ok(next)));
    }
    if world.s.env.deleted {
        push(out, Action::ReadThatPodIsGone, first(SourceEvent::PodGone));
    }
    if world.api.s_deleting {
        push(out, Action::ReadThatPodGoes, first(SourceEvent::PodGoes));
    }
    if world.s.env.dumping && !is_freezing(world) {
        let mut next = world.clone();
        let env = &mut next.s.env;
        env.dumping = false;
        if env.tasks == Tasks::Running {
            env.tasks = Tasks::Frozen;
        }
        out.push((Action::DumpEnds, Ok(next)));
    }
    if world.t.env.left {
        push(out, Action::ReadThatPeerHasLeft, read_node(world, judge_node(None, false)));
    }
}

/// S's holder has read this of T's node.
pub(super) fn read_node(world: &World, seen: NodeSeen<TargetWord>) -> Option<World> {
    let event = match seen {
        NodeSeen::Tells(word) => SourceEvent::PeerRead(word),
        NodeSeen::Anew => return None,
        NodeSeen::Left => SourceEvent::PeerNodeGone,
    };
    feed::<SourceMachine>(world, Which::First, event)
}

fn is_freezing(world: &World) -> bool {
    let freezing =
        |driver: &Driver<SourceMachine>| driver.machine().phase() == SourcePhase::Freezing;
    world.s.holder.as_ref().is_some_and(freezing) || world.s.second.as_ref().is_some_and(freezing)
}

/// A holder that freezes has the pod dumped and sent.
fn dump(world: &World, out: &mut Steps<World>) {
    let env = &world.s.env;
    let mut happens = |action: Action, change: &dyn Fn(&mut World)| {
        let mut next = world.clone();
        change(&mut next);
        out.push((action, Ok(next)));
    };
    if world.torn && env.tasks == Tasks::Running && !env.dying {
        happens(Action::FreezeAgain, &|next| next.s.env.tasks = Tasks::Frozen);
    }
    // The target acknowledges, so it has begun.
    let acknowledged = !world.t.journal.is_empty() && world.t.holder.is_some();
    if env.tasks != Tasks::Frozen || world.sent || !acknowledged {
        return;
    }
    if env.dumping || (world.torn && !holds(Rule::DumpIsWhole)) {
        happens(Action::SendEverything, &|next| {
            next.s.env.dumping = false;
            next.sent = true;
        });
    } else if !world.torn {
        happens(Action::DumpBegins, &|next| next.s.env.dumping = true);
    }
}

fn target_events(world: &World, out: &mut Steps<World>) {
    if world.t.env.dead {
        return;
    }
    let env = &world.t.env;
    if env.cut {
        let mut next = world.clone();
        next.t.env.cut = false;
        next.t.env.heard |= env.restored == CONTAINERS;
        out.push((Action::LinkIsBack, Ok(next)));
    }
    if env.died && holds(Rule::RestoresAreWatched) && world.t_phase() == TargetPhase::Begun {
        let next = feed::<TargetMachine>(world, Which::First, TargetEvent::LocalFailure);
        push(out, Action::NoticeRestoreDied, next);
    }
    for which in [Which::First, Which::Second] {
        let in_contact = env.heard || !holds(Rule::VotesOnlyInContact);
        if env.restored == CONTAINERS && in_contact {
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

fn kubelet(world: &World, side: Side, out: &mut Steps<World>) {
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
    if env.is_orphan() && env.shim == Shim::Died {
        lose_shim(world, side, out);
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
    let none = env.tasks == Tasks::Absent || env.shim == Shim::Forgotten;
    if !world.pod_deleting(side) && seen && (none || restoring) {
        ask(world, side, Verb::Create, Action::KubeletAsks(side, Verb::Create), out);
    }
    if world.pod_deleting(side) && env.tasks != Tasks::Absent {
        ask(world, side, Verb::Kill, Action::KubeletAsks(side, Verb::Kill), out);
    }
    if env.residue {
        ask(world, side, Verb::Delete, Action::KubeletAsks(side, Verb::Delete), out);
    }
}

/// containerd has noticed that a shim died. Only after that kubelet asks for the containers anew.
fn lose_shim(world: &World, side: Side, out: &mut Steps<World>) {
    let mut next = world.clone();
    let env = next.env_mut(side);
    match wrapper_verdict(env.record, Verb::Delete, false) {
        Verdict::Refuse => env.shim = Shim::Forgotten,
        _ => env.end_orphans(),
    }
    out.push((Action::CleanUp(side), Ok(next)));
    // Of a pod without a record that is containerd's own business.
    if world.env(side).record.is_some() {
        let mut next = world.clone();
        next.env_mut(side).shim = Shim::Forgotten;
        out.push((Action::Forget(side), Ok(next)));
    }
}

/// kubelet asks for a verb and the wrapper judges; the verb's end is a later step.
pub(super) fn ask(world: &World, side: Side, verb: Verb, action: Action, out: &mut Steps<World>) {
    let env = world.env(side);
    let inflight = match (wrapper_verdict(env.record, verb, env.tickets > 0), verb) {
        (Verdict::Pass, Verb::Create) => Inflight::Create,
        (Verdict::Pass, Verb::Delete) => Inflight::Delete,
        (Verdict::Pass, _) => Inflight::Kill,
        (Verdict::Restore, _) => Inflight::Restore,
        (Verdict::KillFrozen, _) => Inflight::KillFrozen,
        // Only in the cold order, which has a world of its own.
        (Verdict::Refuse | Verdict::SkipStart | Verdict::Fill, _) => return,
    };
    let mut next = world.clone();
    let env = next.env_mut(side);
    env.inflight = Some(inflight);
    if env.record.is_some_and(|record| ends_leftovers(record, verb)) {
        env.end_orphans();
    }
    if inflight == Inflight::Restore && holds(Rule::TicketIsConsumed) {
        env.tickets -= 1;
    }
    if let Action::Fault(fault, _) = action {
        spend(&mut next, fault);
    }
    out.push((action, Ok(next)));
}
