//! Faults on the two ways back: after an Abort, and after a Commit whose target was lost.

use transship_api::Role::{Source, Target};
use transship_tests::{
    faults::{
        chart::Chart::{Rollback, Upgrade},
        fault::{
            Fault::{
                Chart, Cut, FillDisk, Kill, KillContainer, KillLeader, KillOperators, PauseApi,
                PowerOff, Slow, StopApi, User,
            },
            Length::{Briefly, Long},
        },
        link::Link::{Api, Operators},
        moment::Moment::{AbortUnread, Aborting, SourceResuming},
        outcome::Outcome::{Gone, Replaced, Restarted, Stayed, TargetLost},
        user::Act::{
            DeleteMigration, DeleteSource, DeleteTarget, Drain, MigrateAgain, Roll, ScaleDown,
            StripFinalizer,
        },
    },
    node::process::Victim::{Agent, Containerd, Holder, Kubelet, Shim},
};

use super::Group;

/// All of them.
pub const GROUPS: &[Group] = &[
    // The Abort is recorded, and the source, which has voted, waits until it can read it. Then it goes on, whoever
    // dies meanwhile.
    (
        &[AbortUnread],
        &[
            Cut(Api(Source), Long),
            Kill(Source, Holder),
            Kill(Source, Agent),
            Kill(Source, Kubelet),
            Kill(Source, Containerd),
            KillContainer(Source),
            FillDisk(Source),
            User(DeleteMigration),
            User(StripFinalizer),
            Chart(Upgrade),
            Chart(Rollback),
        ],
        &[Stayed],
    ),
    (&[AbortUnread], &[Kill(Source, Shim), PowerOff(Source, Briefly)], &[Restarted]),
    (&[AbortUnread], &[User(DeleteSource)], &[Replaced]),
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
            StopApi,
            PowerOff(Target, Briefly),
            FillDisk(Target),
            User(DeleteMigration),
            User(StripFinalizer),
            Chart(Upgrade),
            Chart(Rollback),
        ],
        &[Stayed],
    ),
    (&[Aborting], &[Kill(Source, Shim)], &[Restarted]),
    (&[Aborting], &[User(DeleteSource), User(Roll), User(Drain(Source))], &[Replaced]),
    (&[Aborting], &[User(ScaleDown)], &[Gone]),
    // The pod is free when the first one has given it back: then the second one moves it.
    (&[Aborting], &[User(MigrateAgain)], &[Stayed, Replaced]),
    // The target could not be confirmed and has frozen itself: the source goes on, and the target never does,
    // whatever becomes of it.
    (
        &[SourceResuming],
        &[
            Kill(Source, Holder),
            Kill(Source, Agent),
            Kill(Source, Kubelet),
            Kill(Source, Containerd),
            // Its memory goes with its tasks, which is another matter.
            Kill(Source, Shim),
            Kill(Target, Holder),
            Kill(Target, Agent),
            Kill(Target, Kubelet),
            Kill(Target, Containerd),
            Kill(Target, Shim),
            KillLeader,
            KillOperators,
            PauseApi(Long),
            StopApi,
            PowerOff(Source, Briefly),
            PowerOff(Target, Briefly),
            FillDisk(Target),
            User(DeleteMigration),
            User(DeleteTarget),
            User(StripFinalizer),
            Chart(Upgrade),
            Chart(Rollback),
        ],
        &[TargetLost],
    ),
    // It is an ordinary pod again.
    (&[SourceResuming], &[User(DeleteSource), User(Roll)], &[Replaced]),
    (&[SourceResuming], &[User(ScaleDown)], &[Gone]),
];
