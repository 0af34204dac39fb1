//! The cluster as a case for `kubectl transship place --simulate`: what the engine says before it is
//! asked through any scheduler.

use std::{collections::BTreeMap, io::Write, process::Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cluster::{Cluster, plugin};

/// A cluster that exists on paper only, made like the real one at one moment.
#[derive(Debug, Clone)]
pub struct Simulation {
    nodes: Vec<Value>,
    placed: usize,
}

impl Simulation {
    /// The real cluster as it is now.
    pub fn of(cluster: &Cluster) -> Result<Simulation> {
        let all = |kind: &str| -> Result<Vec<Value>> {
            let text = cluster.kubectl(&["get", kind, "--all-namespaces", "-o", "json"])?;
            let list: Value = serde_json::from_str(&text)?;
            Ok(list["items"].as_array().cloned().unwrap_or_default())
        };
        let mut nodes = BTreeMap::new();
        for node in all("nodes")? {
            let name = text(&node["metadata"]["name"]);
            let (allocatable, info) = (&node["status"]["allocatable"], &node["status"]["nodeInfo"]);
            let mut labels = json!({"kernelversion": info["kernelVersion"],
                "operatingsystem": info["osImage"], "ostype": info["operatingSystem"],
                "architecture": info["architecture"]});
            for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
                labels[key] = value.clone();
            }
            nodes.insert(
                name.clone(),
                json!({"name": name, "id": node["metadata"]["uid"], "labels": labels,
                    "cpus": millis(&allocatable["cpu"])?, "memory": bytes(&allocatable["memory"])?,
                    "health": 0, "containers": []}),
            );
        }
        for ours in all("nodes.transship.dev")? {
            let Some(node) = nodes.get_mut(&text(&ours["metadata"]["name"])) else { continue };
            node["health"] = ours["status"]["healthIndicator"].clone();
            if let Some(name) = ours["status"]["runtime"]["snapshotter"].as_str() {
                node["labels"]["storagedriver"] = name.into();
            }
            for (key, value) in ours["spec"]["labels"].as_object().into_iter().flatten() {
                node["labels"][key] = value.clone();
            }
        }
        for pod in all("pods")? {
            let Some(node) = nodes.get_mut(&text(&pod["spec"]["nodeName"])) else { continue };
            if let Some(containers) = node["containers"].as_array_mut() {
                containers.push(container(&pod)?);
            }
        }
        Ok(Simulation { nodes: nodes.into_values().collect(), placed: 0 })
    }

    /// Where one more pod goes; it is there from then on. `request`: as in a case, CPUs in
    /// thousandths; `labels` are the pod's.
    pub fn place(&mut self, strategy: &str, request: &Value, labels: &Value) -> Result<String> {
        let case = json!({"id": 1, "strategy": strategy, "nodes": self.nodes, "request": request});
        let mut child = plugin()?
            .args(["place", "--simulate", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        writeln!(child.stdin.take().context("no stdin")?, "{case}")?;
        let output = child.wait_with_output()?;
        let answer: Value = serde_json::from_slice(&output.stdout).context("no answer")?;
        let Some(best) = answer["order"][0][0].as_str() else { bail!("{}", answer["error"]) };
        self.placed += 1;
        let name = format!("simulated-{}", self.placed);
        let node = self.nodes.iter_mut().find(|node| node["name"] == best);
        let containers = node.and_then(|node| node["containers"].as_array_mut());
        containers.context("a node that was not offered")?.push(json!({
            "id": name, "name": name, "labels": labels,
            "cpus": request["cpus"], "memory": request["memory"],
        }));
        Ok(best.to_owned())
    }

    /// How many of `count` equal pods, one after another, go to each node.
    pub fn spread(
        mut self,
        count: usize,
        strategy: &str,
        request: &Value,
        labels: &Value,
    ) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for _ in 0..count {
            *counts.entry(self.place(strategy, request, labels)?).or_default() += 1;
        }
        Ok(counts)
    }
}

/// A pod as a container: finished ones count, and hold nothing.
fn container(pod: &Value) -> Result<Value> {
    let uid = &pod["metadata"]["uid"];
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return Ok(json!({"id": uid}));
    }
    let sum = |amount: fn(&Value) -> Result<i64>, name: &str| -> Result<i64> {
        let containers = pod["spec"]["containers"].as_array();
        containers.into_iter().flatten().map(|c| amount(&c["resources"]["requests"][name])).sum()
    };
    Ok(json!({"id": uid, "name": pod["metadata"]["name"], "labels": pod["metadata"]["labels"],
        "cpus": sum(millis, "cpu")?, "memory": sum(bytes, "memory")?}))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `2`, `0.5` or `250m` in thousandths; nothing is 0.
pub fn millis(quantity: &Value) -> Result<i64> {
    let Some(text) = quantity.as_str() else { return Ok(0) };
    Ok(match text.strip_suffix('m') {
        Some(millis) => millis.parse()?,
        None => (text.parse::<f64>()? * 1000.0) as i64,
    })
}

/// `64Mi` and the like in bytes; nothing is 0.
fn bytes(quantity: &Value) -> Result<i64> {
    let Some(text) = quantity.as_str() else { return Ok(0) };
    let bytes = transship_api::quantity::parse_bytes(text).map_err(anyhow::Error::msg)?;
    Ok(i64::try_from(bytes)?)
}
