//! Volumes of a pod, as far as they say which nodes it can use.
//!
//! A volume that one node alone can mount at a time (no access mode but `ReadWriteOnce` and
//! `ReadWriteOncePod`) and that a pod uses already is a dependency of every other pod that uses it:
//! they have to be on that node. kube-scheduler knows that for `ReadWriteOncePod` only; with
//! `ReadWriteOnce` it may bind a pod to a node that then waits for the volume for ever.
//!
//! Where the volume itself says which nodes can reach it (a local disk, a disk of one zone), a node
//! has to be one of them. kube-scheduler asks for that before the extender is asked, so it is looked
//! at for targets of migrations alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod};

/// The claims of a pod, as `namespace/name`; those that it makes for itself included.
pub fn claims(pod: &Pod) -> impl Iterator<Item = String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    claimed(pod).map(move |(_, claim)| format!("{namespace}/{claim}"))
}

/// The pod's volumes that have a claim, with its name; claims that it makes for itself included.
pub fn claimed(pod: &Pod) -> impl Iterator<Item = (&str, String)> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(move |volume| {
        let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => claim.claim_name.clone(),
            (None, Some(_)) => format!("{name}-{}", volume.name),
            (None, None) => return None,
        };
        Some((volume.name.as_str(), claim))
    })
}

/// Whether one node alone can mount the claim's volume at a time. What the volume can do counts, and
/// before there is one, what the claim asks for.
pub fn is_for_one_node(claim: &PersistentVolumeClaim) -> bool {
    let of_volume = claim.status.as_ref().and_then(|status| status.access_modes.as_deref());
    let asked_for = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref());
    let modes = of_volume.filter(|modes| !modes.is_empty()).or(asked_for).unwrap_or_default();
    !modes.is_empty() && modes.iter().all(|m| matches!(&**m, "ReadWriteOnce" | "ReadWriteOncePod"))
}

/// Volumes of a pod, by claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volumes(BTreeMap<String, Volume>);

#[derive(Clone, Debug, PartialEq)]
struct Volume {
    for_one_node: bool,
    /// Nodes that can reach it: those that one of the terms fits. None: all.
    reached_from: Option<Vec<NodeSelectorTerm>>,
}

impl Volumes {
    /// Adds a claim, as `namespace/name`, with the volume that it is bound to.
    pub fn add(
        &mut self,
        name: String,
        claim: &PersistentVolumeClaim,
        volume: Option<&PersistentVolume>,
    ) {
        let spec = volume.and_then(|volume| volume.spec.as_ref());
        let affinity = spec.and_then(|spec| spec.node_affinity.as_ref());
        let reached_from =
            affinity.and_then(|a| a.required.as_ref()).map(|r| r.node_selector_terms.clone());
        self.0.insert(name, Volume { for_one_node: is_for_one_node(claim), reached_from });
    }

    /// The volume that a claim is bound to.
    pub fn bound_to(claim: &PersistentVolumeClaim) -> Option<&str> {
        let name = claim.spec.as_ref()?.volume_name.as_deref()?;
        (!name.is_empty()).then_some(name)
    }

    /// Claims whose volume one node alone can mount at a time.
    pub fn for_one_node(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, volume)| volume.for_one_node).map(|(name, _)| name.as_str())
    }

    /// The first claim whose volume cannot be reached from a node; `fits` says whether a term fits
    /// that node.
    pub(super) fn out_of_reach(&self, fits: impl Fn(&NodeSelectorTerm) -> bool) -> Option<&str> {
        let far = |volume: &Volume| {
            volume.reached_from.as_ref().is_some_and(|terms| !terms.iter().any(&fits))
        };
        self.0.iter().find(|(_, volume)| far(volume)).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_has_the_claims_that_it_names_and_those_that_it_makes() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "db-0", "namespace": "shop"},
            "spec": {"containers": [], "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "b", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                {"name": "c", "emptyDir": {}}]},
        }))
        .unwrap();
        assert_eq!(claims(&pod).collect::<Vec<_>>(), ["shop/data", "shop/db-0-b"]);
    }

    #[rstest]
    #[case(json!(["ReadWriteOnce"]), json!(null), true)]
    #[case(json!(["ReadWriteOncePod"]), json!(null), true)]
    #[case(json!(["ReadWriteOnce", "ReadOnlyMany"]), json!(null), false)]
    #[case(json!(["ReadWriteMany"]), json!(null), false)]
    #[case(json!(["ReadWriteOnce"]), json!(["ReadWriteOnce", "ReadWriteMany"]), false)]
    #[case(json!(["ReadWriteMany"]), json!([]), false)]
    #[case(json!(null), json!(null), false)]
    fn what_the_volume_can_do_counts_before_what_the_claim_asks_for(
        #[case] asked: Value,
        #[case] given: Value,
        #[case] wanted: bool,
    ) {
        let claim: PersistentVolumeClaim = serde_json::from_value(
            json!({"spec": {"accessModes": asked}, "status": {"accessModes": given}}),
        )
        .unwrap();
        assert_eq!(is_for_one_node(&claim), wanted);
    }
}
