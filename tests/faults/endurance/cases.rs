//! Which faults, at which moments of which order, and what is right then.

use transship_api::Role::{Source, Target};
use transship_tests::{
    faults::{
        chart::Chart::{Rollback, Upgrade},
        fault::{
            Fault::{
                self, Chart, Cut, FillDisk, Kill, KillOperators, PauseApi, PowerOff, Slow, StopApi,
                Stream, User,
            },
            Length::{Briefly, ForGood, Long},
        },
        link::{
            Link::{Api, Nodes, Operators},
            Stream::{Corrupted, Truncated},
        },
        moment::Moment,
        outcome::Outcome::{self, Moved, Restarted, RestartedThere, Stayed, TargetLost},
        user::Act::StripFinalizer,
    },
    node::process::Victim::{
        Agent, Containerd, Criu, Holder, Kubelet, Runc, Script, Shim, Wrapper,
    },
};

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// With its memory.
    Sequential,
    /// With its files alone.
    Cold,
}

/// At which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The source is frozen and being dumped, or is ending: what it leaves is not with the target yet.
    Leaving,
    /// Every task is restored on trial and held; nobody has voted for it.
    OnTrial,
    /// Both sides have voted; the decision is held back until the fault is over.
    Voted,
    /// The pod was made again and let go to its node, where it is restored or started.
    LetGo,
    /// Every task of that pod is restored and held: only a kill on its node comes in time.
    Held,
}

/// A fault at a moment, and what is right for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// The order.
    pub order: Order,
    /// The moment.
    pub when: When,
    /// What happens.
    pub fault: Fault,
    /// Every outcome that is right.
    pub outcomes: &'static [Outcome],
}

const fn sequential(when: When, fault: Fault, outcomes: &'static [Outcome]) -> Case {
    Case { order: Order::Sequential, when, fault, outcomes }
}

const fn cold(when: When, fault: Fault, outcomes: &'static [Outcome]) -> Case {
    Case { order: Order::Cold, when, fault, outcomes }
}

/// Every case. The charts come last: each leaves the release as the next one needs it.
pub const ALL: [Case; 55] = [
    // What dies.
    sequential(When::Leaving, Kill(Source, Agent), &[Stayed]),
    sequential(When::OnTrial, Kill(Target, Criu), &[Stayed]),
    sequential(When::OnTrial, Kill(Target, Script), &[Stayed]),
    sequential(When::OnTrial, Kill(Target, Runc), &[Stayed]),
    sequential(When::OnTrial, Kill(Target, Holder), &[Stayed]),
    sequential(When::OnTrial, PowerOff(Target, Briefly), &[Stayed]),
    sequential(When::Voted, Kill(Source, Holder), &[Moved]),
    // The state is on the disks.
    sequential(When::Voted, Kill(Source, Shim), &[Moved]),
    sequential(When::Voted, Kill(Target, Holder), &[Moved]),
    sequential(When::Voted, Kill(Target, Agent), &[Moved]),
    // The restore on trial is gone; its images are on the disk.
    sequential(When::Voted, PowerOff(Target, Briefly), &[Moved, Stayed]),
    // Its memory is lost only if it is given up all the same.
    sequential(When::Voted, PowerOff(Source, Briefly), &[Moved, Restarted]),
    // The state is with the target, and nobody asks the node that comes back for anything.
    sequential(When::Voted, PowerOff(Source, ForGood), &[Moved]),
    sequential(When::LetGo, Kill(Source, Agent), &[Moved]),
    sequential(When::LetGo, Kill(Target, Agent), &[Moved]),
    sequential(When::LetGo, Kill(Target, Containerd), &[Moved, TargetLost]),
    sequential(When::LetGo, Kill(Target, Kubelet), &[Moved]),
    // The state is on the target's disk: what is lost is a try.
    sequential(When::LetGo, Kill(Target, Wrapper), &[Moved]),
    sequential(When::Held, Kill(Target, Criu), &[Moved]),
    sequential(When::Held, Kill(Target, Script), &[Moved]),
    sequential(When::Held, Kill(Target, Shim), &[Moved, TargetLost]),
    sequential(When::Held, Kill(Target, Holder), &[Moved]),
    // The source has ended.
    sequential(When::LetGo, PowerOff(Source, Briefly), &[Moved]),
    // The pod that was made again is the pod, whoever knows of it.
    sequential(When::LetGo, User(StripFinalizer), &[Moved]),
    sequential(When::LetGo, KillOperators, &[Moved]),
    sequential(When::LetGo, PauseApi(Briefly), &[Moved]),
    // Whether it had been confirmed before it was lost decides.
    sequential(When::LetGo, PowerOff(Target, Briefly), &[Moved, TargetLost, RestartedThere]),
    cold(When::Voted, Kill(Source, Holder), &[Moved]),
    cold(When::Voted, Kill(Target, Holder), &[Moved]),
    // Its files are kept.
    cold(When::Voted, PowerOff(Source, Briefly), &[Moved]),
    cold(When::LetGo, Kill(Target, Agent), &[Moved]),
    cold(When::LetGo, Kill(Target, Kubelet), &[Moved]),
    cold(When::LetGo, KillOperators, &[Moved]),
    // The state cannot come to the target whole, and nobody waits for it for as long as that lasts.
    sequential(When::Leaving, Cut(Nodes, Long), &[Stayed]),
    sequential(When::Leaving, Stream(Corrupted), &[Stayed]),
    sequential(When::Leaving, FillDisk(Target), &[Stayed]),
    // Of one that has ended the way back is a start, with its files.
    cold(When::Leaving, Kill(Source, Agent), &[Moved, Restarted]),
    cold(When::Leaving, Cut(Nodes, Long), &[Restarted]),
    cold(When::Leaving, Stream(Truncated), &[Restarted]),
    cold(When::Leaving, FillDisk(Target), &[Restarted]),
    // It takes longer, and is whole in the end.
    sequential(When::Leaving, Slow(Nodes), &[Moved]),
    // A target that could not read the decision does not vote, and is waited for for a while.
    sequential(When::Leaving, Cut(Api(Target), Long), &[Moved, Stayed]),
    sequential(When::Leaving, PauseApi(Long), &[Moved, Stayed]),
    // Whoever has voted waits, and nothing is concluded from its silence: nothing runs beside it.
    sequential(When::Voted, Cut(Api(Source), Long), &[Moved]),
    sequential(When::Voted, StopApi, &[Moved]),
    cold(When::Voted, Cut(Api(Target), Long), &[Moved]),
    sequential(When::LetGo, Cut(Operators, Long), &[Moved]),
    // The agents, through which the state goes, end.
    sequential(When::Leaving, Chart(Upgrade), &[Moved, Stayed]),
    sequential(When::LetGo, Chart(Rollback), &[Moved]),
    sequential(When::LetGo, Chart(Upgrade), &[Moved]),
    sequential(When::Leaving, Chart(Rollback), &[Moved, Stayed]),
    sequential(When::Voted, Chart(Upgrade), &[Moved]),
    sequential(When::Voted, Chart(Rollback), &[Moved]),
    cold(When::LetGo, Chart(Upgrade), &[Moved]),
    cold(When::Leaving, Chart(Rollback), &[Moved, Restarted]),
];

/// Those of every run of all tests.
pub const SOME: [&str; 2] = [
    "sequential_kill_target_agent_while_the_pod_is_made_again",
    "cold_kill_source_holder_when_both_have_voted",
];

impl Case {
    /// The test's name.
    pub fn name(&self) -> String {
        let order = match self.order {
            Order::Sequential => "sequential",
            Order::Cold => "cold",
        };
        let when = match self.when {
            When::Leaving => "while_the_source_leaves",
            When::OnTrial => "on_trial",
            When::Voted => "when_both_have_voted",
            When::LetGo => "while_the_pod_is_made_again",
            When::Held => "when_it_is_held_again",
        };
        format!("{order}_{}_{when}", self.fault.name())
    }

    /// The moment of a migration at which it begins; one of a pod that is made again comes after it.
    pub fn moment(&self) -> Moment {
        match (self.when, self.order) {
            (When::Leaving, Order::Sequential) => Moment::Dumping,
            // CRIU has no part in it; the end takes as long as the grace period.
            (When::Leaving, Order::Cold) => Moment::Freezing,
            (When::OnTrial, _) => Moment::Restoring,
            (When::Voted | When::LetGo | When::Held, _) => Moment::Voted,
        }
    }

    /// Nothing more comes from its source, which has not voted: it goes on by itself while that lasts.
    pub fn leaves_the_source_alone(&self) -> bool {
        let alone = matches!(self.fault, Cut(Nodes, Long));
        self.order == Order::Sequential && self.when == When::Leaving && alone
    }
}
