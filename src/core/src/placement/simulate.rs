//! Recorded cases: a small cluster, a request and the settings, as one JSON object, and the engine's
//! answer to it as another. `docs/placement.md` describes the format.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{
    Container, Filter, Image, Network, Node, Options, PortBinding, Request, prepare,
    with_overcommit,
};

/// The answer to a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The case's.
    pub id: Value,
    /// What was decided.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Names of the nodes in groups of equals, best first.
    Order(Vec<Vec<String>>),
    /// Swarm's text.
    Error(String),
}

/// Why a case cannot be read: `field: what is wrong with it`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// It is no JSON.
    #[error("{0}")]
    Syntax(String),
    /// A field is not what it should be.
    #[error("{field}: {message}")]
    Field {
        /// Path such as `nodes[1].cpus`.
        field: String,
        /// What is wrong.
        message: String,
    },
}

impl CaseError {
    fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field { field: field.into(), message: message.into() }
    }
}

/// Answers one case.
pub fn answer(case: &str) -> Result<Answer, CaseError> {
    let case = read(case)?;
    let options = case.options()?;
    let percent = case.overcommit_percent()?;
    let mut names = BTreeMap::new();
    for (index, node) in case.nodes.iter().enumerate() {
        if let Some(other) = names.insert(&node.name, index) {
            let message = format!("nodes[{other}] has the name {:?} already", node.name);
            return Err(CaseError::field(format!("nodes[{index}].name"), message));
        }
    }
    let nodes: Vec<Node> = case.nodes.iter().map(|node| node.to_model(percent)).collect();
    let nodes: Vec<&Node> = nodes.iter().collect();
    let decision = prepare(&case.request.to_model(), &options).place(&nodes);
    let name = |position: usize| nodes[position].name.clone();
    let outcome = match decision.error() {
        Some(error) => Outcome::Error(error.to_owned()),
        None => {
            Outcome::Order(decision.order().map(|g| g.into_iter().map(name).collect()).collect())
        }
    };
    Ok(Answer { id: case.id, outcome })
}

fn read(case: &str) -> Result<Case, CaseError> {
    let mut reader = serde_json::Deserializer::from_str(case);
    let read: Case = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let inner = error.into_inner();
        match inner.is_data() && field != "." {
            true => CaseError::field(field, inner.to_string()),
            false => CaseError::Syntax(inner.to_string()),
        }
    })?;
    reader.end().map_err(|error| CaseError::Syntax(error.to_string()))?;
    Ok(read)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a case")]
struct Case {
    id: Value,
    strategy: String,
    /// In the order in which they run; without it, all in Swarm's order.
    #[serde(default)]
    filters: Option<Vec<String>>,
    nodes: Vec<CaseNode>,
    request: CaseRequest,
    /// What `random` draws from.
    #[serde(default)]
    seed: u64,
    /// Swarm's `swarm.overcommit`, such as 0.05.
    #[serde(default)]
    overcommit: f64,
    /// What somebody else decided: not looked at.
    #[serde(default, rename = "expect")]
    _expect: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a node")]
struct CaseNode {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    cpus: i64,
    memory: i64,
    health: i64,
    #[serde(default, deserialize_with = "or_default")]
    images: Vec<CaseImage>,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<CaseContainer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an image")]
struct CaseImage {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    tags: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", expecting = "a container")]
struct CaseContainer {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    /// Swarm looks at the node's images alone.
    #[serde(default, rename = "image")]
    _image: Option<String>,
    #[serde(default)]
    cpus: i64,
    #[serde(default)]
    memory: i64,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    network: String,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<CasePort>,
    #[serde(default, deserialize_with = "or_default")]
    exposed: Vec<String>,
    /// Stopped containers keep what they have.
    #[serde(default, rename = "running")]
    _running: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", expecting = "a port")]
struct CasePort {
    #[serde(default, deserialize_with = "or_default")]
    host_ip: String,
    #[serde(default, deserialize_with = "or_default")]
    host_port: String,
    /// Swarm compares the host's side alone.
    #[serde(default, rename = "containerPort")]
    _container_port: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", expecting = "a request")]
struct CaseRequest {
    /// The new container's own name, image and labels decide nothing.
    #[serde(default, rename = "name")]
    _name: Option<String>,
    #[serde(default, rename = "image")]
    _image: Option<String>,
    #[serde(default, rename = "labels")]
    _labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    cpus: i64,
    #[serde(default)]
    memory: i64,
    #[serde(default, deserialize_with = "or_default")]
    constraints: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    affinities: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    whitelists: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    network: String,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<CasePort>,
    #[serde(default, deserialize_with = "or_default")]
    exposed: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    volumes_from: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    links: Vec<String>,
}

/// `null` stands for nothing.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Case {
    fn options(&self) -> Result<Options, CaseError> {
        let strategy = super::strategy_named(&self.strategy).ok_or_else(|| {
            let message =
                format!("unknown strategy {:?}; write spread, binpack or random", self.strategy);
            CaseError::field("strategy", message)
        })?;
        let filters = match &self.filters {
            None => Filter::ALL.to_vec(),
            Some(names) => names.iter().enumerate().map(filter).collect::<Result<_, _>>()?,
        };
        Ok(Options { strategy, filters, seed: self.seed, ..Options::default() })
    }

    /// Whole percents, as Swarm cuts them off.
    fn overcommit_percent(&self) -> Result<i64, CaseError> {
        if self.overcommit <= -1.0 {
            return Err(CaseError::field("overcommit", "write a number above -1, such as 0.05"));
        }
        Ok((self.overcommit * 100.0) as i64)
    }
}

fn filter((index, name): (usize, &String)) -> Result<Filter, CaseError> {
    Filter::named(name).ok_or_else(|| {
        let known = Filter::ALL.map(Filter::name).join(", ");
        let message = format!("unknown filter {name:?}; write some of {known}");
        CaseError::field(format!("filters[{index}]"), message)
    })
}

impl CaseNode {
    fn to_model(&self, overcommit_percent: i64) -> Node {
        let mut node = Node::new(&self.name, &self.id);
        node.total_cpus = with_overcommit(self.cpus, overcommit_percent);
        node.total_memory = with_overcommit(self.memory, overcommit_percent);
        node.health = self.health;
        node.set_labels(self.labels.clone());
        let images = self.images.iter();
        let images: Vec<Image> =
            images.map(|i| Image { id: i.id.clone(), tags: i.tags.clone() }).collect();
        node.set_images(&images);
        self.containers.iter().for_each(|container| node.add(container.to_model()));
        node
    }
}

impl CaseContainer {
    fn to_model(&self) -> Container {
        Container {
            id: self.id.clone(),
            name: self.name.clone(),
            labels: self.labels.clone().into(),
            cpus: self.cpus,
            memory: self.memory,
            host_network: network(&self.network) == Network::Host,
            ports: ports(&self.ports),
            exposed: self.exposed.clone(),
            ..Container::default()
        }
    }
}

impl CaseRequest {
    fn to_model(&self) -> Request {
        Request {
            cpus: self.cpus,
            memory: self.memory,
            constraints: self.constraints.clone(),
            affinities: self.affinities.clone(),
            whitelists: self.whitelists.clone(),
            network: network(&self.network),
            ports: ports(&self.ports),
            exposed: self.exposed.clone(),
            volumes_from: self.volumes_from.clone(),
            links: self.links.clone(),
            claims: vec![],
        }
    }
}

/// `host`, `container:NAME`, or whatever else, which has ports of its own.
fn network(name: &str) -> Network {
    match name.strip_prefix("container:") {
        Some(container) => Network::Container(container.to_owned()),
        None if name == "host" => Network::Host,
        None => Network::Bridge,
    }
}

fn ports(ports: &[CasePort]) -> Vec<PortBinding> {
    let binding =
        |p: &CasePort| PortBinding { host_ip: p.host_ip.clone(), host_port: p.host_port.clone() };
    ports.iter().map(binding).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn case() -> Value {
        json!({
            "id": "a", "strategy": "spread",
            "nodes": [{"name": "n", "id": "i", "labels": null, "cpus": 2, "memory": 100, "health": 100,
                "images": null, "containers": [{"id": "c", "ports": [{"hostPort": "80"}]}]}],
            "request": {"constraints": null, "ports": null},
            "expect": {"whatever": 1}
        })
    }

    #[test]
    fn a_case_is_answered_in_one_line() {
        let answer = answer(&case().to_string()).unwrap();
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"id":"a","order":[["n"]]}"#);
    }

    #[test]
    fn random_draws_the_same_from_the_same_seed_alone() {
        let nodes: Vec<Value> = (0..20)
            .map(|n| json!({"name": format!("n{n:02}"), "cpus": 1, "memory": 1, "health": 100}))
            .collect();
        let drawn = |seed: u64| {
            let case = json!({"id": 1, "strategy": "random", "seed": seed, "nodes": nodes,
                "request": {}});
            answer(&case.to_string()).unwrap().outcome
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn overcommit_makes_room_by_whole_percents() {
        let of = |memory: i64| {
            let mut case = case();
            case["overcommit"] = json!(0.05);
            case["request"]["memory"] = memory.into();
            answer(&case.to_string()).unwrap().outcome
        };
        // The node has 100.
        assert_eq!(of(105), Outcome::Order(vec![vec!["n".into()]]));
        let full = "no resources available to schedule container";
        assert_eq!(of(106), Outcome::Error(full.into()));
    }

    #[rstest]
    #[case("/strategy", json!("sprad"), r#"strategy: unknown strategy "sprad"; write spread, binpack or random"#)]
    #[case("/filters", json!(["health", "x"]), r#"filters[1]: unknown filter "x"; write some of health, port, containerslots, dependency, affinity, constraint, whitelist"#)]
    #[case("/overcommit", json!(-1), "overcommit: write a number above -1, such as 0.05")]
    #[case("/nodes/0/cpus", json!("2"), r#"nodes[0].cpus: invalid type: string "2", expected i64"#)]
    #[case("/nodes/0/containers/0/ports/0/hostPort", json!(80), "nodes[0].containers[0].ports[0].hostPort: invalid type: integer `80`, expected a string")]
    #[case("/request/constraint", json!([]), "request.constraint: unknown field `constraint`")]
    #[case("/nodes/1", case()["nodes"][0].clone(), r#"nodes[1].name: nodes[0] has the name "n" already"#)]
    fn what_is_wrong_with_a_case_is_told_with_the_field(
        #[case] field: &str,
        #[case] value: Value,
        #[case] message: &str,
    ) {
        let mut case = case();
        let (parent, key) = field.rsplit_once('/').unwrap();
        match case.pointer_mut(parent).unwrap() {
            Value::Array(items) => items.push(value),
            parent => parent[key] = value,
        }
        let error = answer(&case.to_string()).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[rstest]
    #[case("{", "EOF while parsing an object")]
    #[case("[]", "expected a case")]
    #[case("{} {}", "missing field `id`")]
    #[case(r#"{"id": 1}"#, "missing field `strategy`")]
    fn what_is_no_case_is_told(#[case] text: &str, #[case] message: &str) {
        let error = answer(text).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
