//! What a restore leaves in runc's state when it is killed. For CRIU, runc binds the container's root file
//! system to a directory there, and detaches it only at its own end. Nobody else ever does: containerd does not
//! know of it, and runc's `delete` removes whatever it finds in the directory, the mounted files included.

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{Error, Result};
use crate::files;

/// Where runc binds the root, in its state directory of the container.
const CRIU_ROOT: &str = "criu-root";

/// Detaches the root from runc's state directory of a container; it need not be there. If this succeeds, the
/// directory can be removed without touching the container's files.
pub fn detach(state_dir: &Path) -> Result<()> {
    let root = state_dir.join(CRIU_ROOT);
    // The files in it are the container's own: no link is followed, and nothing below is looked at.
    match unmount(&root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // INVAL: nothing is mounted there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(Error::errno("detach", &root)(errno)),
    }
    // Fails if it is still, or again, a mount.
    match fs::remove_dir(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", &root)(error))
        }
        _ => Ok(()),
    }
}

/// As [`detach`], and removes the state directory: for a container that containerd will not have deleted,
/// because its `create` failed. None of its tasks may be left.
pub fn remove(state_dir: &Path) -> Result<()> {
    detach(state_dir)?;
    files::remove_tree(state_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_one_container_is_removed_whether_it_is_there_or_not() {
        let runc_root = tempfile::tempdir().unwrap();
        let [state, other] = ["c1", "c2"].map(|id| runc_root.path().join(id));
        for dir in [&state, &other] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("state.json"), "{}").unwrap();
        }
        detach(&state).unwrap();
        assert!(state.join("state.json").exists());
        remove(&state).unwrap();
        remove(&state).unwrap();
        assert!(!state.exists() && other.join("state.json").exists());
    }
}
