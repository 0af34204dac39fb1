//! The claims of a pod's persistent volumes, and what they are bound to.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt};
use transship_core::preflight::Claim;
use transship_core::sequential_pod::is_exclusive;

use super::Error;
use crate::context::Context;

/// Reads them, where they can be handed over at all.
pub async fn of(pod: &Pod, context: &Context) -> Result<Vec<Claim>, Error> {
    if !is_exclusive(pod) {
        return Ok(Vec::new());
    }
    let namespace = pod.namespace().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let mut found = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(source) = &volume.persistent_volume_claim else { continue };
        let name = source.claim_name.clone();
        let claim = claims.get_opt(&name).await.map_err(Error::api("read a claim"))?;
        let bound = match claim.as_ref().and_then(|c| c.spec.as_ref()?.volume_name.clone()) {
            Some(bound) => {
                volumes.get_opt(&bound).await.map_err(Error::api("read a persistent volume"))?
            }
            None => None,
        };
        found.push(Claim { volume: volume.name.clone(), name, claim, bound });
    }
    Ok(found)
}
