//! Checks before anything is touched. Each check is one pure function in a table; the tables run
//! in two passes.
//!
//! * [`refusal`] looks at the request: pod, owner, nodes, mode. The first check that fails answers,
//!   because the later ones would only speak of its consequences.
//! * [`violations`] looks at what is to be moved. All checks run, and everything found is told at
//!   once, each with its remedy.
//!
//! Nothing here chooses a target node (`placement` does) or reads anything.

mod claims;
mod facts;
mod pod;
mod request;

/// Why nodes cannot take part: shared with `placement`.
pub(crate) mod request_reasons {
    pub(crate) use super::request::{not_ready, takes_no_pods};
}

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use transship_api as api;

use crate::facts::PodFacts;

pub use claims::Claim;
pub use facts::CHECKS as FACT_CHECKS;
pub use pod::CHECKS as POD_CHECKS;
pub use request::{CHECKS as REQUEST_CHECKS, asked};

/// A cluster node as both kinds show it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Kubernetes' own Node.
    pub core: Option<Node>,
    /// Our Node, made by its agent.
    pub agent: Option<api::Node>,
}

impl NodeView {
    /// All nodes of both kinds, by name.
    pub fn join(
        core: impl IntoIterator<Item = Node>,
        agents: impl IntoIterator<Item = api::Node>,
    ) -> Vec<Self> {
        let mut views: BTreeMap<String, Self> = BTreeMap::new();
        for node in core {
            let name = node.metadata.name.clone().unwrap_or_default();
            views.entry(name).or_default().core = Some(node);
        }
        for node in agents {
            let name = node.metadata.name.clone().unwrap_or_default();
            views.entry(name).or_default().agent = Some(node);
        }
        views.into_iter().map(|(name, view)| Self { name, ..view }).collect()
    }
}

/// Everything the checks may look at.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The request.
    pub migration: &'a api::Migration,
    /// The pod that `spec.podName` names.
    pub pod: Option<&'a Pod>,
    /// The pod's controller, where it is a ReplicaSet that exists.
    pub owner: Option<&'a ReplicaSet>,
    /// The claims of the pod's persistent volumes.
    pub claims: &'a [Claim],
    /// The MigrationPolicy that applies to the pod.
    pub policy: Option<&'a api::MigrationPolicy>,
    /// All cluster nodes.
    pub nodes: &'a [NodeView],
    /// The target node, given or chosen.
    pub target: Option<&'a NodeView>,
    /// What the source's agent found out about the pod.
    pub facts: Option<&'a PodFacts>,
    /// What the target's agent found out about its node.
    pub target_facts: Option<&'a PodFacts>,
}

impl Input<'_> {
    /// The node that the pod runs on.
    pub fn source(&self) -> Option<&NodeView> {
        let name = self.pod?.spec.as_ref()?.node_name.as_deref()?;
        self.nodes.iter().find(|node| node.name == name)
    }
}

/// Why a request cannot be accepted: a reason for the conditions, and one sentence that says what
/// to write or do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of `transship_api::conditions::reasons`.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// Something that cannot be moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violation {
    /// Name of the check, PascalCase.
    pub check: &'static str,
    /// Container it concerns; empty for the whole pod.
    pub container: String,
    /// Process it concerns, `name (pid)`; empty if none.
    pub process: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Violation {
    /// As it stands in a Migration's status.
    pub fn to_status(&self) -> api::Violation {
        let message = match self.process.as_str() {
            "" => self.message.clone(),
            process => format!("process {process}: {}", self.message),
        };
        api::Violation {
            check: self.check.to_owned(),
            container: self.container.clone(),
            message: message.chars().take(1000).collect(),
            remedy: self.remedy.clone(),
        }
    }
}

/// A check of the request.
pub type RequestCheck = fn(&Input<'_>) -> Option<Refusal>;
/// A check of what is to be moved. A check that concerns several containers or processes names
/// the first one it meets; the next shows when that is remedied.
pub type Check = fn(&Input<'_>) -> Option<Violation>;

/// The first thing that is wrong with the request.
pub fn refusal(input: &Input<'_>) -> Option<Refusal> {
    REQUEST_CHECKS.iter().find_map(|check| check(input))
}

/// Everything that cannot be moved, in the tables' order.
pub fn violations(input: &Input<'_>) -> Vec<Violation> {
    POD_CHECKS.iter().chain(FACT_CHECKS).filter_map(|check| check(input)).collect()
}

/// All violations in one sentence for a condition.
pub fn summary(violations: &[Violation]) -> String {
    let parts: Vec<String> = violations
        .iter()
        .map(|v| {
            let place = match v.container.as_str() {
                "" => String::new(),
                container => format!(" (container {container})"),
            };
            let process = match v.process.as_str() {
                "" => String::new(),
                process => format!("process {process}: "),
            };
            format!("{}{place}: {process}{}; {}", v.check, v.message, v.remedy)
        })
        .collect();
    parts.join(" | ")
}

/// Names of nodes for a message, the first few.
pub(crate) fn name_some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(SHOWN);
    let mut text = names.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
