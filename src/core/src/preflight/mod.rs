//! Checks before anything is touched. Each check is one pure function in a table; the tables run
//! in two passes.
//!
//! * [`refusal`] looks at the request: pod, owner, nodes, mode. The first check that fails answers,
//!   because the later ones would only speak of its consequences.
//! * [`violations`] looks at what is to be moved. All checks run, and everything found is told at
//!   once, each with its remedy.
//!
//! Nothing here chooses a target node (`placement` does) or reads anything.
//!
//! docs/preflight.md lists the checks; a test compares it with the tables.

mod claims;
mod cold;
mod network;
mod nodes;
mod pod;
mod process;
mod request;
mod unseen;
mod warnings;

/// Why nodes cannot take part: shared with `placement`.
pub(crate) mod request_reasons {
    pub(crate) use super::request::{not_ready, takes_no_pods};
}

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use transship_api as api;
use transship_api::conditions::bounded;
use transship_api::migration::{MAX_REMEDY, MAX_VIOLATION_MESSAGE};

use crate::facts::PodFacts;
use crate::migration::owner::Controller;
use crate::placement::volumes::Volumes;

pub use claims::Claim;
pub use network::{NetworkChoice, choose as choose_network};
pub use process::{GHOST_LIMIT, stands_in_the_way};
pub use request::{CHECKS as REQUEST_CHECKS, asked};
pub use unseen::{may_pass, not_inspected};
pub use warnings::{asks_to_be_movable, warnings};

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
    /// The pod's controller, where it is one whose pods are handed over and it is there to stay.
    pub owner: Option<&'a Controller>,
    /// The claims of the pod's persistent volumes.
    pub claims: &'a [Claim],
    /// The MigrationPolicy that applies to the pod.
    pub policy: Option<&'a api::MigrationPolicy>,
    /// The pod's volumes.
    pub volumes: &'a Volumes,
    /// All cluster nodes.
    pub nodes: &'a [NodeView],
    /// The target node, given or chosen.
    pub target: Option<&'a NodeView>,
    /// What the source's agent found out about the pod.
    pub facts: Option<&'a PodFacts>,
    /// What the target's agent found out about its node.
    pub target_facts: Option<&'a PodFacts>,
    /// What the API server says of the target pod, asked without storing it; none while it has not
    /// been asked, or where it could not say.
    pub answer: Option<&'a TargetAnswer>,
}

/// What the API server says of a target pod that it is shown and does not store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetAnswer {
    /// It would take the pod, and change these fields of it.
    Taken(Vec<String>),
    /// It would not: quota, limits, Pod Security, a policy, a webhook.
    Refused(String),
}

impl TargetAnswer {
    /// One answer of those about several pods: the first refusal, else everything that would be
    /// changed. None without any.
    pub fn of_all(answers: impl IntoIterator<Item = Self>) -> Option<Self> {
        answers.into_iter().reduce(|all, next| match (all, next) {
            (Self::Taken(mut all), Self::Taken(changes)) => {
                for change in changes {
                    if !all.contains(&change) {
                        all.push(change);
                    }
                }
                Self::Taken(all)
            }
            (refused @ Self::Refused(_), _) | (_, refused) => refused,
        })
    }
}

impl<'a> Input<'a> {
    /// Of a Migration of which nothing else is known.
    fn of(migration: &'a api::Migration, volumes: &'a Volumes) -> Self {
        Self {
            migration,
            pod: None,
            owner: None,
            claims: &[],
            policy: None,
            volumes,
            nodes: &[],
            target: None,
            facts: None,
            target_facts: None,
            answer: None,
        }
    }

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
    /// Processes it concerns, each `name (pid)`; empty if none.
    pub process: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Violation {
    /// Found in the pod as a whole. Check and remedy are those of the table.
    fn of_pod(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Found in one container.
    fn of_container(container: &str, message: impl Into<String>) -> Self {
        Self { container: container.to_owned(), ..Self::of_pod(message) }
    }

    fn found(&self) -> String {
        match self.process.as_str() {
            "" => self.message.clone(),
            several if several.contains("), ") => format!("processes {several}: {}", self.message),
            process => format!("process {process}: {}", self.message),
        }
    }

    /// As it stands in a Migration's status.
    pub fn to_status(&self) -> api::Violation {
        api::Violation {
            check: self.check.to_owned(),
            container: self.container.clone(),
            message: bounded(&self.found(), MAX_VIOLATION_MESSAGE),
            remedy: bounded(&self.remedy, MAX_REMEDY),
        }
    }
}

/// A check of the request.
pub type RequestCheck = fn(&Input<'_>) -> Option<Refusal>;

/// A check of what is to be moved: everything that it finds, each container and process by name.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name, PascalCase.
    pub name: &'static str,
    /// What it finds, for people; a part of docs/preflight.md.
    pub finds: &'static str,
    /// What to do about it, where the finding does not say it itself.
    pub remedy: &'static str,
    look: fn(&Input<'_>) -> Vec<Violation>,
}

impl Check {
    fn run(&self, input: &Input<'_>) -> impl Iterator<Item = Violation> {
        let Self { name, remedy, .. } = *self;
        (self.look)(input).into_iter().map(move |mut found| {
            found.check = name;
            if found.remedy.is_empty() {
                remedy.clone_into(&mut found.remedy);
            }
            found
        })
    }
}

/// All checks of what is to be moved: manifest, processes, network, nodes.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [pod::CHECKS, process::CHECKS, network::CHECKS, nodes::CHECKS].into_iter().flatten()
}

/// The first thing that is wrong with the request.
pub fn refusal(input: &Input<'_>) -> Option<Refusal> {
    REQUEST_CHECKS.iter().find_map(|check| check(input))
}

/// Everything that cannot be moved, in the tables' order.
pub fn violations(input: &Input<'_>) -> Vec<Violation> {
    let cold = cold::is_cold(input);
    let own = if cold { cold::CHECKS } else { &[] };
    let counting = checks().filter(|check| !cold || cold::counts(check));
    counting.chain(own).flat_map(|check| check.run(input)).collect()
}

/// What stands between two nodes whatever the pod, as far as they report it.
pub fn between(source: &NodeView, target: &NodeView) -> Vec<Violation> {
    let migration = api::Migration::new("", api::MigrationSpec::for_pod(""));
    let spec = PodSpec { node_name: Some(source.name.clone()), ..PodSpec::default() };
    let pod = Pod { spec: Some(spec), ..Pod::default() };
    let volumes = Volumes::default();
    let input = Input {
        pod: Some(&pod),
        nodes: std::slice::from_ref(source),
        target: Some(target),
        ..Input::of(&migration, &volumes)
    };
    nodes::CHECKS.iter().flat_map(|check| check.run(&input)).collect()
}

/// Why no pod can be moved to a node, whichever.
pub fn objection(node: &NodeView) -> Option<String> {
    request::not_ready(node).or_else(|| request::takes_no_pods(node))
}

/// At most `limit` of the violations, in their order. Where there are more, every check keeps its
/// first before any has its second.
pub fn most_telling(violations: &[Violation], limit: usize) -> Vec<&Violation> {
    let rank = |at: usize| {
        violations[..at].iter().filter(|before| before.check == violations[at].check).count()
    };
    let mut places: Vec<(usize, usize)> = (0..violations.len()).map(|at| (rank(at), at)).collect();
    places.sort_unstable();
    places.truncate(limit);
    places.sort_unstable_by_key(|(_, at)| *at);
    places.into_iter().map(|(_, at)| &violations[at]).collect()
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
            format!("{}{place}: {}; {}", v.check, v.found(), v.remedy)
        })
        .collect();
    parts.join(" | ")
}

/// Names in a message.
const NAMES_SHOWN: usize = 5;

/// Names of nodes for a message, the first few.
pub(crate) fn name_some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    list_some(names)
}

/// The first few in their order, and how many more there are.
fn list_some(names: Vec<&str>) -> String {
    list_up_to(NAMES_SHOWN, names, 0)
}

/// The first `shown` in their order, and how many more there are: the rest, and `others` that have no name.
fn list_up_to(shown: usize, names: Vec<&str>, others: u64) -> String {
    let more = names.len().saturating_sub(shown) as u64 + others;
    let mut text = names.into_iter().take(shown).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
