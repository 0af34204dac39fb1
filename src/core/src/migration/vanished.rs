//! A Migration that has vanished while it was under way: somebody took its finalizer off. Its sides settle between
//! them which of the two pods goes on; what remains is to give that one its place, and to take the other and all
//! marks away.
//!
//! What is known of such a Migration is put together from the pods, which bear its marks, and from the sides' last
//! words. Those are irrevocable, and each can only have followed from one outcome. So the ordinary plan is made for
//! a Migration in which that is recorded. While a side has not said its last word nothing is done, however long
//! that takes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use transship_api::conditions::reasons;
use transship_api::{
    Decision, HandOver, Migration, MigrationSpec, MigrationStatus, Network, PodRef, Step, names,
};
use transship_protocol::{SourceOutcome, TargetOutcome};

use super::events::Note;
use super::plan::{self, Action, LOOK_AGAIN, Plan};
use super::state::{Observed, Role, Side, any_container_runs};
use super::voting::has_gate;
use super::{rollback, takeover};
use crate::sequential_pod::is_exclusive;
use crate::target_pod::{is_named_beside, pinned_node};

/// Which of a vanished Migration's pods goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The source, as after an Abort.
    Stays,
    /// The target, as after `resumedAt`.
    Moved,
    /// Neither: the source of a sequential hand-over has ended and nothing was made of its state. Nobody makes the
    /// pod again; the nodes keep the state for a while.
    Kept,
}

/// The UID of the Migration whose marks a pod bears, and which of its pods it is.
pub fn marks_of(pod: &ObjectMeta) -> Option<(&str, Role)> {
    let label = pod.labels.as_ref().and_then(|labels| labels.get(names::MIGRATION_LABEL));
    let claim = pod.annotations.as_ref().and_then(|annotations| annotations.get(names::CLAIM));
    match (label, claim) {
        (Some(uid), claim) if claim.is_none_or(|claim| claim == uid) => Some((uid, Role::Target)),
        (_, Some(uid)) => Some((uid, Role::Source)),
        _ => None,
    }
}

/// The nodes of both sides, source first: as the pods tell, else as the nodes themselves have `published` it. Empty
/// where neither does.
pub fn nodes(pods: [Option<&Pod>; 2], published: [Option<String>; 2]) -> [String; 2] {
    let [source, target] = pods;
    let [source_says, target_says] = published;
    let came_from = target.and_then(|pod| annotation(pod, names::MOVED_FROM));
    let pinned = target.and_then(pinned_node);
    [(source, came_from, source_says), (target, pinned, target_says)].map(
        |(pod, told, published)| {
            let bound = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
            let node = [bound, told].into_iter().flatten().find(|node| !node.is_empty());
            node.map_or_else(|| published.unwrap_or_default(), str::to_owned)
        },
    )
}

/// The Migration, as far as its pods and nodes (source first) tell of it.
pub fn put_together(
    uid: &str,
    namespace: &str,
    pods: [Option<&Pod>; 2],
    nodes: [String; 2],
) -> Migration {
    let noted = pods.into_iter().flatten().find_map(|pod| annotation(pod, names::MIGRATION_NAME));
    let name = noted.and_then(|noted| noted.split_once('/')).map_or("", |(_, name)| name);
    let [source, target] = [0, 1].map(|side: usize| pod_ref(pods[side], &nodes[side]));
    let mut addresses = moved_addresses(pods).into_iter();
    let address = addresses.next();
    let mut migration = Migration::new(name, MigrationSpec::for_pod(&source.pod_name));
    migration.metadata.namespace = Some(namespace.to_owned());
    migration.metadata.uid = Some(uid.to_owned());
    // Without it the plan would take everything for done.
    migration.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
    migration.status = Some(MigrationStatus {
        hand_over: Some(match is_made_again(pods[1], uid) {
            true => HandOver::Sequential,
            false => HandOver::Overlap,
        }),
        chosen_network: Some(match &address {
            Some(_) => Network::Preserve,
            None => Network::Close,
        }),
        address,
        other_addresses: addresses.collect(),
        source: Some(source),
        target: Some(target),
        ..MigrationStatus::default()
    });
    migration
}

fn pod_ref(pod: Option<&Pod>, node: &str) -> PodRef {
    let metadata = pod.map(|pod| &pod.metadata);
    PodRef {
        node: node.to_owned(),
        pod_name: metadata.and_then(|meta| meta.name.clone()).unwrap_or_default(),
        pod_uid: metadata.and_then(|meta| meta.uid.clone()).unwrap_or_default(),
    }
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the target is a pod that was made again under the source's name.
fn is_made_again(target: Option<&Pod>, uid: &str) -> bool {
    target.is_some_and(|pod| !is_named_beside(pod, uid))
}

/// The target's addresses, if they are those of the source. All of a pod's move together.
fn moved_addresses([source, target]: [Option<&Pod>; 2]) -> Vec<String> {
    let own = target.map(addresses).unwrap_or_default();
    let before = source.map(addresses).unwrap_or_default();
    let noted = target.and_then(|pod| annotation(pod, names::LEASE)?.split_once('@'));
    let lent = noted.map(|(address, _)| address);
    match own.iter().any(|address| before.contains(address) || lent == Some(address.as_str())) {
        true => own,
        false => Vec::new(),
    }
}

fn addresses(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|address| &address.ip);
    let mut found: Vec<String> = status.pod_ip.iter().chain(all).cloned().collect();
    found.retain(|address| !address.is_empty());
    found.dedup();
    found
}

/// What nothing can change any more about a side.
enum Last<T> {
    /// It has said how it ended.
    Said(T),
    /// Its agent knows of none: it has not begun, or was forgotten.
    Never,
    /// The cluster has no such node any more.
    NodeGone,
}

/// None: the side is open, or speaks of another pod.
fn last<T>(observed: &Observed, role: Role, said: Option<T>, pod: Option<&Pod>) -> Option<Last<T>> {
    let side = observed.side(role);
    let uid = pod.map(|pod| pod.metadata.uid.as_deref());
    let of_pod = side.report().is_some_and(|r| uid.is_none_or(|uid| uid == Some(&*r.pod_uid)));
    // Behind its gate nothing was begun for the pod yet: a side that has ended there was another one's.
    let not_begun = pod.is_some_and(has_gate) && side.report().is_some_and(|r| r.closed);
    match said {
        Some(said) if of_pod => Some(Last::Said(said)),
        _ if observed.node_gone(role) => Some(Last::NodeGone),
        _ if *side == Side::NotStarted || not_begun => Some(Last::Never),
        _ => None,
    }
}

fn source_last(observed: &Observed) -> Option<Last<SourceOutcome>> {
    let said = observed.source_word().outcome;
    last(observed, Role::Source, said, observed.source_pod.as_ref())
}

fn target_last(observed: &Observed) -> Option<Last<TargetOutcome>> {
    let said = observed.target_word().outcome;
    last(observed, Role::Target, said, observed.target_pod.as_ref())
}

/// How it has ended; none while that is open, and where the words do not tell.
fn fate(observed: &Observed) -> Option<Fate> {
    use Last::{Never, NodeGone, Said};
    use SourceOutcome::{Opened, Released};
    use TargetOutcome::{Kept, NeverThawed, Resumed, Stopped};
    let (source, target) = (source_last(observed)?, target_last(observed)?);
    let pod = observed.source_pod.as_ref();
    let source_runs = pod.is_some_and(any_container_runs);
    let is_overlapping = pod.is_some_and(|pod| !is_exclusive(pod));
    // Its gate goes only when both sides have begun.
    let nothing_began = observed.target_pod.as_ref().is_none_or(has_gate);
    let is_lost = match target {
        Said(NeverThawed | Stopped | Kept) | NodeGone => true,
        Said(Resumed) => false,
        // Of one that was let go and forgotten nobody knows whether it is the pod.
        Never => nothing_began,
    };
    match (source, target) {
        (Said(Released) | NodeGone, Said(Resumed)) => Some(Fate::Moved),
        (Never, Said(Resumed)) if !source_runs => Some(Fate::Moved),
        // It ends on the strength of the target's last word alone, which may have been forgotten since.
        (Said(Released), Never | NodeGone) if is_overlapping => Some(Fate::Moved),
        // The source is no pod any more that could go on.
        _ if is_made_again(observed.target_pod.as_ref(), observed.uid()) => {
            is_lost.then_some(Fate::Kept)
        }
        (Said(Opened), Never | NodeGone | Said(NeverThawed | Stopped | Kept)) => Some(Fate::Stays),
        (Never | NodeGone, Said(NeverThawed | Stopped)) => Some(Fate::Stays),
        (Never, Never | NodeGone) | (NodeGone, Never) if nothing_began => Some(Fate::Stays),
        (Said(Released), Said(NeverThawed | Stopped | Kept)) | (NodeGone, Said(Kept)) => {
            Some(Fate::Kept)
        }
        _ => None,
    }
}

/// How it has ended, if that is settled; then what follows from that is in the status, as if the operator had
/// recorded it. `reached`: the step of the plan before, if there was one.
pub fn settle(observed: &mut Observed, reached: Option<Step>, now: Timestamp) -> Option<Fate> {
    let fate = fate(observed)?;
    let resumed_at = observed.target.report().and_then(|report| report.thawed_at).unwrap_or(now);
    let status = observed.migration.status.get_or_insert_default();
    match fate {
        Fate::Stays => {
            status.decision = Some(Decision::Abort);
            status.set_step(Step::RolledBack);
        }
        Fate::Moved => {
            status.decision = Some(Decision::Commit);
            status.resumed_at = Some(MicroTime(resumed_at));
            status.set_step(reached.unwrap_or(Step::Resumed));
        }
        Fate::Kept => {}
    }
    Some(fate)
}

/// What may be done before it is [settled](settle): where the target runs for good, the source's sandbox can go at any
/// moment, and must not free the address with it.
pub fn meanwhile(observed: &Observed) -> Vec<Action> {
    match target_last(observed) {
        Some(Last::Said(TargetOutcome::Resumed)) => takeover::move_leases(observed),
        _ => Vec::new(),
    }
}

/// What is to be done about one that is [settled](settle).
pub fn plan(observed: &Observed, fate: Fate, now: Timestamp) -> Plan {
    let mut plan = match fate {
        Fate::Stays | Fate::Moved => plan::plan(observed, now),
        Fate::Kept => Plan {
            status: observed.status(),
            actions: trial_goes(observed).into_iter().collect(),
            again: Some(LOOK_AGAIN),
            ..Plan::default()
        },
    };
    plan.actions.retain(is_possible);
    plan
}

/// The pod of a restore on trial is good for nothing any more. One that was made again stays, as its source does: its
/// owner would start another one afresh.
fn trial_goes(observed: &Observed) -> Option<Action> {
    let is_trial = !is_made_again(observed.target_pod.as_ref(), observed.uid());
    let is_closed = observed.target.is_done(observed.target_node_gone);
    if is_trial && is_closed { rollback::target_goes(observed)?.0 } else { None }
}

/// There is no object to be patched. And the sides are what tells how it ended: their agents forget them when no pod
/// bears a mark any more.
fn is_possible(action: &Action) -> bool {
    !matches!(
        action,
        Action::RemoveFinalizer
            | Action::EndHandover
            | Action::DropWitness
            | Action::FreeName
            | Action::Forget(_)
    )
}

/// What people are told beside its pods.
pub fn told(observed: &Observed, fate: Option<Fate>) -> Note {
    let [source, target] = Role::BOTH.map(|role| observed.node(role));
    let what = match fate {
        // It was given back already and bears no mark any more, or is gone.
        Some(Fate::Stays) if observed.source_pod.is_none() => "the pod was not moved".to_owned(),
        Some(Fate::Stays) => format!("the pod stays on {source}"),
        Some(Fate::Moved) => format!("the pod runs on {target}"),
        Some(Fate::Kept) => format!(
            "the pod has ended on {source} and is not made again; its state is kept on the nodes for a while (condition StateKept of the Node). To start the pod afresh instead, delete what is left of it"
        ),
        None => undecided(observed),
    };
    let name = observed.migration.metadata.name.as_deref().unwrap_or_default();
    Note {
        warning: !matches!(fate, Some(Fate::Stays | Fate::Moved)),
        reason: reasons::MIGRATION_VANISHED.to_owned(),
        message: format!(
            "Migration {name} ({}) vanished before it was over (its finalizer was taken off): {what}",
            observed.uid()
        ),
    }
}

fn undecided(observed: &Observed) -> String {
    let is_open = [source_last(observed).is_none(), target_last(observed).is_none()];
    let open: Vec<&str> = Role::BOTH
        .into_iter()
        .zip(is_open)
        .filter(|(_, is_open)| *is_open)
        .map(|(role, _)| observed.node(role))
        .collect();
    match open.is_empty() {
        true => "nobody tells any more which of its pods goes on, and all of them are left as they are: see which one runs, and delete the other".to_owned(),
        false => {
            format!("nothing is done before it is known how it ended on {}", open.join(" and on "))
        }
    }
}

#[cfg(test)]
#[path = "vanished_tests.rs"]
mod tests;
