//! What fails on the way to the vote, and how it is told.

use super::*;
use std::process::Command;
use transship_host::freezer::{CgroupVersion, Freezer};

#[test]
fn a_wrapper_that_is_killed_without_a_word_has_failed() {
    let root = tempfile::tempdir().unwrap();
    let dir = transship_host::HostRoot::at(root.path()).pod("p").unwrap();
    let mut wrapper = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut wrappers = Wrappers::default();
    wrappers.add(wrapper.id(), "web");
    wrappers.check(&dir).unwrap();
    wrapper.kill().unwrap();
    wrapper.wait().unwrap();
    let error = wrappers.check(&dir).unwrap_err();
    assert_eq!(told(&error, Path::new("/dir"), "node-a").0, "RestoreFailed");
    dir.mark("web", &Failed { message: "no".into(), log: String::new() }).unwrap();
    wrappers.check(&dir).unwrap();
    wrappers.add(wrapper.id(), "gone-before");
    assert!(wrappers.check(&dir).is_err());
}

#[test]
fn a_wrapper_that_is_killed_when_that_may_let_tasks_go_is_told_so() {
    let root = tempfile::tempdir().unwrap();
    let dir = transship_host::HostRoot::at(root.path()).pod("p").unwrap();
    dir.mark("web", &transship_host::markers::Unheld { pid: 1 }).unwrap();
    let mut wrappers = Wrappers::default();
    wrappers.0.insert("web".into(), None);
    let error = wrappers.check(&dir).unwrap_err().to_string();
    assert!(error.contains("was killed while") && error.contains("may have run"), "{error}");
}

#[test]
fn a_restored_container_whose_shim_dies_while_others_are_restored_has_failed() {
    let root = tempfile::tempdir().unwrap();
    let dir = transship_host::HostRoot::at(root.path()).pod("p").unwrap();
    let layout = Layout { proc: root.path().join("proc"), ..Layout::default() };
    let process = |pid: u32, stat: &str| {
        let of = layout.proc.join(pid.to_string());
        std::fs::create_dir_all(&of).unwrap();
        std::fs::write(of.join("stat"), format!("{pid} {stat}")).unwrap();
    };
    process(1, "(systemd) S 0 1");
    process(7, "(containerd-shim) S 1 7");
    process(8, "(web) S 7 8");
    let restored = Restored {
        container_id: "c".into(),
        pid: 8,
        freezer: Freezer { dir: "/nonexistent".into(), version: CgroupVersion::V1 },
        runc_root: "/nonexistent".into(),
        bundle: "/nonexistent".into(),
    };
    dir.mark("web", &restored).unwrap();
    let check = || check_restored(&layout, &dir, &["web".to_owned(), "other".to_owned()]);
    check().unwrap();
    process(8, "(web) S 1 8");
    assert_eq!(told(&check().unwrap_err(), Path::new("/dir"), "node-a").0, "RestoreFailed");
    std::fs::remove_dir_all(layout.proc.join("8")).unwrap();
    assert!(check().is_err(), "it has ended");
}

#[test]
fn what_has_not_voted_waits_no_longer_than_a_probe_would_and_the_only_copy_as_long_as_it_takes() {
    use transship_host::task::Part;
    let mut task = crate::areas::tests::task();
    task.max_frozen_millis = 5_000;
    for (part, held, left) in [
        (Part::Overlap, 0, Some(5)),
        (Part::Trial, 2, Some(3)),
        (Part::Overlap, 9, Some(0)),
        (Part::Again, 0, None),
        (Part::AgainAtSource, 9, None),
    ] {
        task.part = part;
        let left = left.map(Duration::from_secs);
        assert_eq!(patience(&task, Duration::from_secs(held)), left, "{part:?} after {held} s");
    }
}

#[test]
fn a_failure_is_called_by_its_cause() {
    use transship_transport::{Error, tree::TreeError};
    let dir = Path::new("/var/lib/transship/migrations/m");
    let told = |error: anyhow::Error| told(&error, dir, "node-a");
    let failed = RestoreFailed { container: "web".into(), message: "no".into() };
    assert_eq!(told(failed.into()).0, "RestoreFailed");
    assert_eq!(told(Error::Closed.into()).0, "ConnectionLost");
    let peer = Error::Peer { reason: "DumpFailed".into(), message: "no".into() };
    assert_eq!(told(peer.into()), ("DumpFailed".into(), "node-a failed: no".into()));
    assert_eq!(told(anyhow::anyhow!("x")).0, "TargetFailed");
    let file = |kind: ErrorKind| Error::File { what: "pages-1.img".into(), source: kind.into() };
    assert_eq!(told(file(ErrorKind::PermissionDenied).into()).0, "StorageFailed");
    let (reason, message) = told(file(ErrorKind::StorageFull).into());
    assert_eq!(reason, "DiskFull");
    assert!(message.contains("migrations/m is full: pages-1.img"), "{message}");
    let tree = || TreeError::Io { path: "log".into(), source: ErrorKind::StorageFull.into() };
    let applied = Error::Tree { area: "emptydir/data".into(), source: tree() };
    let place = "emptydir/data cannot be applied to /var/lib/kubelet/pods/p";
    for error in [anyhow::Error::from(applied), anyhow::Error::from(tree()).context(place)] {
        let (reason, message) = told(error);
        assert_eq!(reason, "DiskFull");
        let words = ["the disk with the pod's files is full: ", "emptydir/data"];
        assert!(words.iter().all(|words| message.contains(words)), "{message}");
    }
}

#[test]
fn a_marker_of_a_failed_restore_is_told_with_crius_words() {
    let root = tempfile::tempdir().unwrap();
    let dir = transship_host::HostRoot::at(root.path()).pod("p").unwrap();
    check_failures(&dir).unwrap();
    let log = "(00.1) Error (criu/x.c:1): Can't restore this\n".to_owned();
    dir.mark("web", &Failed { message: "runc exited with 1".into(), log }).unwrap();
    let error = check_failures(&dir).unwrap_err().to_string();
    assert_eq!(error, "container web was not restored: runc exited with 1 (Can't restore this)");
}
