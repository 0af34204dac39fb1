//! Faults on the two ways back: after an Abort, and after a Commit whose target was lost.

use transship_api::Role::{Source, Target};
use transship_tests::{
    faults::{
        fault::{
            Fault::{Kill, KillOperators, PowerOff, User},
            Length::Briefly,
        },
        moment::Moment::{Aborting, SourceResuming},
        outcome::Outcome::{Replaced, Restarted, Stayed, TargetLost},
        user::Act::{DeleteMigration, DeleteSource},
    },
    node::process::Victim::{Agent, Containerd, Holder, Kubelet, Shim},
};

use super::Group;

/// The groups.
pub const GROUPS: &[Group] = &[
    // The Abort is recorded, since somebody has deleted the target: the source is thawed and the target ends.
    (
        &[Aborting],
        &[
            Kill(Source, Holder),
            Kill(Target, Holder),
            Kill(Source, Agent),
            Kill(Target, Agent),
            Kill(Source, Kubelet),
            Kill(Source, Containerd),
            Kill(Target, Containerd),
            KillOperators,
            PowerOff(Target, Briefly),
            User(DeleteMigration),
        ],
        &[Stayed],
    ),
    (&[Aborting], &[Kill(Source, Shim), PowerOff(Source, Briefly)], &[Restarted]),
    (&[Aborting], &[User(DeleteSource)], &[Replaced]),
    // The target could not be confirmed and has frozen itself: the source goes on.
    (
        &[SourceResuming],
        &[Kill(Source, Holder), Kill(Source, Agent), PowerOff(Source, Briefly)],
        &[TargetLost],
    ),
];
