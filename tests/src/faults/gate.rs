//! Keeps the operator from writing something in a namespace, so that a migration stands still where it
//! would otherwise pass in milliseconds.

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
    /// Sequential: the source's containers have ended, and nobody has announced that its pod goes.
    SourceDeletion,
    /// The target runs and nobody has confirmed it.
    ResumedAt,
    /// All is done, and nobody has said that it is over.
    End,
}

/// A ConfigMap of the policy's name cannot be made either: so it is known whether it is in force.
const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: NAME}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NAMESPACE}}
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
    const ALL: [Self; 6] = [
        Self::Admission,
        Self::LetGo,
        Self::Decision,
        Self::SourceDeletion,
        Self::ResumedAt,
        Self::End,
    ];

    /// The field of a Migration's status that it keeps away, if it is one.
    pub fn field(self) -> Option<&'static str> {
        match self {
            Self::Admission => Some("source"),
            Self::LetGo => None,
            Self::Decision => Some("decision"),
            Self::SourceDeletion => Some("sourceDeletionTime"),
            Self::ResumedAt => Some("resumedAt"),
            Self::End => Some("completionTime"),
        }
    }

    fn name(self, cluster: &Cluster) -> String {
        let what = match self {
            Self::Admission => "admission",
            Self::LetGo => "let-go",
            Self::Decision => "decision",
            Self::SourceDeletion => "source-deletion",
            Self::ResumedAt => "resumed-at",
            Self::End => "end",
        };
        format!("{}-no-{what}", cluster.namespace)
    }

    /// What is held back, and how it may be written all the same.
    fn rule(self) -> (&'static str, String) {
        match self.field() {
            Some(field) => (STATUS, format!("!has(object.status.{field})")),
            None => (
                PODS,
                "!has(oldObject.spec.schedulingGates) || has(object.spec.schedulingGates)".into(),
            ),
        }
    }

    /// From now on it cannot be written in this namespace.
    pub fn close(self, cluster: &Cluster) -> Result<()> {
        let (name, (resource, allowed)) = (self.name(cluster), self.rule());
        let policy = POLICY
            .replace("NAMESPACE", &cluster.namespace)
            .replace("NAME", &name)
            .replace("RESOURCE", resource)
            .replace("ALLOWED", &allowed);
        cluster.apply(&policy)?;
        // The API server goes by the old policies for a moment.
        cluster.await_that("the policy is in force", Duration::from_secs(30), || {
            let args = ["create", "configmap", &name, "--dry-run=server"];
            let asked = cluster.try_kubectl(&args)?;
            let answer = String::from_utf8_lossy(&asked.stderr).into_owned();
            Ok(!asked.status.success() && answer.contains("held back by a test"))
        })
    }

    /// It can be written again. Does nothing if it always could.
    pub fn open(self, cluster: &Cluster) -> Result<()> {
        open(cluster, &[self.name(cluster)])
    }

    /// Opens every gate of this namespace.
    pub fn open_all(cluster: &Cluster) -> Result<()> {
        open(cluster, &Self::ALL.map(|gate| gate.name(cluster)))
    }
}

fn open(cluster: &Cluster, names: &[String]) -> Result<()> {
    let kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy";
    let names = names.iter().map(String::as_str);
    let arguments: Vec<&str> =
        ["delete", kinds, "--ignore-not-found"].into_iter().chain(names).collect();
    cluster.kubectl(&arguments).map(drop)
}
