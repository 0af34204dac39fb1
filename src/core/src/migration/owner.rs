//! The controllers whose pods are handed over while both pods exist: what of a ReplicaSet or a Job
//! the hand-over needs to know.

use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use super::handover::Labels;

/// Finalizer of a Job's pods: with it a pod that has ended is still to be counted. A pod that is the
/// Job's and lacks it passes for counted, and one that has it and is deleted for failed.
pub const JOB_TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation by which a ReplicaSet that has a pod too many chooses among those that are not Ready; the least first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a Deployment, or bare.
    ReplicaSet,
    /// Of a CronJob, or bare.
    Job,
}

impl Kind {
    /// The kind that a reference names, if its pods are handed over like this.
    pub fn of(reference: &OwnerReference) -> Option<Self> {
        let group = reference.api_version.split('/').next()?;
        match (group, reference.kind.as_str()) {
            ("apps", "ReplicaSet") => Some(Self::ReplicaSet),
            ("batch", "Job") => Some(Self::Job),
            _ => None,
        }
    }

    /// As manifests name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::ReplicaSet => "apps/v1",
            Self::Job => "batch/v1",
        }
    }

    /// The finalizer that goes from pod to pod with the claim.
    pub fn finalizer(self) -> Option<&'static str> {
        match self {
            Self::ReplicaSet => None,
            Self::Job => Some(JOB_TRACKING),
        }
    }
}

/// A controller that claims pods by their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Controller {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Which pods without owner it adopts.
    pub selector: LabelSelector,
    /// Labels of the pods that it makes.
    pub template_labels: Labels,
    /// How long a pod has to be Ready to be available.
    pub min_ready: Duration,
}

impl Controller {
    /// The reference with which it claims a pod.
    pub fn claim(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.kind.api_version().into(),
            kind: self.kind.as_str().into(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    fn new(
        kind: Kind,
        meta: ObjectMeta,
        selector: LabelSelector,
        template: Option<PodTemplateSpec>,
    ) -> Self {
        Self {
            kind,
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            selector,
            template_labels: template.and_then(|t| t.metadata?.labels).unwrap_or_default(),
            min_ready: Duration::ZERO,
        }
    }
}

impl From<ReplicaSet> for Controller {
    fn from(set: ReplicaSet) -> Self {
        let min_ready = u64::try_from(set.spec.min_ready_seconds.unwrap_or(0)).unwrap_or(0);
        Self {
            min_ready: Duration::from_secs(min_ready),
            ..Self::new(Kind::ReplicaSet, set.metadata, set.spec.selector, set.spec.template)
        }
    }
}

impl From<Job> for Controller {
    fn from(job: Job) -> Self {
        let spec = job.spec.unwrap_or_default();
        // A Job without selector does not come from an API server. One that nothing matches is the
        // safe reading; an empty one would match everything.
        let selector = spec.selector.unwrap_or_else(|| LabelSelector {
            match_labels: Some(
                [("batch.kubernetes.io/controller-uid".into(), String::new())].into(),
            ),
            match_expressions: None,
        });
        Self::new(Kind::Job, job.metadata, selector, Some(spec.template))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("apps/v1", "ReplicaSet", Some(Kind::ReplicaSet))]
    #[case("batch/v1", "Job", Some(Kind::Job))]
    #[case("apps/v1", "Job", None)]
    #[case("example.com/v1", "ReplicaSet", None)]
    #[case("apps/v1", "StatefulSet", None)]
    fn a_reference_names_a_kind_with_its_group(
        #[case] api_version: &str,
        #[case] kind: &str,
        #[case] expected: Option<Kind>,
    ) {
        let reference = OwnerReference {
            api_version: api_version.into(),
            kind: kind.into(),
            ..OwnerReference::default()
        };
        assert_eq!(Kind::of(&reference), expected);
    }

    #[test]
    fn a_job_claims_by_its_generated_selector() {
        let job: Job = serde_json::from_value(json!({
            "metadata": {"name": "sum", "uid": "uid-job"},
            "spec": {
                "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "uid-job"}},
                "template": {"metadata": {"labels": {"job-name": "sum"}}},
            }
        }))
        .unwrap();
        let controller = Controller::from(job);
        assert_eq!(controller.template_labels.get("job-name").map(String::as_str), Some("sum"));
        let claim = controller.claim();
        assert_eq!((claim.api_version.as_str(), claim.kind.as_str()), ("batch/v1", "Job"));
        assert_eq!(Kind::of(&claim), Some(Kind::Job));
        assert_eq!(controller.kind.finalizer(), Some(JOB_TRACKING));
    }
}
