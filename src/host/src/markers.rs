//! Small files in a pod's directory with which wrapper, hold and holder tell each other how far a restore is.
//! Each is written once, whole and durable; its presence is the message.
//!
//! ```text
//! agent    tickets/<c>          may be restored once
//! wrapper  waiting/<c>.json     `create` waits for images
//! holder   ready/<c>.json       files applied, images complete: go on
//! wrapper  consumed/<c>         the ticket, after it was used
//! hold     unheld/<c>.json      from now on somebody's death may let tasks run
//! hold     held/<c>.json        tasks exist, all frozen, none has run
//! wrapper  restored/<c>.json    the runtime reported success
//! wrapper  failed/<c>.json      it did not; nothing is left alive
//! ```
//!
//! Where containers are started with their files (a cold move) the same tickets say which of them still need
//! them. Only the holder takes them, when the container has been started:
//!
//! ```text
//! wrapper  waiting/<c>.json     `create` waits for the record, or puts the files into the root
//! wrapper  filled/<c>.json      they are there; runc's `create` follows
//! holder   consumed/<c>         the runtime has started it
//! ```

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::freezer::Freezer;
use crate::invocation;
use crate::paths::PodDir;

/// `waiting/<container>.json`: the wrapper in `create` waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The runtime's id of the container.
    pub container_id: String,
    /// The OCI bundle.
    pub bundle: PathBuf,
    /// The root file system in which the container will run (inside or outside the bundle).
    pub rootfs: PathBuf,
    /// The runtime's state directory (`--root`), empty for its default.
    pub runc_root: PathBuf,
    /// The wrapper's process.
    pub pid: u32,
    /// The freezer cgroup that the container will have. A restore whose wrapper is killed goes on for a moment, and
    /// containerd removes the bundle meanwhile; this tells where to look for what it has left.
    #[serde(default)]
    pub freezer: Option<Freezer>,
}

impl Waiting {
    /// The runtime's state directory of the container.
    pub fn state_dir(&self) -> Option<PathBuf> {
        invocation::state_dir(&self.runc_root, &self.container_id)
    }
}

/// `ready/<container>.json`: the restore may start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The runtime's id of the container whose files were applied (from [`Waiting`]): when kubelet tries
    /// again there is a new container, for which an older answer must not count.
    pub container_id: String,
    /// The CRIU images.
    pub images: PathBuf,
    /// CRIU's working directory (its log goes there).
    pub work: PathBuf,
}

/// `unheld/<container>.json`: tasks are about to stand still by ptrace alone. Until [`Held`] follows, a kill of
/// CRIU, of its action script or of runc may have let them run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unheld {
    /// The container's first process.
    pub pid: u32,
}

/// `held/<container>.json`: every task is rebuilt and frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The container's first process.
    pub pid: u32,
    /// The frozen cgroup.
    #[serde(flatten)]
    pub freezer: Freezer,
}

/// `restored/<container>.json`: the runtime has the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The runtime's id of the container.
    pub container_id: String,
    /// The container's first process.
    pub pid: u32,
    /// The frozen cgroup.
    #[serde(flatten)]
    pub freezer: Freezer,
    /// The runtime's state directory (`--root`), empty for its default.
    pub runc_root: PathBuf,
    /// The OCI bundle.
    pub bundle: PathBuf,
}

/// `failed/<container>.json`: the restore failed and nothing of it is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// One sentence.
    pub message: String,
    /// The end of CRIU's log, if there is one.
    #[serde(default)]
    pub log: String,
}

/// `filled/<container>.json`: this container has its files, and is about to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The runtime's id of the container. One that was not started is followed by another.
    pub container_id: String,
}

/// A kind of marker: its type tells its directory.
pub trait Marker: Serialize + DeserializeOwned {
    /// The directory's name.
    const DIR: &'static str;
}

impl Marker for Waiting {
    const DIR: &'static str = "waiting";
}
impl Marker for Ready {
    const DIR: &'static str = "ready";
}
impl Marker for Unheld {
    const DIR: &'static str = "unheld";
}
impl Marker for Held {
    const DIR: &'static str = "held";
}
impl Marker for Restored {
    const DIR: &'static str = "restored";
}
impl Marker for Filled {
    const DIR: &'static str = "filled";
}
impl Marker for Failed {
    const DIR: &'static str = "failed";
}

impl PodDir {
    /// Writes a marker durably.
    pub fn mark<M: Marker>(&self, container: &str, marker: &M) -> Result<()> {
        files::write_json(&self.marker(M::DIR, container)?, marker)
    }

    /// Reads a marker.
    pub fn marked<M: Marker>(&self, container: &str) -> Result<Option<M>> {
        files::read_json_opt(&self.marker(M::DIR, container)?)
    }

    /// Whether a marker is there, whatever is in it.
    pub fn is_marked<M: Marker>(&self, container: &str) -> Result<bool> {
        let marker = self.marker(M::DIR, container)?;
        marker.try_exists().map_err(Error::io("look at", &marker))
    }

    /// Removes a marker; returns whether it was there.
    pub fn unmark<M: Marker>(&self, container: &str) -> Result<bool> {
        files::remove_durably(&self.marker(M::DIR, container)?)
    }

    /// The containers that have this marker, sorted.
    pub fn all_marked<M: Marker>(&self) -> Result<Vec<String>> {
        let names = files::list(&self.path().join(M::DIR))?;
        Ok(names.iter().filter_map(|n| n.strip_suffix(".json").map(str::to_owned)).collect())
    }

    /// Lets `container` be restored once. A ticket that was used already is not renewed.
    pub fn grant_ticket(&self, container: &str) -> Result<()> {
        let consumed = self.consumed(container)?;
        if consumed.try_exists().map_err(Error::io("look at", &consumed))? {
            return Ok(());
        }
        files::write_atomic(&self.ticket(container)?, b"")
    }

    /// Removes all tickets and markers that an earlier migration of the pod has left.
    pub fn clear_markers(&self) -> Result<()> {
        [Waiting::DIR, Ready::DIR, Unheld::DIR, Held::DIR, Restored::DIR, Filled::DIR, Failed::DIR]
            .into_iter()
            .chain(["tickets", "consumed"])
            .try_for_each(|dir| files::remove_tree(&self.path().join(dir)))
    }

    /// Whether tasks of `container` may have run before they were held. Where they have not, a restore that failed
    /// in that moment says so all the same: what has ended cannot be asked.
    pub fn may_have_run(&self, container: &str) -> Result<bool> {
        Ok(self.is_marked::<Unheld>(container)? && !self.is_marked::<Held>(container)?)
    }

    /// Why the restore of `container` has failed, with what may have come of it.
    pub fn told_of_failure(&self, container: &str, why: &str) -> String {
        match self.may_have_run(container) {
            Ok(true) => format!(
                "{why}; the restore ended before its tasks were held, so they may have run for a moment"
            ),
            // Who closes the pod looks again.
            Ok(false) | Err(_) => why.to_owned(),
        }
    }

    /// Whether `container` may still be restored.
    pub fn has_ticket(&self, container: &str) -> Result<bool> {
        let ticket = self.ticket(container)?;
        ticket.try_exists().map_err(Error::io("look at", &ticket))
    }

    /// Uses the ticket up, durably, before anything is restored with it. `false`: there was none.
    pub fn consume_ticket(&self, container: &str) -> Result<bool> {
        files::rename_durably(&self.ticket(container)?, &self.consumed(container)?)
    }
}

/// Calls `look` until it returns something or `limit` has passed; looks every few milliseconds.
pub fn wait_for<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostRoot;
    use crate::freezer::CgroupVersion;

    fn pod() -> (tempfile::TempDir, PodDir) {
        let dir = tempfile::tempdir().unwrap();
        let pod = HostRoot::at(dir.path()).pod("p-1").unwrap();
        (dir, pod)
    }

    #[test]
    fn a_ticket_is_good_for_one_restore() {
        let (_dir, pod) = pod();
        assert!(!pod.consume_ticket("web").unwrap());
        pod.grant_ticket("web").unwrap();
        assert!(pod.has_ticket("web").unwrap());
        assert!(pod.consume_ticket("web").unwrap());
        assert!(!pod.consume_ticket("web").unwrap());
        pod.grant_ticket("web").unwrap();
        assert!(!pod.has_ticket("web").unwrap(), "a used ticket must not come back");
    }

    #[test]
    fn markers_come_back_and_are_listed() {
        let (_dir, pod) = pod();
        let held = Held {
            pid: 7,
            freezer: Freezer { dir: "/sys/fs/cgroup/freezer/x".into(), version: CgroupVersion::V1 },
        };
        assert_eq!(pod.marked::<Held>("web").unwrap(), None);
        pod.mark("web", &held).unwrap();
        pod.mark("aux", &held).unwrap();
        assert_eq!(pod.marked::<Held>("web").unwrap(), Some(held));
        assert_eq!(pod.all_marked::<Held>().unwrap(), ["aux", "web"]);
        assert!(pod.all_marked::<Ready>().unwrap().is_empty());
        assert!(pod.unmark::<Held>("web").unwrap());
        assert!(!pod.unmark::<Held>("web").unwrap());
    }

    #[test]
    fn a_pod_that_moves_again_has_nothing_of_its_last_move() {
        let (_dir, pod) = pod();
        pod.grant_ticket("web").unwrap();
        pod.consume_ticket("web").unwrap();
        pod.mark("web", &Filled { container_id: "c1".into() }).unwrap();
        pod.clear_markers().unwrap();
        assert_eq!(pod.marked::<Filled>("web").unwrap(), None);
        pod.grant_ticket("web").unwrap();
        assert!(pod.has_ticket("web").unwrap(), "a new migration has tickets of its own");
        pod.clear_markers().unwrap();
        pod.clear_markers().unwrap();
    }

    #[test]
    fn what_was_not_held_from_when_it_could_be_let_go_may_have_run() {
        let (_dir, pod) = pod();
        let freezer = Freezer { dir: "/c".into(), version: CgroupVersion::V2 };
        assert!(!pod.may_have_run("web").unwrap(), "it was never as far");
        assert_eq!(pod.told_of_failure("web", "runc was killed"), "runc was killed");
        pod.mark("web", &Unheld { pid: 7 }).unwrap();
        assert!(pod.may_have_run("web").unwrap());
        assert!(!pod.may_have_run("aux").unwrap(), "another container");
        let told = pod.told_of_failure("web", "runc was killed");
        assert!(told.starts_with("runc was killed; ") && told.contains("may have run"), "{told}");
        pod.mark("web", &Held { pid: 7, freezer }).unwrap();
        assert!(!pod.may_have_run("web").unwrap());
        pod.clear_markers().unwrap();
        assert_eq!(pod.marked::<Unheld>("web").unwrap(), None);
    }

    #[test]
    fn a_mark_counts_that_cannot_be_read() {
        let (_dir, pod) = pod();
        for dir in [Unheld::DIR, Held::DIR] {
            files::write_atomic(&pod.marker(dir, "web").unwrap(), b"{").unwrap();
            assert_eq!(pod.may_have_run("web").unwrap(), dir == Unheld::DIR);
        }
        assert!(pod.marked::<Unheld>("web").is_err(), "what it says is not known");
    }

    #[test]
    fn the_held_marker_has_the_documented_form() {
        let held =
            Held { pid: 7, freezer: Freezer { dir: "/c".into(), version: CgroupVersion::V2 } };
        assert_eq!(
            serde_json::to_string(&held).unwrap(),
            r#"{"pid":7,"freezer":"/c","version":2}"#
        );
    }

    #[test]
    fn a_waiting_container_tells_its_state_directory_and_no_other() {
        let state_dir = |root: &str, id: &str| {
            let waiting = Waiting {
                container_id: id.into(),
                bundle: "/b".into(),
                rootfs: "/b/rootfs".into(),
                runc_root: root.into(),
                pid: 7,
                freezer: None,
            };
            waiting.state_dir()
        };
        assert_eq!(state_dir("/r", "c1"), Some("/r/c1".into()));
        assert_eq!(state_dir("", "c1"), Some("/run/runc/c1".into()));
        for id in ["", ".", "..", "../c2", "c1/x"] {
            assert_eq!(state_dir("/r", id), None, "{id}");
        }
    }

    #[test]
    fn waiting_ends_with_the_condition_or_the_limit() {
        let mut looks = 0;
        let found = wait_for(Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.unwrap(), Some(3));
        assert_eq!(wait_for::<()>(Duration::ZERO, || Ok(None)).unwrap(), None);
    }
}
