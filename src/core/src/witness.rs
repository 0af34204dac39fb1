//! The Migration's own reference to its pod's StatefulSet, for as long as the pod is handed over.
//!
//! It is a witness: when the StatefulSet is deleted, Kubernetes' garbage collector takes the reference
//! off if the pods are to live on (`--cascade=orphan`), and else deletes the Migration as it deletes
//! pods. Of the StatefulSet itself nothing is left that could be asked. Which reference it is the
//! Migration's annotation [`names::WITNESS`] says, so that those of other people stay.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};
use transship_api::{Migration, names};

use crate::sequential_pod::{controller, is_stateful_set};

/// A Migration's references to owners, and which of them is the witness.
#[derive(Clone, Debug, PartialEq)]
pub struct References {
    /// All of them.
    pub owners: Vec<OwnerReference>,
    /// UID of the witness's owner, if there is one.
    pub witness: Option<String>,
}

impl References {
    /// As they stand in a Migration's metadata, for a merge patch.
    pub fn metadata(&self) -> Value {
        json!({"ownerReferences": self.owners, "annotations": {names::WITNESS: self.witness}})
    }
}

/// The Migration's references with the witness of this pod's owner in the place of the one before, or
/// without any; `None` where there is nothing to change. A witness that has been taken off is not set
/// again for the same owner: that is its word.
pub fn references(migration: &Migration, pod: Option<&Pod>) -> Option<References> {
    let meta = &migration.metadata;
    let noted = meta.annotations.as_ref().and_then(|a| a.get(names::WITNESS));
    let witness = pod.and_then(of_owner);
    if witness.as_ref().is_some_and(|witness| Some(&witness.uid) == noted) {
        return None;
    }
    let present = meta.owner_references.clone().unwrap_or_default();
    let mut owners = present.clone();
    owners.retain(|owner| Some(&owner.uid) != noted);
    // One that somebody else has set says the same, and stays in the end.
    let witness = witness.filter(|witness| owners.iter().all(|owner| owner.uid != witness.uid));
    let uid = witness.as_ref().map(|witness| witness.uid.clone());
    owners.extend(witness);
    let changes = owners != present || uid.as_ref() != noted;
    changes.then_some(References { owners, witness: uid })
}

fn of_owner(pod: &Pod) -> Option<OwnerReference> {
    let owner = controller(pod).filter(|owner| is_stateful_set(owner))?;
    // It must not keep the StatefulSet from going, nor claim to be one of its pods.
    Some(OwnerReference { controller: None, block_owner_deletion: None, ..owner.clone() })
}

#[cfg(test)]
mod tests {
    use transship_api::MigrationSpec;

    use super::*;

    fn pod(owner: Option<(&str, &str)>) -> Pod {
        let owners: Vec<Value> = owner
            .into_iter()
            .map(|(kind, uid)| {
                json!({"apiVersion": "apps/v1", "kind": kind, "name": "web", "uid": uid,
                    "controller": true, "blockOwnerDeletion": true})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"ownerReferences": owners}})).unwrap()
    }

    fn migration(owners: &[&str], witness: Option<&str>) -> Migration {
        let mut migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
        let owners: Vec<Value> = owners
            .iter()
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": uid}))
            .collect();
        migration.metadata.owner_references = Some(serde_json::from_value(json!(owners)).unwrap());
        migration.metadata.annotations =
            witness.map(|uid| [(names::WITNESS.to_owned(), uid.to_owned())].into());
        migration
    }

    fn uids(references: &References) -> (Vec<&str>, Option<&str>) {
        let owners = references.owners.iter().map(|owner| owner.uid.as_str()).collect();
        (owners, references.witness.as_deref())
    }

    #[test]
    fn a_witness_belongs_to_the_stateful_set_without_being_its_pod() {
        let set = pod(Some(("StatefulSet", "a")));
        let found = references(&migration(&["mine"], None), Some(&set)).unwrap();
        assert_eq!(uids(&found), (vec!["mine", "a"], Some("a")));
        let witness = &found.owners[1];
        assert_eq!((witness.controller, witness.block_owner_deletion), (None, None));
        let metadata = found.metadata();
        assert_eq!(metadata["annotations"], json!({"transship.dev/witness": "a"}));
        assert_eq!(metadata["ownerReferences"][1]["uid"], "a");
        for other in [None, Some(("ReplicaSet", "a"))] {
            assert_eq!(references(&migration(&[], None), Some(&pod(other))), None);
        }
    }

    #[test]
    fn a_witness_stands_until_the_owner_changes_or_none_is_needed() {
        let [a, b] = ["a", "b"].map(|uid| pod(Some(("StatefulSet", uid))));
        let stands = migration(&["mine", "a"], Some("a"));
        assert_eq!(references(&stands, Some(&a)), None);
        let changed = references(&stands, Some(&b)).unwrap();
        assert_eq!(uids(&changed), (vec!["mine", "b"], Some("b")));
        let without = references(&stands, None).unwrap();
        assert_eq!(uids(&without), (vec!["mine"], None));
        assert_eq!(without.metadata()["annotations"], json!({"transship.dev/witness": null}));
        let let_go = migration(&["mine"], Some("a"));
        assert_eq!(references(&let_go, Some(&a)), None, "it was taken off for a reason");
        assert!(references(&let_go, None).is_some(), "the note goes with it");
    }

    #[test]
    fn a_reference_of_somebody_elses_serves_as_well_and_stays() {
        let a = pod(Some(("StatefulSet", "a")));
        let theirs = migration(&["a"], None);
        assert_eq!(references(&theirs, Some(&a)), None);
        assert_eq!(references(&theirs, None), None);
    }
}
