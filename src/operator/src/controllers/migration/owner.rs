//! Reads the controllers whose pods are handed over, whichever kind they are of.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use transship_core::migration::owner::{Controller, Kind};
use transship_core::migration::state::Owner;

use super::Error;

/// Finalizer of an object that is deleted without what it owns: its pods are let go first.
const ORPHANS: &str = "orphan";

/// The controllers of a namespace. Those that are being deleted count as gone, and those that are
/// deleted without their pods as nobody's.
pub struct Owners<'a> {
    /// Reads them.
    pub client: &'a Client,
    /// Where.
    pub namespace: &'a str,
}

impl Owners<'_> {
    /// Whose a pod with this claim is.
    pub async fn of(&self, claim: &OwnerReference) -> Result<Owner, Error> {
        let uid = &claim.uid;
        match Kind::of(claim) {
            Some(Kind::ReplicaSet) => Ok(whose(self.read::<ReplicaSet>(&claim.name).await?, uid)),
            Some(Kind::Job) => Ok(whose(self.read::<Job>(&claim.name).await?, uid)),
            None => Ok(Owner::Gone),
        }
    }

    /// The one of this kind and name.
    pub async fn named(&self, kind: Kind, name: &str) -> Result<Option<Controller>, Error> {
        match kind {
            Kind::ReplicaSet => Ok(self.read::<ReplicaSet>(name).await?.and_then(standing)),
            Kind::Job => Ok(self.read::<Job>(name).await?.and_then(standing)),
        }
    }

    /// Whose a pod is that is handed over for the one with this UID. That there is none proves
    /// nothing: it may have let go of a pod that had its claim already.
    pub async fn with_uid(&self, uid: &str) -> Result<Owner, Error> {
        if let Some(found) = self.find::<ReplicaSet>(uid).await? {
            return Ok(whose(Some(found), uid));
        }
        let found = self.find::<Job>(uid).await?;
        Ok(found.map_or(Owner::None, |job| whose(Some(job), uid)))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn read<K>(&self, name: &str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        self.api::<K>().get_opt(name).await.map_err(Error::api("read the owner"))
    }

    async fn find<K>(&self, uid: &str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let listed = self
            .api::<K>()
            .list(&ListParams::default())
            .await
            .map_err(Error::api("list owners"))?;
        Ok(listed.items.into_iter().find(|object| object.uid().as_deref() == Some(uid)))
    }
}

fn standing<K: ResourceExt + Into<Controller>>(object: K) -> Option<Controller> {
    object.meta().deletion_timestamp.is_none().then(|| object.into())
}

/// Whose a pod is that bears the claim of an object with this UID; `found` is what has its name.
fn whose<K: ResourceExt + Into<Controller>>(found: Option<K>, uid: &str) -> Owner {
    let Some(object) = found.filter(|object| object.uid().as_deref() == Some(uid)) else {
        return Owner::Gone;
    };
    let deleted = object.meta().deletion_timestamp.is_some();
    if deleted && object.finalizers().iter().any(|finalizer| finalizer == ORPHANS) {
        return Owner::None;
    }
    standing(object).map_or(Owner::Gone, |controller| Owner::Controller(Box::new(controller)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    #[rstest]
    #[case::stands(json!({"uid": "rs"}), "rs", "Controller")]
    #[case::another_of_its_name(json!({"uid": "rs"}), "other", "Gone")]
    #[case::goes_with_its_pods(json!({"uid": "rs", "deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": ["foregroundDeletion"]}), "rs", "Gone")]
    #[case::goes_without_its_pods(json!({"uid": "rs", "deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": ["orphan"]}), "rs", "None")]
    fn an_owner_that_is_deleted_takes_its_pods_along_unless_it_orphans_them(
        #[case] metadata: Value,
        #[case] claimed: &str,
        #[case] expected: &str,
    ) {
        let set: ReplicaSet = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let found = match whose(Some(set), claimed) {
            Owner::None => "None",
            Owner::Controller(_) => "Controller",
            Owner::StatefulSet(_) | Owner::Going => "StatefulSet",
            Owner::Gone => "Gone",
        };
        assert_eq!(found, expected);
        assert_eq!(whose::<ReplicaSet>(None, claimed), Owner::Gone);
    }
}
