//! What a sequential hand-over reads and does beside the rest: the stored manifest, the name that is
//! held back, the pods on trial and made again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use transship_api::{Migration, names};
use transship_core::facts::NetworkFacts;
use transship_core::migration::state::Owner;
use transship_core::migration::{Observed, Role};
use transship_core::sequential_pod::{self, controller};
use transship_core::target_pod::target_name;
use transship_host::task::Part;
use transship_protocol::Decision;

use super::Error;
use crate::context::Context;

/// Keys in the Secret.
const POD: &str = "pod.json";
const NETWORK: &str = "network.json";
/// How often names are looked for that are held back for nobody.
const SWEEP: Duration = Duration::from_secs(60);

fn namespace(observed: &Observed) -> String {
    observed.migration.namespace().unwrap_or_default()
}

fn secrets(observed: &Observed, context: &Context) -> Api<Secret> {
    Api::namespaced(context.client.clone(), &namespace(observed))
}

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
    let (stored, held) =
        tokio::try_join!(stored(observed, context), name_is_held(observed, context))?;
    (observed.manifest, observed.network) = stored.unzip();
    observed.name_is_held = held;
    let ended = observed.status().step.is_some_and(|s| s.is_final());
    if observed.recorded().decision != Some(Decision::Commit) || ended {
        return Ok(());
    }
    let Some(manifest) = observed.manifest.clone() else {
        // The Secret may go before its Migration (`--cascade=foreground`); the trial's pod goes all the same.
        if matches!(part(observed, Role::Target), Part::Trial) {
            observed.trial_pod.clone_from(&observed.target_pod);
        }
        return Ok(());
    };
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace(observed));
    let trial = target_name(&manifest, observed.uid());
    let (trial, again) = tokio::join!(
        pods.get_opt(&trial),
        pods.get_opt(manifest.metadata.name.as_deref().unwrap_or_default())
    );
    let label = |pod: &Pod| pod.labels().get(names::MIGRATION_LABEL).cloned();
    observed.trial_pod = trial
        .map_err(Error::api("read the pod of the restore on trial"))?
        .filter(|pod| label(pod).as_deref() == Some(observed.uid()));
    observed.again_pod = again
        .map_err(Error::api("read the pod that is made again"))?
        .filter(|pod| pod.uid() != manifest.uid());
    observed.owner = owner(&manifest, &namespace(observed), context).await?;
    Ok(())
}

async fn name_is_held(observed: &Observed, context: &Context) -> Result<bool, Error> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found = namespaces.get_opt(&namespace(observed)).await;
    let found = found.map_err(Error::api("read the namespace"))?;
    let key = names::held_name(observed.uid());
    Ok(found.is_some_and(|n| {
        n.annotations().contains_key(&key)
            && n.labels().contains_key(names::HANDOVER_NAMESPACE_LABEL)
    }))
}

/// The stored manifest and network. A Secret whose content is not what the operator stored counts as none:
/// people who may write Secrets need not be people who may make pods.
async fn stored(
    observed: &Observed,
    context: &Context,
) -> Result<Option<(Pod, NetworkFacts)>, Error> {
    let name = names::manifest_secret(observed.uid());
    let found = secrets(observed, context).get_opt(&name).await;
    let found = found.map_err(Error::api("read the Secret with the manifest"))?;
    let Some(data) = found.and_then(|secret| secret.data) else { return Ok(None) };
    if Some(digest(&data)) != observed.status().manifest_digest {
        tracing::warn!(secret = name, "it is not what was stored");
        return Ok(None);
    }
    let (Some(pod), Some(network)) = (data.get(POD), data.get(NETWORK)) else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&pod.0)?, serde_json::from_slice(&network.0)?)))
}

/// SHA-256 in hexadecimal digits of all keys and values, each behind its length.
fn digest(data: &BTreeMap<String, ByteString>) -> String {
    let mut hasher = Sha256::new();
    for part in data.iter().flat_map(|(key, value)| [key.as_bytes(), &value.0]) {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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

/// Stores what the pod is made of again: its digest in the status first, which nobody else writes, then
/// the Secret, in the place of one with another content.
pub async fn store_manifest(
    observed: &Observed,
    network: &NetworkFacts,
    context: &Context,
) -> Result<(), Error> {
    let Some(source) = &observed.source_pod else { return Ok(()) };
    let data = BTreeMap::from([
        (POD.to_owned(), ByteString(serde_json::to_vec(&sequential_pod::manifest(source))?)),
        (NETWORK.to_owned(), ByteString(serde_json::to_vec(network)?)),
    ]);
    let migration = &observed.migration;
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &namespace(observed));
    let status = json!({"status": {"manifestDigest": digest(&data)}});
    migrations
        .patch_status(&migration.name_any(), &PatchParams::default(), &Patch::Merge(status))
        .await
        .map_err(Error::api("note the manifest's digest"))?;
    delete_manifest(observed, context).await?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(names::manifest_secret(observed.uid())),
            owner_references: Some(vec![OwnerReference {
                api_version: Migration::api_version(&()).into_owned(),
                kind: Migration::kind(&()).into_owned(),
                name: migration.name_any(),
                uid: observed.uid().to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        data: Some(data),
        immutable: Some(true),
        ..Secret::default()
    };
    secrets(observed, context)
        .create(&PostParams::default(), &secret)
        .await
        .map_err(Error::api("store the pod's manifest"))?;
    Ok(())
}

/// Removes it.
pub async fn delete_manifest(observed: &Observed, context: &Context) -> Result<(), Error> {
    let name = names::manifest_secret(observed.uid());
    match secrets(observed, context).delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Error::api("delete the Secret with the manifest")(error)),
    }
}

/// Holds the source's name back in its namespace, or frees it.
pub async fn hold_name(observed: &Observed, held: bool, context: &Context) -> Result<(), Error> {
    let source = observed.status().source.map(|source| source.pod_name).filter(|_| held);
    mark_name(&namespace(observed), observed.uid(), source.as_deref(), context).await
}

/// Frees the name that a Migration held which has vanished. Whether it did the namespace says: what was
/// last seen of the Migration may be older.
pub async fn free_name(namespace: &str, uid: &str, context: &Context) -> Result<(), Error> {
    mark_name(namespace, uid, None, context).await
}

/// Frees, until `stop`, the names of Migrations that vanished unseen: while no operator ran, or a watch
/// was broken. No pod of these names could ever be made.
pub async fn keep_names(context: Arc<Context>, stop: CancellationToken) {
    loop {
        if let Err(error) = free_vanished(&context).await {
            tracing::warn!(error = error.chain(), "held names are looked at later");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
    }
}

async fn free_vanished(context: &Context) -> Result<(), Error> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let marked = ListParams::default().labels(names::HANDOVER_NAMESPACE_LABEL);
    let listed =
        namespaces.list_metadata(&marked).await.map_err(Error::api("list the namespaces"))?;
    for namespace in &listed.items {
        let name = namespace.name_any();
        let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &name);
        // After the marks: a Migration for which one was set has been there before.
        let listed = migrations
            .list_metadata(&ListParams::default())
            .await
            .map_err(Error::api("list the Migrations"))?;
        let there: BTreeSet<String> = listed.items.iter().filter_map(ResourceExt::uid).collect();
        for uid in held_for_nobody(namespace.annotations(), &there) {
            tracing::info!(
                namespace = name,
                migration = uid,
                "a vanished Migration's name is freed"
            );
            free_name(&name, uid, context).await?;
        }
    }
    Ok(())
}

/// UIDs for which a namespace's annotations hold names, though no such Migration is there.
fn held_for_nobody<'a>(
    annotations: &'a BTreeMap<String, String>,
    there: &BTreeSet<String>,
) -> Vec<&'a str> {
    annotations
        .keys()
        .filter_map(|key| key.strip_prefix(names::HELD_NAME_PREFIX))
        .filter(|uid| !there.contains(*uid))
        .collect()
}

/// Holds a name back for a Migration, or none any more. The label goes with the last name.
async fn mark_name(
    namespace: &str,
    uid: &str,
    held: Option<&str>,
    context: &Context,
) -> Result<(), Error> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let found = namespaces.get_opt(namespace).await.map_err(Error::api("read the namespace"))?;
    let Some(found) = found else { return Ok(()) };
    let key = names::held_name(uid);
    if held.is_none() && !found.annotations().contains_key(&key) {
        return Ok(());
    }
    let others = found
        .annotations()
        .keys()
        .any(|other| other.starts_with(names::HELD_NAME_PREFIX) && *other != key);
    let patch = json!({"metadata": {
        "uid": found.uid(),
        // Somebody else may hold or free another name at this moment.
        "resourceVersion": found.resource_version(),
        "labels": {names::HANDOVER_NAMESPACE_LABEL: (held.is_some() || others).then_some("true")},
        "annotations": {key: held},
    }});
    namespaces
        .patch(namespace, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(Error::api("mark the namespace"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_for_migrations_that_are_there() {
        let annotations: BTreeMap<String, String> = [
            (names::held_name("m-1"), "web-0"),
            (names::held_name("m-2"), "web-1"),
            ("x".into(), "y"),
        ]
        .into_iter()
        .map(|(key, value)| (key, value.to_owned()))
        .collect();
        let there = BTreeSet::from(["m-2".to_owned()]);
        assert_eq!(held_for_nobody(&annotations, &there), ["m-1"]);
    }

    #[test]
    fn the_digest_tells_every_content_from_every_other() {
        let data = |parts: &[(&str, &str)]| -> BTreeMap<String, ByteString> {
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            parts.iter().map(|(key, value)| ((*key).to_owned(), bytes(value))).collect()
        };
        let all = [
            data(&[]),
            data(&[("pod.json", "{}")]),
            data(&[("pod.json", "{ }")]),
            data(&[("pod.jso", "n{}")]),
            data(&[("pod.json", "{}"), ("more", "")]),
        ];
        let digests: std::collections::BTreeSet<String> = all.iter().map(digest).collect();
        assert_eq!(digests.len(), all.len());
        assert!(digests.iter().all(|digest| digest.len() == 64));
    }
}
