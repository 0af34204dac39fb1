//! What a sequential hand-over reads beside the rest: the stored manifest, whether the name is held
//! back, the pods on trial and made again, their owner and volumes.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use transship_api::names;
use transship_core::migration::state::Owner;
use transship_core::migration::voting::is_on_no_node;
use transship_core::migration::{Observed, Role};
use transship_core::sequential_pod::controller;
use transship_core::target_pod::target_name;
use transship_host::task::Part;
use transship_protocol::Decision;

use super::{Error, claims, held_name, manifest};
use crate::context::Context;

/// Which part a side plays.
pub fn part(observed: &Observed, role: Role) -> Part {
    let status = observed.status();
    let made_again = match (&status.source, &status.target) {
        (Some(source), Some(target)) => source.pod_name == target.pod_name,
        _ => false,
    };
    let back = status.resolution.is_some();
    match (role, observed.is_cold()) {
        _ if !status.is_sequential() => Part::Overlap,
        (Role::Target, false) if made_again && back => Part::AgainAtSource,
        (Role::Target, false) if made_again => Part::Again,
        (Role::Target, true) if made_again && back => Part::ColdAgainAtSource,
        (Role::Target, true) if made_again => Part::ColdAgain,
        (Role::Source | Role::Target, false) => Part::Trial,
        (Role::Source | Role::Target, true) => Part::Cold,
    }
}

/// Reads what only this order needs.
pub async fn observe(observed: &mut Observed, context: &Context) -> Result<(), Error> {
    let (stored, held) = tokio::try_join!(
        manifest::stored(observed, context),
        held_name::is_held(observed, context)
    )?;
    if let Some(stored) = stored {
        observed.manifest = Some(stored.pod);
        observed.network = Some(stored.network);
        observed.volumes = stored.volumes;
    }
    observed.name_is_held = held;
    let status = observed.status();
    let ended = status.step.is_some_and(|s| s.is_final());
    if observed.recorded().decision != Some(Decision::Commit) || ended {
        return Ok(());
    }
    let namespace = observed.migration.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let source = status.source.unwrap_or_default();
    // Somebody may have deleted the Secret: the trial's pod goes all the same.
    let on_trial = !part(observed, Role::Target).is_again();
    let recorded = status.target.map(|target| target.pod_name).filter(|_| on_trial);
    let manifest = observed.manifest.clone();
    let trial = manifest.as_ref().map(|pod| target_name(pod, observed.uid())).or(recorded);
    let (trial, again) = tokio::try_join!(
        read(&pods, trial.as_deref().unwrap_or_default()),
        read(&pods, &source.pod_name)
    )?;
    let ours = |pod: &Pod| {
        pod.labels().get(names::MIGRATION_LABEL).map(String::as_str) == Some(observed.uid())
    };
    let trial = trial.filter(ours);
    observed.trial_pod = trial;
    observed.again_pod = again.filter(|pod| pod.uid().as_deref() != Some(&*source.pod_uid));
    let Some(manifest) = manifest else { return Ok(()) };
    observed.owner = owner(&manifest, &namespace, context).await?;
    let may_mount = observed.again_pod.as_ref().is_none_or(is_on_no_node);
    if observed.source_pod.is_none() && may_mount && !observed.volumes.is_empty() {
        observed.volumes_now = Some(claims::bound(&manifest, context, false).await?);
    }
    Ok(())
}

/// A pod of this name; none without a name.
async fn read(pods: &Api<Pod>, name: &str) -> Result<Option<Pod>, Error> {
    if name.is_empty() {
        return Ok(None);
    }
    pods.get_opt(name).await.map_err(Error::api("read a pod of the hand-over"))
}

/// The pod's StatefulSet, as it is now.
async fn owner(manifest: &Pod, namespace: &str, context: &Context) -> Result<Owner, Error> {
    let Some(claim) = controller(manifest) else { return Ok(Owner::None) };
    let sets: Api<StatefulSet> = Api::namespaced(context.client.clone(), namespace);
    let found = sets.get_opt(&claim.name).await.map_err(Error::api("read the StatefulSet"))?;
    Ok(match found {
        Some(set) if set.uid().as_deref() != Some(claim.uid.as_str()) => Owner::Gone,
        Some(set) if set.metadata.deletion_timestamp.is_some() => Owner::Going,
        Some(set) => Owner::StatefulSet(Box::new(set)),
        None => Owner::Gone,
    })
}
