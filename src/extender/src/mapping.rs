//! TEMP until placement::kubernetes is there.
#![allow(missing_docs)]
use k8s_openapi::api::core::v1::{Node as CoreNode, Pod};
use kube::ResourceExt;
use transship_api as api;
use transship_core::placement::{self, Container, Node, Options, Request, prepare};

use crate::state::{Question, State};
use crate::waiting::PodName;

pub fn question(pod: &Pod, _state: &State) -> Result<Question, String> {
    let (cpus, memory) = placement::requests(pod);
    let list = |key: &str| -> Result<Vec<String>, String> {
        match pod.annotations().get(key) {
            None => Ok(vec![]),
            Some(t) => serde_json::from_str(t).map_err(|e| format!("{key}: {e}")),
        }
    };
    let request = Request {
        cpus,
        memory,
        constraints: list(api::names::CONSTRAINTS)?,
        affinities: list(api::names::AFFINITIES)?,
        ..Request::default()
    };
    let strategy = match pod.annotations().get(api::names::STRATEGY).map(String::as_str) {
        Some("binpack") => api::Strategy::Binpack,
        Some("random") => api::Strategy::Random,
        _ => api::Strategy::Spread,
    };
    Ok(Question {
        pod: PodName {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
        },
        container: container(pod),
        request: prepare(&request, &Options { strategy, ..Options::default() }),
        said: said(pod).map(str::to_owned),
    })
}

pub fn said(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled")?;
    scheduled.message.as_deref().filter(|_| scheduled.status == "False")
}

pub fn container(pod: &Pod) -> Container {
    let (cpus, memory) = placement::requests(pod);
    Container {
        id: pod.uid().unwrap_or_default(),
        name: pod.name_any(),
        aliases: vec![format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())],
        labels: pod.labels().clone(),
        images: pod.spec.iter().flat_map(|s| &s.containers).filter_map(|c| c.image.clone()).collect(),
        cpus,
        memory,
        ..Container::default()
    }
}

pub fn node(core: &CoreNode, ours: Option<&api::Node>, overcommit: i64) -> Node {
    let name = core.name_any();
    let mut node = Node::new(name, core.uid().unwrap_or_default());
    node.set_labels(core.labels().clone());
    node.health = ours.and_then(|n| n.status.as_ref()?.health_indicator).unwrap_or(0).into();
    let alloc = core.status.as_ref().and_then(|s| s.allocatable.clone()).unwrap_or_default();
    let cpu: i64 = alloc.get("cpu").and_then(|q| q.0.parse::<i64>().ok()).unwrap_or(0) * 1000;
    let memory =
        alloc.get("memory").and_then(|q| api::quantity::parse_bytes(&q.0).ok()).unwrap_or(0) as i64;
    node.total_cpus = placement::with_overcommit(cpu, overcommit);
    node.total_memory = placement::with_overcommit(memory, overcommit);
    node
}

pub type MigrationPolicy = api::Checkpoint;
