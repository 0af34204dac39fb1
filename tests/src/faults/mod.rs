//! Faults in the course of a migration: what is done to the cluster, when, and the invariants that
//! must hold whatever it was.
//!
//! A [`Cell`](cell::Cell) is one fault at one moment with the outcomes that are right for it; all of
//! them are run and judged by the same code.

pub mod cell;
pub mod chart;
pub mod disk;
pub mod driver;
pub mod fault;
mod gate;
pub mod history;
pub mod judge;
pub mod link;
pub mod locks;
pub mod moment;
pub mod nodes;
pub mod order;
pub mod outcome;
pub mod probe;
pub mod sentry;
pub mod stage;
mod stopwatch;
pub mod table;
pub mod truth;
pub mod user;
pub mod version;

pub use gate::Gate;
