//! The pod is made again under its own name, and restored from the images until it runs.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use transship_api::conditions::{self as c, reasons};
use transship_api::names;
use transship_protocol::{
    PodSeen, TargetOutcome, TargetWord, has_failed, may_make_again, may_record_resumed, may_return,
};

use super::finish::failures;
use super::owner::{OwnersWord, is_left_over, owner_uid, owners_word};
use super::source::is_disrupted;
use super::volumes::{ask, exchanged, give_up_memory, is_for_somebody, is_given_up, is_of_no_use};
use super::{
    Next, act, at_once, deletion_is_noted, is_ours, made_again_uid, nowhere, source_name, unwanted,
    wait,
};
use crate::migration::plan::Action;
use crate::migration::state::{Observed, Report, Role, Side, any_container_runs};
use crate::migration::{status, takeover, voting};
use crate::sequential_pod::{again_pod, controller, leave_owner};

const OWNER_AWAITED: &str = "the pod's StatefulSet is deleted; whether its pods live on (--cascade=orphan) is awaited of Kubernetes' garbage collector";
/// How often the pod is restored on the target before it goes back to its source's node.
pub(super) const TRIES_ON_TARGET: i32 = 2;
/// How long a pod that was made again may take to be restored, once it is let go to its node. Kubernetes takes
/// a volume off a node that is lost after six minutes, and only then can another have it.
const RESTORE_LIMIT: Duration = Duration::from_secs(600);
/// In bytes a second.
const SLOW_DISK: u64 = 20 << 20;
/// The longest pause before a further try.
const LONGEST_PAUSE: u64 = 60;

/// How long it takes to the next try after so many failed ones: none while there is a place that was not
/// tried, then ever longer.
pub(super) fn pause_after(failures: i32) -> Duration {
    let doubled = u32::try_from(failures - TRIES_ON_TARGET).unwrap_or(0).min(6);
    match doubled {
        0 => Duration::ZERO,
        doubled => Duration::from_secs((1_u64 << doubled).min(LONGEST_PAUSE)),
    }
}

fn left_of_pause(observed: &Observed, now: Timestamp) -> Option<Duration> {
    let pause = pause_after(failures(observed));
    let since = observed.status().failed_restore_time?.0;
    // A clock that was set back would make the pause as long as that.
    let passed = Duration::try_from(now.duration_since(since)).ok()?;
    pause.checked_sub(passed).filter(|left| !left.is_zero())
}

/// The source has ended for good: the pod is made again of its manifest.
pub(super) fn make_again(observed: &Observed, now: Timestamp) -> Next {
    let (recorded, name) = (observed.recorded(), source_name(observed));
    let failed = observed.status().failed_pod_uid.unwrap_or_default();
    if let Some(pod) = &observed.again_pod {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let going = pod.metadata.deletion_timestamp.is_some();
        let ours = is_ours(observed, pod);
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
            reason: reasons::NAME_TAKEN,
            message: format!(
                "somebody made a pod {name} meanwhile; delete it, then the moved one is made again from its kept state"
            ),
        };
    }
    if nowhere(observed) {
        return Next::Stuck {
            reason: reasons::STATE_LOST,
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
        return wait(OWNER_AWAITED);
    }
    if let Some(message) = exchanged(observed) {
        return Next::Stuck { reason: reasons::VOLUME_EXCHANGED, message };
    }
    if let Some(left) = left_of_pause(observed, now) {
        let pause = pause_after(failures(observed)).as_secs();
        let message = format!("it is restored again {pause} s after the last try has failed");
        return Next::Do { actions: vec![], message, again: left };
    }
    let again =
        observed.manifest.as_ref().and_then(|m| again_pod(m, &voting::target_for(observed)).ok());
    match again {
        Some(mut pod) if allowed => {
            if let (OwnersWord::PodStays, Some(uid)) = (word, owner_uid(observed)) {
                // With it the garbage collector would take the pod for one that was left over.
                leave_owner(&mut pod, uid);
            }
            let node = observed.node(Role::Target);
            let create = Action::CreateTarget(Box::new(pod));
            match &observed.refused {
                Some(why) => Next::Insist {
                    // A quota may be full with it.
                    actions: trial_makes_room(observed).into_iter().chain([create]).collect(),
                    message: format!(
                        "cannot make pod {name} on node {node} again: {why}; change what refuses it (quota, policy or webhook), it is tried until it is taken and its state is kept meanwhile"
                    ),
                },
                None => at_once(vec![create], format!("pod {name} is made again on {node}")),
            }
        }
        Some(_) => wait("the source's end is awaited"),
        None => Next::Stuck {
            reason: reasons::MANIFEST_MISSING,
            message: format!(
                "the Secret {} is not there or was changed, so the pod cannot be made again; its state is kept on both nodes until the Migration is deleted",
                names::manifest_secrets(observed.uid()).join(" or ")
            ),
        },
    }
}

/// As long as its bytes may take to be put into their places, beside all else.
fn limit(observed: &Observed) -> Duration {
    let bytes = observed.status().bytes_total.and_then(|bytes| u64::try_from(bytes).ok());
    RESTORE_LIMIT + Duration::from_secs(bytes.unwrap_or_default() / SLOW_DISK)
}

/// The newest word about this very pod: a target's side has had another life before.
fn report_of<'a>(observed: &'a Observed, uid: &str) -> Option<&'a Report> {
    observed.target.report().filter(|report| report.pod_uid == uid)
}

pub(super) fn restore_again(observed: &Observed, now: Timestamp) -> Next {
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
    let is_for_somebody = is_for_somebody(observed, uid, word);
    let is_open = report.is_some_and(|report| !report.closed) && !observed.target_node_gone;
    if is_for_somebody && (is_given_up(observed) || is_of_no_use(observed)) {
        return give_up_memory(observed, is_open);
    }
    let goes = observed.target_seen() != PodSeen::Alive && !observed.target_node_gone;
    // Nobody is asked before that.
    let has_ended = (is_for_somebody && !is_open) || side_has_ended(observed, report);
    if goes && let Some(next) = pod_goes(observed, has_ended) {
        return next;
    }
    if is_for_somebody {
        return ask(observed, uid, report.map_or("", |r| r.message.as_str()));
    }
    let waits = observed.target_pod.as_ref().filter(|pod| !goes && voting::is_on_no_node(pod));
    if let Some(why) = waits.and_then(|pod| must_be_made_anew(observed, pod)) {
        return match has_ended {
            true => Next::Anew { uid: uid.to_owned(), why },
            false => act(vec![Action::GiveUp(Role::Target)], why),
        };
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
    let late = scheduled_at(pod).is_some_and(|at| {
        Duration::try_from(now.duration_since(at)).unwrap_or_default() > limit(observed)
    });
    let hopeless = voting::target_pod_failed(observed, now).map(|(_, message)| message);
    let why = hopeless.or_else(|| late.then(|| format!("{node} does not restore the pod")));
    if let Some(why) = why {
        return act(vec![Action::GiveUp(Role::Target)], why);
    }
    wait(format!("{node} restores the pod"))
}

/// When the pod was let go to its node: behind its gate it may have waited for long.
fn scheduled_at(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "True")?;
    scheduled.last_transition_time.as_ref().map(|time| time.0)
}

/// Why a pod that is on no node yet is not the one to be restored.
fn must_be_made_anew(observed: &Observed, pod: &Pod) -> Option<String> {
    if voting::has_gate(pod) && is_left_over(observed, pod) {
        // The garbage collector will take it for one that was to go with its owner.
        return Some("the pod's owner has let it go, and it is made anew without its owner".into());
    }
    exchanged(observed).map(|_| "a claim of the pod leads to another volume by now".into())
}

/// Nothing of this very pod's side is at work.
fn side_has_ended(observed: &Observed, report: Option<&Report>) -> bool {
    match (report, observed.side(Role::Target)) {
        (Some(report), _) => report.closed,
        (None, Side::NotStarted | Side::Reporting(_)) => true,
        (None, Side::Unknown | Side::Unreachable { .. }) => false,
    }
}

/// The pod that was made again goes, or has gone, before it ran. Somebody who deletes it means it; an
/// eviction, a loss of power or a refusal by kubelet means the node, and leads to another try (`None`).
/// Which one it is can be told only while the object is there, so it is noted then. The API server removes one on no
/// node at once, hardly ever seen; so that it does not go by luck, its deletion always leads to another try.
/// `has_ended`: nothing of its side is at work.
fn pod_goes(observed: &Observed, has_ended: bool) -> Option<Next> {
    let node = observed.node(Role::Target);
    let noted = deletion_is_noted(observed);
    let there = observed.target_pod.as_ref();
    let meant = there.is_some_and(|pod| {
        !is_disrupted(pod) && !is_left_over(observed, pod) && !voting::is_on_no_node(pod)
    });
    if observed.target_seen() == PodSeen::Deleting && meant && !noted {
        return Some(Next::Unwanted);
    }
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

/// The pod of the restore on trial goes, if it does not already.
fn trial_makes_room(observed: &Observed) -> Option<Action> {
    let trial = observed.trial_pod.as_ref()?;
    trial.metadata.deletion_timestamp.is_none().then_some(Action::DeleteTrial)
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
    actions.extend(trial_makes_room(observed));
    if report.is_none() {
        match observed.side(Role::Target) {
            // Another life may have been the last that was heard of.
            Side::Unreachable { .. } => {}
            // That of a pod that was made before, heard of only when the pod had gone from behind its gate.
            Side::Reporting(other) if !other.closed => actions.push(Action::GiveUp(Role::Target)),
            _ => actions.push(Action::StartSide(Role::Target)),
        }
        return act(actions, format!("{node} prepares to restore the pod"));
    }
    if observed.trial_pod.is_some() {
        return act(actions, format!("the pod of the restore on trial goes from {node}"));
    }
    if owners_word(observed) == OwnersWord::Awaited {
        return act(actions, OWNER_AWAITED);
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
        message: format!(
            "{why}; it was made again on {node} and goes on{state}{}",
            takeover::images_left(observed)
        ),
        actions: vec![],
    }
}

#[cfg(test)]
mod tests {
    use transship_api::{Migration, MigrationSpec, MigrationStatus};

    use super::*;

    #[test]
    fn what_is_large_may_take_longer_to_be_put_into_its_place() {
        let limit_of = |bytes_total| {
            let mut migration = Migration::new("m", MigrationSpec::for_pod("p"));
            migration.status = Some(MigrationStatus { bytes_total, ..Default::default() });
            limit(&Observed::of(migration)).as_secs()
        };
        assert_eq!(limit_of(None), 600);
        assert_eq!(limit_of(Some(1 << 20)), 600);
        assert_eq!(limit_of(Some(200 << 30)), 600 + 10 * 1024);
    }
}
