//! Pods whose sandbox was made before the wrapper was in effect. The runtime makes each container of a sandbox as it
//! made the sandbox, so that nothing refuses what kubelet starts in it.

use anyhow::{Context, Result};
use transship_host::bundle::calls_wrapper;
use transship_host::freezer::{CgroupVersion, Freezer};
use transship_runtime::Layout;
use transship_runtime::container::Container;

use crate::pod::{FREEZER_LIMIT, Pod};

impl Pod {
    /// Ends such a sandbox, and all that kubelet has started in it since its containers were found: it would run
    /// beside the pod that runs elsewhere by now. In a sandbox that has ended nothing starts, and a new one is refused.
    pub fn kill_sandbox_without_wrapper(&self, layout: &Layout) -> Result<()> {
        let id = &self.sandbox_id;
        if calls_wrapper(&layout.bundle(id)) {
            return Ok(());
        }
        // First, so that none of them seems to run in an ended sandbox: kubelet would run its hook.
        kill_containers(layout, id)?;
        // What runc has forgotten has ended.
        if layout.runc_root.join(id).exists() {
            tracing::info!("the sandbox was made without the wrapper, so it is ended");
            kill(&Container::find(layout, id)?)?;
            // What was being started when it ended.
            kill_containers(layout, id)?;
        }
        Ok(())
    }
}

fn kill_containers(layout: &Layout, sandbox_id: &str) -> Result<()> {
    Container::of_sandbox(layout, sandbox_id)?.iter().try_for_each(kill)
}

fn kill(container: &Container) -> Result<()> {
    let version = CgroupVersion::try_from(container.cgroup_version).map_err(anyhow::Error::msg)?;
    Freezer { dir: container.freezer.clone(), version }
        .kill_all_frozen(FREEZER_LIMIT)
        .with_context(|| format!("tasks of container {} do not end", container.id))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Child, Command, ExitStatus};
    use std::thread::JoinHandle;

    use super::*;
    use crate::pod::tests::pod_of_self;

    /// A process, with a cgroup of its own, that runc takes for a container of this sandbox.
    fn run(root: &Path, id: &str, sandbox: &str) -> Child {
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        let (state_dir, cgroup) = (root.join("runc").join(id), root.join("cgroup").join(id));
        for dir in [&state_dir, &cgroup] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let labels = ["bundle=/b".to_owned(), format!("io.kubernetes.cri.sandbox-id={sandbox}")];
        let state = serde_json::json!({
            "id": id, "init_process_pid": process.id(), "init_process_start": 1,
            "config": {"rootfs": "/", "labels": labels},
            "cgroup_paths": {"freezer": cgroup},
        });
        std::fs::write(state_dir.join("state.json"), state.to_string()).unwrap();
        std::fs::write(cgroup.join("freezer.state"), "THAWED").unwrap();
        std::fs::write(cgroup.join("cgroup.procs"), process.id().to_string()).unwrap();
        process
    }

    /// Empties the process's cgroup when it has ended.
    fn reap(root: &Path, id: &str, mut process: Child) -> JoinHandle<ExitStatus> {
        let tasks = root.join("cgroup").join(id).join("cgroup.procs");
        std::thread::spawn(move || {
            let status = process.wait().unwrap();
            std::fs::write(tasks, "").unwrap();
            status
        })
    }

    #[test]
    fn a_sandbox_ends_with_all_in_it_if_nothing_would_refuse_what_kubelet_starts_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let layout =
            Layout { runc_root: root.join("runc"), tasks: root.join("tasks"), ..Layout::default() };
        let pod = pod_of_self();
        pod.kill_sandbox_without_wrapper(&layout).unwrap();

        let bundle = layout.bundle("s");
        std::fs::create_dir_all(&bundle).unwrap();
        let options = bundle.join("options.json");
        std::fs::write(&options, transship_host::bundle::WRAPPER).unwrap();
        let mut other = run(root, "c-other", "s-other");
        let (mut pause, mut fresh) = (run(root, "s", "s"), run(root, "c-fresh", "s"));
        pod.kill_sandbox_without_wrapper(&layout).unwrap();
        for process in [&mut pause, &mut fresh] {
            assert!(process.try_wait().unwrap().is_none(), "the wrapper refuses what is started");
        }

        std::fs::remove_file(&options).unwrap();
        let ended = [reap(root, "s", pause), reap(root, "c-fresh", fresh)];
        pod.kill_sandbox_without_wrapper(&layout).unwrap();
        for process in ended {
            assert!(!process.join().unwrap().success());
        }
        assert!(other.try_wait().unwrap().is_none(), "it is of another sandbox");

        // By another holder, when runc has forgotten the sandbox.
        std::fs::remove_dir_all(root.join("runc/s")).unwrap();
        let late = run(root, "c-late", "s");
        let late = reap(root, "c-late", late);
        pod.kill_sandbox_without_wrapper(&layout).unwrap();
        assert!(!late.join().unwrap().success());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
