//! A volume that does not move, that cannot go with its pod or that has other content there, keeps the pod where it is,
//! and leaves it alone. Each with a pod that has it mounted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::Cluster;

use crate::{
    preflight::{IMAGE, deployment},
    refusal::{Serving, Undo, refused, refused_for, server},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A volume of so little that `name` alone is to get.
fn volume_for(name: &str, volume: &Value) -> Value {
    let mut of = json!({"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"]});
    for (key, value) in volume.as_object().into_iter().flatten() {
        of[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume_of(name)},
        "spec": of})
}

/// What a claim to it says.
fn asked(name: &str) -> Value {
    json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "resources": {"requests": {"storage": "1Mi"}}, "volumeName": volume_of(name)})
}

/// The claim itself, called `name`.
fn claim_of(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": asked(name)})
}

fn volume_of(name: &str) -> String {
    format!("transship-test-{name}")
}

/// A directory of whichever node.
fn directory() -> Value {
    json!({"hostPath": {"path": "/run/transship-test", "type": "DirectoryOrCreate"}})
}

/// Deletes what is there of these, one kind after another.
pub fn delete(cluster: &Cluster, all: &[&[&str]]) {
    for what in all {
        let options = ["--ignore-not-found", "--timeout=60s"];
        drop(cluster.kubectl(&[&["delete"], *what, &options].concat()));
    }
}

#[test]
fn a_pod_that_others_can_stand_in_for_is_refused_with_volumes_that_do_not_move() -> Result<()> {
    const CLAIMED: &str = "claimed";
    const OWN: &str = "own";
    const USES_ALL: &str = "
import os
for volume in ['claimed', 'own']:
    open(f'/{volume}/file', 'w').close()
assert os.path.exists('/image/usr')
";
    let cluster = Cluster::with_namespace("kind-refusals")?;
    let clean = || {
        let volumes = [CLAIMED, OWN].map(volume_of);
        let pod = ["deployment", "web", "--cascade=foreground"];
        delete(&cluster, &[&pod, &["pvc", "--all"], &["pv", &volumes[0], &volumes[1]]]);
    };
    clean();
    let _undo = Undo(clean);
    for object in [
        volume_for(CLAIMED, &directory()),
        claim_of(CLAIMED),
        // Its claim is made with the pod.
        volume_for(OWN, &directory()),
    ] {
        cluster.apply(&object.to_string())?;
    }
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    let mounts = json!({"volumeMounts": [mount(CLAIMED), mount(OWN), mount("image")]});
    cluster.apply(&deployment(
        "web",
        &json!({
            "terminationGracePeriodSeconds": 0, "containers": [server(USES_ALL, &mounts)],
            "volumes": [
                {"name": CLAIMED, "persistentVolumeClaim": {"claimName": CLAIMED}},
                {"name": OWN, "ephemeral": {"volumeClaimTemplate": {"spec": asked(OWN)}}},
                {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}},
            ],
        }),
    ))?;
    let mut web = Serving::of(&cluster, "app=web")?;
    let expected = [
        ("Volumes", "volume claimed is a persistent volume"),
        ("Volumes", "volume own is an ephemeral persistent volume, which belongs to this one pod"),
        ("Volumes", "volume image is of a kind that cannot be moved"),
    ];
    refused(&cluster, &web.pod, &Value::Null, &expected)?;
    web.is_untouched(&cluster)
}

/// Takes away the devices that a file stands behind, and the file.
pub fn unplug(cluster: &Cluster, file: &str) {
    let script = format!(
        "for device in $(losetup --associated {file} --noheadings --output NAME); do \
         losetup --detach $device; done; rm -f {file}"
    );
    drop(cluster.on_node("node-a", &["sh", "-c", &script]));
}

#[test]
fn a_pod_with_a_block_device_is_refused() -> Result<()> {
    const VOLUME: &str = "transship-test-block";
    const FILE: &str = "/var/tmp/transship-test-block";
    let cluster = Cluster::with_namespace("block-refusals")?;
    let clean = || {
        // kubelet lets go of the device before the pod is gone.
        let pod = ["deployment", "block", "--cascade=foreground"];
        delete(&cluster, &[&pod, &["pvc", "block"], &["pv", VOLUME]]);
        unplug(&cluster, FILE);
    };
    clean();
    let _undo = Undo(clean);
    let plug = format!("truncate --size=1M {FILE} && losetup --find --show {FILE}");
    let device = cluster.on_node("node-a", &["sh", "-c", &plug])?;

    let node = json!({"key": "kubernetes.io/hostname", "operator": "In",
        "values": ["node-a", "node-b"]});
    // That both nodes have the device is not true; else the volume alone would decide.
    let terms = json!([{"matchExpressions": [node]}]);
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": VOLUME},
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block", "local": {"path": device.trim()},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    cluster.apply(&volume.to_string())?;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "block"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "volumeMode": "Block", "resources": {"requests": {"storage": "1Mi"}},
            "storageClassName": "", "volumeName": VOLUME}});
    cluster.apply(&claim.to_string())?;
    let devices = json!({"volumeDevices": [{"name": "block", "devicePath": "/dev/xvda"}]});
    cluster.apply(&deployment(
        "block",
        &json!({
            "nodeName": "node-a", "terminationGracePeriodSeconds": 0,
            "containers": [server("", &devices)],
            "volumes": [{"name": "block", "persistentVolumeClaim": {"claimName": "block"}}],
        }),
    ))?;
    let mut block = Serving::of(&cluster, "app=block")?;
    let there =
        cluster.kubectl(&["exec", &block.pod.name, "--", "stat", "-c", "%F", "/dev/xvda"])?;
    ensure!(there.contains("block special"), "{there}");
    let expected = [("Volumes", "a persistent volume"), ("BlockDevices", "/dev/xvda")];
    refused(&cluster, &block.pod, &Value::Null, &expected)?;
    block.is_untouched(&cluster)
}

/// A volume, its claim, and a pod of its own name with that; all of them called `name`.
fn with_a_volume(name: &str, volume: &Value) -> String {
    let mounts = json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    let items = [
        volume_for(name, volume),
        claim_of(name),
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [server("", &mounts)],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]}}),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

#[test]
fn a_pod_of_its_own_name_whose_volume_cannot_go_with_it_is_refused() -> Result<()> {
    const NAMES: [&str; 2] = ["alone", "near"];
    let cluster = Cluster::with_namespace("volume-refusals")?;
    let clean = || {
        let [first, second] = NAMES;
        let [of_first, of_second] = NAMES.map(volume_of);
        let volumes = ["pv", &of_first, &of_second];
        delete(&cluster, &[&["pod", first, second], &["pvc", first, second], &volumes]);
    };
    clean();
    let _undo = Undo(clean);
    cluster.apply(&with_a_volume("alone", &directory()))?;
    let node = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-a"]});
    let terms = json!([{"matchExpressions": [node]}]);
    let local = json!({"local": {"path": "/var/tmp"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
    cluster.apply(&with_a_volume("near", &local))?;

    let mut alone = Serving::of(&cluster, "app=alone")?;
    let mut is_refused = |words: &'static str| -> Result<()> {
        let expected = [("PersistentVolumes", words)];
        refused(&cluster, &alone.pod, &Value::Null, &expected).context(words)?;
        alone.is_untouched(&cluster).context(words)
    };
    is_refused("a directory of one node (hostPath)")?;
    // Nor does it move when its claim is to go with it, or has gone.
    cluster.kubectl(&["delete", "pvc", "alone", "--wait=false"])?;
    is_refused("claim alone of volume data is being deleted")?;
    let release = r#"{"metadata":{"finalizers":null}}"#;
    cluster.kubectl(&["patch", "pvc", "alone", "--type=merge", "-p", release])?;
    is_refused("claim alone of volume data is not bound to a volume")?;

    // Where the volume says who can reach it, no node but its own fits.
    let mut near = Serving::of(&cluster, "app=near")?;
    ensure!(near.pod.node == "node-a", "{:?}", near.pod);
    let words = "node-b cannot reach the volume of the claim";
    refused_for(&cluster, &near.pod, "NoNodeFits", &[words])?;
    near.is_untouched(&cluster)
}

#[test]
fn files_that_the_target_has_with_other_content_keep_a_pod_where_it_is() -> Result<()> {
    const OPENS_BOTH: &str = "
keep = [open('/token'), open('/config/key')]
";
    let cluster = Cluster::with_namespace("remade-refusals")?;
    cluster.kubectl(&["create", "configmap", "config", "--from-literal=key=value"])?;
    let mount = |volume: &str, path: &str, file: &str| -> Value {
        json!({"name": volume, "mountPath": path, "subPath": file})
    };
    let mounts = [mount("token", "/token", "token"), mount("config", "/config/key", "key")];
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    cluster.apply(&deployment(
        "web",
        &json!({
            "terminationGracePeriodSeconds": 0,
            "containers": [server(OPENS_BOTH, &json!({"volumeMounts": mounts}))],
            "volumes": [{"name": "token", "projected": {"sources": [token]}},
                {"name": "config", "configMap": {"name": "config"}}],
        }),
    ))?;
    let mut web = Serving::of(&cluster, "app=web")?;
    let pod = web.pod.clone();
    // The target's token is another one, and the ConfigMap is what it was.
    let expected = [("RemadeFile", "other content: /token")];
    refused(&cluster, &pod, &Value::Null, &expected)?;
    web.is_untouched(&cluster)?;

    let other = r#"{"data":{"key":"other"}}"#;
    cluster.kubectl(&["patch", "configmap", "config", "--type=merge", "-p", other])?;
    let expected = [("RemadeFile", "/config/key"), ("RemadeFile", "/token")];
    let mut looks = 0;
    cluster.await_that("the file of the old ConfigMap is found", PATIENCE, || {
        looks += 1;
        // kubelet looks after a pod's volumes when something of the pod has changed, and once a minute.
        let change = format!("example.com/looks={looks}");
        cluster.kubectl(&["annotate", "--overwrite", "pod", &pod.name, &change])?;
        refused(&cluster, &pod, &Value::Null, &expected).map(|()| true)
    })?;
    web.is_untouched(&cluster)
}
