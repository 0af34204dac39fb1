//! What a holder is told to do, one effect after the other, and the driver that hands effects out.
//!
//! An effect is a step that can be repeated: after a crash at any point the machine is rebuilt
//! from the journal and orders whatever may be missing, so every effect must succeed when it finds
//! its work done already, or its object gone for good (opening the network of a sandbox that no
//! longer exists is done).

use std::collections::VecDeque;

use crate::record::RecordState;

/// When a thaw, or the opening of a network, is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// Always.
    None,
    /// Only while the dead-man armed by [`Effect::ArmDeadman`] has not expired, checked in one
    /// step with the effect (under the dead-man's own lock). If it has: [`Failure::Lapsed`].
    Deadman,
}

/// One step of a holder. `E` is the journal's entry, `W` the side's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect<E, W> {
    /// Append the entry, with the boot id, and fsync file and directory. Where that fails nobody
    /// knows whether the entry is durable: end the process and recover from what can be read.
    Journal(E),
    /// Replace the pod's record: temporary file, fsync, rename, fsync of the directory. Before `open` every task
    /// whose shim has died is killed while it is frozen: the runtime has lost it, and kubelet will start its
    /// container afresh. Source: [`Failure::TasksLost`], once, where that has come to pass, or where what was frozen
    /// is not there any more.
    WriteRecord(RecordState),
    /// Wait until no verb that the wrapper let through for this pod under an older record is still
    /// at work. On a target that gives up, end restores that are under way instead of waiting.
    QuiesceWrapper,
    /// Drop all frames of the pod in both directions at the device.
    CloseNetwork,
    /// Freeze all containers and wait until they are. Fails with [`Failure::TasksLost`] before the
    /// vote when there is nothing to freeze.
    FreezeTasks,
    /// Check that every container's tasks are there, whole and frozen, and on a target that their shim lives;
    /// [`Failure::TasksLost`]. Cold: that none is left.
    VerifyTasks,
    /// Sequential: nothing of a pod that was made again, of which nothing is left now, can have run before it was
    /// held; [`Failure::MayHaveRun`].
    VerifyNeverRan,
    /// Cold: the containers that run now, under a record that keeps them from being ended or made anew, are
    /// those that move, and nothing keeps their files from it. Fails while that costs nothing.
    FindTasks,
    /// Cold: end all containers as kubelet would (hook, signal, patience), those that do not by SIGKILL, and
    /// wait until nothing of them is left. Their files stay where they are.
    EndTasks,
    /// Cold: this node's own copy of the ended containers' files is whole and durable. What a reboot has
    /// taken is not waited for.
    KeepFiles,
    /// From now on the tasks are frozen and the network is closed, also while this process does not
    /// run, as soon as the last good signature in this node's Lease, counted from its send time on
    /// CLOCK_BOOTTIME (at first: from now), is older than T₁ ([`crate::PATIENCE`]). That it
    /// happened is remembered until it is disarmed; later signatures change nothing about it.
    ArmDeadman,
    /// Fails with [`Failure::Lapsed`] if the dead-man has expired since it was armed.
    CheckDeadman,
    /// Ends [`Effect::ArmDeadman`].
    DisarmDeadman,
    /// Sequential order, and cold: the whole state of the pod on this node's disk is durable.
    SyncState,
    /// Destroy the pod's established connections (the peer may have been served elsewhere).
    DestroySockets,
    /// Let frames pass again.
    OpenNetwork(Guard),
    /// Tell the network where the address is (gratuitous ARP, unsolicited NA), through the pod's
    /// own device: a closed network silences it.
    Announce,
    /// Thaw all containers together. Target: where a shim has died nothing is thawed; [`Failure::TasksLost`]. Source:
    /// as before the record `open`.
    ThawTasks(Guard),
    /// SIGKILL every task while it is frozen (freezing first what runs), then thaw what is dead.
    /// No instruction runs. Includes tasks of a half-done restore (by cgroup), and whatever else that
    /// has left on the node.
    KillTasksFrozen,
    /// From now on publish this word: Node status (retried until it is there) and RPC. Does not
    /// wait for the API. Publish nothing that this effect did not hand out.
    Publish(W),
    /// Make a quorum read of the Migration soon, and feed what it says. Does not wait.
    ReadRecorded,
    /// Make a quorum read of the peer's word soon, and feed it. Does not wait. It is asked for
    /// again with every reading of the Migration until the word is there, so keep reading the
    /// Migration (each second, and on every hint) until the machine is closed.
    ReadPeer,
    /// Make a quorum read of the own pod soon, and feed that it is gone or goes, if so. Does not wait.
    ReadPod,
}

/// Why an effect could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The tasks are gone or not whole.
    TasksLost,
    /// The dead-man had expired.
    Lapsed,
    /// What was restored may have run before it was held.
    MayHaveRun,
    /// Anything else (I/O, time-out).
    Other,
}

/// One side's machine: its phase follows from the entries journalled, and from nothing else.
pub trait Machine {
    /// Journal entry.
    type Entry: Copy;
    /// Published word.
    type Word: Copy;
    /// What happens to it.
    type Event;

    /// What is to be done about `event`. The phase changes only when the entries among the effects
    /// are journalled ([`Machine::apply`]).
    fn step(&mut self, event: Self::Event) -> Vec<Effect<Self::Entry, Self::Word>>;
    /// An entry has become durable.
    fn apply(&mut self, entry: Self::Entry);
    /// The event by which a failed effect is told, or `None`: the effect must be tried again.
    fn failed(&self, failure: Failure) -> Option<Self::Event>;
}

/// Hands out a machine's effects one by one. A holder's loop is:
///
/// ```text
/// let (machine, effects) = SourceMachine::recover(&journal, facts);   // or new(), vec![]
/// let mut driver = Driver::new(machine, effects);
/// loop {
///     while let Some(effect) = driver.next_effect() {
///         match run(effect).await {
///             Ok(()) => driver.done(),
///             Err(failure) => if !driver.failed(failure) { pause.await },   // tried again
///         }
///     }
///     if driver.machine().is_closed() { break }
///     driver.feed(events.next().await);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Driver<M: Machine> {
    machine: M,
    queue: VecDeque<Effect<M::Entry, M::Word>>,
}

impl<M: Machine> Driver<M> {
    /// A driver for a machine with effects still to be done (see the machines' `recover`).
    pub fn new(machine: M, effects: Vec<Effect<M::Entry, M::Word>>) -> Self {
        Self { machine, queue: effects.into() }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The effect to do now, or `None`: wait for an event.
    pub fn next_effect(&self) -> Option<Effect<M::Entry, M::Word>> {
        self.queue.front().copied()
    }

    /// [`Driver::next_effect`] has been done (a journal entry: is durable).
    pub fn done(&mut self) {
        if let Some(Effect::Journal(entry)) = self.queue.pop_front() {
            self.machine.apply(entry);
        }
    }

    /// [`Driver::next_effect`] could not be done. `true`: the machine has taken another way.
    /// `false`: the same effect stays next; try again after a pause.
    pub fn failed(&mut self, failure: Failure) -> bool {
        let Some(event) = self.machine.failed(failure) else { return false };
        self.queue.clear();
        self.queue.extend(self.machine.step(event));
        true
    }

    /// Something happened. Call it only when no effect is queued ([`Driver::is_idle`]) and keep
    /// events in a channel until then: an event is judged by the phase the queue leads to.
    ///
    /// # Panics
    /// In debug builds, if effects are still queued.
    pub fn feed(&mut self, event: M::Event) {
        debug_assert!(self.queue.is_empty(), "an event was fed while effects are queued");
        self.queue.extend(self.machine.step(event));
    }

    /// No effect is queued.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

/// What a restarted holder finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Every entry of the journal carries the present boot id. After a reboot the tasks of then
    /// are gone, whatever runs now.
    pub same_boot: bool,
    /// The tasks are there (target: all of them, those that were restored, and their shim lives).
    pub tasks: bool,
    /// Target: the dead-man has frozen the tasks at some time since it was armed. `true` when that
    /// cannot be told.
    pub lapsed: bool,
}
