//! From the target pod to the decision, and from a Commit to `resumedAt`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use transship_api::conditions::{self as c, ConditionStatus, reasons};
use transship_api::{Network, Step, names};
use transship_protocol::{
    Decision, DecisionInput, PROOF, PodSeen, Resolution, TargetProof, decide, may_record_resumed,
    may_resolve_source_resumes,
};

use super::plan::{Action, LOOK_AGAIN, Plan, Record};
use super::sequential;
use super::state::{Observed, Role, Side, Stage, liveness_patience};
use super::status::{self, Draft};
use crate::sequential_pod::changed_images;
use crate::target_pod::{TargetFor, changes_by_admission, target_pod};

/// How long an agent may be silent before the votes are in. The sides give up by themselves.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long the scheduler may say that the target's node has no room.
pub const UNSCHEDULABLE_LIMIT: Duration = Duration::from_secs(20);
/// How long a source without liveness probes may stay frozen before its vote.
pub const FROZEN_LIMIT: Duration = Duration::from_secs(60);
/// A node that is silent for longer needs somebody's help.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// What the operator adds to the sides' own patience before it gives up for them.
const PATIENCE_MARGIN: Duration = Duration::from_secs(10);

/// Why the attempt is given up.
type GiveUp = (String, String);

/// Until the decision.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed);
    let give_up = why_give_up(observed, now);
    match decide(&decision_input(observed, give_up.is_some())) {
        Some(Decision::Commit) => {
            // From the Commit on it is all that is left of the source's object.
            if let Some(action) = sequential::lacks(observed) {
                return sequential::before_all(draft, action);
            }
            draft.step(Step::Committed).waiting(
                reasons::IN_PROGRESS,
                format!("both nodes are ready; {} goes on there", observed.node(Role::Target)),
            );
            recorded(draft, Record::Decision(Decision::Commit))
        }
        Some(Decision::Abort) => {
            let (reason, message) = give_up.unwrap_or_else(|| against(observed));
            draft.step(Step::Aborting).waiting(&reason, message);
            recorded(draft, Record::Decision(Decision::Abort))
        }
        None => progress(observed, draft),
    }
}

/// A plan that records something and tells both sides.
fn recorded(draft: Draft, record: Record) -> Plan {
    Plan {
        status: draft.done(),
        record: Some(record),
        actions: Role::BOTH.map(Action::Hint).into(),
        again: Some(Duration::ZERO),
    }
}

fn decision_input(observed: &Observed, give_up: bool) -> DecisionInput {
    // Before the target pod exists nothing can be missing; its absence counts once it was known.
    let target_pod = match observed.target_seen() {
        PodSeen::Gone if !target_was_made(observed) => PodSeen::Alive,
        seen => seen,
    };
    DecisionInput {
        recorded: observed.recorded(),
        migration_deleting: observed.is_deleting(),
        source: observed.source_word(),
        target: observed.target_word(),
        source_pod: observed.source_seen(),
        target_pod,
        claim_held: observed.claim_held(),
        source_node_dead: false,
        target_node_dead: false,
        give_up,
    }
}

fn target_was_made(observed: &Observed) -> bool {
    let status = observed.migration.status.as_ref();
    status.and_then(|s| s.target.as_ref()).is_some_and(|t| !t.pod_uid.is_empty())
}

/// What speaks against a commit though nothing failed: said in the words of the conditions.
fn against(observed: &Observed) -> GiveUp {
    let (reason, message) = if observed.is_deleting() {
        (reasons::CANCELLED, "the Migration was deleted before its commit".to_owned())
    } else {
        match (observed.source_seen(), observed.target_seen()) {
            (PodSeen::Gone, _) => (reasons::SOURCE_GONE, "the source pod is gone".to_owned()),
            (PodSeen::Deleting, _) => {
                (reasons::SOURCE_GONE, "the source pod is being deleted".to_owned())
            }
            (PodSeen::Alive, _) if !observed.claim_held() => {
                (reasons::POD_CLAIMED, "the claim was taken off the source pod".to_owned())
            }
            (_, PodSeen::Gone) => (reasons::TARGET_GONE, "the target pod is gone".to_owned()),
            (_, PodSeen::Deleting) => {
                (reasons::TARGET_GONE, "the target pod is being deleted".to_owned())
            }
            // Its word comes before its reason, which it may not have.
            (PodSeen::Alive, PodSeen::Alive) => {
                let (role, reason) = match observed.source_word().outcome {
                    Some(_) => (Role::Source, reasons::DUMP_FAILED),
                    None => (Role::Target, reasons::RESTORE_FAILED),
                };
                (reason, format!("{}: it gave up", observed.node(role)))
            }
        }
    };
    (reason.to_owned(), message)
}

/// Whether the attempt has failed, and why.
fn why_give_up(observed: &Observed, now: Timestamp) -> Option<GiveUp> {
    if observed.is_deleting() || observed.source_seen() != PodSeen::Alive {
        return Some(against(observed));
    }
    if target_was_made(observed) && observed.target_seen() != PodSeen::Alive {
        return Some(against(observed));
    }
    if let Some((reason, message)) = &observed.failure {
        return Some(((*reason).to_owned(), message.clone()));
    }
    if let Some(reason) = side_gave_up(observed).or_else(|| source_changed(observed)) {
        return Some(reason);
    }
    if observed.source_word().voted && observed.target_word().voted {
        return None;
    }
    target_changed(observed)
        .or_else(|| target_pod_failed(observed, now))
        .or_else(|| silent_side(observed, now))
        .or_else(|| timed_out(observed, now))
        .or_else(|| frozen_too_long(observed, now))
}

/// kubelet ends a container whose image was changed.
fn source_changed(observed: &Observed) -> Option<GiveUp> {
    let changed = changed_images(observed.manifest.as_ref()?, observed.source_pod.as_ref()?);
    (!changed.is_empty()).then(|| {
        let message =
            format!("the image of container {} was changed meanwhile", changed.join(" and "));
        (reasons::SOURCE_CHANGED.to_owned(), message)
    })
}

fn side_gave_up(observed: &Observed) -> Option<GiveUp> {
    // The target first: where it fails, the source only reports that its peer went away.
    [Role::Target, Role::Source].into_iter().find_map(|role| {
        let report = observed.side(role).report().filter(|r| r.is_out())?;
        let node = observed.node(role);
        let reason = match report.reason.as_str() {
            "" if report.stage == Stage::Lost && role == Role::Source => reasons::SOURCE_REBOOTED,
            "" if role == Role::Source => reasons::DUMP_FAILED,
            "" => reasons::RESTORE_FAILED,
            reason => reason,
        };
        let message = match report.message.as_str() {
            "" => "it gave up".to_owned(),
            message => message.to_owned(),
        };
        Some((reason.to_owned(), format!("{node}: {message}")))
    })
}

fn silent_side(observed: &Observed, now: Timestamp) -> Option<GiveUp> {
    Role::BOTH.into_iter().find_map(|role| {
        let reason = match role {
            Role::Source => reasons::SOURCE_UNREACHABLE,
            Role::Target => reasons::TARGET_UNREACHABLE,
        };
        let node = observed.node(role);
        if observed.node_gone(role) {
            return Some((reason.to_owned(), format!("the cluster has no node {node} any more")));
        }
        let silent = observed.side(role).silent_for(now)?;
        (silent >= SILENCE_LIMIT).then(|| {
            let message =
                format!("{node} has not answered for {} seconds", SILENCE_LIMIT.as_secs());
            (reason.to_owned(), message)
        })
    })
}

/// How long either side may stay frozen before it votes.
pub fn frozen_limit(source: &Pod) -> Duration {
    liveness_patience(source).map_or(FROZEN_LIMIT, |p| p.min(FROZEN_LIMIT))
}

fn frozen_too_long(observed: &Observed, now: Timestamp) -> Option<GiveUp> {
    if observed.is_cold() {
        // Nothing is frozen: what has ended may stay so until spec.timeout.
        return None;
    }
    let frozen = Duration::try_from(now.duration_since(observed.frozen_seen?)).unwrap_or_default();
    let limit = frozen_limit(observed.source_pod.as_ref()?) + PATIENCE_MARGIN;
    let late = match observed.target_word().voted {
        true => observed.node(Role::Source),
        false => observed.node(Role::Target),
    };
    (frozen > limit).then(|| {
        let message = format!("{late} was not ready {} seconds after the freeze", limit.as_secs());
        (reasons::RESTORE_FAILED.to_owned(), message)
    })
}

/// Counted from the Migration's creation.
pub(crate) fn timed_out(observed: &Observed, now: Timestamp) -> Option<GiveUp> {
    let created = observed.migration.metadata.creation_timestamp.as_ref()?.0;
    let limit = observed.migration.spec.timeout().ok()?;
    let passed = Duration::try_from(now.duration_since(created)).unwrap_or_default();
    (passed >= limit).then(|| {
        let message = format!(
            "it was not committed within spec.timeout ({})",
            observed.migration.spec.timeout
        );
        (reasons::TIMED_OUT.to_owned(), message)
    })
}

/// Reasons of a waiting container that do not pass by themselves.
const HOPELESS: [&str; 6] = [
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "RegistryUnavailable",
    "ImageInspectError",
];

pub(super) fn target_pod_failed(observed: &Observed, now: Timestamp) -> Option<GiveUp> {
    let failed = |message: String| Some((reasons::TARGET_POD_FAILED.to_owned(), message));
    let pod = observed.target_pod.as_ref()?;
    let node = observed.node(Role::Target);
    let status = pod.status.as_ref()?;
    if let Some("Failed" | "Succeeded") = status.phase.as_deref() {
        let message = status.message.as_deref().unwrap_or("no message");
        return failed(format!("the target pod ended on {node}: {message}"));
    }
    if let Some(condition) = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "PodScheduled" && c.reason.as_deref() == Some("Unschedulable"))
    {
        let since = condition.last_transition_time.as_ref().map_or(now, |t| t.0);
        let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        if waited >= UNSCHEDULABLE_LIMIT {
            let message = condition.message.as_deref().unwrap_or("no reason given");
            return failed(format!("the scheduler does not put the pod on {node}: {message}"));
        }
    }
    let statuses = status.init_container_statuses.iter().chain(&status.container_statuses);
    statuses.flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|r| HOPELESS.contains(r))?;
        let detail = waiting.message.as_deref().unwrap_or_default();
        failed(format!(
            "container {} cannot be made on {node}: {reason}: {detail}; load or push its image {} where the node finds it",
            container.name, container.image
        ))
    })
}

/// The next step towards the votes.
fn progress(observed: &Observed, mut draft: Draft) -> Plan {
    if let Some(action) = sequential::lacks(observed) {
        return sequential::before_all(draft, action);
    }
    let node = observed.node(Role::Target).to_owned();
    let (actions, step, message) = match &observed.target_pod {
        None => return make_target(observed, draft),
        Some(pod) if !target_was_made(observed) => return adopt_target(pod, draft),
        Some(pod) => next(observed, pod, &node),
    };
    draft.step(step);
    describe_waiting(observed, &mut draft, &message);
    // While a conversation is being set up the agents are asked again soon.
    let again = match step {
        Step::PreparingTarget => Duration::from_secs(1),
        _ => LOOK_AGAIN,
    };
    Plan { status: draft.done(), record: None, actions, again: Some(again) }
}

/// Side effects, the step they belong to, and what is then waited for.
fn next(observed: &Observed, pod: &Pod, node: &str) -> (Vec<Action>, Step, String) {
    let preparing = |action: Option<Action>, message: String| {
        (action.into_iter().collect::<Vec<_>>(), Step::PreparingTarget, message)
    };
    for role in [Role::Target, Role::Source] {
        let name = observed.node(role);
        match observed.side(role) {
            Side::NotStarted => {
                return preparing(
                    Some(Action::StartSide(role)),
                    format!("{name} prepares its side"),
                );
            }
            Side::Unknown | Side::Unreachable { last: None, .. } => {
                return preparing(None, format!("{name} is asked for its side"));
            }
            Side::Unreachable { .. } | Side::Reporting(_) => {}
        }
    }
    if has_gate(pod) {
        return preparing(Some(Action::RemoveGate), format!("the target pod is let go to {node}"));
    }
    let source = observed.source.report().cloned().unwrap_or_default();
    let target = observed.target.report().cloned().unwrap_or_default();
    if source.voted || target.voted || source.stage >= Stage::Sent {
        return (vec![], Step::Voting, "both nodes' votes are awaited".into());
    }
    if source.stage >= Stage::Frozen {
        let what =
            if observed.is_cold() { "the files are sent" } else { "the state is dumped and sent" };
        return (vec![], Step::Freezing, what.into());
    }
    let container_waits = !target.waiting.is_empty() || !target.restored.is_empty();
    if container_waits && source.stage >= Stage::Connected {
        let what = if observed.is_cold() { "end its containers" } else { "freeze" };
        return (vec![Action::Freeze], Step::Freezing, format!("the source is told to {what}"));
    }
    (vec![], Step::WaitingForTarget, format!("the target pod starts on {node}"))
}

/// Whether the pod still waits for its record.
pub fn has_gate(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_deref()).unwrap_or_default();
    gates.iter().any(|gate| gate.name == names::PREPARE_GATE)
}

/// Whether nothing has brought the pod to a node yet, where it could mount its volumes.
pub fn is_on_no_node(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    node.is_empty() || has_gate(pod)
}

/// What a pod that is made for this migration is made for.
pub(super) fn target_for(observed: &Observed) -> TargetFor<'_> {
    let meta = &observed.migration.metadata;
    let chosen = observed.migration.status.as_ref().and_then(|s| s.chosen_network);
    TargetFor {
        migration_namespace: meta.namespace.as_deref().unwrap_or_default(),
        migration_name: meta.name.as_deref().unwrap_or_default(),
        migration_uid: observed.uid(),
        node: observed.node(Role::Target),
        preserve_address: chosen == Some(Network::Preserve),
        starts_afresh: observed.is_cold(),
    }
}

/// The target pod's manifest. Preflight has shown that it can be made.
fn wanted_target(observed: &Observed) -> Option<Pod> {
    let target = target_for(observed);
    let source = observed.source_pod.as_ref()?;
    if observed.is_sequential() {
        return sequential::trial_pod(source, &target).ok();
    }
    target_pod(source, &target).ok()
}

fn make_target(observed: &Observed, mut draft: Draft) -> Plan {
    draft.step(Step::PreparingTarget).waiting(reasons::IN_PROGRESS, "the target pod is made");
    let pod = wanted_target(observed).map(|pod| Action::CreateTarget(Box::new(pod)));
    let actions = pod.into_iter().collect();
    Plan { status: draft.done(), record: None, actions, again: Some(Duration::ZERO) }
}

/// Records the target, before anything is started for it.
fn adopt_target(pod: &Pod, mut draft: Draft) -> Plan {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    draft.step(Step::PreparingTarget).waiting(reasons::IN_PROGRESS, "the target pod is made").with(
        |status| {
            let target = status.target.get_or_insert_default();
            target.pod_uid = uid;
            target.pod_name = name;
        },
    );
    Plan { status: draft.done(), record: None, actions: vec![], again: Some(Duration::ZERO) }
}

/// Whether a webhook changed the target pod: looked at once, before it is recorded.
fn target_changed(observed: &Observed) -> Option<GiveUp> {
    let stored = observed.target_pod.as_ref().filter(|_| !target_was_made(observed))?;
    let changes = changes_by_admission(&wanted_target(observed)?, stored);
    (!changes.is_empty()).then(|| {
        let message = format!(
            "the target pod was changed on its way into the API server ({}); exclude pods with the label {} from the webhook that does it",
            changes.join(", "),
            names::MIGRATION_LABEL
        );
        (reasons::TARGET_POD_CHANGED.to_owned(), message)
    })
}

/// What a node does not succeed in, and the way out, with the reason to give; the source's comes first.
pub(super) fn stuck(observed: &Observed) -> Option<(&'static str, String)> {
    Role::BOTH.into_iter().find_map(|role| {
        let why = observed.side(role).report()?.stuck.as_str();
        let node = observed.node(role);
        let way_out = match why.starts_with("FilesNotKept") {
            true => format!(
                "; mend that, or give up what the containers have changed outside of volumes: /opt/transship/bin/transship-holder give-up-files {} on {node}",
                observed.uid()
            ),
            false => String::new(),
        };
        let reason = match role {
            Role::Source => reasons::SOURCE_STUCK,
            Role::Target => reasons::TARGET_STUCK,
        };
        (!why.is_empty()).then(|| (reason, format!("{node} tries in vain ({why}){way_out}")))
    })
}

/// `Succeeded` says what is waited for; a silent node comes first, then one that tries in vain.
pub(crate) fn describe_waiting(observed: &Observed, draft: &mut Draft, message: &str) {
    let silent = Role::BOTH.into_iter().find_map(|role| match observed.side(role) {
        Side::Unreachable { since, .. } => {
            Some((observed.node(role), status::whole_seconds(*since)))
        }
        _ => None,
    });
    let Some((node, since)) = silent else {
        match stuck(observed) {
            Some((reason, why)) => draft.stalled(reason, format!("{message}; {why}")),
            None => draft.waiting(reasons::IN_PROGRESS, message),
        };
        return;
    };
    let message = format!("{message}; {node} has not answered since {since}");
    let limit = SignedDuration::try_from(STALLED_AFTER).unwrap_or_default();
    // One or the other at once: each change of a condition is a transition.
    if draft.now().duration_since(since) >= limit {
        draft.stalled(reasons::WAITING_FOR_NODE, &message);
    } else {
        draft.waiting(reasons::WAITING_FOR_NODE, &message);
    }
}

/// From Commit to `resumedAt`, or to a resolution where the target provably will not run.
pub fn committed(observed: &Observed, now: Timestamp) -> Plan {
    let mut draft = Draft::of(&observed.migration, now);
    draft.sides(observed).step(Step::Committed);
    let (recorded_fields, target) = (observed.recorded(), observed.target_word());
    let report = observed.target.report();
    let silent = observed.target_proof == TargetProof::NodeDead;
    if may_record_resumed(recorded_fields, target, silent) {
        return resumed(observed, draft);
    }
    if may_resolve_source_resumes(recorded_fields, target, observed.target_proof) {
        let why = match report.map_or("", |r| r.message.as_str()) {
            _ if silent => format!(" (no sign of life for {} seconds)", PROOF.as_secs()),
            "" => String::new(),
            why => format!(" ({why})"),
        };
        let state = match &observed.status().frozen_at {
            Some(at) => format!(" in its state of {}", status::whole_seconds(at.0)),
            None => String::new(),
        };
        let message = format!(
            "the target was lost on {} after the commit{why}; the source goes on{state}",
            observed.node(Role::Target)
        );
        draft.step(Step::SourceResuming).waiting(reasons::TARGET_LOST, message);
        return recorded(draft, Record::Resolution(Resolution::SourceResumes));
    }
    let node = observed.node(Role::Target);
    describe_waiting(observed, &mut draft, &format!("{node} is to resume the containers"));
    let actions =
        hints(observed, |role, read| role == Role::Target && read != Some(Decision::Commit));
    Plan { status: draft.done(), record: None, actions, again: Some(Duration::from_secs(1)) }
}

/// The target runs: that is recorded.
pub(super) fn resumed(observed: &Observed, mut draft: Draft) -> Plan {
    let at = observed.target.report().and_then(|r| r.thawed_at).unwrap_or(draft.now());
    let frozen_for = draft.downtime(Some(at));
    let node = observed.node(Role::Target);
    let message = match frozen_for {
        _ if observed.is_cold() => format!("started {} on {node}", status::count(observed)),
        Some(time) => {
            format!("froze {} for {time} and resumed them on {node}", status::count(observed))
        }
        None => format!("resumed {} on {node}", status::count(observed)),
    };
    draft
        .step(Step::Resumed)
        .set(c::RESTORED, ConditionStatus::True, reasons::CONTAINERS_RESUMED, message)
        .waiting(reasons::IN_PROGRESS, format!("the pod runs on {node}; it is awaited Ready"));
    recorded(draft, Record::ResumedAt(at))
}

/// Hints for the sides that are not done and that `needs` them.
pub(crate) fn hints(
    observed: &Observed,
    needs: impl Fn(Role, Option<Decision>) -> bool,
) -> Vec<Action> {
    Role::BOTH
        .into_iter()
        .filter(|role| {
            let side = observed.side(*role);
            !side.is_done(observed.node_gone(*role))
                && needs(*role, side.report().and_then(|r| r.decision_read))
        })
        .map(Action::Hint)
        .collect()
}
