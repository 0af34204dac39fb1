//! A pod of this very process, and one whose shim dies.

use super::*;

/// A pod whose one container is this very process.
pub(crate) fn pod_of_self() -> Pod {
    let layout = Layout::default();
    let pid = std::process::id();
    Pod {
        sandbox_id: "s".into(),
        sandbox_pid: pid,
        netns: "/proc/self/ns/net".into(),
        devices: vec!["eth0".into()],
        containers: vec![PodContainer {
            name: "web".into(),
            id: "c".into(),
            pid,
            start_time: start_time(&layout, pid as i32).unwrap(),
            parent: container::parent(&layout, pid as i32),
            bundle: Some("/".into()),
            freezer: Freezer { dir: "/nonexistent".into(), version: CgroupVersion::V1 },
            rootfs: "/".into(),
        }],
    }
}

#[test]
fn only_the_sandbox_that_was_checked_is_the_pods() {
    let mut task = crate::areas::tests::task();
    assert!(is_checked(&task, "s-1"), "an older operator does not say which");
    task.sandbox = Some("s-1".into());
    assert!(is_checked(&task, "s-1") && !is_checked(&task, "s-2"));
}

#[test]
fn a_container_whose_shim_dies_is_an_orphan() {
    use std::io::{BufRead, BufReader};
    let layout = Layout::default();
    let mut shim = std::process::Command::new("sh")
        .args(["-c", "sleep 1000 & echo $!; wait"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(shim.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid: u32 = line.trim().parse().unwrap();
    let mut container = pod_of_self().containers.remove(0);
    container.pid = pid;
    container.start_time = start_time(&layout, pid as i32).unwrap();
    container.parent = container::parent(&layout, pid as i32);
    assert_eq!(container.parent, Some(shim.id()));
    assert_eq!(container.orphaned(&layout), None);
    assert!(!container.has_shim(&layout), "its name is sh");
    let pod = Pod { containers: vec![container.clone()], ..pod_of_self() };
    assert_eq!(pod.lost(&layout), None);
    assert_eq!(pod.lost_by_runtime(&layout, || true), None);
    shim.kill().unwrap();
    shim.wait().unwrap();
    assert!(pod.is_alive(&layout), "to a source it still is what moves");
    let lost = pod.lost(&layout).unwrap();
    assert_eq!(lost, "the shim of container web has died");
    let lost_with_shim = lost.clone();
    assert_eq!(pod.orphaned(&layout).as_ref(), Some(&lost));
    assert_eq!(pod.lost_by_runtime(&layout, || false).as_ref(), Some(&lost));
    assert_eq!(pod.verify_held(&layout).unwrap_err().to_string(), lost);
    container.parent = None;
    assert_eq!(container.orphaned(&layout), None, "what an earlier version found has no parent");
    container.bundle = Some("/nonexistent".into());
    let lost = container.orphaned(&layout).unwrap();
    assert_eq!(lost, "containerd has forgotten container web");
    container.bundle = None;
    assert_eq!(container.orphaned(&layout), None, "nor a bundle");
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    while pod.is_alive(&layout) {
        std::thread::yield_now();
    }
    assert_eq!(pod.orphaned(&layout), None, "it has ended");
    assert_eq!(pod.lost_by_runtime(&layout, || false).as_ref(), Some(&lost_with_shim));
    let mut pod = pod;
    pod.containers[0].bundle = Some("/nonexistent".into());
    assert_eq!(pod.lost_by_runtime(&layout, || false), None, "in an orderly way");
    assert_eq!(pod.lost_by_runtime(&layout, || true), Some(lost_with_shim), "no shim may end yet");
}

#[test]
fn a_pod_survives_in_its_file() {
    let root = tempfile::tempdir().unwrap();
    let dir = MigrationDir::at(root.path());
    assert_eq!(Pod::load(&dir).unwrap(), None);
    let pod = pod_of_self();
    pod.save(&dir).unwrap();
    assert_eq!(Pod::load(&dir).unwrap(), Some(pod));
}

#[test]
fn a_container_lives_only_with_the_very_process_that_was_found() {
    let layout = Layout::default();
    let mut pod = pod_of_self();
    assert!(pod.is_alive(&layout));
    assert_eq!(pod.lost(&layout), None);
    pod.containers[0].start_time += 1;
    assert!(!pod.is_alive(&layout));
    assert_eq!(pod.lost(&layout).unwrap(), "the first process of container web is gone");
    assert_eq!(
        pod.lost_by_runtime(&layout, || true),
        None,
        "it may end as it likes beside its shim"
    );
    pod.containers[0].bundle = Some("/nonexistent".into());
    assert_eq!(pod.orphaned(&layout), None, "what is dead runs beside nobody");
    assert_eq!(pod.kill_orphans(&layout).unwrap(), None);
    pod.containers.clear();
    assert!(!pod.is_alive(&layout), "a pod without containers has nothing that lives");
    assert!(pod.lost(&layout).is_some());
}

#[test]
fn a_container_whose_cgroup_is_gone_is_thawed_but_not_frozen() {
    let layout = Layout::default();
    let pod = pod_of_self();
    pod.thaw().unwrap();
    assert!(pod.freeze().is_err());
    assert!(pod.verify_frozen(&layout).is_err());
    pod.freeze_what_is_left().unwrap();
}

#[test]
fn a_container_that_cannot_be_frozen_does_not_let_the_others_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut pod = pod_of_self();
    let mut other = pod.containers[0].clone();
    other.freezer.dir = dir.path().join("other");
    let state = other.freezer.dir.join("freezer.state");
    std::fs::create_dir(&other.freezer.dir).unwrap();
    std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
    pod.containers.push(other);
    std::fs::write(&state, "THAWED").unwrap();
    let error = format!("{:#}", pod.freeze().unwrap_err());
    assert!(error.contains("container web"), "{error}");
    assert_eq!(std::fs::read_to_string(&state).unwrap(), "FROZEN");
}
