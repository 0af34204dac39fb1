//! Carries out what the protocol's machine orders on the target.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use transship_host::journal::Journal;
use transship_host::lease;
use transship_host::network::nft_program;
use transship_protocol::{
    Effect, Failure, Guard, RecordState, TargetEffect, TargetEntry, TargetEvent, TargetMachine,
    TargetOutcome, TargetPhase,
};
use transship_rpc::Stage;

use super::{hooks, is_guarded, undo};
use crate::deadman::Deadman;
use crate::durable::durable;
use crate::engine::{Failed, Hands};
use crate::holder::Holder;
use crate::pod::Pod;
use crate::status::Board;
use crate::{connections, leftovers, record, started, status};

/// How long verbs of the runtime that are at work may take to end.
const QUIESCE: Duration = Duration::from_secs(10);
/// How long an end may be held up for what containerd has left: a source may be waiting for it.
const TASKS: Duration = Duration::from_secs(3);

/// Carries out the target's effects.
pub struct TargetHands {
    holder: Arc<Holder>,
    journal: Journal<TargetEntry>,
    /// The node has not restarted since the first entry.
    same_boot: bool,
    pod: Option<Pod>,
    deadman: Deadman,
    /// Ends receiving and preparing.
    stop: CancellationToken,
    /// It has lost: restores under way are ended instead of waited for.
    ending: bool,
    /// The dead-man's watch and the look at the tasks run; or the look whether all were started.
    watching: bool,
    /// The network is open: only then the pod is back for its clients.
    opened: bool,
    /// The pod runs, for good.
    pub resumed: bool,
    /// Nothing is to follow from its silence.
    pub signs_off: bool,
    events: mpsc::Sender<TargetEvent>,
}

impl Hands for TargetHands {
    type Machine = TargetMachine;

    fn journal(&mut self, entry: TargetEntry) -> Result<()> {
        if entry == TargetEntry::Lost {
            self.tell_loss();
        }
        Ok(self.journal.append(&entry)?)
    }

    async fn work(&mut self, effect: TargetEffect) -> Result<(), Failed> {
        let holder = Arc::clone(&self.holder);
        let nft = nft_program(&holder.host);
        match effect {
            // Written by the caller, which stops at an error.
            Effect::Journal(_) => Ok(()),
            Effect::WriteRecord(state) => {
                if state == RecordState::Open {
                    self.kill_orphans()?;
                }
                record::write(&holder, state)
                    .map_err(|error| Failed::other("RecordNotWritten", error))?;
                if state == RecordState::Open {
                    // Of a shim that died in between. From here on the wrapper ends what is lost before it lets
                    // something be made in its place.
                    self.kill_orphans()?;
                    self.take_lease_home();
                }
                Ok(())
            }
            Effect::QuiesceWrapper => {
                let ending = self.ending;
                holder
                    .blocking("quiesce", move |holder| {
                        if ending {
                            undo::end_restores(holder)?;
                        }
                        let uid = &holder.task.pod.uid;
                        Ok(transship_host::quiesce::wait(&holder.host, uid, QUIESCE)?)
                    })
                    .await
                    .map_err(|error| Failed::other("RuntimeBusy", error))
            }
            Effect::CloseNetwork => match self.pod() {
                Some(pod) => pod
                    .close_network(&nft)
                    .map_err(|error| Failed::other("NetworkNotClosed", error)),
                None => Ok(()),
            },
            Effect::FreezeTasks => match self.pod() {
                // What is gone cannot be frozen, and need not be.
                Some(pod) => {
                    pod.freeze_what_is_left().map_err(|error| Failed::other("NotFrozen", error))
                }
                None => Ok(()),
            },
            // The place for a cold one's files has no tasks.
            Effect::VerifyTasks if holder.task.part.is_cold() => Ok(()),
            Effect::VerifyTasks => match self.pod() {
                Some(pod) => pod.verify_held(&holder.layout).map_err(Failed::tasks_lost),
                None => Err(Failed::tasks_lost(anyhow::anyhow!("nothing is restored"))),
            },
            Effect::ArmDeadman => {
                self.deadman.arm().map_err(|error| Failed::other("DeadmanNotArmed", error))
            }
            Effect::CheckDeadman => guarded(&self.deadman, Guard::Deadman, || ()),
            Effect::SyncState => holder
                .blocking("sync", |holder| durable(&holder.dir))
                .await
                .map_err(|error| Failed::other("StateNotDurable", error)),
            Effect::DisarmDeadman => {
                self.deadman.disarm().map_err(|error| Failed::other("DeadmanNotDisarmed", error))
            }
            Effect::ThawTasks(guard) => self.thaw(guard),
            Effect::OpenNetwork(guard) => {
                let deadman = self.deadman.clone();
                if !self.opened {
                    connections::translate(&holder);
                }
                let Some(pod) = self.pod() else { return Ok(()) };
                guarded(&deadman, guard, || pod.network().open(&nft))?
                    .map_err(|error| Failed::other("NetworkNotOpened", error))?;
                if !self.opened {
                    self.opened = true;
                    holder.board.update(|status| {
                        if status.thawed_at_unix_micros != 0 {
                            status.thawed_at_unix_micros = status::now_micros();
                        }
                    });
                }
                Ok(())
            }
            Effect::Announce => {
                record::announce(&holder, self.pod());
                Ok(())
            }
            Effect::KillTasksFrozen => {
                holder
                    .blocking("kill", undo::kill_frozen)
                    .await
                    .map_err(|error| Failed::other("NotKilled", error))?;
                // Before the pod is deleted: where kubelet fails to remove a container, it waits for a minute. What
                // this comes to is seen to again after the closing.
                if self.ending {
                    let uid = &holder.task.pod.uid;
                    let deleting = leftovers::delete_tasks(&holder.layout, uid, Duration::ZERO);
                    let _ = tokio::time::timeout(TASKS, deleting).await;
                }
                Ok(())
            }
            Effect::VerifyNeverRan => match undo::may_have_run(&holder) {
                Ok(None) => Ok(()),
                Ok(Some(container)) => Err(may_have_run(&container)),
                Err(error) => Err(Failed::other("NotKnown", error)),
            },
            Effect::Publish(word) => {
                holder.board.word(&word);
                Ok(())
            }
            Effect::ReadRecorded => {
                holder.asker.migration();
                Ok(())
            }
            // Only a source goes by its peer's word, has connections to destroy, and ends its pod.
            Effect::ReadPeer
            | Effect::ReadPod
            | Effect::DestroySockets
            | Effect::FindTasks
            | Effect::EndTasks
            | Effect::KeepFiles => Ok(()),
        }
    }

    fn board(&self) -> &Board {
        &self.holder.board
    }

    fn observe(&mut self, machine: &TargetMachine, idle: bool) {
        let phase = machine.phase();
        let starts = machine.part().is_cold() && phase == TargetPhase::Thawing;
        if starts && idle && !self.watching {
            self.watching = true;
            let (all, gone) = (TargetEvent::AllStarted, TargetEvent::LocalFailure);
            started::watch(Arc::clone(&self.holder), self.events.clone(), all, gone);
        }
        self.resumed = phase == TargetPhase::Closed(TargetOutcome::Resumed);
        self.signs_off = machine.signs_off();
        self.holder.board.target(machine, self.resumed && hooks::are_left(&self.holder));
        self.holder.asker.voted(!machine.is_before_vote() && !machine.is_closed());
        self.holder.set_frozen(matches!(
            phase,
            TargetPhase::Voted | TargetPhase::Committed | TargetPhase::Thawing
        ));
        self.ending = matches!(phase, TargetPhase::NeverThawed | TargetPhase::Stopping);
        if self.ending {
            self.stop.cancel();
        }
        if is_guarded(machine) && !self.watching && self.pod().is_some() {
            self.watching = true;
            self.watch();
        }
    }

    fn is_closed(machine: &TargetMachine) -> bool {
        machine.is_closed()
    }
}

impl TargetHands {
    /// Those of a holder that begins, or goes on with what `journal` tells. `stop` ends receiving and preparing.
    pub fn new(
        holder: Arc<Holder>,
        journal: Journal<TargetEntry>,
        same_boot: bool,
        pod: Option<Pod>,
        deadman: Deadman,
        stop: CancellationToken,
        events: mpsc::Sender<TargetEvent>,
    ) -> Self {
        TargetHands {
            holder,
            journal,
            same_boot,
            pod,
            deadman,
            stop,
            ending: false,
            watching: false,
            opened: false,
            resumed: false,
            signs_off: true,
            events,
        }
    }

    /// The pod, as the preparing task has left it.
    pub fn pod(&mut self) -> Option<&Pod> {
        if self.pod.is_none() {
            self.pod = Pod::load(&self.holder.dir).unwrap_or_else(|error| {
                tracing::error!("{error:#}");
                None
            });
        }
        self.pod.as_ref()
    }

    fn thaw(&mut self, guard: Guard) -> Result<(), Failed> {
        let holder = Arc::clone(&self.holder);
        let deadman = self.deadman.clone();
        let same_boot = self.same_boot;
        let Some(pod) = self.pod() else { return Ok(()) };
        tell_of_runtime(&holder, pod, same_boot);
        if let Some(orphaned) = pod.orphaned(&holder.layout) {
            return Err(Failed::tasks_lost(anyhow::anyhow!(orphaned)));
        }
        let began = Instant::now();
        guarded(&deadman, guard, || pod.thaw())?
            .map_err(|error| Failed::other("NotThawed", error))?;
        // The machine thaws again when it is confirmed, for the case that the dead-man froze it.
        let thawed_at = status::now_micros();
        if !holder.board.was_thawed() {
            holder.board.took("thaw", began.elapsed());
        }
        holder.board.update(|status| {
            if status.thawed_at_unix_micros == 0 {
                status.thawed_at_unix_micros = thawed_at;
            }
            status.stage = status.stage.max(Stage::Thawed as i32);
        });
        Ok(())
    }

    /// Tells how the memory was lost, while that can be seen: what is left is killed next. What has gone with the
    /// node's power needs no other reason.
    fn tell_loss(&mut self) {
        let holder = Arc::clone(&self.holder);
        if self.same_boot
            && let Some(lost) = self.pod().and_then(|pod| pod.lost(&holder.layout))
        {
            holder.board.memory_lost(&lost);
        }
    }

    /// What has lost its shim must not run beside what kubelet starts in its place.
    fn kill_orphans(&mut self) -> Result<(), Failed> {
        let holder = Arc::clone(&self.holder);
        let Some(pod) = self.pod() else { return Ok(()) };
        let ended = pod.kill_orphans(&holder.layout);
        if let Some(how) = ended.map_err(|error| Failed::other("NotKilled", error))? {
            holder.board.memory_lost(&how);
        }
        Ok(())
    }

    /// An address whose home is this node belongs to the pod's sandbox again, so that its DEL
    /// frees it like any other.
    fn take_lease_home(&mut self) {
        let holder = Arc::clone(&self.holder);
        if connections::closes(&holder) {
            return;
        }
        let Some(network) = &holder.task.network else { return };
        // A sandbox that kubelet has taken for dead will not free anything once more.
        let Some(pod) = self.pod().filter(|pod| pod.network().exists()) else { return };
        for ip in network.addresses().unwrap_or_default() {
            match lease::come_home(&holder.host, ip, &pod.sandbox_id, &network.interface) {
                Ok(true) => tracing::info!(%ip, "the address is home again"),
                Ok(false) => {}
                // The agent gives back what is left when the pod is gone.
                Err(error) => tracing::error!(%ip, "the address stays lent: {}", error.chain()),
            }
        }
    }

    fn watch(&mut self) {
        let Some(pod) = self.pod.clone() else { return };
        let (holder, same_boot) = (Arc::clone(&self.holder), self.same_boot);
        let nft = nft_program(&holder.host);
        tokio::spawn(self.deadman.clone().watch(pod.clone(), nft, self.events.clone()));
        let events = self.events.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            while !events.is_closed() {
                tick.tick().await;
                if let Some(lost) = pod.lost(&holder.layout) {
                    // After the thaw an application may end as it likes; the machine knows.
                    if !holder.board.was_thawed() {
                        holder.board.failed("TasksLost", &lost);
                    } else {
                        tell_of_runtime(&holder, &pod, same_boot);
                    }
                    let _ = events.send(TargetEvent::TasksLost).await;
                    return;
                }
            }
        });
    }
}

/// Tells of memory that the runtime has lost. After a restart of the node nothing shows whether it has.
fn tell_of_runtime(holder: &Holder, pod: &Pod, same_boot: bool) {
    let is_held = || record::is(holder, RecordState::Held);
    if same_boot && let Some(how) = pod.lost_by_runtime(&holder.layout, is_held) {
        holder.board.memory_lost(&how);
    }
}

/// Does `work` if its guard allows it.
fn guarded<T>(deadman: &Deadman, guard: Guard, work: impl FnOnce() -> T) -> Result<T, Failed> {
    match guard {
        Guard::Deadman => deadman
            .unless_lapsed(work)
            .map_err(|error| Failed::other("DeadmanUnknown", error))?
            .ok_or_else(lapsed),
        Guard::None => Ok(work()),
    }
}

fn lapsed() -> Failed {
    Failed {
        kind: Failure::Lapsed,
        reason: "Lapsed",
        error: anyhow::anyhow!("this node was cut off for too long"),
    }
}

fn may_have_run(container: &str) -> Failed {
    Failed {
        kind: Failure::MayHaveRun,
        reason: "RestoreFailed",
        error: anyhow::anyhow!(
            "container {container} may have run for a moment before it was held"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    use super::*;
    use crate::areas::tests::task;
    use crate::pod::tests::pod_of_self;

    fn hands(root: &Path, pod: Pod, same_boot: bool) -> TargetHands {
        let (host, task) = (HostRoot::at(root), task());
        let dir = host.migration(&task.migration.uid, Role::Target).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let journal = Journal::open(&dir.journal()).unwrap().0;
        let deadman = Deadman::of(&host.holder(&task.migration.uid, Role::Target).unwrap());
        let holder = Arc::new(Holder::new(host, Layout::default(), dir, task));
        let (stop, events) = (CancellationToken::new(), mpsc::channel(1).0);
        TargetHands::new(holder, journal, same_boot, Some(pod), deadman, stop, events)
    }

    #[tokio::test]
    async fn how_what_may_have_run_was_lost_is_told_unless_the_node_restarted() {
        let gone = "the first process of container web is gone";
        for (same_boot, told) in [(true, gone), (false, "")] {
            let root = tempfile::tempdir().unwrap();
            let mut pod = pod_of_self();
            pod.containers[0].start_time += 1;
            let mut hands = hands(root.path(), pod, same_boot);
            for entry in [TargetEntry::Thawing, TargetEntry::Lost] {
                hands.journal(entry).unwrap();
            }
            assert_eq!(hands.holder.board.subscribe().borrow().memory_lost, told);
        }
    }

    #[test]
    fn a_shim_that_is_gone_is_told_as_long_as_it_may_not_end_though_its_bundle_is_gone_too() {
        let mut shim = std::process::Command::new("true").spawn().unwrap();
        shim.wait().unwrap();
        let mut pod = pod_of_self();
        pod.containers[0].start_time += 1;
        pod.containers[0].parent = Some(shim.id());
        pod.containers[0].bundle = Some("/nonexistent".into());
        let died = "the shim of container web has died";
        for (state, told) in [(RecordState::Open, ""), (RecordState::Held, died)] {
            let root = tempfile::tempdir().unwrap();
            let mut hands = hands(root.path(), pod.clone(), true);
            record::write(&hands.holder, state).unwrap();
            hands.thaw(Guard::None).unwrap();
            assert_eq!(hands.holder.board.subscribe().borrow().memory_lost, told, "{state:?}");
        }
    }
}
