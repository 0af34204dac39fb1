//! postStart hooks of pods that move. kubelet runs a hook when it has started a container, and would run
//! it again before the application has come back to life; so a target pod has none, and whoever holds
//! the pod runs them once the application runs, if the pod asks for it.
//!
//! Decides which hooks a pod has and whether they can be run. A pod that has moved before has them in a
//! note of ours, since its manifest has lost them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use transship_api::names;

use crate::target_pod::is_sidecar;

/// What the pod asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// They run again when the pod has moved.
    Run,
    /// They do not.
    Skip,
}

/// A postStart hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Hook<'a> {
    /// Its container.
    pub container: &'a Container,
    /// What is to be done.
    pub handler: LifecycleHandler,
}

/// What the pod's annotation says; any other value than the two says nothing.
pub fn asked(pod: &Pod) -> Option<Asked> {
    match annotation(pod, names::POST_START)? {
        "run" => Some(Asked::Run),
        "skip" => Some(Asked::Skip),
        _ => None,
    }
}

/// The hooks of the containers that move, in kubelet's starting order.
pub fn hooks(pod: &Pod) -> Vec<Hook<'_>> {
    let noted = noted(pod);
    let sidecars = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let apps = pod.spec.iter().flat_map(|s| &s.containers);
    sidecars
        .filter(|container| is_sidecar(container))
        .chain(apps)
        .filter_map(|container| {
            let own = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
            let handler = own.or_else(|| noted.get(&container.name))?.clone();
            Some(Hook { container, handler })
        })
        .collect()
}

/// The hooks as they are noted on a pod without them; `None` if there are none.
pub fn note(pod: &Pod) -> Option<String> {
    let hooks = hooks(pod);
    let by_container: BTreeMap<&str, &LifecycleHandler> =
        hooks.iter().map(|hook| (hook.container.name.as_str(), &hook.handler)).collect();
    (!by_container.is_empty()).then(|| serde_json::to_string(&by_container).ok()).flatten()
}

/// Gives the containers of a pod that starts afresh the hooks that the source's manifest has lost when it moved
/// before.
pub fn put_back(source: &Pod, spec: &mut PodSpec) {
    let noted = noted(source);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(handler) = noted.get(&container.name) {
            let lifecycle = container.lifecycle.get_or_insert_default();
            lifecycle.post_start.get_or_insert_with(|| handler.clone());
        }
    }
}

fn noted(pod: &Pod) -> BTreeMap<String, LifecycleHandler> {
    annotation(pod, names::POST_START_HOOKS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

impl Hook<'_> {
    /// Why it cannot be run.
    pub fn problem(&self) -> Option<&'static str> {
        let handler = &self.handler;
        if let Some(exec) = &handler.exec {
            let empty = exec.command.as_ref().is_none_or(Vec::is_empty);
            return empty.then_some("its command is empty");
        }
        if handler.http_get.is_some() {
            return self.port().is_none().then_some("it names no port that the container has");
        }
        // kubelet fails at a tcpSocket as well.
        handler
            .sleep
            .is_none()
            .then_some("it is neither a command, nor an HTTP request, nor a pause")
    }

    /// The port of an HTTP request, by number or by its name in the container.
    pub fn port(&self) -> Option<u16> {
        let number = match &self.handler.http_get.as_ref()?.port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                let named = ports.find(|port| port.name.as_ref() == Some(name));
                // A number written as a text, which kubelet takes too.
                named.map(|port| port.container_port).or_else(|| name.parse().ok())?
            }
        };
        u16::try_from(number).ok().filter(|port| *port != 0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, hook: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"annotations": annotations},
            "spec": {
                "initContainers": [
                    {"name": "setup"},
                    {"name": "proxy", "restartPolicy": "Always",
                     "lifecycle": {"postStart": {"sleep": {"seconds": 1}}}}
                ],
                "containers": [
                    {"name": "web", "ports": [{"name": "admin", "containerPort": 81}],
                     "lifecycle": {"postStart": hook}},
                    {"name": "quiet"}
                ]
            }
        }))
        .unwrap()
    }

    #[test]
    fn hooks_are_known_in_kubelets_order_and_by_the_note_where_the_manifest_has_lost_them() {
        let mut pod = pod(json!({}), json!({"exec": {"command": ["x"]}}));
        let names = |pod: &Pod| -> Vec<String> {
            hooks(pod).iter().map(|hook| hook.container.name.clone()).collect()
        };
        assert_eq!(names(&pod), ["proxy", "web"]);
        let note = note(&pod).unwrap();
        for container in &mut pod.spec.as_mut().unwrap().containers {
            container.lifecycle = None;
        }
        assert_eq!(names(&pod), ["proxy"]);
        let annotations = pod.metadata.annotations.as_mut().unwrap();
        annotations.insert(names::POST_START_HOOKS.into(), note.clone());
        assert_eq!(names(&pod), ["proxy", "web"]);
        assert_eq!(super::note(&pod), Some(note));
        assert_eq!(super::note(&Pod::default()), None);
    }

    #[rstest]
    #[case(json!({}), None)]
    #[case(json!({"transship.dev/post-start": "run"}), Some(Asked::Run))]
    #[case(json!({"transship.dev/post-start": "skip"}), Some(Asked::Skip))]
    #[case(json!({"transship.dev/post-start": "true"}), None)]
    fn only_two_values_count(#[case] annotations: Value, #[case] wanted: Option<Asked>) {
        assert_eq!(asked(&pod(annotations, json!({}))), wanted);
    }

    #[rstest]
    #[case(json!({"exec": {"command": ["x"]}}), None, true)]
    #[case(json!({"exec": {}}), None, false)]
    #[case(json!({"sleep": {"seconds": 1}}), None, true)]
    #[case(json!({"httpGet": {"port": 80}}), Some(80), true)]
    #[case(json!({"httpGet": {"port": "admin"}}), Some(81), true)]
    #[case(json!({"httpGet": {"port": "82"}}), Some(82), true)]
    #[case(json!({"httpGet": {"port": "other"}}), None, false)]
    #[case(json!({"httpGet": {"port": 70_000}}), None, false)]
    #[case(json!({"tcpSocket": {"port": 80}}), None, false)]
    #[case(json!({}), None, false)]
    fn what_can_be_run(#[case] hook: Value, #[case] port: Option<u16>, #[case] runs: bool) {
        let pod = pod(json!({}), hook);
        let hook = &hooks(&pod)[1];
        assert_eq!((hook.port(), hook.problem().is_none()), (port, runs));
    }
}
