//! The other way out of a restore: ends those that are under way, kills whatever they have left, by cgroup, and
//! tells whether anything of it may have run.

use std::path::Path;

use anyhow::Result;
use rustix::process::Pid;
use transship_host::bundle::Bundle;
use transship_host::freezer::Freezer;
use transship_host::markers::{Held, Restored, Waiting};
use transship_host::{quiesce, unfinished};
use transship_protocol::Verb;

use crate::holder::Holder;
use crate::pod::{FREEZER_LIMIT, Pod, moving};

/// Kills restores that are under way, with everything they have started: nothing of them may
/// come to life after the containers' cgroups were emptied.
pub fn end_restores(holder: &Holder) -> Result<()> {
    for work in quiesce::at_work(&holder.host, &holder.task.pod.uid)? {
        if work.verb == Verb::Create && !work.bundle.sandbox {
            // Its own end first looked up, since CRIU may have left the cgroup by then; the tasks
            // are killed while frozen, as CRIU's death alone would let them run.
            let programs = descendants(work.pid);
            if let Ok(freezer) = work.bundle.freezer()
                && let Err(error) = freezer.kill_all_frozen(FREEZER_LIMIT)
            {
                tracing::warn!("{}", error.chain());
            }
            for pid in programs.into_iter().chain([work.pid]) {
                kill(pid);
            }
        }
    }
    Ok(())
}

/// Everything below a process, deepest last.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let mut queue = vec![pid];
    while let Some(pid) = queue.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            for child in children.unwrap_or_default().split_ascii_whitespace() {
                if let Ok(child) = child.parse()
                    && !found.contains(&child)
                {
                    found.push(child);
                    queue.push(child);
                }
            }
        }
    }
    found
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Gone is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Kills every task that a restore of this pod can have made, while it is frozen, and removes what a killed
/// restore has left besides.
pub fn kill_frozen(holder: &Holder) -> Result<()> {
    for freezer in freezers(holder)? {
        freezer.kill_all_frozen(FREEZER_LIMIT)?;
    }
    // Containers that start afresh are containerd's from the beginning.
    if holder.task.part.is_cold() {
        return Ok(());
    }
    remove_unfinished(holder)
}

/// A container that may have run before it was held, of those that have been restored in this pod.
pub fn may_have_run(holder: &Holder) -> Result<Option<String>> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    for name in moving(&holder.task) {
        if dir.may_have_run(name)? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// What the runtime's wrapper would have removed, had it not been killed. A container that was restored is
/// containerd's, which has it deleted.
fn remove_unfinished(holder: &Holder) -> Result<()> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    for name in moving(&holder.task) {
        if dir.marked::<Restored>(name)?.is_none()
            && let Some(waiting) = dir.marked::<Waiting>(name)?
            && let Some(state_dir) = waiting.state_dir()
        {
            unfinished::remove(&state_dir)?;
        }
    }
    Ok(())
}

/// The freezers of the pod's containers, from every trace that they may have left.
fn freezers(holder: &Holder) -> Result<Vec<Freezer>> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    let mut found: Vec<Freezer> = Vec::new();
    let mut add = |freezer: Freezer| {
        if !found.contains(&freezer) {
            found.push(freezer);
        }
    };
    for name in moving(&holder.task) {
        if let Some(restored) = dir.marked::<Restored>(name)? {
            add(restored.freezer);
        }
        if let Some(held) = dir.marked::<Held>(name)? {
            add(held.freezer);
        }
        if let Some(waiting) = dir.marked::<Waiting>(name)?
            && let Some(freezer) = waiting.freezer.or_else(|| of_bundle(&waiting.bundle))
        {
            add(freezer);
        }
    }
    if let Some(pod) = Pod::load(&holder.dir)? {
        pod.containers.into_iter().for_each(|container| add(container.freezer));
    }
    Ok(found)
}

/// As wrappers told it that did not name the freezer.
fn of_bundle(bundle: &Path) -> Option<Freezer> {
    Bundle::read(bundle).ok()?.freezer().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use transship_host::freezer::CgroupVersion;
    use transship_host::markers::Unheld;
    use transship_host::{HostRoot, files};
    use transship_runtime::Layout;

    use super::*;

    fn holder(root: &Path) -> Holder {
        let (host, task) = (HostRoot::at(root), crate::areas::tests::task());
        let migration = host.migration(&task.migration.uid, task.role).unwrap();
        std::fs::create_dir_all(migration.path()).unwrap();
        Holder::new(host, Layout::default(), migration, task)
    }

    #[test]
    fn everything_that_a_process_has_started_is_found_and_killed() {
        let mut parent = Command::new("sh")
            .args(["-c", "sh -c 'sleep 1000; :' & echo started; read -r _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 8];
        std::io::Read::read_exact(parent.stdout.as_mut().unwrap(), &mut line).unwrap();
        // Open to the end, so that only a kill ends the reader.
        let _read_from = parent.stdin.take();
        let deadline = Instant::now() + Duration::from_secs(10);
        let all = loop {
            let all = descendants(parent.id());
            if all.len() >= 2 || Instant::now() > deadline {
                break all;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(all.len(), 2, "shell and sleep");
        for pid in all.iter().copied().chain([parent.id()]) {
            kill(pid);
        }
        assert!(!parent.wait().unwrap().success());
    }

    #[test]
    fn a_container_that_was_let_go_before_it_was_held_is_found() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let dir = holder.host.pod(&holder.task.pod.uid).unwrap();
        assert_eq!(may_have_run(&holder).unwrap(), None);
        dir.mark("web", &Unheld { pid: 1 }).unwrap();
        assert_eq!(may_have_run(&holder).unwrap().as_deref(), Some("web"));
    }

    #[test]
    fn what_a_killed_restore_has_left_goes_with_its_tasks_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let runc_root = root.path().join("runc");
        for id in ["killed", "restored", "foreign"] {
            std::fs::create_dir_all(runc_root.join(id)).unwrap();
            std::fs::write(runc_root.join(id).join("state.json"), "{}").unwrap();
        }
        let pod = holder.host.pod(&holder.task.pod.uid).unwrap();
        for (container, id) in [("web", "killed"), ("aux", "restored")] {
            let waiting = Waiting {
                container_id: id.into(),
                bundle: "/nonexistent".into(),
                rootfs: "/nonexistent/rootfs".into(),
                runc_root: runc_root.clone(),
                pid: 1,
                freezer: None,
            };
            pod.mark(container, &waiting).unwrap();
        }
        let restored = Restored {
            container_id: "restored".into(),
            pid: 1,
            freezer: Freezer { dir: "/nonexistent".into(), version: CgroupVersion::V1 },
            runc_root: runc_root.clone(),
            bundle: "/nonexistent".into(),
        };
        pod.mark("aux", &restored).unwrap();
        kill_frozen(&holder).unwrap();
        kill_frozen(&holder).unwrap();
        assert_eq!(files::list(&runc_root).unwrap(), ["foreign", "restored"]);
    }

    #[test]
    fn a_restore_is_found_by_its_freezer_though_its_bundle_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let pod = holder.host.pod(&holder.task.pod.uid).unwrap();
        let freezer = Freezer { dir: root.path().join("cgroup"), version: CgroupVersion::V1 };
        let mut waiting = Waiting {
            container_id: "c-1".into(),
            bundle: "/nonexistent".into(),
            rootfs: "/nonexistent/rootfs".into(),
            runc_root: root.path().join("runc"),
            pid: 1,
            freezer: None,
        };
        pod.mark("web", &waiting).unwrap();
        assert_eq!(freezers(&holder).unwrap(), []);
        waiting.freezer = Some(freezer.clone());
        pod.mark("web", &waiting).unwrap();
        assert_eq!(freezers(&holder).unwrap(), [freezer]);
    }
}
