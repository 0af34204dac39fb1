//! `cargo xtask sandbox`: a real Kubernetes cluster on this machine, made from packages.
//!
//! Every node is a machine of its own as far as namespaces go (mount, network, PID, UTS, IPC,
//! cgroup), with stock containerd, runc, kubelet and kube-proxy. There is one sandbox per machine;
//! its state and its caches lie outside every checkout, and any checkout takes it over as it is.
//! This module decides the command line only.

mod caches;
mod cgroup;
mod chart;
mod cluster;
pub mod cmd;
mod control_plane;
mod images;
mod init;
pub mod layout;
mod lifecycle;
mod machine;
mod network;
mod node;
mod pki;
mod process;
mod report;
mod residue;
mod state;
mod sysctl;

use std::{os::unix::process::CommandExt, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;

pub use caches::KUBERNETES;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the sandbox, or repair and complete it
    Up {
        /// At least so many nodes (default: those that are there, or 2)
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(layout::MAX_NODES)))]
        nodes: Option<u8>,
        /// Do not install the product's chart
        #[arg(long)]
        no_chart: bool,
    },
    /// Remove the sandbox; caches stay
    Down,
    /// Show nodes and services; succeeds when all is well
    Status,
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Load OCI image archives into every node, now and for later ones
    Load {
        /// Archives that hold an index.json
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Run a command inside a node
    Exec {
        /// node-a, … or control-plane
        node: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// End a node as a loss of power does; its disk stays
    Kill {
        /// node-a, … or control-plane
        node: String,
    },
    /// Boot a node and wait until it is Ready
    Start {
        /// node-a, … or control-plane
        node: String,
    },
    /// Cut a node's network
    Partition {
        /// node-a, … or control-plane
        node: String,
    },
    /// Repair a node's network
    Heal {
        /// node-a, … or control-plane
        node: String,
    },
    /// Print the logs of a node's services
    Logs(report::LogArgs),
    /// Run kubectl for the sandbox
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Enter a machine's namespaces (started by `up`)
    #[command(hide = true)]
    Launch { specification: PathBuf },
    /// Be a machine's first process (started by `launch`)
    #[command(hide = true)]
    Init { specification: PathBuf },
    /// Import images before kubelet starts (a service of a node)
    #[command(hide = true)]
    ImportImages,
}

/// Does what the arguments say.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Up { nodes, no_chart } => lifecycle::up(lifecycle::Wanted { nodes, no_chart })?,
        Verb::Down => lifecycle::down()?,
        Verb::Status => return report::status(),
        Verb::Kubeconfig => {
            lifecycle::present()?;
            println!("{}", layout::kubeconfig().display());
        }
        Verb::Load { archives } => lifecycle::load(&archives)?,
        Verb::Exec { node, command } => return report::exec(&node, &command),
        Verb::Kill { node } => lifecycle::kill(&node)?,
        Verb::Start { node } => lifecycle::start(&node)?,
        Verb::Partition { node } => lifecycle::connect(&node, false)?,
        Verb::Heal { node } => lifecycle::connect(&node, true)?,
        Verb::Logs(args) => return report::logs(&args),
        Verb::Kubectl { arguments } => {
            let error = cluster::kubectl(&[]).args(arguments).exec();
            return Err(error).context("running kubectl");
        }
        Verb::Launch { specification } => return init::launch(&specification),
        Verb::Init { specification } => return init::init(&specification),
        Verb::ImportImages => return images::import_here(),
    }
    Ok(ExitCode::SUCCESS)
}

// --- What the other tasks use ------------------------------------------------------------------

/// Installs the programs of the host that tasks need.
pub fn ensure_tools() -> Result<()> {
    caches::ensure_tools()
}

/// Makes what is slow to make and outlives a sandbox, where it is missing.
pub fn ensure_caches() -> Result<()> {
    kubernetes().map(drop)
}

/// The directory with Kubernetes' programs; they, and the other caches, are made where they are
/// missing.
pub fn kubernetes() -> Result<PathBuf> {
    let _lock = state::Lock::take()?;
    Ok(caches::ensure()?.kubernetes)
}

/// The Debian mirror that this machine uses.
pub fn debian_mirror() -> String {
    caches::debian_mirror()
}

/// The sandbox with the chart, as `cargo xtask sandbox up` makes it.
pub fn up() -> Result<()> {
    lifecycle::up(lifecycle::Wanted::default())
}

/// The same with at least so many nodes.
pub fn grow(nodes: u8) -> Result<()> {
    lifecycle::up(lifecycle::Wanted { nodes: Some(nodes), no_chart: false })
}

/// Loads image archives into every node.
pub fn load(archives: &[PathBuf]) -> Result<()> {
    lifecycle::load(archives)
}

/// Removes the sandbox.
pub fn down() -> Result<()> {
    lifecycle::down()
}

/// Names of the nodes.
pub fn nodes() -> Result<Vec<String>> {
    Ok(lifecycle::present()?.nodes().map(layout::Node::name).collect())
}

/// A command inside a node.
pub fn exec_command(node: &str, command: &[&str]) -> Result<std::process::Command> {
    let [program, arguments @ ..] = command else { anyhow::bail!("nothing to run") };
    let mut inside = machine::Machine::parse(node)?.command(program)?;
    inside.args(arguments);
    Ok(inside)
}
