//! Which events a change of status is worth: transitions only, with their numbers.

use transship_api::MigrationStatus;
use transship_api::conditions as c;

/// An event to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// A Warning, else Normal.
    pub warning: bool,
    /// The condition's reason, which is the event's.
    pub reason: String,
    /// The condition's message.
    pub message: String,
}

/// Conditions whose transitions are told, in the order in which they happen.
const TOLD: [&str; 7] =
    [c::ADMITTED, c::SCHEDULED, c::FROZEN, c::RESTORED, c::HOOKS_RUN, c::STALLED, c::SUCCEEDED];

/// What happened between two statuses.
pub fn between(before: Option<&MigrationStatus>, after: &MigrationStatus) -> Vec<Note> {
    let old = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
    TOLD.iter()
        .filter_map(|type_| {
            let new = c::find(&after.conditions, type_)?;
            let same = c::find(old, type_)
                .is_some_and(|old| old.status == new.status && old.reason == new.reason);
            let untold = new.status == "Unknown"
                || new.reason == c::reasons::NOT_REACHED
                // A refusal is told once, by Succeeded.
                || (*type_ == c::ADMITTED && new.status == "False")
                // That it goes on shows by what happens next.
                || (*type_ == c::STALLED && new.status == "False");
            (!same && !untold).then(|| Note {
                warning: *type_ == c::STALLED
                    || new.reason == c::reasons::MEMORY_LOST
                    || ([c::SUCCEEDED, c::HOOKS_RUN].contains(type_) && new.status == "False"),
                reason: new.reason.clone(),
                message: new.message.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use transship_api::conditions::{ConditionStatus, reasons, set_condition};

    use super::*;

    fn status(conditions: &[(&str, ConditionStatus, &str, &str)]) -> MigrationStatus {
        let mut status = MigrationStatus::default();
        for (type_, value, reason, message) in conditions {
            let now = Timestamp::UNIX_EPOCH;
            set_condition(&mut status.conditions, type_, *value, reason, message, None, now);
        }
        status
    }

    #[test]
    fn only_transitions_are_told_and_with_their_numbers() {
        use ConditionStatus::{False, True, Unknown};
        let before = status(&[
            (c::ADMITTED, True, reasons::CHECKS_PASSED, "all checks passed"),
            (c::RESTORED, True, reasons::CONTAINERS_HELD, "2 containers held"),
            (c::SUCCEEDED, Unknown, reasons::IN_PROGRESS, "…"),
        ]);
        let after = status(&[
            (c::ADMITTED, True, reasons::CHECKS_PASSED, "all checks passed"),
            (c::RESTORED, True, reasons::CONTAINERS_RESUMED, "froze 2 containers for 184 ms"),
            (c::SUCCEEDED, Unknown, reasons::IN_PROGRESS, "another"),
        ]);
        let notes = between(Some(&before), &after);
        assert_eq!(notes.len(), 1);
        assert_eq!(notes[0].message, "froze 2 containers for 184 ms");
        assert!(!notes[0].warning);
        assert!(between(Some(&after), &after).is_empty());

        let hook = status(&[(c::HOOKS_RUN, False, reasons::HOOK_FAILED, "it exited with 1")]);
        let notes = between(None, &hook);
        assert!(notes.len() == 1 && notes[0].warning, "{notes:?}");

        let lost = status(&[(c::RESTORED, False, reasons::MEMORY_LOST, "its memory is lost")]);
        let notes = between(Some(&after), &lost);
        assert!(notes.len() == 1 && notes[0].warning, "{notes:?}");

        let stalled = |value| status(&[(c::STALLED, value, reasons::TARGET_POD_FAILED, "no")]);
        let notes = between(None, &stalled(True));
        assert!(notes.len() == 1 && notes[0].warning, "{notes:?}");
        assert!(between(Some(&stalled(True)), &stalled(True)).is_empty());
        assert!(between(Some(&stalled(True)), &stalled(False)).is_empty());

        let refused = status(&[
            (c::ADMITTED, False, reasons::SAME_NODE, "it runs there already"),
            (c::FROZEN, False, reasons::NOT_REACHED, ""),
            (c::SUCCEEDED, False, reasons::SAME_NODE, "it runs there already"),
        ]);
        let notes = between(None, &refused);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].warning && notes[0].reason == reasons::SAME_NODE);
    }
}
