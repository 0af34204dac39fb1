//! Swarm's filters: each turns a request into conditions that a node meets or not.

mod affinity;
mod constraint;
mod dependency;
mod port;
mod whitelist;

use super::expression::{Expression, ExpressionError};
use super::model::{Node, PortBinding, Request};
use super::symbol::{Answers, Symbol};

/// A filter, by Swarm's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The node is healthy.
    Health,
    /// The ports that are asked for are free.
    Port,
    /// The node's label `containerslots` allows one more container.
    ContainerSlots,
    /// The containers that are linked to are on the node.
    Dependency,
    /// What is on the node matches.
    Affinity,
    /// The node's name or labels match.
    Constraint,
    /// The node is one of those listed.
    Whitelist,
}

impl Filter {
    /// All filters, in the order in which Swarm runs them.
    pub const ALL: [Self; 7] = [
        Self::Health,
        Self::Port,
        Self::ContainerSlots,
        Self::Dependency,
        Self::Affinity,
        Self::Constraint,
        Self::Whitelist,
    ];

    /// Swarm's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Port => "port",
            Self::ContainerSlots => "containerslots",
            Self::Dependency => "dependency",
            Self::Affinity => "affinity",
            Self::Constraint => "constraint",
            Self::Whitelist => "whitelist",
        }
    }

    /// The filter of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.name() == name)
    }

    /// What the filter makes of a request.
    pub(super) fn compile(self, request: &Request) -> Compiled {
        match self {
            Self::Health => Compiled {
                conditions: vec![Condition::hard(Test::Healthy, NO_HEALTHY_NODE)],
                listing: Ok(Vec::new()),
            },
            Self::Port => port::compile(request),
            Self::ContainerSlots => Compiled {
                conditions: vec![Condition::hard(Test::FreeSlot, NO_SLOT)],
                listing: Ok(vec!["available container slots".to_owned()]),
            },
            Self::Dependency => dependency::compile(request),
            Self::Affinity => affinity::compile(request),
            Self::Constraint => constraint::compile(request),
            Self::Whitelist => whitelist::compile(request),
        }
    }
}

/// Also the error of a request for which no node is healthy.
pub(super) const NO_HEALTHY_NODE: &str = "No healthy node available in the cluster";
const NO_SLOT: &str = "No node with enough open slots available in the cluster";

/// A filter's share of a request.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    /// Applied one by one; the filter fails when one leaves no node.
    pub(super) conditions: Vec<Condition>,
    /// What Swarm lists in its answer when this filter or a later one fails.
    pub(super) listing: Result<Vec<String>, ExpressionError>,
}

impl Compiled {
    /// Conditions from expressions. One that is malformed fails the filter as a whole.
    fn from_expressions(
        expressions: &[String],
        condition: impl Fn(Expression) -> Condition,
        listed: impl Fn(&Expression) -> String,
    ) -> Self {
        match Expression::parse_all(expressions) {
            Ok(parsed) => Self {
                listing: Ok(parsed.iter().map(listed).collect()),
                conditions: parsed.into_iter().map(condition).collect(),
            },
            Err(error) => Self {
                conditions: vec![Condition::hard(Test::Malformed, error.to_string())],
                listing: Err(error),
            },
        }
    }
}

/// As Swarm lists affinities and whitelists.
fn listed_with_softness(expression: &Expression) -> String {
    format!("{expression} (soft={})", expression.soft)
}

/// Something that a node has to meet.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    /// Preferred only: not looked at in the second pass.
    pub(super) soft: bool,
    pub(super) test: Test,
    /// Swarm's sentence when no node meets it.
    pub(super) reason: String,
}

impl Condition {
    fn hard(test: Test, reason: impl Into<String>) -> Self {
        Self { soft: false, test, reason: reason.into() }
    }
}

/// How a node is tested.
#[derive(Clone, Debug)]
pub(super) enum Test {
    Healthy,
    FreeSlot,
    /// Nothing on the node binds what clashes with it.
    PortUnbound(PortBinding),
    /// Nothing in the host's network exposes it.
    PortNotExposed(String),
    /// This container is on the node.
    Container(String),
    /// A container on the node mounts this volume; not asked where none does anywhere.
    Mounted(String),
    ContainerWords(Expression),
    ImageWords(Expression),
    ContainerLabel(Expression),
    NodeName(Expression),
    NodeLabel(Expression),
    /// The node's name is one of these.
    Listed(Vec<String>),
    /// No node meets what cannot be read.
    Malformed,
}

impl Test {
    /// How words of containers begin that matter, one of these; none if any word may matter, or none
    /// does.
    pub(super) fn beginnings(&self) -> Option<Vec<&[u8]>> {
        match self {
            Self::Container(name) => Some(vec![name.as_bytes()]),
            Self::ContainerWords(expression) => expression.beginnings(),
            _ => None,
        }
    }

    /// `begins`: whether a word on the node may begin so. `answers`: those that this test gave for other
    /// nodes.
    pub(super) fn admits(&self, node: &Node, begins: bool, answers: &mut Answers) -> bool {
        match self {
            Self::Healthy => node.health > 0,
            Self::FreeSlot => node.has_free_slot(),
            Self::PortUnbound(binding) => !node.binds(binding),
            Self::PortNotExposed(port) => !node.exposes(port),
            Self::Container(name) => (begins || node.may_hide(name)) && node.has_container(name),
            Self::Mounted(claim) => node.mounts(claim),
            Self::ContainerWords(expression) => match begins {
                true => expression.holds_for_words(node.container_names(), node.container_hex()),
                false => expression.holds([].into_iter()),
            },
            Self::ImageWords(expression) => expression.holds_for_lists(node.images(), answers),
            Self::ContainerLabel(expression) => {
                expression.holds_for_symbols(node.container_label(&expression.key), answers)
            }
            Self::NodeName(expression) => {
                expression.holds([node.id.as_str(), node.name.as_str()].into_iter())
            }
            Self::NodeLabel(expression) => {
                let value = answers.value(node.labels(), &expression.key);
                // A label that is not there counts as empty.
                let value = value.unwrap_or(Symbol::empty());
                expression.holds_for_symbols([value].into_iter(), answers)
            }
            Self::Listed(names) => names.contains(&node.name),
            Self::Malformed => false,
        }
    }
}
