//! The dead-man of a target between its vote and the reading of `resumedAt`.
//!
//! The operator lets the source go on when this target's signature in its node's Lease has not
//! been renewed for long enough. So a target that may run (or is about to) must stop by itself
//! before that: as soon as the last good signature, counted from the moment it was *sent* (at
//! first: from the arming), is older than T₁, its tasks are frozen and its network is closed. What
//! expired stays expired; a signature that comes too late does not take it back.
//!
//! The state is a file that lasts as long as the boot, changed under a lock, so that the holder, a
//! later holder and the supervisor may all look after one dead-man: none of their deaths stops it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use transship_host::network::nft_program;
use transship_host::paths::{HolderRun, MigrationDir, Role};
use transship_host::{HostRoot, files};
use transship_protocol::{PATIENCE, TargetEvent};

use crate::pod::Pod;

/// How often it is looked at.
pub const LOOK: Duration = Duration::from_millis(500);
/// Name of its file among the holder's sockets.
const FILE: &str = "deadman.json";
/// Name of the file that is locked for every look and change.
const LOCK: &str = "deadman.lock";

/// An armed dead-man.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    /// When the last good signature was sent, or the dead-man armed: milliseconds of
    /// CLOCK_BOOTTIME.
    since: u64,
    /// It has expired.
    lapsed: bool,
    /// And everything is frozen and closed since.
    enforced: bool,
}

impl State {
    fn armed(now: u64) -> Self {
        State { since: now, lapsed: false, enforced: false }
    }

    /// Whether it has expired as of `now`, noticed or not.
    fn has_lapsed(self, now: u64) -> bool {
        let age = now.checked_sub(self.since).map(Duration::from_millis);
        // A time ahead of the clock is of another boot.
        self.lapsed || age.is_none_or(|age| age > PATIENCE)
    }

    /// After a good signature that was sent at `sent`.
    fn signed(self, sent: u64, now: u64) -> Self {
        if self.has_lapsed(now) {
            return State { lapsed: true, ..self };
        }
        State { since: self.since.max(sent.min(now)), ..self }
    }
}

/// The dead-man of one target.
#[derive(Debug, Clone)]
pub struct Deadman {
    dir: PathBuf,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Not armed, or not expired.
    Quiet,
    /// Expired.
    Lapsed,
}

impl Deadman {
    /// The dead-man of the target whose sockets are in `run`, as whoever left it.
    pub fn of(run: &HolderRun) -> Self {
        Deadman { dir: run.path().to_path_buf() }
    }

    /// Whether it is armed and has expired.
    pub fn has_lapsed(&self) -> Result<bool> {
        Ok(self.unless_lapsed(|| ())?.is_none())
    }

    /// Arms it; armed already is fine.
    pub fn arm(&self) -> Result<()> {
        let _lock = self.lock()?;
        if self.read().is_none() {
            self.write(State::armed(now()))?;
        }
        Ok(())
    }

    /// Whether it is armed.
    pub fn is_armed(&self) -> Result<bool> {
        let _lock = self.lock()?;
        Ok(self.read().is_some())
    }

    /// Arms it as expired where it must be armed and is not: nobody can tell for how long.
    pub fn arm_expired(&self) -> Result<()> {
        let _lock = self.lock()?;
        match self.read() {
            Some(_) => Ok(()),
            None => self.write(State { lapsed: true, ..State::armed(now()) }),
        }
    }

    /// Disarms and forgets.
    pub fn disarm(&self) -> Result<()> {
        let _lock = self.lock()?;
        files::remove_durably(&self.dir.join(FILE))?;
        Ok(())
    }

    /// A signature that was sent at `sent` (see [`now`]) is in the Lease.
    pub fn signed(&self, sent: u64) -> Result<()> {
        let _lock = self.lock()?;
        match self.read() {
            Some(state) => self.write(state.signed(sent, now())),
            None => Ok(()),
        }
    }

    /// Does `work` unless the dead-man has expired; nobody acts on its expiry meanwhile.
    pub fn unless_lapsed<T>(&self, work: impl FnOnce() -> T) -> Result<Option<T>> {
        let _lock = self.lock()?;
        let lapsed = self.read().is_some_and(|state| state.has_lapsed(now()));
        Ok((!lapsed).then(work))
    }

    /// Looks, and freezes and closes where it has expired: again at each look until that is done.
    pub fn look(&self, pod: &Pod, nft: &Path) -> Result<Look> {
        self.enforce(|| {
            let frozen = pod.freeze_what_is_left();
            let closed = pod.close_network(nft);
            frozen.and(closed.context("cannot close the pod's network"))
        })
    }

    fn enforce(&self, stop: impl FnOnce() -> Result<()>) -> Result<Look> {
        let _lock = self.lock()?;
        let Some(state) = self.read().filter(|state| state.has_lapsed(now())) else {
            return Ok(Look::Quiet);
        };
        if state.enforced {
            return Ok(Look::Lapsed);
        }
        if !state.lapsed {
            tracing::error!("no signature for {PATIENCE:?}: freezing and closing");
        }
        let stopped = stop();
        if let Err(error) = &stopped {
            tracing::error!("the dead-man cannot act yet: {error:#}");
        }
        self.write(State { lapsed: true, enforced: stopped.is_ok(), ..state })?;
        Ok(Look::Lapsed)
    }

    /// Watches for as long as somebody listens, and tells once that it has expired.
    pub async fn watch(self, pod: Pod, nft: PathBuf, events: mpsc::Sender<TargetEvent>) {
        let (pod, nft) = (Arc::new(pod), Arc::new(nft));
        let mut told = false;
        let mut tick = tokio::time::interval(LOOK);
        while !events.is_closed() {
            tick.tick().await;
            let (deadman, pod, nft) = (self.clone(), Arc::clone(&pod), Arc::clone(&nft));
            // A freeze may take its time, and is not for a thread that serves others.
            let look = tokio::task::spawn_blocking(move || deadman.look(&pod, &nft)).await;
            match look.map_err(anyhow::Error::from).and_then(|look| look) {
                Ok(Look::Lapsed) if !told => {
                    told = true;
                    let _ = events.send(TargetEvent::Lapsed).await;
                }
                Ok(_) => {}
                Err(error) => tracing::error!("the dead-man cannot be looked at: {error:#}"),
            }
        }
    }

    /// The state; one that cannot be read has expired.
    fn read(&self) -> Option<State> {
        files::read_json_opt(&self.dir.join(FILE)).unwrap_or_else(|error| {
            tracing::error!("{}", error.chain());
            Some(State { since: 0, lapsed: true, enforced: false })
        })
    }

    fn write(&self, state: State) -> Result<()> {
        if self.read() == Some(state) {
            return Ok(());
        }
        Ok(files::write_json(&self.dir.join(FILE), &state)?)
    }

    /// Held until the returned file is closed.
    fn lock(&self) -> Result<File> {
        // The directory is there for as long as the holder has its sockets in it: it is not made
        // here, so that a late look does not bring it back.
        let path = self.dir.join(LOCK);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

/// Watches the dead-man of every target on the node, whether its holder lives or not. The supervisor
/// does it, which leaves telling to the holders.
pub async fn watch_all(host: HostRoot) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let host = host.clone();
        let _ = tokio::task::spawn_blocking(move || look_at_all(&host)).await;
    }
}

fn look_at_all(host: &HostRoot) {
    for name in files::list(&host.migrations()).unwrap_or_default() {
        let dir = MigrationDir::at(host.migrations().join(name));
        if let Err(error) = look_at(host, &dir) {
            tracing::error!(
                "the dead-man of {} cannot be looked at: {error:#}",
                dir.path().display()
            );
        }
    }
}

fn look_at(host: &HostRoot, dir: &MigrationDir) -> Result<()> {
    let Some((uid, Role::Target)) = dir.identify() else { return Ok(()) };
    let deadman = Deadman::of(&host.holder(uid, Role::Target)?);
    if deadman.dir.join(FILE).exists()
        && let Some(pod) = Pod::load(dir)?
    {
        deadman.look(&pod, &nft_program(host))?;
    }
    Ok(())
}

/// Milliseconds of CLOCK_BOOTTIME, which goes on while the machine sleeps.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or(0) * 1000 + nanos.unwrap_or(0) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of_self;

    const T1: u64 = PATIENCE.as_millis() as u64;

    fn deadman(dir: &Path) -> Deadman {
        Deadman { dir: dir.to_path_buf() }
    }

    /// As left by somebody who saw the last signature at this time.
    fn left(dir: &Path, since: u64) -> Deadman {
        let deadman = deadman(dir);
        deadman.write(State::armed(since)).unwrap();
        deadman
    }

    #[test]
    fn it_expires_when_the_last_signature_was_sent_too_long_ago() {
        let state = State::armed(1000);
        assert!(!state.has_lapsed(1000 + T1));
        assert!(state.has_lapsed(1001 + T1));
        assert!(state.has_lapsed(999), "of another boot");
        let signed = state.signed(5000, 1000 + T1);
        assert!(!signed.has_lapsed(5000 + T1), "counted from the sending");
        assert!(signed.has_lapsed(5001 + T1));
        assert_eq!(signed.signed(2000, 6000), signed, "an older one changes nothing");
        assert!(!state.signed(1 << 40, 2000).has_lapsed(2000 + T1));
        assert!(state.signed(1 << 40, 2000).has_lapsed(2001 + T1), "none counts from the future");
    }

    #[test]
    fn a_signature_that_comes_too_late_does_not_take_an_expiry_back() {
        let late = State::armed(1000).signed(1000 + T1, 1002 + T1);
        assert!(late.lapsed && late.has_lapsed(1003 + T1));
        let dir = tempfile::tempdir().unwrap();
        let deadman = left(dir.path(), 0);
        assert_eq!(deadman.unless_lapsed(|| 7).unwrap(), None, "asked before anybody has looked");
        deadman.signed(now()).unwrap();
        assert!(deadman.has_lapsed().unwrap());
        assert_eq!(deadman.unless_lapsed(|| 7).unwrap(), None);
    }

    #[test]
    fn another_process_goes_on_with_what_it_finds() {
        let dir = tempfile::tempdir().unwrap();
        deadman(dir.path()).arm().unwrap();
        let second = deadman(dir.path());
        assert!(!second.has_lapsed().unwrap());
        assert_eq!(second.unless_lapsed(|| 7).unwrap(), Some(7));
        left(dir.path(), 0);
        second.arm().unwrap();
        assert!(second.has_lapsed().unwrap(), "arming again does not begin anew");
        second.disarm().unwrap();
        assert!(!second.has_lapsed().unwrap());
        assert_eq!(second.unless_lapsed(|| 7).unwrap(), Some(7));
    }

    #[test]
    fn one_that_is_lost_after_the_vote_has_expired() {
        let dir = tempfile::tempdir().unwrap();
        let deadman = deadman(dir.path());
        assert!(!deadman.is_armed().unwrap());
        deadman.arm_expired().unwrap();
        assert!(deadman.is_armed().unwrap() && deadman.has_lapsed().unwrap());
        deadman.disarm().unwrap();
        deadman.arm().unwrap();
        deadman.arm_expired().unwrap();
        assert!(!deadman.has_lapsed().unwrap(), "one that is armed goes on");
    }

    #[test]
    fn what_cannot_be_read_has_expired() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(deadman(dir.path()).has_lapsed().unwrap());
    }

    #[test]
    fn it_acts_until_everything_is_stopped_and_says_so_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let deadman = left(dir.path(), 0);
        let mut tries = 0;
        for works in [false, false, true, true] {
            let look = deadman.enforce(|| {
                tries += 1;
                anyhow::ensure!(works, "not yet");
                Ok(())
            });
            assert_eq!(look.unwrap(), Look::Lapsed);
        }
        assert_eq!(tries, 3, "once it is done it is done");
    }

    #[test]
    fn one_that_is_not_armed_or_not_expired_never_acts() {
        let dir = tempfile::tempdir().unwrap();
        let deadman = deadman(dir.path());
        let never = || -> Result<()> { panic!("it acted") };
        assert_eq!(deadman.enforce(never).unwrap(), Look::Quiet);
        deadman.arm().unwrap();
        assert_eq!(deadman.enforce(never).unwrap(), Look::Quiet);
    }

    #[test]
    fn a_target_whose_holder_is_dead_is_stopped_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let cgroup = root.path().join("cgroup");
        std::fs::create_dir(&cgroup).unwrap();
        std::fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let (state, mut pod) = (cgroup.join("freezer.state"), pod_of_self());
        pod.netns = "/nonexistent".into();
        pod.containers[0].freezer.dir = cgroup;
        std::fs::write(&state, "THAWED").unwrap();
        for (uid, since) in [("m-1", now()), ("m-2", 0)] {
            let dir = host.migration(uid, Role::Target).unwrap();
            std::fs::create_dir_all(dir.path()).unwrap();
            pod.save(&dir).unwrap();
            let run = host.holder(uid, Role::Target).unwrap();
            left(run.path(), since);
            look_at_all(&host);
            let wanted = if since == 0 { "FROZEN" } else { "THAWED" };
            assert_eq!(std::fs::read_to_string(&state).unwrap(), wanted);
        }
        assert!(Deadman::of(&host.holder("m-2", Role::Target).unwrap()).has_lapsed().unwrap());
    }

    #[tokio::test]
    async fn the_holder_is_told_although_the_freeze_fails() {
        let dir = tempfile::tempdir().unwrap();
        let deadman = left(dir.path(), 0);
        let (events, mut received) = mpsc::channel(1);
        // Its network cannot be closed: there is no such program.
        let mut pod = pod_of_self();
        pod.netns = "/proc/self/ns/net".into();
        let watch = tokio::spawn(deadman.watch(pod, "/nonexistent/nft".into(), events));
        assert_eq!(received.recv().await, Some(TargetEvent::Lapsed));
        received.close();
        watch.await.unwrap();
    }
}
