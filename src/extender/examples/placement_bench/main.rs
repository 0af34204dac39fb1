//! How long one pod takes through `filter` and `prioritize`, over HTTP, among thousands of nodes
//! with many pods: `cargo xtask bench placement`.
//!
//! The server is a process of its own on one core (so that its memory is its own) and the client on
//! another. Beside each question goes the same exchange without a decision: same request, as many nodes
//! back, as many scores back. The difference is what deciding costs, and telling why not.

#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement that may stop at once")]

mod client;
mod objects;
mod serve;

use clap::{Parser, Subcommand};

/// Header with the number of nodes that the last pod of the kind had left: what the exchange without a
/// decision gives back.
pub const LEFT: &str = "nodes-left";

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure.
    Run(Size),
    /// Be the server (started by `run`).
    #[command(hide = true)]
    Serve(Size),
}

/// What is measured.
#[derive(clap::Args, Clone, Copy)]
pub struct Size {
    /// Nodes.
    #[arg(long, default_value_t = 5000)]
    pub nodes: usize,
    /// Pods that are there.
    #[arg(long, default_value_t = 100_000)]
    pub pods: usize,
    /// Pods that are placed, for each kind of pod.
    #[arg(long, default_value_t = 500)]
    pub requests: usize,
}

fn main() {
    match Args::parse().command {
        Command::Run(size) => client::run(size),
        Command::Serve(size) => serve::run(size),
    }
}

/// Keeps this process on one core of those it may use, counted from the last.
pub fn pin(from_last: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let may = sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| may.is_set(*core)).collect();
    let mut one = CpuSet::new();
    one.set(cores[cores.len() - 1 - from_last % cores.len()]);
    sched_setaffinity(None, &one).unwrap();
}
