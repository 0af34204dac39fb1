//! What the end-to-end tests, the demo and the benchmarks share: clients that notice every lost,
//! repeated or late reply.
//!
//! The clients speak to a pod over plain TCP and use outside clocks only (a restored process has a
//! time namespace of its own). They decide nothing about success: they report what they saw.

pub mod cluster;
pub mod counter;
pub mod faults;
pub mod line;
pub mod node;
pub mod prober;
pub mod residue;
pub mod simulation;
pub mod stateful;

#[cfg(test)]
mod documentation;
