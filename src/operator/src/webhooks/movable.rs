//! `POST /v1/admit/movable`: who creates a pod, or a workload, that asks to be movable is warned of
//! what would keep it from being moved, as far as the manifest shows it. Nothing is ever refused.
//!
//! A pod asks by the annotation `transship.dev/movable: "true"`, by `transship.dev/post-start`, or
//! by a MigrationPolicy that selects it. Only what people create reaches this: whoever makes pods
//! from a template reads no warnings.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DynamicObject, ListParams};
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use transship_api::{MigrationPolicy, names};
use transship_core::placement::policy;
use transship_core::preflight;

use crate::metrics::{Kind, Metrics};

/// How long the API server may take to say which policies there are.
const LOOK_LIMIT: Duration = Duration::from_millis(500);

/// What the handler needs.
pub struct Movable {
    /// Lists MigrationPolicies.
    pub client: Client,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// The handler.
pub async fn movable(
    State(state): State<Arc<Movable>>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Json<AdmissionReview<DynamicObject>> {
    let request: AdmissionRequest<DynamicObject> = match review.try_into() {
        Ok(request) => request,
        Err(error) => {
            return Json(AdmissionResponse::invalid(error.to_string()).into_review());
        }
    };
    let mut response = AdmissionResponse::from(&request);
    if let Some(pod) = pod_of(&request)
        && asks(&state.client, &pod).await
    {
        let warnings = preflight::warnings(&pod);
        if !warnings.is_empty() {
            state.metrics.warned.get_or_create(&Kind { kind: "pod" }).inc();
            response.warnings = Some(warnings);
        }
    }
    Json(response.into_review())
}

/// The pod that is created, or the one that a workload will make.
fn pod_of(request: &AdmissionRequest<DynamicObject>) -> Option<Pod> {
    let object = request.object.as_ref()?;
    let kind = request.kind.kind.as_str();
    if kind == "Pod" {
        let mut pod: Pod = object.clone().try_parse().ok()?;
        pod.metadata.namespace.clone_from(&request.namespace);
        return Some(pod);
    }
    let spec = &object.data["spec"];
    let template = match kind {
        "CronJob" => &spec["jobTemplate"]["spec"]["template"],
        _ => &spec["template"],
    };
    let mut pod: Pod = serde_json::from_value(match template {
        Value::Null => return None,
        template => template.clone(),
    })
    .ok()?;
    pod.metadata.namespace.clone_from(&request.namespace);
    // With its group: what becomes of the pod's claims depends on whose it is.
    pod.metadata.owner_references = Some(vec![OwnerReference {
        api_version: api_version(&request.kind.group, &request.kind.version),
        kind: kind.to_owned(),
        name: object.name_any(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    Some(pod)
}

fn api_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

/// Whether the pod asks to be movable. Without an answer about policies it does not.
async fn asks(client: &Client, pod: &Pod) -> bool {
    match pod.annotations().get(names::MOVABLE).map(String::as_str) {
        Some("false") => return false,
        _ if preflight::asks_to_be_movable(pod) => return true,
        _ => {}
    }
    let namespace = pod.namespace().unwrap_or_default();
    let policies: Api<MigrationPolicy> = Api::namespaced(client.clone(), &namespace);
    match tokio::time::timeout(LOOK_LIMIT, policies.list(&ListParams::default())).await {
        Ok(Ok(listed)) => policy::applying(&listed.items, pod).is_some(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "policies could not be listed");
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn request(kind: &str, object: Value) -> AdmissionRequest<DynamicObject> {
        let group = match kind {
            "Pod" => "",
            "CronJob" | "Job" => "batch",
            _ => "apps",
        };
        let review: AdmissionReview<DynamicObject> = serde_json::from_value(json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u", "kind": {"group": group, "version": "v1", "kind": kind},
                "resource": {"group": group, "version": "v1", "resource": "x"},
                "name": "x", "namespace": "shop", "operation": "CREATE",
                "userInfo": {"username": "kate"}, "object": object, "dryRun": false
            }
        }))
        .unwrap();
        review.try_into().unwrap()
    }

    fn object(kind: &str, spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "web"}, "spec": spec})
    }

    fn template() -> Value {
        json!({"metadata": {"labels": {"app": "web"}},
            "spec": {"hostNetwork": true, "containers": [{"name": "web"}]}})
    }

    #[rstest]
    #[case("Pod", json!({"hostNetwork": true, "containers": [{"name": "web"}]}), 2)]
    #[case("Deployment", json!({"template": template()}), 2)]
    #[case("CronJob", json!({"jobTemplate": {"spec": {"template": template()}}}), 2)]
    #[case("DaemonSet", json!({"template": template()}), 3)]
    fn the_pod_is_found_in_what_is_created(
        #[case] kind: &str,
        #[case] spec: Value,
        #[case] warnings: usize,
    ) {
        let pod = pod_of(&request(kind, object(kind, spec))).unwrap();
        assert_eq!(pod.namespace().as_deref(), Some("shop"));
        let found = preflight::warnings(&pod);
        assert_eq!(found.len(), warnings, "{found:?}");
        assert!(found.iter().any(|w| w.contains("hostNetwork")));
    }

    #[rstest]
    #[case("Pod", false)]
    #[case("StatefulSet", false)]
    #[case("Deployment", true)]
    #[case("ReplicaSet", true)]
    #[case("Job", true)]
    fn a_claim_is_warned_of_where_it_is_not_handed_over(#[case] kind: &str, #[case] warned: bool) {
        let spec = json!({"containers": [{"name": "web"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]});
        let spec = match kind {
            "Pod" => spec,
            _ => json!({"template": {"metadata": {}, "spec": spec}}),
        };
        let pod = pod_of(&request(kind, object(kind, spec))).unwrap();
        let found = preflight::warnings(&pod);
        assert_eq!(found.iter().any(|w| w.contains("volume data")), warned, "{found:?}");
    }

    #[test]
    fn what_has_no_pod_is_let_pass() {
        assert_eq!(pod_of(&request("Deployment", object("Deployment", json!({})))), None);
        assert_eq!(
            pod_of(&request("Deployment", object("Deployment", json!({"template": 7})))),
            None
        );
    }
}
