//! `MigrationPolicy`: what holds for the pods of a namespace that its selector matches.

// Parts of different columns and rules look alike to the lint.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::migration::Placement;

/// How a requirement compares a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label's value is one of the values.
    In,
    /// The label is not there, or its value is none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)")
        .message("write values with the operators In and NotIn, and none with Exists and DoesNotExist")
)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// Key of the label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: Operator,
    /// Values that In and NotIn compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub values: Vec<String>,
}

/// Which pods a policy is for, in Kubernetes' own form. All conditions must hold; without any, all
/// pods of the namespace are meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that the pod must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, k.size() <= 317 && self[k].size() <= 63)").message("write label keys of at most 317 and values of at most 63 characters"))]
    pub match_labels: BTreeMap<String, String>,
    /// More conditions on its labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<Requirement>,
}

/// What holds for the pods of a namespace that the selector matches.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "transship.dev",
    version = "v1alpha1",
    kind = "MigrationPolicy",
    plural = "migrationpolicies",
    namespaced,
    shortname = "migpol",
    category = "transship",
    derive = "PartialEq",
    cel,
    doc = "MigrationPolicy says what holds for the pods that its selector matches. One policy applies to a pod: that whose selector has the most conditions, and of several the first by name.",
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.placement.strategy"),
    printcolumn(
        name = "Constraints",
        type_ = "string",
        json_path = ".spec.placement.constraints",
        priority = 1
    ),
    printcolumn(
        name = "Affinities",
        type_ = "string",
        json_path = ".spec.placement.affinities",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPolicySpec {
    /// The pods it is for. Write {} for all pods of the namespace.
    pub selector: Selector,
    /// Conditions for the nodes that the pods go to, besides those of their annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(selector: Selector) -> MigrationPolicy {
        let placement =
            Placement { constraints: vec!["region==us*".to_owned()], ..Placement::default() };
        MigrationPolicy::new("web", MigrationPolicySpec { selector, placement: Some(placement) })
    }

    fn requirement(operator: Operator, values: &[&str]) -> Selector {
        let values = values.iter().map(|v| (*v).to_owned()).collect();
        let requirement = Requirement { key: "app".into(), operator, values };
        Selector { match_expressions: vec![requirement], ..Selector::default() }
    }

    #[test]
    fn good_policies_are_accepted() {
        for selector in [
            Selector::default(),
            Selector { match_labels: [("app".into(), "web".into())].into(), ..Selector::default() },
            requirement(Operator::In, &["web"]),
            requirement(Operator::DoesNotExist, &[]),
        ] {
            let result = policy(selector.clone()).validate_cel();
            assert!(result.is_ok(), "{selector:?}: {result:?}");
        }
    }

    #[test]
    fn bad_policies_are_answered_with_what_to_write_instead() {
        for selector in [requirement(Operator::In, &[]), requirement(Operator::Exists, &["x"])] {
            let errors = policy(selector.clone()).validate_cel().unwrap_err();
            let told = errors[0].to_string();
            assert!(told.contains("write values with the operators"), "{selector:?}: {errors:?}");
        }
    }
}
