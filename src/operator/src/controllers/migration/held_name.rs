//! The name that is held back while its pod is handed over: a mark on the namespace, which is also the trace
//! of the stored manifest of a Migration that has vanished.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use transship_api::names;
use transship_core::migration::Observed;

use super::vanished::uids_there;
use super::{Error, manifest};
use crate::context::Context;

/// How often names are looked for that are held back for nobody.
const SWEEP: Duration = Duration::from_secs(60);

/// Whether creating a pod of the source's name is held back.
pub async fn is_held(observed: &Observed, context: &Context) -> Result<bool, Error> {
    let found = read(&observed.migration.namespace().unwrap_or_default(), context).await?;
    let key = names::held_name(observed.uid());
    Ok(found.is_some_and(|n| {
        n.annotations().contains_key(&key)
            && n.labels().contains_key(names::HANDOVER_NAMESPACE_LABEL)
    }))
}

async fn read(namespace: &str, context: &Context) -> Result<Option<Namespace>, Error> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    namespaces.get_opt(namespace).await.map_err(Error::api("read the namespace"))
}

/// Holds the source's name back in its namespace.
pub async fn hold(observed: &Observed, context: &Context) -> Result<(), Error> {
    let Some(source) = observed.status().source else { return Ok(()) };
    let namespace = observed.migration.namespace().unwrap_or_default();
    mark(&namespace, observed.uid(), Some(&source.pod_name), context).await
}

/// Frees the name that a Migration held, and removes what was stored under it. Of one that has vanished
/// the namespace says whether it held any: what was last seen of it may be older.
pub async fn free(namespace: &str, uid: &str, context: &Context) -> Result<(), Error> {
    manifest::delete(namespace, uid, context).await?;
    mark(namespace, uid, None, context).await
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
        // Somebody's webhook may guard this one; the others are none of its business.
        if let Err(error) = free_vanished_in(&name, namespace.annotations(), context).await {
            let error = error.chain();
            tracing::warn!(namespace = name, error, "held names are looked at later");
        }
    }
    Ok(())
}

async fn free_vanished_in(
    namespace: &str,
    marks: &BTreeMap<String, String>,
    context: &Context,
) -> Result<(), Error> {
    let there = uids_there(namespace, context).await?;
    for uid in held_for_nobody(marks, &there) {
        tracing::info!(namespace, migration = uid, "a vanished Migration's name is freed");
        free(namespace, uid, context).await?;
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
async fn mark(
    namespace: &str,
    uid: &str,
    held: Option<&str>,
    context: &Context,
) -> Result<(), Error> {
    let Some(found) = read(namespace, context).await? else { return Ok(()) };
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
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
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
}
