//! How a pod's containers are ended, from its manifest: what kubelet would read there at its deletion.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use transship_core::post_start;
use transship_core::target_pod::is_sidecar;
use transship_host::ending::{Ending, LONGEST_GRACE};
use transship_host::hook::Hook;

use super::task::hook;

/// kubelet's own, where the manifest does not say.
const GRACE_SECONDS: i64 = 30;

/// The ending of the pod's containers. Hooks that cannot be carried out are left out, as kubelet goes on when
/// one fails.
pub fn of(spec: &PodSpec) -> Ending {
    let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let containers: Vec<&Container> = sidecars.chain(&spec.containers).collect();
    Ending {
        grace_seconds: u32::try_from(grace).unwrap_or(0).min(LONGEST_GRACE),
        hooks: containers.iter().filter_map(|container| pre_stop(container)).collect(),
        signals: containers
            .iter()
            .filter_map(|container| {
                let signal = container.lifecycle.as_ref()?.stop_signal.clone()?;
                Some((container.name.clone(), signal))
            })
            .collect(),
    }
}

fn pre_stop(container: &Container) -> Option<Hook> {
    let handler = container.lifecycle.as_ref()?.pre_stop.clone()?;
    hook(&post_start::Hook { container, handler }).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use transship_host::hook::HookAction;

    use super::*;

    #[test]
    fn hooks_signals_and_patience_are_the_manifests() {
        let spec: PodSpec = serde_json::from_value(json!({
            "terminationGracePeriodSeconds": 5,
            "initContainers": [{"name": "proxy", "restartPolicy": "Always",
                "lifecycle": {"preStop": {"sleep": {"seconds": 3}}}}],
            "containers": [
                {"name": "web", "ports": [{"name": "admin", "containerPort": 81}],
                 "lifecycle": {"stopSignal": "SIGUSR1", "preStop": {"httpGet": {"port": "admin",
                    "path": "stop", "scheme": "HTTPS",
                    "httpHeaders": [{"name": "a", "value": "b"}]}}}},
                {"name": "log", "lifecycle": {"preStop": {"exec": {"command": ["/end"]}}}},
                {"name": "odd", "lifecycle": {"preStop": {"httpGet": {"port": "none"}}}},
                {"name": "plain"}]
        }))
        .unwrap();
        let ending = of(&spec);
        ending.validate().unwrap();
        assert_eq!(ending.grace_seconds, 5);
        let action = |container: &str| &ending.hook(container).unwrap().action;
        assert_eq!(*action("proxy"), HookAction::Sleep { seconds: 3 });
        assert_eq!(*action("log"), HookAction::Exec { command: vec!["/end".into()] });
        let HookAction::HttpGet(get) = action("web") else { panic!("no request") };
        assert_eq!((get.port, get.path.as_str(), get.https), (81, "stop", true));
        assert_eq!(get.headers, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(ending.hooks.len(), 3);
        assert_eq!(ending.signals, [("web".to_owned(), "SIGUSR1".to_owned())].into());
        let none: PodSpec = serde_json::from_value(json!({"containers": []})).unwrap();
        assert_eq!(of(&none).grace_seconds, 30);
    }
}
