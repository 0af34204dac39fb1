//! What a StatefulSet's controller does with its pods: which ones it counts, and which one a roll has come to.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;

/// Label with the revision of the StatefulSet that a pod was made of.
const REVISION: &str = "controller-revision-hash";

/// Whether a StatefulSet counts the pod of this name among those that it wants: its controller ends all
/// others.
pub fn counts(set: &StatefulSet, pod: &str) -> bool {
    // A name that the controller does not give is not one that it ends.
    let Some(ordinal) = ordinal(pod) else { return true };
    let first = first(set);
    (first..first + wanted(set)).contains(&ordinal)
}

/// The number in a pod's name; none if it is not a name that the controller gives.
fn ordinal(pod: &str) -> Option<i64> {
    pod.rsplit('-').next()?.parse().ok()
}

/// The ordinal of a set's first pod.
fn first(set: &StatefulSet) -> i64 {
    i64::from(set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0))
}

/// How many pods a set is to have.
fn wanted(set: &StatefulSet) -> i64 {
    i64::from(set.spec.replicas.unwrap_or(1))
}

/// Whether a StatefulSet's controller replaces this pod as soon as it is there, whether it runs or not: the set
/// rolls from an older revision, waits for no pod to be ready before it turns to another
/// (`podManagementPolicy: Parallel`), and has come to this one, since all that are rolled before it are of the
/// new revision and all but this one are available. In doubt it does not.
pub fn replaces_at_once(set: &StatefulSet, pod: &Pod) -> bool {
    let (Some(status), Some(turn)) = (&set.status, turn(set, pod)) else { return false };
    let made_of = pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION));
    let is_older = made_of.is_some()
        && status.update_revision.is_some()
        && status.update_revision.as_ref() != made_of;
    let others = wanted(set) - 1;
    let is_current = status.observed_generation.is_some()
        && status.observed_generation == set.metadata.generation;
    set.spec.pod_management_policy.as_deref() == Some("Parallel")
        && is_older
        && is_current
        && i64::from(status.updated_replicas.unwrap_or(0)) >= turn
        && i64::from(status.available_replicas.unwrap_or(0)) >= others
}

/// How many pods a set rolls before this one, from the last one on; none if it does not roll it.
fn turn(set: &StatefulSet, pod: &Pod) -> Option<i64> {
    let strategy = set.spec.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()).is_some_and(|kind| kind != "RollingUpdate") {
        return None;
    }
    let partition = strategy.and_then(|s| s.rolling_update.as_ref()?.partition).unwrap_or(0);
    let index = ordinal(pod.metadata.name.as_deref()?)? - first(set);
    let wanted = wanted(set);
    (i64::from(partition).max(0)..wanted).contains(&index).then_some(wanted - 1 - index)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// Of three pods, the last two of which are rolled before `web-0`.
    #[rstest]
    #[case(json!({}), json!({}), true)]
    #[case(json!({"podManagementPolicy": "OrderedReady"}), json!({}), false)]
    #[case(json!({"updateStrategy": {"type": "OnDelete"}}), json!({}), false)]
    #[case(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}),
        json!({}), false)]
    // Counted from the first, whatever its number.
    #[case(json!({"ordinals": {"start": 1}}), json!({}), false)]
    #[case(json!({}), json!({"updateRevision": "1"}), false)]
    // The roll stands at another: the new revision does not come up, or a pod has failed.
    #[case(json!({}), json!({"updatedReplicas": 1}), false)]
    #[case(json!({}), json!({"availableReplicas": 1}), false)]
    #[case(json!({}), json!({"observedGeneration": 6}), false)]
    fn a_set_that_waits_for_nothing_replaces_a_pod_when_it_is_its_turn(
        #[case] spec: Value,
        #[case] status: Value,
        #[case] replaced: bool,
    ) {
        let mut set = json!({"metadata": {"generation": 7},
            "spec": {"podManagementPolicy": "Parallel", "replicas": 3},
            "status": {"replicas": 3, "updateRevision": "2", "observedGeneration": 7,
                "updatedReplicas": 2, "availableReplicas": 2}});
        for (part, changes) in [("spec", spec), ("status", status)] {
            for (key, value) in changes.as_object().unwrap() {
                set[part][key] = value.clone();
            }
        }
        let set = serde_json::from_value(set).unwrap();
        let mut pod = Pod::default();
        pod.metadata.name = Some("web-0".into());
        assert!(!replaces_at_once(&set, &pod), "its revision is not known");
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(REVISION.into(), "1".into());
        assert_eq!(replaces_at_once(&set, &pod), replaced);
    }

    #[rstest]
    #[case("web-0", json!({}), true)]
    #[case("web-1", json!({}), false)]
    #[case("web-0", json!({"replicas": 0}), false)]
    #[case("web-2", json!({"replicas": 3}), true)]
    #[case("web-0", json!({"replicas": 3, "ordinals": {"start": 1}}), false)]
    #[case("web-3", json!({"replicas": 3, "ordinals": {"start": 1}}), true)]
    #[case("web", json!({"replicas": 0}), true)]
    fn a_stateful_set_counts_the_pods_of_its_ordinals(
        #[case] pod: &str,
        #[case] spec: Value,
        #[case] expected: bool,
    ) {
        let set: StatefulSet = serde_json::from_value(json!({"spec": spec})).unwrap();
        assert_eq!(counts(&set, pod), expected);
    }
}
