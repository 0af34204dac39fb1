//! The pod's persistent volumes: handed over with a pod of an exclusive name, where the target node
//! can reach them.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{Check, Input, Violation};
use crate::sequential_pod;

/// A claim that the pod uses, and what the API server knows of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claim {
    /// Name of the volume in the pod.
    pub volume: String,
    /// Name of the claim.
    pub name: String,
    /// The claim.
    pub claim: Option<PersistentVolumeClaim>,
    /// The volume that it is bound to.
    pub bound: Option<PersistentVolume>,
}

/// Told before the source has ended.
pub(super) const CHECK: Check = Check {
    name: "PersistentVolumes",
    finds: "persistent volumes of a pod with a name of its own that are not bound, are being deleted, or are directories of one node",
    remedy: "use volumes that both nodes can attach, and claims that stay",
    look: claims,
};

fn claims(input: &Input<'_>) -> Vec<Violation> {
    if !input.pod.is_some_and(sequential_pod::is_exclusive) {
        // Refused with the other volumes.
        return Vec::new();
    }
    input.claims.iter().filter_map(objection).map(Violation::of_pod).collect()
}

fn objection(claim: &Claim) -> Option<String> {
    let Claim { volume, name, .. } = claim;
    if claim.claim.as_ref().is_some_and(|claim| claim.metadata.deletion_timestamp.is_some()) {
        return Some(format!(
            "claim {name} of volume {volume} is being deleted and goes with the pod, and its volume perhaps with it"
        ));
    }
    let Some(bound) = claim.bound.as_ref().and_then(|bound| bound.spec.as_ref()) else {
        return Some(format!("claim {name} of volume {volume} is not bound to a volume"));
    };
    // With a node affinity it is for the placement to say which nodes reach it.
    let anywhere = bound.node_affinity.as_ref().is_none_or(|affinity| affinity.required.is_none());
    (bound.host_path.is_some() && anywhere)
        .then(|| format!("the volume of claim {name} is a directory of one node (hostPath)"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[rstest]
    #[case(json!({"nfs": {"server": "s", "path": "/"}}), None)]
    #[case(json!({"hostPath": {"path": "/srv"}}), Some("directory of one node"))]
    #[case(json!({"hostPath": {"path": "/srv"}, "nodeAffinity": {"required": {"nodeSelectorTerms": []}}}), None)]
    #[case(Value::Null, Some("not bound"))]
    fn a_volume_must_be_one_that_another_node_can_attach(
        #[case] volume: Value,
        #[case] expected: Option<&str>,
    ) {
        let bound =
            (!volume.is_null()).then(|| serde_json::from_value(json!({"spec": volume})).unwrap());
        let claim = Claim { volume: "data".into(), name: "data-web-0".into(), claim: None, bound };
        let found = objection(&claim);
        assert_eq!(found.is_some(), expected.is_some());
        assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
    }

    #[test]
    fn a_claim_that_goes_with_the_pod_is_refused() {
        let claim = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let bound = json!({"spec": {"nfs": {"server": "s", "path": "/"}}});
        let claim = Claim {
            claim: serde_json::from_value(claim).unwrap(),
            bound: serde_json::from_value(bound).unwrap(),
            ..Claim::default()
        };
        assert!(objection(&claim).unwrap().contains("is being deleted"));
    }
}
