//! Memory and files are of one moment: the state belongs to the volumes that the source had mounted.

use transship_api::conditions::reasons;
use transship_api::{MigrationStatus, names};
use transship_protocol::{TargetWord, gives_up_memory, must_be_asked_for};

use super::owner::{OwnersWord, owners_word};
use super::{Next, act, is_ours, nowhere, source_name, wait};
use crate::migration::plan::Action;
use crate::migration::state::{Observed, Owner, Role};
use crate::migration::{status, voting};

/// How much is shown of an annotation that is not what it should be, in characters: a UID has 36.
const SHOWN: usize = 40;

/// A claim that leads to another volume than the source's by now, or to none: somebody deleted it, and with a
/// StatefulSet its controller made a new one at once. One that was made anew and bound to the same volume
/// is as good as the old one.
pub(super) fn exchanged(observed: &Observed) -> Option<String> {
    let now = observed.volumes_now.as_ref()?;
    observed.volumes.iter().find_map(|(claim, volume)| {
        let found = now.get(claim).map_or("", String::as_str);
        let what = match found {
            found if found == volume && !found.is_empty() => return None,
            "" => format!("claim {claim} is gone or bound to no volume"),
            found => format!("claim {claim} is bound to volume {found}"),
        };
        if volume.is_empty() {
            // Gone before it was noted what it led to.
            return Some(format!(
                "{what}, and which volume the pod's state belongs to is not known; delete the Migration to give the state up"
            ));
        }
        Some(format!(
            "{what}, and the pod's state belongs to volume {volume}; make the claim again with spec.volumeName: {volume}, or delete the Migration to give the state up"
        ))
    })
}

/// What the source had mounted is told by its manifest.
fn has_volumes(observed: &Observed) -> bool {
    observed.manifest.is_none() || !observed.volumes.is_empty()
}

/// An answer, as it was written.
fn annotation<'a>(observed: &'a Observed, key: &str) -> Option<&'a str> {
    let annotations = observed.migration.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

/// The pod that was made again and of which it was asked last what is to become of the memory. The status notes it,
/// also when that is answered: the node may leave the cluster meanwhile, or lose its disk, and an operator that starts
/// then hears nothing of the try.
fn asked(observed: &Observed) -> Option<&str> {
    observed.migration.status.as_ref()?.asked_pod_uid.as_deref()
}

/// The pod that was made again may have run before it was lost, and so have written to its volumes: whether the older
/// memory is restored on them is for somebody to say. What was written before it was asked is no answer yet.
pub(super) fn is_for_somebody(observed: &Observed, uid: &str, word: TargetWord) -> bool {
    let is_asked = asked(observed) == Some(uid);
    let left = observed.target_node_gone
        && observed.target_pod.as_ref().is_none_or(|pod| !voting::has_gate(pod));
    let must = must_be_asked_for(word, left, observed.is_cold(), has_volumes(observed));
    let is_wanted = annotation(observed, names::RESTORE_ANYWAY) == Some(uid);
    (must || is_asked) && !(is_asked && is_wanted)
}

/// Whether somebody who was asked has given the memory up. That holds also when the memory was wanted on volumes that may
/// be newer: CRIU may refuse what it finds there for good.
pub(super) fn is_given_up(observed: &Observed) -> bool {
    let Some(uid) = asked(observed) else { return false };
    gives_up_memory(observed.is_deleting(), was_deleted_unasked(observed))
        || annotation(observed, names::GIVE_UP_MEMORY) == Some(uid)
}

/// Nobody needs to be asked: nothing would come of the memory.
pub(super) fn is_of_no_use(observed: &Observed) -> bool {
    owners_word(observed) == OwnersWord::PodGoes || (observed.is_deleting() && nowhere(observed))
}

fn was_deleted_unasked(observed: &Observed) -> bool {
    let status = observed.migration.status.as_ref();
    status.is_some_and(|status| status.deleted_unasked == Some(true))
}

/// Notes that it is asked what is to become of the memory of this pod. The write fails if the Migration is deleted in
/// between, so which of the two came first is certain.
pub(super) fn note_asked(status: &mut MigrationStatus, uid: String, is_deleting: bool) {
    if status.asked_pod_uid.is_none() && is_deleting {
        status.deleted_unasked = Some(true);
    }
    status.asked_pod_uid = Some(uid);
}

/// What gives the memory up, as a clause; `None` where nobody was asked.
pub(super) fn way_to_give_up(observed: &Observed) -> Option<String> {
    let uid = asked(observed)?;
    Some(match was_deleted_unasked(observed) {
        true => format!("give the memory up: {}", command(observed, names::GIVE_UP_MEMORY, uid)),
        false => "delete the Migration to give the memory up".to_owned(),
    })
}

/// What a person types to answer.
fn command(observed: &Observed, key: &str, uid: &str) -> String {
    let meta = &observed.migration.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let migration = meta.name.as_deref().unwrap_or_default();
    format!("kubectl annotate --overwrite migration {migration} -n {namespace} {key}={uid}")
}

/// What is said of answers that are about another pod.
fn wrong_answers(observed: &Observed, uid: &str) -> String {
    let said = |key: &str| {
        let value = annotation(observed, key).filter(|value| *value != uid)?;
        let value: String = value.chars().take(SHOWN).collect();
        Some(format!(
            " The annotation {key} says {value:?}, which is not the UID of this pod, and changes nothing."
        ))
    };
    [names::GIVE_UP_MEMORY, names::RESTORE_ANYWAY].into_iter().filter_map(said).collect()
}

/// Asks for it. `why` is what the pod's node says of its end.
pub(super) fn ask(observed: &Observed, uid: &str, why: &str) -> Next {
    let (name, node) = (source_name(observed), observed.node(Role::Target));
    let volumes: Vec<String> = observed
        .volumes
        .iter()
        .map(|(claim, volume)| format!("{volume} (claim {claim})"))
        .collect();
    let volumes = match volumes.is_empty() {
        true => "its volumes".to_owned(),
        false => volumes.join(", "),
    };
    let older = match &observed.status().frozen_at {
        Some(at) => format!("its memory is of {}", status::whole_seconds(at.0)),
        None => "its memory is older".to_owned(),
    };
    let afresh = match observed.owner {
        Owner::StatefulSet(_) => "its StatefulSet then starts it afresh on what is there",
        _ => "a pod of that name can then be started afresh on what is there",
    };
    let why = match why {
        "" if observed.target_node_gone => {
            "the node has left the cluster and did not say what became of it"
        }
        "" => "it was lost when it may have run",
        why => why,
    };
    // Before it is noted, what is observed now is what will be.
    let unasked = match asked(observed) {
        None => observed.is_deleting(),
        Some(_) => was_deleted_unasked(observed),
    };
    let give_up = match unasked {
        true => format!(
            "The Migration was deleted before this was asked, which gives nothing up. To give the memory up ({afresh}): {}.",
            command(observed, names::GIVE_UP_MEMORY, uid)
        ),
        false => format!("To give the memory up, delete the Migration: {afresh}."),
    };
    Next::Ask {
        uid: uid.to_owned(),
        message: format!(
            "pod {name} could not be restored on {node}: {why}. It may have written to {volumes} before it was ended, and {older}.{} {give_up} To restore the memory all the same: {}",
            wrong_answers(observed, uid),
            command(observed, names::RESTORE_ANYWAY, uid)
        ),
    }
}

/// The memory is given up: the volumes stay as they are. `is_open`: the pod's side is still at work, since a node that
/// had left the cluster is back.
pub(super) fn give_up_memory(observed: &Observed, is_open: bool) -> Next {
    let (name, node) = (source_name(observed), observed.node(Role::Target));
    if is_open {
        return act(vec![Action::GiveUp(Role::Target)], format!("{node} is to close its side"));
    }
    match &observed.target_pod {
        Some(pod) => {
            let goes = pod.metadata.deletion_timestamp.is_some();
            let actions = if goes { vec![] } else { vec![Action::DeleteAgain] };
            act(actions, format!("pod {name}, whose memory is given up, goes from {node}"))
        }
        // Somebody else's may have come instead, and stays.
        None if observed.again_pod.as_ref().is_some_and(|pod| is_ours(observed, pod)) => {
            wait(format!("pod {name} goes from {node}"))
        }
        None => Next::End {
            succeeded: false,
            reason: reasons::CANCELLED,
            message: format!("the memory of pod {name} was given up: its volumes may be newer"),
            actions: vec![],
        },
    }
}
