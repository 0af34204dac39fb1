//! What people do on the way to the end.

use transship_api::Role::{Source, Target};
use transship_tests::faults::{
    fault::Fault::User,
    moment::Moment::{
        Dumping, Freezing, HandingOver, Preflight, Prepared, Reading, Releasing, Restoring,
        TargetIsMade, TargetStarts, Thawed, Thawing, Voted,
    },
    outcome::Outcome::{Gone, Moved, Replaced, Stayed, TargetLost},
    user::Act::{
        DeleteDeployment, DeleteMigration, DeleteSource, DeleteTarget, Drain, MigrateAgain, Roll,
        ScaleDown, StripFinalizer,
    },
};

use super::Group;

/// All of them.
pub const GROUPS: &[Group] = &[
    // These moments last until it is done, which is before anything is decided.
    (
        &[Preflight, Prepared, Dumping, Restoring, Voted],
        &[User(DeleteMigration), User(StripFinalizer)],
        &[Stayed],
    ),
    (&[Prepared, Dumping, Restoring, Voted], &[User(DeleteTarget)], &[Stayed]),
    (&[Preflight, Prepared, Dumping, Restoring, Voted], &[User(DeleteSource)], &[Replaced]),
    // At these it takes its course meanwhile.
    (&[TargetStarts], &[User(DeleteMigration)], &[Stayed, Moved]),
    (&[TargetStarts, Freezing], &[User(StripFinalizer)], &[Stayed, Moved]),
    (&[TargetIsMade, TargetStarts, Freezing, Reading], &[User(DeleteTarget)], &[Stayed, Replaced]),
    (&[TargetIsMade, TargetStarts, Freezing, Reading], &[User(DeleteSource)], &[Replaced, Moved]),
    // The fresh pod comes first, and the old one goes when it is there.
    (&[Prepared, Dumping, Restoring, Voted], &[User(Roll)], &[Replaced, Moved]),
    // The owner makes a fresh pod for the source that goes, and has one too many when it gets the target.
    (&[Thawing, Thawed], &[User(DeleteSource)], &[Moved, Replaced]),
    (&[Thawing, Thawed], &[User(DeleteTarget)], &[Replaced, TargetLost]),
    (&[Releasing], &[User(DeleteSource)], &[Moved]),
    (&[Releasing], &[User(DeleteTarget)], &[Replaced]),
    (
        &[Preflight, TargetStarts, Dumping, Restoring, Voted, Thawed],
        &[User(Drain(Source))],
        &[Moved, Replaced],
    ),
    // The target goes from its node as if somebody deleted it.
    (&[Voted], &[User(Drain(Target))], &[Stayed]),
    (&[Thawed], &[User(Drain(Target))], &[Replaced, TargetLost]),
    // One of the two has the pod; while the checks run it may be either.
    (&[Preflight], &[User(MigrateAgain)], &[Moved, Stayed, Replaced]),
    (
        &[TargetStarts, Dumping, Restoring, Voted, Thawed, HandingOver, Releasing],
        &[User(MigrateAgain)],
        &[Moved],
    ),
    (
        &[TargetStarts, Dumping, Restoring, Voted, Thawed, HandingOver, Releasing],
        &[User(DeleteDeployment)],
        &[Gone],
    ),
    (
        &[Preflight, Dumping, Restoring, Voted, Thawed, HandingOver, Releasing],
        &[User(ScaleDown)],
        &[Gone],
    ),
    // After the commit it finishes first; one that has vanished is finished by its sides.
    (&[Thawed, HandingOver, Releasing], &[User(DeleteMigration), User(StripFinalizer)], &[Moved]),
    (&[HandingOver], &[User(DeleteSource), User(Drain(Source))], &[Moved]),
    (&[HandingOver], &[User(DeleteTarget)], &[Replaced]),
    (&[Thawed, HandingOver, Releasing], &[User(Roll)], &[Replaced]),
];
