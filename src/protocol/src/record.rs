//! The host record of a pod, as the OCI wrapper sees it, and what the wrapper does with each of
//! runc's verbs. Pure tables; finding the record and calling runc are the wrapper's work.
//!
//! The wrapper judges and then acts, so a verb let through under an older record may still be at
//! work when a newer one is written: see [`crate::Effect::QuiesceWrapper`].

use serde::{Deserialize, Serialize};

use crate::rules::{Rule, holds};

/// State of the record `/var/lib/transship/pods/<uid>`. Target: `restore → held → open`, or
/// `aborted`. Source: `frozen → moved | open`.
/// Cold: target `prepared → starting → open`, or `aborted`; source `frozen → moved | starting → open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    /// Target: containers are created by restoring them, once each.
    Restore,
    /// Target: all restored and frozen, it voted or is about to; also while it has been thawed
    /// but has not yet read `resumedAt`. Nobody has a container deleted that lives, but containerd when it has
    /// lost it: the shim died, or could not be reached. It will be made anew, so what is left of it ends.
    Held,
    /// Target: it lost. Nothing may be created any more.
    Aborted,
    /// Source: frozen, or about to be; undecided.
    Frozen,
    /// Source: the pod runs elsewhere. Nothing may be created any more.
    Moved,
    /// Either side: an ordinary pod (again).
    Open,
    /// Target, cold: the sandbox and the init containers come up; the containers wait to be created.
    Prepared,
    /// Either side, cold: an ordinary pod, but that each container gets its files when it is created, as
    /// often as that takes until it has been started with them.
    Starting,
}

/// What containerd's shim asked of runc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `create`, `run`, `restore`: brings a container to life.
    Create,
    /// `start`.
    Start,
    /// `kill`.
    Kill,
    /// `delete`.
    Delete,
    /// `resume`.
    Resume,
    /// Anything that neither starts, ends nor thaws a container (`state`, `events`, `ps`, …).
    Other,
}

/// What the wrapper does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Hand over to runc unchanged.
    Pass,
    /// Consume the container's ticket (fsynced rename), then `runc restore` into a frozen cgroup.
    Restore,
    /// Wait until the record is `starting` (exit 1 where it comes to another end), put the container's files
    /// into its root, then hand over to runc.
    Fill,
    /// Exit 0 without calling runc: the container is restored and held already.
    SkipStart,
    /// Exit 1; kubelet tries again.
    Refuse,
    /// SIGKILL every task while frozen, then thaw, then hand over to runc. Never lets an
    /// instruction run.
    KillFrozen,
}

/// What the wrapper does with `verb` on an application container of the pod.
/// `ticket_present`: the container's ticket for being restored, or started with its files, has not been
/// consumed.
pub fn wrapper_verdict(record: Option<RecordState>, verb: Verb, ticket_present: bool) -> Verdict {
    use RecordState::{Aborted, Frozen, Held, Moved, Open, Prepared, Restore, Starting};
    let Some(record) = record else { return Verdict::Pass };
    if verb == Verb::Other {
        return Verdict::Pass;
    }
    let broken = |rule: Rule| !holds(rule);
    match (record, verb) {
        (Prepared | Starting, Verb::Create) if ticket_present => Verdict::Fill,
        (Open | Starting, _) => Verdict::Pass,
        (Restore, Verb::Create) if ticket_present => Verdict::Restore,
        (Restore, Verb::Start) => Verdict::SkipStart,
        (Restore | Prepared, Verb::Kill | Verb::Delete) | (Held, Verb::Delete) => {
            Verdict::KillFrozen
        }
        (Frozen, Verb::Create) if broken(Rule::FrozenRefusesCreate) => Verdict::Pass,
        (Frozen, Verb::Kill) if broken(Rule::FrozenRefusesKill) => Verdict::Pass,
        (Frozen, Verb::Delete) if broken(Rule::FrozenRefusesDelete) => Verdict::Pass,
        (Held, Verb::Create) if broken(Rule::HeldRefusesCreate) => Verdict::Pass,
        (Held, Verb::Kill) if broken(Rule::HeldRefusesKill) => Verdict::KillFrozen,
        (Moved, Verb::Create) if broken(Rule::MovedRefusesCreate) => Verdict::Pass,
        (Aborted, Verb::Create) if broken(Rule::AbortedRefusesCreate) => Verdict::Pass,
        (Moved, Verb::Kill) if broken(Rule::LoserIsKilledFrozen) => Verdict::Pass,
        (Held, Verb::Start) => Verdict::SkipStart,
        (Moved | Aborted, Verb::Kill | Verb::Delete) => Verdict::KillFrozen,
        (Restore | Held | Aborted | Frozen | Moved | Prepared, _) => Verdict::Refuse,
    }
}

/// What the wrapper does with `verb` on the pod's sandbox container. A sandbox runs nothing of the
/// application and is never restored, so it may come up under `restore` (its network comes up
/// closed); everything else follows the containers, since a sandbox that ends takes the network,
/// IPC and perhaps the PID namespace of the held tasks with it.
pub fn sandbox_verdict(record: Option<RecordState>, verb: Verb) -> Verdict {
    match (record, verb) {
        (Some(RecordState::Restore | RecordState::Prepared), Verb::Create | Verb::Start) => {
            Verdict::Pass
        }
        // The containers were killed through verdicts of their own before kubelet ends the
        // sandbox; in the states of a loser nothing else is left in it.
        (
            Some(
                RecordState::Restore
                | RecordState::Prepared
                | RecordState::Moved
                | RecordState::Aborted,
            ),
            Verb::Kill | Verb::Delete,
        ) => Verdict::KillFrozen,
        (Some(RecordState::Held), Verb::Start) => Verdict::Refuse,
        _ => wrapper_verdict(record, verb, false),
    }
}

/// Whether the wrapper, before it hands a passed `verb` over to runc, kills while they are frozen the tasks of an
/// earlier container of the same name, or of all where it is a new sandbox. containerd does not end every container
/// whose shim has died, and a pod that a migration has let go on must not run twice.
pub fn ends_leftovers(record: RecordState, verb: Verb) -> bool {
    let starts_afresh = matches!(record, RecordState::Open | RecordState::Starting);
    verb == Verb::Create && starts_afresh && holds(Rule::OrphansEndFirst)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBS: [Verb; 6] =
        [Verb::Create, Verb::Start, Verb::Kill, Verb::Delete, Verb::Resume, Verb::Other];

    #[test]
    fn the_verdicts_are_those_of_the_table() {
        use Verdict::{
            Fill as F, KillFrozen as K, Pass as P, Refuse as R, Restore as T, SkipStart as S,
        };
        // create with ticket, create without, start, kill, delete, resume, other
        let table = [
            (None, [P, P, P, P, P, P, P]),
            (Some(RecordState::Open), [P, P, P, P, P, P, P]),
            (Some(RecordState::Restore), [T, R, S, K, K, R, P]),
            (Some(RecordState::Held), [R, R, S, R, K, R, P]),
            (Some(RecordState::Frozen), [R, R, R, R, R, R, P]),
            (Some(RecordState::Moved), [R, R, R, K, K, R, P]),
            (Some(RecordState::Aborted), [R, R, R, K, K, R, P]),
            (Some(RecordState::Prepared), [F, R, R, K, K, R, P]),
            (Some(RecordState::Starting), [F, P, P, P, P, P, P]),
        ];
        for (record, wanted) in table {
            let mut got = vec![wrapper_verdict(record, Verb::Create, true)];
            got.extend(VERBS.map(|verb| wrapper_verdict(record, verb, false)));
            assert_eq!(got, wanted, "{record:?}");
        }
    }

    #[test]
    fn a_sandbox_comes_up_for_a_restore_and_never_for_a_loser() {
        assert_eq!(sandbox_verdict(None, Verb::Create), Verdict::Pass);
        for state in [RecordState::Restore, RecordState::Prepared, RecordState::Starting] {
            assert_eq!(sandbox_verdict(Some(state), Verb::Create), Verdict::Pass, "{state:?}");
        }
        for state in
            [RecordState::Held, RecordState::Frozen, RecordState::Moved, RecordState::Aborted]
        {
            assert_eq!(sandbox_verdict(Some(state), Verb::Create), Verdict::Refuse, "{state:?}");
            assert_eq!(sandbox_verdict(Some(state), Verb::Start), Verdict::Refuse, "{state:?}");
        }
        for state in [RecordState::Held, RecordState::Frozen] {
            assert_eq!(sandbox_verdict(Some(state), Verb::Kill), Verdict::Refuse, "{state:?}");
        }
        let lost = sandbox_verdict(Some(RecordState::Held), Verb::Delete);
        assert_eq!(lost, Verdict::KillFrozen, "it has the shim of its containers");
    }

    #[test]
    fn what_is_left_of_an_earlier_container_ends_before_one_starts_afresh() {
        for verb in VERBS {
            for record in [RecordState::Open, RecordState::Starting] {
                assert_eq!(
                    ends_leftovers(record, verb),
                    verb == Verb::Create,
                    "{record:?} {verb:?}"
                );
            }
            for record in [RecordState::Restore, RecordState::Held, RecordState::Frozen] {
                assert!(!ends_leftovers(record, verb), "what it was has to be kept: {record:?}");
            }
        }
    }

    #[test]
    fn a_record_state_is_written_in_snake_case() {
        assert_eq!(serde_json::to_string(&RecordState::Held).unwrap(), "\"held\"");
    }
}
