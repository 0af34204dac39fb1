//! The state of the modelled cluster.

use crate::source::{SourceEntry, SourceEvent, SourceMachine, SourcePhase};
use crate::target::{TargetEntry, TargetEvent, TargetMachine, TargetPhase};
use crate::{
    Driver, Effect, Facts, Machine, Read, RecordState, Recorded, SourceOutcome, SourceWord,
    TargetOutcome, TargetWord,
};

/// Containers of the pod that are restored one by one.
pub const CONTAINERS: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    S,
    T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tasks {
    Absent,
    Running,
    Frozen,
}

/// A verb that the wrapper has let through and that has not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inflight {
    Create,
    Restore,
    Kill,
    KillFrozen,
}

/// What an operator has made up its mind to write, on the read whose resourceVersion it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Intent {
    Commit,
    Abort,
    Resumed,
    Resolve,
}

/// Things that go wrong. Each happens as often as the bounds allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fault {
    /// A holder dies; its supervisor starts it again.
    Crash,
    /// A node reboots.
    Reboot,
    /// A node goes down and never comes back.
    Die,
    /// kubelet kills a container (liveness probe, sandbox restarted).
    KubeletKill,
    /// A ReplicaSet, drain or user deletes S or T.
    DeletePod,
    /// The Migration is deleted.
    DeleteMigration,
    /// A deleted Migration loses its finalizer.
    Strip,
    /// Somebody tells a holder a decision that nobody made.
    ForgedHint,
    /// Somebody writes Commit into the API before the target has voted.
    ForgedCommit,
    /// Another Migration of the same name, with a Commit.
    Imposter,
    /// S's claim goes to another Migration.
    ClaimLost,
    /// Another Migration begins on S and gives up at once.
    SecondMigration,
    /// T's signature in its node's Lease is not renewed for T₁.
    Lapse,
    /// A second holder is started beside the first.
    SecondHolder,
    /// A call to begin arrives after the Migration was finished or decided.
    LateBegin,
    /// Before the vote an effect fails.
    EffectFails,
    /// The tasks end by themselves (exit, OOM), frozen or not.
    TasksDie,
}

pub const FAULTS: usize = 17;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Api {
    pub exists: bool,
    pub deleting: bool,
    /// Kept as a ghost when the object is gone.
    pub recorded: Recorded,
    pub claim: bool,
    pub imposter: bool,
    pub s_deleting: bool,
    pub t_deleting: bool,
}

/// What is on a node, apart from the holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Env {
    pub record: Option<RecordState>,
    pub tasks: Tasks,
    /// T: restored containers that are alive.
    pub whole: u8,
    /// T: tickets not yet consumed.
    pub tickets: u8,
    /// T: restores that came to their end (ghost).
    pub restored: u8,
    /// Signalled by runc and thawed: runs until the kernel reaps it.
    pub dying: bool,
    /// The tasks were ended by a verb (ghost).
    pub ended: bool,
    pub net: bool,
    pub inflight: Option<Inflight>,
    /// Since the first journal entry.
    pub rebooted: bool,
    pub dead: bool,
    pub armed: bool,
    /// Somebody looks whether the armed dead-man expires.
    pub watched: bool,
    pub lapsed: bool,
    pub sockets_destroyed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host<M: Machine> {
    pub env: Env,
    pub journal: Vec<M::Entry>,
    pub holder: Option<Driver<M>>,
    pub second: Option<Driver<M>>,
    pub word: M::Word,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub api: Api,
    pub s: Host<SourceMachine>,
    pub t: Host<TargetMachine>,
    /// Two operators; which is which does not matter, so they are sorted.
    pub ops: [Option<Intent>; 2],
    /// Everything of S has reached T.
    pub sent: bool,
    /// Fail-over has started a stored version elsewhere.
    pub replica: bool,
    /// An operator has found that T has been silent for long enough. It may act on it much later.
    pub proof: bool,
    /// Ghost: an instruction ran on T.
    pub t_ran: bool,
    /// Faults that may still happen, by kind and in all.
    pub left: [u8; FAULTS],
    pub total: u8,
}

/// Effects of a machine.
pub type Effects<M> = Vec<Effect<<M as Machine>::Entry, <M as Machine>::Word>>;

/// What the model needs to know of a side's machine.
pub trait Role: Machine<Entry: PartialEq, Word: PartialEq> + Clone + PartialEq {
    const SIDE: Side;
    fn recover(entries: &[Self::Entry], facts: Facts) -> (Self, Effects<Self>);
    fn is_vote(entry: Self::Entry) -> bool;
    fn read(read: Read) -> Self::Event;
    fn begin() -> Self::Event;
    fn poked() -> Self::Event;
    fn deadline() -> Self::Event;
    fn tasks_lost() -> Self::Event;
    fn is_idle_phase(&self) -> bool;
    fn is_before_vote(&self) -> bool;
    fn is_final(word: &Self::Word) -> bool;
    fn host(world: &World) -> &Host<Self>;
    fn host_mut(world: &mut World) -> &mut Host<Self>;
}

impl Role for SourceMachine {
    const SIDE: Side = Side::S;
    fn recover(entries: &[SourceEntry], facts: Facts) -> (Self, Effects<Self>) {
        SourceMachine::recover(entries, facts)
    }
    fn is_vote(entry: SourceEntry) -> bool {
        entry == SourceEntry::Voted
    }
    fn read(read: Read) -> SourceEvent {
        read.into()
    }
    fn begin() -> SourceEvent {
        SourceEvent::Begin
    }
    fn poked() -> SourceEvent {
        SourceEvent::Poked
    }
    fn deadline() -> SourceEvent {
        SourceEvent::DeadlinePassed
    }
    fn tasks_lost() -> SourceEvent {
        SourceEvent::TasksLost
    }
    fn is_idle_phase(&self) -> bool {
        self.phase() == SourcePhase::Idle
    }
    fn is_before_vote(&self) -> bool {
        SourceMachine::is_before_vote(self)
    }
    fn is_final(word: &SourceWord) -> bool {
        word.outcome.is_some()
    }
    fn host(world: &World) -> &Host<Self> {
        &world.s
    }
    fn host_mut(world: &mut World) -> &mut Host<Self> {
        &mut world.s
    }
}

impl Role for TargetMachine {
    const SIDE: Side = Side::T;
    fn recover(entries: &[TargetEntry], facts: Facts) -> (Self, Effects<Self>) {
        TargetMachine::recover(entries, facts)
    }
    fn is_vote(entry: TargetEntry) -> bool {
        entry == TargetEntry::Voted
    }
    fn read(read: Read) -> TargetEvent {
        read.into()
    }
    fn begin() -> TargetEvent {
        TargetEvent::Begin
    }
    fn poked() -> TargetEvent {
        TargetEvent::Poked
    }
    fn deadline() -> TargetEvent {
        TargetEvent::DeadlinePassed
    }
    fn tasks_lost() -> TargetEvent {
        TargetEvent::TasksLost
    }
    fn is_idle_phase(&self) -> bool {
        self.phase() == TargetPhase::Idle
    }
    fn is_before_vote(&self) -> bool {
        TargetMachine::is_before_vote(self)
    }
    fn is_final(word: &TargetWord) -> bool {
        word.closed
    }
    fn host(world: &World) -> &Host<Self> {
        &world.t
    }
    fn host_mut(world: &mut World) -> &mut Host<Self> {
        &mut world.t
    }
}

impl Env {
    fn new(tasks: Tasks, net: bool, tickets: u8) -> Self {
        Self {
            record: None,
            tasks,
            whole: 0,
            tickets,
            restored: 0,
            dying: false,
            ended: false,
            net,
            inflight: None,
            rebooted: false,
            dead: false,
            armed: false,
            watched: false,
            lapsed: false,
            sockets_destroyed: false,
        }
    }

    /// Everything that a power cut takes.
    pub fn power_cut(&mut self) {
        self.tasks = Tasks::Absent;
        self.whole = 0;
        self.dying = false;
        self.net = false;
        self.inflight = None;
    }

    pub fn runs(&self) -> bool {
        self.tasks == Tasks::Running && !self.dead
    }
}

impl World {
    /// S runs, claimed by the Migration; nothing has begun.
    pub fn new(bounds: &[(Fault, u8)], total: u8) -> Self {
        let mut left = [0; FAULTS];
        for (fault, n) in bounds {
            left[*fault as usize] = *n;
        }
        let host_s = Host {
            env: Env::new(Tasks::Running, true, 0),
            journal: Vec::new(),
            holder: Some(Driver::new(SourceMachine::new(), Vec::new())),
            second: None,
            word: SourceWord::default(),
        };
        let host_t = Host {
            env: Env::new(Tasks::Absent, false, CONTAINERS),
            journal: Vec::new(),
            holder: Some(Driver::new(TargetMachine::new(), Vec::new())),
            second: None,
            word: TargetWord::default(),
        };
        Self {
            api: Api {
                exists: true,
                deleting: false,
                recorded: Recorded::default(),
                claim: true,
                imposter: false,
                s_deleting: false,
                t_deleting: false,
            },
            s: host_s,
            t: host_t,
            ops: [None; 2],
            sent: false,
            replica: false,
            proof: false,
            t_ran: false,
            left,
            total,
        }
    }

    pub fn pod_deleting(&self, side: Side) -> bool {
        match side {
            Side::S => self.api.s_deleting,
            Side::T => self.api.t_deleting,
        }
    }

    pub fn env(&self, side: Side) -> &Env {
        match side {
            Side::S => &self.s.env,
            Side::T => &self.t.env,
        }
    }

    pub fn env_mut(&mut self, side: Side) -> &mut Env {
        match side {
            Side::S => &mut self.s.env,
            Side::T => &mut self.t.env,
        }
    }

    /// Where a side's journal stands.
    pub fn s_phase(&self) -> SourcePhase {
        let mut machine = SourceMachine::new();
        self.s.journal.iter().for_each(|entry| machine.apply(*entry));
        machine.phase()
    }

    pub fn t_phase(&self) -> TargetPhase {
        let mut machine = TargetMachine::new();
        self.t.journal.iter().for_each(|entry| machine.apply(*entry));
        machine.phase()
    }

    /// The target will never run without having been confirmed, or will never run at all.
    pub fn target_is_out(&self) -> bool {
        self.t.env.dead
            || matches!(
                self.t_phase(),
                TargetPhase::NeverThawed
                    | TargetPhase::Closed(TargetOutcome::NeverThawed | TargetOutcome::Stopped)
            )
    }

    /// What must hold in every state.
    pub fn invariant(&self) -> Result<(), &'static str> {
        let copies = [self.s.env.runs(), self.t.env.runs(), self.replica];
        if copies.into_iter().filter(|runs| *runs).count() > 1 {
            return Err("two copies run");
        }
        if self.s.env.net && self.t.env.net {
            return Err("the address is open on both nodes");
        }
        if self.t.env.restored > CONTAINERS {
            return Err("a container was restored twice");
        }
        let recorded = self.api.recorded;
        if !recorded.is_lawful() {
            return Err("resumedAt and a resolution are recorded");
        }
        let t_phase = self.t_phase();
        let never = matches!(
            t_phase,
            TargetPhase::NeverThawed | TargetPhase::Closed(TargetOutcome::NeverThawed)
        ) || self.t.word.outcome == Some(TargetOutcome::NeverThawed);
        if never && self.t_ran {
            return Err("the target says that it never ran, but it did");
        }
        let s_phase = self.s_phase();
        let held_back =
            matches!(s_phase, SourcePhase::Voted | SourcePhase::Committed | SourcePhase::Moved);
        if held_back && self.s.env.runs() {
            return Err("a voted source runs undecided");
        }
        if self.s.env.runs() && self.t_ran && !self.s.env.sockets_destroyed && !self.s.env.rebooted
        {
            return Err("the source goes on with connections that the target has served");
        }
        Ok(())
    }

    /// An end: everything is closed and the right copy runs.
    pub fn is_terminal(&self) -> bool {
        let quiet = |env: &Env| {
            env.dead || (env.tasks != Tasks::Frozen && env.inflight.is_none() && !env.dying)
        };
        let s_idle = self.s.holder.as_ref().is_none_or(Driver::is_idle);
        let t_idle = self.t.holder.as_ref().is_none_or(Driver::is_idle);
        let s_closed =
            self.s.env.dead || self.s.journal.is_empty() || self.s.word.outcome.is_some();
        let t_closed = self.t.env.dead || self.t.journal.is_empty() || self.t.word.closed;
        if self.api.exists
            || !quiet(&self.s.env)
            || !quiet(&self.t.env)
            || !(s_idle || self.s.env.dead)
            || !(t_idle || self.t.env.dead)
            || !s_closed
            || !t_closed
        {
            return false;
        }
        let target_won = match self.s.word.outcome {
            Some(outcome) => outcome == SourceOutcome::Released,
            None => self.s.env.dead && self.t.word.outcome == Some(TargetOutcome::Resumed),
        };
        let winner = if target_won { Side::T } else { Side::S };
        let runs = self.env(winner).runs() || self.replica;
        let loser = if target_won { &self.s.env } else { &self.t.env };
        let excused = self.pod_deleting(winner) || self.env(winner).dead;
        (loser.dead || loser.tasks == Tasks::Absent) && (runs || excused)
    }
}
