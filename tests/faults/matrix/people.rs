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
    (&[Preflight, Prepared, TargetStarts, Dumping], &[User(DeleteMigration)], &[Stayed, Moved]),
    // Its moment lasts until it has vanished; but for one, at which it takes its course meanwhile.
    (&[Preflight, Prepared, Dumping], &[User(StripFinalizer)], &[Stayed]),
    (&[TargetStarts, Freezing], &[User(StripFinalizer)], &[Stayed, Moved]),
    (&[Restoring], &[User(DeleteMigration), User(StripFinalizer)], &[Stayed]),
    (&[Voted], &[User(DeleteMigration), User(DeleteTarget), User(StripFinalizer)], &[Stayed]),
    (&[TargetStarts, Dumping], &[User(DeleteTarget)], &[Stayed, Replaced]),
    (&[TargetStarts, Dumping, Voted], &[User(DeleteSource)], &[Replaced, Moved]),
    (&[Prepared, Dumping, Restoring, Voted], &[User(Roll)], &[Replaced, Moved]),
    (
        &[Preflight, TargetIsMade, Prepared, Freezing, Reading, Restoring],
        &[User(DeleteSource)],
        &[Replaced, Moved],
    ),
    (
        &[TargetIsMade, Prepared, Freezing, Reading, Restoring],
        &[User(DeleteTarget)],
        &[Stayed, Replaced],
    ),
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
