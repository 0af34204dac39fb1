//! A process file system and bundles made up for it, and a process that is no shim.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use transship_runtime::container::SHIM;

use super::*;

struct Node {
    dir: tempfile::TempDir,
    shims: Shims,
}

impl Node {
    /// A shim (process 7) that serves one pod's sandbox.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            tasks: dir.path().join("tasks"),
            proc: dir.path().join("proc"),
            ..Layout::default()
        };
        let node = Self { shims: Shims::new(&layout), dir };
        node.bundle("s-1", "p-1");
        node.write("proc/7/stat", &stat(SHIM, 100));
        node.write("proc/7/task/7/children", "");
        node.write("proc/7/task/8/children", "");
        symlink(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/s-1",
            node.path("proc/7/cwd"),
        )
        .unwrap();
        node
    }

    /// containerd has removed the bundle.
    fn forget(&self) {
        fs::remove_dir_all(self.path("tasks/s-1")).unwrap();
        fs::remove_file(self.path("proc/7/cwd")).unwrap();
        symlink("/x/.s-1 (deleted)", self.path("proc/7/cwd")).unwrap();
    }

    fn bundle(&self, id: &str, pod_uid: &str) {
        let config =
            format!(r#"{{"annotations": {{"io.kubernetes.cri.sandbox-uid": "{pod_uid}"}}}}"#);
        self.write(&format!("tasks/{id}/config.json"), &config);
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn look(&mut self) -> Vec<(Process, String)> {
        self.shims.look(&["p-1".into()])
    }
}

fn stat(name: &str, started: u64) -> String {
    format!("7 ({name}) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 12 0 {started} 0 0\n")
}

#[test]
fn a_shim_is_forgotten_when_nothing_leads_to_it() {
    let mut node = Node::new();
    assert!(node.look().is_empty(), "it has its bundle");
    node.forget();
    let shim = Process { pid: 7, started: 100 };
    assert_eq!(node.look(), [(shim, "p-1".to_owned())]);

    node.bundle("c-1", "p-1");
    assert!(node.look().is_empty(), "a container of its pod has a bundle");
    node.write("tasks/c-1/config.json", "{");
    assert!(node.look().is_empty(), "a bundle that cannot be read may be of its pod");
    node.bundle("c-1", "p-2");
    assert_eq!(node.look().len(), 1);

    node.write("proc/7/task/8/children", "9 ");
    assert!(node.look().is_empty(), "it has a task");
    fs::remove_file(node.path("proc/7/task/8/children")).unwrap();
    assert!(node.look().is_empty(), "who can tell whether it has");
    node.write("proc/7/task/8/children", "");
    assert_eq!(node.look().len(), 1);

    node.write("proc/7/stat", &stat(SHIM, 200));
    assert!(node.look().is_empty(), "another process of this id was never seen with a bundle");
}

#[test]
fn a_shim_that_was_not_seen_as_one_of_a_pod_with_a_record_is_let_be() {
    let mut node = Node::new();
    assert!(node.shims.look(&["p-2".into()]).is_empty());
    node.forget();
    assert!(node.look().is_empty());
    let mut node = Node::new();
    node.write("proc/7/stat", &stat("sleep", 100));
    node.look();
    node.forget();
    assert!(node.look().is_empty());
    assert!(node.shims.known.is_empty());
}

#[test]
fn a_shim_is_ended_only_when_it_has_looked_forgotten_for_a_while() {
    let mut node = Node::new();
    node.look();
    node.forget();
    let shim = node.look()[0].0;
    let start = Instant::now();
    let later = |seconds| start + Duration::from_secs(seconds);
    assert!(!node.shims.judge(shim, true, start));
    assert!(!node.shims.judge(shim, true, later(19)));
    assert!(!node.shims.judge(shim, false, later(20)), "the pod has a sandbox");
    assert!(!node.shims.judge(shim, true, later(21)));
    node.bundle("s-1", "p-1");
    node.look();
    node.forget();
    assert!(!node.shims.judge(shim, true, later(41)), "it had its bundle meanwhile");
    assert!(node.shims.judge(shim, true, later(61)));
}

#[test]
fn a_process_that_is_not_the_shim_any_more_is_not_ended() {
    let mut node = Node::new();
    node.look();
    node.forget();
    node.look();
    // A process that does not heed the request.
    let script = "trap '' TERM; echo; exec sleep 600";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let known = node.shims.known.drain().next().unwrap().1;
    let other = Process { pid, started: 100 };
    node.shims.known.insert(other, known);
    assert!(!node.shims.end(other).unwrap(), "the table knows no such process");
    assert!(child.try_wait().unwrap().is_none());

    fs::rename(node.path("proc/7"), node.path(&format!("proc/{pid}"))).unwrap();
    node.write(&format!("proc/{pid}/task/7/children"), "9");
    assert!(!node.shims.end(other).unwrap(), "it has got a task meanwhile");
    node.write(&format!("proc/{pid}/task/7/children"), "");
    assert!(node.shims.end(other).unwrap(), "it is asked to end");
    assert!(child.try_wait().unwrap().is_none());
    assert!(!node.shims.end(other).unwrap(), "it is killed");
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(!node.shims.end(other).unwrap(), "it has ended");
}
