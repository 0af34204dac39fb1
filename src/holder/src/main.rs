//! `transship-holder`: freezes, moves, holds and thaws the containers of one pod, on the host and
//! outside of any pod, so that nothing that happens to the agent can disturb it.

mod areas;
mod beside;
mod connections;
mod control;
mod deadman;
mod decision;
mod dirwatch;
mod durable;
mod engine;
mod holder;
mod hook;
mod http;
mod leftovers;
mod logs;
mod names;
mod pod;
mod reading;
mod record;
mod report;
mod reserve;
mod run;
mod signing;
mod source;
mod started;
mod status;
mod supervise;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use transship_host::HostRoot;
use transship_host::paths::MigrationDir;

#[derive(Parser)]
#[command(version, about = "Keeps the containers of a pod that moves between two nodes")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep a holder running for every migration of this node that is not finished
    Supervise,
    /// Be the holder of one migration
    Run {
        /// The migration's directory
        dir: PathBuf,
    },
    /// Show the migrations that this node has a part in
    Status,
    /// Put a container's files into its root; called by the runtime's wrapper
    Fill {
        /// The migration's directory
        dir: PathBuf,
        /// The container
        container: String,
        /// The container's root
        root: PathBuf,
    },
    /// Last resort of an administrator, for a pod that ended to be moved, goes on here, and waits for files that
    /// cannot be kept: it starts again without what its containers have changed outside of volumes
    GiveUpFiles {
        /// UID of the Migration
        migration_uid: String,
    },
    /// Make the file systems of these places durable; called by a holder that must not hang with them
    Sync {
        /// The places
        places: Vec<PathBuf>,
    },
    /// Last resort of an administrator, for a source that waits for a target that is off for good:
    /// vouch that the target's node does not run
    Resolve {
        /// UID of the Migration
        migration_uid: String,
        /// Required: the pod runs twice if the target's node is not off
        #[arg(long)]
        the_target_is_off: bool,
    },
}

fn main() -> ExitCode {
    let Args { command } = Args::parse();
    // Only the API client uses TLS, and it must find exactly one provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let host = HostRoot::host();
    let outcome = match command {
        Command::Supervise => run::supervise(&host),
        Command::Run { dir } => run::run(&host, &dir),
        Command::Fill { dir, container, root } => {
            started::fill(&host, &MigrationDir::at(dir), &container, &root)
        }
        Command::Sync { places } => Ok(durable::told(&places, std::io::stdout())),
        Command::Status => report::status(&host),
        Command::GiveUpFiles { migration_uid } => report::give_up_files(&host, &migration_uid),
        Command::Resolve { migration_uid, the_target_is_off } => {
            report::resolve(&host, &migration_uid, the_target_is_off)
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("transship-holder: {error:#}");
            ExitCode::FAILURE
        }
    }
}
