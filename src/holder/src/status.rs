//! What the holder shows of itself: one snapshot, changed in place, watched over the control
//! socket and left in a file for the time when the holder has ended.
//!
//! Decides only how the protocol's phases are called outside.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;
use transship_api::HolderState;
use transship_host::files;
use transship_host::paths::{MigrationDir, Role};
use transship_host::task::HolderTask;
use transship_protocol::{SourceMachine, SourcePhase, TargetMachine, TargetOutcome, TargetPhase};
use transship_rpc::{SideStatus, Stage};

/// Name of the file in the migration's directory that holds the last snapshot as JSON.
pub const FILE: &str = "status.json";

/// The board on which the status hangs. Cheap to clone.
#[derive(Clone)]
pub struct Board {
    sender: Arc<watch::Sender<SideStatus>>,
    file: PathBuf,
}

impl Board {
    /// A board for a holder that has just started.
    pub fn new(dir: &MigrationDir, task: &HolderTask) -> Self {
        let role = match task.role {
            Role::Source => transship_rpc::Role::Source,
            Role::Target => transship_rpc::Role::Target,
        };
        let file = dir.path().join(FILE);
        // A restarted holder goes on with what its predecessor measured.
        let mut status =
            files::read_json_opt::<SideStatus>(&file).ok().flatten().unwrap_or_default();
        status.migration_uid.clone_from(&task.migration.uid);
        status.pod_uid.clone_from(&task.pod.uid);
        status.role = role as i32;
        // Of this one nothing is known yet.
        status.stuck.clear();
        if status.stage == Stage::Unspecified as i32 {
            status.stage = Stage::Started as i32;
        }
        Board { sender: Arc::new(watch::channel(status).0), file }
    }

    /// For those who watch.
    pub fn subscribe(&self) -> watch::Receiver<SideStatus> {
        self.sender.subscribe()
    }

    /// Changes the snapshot; watchers are told, and the file follows, only if it is different.
    pub fn update(&self, change: impl FnOnce(&mut SideStatus)) {
        let changed = self.sender.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
        if changed {
            let text = serde_json::to_vec(&*self.sender.borrow()).unwrap_or_default();
            // For people and the agent: a lost write costs a little knowledge, never correctness,
            // so it is neither fsynced nor retried.
            let temporary = self.file.with_extension("json.tmp");
            if let Err(error) = std::fs::write(&temporary, text)
                .and_then(|()| std::fs::rename(&temporary, &self.file))
            {
                tracing::warn!("cannot write {}: {error}", self.file.display());
            }
        }
    }

    /// Notes how long a part of the work took.
    pub fn took(&self, what: &str, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(what, micros, "done");
        self.update(|status| {
            status.micros.insert(what.to_owned(), micros);
        });
    }

    /// Notes the first reason of a failure; later ones are its consequences.
    pub fn failed(&self, reason: &str, message: &str) {
        tracing::warn!(reason, "{message}");
        self.update(|status| {
            if status.reason.is_empty() {
                reason.clone_into(&mut status.reason);
                message.clone_into(&mut status.message);
            }
        });
    }

    /// Notes how the pod's memory was lost. It is lost once.
    pub fn memory_lost(&self, how: &str) {
        self.update(|status| {
            if status.memory_lost.is_empty() {
                how.clone_into(&mut status.memory_lost);
            }
        });
    }

    /// Notes what does not succeed however often it is tried, or with an empty text that it did.
    pub fn stuck(&self, why: &str) {
        self.update(|status| why.clone_into(&mut status.stuck));
    }

    /// Whether the tasks were frozen at some time, by this or an earlier holder.
    pub fn was_frozen(&self) -> bool {
        self.sender.borrow().frozen_at_unix_micros != 0
    }

    /// Whether the tasks were thawed at some time.
    pub fn was_thawed(&self) -> bool {
        self.sender.borrow().thawed_at_unix_micros != 0
    }

    /// Shows a word that the protocol has handed out.
    pub fn word(&self, word: &impl Serialize) {
        let text = serde_json::to_string(word).unwrap_or_default();
        self.update(|status| status.word_json = text);
    }

    /// Shows where the source's machine stands.
    pub fn source(&self, machine: &SourceMachine) {
        let phase = machine.phase();
        let (stage, state) = of_source(phase);
        self.enter(stage, state, machine.is_closed());
        self.update(|status| {
            status.voted |= phase == SourcePhase::Voted;
            status.never_thawed = false;
        });
    }

    /// Shows where the target's machine stands. While postStart hooks are to be run something is left to
    /// do on this side, whatever the machine says.
    pub fn target(&self, machine: &TargetMachine, hooks_left: bool) {
        let phase = machine.phase();
        let (stage, state) = match of_target(phase) {
            // Not said before it is known.
            (stage, HolderState::NeverThawed) if !machine.says_never_thawed() => {
                (stage, HolderState::Preparing)
            }
            shown => shown,
        };
        self.enter(stage, state, machine.is_closed() && !hooks_left);
        self.update(|status| {
            status.voted |= phase == TargetPhase::Voted;
            status.never_thawed |= machine.says_never_thawed();
        });
    }

    /// Notes that the postStart hook of a container was run, and what went wrong with it.
    pub fn hook(&self, container: &str, outcome: Result<(), String>) {
        let text = outcome.err().unwrap_or_default();
        self.update(|status| {
            status.hooks.insert(container.to_owned(), text);
        });
    }

    /// Whether the postStart hook of a container was run, by this or an earlier holder.
    pub fn has_run_hook(&self, container: &str) -> bool {
        self.sender.borrow().hooks.contains_key(container)
    }

    /// Nothing is left to do.
    pub fn closed(&self) {
        self.update(|status| status.closed = true);
    }

    fn enter(&self, stage: Option<Stage>, state: HolderState, closed: bool) {
        let state = format!("{state:?}");
        self.update(|status| {
            // Within one phase the work shows how far it is; it never goes back.
            if let Some(stage) = stage
                && stage as i32 > status.stage
            {
                status.stage = stage as i32;
            }
            status.closed = closed;
            if status.holder_state != state {
                status.holder_state = state;
                status.since_unix_micros = now_micros();
            }
        });
    }
}

/// Microseconds since 1970 by the node's clock.
pub fn now_micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// The least stage that a phase stands for, and the state to publish.
fn of_source(phase: SourcePhase) -> (Option<Stage>, HolderState) {
    match phase {
        SourcePhase::Idle | SourcePhase::Begun => (Some(Stage::Started), HolderState::Preparing),
        SourcePhase::Freezing => (None, HolderState::Frozen),
        SourcePhase::Voted | SourcePhase::Committed => (Some(Stage::Voted), HolderState::Voted),
        SourcePhase::Aborting | SourcePhase::Resuming(_) | SourcePhase::Starting => {
            (None, HolderState::Frozen)
        }
        SourcePhase::Moved => (Some(Stage::Voted), HolderState::Voted),
        SourcePhase::Opened => (Some(Stage::Aborted), HolderState::SourceResumed),
        SourcePhase::Released => (Some(Stage::Released), HolderState::Moved),
    }
}

/// As [`of_source`]. `Resumed` is published only when it is final: a source whose Migration has
/// vanished ends its own tasks on the strength of it.
fn of_target(phase: TargetPhase) -> (Option<Stage>, HolderState) {
    match phase {
        TargetPhase::Idle | TargetPhase::Begun => (Some(Stage::Started), HolderState::Preparing),
        TargetPhase::Voted | TargetPhase::Committed => (Some(Stage::Voted), HolderState::Voted),
        TargetPhase::Thawing => (Some(Stage::Voted), HolderState::Thawing),
        TargetPhase::Thawed | TargetPhase::Confirmed => (Some(Stage::Thawed), HolderState::Thawing),
        TargetPhase::Lost => (Some(Stage::Lost), HolderState::Rebooted),
        TargetPhase::NeverThawed => (None, HolderState::NeverThawed),
        TargetPhase::Stopping => (None, HolderState::Thawing),
        TargetPhase::Closed(TargetOutcome::Resumed) => (Some(Stage::Thawed), HolderState::Resumed),
        TargetPhase::Closed(TargetOutcome::NeverThawed) => {
            (Some(Stage::Aborted), HolderState::NeverThawed)
        }
        TargetPhase::Closed(TargetOutcome::Stopped) => (Some(Stage::Aborted), HolderState::Aborted),
        TargetPhase::Closed(TargetOutcome::Kept) => (Some(Stage::Voted), HolderState::Kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transship_host::HostRoot;

    fn board() -> (tempfile::TempDir, Board) {
        let root = tempfile::tempdir().unwrap();
        let dir = HostRoot::at(root.path()).migration("m-1", Role::Source).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let board = Board {
            sender: Arc::new(watch::channel(SideStatus::default()).0),
            file: dir.path().join(FILE),
        };
        (root, board)
    }

    #[test]
    fn the_file_follows_the_snapshot() {
        let (_root, board) = board();
        board.failed("DumpFailed", "first");
        board.failed("Other", "second");
        board.took("freeze", Duration::from_micros(1500));
        let status: SideStatus = files::read_json(&board.file).unwrap();
        assert_eq!((status.reason.as_str(), status.message.as_str()), ("DumpFailed", "first"));
        assert_eq!(status.micros["freeze"], 1500);
    }

    #[test]
    fn what_a_former_holder_was_stuck_at_is_not_known_of_this_one() {
        let (root, board) = board();
        board.stuck("FilesNotKept: no room");
        board.update(|status| status.files_lost = vec!["web".into()]);
        let dir = HostRoot::at(root.path()).migration("m-1", Role::Source).unwrap();
        let mut task = crate::areas::tests::task();
        task.role = Role::Source;
        let status = Board::new(&dir, &task).subscribe().borrow().clone();
        assert_eq!((status.stuck.as_str(), status.files_lost), ("", vec!["web".to_owned()]));
    }

    #[test]
    fn an_update_that_changes_nothing_wakes_nobody() {
        let (_root, board) = board();
        let mut watcher = board.subscribe();
        board.update(|status| status.bytes_sent = 7);
        assert!(watcher.has_changed().unwrap());
        watcher.mark_unchanged();
        board.update(|status| status.bytes_sent = 7);
        assert!(!watcher.has_changed().unwrap());
    }

    #[test]
    fn the_stage_never_goes_back_within_the_way_to_the_vote() {
        let (_root, board) = board();
        board.update(|status| status.stage = Stage::Sent as i32);
        board.enter(Some(Stage::Started), HolderState::Frozen, false);
        assert_eq!(board.subscribe().borrow().stage, Stage::Sent as i32);
        board.enter(Some(Stage::Voted), HolderState::Voted, false);
        assert_eq!(board.subscribe().borrow().stage, Stage::Voted as i32);
    }

    #[test]
    fn a_pod_made_again_does_not_say_that_it_never_ran_before_that_is_known() {
        use transship_protocol::{Facts, Part, TargetEntry};
        let shown = |part| {
            let (_root, board) = board();
            let entries = [TargetEntry::Begun, TargetEntry::AbortedBeforeVote];
            let facts = Facts { same_boot: true, tasks: false, lapsed: false };
            board.target(&TargetMachine::recover_as(part, &entries, facts).0, false);
            let status = board.subscribe().borrow().clone();
            (status.never_thawed, status.holder_state)
        };
        assert_eq!(shown(Part::Overlap), (true, "NeverThawed".to_owned()));
        assert_eq!(shown(Part::Again), (false, "Preparing".to_owned()));
    }

    #[test]
    fn a_target_says_resumed_only_when_that_is_final() {
        assert_eq!(of_target(TargetPhase::Thawed).1, HolderState::Thawing);
        assert_eq!(of_target(TargetPhase::Closed(TargetOutcome::Resumed)).1, HolderState::Resumed);
        for phase in [TargetPhase::NeverThawed, TargetPhase::Closed(TargetOutcome::NeverThawed)] {
            assert_eq!(of_target(phase).1, HolderState::NeverThawed);
        }
        assert_eq!(of_target(TargetPhase::Closed(TargetOutcome::Stopped)).1, HolderState::Aborted);
    }
}
