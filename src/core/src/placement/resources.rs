//! What pods ask for and what nodes have for them, as Kubernetes counts it: CPU in thousandths, memory
//! in bytes. What is too large for a number is the largest.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use transship_api::quantity;

use crate::target_pod::is_sidecar;

/// How a quantity is read.
type Read = fn(&Quantity) -> Option<i64>;

/// What a cluster node has for pods, as far as it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// Thousandths of a CPU.
    pub cpu_millis: Option<i64>,
    /// Bytes.
    pub memory_bytes: Option<i64>,
    /// Pods.
    pub pods: Option<i64>,
}

impl Allocatable {
    /// Of a node.
    pub fn of(node: &Node) -> Self {
        let resources = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let amount = |name: &str, read: Read| resources?.get(name).and_then(read);
        Self {
            cpu_millis: amount("cpu", millis),
            memory_bytes: amount("memory", whole),
            pods: amount("pods", whole),
        }
    }
}

/// What a pod asks for, CPU and memory: for itself or, where it does not say, for its containers; and
/// its overhead.
pub(super) fn requests(pod: &Pod) -> (i64, i64) {
    let Some(spec) = &pod.spec else { return (0, 0) };
    (requested(spec, "cpu", millis), requested(spec, "memory", whole))
}

fn requested(spec: &PodSpec, name: &str, read: Read) -> i64 {
    let amount = |list: Option<&BTreeMap<String, Quantity>>| list?.get(name).and_then(read);
    let request = |of: Option<&ResourceRequirements>| amount(of?.requests.as_ref());
    let of_container = |container: &Container| request(container.resources.as_ref()).unwrap_or(0);
    let own = request(spec.resources.as_ref());
    let overhead = amount(spec.overhead.as_ref()).unwrap_or(0);
    own.unwrap_or_else(|| most_at_a_time(spec, of_container)).saturating_add(overhead)
}

/// Init containers run one after another, each with the sidecars before it; then all others together.
fn most_at_a_time(spec: &PodSpec, amount: impl Fn(&Container) -> i64) -> i64 {
    let (mut sidecars, mut starting) = (0_i64, 0);
    for container in spec.init_containers.iter().flatten() {
        let together = sidecars.saturating_add(amount(container));
        starting = starting.max(together);
        if is_sidecar(container) {
            sidecars = together;
        }
    }
    spec.containers.iter().map(amount).fold(sidecars, i64::saturating_add).max(starting)
}

/// Thousandths of a quantity such as `250m`, `1.5` or `2`.
fn millis(quantity: &Quantity) -> Option<i64> {
    match quantity.0.strip_suffix('m') {
        Some(millis) => millis.parse().ok(),
        None if quantity.0.ends_with(|c: char| c.is_ascii_digit()) => {
            let value: f64 = quantity.0.parse().ok()?;
            Some((value * 1000.0).ceil() as i64)
        }
        None => whole(quantity).map(|whole| whole.saturating_mul(1000)),
    }
}

/// A quantity such as `64Mi` or, as people and autoscalers write them too, `129e6` or `1500m`.
fn whole(quantity: &Quantity) -> Option<i64> {
    let text = quantity.0.as_str();
    match quantity::parse_bytes(text) {
        Ok(bytes) => Some(i64::try_from(bytes).unwrap_or(i64::MAX)),
        Err(quantity::ParseQuantityError::TooLarge(_)) => Some(i64::MAX),
        Err(quantity::ParseQuantityError::Malformed(_)) => match text.strip_suffix('m') {
            Some(millis) => {
                millis.parse().ok().map(|millis: i64| millis.saturating_add(999) / 1000)
            }
            None => text.parse().ok().map(|bytes: f64| bytes.ceil() as i64),
        },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn requests_of(spec: Value) -> (i64, i64) {
        requests(&serde_json::from_value(json!({"spec": spec})).unwrap())
    }

    #[test]
    fn requests_are_counted_as_the_scheduler_counts_them() {
        let container = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
        let mut sidecar = container("s", "50m");
        sidecar["restartPolicy"] = "Always".into();
        let init = container("i", "500m");
        let containers = json!([container("a", "100m"), container("b", "0.2")]);
        let spec = |inits: Value| json!({"containers": containers, "initContainers": inits});
        // Together the three that go on ask for 350m and 3Mi.
        assert_eq!(requests_of(spec(json!([sidecar]))), (350, 3 << 20));
        assert_eq!(requests_of(spec(json!([init, sidecar]))), (500, 3 << 20), "not there yet");
        let mut last = spec(json!([sidecar, init]));
        assert_eq!(requests_of(last.clone()), (550, 3 << 20), "there already");
        last["overhead"] = json!({"cpu": "7m"});
        assert_eq!(requests_of(last.clone()), (557, 3 << 20));
        // The pod's own word counts, for what it is about.
        last["resources"] = json!({"requests": {"cpu": "1"}});
        assert_eq!(requests_of(last), (1007, 3 << 20));
    }

    #[rstest]
    #[case("2", Some(2000), Some(2))]
    #[case("0.5", Some(500), Some(0))]
    #[case("250m", Some(250), Some(1))]
    #[case("1k", Some(1_000_000), Some(1000))]
    #[case("129e6", Some(129_000_000_000), Some(129_000_000))]
    #[case("1500m", Some(1500), Some(2))]
    #[case("64Mi", Some((64 << 20) * 1000), Some(64 << 20))]
    #[case("9Ei", Some(i64::MAX), Some(i64::MAX))]
    #[case("99Ei", Some(i64::MAX), Some(i64::MAX))]
    #[case("x", None, None)]
    fn quantities_are_read_as_kubernetes_writes_them(
        #[case] text: &str,
        #[case] thousandths: Option<i64>,
        #[case] whole: Option<i64>,
    ) {
        let quantity = Quantity(text.to_owned());
        assert_eq!((millis(&quantity), self::whole(&quantity)), (thousandths, whole));
    }

    #[test]
    fn what_is_too_large_together_is_not_small() {
        let large =
            |name: &str| json!({"name": name, "resources": {"requests": {"memory": "5Ei"}}});
        assert_eq!(requests_of(json!({"containers": [large("a"), large("b")]})), (0, i64::MAX));
    }
}
