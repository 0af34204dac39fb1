//! Which copies of the example application run on this node, looked at so often that no run goes
//! unnoticed.
//!
//! A copy runs when its container is not frozen, its process is neither held by a tracer nor being
//! killed, and no CRIU is still at work on it: the tasks of a restore exist, unfrozen, some time
//! before they could run an instruction of the application.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::process::{command, criu, status};
use crate::prober::unix_ms;

/// Pace of looks.
const LOOK: Duration = Duration::from_millis(4);
/// Looks in a row that a run must be seen in: a task that is being killed passes for running until
/// the kernel has taken its memory away.
const STEADY: u32 = 3;
/// In the application's arguments.
const APPLICATION: &str = "mmap, socket, threading";
const FREEZER: &str = "/sys/fs/cgroup/freezer/kubepods";
/// kubelet's directories of logs are called by namespace, name and UID of a pod.
const LOGS: &str = "/var/log/pods";
/// SIGKILL in a mask of signals.
const KILL: u64 = 1 << 8;

/// What runs from this moment on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Unix time in milliseconds.
    pub at: u64,
    /// UIDs of the pods whose application runs. One that runs in a second container of the same pod stands
    /// there as `UID again`.
    pub running: BTreeSet<String>,
}

/// Tells each change, beginning with what is, until `tell` fails.
pub fn watch(
    namespace: &str,
    mut tell: impl FnMut(&Look) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut watcher = Watcher { namespace: namespace.to_owned(), confirmed: HashSet::new() };
    let mut told: Option<BTreeSet<String>> = None;
    let (mut seen, mut times) = (BTreeSet::new(), 0);
    loop {
        let at = unix_ms();
        let running = watcher.running();
        times = if running == seen { times + 1 } else { 1 };
        seen = running;
        if times >= STEADY && told.as_ref() != Some(&seen) {
            tell(&Look { at, running: seen.clone() })?;
            told = Some(seen.clone());
        }
        std::thread::sleep(LOOK);
    }
}

struct Watcher {
    namespace: String,
    /// Control groups whose tasks no CRIU works on any more.
    confirmed: HashSet<PathBuf>,
}

impl Watcher {
    fn running(&mut self) -> BTreeSet<String> {
        let mut running = BTreeSet::new();
        for (pod, container) in containers() {
            if self.runs(&container) && self.is_ours(&pod) && !running.insert(pod.clone()) {
                running.insert(format!("{pod} again"));
            }
        }
        running
    }

    fn runs(&mut self, container: &Path) -> bool {
        let state = fs::read_to_string(container.join("freezer.state")).unwrap_or_default();
        if state.trim() != "THAWED" || !tasks(container).into_iter().any(is_free) {
            return false;
        }
        // Looking through all processes is expensive, and no second restore comes to a container.
        if !self.confirmed.contains(container) {
            if criu().is_some() {
                return false;
            }
            self.confirmed.insert(container.to_owned());
        }
        true
    }

    fn is_ours(&self, pod: &str) -> bool {
        let prefix = format!("{}_", self.namespace);
        fs::read_dir(LOGS).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&prefix) && name.ends_with(pod)
        })
    }
}

/// UID of the pod and control group of every container, whatever the pod's class.
fn containers() -> Vec<(String, PathBuf)> {
    let root = PathBuf::from(FREEZER);
    let classes = ["burstable", "besteffort"].map(|class| root.join(class));
    let pods = [root].into_iter().chain(classes).flat_map(directories);
    pods.filter_map(|pod| Some((pod.file_name()?.to_str()?.strip_prefix("pod")?.to_owned(), pod)))
        .flat_map(|(uid, pod)| directories(pod).into_iter().map(move |group| (uid.clone(), group)))
        .collect()
}

fn directories(path: PathBuf) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    // By what the entry tells: most are files, and to ask about each would take long.
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|of| of.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

fn tasks(container: &Path) -> Vec<u32> {
    let text = fs::read_to_string(container.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// A process of the application that nothing keeps from running.
fn is_free(pid: u32) -> bool {
    if !command(pid).iter().any(|argument| argument.contains(APPLICATION)) {
        return false;
    }
    let [tracer, own, shared] = status(pid, ["TracerPid:", "SigPnd:", "ShdPnd:"]);
    let mask = |text: Option<String>| {
        text.and_then(|text| u64::from_str_radix(&text, 16).ok()).unwrap_or(KILL)
    };
    tracer.as_deref() == Some("0") && (mask(own) | mask(shared)) & KILL == 0 && !is_exiting(pid)
}

/// Whether the kernel is taking a process apart, which takes a while with much memory.
fn is_exiting(pid: u32) -> bool {
    const EXITING: u64 = 4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: state, five numbers, flags.
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_none_or(|flags| flags & EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_is_free_until_it_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!is_free(child.id()), "sleep is not the application");
        child.kill().unwrap();
        child.wait().unwrap();
        // A shell that waits, with the application's words among its arguments.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", APPLICATION])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !is_free(child.id()) && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert!(is_free(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_free(child.id()));
    }
}
