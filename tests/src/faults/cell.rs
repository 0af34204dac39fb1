//! One fault at one moment, and what is right for it.

use std::time::Duration;

use transship_api::Role::{Source, Target};

use super::{
    fault::{Fault, Length},
    link::Link,
    moment::Moment,
    outcome::Outcome,
};
use crate::node::process::Victim;

/// How soon after a fault's end the object has to tell the truth.
pub const TRUTH: Duration = Duration::from_secs(30);
/// As [`TRUTH`], where the migration may survive the fault with most of its course still to run, or
/// where the fault goes on.
const COURSE: Duration = Duration::from_secs(90);
/// As [`TRUTH`], where the API server was stopped: a kubelet that it turned away tries again after pauses that have
/// become longer each time, up to a minute, and has been seen to hear of its pods again only 93 s after its return.
const BLIND: Duration = Duration::from_secs(150);
/// As [`COURSE`], where a node has left the cluster: Kubernetes gives it more than a minute before it ends its pods for
/// that.
const LEAVING: Duration = Duration::from_secs(180);

/// A row of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// What happens.
    pub fault: Fault,
    /// When.
    pub moment: Moment,
    /// Every outcome that is right.
    pub outcomes: &'static [Outcome],
}

impl Cell {
    /// The test's name.
    pub fn name(&self) -> String {
        format!("{}_{}", self.fault.name(), self.moment.name())
    }

    /// The source has not voted and does not reach its peer: it goes on by itself while that lasts.
    pub fn leaves_the_source_alone(&self) -> bool {
        let alone = matches!(self.fault, Fault::Cut(Link::All(_) | Link::Nodes, Length::Long));
        self.moment == Moment::Dumping && alone
    }

    /// The target is held, and alone does not reach the API server: it gives up by itself while that lasts.
    pub fn leaves_the_target_alone(&self) -> bool {
        let alone = self.fault == Fault::Cut(Link::Api(Target), Length::Long);
        self.moment == Moment::Restoring && alone
    }

    /// The target gets everything, but does not reach the API server: it does not vote.
    pub fn keeps_the_target_from_its_vote(&self) -> bool {
        match self.fault {
            Fault::Cut(Link::Api(Target), Length::Long)
            | Fault::PauseApi(Length::Long)
            | Fault::StopApi => matches!(self.moment, Moment::Dumping | Moment::Restoring),
            Fault::Cut(Link::All(Target), Length::Long) => self.moment == Moment::Restoring,
            _ => false,
        }
    }

    /// The pod has a liveness probe, so that kubelet wants to kill a container that stands still.
    pub fn is_impatient(&self) -> bool {
        let waits = matches!(
            self.fault,
            Fault::Cut(Link::Api(Source), Length::Long) | Fault::PauseApi(Length::Long)
        );
        let alone = self.leaves_the_source_alone() || self.leaves_the_target_alone();
        alone || (self.moment == Moment::Voted && waits)
    }

    /// A pod that starts afresh has lost its memory before its migration was over, which has to be told. Later it may,
    /// like any pod, and before anything was done to it; so does one that kubelet ends as soon as it goes on, for a
    /// probe that has failed meanwhile.
    pub fn loses_memory(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Restarted => !self.is_impatient() && !self.strikes_an_ordinary_pod(),
            // Nothing is confirmed before the fault is over, or so soon that a process could not be killed first.
            Outcome::RestartedThere => match self.moment {
                Moment::Thawed => true,
                Moment::Decided | Moment::Thawing => matches!(self.fault, Fault::Kill(..)),
                _ => false,
            },
            _ => false,
        }
    }

    /// The shim dies of a pod that has been moved already, or that nothing has been done to yet. As of any pod whose
    /// shim dies, containerd leaves what runc had of its containers until the pod goes.
    pub fn strikes_an_ordinary_pod(&self) -> bool {
        match self.moment {
            Moment::Prepared => self.fault == Fault::Kill(Source, Victim::Shim),
            Moment::HandingOver | Moment::Releasing => {
                self.fault == Fault::Kill(Target, Victim::Shim)
            }
            _ => false,
        }
    }

    /// How long after the fault's end the outcome must be there and told.
    pub fn patience(&self) -> Duration {
        let early = matches!(
            self.moment,
            Moment::Preflight | Moment::TargetIsMade | Moment::Prepared | Moment::TargetStarts
        );
        // Of one that has vanished nothing tells any more, and its pods are settled by what its sides say.
        let vanishes = self.fault.strips_finalizer();
        match self.fault {
            Fault::PowerOff(_, Length::ForGood) => LEAVING,
            Fault::StopApi => BLIND,
            fault if early || vanishes || fault.goes_on() => COURSE,
            // The votes and all that follows come after it.
            _ if self.keeps_the_target_from_its_vote() => COURSE,
            _ => TRUTH,
        }
    }
}

/// The cells of a group: each fault at each moment.
pub fn cells(
    moments: &'static [Moment],
    faults: &'static [Fault],
    outcomes: &'static [Outcome],
) -> impl Iterator<Item = Cell> {
    let at = move |moment: &'static Moment| {
        faults.iter().map(move |fault| Cell { fault: *fault, moment: *moment, outcomes })
    };
    moments.iter().flat_map(at)
}
