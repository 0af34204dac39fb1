//! The two passes and their answer.

use super::{Filter, Node, Options, Request};

/// Who removed a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// A filter.
    Filter(Filter),
    /// The strategy: what is asked for does not fit.
    Strategy,
}

impl By {
    /// The filter's name, or `strategy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter(filter) => filter.name(),
            Self::Strategy => "strategy",
        }
    }
}

/// What became of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is left out.
    Removed {
        /// Who removed it.
        by: By,
        /// Swarm's sentence for the condition that it does not meet; the same for all nodes that
        /// the condition removed.
        reason: &'a str,
    },
    /// It can be used.
    Ranked {
        /// Swarm's weight; 0 with `random`.
        weight: i64,
        /// 1 for the best; equal nodes share a rank.
        rank: usize,
    },
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Decision {
    order: Vec<Vec<usize>>,
    error: Option<String>,
    soft: bool,
}

impl Decision {
    /// The best node, as its position among the nodes given.
    pub fn best(&self) -> Option<usize> {
        self.order.first()?.first().copied()
    }

    /// Groups of equal nodes, best first, as positions among the nodes given; by name within a
    /// group. Empty if no node can be used.
    pub fn order(&self) -> &[Vec<usize>] {
        &self.order
    }

    /// Swarm's text when no node can be used; it may have several lines.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether soft expressions were enforced: the decision is the first pass's.
    pub fn soft(&self) -> bool {
        self.soft
    }

    /// What became of the node at a position among the nodes given.
    pub fn verdict(&self, _position: usize) -> Verdict<'_> {
        Verdict::Ranked { weight: 0, rank: 1 }
    }
}

/// A request with everything parsed and compiled.
#[derive(Clone, Debug)]
pub struct Prepared {
    _options: Options,
}

/// Parses and compiles a request. A malformed expression is no error here: as in Swarm, it fails
/// the request when its filter's turn comes, so an earlier filter's error wins.
pub fn prepare(_request: &Request, options: &Options) -> Prepared {
    Prepared { _options: options.clone() }
}

impl Prepared {
    /// Decides among nodes with different names.
    pub fn place(&self, _nodes: &[&Node]) -> Decision {
        Decision { order: Vec::new(), error: None, soft: true }
    }
}
