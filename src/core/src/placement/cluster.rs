//! The target of a migration: what Kubernetes' own scheduler would check first (readiness,
//! selector, affinity, taints, room, host ports, reach of volumes), then Swarm's filters and strategy.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};
use transship_api::names;

use super::kubernetes::{self, Asked};
use super::load::{Load, host_ports};
use super::resources::{Allocatable, requests};
use super::{By, Filter, Node, Request, Verdict, prepare};
use crate::migration::handover::Labels;
use crate::preflight::NodeView;
use crate::preflight::request_reasons::{not_ready, takes_no_pods};

/// A node and its load.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a NodeView,
    /// Its load.
    pub load: &'a Load,
}

impl Candidate<'_> {
    fn to_model(self, overcommit_percent: i64) -> Node {
        let agent = self.node.agent.as_ref();
        let mut node = match &self.node.core {
            Some(core) => kubernetes::node(core, agent, overcommit_percent),
            None => Node::new(&self.node.name, ""),
        };
        self.load.containers.iter().for_each(|container| node.add(container.clone()));
        node
    }
}

/// Says why a pod cannot go to a node, if it cannot.
type Check = fn(&Pod, &Asked, &Candidate<'_>) -> Option<String>;

/// Kubernetes' checks, in order; the first that objects speaks for the node.
const CHECKS: &[Check] = &[
    is_ready,
    takes_pods,
    selector_matches,
    affinity_matches,
    taints_are_tolerated,
    volumes_are_in_reach,
    has_room,
    ports_are_free,
];

/// Those that also hold for a node that the Migration names; the others are preflight's, or the
/// scheduler's to answer.
const PINNED_CHECKS: &[Check] =
    &[selector_matches, affinity_matches, taints_are_tolerated, volumes_are_in_reach];

/// The filters that hold for a node that the Migration names, where the pod has another scheduler than
/// ours: what was asked for in words. Room, health and ports are preflight's or that scheduler's to
/// answer.
const PINNED_FILTERS: [Filter; 4] =
    [Filter::Dependency, Filter::Affinity, Filter::Constraint, Filter::Whitelist];

/// What became of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is left out.
    Removed {
        /// `kubernetes`, or one of Swarm's filters, or `strategy`.
        by: &'static str,
        /// Why.
        reason: String,
    },
    /// It can be used.
    Ranked {
        /// Swarm's weight.
        weight: i64,
        /// 1 for the best; equal nodes share a rank.
        rank: usize,
    },
}

/// Where a pod would go, and why not elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Nodes that can be used, best first.
    pub order: Vec<String>,
    /// Every node but the pod's own, in the order given.
    pub fates: Vec<(String, Fate)>,
    /// Swarm's text, if its filters or strategy left no node; it may have several lines.
    pub error: Option<String>,
}

impl Choice {
    /// What speaks against each node.
    pub fn against(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fates.iter().filter_map(|(name, fate)| match fate {
            Fate::Removed { reason, .. } => Some((name.as_str(), reason.as_str())),
            Fate::Ranked { .. } => None,
        })
    }
}

/// The best node for a pod, its own left out, and what speaks against the others. What Kubernetes
/// objects to does not reach Swarm's filters.
pub fn choose(pod: &Pod, asked: &Asked, candidates: &[Candidate<'_>]) -> Choice {
    let source = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    let others = candidates.iter().filter(|c| Some(c.node.name.as_str()) != source);
    let mut choice = Choice::default();
    let mut left = Vec::new();
    for candidate in others {
        let fate = match CHECKS.iter().find_map(|check| check(pod, asked, candidate)) {
            Some(reason) => Fate::Removed { by: "kubernetes", reason },
            // Until the engine has looked.
            None => {
                left.push((choice.fates.len(), candidate.to_model(asked.overcommit_percent)));
                Fate::Ranked { weight: 0, rank: 0 }
            }
        };
        choice.fates.push((candidate.node.name.clone(), fate));
    }
    if left.is_empty() {
        return choice;
    }
    let nodes: Vec<&Node> = left.iter().map(|(_, node)| node).collect();
    let decision = prepare(&asked.request, &asked.options)
        .place_where(&nodes, |claim| is_mounted_by_another(claim, pod, candidates));
    for (position, (at, _)) in left.iter().enumerate() {
        choice.fates[*at].1 = match decision.verdict(position) {
            Verdict::Removed { by, reason } => {
                Fate::Removed { by: by.name(), reason: reason.to_owned() }
            }
            Verdict::Ranked { weight, rank } => Fate::Ranked { weight, rank },
        };
    }
    choice.order = decision.ranking().map(|position| nodes[position].name.clone()).collect();
    choice.error = decision.error().map(str::to_owned);
    choice
}

/// Whether another pod on any node mounts a claim's volume.
fn is_mounted_by_another(claim: &str, pod: &Pod, all: &[Candidate<'_>]) -> bool {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut containers = all.iter().flat_map(|candidate| &candidate.load.containers);
    containers.any(|c| c.id != uid && c.claims.iter().any(|mounted| mounted == claim))
}

/// What speaks against a node that the Migration names, if anything. `all` are all nodes.
pub fn objection(
    pod: &Pod,
    asked: &Asked,
    candidate: &Candidate<'_>,
    all: &[Candidate<'_>],
) -> Option<String> {
    if let Some(reason) = PINNED_CHECKS.iter().find_map(|check| check(pod, asked, candidate)) {
        return Some(reason);
    }
    let (mut request, mut options) = (asked.request.clone(), asked.options.clone());
    if !is_scheduled_by_us(pod) {
        // What it asks for is looked at elsewhere.
        (request.cpus, request.memory) = (0, 0);
        options.filters = PINNED_FILTERS.to_vec();
    }
    let node = candidate.to_model(asked.overcommit_percent);
    let decision = prepare(&request, &options)
        .place_where(&[&node], |claim| is_mounted_by_another(claim, pod, all));
    match decision.verdict(0) {
        Verdict::Removed { by: By::Strategy, reason } if asked.overcommit_percent < 0 => {
            let reserve = asked.overcommit_percent.unsigned_abs();
            Some(format!("{}: {reason} ({reserve} % of the node are kept free)", node.name))
        }
        Verdict::Removed { reason, .. } => Some(format!("{}: {reason}", node.name)),
        Verdict::Ranked { .. } => None,
    }
}

/// Whether the pods of the nodes matter to [`objection`].
pub fn looks_at_pods(pod: &Pod, asked: &Asked) -> bool {
    let Request { affinities, links, claims, .. } = &asked.request;
    is_scheduled_by_us(pod) || !affinities.is_empty() || !links.is_empty() || !claims.is_empty()
}

/// Whether the target pod's scheduler will ask all of this again, and leave the pod without a node
/// where the answer is no.
fn is_scheduled_by_us(pod: &Pod) -> bool {
    let scheduler = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    scheduler == Some(names::SCHEDULER)
}

fn is_ready(_: &Pod, _: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    not_ready(candidate.node)
}

fn takes_pods(_: &Pod, _: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    takes_no_pods(candidate.node)
}

fn labels(node: &NodeView) -> Labels {
    node.core.as_ref().and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
}

fn selector_matches(pod: &Pod, _: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    let selector = pod.spec.as_ref()?.node_selector.as_ref()?;
    let labels = labels(candidate.node);
    let (key, value) = selector.iter().find(|(key, value)| labels.get(*key) != Some(value))?;
    let name = &candidate.node.name;
    Some(format!("{name} lacks the label {key}={value} of the pod's nodeSelector"))
}

fn affinity_matches(pod: &Pod, _: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    let required = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let labels = labels(candidate.node);
    let name = &candidate.node.name;
    // The pin of an earlier migration is replaced, not obeyed.
    let moved =
        pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(names::MOVED_FROM));
    let fits = required.node_selector_terms.iter().any(|t| term_fits(t, name, &labels, moved));
    (!fits).then(|| format!("{name} does not match the pod's node affinity"))
}

fn term_fits(term: &NodeSelectorTerm, name: &str, labels: &Labels, ignore_pin: bool) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|e| requirement_fits(e, labels.get(&e.key).map(String::as_str)))
        && fields
            .iter()
            .filter(|f| !(ignore_pin && f.key == "metadata.name"))
            .all(|f| requirement_fits(f, (f.key == "metadata.name").then_some(name)))
}

fn requirement_fits(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = || Some((number(value?)?, number(values.first()?)?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(v, w)| v > w),
        "Lt" => compared().is_some_and(|(v, w)| v < w),
        _ => false,
    }
}

fn taints_are_tolerated(pod: &Pod, _: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let taints = candidate.node.core.as_ref()?.spec.as_ref()?.taints.as_deref()?;
    let taint = taints
        .iter()
        .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|t| !tolerations.iter().any(|toleration| tolerates(toleration, t)))?;
    let name = &candidate.node.name;
    Some(format!(
        "{name} has the taint {}:{}, which the pod does not tolerate",
        taint.key, taint.effect
    ))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" => {
            toleration.value.as_deref().unwrap_or_default()
                == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

fn volumes_are_in_reach(_: &Pod, asked: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    let (name, labels) = (&candidate.node.name, labels(candidate.node));
    let claim = asked.volumes.out_of_reach(|term| term_fits(term, name, &labels, false))?;
    Some(format!("{name} cannot reach the volume of the claim {claim} (its nodeAffinity)"))
}

fn has_room(pod: &Pod, _: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    let most = Allocatable::of(candidate.node.core.as_ref()?);
    let (cpu, memory) = requests(pod);
    let load = candidate.load;
    let lacking = if most.pods.is_some_and(|most| most <= load.pods as i64) {
        "pods"
    } else if most.cpu_millis.is_some_and(|most| load.cpu_millis.saturating_add(cpu) > most) {
        "CPU"
    } else if most.memory_bytes.is_some_and(|m| load.memory_bytes.saturating_add(memory) > m) {
        "memory"
    } else {
        return None;
    };
    Some(format!("{} has too little {lacking} left", candidate.node.name))
}

fn ports_are_free(pod: &Pod, _: &Asked, candidate: &Candidate<'_>) -> Option<String> {
    let taken = host_ports(pod)
        .find(|wanted| candidate.load.ports.iter().any(|used| used.clashes(wanted)))?;
    let (port, protocol) = taken.port;
    Some(format!("{} has no free port {port}/{protocol}", candidate.node.name))
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
