//! What the agent is told by flags and environment.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// The agent of Transship: reports its node, keeps the host side in place, and carries calls and
/// data between the operator, the holders on this node, and other nodes.
#[derive(Debug, Clone, Parser)]
#[command(name = "transship-agent", version)]
pub struct Args {
    /// Name of this cluster node.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace in which agent and operator run.
    #[arg(long, env = "POD_NAMESPACE", default_value = "transship-system")]
    pub namespace: String,
    /// Address of this node; without it the cluster node's InternalIP.
    #[arg(long, env = "NODE_IP")]
    pub node_ip: Option<IpAddr>,

    /// Where the host's root directory is seen.
    #[arg(long, env = "HOST_ROOT", default_value = "/host")]
    pub host_root: PathBuf,
    /// What is to be installed on the host (`bin` and `lib`), as seen by the agent.
    #[arg(long, env = "PAYLOAD", default_value = "/opt/transship-host")]
    pub payload: PathBuf,
    /// Leave the host as it is: install and upgrade nothing.
    #[arg(long, env = "NO_INSTALL")]
    pub no_install: bool,
    /// containerd's configuration, on the host.
    #[arg(long, env = "CONTAINERD_CONFIG", default_value = "/etc/containerd/config.toml")]
    pub containerd_config: PathBuf,
    /// containerd's socket, on the host.
    #[arg(long, env = "CONTAINERD_SOCKET", default_value = "/run/containerd/containerd.sock")]
    pub containerd_socket: PathBuf,
    /// Shell command that restarts containerd, run on the host.
    #[arg(long, env = "RESTART_COMMAND", default_value = "systemctl restart containerd")]
    pub restart_command: String,
    /// Directory with the CNI configuration that containerd uses, on the host.
    #[arg(long, env = "CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directory with the CNI plugins that containerd calls, on the host.
    #[arg(long, env = "CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// kubelet's root directory, on the host.
    #[arg(long, env = "KUBELET_ROOT", default_value = "/var/lib/kubelet")]
    pub kubelet_root: PathBuf,

    /// Port of the service for the operator.
    #[arg(long, env = "GRPC_PORT", default_value_t = 9440)]
    pub grpc_port: u16,
    /// Port for the data of other agents.
    #[arg(long, env = "DATA_PORT", default_value_t = 9441)]
    pub data_port: u16,
    /// Port for metrics and health.
    #[arg(long, env = "METRICS_PORT", default_value_t = 9442)]
    pub metrics_port: u16,

    /// The authority's certificates (PEM), mounted from its ConfigMap; may appear later.
    #[arg(long, env = "CA_FILE", default_value = "/etc/transship/ca/ca.crt")]
    pub ca_file: PathBuf,
    /// Token for the operator, with audience `transship`.
    #[arg(long, env = "TOKEN_FILE", default_value = "/var/run/secrets/transship/token")]
    pub token_file: PathBuf,
    /// `host:port` of the operator; without it the ClusterIP of its Service.
    #[arg(long, env = "OPERATOR_ADDRESS")]
    pub operator_address: Option<String>,
    /// Name of the operator's Service.
    #[arg(long, env = "OPERATOR_SERVICE", default_value = transship_api::names::OPERATOR)]
    pub operator_service: String,
    /// Service account of the agents, for the holders' tokens.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = transship_api::names::AGENT)]
    pub service_account: String,

    /// Seconds between two reports.
    #[arg(long, env = "HEARTBEAT_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub heartbeat_seconds: u64,
    /// Form of the log.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged, as tracing's filter.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_name_has_no_default() {
        let args = Args::try_parse_from(["agent", "--node-name", "node-a"]).unwrap();
        assert_eq!(args.grpc_port, 9440);
        assert_eq!(args.host_root, PathBuf::from("/host"));
        assert!(!args.no_install);
    }
}
