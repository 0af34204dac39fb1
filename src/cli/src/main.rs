//! `kubectl transship`: moves pods and shows what becomes of it, with nothing but a kubeconfig.
//!
//! The plugin only writes and reads the kinds of `transship.dev`; everything it does can be done
//! with `kubectl apply` as well. Objects go to stdout, progress and hints to stderr.
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 124 the wait timed out.

mod cancel;
mod connect;
mod describe;
mod doctor;
mod migrate;
mod nodes;
mod place;
mod progress;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::connect::Connection;

/// Moves running pods between nodes without losing their memory or their connections.
#[derive(Parser)]
#[command(
    name = "kubectl transship",
    bin_name = "kubectl transship",
    version,
    max_term_width = 100
)]
struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Move a pod to another node.
    Migrate(migrate::Args),
    /// Show a migration and its timeline.
    Describe(describe::Args),
    /// Cancel a migration: the pod goes on where it is.
    Cancel(cancel::Args),
    /// Show the nodes that pods can be moved between, and what is under way on them.
    Nodes(nodes::Args),
    /// Show what would stop a migration: of a pod, of a node, or anywhere.
    Doctor(doctor::Args),
    /// Show where the placement engine would put a pod, and why not elsewhere.
    Place(place::Args),
}

/// Why a command ended without success, as an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for is done.
    Done,
    /// It was tried and failed.
    Failed,
    /// It goes on, but the wait is over.
    TimedOut,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        ExitCode::from(match outcome {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::TimedOut => 124,
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Fails only when a provider is installed already, and this is the first line that could.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(args)) {
        Ok(outcome) => outcome.into(),
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    Outcome::Failed.into()
}

async fn run(args: Args) -> anyhow::Result<Outcome> {
    // Asks no cluster.
    if let Command::Place(place::Args { simulate: Some(path), .. }) = &args.command {
        return place::simulate(path);
    }
    let (client, namespace) = args.connection.client().await?;
    match args.command {
        Command::Migrate(args) => migrate::run(args, client, &namespace).await,
        Command::Describe(args) => describe::run(args, client, &namespace).await,
        Command::Cancel(args) => cancel::run(args, client, &namespace).await,
        Command::Nodes(args) => nodes::run(args, client).await,
        Command::Doctor(args) => doctor::run(args, client, &namespace).await,
        Command::Place(args) => place::run(args, client, &namespace).await,
    }
}
