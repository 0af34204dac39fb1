//! The pods of a sequential hand-over: whose order is sequential, the pod of the restore on trial, and
//! the pod that is made again under its own name.

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use transship_api::names;

use crate::target_pod::{TargetFor, TargetPodError, target_name, target_pod};

/// Whether the pod's name is exclusive, so that no other can stand beside it: it belongs to a
/// StatefulSet, or to nobody.
pub fn is_exclusive(pod: &Pod) -> bool {
    controller(pod).is_none_or(is_stateful_set)
}

pub(crate) fn is_stateful_set(owner: &OwnerReference) -> bool {
    // Other groups have kinds of this name, whose controllers are not ours to know.
    owner.kind == "StatefulSet" && owner.api_version.starts_with("apps/")
}

/// The pod's controlling owner.
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Names of the volumes that are handed over, and cannot be mounted before.
pub fn claims(pod: &Pod) -> Vec<String> {
    volumes(pod).filter(|v| is_claim(v)).map(|v| v.name.clone()).collect()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn is_claim(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some()
}

/// The pod in which the state is restored on trial: like a target pod beside the source, with an
/// empty directory in the place of each volume that is handed over.
pub fn trial_pod(source: &Pod, target: &TargetFor<'_>) -> Result<Pod, TargetPodError> {
    let mut trial = target_pod(source, target)?;
    let volumes = trial.spec.iter_mut().flat_map(|spec| spec.volumes.iter_mut().flatten());
    for volume in volumes.filter(|v| is_claim(v)) {
        volume.persistent_volume_claim = None;
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    Ok(trial)
}

/// The pod that is made again of the source's stored manifest: its own name, labels, owner and
/// finalizers.
pub fn again_pod(manifest: &Pod, target: &TargetFor<'_>) -> Result<Pod, TargetPodError> {
    let mut again = target_pod(manifest, target)?;
    let (meta, source) = (&mut again.metadata, &manifest.metadata);
    meta.name.clone_from(&source.name);
    meta.owner_references.clone_from(&source.owner_references);
    meta.finalizers.clone_from(&source.finalizers);
    let mut labels = source.labels.clone().unwrap_or_default();
    labels.insert(names::MIGRATION_LABEL.into(), target.migration_uid.into());
    meta.labels = Some(labels);
    Ok(again)
}

/// The pods that the API server is asked about before anything is touched: the trial's, and that which
/// is made again after the commit, with its real labels, annotations, owner and volumes, so that
/// webhooks, Pod Security, LimitRange and ResourceQuota judge it by what it will be.
///
/// The second one bears the trial's name, since its own is taken by the source, and what goes by the
/// name is not shown. The quota counts the source where the trial's pod will be when it is made:
/// both are of one size. What is changed in policies and quotas between this and the commit shows
/// only then, and is told in the Migration's status.
pub fn tried_pods(source: &Pod, target: &TargetFor<'_>) -> Result<[Pod; 2], TargetPodError> {
    let mut again = again_pod(source, target)?;
    again.metadata.name = Some(target_name(source, target.migration_uid));
    Ok([trial_pod(source, target)?, again])
}

/// Lets the pod live on without the owner of this UID.
pub fn leave_owner(pod: &mut Pod, owner_uid: &str) {
    if let Some(owners) = &mut pod.metadata.owner_references {
        owners.retain(|owner| owner.uid != owner_uid);
    }
}

/// What of the source is stored: everything but what the API server alone writes, with the images of the
/// manifest `before`, which the state belongs to, and a note of those that were changed meanwhile.
pub fn manifest(source: &Pod, before: Option<&Pod>) -> Pod {
    let mut manifest = source.clone();
    manifest.metadata.managed_fields = None;
    if let Some(annotations) = &mut manifest.metadata.annotations {
        annotations.remove(names::IMAGES_LEFT);
    }
    let changed = before.map(|before| changed_images(before, source)).unwrap_or_default();
    if !changed.is_empty() {
        let annotations = manifest.metadata.annotations.get_or_insert_default();
        annotations.insert(names::IMAGES_LEFT.into(), changed.join(" and "));
    }
    for container in containers_mut(&mut manifest) {
        if let Some(same) = before.and_then(|before| container_of(before, &container.name)) {
            container.image.clone_from(&same.image);
        }
    }
    manifest
}

/// Whether the stored manifest has all that may be changed of a pod and is taken over as it is in the end.
pub fn is_current(stored: &Pod, source: &Pod) -> bool {
    let of_spec = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        (
            spec.and_then(|spec| spec.tolerations.clone()),
            spec.and_then(|spec| spec.active_deadline_seconds),
            spec.and_then(|spec| spec.termination_grace_period_seconds),
            containers(pod).map(|c| c.resources.clone()).collect::<Vec<_>>(),
        )
    };
    let anew = manifest(source, Some(stored));
    let (was, now) = (&stored.metadata, &anew.metadata);
    was.labels == now.labels
        && was.annotations == now.annotations
        && was.finalizers == now.finalizers
        && was.owner_references == now.owner_references
        && of_spec(stored) == of_spec(source)
}

/// Containers that were given another image than the stored manifest has: kubelet ends them, and what
/// they were is no state of the new image.
pub fn changed_images(stored: &Pod, source: &Pod) -> Vec<String> {
    containers(source)
        .filter(|c| container_of(stored, &c.name).is_some_and(|was| was.image != c.image))
        .map(|c| c.name.clone())
        .collect()
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

fn containers_mut(pod: &mut Pod) -> impl Iterator<Item = &mut Container> {
    let spec = pod.spec.iter_mut();
    spec.flat_map(|spec| spec.init_containers.iter_mut().flatten().chain(&mut spec.containers))
}

fn container_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    containers(pod).find(|container| container.name == name)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn pod(json: Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    fn source() -> Pod {
        pod(json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "s", "generateName": "web-",
                "labels": {"app": "web", "statefulset.kubernetes.io/pod-name": "web-0"},
                "annotations": {"transship.dev/claim": "m", "team": "a"},
                "managedFields": [{"manager": "x"}],
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web",
                    "uid": "sts", "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"nodeName": "node-a", "hostname": "web-0", "subdomain": "web",
                "containers": [{"name": "web", "image": "x"}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}},
                    {"name": "tmp", "emptyDir": {"medium": "Memory"}}]},
            "status": {"podIP": "10.0.0.7"}
        }))
    }

    fn target() -> TargetFor<'static> {
        TargetFor {
            migration_namespace: "shop",
            migration_name: "move",
            migration_uid: "m",
            node: "node-b",
            preserve_address: true,
            starts_afresh: false,
        }
    }

    #[test]
    fn what_the_api_server_is_asked_about_has_the_real_labels_owner_and_volumes() {
        let source = source();
        let [trial, again] = tried_pods(&source, &target()).unwrap();
        assert_eq!(trial, trial_pod(&source, &target()).unwrap());
        assert_eq!(again.metadata.name, trial.metadata.name, "its own is taken");
        assert_eq!(again.metadata.owner_references, source.metadata.owner_references);
        assert_eq!(again.metadata.labels.as_ref().unwrap()["app"], "web");
        assert_eq!(again.metadata.annotations.as_ref().unwrap()["team"], "a");
        let real = again_pod(&source, &target()).unwrap();
        assert_eq!(again.spec, real.spec, "volumes and all");
    }

    #[test]
    fn a_pod_that_lives_on_without_its_owner_keeps_the_others() {
        let mut pod = source();
        let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c"});
        let owners = pod.metadata.owner_references.as_mut().unwrap();
        owners.push(serde_json::from_value(other).unwrap());
        leave_owner(&mut pod, "sts");
        let left = pod.metadata.owner_references.as_ref().unwrap();
        assert_eq!(left.iter().map(|o| o.uid.as_str()).collect::<Vec<_>>(), ["c"]);
        assert!(controller(&pod).is_none() && is_exclusive(&pod));
    }

    #[rstest]
    #[case(json!([]), true)]
    #[case(json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "w", "uid": "u", "controller": true}]), true)]
    #[case(json!([{"apiVersion": "example.com/v1", "kind": "StatefulSet", "name": "w", "uid": "u", "controller": true}]), false)]
    #[case(json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "w", "uid": "u", "controller": true}]), false)]
    #[case(json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "w", "uid": "u", "controller": true}]), false)]
    #[case(json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "w", "uid": "u"}]), true)]
    fn names_of_statefulsets_and_of_nobody_are_exclusive(
        #[case] owners: Value,
        #[case] exclusive: bool,
    ) {
        assert_eq!(is_exclusive(&pod(json!({"metadata": {"ownerReferences": owners}}))), exclusive);
    }

    #[test]
    fn a_trial_has_empty_directories_in_the_place_of_claims_and_belongs_to_nobody() {
        let trial = trial_pod(&source(), &target()).unwrap();
        let volumes = trial.spec.as_ref().unwrap().volumes.as_ref().unwrap();
        assert!(
            volumes.iter().all(|v| v.empty_dir.is_some() && v.persistent_volume_claim.is_none())
        );
        assert_ne!(trial.metadata.name.as_deref(), Some("web-0"));
        assert!(trial.metadata.owner_references.is_none());
        assert_eq!(trial.metadata.labels.unwrap().len(), 1);
        assert_eq!(claims(&source()), ["data"]);
    }

    #[test]
    fn the_pod_that_is_made_again_is_the_source_in_everything_that_others_know_it_by() {
        let stored = manifest(&source(), None);
        assert!(stored.metadata.managed_fields.is_none());
        let again = again_pod(&stored, &target()).unwrap();
        let (meta, was) = (&again.metadata, &stored.metadata);
        assert_eq!(meta.name, was.name);
        assert_eq!(meta.owner_references, was.owner_references);
        let labels = meta.labels.as_ref().unwrap();
        assert!(was.labels.as_ref().unwrap().iter().all(|(k, v)| labels.get(k) == Some(v)));
        assert_eq!(labels[names::MIGRATION_LABEL], "m");
        assert_eq!(meta.annotations.as_ref().unwrap()["transship.dev/lease"], "10.0.0.7@node-a");
        let spec = again.spec.unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("web-0"), Some("web"))
        );
        assert!(spec.node_name.is_none() && spec.scheduling_gates.is_some());
        assert!(spec.volumes.unwrap().iter().any(|v| v.persistent_volume_claim.is_some()));
    }

    #[test]
    fn what_is_changed_of_a_pod_that_goes_is_taken_over_but_for_its_images() {
        let stored = manifest(&source(), None);
        assert!(is_current(&stored, &source()));
        let changes: [fn(&mut Pod); 5] = [
            |pod| pod.metadata.finalizers = Some(vec!["example.com/kept".into()]),
            |pod| pod.spec.as_mut().unwrap().active_deadline_seconds = Some(60),
            |pod| pod.spec.as_mut().unwrap().termination_grace_period_seconds = Some(1),
            |pod| {
                let toleration = json!([{"key": "a", "operator": "Exists"}]);
                pod.spec.as_mut().unwrap().tolerations =
                    Some(serde_json::from_value(toleration).unwrap());
            },
            |pod| {
                let limits = json!({"limits": {"cpu": "2"}});
                pod.spec.as_mut().unwrap().containers[0].resources =
                    Some(serde_json::from_value(limits).unwrap());
            },
        ];
        for change in changes {
            let mut source = source();
            change(&mut source);
            assert!(!is_current(&stored, &source));
            assert!(changed_images(&stored, &source).is_empty());
            let anew = manifest(&source, Some(&stored));
            assert!(is_current(&anew, &source));
        }
        let mut other = source();
        other.spec.as_mut().unwrap().containers[0].image = Some("y".into());
        assert!(!is_current(&stored, &other), "it is to be told");
        assert_eq!(changed_images(&stored, &other), ["web"]);
        let anew = manifest(&other, Some(&stored));
        assert!(is_current(&anew, &other));
        assert_eq!(anew.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("x"));
        let noted = |pod: &Pod| pod.metadata.annotations.as_ref()?.get(names::IMAGES_LEFT).cloned();
        assert_eq!(noted(&anew).as_deref(), Some("web"));
        let again = again_pod(&anew, &target()).unwrap();
        assert_eq!(noted(&again).as_deref(), Some("web"));
        assert_eq!(noted(&manifest(&again, None)), None, "not with the next move");
    }
}
