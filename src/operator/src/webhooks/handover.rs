//! `POST /v1/admit/handover`: while a pod goes from one object to another, its owner's
//! controller must neither make a replacement nor write counts that lack the pod.
//!
//! Stateless: whether a hand-over is under way is read from the API server (a label on a
//! Migration, with a time beside it), for at most five seconds, and every doubt is answered with
//! yes. What is denied here the controller tries again a moment later.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use kube::api::{DynamicObject, ListParams};
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use transship_api::{Migration, names};
use transship_core::migration::owner::Kind as OwnerKind;

use crate::metrics::{Kind, Metrics};

/// The longest that anything is held back.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the API server may take to say whether a hand-over is under way.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// What the handler needs.
pub struct Handover {
    /// Lists Migrations.
    pub client: Client,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// The handler.
pub async fn handover(
    State(state): State<Arc<Handover>>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Json<AdmissionReview<DynamicObject>> {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => {
            return Json(AdmissionResponse::invalid(error.to_string()).into_review());
        }
    };
    let mut response = AdmissionResponse::from(&request);
    if let Some((kind, owner)) = concerned(&request)
        && let Some(migration) = under_way(&state, &request, &owner).await
    {
        state.metrics.held_back.get_or_create(&Kind { kind }).inc();
        tracing::info!(kind, owner, migration, "held back during a hand-over");
        response = response.deny(format!(
            "Migration {migration} hands a pod of this controller over; try again in a moment"
        ));
    }
    Json(response.into_review())
}

/// What a request would disturb: the kind for metrics, and the UID of the owner.
fn concerned(request: &AdmissionRequest<DynamicObject>) -> Option<(&'static str, String)> {
    let object = request.object.as_ref()?;
    let resource = request.resource.resource.as_str();
    match (resource, request.sub_resource.as_deref(), &request.operation) {
        ("pods", None | Some(""), Operation::Create) => {
            let owner = object.owner_references().iter().find(|o| o.controller == Some(true))?;
            OwnerKind::of(owner).map(|_| ("pod", owner.uid.clone()))
        }
        ("replicasets", Some("status"), Operation::Update) => {
            shrinking("replicaset", request, &["replicas", "readyReplicas", "availableReplicas"])
        }
        ("jobs", Some("status"), Operation::Update) => {
            shrinking("job", request, &["active", "ready"])
        }
        _ => None,
    }
}

/// The kind and the object's UID, if one of its counts is to become less.
fn shrinking(
    kind: &'static str,
    request: &AdmissionRequest<DynamicObject>,
    counts: &[&str],
) -> Option<(&'static str, String)> {
    let (object, old) = (request.object.as_ref()?, request.old_object.as_ref()?);
    let uid = object.uid().or_else(|| old.uid())?;
    shrinks(&old.data, &object.data, counts).then_some((kind, uid))
}

/// Whether a count of the new status is below that of the old.
fn shrinks(old: &Value, new: &Value, counts: &[&str]) -> bool {
    counts.iter().any(|field| {
        let count = |object: &Value| object["status"][*field].as_i64().unwrap_or(0);
        count(new) < count(old)
    })
}

/// The Migration that hands a pod of this owner over at this moment.
async fn under_way(
    state: &Handover,
    request: &AdmissionRequest<DynamicObject>,
    owner: &str,
) -> Option<String> {
    let migrations: Api<Migration> =
        Api::namespaced(state.client.clone(), request.namespace.as_deref()?);
    let labelled =
        ListParams::default().labels(&format!("{}={owner}", names::HANDOVER_LABEL)).limit(50);
    match tokio::time::timeout(LOOK_LIMIT, migrations.list(&labelled)).await {
        Ok(Ok(listed)) => {
            let now = Timestamp::now();
            let current = listed.items.iter().find(|m| is_current(m, now))?;
            Some(current.name_any())
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "let pass: hand-overs could not be listed");
            None
        }
        Err(_) => {
            tracing::warn!("let pass: hand-overs were not listed in time");
            None
        }
    }
}

/// Begun no more than [`LIMIT`] ago (or ahead, by a clock that is off).
fn is_current(migration: &Migration, now: Timestamp) -> bool {
    migration
        .annotations()
        .get(names::HANDOVER_TIME)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .is_some_and(|begun| now.duration_since(begun).unsigned_abs() <= LIMIT)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;
    use transship_api::MigrationSpec;

    use super::*;

    fn request(
        resource: &str,
        sub: &str,
        operation: &str,
        object: Value,
        old: Value,
    ) -> AdmissionRequest<DynamicObject> {
        let review: AdmissionReview<DynamicObject> = serde_json::from_value(json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u", "kind": {"group": "", "version": "v1", "kind": "X"},
                "resource": {"group": "", "version": "v1", "resource": resource},
                "subResource": sub, "name": "x", "namespace": "shop", "operation": operation,
                "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
                "object": object, "oldObject": old, "dryRun": false
            }
        }))
        .unwrap();
        review.try_into().unwrap()
    }

    fn set(replicas: i64, ready: i64) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "uid": "rs"},
            "status": {"replicas": replicas, "readyReplicas": ready, "availableReplicas": ready}})
    }

    fn job(active: i64) -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum", "uid": "rs"},
            "status": {"active": active}})
    }

    fn pod(kind: &str) -> Value {
        let group = if kind == "Job" { "batch" } else { "apps" };
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-",
            "ownerReferences": [{"apiVersion": format!("{group}/v1"), "kind": kind, "name": "web", "uid": "rs", "controller": true}]}})
    }

    #[rstest]
    #[case(request("pods", "", "CREATE", pod("ReplicaSet"), Value::Null), true)]
    #[case(request("pods", "", "CREATE", pod("Job"), Value::Null), true)]
    #[case(request("pods", "", "CREATE", pod("DaemonSet"), Value::Null), false)]
    #[case(request("jobs", "status", "UPDATE", job(0), job(1)), true)]
    #[case(request("jobs", "status", "UPDATE", job(1), job(1)), false)]
    #[case(request("pods", "", "UPDATE", pod("ReplicaSet"), pod("ReplicaSet")), false)]
    #[case(request("replicasets", "status", "UPDATE", set(0, 0), set(1, 1)), true)]
    #[case(request("replicasets", "status", "UPDATE", set(2, 1), set(2, 2)), true)]
    #[case(request("replicasets", "status", "UPDATE", set(2, 2), set(2, 1)), false)]
    #[case(request("replicasets", "", "UPDATE", set(0, 0), set(1, 1)), false)]
    fn only_replacements_and_shrinking_counts_are_held_back(
        #[case] request: AdmissionRequest<DynamicObject>,
        #[case] held: bool,
    ) {
        assert_eq!(concerned(&request).map(|(_, uid)| uid), held.then(|| "rs".to_owned()));
    }

    #[test]
    fn a_hand_over_holds_for_five_seconds() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        for (time, current) in [
            ("2026-01-01T00:00:09.999999Z", true),
            ("2026-01-01T00:00:05Z", true),
            ("2026-01-01T00:00:04.9Z", false),
            ("2026-01-01T00:00:12Z", true),
            ("2026-01-01T00:01:00Z", false),
            ("soon", false),
        ] {
            let mut migration = Migration::new("m", MigrationSpec::for_pod("p"));
            migration.annotations_mut().insert(names::HANDOVER_TIME.into(), time.into());
            assert_eq!(is_current(&migration, now), current, "{time}");
        }
        assert!(!is_current(&Migration::new("m", MigrationSpec::for_pod("p")), now));
    }
}
