//! The matrix: which faults, at which moments, and what is right then.
//!
//! A group crosses its faults with its moments; adding a fault or a moment adds tests. More than one
//! outcome is right where the fault may come too late to matter, or may be survived. Here are the faults
//! of machines on the way to the end; what people do there is in [`people`], and the ways back in [`back`].

mod back;
mod people;

use transship_api::Role::{Source, Target};
use transship_tests::{
    faults::{
        cell::{Cell, cells},
        chart::Chart::{Rollback, Upgrade},
        fault::{
            Fault::{
                self, Chart, Cut, FillDisk, Kill, KillContainer, KillLeader, KillOperators,
                PauseApi, PowerOff, Slow, StopApi, TakeMemory,
            },
            Length::{Briefly, ForGood, Long},
        },
        link::{
            Link::{All, Api, Nodes, Operators},
            Stream::{Corrupted, Truncated},
        },
        moment::Moment::{
            self, Decided, Dumping, Freezing, HandingOver, Preflight, Prepared, Reading, Releasing,
            Restoring, TargetIsMade, TargetStarts, Thawed, Thawing, Voted,
        },
        outcome::Outcome::{self, Moved, Replaced, Restarted, RestartedThere, Stayed, TargetLost},
    },
    node::process::Victim::{
        Agent, Containerd, Criu, Holder, Kubelet, Runc, Script, Shim, Supervisor, Wrapper,
    },
};

/// Every cell.
pub fn all() -> Vec<Cell> {
    let groups = [GROUPS, back::GROUPS, people::GROUPS].into_iter().flatten();
    groups.flat_map(|(moments, faults, outcomes)| cells(moments, faults, outcomes)).collect()
}

/// Those of every run of all tests: one of each kind of moment and of fault, of which other tests have
/// none.
pub const SOME: [&str; 11] = [
    "corrupt_the_stream_while_the_target_starts",
    "kill_source_holder_while_dumping",
    "cut_node_to_node_briefly_while_dumping",
    "pause_api_briefly_when_both_have_voted",
    "kill_source_shim_when_both_have_voted",
    "kill_target_holder_while_thawing",
    "kill_operators_before_the_confirmation",
    "power_off_target_briefly_before_the_confirmation",
    "migrate_again_while_handing_over",
    "delete_source_while_dumping",
    "delete_target_when_both_have_voted",
];

type Group = (&'static [Moment], &'static [Fault], &'static [Outcome]);

const GROUPS: &[Group] = &[
    // While the checks run: nothing is recorded before the fault is over.
    (
        &[Preflight],
        &[
            Kill(Source, Agent),
            Kill(Target, Agent),
            Kill(Source, Containerd),
            Kill(Target, Containerd),
            Kill(Source, Kubelet),
            Kill(Target, Kubelet),
            KillOperators,
            PauseApi(Briefly),
            PowerOff(Target, Briefly),
        ],
        &[Moved, Stayed],
    ),
    // Before anything is frozen: it is given up, or goes on when what died is back.
    (
        &[TargetIsMade, Prepared],
        &[Kill(Source, Agent), Kill(Target, Agent), KillLeader],
        &[Moved, Stayed],
    ),
    // Both sides have begun, and the target pod has no node.
    (
        &[Prepared],
        &[Kill(Source, Holder), Kill(Target, Holder), PauseApi(Briefly), PowerOff(Target, Briefly)],
        &[Moved, Stayed],
    ),
    (
        &[TargetStarts],
        &[
            Kill(Source, Agent),
            Kill(Target, Agent),
            Kill(Source, Containerd),
            Kill(Target, Containerd),
            Kill(Source, Kubelet),
            Kill(Target, Kubelet),
            Kill(Source, Holder),
            Kill(Target, Holder),
            Kill(Source, Supervisor),
            Kill(Target, Supervisor),
            Kill(Target, Wrapper),
            Kill(Target, Shim),
            KillOperators,
            Cut(Nodes, Long),
            Cut(Api(Source), Long),
            Cut(Operators, Long),
            PauseApi(Long),
            PowerOff(Target, Briefly),
        ],
        &[Moved, Stayed],
    ),
    // Nothing else can come of a stream that is damaged: a session ends with it.
    (&[TargetStarts, Dumping], &[Fault::Stream(Corrupted)], &[Stayed]),
    (&[Dumping], &[Fault::Stream(Truncated)], &[Stayed]),
    // It takes longer, to the end.
    (
        &[TargetStarts],
        &[Slow(Nodes), Slow(Api(Source)), Slow(Api(Target)), Slow(Operators)],
        &[Moved, Stayed],
    ),
    (&[Prepared, TargetStarts], &[PowerOff(Source, Briefly)], &[Restarted]),
    // kubelet starts it afresh, as any pod, and what was to be frozen is not there.
    (&[Prepared], &[Kill(Source, Shim)], &[Restarted]),
    (&[Dumping], &[PowerOff(Source, Long)], &[Restarted]),
    // Kubernetes ends the pods of a node that has left, and the owner makes another one.
    (&[Dumping], &[PowerOff(Source, ForGood)], &[Replaced]),
    // The source is frozen and nobody has voted.
    (&[Freezing, Dumping], &[Kill(Source, Holder)], &[Stayed]),
    (
        &[Freezing],
        &[
            Kill(Source, Agent),
            Kill(Target, Agent),
            Kill(Source, Kubelet),
            Kill(Source, Containerd),
        ],
        &[Moved, Stayed],
    ),
    (&[Dumping], &[Kill(Source, Criu), Kill(Source, Runc)], &[Stayed]),
    // The application's own shim: kubelet starts a container whose shim has died afresh.
    (&[Freezing, Dumping], &[Kill(Source, Shim)], &[Stayed, Restarted, Moved]),
    // The source goes on while that lasts, before kubelet could kill it for its probe, whoever is cut off.
    (&[Dumping], &[Cut(All(Source), Long), Cut(All(Target), Long), Cut(Nodes, Long)], &[Stayed]),
    (
        &[Dumping],
        &[
            Kill(Source, Agent),
            Kill(Target, Agent),
            Kill(Target, Holder),
            Kill(Source, Supervisor),
            Kill(Target, Supervisor),
            Kill(Source, Containerd),
            Kill(Target, Containerd),
            Kill(Source, Kubelet),
            Kill(Target, Kubelet),
            Kill(Target, Wrapper),
            Kill(Target, Shim),
            KillContainer(Source),
            KillOperators,
            Cut(Nodes, Briefly),
            Cut(Api(Source), Long),
            Cut(Operators, Long),
            PowerOff(Target, Briefly),
        ],
        &[Moved, Stayed],
    ),
    (&[Dumping], &[PowerOff(Target, Long), PowerOff(Target, ForGood)], &[Stayed]),
    // Where the sides vote before that is noticed, the target's dead-man ends it for good.
    (&[TargetStarts], &[Cut(Api(Target), Long)], &[Moved, Stayed, TargetLost]),
    // It is noticed first: the target votes when that is over, if nobody has given up.
    (&[Dumping], &[Cut(Api(Target), Long)], &[Moved, Stayed]),
    (&[Dumping, Restoring], &[PauseApi(Long), StopApi], &[Moved, Stayed]),
    (&[Restoring], &[Cut(All(Target), Long)], &[Moved, Stayed]),
    // Here the pod has a liveness probe: the target gives up while that lasts. The source has voted, and goes on when it
    // has read what follows from that, perhaps after its own probe has failed for good.
    (&[Restoring], &[Cut(Api(Target), Long)], &[Stayed, Restarted]),
    (&[Freezing], &[FillDisk(Source), FillDisk(Target)], &[Moved, Stayed]),
    (&[TargetStarts, Dumping, Restoring], &[TakeMemory(Target)], &[Moved, Stayed]),
    (&[Dumping], &[TakeMemory(Source)], &[Moved, Stayed]),
    // CRIU rebuilds the target's tasks, and after that they are held in its hands and its callers'.
    (
        &[Reading, Restoring],
        &[
            Kill(Target, Criu),
            Kill(Target, Runc),
            Kill(Target, Wrapper),
            Kill(Target, Shim),
            Kill(Target, Holder),
        ],
        &[Stayed],
    ),
    (
        &[Reading, Restoring],
        &[
            Kill(Target, Kubelet),
            Kill(Target, Containerd),
            Kill(Target, Agent),
            Kill(Source, Agent),
            KillOperators,
        ],
        &[Moved, Stayed],
    ),
    // The target comes back and gives up, or is not waited for.
    (
        &[Restoring],
        &[Kill(Target, Script), PowerOff(Target, Briefly), PowerOff(Target, Long)],
        &[Stayed],
    ),
    (
        &[Restoring],
        &[
            Kill(Source, Holder),
            Kill(Source, Kubelet),
            Kill(Source, Containerd),
            Kill(Target, Supervisor),
            KillLeader,
            Cut(Nodes, Long),
            // The target may take over meanwhile: the source waits, frozen, for that to be over.
            Cut(Api(Source), Long),
            // Nobody decides meanwhile, and both have voted or do.
            Cut(Operators, Long),
            FillDisk(Target),
        ],
        &[Moved, Stayed],
    ),
    // Its memory goes with its tasks, unless the target has all of it and wins.
    (&[Restoring], &[Kill(Source, Shim), PowerOff(Source, Briefly)], &[Moved, Restarted]),
    // Both have voted: whoever dies comes back and obeys.
    (
        &[Voted],
        &[
            Kill(Source, Holder),
            Kill(Target, Holder),
            Kill(Source, Supervisor),
            Kill(Target, Supervisor),
            Kill(Source, Agent),
            Kill(Target, Agent),
            Kill(Source, Kubelet),
            Kill(Target, Kubelet),
            Kill(Source, Containerd),
            Kill(Source, Shim),
            KillContainer(Source),
            KillContainer(Target),
            KillLeader,
            KillOperators,
            Cut(Nodes, Briefly),
            Cut(Nodes, Long),
            Cut(Api(Target), Briefly),
            Slow(Api(Source)),
            Slow(Api(Target)),
            Slow(Operators),
            PauseApi(Briefly),
            FillDisk(Source),
            FillDisk(Target),
            TakeMemory(Source),
            TakeMemory(Target),
            // The pod's state is on the other node.
            PowerOff(Source, ForGood),
        ],
        &[Moved],
    ),
    // The target holds everything; the source's memory is lost only if it is given up all the same.
    (&[Voted], &[PowerOff(Source, Briefly)], &[Moved, Restarted]),
    // The runtime has lost its tasks, so they are never thawed: it says so before the decision, or when it reads it.
    (&[Voted], &[Kill(Target, Shim)], &[Stayed, TargetLost]),
    // The target may be given up for silent, or has lost its tasks and says so.
    (
        &[Voted],
        &[
            Kill(Target, Containerd),
            Cut(Api(Target), Long),
            Cut(All(Source), Long),
            Cut(All(Target), Long),
            Cut(Operators, Long),
        ],
        &[Moved, Stayed, TargetLost],
    ),
    // Here the pod has a liveness probe: kubelet wants to kill the frozen container, the held one too, and is
    // refused until the decision is known. Then its verdict may come true, of the one that goes on.
    (
        &[Voted],
        &[Cut(Api(Source), Long), PauseApi(Long)],
        &[Moved, RestartedThere, Stayed, Restarted, TargetLost],
    ),
    (&[Voted], &[PowerOff(Target, Briefly), PowerOff(Target, ForGood)], &[Stayed, TargetLost]),
    // The target's dead-man has ended it for good before anybody could decide.
    (&[Voted], &[StopApi], &[Stayed, TargetLost]),
    // The Commit is recorded. The next two are less than a millisecond apart: what comes from outside of the
    // node comes after both.
    (&[Decided, Thawing], &[Kill(Target, Holder), Kill(Target, Agent)], &[Moved]),
    (
        &[Thawing],
        &[
            Kill(Target, Supervisor),
            Kill(Target, Kubelet),
            Kill(Target, Containerd),
            Kill(Source, Agent),
            KillOperators,
        ],
        &[Moved],
    ),
    // Its tasks are lost with it: not thawed if it comes first, else ended before kubelet starts them afresh.
    (&[Decided, Thawing], &[Kill(Target, Shim)], &[TargetLost, RestartedThere]),
    (&[Thawed], &[Kill(Target, Shim)], &[RestartedThere]),
    (
        &[Thawed],
        &[
            Kill(Source, Holder),
            Kill(Source, Agent),
            Kill(Source, Kubelet),
            Kill(Source, Shim),
            Kill(Target, Holder),
            Kill(Target, Agent),
            Kill(Target, Kubelet),
            Kill(Target, Containerd),
            KillContainer(Target),
            KillLeader,
            KillOperators,
            Cut(Api(Source), Briefly),
            Cut(Api(Source), Long),
            Cut(Api(Target), Briefly),
            Cut(Operators, Briefly),
            // Its node signs for it, whoever can or cannot confirm it.
            Cut(Operators, Long),
            PowerOff(Source, Long),
        ],
        &[Moved],
    ),
    (
        &[Thawed],
        &[Cut(Api(Target), Long), Cut(All(Target), Long), PauseApi(Long), StopApi],
        &[Moved, TargetLost],
    ),
    // Whether it had said that it runs before it was lost decides.
    (
        &[Thawed],
        &[PowerOff(Target, Briefly), PowerOff(Target, Long)],
        &[TargetLost, RestartedThere],
    ),
    (&[Thawed], &[PowerOff(Target, ForGood)], &[TargetLost, Replaced]),
    // The target is the pod; the rest is tidying up.
    (
        &[HandingOver, Releasing],
        &[
            Kill(Source, Holder),
            Kill(Source, Agent),
            Kill(Source, Shim),
            Kill(Source, Containerd),
            Kill(Source, Kubelet),
            Kill(Target, Agent),
            Kill(Target, Kubelet),
            KillOperators,
            Cut(Operators, Long),
        ],
        &[Moved],
    ),
    (
        &[HandingOver],
        &[
            Kill(Target, Containerd),
            KillLeader,
            Cut(Nodes, Long),
            Cut(Api(Source), Long),
            Cut(All(Target), Long),
            PauseApi(Long),
            StopApi,
            PowerOff(Source, Briefly),
        ],
        &[Moved],
    ),
    (&[HandingOver, Releasing], &[PowerOff(Source, ForGood)], &[Moved]),
    (&[Releasing], &[Cut(Api(Source), Long), PauseApi(Long), PowerOff(Source, Long)], &[Moved]),
    // kubelet starts afresh what ends, as of any pod.
    (&[HandingOver, Releasing], &[KillContainer(Target), Kill(Target, Shim)], &[RestartedThere]),
    (&[Thawing], &[PowerOff(Target, Briefly)], &[TargetLost, RestartedThere]),
    (&[HandingOver], &[PowerOff(Target, Long)], &[RestartedThere]),
    (&[Releasing], &[PowerOff(Target, Briefly)], &[RestartedThere]),
    // It is lost with its node, as any pod is.
    (&[Releasing], &[PowerOff(Target, ForGood)], &[Replaced]),
    // Each leaves the chart as the next one needs it. It takes seconds, so that the steps between these,
    // which take less, are met by the one before.
    (
        &[Preflight, Prepared, TargetStarts, Dumping],
        &[Chart(Upgrade), Chart(Rollback)],
        &[Moved, Stayed],
    ),
    (&[Voted, Thawed, HandingOver, Releasing], &[Chart(Upgrade), Chart(Rollback)], &[Moved]),
];
