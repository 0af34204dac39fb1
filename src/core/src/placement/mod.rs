//! Where a container or pod goes: Docker Swarm classic's filters and strategies, with its exact
//! arithmetic and its texts, and what Kubernetes asks for besides.
//!
//! ```text
//! Request ── prepare ──▶ Prepared ── place(nodes) ──▶ Decision
//!            (parses, compiles)      (filters, ranks)    (order, or Swarm's error;
//!                                                         for each node why not, or its weight)
//! ```
//!
//! [`prepare`] is called once per request, [`Prepared::place`] once per set of nodes; nothing is
//! parsed or compiled per node. A [`Node`] keeps its sums and indexes up to date while containers
//! come and go. Whoever keeps an index over all nodes besides tells [`Prepared::place_among`] on which
//! of them containers may be looked for by the beginnings of their words.
//!
//! The engine knows nothing of Kubernetes: [`kubernetes`] makes its nodes and requests from pods
//! and cluster nodes, [`simulate`] from recorded cases. [`cluster`] adds the checks that
//! Kubernetes' own scheduler would make, and chooses targets of migrations.
//!
//! **Equal nodes.** Swarm leaves the order of nodes that are equal in weight and number of
//! containers to its sort. Here they are ordered by name. The strategy `random` draws from a seed,
//! so that the same seed, request and set of nodes give the same order.

mod annotations;
pub mod cluster;
mod decision;
mod dialect;
mod expression;
mod filters;
pub mod kubernetes;
mod lines;
mod load;
mod model;
mod pattern;
pub mod policy;
mod resources;
pub mod simulate;
mod strategy;
mod symbol;
pub mod volumes;
mod words;

pub use annotations::{Malformed, validate_annotations, validate_placement};
pub use cluster::{Candidate, Choice, Fate, choose, looks_at_pods, objection};
pub use decision::{By, Decision, Prepared, Verdict, prepare};
pub use expression::ExpressionError;
pub use filters::Filter;
pub use load::{HostPort, Load, NO_LOAD, Pending, under_way};
pub use model::{
    Container, Image, Labels, Network, Node, PortBinding, Request, health_indicator,
    with_overcommit,
};
pub use resources::Allocatable;
pub use strategy::{Options, strategy_named};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
