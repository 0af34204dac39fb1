//! Faults on the two ways back: after an Abort, and after a Commit whose target was lost.

use transship_api::Role::{Source, Target};
use transship_tests::{
    faults::{
        fault::{
            Fault::{Cut, Kill, KillLeader, KillOperators, PauseApi, PowerOff, Slow, User},
            Length::{Briefly, Long},
        },
        link::Link::{Api, Operators},
        moment::Moment::{Aborting, SourceResuming},
        outcome::Outcome::{Gone, Replaced, Restarted, Stayed, TargetLost},
        user::Act::{
            DeleteMigration, DeleteSource, DeleteTarget, Drain, Roll, ScaleDown, StripFinalizer,
        },
    },
    node::process::Victim::{Agent, Containerd, Holder, Kubelet, Shim},
};

use super::Group;

/// All of them.
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
            Kill(Target, Kubelet),
            KillLeader,
            KillOperators,
            Cut(Api(Target), Long),
            Cut(Operators, Long),
            Slow(Api(Target)),
            PauseApi(Long),
            PowerOff(Target, Briefly),
            User(DeleteMigration),
            User(StripFinalizer),
        ],
        &[Stayed],
    ),
    (&[Aborting], &[Kill(Source, Shim), PowerOff(Source, Briefly)], &[Restarted]),
    (&[Aborting], &[User(DeleteSource), User(Roll), User(Drain)], &[Replaced]),
    (&[Aborting], &[User(ScaleDown)], &[Gone]),
    // The target could not be confirmed and has frozen itself: the source goes on, and the target never does,
    // whatever becomes of it.
    (
        &[SourceResuming],
        &[
            Kill(Source, Holder),
            Kill(Source, Agent),
            Kill(Target, Holder),
            Kill(Target, Shim),
            KillOperators,
            PauseApi(Briefly),
            PowerOff(Source, Briefly),
            PowerOff(Target, Briefly),
            User(DeleteMigration),
            User(DeleteTarget),
            User(StripFinalizer),
        ],
        &[TargetLost],
    ),
    // It is an ordinary pod again.
    (&[SourceResuming], &[User(DeleteSource), User(Roll)], &[Replaced]),
    (&[SourceResuming], &[User(ScaleDown)], &[Gone]),
];
