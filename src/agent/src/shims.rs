//! Shims that containerd has forgotten.
//!
//! containerd knows a shim by its bundle: at its start it looks at the bundles and at nothing else. Where a shim does
//! not answer it then, or does not shut down when containerd has had its last task deleted (a call that took too long,
//! say), containerd removes the bundle all the same: a process stays that nobody will ever call. A connection to it
//! says nothing: containerd does not close the one on which it was not answered in time.
//!
//! Such a shim is ended if it belonged to a pod with a record, seen when its bundle was there, and if for a while
//!
//! * its bundle is gone, and no bundle is left that is of its pod: nothing tells containerd where it listens,
//! * it has no child: every task is the child of its shim, whoever has made it,
//! * containerd answers, and knows no sandbox of the pod: nobody asks for another container there.
//!
//! In doubt it stays: a process too many costs some memory. What an earlier agent has seen is not known.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use transship_host::bundle::Bundle;
use transship_host::files;
use transship_runtime::Layout;
use transship_runtime::container::{children, is_shim, start_time};

/// For how long a shim has to look forgotten. One that shuts down takes some seconds at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process, and no later one of the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pid: i32,
    /// In ticks since the boot.
    started: u64,
}

/// What was seen of a shim.
#[derive(Debug)]
struct Known {
    /// Names its bundle.
    id: String,
    /// The pod's UID.
    pod_uid: String,
    /// Since when it looks forgotten.
    forgotten: Option<Instant>,
    /// Whether it was asked to end.
    asked: bool,
}

/// The shims of pods with a record.
#[derive(Debug)]
pub struct Shims {
    layout: Layout,
    known: HashMap<Process, Known>,
}

impl Shims {
    /// None is known yet.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone(), known: HashMap::new() }
    }

    /// Looks at all processes. Those of the pods (by UID) with a record are known from now on; of the known ones
    /// those are returned, with their pods, that look as if containerd had forgotten them.
    pub fn look(&mut self, pods: &[String]) -> Vec<(Process, String)> {
        if pods.is_empty() && self.known.is_empty() {
            return Vec::new();
        }
        let running: HashSet<Process> = self.running().collect();
        self.known.retain(|process, _| running.contains(process));
        for process in running {
            if self.known.contains_key(&process) {
                continue;
            }
            // The directory in which it works is its bundle.
            let cwd = self.layout.of_process(process.pid, "cwd");
            let Ok(dir) = fs::read_link(cwd) else { continue };
            let Some(id) = dir.file_name().and_then(|name| name.to_str()) else { continue };
            let Ok(bundle) = Bundle::read(&self.layout.bundle(id)) else { continue };
            let Some(pod_uid) = bundle.pod_uid.filter(|uid| pods.contains(uid)) else { continue };
            let id = id.to_owned();
            self.known.insert(process, Known { id, pod_uid, forgotten: None, asked: false });
        }
        let mut found = Vec::new();
        for (process, known) in &mut self.known {
            if is_forgotten(&self.layout, *process, known) {
                found.push((*process, known.pod_uid.clone()));
            } else {
                known.forgotten = None;
            }
        }
        found
    }

    /// What has come of a further look at one that looks forgotten: `gone` if its pod has no sandbox. Returns whether
    /// it is to be ended now.
    pub fn judge(&mut self, process: Process, gone: bool, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(&process) else { return false };
        known.forgotten = gone.then(|| known.forgotten.unwrap_or(now));
        known.forgotten.is_some_and(|since| now.duration_since(since) >= PATIENCE)
    }

    /// Ends one, if it still is what it was: at first by a request, on which a shim removes its socket. Returns
    /// whether it was asked for the first time.
    pub fn end(&mut self, process: Process) -> anyhow::Result<bool> {
        let Some(known) = self.known.get_mut(&process) else { return Ok(false) };
        let pid = Pid::from_raw(process.pid).context("impossible process id")?;
        // From here on it is this process and no other, whatever becomes of its id.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let is_same = shim(&self.layout, process.pid) == Some(process);
        if !is_same || !is_forgotten(&self.layout, process, known) {
            return Ok(false);
        }
        let signal = if known.asked { Signal::KILL } else { Signal::TERM };
        match pidfd_send_signal(&pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        // It is given as long again.
        known.forgotten = None;
        Ok(!std::mem::replace(&mut known.asked, true))
    }

    fn running(&self) -> impl Iterator<Item = Process> {
        let entries = fs::read_dir(&self.layout.proc).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(move |pid| shim(&self.layout, pid))
    }
}

/// The process of this id, if it is a shim.
fn shim(layout: &Layout, pid: i32) -> Option<Process> {
    if !is_shim(layout, u32::try_from(pid).ok()?) {
        return None;
    }
    Some(Process { pid, started: start_time(layout, pid)? })
}

/// Whether nothing on the node says that anybody has a use for a shim. What cannot be read speaks against it.
fn is_forgotten(layout: &Layout, process: Process, known: &Known) -> bool {
    let has_bundle = layout.bundle(&known.id).try_exists().unwrap_or(true);
    !has_bundle
        && !has_bundle_of(&layout.tasks, &known.pod_uid)
        && children(layout, process.pid).is_ok_and(|children| children.is_empty())
}

/// Whether there may be a bundle of a container of this pod.
fn has_bundle_of(tasks: &Path, pod_uid: &str) -> bool {
    let Ok(ids) = files::list(tasks) else { return true };
    ids.iter().any(|id| match Bundle::read(&tasks.join(id)) {
        Ok(bundle) => bundle.pod_uid.as_deref() == Some(pod_uid),
        Err(_) => true,
    })
}

#[cfg(test)]
#[path = "shims_tests.rs"]
mod tests;
