//! The orders of the commit protocol, spelled out; and that an order cut off anywhere is finished
//! by `recover`. (That the orders are the right ones is the model checker's business.)

use std::fmt::Debug;

use crate::*;

type SourceOrder = (&'static str, fn() -> Driver<SourceMachine>, &'static str);
type TargetOrder = (&'static str, fn() -> Driver<TargetMachine>, &'static str);

const COMMIT: Recorded =
    Recorded { decision: Some(Decision::Commit), resumed_at: false, resolution: None };
const ABORT: Recorded =
    Recorded { decision: Some(Decision::Abort), resumed_at: false, resolution: None };
const RESUMED: Recorded =
    Recorded { decision: Some(Decision::Commit), resumed_at: true, resolution: None };
const RESOLVED: Recorded = Recorded {
    decision: Some(Decision::Commit),
    resumed_at: false,
    resolution: Some(Resolution::SourceResumes),
};

/// The target's node tells nothing of it.
const FORGOTTEN: SourceEvent = SourceEvent::PeerRead(TargetWord {
    begun: false,
    voted: false,
    thawed: false,
    lost: false,
    outcome: None,
    closed: false,
});

fn names<M>(driver: &Driver<M>) -> String
where
    M: Machine<Entry: Debug, Word: Debug> + Clone,
{
    let mut driver = driver.clone();
    let mut names = Vec::new();
    while let Some(effect) = driver.next_effect() {
        names.push(match effect {
            Effect::Journal(entry) => {
                format!("{entry:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
            }
            Effect::WriteRecord(state) => format!("record:{state:?}"),
            Effect::Publish(_) => "publish".into(),
            other => format!("+{other:?}"),
        });
        driver.done();
    }
    names.join(" ")
}

fn drain<M: Machine>(driver: &mut Driver<M>) {
    while driver.next_effect().is_some() {
        driver.done();
    }
}

fn source(events: &[SourceEvent]) -> Driver<SourceMachine> {
    let mut driver = Driver::new(SourceMachine::new(), vec![]);
    for event in events {
        drain(&mut driver);
        driver.feed(*event);
    }
    driver
}

fn target(events: &[TargetEvent]) -> Driver<TargetMachine> {
    let mut driver = Driver::new(TargetMachine::new(), vec![]);
    for event in events {
        drain(&mut driver);
        driver.feed(*event);
    }
    driver
}

fn source_voted(then: &[SourceEvent]) -> Driver<SourceMachine> {
    let voted = [SourceEvent::Begin, SourceEvent::FreezeNow, SourceEvent::AllFrozenAndSent];
    source(&[&voted, then].concat())
}

fn target_voted(then: &[TargetEvent]) -> Driver<TargetMachine> {
    let voted = [TargetEvent::Begin, TargetEvent::AllRestoredAndFrozen];
    target(&[&voted, then].concat())
}

fn word(outcome: Option<TargetOutcome>) -> SourceEvent {
    SourceEvent::PeerRead(TargetWord { begun: true, voted: true, outcome, ..Default::default() })
}

const SOURCE: &[SourceOrder] = &[
    (
        "freeze",
        || source(&[SourceEvent::Begin, SourceEvent::FreezeNow]),
        "Freezing record:Frozen +QuiesceWrapper +CloseNetwork +FreezeTasks",
    ),
    ("vote", || source_voted(&[]), "+VerifyTasks Voted publish"),
    (
        "give up",
        || source(&[SourceEvent::Begin, SourceEvent::FreezeNow, SourceEvent::DeadlinePassed]),
        "AbortedBeforeVote record:Open +OpenNetwork(None) +Announce +ThawTasks(None) Opened publish",
    ),
    (
        "abort",
        || source_voted(&[SourceEvent::DecisionRead(ABORT)]),
        "Decided record:Open +OpenNetwork(None) +Announce +ThawTasks(None) Opened publish",
    ),
    (
        "over and forgotten",
        || source_voted(&[SourceEvent::DecisionRead(RESUMED), FORGOTTEN]),
        "+ReadPod",
    ),
    (
        "over and forgotten, and the pod is gone",
        || source_voted(&[SourceEvent::DecisionRead(RESUMED), FORGOTTEN, SourceEvent::PodGone]),
        "Yielded record:Moved publish +KillTasksFrozen Released publish",
    ),
    ("undecided, and the pod is gone", || source_voted(&[SourceEvent::PodGone]), ""),
    (
        "over and forgotten, and the pod waits for this to end",
        || source_voted(&[SourceEvent::DecisionRead(RESUMED), FORGOTTEN, SourceEvent::PodGoes]),
        "Yielded record:Moved publish +KillTasksFrozen Released publish",
    ),
    (
        "moved, and the pod is gone",
        || {
            let resumed = word(Some(TargetOutcome::Resumed));
            source_voted(&[SourceEvent::DecisionRead(RESUMED), resumed, SourceEvent::PodGone])
        },
        "+KillTasksFrozen Released publish",
    ),
    ("commit", || source_voted(&[SourceEvent::DecisionRead(COMMIT)]), "Decided"),
    (
        "resumed",
        || source_voted(&[SourceEvent::DecisionRead(COMMIT), SourceEvent::DecisionRead(RESUMED)]),
        "+ReadPeer",
    ),
    (
        "resumed and said so",
        || source_voted(&[SourceEvent::DecisionRead(RESUMED), word(Some(TargetOutcome::Resumed))]),
        "PeerResumed record:Moved publish",
    ),
    (
        "released early",
        || {
            source_voted(&[
                SourceEvent::ReleaseRequested,
                SourceEvent::DecisionRead(RESUMED),
                word(Some(TargetOutcome::Resumed)),
            ])
        },
        "PeerResumed record:Moved publish +KillTasksFrozen Released publish",
    ),
    (
        "resolved, never ran",
        || {
            source_voted(&[
                SourceEvent::DecisionRead(RESOLVED),
                word(Some(TargetOutcome::NeverThawed)),
            ])
        },
        "Resolved record:Open +OpenNetwork(None) +Announce +ThawTasks(None) Opened publish",
    ),
    (
        "resolved, unknown",
        || source_voted(&[SourceEvent::DecisionRead(RESOLVED), word(None)]),
        "Resolved +DestroySockets record:Open +OpenNetwork(None) +Announce +ThawTasks(None) Opened publish",
    ),
    ("vanished", || source_voted(&[SourceEvent::ObjectGone, word(None)]), ""),
];

const TARGET: &[TargetOrder] = &[
    (
        "vote",
        || target_voted(&[]),
        "record:Held +QuiesceWrapper +VerifyTasks +ArmDeadman Voted publish",
    ),
    (
        "abort",
        || target_voted(&[TargetEvent::DecisionRead(ABORT)]),
        "Decided publish record:Aborted +QuiesceWrapper +KillTasksFrozen +DisarmDeadman Closed publish",
    ),
    (
        "commit",
        || target_voted(&[TargetEvent::DecisionRead(COMMIT)]),
        "Decided +VerifyTasks Thawing +ThawTasks(Deadman) +OpenNetwork(Deadman) +Announce Thawed publish",
    ),
    (
        "confirmed",
        || target_voted(&[TargetEvent::DecisionRead(COMMIT), TargetEvent::DecisionRead(RESUMED)]),
        "Confirmed +DisarmDeadman +ThawTasks(None) +OpenNetwork(None) +Announce record:Open Closed publish",
    ),
    (
        "too late",
        || target_voted(&[TargetEvent::Lapsed, TargetEvent::DecisionRead(COMMIT)]),
        "NeverThawed publish record:Aborted +QuiesceWrapper +KillTasksFrozen +DisarmDeadman Closed publish",
    ),
    (
        "stopped",
        || target_voted(&[TargetEvent::DecisionRead(COMMIT), TargetEvent::DecisionRead(RESOLVED)]),
        "Stopping +FreezeTasks +CloseNetwork record:Aborted +QuiesceWrapper +KillTasksFrozen +DisarmDeadman Closed publish",
    ),
    (
        "vanished while it runs",
        || target_voted(&[TargetEvent::DecisionRead(COMMIT), TargetEvent::ObjectGone]),
        "+CheckDeadman Confirmed +DisarmDeadman +ThawTasks(None) +OpenNetwork(None) +Announce record:Open Closed publish",
    ),
];

#[test]
fn the_source_keeps_the_orders() {
    for (name, driver, order) in SOURCE {
        assert_eq!(names(&driver()), *order, "{name}");
    }
}

#[test]
fn a_source_of_the_sequential_order_asks_for_its_pod_after_the_commit_and_ends_with_it() {
    use SourceEvent::{AllFrozenAndSent, Begin, DecisionRead, FreezeNow, PodGoes, PodGone};
    let mut driver = Driver::new(SourceMachine::of(Part::Trial), vec![]);
    for (event, order) in [
        (Begin, "Begun publish"),
        (FreezeNow, "Freezing record:Frozen +QuiesceWrapper +CloseNetwork +FreezeTasks"),
        (AllFrozenAndSent, "+VerifyTasks +SyncState Voted publish"),
        (PodGone, ""),
        (DecisionRead(COMMIT), "Decided +ReadPod"),
        // Its address is to be lent first.
        (PodGoes, ""),
        (PodGone, "Yielded record:Moved publish +KillTasksFrozen Released publish"),
    ] {
        driver.feed(event);
        assert_eq!(names(&driver), order, "{event:?}");
        drain(&mut driver);
    }
}

#[test]
fn the_target_keeps_the_orders() {
    for (name, driver, order) in TARGET {
        assert_eq!(names(&driver()), *order, "{name}");
    }
}

#[test]
fn a_target_signs_off_unless_a_commit_may_stand_open_to_which_it_has_denied_itself() {
    use TargetEvent::{AllRestoredAndFrozen, Begin, DecisionRead, Lapsed, LocalFailure, TasksLost};
    let early = target(&[Begin, LocalFailure]);
    let confirmed = target_voted(&[DecisionRead(COMMIT), DecisionRead(RESUMED)]);
    let mut trial = Driver::new(TargetMachine::of(Part::Trial), vec![]);
    for event in [Begin, AllRestoredAndFrozen, TargetEvent::ObjectGone] {
        drain(&mut trial);
        trial.feed(event);
    }
    for (name, mut driver, signs_off) in [
        ("gave up before its vote", early, true),
        ("aborted", target_voted(&[DecisionRead(ABORT)]), true),
        ("confirmed", confirmed, true),
        ("on trial, where silence is no proof", trial, true),
        ("lost before it knew", target_voted(&[TasksLost]), false),
        ("too late for its Commit", target_voted(&[Lapsed, DecisionRead(COMMIT)]), false),
    ] {
        drain(&mut driver);
        assert!(driver.machine().is_closed(), "{name}");
        assert_eq!(driver.machine().signs_off(), signs_off, "{name}");
    }
    let never = TargetOutcome::NeverThawed;
    let journal = [
        TargetEntry::Begun,
        TargetEntry::Voted,
        TargetEntry::NeverThawed,
        TargetEntry::Closed { outcome: never },
    ];
    let facts = Facts { same_boot: false, tasks: false, lapsed: false };
    assert!(!TargetMachine::recover(&journal, facts).0.signs_off(), "nor after a restart");
}

/// A cold source with these entries in its journal, restarted.
fn cold(journal: &[SourceEntry]) -> Driver<SourceMachine> {
    let facts = Facts { same_boot: true, tasks: true, lapsed: false };
    let (machine, effects) = SourceMachine::recover_as(Part::Cold, journal, facts);
    Driver::new(machine, effects)
}

#[test]
fn a_cold_source_is_ended_only_by_what_comes_after_it_was_found() {
    use SourceEntry::{Begun, Ending, Freezing};
    let mut driver = Driver::new(SourceMachine::of(Part::Cold), vec![]);
    for event in [SourceEvent::Begin, SourceEvent::FreezeNow] {
        drain(&mut driver);
        driver.feed(event);
    }
    assert_eq!(
        names(&driver),
        "Freezing record:Frozen +QuiesceWrapper +FindTasks Ending +EndTasks"
    );
    let untouched = "AbortedBeforeVote record:Open +OpenNetwork(None) +Announce +ThawTasks(None) Opened publish";
    let ended = "AbortedBeforeVote +EndTasks +KeepFiles Starting record:Starting +OpenNetwork(None) +Announce";
    let until = |effect: SourceEffect| {
        let mut driver = driver.clone();
        while driver.next_effect() != Some(effect) {
            driver.done();
        }
        driver
    };
    for (effect, way_back) in [
        (Effect::WriteRecord(RecordState::Frozen), untouched),
        (Effect::QuiesceWrapper, untouched),
        (Effect::FindTasks, untouched),
        (Effect::EndTasks, ended),
    ] {
        let mut failing = until(effect);
        assert!(failing.failed(Failure::Other), "{effect:?}");
        assert_eq!(names(&failing), way_back, "{effect:?}");
    }
    assert_eq!(names(&cold(&[Begun, Freezing])), untouched);
    assert_eq!(names(&cold(&[Begun, Freezing, Ending])), ended);
    let again = cold(&[Begun, Freezing, Ending, SourceEntry::AbortedBeforeVote]);
    assert!(names(&again).starts_with("+EndTasks +KeepFiles Starting"), "{}", names(&again));
    let plain = cold(&[Begun, Freezing, SourceEntry::AbortedBeforeVote]);
    assert!(names(&plain).starts_with("record:Open"), "{}", names(&plain));
    // Journals of older versions.
    let abort = SourceEntry::Decided { decision: Decision::Abort };
    let older = cold(&[Begun, Freezing, SourceEntry::Voted, abort]);
    assert!(names(&older).starts_with("+EndTasks +KeepFiles Starting"), "{}", names(&older));
}

#[test]
fn a_pod_made_again_that_may_have_run_does_not_say_that_it_never_did() {
    let begun = TargetMachine::recover_as(
        Part::Again,
        &[TargetEntry::Begun],
        Facts { same_boot: true, tasks: true, lapsed: false },
    );
    let mut driver = Driver::new(begun.0, begun.1);
    assert_eq!(
        names(&driver),
        "AbortedBeforeVote record:Aborted +QuiesceWrapper +KillTasksFrozen +VerifyNeverRan +DisarmDeadman Closed publish"
    );
    let mut never = driver.clone();
    drain(&mut never);
    assert_eq!(never.machine().phase(), TargetPhase::Closed(TargetOutcome::NeverThawed));
    while driver.next_effect() != Some(Effect::VerifyNeverRan) {
        driver.done();
        assert!(!driver.machine().says_never_thawed(), "it is not known yet");
    }
    // What cannot be looked at is looked at again.
    assert!(!driver.failed(Failure::Other));
    assert!(driver.failed(Failure::MayHaveRun));
    assert!(names(&driver).starts_with("Stopping"), "{}", names(&driver));
    drain(&mut driver);
    assert_eq!(driver.machine().phase(), TargetPhase::Closed(TargetOutcome::Stopped));
}

#[test]
fn older_memory_meets_newer_volumes_only_when_somebody_wants_it() {
    let word = |outcome, closed| TargetWord { outcome, closed, ..TargetWord::default() };
    let stopped = word(Some(TargetOutcome::Stopped), true);
    let never = word(Some(TargetOutcome::NeverThawed), true);
    for left in [false, true] {
        assert!(must_be_asked_for(stopped, left, false, true));
        assert!(!must_be_asked_for(stopped, left, false, false), "nothing of it is left");
        assert!(!must_be_asked_for(stopped, left, true, true), "it starts afresh");
        assert!(!must_be_asked_for(never, left, false, true));
        assert_eq!(must_be_asked_for(word(None, false), left, false, true), left);
    }
    let not_closed = word(Some(TargetOutcome::NeverThawed), false);
    assert!(must_be_asked_for(not_closed, true, false, true), "it may still find that it ran");
    assert!(!must_be_asked_for(word(None, false), true, true, true));
    assert!(!must_be_asked_for(word(None, false), true, false, false));
}

#[test]
fn who_deletes_a_migration_gives_memory_up_only_if_somebody_was_asked_first() {
    assert!(gives_up_memory(true, false));
    assert!(!gives_up_memory(true, true));
    assert!(!gives_up_memory(false, false) && !gives_up_memory(false, true));
}

#[test]
fn a_decision_before_the_own_vote_does_not_count() {
    for recorded in [COMMIT, RESUMED, ABORT] {
        let driver = source(&[
            SourceEvent::Begin,
            SourceEvent::FreezeNow,
            SourceEvent::DecisionRead(recorded),
        ]);
        assert!(names(&driver).starts_with("AbortedBeforeVote record:Open"), "{recorded:?}");
        let driver = target(&[TargetEvent::Begin, TargetEvent::DecisionRead(recorded)]);
        assert!(names(&driver).starts_with("AbortedBeforeVote publish"), "{recorded:?}");
    }
}

#[test]
fn tasks_whose_shim_has_died_are_not_thawed_but_ended() {
    let found_at_the_thaw = |mut driver: Driver<TargetMachine>| {
        while !matches!(driver.next_effect(), None | Some(Effect::ThawTasks(_))) {
            driver.done();
        }
        assert!(driver.failed(Failure::TasksLost));
        names(&driver)
    };
    let committed = [TargetEvent::DecisionRead(COMMIT)];
    assert_eq!(
        found_at_the_thaw(target_voted(&committed)),
        "Lost +CloseNetwork +KillTasksFrozen publish"
    );
    let confirmed = [TargetEvent::DecisionRead(COMMIT), TargetEvent::DecisionRead(RESUMED)];
    assert_eq!(
        found_at_the_thaw(target_voted(&confirmed)),
        "+KillTasksFrozen +DisarmDeadman +ThawTasks(None) +OpenNetwork(None) +Announce record:Open \
         Closed publish"
    );
    let mut again = Driver::new(TargetMachine::of(Part::Again), vec![]);
    for event in [TargetEvent::Begin, TargetEvent::AllRestoredAndFrozen, committed[0]] {
        drain(&mut again);
        again.feed(event);
    }
    assert!(found_at_the_thaw(again).starts_with("Stopping "), "the images are still there");
}

#[test]
fn a_source_whose_tasks_are_lost_on_its_way_back_goes_it_all_the_same_and_says_so() {
    let back = "record:Open +OpenNetwork(None) +Announce +ThawTasks(None) Opened publish";
    let gives_up = [SourceEvent::Begin, SourceEvent::FreezeNow, SourceEvent::DeadlinePassed];
    let resolved = [SourceEvent::DecisionRead(RESOLVED), word(None)];
    let found_at: [SourceEffect; 2] =
        [Effect::WriteRecord(RecordState::Open), Effect::ThawTasks(Guard::None)];
    for (driver, expected) in [
        (source(&gives_up), back.to_owned()),
        (source_voted(&[SourceEvent::DecisionRead(ABORT)]), back.to_owned()),
        (source_voted(&resolved), format!("+DestroySockets {back}")),
    ] {
        for effect in found_at {
            let mut driver = driver.clone();
            while driver.next_effect() != Some(effect) {
                driver.done();
            }
            assert!(driver.failed(Failure::TasksLost), "{effect:?}");
            assert_eq!(names(&driver), expected, "{effect:?}");
            assert_eq!(opened(&mut driver), Some(true), "{effect:?}");
        }
        assert_eq!(opened(&mut driver.clone()), Some(false));
    }
}

#[test]
fn a_reboot_takes_the_memory_also_of_a_source_that_was_not_touched_yet() {
    for (same_boot, memory_lost) in [(true, false), (false, true)] {
        // Its containers may have ended by themselves.
        let facts = Facts { same_boot, tasks: false, lapsed: false };
        let (machine, effects) = SourceMachine::recover(&[SourceEntry::Begun], facts);
        assert_eq!(opened(&mut Driver::new(machine, effects)), Some(memory_lost));
    }
}

#[test]
fn what_befalls_a_pod_that_has_gone_on_is_no_loss_of_its_migration() {
    let facts = Facts { same_boot: false, tasks: false, lapsed: false };
    for memory_lost in [false, true] {
        let journal = [
            SourceEntry::Begun,
            SourceEntry::Freezing,
            SourceEntry::AbortedBeforeVote,
            SourceEntry::Opened { memory_lost },
        ];
        let (machine, _) = SourceMachine::recover(&journal, facts);
        assert_eq!(machine.has_lost_memory(), memory_lost);
        let (before, _) = SourceMachine::recover(&journal[..3], facts);
        assert!(before.has_lost_memory(), "it had not gone on yet");
    }
}

/// Does all that is left, and gives what the last entry says of the memory.
fn opened(driver: &mut Driver<SourceMachine>) -> Option<bool> {
    let mut told = None;
    while let Some(effect) = driver.next_effect() {
        if let Effect::Journal(SourceEntry::Opened { memory_lost }) = effect {
            told = Some(memory_lost);
        }
        driver.done();
    }
    assert_eq!(told, driver.machine().is_closed().then(|| driver.machine().has_lost_memory()));
    told
}

#[test]
fn a_source_whose_pod_had_gone_before_it_looked_says_that_its_memory_is_lost() {
    for (event, lost) in [(SourceEvent::TasksLost, true), (SourceEvent::LocalFailure, false)] {
        let mut driver = source(&[SourceEvent::Begin]);
        drain(&mut driver);
        driver.feed(event);
        assert_eq!(opened(&mut driver), Some(lost), "{event:?}");
    }
}

#[test]
fn an_unlawful_reading_moves_nobody() {
    let both = Recorded { resumed_at: true, ..RESOLVED };
    let lone = Recorded { decision: None, ..RESUMED };
    for recorded in [both, lone] {
        assert_eq!(names(&source_voted(&[SourceEvent::DecisionRead(recorded)])), "");
        assert_eq!(names(&target_voted(&[TargetEvent::DecisionRead(recorded)])), "");
    }
}

#[test]
fn after_the_vote_failures_are_tried_again_and_before_it_they_give_up() {
    let mut driver = source(&[SourceEvent::Begin, SourceEvent::FreezeNow]);
    driver.done();
    assert!(driver.failed(Failure::Other));
    assert!(names(&driver).starts_with("AbortedBeforeVote"));
    let mut driver = source_voted(&[SourceEvent::DecisionRead(ABORT)]);
    driver.done();
    let before = driver.clone();
    assert!(!driver.failed(Failure::Other));
    assert_eq!(driver, before);
}

#[test]
fn an_order_cut_off_anywhere_is_finished_after_a_restart() {
    let facts = Facts { same_boot: true, tasks: true, lapsed: false };
    for (name, driver, _) in SOURCE {
        let mut driver = driver();
        let mut cut = driver.clone();
        drain(&mut driver);
        if !driver.machine().is_closed() {
            continue;
        }
        // The entries so far: every prefix of this order behind those of the vote.
        let mut journal = vec![SourceEntry::Begun, SourceEntry::Freezing];
        if *name != "give up" {
            journal.push(SourceEntry::Voted);
        }
        while let Some(effect) = cut.next_effect() {
            cut.done();
            let Effect::Journal(entry) = effect else { continue };
            journal.push(entry);
            let (machine, effects) = SourceMachine::recover(&journal, facts);
            let mut again = Driver::new(machine, effects);
            drain(&mut again);
            let waits = again.machine().phase() == SourcePhase::Moved;
            assert!(waits || again.machine().phase() == driver.machine().phase(), "{name}");
        }
    }
}

#[test]
fn journal_entries_are_stable_json() {
    let source = [
        (SourceEntry::Begun, r#"{"kind":"begun"}"#),
        (SourceEntry::Ending, r#"{"kind":"ending"}"#),
        (
            SourceEntry::Decided { decision: Decision::Commit },
            r#"{"kind":"decided","decision":"Commit"}"#,
        ),
        (
            SourceEntry::Resolved { sockets: Sockets::Destroy },
            r#"{"kind":"resolved","sockets":"destroy"}"#,
        ),
        (SourceEntry::Opened { memory_lost: true }, r#"{"kind":"opened","memory_lost":true}"#),
    ];
    for (entry, json) in source {
        assert_eq!(serde_json::to_string(&entry).unwrap(), json);
        assert_eq!(serde_json::from_str::<SourceEntry>(json).unwrap(), entry);
    }
    let target = [
        (TargetEntry::AbortedBeforeVote, r#"{"kind":"aborted_before_vote"}"#),
        (
            TargetEntry::Closed { outcome: TargetOutcome::NeverThawed },
            r#"{"kind":"closed","outcome":"never_thawed"}"#,
        ),
    ];
    for (entry, json) in target {
        assert_eq!(serde_json::to_string(&entry).unwrap(), json);
        assert_eq!(serde_json::from_str::<TargetEntry>(json).unwrap(), entry);
    }
}

#[test]
fn a_stranger_of_the_same_name_reads_as_gone() {
    assert_eq!(judge_read("a", Some(("a", COMMIT))), Read::Recorded(COMMIT));
    assert_eq!(judge_read("a", Some(("b", COMMIT))), Read::Gone);
    assert_eq!(judge_read("a", None), Read::Gone);
}
