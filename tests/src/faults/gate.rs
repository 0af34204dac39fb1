//! Keeps the operator from writing something, so that a migration stands still where it would
//! otherwise pass in milliseconds.

use std::time::Duration;

use anyhow::Result;

use crate::cluster::Cluster;

/// What cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// The checks have passed and the pod is claimed, but nothing of it is recorded.
    Admission,
    /// The target pod is made, and cannot be let go to its node.
    LetGo,
    /// Both sides have voted and nothing is decided.
    Decision,
    /// The target runs and nobody has confirmed it.
    ResumedAt,
}

/// A ConfigMap of the policy's name cannot be made either: so it is known whether it is in force.
const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: NAME}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - {apiGroups: [""], apiVersions: [v1], resources: [configmaps], operations: [CREATE]}
      - {RESOURCE, operations: [UPDATE]}
  validations:
    - expression: "request.resource.resource == 'configmaps' ? object.metadata.name != 'NAME' : (ALLOWED)"
      message: held back by a test
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: NAME}
spec: {policyName: NAME, validationActions: [Deny]}
"#;

const STATUS: &str =
    "apiGroups: [transship.dev], apiVersions: [v1alpha1], resources: [migrations/status]";
const PODS: &str = r#"apiGroups: [""], apiVersions: [v1], resources: [pods]"#;

impl Gate {
    const ALL: [Self; 4] = [Self::Admission, Self::LetGo, Self::Decision, Self::ResumedAt];

    fn name(self) -> &'static str {
        match self {
            Self::Admission => "test-no-admission",
            Self::LetGo => "test-no-let-go",
            Self::Decision => "test-no-decision",
            Self::ResumedAt => "test-no-resumed-at",
        }
    }

    /// What is held back, and how it may be written all the same.
    fn rule(self) -> (&'static str, &'static str) {
        match self {
            Self::Admission => (STATUS, "!has(object.status.source)"),
            Self::LetGo => {
                (PODS, "!has(oldObject.spec.schedulingGates) || has(object.spec.schedulingGates)")
            }
            Self::Decision => (STATUS, "!has(object.status.decision)"),
            Self::ResumedAt => (STATUS, "!has(object.status.resumedAt)"),
        }
    }

    /// From now on it cannot be written.
    pub fn close(self, cluster: &Cluster) -> Result<()> {
        let (name, (resource, allowed)) = (self.name(), self.rule());
        let policy =
            POLICY.replace("NAME", name).replace("RESOURCE", resource).replace("ALLOWED", allowed);
        cluster.apply(&policy)?;
        cluster.await_that("the policy is in force", Duration::from_secs(30), || {
            let refused =
                cluster.try_kubectl(&["create", "configmap", name, "--dry-run=server"])?;
            Ok(String::from_utf8_lossy(&refused.stderr).contains("held back by a test"))
        })
    }

    /// It can be written again. Does nothing if it always could.
    pub fn open(self, cluster: &Cluster) -> Result<()> {
        open(cluster, &[self.name()])
    }

    /// Opens every gate.
    pub fn open_all(cluster: &Cluster) -> Result<()> {
        open(cluster, &Self::ALL.map(Self::name))
    }
}

fn open(cluster: &Cluster, names: &[&str]) -> Result<()> {
    let kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy";
    cluster.kubectl(&[&["delete", kinds, "--ignore-not-found"][..], names].concat()).map(drop)
}
