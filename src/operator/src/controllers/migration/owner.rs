//! Reads the controllers whose pods are handed over, whichever kind they are of.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use transship_core::migration::owner::{Controller, Kind};

use super::Error;

/// The controllers of a namespace. Those that are being deleted count as gone.
pub struct Owners<'a> {
    /// Reads them.
    pub client: &'a Client,
    /// Where.
    pub namespace: &'a str,
}

impl Owners<'_> {
    /// The one of this kind and name.
    pub async fn named(&self, kind: Kind, name: &str) -> Result<Option<Controller>, Error> {
        match kind {
            Kind::ReplicaSet => self.get::<ReplicaSet>(name).await,
            Kind::Job => self.get::<Job>(name).await,
        }
    }

    /// The one with this UID.
    pub async fn with_uid(&self, uid: &str) -> Result<Option<Controller>, Error> {
        match self.find::<ReplicaSet>(uid).await? {
            Some(found) => Ok(Some(found)),
            None => self.find::<Job>(uid).await,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn get<K>(&self, name: &str) -> Result<Option<Controller>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Into<Controller>,
    {
        let found = self.api::<K>().get_opt(name).await.map_err(Error::api("read the owner"))?;
        Ok(found.and_then(standing))
    }

    async fn find<K>(&self, uid: &str) -> Result<Option<Controller>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Into<Controller>,
    {
        let listed = self
            .api::<K>()
            .list(&ListParams::default())
            .await
            .map_err(Error::api("list owners"))?;
        let found = listed.items.into_iter().find(|object| object.uid().as_deref() == Some(uid));
        Ok(found.and_then(standing))
    }
}

fn standing<K: ResourceExt + Into<Controller>>(object: K) -> Option<Controller> {
    object.meta().deletion_timestamp.is_none().then(|| object.into())
}
