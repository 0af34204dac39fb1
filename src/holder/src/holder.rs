//! What both sides of a migration share: where things are, what is to be done, the status board,
//! the reading of the API, clocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use transship_host::HostRoot;
use transship_host::paths::MigrationDir;
use transship_host::task::HolderTask;
use transship_runtime::Layout;

use crate::decision::Reader;
use crate::reading::{self, Asker, Reading};
use crate::status::Board;

/// An administrator's word that the target does not run: this file in the migration's directory.
pub const VOUCHED: &str = "target-is-off";

/// One side of one migration.
pub struct Holder {
    /// The node.
    pub host: HostRoot,
    /// containerd's and runc's directories.
    pub layout: Layout,
    /// The migration's directory.
    pub dir: MigrationDir,
    /// What is to be done.
    pub task: HolderTask,
    /// What is shown.
    pub board: Board,
    /// Asks for reads of the API.
    pub asker: Asker,
    /// Whether ending this process would leave something frozen without a keeper.
    frozen: AtomicBool,
}

impl Holder {
    /// A holder of a migration with a board of its own.
    pub fn new(host: HostRoot, layout: Layout, dir: MigrationDir, task: HolderTask) -> Self {
        let board = Board::new(&dir, &task);
        let (asker, frozen) = (Asker::default(), AtomicBool::new(false));
        Holder { host, layout, dir, task, board, asker, frozen }
    }

    /// Notes whether something is frozen.
    pub fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Whether something is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// A reader of the API server for this migration.
    pub fn reader(&self) -> Reader {
        let migration = &self.task.migration;
        Reader::new(&self.host.api(), &migration.namespace, &migration.name, &migration.uid)
    }

    /// Starts the task that reads the API server.
    pub fn start_reading<E: Send + 'static>(
        &self,
        events: mpsc::Sender<E>,
        into_event: impl Fn(Reading) -> Option<E> + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        let (asker, board) = (self.asker.clone(), self.board.clone());
        let into_event = move |reading: Reading| {
            if let Reading::Migration(transship_protocol::Read::Recorded(recorded)) = &reading
                && let Some(decision) = recorded.decision
            {
                board.update(|status| status.decision_read = format!("{decision:?}"));
            }
            into_event(reading)
        };
        tokio::spawn(reading::read(reader, self.task.clone(), asker, events, into_event));
    }

    /// Sends `deadline` when the time for the whole migration is over, and `vouched` as long as an
    /// administrator's word is there ([`VOUCHED`]).
    pub fn start_clock<E: Copy + Send + 'static>(
        &self,
        events: mpsc::Sender<E>,
        deadline: E,
        vouched: E,
    ) {
        let file = self.dir.path().join(VOUCHED);
        let end = UNIX_EPOCH + Duration::from_millis(self.task.timeout_at_unix_millis);
        tokio::spawn(async move {
            let mut told = false;
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tick.tick().await;
                if !told && SystemTime::now() >= end {
                    told = true;
                    if events.send(deadline).await.is_err() {
                        return;
                    }
                }
                if file.exists() && events.send(vouched).await.is_err() {
                    return;
                }
                if events.is_closed() {
                    return;
                }
            }
        });
    }

    /// What is left of the time for the whole migration.
    pub fn time_left(&self) -> Duration {
        let end = UNIX_EPOCH + Duration::from_millis(self.task.timeout_at_unix_millis);
        end.duration_since(SystemTime::now()).unwrap_or_default()
    }

    /// Sends an event later.
    pub fn after<E: Send + 'static>(&self, wait: Duration, events: mpsc::Sender<E>, event: E) {
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {
                    // Nobody listens after the end.
                    let _ = events.send(event).await;
                }
                () = events.closed() => {}
            }
        });
    }

    /// Runs blocking work on a thread for it, and notes how long it took.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        what: &str,
        work: impl FnOnce(&Holder) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let began = Instant::now();
        let holder = Arc::clone(self);
        let outcome = tokio::task::spawn_blocking(move || work(&holder)).await;
        self.board.took(what, began.elapsed());
        outcome.with_context(|| format!("{what} ended unexpectedly"))?
    }
}
