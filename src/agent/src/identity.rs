//! Who this agent is: its node's name and address, as the cluster knows them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use k8s_openapi::api::core::v1 as corev1;
use kube::{Api, Client};

use crate::args::Args;

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The node's name.
    pub node: String,
    /// For the operator.
    pub control: SocketAddr,
    /// For other agents.
    pub data: SocketAddr,
    /// For metrics and health.
    pub admin: SocketAddr,
}

/// Asks the API server, again and again until it answers: an agent that starts before the API
/// server is reachable waits for it.
pub async fn discover(client: &Client, args: &Args) -> anyhow::Result<Identity> {
    let nodes: Api<corev1::Node> = Api::all(client.clone());
    let ask = || async { nodes.get(&args.node_name).await };
    let node = ask
        .retry(ExponentialBuilder::default().with_max_delay(Duration::from_secs(15)).with_jitter().without_max_times())
        .notify(|error, after| {
            tracing::warn!(node = args.node_name, %error, ?after, "cannot read the cluster node yet");
        })
        .await?;
    let ip = args.node_ip.or_else(|| internal_ip(&node)).ok_or_else(|| {
        anyhow::anyhow!("node {} has no InternalIP; start the agent with NODE_IP", args.node_name)
    })?;
    Ok(Identity {
        node: args.node_name.clone(),
        control: SocketAddr::new(ip, args.grpc_port),
        data: SocketAddr::new(ip, args.data_port),
        admin: SocketAddr::new(ip, args.metrics_port),
    })
}

fn internal_ip(node: &corev1::Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|a| a.type_ == "InternalIP").and_then(|a| a.address.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_internal_address_is_used() {
        let node: corev1::Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"},
            "status": {"addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "ExternalIP", "address": "1.2.3.4"},
                {"type": "InternalIP", "address": "10.0.0.7"}]}}))
        .unwrap();
        assert_eq!(internal_ip(&node), Some("10.0.0.7".parse().unwrap()));
        assert_eq!(internal_ip(&corev1::Node::default()), None);
    }
}
