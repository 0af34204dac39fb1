//! How far CRIU is with a restore, as its action script notes it in the bundle for the wrapper.
//!
//! Only runc, whose child CRIU is, sees how CRIU ends, and it tells only when it has cleaned up. A CRIU that was
//! killed leaves its tasks in the container's cgroups, and runc tries for a second to remove each of these. So the
//! script names CRIU before the first task is made, and removes the note when CRIU has let go of all of them: a CRIU
//! that has ended while the note is there has failed, and runc will fail, at once if the tasks are dead.
//!
//! From the removal on until CRIU has answered runc and ended, about a millisecond, its death is for runc to see.

use std::fs::{self, File};
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::process::wait_readable;

/// With the bundle it is in the memory of the node, and goes with the container.
fn note(bundle: &Path) -> PathBuf {
    bundle.join("transship-hold.criu")
}

/// CRIU is about to make the first task.
pub(crate) fn begin(bundle: &Path, criu: u32) -> Result<()> {
    fs::write(note(bundle), criu.to_string())
}

/// CRIU has let go of every task; or an earlier restore into this bundle is forgotten.
pub(crate) fn finish(bundle: &Path) -> Result<()> {
    match fs::remove_file(note(bundle)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether CRIU has begun and has not let go of every task.
pub(crate) fn is_unfinished(bundle: &Path) -> bool {
    note(bundle).exists()
}

/// The caller sees to the tasks, until it drops this or is killed. `None` before the first is made.
pub(crate) fn see_to_tasks(bundle: &Path) -> Option<File> {
    let note = File::open(note(bundle)).ok()?;
    flock(&note, FlockOperation::LockExclusive).ok()?;
    Some(note)
}

/// Whether CRIU has ended before it was finished, and nobody sees to the tasks.
pub(crate) fn is_abandoned(bundle: &Path) -> bool {
    let criu = fs::read_to_string(note(bundle)).unwrap_or_default();
    // Where there is none it has not begun, or just so.
    let Some(criu) = criu.parse().ok().and_then(Pid::from_raw) else { return false };
    // A CRIU that finishes does so before it ends, and a script that has seen it alive has begun before that: this is
    // the order to look in.
    has_ended(criu)
        && File::open(note(bundle))
            .is_ok_and(|note| flock(&note, FlockOperation::NonBlockingLockExclusive).is_ok())
}

/// In doubt it has not.
fn has_ended(pid: Pid) -> bool {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => wait_readable(&process, Duration::ZERO).unwrap_or(false),
        Err(errno) => errno == Errno::SRCH,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use transship_host::markers::wait_for;

    use super::*;

    /// Above what a kernel gives.
    const NOBODY: u32 = i32::MAX.cast_unsigned();

    /// Waits for it: a program that another test is just starting has, until it is another program, all that this
    /// one had open, and with it the lock.
    fn becomes_abandoned(bundle: &Path) -> bool {
        let look = || Ok(is_abandoned(bundle).then_some(()));
        wait_for(Duration::from_secs(10), look).unwrap().is_some()
    }

    #[test]
    fn a_restore_is_abandoned_when_its_criu_ends_before_it_is_finished() {
        let bundle = tempfile::tempdir().unwrap();
        let bundle = bundle.path();
        let mut criu = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(!is_abandoned(bundle), "it has not begun");
        begin(bundle, criu.id()).unwrap();
        assert!(!is_abandoned(bundle), "CRIU is at work");
        criu.kill().unwrap();
        assert!(becomes_abandoned(bundle), "nobody has waited for it yet: runc may be busy");
        criu.wait().unwrap();
        begin(bundle, NOBODY).unwrap();
        assert!(becomes_abandoned(bundle), "no trace of it is left");
        finish(bundle).unwrap();
        assert!(!is_abandoned(bundle), "it was finished");
    }

    #[test]
    fn the_wrapper_leaves_tasks_to_the_script_as_long_as_that_is_at_work() {
        let bundle = tempfile::tempdir().unwrap();
        let bundle = bundle.path();
        assert!(see_to_tasks(bundle).is_none(), "there are none");
        begin(bundle, NOBODY).unwrap();
        let script = see_to_tasks(bundle).unwrap();
        assert!(!is_abandoned(bundle));
        drop(script);
        assert!(becomes_abandoned(bundle));
        assert!(becomes_abandoned(bundle), "to look at it changes nothing");
    }

    #[test]
    fn what_is_not_told_is_no_failure_and_what_was_is_forgotten_once() {
        let bundle = tempfile::tempdir().unwrap();
        let bundle = bundle.path();
        assert!(!is_unfinished(bundle));
        fs::write(note(bundle), "").unwrap();
        assert!(is_unfinished(bundle) && !is_abandoned(bundle), "it is about to be told");
        finish(bundle).unwrap();
        finish(bundle).unwrap();
        assert!(!is_unfinished(bundle));
    }
}
