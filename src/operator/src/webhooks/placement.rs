//! `POST /v1/admit/placement`: a pod with annotations for placement that cannot be read is refused
//! with the exact reason, before anybody waits for it to start.
//!
//! Stateless. Only pods that carry one of ours reach it, and an update only where one of them
//! changes: what is stored already must not keep others from writing to the pod. What slips through
//! while no operator answers is refused by the extender in the same words.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use transship_api::names;
use transship_core::placement;

use crate::metrics::{Kind, Metrics};

/// The handler.
pub async fn review(
    State(metrics): State<Arc<Metrics>>,
    Json(review): Json<AdmissionReview<Pod>>,
) -> Json<AdmissionReview<kube::api::DynamicObject>> {
    let request: AdmissionRequest<Pod> = match review.try_into() {
        Ok(request) => request,
        Err(error) => {
            return Json(AdmissionResponse::invalid(error.to_string()).into_review());
        }
    };
    let mut response = AdmissionResponse::from(&request);
    if let Some(pod) = &request.object {
        match judge(pod) {
            Ok(warning) => response.warnings = warning.map(|warning| vec![warning]),
            Err(reason) => {
                metrics.refused.get_or_create(&Kind { kind: "pod" }).inc();
                tracing::info!(namespace = request.namespace, reason, "refused a pod");
                response = response.deny(reason);
            }
        }
    }
    Json(response.into_review())
}

/// Why the pod is refused; or what its author may not have meant.
fn judge(pod: &Pod) -> Result<Option<String>, String> {
    placement::validate(pod.annotations()).map_err(|error| error.to_string())?;
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    let scheduler = scheduler.unwrap_or("default-scheduler");
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

    fn pod(scheduler: &str, constraints: &str) -> Pod {
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
            let reason = judge(&pod("transship", constraints)).unwrap_err();
            assert!(reason.contains(words), "{constraints}: {reason}");
        }
    }

    #[test]
    fn who_left_the_scheduler_out_is_told() {
        let fine = r#"["region==us*"]"#;
        assert_eq!(judge(&pod("transship", fine)), Ok(None));
        let warning = judge(&pod("default-scheduler", fine)).unwrap().unwrap();
        assert!(warning.contains("schedulerName: transship"), "{warning}");
    }
}
