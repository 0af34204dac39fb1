//! After `resumedAt`: the target becomes Ready, gets labels and the owner's claim, and the source
//! goes.
//!
//! The order is such that the owner never counts one pod too few: the target takes the claim over
//! while the source, frozen, still passes for a member; only then are the source's tasks ended,
//! and only when none of its containers runs any more is it deleted (a pod without running
//! containers gets no preStop hook, which by the shared address would reach the moved application).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{Network, Step, names};
use transship_protocol::{Decision, PodSeen, TargetOutcome, may_release_source};

use super::handover::{Partition, is_claimed_by, labels_to_hand_over, partition, selects};
use super::owner::{Controller, Kind};
use super::plan::{Action, LOOK_AGAIN, Leaves, Plan, reached};
use super::state::{
    Observed, Owner, Role, Side, Stage, any_container_runs, ready_bound, ready_since,
};
use super::status::Draft;
use super::voting::{describe_waiting, hints};
use crate::sequential_pod::controller;

/// How long, beyond readiness, Services may take to list the target before the hand-over goes on.
pub const ENDPOINTS_LIMIT: Duration = Duration::from_secs(5);

/// What one part of the hand-over wants: things to do, or to wait.
struct Next {
    step: Step,
    actions: Vec<Action>,
    message: String,
    again: Duration,
}

/// From `resumedAt` to the end.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed).step(Step::Resumed);
    let mut actions = hints(observed, |role, read| {
        role == Role::Target || (role == Role::Source && read != Some(Decision::Commit))
    });
    let next = goes_with_its_owner(observed)
        .or_else(|| becomes_available(observed, now))
        .or_else(|| confirms(observed))
        .or_else(|| takes_over(observed, now))
        .or_else(|| source_goes(observed));
    let Some(next) = next else { return succeeded(observed, draft, actions) };
    draft.step(next.step);
    describe_waiting(observed, &mut draft, &next.message);
    actions.extend(next.actions);
    Plan { status: draft.done(), record: None, actions, again: Some(next.again) }
}

/// The target pod, while it is there to stay.
fn living_target(observed: &Observed) -> Option<&Pod> {
    observed.target_pod.as_ref().filter(|_| observed.target_seen() == PodSeen::Alive)
}

/// The target may take traffic, and does; `None` when it is available, or late.
fn becomes_available(observed: &Observed, now: Timestamp) -> Option<Next> {
    let target = living_target(observed)?;
    let message = format!("the pod runs on {}; it is awaited Ready", observed.node(Role::Target));
    let resumed = |actions: Vec<Action>, again: Duration| {
        Some(Next { step: Step::Resumed, actions, message: message.clone(), again })
    };
    let Some(marked) = marked_at(target) else {
        // From now on the source's sandbox can go, and must not free the address with it.
        let actions = move_leases(observed).into_iter().chain([Action::MarkResumed]).collect();
        return resumed(actions, Duration::from_secs(1));
    };
    if reached(observed, Step::HandingOver) {
        return None;
    }
    let left = until_available(target, observed.owner.controller(), marked, now)?;
    resumed(vec![], left)
}

/// What to do until the pod is available, and when to look again; `None` when it is, or late.
pub(super) fn awaits_ready(observed: &Observed, now: Timestamp) -> Option<(Vec<Action>, Duration)> {
    becomes_available(observed, now).map(|next| (next.actions, next.again))
}

/// Who deleted the owner meant its pods, and the target has no claim yet by which it would go with
/// the others. It goes before the source does: only the source's claim tells of an owner that is gone.
fn goes_with_its_owner(observed: &Observed) -> Option<Next> {
    living_target(observed)?;
    // In the sequential order the pod was made again with its owner's claim, or is to live on without it.
    let gone = observed.owner == Owner::Gone && !observed.is_sequential();
    (gone && is_confirmed(observed)).then(|| Next {
        step: Step::HandingOver,
        actions: vec![Action::DeleteTarget],
        message: "the pod's owner was deleted, and the target pod goes as well".into(),
        again: Duration::ZERO,
    })
}

/// The target's holder has read `resumedAt` and said so, or its node has been removed from the
/// cluster. What is put together of a Migration that has vanished says `resumedAt` only where that is settled.
fn is_confirmed(observed: &Observed) -> bool {
    let resumed = observed.target_word().outcome == Some(TargetOutcome::Resumed);
    may_release_source(observed.recorded())
        && (resumed || observed.target_node_gone || observed.vanished)
}

/// Nothing of the source's place is taken away before the target is confirmed.
fn confirms(observed: &Observed) -> Option<Next> {
    if is_confirmed(observed) {
        return None;
    }
    Some(Next {
        step: Step::Resumed,
        actions: vec![],
        message: format!("{} is to confirm that the pod runs", observed.node(Role::Target)),
        again: Duration::from_millis(500),
    })
}

/// Labels and the owner's claim; `None` when the target has them, or nobody is there to get them.
fn takes_over(observed: &Observed, now: Timestamp) -> Option<Next> {
    let target = living_target(observed)?;
    let owner = match &observed.owner {
        Owner::Gone => return None,
        owner => owner.controller(),
    };
    let claimed = owner.is_none_or(|o| is_claimed_by(target, &o.uid));
    let parts = parts(observed, owner);
    let labels = target.metadata.labels.clone().unwrap_or_default();
    if parts.at_once.iter().any(|(key, value)| labels.get(key) != Some(value)) {
        return Some(Next {
            step: Step::HandingOver,
            actions: vec![Action::LabelTarget(parts.at_once)],
            message: "the target pod gets the source's labels".into(),
            again: Duration::ZERO,
        });
    }
    let deadline = ready_bound(target) + ENDPOINTS_LIMIT;
    let listed = observed.endpoints_know_target
        || !observed.services.iter().any(|s| selects(s, &labels))
        || marked_at(target).is_none_or(|marked| elapsed(marked, now) >= deadline);
    if !claimed && !listed {
        return Some(Next {
            step: Step::HandingOver,
            actions: vec![],
            message: "the Services' endpoints are awaited".into(),
            again: Duration::from_millis(50),
        });
    }
    (!claimed).then_some(())?;
    let owner = owner?;
    // Nobody holds back what its controller makes while neither pod is claimed, as there is no Migration any more.
    let has_both = observed.vanished && owner.kind == Kind::ReplicaSet;
    if has_both && source_is_ending(observed) {
        return Some(Next {
            step: Step::HandingOver,
            actions: vec![],
            message: ends_shown(observed),
            again: Duration::from_millis(500),
        });
    }
    let mut wanted = parts.at_once;
    wanted.extend(parts.with_claim);
    let source = match &observed.source_pod {
        Some(source) if has_both && is_surplus(source, target, owner) => Leaves::AsSurplus,
        Some(source) if is_selectable(source) => Leaves::Stripped,
        _ => Leaves::Before,
    };
    Some(Next {
        step: Step::HandingOver,
        actions: vec![Action::MoveClaim { claim: owner.claim(), labels: wanted, source }],
        message: format!("{} {} gets the target pod", owner.kind.as_str(), owner.name),
        again: Duration::ZERO,
    })
}

/// A node that answers has said that the source has ended, and its kubelet is about to show it.
fn source_is_ending(observed: &Observed) -> bool {
    let answers = matches!(observed.source, Side::Reporting(_)) && !observed.source_node_gone;
    let is_there = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    answers && observed.source_pod.as_ref().filter(is_there).is_some_and(any_container_runs)
}

/// Whether a ReplicaSet that has a pod too many with both of them ends the source: what is not Running goes first,
/// then what is not Ready.
fn is_surplus(source: &Pod, target: &Pod, owner: &Controller) -> bool {
    let phase = target.status.as_ref().and_then(|status| status.phase.as_deref());
    is_claimed_by(source, &owner.uid)
        && !any_container_runs(source)
        && ready_since(source).is_none()
        && phase == Some("Running")
        && ready_since(target).is_some()
}

fn parts(observed: &Observed, owner: Option<&Controller>) -> Partition {
    let labels = labels_to_hand_over(observed.source_pod.as_ref(), owner);
    let selector = owner.map(|o| &o.selector);
    partition(&labels, selector, &observed.services)
}

/// Labels or owners by which somebody may still find the source.
fn is_selectable(source: &Pod) -> bool {
    source.metadata.labels.as_ref().is_some_and(|l| !l.is_empty())
        || source.metadata.owner_references.as_ref().is_some_and(|o| !o.is_empty())
}

/// When the target's readiness gate was set, by the operator's clock.
fn marked_at(target: &Pod) -> Option<Timestamp> {
    let conditions = target.status.as_ref()?.conditions.as_ref()?;
    let gate = conditions.iter().find(|c| c.type_ == names::RESUMED_GATE && c.status == "True")?;
    Some(gate.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// How long to wait for the target to be available: Ready for the owner's `minReadySeconds`, or
/// not Ready within its bound. `None`: go on.
fn until_available(
    target: &Pod,
    owner: Option<&Controller>,
    marked: Timestamp,
    now: Timestamp,
) -> Option<Duration> {
    let min_ready = owner.map_or(Duration::ZERO, |o| o.min_ready);
    let (passed, wanted) = match ready_since(target) {
        Some(since) if min_ready.is_zero() => (elapsed(since, now), Duration::ZERO),
        // Kept in whole seconds by kubelet, which may cut up to one off.
        Some(since) => (elapsed(since, now), min_ready + Duration::from_secs(1)),
        None => (elapsed(marked, now), ready_bound(target)),
    };
    let left = wanted.checked_sub(passed)?;
    (!left.is_zero()).then(|| left.clamp(Duration::from_millis(20), LOOK_AGAIN))
}

/// Everything from the end of the source's tasks to the end of its object; `None` when it is gone.
fn source_goes(observed: &Observed) -> Option<Next> {
    let node = observed.node(Role::Source);
    let side_done = observed.source.is_done(observed.source_node_gone)
        || observed.source.report().is_some_and(|r| r.stage == Stage::Released);
    let releasing = |actions: Vec<Action>, message: String| {
        Some(Next { step: Step::Releasing, actions, message, again: Duration::from_secs(1) })
    };
    let mut actions = Vec::from_iter(returns_claim(observed));
    if !side_done {
        if observed.source_pod.as_ref().is_some_and(has_labels) {
            // Nothing may list the source any more when its tasks end.
            actions.push(Action::StripSource);
        }
        // The address must not be freed with the source's sandbox, which can go from now on.
        actions.extend(move_leases(observed));
        actions.push(Action::Release);
        return releasing(actions, format!("{node} ends the source's containers"));
    }
    let source = observed.source_pod.as_ref();
    if let Some(source) = source
        && any_container_runs(source)
        && !observed.source_node_gone
    {
        return releasing(actions, ends_shown(observed));
    }
    if hands_over(observed) {
        actions.push(Action::EndHandover);
    }
    match source {
        None if actions.is_empty() => None,
        None => releasing(actions, "the hand-over ends".into()),
        Some(source) => {
            if source.metadata.deletion_timestamp.is_none() {
                actions.push(Action::DeleteSource);
            }
            releasing(actions, format!("the source pod goes from {node}"))
        }
    }
}

/// A ReplicaSet that shrinks may delete the source while it does not know yet that the target has its place. Only in a
/// pod that is its own does it see that this has come to pass. It waits five minutes for that before it looks again at
/// what it has, and keeps a target that nobody wants any more until then.
fn returns_claim(observed: &Observed) -> Option<Action> {
    let (source, owner) = (observed.source_pod.as_ref()?, observed.owner.controller()?);
    let target = observed.target_pod.as_ref()?;
    // The operator deletes the source when nobody is held back any longer; of a vanished one it is not known.
    let by_others =
        source.metadata.deletion_timestamp.is_some() && (hands_over(observed) || observed.vanished);
    let is_moved = is_claimed_by(target, &owner.uid) && controller(source).is_none();
    (by_others && is_moved && owner.kind == Kind::ReplicaSet)
        .then(|| Action::ReturnClaim(owner.claim()))
}

fn ends_shown(observed: &Observed) -> String {
    format!("{} is to show the source's containers as ended", observed.node(Role::Source))
}

fn has_labels(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|l| !l.is_empty())
}

fn hands_over(observed: &Observed) -> bool {
    let labels = observed.migration.metadata.labels.as_ref();
    labels.is_some_and(|l| l.contains_key(names::HANDOVER_LABEL))
}

/// The target says whose address it has; without a note it is its own node's.
/// All addresses of a pod come from the same node.
pub(super) fn move_leases(observed: &Observed) -> Vec<Action> {
    let status = observed.status();
    let Some(target) = &observed.target_pod else { return vec![] };
    if status.chosen_network != Some(Network::Preserve) {
        return vec![];
    }
    let noted = target.metadata.annotations.as_ref().and_then(|a| a.get(names::LEASE));
    let home = match noted.and_then(|text| text.split_once('@')) {
        Some((_, home)) => home.to_owned(),
        None => observed.node(Role::Target).to_owned(),
    };
    let addresses = status.address.into_iter().chain(status.other_addresses);
    addresses.map(|address| Action::MoveLease { address, home: home.clone() }).collect()
}

/// What the message of the end says of images that were changed too late.
pub(super) fn images_left(observed: &Observed) -> String {
    let pod = observed.target_pod.as_ref();
    let noted = pod.and_then(|pod| pod.metadata.annotations.as_ref()?.get(names::IMAGES_LEFT));
    noted.map_or_else(String::new, |containers| {
        format!(
            "; the image of container {containers} was changed after the commit and is not taken over, since the state belongs to the one before: set it once more"
        )
    })
}

/// How the memory that has come to the target was lost there, if it was before its side closed: what comes later may
/// befall any pod.
fn memory_lost(observed: &Observed) -> Option<String> {
    match observed.target.report()?.memory_lost.as_str() {
        "" => observed.target_word().lost.then(|| "its node restarted".to_owned()),
        how => Some(how.to_owned()),
    }
}

fn succeeded(observed: &Observed, mut draft: Draft, actions: Vec<Action>) -> Plan {
    let status = observed.status();
    let node = observed.node(Role::Target).to_owned();
    let name = status.target.as_ref().map_or("", |t| t.pod_name.as_str());
    let resumed = status.resumed_at.as_ref().map(|t| t.0);
    let alive = observed.target_seen() == PodSeen::Alive;
    let lost = memory_lost(observed).filter(|_| alive);
    let still = match (draft.downtime(resumed), lost) {
        (_, Some(how)) => {
            let lost = format!(
                "the pod's memory is lost, since {how} after the commit, and it starts afresh"
            );
            draft.set(c::RESTORED, ConditionStatus::False, reasons::MEMORY_LOST, &lost);
            format!("; {lost}")
        }
        (Some(time), None) => format!("; the application stood still for {time}"),
        (None, None) => String::new(),
    };
    let message = match (&observed.owner, alive) {
        (Owner::Gone, false) => {
            format!("the pod's owner was deleted meanwhile, and so was {name} on {node}{still}")
        }
        (_, false) => format!("the pod ran on {node} as {name} and has been deleted there{still}"),
        (_, true) => format!("the pod runs on {node} as {name}{still}"),
    };
    let message = format!("{message}{}", images_left(observed));
    draft
        .set(
            c::FROZEN,
            ConditionStatus::False,
            reasons::SOURCE_RELEASED,
            format!("the source's containers on {} have ended", observed.node(Role::Source)),
        )
        .end(Step::Succeeded, true, reasons::MIGRATED, message);
    Plan { status: draft.done(), record: None, actions, again: Some(Duration::ZERO) }
}
