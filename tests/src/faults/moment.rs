//! The moments of a migration in which faults are injected, and by what each is known.

use transship_api::{Role, Step};

use super::gate::Gate;
use crate::node::moment::Moment as InNode;

/// A moment, in the order of a migration that goes well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Checks run.
    Preflight,
    /// The target pod is being made.
    TargetIsMade,
    /// Both sides have begun, and the target pod is kept from its node.
    Prepared,
    /// The target's sandbox comes up and its first container waits.
    TargetStarts,
    /// The source is about to freeze.
    Freezing,
    /// CRIU dumps the source, its state is on the way; CRIU is stopped until the fault has begun.
    Dumping,
    /// Every task is restored on the target and held by CRIU's script.
    Restoring,
    /// Both have voted; the decision is held back until the fault is over.
    Voted,
    /// The target has read the decision.
    Decided,
    /// The target is about to thaw.
    Thawing,
    /// The target runs; its confirmation is held back until the fault is over.
    Thawed,
    /// Service and owner go to the target.
    HandingOver,
    /// The source goes.
    Releasing,
}

/// By what a moment is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The Migration's step, or a later one.
    Step(Step),
    /// Something in the node of a side.
    InNode(Role, InNode),
}

impl Moment {
    /// All, in their order.
    pub const ALL: [Self; 13] = [
        Self::Preflight,
        Self::TargetIsMade,
        Self::Prepared,
        Self::TargetStarts,
        Self::Freezing,
        Self::Dumping,
        Self::Restoring,
        Self::Voted,
        Self::Decided,
        Self::Thawing,
        Self::Thawed,
        Self::HandingOver,
        Self::Releasing,
    ];

    /// How it stands over a column of the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Preflight => "checks",
            Self::TargetIsMade => "target made",
            Self::Prepared => "prepared",
            Self::TargetStarts => "target starts",
            Self::Freezing => "freezing",
            Self::Dumping => "dumping",
            Self::Restoring => "restoring",
            Self::Voted => "voted",
            Self::Decided => "decided",
            Self::Thawing => "thawing",
            Self::Thawed => "unconfirmed",
            Self::HandingOver => "handing over",
            Self::Releasing => "releasing",
        }
    }

    /// How it stands in a test's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preflight => "in_preflight",
            Self::TargetIsMade => "while_the_target_is_made",
            Self::Prepared => "when_the_target_is_made",
            Self::TargetStarts => "while_the_target_starts",
            Self::Freezing => "while_freezing",
            Self::Dumping => "while_dumping",
            Self::Restoring => "while_restoring",
            Self::Voted => "when_both_have_voted",
            Self::Decided => "when_decided",
            Self::Thawing => "while_thawing",
            Self::Thawed => "before_the_confirmation",
            Self::HandingOver => "while_handing_over",
            Self::Releasing => "while_releasing",
        }
    }

    /// It has come when all of these have been seen, one after another.
    pub fn signs(self) -> &'static [Sign] {
        use InNode::{Criu, Hold, Journal};
        use Role::{Source, Target};
        match self {
            Self::Preflight => &[Sign::Step(Step::Preflight)],
            Self::TargetIsMade => &[Sign::Step(Step::PreparingTarget)],
            Self::Prepared => {
                &[Sign::InNode(Target, Journal("begun")), Sign::InNode(Source, Journal("begun"))]
            }
            Self::TargetStarts => &[Sign::Step(Step::WaitingForTarget)],
            Self::Freezing => &[Sign::InNode(Source, Journal("freezing"))],
            Self::Dumping => &[Sign::InNode(Source, Criu)],
            Self::Restoring => &[Sign::InNode(Target, Hold)],
            Self::Voted => {
                &[Sign::InNode(Target, Journal("voted")), Sign::InNode(Source, Journal("voted"))]
            }
            Self::Decided => &[Sign::InNode(Target, Journal("decided"))],
            Self::Thawing => &[Sign::InNode(Target, Journal("thawing"))],
            Self::Thawed => &[Sign::InNode(Target, Journal("thawed"))],
            Self::HandingOver => &[Sign::Step(Step::HandingOver)],
            Self::Releasing => &[Sign::Step(Step::Releasing)],
        }
    }

    /// The last step of the Migration at which it can be.
    pub fn latest(self) -> Step {
        match self {
            Self::Preflight => Step::Preflight,
            Self::TargetIsMade | Self::Prepared => Step::PreparingTarget,
            Self::TargetStarts => Step::WaitingForTarget,
            Self::Freezing | Self::Dumping => Step::Freezing,
            Self::Restoring | Self::Voted => Step::Voting,
            Self::Decided | Self::Thawing | Self::Thawed => Step::Committed,
            Self::HandingOver => Step::HandingOver,
            Self::Releasing => Step::Releasing,
        }
    }

    /// What makes it last.
    pub fn gate(self) -> Option<Gate> {
        match self {
            Self::Prepared => Some(Gate::LetGo),
            Self::Voted => Some(Gate::Decision),
            Self::Thawed => Some(Gate::ResumedAt),
            _ => None,
        }
    }
}
