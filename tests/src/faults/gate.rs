//! Keeps the operator from recording something in a namespace, so that a migration stands still where it
//! would otherwise pass in milliseconds.

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

/// It refuses a ConfigMap as well, by which it is seen to be in force.
const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: NAME}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NAMESPACE}}
    resourceRules:
      - {apiGroups: [transship.dev], apiVersions: [v1alpha1], resources: [migrations/status], operations: [UPDATE]}
      - {apiGroups: [""], apiVersions: [v1], resources: [configmaps], operations: [CREATE]}
  validations:
    - expression: "request.kind.kind == 'ConfigMap' ? object.metadata.name != 'NAME' : !has(object.status.FIELD)"
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

    /// The field of a Migration's status that it keeps away.
    pub fn field(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::ResumedAt => "resumedAt",
        }
    }

    fn name(self, cluster: &Cluster) -> String {
        let what = match self {
            Self::Decision => "decision",
            Self::ResumedAt => "resumed-at",
        };
        format!("{}-no-{what}", cluster.namespace)
    }

    /// From now on it cannot be recorded in this namespace.
    pub fn close(self, cluster: &Cluster) -> Result<()> {
        let name = self.name(cluster);
        let policy = POLICY
            .replace("NAMESPACE", &cluster.namespace)
            .replace("NAME", &name)
            .replace("FIELD", self.field());
        cluster.apply(&policy)?;
        // The API server goes by the old policies for a moment.
        cluster.await_that("the policy is in force", Duration::from_secs(30), || {
            let args = ["create", "configmap", &name, "--dry-run=server"];
            let asked = cluster.try_kubectl(&args)?;
            let answer = String::from_utf8_lossy(&asked.stderr).into_owned();
            Ok(!asked.status.success() && answer.contains("held back by a test"))
        })
    }

    /// It can be recorded again. Does nothing if it always could.
    pub fn open(self, cluster: &Cluster) -> Result<()> {
        let kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy";
        cluster.kubectl(&["delete", kinds, &self.name(cluster), "--ignore-not-found"])?;
        Ok(())
    }
}
