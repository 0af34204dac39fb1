//! What the agent asks the API server about pods, Migrations and other nodes. Questions on whose
//! answer something is removed are quorum reads (no resourceVersion), never the cache's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::api::core::v1 as corev1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use transship_api::{Migration, Node, NodeStatus, names};
use transship_host::paths::Role;
use transship_host::task::HolderTask;
use transship_protocol::{NodeSeen, judge_node};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Questions to the API server.
#[derive(Clone)]
pub struct Cluster {
    /// Client of the API.
    pub client: Client,
    pods: Store<corev1::Pod>,
}

impl Cluster {
    /// Watches this node's pods until `stop`.
    pub fn start(client: Client, node: &str, stop: CancellationToken) -> Self {
        let (pods, writer) = reflector::store();
        let api: Api<corev1::Pod> = Api::all(client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        // Enough for usage and identity; the rest of a pod may be large.
        let stream = watcher(api, config)
            .default_backoff()
            .modify(|pod| {
                pod.managed_fields_mut().clear();
                pod.annotations_mut().clear();
                pod.status = pod.status.take().map(|status| corev1::PodStatus {
                    phase: status.phase,
                    ..corev1::PodStatus::default()
                });
            })
            .reflect(writer);
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            loop {
                tokio::select! {
                    item = stream.next() => match item {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => tracing::debug!(%error, "watching pods"),
                        None => return,
                    },
                    () = stop.cancelled() => return,
                }
            }
        });
        Self { client, pods }
    }

    /// This node's pods as last seen; none before the first list has arrived.
    pub async fn pods(&self) -> Option<Vec<Arc<corev1::Pod>>> {
        let ready = self.pods.wait_until_ready();
        match tokio::time::timeout(Duration::from_millis(1), ready).await {
            Ok(Ok(())) => Some(self.pods.state()),
            _ => None,
        }
    }

    /// Whether no pod of this UID exists.
    pub async fn pod_is_gone(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> anyhow::Result<bool> {
        let pods: Api<corev1::Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = answer(pods.get_metadata_opt(name)).await?;
        Ok(found.is_none_or(|pod| pod.metadata.uid.as_deref() != Some(uid)))
    }

    /// What a pod says of its addresses; none if no pod of this UID exists.
    pub async fn pod_addresses(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> anyhow::Result<Option<Vec<String>>> {
        let pods: Api<corev1::Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = answer(pods.get_opt(name)).await?;
        let ours = found.filter(|pod| pod.metadata.uid.as_deref() == Some(uid));
        Ok(ours.map(|pod| {
            let said = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
            said.into_iter().map(|address| address.ip).collect()
        }))
    }

    /// Whether the name is that of a pod by now in which this very migration has brought the application back
    /// to life.
    pub async fn pod_has_moved(
        &self,
        namespace: &str,
        name: &str,
        migration_uid: &str,
    ) -> anyhow::Result<bool> {
        let pods: Api<corev1::Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = answer(pods.get_opt(name)).await?;
        Ok(found.is_some_and(|pod| is_moved(&pod, migration_uid)))
    }

    /// Whether a pod of this UID still bears the marks of a Migration.
    pub async fn pod_is_marked(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        migration_uid: &str,
    ) -> anyhow::Result<bool> {
        let pods: Api<corev1::Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = answer(pods.get_metadata_opt(name)).await?;
        let ours = found.filter(|pod| pod.metadata.uid.as_deref() == Some(uid));
        Ok(ours.is_some_and(|pod| is_marked(&pod.metadata, migration_uid)))
    }

    /// What is there of the Migration of a side.
    pub async fn migration_of(&self, task: &HolderTask) -> anyhow::Result<MigrationSeen> {
        let reference = &task.migration;
        let migrations: Api<Migration> = Api::namespaced(self.client.clone(), &reference.namespace);
        match answer(migrations.get_opt(&reference.name)).await {
            Ok(found) => Ok(seen(found.as_ref(), task)),
            // Written by a newer operator, perhaps after ours of that name had gone.
            Err(error) if matches!(error.downcast_ref(), Some(kube::Error::SerdeError(_))) => {
                let found = answer(migrations.get_metadata_opt(&reference.name)).await?;
                Ok(match found.is_some_and(|m| is_of(&m.metadata, task)) {
                    true => MigrationSeen::There,
                    false => MigrationSeen::Gone,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// What tells the present installation from a former one, as [`names::UNINSTALL_BY`] names it. None: there is
    /// none (any more).
    pub async fn installation(&self, namespace: &str) -> anyhow::Result<Option<String>> {
        let accounts: Api<corev1::ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let found = answer(accounts.get_metadata_opt(names::OPERATOR)).await?;
        Ok(found.and_then(|account| account.metadata.uid))
    }

    /// Our Node object of another node.
    pub async fn node(&self, name: &str) -> anyhow::Result<Option<Node>> {
        answer(Api::<Node>::all(self.client.clone()).get_opt(name)).await
    }

    /// What another node has told of its sides.
    pub async fn peer(&self, name: &str) -> anyhow::Result<NodeSeen<NodeStatus>> {
        let status = self.node(name).await?.and_then(|node| node.status);
        let told = status.filter(NodeStatus::has_told);
        let is_in_cluster = told.is_some() || self.core_node_uid(name).await?.is_some();
        Ok(judge_node(told, is_in_cluster))
    }

    /// The cluster's own node object.
    pub async fn core_node(&self, name: &str) -> anyhow::Result<Option<corev1::Node>> {
        answer(Api::<corev1::Node>::all(self.client.clone()).get_opt(name)).await
    }

    /// The UID of the cluster's own node object: another one when the node was removed and has come back.
    pub async fn core_node_uid(&self, name: &str) -> anyhow::Result<Option<String>> {
        let nodes: Api<corev1::Node> = Api::all(self.client.clone());
        let found = answer(nodes.get_metadata_opt(name)).await?;
        Ok(found.and_then(|node| node.metadata.uid))
    }
}

/// A side's Migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationSeen {
    /// There is none of its UID.
    Gone,
    /// It is there, and what becomes of the side is the operator's to say.
    There,
    /// It is there, has ended, and the operator knows of no side here any more: it has let go of it, or the target is
    /// on another node, since the pod went back to its source's.
    Over,
}

fn seen(migration: Option<&Migration>, task: &HolderTask) -> MigrationSeen {
    let Some(migration) = migration.filter(|m| is_of(&m.metadata, task)) else {
        return MigrationSeen::Gone;
    };
    let status = migration.status.as_ref();
    let ended = status.and_then(|s| s.step).is_some_and(|step| step.is_final());
    let target = status.and_then(|s| s.target.as_ref());
    let elsewhere = target.is_some_and(|t| !t.pod_uid.is_empty() && t.node != task.node);
    let left_it = task.role == Role::Target && elsewhere;
    let is_held = migration.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    match ended && (left_it || !is_held) {
        true => MigrationSeen::Over,
        false => MigrationSeen::There,
    }
}

/// Whether an object is the Migration of a side, and none that was made later under its name.
fn is_of(metadata: &ObjectMeta, task: &HolderTask) -> bool {
    metadata.uid.as_deref() == Some(task.migration.uid.as_str())
}

/// The operator alone writes the annotation and sets the condition, and that only when the application runs.
fn is_moved(pod: &corev1::Pod, migration_uid: &str) -> bool {
    let moved_by = pod.annotations().get(names::MOVED_BY).map(String::as_str);
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let resumed = |c: &corev1::PodCondition| c.type_ == names::RESUMED_GATE && c.status == "True";
    moved_by == Some(migration_uid) && conditions.any(resumed)
}

/// The operator alone sets and removes them.
fn is_marked(pod: &ObjectMeta, migration_uid: &str) -> bool {
    let claim = pod.annotations.as_ref().and_then(|annotations| annotations.get(names::CLAIM));
    let label = pod.labels.as_ref().and_then(|labels| labels.get(names::MIGRATION_LABEL));
    [claim, label].into_iter().flatten().any(|uid| uid == migration_uid)
}

/// The answer, if it comes in time. A question over a connection that has died (a node may have been
/// cut off) would wait for the kernel to give up; dropped, it takes its connection with it.
async fn answer<T>(question: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, question).await;
    Ok(answer.context("the API server did not answer in time")??)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::migrations::tests::task;

    #[test]
    fn a_side_that_the_pod_did_not_stay_on_is_over_with_its_migration() {
        use MigrationSeen::{Gone, Over, There};
        type Case<'a> = (&'a str, &'a str, &'a str, &'a str, Role, &'a [&'a str], MigrationSeen);
        let held: &[&str] = &[names::FINALIZER];
        let cases: [Case<'_>; 9] = [
            ("m", "Failed", "node-b", "p-2", Role::Target, held, Over),
            ("m", "Failed", "node-b", "p-2", Role::Source, held, There),
            ("m", "Failed", "node-b", "p-2", Role::Source, &[], Over),
            ("m", "Succeeded", "node-a", "p-2", Role::Target, held, There),
            ("m", "Succeeded", "node-a", "p-2", Role::Target, &["example.org/x"], Over),
            ("m", "SourceResuming", "node-b", "p-2", Role::Target, held, There),
            ("m", "SourceResuming", "node-b", "p-2", Role::Target, &[], There),
            ("m", "Failed", "node-b", "", Role::Target, held, There),
            ("n", "Failed", "node-b", "p-2", Role::Target, held, Gone),
        ];
        for (uid, step, node, pod, role, finalizers, expected) in cases {
            let migration: Migration = serde_json::from_value(json!({
                "apiVersion": "transship.dev/v1alpha1",
                "kind": "Migration",
                "metadata": {"name": "move", "uid": uid, "finalizers": finalizers},
                "spec": {"podName": "web-7"},
                "status": {
                    "step": step,
                    "target": {"node": node, "podName": "web-7", "podUID": pod},
                },
            }))
            .unwrap();
            assert_eq!(seen(Some(&migration), &task("m", role)), expected, "{uid} {step} {node}");
        }
        assert_eq!(seen(None, &task("m", Role::Target)), Gone);
    }

    #[test]
    fn a_pod_has_moved_when_the_application_runs_in_what_this_migration_has_made() {
        for (annotations, conditions, moved) in [
            (
                json!({names::MOVED_BY: "m"}),
                json!([{"type": names::RESUMED_GATE, "status": "True"}]),
                true,
            ),
            (
                json!({names::MOVED_BY: "m"}),
                json!([{"type": names::RESUMED_GATE, "status": "False"}]),
                false,
            ),
            (json!({names::MOVED_BY: "m"}), json!([{"type": "Ready", "status": "True"}]), false),
            // Another migration has moved a fresh pod of this name.
            (
                json!({names::MOVED_BY: "n"}),
                json!([{"type": names::RESUMED_GATE, "status": "True"}]),
                false,
            ),
            (json!({}), json!([{"type": names::RESUMED_GATE, "status": "True"}]), false),
        ] {
            let pod = json!({
                "metadata": {"annotations": annotations},
                "status": {"conditions": conditions},
            });
            let pod: corev1::Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(is_moved(&pod, "m"), moved, "{pod:?}");
        }
    }

    #[test]
    fn a_pod_is_marked_by_its_claim_or_its_label() {
        for (metadata, marked) in [
            (json!({"annotations": {names::CLAIM: "m"}}), true),
            (json!({"labels": {names::MIGRATION_LABEL: "m"}}), true),
            (json!({"annotations": {names::CLAIM: "n"}, "labels": {"app": "m"}}), false),
            (json!({"annotations": {names::MOVED_BY: "m"}}), false),
            (json!({}), false),
        ] {
            let pod: ObjectMeta = serde_json::from_value(metadata).unwrap();
            assert_eq!(is_marked(&pod, "m"), marked, "{pod:?}");
        }
    }
}
