//! Arguments, each also an environment variable.

use clap::{Parser, Subcommand, ValueEnum};

/// The operator of Transship.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// Without one, the operator runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Own name in the election.
    #[arg(long, env = "POD_NAME", global = true, default_value = "")]
    pub pod_name: String,
    /// Namespace of operator and agents.
    #[arg(long, env = "POD_NAMESPACE", global = true, default_value = "transship-system")]
    pub namespace: String,
    /// Name of the Service that leads to the operator; part of its certificate's names.
    #[arg(long, env = "SERVICE_NAME", global = true, default_value = "transship-operator")]
    pub service: String,
    /// Port for webhooks and certificates (HTTPS).
    #[arg(long, env = "WEBHOOK_PORT", global = true, default_value_t = 9443)]
    pub webhook_port: u16,
    /// Port for /metrics, /livez and /readyz (HTTP).
    #[arg(long, env = "ADMIN_PORT", global = true, default_value_t = 8080)]
    pub admin_port: u16,
    /// Port on localhost for the kube-scheduler of the same pod; 0 for none.
    #[arg(long, env = "EXTENDER_PORT", global = true, default_value_t = 0)]
    pub extender_port: u16,
    /// Swarm's overcommit in percent: 0, or negative to keep a part of each node free.
    #[arg(long, env = "OVERCOMMIT_PERCENT", global = true, default_value_t = 0,
        allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-99..=0))]
    pub overcommit_percent: i64,
    /// A node that ought to be there; may hold a range such as `worker-[01:20]`. May be repeated.
    #[arg(long = "static-node", env = "STATIC_NODES", global = true, value_delimiter = ',')]
    pub static_nodes: Vec<String>,
    /// Seconds without a report after which a node is not Ready.
    #[arg(long, env = "NODE_TTL_SECONDS", global = true, default_value_t = 40,
        value_parser = clap::value_parser!(u64).range(5..))]
    pub node_ttl_seconds: u64,
    /// What is logged, as tracing's filters say it.
    #[arg(long, env = "LOG_LEVEL", global = true, default_value = "info")]
    pub log_level: String,
    /// How it is logged.
    #[arg(long, env = "LOG_FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// What to do instead of running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Have the agents remove what they put on the hosts, and wait for it.
    Uninstall {
        /// How long to wait.
        #[arg(long, default_value_t = 90)]
        timeout_seconds: u64,
    },
}

/// Forms of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
