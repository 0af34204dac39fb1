//! The moments of a migration in which faults are injected, and by what each is known.

use transship_api::{Role, Step};

use super::{
    fault::{Fault, Length},
    gate::Gate,
    link::Link,
    user::Act,
};
use crate::node::moment::Moment as InNode;

/// A moment, in the order of a migration that goes well; and then those of one that goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Checks run; what they find cannot be recorded until the fault is over.
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
    /// CRIU rebuilds the tasks on the target; it is stopped until the fault has begun.
    Reading,
    /// Every task is restored on the target and held by CRIU's script; CRIU is stopped until the fault has
    /// begun.
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
    /// After both have voted the target pod was deleted: the Abort is recorded, and the source's node does not
    /// reach the API server until the fault is over.
    AbortUnread,
    /// After both have voted the target pod was deleted: the source has read the Abort.
    Aborting,
    /// The target runs and reaches no API server until it has frozen itself: the source has read that it is
    /// to go on.
    SourceResuming,
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
    pub const ALL: [Self; 17] = [
        Self::Preflight,
        Self::TargetIsMade,
        Self::Prepared,
        Self::TargetStarts,
        Self::Freezing,
        Self::Dumping,
        Self::Reading,
        Self::Restoring,
        Self::Voted,
        Self::Decided,
        Self::Thawing,
        Self::Thawed,
        Self::HandingOver,
        Self::Releasing,
        Self::AbortUnread,
        Self::Aborting,
        Self::SourceResuming,
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
            Self::Reading => "reading",
            Self::Restoring => "restoring",
            Self::Voted => "voted",
            Self::Decided => "decided",
            Self::Thawing => "thawing",
            Self::Thawed => "unconfirmed",
            Self::HandingOver => "handing over",
            Self::Releasing => "releasing",
            Self::AbortUnread => "abort unread",
            Self::Aborting => "aborting",
            Self::SourceResuming => "source resuming",
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
            Self::Reading => "while_the_target_is_read",
            Self::Restoring => "while_restoring",
            Self::Voted => "when_both_have_voted",
            Self::Decided => "when_decided",
            Self::Thawing => "while_thawing",
            Self::Thawed => "before_the_confirmation",
            Self::HandingOver => "while_handing_over",
            Self::Releasing => "while_releasing",
            Self::AbortUnread => "while_the_abort_is_unread",
            Self::Aborting => "while_aborting",
            Self::SourceResuming => "while_the_source_resumes",
        }
    }

    /// It has come when all of these have been seen, one after another.
    pub fn signs(self) -> &'static [Sign] {
        use InNode::{Criu, Hold, Journal, Restore};
        use Role::{Source, Target};
        match self {
            // At once: the Migration may stay at this one until its checks have passed.
            Self::Preflight => &[Sign::Step(Step::Pending)],
            Self::TargetIsMade => &[Sign::Step(Step::PreparingTarget)],
            Self::Prepared => {
                &[Sign::InNode(Target, Journal("begun")), Sign::InNode(Source, Journal("begun"))]
            }
            Self::TargetStarts => &[Sign::Step(Step::WaitingForTarget)],
            Self::Freezing => &[Sign::InNode(Source, Journal("freezing"))],
            Self::Dumping => &[Sign::InNode(Source, Criu)],
            Self::Reading => &[Sign::InNode(Target, Restore)],
            Self::Restoring => &[Sign::InNode(Target, Hold)],
            Self::Voted => {
                &[Sign::InNode(Target, Journal("voted")), Sign::InNode(Source, Journal("voted"))]
            }
            Self::Decided => &[Sign::InNode(Target, Journal("decided"))],
            Self::Thawing => &[Sign::InNode(Target, Journal("thawing"))],
            Self::Thawed => &[Sign::InNode(Target, Journal("thawed"))],
            Self::HandingOver => &[Sign::Step(Step::HandingOver)],
            Self::Releasing => &[Sign::Step(Step::Releasing)],
            Self::AbortUnread => &[
                Sign::InNode(Target, Journal("voted")),
                Sign::InNode(Source, Journal("voted")),
                Sign::Step(Step::Aborting),
            ],
            Self::Aborting => &[
                Sign::InNode(Target, Journal("voted")),
                Sign::InNode(Source, Journal("voted")),
                Sign::InNode(Source, Journal("decided")),
            ],
            Self::SourceResuming => &[
                Sign::InNode(Target, Journal("thawed")),
                Sign::InNode(Source, Journal("resolved")),
            ],
        }
    }

    /// What has to happen first, before the last of its signs, for a migration to get there.
    pub fn turn(self) -> Option<Fault> {
        match self {
            Self::AbortUnread => Some(Fault::AbortUnread),
            Self::Aborting => Some(Fault::User(Act::DeleteTarget)),
            Self::SourceResuming => Some(Fault::Cut(Link::Api(Role::Target), Length::Long)),
            _ => None,
        }
    }

    /// The last step of the Migration at which it can be.
    pub fn latest(self) -> Step {
        match self {
            Self::Preflight => Step::Preflight,
            Self::TargetIsMade | Self::Prepared => Step::PreparingTarget,
            Self::TargetStarts => Step::WaitingForTarget,
            Self::Freezing | Self::Dumping => Step::Freezing,
            Self::Reading | Self::Restoring | Self::Voted => Step::Voting,
            Self::Decided | Self::Thawing | Self::Thawed => Step::Committed,
            Self::HandingOver => Step::HandingOver,
            Self::Releasing => Step::Releasing,
            Self::AbortUnread | Self::Aborting => Step::Aborting,
            Self::SourceResuming => Step::SourceResuming,
        }
    }

    /// What makes it last, or lets it come.
    pub fn gate(self) -> Option<Gate> {
        match self {
            Self::Preflight => Some(Gate::Admission),
            Self::Prepared => Some(Gate::LetGo),
            Self::Voted | Self::AbortUnread | Self::Aborting => Some(Gate::Decision),
            Self::Thawed | Self::SourceResuming => Some(Gate::ResumedAt),
            _ => None,
        }
    }
}
