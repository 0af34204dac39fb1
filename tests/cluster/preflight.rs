//! What cannot be moved is found by looking at real processes and manifests, all of it at once, each
//! with its remedy; and nothing of the pod is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_api::duration;
use transship_tests::cluster::{Cluster, Pod, condition};

use crate::{
    counter,
    refusal::{Serving, no_pod_was_made, refused, refused_for, server},
    scarcity::{allow_pods, say_no_more},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// The image of the examples.
pub const IMAGE: &str = "localhost/transship-examples:1";

/// A Deployment with one pod.
pub fn deployment(name: &str, pod_spec: &Value) -> String {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec},
        }
    })
    .to_string()
}

/// A container that waits, with what else it is to have.
pub fn sleeper(extra: &Value) -> Value {
    let mut container = json!({
        "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

/// A Migration that only asks, and its answer.
pub fn dry_run(cluster: &Cluster, pod: &str, target: Option<&str>) -> Result<Value> {
    let name = format!("ask-{pod}");
    cluster.kubectl(&["delete", "migration", &name, "--ignore-not-found", "--timeout=30s"])?;
    let mut spec = json!({"podName": pod, "dryRun": true});
    if let Some(target) = target {
        spec["targetNode"] = json!(target);
    }
    let manifest = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Migration",
        "metadata": {"name": name}, "spec": spec});
    cluster.apply(&manifest.to_string())?;
    cluster.ended(&name, PATIENCE)?;
    cluster.get("migration", &name)
}

/// The violations of a Migration: check, container, message.
pub fn violations(migration: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = migration["status"]["violations"].as_array().cloned().unwrap_or_default();
    found.iter().map(|v| (text(&v["check"]), text(&v["container"]), text(&v["message"]))).collect()
}

/// The checks that found something.
pub fn checks(migration: &Value) -> BTreeSet<String> {
    violations(migration).into_iter().map(|(check, _, _)| check).collect()
}

/// The forecast of a move: bytes, and how long the pod would stand still.
pub fn forecast(migration: &Value) -> Result<(u64, Duration)> {
    let forecast = &migration["status"]["forecast"];
    let bytes = forecast["bytes"].as_u64().context("no bytes are forecast")?;
    let freeze = forecast["freeze"].as_str().context("no freeze is forecast")?;
    Ok((bytes, duration::parse(freeze)?))
}

/// Everything of a pod that a look must leave alone: its containers, and each process of theirs with its
/// state.
pub fn state(cluster: &Cluster, pod: &str) -> Result<BTreeMap<String, String>> {
    const LIST: &str = "
import os
own = open('/proc/self/cgroup').read()
for pid in sorted(filter(str.isdigit, os.listdir('/proc')), key=int):
    try:
        stat = open('/proc/%s/stat' % pid).read()
        other = open('/proc/%s/cgroup' % pid).read() != own
    except OSError:
        continue
    name, rest = stat.split('(', 1)[1].rsplit(')', 1)
    state, parent = rest.split()[:2]
    if other or int(pid) == os.getpid():
        continue
    if parent != '0' or pid == '1':
        print(pid, name, 'running' if state in 'RSD' else state)
";
    let object = cluster.get("pod", pod)?;
    let mut found = BTreeMap::new();
    for status in object["status"]["containerStatuses"].as_array().into_iter().flatten() {
        let name = status["name"].as_str().unwrap_or_default();
        ensure!(status["restartCount"] == 0, "{name} was restarted: {status:#}");
        ensure!(status["state"]["waiting"].is_null(), "{name} is not told to run: {status:#}");
        found.insert(format!("{name} id"), status["containerID"].to_string());
        if status["state"]["running"].is_null() {
            continue;
        }
        let list = cluster.kubectl(&["exec", pod, "-c", name, "--", "python3", "-c", LIST])?;
        found.insert(format!("{name} processes"), list);
    }
    Ok(found)
}

#[test]
fn what_processes_have_is_found_all_at_once_and_the_pod_is_left_alone() -> Result<()> {
    let cluster = Cluster::with_namespace("oddities")?;
    cluster.kubectl(&["create", "configmap", "key", "--from-literal=key=value"])?;
    let script = include_str!("oddities.py");
    let container = |name: &str| {
        let mut container = sleeper(&json!({
            "command": ["python3", "-c", script, name],
            "securityContext": {"privileged": true},
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"},
                {"name": "key", "mountPath": "/etc/projected"}],
        }));
        container["name"] = json!(name);
        container
    };
    cluster.apply(&deployment(
        "odd",
        &json!({
            "terminationGracePeriodSeconds": 0,
            // The last one has a client, who notices if the pod is touched.
            "containers": [container("inside"), container("outside"), server("", &Value::Null)],
            "volumes": [{"name": "shared", "emptyDir": {}},
                {"name": "key", "configMap": {"name": "key"}}],
        }),
    ))?;
    cluster.rolled_out("odd")?;
    let pod = cluster.pod("app=odd")?;
    cluster.await_that("every process shows what it has", PATIENCE, || {
        Ok(cluster.kubectl(&["logs", &pod.name, "-c", "inside"])?.contains("ready")
            && cluster.kubectl(&["logs", &pod.name, "-c", "outside"])?.contains("ready")
            && state(&cluster, &pod.name)?["inside processes"].contains("stopped T"))
    })?;
    let log = cluster.kubectl(&["logs", &pod.name, "-c", "inside"])?;
    ensure!(!log.contains("cannot show"), "{log}");
    // What others put into its network.
    in_network(&cluster, &pod, &["/opt/transship/bin/nft", "add", "table", "inet", "empty"])?;
    for line in
        ["add table ip mesh", "add chain ip mesh out", "add rule ip mesh out counter accept"]
    {
        let words: Vec<&str> = line.split(' ').collect();
        in_network(&cluster, &pod, &[&["/opt/transship/bin/nft"][..], &words].concat())?;
    }
    let mut odd = Serving::of(&cluster, "app=odd")?;

    let answer = dry_run(&cluster, &pod.name, Some(pod.other_node()))?;
    let (status, reason, message) = condition(&answer, "Succeeded");
    ensure!(status == "False" && reason == "PreflightFailed", "{answer:#}");
    ensure!(condition(&answer, "Admitted").0 == "False", "{answer:#}");
    ensure!(forecast(&answer)?.0 > 257 << 20, "{answer:#}");
    let found = violations(&answer);
    for (check, words) in [
        ("StoppedProcess", "stopped"),
        ("TracedProcess", "process traced"),
        ("DeadMainThread", "dead-main-threa"),
        ("NestedNamespaces", "(ipc, uts)"),
        ("Mounts", "ramfs on /mnt/odd"),
        ("IoUring", "process io-uring"),
        ("Mptcp", "process mptcp"),
        ("Socket", "VSOCK"),
        ("ForeignSocket", "/shared/socket"),
        ("RootfsWatch", "rootfs-watch"),
        ("Fanotify", "process fanotify"),
        ("OpenTerminal", "from-outside"),
        ("OpenTerminal", "inherited-tty"),
        ("Userfaultfd", "process userfaultfd"),
        ("Device", "process device"),
        ("MessageQueue", "process mqueue"),
        ("MessageQueue", "/dev/mqueue (1)"),
        ("SecretMemory", "secret-memory"),
        ("HugePages", "huge-pages"),
        ("Bpf", "process bpf"),
        ("PerfEvent", "perf-event"),
        ("KernelObject", "seccomp-notify"),
        ("ForeignProcess", "from-outside"),
        ("UnlinkedFile", "unlinked-big"),
        ("RemovedName", "/etc/group"),
        ("ProjectedFile", "projected-file"),
        ("ProjectedFile", "projected-watch"),
        ("OutsideFile", "from-outside"),
        ("NetworkRules", "ip mesh"),
        ("NetworkRules", "ip-legacy filter"),
    ] {
        let there = found.iter().any(|(c, _, message)| c == check && message.contains(words));
        ensure!(there, "{check} with {words:?} is not among {found:#?}");
    }
    ensure!(found.iter().any(|(c, container, _)| c == "ForeignSocket" && container == "outside"));
    // Each has its remedy; what is fine is not refused.
    let remedies = answer["status"]["violations"].as_array().cloned().unwrap_or_default();
    ensure!(remedies.iter().all(|v| v["remedy"].as_str().is_some_and(|r| !r.is_empty())));
    ensure!(!found.iter().any(|(_, _, message)| message.contains("ordinary")), "{found:#?}");
    ensure!(!message.contains("inet empty"), "{message}");

    // A Migration that is meant is refused in the same words, and touches as little.
    let migration = cluster.migrate(&pod.name, pod.other_node())?;
    cluster.ended(&migration, PATIENCE)?;
    let refused = cluster.get("migration", &migration)?;
    ensure!(checks(&refused) == checks(&answer), "{refused:#}");
    no_pod_was_made(&cluster)?;
    odd.is_untouched(&cluster)
}

/// Each oddity in a container of its own, and what becomes of it: what CRIU itself says to a dump of
/// the container, and what preflight finds.
#[test]
fn what_is_refused_is_what_criu_refuses() -> Result<()> {
    /// Oddity, whether CRIU refuses the dump, the check that finds it.
    const TABLE: [(&str, bool, Option<&str>); 22] = [
        ("io_uring", true, Some("IoUring")),
        ("mptcp", true, Some("Mptcp")),
        ("vsock", true, Some("Socket")),
        ("userfaultfd", true, Some("Userfaultfd")),
        ("rootfs_watch", true, Some("RootfsWatch")),
        ("log_watch", false, None),
        // The dump works, and the restore does not find the directory.
        ("projected_watch", false, Some("ProjectedFile")),
        ("projected_file", false, Some("ProjectedFile")),
        // Its marks may be anywhere, and a restore of them is not proven.
        ("fanotify", false, Some("Fanotify")),
        ("unlinked_big", true, Some("UnlinkedFile")),
        ("removed_name", true, Some("RemovedName")),
        ("secret_memory", true, Some("SecretMemory")),
        ("huge_pages", true, Some("HugePages")),
        ("seccomp_notify", true, Some("KernelObject")),
        ("perf_event", true, Some("PerfEvent")),
        ("bpf", true, Some("Bpf")),
        ("odd_mount", true, Some("Mounts")),
        ("namespaces", true, Some("NestedNamespaces")),
        ("nested_namespaces", true, Some("NestedNamespaces")),
        ("traced", true, Some("TracedProcess")),
        ("dead_main_thread", true, Some("DeadMainThread")),
        ("ordinary", false, None),
    ];
    let cluster = Cluster::with_namespace("criu-refuses")?;
    cluster.kubectl(&["create", "configmap", "key", "--from-literal=key=value"])?;
    let container_name = |oddity: &str| oddity.replace('_', "-");
    let containers: Vec<Value> = TABLE
        .iter()
        .map(|(oddity, _, _)| {
            let mut container = sleeper(&json!({
                "command": ["python3", "-c", include_str!("oddities.py"), "only", oddity],
                "securityContext": {"privileged": true},
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"},
                    {"name": "key", "mountPath": "/etc/projected"}],
            }));
            container["name"] = json!(container_name(oddity));
            container
        })
        .collect();
    cluster.apply(&deployment(
        "odd",
        &json!({
            "terminationGracePeriodSeconds": 0, "containers": containers,
            "volumes": [{"name": "shared", "emptyDir": {}},
                {"name": "key", "configMap": {"name": "key"}}],
        }),
    ))?;
    cluster.rolled_out("odd")?;
    let pod = cluster.pod("app=odd")?;
    cluster.await_that("every container shows what it has", PATIENCE, || {
        let log = cluster.kubectl(&["logs", &pod.name, "--all-containers"])?;
        ensure!(!log.contains("cannot show"), "{log}");
        Ok(log.matches("ready").count() == TABLE.len())
    })?;
    let answer = dry_run(&cluster, &pod.name, Some(pod.other_node()))?;
    let found = violations(&answer);
    let object = cluster.get("pod", &pod.name)?;
    let statuses = object["status"]["containerStatuses"].as_array().context("no statuses")?;
    let id = |name: &str| -> Result<&str> {
        let status = statuses.iter().find(|status| status["name"] == name).context("no status")?;
        let id = status["containerID"].as_str().and_then(|id| id.rsplit('/').next());
        id.with_context(|| format!("{name} has no id"))
    };
    let names = TABLE.map(|(oddity, _, _)| container_name(oddity));
    let ids: Vec<&str> = names.iter().map(|name| id(name)).collect::<Result<_>>()?;
    let dumps = dump(&cluster, &pod.node, &ids)?;
    let mut wrong = Vec::new();
    for (((oddity, refused, check), name), dump) in TABLE.iter().zip(&names).zip(&dumps) {
        if dump.is_err() != *refused {
            wrong.push(format!("{oddity}: CRIU said {dump:?}"));
        }
        let checks: Vec<&str> = found
            .iter()
            .filter(|(_, container, _)| container == name)
            .map(|(check, _, _)| check.as_str())
            .collect();
        if checks != check.iter().copied().collect::<Vec<_>>() {
            wrong.push(format!("{oddity}: preflight found {checks:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    let kinds = "(cgroup, net, pid, time)";
    ensure!(found.iter().any(|(_, _, message)| message.contains(kinds)), "{kinds}: {found:#?}");
    Ok(())
}

/// Dumps containers of a node as the holder does, one after another, and lets them run on. The errors are CRIU's.
fn dump(
    cluster: &Cluster,
    node: &str,
    ids: &[&str],
) -> Result<Vec<std::result::Result<(), String>>> {
    // In front of what CRIU has said of each container stands how its dump has ended.
    const ENDED: &str = "=== ended with ";
    let script = format!(
        "export PATH=/opt/transship/bin:$PATH\n\
         for id in {}; do\n\
         d=$(mktemp -d) && printf 'network-lock skip\\nghost-limit 268435456\\n' > $d/conf\n\
         export CRIU_CONFIG_FILE=$d/conf\n\
         timeout 60 runc --root /run/containerd/runc/k8s.io checkpoint --leave-running \
           --image-path $d/images --work-path $d --tcp-established --file-locks \
           --manage-cgroups-mode ignore $id >/dev/null 2>&1\n\
         echo \"{ENDED}$?\"; grep -m3 Error $d/dump.log; rm -rf $d\n\
         done",
        ids.join(" ")
    );
    let output = cluster.try_on_node(node, &["sh", "-c", &script])?;
    let text = String::from_utf8_lossy(&output.stdout);
    let dumps: Vec<_> = text
        .split(ENDED)
        .skip(1)
        .map(|told| match told.split_once('\n') {
            Some(("0", _)) => Ok(()),
            _ => Err(told.to_owned()),
        })
        .collect();
    ensure!(dumps.len() == ids.len(), "{} dumps of {}: {text}", dumps.len(), ids.len());
    Ok(dumps)
}

/// The runtime's id of a pod's first container.
pub fn container_id(cluster: &Cluster, pod: &Pod) -> Result<String> {
    let object = cluster.get("pod", &pod.name)?;
    let id = object["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    Ok(id.rsplit('/').next().unwrap_or_default().to_owned())
}

/// Runs a program of the node in the network namespace of a pod, and returns its stdout.
pub fn in_network(cluster: &Cluster, pod: &Pod, command: &[&str]) -> Result<String> {
    let id = container_id(cluster, pod)?;
    let script = format!(
        "exec nsenter --net=/proc/$(cat /run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/init.pid)/ns/net -- {}",
        command.join(" ")
    );
    cluster.on_node(&pod.node, &["sh", "-c", &script])
}

#[test]
fn what_the_manifest_of_a_pod_that_cannot_start_has_is_found_all_at_once() -> Result<()> {
    let cluster = Cluster::with_namespace("manifest-checks")?;
    // Pods that can hardly start here are told all the same what is wrong with them.
    cluster.apply(&deployment(
        "never",
        &json!({
            "hostUsers": false, "shareProcessNamespace": true,
            "nodeSelector": {"no-such": "node"},
            "containers": [sleeper(&json!({"resources": {"limits": {"example.com/gpu": "1"}}}))],
            "volumes": [
                {"name": "huge", "emptyDir": {"medium": "HugePages"}},
                {"name": "share", "nfs": {"server": "192.0.2.1", "path": "/"}},
                {"name": "inline", "csi": {"driver": "csi.example.com"}},
            ],
        }),
    ))?;
    cluster.await_that("the pod that cannot start is there", PATIENCE, || {
        Ok(cluster.pod("app=never").is_ok())
    })?;
    let never = cluster.pod("app=never")?;
    // The scheduler has its own say in the status.
    let stored = || -> Result<Value> {
        let mut pod = cluster.get("pod", &never.name)?;
        pod["metadata"]["resourceVersion"] = Value::Null;
        let is_ours = pod["status"].to_string().contains("transship.dev");
        Ok(json!([pod["metadata"], pod["spec"], is_ours]))
    };
    let before = stored()?;
    let answer = dry_run(&cluster, &never.name, None)?;
    ensure!(condition(&answer, "Succeeded").1 == "PodNotRunning", "{answer:#}");
    for check in ["UserNamespace", "SharedProcessNamespace", "Devices"] {
        ensure!(checks(&answer).contains(check), "{check}: {answer:#}");
    }
    for words in [
        "volume huge is an emptyDir of huge pages",
        "volume share is an NFS mount",
        "volume inline is an inline CSI volume",
    ] {
        let is_told = |(check, _, message): &(String, String, String)| {
            check == "Volumes" && message.contains(words)
        };
        ensure!(violations(&answer).iter().any(is_told), "{words}: {answer:#}");
    }
    refused_for(&cluster, &never, "PodNotRunning", &["only a running pod can be moved"])?;
    ensure!(stored()? == before, "the pod was touched: {before:#}\n{:#}", stored()?);
    Ok(())
}

#[test]
fn what_the_api_server_and_the_target_lack_is_found_beforehand() -> Result<()> {
    let cluster = Cluster::with_namespace("target-checks")?;
    let pod = counter(&cluster)?;
    allow_pods(&cluster, "one-pod", 1)?;
    let answer = dry_run(&cluster, &pod.name, Some(pod.other_node()))?;
    let found = violations(&answer);
    let by_quota = |(check, _, message): &(String, String, String)| {
        check == "TargetPod" && message.contains("exceeded quota: one-pod")
    };
    ensure!(found.len() == 1 && by_quota(&found[0]), "{found:#?}");
    say_no_more(&cluster, "one-pod")?;
    let answer = dry_run(&cluster, &pod.name, Some(pod.other_node()))?;
    ensure!(condition(&answer, "Succeeded").1 == "DryRun", "{answer:#}");
    let (bytes, freeze) = forecast(&answer)?;
    ensure!(bytes > 256 << 20, "{answer:#}");
    // No disk and no core takes that much in less, and none of today's needs a minute.
    let likely = Duration::from_millis(100)..Duration::from_secs(60);
    ensure!(likely.contains(&freeze), "{answer:#}");

    // An image that one node alone has, then another one under its name on the other.
    const ONLY_HERE: &str = "localhost/only-here:1";
    let ctr = |node: &str, args: &[&str]| {
        cluster.on_node(node, &[&["ctr", "-n", "k8s.io", "images"][..], args].concat())
    };
    ctr("node-a", &["tag", "--force", IMAGE, ONLY_HERE])?;
    let container = server("", &json!({"image": ONLY_HERE}));
    let spec = json!({"nodeName": "node-a", "terminationGracePeriodSeconds": 0, "containers": [container]});
    cluster.apply(&deployment("image", &spec))?;
    let mut of_image = Serving::of(&cluster, "app=image")?;
    let source = of_image.pod.clone();
    // The runtime takes notice of a new name a moment after it was made.
    let image = |words: &str| {
        cluster.await_that(words, PATIENCE, || {
            refused(&cluster, &source, &Value::Null, &[("Image", words)]).map(|()| true)
        })
    };
    image("does not have localhost/only-here:1")?;
    let pause = ctr("node-b", &["ls", "-q"])?;
    let pause = pause.lines().find(|name| name.contains("pause") && !name.contains("sha256"));
    ctr("node-b", &["tag", "--force", pause.context("no pause image")?, ONLY_HERE])?;
    image("is another image on the target")?;
    of_image.is_untouched(&cluster)?;
    ctr("node-b", &["rm", ONLY_HERE])?;
    cluster.kubectl(&["delete", "deployment", "image", "--timeout=60s"])?;
    ctr("node-a", &["rm", ONLY_HERE])?;
    state(&cluster, &pod.name)?;
    Ok(())
}
