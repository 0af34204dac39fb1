//! What can be said of a pod that asks to be movable when it is created: from its manifest alone.
//!
//! A warning never refuses. What shows only in the running processes is left to the checks.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use transship_api::{MigrationSpec, names};

use super::pod::{CHECKS, moved};
use super::{Input, Violation};

/// Checks of the manifest that look at what only a stored or running pod has.
const OF_LIVING_PODS: [&str; 5] =
    ["HostName", "OwnerSelector", "ContainerNotRunning", "TargetPod", "TargetPodChanged"];

/// The most warnings that are given: clients show them all.
const SHOWN: usize = 8;
/// The most characters of a warning; the API server cuts longer ones.
const LENGTH: usize = 240;

/// Whether a pod asks to be movable by its annotations: `transship.dev/movable: "true"`, or one that
/// means nothing for a pod that stays where it is. A MigrationPolicy that selects it asks as well.
pub fn asks_to_be_movable(pod: &Pod) -> bool {
    let has = |key: &str| pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(key));
    let movable = pod.metadata.annotations.as_ref().and_then(|a| a.get(names::MOVABLE));
    match movable.map(String::as_str) {
        Some("false") => false,
        Some("true") => true,
        _ => has(names::POST_START),
    }
}

/// What would keep the pod from being moved, a sentence each.
pub fn warnings(pod: &Pod) -> Vec<String> {
    let migration = transship_api::Migration::new("", MigrationSpec::for_pod(""));
    let input = Input {
        migration: &migration,
        pod: Some(pod),
        owner: None,
        policy: None,
        claims: &[],
        volumes: &Default::default(),
        nodes: &[],
        target: None,
        facts: None,
        target_facts: None,
        answer: None,
    };
    let checks = CHECKS.iter().filter(|check| !OF_LIVING_PODS.contains(&check.name));
    let found: Vec<Violation> = checks.flat_map(|check| check.run(&input)).collect();
    let owner = super::request::never_moved(pod);
    let sentences = owner.into_iter().chain(found.iter().map(sentence));
    let hints = pod.spec.iter().flat_map(hints);
    let mut all: Vec<String> = sentences
        .chain(hints)
        .map(|text| format!("transship.dev: {text}").chars().take(LENGTH).collect())
        .collect();
    all.truncate(SHOWN);
    all
}

fn sentence(found: &Violation) -> String {
    let place = match found.container.as_str() {
        "" => String::new(),
        container => format!("container {container}: "),
    };
    format!("the pod could not be moved: {place}{}; {}", found.message, found.remedy)
}

/// What often keeps programs from being moved, and shows only when they run.
fn hints(spec: &PodSpec) -> Vec<String> {
    let containers = |which: &dyn Fn(&Container) -> bool| -> Option<String> {
        let names: Vec<&str> = moved(spec).filter(|c| which(c)).map(|c| c.name.as_str()).collect();
        (!names.is_empty()).then(|| super::list_some(names))
    };
    let rings = containers(&|c| !has_seccomp(spec, c)).map(|names| {
        format!(
            "without seccompProfile type RuntimeDefault a program may use io_uring, and then cannot \
             be moved (container {names})"
        )
    });
    let multipath = containers(&|c| is_go(c) && !is_single_path(c)).map(|names| {
        format!(
            "Go programs listen with multipath TCP, which cannot be moved: set the environment \
             variable GODEBUG=multipathtcp=0 (container {names})"
        )
    });
    rings.into_iter().chain(multipath).collect()
}

fn godebug(container: &Container) -> Option<&str> {
    let variable = container.env.iter().flatten().find(|variable| variable.name == "GODEBUG")?;
    Some(variable.value.as_deref().unwrap_or_default())
}

/// Whether the manifest shows that it is a Go program: by the image, or by a setting for Go.
fn is_go(container: &Container) -> bool {
    const KNOWN: [&str; 10] = [
        "caddy",
        "consul",
        "coredns",
        "etcd",
        "grafana",
        "minio",
        "nats",
        "prometheus",
        "traefik",
        "vault",
    ];
    let image = container.image.as_deref().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let name = name.split([':', '@']).next().unwrap_or_default();
    KNOWN.contains(&name) || godebug(container).is_some()
}

fn is_single_path(container: &Container) -> bool {
    godebug(container).is_some_and(|value| value.split(',').any(|v| v == "multipathtcp=0"))
}

/// Whether a seccomp profile is set that forbids io_uring, or is the author's own business.
fn has_seccomp(spec: &PodSpec, container: &Container) -> bool {
    let own = container.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    let pods = spec.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    own.or(pods).is_some_and(|profile| profile.type_ != "Unconfined")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, spec: Value) -> Pod {
        let mut whole = json!({"metadata": {"name": "web", "annotations": annotations},
            "spec": {"containers": [{"name": "web"}],
                "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    #[rstest]
    #[case(json!({}), false)]
    #[case(json!({"transship.dev/movable": "true"}), true)]
    #[case(json!({"transship.dev/movable": "false", "transship.dev/post-start": "skip"}), false)]
    #[case(json!({"transship.dev/post-start": "skip"}), true)]
    #[case(json!({"transship.dev/strategy": "spread"}), false)]
    fn a_pod_asks_by_annotation(#[case] annotations: Value, #[case] asks: bool) {
        assert_eq!(asks_to_be_movable(&pod(annotations, json!({}))), asks);
    }

    #[rstest]
    #[case(json!({}), &[])]
    #[case(json!({"hostNetwork": true}), &["(hostNetwork)"])]
    #[case(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}), &["hostPath"])]
    #[case(json!({"containers": [{"name": "a", "tty": true}, {"name": "b", "tty": true}]}), &["container a", "container b"])]
    #[case(json!({"securityContext": {}}), &["io_uring"])]
    #[case(json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), &["io_uring"])]
    #[case(json!({"securityContext": {}, "containers": [{"name": "a",
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}]}), &[])]
    #[case(json!({"containers": [{"name": "a", "image": "docker.io/library/nats:2"}]}), &["multipathtcp=0 (container a)"])]
    #[case(json!({"containers": [{"name": "a", "env": [{"name": "GODEBUG", "value": "x=1"}]}]}), &["multipathtcp=0"])]
    #[case(json!({"containers": [{"name": "a", "image": "nats",
        "env": [{"name": "GODEBUG", "value": "x=1,multipathtcp=0"}]}]}), &[])]
    fn what_the_manifest_shows_is_told(#[case] spec: Value, #[case] words: &[&str]) {
        let found = warnings(&pod(json!({}), spec));
        assert_eq!(found.len(), words.len(), "{found:?}");
        for (warning, words) in found.iter().zip(words) {
            assert!(warning.contains(words), "{warning}");
        }
    }

    #[test]
    fn a_pod_of_a_daemon_set_is_told_that_it_never_moves() {
        let mut pod = pod(json!({}), json!({}));
        pod.metadata.owner_references = serde_json::from_value(json!([
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true}
        ]))
        .unwrap();
        assert!(warnings(&pod)[0].contains("DaemonSet d"), "{:?}", warnings(&pod));
    }

    #[test]
    fn warnings_are_few_and_short() {
        let volumes: Vec<Value> = (0..20)
            .map(|n| json!({"name": "v".repeat(n + 1), "hostPath": {"path": "/"}}))
            .collect();
        let found = warnings(&pod(json!({}), json!({"volumes": volumes})));
        assert_eq!(found.len(), SHOWN);
        assert!(found.iter().all(|w| w.chars().count() <= LENGTH));
    }
}
