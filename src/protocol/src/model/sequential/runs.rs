//! The runs of the sequential order.

use super::super::search;
use super::world::{Bounds, NOTHING, World, any};
use crate::rules::Rule;
use crate::{SourceEntry, SourceWord, TargetEntry, TargetOutcome};

fn passes(name: &str, bounds: Bounds) {
    search::passes(name, &World::new(bounds, false));
}

#[test]
fn the_sequential_order_is_safe_and_ends_without_faults() {
    passes("no faults", NOTHING);
}

#[test]
fn the_sequential_order_is_safe_and_ends_after_any_two_faults() {
    passes("any two faults", any(2));
}

/// Some two million states.
#[test]
#[ignore = "long; run it after every change of a transition"]
fn the_sequential_order_is_safe_and_ends_after_any_three_faults() {
    passes("any three faults", any(3));
}

#[test]
fn the_sequential_order_is_safe_when_somebody_makes_a_pod_of_the_state() {
    passes("a forged start amid a crash", Bounds { forged: 1, crashes: 1, ..NOTHING });
}

macro_rules! each_rule_of_the_order_matters {
    ($($name:ident: $rule:ident $bounds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                search::fails(Rule::$rule, [World::new($bounds, false)]);
            }
        )*

        /// The rules that are broken here.
        pub const BROKEN: &[Rule] = &[$(Rule::$rule),*];
    };
}

each_rule_of_the_order_matters! {
    votes_without_durable_state: StateIsDurable NOTHING;
    a_trial_that_thaws: TrialNeverThaws NOTHING;
    a_source_that_ends_before_the_commit: YieldsOnlyAfterCommit NOTHING;
    a_pod_made_again_beside_its_source: AgainOnlyAfterReleased Bounds { strips: 1, ..NOTHING };
    a_second_try_beside_the_first: AgainOnlyAfterLastWord NOTHING;
    a_pod_made_again_that_asks_nobody: AgainNeedsCommit Bounds { forged: 1, ..NOTHING };
    a_trial_that_votes_out_of_contact: VotesOnlyInContact Bounds { cuts: 1, ..NOTHING };
    a_frozen_source_that_kubelet_kills: FrozenRefusesKill Bounds { kills: 1, ..NOTHING };
    a_frozen_source_that_kubelet_makes_anew: FrozenRefusesCreate Bounds { reboots: 1, ..NOTHING };
    a_source_that_kubelet_makes_anew_though_it_has_moved: MovedRefusesCreate NOTHING;
}

#[test]
fn entries_of_the_order_are_stored_under_their_names() {
    let entry = serde_json::to_string(&SourceEntry::Yielded).unwrap();
    assert_eq!(entry, r#"{"kind":"yielded"}"#);
    let entry = TargetEntry::Closed { outcome: TargetOutcome::Kept };
    assert_eq!(serde_json::to_string(&entry).unwrap(), r#"{"kind":"closed","outcome":"kept"}"#);
    assert_eq!(SourceWord::default().outcome, None);
}
