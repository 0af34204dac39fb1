//! Carries out what the protocol's machine orders on the source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::mpsc;
use transship_host::journal::Journal;
use transship_host::network::nft_program;
use transship_host::record::RecordState;
use transship_protocol::{
    Effect, SourceEffect, SourceEntry, SourceEvent, SourceMachine, SourcePhase,
};
use transship_rpc::Stage;

use super::dump::{self, Dumper};
use super::send::{Connected, Transfer};
use super::{end, files, find, freeze};
use crate::durable::durable_with_volumes;
use crate::engine::{Failed, Hands};
use crate::holder::Holder;
use crate::pod::Pod;
use crate::status::Board;
use crate::{connections, record, started, status};

/// How long verbs of the runtime that are at work may take to end.
const QUIESCE: Duration = Duration::from_secs(10);

/// Carries out the source's effects.
pub struct SourceHands {
    holder: Arc<Holder>,
    journal: Journal<SourceEntry>,
    pod: Option<Pod>,
    dumper: Option<Dumper>,
    connected: Connected,
    transfer: Option<Transfer>,
    /// Cold: it is looked whether the containers were started again.
    watching: bool,
    /// When the network began to close, from which on clients notice: Unix time in microseconds.
    closed_at: Option<i64>,
    freeze_began: Option<Instant>,
    /// The machine knows that what the pod had in memory is gone.
    has_lost_memory: bool,
    events: mpsc::Sender<SourceEvent>,
}

impl Hands for SourceHands {
    type Machine = SourceMachine;

    fn journal(&mut self, entry: SourceEntry) -> Result<()> {
        Ok(self.journal.append(&entry)?)
    }

    async fn work(&mut self, effect: SourceEffect) -> Result<(), Failed> {
        let holder = Arc::clone(&self.holder);
        let nft = nft_program(&holder.host);
        match effect {
            // Written by the caller, which stops at an error.
            Effect::Journal(_) => Ok(()),
            Effect::WriteRecord(state) => {
                if state == RecordState::Open {
                    self.end_lost()?;
                }
                if state == RecordState::Starting {
                    // Perhaps by a holder that has come after a loss of power.
                    files::show_lost(&holder);
                    started::grant(&holder)
                        .map_err(|error| Failed::other("RecordNotWritten", error))?;
                }
                record::write(&holder, state)
                    .map_err(|error| Failed::other("RecordNotWritten", error))?;
                if state == RecordState::Moved
                    && let Some(pod) = &self.pod
                {
                    connections::reset(&holder, pod, &nft);
                }
                Ok(())
            }
            Effect::QuiesceWrapper => holder
                .blocking("quiesce", |holder| {
                    Ok(transship_host::quiesce::wait(&holder.host, &holder.task.pod.uid, QUIESCE)?)
                })
                .await
                .map_err(|error| Failed::other("RuntimeBusy", error)),
            Effect::CloseNetwork => {
                let pod = self.living("closed")?;
                freeze::refuse_stopped(pod)
                    .map_err(|error| Failed::other("ProcessStopped", error))?;
                let began = Instant::now();
                let closed_at = status::now_micros();
                freeze::close_network(pod, &nft)
                    .await
                    .map_err(|error| Failed::other("NetworkNotClosed", error))?;
                self.closed_at = Some(closed_at);
                holder.board.took("close", began.elapsed());
                Ok(())
            }
            Effect::FreezeTasks => self.freeze(),
            Effect::VerifyTasks => {
                let pod = self.pod("verified")?;
                if holder.task.part.is_cold() {
                    return end::verify(&holder, pod).map_err(Failed::tasks_lost);
                }
                pod.verify_frozen(&holder.layout).map_err(Failed::tasks_lost)
            }
            Effect::DestroySockets => match &self.pod {
                Some(pod) => connections::destroy_outside(&holder, pod)
                    .map(drop)
                    .map_err(|error| Failed::other("SocketsNotDestroyed", error)),
                None => Ok(()),
            },
            Effect::OpenNetwork(_) => match &self.pod {
                Some(pod) => {
                    connections::translate(&holder);
                    pod.network()
                        .open(&nft)
                        .map_err(|error| Failed::other("NetworkNotOpened", error))
                }
                None => Ok(()),
            },
            Effect::Announce => {
                record::announce(&holder, self.pod.as_ref());
                Ok(())
            }
            Effect::ThawTasks(_) => {
                let ended = self.end_transfer().await;
                ended.map_err(|error| Failed::other("NotThawed", error))?;
                if let Some(pod) = &self.pod {
                    crate::names::take_back(&holder, pod);
                }
                // Of a shim that died when the record opened: its `delete` may have come too early.
                self.end_lost()?;
                // Already before: the first containers may go on, and end, when others do not yet.
                self.note_thaw();
                let Some(pod) = &self.pod else { return Ok(()) };
                dump::mend_connections(&holder.layout, &holder.dir, pod);
                pod.thaw().map_err(|error| Failed::other("NotThawed", error))?;
                self.note_thaw();
                Ok(())
            }
            Effect::KillTasksFrozen => {
                self.end_transfer_if_possible().await;
                let Some(pod) = &self.pod else { return Ok(()) };
                pod.kill_frozen().map_err(|error| Failed::other("NotKilled", error))?;
                if connections::closes(&holder)
                    && let Err(error) = pod.network().open(&nft)
                {
                    // Its peers are answered with resets while it is there, which is not for long.
                    tracing::warn!("{}", error.chain());
                }
                Ok(())
            }
            Effect::Publish(word) => {
                holder.board.word(&word);
                Ok(())
            }
            Effect::ReadRecorded => {
                holder.asker.migration();
                Ok(())
            }
            Effect::ReadPeer => {
                holder.asker.peer();
                Ok(())
            }
            Effect::ReadPod => {
                holder.asker.pod();
                Ok(())
            }
            Effect::FindTasks => {
                let pod = self.pod.as_mut().ok_or_else(|| {
                    Failed::tasks_lost(anyhow::anyhow!("no pod was found to be ended"))
                })?;
                find::find(&holder, pod).await
            }
            Effect::EndTasks => self.end().await,
            Effect::KeepFiles => holder
                .blocking("keep", files::keep)
                .await
                .map_err(|error| Failed::other("FilesNotKept", error)),
            Effect::SyncState => {
                let pod = self.pod("made durable")?;
                let began = Instant::now();
                let (left, what) = match holder.task.part.is_cold() {
                    // Nothing stands still that a probe would miss.
                    true => (holder.time_left(), "spec.timeout"),
                    false => {
                        let frozen = self.freeze_began.map_or(Duration::ZERO, |at| at.elapsed());
                        let limit = Duration::from_millis(holder.task.max_frozen_millis);
                        (limit.saturating_sub(frozen), "the freeze")
                    }
                };
                let synced = durable_with_volumes(&holder, pod, left, what).await;
                holder.board.took("sync", began.elapsed());
                synced.map_err(|error| Failed::other("StateNotDurable", error))
            }
            // A source has no dead-man: it stays frozen until it has read the decision.
            Effect::ArmDeadman
            | Effect::CheckDeadman
            | Effect::DisarmDeadman
            | Effect::VerifyNeverRan => Ok(()),
        }
    }

    fn board(&self) -> &Board {
        &self.holder.board
    }

    fn observe(&mut self, machine: &SourceMachine, idle: bool) {
        let phase = machine.phase();
        let holder = Arc::clone(&self.holder);
        holder.board.source(machine);
        holder.asker.voted(!machine.is_before_vote() && !machine.is_closed());
        holder.set_frozen(!matches!(
            phase,
            SourcePhase::Idle | SourcePhase::Begun | SourcePhase::Opened | SourcePhase::Released
        ));
        if idle && phase == SourcePhase::Freezing && self.transfer.is_none() {
            self.start_transfer();
        }
        if idle && phase == SourcePhase::Starting && !self.watching {
            self.watching = true;
            let (all, gone) = (SourceEvent::AllStarted, SourceEvent::PodGone);
            started::watch(holder, self.events.clone(), all, gone);
        }
    }

    fn is_closed(machine: &SourceMachine) -> bool {
        machine.is_closed()
    }
}

impl SourceHands {
    /// Those of a holder that begins, or goes on with what `journal` tells.
    pub fn new(
        holder: Arc<Holder>,
        journal: Journal<SourceEntry>,
        pod: Option<Pod>,
        has_lost_memory: bool,
        events: mpsc::Sender<SourceEvent>,
    ) -> Self {
        SourceHands {
            holder,
            journal,
            pod,
            dumper: None,
            connected: Arc::default(),
            transfer: None,
            watching: false,
            closed_at: None,
            freeze_began: None,
            has_lost_memory,
            events,
        }
    }

    /// Everything has been looked up: the pod, and what dumps it. Gives the place of the connection to the target.
    pub fn prepared(&mut self, pod: Pod, dumper: Option<Dumper>) -> Connected {
        self.pod = Some(pod);
        self.dumper = dumper;
        Arc::clone(&self.connected)
    }

    /// Whether the tasks were frozen at some time, by this or an earlier holder. Of a cold one: ended.
    fn was_frozen(&self) -> bool {
        self.freeze_began.is_some() || self.holder.board.was_frozen()
    }

    /// Notes that what was frozen goes on, and when.
    fn note_thaw(&self) {
        if self.was_frozen() {
            let now = status::now_micros();
            self.holder.board.update(|status| status.thawed_at_unix_micros = now);
        }
    }

    /// Ends what the runtime has lost, on the way back. Tells once that the pod's memory has gone with that, or with
    /// what was frozen: before the freeze and after the thaw a container may end by itself, and a cold one has ended.
    fn end_lost(&mut self) -> Result<(), Failed> {
        let Some(pod) = &self.pod else { return Ok(()) };
        let layout = &self.holder.layout;
        let ended = pod.kill_orphans(layout).map_err(|error| Failed::other("NotKilled", error))?;
        let stood_still = self.was_frozen()
            && !self.holder.board.was_thawed()
            && !self.holder.task.part.is_cold();
        let lost = ended.or_else(|| pod.lost(layout).filter(|_| stood_still));
        let Some(how) = lost.filter(|_| !self.has_lost_memory) else { return Ok(()) };
        self.has_lost_memory = true;
        self.holder.board.memory_lost(&how);
        Err(Failed::tasks_lost(anyhow::anyhow!(how)))
    }

    fn pod(&self, what: &str) -> Result<&Pod, Failed> {
        self.pod
            .as_ref()
            .ok_or_else(|| Failed::tasks_lost(anyhow::anyhow!("no pod was found to be {what}")))
    }

    /// The pod, if no container of it has ended before anything was done to it; its network may be gone with one.
    fn living(&self, what: &str) -> Result<&Pod, Failed> {
        let pod = self.pod(what)?;
        match pod.is_alive(&self.holder.layout) {
            true => Ok(pod),
            false => Err(Failed::tasks_lost(anyhow::anyhow!("a container has ended"))),
        }
    }

    async fn end(&mut self) -> Result<(), Failed> {
        self.end_transfer_if_possible().await;
        let holder = Arc::clone(&self.holder);
        let Some(pod) = &self.pod else { return Ok(()) };
        let (began, at) = (Instant::now(), status::now_micros());
        end::end(&holder, pod).await.map_err(|error| Failed::other("NotEnded", error))?;
        holder.board.took("end", began.elapsed());
        holder.board.update(|status| {
            status.stage = status.stage.max(Stage::Frozen as i32);
            if status.frozen_at_unix_micros == 0 {
                status.frozen_at_unix_micros = at;
            }
        });
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), Failed> {
        let holder = Arc::clone(&self.holder);
        let pod = self.living("frozen")?;
        let began = Instant::now();
        let frozen_at = self.closed_at.unwrap_or_else(status::now_micros);
        freeze::freeze(pod).map_err(|error| Failed::other("NotFrozen", error))?;
        self.freeze_began = Some(began);
        holder.board.took("freeze", began.elapsed());
        holder.board.update(|status| {
            status.stage = status.stage.max(Stage::Frozen as i32);
            status.frozen_at_unix_micros = frozen_at;
        });
        holder.after(
            Duration::from_millis(holder.task.max_frozen_millis),
            self.events.clone(),
            SourceEvent::DeadlinePassed,
        );
        Ok(())
    }

    fn start_transfer(&mut self) {
        let sender =
            self.connected.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let is_prepared = self.dumper.is_some() || self.holder.task.part.is_cold();
        let ready = (self.pod.clone().filter(|_| is_prepared), sender);
        let (Some(pod), Some(sender)) = ready else {
            self.holder.board.failed("NotConnected", "the connection to the target is gone");
            let _ = self.events.try_send(SourceEvent::LocalFailure);
            return;
        };
        let holder = Arc::clone(&self.holder);
        let dumper = self.dumper.clone();
        self.transfer = Some(Transfer::start(holder, dumper, pod, sender, self.events.clone()));
    }

    /// Ends all that sends or dumps: then nothing of this migration works on the containers.
    ///
    /// Errors: see [`dump::end_leftovers`].
    async fn end_transfer(&mut self) -> anyhow::Result<()> {
        if let Some(transfer) = self.transfer.take() {
            transfer.end().await;
        }
        match &self.pod {
            Some(pod) => dump::end_leftovers(&self.holder.layout, &self.holder.dir, pod).await,
            None => Ok(()),
        }
    }

    /// The same where nothing is to go on afterwards.
    async fn end_transfer_if_possible(&mut self) {
        if let Err(error) = self.end_transfer().await {
            tracing::warn!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_host::task::Part;
    use transship_protocol::Failure;
    use transship_runtime::Layout;

    use super::*;
    use crate::areas::tests::task;
    use crate::pod::tests::pod_of_self;

    fn hands(root: &Path, pod: Pod, part: Part) -> SourceHands {
        let (host, mut task) = (HostRoot::at(root), task());
        (task.role, task.part) = (Role::Source, part);
        let dir = host.migration(&task.migration.uid, task.role).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let journal = Journal::open(&dir.journal()).unwrap().0;
        let holder = Arc::new(Holder::new(host, Layout::default(), dir, task));
        SourceHands::new(holder, journal, Some(pod), false, mpsc::channel(1).0)
    }

    fn told(hands: &SourceHands) -> String {
        hands.holder.board.subscribe().borrow().memory_lost.clone()
    }

    #[test]
    fn what_was_frozen_and_is_gone_is_told_once() {
        let root = tempfile::tempdir().unwrap();
        let mut hands = hands(root.path(), pod_of_self(), Part::Overlap);
        hands.freeze_began = Some(Instant::now());
        hands.end_lost().unwrap();
        hands.pod.as_mut().unwrap().containers[0].start_time += 1;
        assert_eq!(hands.end_lost().unwrap_err().kind, Failure::TasksLost);
        assert_eq!(told(&hands), "the first process of container web is gone");
        hands.end_lost().unwrap();
    }

    #[test]
    fn what_has_ended_before_the_freeze_or_was_ended_for_it_is_not_lost() {
        for (part, freeze_began) in [(Part::Overlap, None), (Part::Cold, Some(Instant::now()))] {
            let root = tempfile::tempdir().unwrap();
            let mut hands = hands(root.path(), pod_of_self(), part);
            hands.pod.as_mut().unwrap().containers[0].start_time += 1;
            hands.freeze_began = freeze_began;
            hands.end_lost().unwrap();
            assert_eq!(told(&hands), "", "{part:?}");
        }
    }

    #[test]
    fn what_was_let_go_on_may_end_as_it_likes() {
        let root = tempfile::tempdir().unwrap();
        let mut hands = hands(root.path(), pod_of_self(), Part::Overlap);
        hands.freeze_began = Some(Instant::now());
        hands.note_thaw();
        hands.pod.as_mut().unwrap().containers[0].start_time += 1;
        hands.end_lost().unwrap();
        assert_eq!(told(&hands), "");
    }

    #[test]
    fn what_the_runtime_has_lost_is_ended_and_its_memory_with_it_frozen_or_not() {
        let root = tempfile::tempdir().unwrap();
        let mut hands = hands(root.path(), pod_of_self(), Part::Overlap);
        hands.pod.as_mut().unwrap().containers[0].bundle = Some("/nonexistent".into());
        assert_eq!(hands.end_lost().unwrap_err().kind, Failure::TasksLost);
        assert_eq!(told(&hands), "containerd has forgotten container web");
    }

    #[tokio::test]
    async fn a_container_that_has_ended_before_the_freeze_is_told_though_its_network_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let mut pod = pod_of_self();
        pod.netns = "/nonexistent".into();
        pod.containers[0].start_time += 1;
        let mut hands = hands(root.path(), pod, Part::Overlap);
        for effect in [Effect::CloseNetwork, Effect::FreezeTasks] {
            let failed = hands.work(effect).await.unwrap_err();
            assert_eq!(failed.kind, Failure::TasksLost);
            assert_eq!(failed.error.to_string(), "a container has ended");
        }
    }
}
