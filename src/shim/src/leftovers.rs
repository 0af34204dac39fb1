//! What an earlier container of a pod has left alive.
//!
//! When a shim dies containerd has the pod's sandbox deleted. A container in it only counts as ended: containerd 2 has
//! it deleted, too, where it was restarted since that was made, and else nobody calls `delete`. kubelet starts it
//! afresh all the same, and the lost one must not run beside it.

use std::path::PathBuf;

use transship_host::bundle::Bundle;
use transship_host::error::Result;
use transship_host::files;
use transship_host::invocation::{DEFAULT_ROOT, Invocation};

use crate::wrapper::{KILL_LIMIT, Subject};

/// Kills, while they are frozen, the tasks of earlier containers of the same name; where a sandbox is about to be
/// made, those of all that the pod had in another one. The error is the sentence for runc's log.
pub(crate) fn end(invocation: &Invocation, subject: &Subject) -> std::result::Result<(), String> {
    let killed = earlier(invocation, subject).and_then(|earlier| {
        let kill = |left: &Bundle| left.freezer()?.kill_all_frozen(KILL_LIMIT);
        // Each of them, whatever became of the one before.
        earlier.iter().map(kill).fold(Ok(()), Result::and)
    });
    killed.map_err(|error| {
        format!("what is left of an earlier {} does not end: {}", subject.container, error.chain())
    })
}

/// Those that runc knows and that have a cgroup beside the new one. Whatever the driver of cgroups calls that, it names
/// the container.
fn earlier(invocation: &Invocation, subject: &Subject) -> Result<Vec<Bundle>> {
    // One whose place is left to runc has nothing beside it.
    let Ok(freezer) = subject.bundle.freezer() else { return Ok(Vec::new()) };
    let groups = freezer.dir.parent().map_or(Ok(Vec::new()), files::list)?;
    let root = invocation.root.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT));
    let mut found = Vec::new();
    for id in files::list(&root)? {
        let is_beside = groups.iter().any(|group| group.contains(&id));
        if !is_beside || invocation.id.as_deref() == Some(&id) {
            continue;
        }
        match Bundle::read_state(&root.join(id)) {
            Ok(other) if is_replaced(&other, subject) => found.push(other),
            Ok(_) => {}
            // It has not been made, or is gone.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// kubelet has one container of a name at a time, and one sandbox with what is in it.
fn is_replaced(other: &Bundle, by: &Subject) -> bool {
    let is_of_pod = other.pod_uid.as_deref() == Some(&by.pod_uid);
    let has_name = !other.sandbox && other.container == by.bundle.container;
    is_of_pod && (by.bundle.sandbox || has_name)
}
