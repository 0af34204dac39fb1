//! Waits for files to appear in directories, by inotify. A wake-up says only "look again": every
//! caller reads the directories anew, so a lost or doubled event does no harm, and a time limit
//! makes up for directories that could not be watched.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// Watches a set of directories that may grow.
pub struct DirWatch {
    inotify: AsyncFd<OwnedFd>,
}

impl DirWatch {
    /// Watches nothing yet.
    pub fn new() -> Result<Self> {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let fd = inotify::init(flags).context("cannot use inotify")?;
        #[expect(deprecated, reason = "unsound only for types that do not own their descriptor")]
        let inotify = AsyncFd::new(fd).context("cannot wait for inotify")?;
        Ok(DirWatch { inotify })
    }

    /// Watches `directory` too. Watching one twice changes nothing.
    pub fn add(&self, directory: &Path) -> Result<()> {
        let events = inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::DELETE;
        inotify::add_watch(self.inotify.get_ref(), directory, events)
            .with_context(|| format!("cannot watch {}", directory.display()))?;
        Ok(())
    }

    /// Returns when something changed since the last call, or after `limit`. Events that came
    /// before the call count, so "look, then wait" misses nothing.
    pub async fn changed(&self, limit: Duration) {
        let ready = async {
            match self.inotify.readable().await {
                Ok(mut guard) => {
                    let mut buffer = [0u8; 4096];
                    while matches!(rustix::io::read(self.inotify.get_ref(), &mut buffer), Ok(1..)) {
                    }
                    guard.clear_ready();
                }
                // Cannot happen while the runtime lives; the limit still paces the caller.
                Err(_) => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(limit, ready).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_new_file_wakes_the_waiter_even_when_it_came_first() {
        let dir = tempfile::tempdir().unwrap();
        let watch = DirWatch::new().unwrap();
        watch.add(dir.path()).unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        let started = Instant::now();
        watch.changed(Duration::from_secs(20)).await;
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn without_a_change_the_limit_ends_the_wait() {
        let dir = tempfile::tempdir().unwrap();
        let watch = DirWatch::new().unwrap();
        watch.add(dir.path()).unwrap();
        let started = Instant::now();
        watch.changed(Duration::from_millis(30)).await;
        assert!(started.elapsed() >= Duration::from_millis(30));
        assert!(watch.add(&dir.path().join("missing")).is_err());
    }
}
