//! Keeps the operator from recording something, so that a migration stands still where it would
//! otherwise pass in milliseconds.

use std::time::Duration;

use anyhow::Result;

use crate::cluster::Cluster;

/// What cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Both sides have voted and nothing is decided.
    Decision,
    /// The target runs and nobody has confirmed it.
    ResumedAt,
}

const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: NAME}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - {apiGroups: [transship.dev], apiVersions: [v1alpha1], resources: [migrations/status], operations: [UPDATE]}
  validations:
    - expression: "!has(object.status.FIELD)"
      message: held back by a test
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: NAME}
spec: {policyName: NAME, validationActions: [Deny]}
"#;

impl Gate {
    /// Every gate.
    pub const ALL: [Self; 2] = [Self::Decision, Self::ResumedAt];

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Decision => ("test-no-decision", "decision"),
            Self::ResumedAt => ("test-no-resumed-at", "resumedAt"),
        }
    }

    /// From now on it cannot be recorded.
    pub fn close(self, cluster: &Cluster) -> Result<()> {
        let (name, field) = self.names();
        cluster.apply(&POLICY.replace("NAME", name).replace("FIELD", field))?;
        cluster.await_that("the policy is in force", Duration::from_secs(30), || {
            let observed = "jsonpath={.status.observedGeneration}";
            let args = ["get", "validatingadmissionpolicy", name, "-o", observed];
            Ok(cluster.try_kubectl(&args)?.stdout == b"1")
        })
    }

    /// It can be recorded again. Does nothing if it always could.
    pub fn open(self, cluster: &Cluster) -> Result<()> {
        let kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy";
        cluster.kubectl(&["delete", kinds, self.names().0, "--ignore-not-found"])?;
        Ok(())
    }
}
