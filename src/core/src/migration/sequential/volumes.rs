//! Memory and files are of one moment: the state belongs to the volumes that the source had mounted.

use crate::migration::state::Observed;

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
