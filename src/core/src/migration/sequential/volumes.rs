//! Memory and files are of one moment: the state belongs to the volumes that the source had mounted.

use transship_api::conditions::{self as c, reasons};
use transship_api::names;
use transship_protocol::{TargetWord, must_be_asked_for};

use super::{Next, act, is_ours, source_name, wait};
use crate::migration::plan::Action;
use crate::migration::state::{Observed, Owner, Role};
use crate::migration::status;

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

/// UID of the pod that somebody wants restored once more, as it was written.
fn wanted(observed: &Observed) -> Option<&str> {
    let annotations = observed.migration.metadata.annotations.as_ref()?;
    annotations.get(names::RESTORE_ANYWAY).map(String::as_str)
}

/// The pod that was made again may have run before it was lost, and so have written to its volumes: whether the older
/// memory is restored on them is for somebody to say.
pub(super) fn is_for_somebody(observed: &Observed, uid: &str, word: TargetWord) -> bool {
    let must = must_be_asked_for(word, observed.is_cold(), has_volumes(observed));
    wanted(observed) != Some(uid) && (must || is_asked(observed))
}

/// Somebody is being asked about the pod that was made again. What its node has said is noted by that until it is
/// answered: the node may leave the cluster meanwhile, or lose its disk, and an operator that starts then hears nothing
/// of it.
fn is_asked(observed: &Observed) -> bool {
    let conditions = observed.status().conditions;
    c::find(&conditions, c::STALLED)
        .is_some_and(|c| c.status == "True" && c.reason == reasons::VOLUMES_NEWER)
}

/// Somebody has wanted the memory on volumes that may be newer. CRIU may refuse what it finds there for good, so
/// where no try succeeds the memory can still be given up.
pub(super) fn is_risked(observed: &Observed) -> bool {
    wanted(observed).is_some() && !observed.is_cold() && has_volumes(observed)
}

/// Asks for it. `why` is what the pod's node says of its end.
pub(super) fn ask(observed: &Observed, uid: &str, why: &str) -> Next {
    let (name, node) = (source_name(observed), observed.node(Role::Target));
    let meta = &observed.migration.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let migration = meta.name.as_deref().unwrap_or_default();
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
    let why = if why.is_empty() { "it was lost when it may have run" } else { why };
    let key = names::RESTORE_ANYWAY;
    let answer = wanted(observed).map_or_else(String::new, |value| {
        let value: String = value.chars().take(SHOWN).collect();
        format!(" The annotation {key} says {value:?}, which is not the UID of this pod, and changes nothing.")
    });
    Next::Stuck {
        reason: reasons::VOLUMES_NEWER,
        message: format!(
            "pod {name} could not be restored on {node}: {why}. It may have written to {volumes} before it was ended, and {older}.{answer} To give the memory up, delete the Migration: {afresh}. To restore the memory all the same: kubectl annotate --overwrite migration {migration} -n {namespace} {key}={uid}"
        ),
    }
}

/// The Migration is deleted, and the memory given up with it: the volumes stay as they are.
pub(super) fn give_up_memory(observed: &Observed) -> Next {
    let (name, node) = (source_name(observed), observed.node(Role::Target));
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
            message: format!(
                "the Migration was deleted, and the memory of pod {name} given up: its volumes may be newer"
            ),
            actions: vec![],
        },
    }
}
