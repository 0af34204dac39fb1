//! What the pod is made of again, stored in a Secret of its namespace.
//!
//! Nobody owns the Secret: with an owner it would go before its Migration when that is deleted in the
//! foreground, and for a pod without an owner it is all that is left. The name that is held back in the
//! namespace is the trace by which it is found and removed in the end ([`super::held_name`]).

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use sha2::{Digest, Sha256};
use transship_api::{Migration, names};
use transship_core::facts::NetworkFacts;
use transship_core::migration::Observed;
use transship_core::sequential_pod::{self, controller};
use transship_core::witness::references;

use super::error::STORE_MANIFEST;
use super::{Error, apply, claims};
use crate::context::Context;

/// Keys in the Secret.
const POD: &str = "pod.json";
const NETWORK: &str = "network.json";
const VOLUMES: &str = "volumes.json";

type Data = BTreeMap<String, ByteString>;

/// What is stored.
pub struct Stored {
    /// The source pod's manifest.
    pub pod: Pod,
    /// Its network.
    pub network: NetworkFacts,
    /// The volume that each of its claims was bound to.
    pub volumes: BTreeMap<String, String>,
}

impl Stored {
    fn of(data: &Data) -> Result<Option<Self>, Error> {
        let (Some(pod), Some(network)) = (data.get(POD), data.get(NETWORK)) else {
            return Ok(None);
        };
        // Not noted by older operators: nothing is compared then.
        let volumes = data.get(VOLUMES).map(|volumes| serde_json::from_slice(&volumes.0));
        Ok(Some(Self {
            pod: serde_json::from_slice(&pod.0)?,
            network: serde_json::from_slice(&network.0)?,
            volumes: volumes.transpose()?.unwrap_or_default(),
        }))
    }

    fn data(&self) -> Result<Data, Error> {
        Ok(BTreeMap::from([
            (POD.to_owned(), ByteString(serde_json::to_vec(&self.pod)?)),
            (NETWORK.to_owned(), ByteString(serde_json::to_vec(&self.network)?)),
            (VOLUMES.to_owned(), ByteString(serde_json::to_vec(&self.volumes)?)),
        ]))
    }
}

fn secrets(namespace: &str, context: &Context) -> Api<Secret> {
    Api::namespaced(context.client.clone(), namespace)
}

/// What is stored. A Secret whose content is not what the operator stored counts as none: people who may
/// write Secrets need not be people who may make pods.
pub async fn stored(observed: &Observed, context: &Context) -> Result<Option<Stored>, Error> {
    match current(observed, context).await? {
        Some((_, data)) => Stored::of(&data),
        None => Ok(None),
    }
}

/// The Secret that the status tells of, and its content, taken out of it.
async fn current(observed: &Observed, context: &Context) -> Result<Option<(Secret, Data)>, Error> {
    let Some(wanted) = observed.status().manifest_digest else { return Ok(None) };
    let secrets = secrets(&observed.migration.namespace().unwrap_or_default(), context);
    for name in names::manifest_secrets(observed.uid()) {
        let found = secrets.get_opt(&name).await;
        let found = found.map_err(Error::api("read the Secret with the manifest"))?;
        if let Some(mut secret) = found
            && let Some(data) = secret.data.take()
            && digest(&data) == wanted
        {
            return Ok(Some((secret, data)));
        }
    }
    Ok(None)
}

/// SHA-256 in hexadecimal digits of all keys and values, each behind its length.
fn digest(data: &Data) -> String {
    let mut hasher = Sha256::new();
    for part in data.iter().flat_map(|(key, value)| [key.as_bytes(), &value.0]) {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Stores what the pod is made of again. The Secret that counts so far stays until the new one does: the new
/// one comes first, then its digest in the status, which nobody else writes, and the old one goes last.
pub async fn store(
    observed: &Observed,
    network: &NetworkFacts,
    context: &Context,
) -> Result<(), Error> {
    let Some(source) = &observed.source_pod else { return Ok(()) };
    let migration = &observed.migration;
    let namespace = migration.namespace().unwrap_or_default();
    if let Some(before) = &observed.manifest
        && controller(before).map(|owner| &owner.uid) != controller(source).map(|owner| &owner.uid)
        && let Some(references) = references(migration, Some(source))
    {
        // Whoever owns the pod now says what becomes of it when it is deleted.
        apply::set_references(migration, &references, context).await?;
    }
    let volumes = match observed.manifest {
        // As with the network: what the memory has been with.
        Some(_) => observed.volumes.clone(),
        None => claims::bound(source, context, true).await?,
    };
    let pod = sequential_pod::manifest(source, observed.manifest.as_ref());
    let data = Stored { pod, network: network.clone(), volumes }.data()?;
    let digest = digest(&data);
    let old = current(observed, context).await?.map(|(secret, _)| secret);
    let [first, second] = names::manifest_secrets(observed.uid());
    let is_first = old.as_ref().is_some_and(|old| old.name_any() == first);
    let name = if is_first { second } else { first };
    let secrets = secrets(&namespace, context);
    // By a try that came no further.
    let left = secrets.get_metadata_opt(&name).await;
    let left = left.map_err(Error::api("read the Secret with the manifest"))?;
    // Nobody but the one who has seen the Migration as it is may go on: what a former leader takes for left over
    // may be what its successor has stored. What that stores after this goes by another UID.
    note(migration, observed.status().manifest_digest.as_deref(), context).await?;
    if let Some(left) = left {
        delete_one(&secrets, &name, left.metadata.uid).await?;
    }
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        data: Some(data),
        immutable: Some(true),
        ..Secret::default()
    };
    let made = secrets.create(&PostParams::default(), &secret).await;
    let made = made.map_err(Error::api(STORE_MANIFEST))?;
    let noted = note(migration, Some(&digest), context).await;
    if matches!(&noted, Err(Error::Api { source, .. })
        if matches!(&**source, kube::Error::Api(status) if status.is_not_found()))
    {
        // The Migration has vanished, and perhaps with it what the Secret would be found by.
        delete_one(&secrets, &name, made.metadata.uid).await?;
    }
    noted?;
    match old {
        Some(old) => delete_one(&secrets, &old.name_any(), old.metadata.uid).await,
        None => Ok(()),
    }
}

/// Notes which Secret counts, if the Migration is still as it was read.
async fn note(migration: &Migration, digest: Option<&str>, context: &Context) -> Result<(), Error> {
    let namespace = migration.namespace().unwrap_or_default();
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &namespace);
    let change = json!({
        "metadata": {"resourceVersion": migration.resource_version()},
        "status": {"manifestDigest": digest},
    });
    migrations
        .patch_status(&migration.name_any(), &PatchParams::default(), &Patch::Merge(change))
        .await
        .map(drop)
        .map_err(Error::api("note the manifest's digest"))
}

/// Removes what a Migration has stored.
pub async fn delete(namespace: &str, uid: &str, context: &Context) -> Result<(), Error> {
    let secrets = secrets(namespace, context);
    for name in names::manifest_secrets(uid) {
        delete_one(&secrets, &name, None).await?;
    }
    Ok(())
}

/// With a UID only the Secret that has it: another one of that name is somebody else's.
async fn delete_one(secrets: &Api<Secret>, name: &str, uid: Option<String>) -> Result<(), Error> {
    let only = |uid| Preconditions { uid: Some(uid), resource_version: None };
    let preconditions = uid.map(only);
    let is_guarded = preconditions.is_some();
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    match secrets.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(kube::Error::Api(status)) if is_guarded && status.is_conflict() => Ok(()),
        Err(error) => Err(Error::api("delete the Secret with the manifest")(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::body::Body;
    use axum::http::{Request, Response, StatusCode};
    use serde_json::Value;

    use super::*;

    /// An API server with one Secret, of this UID while it is there.
    async fn answer(
        secret: Arc<Mutex<Option<&'static str>>>,
        request: Request<kube::client::Body>,
    ) -> Result<Response<Body>, std::io::Error> {
        let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20).await;
        let wanted: Value = serde_json::from_slice(&body.map_err(std::io::Error::other)?)?;
        let wanted = wanted["preconditions"]["uid"].as_str();
        let mut secret = secret.lock().unwrap();
        let (code, reason) = match (&*secret, wanted) {
            (None, _) => (StatusCode::NOT_FOUND, "NotFound"),
            (Some(uid), Some(wanted)) if *uid != wanted => (StatusCode::CONFLICT, "Conflict"),
            (Some(_), _) => (StatusCode::OK, ""),
        };
        let outcome = if code.is_success() { "Success" } else { "Failure" };
        if code.is_success() {
            *secret = None;
        }
        let said = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": outcome,
            "reason": reason, "code": code.as_u16()});
        let response = Response::builder().status(code).body(Body::from(said.to_string()));
        response.map_err(std::io::Error::other)
    }

    #[tokio::test]
    async fn a_secret_that_another_leader_has_stored_under_the_same_name_stays() {
        let secret = Arc::new(Mutex::new(Some("uid-2")));
        let server = secret.clone();
        let service = move |request: Request<kube::client::Body>| answer(server.clone(), request);
        let client = kube::Client::new(tower::service_fn(service), "shop");
        let secrets: Api<Secret> = Api::namespaced(client, "shop");
        delete_one(&secrets, "m", Some("uid-1".into())).await.unwrap();
        assert_eq!(*secret.lock().unwrap(), Some("uid-2"));
        delete_one(&secrets, "m", Some("uid-2".into())).await.unwrap();
        assert_eq!(*secret.lock().unwrap(), None);
        delete_one(&secrets, "m", Some("uid-2".into())).await.unwrap();
    }

    #[test]
    fn what_is_stored_is_read_as_it_was_and_nothing_less() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web-0"}})).unwrap();
        let volumes = BTreeMap::from([("data-web-0".to_owned(), "pv-1".to_owned())]);
        let stored = Stored { pod, network: NetworkFacts::default(), volumes };
        let mut data = stored.data().unwrap();
        let read = Stored::of(&data).unwrap().unwrap();
        assert_eq!((&read.pod, &read.volumes), (&stored.pod, &stored.volumes));
        data.remove(VOLUMES);
        assert!(Stored::of(&data).unwrap().unwrap().volumes.is_empty());
        data.remove(NETWORK);
        assert!(Stored::of(&data).unwrap().is_none());
    }

    #[test]
    fn the_digest_tells_every_content_from_every_other() {
        let data = |parts: &[(&str, &str)]| -> Data {
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
