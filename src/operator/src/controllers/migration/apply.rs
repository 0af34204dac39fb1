//! Carries out a plan's actions, in order. Each may have been done before: by this process, by a
//! former leader, or in part.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Map, Value, json};
use transship_api::{Migration, names};
use transship_core::facts::{NetworkFacts, PodFacts};
use transship_core::migration::handover::Labels;
use transship_core::migration::owner::{DELETION_COST, JOB_TRACKING, Kind};
use transship_core::migration::plan::{Action, Leaves};
use transship_core::migration::{Observed, Role};
use transship_core::witness::{References, references};
use transship_rpc as rpc;

use super::ask::no_trial;
use super::observe::node_gone;
use super::task::{Parts, task};
use super::{Error, held_name, manifest, sequential};
use crate::context::Context;
use crate::controllers::node::remove_signature;

/// What an action is called in logs.
pub fn name(action: &Action) -> &'static str {
    match action {
        Action::CreateTarget(_) => "CreateTarget",
        Action::StartSide(Role::Source) => "StartSource",
        Action::StartSide(Role::Target) => "StartTarget",
        Action::RemoveGate => "RemoveGate",
        Action::Freeze => "Freeze",
        Action::Hint(Role::Source) => "HintSource",
        Action::Hint(Role::Target) => "HintTarget",
        Action::MarkResumed => "MarkResumed",
        Action::LabelTarget(_) => "LabelTarget",
        Action::MoveClaim { .. } => "MoveClaim",
        Action::StripSource => "StripSource",
        Action::ReturnClaim(_) => "ReturnClaim",
        Action::Release => "Release",
        Action::EndHandover => "EndHandover",
        Action::MoveLease { .. } => "MoveLease",
        Action::DeleteSource => "DeleteSource",
        Action::DeleteTarget => "DeleteTarget",
        Action::UnclaimSource => "UnclaimSource",
        Action::UnclaimTarget => "UnclaimTarget",
        Action::Forget(Role::Source) => "ForgetSource",
        Action::Forget(Role::Target) => "ForgetTarget",
        Action::HoldName => "HoldName",
        Action::StoreManifest => "StoreManifest",
        Action::FreeName => "FreeName",
        Action::DropWitness => "DropWitness",
        Action::DeleteTrial => "DeleteTrial",
        Action::DeleteAgain => "DeleteAgain",
        Action::NoteLease { .. } => "NoteLease",
        Action::GiveUp(Role::Source) => "GiveUpSource",
        Action::GiveUp(Role::Target) => "GiveUpTarget",
        Action::RemoveFinalizer => "RemoveFinalizer",
    }
}

/// Carries out `actions`.
pub async fn apply(
    observed: &Observed,
    actions: &[Action],
    context: &Context,
) -> Result<(), Error> {
    let world = World { observed, context };
    for action in actions {
        world.act(action).await?;
    }
    Ok(())
}

struct World<'a> {
    observed: &'a Observed,
    context: &'a Context,
}

impl World<'_> {
    async fn act(&self, action: &Action) -> Result<(), Error> {
        match action {
            Action::Hint(role) => {
                self.hint(*role);
                Ok(())
            }
            Action::CreateTarget(pod) => self.create_target(pod).await,
            Action::StartSide(role) => self.start(*role).await,
            Action::RemoveGate => self.remove_gate().await,
            Action::Freeze => self.command(Role::Source, rpc::Verb::Freeze).await,
            Action::MarkResumed => self.mark_resumed().await,
            Action::LabelTarget(labels) => {
                self.patch_target("label the target pod", json!({"labels": labels})).await
            }
            Action::MoveClaim { claim, labels, source } => {
                self.move_claim(claim, labels, *source).await
            }
            Action::StripSource => self.strip_source().await,
            Action::ReturnClaim(claim) => {
                // Nothing else is to wait for what only spares others some minutes.
                if let Err(error) = self.return_claim(claim).await {
                    tracing::warn!(error = error.chain(), "the source keeps no owner");
                }
                Ok(())
            }
            Action::Release => self.command(Role::Source, rpc::Verb::Release).await,
            Action::EndHandover => self.end_handover().await,
            Action::MoveLease { address, home } => self.move_lease(address, home).await,
            Action::DeleteSource => self.delete(self.observed.source_pod.as_ref()).await,
            Action::DeleteTarget => self.delete(self.observed.target_pod.as_ref()).await,
            Action::UnclaimSource => self.unclaim_source().await,
            Action::UnclaimTarget => self.unclaim_target().await,
            Action::Forget(role) => self.forget(*role).await,
            Action::StoreManifest => {
                let network = self.network().await?;
                manifest::store(self.observed, &network, self.context).await
            }
            Action::HoldName => held_name::hold(self.observed, self.context).await,
            Action::FreeName => {
                let namespace = self.observed.migration.namespace().unwrap_or_default();
                held_name::free(&namespace, self.observed.uid(), self.context).await
            }
            Action::DropWitness => match references(&self.observed.migration, None) {
                Some(left) => set_references(&self.observed.migration, &left, self.context).await,
                None => Ok(()),
            },
            Action::DeleteTrial => self.delete(self.observed.trial_pod.as_ref()).await,
            Action::DeleteAgain => self.delete(self.observed.again_pod.as_ref()).await,
            Action::NoteLease { address, home } => {
                if let Err(error) = self.move_lease(address, home).await {
                    tracing::warn!(home, error = error.chain(), "the address is noted later");
                }
                Ok(())
            }
            Action::GiveUp(role) => self.command(*role, rpc::Verb::Abort).await,
            Action::RemoveFinalizer => self.remove_finalizer().await,
        }
    }

    fn pods(&self) -> Api<Pod> {
        let namespace = self.observed.migration.namespace().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), &namespace)
    }

    fn migrations(&self) -> Api<Migration> {
        let namespace = self.observed.migration.namespace().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), &namespace)
    }

    fn node(&self, role: Role) -> &str {
        self.observed.node(role)
    }

    /// In a task of its own: an agent that does not answer must not keep the other side, whose
    /// application stands still, from being looked after. A hint that is lost costs time, nothing
    /// else: sides also look by themselves.
    fn hint(&self, role: Role) {
        let agents = self.context.agents.clone();
        let (node, uid) = (self.node(role).to_owned(), self.observed.uid().to_owned());
        tokio::spawn(async move {
            if let Err(error) = agents.command(&node, &uid, role, rpc::Verb::ReadDecision).await {
                tracing::debug!(node, %role, %error, "a hint was lost");
            }
        });
    }

    async fn command(&self, role: Role, verb: rpc::Verb) -> Result<(), Error> {
        let uid = self.observed.uid();
        self.context.agents.command(self.node(role), uid, role, verb).await?;
        Ok(())
    }

    async fn create_target(&self, pod: &Pod) -> Result<(), Error> {
        match self.pods().create(&PostParams::default(), pod).await {
            Ok(_) => Ok(()),
            // Made by an earlier look; if it is a stranger's, the next look does not know it and
            // comes here again until the time is up.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let found =
                    self.pods().get(&pod.name_any()).await.map_err(Error::api("read a pod"))?;
                let ours = found.labels().get(names::MIGRATION_LABEL).map(String::as_str)
                    == Some(self.observed.uid());
                if ours {
                    return Ok(());
                }
                Err(Error::Incomplete(format!(
                    "pod {} exists already and is not of this migration",
                    pod.name_any()
                )))
            }
            Err(error @ kube::Error::Api(_)) if self.is_committed() => {
                Err(Error::AgainRefused(Box::new(error)))
            }
            Err(error) if self.is_committed() => Err(Error::api("make the pod again")(error)),
            Err(error) => Err(Error::TargetRefused(Box::new(error))),
        }
    }

    /// The source's network: as it was stored, where it was.
    async fn network(&self) -> Result<NetworkFacts, Error> {
        match &self.observed.network {
            Some(network) => Ok(network.clone()),
            None => Ok(self.facts().await?.network.clone()),
        }
    }

    async fn start(&self, role: Role) -> Result<(), Error> {
        let uid = self.observed.uid();
        let missing = |what: &str| Error::Incomplete(format!("{what} is not known"));
        let source = self.observed.source_pod.as_ref().or(self.observed.manifest.as_ref());
        let source = source.ok_or_else(|| missing("the source pod"))?;
        let target = self.observed.target_pod.as_ref().ok_or_else(|| missing("the target pod"))?;
        let agents = &self.context.agents;
        let node = |role| agents.node(self.node(role)).ok_or_else(|| missing(self.node(role)));
        let target_node = node(Role::Target)?;
        let part = sequential::part(self.observed, role);
        let source_node = match part.is_again() {
            // It has no peer to talk to, and need not wait for one.
            true => node(Role::Source).unwrap_or_else(|_| target_node.clone()),
            false => node(Role::Source)?,
        };
        let network = self.network().await?;
        let task = task(&Parts {
            migration: &self.observed.migration,
            role,
            part,
            source,
            target,
            nodes: [&source_node, &target_node],
            network: &network,
        })
        .map_err(Error::Incomplete)?;
        let task = serde_json::to_string(&task)?;
        let refused = |error| match self.is_committed() {
            true => Error::Agent(error),
            false => Error::StartRefused(error),
        };
        let started = agents.start(self.node(role), role, task).await.map_err(refused);
        // Perhaps it began, and the answer was lost.
        self.context.sides.kick(uid, role);
        started
    }

    fn is_committed(&self) -> bool {
        self.observed.recorded().decision == Some(transship_protocol::Decision::Commit)
    }

    /// What the source's agent found out about the pod.
    async fn facts(&self) -> Result<std::sync::Arc<PodFacts>, Error> {
        let uid = self.observed.uid();
        if let Some(facts) = self.context.memory.get(uid).facts {
            return Ok(facts);
        }
        let source = self.observed.source_pod.as_ref().and_then(ResourceExt::uid);
        let source = source.ok_or_else(|| Error::Incomplete("the source pod is gone".into()))?;
        let facts = self.context.agents.inspect(self.node(Role::Source), &source).await?;
        let facts = std::sync::Arc::new(facts);
        self.context.memory.note(uid, |notes| notes.facts = Some(facts.clone()));
        Ok(facts)
    }

    async fn remove_gate(&self) -> Result<(), Error> {
        let Some(target) = &self.observed.target_pod else { return Ok(()) };
        let gates = target.spec.as_ref().and_then(|s| s.scheduling_gates.clone());
        let left: Vec<_> =
            gates.into_iter().flatten().filter(|g| g.name != names::PREPARE_GATE).collect();
        // Lists are replaced as a whole, so nobody may have changed it meanwhile.
        let patch = json!({
            "metadata": {"uid": target.uid(), "resourceVersion": target.resource_version()},
            "spec": {"schedulingGates": left},
        });
        self.pods()
            .patch(&target.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(Error::api("take the scheduling gate off"))?;
        Ok(())
    }

    async fn mark_resumed(&self) -> Result<(), Error> {
        let Some(target) = &self.observed.target_pod else { return Ok(()) };
        let patch = json!({
            "metadata": {"uid": target.uid()},
            "status": {"conditions": [{
                "type": names::RESUMED_GATE,
                "status": "True",
                "reason": "Resumed",
                "message": "the application runs here",
                "lastTransitionTime": seconds_now(),
            }]},
        });
        self.pods()
            .patch_status(&target.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .map_err(Error::api("set the readiness gate"))?;
        Ok(())
    }

    /// Patches a pod's metadata under its UID: lists are completed, not replaced. A pod that is gone
    /// needs no patch.
    async fn patch_metadata(
        &self,
        what: &'static str,
        pod: Option<&Pod>,
        metadata: Value,
    ) -> Result<(), Error> {
        self.patch_metadata_with(&PatchParams::default(), what, pod, metadata).await
    }

    async fn patch_metadata_with(
        &self,
        params: &PatchParams,
        what: &'static str,
        pod: Option<&Pod>,
        mut metadata: Value,
    ) -> Result<(), Error> {
        let Some(pod) = pod else { return Ok(()) };
        metadata["uid"] = json!(pod.uid());
        let patch = Patch::Strategic(json!({"metadata": metadata}));
        match self.pods().patch(&pod.name_any(), params, &patch).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(Error::api(what)(error)),
        }
    }

    async fn patch_target(&self, what: &'static str, metadata: Value) -> Result<(), Error> {
        self.patch_metadata(what, self.observed.target_pod.as_ref(), metadata).await
    }

    /// All labels and the owner's claim, in one patch: half of it would make the owner's
    /// controller let the pod go by itself, or take it back.
    async fn strip_source(&self) -> Result<(), Error> {
        let Some(source) = &self.observed.source_pod else { return Ok(()) };
        let labels: Map<String, Value> =
            source.labels().keys().map(|key| (key.clone(), Value::Null)).collect();
        let mut metadata = json!({"labels": labels, "ownerReferences": null});
        if source.finalizers().iter().any(|finalizer| finalizer == JOB_TRACKING) {
            // Its Job would count it as failed.
            metadata["$deleteFromPrimitiveList/finalizers"] = json!([JOB_TRACKING]);
        }
        self.patch_metadata("take labels and claim off the source pod", Some(source), metadata)
            .await
    }

    async fn return_claim(&self, claim: &OwnerReference) -> Result<(), Error> {
        let source = self.observed.source_pod.as_ref();
        let metadata = json!({"ownerReferences": [claim]});
        self.patch_metadata("give the source pod its owner back", source, metadata).await
    }

    /// The source goes first: with both claimed the controller would remove one of them, with
    /// none it would make another, which the webhook holds back for these milliseconds. What would
    /// be refused is found out before anything is taken from the source, and the time in which
    /// others are held back begins once, however often this is tried. Where nobody can be held back
    /// the source may be the one that the controller is to remove.
    async fn move_claim(
        &self,
        claim: &OwnerReference,
        labels: &Labels,
        source: Leaves,
    ) -> Result<(), Error> {
        let target = self.observed.target_pod.as_ref();
        let finalizers = Kind::of(claim).and_then(Kind::finalizer);
        let metadata = json!({
            "labels": labels,
            "ownerReferences": [claim],
            "finalizers": Vec::from_iter(finalizers),
        });
        let trial = PatchParams { dry_run: true, ..PatchParams::default() };
        let what = "claim the target pod (on trial)";
        match self.patch_metadata_with(&trial, what, target, metadata.clone()).await {
            Err(Error::Api { source, .. }) if no_trial(&source) => {}
            tried => tried?,
        }
        // For one that has vanished nothing can be held back.
        if !self.observed.vanished && !hands_over(&self.observed.migration, &claim.uid) {
            self.patch_migration(json!({
                "labels": {names::HANDOVER_LABEL: claim.uid},
                "annotations": {names::HANDOVER_TIME: Timestamp::now().to_string()},
            }))
            .await?;
        }
        match source {
            Leaves::Before => {}
            Leaves::Stripped => self.strip_source().await?,
            Leaves::AsSurplus => {
                let least = json!({"annotations": {DELETION_COST: i32::MIN.to_string()}});
                let source = self.observed.source_pod.as_ref();
                self.patch_metadata("offer the source pod to its owner", source, least).await?;
            }
        }
        self.patch_target("claim the target pod", metadata).await
    }

    async fn end_handover(&self) -> Result<(), Error> {
        self.patch_migration(json!({
            "labels": {names::HANDOVER_LABEL: null},
            "annotations": {names::HANDOVER_TIME: null},
        }))
        .await
    }

    async fn patch_migration(&self, mut metadata: Value) -> Result<(), Error> {
        let migration = &self.observed.migration;
        metadata["uid"] = json!(migration.uid());
        let patch = Patch::Merge(json!({"metadata": metadata}));
        self.migrations()
            .patch(&migration.name_any(), &PatchParams::default(), &patch)
            .await
            .map_err(Error::api("label the Migration"))?;
        Ok(())
    }

    async fn move_lease(&self, address: &str, home: &str) -> Result<(), Error> {
        let Some(target) = &self.observed.target_pod else { return Ok(()) };
        if node_gone(home, self.context).await? {
            return Ok(());
        }
        let request = rpc::LeaseMovedRequest {
            ip: address.to_owned(),
            pod_uid: target.uid().unwrap_or_default(),
            pod_namespace: target.namespace().unwrap_or_default(),
            pod_name: target.name_any(),
            node: self.node(Role::Target).to_owned(),
        };
        self.context.agents.lease_moved(home, request).await?;
        Ok(())
    }

    async fn delete(&self, pod: Option<&Pod>) -> Result<(), Error> {
        let Some(pod) = pod else { return Ok(()) };
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.pods().delete(&pod.name_any(), &params).await {
            Ok(_) => Ok(()),
            // Gone, or another pod of that name.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(())
            }
            Err(error) => Err(Error::api("delete a pod")(error)),
        }
    }

    async fn unclaim_source(&self) -> Result<(), Error> {
        let metadata = json!({"annotations": {names::CLAIM: null, names::MIGRATION_NAME: null}});
        let source = self.observed.source_pod.as_ref();
        self.patch_metadata("take the claim off the source pod", source, metadata).await
    }

    async fn unclaim_target(&self) -> Result<(), Error> {
        let metadata = json!({
            "annotations": {
                names::CLAIM: null, names::MIGRATION_NAME: null, names::IMAGES_LEFT: null,
            },
            "labels": {names::MIGRATION_LABEL: null},
        });
        self.patch_target("take the claim off the target pod", metadata).await
    }

    async fn forget(&self, role: Role) -> Result<(), Error> {
        let uid = self.observed.uid();
        self.context.agents.forget(self.node(role), uid, role).await?;
        self.context.sides.kick(uid, role);
        Ok(())
    }

    async fn remove_finalizer(&self) -> Result<(), Error> {
        let node = self.node(Role::Target);
        if !node.is_empty() && !self.observed.is_sequential() {
            let (client, namespace) = (&self.context.client, &self.context.namespace);
            remove_signature(client, namespace, node, self.observed.uid())
                .await
                .map_err(Error::api("take the target's signature off"))?;
        }
        remove_finalizer(&self.observed.migration, self.context).await
    }
}

/// Whether the hand-over of this owner's pod has begun already.
fn hands_over(migration: &Migration, owner_uid: &str) -> bool {
    migration.labels().get(names::HANDOVER_LABEL).is_some_and(|uid| uid == owner_uid)
        && migration.annotations().contains_key(names::HANDOVER_TIME)
}

/// Whole seconds, as `lastTransitionTime` is kept.
fn seconds_now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// Takes our finalizer off, if the Migration is still as it was read. A conflict (its status was
/// perhaps written a moment ago) leads to another look.
pub async fn remove_finalizer(migration: &Migration, context: &Context) -> Result<(), Error> {
    let namespace = migration.namespace().unwrap_or_default();
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &namespace);
    let patch = Patch::Merge(without_finalizer(migration));
    match migrations.patch(&migration.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => return Err(Error::api("take the finalizer off")(error)),
    }
    let uid = migration.uid().unwrap_or_default();
    context.sides.drop_migration(&uid);
    context.memory.forget(&uid);
    Ok(())
}

/// Lists are replaced as a whole, so nobody may have changed it meanwhile.
fn without_finalizer(migration: &Migration) -> Value {
    let left: Vec<&String> =
        migration.finalizers().iter().filter(|f| *f != names::FINALIZER).collect();
    let mut metadata = json!({
        "uid": migration.uid(),
        "resourceVersion": migration.resource_version(),
        "finalizers": left,
    });
    if let (Some(left), Value::Object(fields)) = (references(migration, None), &mut metadata)
        && let Value::Object(more) = left.metadata()
    {
        // Given up before it was admitted, with the witness set already.
        fields.extend(more);
    }
    json!({"metadata": metadata})
}

/// Sets the Migration's references to owners, if it is still as it was read.
pub async fn set_references(
    migration: &Migration,
    references: &References,
    context: &Context,
) -> Result<(), Error> {
    let namespace = migration.namespace().unwrap_or_default();
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), &namespace);
    let mut metadata = references.metadata();
    metadata["uid"] = json!(migration.uid());
    metadata["resourceVersion"] = json!(migration.resource_version());
    migrations
        .patch(
            &migration.name_any(),
            &PatchParams::default(),
            &Patch::Merge(json!({"metadata": metadata})),
        )
        .await
        .map_err(Error::api("set the Migration's owners"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use transship_api::MigrationSpec;

    use super::*;

    #[test]
    fn a_finalizer_goes_only_from_the_object_that_was_read() {
        let mut migration = Migration::new("m", MigrationSpec::for_pod("p"));
        migration.metadata.uid = Some("uid-m".into());
        migration.metadata.resource_version = Some("7".into());
        migration.metadata.finalizers = Some(vec!["other".into(), names::FINALIZER.into()]);
        assert_eq!(
            without_finalizer(&migration),
            json!({"metadata": {"uid": "uid-m", "resourceVersion": "7", "finalizers": ["other"]}})
        );
        let owners = json!([
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "uid-c"},
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "uid-sts"}
        ]);
        migration.metadata.owner_references = serde_json::from_value(owners.clone()).unwrap();
        assert!(without_finalizer(&migration)["metadata"]["ownerReferences"].is_null());
        migration.annotations_mut().insert(names::WITNESS.into(), "uid-sts".into());
        let left = &without_finalizer(&migration)["metadata"];
        assert_eq!(left["ownerReferences"], json!([owners[0]]), "the witness goes with it");
        assert_eq!(left["annotations"], json!({names::WITNESS: null}));
        assert_eq!(left["finalizers"], json!(["other"]));
    }

    #[test]
    fn a_hand_over_begins_once_for_each_owner() {
        let mut migration = Migration::new("m", MigrationSpec::for_pod("p"));
        assert!(!hands_over(&migration, "uid-rs"));
        migration.labels_mut().insert(names::HANDOVER_LABEL.into(), "uid-rs".into());
        assert!(!hands_over(&migration, "uid-rs"), "its time is missing");
        migration.annotations_mut().insert(names::HANDOVER_TIME.into(), "now".into());
        assert!(hands_over(&migration, "uid-rs"));
        assert!(!hands_over(&migration, "uid-other"));
    }
}
