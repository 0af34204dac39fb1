//! Capacity and usage of the node, counted as the placement engine counts them.

use k8s_openapi::api::core::v1 as corev1;
use transship_api::node::Amounts;
use transship_core::placement::{Allocatable, Load};

/// What the node has for pods.
pub fn capacity(node: &corev1::Node) -> Amounts {
    let Allocatable { cpu_millis, memory_bytes, pods } = Allocatable::of(node);
    Amounts {
        cpu_millis: cpu_millis.unwrap_or(0),
        memory_bytes: memory_bytes.unwrap_or(0),
        containers: pods.unwrap_or(0),
    }
}

/// What the pods ask for. Those that have ended are there, and hold nothing.
pub fn usage<'a>(pods: impl IntoIterator<Item = &'a corev1::Pod>) -> Amounts {
    let mut load = Load::default();
    pods.into_iter().for_each(|pod| load.add(pod));
    Amounts {
        cpu_millis: load.cpu_millis,
        memory_bytes: load.memory_bytes,
        containers: i64::try_from(load.containers.len()).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_all_pods_are_added_up_but_for_those_that_have_ended() {
        let pod = |phase: &str| -> corev1::Pod {
            serde_json::from_value(serde_json::json!({
                "spec": {"containers": [
                    {"name": "web", "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}},
                    {"name": "aux"}]},
                "status": {"phase": phase}}))
            .unwrap()
        };
        let sum = usage([&pod("Running"), &pod("Succeeded"), &corev1::Pod::default()]);
        assert_eq!(sum, Amounts { cpu_millis: 250, memory_bytes: 64 << 20, containers: 3 });
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
