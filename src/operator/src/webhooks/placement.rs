//! `POST /v1/admit/placement`: a pod with annotations for placement that cannot be read, and a Migration or
//! MigrationPolicy whose `spec.placement` cannot, is refused with the exact reason, before anybody waits
//! for it.
//!
//! Stateless. Only objects that ask for something reach it, and an update only where that changes: what
//! is stored already must not keep others from writing to the object. What slips through while no
//! operator answers is refused in the same words by the extender, and at the Migration's preflight.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use serde::Deserialize;
use transship_api::{Placement, names};
use transship_core::placement;

use crate::metrics::{Kind, Metrics};

/// The handler.
pub async fn review(
    State(metrics): State<Arc<Metrics>>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Json<AdmissionReview<DynamicObject>> {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => {
            return Json(AdmissionResponse::invalid(error.to_string()).into_review());
        }
    };
    let mut response = AdmissionResponse::from(&request);
    if let Some(object) = &request.object {
        let (kind, judged) = match request.kind.kind.as_str() {
            "Pod" => ("pod", judge_pod(object)),
            "Migration" => ("migration", judge_placement(object).map(|()| None)),
            _ => ("migrationpolicy", judge_placement(object).map(|()| None)),
        };
        match judged {
            Ok(warning) => response.warnings = warning.map(|warning| vec![warning]),
            Err(reason) => {
                metrics.refused.get_or_create(&Kind { kind }).inc();
                tracing::info!(namespace = request.namespace, kind, reason, "refused an object");
                response = response.deny(reason);
            }
        }
    }
    Json(response.into_review())
}

/// Why a Migration or MigrationPolicy is refused.
fn judge_placement(object: &DynamicObject) -> Result<(), String> {
    let placement = Option::<Placement>::deserialize(&object.data["spec"]["placement"])
        .map_err(|error| format!("spec.placement: {error}"))?;
    placement.map_or(Ok(()), |placement| {
        placement::validate_placement(&placement).map_err(|error| error.to_string())
    })
}

/// Why a pod is refused; or what its author may not have meant.
fn judge_pod(pod: &DynamicObject) -> Result<Option<String>, String> {
    placement::validate_annotations(pod.annotations()).map_err(|error| error.to_string())?;
    let scheduler = pod.data["spec"]["schedulerName"].as_str().unwrap_or("default-scheduler");
    Ok((scheduler != names::SCHEDULER).then(|| {
        format!(
            "the annotations for placement count when Transship moves the pod; for its first start \
             write schedulerName: {} instead of {scheduler}",
            names::SCHEDULER
        )
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(scheduler: &str, constraints: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": {"annotations": {"transship.dev/constraints": constraints}},
            "spec": {"schedulerName": scheduler, "containers": []},
        }))
        .unwrap()
    }

    #[test]
    fn a_malformed_expression_is_refused_in_swarms_words() {
        for (constraints, words) in [
            (r#"["region=us"]"#, "One of operator ==, != is expected"),
            (r#"["9==us"]"#, "Key '9' is invalid"),
            (r#"["region=="]"#, "Value '' is invalid"),
            ("region==us", "transship.dev/constraints"),
        ] {
            let reason = judge_pod(&pod("transship", constraints)).unwrap_err();
            assert!(reason.contains(words), "{constraints}: {reason}");
        }
    }

    #[test]
    fn who_left_the_scheduler_out_is_told() {
        let fine = r#"["region==us*"]"#;
        assert_eq!(judge_pod(&pod("transship", fine)), Ok(None));
        let warning = judge_pod(&pod("default-scheduler", fine)).unwrap().unwrap();
        assert!(warning.contains("schedulerName: transship"), "{warning}");
    }

    #[tokio::test]
    async fn each_kind_is_refused_with_the_reason_and_the_expression() {
        let pod = json!({"transship.dev/affinities": r#"["app==/(/"]"#});
        let placement =
            |constraint: &str| json!({"placement": {"constraints": ["disk==ssd", constraint]}});
        let operator = Some(r#"One of operator ==, != is expected in "region=us""#);
        let pattern = Some(r#""region==/(/" has a malformed pattern"#);
        for (kind, annotations, spec, told) in [
            (
                "Pod",
                pod,
                json!({}),
                Some(r#"transship.dev/affinities]: "app==/(/" has a malformed"#),
            ),
            ("Migration", json!({}), placement("region=us"), operator),
            ("Migration", json!({}), placement("region==/(/"), pattern),
            ("Migration", json!({}), placement("region==us*"), None),
            ("Migration", json!({}), json!({"podName": "web-0"}), None),
            ("MigrationPolicy", json!({}), placement("region=us"), operator),
            ("MigrationPolicy", json!({}), placement("region==/(/"), pattern),
            ("MigrationPolicy", json!({}), json!({"placement": null}), None),
        ] {
            let object = json!({"apiVersion": "v1", "kind": kind,
                "metadata": {"name": "x", "annotations": annotations}, "spec": spec});
            let asked = serde_json::from_value(json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "request": {
                    "uid": "u", "kind": {"group": "g", "version": "v1", "kind": kind},
                    "resource": {"group": "g", "version": "v1", "resource": "x"},
                    "name": "x", "namespace": "shop", "operation": "CREATE",
                    "userInfo": {"username": "kate"}, "object": object, "dryRun": false
                }
            }));
            let Json(review) = review(State(Arc::default()), Json(asked.unwrap())).await;
            let response = review.response.unwrap();
            assert_eq!(response.allowed, told.is_none(), "{kind} {spec}: {response:?}");
            let message = response.result.message;
            assert!(message.contains(told.unwrap_or_default()), "{kind} {spec}: {message}");
            let field = if kind == "Pod" { "annotations[" } else { "spec.placement.constraints: " };
            assert!(told.is_none() || message.contains(field), "{kind} {spec}: {message}");
        }
    }
}
