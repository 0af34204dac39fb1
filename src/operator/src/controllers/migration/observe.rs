//! Reads what a plan is made of. The Migration has been read before; pods are read uncached after
//! it, sides are what was heard last.

use std::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node as CoreNode, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use transship_api::{Migration, names};
use transship_core::migration::handover::selects;
use transship_core::migration::owner::{Controller, Kind};
use transship_core::migration::state::Owner;
use transship_core::migration::{Observed, Role, Side};
use transship_protocol::TargetProof;

use super::Error;
use super::owner::Owners;
use super::sequential;
use super::watch_sides::{Places, Sides};
use crate::context::Context;

/// Annotation with a pod's place in an indexed Job.
const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Observes an admitted (or ended) migration.
pub async fn observe(migration: Migration, context: &Context) -> Result<Observed, Error> {
    let uid = migration.uid().unwrap_or_default();
    let mut observed = Observed::of(migration);
    let (source, target, proof) = tokio::join!(
        source_pod(&observed, context),
        target_pod(&observed, context),
        target_proof(&observed, context),
    );
    observed.source_pod = source?;
    observed.target_pod = target?;
    observed.target_proof = proof;
    let Sides { source, target, frozen_seen } = sides(&observed, context);
    observed.source = source;
    observed.target = target;
    observed.frozen_seen = frozen_seen;
    observed.source_node_gone = node_gone(observed.node(Role::Source), context).await?;
    observed.target_node_gone = node_gone(observed.node(Role::Target), context).await?;
    let notes = context.memory.get(&uid);
    (observed.failure, observed.refused) = (notes.failure, notes.refused);
    if observed.is_sequential() {
        sequential::observe(&mut observed, context).await?;
    }
    if observed.recorded().resumed_at && !is_final(&observed.migration) {
        observe_owner(&mut observed, context).await?;
    }
    Ok(observed)
}

fn is_final(migration: &Migration) -> bool {
    migration.status.as_ref().and_then(|s| s.step).is_some_and(|s| s.is_final())
}

fn pods(observed: &Observed, context: &Context) -> Api<Pod> {
    let namespace = observed.migration.namespace().unwrap_or_default();
    Api::namespaced(context.client.clone(), &namespace)
}

async fn source_pod(observed: &Observed, context: &Context) -> Result<Option<Pod>, Error> {
    let recorded = observed.migration.status.as_ref().and_then(|s| s.source.as_ref());
    let (name, uid) = match recorded {
        Some(source) => (source.pod_name.as_str(), Some(source.pod_uid.as_str())),
        // Given up before it was admitted: perhaps the pod was claimed already.
        None => (observed.migration.spec.pod_name.as_str(), None),
    };
    let found =
        pods(observed, context).get_opt(name).await.map_err(Error::api("read the source pod"))?;
    Ok(found.filter(|pod| uid.is_none_or(|uid| pod.uid().as_deref() == Some(uid))))
}

async fn target_pod(observed: &Observed, context: &Context) -> Result<Option<Pod>, Error> {
    let recorded = observed.migration.status.as_ref().and_then(|s| s.target.as_ref());
    let Some(target) = recorded.filter(|t| !t.pod_name.is_empty()) else { return Ok(None) };
    let found = pods(observed, context)
        .get_opt(&target.pod_name)
        .await
        .map_err(Error::api("read the target pod"))?;
    // By its label before it is recorded, by its UID afterwards (the label goes at the end).
    Ok(found.filter(|pod| {
        let labelled = pod.labels().get(names::MIGRATION_LABEL).map(String::as_str);
        labelled == Some(observed.uid())
            || (!target.pod_uid.is_empty() && pod.uid().as_deref() == Some(&target.pod_uid))
    }))
}

/// Whether the target's silence is a proof: from reads of its node's Lease that follow one of the
/// open Commit.
async fn target_proof(observed: &Observed, context: &Context) -> TargetProof {
    // In the sequential order nothing runs beside the target: its silence is no proof, and needs none.
    if !observed.recorded().is_open_commit() || observed.is_sequential() {
        return TargetProof::None;
    }
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), &context.namespace);
    let asked = Instant::now();
    let found = leases.get_metadata_opt(&names::node_lease(observed.node(Role::Target))).await;
    let answered = Instant::now();
    let lease = match found {
        Ok(lease) => lease,
        Err(error) => {
            // What is not known proves nothing, and need not keep the migration from going on.
            tracing::warn!(%error, "the target node's Lease could not be read");
            return TargetProof::None;
        }
    };
    let key = names::signature(observed.uid());
    let signature = lease.as_ref().and_then(|lease| lease.annotations().get(&key));
    context.memory.note(observed.uid(), |notes| {
        notes.signatures.look(signature.map(String::as_str), asked, answered)
    })
}

/// What the sides said. Before the target is recorded nothing has been started.
fn sides(observed: &Observed, context: &Context) -> Sides {
    let status = observed.migration.status.as_ref();
    let not_started =
        Sides { source: Side::NotStarted, target: Side::NotStarted, frozen_seen: None };
    let (Some(source), Some(target)) =
        (status.and_then(|s| s.source.as_ref()), status.and_then(|s| s.target.as_ref()))
    else {
        return not_started;
    };
    // A pod that is to be made again has no UID yet, and the source has a word.
    if target.pod_uid.is_empty() && !observed.is_sequential() {
        return not_started;
    }
    if observed.recorded().decision.is_none() && target.pod_uid.is_empty() {
        return not_started;
    }
    let places = Places {
        uid: observed.uid().to_owned(),
        namespace: observed.migration.namespace().unwrap_or_default(),
        nodes: [source.node.clone(), target.node.clone()],
        pods: [source.pod_name.clone(), target.pod_name.clone()],
    };
    context.sides.look(&ObjectRef::from_obj(&observed.migration), &places)
}

/// Whether the cluster has no such node any more: by the cache, and if that says so, by a read.
pub async fn node_gone(name: &str, context: &Context) -> Result<bool, Error> {
    if name.is_empty() || context.core_nodes.get(&ObjectRef::new(name)).is_some() {
        return Ok(false);
    }
    let nodes: Api<CoreNode> = Api::all(context.client.clone());
    let found = nodes.get_opt(name).await.map_err(Error::api("read a node"))?;
    Ok(found.is_none())
}

/// Owner, Services and endpoints: needed for the hand-over only.
pub async fn observe_owner(observed: &mut Observed, context: &Context) -> Result<(), Error> {
    let namespace = observed.migration.namespace().unwrap_or_default();
    if !observed.is_sequential() {
        observed.owner = owner(observed, &namespace, context).await?;
    }
    let services: Api<Service> = Api::namespaced(context.client.clone(), &namespace);
    let listed =
        services.list(&ListParams::default()).await.map_err(Error::api("list the Services"))?;
    let selectors = listed.items.into_iter().filter_map(|service| {
        let selector = service.spec.as_ref()?.selector.clone()?;
        Some((service.name_any(), selector))
    });
    let selectors: Vec<_> = selectors.collect();
    if let Some(target) = &observed.target_pod {
        let names = selectors
            .iter()
            .filter(|(_, selector)| selects(selector, target.labels()))
            .map(|(name, _)| name.clone());
        let uid = target.uid().unwrap_or_default();
        observed.endpoints_know_target =
            all_list(&namespace, names.collect(), &uid, context).await?;
    }
    observed.services = selectors.into_iter().map(|(_, selector)| selector).collect();
    Ok(())
}

async fn all_list(
    namespace: &str,
    services: Vec<String>,
    pod_uid: &str,
    context: &Context,
) -> Result<bool, Error> {
    let slices: Api<EndpointSlice> = Api::namespaced(context.client.clone(), namespace);
    for service in services {
        let of_service =
            ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        let listed = slices.list(&of_service).await.map_err(Error::api("list the endpoints"))?;
        let known = listed.items.iter().flat_map(|slice| slice.endpoints.iter().flatten()).any(
            |endpoint| endpoint.target_ref.as_ref().and_then(|r| r.uid.as_deref()) == Some(pod_uid),
        );
        if !known {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whose the pod is: by the claim on the source or the target, by the note of a hand-over under
/// way, or, when the source is gone, by the name that its siblings' names are made of.
async fn owner(observed: &Observed, namespace: &str, context: &Context) -> Result<Owner, Error> {
    let owners = Owners { client: &context.client, namespace };
    let claims = [&observed.source_pod, &observed.target_pod].into_iter().flatten();
    let claim =
        claims.flat_map(|pod| pod.owner_references()).find(|owner| owner.controller == Some(true));
    if let Some(claim) = claim {
        return owners.of(claim).await;
    }
    if let Some(uid) = observed.migration.labels().get(names::HANDOVER_LABEL) {
        return owners.with_uid(uid).await;
    }
    // The note has gone with a Migration that has vanished, perhaps between the source's claim and the target's.
    let was_stripped = observed.vanished && observed.source_pod.as_ref().is_some_and(is_stripped);
    if observed.source_pod.is_some() && !was_stripped {
        return Ok(Owner::None);
    }
    // That there is none proves nothing: its pods may have been orphaned on purpose.
    let Some(target) = &observed.target_pod else { return Ok(Owner::None) };
    let Some((kind, name)) = maker(target) else { return Ok(Owner::None) };
    Ok(owners.named(kind, &name).await?.map_or(Owner::None, standing))
}

/// A pod that was let go by its owner still has the labels by which that had found it.
fn is_stripped(source: &Pod) -> bool {
    source.labels().is_empty() && source.owner_references().is_empty()
}

fn standing(controller: Controller) -> Owner {
    Owner::Controller(Box::new(controller))
}

/// Who made the pod's first: told by the name that its siblings' names are made of, and by what
/// only pods of Jobs have.
fn maker(pod: &Pod) -> Option<(Kind, String)> {
    let prefix = pod.metadata.generate_name.as_deref()?;
    let name = prefix.trim_end_matches('-');
    let (kind, name) = match pod.annotations().get(COMPLETION_INDEX) {
        Some(index) => (Kind::Job, name.strip_suffix(&format!("-{index}"))?),
        None if is_of_a_job(pod) => (Kind::Job, name),
        None => (Kind::ReplicaSet, name),
    };
    (!name.is_empty()).then(|| (kind, name.to_owned()))
}

/// The template of a Job's pods may not say that they start again for ever.
fn is_of_a_job(pod: &Pod) -> bool {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    policy.is_some_and(|policy| policy != "Always")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("web-abc-", None, "Always", Some((Kind::ReplicaSet, "web-abc")))]
    #[case("sum-", None, "Never", Some((Kind::Job, "sum")))]
    #[case("sum-3-", Some("3"), "OnFailure", Some((Kind::Job, "sum")))]
    #[case("-", None, "Always", None)]
    fn a_pod_whose_source_is_gone_is_known_by_its_name(
        #[case] generate_name: &str,
        #[case] index: Option<&str>,
        #[case] policy: &str,
        #[case] expected: Option<(Kind, &str)>,
    ) {
        let annotations: std::collections::BTreeMap<&str, &str> =
            index.map(|index| (COMPLETION_INDEX, index)).into_iter().collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"generateName": generate_name, "annotations": annotations},
            "spec": {"containers": [], "restartPolicy": policy},
        }))
        .unwrap();
        let expected = expected.map(|(kind, name)| (kind, name.to_owned()));
        assert_eq!(maker(&pod), expected);
    }
}
