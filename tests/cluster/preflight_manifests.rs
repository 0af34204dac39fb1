//! What stands in the manifest of a pod that runs, or what the API server says of its successor, keeps
//! the pod where it is, and leaves it alone. Each check with a pod that really has what is refused.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::Cluster;

use crate::{
    preflight::{IMAGE, deployment, dry_run, violations},
    refusal::{Serving, Undo, refused, server},
    scarcity::{allow_pods, say_no_more},
};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn what_the_manifest_of_a_running_pod_has_keeps_it_where_it_is() -> Result<()> {
    const CLASS: &str = "transship-test";
    let cluster = Cluster::with_namespace("manifest-refusals")?;
    let _undo = Undo(|| {
        drop(cluster.kubectl(&["delete", "runtimeclass", CLASS, "--ignore-not-found"]));
    });
    // Another name for the runtime that is there.
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": {"name": CLASS}, "handler": "runc"});
    cluster.apply(&class.to_string())?;
    // No node advertises the device, so the pod is bound by hand; kubelet lets pass what it has not
    // heard of.
    let limits = json!({"resources": {"limits": {"example.com/gpu": "1"}}});
    cluster.apply(&deployment(
        "odd.v2",
        &json!({
            "nodeName": "node-a", "runtimeClassName": CLASS, "shareProcessNamespace": true,
            "terminationGracePeriodSeconds": 0, "containers": [server("", &limits)],
        }),
    ))?;
    // `hostUsers: false` needs more of a node than the sandbox's have; this is what it makes of a
    // container.
    let user = server("import os; os.unshare(os.CLONE_NEWUSER)", &Value::Null);
    cluster.apply(&deployment(
        "user",
        &json!({"terminationGracePeriodSeconds": 0, "containers": [user]}),
    ))?;
    // One of its two containers has done its work.
    let short = json!({"name": "short", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["true"]});
    let half = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "half"},
        "spec": {"template": {"metadata": {"labels": {"app": "half"}}, "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [server("", &Value::Null), short]}}}});
    cluster.apply(&half.to_string())?;
    // It would take the target pod, which bears no label of its owner's, for one of its own.
    let anyone = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "anyone"},
        "spec": {"replicas": 1,
            "selector": {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]},
            "template": {"metadata": {"labels": {"app": "anyone"}}, "spec": {
                "terminationGracePeriodSeconds": 0, "containers": [server("", &Value::Null)]}}}});
    cluster.apply(&anyone.to_string())?;
    cluster.await_that("one container has ended and one runs", PATIENCE, || {
        let pod = cluster.get("pod", &cluster.pod("app=half")?.name)?;
        let statuses = pod["status"]["containerStatuses"].as_array().context("no statuses")?;
        let has_ended = |s: &Value| s["name"] == "short" && s["state"]["terminated"].is_object();
        Ok(pod["status"]["phase"] == "Running" && statuses.iter().any(has_ended))
    })?;

    for (label, expected) in [
        (
            "app=odd.v2",
            &[
                ("SharedProcessNamespace", "one process namespace"),
                ("RuntimeClass", CLASS),
                ("Devices", "example.com/gpu"),
                ("HostName", "odd.v2-"),
            ][..],
        ),
        ("app=user", &[("UserNamespace", "user namespace of its own")][..]),
        ("app=half", &[("ContainerNotRunning", "does not run")][..]),
        ("app=anyone", &[("OwnerSelector", "ReplicaSet")][..]),
    ] {
        let mut serving = Serving::of(&cluster, label)?;
        refused(&cluster, &serving.pod, &Value::Null, expected).context(label)?;
        serving.is_untouched(&cluster).context(label)?;
    }
    Ok(())
}

#[test]
fn what_the_manifest_takes_from_the_node_keeps_a_pod_where_it_is() -> Result<()> {
    /// Where nothing of a node listens.
    const HOST_PORT: u16 = 28080;
    let cluster = Cluster::with_namespace("host-refusals")?;
    let on_port = json!({"env": [{"name": "PORT", "value": HOST_PORT.to_string()}]});
    cluster.apply(&deployment(
        "host",
        &json!({
            "hostNetwork": true, "hostPID": true, "hostIPC": true,
            "terminationGracePeriodSeconds": 0,
            "containers": [server("", &on_port)],
        }),
    ))?;
    let container = server(
        "",
        &json!({
            "tty": true, "stdin": true,
            "lifecycle": {"postStart": {"exec": {"command": ["true"]}}},
            "volumeMounts": [{"name": "node", "mountPath": "/srv"}],
        }),
    );
    let init = |name: &str, context: Value| {
        json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": ["true"], "securityContext": context})
    };
    let inits = [
        init("network", json!({"capabilities": {"add": ["NET_ADMIN"]}})),
        init("node", json!({"privileged": true})),
    ];
    cluster.apply(&deployment(
        "web",
        &json!({
            "terminationGracePeriodSeconds": 0, "containers": [container],
            "initContainers": inits,
            "volumes": [
                {"name": "node", "hostPath": {"path": "/srv", "type": "DirectoryOrCreate"}},
                {"name": "mine", "emptyDir": {}},
            ],
        }),
    ))?;

    let mut host = Serving::at(&cluster, "app=host", HOST_PORT)?;
    let expected = [("HostNamespaces", "its node (hostNetwork, hostPID, hostIPC)")];
    refused(&cluster, &host.pod, &Value::Null, &expected)?;
    host.is_untouched(&cluster)?;
    let mut web = Serving::of(&cluster, "app=web")?;
    let expected = [
        ("Volumes", "volume node is a directory of the node (hostPath)"),
        ("Terminal", "a terminal of its node"),
        ("InitContainers", "it has NET_ADMIN"),
        ("InitContainers", "it is privileged"),
        ("PostStartHook", "a postStart hook"),
    ];
    refused(&cluster, &web.pod, &Value::Null, &expected)?;
    // Of its volumes that one alone.
    let answer = dry_run(&cluster, &web.pod.name, Some(web.pod.other_node()))?;
    let volumes = violations(&answer).into_iter().filter(|(check, _, _)| check == "Volumes");
    ensure!(volumes.count() == 1, "{answer:#}");
    web.is_untouched(&cluster)
}

#[test]
fn what_the_api_server_would_refuse_or_change_is_not_begun() -> Result<()> {
    let cluster = Cluster::with_namespace("admission-refusals")?;
    let mut web = Serving::deploy(&cluster, "")?;
    let pod = web.pod.clone();

    allow_pods(&cluster, "one-pod", 1)?;
    let expected = [("TargetPod", "exceeded quota: one-pod")];
    refused(&cluster, &pod, &Value::Null, &expected)?;
    web.is_untouched(&cluster)?;
    say_no_more(&cluster, "one-pod")?;

    // Defaults are written into each new pod, as a mutating webhook would do it.
    let defaults = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "defaults"},
        "spec": {"limits": [{"type": "Container", "defaultRequest": {"memory": "16Mi"}}]}});
    cluster.apply(&defaults.to_string())?;
    let expected = [("TargetPodChanged", "spec.containers[main].resources")];
    refused(&cluster, &pod, &Value::Null, &expected)?;
    web.is_untouched(&cluster)?;

    // The namespace allows less by now than the pod has.
    let standard = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", &cluster.namespace, standard])?;
    let expected = [("TargetPod", "violates PodSecurity")];
    // The API server goes by what it allowed before for a moment.
    cluster.await_that("the target pod is refused", PATIENCE, || {
        refused(&cluster, &pod, &Value::Null, &expected).map(|()| true)
    })?;
    web.is_untouched(&cluster)
}

#[test]
fn what_does_not_bear_to_be_ended_and_started_again_keeps_a_pod_from_moving_cold() -> Result<()> {
    /// More names than are put back in the time that a start may take; of few files, which is quicker.
    const MANY_NAMES: &str = "
import os
for file in range(4):
    first = f'/tmp/{file}'
    open(first, 'w').close()
    for name in range(50000):
        os.link(first, f'{first}-{name}')
";
    let cluster = Cluster::with_namespace("cold-refusals")?;
    let bare = |name: &str, policy: &str, container: &Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 20,
                "containers": [container]}})
    };
    let hasty = json!({
        "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
        "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 2, "failureThreshold": 3},
    });
    cluster.apply(&bare("hasty", "OnFailure", &server("", &hasty)).to_string())?;
    // kubelet goes by the container's own policy, whatever the pod's.
    let wide = server(MANY_NAMES, &json!({"restartPolicy": "Never"}));
    cluster.apply(&bare("wide", "Always", &wide).to_string())?;
    for (name, timeout, expected) in [
        (
            "hasty",
            "20s",
            &[
                ("RestartPolicy", "restartPolicy is OnFailure"),
                ("GracePeriod", "20 s to end"),
                ("PreStopHook", "liveness probe gives up after"),
            ][..],
        ),
        (
            "wide",
            "10m",
            &[
                ("RestartPolicy", "a restart policy of its own"),
                ("RootFilesystem", "files outside of volumes"),
            ][..],
        ),
    ] {
        let mut serving = Serving::of(&cluster, &format!("app={name}"))?;
        let wishes = json!({"mode": "Cold", "timeout": timeout});
        refused(&cluster, &serving.pod, &wishes, expected).context(name)?;
        serving.is_untouched(&cluster).context(name)?;
        // They do not listen to SIGTERM.
        cluster.kubectl(&["delete", "pod", name, "--grace-period=1", "--wait=false"])?;
    }
    Ok(())
}

#[test]
fn a_pod_with_a_resource_claim_is_refused() -> Result<()> {
    let cluster = Cluster::with_namespace("claim-refusals")?;
    // A claim without requests is allocated without a driver, and its pod runs.
    let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "nothing"}, "spec": {"devices": {}}});
    cluster.apply(&claim.to_string())?;
    cluster.apply(&deployment(
        "web",
        &json!({
            "resourceClaims": [{"name": "device", "resourceClaimName": "nothing"}],
            "terminationGracePeriodSeconds": 0, "containers": [server("", &Value::Null)],
        }),
    ))?;
    let mut web = Serving::of(&cluster, "app=web")?;
    let expected = [("Devices", "resource claims (device)")];
    refused(&cluster, &web.pod, &Value::Null, &expected)?;
    web.is_untouched(&cluster)
}
