//! The wrapper as a program, in front of a stand-in for runc: what reaches runc, and what reaches nobody.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use transship_host::paths::Role;
use transship_host::record::{RECORD_VERSION, Record};
use transship_host::{HostRoot, files};
use transship_protocol::RecordState;

struct Node {
    dir: tempfile::TempDir,
    host: HostRoot,
}

impl Node {
    /// The stand-in writes its arguments down and ends with 7.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path().join("host"));
        let node = Self { dir, host };
        let runc = node.path("runc-here");
        let calls = node.path("calls");
        fs::write(
            &runc,
            format!("#!/bin/sh\necho \"$@\" >> {}\necho out\nexit 7\n", calls.display()),
        )
        .unwrap();
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).unwrap();
        let name = format!("{}\n", runc.display());
        files::write_atomic(&node.host.runc_path_file(), name.as_bytes()).unwrap();
        let config = r#"{"annotations":{"io.kubernetes.cri.sandbox-uid":"p-1",
            "io.kubernetes.cri.container-name":"web","io.kubernetes.cri.container-type":"container"}}"#;
        fs::create_dir(node.path("c1")).unwrap();
        fs::write(node.path("c1/config.json"), config).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_transship-runc"))
            .args(line.split_whitespace())
            .env("TRANSSHIP_ROOT", self.host.root())
            .current_dir(self.path("c1"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    fn create(&self) -> String {
        let log = self.path("log.json");
        let bundle = self.path("c1");
        format!(
            "--root /r --log {} --log-format json create --bundle {} --pid-file /p c1",
            log.display(),
            bundle.display()
        )
    }
}

fn damage(path: &Path) {
    files::write_atomic(path, b"{").unwrap();
}

#[test]
fn a_pod_without_a_record_reaches_runc_unchanged() {
    let node = Node::new();
    let create = node.create();
    for (line, damaged) in [
        (create.as_str(), None),
        ("--version", None),
        ("kill c1 15", None),
        (create.as_str(), Some(node.host.pod("p-2").unwrap().record())),
    ] {
        if let Some(damaged) = damaged {
            damage(&damaged);
        }
        let _ = fs::remove_file(node.path("calls"));
        let output = node.run(line);
        assert_eq!(output.status.code(), Some(7), "runc's exit status is the wrapper's");
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(node.calls().trim(), line);
    }
    assert!(!node.path("log.json").exists());
}

#[test]
fn a_refused_create_writes_to_runcs_log_and_to_nothing_else() {
    let node = Node::new();
    damage(&node.host.pod("p-1").unwrap().record());
    let output = node.run(&node.create());
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(node.calls(), "");
    let log = fs::read_to_string(node.path("log.json")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&log).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("host record is unusable"), "{log}");
}

#[test]
fn a_container_of_a_source_that_has_ended_is_listed_with_a_process() {
    let node = Node::new();
    let record = Record {
        version: RECORD_VERSION,
        pod_uid: "p-1".into(),
        pod_namespace: "shop".into(),
        pod_name: "web-7".into(),
        migration_uid: "m-1".into(),
        role: Role::Source,
        state: RecordState::Frozen,
        containers: Vec::new(),
        network: None,
    };
    node.host.pod("p-1").unwrap().write_record(&record).unwrap();
    let line = "--root /nowhere ps --format json c1";
    for (runc, listed) in [
        ("echo null", "[1]\n"),
        ("echo []", "[1]\n"),
        ("echo broken >&2; exit 1", "[1]\n"),
        ("echo [7,8]", "[7,8]\n"),
    ] {
        fs::write(node.path("runc-here"), format!("#!/bin/sh\n{runc}\n")).unwrap();
        let output = node.run(line);
        assert!(output.status.success() && output.stderr.is_empty(), "{runc}: {output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), listed, "{runc}");
    }
    let opened = Record { state: RecordState::Open, ..record };
    node.host.pod("p-1").unwrap().write_record(&opened).unwrap();
    fs::write(node.path("runc-here"), "#!/bin/sh\necho null\n").unwrap();
    assert_eq!(node.run(line).stdout, b"null\n");
}

#[test]
fn a_missing_runc_is_an_error_in_the_log() {
    let node = Node::new();
    fs::remove_file(node.path("runc-here")).unwrap();
    let output = node.run(&node.create());
    assert_eq!(output.status.code(), Some(1));
    let log = fs::read_to_string(node.path("log.json")).unwrap();
    assert!(log.contains("cannot run"), "{log}");
}

#[test]
fn a_cpu_quota_is_lifted_when_a_restore_begins() {
    let node = Node::new();
    let parent = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"]
        .iter()
        .map(Path::new)
        .find(|dir| dir.join("cpu.cfs_quota_us").exists() || dir.join("cgroup.procs").exists());
    let cgroup = parent.map(|dir| dir.join(format!("transship-quota-test-{}", std::process::id())));
    let Some(cgroup) = cgroup.filter(|cgroup| fs::create_dir(cgroup).is_ok()) else {
        eprintln!("skipped: needs root and a cpu hierarchy of cgroup v1");
        return;
    };
    let quota = cgroup.join("cpu.cfs_quota_us");
    fs::write(&quota, "50000").unwrap();
    let hold = node.host.bin("transship-hold");
    fs::create_dir_all(hold.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_transship-runc"), &hold).unwrap();
    // The shell stands for CRIU: it is in the container's cgroup and starts the script.
    let status = Command::new("sh")
        .args(["-c", "echo $$ > \"$0/cgroup.procs\" && \"$1\"; echo $? >&2"])
        .args([&cgroup, &hold])
        .env("TRANSSHIP_ROOT", node.host.root())
        .env("TRANSSHIP_POD", "p-1")
        .env("TRANSSHIP_CONTAINER", "web")
        .env("CRTOOLS_SCRIPT_ACTION", "pre-restore")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let lifted = fs::read_to_string(&quota).unwrap();
    fs::remove_dir(&cgroup).unwrap();
    assert_eq!(lifted.trim(), "-1", "{status:?}");
    let memory = node.host.pod("p-1").unwrap().lifted_limits("web").unwrap();
    assert!(fs::read_to_string(memory).unwrap().contains("50000"));
}
