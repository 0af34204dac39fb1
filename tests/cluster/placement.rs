//! Pods of the scheduler `transship` go where Docker Swarm would put them. On three nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::{
    cluster::{self, Cluster, Pod, condition},
    simulation::{Simulation, millis},
};

pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SENTENCE: &str = "Unable to find a node that satisfies the following conditions";

/// A namespace on three Ready nodes, whose Swarm labels are taken off again at its end.
pub struct Trial {
    pub cluster: Cluster,
}

impl Trial {
    pub fn new(name: &str) -> Result<Trial> {
        let cluster = Cluster::with_namespace(name)?;
        cluster.await_that("three nodes are healthy", Duration::from_secs(120), || {
            for node in NODES {
                let object = cluster.get("nodes.transship.dev", node)?;
                ensure!(object["status"]["healthIndicator"] == 100, "{node}: {}", object["status"]);
            }
            Ok(true)
        })?;
        Ok(Trial { cluster })
    }

    pub fn label(&self, node: &str, labels: Value) -> Result<()> {
        let patch = json!({"spec": {"labels": labels}}).to_string();
        let patch = ["patch", "nodes.transship.dev", node, "--type=merge", "--patch", &patch];
        self.cluster.kubectl(&patch)?;
        Ok(())
    }

    pub fn labels(&self) -> Result<()> {
        for (node, region, disk) in
            [("node-a", "us-east", "ssd"), ("node-b", "us-west", "hdd"), ("node-c", "eu", "ssd")]
        {
            self.label(node, json!({"region": region, "disk": disk}))?;
        }
        Ok(())
    }

    /// Nodes of all pods with a label, once all of them have one.
    pub fn landed(&self, selector: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        let mut landed = BTreeMap::new();
        self.cluster.await_that(&format!("{count} pods have a node"), PATIENCE, || {
            landed.clear();
            for pod in self.cluster.list("pods", selector)? {
                if let Some(node) = pod["spec"]["nodeName"].as_str() {
                    *landed.entry(node.to_owned()).or_default() += 1;
                }
            }
            Ok(landed.values().sum::<usize>() == count)
        })?;
        Ok(landed)
    }

    /// Deletes these, and waits until no pod of [`template`] is left in the namespace.
    pub fn cleared(&self, what: &[&str]) -> Result<()> {
        self.cluster.kubectl(&[&["delete"], what, &["--timeout=60s"]].concat())?;
        self.cluster.await_that("its pods are gone", PATIENCE, || {
            Ok(self.cluster.list("pods", "placed")?.is_empty())
        })
    }

    /// Messages of a pod's events.
    pub fn events(&self, pod: &str) -> Result<String> {
        let of = format!("--field-selector=involvedObject.name={pod}");
        self.cluster.kubectl(&["get", "events", &of, "-o", "jsonpath={.items[*].message}"])
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        for node in NODES {
            let _ = self.label(node, json!({"region": null, "disk": null, "containerslots": null}));
        }
    }
}

/// A pod that does nothing, with what its annotations say.
pub fn template(app: &str, annotations: Value, cpu: i64) -> Value {
    json!({
        "metadata": {"labels": {"placed": "yes", "app": app}, "annotations": annotations},
        "spec": {
            "schedulerName": "transship",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "localhost/pause:1",
                "resources": {"requests": {"cpu": format!("{cpu}m"), "memory": "8Mi"}}}],
        },
    })
}

/// So many pods of a template.
pub fn deployment(app: &str, replicas: usize, template: &Value) -> String {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": app}},
            "template": template},
    })
    .to_string()
}

/// One pod of a template.
pub fn pod(name: &str, mut template: Value) -> Value {
    template["apiVersion"] = "v1".into();
    template["kind"] = "Pod".into();
    template["metadata"]["name"] = name.into();
    template
}

/// Expressions as an annotation has them.
pub fn list(expressions: &[&str]) -> String {
    json!(expressions).to_string()
}

/// What a pod asks for, as its annotations say it.
fn annotated(wishes: &Value) -> Value {
    let annotation = |(key, wish): (&String, &Value)| {
        let text = wish.as_str().map_or_else(|| wish.to_string(), str::to_owned);
        (format!("transship.dev/{key}"), text)
    };
    wishes.as_object().into_iter().flatten().map(annotation).collect()
}

/// The same as the request of a case.
fn requested(wishes: &Value, cpu: i64) -> Value {
    let whitelist = wishes["whitelist"].as_array().map(|names| {
        let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        [format!("node=={}", names.join("|"))]
    });
    json!({"cpus": cpu, "memory": 8 << 20, "constraints": wishes["constraints"],
        "affinities": wishes["affinities"], "whitelists": whitelist, "links": wishes["depends-on"]})
}

#[test]
fn deployments_land_where_the_simulator_puts_them() -> Result<()> {
    let trial = Trial::new("placement-land")?;
    trial.labels()?;
    // What the extender has not seen yet it cannot obey. This label it sees last.
    let annotations = json!({"transship.dev/constraints": list(&["region==eu"])});
    let mut canary = pod("canary", template("canary", annotations, 10));
    // It stays, for the others to look at.
    canary["metadata"]["labels"] = json!({"app": "canary"});
    trial.cluster.apply(&canary.to_string())?;
    trial.landed("app=canary", 1)?;
    let runtime = trial.cluster.get("nodes.transship.dev", "node-a")?["status"]["runtime"].clone();
    let driver = runtime["snapshotter"].as_str().context("the agent reports no snapshotter")?;
    let info = trial.cluster.get("node", "node-a")?["status"]["nodeInfo"].clone();
    let architecture = info["architecture"].as_str().context("kubelet reports no architecture")?;
    let reported = [
        format!("storagedriver=={driver}"),
        format!("architecture=={architecture}"),
        "ostype==linux".to_owned(),
        // Whatever it is.
        "operatingsystem==/./".to_owned(),
        "kernelversion==/./".to_owned(),
        "region!=eu".to_owned(),
    ];
    for (app, cpu, wishes) in [
        ("spread", 50, json!({"strategy": "spread"})),
        ("packed", 50, json!({"strategy": "binpack"})),
        ("counted", 0, json!({})),
        ("american", 50, json!({"constraints": ["region==us*"]})),
        ("fast", 50, json!({"strategy": "binpack", "constraints": ["disk==ssd", "node!=node-a"]})),
        ("preferred", 50, json!({"constraints": ["region==~eu"]})),
        ("reported", 50, json!({"constraints": reported})),
        ("alone", 50, json!({"affinities": ["app!=alone"]})),
        ("apart", 50, json!({"affinities": ["container!=can*"]})),
        ("dependent", 50, json!({"depends-on": ["canary"]})),
        ("listed", 50, json!({"whitelist": ["node-a", "node-c"]})),
    ] {
        // Without room for a second pod per node there would be no fourth.
        let replicas = if app == "alone" { 3 } else { 6 };
        let template = template(app, annotated(&wishes), cpu);
        let strategy = wishes["strategy"].as_str().unwrap_or("spread");
        let (request, labels) = (requested(&wishes, cpu), &template["metadata"]["labels"]);
        let expected =
            Simulation::of(&trial.cluster)?.spread(replicas, strategy, &request, labels)?;
        trial.cluster.apply(&deployment(app, replicas, &template))?;
        let landed = trial.landed(&format!("app={app}"), replicas)?;
        ensure!(landed == expected, "{app}: landed on {landed:?}, simulated {expected:?}");
        trial.cleared(&["deployment", app])?;
    }
    Ok(())
}

#[test]
fn a_burst_of_pods_is_placed_as_one_after_another() -> Result<()> {
    const PODS: usize = 30;
    let trial = Trial::new("placement-burst")?;
    for strategy in ["spread", "binpack"] {
        let mut template = template(strategy, json!({"transship.dev/strategy": strategy}), 10);
        // kubelet has nothing to start: what counts is where they go.
        template["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "missing", "mountPath": "/missing"}]);
        template["spec"]["volumes"] =
            json!([{"name": "missing", "configMap": {"name": "missing"}}]);
        let request = json!({"cpus": 10, "memory": 8 << 20});
        let labels = &template["metadata"]["labels"];
        let expected = Simulation::of(&trial.cluster)?.spread(PODS, strategy, &request, labels)?;
        // The ReplicaSet's controller makes one, then two at once, then four, and so on.
        trial.cluster.apply(&deployment(strategy, PODS, &template))?;
        let landed = trial.landed(&format!("app={strategy}"), PODS)?;
        ensure!(landed == expected, "{strategy}: landed on {landed:?}, simulated {expected:?}");
        trial.cleared(&["deployment", strategy])?;
    }
    Ok(())
}

#[test]
fn a_pod_that_no_node_suits_waits_with_swarms_sentence_until_one_does() -> Result<()> {
    let trial = Trial::new("placement-wait")?;
    trial.labels()?;
    let constraints = ["node!=node-b", "region==mars"];
    let annotations = json!({"transship.dev/constraints": list(&constraints)});
    trial.cluster.apply(&pod("martian", template("martian", annotations, 10)).to_string())?;
    // One node for the first, and the other two for the second.
    let [one, two] = constraints.map(|constraint| {
        format!("{SENTENCE}: unable to find a node that satisfies the constraint {constraint}")
    });
    let reasons = format!("0/3 nodes are available: 1 {one}, 2 {two}.");
    trial.cluster.await_that("its events say why it waits", PATIENCE, || {
        Ok(trial.events("martian")?.contains(&reasons))
    })?;
    let (table, whole) = plugin(&["place", "martian", "--namespace", &trial.cluster.namespace])?;
    for node in NODES {
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|cells| cells.first() == Some(&node)).unwrap_or_default();
        let lacking = constraints[usize::from(node != "node-b")];
        let removed = row.get(3) == Some(&"constraint") && row.last() == Some(&lacking);
        ensure!(removed, "{node} in {table}");
    }
    let asked = format!("\n[{}]", constraints.join(" "));
    ensure!(whole.contains(SENTENCE) && whole.contains(&asked), "{whole}");
    let waiting = trial.cluster.get("pod", "martian")?;
    ensure!(waiting["spec"]["nodeName"].is_null(), "{}", waiting["spec"]["nodeName"]);
    trial.label("node-c", json!({"region": "mars"}))?;
    let began = Instant::now();
    let landed = trial.landed("app=martian", 1)?;
    ensure!(landed.keys().eq(["node-c"]), "landed on {landed:?}");
    // kube-scheduler by itself would try again after five minutes.
    eprintln!("the node came up and {:.1} s later the pod had it", began.elapsed().as_secs_f64());
    trial.cleared(&["pods", "--all", "--now"])
}

#[test]
fn pods_follow_a_volume_that_one_node_alone_can_mount() -> Result<()> {
    let trial = Trial::new("placement-volume")?;
    let volume = "placement-volume-test";
    trial.cluster.kubectl(&["delete", "pv", volume, "--ignore-not-found"])?;
    let modes = ["ReadWriteOnce"];
    let storage = json!({"storage": "1Mi"});
    let objects = [
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
            "spec": {"accessModes": modes, "capacity": storage, "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": "/run/placement-volume-test", "type": "DirectoryOrCreate"}}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
            "spec": {"accessModes": modes, "resources": {"requests": storage},
                "storageClassName": "", "volumeName": volume}}),
    ];
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    trial.cluster.apply(&objects.to_string())?;
    let user = |app: &str, node: Option<&str>| {
        let constraints: Vec<String> =
            node.map(|node| format!("node=={node}")).into_iter().collect();
        let annotations = json!({"transship.dev/constraints": json!(constraints).to_string()});
        let mut template = template(app, annotations, 10);
        template["spec"]["volumes"] =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        template
    };
    trial.cluster.apply(&deployment("holder", 1, &user("holder", Some("node-c"))))?;
    trial.landed("app=holder", 1)?;
    trial.cluster.rolled_out("holder")?;
    // Spread would take a node with fewer pods for most of them.
    trial.cluster.apply(&deployment("guest", 4, &user("guest", None)))?;
    let landed = trial.landed("app=guest", 4)?;
    ensure!(landed.keys().eq(["node-c"]), "landed on {landed:?}");
    trial.cluster.apply(&pod("stray", user("stray", Some("node-b"))).to_string())?;
    let named = format!("--volumes-from={}/data", trial.cluster.namespace);
    let names_it = |text: &str| text.contains(&named);
    trial.cluster.await_that("its events name the volume", PATIENCE, || {
        Ok(names_it(&trial.events("stray")?))
    })?;
    // Nor does a migration take a pod away from the others' volume.
    let holder = trial.cluster.pod("app=holder")?;
    trial.cluster.apply(&format!(
        "apiVersion: transship.dev/v1alpha1\nkind: Migration\nmetadata: {{name: away}}\n\
         spec: {{podName: {}}}\n",
        holder.name
    ))?;
    trial.cluster.await_that("the Migration names the volume", PATIENCE, || {
        Ok(names_it(&trial.cluster.get("migration", "away")?["status"].to_string()))
    })?;
    // Once nobody uses it any more it may be used anywhere.
    trial.cluster.kubectl(&["delete", "deployment", "holder", "guest", "--timeout=60s"])?;
    let landed = trial.landed("app=stray", 1)?;
    ensure!(landed.keys().eq(["node-b"]), "landed on {landed:?}");
    trial.cleared(&["pods", "--all", "--now"])?;
    trial.cluster.kubectl(&["delete", "pvc", "data", "--timeout=60s"])?;
    trial.cluster.kubectl(&["delete", "pv", volume, "--timeout=60s"])?;
    Ok(())
}

/// What `kubectl transship` prints, to its two outputs.
pub fn plugin(args: &[&str]) -> Result<(String, String)> {
    let output = cluster::plugin()?.args(args).output()?;
    Ok((String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// Ends the two programs of one pod at once; the control plane has a kube-scheduler as well.
const KILL: &str = "for p in $(pgrep -x 'kube-scheduler|transship-opera'); do \
    grep -q podUID /proc/$p/cgroup && kill -KILL $p && echo $p; done; true";

#[test]
fn scheduling_goes_on_when_both_leaders_are_killed() -> Result<()> {
    let trial = Trial::new("placement-leader")?;
    let system = Cluster::running("transship-system")?;
    let are_two = || -> Result<()> {
        system.rolled_out("transship-operator")?;
        let status = system.get("deployment", "transship-operator")?["status"].clone();
        ensure!(status["readyReplicas"] == 2, "{status}");
        Ok(())
    };
    are_two()?;
    let holder = |lease: &str| -> Result<String> {
        let lease = system.get("lease", lease)?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        // kube-scheduler adds something random to the pod's name.
        Ok(holder.split('_').next().unwrap_or_default().to_owned())
    };
    let leaders = || -> Result<[String; 2]> {
        Ok([holder("transship-scheduler")?, holder("transship-operator")?])
    };
    let before = leaders()?;
    for name in BTreeSet::from(before.each_ref()) {
        let pod = Pod::of(&system.get("pod", name)?);
        // kubelet asks what it deletes to end, and whoever is asked gives the lead away.
        let killed = system.on_node(&pod.node, &["sh", "-c", &KILL.replace("UID", &pod.uid)])?;
        ensure!(killed.lines().count() == 2, "killed {killed:?} of {name}");
        system.kubectl(&["delete", "pod", name, "--force", "--grace-period=0"])?;
    }
    let began = Instant::now();
    trial.cluster.apply(&deployment("during", 6, &template("during", json!({}), 10)))?;
    trial.cluster.await_that("six pods are there, and nobody to place them", PATIENCE, || {
        let pods = trial.cluster.list("pods", "app=during")?;
        let all_wait = pods.iter().all(|pod| pod["spec"]["nodeName"].is_null());
        Ok(pods.len() == 6 && all_wait && leaders()?[0] == before[0])
    })?;
    trial.cluster.await_that("others lead", PATIENCE, || {
        let now = leaders()?;
        Ok(now.iter().zip(&before).all(|(now, before)| !now.is_empty() && now != before))
    })?;
    eprintln!("others lead {:.1} s after the kill", began.elapsed().as_secs_f64());
    // They count as well.
    trial.cluster.await_that("two operators have a node", PATIENCE, || {
        let pods = system.list("pods", "app.kubernetes.io/component=operator")?;
        Ok(pods.len() == 2 && pods.iter().all(|pod| pod["spec"]["nodeName"].is_string()))
    })?;
    trial.landed("app=during", 6)?;
    let template = template("after", json!({}), 10);
    let request = json!({"cpus": 10, "memory": 8 << 20});
    let labels = &template["metadata"]["labels"];
    let expected = Simulation::of(&trial.cluster)?.spread(6, "spread", &request, labels)?;
    trial.cluster.apply(&deployment("after", 6, &template))?;
    let landed = trial.landed("app=after", 6)?;
    ensure!(landed == expected, "landed on {landed:?}, simulated {expected:?}");
    trial.cleared(&["deployment", "during", "after"])?;
    are_two()
}

#[test]
fn no_pod_is_ended_for_a_node_that_is_refused() -> Result<()> {
    let trial = Trial::new("placement-preemption")?;
    let class = "placement-preemption-test";
    trial.cluster.kubectl(&["delete", "priorityclass", class, "--ignore-not-found"])?;
    trial.cluster.kubectl(&["create", "priorityclass", class, "--value=1000000"])?;
    // Nobody else fits beside these.
    let cpu = trial.cluster.get("node", "node-a")?["status"]["allocatable"]["cpu"].clone();
    let more_than_half = millis(&cpu)? * 55 / 100;
    for node in NODES {
        let annotations = json!({"transship.dev/constraints": list(&[&format!("node=={node}")])});
        let pod = pod(&format!("humble-{node}"), template("humble", annotations, more_than_half));
        trial.cluster.apply(&pod.to_string())?;
    }
    trial.landed("app=humble", 3)?;
    let uids = || -> Result<Vec<String>> {
        let pods = trial.cluster.list("pods", "app=humble")?;
        Ok(pods.iter().map(|pod| Pod::of(pod).uid).collect())
    };
    let before = uids()?;
    let annotations = json!({"transship.dev/constraints": list(&["node==nowhere"])});
    let mut proud = pod("proud", template("proud", annotations, more_than_half));
    proud["spec"]["priorityClassName"] = class.into();
    trial.cluster.apply(&proud.to_string())?;
    // Its scheduler looks for pods to end before it says that no node suits it, and says both in one write: the
    // node on which it has chosen some is nominated.
    let mut refused = Value::Null;
    trial.cluster.await_that("it was refused", PATIENCE, || {
        refused = trial.cluster.get("pod", "proud")?;
        Ok(condition(&refused, "PodScheduled").0 == "False")
    })?;
    ensure!(refused["status"]["nominatedNodeName"].is_null(), "{}", refused["status"]);
    ensure!(uids()? == before, "pods were ended");
    trial.cleared(&["pods", "--all", "--now"])?;
    trial.cluster.kubectl(&["delete", "priorityclass", class])?;
    Ok(())
}
