//! The target pod: what of the source pod's manifest it takes over, and what it must not.
//!
//! Decides the manifest of T from that of S, and whether what the API server stored is still what
//! was sent (mutating webhooks may change pods). Whether S can be moved at all is `preflight`'s
//! business; this module only refuses what it cannot express (a host name that does not fit).

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodReadinessGate, PodSchedulingGate, PodSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use transship_api::names;

use crate::post_start;

/// Which Migration the pod is made for, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetFor<'a> {
    /// Namespace of the Migration (and of both pods).
    pub migration_namespace: &'a str,
    /// Name of the Migration.
    pub migration_name: &'a str,
    /// UID of the Migration.
    pub migration_uid: &'a str,
    /// Node to which the pod is pinned.
    pub node: &'a str,
    /// Whether the address moves along; then the pod says whose address it has.
    pub preserve_address: bool,
    /// Whether its containers start like those of any pod, so that kubelet runs their hooks and probes.
    pub starts_afresh: bool,
}

/// Why no target pod can be made of a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetPodError {
    /// The pod has no spec or no name.
    #[error("the pod has no {0}")]
    Incomplete(&'static str),
    /// The application's host name cannot be given to another pod.
    #[error("the host name {0:?} is not a DNS label and cannot be given to another pod")]
    HostName(String),
}

/// Annotations that describe the source pod's own network or belong to one migration.
const ANNOTATIONS_LEFT_BEHIND: [&str; 11] = [
    names::CLAIM,
    names::MIGRATION_NAME,
    names::LEASE,
    names::MOVED_FROM,
    names::MOVED_BY,
    "cni.projectcalico.org/podIP",
    "cni.projectcalico.org/podIPs",
    "cni.projectcalico.org/containerID",
    "k8s.v1.cni.cncf.io/network-status",
    "k8s.v1.cni.cncf.io/networks-status",
    "kubernetes.io/config.mirror",
];

/// Mount path of the service account token that admission injects.
const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Prefix of the volume that admission injects for it.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// The manifest of the target pod.
///
/// Its name follows from the Migration's UID, so that making it twice makes one pod.
pub fn target_pod(source: &Pod, target: &TargetFor<'_>) -> Result<Pod, TargetPodError> {
    let spec = source.spec.as_ref().ok_or(TargetPodError::Incomplete("spec"))?;
    let host_name = effective_host_name(source).ok_or(TargetPodError::Incomplete("name"))?;
    if spec.hostname_override.is_none() && !is_dns_label(&host_name) {
        return Err(TargetPodError::HostName(host_name));
    }
    Ok(Pod {
        metadata: metadata(source, spec, target),
        spec: Some(target_spec(source, spec, host_name, target)),
        status: None,
    })
}

/// The name of the target pod: like its siblings', with a suffix that follows from the Migration.
pub fn target_name(source: &Pod, migration_uid: &str) -> String {
    let meta = &source.metadata;
    let prefix = match meta.generate_name.as_deref() {
        Some(prefix) if !prefix.is_empty() => prefix.to_owned(),
        _ => format!("{}-", meta.name.as_deref().unwrap_or("pod")),
    };
    // The API server cuts generated names' prefixes at the same length.
    let end = (0..=58.min(prefix.len())).rev().find(|&i| prefix.is_char_boundary(i)).unwrap_or(0);
    format!("{}{}", &prefix[..end], suffix(migration_uid))
}

/// Whether a pod's name is that of a target pod, and not its source's own: that of one beside its source, or of one on
/// trial.
pub fn is_named_beside(pod: &Pod, migration_uid: &str) -> bool {
    let name = pod.metadata.name.as_deref();
    name.is_some_and(|name| name.ends_with(&suffix(migration_uid)))
}

/// Five characters of the alphabet of generated names, from FNV-1a over the UID.
fn suffix(uid: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (0..5)
        .map(|_| {
            let character = ALPHABET[(hash % 27) as usize];
            hash /= 27;
            char::from(character)
        })
        .collect()
}

/// The host name that the application sees: `spec.hostname`, else the pod's name, cut as kubelet
/// cuts it.
pub fn effective_host_name(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()) {
        return Some(name);
    }
    if let Some(name) = spec.and_then(|s| s.hostname.clone()).filter(|n| !n.is_empty()) {
        return Some(name);
    }
    let name = pod.metadata.name.as_deref()?;
    if name.len() <= 63 {
        return Some(name.to_owned());
    }
    let cut = (0..=63).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
    Some(name[..cut].trim_end_matches(['-', '.']).to_owned())
}

fn is_dns_label(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| alphanumeric(b) || b == b'-')
        && name.bytes().next().is_some_and(alphanumeric)
        && name.bytes().last().is_some_and(alphanumeric)
}

fn metadata(source: &Pod, spec: &PodSpec, target: &TargetFor<'_>) -> ObjectMeta {
    let mut annotations = source.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| {
        !ANNOTATIONS_LEFT_BEHIND.contains(&key.as_str()) && !key.starts_with(names::RESTORE_FROM)
    });
    let migration = format!("{}/{}", target.migration_namespace, target.migration_name);
    let source_node = spec.node_name.clone().unwrap_or_default();
    annotations.insert(names::CLAIM.into(), target.migration_uid.into());
    annotations.insert(names::MIGRATION_NAME.into(), migration);
    annotations.insert(names::MOVED_FROM.into(), source_node);
    annotations.insert(names::MOVED_BY.into(), target.migration_uid.into());
    if target.starts_afresh {
        // Its manifest has them again.
        annotations.remove(names::POST_START_HOOKS);
    } else if post_start::asked(source).is_some()
        && let Some(hooks) = post_start::note(source)
    {
        annotations.insert(names::POST_START_HOOKS.into(), hooks);
    }
    if target.preserve_address
        && let Some((address, home)) = lease(source)
        && home != target.node
    {
        annotations.insert(names::LEASE.into(), format!("{address}@{home}"));
    }
    ObjectMeta {
        name: Some(target_name(source, target.migration_uid)),
        generate_name: source.metadata.generate_name.clone(),
        namespace: source.metadata.namespace.clone(),
        labels: Some([(names::MIGRATION_LABEL.into(), target.migration_uid.into())].into()),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    }
}

/// The pod's address and the node on which it is leased: another one than the pod's own where the
/// address has moved before.
pub fn lease(pod: &Pod) -> Option<(String, String)> {
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|ip| !ip.is_empty())?;
    let lent = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(names::LEASE))
        .and_then(|text| text.split_once('@'))
        .filter(|(ip, home)| *ip == address && !home.is_empty());
    let home = match lent {
        Some((_, home)) => home.to_owned(),
        None => pod.spec.as_ref()?.node_name.clone()?,
    };
    Some((address, home))
}

fn target_spec(
    source: &Pod,
    spec: &PodSpec,
    host_name: String,
    made_for: &TargetFor<'_>,
) -> PodSpec {
    let afresh = made_for.starts_afresh;
    // kubelet would run it in the middle of the container's life.
    let without_hooks = !afresh && post_start::asked(source).is_some();
    let token_volumes = injected_token_volumes(spec);
    let status = source.status.as_ref();
    let apps = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let inits = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let mut target = spec.clone();
    // Where kubelet takes the name from an override, the field may say something else on purpose.
    if spec.hostname_override.is_none() {
        target.hostname = Some(host_name);
    }
    target.node_name = None;
    target.ephemeral_containers = None;
    // Admission fills these in from the pod's class; values of ours could only contradict it.
    target.priority = None;
    target.preemption_policy = None;
    target.overhead = None;
    target.scheduling_gates = Some(vec![PodSchedulingGate { name: names::PREPARE_GATE.into() }]);
    let gates = target.readiness_gates.get_or_insert_default();
    if !gates.iter().any(|gate| gate.condition_type == names::RESUMED_GATE) {
        gates.push(PodReadinessGate { condition_type: names::RESUMED_GATE.into() });
    }
    if let Some(volumes) = &mut target.volumes {
        volumes.retain(|volume| !token_volumes.contains(&volume.name));
    }
    for container in &mut target.containers {
        prepare(container, apps, &token_volumes);
        if !afresh {
            prepare_restored(container, without_hooks);
        }
    }
    for container in target.init_containers.iter_mut().flatten() {
        prepare(container, inits, &token_volumes);
        if !afresh {
            prepare_restored(container, without_hooks);
            if is_sidecar(container) {
                // kubelet starts the next container only after a sidecar's startup probe, which
                // a frozen one never passes.
                container.startup_probe = None;
            }
        }
    }
    if afresh {
        post_start::put_back(source, &mut target);
    }
    pin(&mut target, made_for.node, was_pinned_by_us(source));
    target
}

/// Whether an init container keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn prepare(container: &mut Container, statuses: &[ContainerStatus], token_volumes: &[String]) {
    let image_id =
        statuses.iter().find(|s| s.name == container.name).map_or("", |s| s.image_id.as_str());
    if let Some(pinned) = container.image.as_deref().and_then(|i| pinned_image(i, image_id)) {
        container.image = Some(pinned);
    }
    if container.image_pull_policy.as_deref() != Some("Never") {
        container.image_pull_policy = Some("IfNotPresent".into());
    }
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.retain(|mount| !token_volumes.contains(&mount.name));
    }
}

/// A container that goes on where it was is not started once more.
fn prepare_restored(container: &mut Container, without_hooks: bool) {
    if let Some(probe) = &mut container.readiness_probe {
        probe.initial_delay_seconds = None;
    }
    if without_hooks && let Some(lifecycle) = &mut container.lifecycle {
        lifecycle.post_start = None;
    }
}

/// The image by digest, where the runtime knows a digest under the repository that the pod names.
///
/// An image that was loaded by hand has only its configuration's id, or a digest under a name that
/// no registry serves: then the tag stays, and preflight sees to it that the target has the image.
pub fn pinned_image(image: &str, image_id: &str) -> Option<String> {
    let image_id = image_id.strip_prefix("docker-pullable://").unwrap_or(image_id);
    let (repository, digest) = image_id.split_once('@')?;
    if !digest.starts_with("sha256:") || digest.len() != "sha256:".len() + 64 {
        return None;
    }
    let wanted = normal_repository(image);
    (wanted == normal_repository(repository) && !wanted.starts_with("localhost/"))
        .then(|| format!("{repository}@{digest}"))
}

/// The repository with registry and library spelled out, without tag and digest.
fn normal_repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let name = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    };
    match name.split_once('/') {
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => name
            .strip_prefix("index.docker.io/")
            .map_or_else(|| name.to_owned(), |rest| format!("docker.io/{rest}")),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// An image's name with registry, library and tag or digest spelled out.
pub(crate) fn normal_reference(image: &str) -> String {
    let repository = normal_repository(image);
    if let Some((_, digest)) = image.split_once('@') {
        return format!("{repository}@{digest}");
    }
    let tag = image.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'));
    format!("{repository}:{}", tag.unwrap_or("latest"))
}

/// Volumes with the service account token that admission put into the pod; the target's own
/// admission makes fresh ones.
fn injected_token_volumes(spec: &PodSpec) -> Vec<String> {
    spec.volumes.iter().flatten().filter(|v| is_injected_token(v)).map(|v| v.name.clone()).collect()
}

fn is_injected_token(volume: &Volume) -> bool {
    volume.name.starts_with(TOKEN_VOLUME)
        && volume
            .projected
            .as_ref()
            .and_then(|p| p.sources.as_ref())
            .is_some_and(|sources| sources.iter().any(|s| s.service_account_token.is_some()))
}

/// Whether the pin in the source's affinity is that of an earlier migration.
fn was_pinned_by_us(source: &Pod) -> bool {
    source.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(names::MOVED_FROM))
}

/// Pins the pod to a node by `matchFields` in every node selector term (terms are alternatives).
fn pin(spec: &mut PodSpec, node: &str, replace: bool) {
    let selector = spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    let terms = &mut selector.node_selector_terms;
    if replace {
        for term in terms.iter_mut() {
            if let Some(fields) = &mut term.match_fields {
                fields.retain(|f| f.key != "metadata.name");
            }
        }
        // Two terms that differed in the pin alone, or a term that was nothing but the pin, stay
        // valid: the new pin is put into each below.
    } else {
        // A term without any requirement matches nothing; with a pin it would match the node.
        let is_empty = |term: &NodeSelectorTerm| {
            term.match_expressions.as_ref().is_none_or(Vec::is_empty)
                && term.match_fields.as_ref().is_none_or(Vec::is_empty)
        };
        terms.retain(|term| !is_empty(term));
    }
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    for term in terms {
        term.match_fields.get_or_insert_default().push(NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        });
    }
}

/// The node that a target pod is pinned to.
pub fn pinned_node(pod: &Pod) -> Option<&str> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let term = required.node_selector_terms.first()?;
    // Ours was put behind whatever was there.
    let pin = term.match_fields.as_ref()?.last().filter(|field| field.key == "metadata.name")?;
    pin.values.as_ref()?.first().map(String::as_str)
}

/// Where the stored target pod differs from what was sent, as paths; empty when nothing that
/// matters was changed.
///
/// Fields that the API server itself fills in are left out: the fresh token volume, priority,
/// overhead. Added annotations are left out too; added labels are not, since any label may make a
/// Service, a policy or a controller select the pod before its time.
pub fn changes_by_admission(sent: &Pod, stored: &Pod) -> Vec<String> {
    let mut changes = Vec::new();
    let expected = spec_value(sent);
    let found = spec_value(stored);
    compare("spec", &expected, &found, &mut changes);
    let labels = |pod: &Pod| serde_json::to_value(&pod.metadata.labels).unwrap_or_default();
    compare("metadata.labels", &labels(sent), &labels(stored), &mut changes);
    let sent_annotations = sent.metadata.annotations.iter().flatten();
    let stored_annotations = stored.metadata.annotations.clone().unwrap_or_default();
    for (key, value) in sent_annotations {
        if stored_annotations.get(key) != Some(value) {
            changes.push(format!("metadata.annotations[{key}]"));
        }
    }
    let owners = |pod: &Pod| pod.metadata.owner_references.clone().unwrap_or_default();
    if owners(sent) != owners(stored) {
        changes.push("metadata.ownerReferences".into());
    }
    changes
}

/// The spec without what the API server fills in by itself. The scheduling gate and the node name
/// are left out as well, so that the comparison also holds once the pod is scheduled.
fn spec_value(pod: &Pod) -> Value {
    let Some(spec) = &pod.spec else { return Value::Null };
    let mut spec = spec.clone();
    let injected = injected_token_volumes(&spec);
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|v| !injected.contains(&v.name));
    }
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        if let Some(mounts) = &mut container.volume_mounts {
            mounts.retain(|m| !(injected.contains(&m.name) && m.mount_path == TOKEN_MOUNT));
        }
    }
    spec.priority = None;
    spec.preemption_policy = None;
    spec.overhead = None;
    spec.scheduling_gates = None;
    spec.node_name = None;
    let mut value = serde_json::to_value(&spec).unwrap_or_default();
    prune(&mut value);
    value
}

/// Removes nulls, empty lists and empty objects: they mean the same as nothing. Objects inside a
/// list stay, so that positions are kept; an empty `emptyDir` stays, since it means something.
fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for field in fields.values_mut() {
                prune(field);
            }
            fields.retain(|key, field| {
                key == "emptyDir"
                    || !(field.is_null()
                        || field.as_array().is_some_and(Vec::is_empty)
                        || field.as_object().is_some_and(serde_json::Map::is_empty))
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

/// The most differences that are told.
const MAX_CHANGES: usize = 8;

fn compare(path: &str, expected: &Value, found: &Value, changes: &mut Vec<String>) {
    if changes.len() >= MAX_CHANGES || expected == found {
        return;
    }
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
            for key in keys {
                let get = |fields: &serde_json::Map<String, Value>| {
                    fields.get(key).cloned().unwrap_or_default()
                };
                compare(&format!("{path}.{key}"), &get(expected), &get(found), changes);
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                let name = expected.get("name").and_then(Value::as_str);
                let place = name.map_or_else(|| index.to_string(), str::to_owned);
                compare(&format!("{path}[{place}]"), expected, found, changes);
            }
        }
        _ => changes.push(path.to_owned()),
    }
}

#[cfg(test)]
#[path = "target_pod_tests.rs"]
mod tests;
