//! The claims of a pod's persistent volumes, and what they are bound to.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt};
use transship_core::placement::volumes::{Volumes, claimed};
use transship_core::preflight::Claim;

use super::Error;
use crate::context::Context;

/// Reads them.
pub async fn of(pod: &Pod, context: &Context) -> Result<Vec<Claim>, Error> {
    let namespace = pod.namespace().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let mut found = Vec::new();
    for (volume, name) in claimed(pod) {
        let claim = claims.get_opt(&name).await.map_err(Error::api("read the pod's claim"))?;
        let bound = match claim.as_ref().and_then(Volumes::bound_to) {
            Some(bound) => {
                volumes.get_opt(bound).await.map_err(Error::api("read the pod's volume"))?
            }
            None => None,
        };
        found.push(Claim { volume: volume.to_owned(), name, claim, bound });
    }
    Ok(found)
}

/// Names of the volumes that a pod's claims are bound to, by claim; empty for a claim that is bound to none,
/// or not there. `going`: whether a claim that is being deleted counts as there, which goes before anybody else
/// mounts it.
pub async fn bound(
    pod: &Pod,
    context: &Context,
    going: bool,
) -> Result<BTreeMap<String, String>, Error> {
    let namespace = pod.namespace().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    let mut found = BTreeMap::new();
    for (_, name) in claimed(pod) {
        let claim = claims.get_opt(&name).await.map_err(Error::api("read the pod's claim"))?;
        let claim = claim.filter(|claim| going || claim.metadata.deletion_timestamp.is_none());
        let volume = claim.as_ref().and_then(Volumes::bound_to).unwrap_or_default();
        found.insert(name, volume.to_owned());
    }
    Ok(found)
}
