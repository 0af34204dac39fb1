//! Whether the pod's StatefulSet still wants it.

use k8s_openapi::api::core::v1::Pod;

use super::source_name;
use crate::migration::state::{Observed, Owner};
use crate::sequential_pod::controller;
use crate::stateful_set::{counts, replaces_at_once};

/// What the deletion of the pod's StatefulSet means for the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnersWord {
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
/// [`crate::witness`]). With `--cascade=orphan` the reference is off before the
/// StatefulSet goes, so what the Migration says counts once that has gone; a Migration that
/// somebody has deleted as well is no sign before. Without a reference, for whatever reason,
/// the pod is made: a pod too many can be deleted, a state that was given up cannot be brought back.
pub(super) fn owners_word(observed: &Observed) -> OwnersWord {
    match observed.owner {
        Owner::Going => return OwnersWord::Awaited,
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
pub(super) fn owner_uid(observed: &Observed) -> Option<&String> {
    observed.manifest.as_ref().and_then(controller).map(|owner| &owner.uid)
}

/// The pod's StatefulSet, if it has one, still wants a pod of this name.
pub(super) fn is_wanted(observed: &Observed) -> bool {
    match &observed.owner {
        Owner::StatefulSet(set) => counts(set, source_name(observed)),
        Owner::None | Owner::Controller(_) | Owner::Going | Owner::Gone => true,
    }
}

/// The pod's StatefulSet rolls, and would replace it again and again before it runs.
pub(super) fn is_replaced(observed: &Observed) -> bool {
    match (&observed.owner, &observed.manifest) {
        (Owner::StatefulSet(set), Some(pod)) => replaces_at_once(set, pod),
        _ => false,
    }
}

/// The pod names an owner that has let its pods go, and was made too late to be let go with them: the
/// garbage collector deletes it, and nobody has meant it.
pub(super) fn is_left_over(observed: &Observed, pod: &Pod) -> bool {
    let owner = controller(pod).map(|owner| &owner.uid);
    owners_word(observed) == OwnersWord::PodStays && owner.is_some() && owner == owner_uid(observed)
}
