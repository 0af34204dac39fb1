//! The pod's persistent volumes: handed over with a pod of an exclusive name, where the target node
//! can reach them.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{Check, Input, Violation};
use crate::placement::node_terms_fit;
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
    finds: "persistent volumes of a pod with a name of its own that the target node cannot attach",
    remedy: "use volumes that both nodes can attach, or name another targetNode",
    look: claims,
};

fn claims(input: &Input<'_>) -> Vec<Violation> {
    if !input.pod.is_some_and(sequential_pod::is_exclusive) {
        // Refused with the other volumes.
        return Vec::new();
    }
    input.claims.iter().filter_map(|c| objection(c, input)).map(Violation::of_pod).collect()
}

fn objection(claim: &Claim, input: &Input<'_>) -> Option<String> {
    let Claim { volume, name, .. } = claim;
    let Some(bound) = claim.bound.as_ref().and_then(|bound| bound.spec.as_ref()) else {
        return Some(format!("claim {name} of volume {volume} is not bound to a volume"));
    };
    let terms = bound
        .node_affinity
        .as_ref()
        .and_then(|affinity| affinity.required.as_ref())
        .map(|required| required.node_selector_terms.as_slice());
    let target = input.target?;
    match terms {
        Some(terms) if node_terms_fit(terms, target) => None,
        Some(_) => Some(format!(
            "the volume of claim {name} cannot be attached to {} (its nodeAffinity)",
            target.name
        )),
        None if bound.host_path.is_some() => {
            Some(format!("the volume of claim {name} is a directory of one node (hostPath)"))
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};
    use transship_api::{Migration, MigrationSpec};

    use super::super::NodeView;
    use super::*;

    #[rstest]
    #[case(json!({"nfs": {"server": "s", "path": "/"}}), None)]
    #[case(json!({"hostPath": {"path": "/srv"}}), Some("directory of one node"))]
    #[case(json!({"local": {"path": "/srv"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-a", "node-b"]}]}]}}}), None)]
    #[case(json!({"local": {"path": "/srv"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-a"]}]}]}}}), Some("cannot be attached to node-b"))]
    #[case(Value::Null, Some("not bound"))]
    fn a_volume_must_be_reachable_from_the_target(
        #[case] volume: Value,
        #[case] objection: Option<&str>,
    ) {
        let bound =
            (!volume.is_null()).then(|| serde_json::from_value(json!({"spec": volume})).unwrap());
        let claims =
            [Claim { volume: "data".into(), name: "data-web-0".into(), claim: None, bound }];
        let migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
        let pod = serde_json::from_value(json!({"metadata": {"name": "web-0"}})).unwrap();
        let node = NodeView {
            name: "node-b".into(),
            core: Some(
                serde_json::from_value(json!({"metadata": {"name": "node-b",
                    "labels": {"kubernetes.io/hostname": "node-b"}}}))
                .unwrap(),
            ),
            agent: None,
        };
        let input = Input {
            migration: &migration,
            pod: Some(&pod),
            owner: None,
            claims: &claims,
            policy: None,
            volumes: &Default::default(),
            nodes: &[],
            target: Some(&node),
            facts: None,
            target_facts: None,
            answer: None,
        };
        let found = super::claims(&input).into_iter().next().map(|v| v.message);
        match objection {
            Some(words) => assert!(found.unwrap().contains(words)),
            None => assert_eq!(found, None),
        }
    }
}
