//! The state of the modelled cluster.

use crate::source::{SourceMachine, SourcePhase};
use crate::target::{TargetMachine, TargetPhase};
use crate::{Driver, Machine, RecordState, Recorded, SourceWord, TargetOutcome, TargetWord};

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

/// Who keeps a pod's tasks: one shim serves all of its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shim {
    Lives,
    /// It has died, and containerd has not had the containers deleted yet.
    Died,
    /// And that has not reached them: kubelet takes them for gone.
    Forgotten,
}

/// A verb that the wrapper has let through and that has not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inflight {
    Create,
    Restore,
    Kill,
    KillFrozen,
    /// runc's own, of what is left of a container.
    Delete,
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
    /// T's does, before anybody has heard what it had to say after its vote.
    DieUnheard,
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
    /// CRIU dies while it dumps: what it had stopped runs on, whatever the record says.
    DumpDies,
    /// The wrapper, runc or CRIU dies in a restore: nobody is left who says how it went, what is restored
    /// stays, and the container's root stays mounted in runc's state.
    RestoreDies,
    /// The same between CRIU's last stop and the freeze: what was restored is let go, and runs behind the
    /// closed network until the script freezes it after all or the side kills it. Which of the two comes first
    /// makes no difference here: it has run, so it must never become the pod.
    RestoreLetsGo,
    /// Before its vote T's node loses the API server; others reach it.
    CutOff,
    /// The pod's shim dies; the tasks live on.
    ShimDies,
    /// Somebody deletes the cluster's object of a node that lives. The objects of its pods go with it.
    NodeDeleted,
    /// S's holder looks at T's node just when that has none of our objects: it lives and registers anew.
    NodeAnew,
}

pub const FAULTS: usize = 25;

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
    pub shim: Shim,
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
    /// The node lives, but the cluster has no object of it any more.
    pub deleted: bool,
    /// T: nor is ours there, with its word, nor its Lease.
    pub left: bool,
    pub armed: bool,
    /// Somebody looks whether the armed dead-man expires.
    pub watched: bool,
    pub lapsed: bool,
    pub sockets_destroyed: bool,
    /// S: CRIU is at work.
    pub dumping: bool,
    /// T: a restore died; nobody says so.
    pub died: bool,
    /// T: among the tasks are some that ran before they were frozen (ghost).
    pub loose: bool,
    /// T: a container's root is mounted in runc's state of it.
    pub residue: bool,
    /// T: the API server cannot be reached.
    pub cut: bool,
    /// T: it could be reached since everything was restored.
    pub heard: bool,
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
    /// S ran while its dump was taken.
    pub torn: bool,
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

impl Env {
    fn new(tasks: Tasks, net: bool, tickets: u8) -> Self {
        Self {
            record: None,
            tasks,
            shim: Shim::Lives,
            whole: 0,
            tickets,
            restored: 0,
            dying: false,
            ended: false,
            net,
            inflight: None,
            rebooted: false,
            dead: false,
            deleted: false,
            left: false,
            armed: false,
            watched: false,
            lapsed: false,
            sockets_destroyed: false,
            dumping: false,
            died: false,
            loose: false,
            residue: false,
            cut: false,
            heard: false,
        }
    }

    /// Everything that a power cut takes.
    pub fn power_cut(&mut self) {
        self.tasks = Tasks::Absent;
        self.shim = Shim::Lives;
        self.whole = 0;
        self.dying = false;
        self.net = false;
        self.inflight = None;
        self.dumping = false;
        self.loose = false;
        self.residue = false;
    }

    pub fn runs(&self) -> bool {
        self.tasks == Tasks::Running && !self.dead
    }

    /// The cluster has no object of the node, or may have none: that of a node that is down for ever goes, too.
    pub fn is_gone(&self) -> bool {
        self.dead || self.deleted
    }

    /// The tasks live without their shim.
    pub fn is_orphan(&self) -> bool {
        self.tasks != Tasks::Absent && self.shim != Shim::Lives
    }

    /// What lives without a shim is killed while it is frozen.
    pub fn end_orphans(&mut self) {
        if self.is_orphan() {
            self.tasks = Tasks::Absent;
            self.shim = Shim::Lives;
            self.whole = 0;
            self.dying = false;
        }
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
            torn: false,
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

    pub fn delete_pod(&mut self, side: Side) {
        match side {
            Side::S => self.api.s_deleting = true,
            Side::T => self.api.t_deleting = true,
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
        self.t_machine().phase()
    }

    /// The target's machine, as far as its journal tells.
    pub fn t_machine(&self) -> TargetMachine {
        let mut machine = TargetMachine::new();
        self.t.journal.iter().for_each(|entry| machine.apply(*entry));
        machine
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
}
