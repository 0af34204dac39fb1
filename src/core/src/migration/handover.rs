//! How labels and the owner's claim go from the source pod to the target pod.
//!
//! The target gets the source's labels in two portions: at once what makes Services and policies
//! know it, and only together with the owner's claim what makes the owner's selector match. A pod
//! without owner that the selector matches would be adopted beside the source, and one of the two
//! removed as a surplus.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use transship_api::names;

use super::owner::Controller;
use crate::sequential_pod::controller;

/// A set of labels.
pub type Labels = BTreeMap<String, String>;

/// Label that tells the pods of one of a Deployment's ReplicaSets from those of the others.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// The source's labels, as the target gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// At once.
    pub at_once: Labels,
    /// Together with the claim.
    pub with_claim: Labels,
}

/// Divides the source's labels for an owner with `selector` among Services that select by
/// `services`. As few labels as possible wait for the claim: the template's hash if that is
/// enough, else one that no Service uses, else everything that the selector speaks of (a bare
/// ReplicaSet whose selector is the Service's; the Service then learns of the target with the
/// claim).
pub fn partition(
    labels: &Labels,
    selector: Option<&LabelSelector>,
    services: &[Labels],
) -> Partition {
    let labels: Labels = labels
        .iter()
        .filter(|(key, _)| key.as_str() != names::MIGRATION_LABEL)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let Some(selector) = selector.filter(|s| matches(s, &labels)) else {
        return Partition { at_once: labels, with_claim: Labels::new() };
    };
    let used = |key: &str| services.iter().any(|s| selects(s, &labels) && s.contains_key(key));
    let spoken_of = keys(selector);
    let mut candidates: Vec<&str> =
        spoken_of.iter().map(String::as_str).filter(|key| !used(key)).collect();
    candidates.sort_by_key(|key| *key != TEMPLATE_HASH);
    let without = |withheld: &dyn Fn(&str) -> bool| -> Partition {
        let (with_claim, at_once) = labels.clone().into_iter().partition(|(key, _)| withheld(key));
        Partition { at_once, with_claim }
    };
    candidates
        .into_iter()
        .map(|candidate| without(&|key| key == candidate))
        .chain(std::iter::once_with(|| without(&|key| spoken_of.iter().any(|k| k == key))))
        .find(|partition| !matches(selector, &partition.at_once))
        .unwrap_or_else(|| Partition { at_once: Labels::new(), with_claim: labels.clone() })
}

fn keys(selector: &LabelSelector) -> Vec<String> {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| key.clone());
    let expressions = selector.match_expressions.iter().flatten().map(|e| e.key.clone());
    let mut keys: Vec<String> = labels.chain(expressions).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Whether a label selector matches. An empty one matches everything, as Kubernetes has it.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let by_labels =
        selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let by_expressions = selector.match_expressions.iter().flatten().all(|expression| {
        let values = expression.values.as_deref().unwrap_or_default();
        let value = labels.get(&expression.key);
        match expression.operator.as_str() {
            "In" => value.is_some_and(|v| values.contains(v)),
            "NotIn" => value.is_none_or(|v| !values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    by_labels && by_expressions
}

/// Whether a Service's selector selects a pod. One without selector selects nothing.
pub fn selects(service: &Labels, labels: &Labels) -> bool {
    !service.is_empty() && service.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether the pod is claimed by the owner with this UID.
pub fn is_claimed_by(pod: &Pod, owner_uid: &str) -> bool {
    controller(pod).is_some_and(|owner| owner.uid == owner_uid)
}

/// The labels of the source as the target is to have them: the source's own, or those of the
/// owner's template where the source is gone or has been stripped already.
pub fn labels_to_hand_over(source: Option<&Pod>, owner: Option<&Controller>) -> Labels {
    match (source, owner) {
        (Some(pod), Some(owner)) if !is_claimed_by(pod, &owner.uid) => {
            owner.template_labels.clone()
        }
        (Some(pod), _) => pod.metadata.labels.clone().unwrap_or_default(),
        (None, Some(owner)) => owner.template_labels.clone(),
        (None, None) => Labels::new(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn selector(json: Value) -> LabelSelector {
        serde_json::from_value(json).unwrap()
    }

    #[rstest]
    // A Deployment's ReplicaSet: only the hash waits.
    #[case(json!({"matchLabels": {"app": "web", "pod-template-hash": "abc"}}),
        &[labels(&[("app", "web")])], &["pod-template-hash"])]
    // The same without any Service: still only the hash, policies may use the rest.
    #[case(json!({"matchLabels": {"app": "web", "pod-template-hash": "abc"}}), &[], &["pod-template-hash"])]
    // A bare ReplicaSet with a key of its own that no Service uses.
    #[case(json!({"matchLabels": {"app": "web", "tier": "front"}}),
        &[labels(&[("app", "web")])], &["tier"])]
    // A bare ReplicaSet whose selector is the Service's: all that the selector speaks of waits.
    #[case(json!({"matchLabels": {"app": "web"}}), &[labels(&[("app", "web")])], &["app"])]
    #[case(json!({"matchLabels": {"app": "web", "tier": "front"}}),
        &[labels(&[("app", "web"), ("tier", "front")])], &["app", "tier"])]
    // A Service that selects other pods does not count.
    #[case(json!({"matchLabels": {"app": "web"}}), &[labels(&[("app", "other")])], &["app"])]
    // An expression that the absence of the label fulfils cannot be withheld by itself.
    #[case(json!({"matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "a-first", "operator": "NotIn", "values": ["x"]}]}), &[], &["app"])]
    #[case(json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), &[], &["tier"])]
    fn as_little_as_possible_waits_for_the_claim(
        #[case] owner: Value,
        #[case] services: &[Labels],
        #[case] withheld: &[&str],
    ) {
        let source = labels(&[
            ("app", "web"),
            ("tier", "front"),
            ("pod-template-hash", "abc"),
            ("by-hand", "1"),
            (names::MIGRATION_LABEL, "an earlier one"),
        ]);
        let owner = selector(owner);
        let parts = partition(&source, Some(&owner), services);
        assert_eq!(parts.with_claim.keys().collect::<Vec<_>>(), withheld);
        assert!(!matches(&owner, &parts.at_once), "would be adopted");
        let mut all = parts.at_once.clone();
        all.extend(parts.with_claim.clone());
        assert!(matches(&owner, &all), "must be claimed at last");
        assert!(!all.contains_key(names::MIGRATION_LABEL));
        assert_eq!(all.len(), source.len() - 1, "nothing is lost");
    }

    #[test]
    fn without_an_owner_everything_goes_at_once() {
        let source = labels(&[("app", "web")]);
        let parts = partition(&source, None, &[]);
        assert_eq!(parts, Partition { at_once: source, with_claim: Labels::new() });
    }

    #[rstest]
    #[case("In", &["a", "b"], true)]
    #[case("In", &["c"], false)]
    #[case("NotIn", &["c"], true)]
    #[case("NotIn", &["a"], false)]
    #[case("Exists", &[], true)]
    #[case("DoesNotExist", &[], false)]
    #[case("Unheard", &[], false)]
    fn expressions_are_evaluated(
        #[case] operator: &str,
        #[case] values: &[&str],
        #[case] fits: bool,
    ) {
        let with = selector(json!({"matchExpressions": [
            {"key": "k", "operator": operator, "values": values}]}));
        assert_eq!(matches(&with, &labels(&[("k", "a")])), fits);
    }

    #[test]
    fn a_service_without_selector_selects_nothing() {
        assert!(!selects(&Labels::new(), &labels(&[("a", "b")])));
        assert!(selects(&labels(&[("a", "b")]), &labels(&[("a", "b"), ("c", "d")])));
    }

    #[test]
    fn labels_of_a_lost_source_come_from_the_owners_template() {
        let owner: k8s_openapi::api::apps::v1::ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "web-abc", "uid": "rs"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": "web"}}}}
        }))
        .unwrap();
        let owner = Controller::from(owner);
        let pod = |owners: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"labels": {"app": "web", "x": "y"}, "ownerReferences": owners}}),
            )
            .unwrap()
        };
        let claimed = pod(
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "rs", "controller": true}]),
        );
        assert_eq!(labels_to_hand_over(Some(&claimed), Some(&owner)).len(), 2);
        assert_eq!(labels_to_hand_over(None, Some(&owner)), labels(&[("app", "web")]));
        assert_eq!(
            labels_to_hand_over(Some(&pod(json!([]))), Some(&owner)),
            labels(&[("app", "web")])
        );
        assert_eq!(labels_to_hand_over(Some(&pod(json!([]))), None).len(), 2);
    }
}
