//! The state of a pod that runs nowhere.
//!
//! In the sequential order there is a time when the pod has ended and its state lies on the two nodes'
//! disks alone. Where the Migration vanishes then (its finalizer was taken off), nobody makes the pod
//! again, and the state is kept for [`KEPT_FOR`]; the node's condition StateKept says so.
//!
//! The time is counted while the agent runs, by a clock that nobody sets: one that jumps ahead must not
//! cost a state. How much has passed stands in a marker in the side's directory.

use std::time::{Duration, Instant};

use transship_api::{HolderState, NodeStatus};
use transship_host::files;
use transship_host::task::Part;
use transship_protocol::NodeSeen;

use crate::migrations::Side;

/// How long the state of a pod that runs nowhere is kept after its Migration has vanished.
pub const KEPT_FOR: Duration = Duration::from_secs(7 * DAY);
const DAY: u64 = 24 * 3600;
/// How often is written down how much time has passed.
const WRITTEN_EVERY: Duration = Duration::from_secs(60);

/// Measures the time that is to be added to every marker.
pub struct Watch(Instant);

impl Watch {
    /// From now on.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// What has passed since it was last given, once it is worth writing down.
    pub fn passed(&mut self) -> Option<Duration> {
        let passed = self.0.elapsed();
        (passed >= WRITTEN_EVERY).then(|| {
            self.0 = Instant::now();
            passed
        })
    }
}

/// What a closed side is good for whose Migration has vanished.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// For nothing.
    Over,
    /// The other side may still have to read how this one ended.
    Waits,
    /// Somebody may need what it has. `heard`: the other node has said its last word.
    Kept {
        /// Whether nothing more is to be heard.
        heard: bool,
    },
}

/// Judges by what the other node has `published` (see [`published`]) and what stands beside it on this one.
pub fn verdict(
    part: Part,
    own: HolderState,
    published: Option<&[HolderState]>,
    beside: &[HolderState],
) -> Verdict {
    let heard = published.is_some_and(|states| states.iter().all(|state| is_final(*state)));
    let others = [published.unwrap_or_default(), beside].concat();
    match is_needed(part, own, &others) {
        true => Verdict::Kept { heard },
        false if heard => Verdict::Over,
        false => Verdict::Waits,
    }
}

/// What a node says of its sides of a migration; none while that is still to come. One that has left has nothing to say.
pub fn published(node: NodeSeen<NodeStatus>, migration_uid: &str) -> Option<Vec<HolderState>> {
    let sides = match node {
        NodeSeen::Tells(status) => status.active_migrations,
        NodeSeen::Anew => return None,
        NodeSeen::Left => Vec::new(),
    };
    let ours = sides.into_iter().filter(|side| side.migration_uid == migration_uid);
    Some(ours.map(|side| side.state).collect())
}

/// Where the other sides of the same migration on this node stand.
pub fn beside<'a>(side: &'a Side, sides: &'a [Side]) -> impl Iterator<Item = HolderState> + 'a {
    sides.iter().filter(|other| other.uid == side.uid && other.role != side.role).map(Side::state)
}

/// Whether a side whose Migration has vanished has something that somebody may need: the state of a pod
/// that runs nowhere, as far as the `others` say, or the word that it runs, until the others have
/// gone on the strength of it. In the other order the state is in memory, and goes with it.
fn is_needed(part: Part, own: HolderState, others: &[HolderState]) -> bool {
    if !part.is_sequential() {
        return false;
    }
    if pod_runs(own) {
        return !others.is_empty();
    }
    let has_state = match own {
        HolderState::Moved | HolderState::Kept => true,
        HolderState::NeverThawed | HolderState::Aborted => part.is_again(),
        _ => false,
    };
    has_state && !others.iter().any(|other| pod_runs(*other))
}

/// Whether a side says that the pod runs there.
fn pod_runs(state: HolderState) -> bool {
    matches!(state, HolderState::Resumed | HolderState::SourceResumed)
}

fn is_final(state: HolderState) -> bool {
    matches!(
        state,
        HolderState::Resumed
            | HolderState::NeverThawed
            | HolderState::SourceResumed
            | HolderState::Moved
            | HolderState::Aborted
            | HolderState::Kept
    )
}

/// Whether a side that may be needed has been kept for long enough: counts the time, and marks it at first.
pub fn time_is_up(side: &Side, passed: Option<Duration>) -> transship_host::Result<bool> {
    let kept = match (side.vanished, passed) {
        (None, _) => {
            tracing::warn!(
                migration = side.uid,
                role = %side.role,
                "its Migration has vanished; the state of its pod is kept for {} days",
                KEPT_FOR.as_secs() / DAY
            );
            Duration::ZERO
        }
        (Some(kept), None) => return Ok(kept >= KEPT_FOR),
        (Some(kept), Some(passed)) => kept.saturating_add(passed),
    };
    // Somebody may have written a larger number meanwhile, to end it.
    let written = std::fs::read(side.dir.vanished()).map(|marker| kept_for(&marker));
    let kept = kept.max(written.unwrap_or_default());
    let content = format!("{}\n", kept.as_secs());
    files::write_atomic(&side.dir.vanished(), content.as_bytes())?;
    Ok(kept >= KEPT_FOR)
}

/// For how long a state has been kept, by its marker. In doubt it has just begun.
pub fn kept_for(marker: &[u8]) -> Duration {
    let text = String::from_utf8_lossy(marker);
    Duration::from_secs(text.trim().parse().unwrap_or(0))
}

/// Which pods' states are kept though their Migrations have vanished, for how long still, and how they are
/// removed before that; none where there are none.
pub fn told(sides: &[Side]) -> Option<String> {
    const SHOWN: usize = 5;
    let states: Vec<String> = sides
        .iter()
        .filter(|side| !pod_runs(side.state()))
        .filter_map(|side| Some((side, side.vanished?)))
        .map(|(side, kept)| {
            let left = KEPT_FOR.saturating_sub(kept).as_secs().div_ceil(DAY);
            let [pod, migration] = side.names();
            format!(
                "the state of pod {pod}, left behind by Migration {migration}, which has vanished, is kept for 7 days in which the node's agent runs ({left} left with this one); to remove it at once, run on the node: echo {} > {}",
                KEPT_FOR.as_secs(),
                side.dir_on_host().join("vanished").display()
            )
        })
        .collect();
    let more = states.len().saturating_sub(SHOWN);
    let mut text = states.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" | ");
    if more > 0 {
        text.push_str(&format!(" | and {more} more"));
    }
    (!states.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use transship_host::HostRoot;
    use transship_host::paths::Role;

    use super::*;
    use crate::migrations;
    use crate::migrations::tests::task;

    #[test]
    fn the_state_of_a_pod_that_runs_nowhere_is_needed() {
        use HolderState::{Kept, Moved, NeverThawed, Resumed, SourceResumed};
        let cases: [(Part, HolderState, &[HolderState], bool); 14] = [
            (Part::Overlap, Moved, &[], false),
            (Part::Trial, Moved, &[Kept], true),
            (Part::Trial, Kept, &[Moved], true),
            (Part::Trial, Moved, &[], true),
            (Part::Trial, Moved, &[NeverThawed], true),
            (Part::Again, NeverThawed, &[Moved], true),
            (Part::Trial, NeverThawed, &[SourceResumed], false),
            (Part::Trial, NeverThawed, &[], false),
            (Part::Trial, Kept, &[SourceResumed], false),
            (Part::Trial, Moved, &[Resumed], false),
            (Part::Trial, Moved, &[NeverThawed, Resumed], false),
            (Part::Again, Resumed, &[Moved], true),
            (Part::Again, Resumed, &[], false),
            (Part::Trial, SourceResumed, &[Kept], true),
        ];
        for (part, own, others, needed) in cases {
            assert_eq!(is_needed(part, own, others), needed, "{part:?} {own:?} {others:?}");
        }
    }

    #[test]
    fn a_pod_that_went_back_has_both_sides_on_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        let target = host.migration("m-1", Role::Target).unwrap();
        target.write_task(&task("m-1", Role::Target)).unwrap();
        let source = host.migration("m-1", Role::Source).unwrap();
        source.write_task(&task("m-1", Role::Source)).unwrap();
        let other = host.migration("m-2", Role::Target).unwrap();
        other.write_task(&task("m-2", Role::Target)).unwrap();
        let sides = migrations::list(&host).unwrap();
        let source = sides.iter().find(|side| side.role == Role::Source).unwrap();
        assert_eq!(beside(source, &sides).collect::<Vec<_>>(), [HolderState::Preparing]);
    }

    #[test]
    fn a_state_that_may_be_needed_does_not_wait_for_a_node_that_is_off_for_good() {
        use HolderState::{Aborted, Frozen, Kept, Moved, Resumed};
        type Case<'a> = (Part, HolderState, Option<&'a [HolderState]>, &'a [HolderState], Verdict);
        let cases: [Case<'_>; 8] = [
            (Part::Trial, Moved, Some(&[Kept]), &[], Verdict::Kept { heard: true }),
            (Part::Trial, Moved, Some(&[Frozen]), &[], Verdict::Kept { heard: false }),
            (Part::Trial, Moved, None, &[], Verdict::Kept { heard: false }),
            (Part::Trial, Moved, Some(&[Resumed]), &[], Verdict::Over),
            (Part::Overlap, Aborted, Some(&[Frozen]), &[], Verdict::Waits),
            (Part::Overlap, Aborted, None, &[], Verdict::Waits),
            (Part::Overlap, Aborted, Some(&[]), &[], Verdict::Over),
            (Part::AgainAtSource, Resumed, Some(&[]), &[], Verdict::Over),
        ];
        for (part, own, published, beside, expected) in cases {
            assert_eq!(verdict(part, own, published, beside), expected, "{part:?} {own:?}");
        }
    }

    #[test]
    fn a_node_that_registers_anew_has_not_been_heard_and_one_that_has_left_never_will_be() {
        let status: NodeStatus = serde_json::from_value(serde_json::json!({"activeMigrations": [
            {"migrationUID": "m-1", "role": "Source", "podUID": "p-1", "state": "Frozen"},
            {"migrationUID": "m-2", "role": "Source", "podUID": "p-2", "state": "Moved"},
        ]}))
        .unwrap();
        let tells = published(NodeSeen::Tells(status), "m-1");
        assert_eq!(tells, Some(vec![HolderState::Frozen]));
        assert_eq!(published(NodeSeen::Anew, "m-1"), None);
        assert_eq!(published(NodeSeen::Left, "m-1"), Some(Vec::new()));
    }

    #[test]
    fn the_time_is_counted_while_somebody_looks() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let dir = host.migration("m-1", Role::Source).unwrap();
        dir.write_task(&task("m-1", Role::Source)).unwrap();
        let side = || Side::read(dir.clone()).unwrap();
        let minute = Some(Duration::from_secs(60));
        assert_eq!(side().vanished, None);
        assert!(!time_is_up(&side(), minute).unwrap());
        assert_eq!(side().vanished, Some(Duration::ZERO), "it has just been seen");
        assert!(!time_is_up(&side(), None).unwrap());
        assert!(!time_is_up(&side(), minute).unwrap());
        assert_eq!(side().vanished, minute);
        let before = side();
        std::fs::write(dir.vanished(), KEPT_FOR.as_secs().to_string()).unwrap();
        assert!(time_is_up(&before, minute).unwrap(), "what was written meanwhile stands");
        assert_eq!(side().vanished, Some(KEPT_FOR));
        let almost = KEPT_FOR - Duration::from_secs(60);
        std::fs::write(dir.vanished(), almost.as_secs().to_string()).unwrap();
        assert!(!time_is_up(&side(), None).unwrap());
        assert!(time_is_up(&side(), minute).unwrap());
        for (content, kept) in [("", 0), ("x", 0), ("-1", 0), ("7\n", 7), ("99999999", 99_999_999)]
        {
            assert_eq!(kept_for(content.as_bytes()), Duration::from_secs(kept), "{content:?}");
        }
    }

    #[test]
    fn a_state_that_no_migration_answers_for_is_told_with_its_end() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let dir = host.migration("m-1", Role::Source).unwrap();
        dir.write_task(&task("m-1", Role::Source)).unwrap();
        let told = || told(&migrations::list(&host).unwrap());
        assert_eq!(told(), None);
        std::fs::write(dir.vanished(), (2 * DAY + 1).to_string()).unwrap();
        let text = told().unwrap();
        for words in [
            "pod shop/web-7",
            "Migration shop/move",
            "(5 left with this one)",
            "echo 604800 > /var/lib/transship/migrations/m-1.source/vanished",
        ] {
            assert!(text.contains(words), "{text}");
        }
        let said = transship_rpc::SideStatus {
            holder_state: "Resumed".into(),
            ..transship_rpc::SideStatus::default()
        };
        files::write_json(&dir.path().join("status.json"), &said).unwrap();
        assert_eq!(told(), None, "the pod runs");
    }
}
