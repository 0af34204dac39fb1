//! What Kubernetes' own scheduler would check first: readiness, selector, affinity, taints, room.
//!
//! [`choose`] takes every node with its load and gives one name, or each node's reason against.

use k8s_openapi::api::core::v1::{
    Container, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use transship_api::{names, quantity};

use crate::migration::handover::Labels;
use crate::preflight::NodeView;
use crate::preflight::request_reasons::{not_ready, takes_no_pods};
use crate::target_pod::is_sidecar;

/// What the pods of a node ask for together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Pods that have not ended.
    pub pods: usize,
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
}

impl Load {
    /// Adds what a pod asks for.
    pub fn add(&mut self, pod: &Pod) {
        let (cpu_millis, memory_bytes) = requests(pod);
        self.pods += 1;
        self.cpu_millis += cpu_millis;
        self.memory_bytes += memory_bytes;
    }
}

/// A node and its load.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a NodeView,
    /// Its load.
    pub load: Load,
}

/// Says why a pod cannot go to a node, if it cannot.
pub type Filter = fn(&Pod, &Candidate<'_>) -> Option<String>;

/// The filters, in order; the first that objects speaks for the node.
pub const FILTERS: &[Filter] =
    &[is_ready, takes_pods, selector_matches, affinity_matches, taints_are_tolerated, has_room];

/// The filters that also hold for a node that the Migration names; the others are preflight's, or
/// the scheduler's to answer.
pub const PINNED_FILTERS: &[Filter] = &[selector_matches, affinity_matches, taints_are_tolerated];

/// The best node for a pod, its own left out; or every node with what speaks against it.
pub fn choose(pod: &Pod, candidates: &[Candidate<'_>]) -> Result<String, Vec<(String, String)>> {
    let source = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    let mut against = Vec::new();
    let mut left: Vec<&Candidate<'_>> = Vec::new();
    for candidate in candidates.iter().filter(|c| Some(c.node.name.as_str()) != source) {
        match FILTERS.iter().find_map(|filter| filter(pod, candidate)) {
            Some(reason) => against.push((candidate.node.name.clone(), reason)),
            None => left.push(candidate),
        }
    }
    left.sort_by(|a, b| rank(a).cmp(&rank(b)));
    left.first().map(|best| best.node.name.clone()).ok_or(against)
}

/// Smaller is better: the fewest pods, then the name.
fn rank<'a>(candidate: &Candidate<'a>) -> (usize, &'a str) {
    (candidate.load.pods, candidate.node.name.as_str())
}

fn is_ready(_: &Pod, candidate: &Candidate<'_>) -> Option<String> {
    not_ready(candidate.node)
}

fn takes_pods(_: &Pod, candidate: &Candidate<'_>) -> Option<String> {
    takes_no_pods(candidate.node)
}

fn labels(node: &NodeView) -> Labels {
    node.core.as_ref().and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
}

fn selector_matches(pod: &Pod, candidate: &Candidate<'_>) -> Option<String> {
    let selector = pod.spec.as_ref()?.node_selector.as_ref()?;
    let labels = labels(candidate.node);
    let (key, value) = selector.iter().find(|(key, value)| labels.get(*key) != Some(value))?;
    let name = &candidate.node.name;
    Some(format!("{name} lacks the label {key}={value} of the pod's nodeSelector"))
}

fn affinity_matches(pod: &Pod, candidate: &Candidate<'_>) -> Option<String> {
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

fn taints_are_tolerated(pod: &Pod, candidate: &Candidate<'_>) -> Option<String> {
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

fn has_room(pod: &Pod, candidate: &Candidate<'_>) -> Option<String> {
    let allocatable = candidate.node.core.as_ref()?.status.as_ref()?.allocatable.as_ref()?;
    let amount =
        |name: &str, read: fn(&Quantity) -> Option<i64>| allocatable.get(name).and_then(read);
    let (cpu, memory) = requests(pod);
    let load = candidate.load;
    let lacking = if amount("pods", millis).is_some_and(|m| m / 1000 <= load.pods as i64) {
        "pods"
    } else if amount("cpu", millis).is_some_and(|m| load.cpu_millis + cpu > m) {
        "CPU"
    } else if amount("memory", bytes).is_some_and(|m| load.memory_bytes + memory > m) {
        "memory"
    } else {
        return None;
    };
    Some(format!("{} has too little {lacking} left", candidate.node.name))
}

/// What a pod asks for: CPU in thousandths and memory in bytes, as the scheduler counts (sidecars
/// and containers together, or the largest init container if that is more).
pub fn requests(pod: &Pod) -> (i64, i64) {
    let Some(spec) = &pod.spec else { return (0, 0) };
    (
        total(spec, |c| request(c, "cpu").and_then(millis).unwrap_or(0)),
        total(spec, |c| request(c, "memory").and_then(bytes).unwrap_or(0)),
    )
}

fn total(spec: &PodSpec, amount: impl Fn(&Container) -> i64) -> i64 {
    let inits = || spec.init_containers.iter().flatten();
    let sidecars: i64 = inits().filter(|c| is_sidecar(c)).map(&amount).sum();
    let running: i64 = spec.containers.iter().map(&amount).sum::<i64>() + sidecars;
    inits().filter(|c| !is_sidecar(c)).map(|c| amount(c) + sidecars).max().unwrap_or(0).max(running)
}

fn request<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    container.resources.as_ref()?.requests.as_ref()?.get(name)
}

/// Thousandths of a quantity such as `250m`, `1.5` or `2`.
fn millis(quantity: &Quantity) -> Option<i64> {
    match quantity.0.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None if quantity.0.ends_with(|c: char| c.is_ascii_digit()) => {
            let value: f64 = quantity.0.parse().ok()?;
            Some((value * 1000.0).ceil() as i64)
        }
        None => i64::try_from(quantity::parse_bytes(&quantity.0).ok()?).ok()?.checked_mul(1000),
    }
}

/// Bytes of a quantity such as `64Mi`.
fn bytes(quantity: &Quantity) -> Option<i64> {
    i64::try_from(quantity::parse_bytes(&quantity.0).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, extra: Value) -> NodeView {
        let mut core = json!({
            "metadata": {"name": name, "labels": {"disk": "ssd", "gen": "3"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}}
        });
        merge(&mut core, extra);
        let agent = json!({
            "apiVersion": "transship.dev/v1alpha1", "kind": "Node", "metadata": {"name": name},
            "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Available",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        });
        NodeView {
            name: name.into(),
            core: Some(serde_json::from_value(core).unwrap()),
            agent: Some(serde_json::from_value(agent).unwrap()),
        }
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn pod(spec: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p"},
            "spec": {"nodeName": "node-a", "containers": [{"name": "c"}]}});
        merge(&mut pod["spec"], spec);
        serde_json::from_value(pod).unwrap()
    }

    fn candidates(nodes: &[(NodeView, usize)]) -> Vec<Candidate<'_>> {
        nodes
            .iter()
            .map(|(node, pods)| Candidate { node, load: Load { pods: *pods, ..Load::default() } })
            .collect()
    }

    #[test]
    fn the_node_with_the_fewest_pods_is_chosen_and_never_the_pods_own() {
        let nodes = [
            (node("node-a", json!({})), 0),
            (node("node-d", json!({})), 2),
            (node("node-c", json!({})), 1),
            (node("node-b", json!({})), 1),
        ];
        assert_eq!(choose(&pod(json!({})), &candidates(&nodes)), Ok("node-b".into()));
    }

    #[test]
    fn each_filter_objects_with_a_sentence_of_its_own() {
        let taint =
            json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
        let required = |terms: Value| {
            json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        for (node_extra, pod_spec, words) in [
            (
                json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
                json!({}),
                "not Ready",
            ),
            (json!({"spec": {"unschedulable": true}}), json!({}), "cordoned"),
            (json!({}), json!({"nodeSelector": {"disk": "hdd"}}), "disk=hdd"),
            (
                json!({}),
                required(
                    json!([{"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["3"]}]}]),
                ),
                "affinity",
            ),
            (json!({}), required(json!([{}])), "affinity"),
            (taint.clone(), json!({}), "k:NoSchedule"),
            (
                taint.clone(),
                json!({"tolerations": [{"key": "k", "value": "w", "effect": "NoSchedule"}]}),
                "k:NoSchedule",
            ),
            (
                json!({}),
                json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2001m"}}}]}),
                "CPU",
            ),
            (
                json!({}),
                json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "2Gi"}}}]}),
                "memory",
            ),
            (json!({"status": {"allocatable": {"pods": "0"}}}), json!({}), "pods"),
        ] {
            let nodes = [(node("node-b", node_extra), 0)];
            let against = choose(&pod(pod_spec), &candidates(&nodes)).unwrap_err();
            assert!(against[0].1.contains(words), "{words}: {against:?}");
        }
        for (node_extra, pod_spec) in [
            (taint.clone(), json!({"tolerations": [{"operator": "Exists"}]})),
            (taint, json!({"tolerations": [{"key": "k", "value": "v", "effect": "NoSchedule"}]})),
            (
                json!({}),
                required(
                    json!([{}, {"matchExpressions": [{"key": "gen", "operator": "Lt", "values": ["4"]}]}]),
                ),
            ),
            (
                json!({}),
                json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1.5", "memory": "512Mi"}}}]}),
            ),
        ] {
            let nodes = [(node("node-b", node_extra), 0)];
            assert_eq!(choose(&pod(pod_spec), &candidates(&nodes)), Ok("node-b".into()));
        }
    }

    #[test]
    fn the_pin_of_an_earlier_migration_is_not_obeyed() {
        let pinned = json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]}]}}}});
        let mut pod = pod(pinned);
        let nodes = [(node("node-b", json!({})), 0)];
        assert!(choose(&pod, &candidates(&nodes)).is_err(), "a pin by the user counts");
        pod.metadata.annotations = Some([(names::MOVED_FROM.into(), "node-b".into())].into());
        assert_eq!(choose(&pod, &candidates(&nodes)), Ok("node-b".into()));
    }

    #[test]
    fn requests_are_counted_as_the_scheduler_counts_them() {
        let container = |name: &str, cpu: &str, always: bool| {
            let mut c =
                json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
            if always {
                c["restartPolicy"] = json!("Always");
            }
            c
        };
        let pod = pod(json!({
            "containers": [container("a", "100m", false), container("b", "0.2", false)],
            "initContainers": [container("i", "500m", false), container("s", "50m", true)],
        }));
        assert_eq!(requests(&pod), (550, 3 << 20));
    }
}
