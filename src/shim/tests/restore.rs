//! The wrapper with the real runc and CRIU: a counting program is dumped, and restored through `create`.
//!
//! Needs root, `runc`, `criu` and a static `busybox`; without them each test says so and passes. The nodes of
//! the sandbox have them, and the end-to-end tests run this program there. The tests share the machine's
//! cgroups, hence the lock.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use transship_host::cgroup::{CgroupVersion, cgroup_at};
use transship_host::freezer::{Freezer, FreezerState};
use transship_host::markers::{Failed, Held, Ready, Restored, Unheld, Waiting, wait_for};
use transship_host::paths::{PodDir, Role};
use transship_host::record::{ContainerKind, ContainerRef, RECORD_VERSION, Record, RecordState};
use transship_host::{HostRoot, unfinished};

const POD: &str = "restore-test-pod";
const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for a running counter to count thousands.
const A_WHILE: Duration = Duration::from_millis(300);

/// The containers' CPU quota in microseconds of a tenth of a second.
const QUOTA: u32 = 50_000;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A dumped counter, and a pod with a record to restore it into.
struct Scene {
    dir: tempfile::TempDir,
    host: HostRoot,
    pod: PodDir,
    bundle: PathBuf,
    id: String,
    dumped_at: u64,
    _lock: MutexGuard<'static, ()>,
}

fn program(name: &str) -> Option<PathBuf> {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

/// The programs that the tests need, or why they cannot run.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    let absent = ["runc", "criu", "busybox"].iter().find(|name| program(name).is_none());
    absent.map(|name| format!("no {name}"))
}

fn ok(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a runtime that leaves a container behind: its streams must not be pipes to us.
fn ok_detached(command: &mut Command) {
    let status =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

impl Scene {
    /// `None` (with a message) where the tests cannot run.
    fn set() -> Option<Self> {
        if let Some(reason) = missing() {
            eprintln!("skipped: {reason}");
            return None;
        }
        let lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path().join("host"));
        fs::create_dir_all(host.opt().join("bin")).unwrap();
        symlink(env_program(), host.bin("transship-runc")).unwrap();
        symlink("transship-runc", host.bin("transship-hold")).unwrap();
        let id = format!(
            "restore-{}",
            dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.')
        );
        let bundle = dir.path().join(&id);
        for sub in ["proc", "dev", "sys", "etc", "tmp", "bin"] {
            fs::create_dir_all(bundle.join("rootfs").join(sub)).unwrap();
        }
        fs::copy(program("busybox").unwrap(), bundle.join("rootfs/bin/busybox")).unwrap();
        ok(Command::new("runc").args(["spec", "--bundle"]).arg(&bundle));
        let mut scene =
            Self { pod: host.pod(POD).unwrap(), dir, host, bundle, id, dumped_at: 0, _lock: lock };
        scene.write_config();
        scene.dump();
        scene.set_record(RecordState::Restore);
        scene.pod.grant_ticket("web").unwrap();
        Some(scene)
    }

    fn write_config(&self) {
        let path = self.bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        let script = "n=0; while :; do n=$((n+1)); echo $n > /count; done";
        config["process"]["args"] = json!(["/bin/busybox", "sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        config["linux"]["cgroupsPath"] = json!(format!("/transship-test/{}", self.id));
        config["linux"]["resources"]["cpu"] = json!({"quota": QUOTA, "period": 100_000});
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        config["annotations"] = json!({
            "io.kubernetes.cri.sandbox-uid": POD,
            "io.kubernetes.cri.container-name": "web",
            "io.kubernetes.cri.container-type": "container",
        });
        fs::write(path, config.to_string()).unwrap();
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Runs the counter, dumps it and ends it.
    fn dump(&mut self) {
        let id = &self.id;
        ok_detached(Command::new("runc").args(["run", "-d", "--bundle"]).arg(&self.bundle).arg(id));
        let counting = wait_for(LIMIT, || Ok((self.count() > 10).then_some(())));
        assert!(counting.unwrap().is_some(), "the counter does not count");
        ok(Command::new("runc").args(["pause", id]));
        let output = Command::new("runc")
            .args([
                "checkpoint",
                "--leave-running",
                "--file-locks",
                "--manage-cgroups-mode",
                "ignore",
            ])
            .arg("--image-path")
            .arg(self.images())
            .arg("--work-path")
            .arg(self.dir.path().join("dump"))
            .arg(id)
            .output()
            .unwrap();
        let log = fs::read_to_string(self.dir.path().join("dump/dump.log")).unwrap_or_default();
        assert!(output.status.success(), "{output:?}\n{log}");
        let pid = state(id)["pid"].as_u64().unwrap() as u32;
        Freezer::of(pid).unwrap().kill_all_frozen(LIMIT).unwrap();
        ok(Command::new("runc").args(["delete", "--force", id]));
        self.dumped_at = self.count();
    }

    fn count(&self) -> u64 {
        let text = fs::read_to_string(self.bundle.join("rootfs/count")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Whether the counter has moved since the dump, looking for a while.
    fn has_run(&self) -> bool {
        wait_for(A_WHILE, || Ok((self.count() != self.dumped_at).then_some(()))).unwrap().is_some()
    }

    fn set_record(&self, state: RecordState) {
        let record = Record {
            version: RECORD_VERSION,
            pod_uid: POD.into(),
            pod_namespace: "test".into(),
            pod_name: "counter".into(),
            migration_uid: "m-1".into(),
            role: Role::Target,
            state,
            containers: vec![ContainerRef { name: "web".into(), kind: ContainerKind::App }],
            network: None,
        };
        self.pod.write_record(&record).unwrap();
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("log.json")
    }

    fn wrapper(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.host.bin("transship-runc"));
        command
            .env("TRANSSHIP_ROOT", self.host.root())
            .args(["--log-format", "json", "--log"])
            .arg(self.log())
            .args(arguments)
            .current_dir(&self.bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> ExitStatus {
        self.wrapper(arguments).status().unwrap()
    }

    /// Starts `create` and answers its wait for images.
    fn create(&self) -> Child {
        let pid_file = self.bundle.join("init.pid");
        let child = self
            .wrapper(&["create", "--bundle"])
            .arg(&self.bundle)
            .arg("--pid-file")
            .arg(pid_file)
            .arg(&self.id)
            .spawn()
            .unwrap();
        let waiting = wait_for(LIMIT, || self.pod.marked::<Waiting>("web")).unwrap();
        let waiting = waiting.expect("the wrapper waits for images");
        assert_eq!((waiting.container_id.as_str(), waiting.pid), (self.id.as_str(), child.id()));
        assert_eq!(waiting.rootfs, self.bundle.join("rootfs"));
        let ready =
            Ready { container_id: waiting.container_id, images: self.images(), work: self.work() };
        self.pod.mark("web", &ready).unwrap();
        child
    }

    /// Has another container of the pod made, or a sandbox: one without a name.
    fn beside(&self, id: &str, name: Option<&str>) -> Beside {
        let kind = if name.is_some() { "container" } else { "sandbox" };
        let beside = Beside(format!("{}-{id}", self.id));
        let bundle = self.dir.path().join(&beside.0);
        fs::create_dir(&bundle).unwrap();
        let config = fs::read(self.bundle.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["root"]["path"] = json!(self.bundle.join("rootfs"));
        config["linux"]["cgroupsPath"] = json!(format!("/transship-test/{}", beside.0));
        config["annotations"]["io.kubernetes.cri.container-type"] = json!(kind);
        config["annotations"]["io.kubernetes.cri.container-name"] = json!(name.unwrap_or_default());
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        let made = self.wrapper(&["create", "--bundle"]).arg(&bundle).arg(&beside.0).status();
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        assert!(made.unwrap().success(), "{log}");
        beside
    }

    fn freezer(&self) -> Freezer {
        Freezer::at_cgroups_path(&format!("/transship-test/{}", self.id)).unwrap()
    }

    fn cpu_quota(&self) -> String {
        let path = format!("/transship-test/{}", self.id);
        let (dir, version) = cgroup_at("cpu", &path).unwrap();
        let file = match version {
            CgroupVersion::V1 => "cpu.cfs_quota_us",
            CgroupVersion::V2 => "cpu.max",
        };
        let text = fs::read_to_string(dir.join(file)).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    }

    fn restore_log(&self) -> String {
        fs::read_to_string(self.work().join("restore.log")).unwrap_or_default()
    }

    fn tasks(&self) -> Vec<u32> {
        let freezer = self.freezer();
        if freezer.exists() { freezer.tasks().unwrap() } else { Vec::new() }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.freezer().kill_all_frozen(LIMIT);
        let _ = Command::new("runc").args(["delete", "--force", &self.id]).output();
        // runc removes its own cgroup and leaves the one that it is in.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let ours = hierarchy.join("transship-test");
            let _ = fs::remove_dir(ours.join(&self.id));
            let _ = fs::remove_dir(ours);
        }
    }
}

/// Another container of the pod, by its id.
struct Beside(String);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = Command::new("runc").args(["delete", "--force", &self.0]).output();
    }
}

/// The wrapper under test: beside this program when it was copied to a node, else cargo's.
fn env_program() -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("transship-runc");
    if beside.exists() { beside } else { env!("CARGO_BIN_EXE_transship-runc").into() }
}

fn state(id: &str) -> Value {
    let output = Command::new("runc").args(["state", id]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[test]
fn a_restored_container_is_held_until_it_is_thawed_and_then_an_ordinary_one() {
    let Some(scene) = Scene::set() else { return };
    let status = scene.create().wait().unwrap();
    assert!(status.success(), "{}", scene.restore_log());
    assert_eq!(state(&scene.id)["status"], "paused");
    let held = scene.pod.marked::<Held>("web").unwrap().unwrap();
    let restored = scene.pod.marked::<Restored>("web").unwrap().unwrap();
    assert_eq!((held.pid, &held.freezer), (restored.pid, &restored.freezer));
    assert_eq!(scene.pod.marked::<Unheld>("web").unwrap(), Some(Unheld { pid: held.pid }));
    assert!(!scene.pod.may_have_run("web").unwrap());
    assert_eq!(state(&scene.id)["pid"], held.pid);
    assert_eq!(held.freezer.state().unwrap(), FreezerState::Frozen);
    assert!(!scene.has_run(), "the held container runs");
    assert_eq!(scene.cpu_quota(), QUOTA.to_string(), "the lifted limit is set again");
    assert!(!scene.pod.lifted_limits("web").unwrap().exists());

    assert!(scene.run(&["start", &scene.id]).success());
    assert!(!scene.run(&["create", "--bundle", scene.bundle.to_str().unwrap(), "again"]).success());
    scene.set_record(RecordState::Held);
    for refused in [["kill", &scene.id, "9"], ["resume", &scene.id, ""]] {
        assert!(!scene.run(&refused).success(), "{refused:?}");
    }
    let log = fs::read_to_string(scene.log()).unwrap();
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
    assert!(log.contains("refused") && log.contains("state held"), "{log}");
    assert!(!scene.has_run(), "the held container runs");

    held.freezer.thaw(LIMIT).unwrap();
    scene.set_record(RecordState::Open);
    assert!(scene.has_run(), "the thawed container does not run");
    assert_eq!(state(&scene.id)["status"], "running");
    assert!(scene.run(&["kill", &scene.id, "KILL"]).success());
    let stopped = wait_for(LIMIT, || Ok((state(&scene.id)["status"] == "stopped").then_some(())));
    assert!(stopped.unwrap().is_some());
    assert!(scene.run(&["delete", &scene.id]).success());
    assert_eq!(state(&scene.id), Value::Null);
}

/// Its shim has died, and containerd has nothing deleted but the sandbox.
#[test]
fn what_is_left_of_a_container_ends_before_it_is_made_afresh() {
    let Some(scene) = Scene::set() else { return };
    assert!(scene.create().wait().unwrap().success(), "{}", scene.restore_log());
    scene.set_record(RecordState::Open);
    scene.freezer().thaw(LIMIT).unwrap();
    assert!(scene.has_run(), "the thawed container does not run");

    let is_there = |beside: &Beside| state(&beside.0)["status"] == "created";
    let other = scene.beside("other", Some("other"));
    assert!(!scene.tasks().is_empty(), "another container ends it");
    let web = scene.beside("web", Some("web"));
    assert!(scene.tasks().is_empty(), "it lives on beside its successor");
    assert!(is_there(&other) && is_there(&web), "a container ends another");
    let sandbox = scene.beside("sandbox", None);
    assert!(!is_there(&other) && !is_there(&web), "they live on beside a new sandbox");
    let again = scene.beside("again", Some("web"));
    assert!(is_there(&sandbox) && is_there(&again), "a container ends its sandbox");
    let another = scene.beside("another", None);
    assert!(!is_there(&sandbox) && !is_there(&again), "they live on beside a new sandbox");
    assert!(is_there(&another));
}

#[test]
fn a_kill_of_a_restored_container_lets_nothing_run() {
    let Some(scene) = Scene::set() else { return };
    assert!(scene.create().wait().unwrap().success(), "{}", scene.restore_log());
    scene.set_record(RecordState::Aborted);
    scene.run(&["kill", &scene.id, "TERM"]);
    assert!(scene.tasks().is_empty());
    assert!(scene.run(&["delete", "--force", &scene.id]).success());
    assert!(!scene.has_run());
}

#[test]
fn a_held_container_that_has_lost_its_shim_is_deleted_and_lets_nothing_run() {
    let Some(scene) = Scene::set() else { return };
    assert!(scene.create().wait().unwrap().success(), "{}", scene.restore_log());
    scene.set_record(RecordState::Held);
    assert!(scene.run(&["delete", "--force", &scene.id]).success());
    assert!(scene.tasks().is_empty());
    assert_eq!(state(&scene.id), Value::Null);
    assert!(!scene.has_run());
}

#[test]
fn a_restore_that_criu_refuses_leaves_nothing_alive_and_says_why() {
    let Some(scene) = Scene::set() else { return };
    fs::write(scene.images().join("pstree.img"), b"not an image").unwrap();
    assert!(!scene.create().wait().unwrap().success());
    let failed = scene.pod.marked::<Failed>("web").unwrap().unwrap();
    assert!(failed.message.contains("restoring web failed"), "{failed:?}");
    assert!(!failed.log.is_empty());
    assert!(!scene.pod.may_have_run("web").unwrap(), "{failed:?}");
    assert!(scene.tasks().is_empty());
    assert!(!scene.pod.has_ticket("web").unwrap(), "a ticket is good for one try");
    assert!(!scene.run(&["create", "--bundle", scene.bundle.to_str().unwrap(), "again"]).success());
    assert!(!scene.has_run());
}

#[test]
fn a_mark_that_cannot_be_written_ends_the_restore_and_is_told() {
    let Some(scene) = Scene::set() else { return };
    fs::write(scene.pod.path().join("unheld"), b"").unwrap();
    assert!(!scene.create().wait().unwrap().success());
    let failed = scene.pod.marked::<Failed>("web").unwrap().unwrap();
    let unheld = scene.pod.path().join("unheld");
    assert!(failed.message.contains("cannot be noted"), "{failed:?}");
    assert!(failed.message.contains(unheld.to_str().unwrap()), "{failed:?}");
    assert!(scene.tasks().is_empty());
    assert!(!scene.has_run());
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Puts a script before the program that holds, with something to do in one of CRIU's stages: what it does in
/// `pre-resume` comes before the freeze, in `post-resume` when CRIU has let go of the tasks.
fn before_the_hold(scene: &Scene, stage: &str, what: &str) {
    let place = scene.host.bin("transship-hold");
    let real = scene.dir.path().join("real/transship-hold");
    fs::create_dir_all(real.parent().unwrap()).unwrap();
    symlink(scene.host.bin("transship-runc"), &real).unwrap();
    let parent = r#"parent() { while read -r key value; do [ "$key" != PPid: ] || echo "$value"; done < "/proc/$1/status"; }"#;
    // What is killed lets its tasks go when it ends, a little later.
    let end = r#"end() { kill -9 "$1"; while grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; do :; done; }"#;
    let script = format!(
        "#!/bin/sh\n{parent}\n{end}\nif [ \"$CRTOOLS_SCRIPT_ACTION\" = {stage} ]; then {what}; fi\nexec {}\n",
        real.display()
    );
    fs::remove_file(&place).unwrap();
    write_program(&place, &script);
}

fn write_program(place: &Path, script: &str) {
    fs::write(place, script).unwrap();
    fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Whoever is killed between CRIU's last stop of the tasks and their freeze lets them run: they are killed, they
/// are never taken for held, and it is told. Where wrapper and runc stand still nobody but the script sees to it.
#[test]
fn what_is_let_go_before_it_is_held_is_killed_and_told_of() {
    let alone = "runc=$(parent $PPID); kill -STOP $(parent $runc) $runc; end $PPID";
    for (what, waits) in [("end $PPID", false), ("kill -9 $$", false), (alone, true)] {
        let Some(scene) = Scene::set() else { return };
        before_the_hold(&scene, "pre-resume", what);
        let mut create = scene.create();
        if waits {
            let unheld = wait_for(LIMIT, || scene.pod.marked::<Unheld>("web")).unwrap();
            assert!(unheld.is_some(), "{what}: {}", scene.restore_log());
            let ended = wait_for(LIMIT, || Ok(scene.tasks().is_empty().then_some(()))).unwrap();
            assert!(ended.is_some(), "{what}: what was let go is alive");
            for pid in children(create.id()).into_iter().chain([create.id()]) {
                let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
            }
        }
        assert!(!create.wait().unwrap().success(), "{what}");
        let failed = scene.pod.marked::<Failed>("web").unwrap().unwrap();
        assert!(failed.message.contains("may have run"), "{what}: {failed:?}");
        assert_eq!(scene.pod.marked::<Held>("web").unwrap(), None, "{what}");
        assert!(scene.pod.may_have_run("web").unwrap(), "{what}");
        assert!(scene.tasks().is_empty(), "{what}");
    }
}

/// The kernel tells the topmost cgroup of it, in a node that is a container itself the node's own: whoever kills what is
/// in there kills the node.
#[test]
fn a_task_that_has_ended_has_no_freezer() {
    let mut child = Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let is_zombie = || Ok(fs::read_to_string(&stat).unwrap().contains(") Z ").then_some(()));
    assert!(wait_for(LIMIT, is_zombie).unwrap().is_some());
    assert!(Freezer::of(child.id()).is_err());
    child.wait().unwrap();
}

/// A CRIU that does not come to its last word has failed, though the tasks are held. One that was killed leaves them in
/// their cgroups, which runc would give up to remove only after seconds, and say so.
#[test]
fn what_a_criu_without_a_last_word_leaves_is_killed_before_runc_gives_up() {
    for what in ["end $PPID; exit 0", "exit 1"] {
        let Some(scene) = Scene::set() else { return };
        before_the_hold(&scene, "post-resume", what);
        assert!(!scene.create().wait().unwrap().success(), "{what}");
        let failed = scene.pod.marked::<Failed>("web").unwrap().unwrap();
        let held = scene.pod.marked::<Held>("web").unwrap();
        assert!(held.is_some(), "{what}: {failed:?}");
        assert!(!scene.pod.may_have_run("web").unwrap(), "{what}: {failed:?}");
        let log = fs::read_to_string(scene.log()).unwrap_or_default();
        assert!(!log.contains("remove container's cgroup"), "{what}: {log}");
        assert!(scene.tasks().is_empty(), "{what}");
        assert!(!scene.has_run(), "{what}");
    }
}

/// CRIU tries what the kernel can do with helpers that wait for it. runc does not notice its end as long as one lives,
/// which has the connection to it. The real one is hardly ever hit then.
#[test]
fn a_criu_that_has_ended_is_missed_and_what_it_leaves_is_killed() {
    let Some(scene) = Scene::set() else { return };
    let note = scene.dir.path().join("left");
    let (criu, left) = (program("criu").unwrap(), note.display());
    // Before that runc asks one for its version, by another descriptor. It ends when it has been told what to do.
    let script = format!(
        "#!/bin/sh\nif [ \"$2\" = 3 ]; then head -c 1 <&3; sleep 600 & echo $! > {left}; kill -9 $$; fi\nexec {} \"$@\"\n",
        criu.display()
    );
    write_program(&scene.host.bin("criu"), &script);
    assert!(!scene.create().wait().unwrap().success());
    let failed = scene.pod.marked::<Failed>("web").unwrap().unwrap();
    let log = fs::read_to_string(scene.log()).unwrap_or_default();
    assert!(failed.message.contains("CRIU has ended"), "{failed:?}: {log}");
    let stat = format!("/proc/{}/stat", fs::read_to_string(note).unwrap().trim());
    let has_ended = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    assert!(wait_for(LIMIT, || Ok(has_ended().then_some(()))).unwrap().is_some());
    assert!(scene.tasks().is_empty());
    assert!(!scene.has_run());
}

#[test]
fn a_wait_for_images_ends_when_the_restore_is_given_up() {
    let Some(scene) = Scene::set() else { return };
    let mut create =
        scene.wrapper(&["create", "--bundle"]).arg(&scene.bundle).arg(&scene.id).spawn().unwrap();
    let waiting = wait_for(LIMIT, || scene.pod.marked::<Waiting>("web")).unwrap();
    assert!(waiting.is_some());
    scene.set_record(RecordState::Aborted);
    assert!(!create.wait().unwrap().success());
    assert!(scene.pod.has_ticket("web").unwrap(), "the ticket was not used");
    assert!(fs::read_to_string(scene.log()).unwrap().contains("given up"));
}

/// A record that whoever reads it waits for: the action script reads it when the tasks are frozen, before it
/// says so and ends. That is the longest moment of the hold in which somebody could be killed.
struct SlowRecord(PathBuf);

impl SlowRecord {
    fn put(scene: &Scene) -> Self {
        let fifo = scene.dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let beside = scene.pod.path().join("slow");
        fs::hard_link(&fifo, &beside).unwrap();
        fs::rename(beside, scene.pod.record()).unwrap();
        Self(fifo)
    }

    /// Lets every reader go on, with an empty record.
    fn release(&self) {
        use std::os::unix::fs::OpenOptionsExt;
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        // Fails where nobody reads.
        let _ = fs::OpenOptions::new().write(true).custom_flags(nonblocking).open(&self.0);
    }
}

/// The process whose program has this path in its command line, and its parent.
fn find_process(program: &Path) -> Option<(u32, u32)> {
    let program = program.to_str().unwrap();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).split('\0').next() != Some(program) {
            continue;
        }
        return Some((pid, parent_of(pid)?));
    }
    None
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Kills one of the processes that take part (CRIU, script, wrapper, runc) while the tasks are held in
/// `pre-resume`, and looks whether an instruction runs and what is left.
fn killed_while_held(victim: impl Fn(u32, u32, u32) -> u32) {
    let Some(scene) = Scene::set() else { return };
    let mut create = scene.create();
    let consumed = scene.pod.consumed("web").unwrap();
    assert!(wait_for(LIMIT, || Ok(consumed.exists().then_some(()))).unwrap().is_some());
    let record = SlowRecord::put(&scene);
    let freezer = Freezer::at_cgroups_path(&format!("/transship-test/{}", scene.id)).unwrap();
    let frozen = || Ok(matches!(freezer.state(), Ok(FreezerState::Frozen)).then_some(()));
    let frozen = wait_for(LIMIT, frozen).unwrap();
    assert!(frozen.is_some(), "not frozen: {}", scene.restore_log());
    let (script, criu) = find_process(&scene.host.bin("transship-hold")).expect("the script waits");
    assert!(!freezer.tasks().unwrap().is_empty());
    assert_eq!(scene.pod.marked::<Held>("web").unwrap(), None);
    let state = scene.pod.marked::<Waiting>("web").unwrap().unwrap().state_dir().unwrap();
    let criu_root = state.join("criu-root");
    assert!(is_mounted(&criu_root), "runc shows CRIU the root elsewhere");

    let killed = victim(criu, script, create.id());
    kill(killed);
    assert!(!scene.has_run(), "an instruction ran");
    if freezer.exists() && !freezer.tasks().unwrap().is_empty() {
        assert_eq!(freezer.state().unwrap(), FreezerState::Frozen);
    }

    // Then everybody finds that the record asks for no restore (any more): nothing stays alive.
    let ended = wait_for(LIMIT, || {
        record.release();
        Ok(create.try_wait().unwrap())
    });
    let status = ended.unwrap().expect("the wrapper ends");
    assert!(!status.success());
    // What a killed wrapper leaves, the holder reaps by cgroup, and removes.
    record.release();
    freezer.kill_all_frozen(LIMIT).unwrap();
    assert!(scene.tasks().is_empty());
    if killed == create.id() {
        unfinished::remove(&state).unwrap();
    }
    assert!(!is_mounted(&criu_root) && !state.exists(), "{} is left", state.display());
    assert!(!scene.has_run(), "an instruction ran at the end");
    kill(script);
    kill(criu);
}

#[test]
fn nothing_runs_when_criu_is_killed_while_the_container_is_held() {
    killed_while_held(|criu, _, _| criu);
}

#[test]
fn nothing_runs_when_the_script_is_killed_while_the_container_is_held() {
    killed_while_held(|_, script, _| script);
}

#[test]
fn nothing_runs_when_the_wrapper_is_killed_while_the_container_is_held() {
    killed_while_held(|_, _, wrapper| wrapper);
}

#[test]
fn nothing_runs_and_nothing_stays_mounted_when_runc_is_killed_while_the_container_is_held() {
    killed_while_held(|criu, _, _| parent_of(criu).expect("runc waits for CRIU"));
}
