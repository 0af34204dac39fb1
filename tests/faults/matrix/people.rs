//! What people do on the way to the end.

use transship_tests::faults::{
    fault::Fault::User,
    moment::Moment::{
        Dumping, Freezing, HandingOver, Preflight, Prepared, Releasing, Restoring, TargetIsMade,
        TargetStarts, Thawed, Thawing, Voted,
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
    (&[TargetStarts], &[User(StripFinalizer)], &[Stayed, Moved]),
    (&[Restoring], &[User(DeleteMigration), User(StripFinalizer)], &[Stayed]),
    (&[Voted], &[User(DeleteMigration), User(DeleteTarget), User(StripFinalizer)], &[Stayed]),
    (&[TargetStarts, Dumping], &[User(DeleteTarget)], &[Stayed, Replaced]),
    (&[TargetStarts, Dumping, Voted], &[User(DeleteSource)], &[Replaced, Moved]),
    (&[Dumping, Voted], &[User(Roll)], &[Replaced, Moved]),
    (
        &[Preflight, TargetIsMade, Prepared, Freezing, Restoring],
        &[User(DeleteSource)],
        &[Replaced, Moved],
    ),
    (&[TargetIsMade, Prepared, Freezing, Restoring], &[User(DeleteTarget)], &[Stayed, Replaced]),
    // The owner makes a fresh pod for the source that goes, and has one too many when it gets the target.
    (&[Thawing, Thawed], &[User(DeleteSource)], &[Moved, Replaced]),
    (&[Thawing, Thawed], &[User(DeleteTarget)], &[Replaced, TargetLost]),
    (&[Releasing], &[User(DeleteSource)], &[Moved]),
    (&[Releasing], &[User(DeleteTarget)], &[Replaced]),
    (&[TargetStarts, Dumping, Voted, Thawed], &[User(Drain)], &[Moved, Replaced]),
    (&[TargetStarts, Dumping, Voted, Thawed, HandingOver], &[User(MigrateAgain)], &[Moved]),
    (
        &[TargetStarts, Dumping, Voted, Thawed, HandingOver, Releasing],
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
    (&[HandingOver], &[User(DeleteSource), User(Drain)], &[Moved]),
    (&[HandingOver], &[User(DeleteTarget)], &[Replaced]),
    (&[Thawed, HandingOver, Releasing], &[User(Roll)], &[Replaced]),
];
