//! Admission while a pod changes owners.
//!
//! Between "the old pod has left its ReplicaSet" and "the new one has joined it" the controller
//! would make a replacement, or report one replica too few. For at most [`WINDOW`] after the time
//! that the Migration bears, creates by that one controller, and statuses that count fewer pods,
//! are refused; the controller tries again by itself.
//!
//! Stateless: any replica answers, from the Migrations as they are at that moment. Whatever goes
//! wrong here lets the request pass: the worst that follows is a pending pod that is removed
//! again.

use axum::{Json, Router, extract::State, routing::post};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
};
use serde_json::Value;
use transship_api::{
    Migration,
    names::{HANDOVER_LABEL, HANDOVER_TIME},
};

/// How long a controller is held back.
pub const WINDOW: std::time::Duration = std::time::Duration::from_secs(5);

/// The path that the chart's webhook configuration names.
pub fn router(client: Client) -> Router {
    Router::new().route("/v1/admit/handover", post(handover)).with_state(client)
}

async fn handover(
    State(client): State<Client>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Json<AdmissionReview<DynamicObject>> {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => {
            return Json(AdmissionResponse::invalid(error.to_string()).into_review());
        }
    };
    let response = AdmissionResponse::from(&request);
    let refused = match subject(&request) {
        Some(owner) => match open_handover(&client, &request, &owner).await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(%error, "hand-over webhook: letting the request pass");
                false
            }
        },
        None => false,
    };
    let response = if refused {
        response.deny("a pod of this controller is being handed over by a Migration; try again")
    } else {
        response
    };
    Json(response.into_review())
}

/// UID of the controller whose write could disturb a hand-over, if this is such a write.
fn subject(request: &AdmissionRequest<DynamicObject>) -> Option<String> {
    let object = request.object.as_ref()?;
    match (request.resource.resource.as_str(), request.sub_resource.as_deref()) {
        ("pods", None) if request.operation == Operation::Create => object
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid.clone()),
        ("replicasets", Some("status")) => {
            let before = request.old_object.as_ref()?;
            let fewer = ["replicas", "readyReplicas", "availableReplicas"].iter().any(|count| {
                number(&object.data["status"][count]) < number(&before.data["status"][count])
            });
            if fewer { object.metadata.uid.clone() } else { None }
        }
        _ => None,
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

async fn open_handover(
    client: &Client,
    request: &AdmissionRequest<DynamicObject>,
    owner: &str,
) -> kube::Result<bool> {
    let Some(namespace) = &request.namespace else { return Ok(false) };
    let api: Api<Migration> = Api::namespaced(client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{HANDOVER_LABEL}={owner}"));
    let now = Timestamp::now();
    Ok(api.list(&selector).await?.items.iter().any(|migration| is_open(migration, now)))
}

fn is_open(migration: &Migration, now: Timestamp) -> bool {
    migration
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(HANDOVER_TIME))
        .and_then(|time| time.parse::<Timestamp>().ok())
        .is_some_and(|begun| {
            let age = now.duration_since(begun);
            // A clock that is a little behind must not close the window.
            age.as_secs_f64() > -WINDOW.as_secs_f64() && age.as_secs_f64() < WINDOW.as_secs_f64()
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use transship_api::MigrationSpec;

    use super::*;

    fn request(review: Value) -> AdmissionRequest<DynamicObject> {
        let mut review = review;
        for (key, value) in [
            ("uid", json!("u")),
            ("kind", json!({"group": "", "version": "v1", "kind": "X"})),
            ("name", json!("x")),
            ("namespace", json!("n")),
            ("userInfo", json!({})),
        ] {
            review[key] = value;
        }
        serde_json::from_value(review).unwrap()
    }

    fn status(old: i64, new: i64) -> AdmissionRequest<DynamicObject> {
        let object = |count: i64| {
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r", "uid": "rs"},
                   "status": {"replicas": count, "readyReplicas": count}})
        };
        request(json!({
            "operation": "UPDATE", "subResource": "status", "object": object(new), "oldObject": object(old),
            "resource": {"group": "apps", "version": "v1", "resource": "replicasets"},
        }))
    }

    #[test]
    fn a_create_concerns_its_controller_and_a_status_only_when_it_counts_fewer() {
        let create = request(json!({
            "operation": "CREATE",
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "r-", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "rs", "controller": true}]}},
        }));
        assert_eq!(subject(&create).as_deref(), Some("rs"));
        assert_eq!(subject(&status(2, 1)).as_deref(), Some("rs"));
        assert_eq!(subject(&status(1, 1)), None);
        assert_eq!(subject(&status(1, 2)), None);
    }

    #[test]
    fn the_window_closes_by_itself() {
        let now = Timestamp::now();
        let mut migration = Migration::new("m", MigrationSpec::for_pod("p"));
        assert!(!is_open(&migration, now));
        for (age_ms, open) in [(0, true), (4_900, true), (5_100, false), (-1_000, true), (-60_000, false)] {
            let begun = now - k8s_openapi::jiff::SignedDuration::from_millis(age_ms);
            migration.metadata.annotations =
                Some([(HANDOVER_TIME.to_owned(), begun.to_string())].into());
            assert_eq!(is_open(&migration, now), open, "{age_ms}");
        }
    }
}
