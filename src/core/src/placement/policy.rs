//! Which MigrationPolicy applies to a pod: one at most, the most specific of its namespace.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use transship_api::MigrationPolicy;
use transship_api::policy::{Operator, Requirement, Selector};

/// The policy that applies: of those of the pod's namespace whose selector matches, the one with
/// the most conditions (labels and expressions of the selector), and of several the first by name.
pub fn applying<'a>(
    policies: impl IntoIterator<Item = &'a MigrationPolicy>,
    pod: &Pod,
) -> Option<&'a MigrationPolicy> {
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    policies
        .into_iter()
        .filter(|policy| policy.metadata.namespace == pod.metadata.namespace)
        .filter(|policy| matches(&policy.spec.selector, labels))
        .min_by_key(|policy| {
            (Reverse(specificity(&policy.spec.selector)), policy.metadata.name.clone())
        })
}

fn specificity(selector: &Selector) -> usize {
    selector.match_labels.len() + selector.match_expressions.len()
}

fn matches(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().all(|r| is_met(r, labels.get(&r.key)))
}

/// As Kubernetes' own selectors: a label that is not there is not in any list.
fn is_met(requirement: &Requirement, value: Option<&String>) -> bool {
    let listed = || value.is_some_and(|value| requirement.values.contains(value));
    match requirement.operator {
        Operator::In => listed(),
        Operator::NotIn => !listed(),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(name: &str, selector: Value) -> MigrationPolicy {
        serde_json::from_value(json!({
            "apiVersion": "transship.dev/v1alpha1", "kind": "MigrationPolicy",
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"selector": selector},
        }))
        .unwrap()
    }

    fn applying_to(policies: &[MigrationPolicy], labels: Value) -> Option<String> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": labels}}),
        )
        .unwrap();
        applying(policies, &pod).and_then(|policy| policy.metadata.name.clone())
    }

    #[test]
    fn the_most_specific_policy_applies_and_of_equal_ones_the_first_by_name() {
        let policies = [
            policy("zz", json!({"matchLabels": {"app": "web"}})),
            policy("all", json!({})),
            policy("web", json!({"matchLabels": {"app": "web"}})),
            policy(
                "front",
                json!({"matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front"]}]}),
            ),
        ];
        let applying = |labels| applying_to(&policies, labels);
        assert_eq!(applying(json!({"app": "web", "tier": "front"})).unwrap(), "front");
        assert_eq!(applying(json!({"app": "web"})).unwrap(), "web");
        assert_eq!(applying(json!({})).unwrap(), "all");
        assert_eq!(applying_to(&policies[2..3], json!({"app": "db"})), None);
        let mut elsewhere = policies[1].clone();
        elsewhere.metadata.namespace = Some("other".into());
        assert_eq!(applying_to(&[elsewhere], json!({})), None);
    }

    #[test]
    fn expressions_of_a_selector_are_met_as_in_kubernetes() {
        for (operator, values, with_a, with_c, without) in [
            ("In", json!(["a", "b"]), true, false, false),
            ("NotIn", json!(["a", "b"]), false, true, true),
            ("Exists", json!([]), true, true, false),
            ("DoesNotExist", json!([]), false, false, true),
        ] {
            let selector =
                json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
            let policies = [policy("p", selector)];
            let applies = |labels| applying_to(&policies, labels).is_some();
            assert_eq!(applies(json!({"k": "a"})), with_a, "{operator} a");
            assert_eq!(applies(json!({"k": "c"})), with_c, "{operator} c");
            assert_eq!(applies(json!({})), without, "{operator} without");
        }
    }
}
