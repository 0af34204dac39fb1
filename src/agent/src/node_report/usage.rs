//! Capacity and usage as Docker Swarm counts them: sums of requests over all pods that exist on
//! the node, finished ones included.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as corev1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use transship_api::node::Amounts;
use transship_api::quantity::parse_bytes;

type Resources = BTreeMap<String, Quantity>;

/// What the node has for pods.
pub fn capacity(node: &corev1::Node) -> Amounts {
    let status = node.status.as_ref();
    let resources = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
    let Some(resources) = resources else { return Amounts::default() };
    Amounts {
        cpu_millis: cpu(resources),
        memory_bytes: memory(resources),
        containers: resources.get("pods").and_then(|pods| pods.0.parse().ok()).unwrap_or(0),
    }
}

/// What the pods ask for.
pub fn usage<'a>(pods: impl IntoIterator<Item = &'a corev1::Pod>) -> Amounts {
    let mut sum = Amounts::default();
    for pod in pods {
        sum.containers += 1;
        let Some(spec) = &pod.spec else { continue };
        // Init containers that run beside the others count as they do; the rest have ended.
        let sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let requests = spec
            .containers
            .iter()
            .chain(sidecars)
            .filter_map(|container| container.resources.as_ref()?.requests.as_ref())
            .chain(spec.overhead.as_ref());
        for resources in requests {
            sum.cpu_millis += cpu(resources);
            sum.memory_bytes += memory(resources);
        }
    }
    sum
}

fn cpu(resources: &Resources) -> i64 {
    resources.get("cpu").and_then(|quantity| millis(&quantity.0)).unwrap_or(0)
}

fn memory(resources: &Resources) -> i64 {
    let bytes = resources.get("memory").and_then(|quantity| parse_bytes(&quantity.0).ok());
    bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0)
}

/// `2`, `0.5`, `250m`; smaller suffixes round to nothing.
fn millis(text: &str) -> Option<i64> {
    if let Some(number) = text.strip_suffix('m') {
        return number.parse().ok();
    }
    if let Some(number) = text.strip_suffix(['n', 'u']) {
        let per_milli = if text.ends_with('n') { 1_000_000 } else { 1_000 };
        return number.parse::<i64>().ok().map(|n| n / per_milli);
    }
    let number: f64 = text.parse().ok()?;
    Some((number * 1000.0).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_cpu_are_read_in_thousandths() {
        for (text, wanted) in [
            ("2", Some(2000)),
            ("0.5", Some(500)),
            ("250m", Some(250)),
            ("1500000n", Some(1)),
            ("x", None),
        ] {
            assert_eq!(millis(text), wanted, "{text}");
        }
    }

    #[test]
    fn requests_of_all_pods_are_added_up() {
        let pod: corev1::Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "setup", "resources": {"requests": {"cpu": "4"}}},
                {"name": "mesh", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}}],
            "containers": [
                {"name": "web", "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}},
                {"name": "aux"}]}}))
        .unwrap();
        let sum = usage([&pod, &corev1::Pod::default()]);
        assert_eq!(sum, Amounts { cpu_millis: 300, memory_bytes: 64 << 20, containers: 2 });
    }

    #[test]
    fn the_capacity_is_what_is_left_for_pods() {
        let node: corev1::Node = serde_json::from_value(serde_json::json!({"status": {
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": "3800m", "memory": "7Gi", "pods": "110"}}}))
        .unwrap();
        let wanted = Amounts { cpu_millis: 3800, memory_bytes: 7 << 30, containers: 110 };
        assert_eq!(capacity(&node), wanted);
        assert_eq!(capacity(&corev1::Node::default()), Amounts::default());
    }
}
