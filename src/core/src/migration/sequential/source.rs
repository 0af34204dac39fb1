//! The source ends: its containers, then its object.

use k8s_openapi::api::core::v1::Pod;
use transship_protocol::{PodSeen, SourceOutcome, may_yield};

use super::{Next, act, at_once, source_name, wait};
use crate::migration::plan::Action;
use crate::migration::state::{Observed, Role, any_container_runs};
use crate::migration::{takeover, voting};
use crate::sequential_pod::is_current;

/// Until the source has ended and its object is gone; then `None`.
pub(super) fn source_ends(observed: &Observed) -> Option<Next> {
    let (node, target) = (observed.node(Role::Source), observed.node(Role::Target));
    let seen = observed.source_seen();
    if is_released(observed) && seen == PodSeen::Gone {
        // A source ends without waiting for the trial where its pod was removed by force.
        if on_trial(observed)
            && observed.target.report().is_some_and(|r| !r.closed)
            && !observed.target_node_gone
        {
            return Some(act(vec![], format!("{target} is to end the restore on trial")));
        }
        // A node that comes back must not make the end of its pod look meant.
        let noted = observed.status().source_deletion_time.is_some();
        return (observed.source_node_gone && !noted).then_some(Next::Announce);
    }
    let trial = observed.target_word();
    if on_trial(observed) && !may_yield(observed.recorded(), trial, observed.target_node_gone) {
        let hints = voting::hints(observed, |_, read| read.is_none());
        return Some(act(hints, format!("{target} is to end the restore on trial")));
    }
    let disrupted = observed.source_pod.as_ref().is_some_and(is_disrupted);
    let is_made_again = !somebody_deleted(observed) || disrupted;
    if is_made_again && !observed.name_is_held {
        let message = "creating a pod of the source's name is held back";
        return Some(at_once(vec![Action::HoldName], message));
    }
    let lacks = observed.manifest.is_none() && observed.source_pod.is_some();
    let outdated = seen == PodSeen::Alive && !manifest_is_current(observed);
    // An old one is better than a frozen pod that waits until a quota takes a new one.
    if is_made_again && (lacks || outdated && observed.refused.is_none()) {
        let message = "the pod's manifest is stored as it is now";
        return Some(at_once(vec![Action::StoreManifest], message));
    }
    if somebody_deleted(observed) && disrupted {
        return Some(Next::Announce);
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

/// The trial's pod is recorded as the target, or nothing is.
fn on_trial(observed: &Observed) -> bool {
    let status = observed.migration.status.as_ref();
    let target = status.and_then(|s| s.target.as_ref());
    target.is_some_and(|t| t.pod_name != source_name(observed))
}

fn is_released(observed: &Observed) -> bool {
    observed.source_word().outcome == Some(SourceOutcome::Released) || observed.source_node_gone
}

/// Somebody else deleted the source: its object goes, or has gone, though no deletion was announced. The pods
/// of a node that has left the cluster are removed with it, and nobody has meant the pod.
pub(super) fn somebody_deleted(observed: &Observed) -> bool {
    let seen = observed.source_seen();
    let went_with_node = seen == PodSeen::Gone && observed.source_node_gone;
    observed.status().source_deletion_time.is_none() && seen != PodSeen::Alive && !went_with_node
}

/// The manifest is stored as it is at this moment: people and their operators may change it as long as the
/// source is there.
fn manifest_is_current(observed: &Observed) -> bool {
    match (&observed.manifest, &observed.source_pod) {
        (Some(stored), Some(source)) => is_current(stored, source),
        (stored, _) => stored.is_some(),
    }
}

/// An eviction, a drain or a taint: it means the node, not the pod. So does a pod that kubelet has
/// refused or ended by itself, of which it says the reason. Without one it has failed because its
/// containers were killed, as those of a pod are that somebody deletes.
pub(super) fn is_disrupted(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let has_reason = status.reason.as_deref().is_some_and(|reason| !reason.is_empty());
    let mut conditions = status.conditions.iter().flatten();
    (status.phase.as_deref() == Some("Failed") && has_reason)
        || conditions.any(|c| c.type_ == "DisruptionTarget" && c.status == "True")
}
