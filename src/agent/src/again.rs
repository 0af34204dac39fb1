//! A further life of a migration's target, in a sequential hand-over: the pod was made again, and is
//! to be restored from the state that lies on this node since the vote.
//!
//! Each step may be repeated: the operator calls until the new life has begun. The marker `closed`
//! goes last, since without it the supervisor starts a holder.

use tonic::Status;
use transship_host::paths::{MigrationDir, Role};
use transship_host::task::HolderTask;
use transship_host::{HostRoot, files};

/// Files of a holder that a new life must not take for its own.
const LEFT: [&str; 3] = ["journal", "status.json", "pod.json"];

fn failed(error: transship_host::Error) -> Status {
    Status::internal(error.chain())
}

/// Prepares the directory for the pod in `task`; `write_record` makes the pod known to the wrapper.
pub fn start(
    host: &HostRoot,
    dir: &MigrationDir,
    task: &HolderTask,
    write_record: impl FnOnce() -> Result<(), Status>,
) -> Result<(), Status> {
    let taken = dir.read_task().map_err(failed)?;
    let closed = dir.is_closed().map_err(failed)?;
    let same = taken.as_ref().is_some_and(|taken| taken.pod.uid == task.pod.uid);
    if same && (!closed || dir.journal().exists()) {
        return Ok(());
    }
    if taken.is_some() && !closed {
        return Err(Status::failed_precondition(format!(
            "the pod that was made before in migration {} is not closed",
            task.migration.uid
        )));
    }
    if task.part.is_at_source() {
        take_from_source(host, dir, task)?;
    }
    // A cold one has files alone.
    let state = if task.part.is_cold() { "trees" } else { "images" };
    if !dir.path().join(state).is_dir() {
        return Err(Status::failed_precondition(format!(
            "no state of migration {} is kept here",
            task.migration.uid
        )));
    }
    write_record()?;
    files::remove_tree(&dir.path().join("work")).map_err(failed)?;
    for name in LEFT {
        files::remove_durably(&dir.path().join(name)).map_err(failed)?;
    }
    dir.write_task(task).map_err(failed)?;
    files::remove_durably(&dir.closed()).map_err(failed)?;
    wake(host);
    Ok(())
}

/// On the source's node its own copy is used.
fn take_from_source(host: &HostRoot, dir: &MigrationDir, task: &HolderTask) -> Result<(), Status> {
    let source = host.migration(&task.migration.uid, Role::Source).map_err(failed)?;
    files::make_dir(dir.path()).map_err(failed)?;
    for name in ["images", "trees"] {
        let (from, to) = (source.kept().join(name), dir.path().join(name));
        if from.is_dir() && !to.exists() {
            files::rename_durably(&from, &to).map_err(failed)?;
        }
    }
    Ok(())
}

/// The supervisor looks at changes of the directory of all migrations; a change below one of them it
/// would see a second later only.
fn wake(host: &HostRoot) {
    let hint = host.migrations().join(".changed");
    let _ = std::fs::write(&hint, b"").and_then(|()| std::fs::remove_file(&hint));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrations::tests::task;
    use transship_host::task::Part;

    fn again(pod: &str, part: Part) -> HolderTask {
        let mut task = task("m-1", Role::Target);
        task.pod.uid = pod.into();
        task.part = part;
        task
    }

    #[test]
    fn a_new_life_begins_once_and_only_after_the_last_one_has_ended() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let dir = host.migration("m-1", Role::Target).unwrap();
        dir.write_task(&again("trial", Part::Trial)).unwrap();
        std::fs::write(dir.journal(), "x").unwrap();
        std::fs::create_dir(dir.path().join("images")).unwrap();
        let start = |pod: &str| {
            let task = again(pod, Part::Again);
            let mut written = false;
            let started = start(&host, &dir, &task, || {
                written = true;
                Ok(())
            });
            started.map(|()| written)
        };
        assert!(start("web-0").is_err(), "the trial is at work");
        dir.close().unwrap();
        assert!(start("web-0").unwrap());
        assert!(!dir.is_closed().unwrap() && !dir.journal().exists());
        assert!(dir.path().join("images").is_dir());
        assert!(!start("web-0").unwrap(), "a repeated call changes nothing");
        std::fs::write(dir.journal(), "x").unwrap();
        dir.close().unwrap();
        assert!(!start("web-0").unwrap(), "not after its end either");
        assert!(start("web-0-again").unwrap());
    }

    #[test]
    fn a_call_that_was_cut_short_is_completed() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let dir = host.migration("m-1", Role::Target).unwrap();
        let task = again("web-0", Part::Again);
        dir.write_task(&task).unwrap();
        std::fs::create_dir(dir.path().join("images")).unwrap();
        dir.close().unwrap();
        start(&host, &dir, &task, || Ok(())).unwrap();
        assert!(!dir.is_closed().unwrap());
    }

    #[test]
    fn on_the_sources_node_its_own_copy_is_used() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let dir = host.migration("m-1", Role::Target).unwrap();
        let task = again("web-0", Part::AgainAtSource);
        assert!(start(&host, &dir, &task, || Ok(())).is_err(), "nothing is kept");
        let source = host.migration("m-1", Role::Source).unwrap();
        std::fs::create_dir_all(source.kept().join("images/web")).unwrap();
        std::fs::create_dir_all(source.kept().join("trees")).unwrap();
        start(&host, &dir, &task, || Ok(())).unwrap();
        assert!(dir.path().join("images/web").is_dir() && dir.path().join("trees").is_dir());
    }

    #[test]
    fn a_cold_one_needs_files_and_no_images() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let dir = host.migration("m-1", Role::Target).unwrap();
        let task = again("web-0", Part::ColdAgainAtSource);
        assert!(start(&host, &dir, &task, || Ok(())).is_err(), "nothing is kept");
        let source = host.migration("m-1", Role::Source).unwrap();
        std::fs::create_dir_all(source.kept().join("trees")).unwrap();
        start(&host, &dir, &task, || Ok(())).unwrap();
        assert!(dir.path().join("trees").is_dir());
    }
}
