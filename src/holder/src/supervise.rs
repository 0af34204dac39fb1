//! Keeps one holder running for every migration of this node that is not finished.
//!
//! A migration is a directory with a task and without the marker `closed`. A holder that ends
//! before it has written the marker is started again, after a pause that grows while it keeps
//! failing at once. Two holders for one migration are impossible: each takes the lock of its
//! journal, and one that cannot get it ends with [`LOCKED`]. Holders are sessions of their own and
//! live on when the supervisor ends; the next supervisor waits for their locks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::process::Command;
use tokio::task::JoinSet;
use transship_host::HostRoot;
use transship_host::files;
use transship_host::paths::MigrationDir;

use crate::deadman;
use crate::dirwatch::DirWatch;

/// Exit code of a holder whose journal is locked by another.
pub const LOCKED: u8 = 75;

/// Pause before a holder that died is started again, doubled each time it dies at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A holder that lived this long did not die at once.
const LIVED: Duration = Duration::from_secs(10);
/// How often directories are looked at without any event.
const TICK: Duration = Duration::from_secs(1);

/// What the supervisor knows about one migration.
#[derive(Debug, Default)]
struct Entry {
    running: bool,
    /// How often in a row it died at once.
    failures: u32,
    /// Not to be started before this.
    not_before: Option<Instant>,
}

impl Entry {
    fn due(&self, now: Instant) -> bool {
        !self.running && self.not_before.is_none_or(|then| then <= now)
    }

    /// Notes that the holder ended after living for `lived`.
    fn ended(&mut self, now: Instant, lived: Duration) {
        self.running = false;
        self.failures = if lived >= LIVED { 0 } else { self.failures.saturating_add(1) };
        self.not_before = Some(now + pause(self.failures));
    }
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

/// Runs until the process is ended. A second supervisor on the node ends at once.
pub async fn supervise(host: &HostRoot) -> Result<()> {
    let Some(_lock) = lock(&host.run().join("supervisor.lock"))? else {
        tracing::info!("another supervisor runs already");
        return Ok(());
    };
    let migrations = host.migrations();
    files::make_dir(&migrations)?;
    let watch = DirWatch::new()?;
    watch.add(&migrations)?;
    let program = program(host)?;
    tokio::spawn(deadman::watch_all(host.clone()));
    let mut entries: HashMap<PathBuf, Entry> = HashMap::new();
    let mut holders = JoinSet::new();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "supervising {}", migrations.display());
    loop {
        let now = Instant::now();
        let mut open = Vec::new();
        for dir in scan(&migrations, &watch) {
            let entry = entries.entry(dir.path().to_path_buf()).or_default();
            open.push(dir.path().to_path_buf());
            if entry.due(now) {
                entry.running = true;
                start(&program, dir, &mut holders);
            }
        }
        entries.retain(|dir, entry| entry.running || open.contains(dir));
        let wait = entries
            .values()
            .filter(|entry| !entry.running)
            .filter_map(|entry| entry.not_before)
            .map(|then| then.saturating_duration_since(now))
            .fold(TICK, Duration::min);
        tokio::select! {
            () = watch.changed(wait) => {}
            Some(ended) = holders.join_next() => {
                let (dir, lived, status): Ended = ended.context("a supervising task failed")?;
                if let Some(entry) = entries.get_mut(&dir) {
                    entry.ended(Instant::now(), lived);
                }
                report(&dir, status);
            }
        }
    }
}

type Ended = (PathBuf, Duration, std::io::Result<ExitStatus>);

/// Migrations that need a holder. Directories whose task is not written yet are watched.
fn scan(migrations: &Path, watch: &DirWatch) -> Vec<MigrationDir> {
    let names = files::list(migrations).unwrap_or_else(|error| {
        tracing::error!("{}", error.chain());
        Vec::new()
    });
    names
        .into_iter()
        .map(|name| MigrationDir::at(migrations.join(name)))
        .filter(|dir| dir.identify().is_some() && !dir.closed().exists())
        .filter(|dir| {
            let ready = dir.task().exists();
            if !ready {
                // It may be gone again; the next tick looks anew.
                let _ = watch.add(dir.path());
            }
            ready || dir.task().exists()
        })
        .collect()
}

fn start(program: &Path, dir: MigrationDir, holders: &mut JoinSet<Ended>) {
    let path = dir.path().to_path_buf();
    let mut command = Command::new(program);
    command.arg("run").arg(&path).stdin(Stdio::null()).current_dir("/");
    holders.spawn(async move {
        let started = Instant::now();
        tracing::info!("starting the holder of {}", path.display());
        let status = match command.spawn() {
            Ok(mut child) => child.wait().await,
            Err(error) => Err(error),
        };
        (path, started.elapsed(), status)
    });
}

fn report(dir: &Path, status: std::io::Result<ExitStatus>) {
    let dir = dir.display();
    match status {
        Ok(status) if status.success() => tracing::info!("the holder of {dir} has finished"),
        Ok(status) if status.code() == Some(i32::from(LOCKED)) => {
            tracing::debug!("{dir} has a holder already");
        }
        Ok(status) => tracing::warn!("the holder of {dir} died: {status}"),
        Err(error) => tracing::error!("cannot run a holder for {dir}: {error}"),
    }
}

/// The installed program, which an upgrade may have replaced since this process began; else the
/// program that runs now.
fn program(host: &HostRoot) -> Result<PathBuf> {
    let installed = host.bin("transship-holder");
    if installed.exists() {
        return Ok(installed);
    }
    std::env::current_exe().context("cannot tell which program this is")
}

/// Takes a lock that lasts as long as the returned file is open; none if another has it.
fn lock(path: &Path) -> Result<Option<std::fs::File>> {
    if let Some(directory) = path.parent() {
        files::make_dir(directory)?;
    }
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_failures_and_is_bounded() {
        for (failures, millis) in [(0, 50), (1, 50), (2, 100), (4, 400), (8, 5000), (99, 5000)] {
            assert_eq!(pause(failures), Duration::from_millis(millis), "{failures}");
        }
    }

    #[test]
    fn a_holder_that_lived_long_is_started_again_quickly() {
        let now = Instant::now();
        let mut entry = Entry { running: true, failures: 7, not_before: None };
        assert!(!entry.due(now));
        entry.ended(now, LIVED);
        assert_eq!(entry.failures, 0);
        assert!(!entry.due(now));
        assert!(entry.due(now + FIRST_PAUSE));
    }

    #[tokio::test]
    async fn only_open_migrations_with_a_task_need_a_holder() {
        let dir = tempfile::tempdir().unwrap();
        let watch = DirWatch::new().unwrap();
        for (name, files) in [
            ("1.source", vec!["task.json"]),
            ("2.target", vec!["task.json", "closed"]),
            ("3.target", vec![]),
            ("no-role", vec!["task.json"]),
        ] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            for file in files {
                std::fs::write(dir.path().join(name).join(file), "").unwrap();
            }
        }
        let found = scan(dir.path(), &watch);
        assert_eq!(found, [MigrationDir::at(dir.path().join("1.source"))]);
    }

    #[test]
    fn the_lock_of_the_supervisor_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/lock");
        let first = lock(&path).unwrap();
        assert!(first.is_some());
        assert!(lock(&path).unwrap().is_none());
        drop(first);
        assert!(lock(&path).unwrap().is_some());
    }
}
