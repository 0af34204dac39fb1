//! `place`: where the placement engine would put a pod and why, or what it answers to recorded
//! cases.

mod simulate;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::Outcome;
use crate::connect::Connection;

/// `kubectl transship place`.
#[derive(ClapArgs)]
pub struct Args {
    /// Answer the cases in this file instead (`-` for standard input), one JSON object a line;
    /// needs no cluster.
    #[arg(long, value_name = "FILE")]
    simulate: PathBuf,
}

/// Runs the command. A simulation asks no cluster.
pub async fn run(args: Args, _connection: &Connection) -> Result<Outcome> {
    simulate::run(&args.simulate)
}
