//! The sequential hand-over, from the Commit to `resumedAt`: the restore on trial ends, the source
//! ends, its object goes, the pod is made again under its own name and restored from the images.
//! What may be done when is asked of `transship-protocol`.
//!
//! The source's deletion is announced in the status before it is asked for: one that nobody
//! announced is somebody else's wish, and the pod is not made again. A pod that was made again and
//! could not be restored is noted as failed before it is deleted, for the same reason.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{Network, Step, names};
use transship_protocol::{
    PodSeen, Resolution, SourceOutcome, TargetOutcome, TargetWord, has_failed, may_make_again,
    may_record_resumed, may_return, may_yield,
};

use super::plan::{Action, LOOK_AGAIN, Plan, Record};
use super::state::{Observed, Owner, Report, Role, Side, any_container_runs};
use super::status::{self, Draft};
use super::{takeover, voting};
use crate::sequential_pod::{again_pod, controller, leave_owner};
use crate::target_pod::TargetFor;

pub(crate) use crate::sequential_pod::trial_pod;

/// How often the pod is restored on the target before it goes back to its source's node.
pub const TRIES_ON_TARGET: i32 = 2;
/// How long a pod that was made again may take to be restored. Kubernetes takes a volume off a node that
/// is lost after six minutes, and only then can another have it.
pub const RESTORE_LIMIT: Duration = Duration::from_secs(600);

/// The first thing of all: what the pod is made of again must be stored before anything can be lost.
pub(super) fn store_manifest(draft: Draft) -> Plan {
    let message = "the pod's manifest is stored, to make the pod again of it";
    before_all(draft, Action::StoreManifest, message)
}

/// The second: when the source has gone nobody else may make a pod of its name.
pub(super) fn hold_name(draft: Draft) -> Plan {
    before_all(draft, Action::HoldName, "creating a pod of the source's name is held back")
}

fn before_all(mut draft: Draft, action: Action, message: &str) -> Plan {
    draft.waiting(reasons::IN_PROGRESS, message);
    let actions = vec![action];
    Plan { status: draft.done(), record: None, actions, again: Some(Duration::ZERO) }
}

/// What one look leads to.
enum Next {
    /// Things to do, and what is waited for.
    Do { actions: Vec<Action>, message: String, again: Duration },
    /// As [`Next::Do`], for something that only somebody else can mend.
    Stuck { message: String },
    /// As [`Next::Stuck`], for something that is tried all the same until it can be done.
    Insist { action: Action, reason: &'static str, message: String },
    /// The source's deletion is announced, then done.
    Announce,
    /// This pod is the one that was made again.
    Adopt { uid: String },
    /// The pod that was made again cannot be restored.
    Failed { uid: String, why: String, goes_back: bool },
    /// Somebody deletes the pod that was made again.
    Unwanted,
    /// The target's node is gone: the pod goes back without another try.
    GoBack,
    /// The application runs on the target.
    Resumed,
    /// Nothing more is to be done.
    End { succeeded: bool, reason: &'static str, message: String, actions: Vec<Action> },
}

fn wait(message: impl Into<String>) -> Next {
    act(vec![], message)
}

fn act(actions: Vec<Action>, message: impl Into<String>) -> Next {
    Next::Do { actions, message: message.into(), again: Duration::from_millis(500) }
}

fn at_once(actions: Vec<Action>, message: impl Into<String>) -> Next {
    Next::Do { actions, message: message.into(), again: Duration::ZERO }
}

/// From the Commit to `resumedAt`, or to the end on the source's node.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed).step(Step::Committed);
    if observed.recorded().resolution.is_some() {
        draft.step(Step::SourceResuming);
    }
    let next = if made_again_uid(observed).is_empty() {
        source_ends(observed)
            .or_else(|| trial_goes(observed))
            .unwrap_or_else(|| make_again(observed))
    } else {
        restore_again(observed, now)
    };
    finish(observed, draft, next)
}

fn finish(observed: &Observed, mut draft: Draft, next: Next) -> Plan {
    let now = draft.now();
    let plan = |draft: Draft, record, actions, again| Plan {
        status: draft.done(),
        record,
        actions,
        again: Some(again),
    };
    match next {
        Next::Do { actions, message, again } => {
            voting::describe_waiting(observed, &mut draft, &message);
            plan(draft, None, actions, again)
        }
        Next::Stuck { message } => {
            draft.stalled(reasons::WAITING_FOR_NODE, message);
            plan(draft, None, vec![], LOOK_AGAIN)
        }
        Next::Insist { action, reason, message } => {
            draft.stalled(reason, message);
            plan(draft, None, vec![action], Duration::ZERO)
        }
        Next::Announce => {
            let node = observed.node(Role::Source);
            draft.waiting(reasons::IN_PROGRESS, format!("the source pod goes from {node}")).with(
                |status| status.source_deletion_time = Some(Time(status::whole_seconds(now))),
            );
            plan(draft, None, vec![Action::DeleteSource], Duration::ZERO)
        }
        Next::Adopt { uid } => {
            let name = source_name(observed).to_owned();
            draft.waiting(reasons::IN_PROGRESS, "the pod is made again").with(|status| {
                let target = status.target.get_or_insert_default();
                target.pod_uid = uid;
                target.pod_name = name;
            });
            plan(draft, None, vec![], Duration::ZERO)
        }
        Next::Failed { uid, why, goes_back } => {
            let node = observed.node(Role::Target).to_owned();
            let source_node = observed.node(Role::Source).to_owned();
            let message = format!("the pod could not be restored on {node}: {why}");
            let what = match goes_back {
                true => format!("{message}; it goes back to {source_node}"),
                false => format!("{message}; it is tried again"),
            };
            let reason = if goes_back { reasons::TARGET_LOST } else { reasons::RESTORE_FAILED };
            if observed.recorded().resolution.is_none() {
                draft.set(c::RESTORED, ConditionStatus::False, reasons::RESTORE_FAILED, &message);
            }
            draft.waiting(reason, what).with(|status| {
                status.failed_restores = Some(status.failed_restores.unwrap_or(0) + 1);
                status.failed_pod_uid = Some(uid);
                forget_target(status, goes_back.then_some(source_node));
            });
            let record = goes_back.then_some(Record::Resolution(Resolution::SourceResumes));
            plan(draft, record, vec![], Duration::ZERO)
        }
        Next::Unwanted => {
            let message = unwanted(observed);
            draft
                .set(c::RESTORED, ConditionStatus::False, reasons::TARGET_GONE, &message)
                .waiting(reasons::TARGET_GONE, message);
            plan(draft, None, vec![], Duration::ZERO)
        }
        Next::GoBack => {
            let source_node = observed.node(Role::Source).to_owned();
            let node = observed.node(Role::Target);
            let message =
                format!("node {node} is gone; the pod is restored on {source_node} instead");
            draft
                .waiting(reasons::TARGET_LOST, message)
                .with(|status| forget_target(status, Some(source_node)));
            let record = Record::Resolution(Resolution::SourceResumes);
            plan(draft, Some(record), vec![], Duration::ZERO)
        }
        Next::Resumed => voting::resumed(observed, draft),
        Next::End { succeeded, reason, message, actions } => {
            draft.end(Step::Failed, succeeded, reason, message);
            plan(draft, None, actions, Duration::ZERO)
        }
    }
}

fn forget_target(status: &mut transship_api::MigrationStatus, node: Option<String>) {
    let target = status.target.get_or_insert_default();
    target.pod_uid.clear();
    if let Some(node) = node {
        target.node = node;
    }
}

fn source_name(observed: &Observed) -> &str {
    let status = observed.migration.status.as_ref();
    status.and_then(|s| s.source.as_ref()).map_or("", |s| s.pod_name.as_str())
}

/// UID of the pod that was made again, once it is recorded; the target is the trial's pod before.
fn made_again_uid(observed: &Observed) -> &str {
    let status = observed.migration.status.as_ref();
    let target = status.and_then(|s| s.target.as_ref());
    target.filter(|t| t.pod_name == source_name(observed)).map_or("", |t| t.pod_uid.as_str())
}

/// The trial's pod is recorded as the target, or nothing is.
fn on_trial(observed: &Observed) -> bool {
    let status = observed.migration.status.as_ref();
    let target = status.and_then(|s| s.target.as_ref());
    target.is_some_and(|t| t.pod_name != source_name(observed))
}

fn is_released(observed: &Observed) -> bool {
    observed.source_word().outcome == Some(SourceOutcome::Released) || observed.source_node_gone
}

/// Somebody else deleted the source: its object goes, or has gone, though no deletion was announced.
fn somebody_deleted(observed: &Observed) -> bool {
    observed.status().source_deletion_time.is_none() && observed.source_seen() != PodSeen::Alive
}

/// The manifest is stored, with the labels and annotations of this moment: people and their operators
/// may change them as long as the source is there.
fn manifest_is_current(observed: &Observed) -> bool {
    let (Some(stored), Some(source)) = (&observed.manifest, &observed.source_pod) else {
        return observed.manifest.is_some();
    };
    stored.metadata.labels == source.metadata.labels
        && stored.metadata.annotations == source.metadata.annotations
        && stored.metadata.finalizers == source.metadata.finalizers
        && stored.metadata.owner_references == source.metadata.owner_references
}

/// What the deletion of the pod's StatefulSet means for the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OwnersWord {
    /// It was not deleted.
    Stands,
    /// It is not known yet.
    Awaited,
    /// It takes its pods along.
    PodGoes,
    /// Its pods live on without it (`--cascade=orphan`).
    PodStays,
}

/// The garbage collector's word, by the Migration's own reference to the StatefulSet (see
/// [`crate::sequential_pod::witness`]). With `--cascade=orphan` the reference is off before the
/// StatefulSet goes, so what the Migration says counts once that has gone; a Migration that
/// somebody has deleted as well is no sign before. Without a reference, for whatever reason,
/// the pod is made: a pod too many can be deleted, a state that was given up cannot be brought back.
fn owners_word(observed: &Observed) -> OwnersWord {
    match observed.owner {
        Owner::Going(_) => return OwnersWord::Awaited,
        Owner::Gone => {}
        Owner::None | Owner::Controller(_) | Owner::StatefulSet(_) => return OwnersWord::Stands,
    }
    let uid = owner_uid(observed);
    let mut references = observed.migration.metadata.owner_references.iter().flatten();
    match references.any(|reference| Some(&reference.uid) == uid) {
        false => OwnersWord::PodStays,
        true if observed.is_deleting() => OwnersWord::PodGoes,
        true => OwnersWord::Awaited,
    }
}

/// UID of the owner that the stored manifest names.
fn owner_uid(observed: &Observed) -> Option<&String> {
    observed.manifest.as_ref().and_then(controller).map(|owner| &owner.uid)
}

/// An eviction, a drain or a taint: it means the node, not the pod. So does a pod that kubelet has
/// refused or ended.
fn is_disrupted(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase == Some("Failed")
        || conditions.iter().any(|c| c.type_ == "DisruptionTarget" && c.status == "True")
}

/// No node is left that has the pod's state.
fn nowhere(observed: &Observed) -> bool {
    observed.target_node_gone
        && (observed.source_node_gone || observed.recorded().resolution.is_some())
}

/// Until the source has ended and its object is gone; then `None`.
fn source_ends(observed: &Observed) -> Option<Next> {
    let (node, target) = (observed.node(Role::Source), observed.node(Role::Target));
    let seen = observed.source_seen();
    if is_released(observed) && seen == PodSeen::Gone {
        return None;
    }
    let trial = observed.target_word();
    if on_trial(observed) && !may_yield(observed.recorded(), trial, observed.target_node_gone) {
        let hints = voting::hints(observed, |_, read| read.is_none());
        return Some(act(hints, format!("{target} is to end the restore on trial")));
    }
    let disrupted = observed.source_pod.as_ref().is_some_and(is_disrupted);
    if somebody_deleted(observed) && disrupted {
        return Some(Next::Announce);
    }
    if !somebody_deleted(observed) && !observed.name_is_held {
        let message = "creating a pod of the source's name is held back";
        return Some(at_once(vec![Action::HoldName], message));
    }
    if seen == PodSeen::Alive && !manifest_is_current(observed) {
        let message = "the pod's manifest is stored as it is now";
        return Some(at_once(vec![Action::StoreManifest], message));
    }
    if !is_released(observed) {
        // The address must not be freed with the source's sandbox, which can go from now on.
        let mut actions = takeover::move_leases(observed);
        actions
            .extend(voting::hints(observed, |role, read| role == Role::Source && read.is_none()));
        actions.push(Action::Release);
        return Some(act(actions, format!("{node} ends the source's containers")));
    }
    match (&observed.source_pod, seen) {
        (Some(source), PodSeen::Alive) => {
            if any_container_runs(source) && !observed.source_node_gone {
                let message = format!("{node} is to show the source's containers as ended");
                return Some(wait(message));
            }
            if observed.status().source_deletion_time.is_none() {
                return Some(Next::Announce);
            }
            Some(act(vec![Action::DeleteSource], format!("the source pod goes from {node}")))
        }
        _ => Some(wait(format!("the source pod goes from {node}"))),
    }
}

/// Where nothing is made again, what is left is removed and the migration ends.
fn trial_goes(observed: &Observed) -> Option<Next> {
    let why = if somebody_deleted(observed) {
        (reasons::SOURCE_GONE, "the pod was deleted by somebody after the commit")
    } else if observed.is_deleting() && (observed.manifest.is_none() || nowhere(observed)) {
        (reasons::CANCELLED, "the Migration was deleted and the pod cannot be made again")
    } else if owners_word(observed) == OwnersWord::PodGoes {
        (reasons::SOURCE_GONE, "the pod's owner was deleted after the commit, with its pods")
    } else {
        return None;
    };
    if observed.trial_pod.is_some() {
        return Some(act(vec![Action::DeleteTrial], "the pod of the restore on trial goes"));
    }
    Some(Next::End {
        succeeded: false,
        reason: why.0,
        message: format!("{}, so it is not made again", why.1),
        actions: vec![],
    })
}

fn target_for<'a>(observed: &'a Observed) -> TargetFor<'a> {
    let meta = &observed.migration.metadata;
    let chosen = observed.migration.status.as_ref().and_then(|s| s.chosen_network);
    TargetFor {
        migration_namespace: meta.namespace.as_deref().unwrap_or_default(),
        migration_name: meta.name.as_deref().unwrap_or_default(),
        migration_uid: observed.uid(),
        node: observed.node(Role::Target),
        preserve_address: chosen == Some(Network::Preserve),
    }
}

/// The source has ended for good: the pod is made again of its manifest.
fn make_again(observed: &Observed) -> Next {
    let (recorded, name) = (observed.recorded(), source_name(observed));
    let failed = observed.status().failed_pod_uid.unwrap_or_default();
    if let Some(pod) = &observed.again_pod {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let going = pod.metadata.deletion_timestamp.is_some();
        let labels = pod.metadata.labels.as_ref();
        let ours = labels.and_then(|l| l.get(names::MIGRATION_LABEL)).map(String::as_str)
            == Some(observed.uid());
        if ours && uid != failed && !going {
            return Next::Adopt { uid };
        }
        let owner = owner_uid(observed);
        let same_owner = owner.is_some() && controller(pod).map(|o| &o.uid) == owner;
        // What has run under its name may have written to its volumes: the kept state is older.
        if going || ours || (same_owner && !any_container_runs(pod)) {
            let actions = if going { vec![] } else { vec![Action::DeleteAgain] };
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("its node");
            return act(actions, format!("pod {name} that was made before goes from {node}"));
        }
        return Next::Stuck {
            message: format!(
                "somebody made a pod {name} meanwhile; delete it, then the moved one is made again from its kept state"
            ),
        };
    }
    if nowhere(observed) {
        return Next::Stuck {
            message: format!(
                "no node is left that has the pod's state, {} being gone; delete the Migration to give the state up",
                observed.node(Role::Target)
            ),
        };
    }
    if observed.target_node_gone {
        return Next::GoBack;
    }
    if !observed.name_is_held {
        return at_once(vec![Action::HoldName], "creating a pod of the source's name is held back");
    }
    let allowed = may_make_again(
        recorded,
        observed.source_word(),
        observed.source_node_gone,
        observed.source_seen(),
    );
    let word = owners_word(observed);
    if word == OwnersWord::Awaited {
        return wait(
            "the pod's StatefulSet is deleted; whether its pods live on (--cascade=orphan) is awaited of Kubernetes' garbage collector",
        );
    }
    let again = observed.manifest.as_ref().and_then(|m| again_pod(m, &target_for(observed)).ok());
    match again {
        Some(mut pod) if allowed => {
            if let (OwnersWord::PodStays, Some(uid)) = (word, owner_uid(observed)) {
                // With it the garbage collector would take the pod for one that was left over.
                leave_owner(&mut pod, uid);
            }
            let action = Action::CreateTarget(Box::new(pod));
            let node = observed.node(Role::Target);
            match &observed.refused {
                Some(why) => Next::Insist {
                    action,
                    reason: reasons::TARGET_POD_FAILED,
                    message: format!(
                        "cannot make pod {name} on node {node} again: {why}; change what refuses it (quota, policy or webhook), it is tried until it is taken and its state is kept meanwhile"
                    ),
                },
                None => at_once(vec![action], format!("pod {name} is made again on {node}")),
            }
        }
        Some(_) => wait("the source's end is awaited"),
        None => Next::Stuck {
            message: format!(
                "the Secret {} is not there or was changed, so the pod cannot be made again; its state is kept on both nodes until the Migration is deleted",
                names::manifest_secret(observed.uid())
            ),
        },
    }
}

/// The newest word about this very pod: a target's side has had another life before.
fn report_of<'a>(observed: &'a Observed, uid: &str) -> Option<&'a Report> {
    observed.target.report().filter(|report| report.pod_uid == uid)
}

fn restore_again(observed: &Observed, now: Timestamp) -> Next {
    let uid = made_again_uid(observed);
    let node = observed.node(Role::Target);
    let report = report_of(observed, uid);
    let word = report.map_or_else(TargetWord::default, |_| observed.target_word());
    let recorded = observed.recorded();
    if recorded.resolution.is_none() && may_record_resumed(recorded, word, false) {
        return Next::Resumed;
    }
    if recorded.resolution.is_some() && word.outcome == Some(TargetOutcome::Resumed) {
        return back_on_source(observed, now);
    }
    let goes = observed.target_seen() != PodSeen::Alive && !observed.target_node_gone;
    if goes && let Some(next) = pod_goes(observed, report) {
        return next;
    }
    if goes || has_failed(word, observed.target_node_gone) {
        let why = match report.map_or("", |r| r.message.as_str()) {
            "" if observed.target_node_gone => "the node is gone".to_owned(),
            "" if goes => "the pod went from there before it ran".to_owned(),
            "" => "it gave up".to_owned(),
            why => why.to_owned(),
        };
        let tries = observed.status().failed_restores.unwrap_or(0) + 1;
        let goes_back = may_return(recorded, word, observed.target_node_gone)
            && (tries >= TRIES_ON_TARGET || observed.target_node_gone)
            && !observed.source_node_gone;
        return Next::Failed { uid: uid.to_owned(), why, goes_back };
    }
    let Some(pod) = observed.target_pod.as_ref() else {
        return wait(format!("{node} restores the pod"));
    };
    if voting::has_gate(pod) {
        return prepare_again(observed, report);
    }
    let late = pod.metadata.creation_timestamp.as_ref().is_some_and(|created| {
        Duration::try_from(now.duration_since(created.0)).unwrap_or_default() > RESTORE_LIMIT
    });
    let hopeless = voting::target_pod_failed(observed, now).map(|(_, message)| message);
    let why = hopeless.or_else(|| late.then(|| format!("{node} does not restore the pod")));
    if let Some(why) = why {
        return act(vec![Action::GiveUp(Role::Target)], why);
    }
    wait(format!("{node} restores the pod"))
}

/// The pod that was made again goes, or has gone, before it ran. Somebody who deletes it means it; an
/// eviction, a loss of power or a refusal by kubelet means the node, and leads to another try (`None`).
/// Which one it is can be told only while the object is there, so it is noted then.
fn pod_goes(observed: &Observed, report: Option<&Report>) -> Option<Next> {
    let node = observed.node(Role::Target);
    let noted = deletion_is_noted(observed);
    let there = observed.target_pod.as_ref();
    let meant = there.is_some_and(|pod| !is_disrupted(pod) && !is_left_over(observed, pod));
    if observed.target_seen() == PodSeen::Deleting && meant && !noted {
        return Some(Next::Unwanted);
    }
    let has_ended = match (report, observed.side(Role::Target)) {
        (Some(report), _) => report.closed,
        (None, Side::NotStarted | Side::Reporting(_)) => true,
        (None, Side::Unknown | Side::Unreachable { .. }) => false,
    };
    if !has_ended {
        let actions = vec![Action::GiveUp(Role::Target)];
        return Some(act(actions, format!("{node} is to close its side")));
    }
    if !noted {
        return None;
    }
    if observed.target_seen() == PodSeen::Deleting {
        return Some(wait(format!("the pod was deleted meanwhile and goes from {node}")));
    }
    Some(Next::End {
        succeeded: false,
        reason: reasons::TARGET_GONE,
        message: unwanted(observed),
        actions: vec![],
    })
}

/// The pod names an owner that has let its pods go, and was made too late to be let go with them: the
/// garbage collector deletes it, and nobody has meant it.
fn is_left_over(observed: &Observed, pod: &Pod) -> bool {
    let owner = controller(pod).map(|owner| &owner.uid);
    owners_word(observed) == OwnersWord::PodStays && owner.is_some() && owner == owner_uid(observed)
}

fn unwanted(observed: &Observed) -> String {
    let node = observed.node(Role::Target);
    format!("the pod was deleted on {node} by somebody before it ran again")
}

fn deletion_is_noted(observed: &Observed) -> bool {
    let conditions = observed.status().conditions;
    c::find(&conditions, c::RESTORED)
        .is_some_and(|c| c.status == "False" && c.reason == reasons::TARGET_GONE)
}

/// Address, record and holder come before the gate goes; the trial's pod makes room.
fn prepare_again(observed: &Observed, report: Option<&Report>) -> Next {
    let node = observed.node(Role::Target);
    let mut actions = Vec::new();
    for lease in takeover::move_leases(observed) {
        if let Action::MoveLease { address, home } = lease {
            actions.push(Action::NoteLease { address, home });
        }
    }
    if observed.trial_pod.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()) {
        actions.push(Action::DeleteTrial);
    }
    if report.is_none() {
        // Another life may have been the last that was heard of.
        if !matches!(observed.side(Role::Target), Side::Unreachable { .. }) {
            actions.push(Action::StartSide(Role::Target));
        }
        return act(actions, format!("{node} prepares to restore the pod"));
    }
    if observed.trial_pod.is_some() {
        return act(actions, format!("the pod of the restore on trial goes from {node}"));
    }
    actions.push(Action::RemoveGate);
    act(actions, format!("the pod is let go to {node}"))
}

/// It runs on the source's node again.
fn back_on_source(observed: &Observed, now: Timestamp) -> Next {
    if let Some((actions, again)) = takeover::awaits_ready(observed, now) {
        let node = observed.node(Role::Target);
        let message = format!("the pod runs on {node} again; it is awaited Ready");
        return Next::Do { actions, message, again };
    }
    let node = observed.node(Role::Source);
    let conditions = observed.status().conditions;
    let why = c::find(&conditions, c::RESTORED).filter(|c| c.status == "False");
    let why = why.map_or_else(
        || "the target was lost after the commit".to_owned(),
        |condition| condition.message.clone(),
    );
    let state = match &observed.status().frozen_at {
        Some(at) => format!(" in its state of {}", status::whole_seconds(at.0)),
        None => String::new(),
    };
    Next::End {
        succeeded: false,
        reason: reasons::TARGET_LOST,
        message: format!("{why}; it was made again on {node} and goes on{state}"),
        actions: vec![],
    }
}
