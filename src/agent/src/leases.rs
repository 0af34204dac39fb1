//! Addresses of this node that pods on other nodes use: moved on when their pod moves, given back
//! when the pod is gone for certain.
//!
//! For certain means both: a quorum read says that no pod of this UID exists, and its node says
//! that it has no sandbox of it (a pod's object can be deleted by force while its sandbox still
//! answers on the network), or that node's object is gone. In doubt an address stays lent.

use std::net::IpAddr;

use anyhow::Context;
use tonic::Status;
use transship_host::HostRoot;
use transship_host::lease::{self, Lease, LeaseOwner};
use transship_rpc::LeaseMovedRequest;

use crate::cluster::Cluster;
use crate::relay::Relay;

/// Lends and gives back.
#[derive(Clone)]
pub struct Leases {
    /// The host.
    pub host: HostRoot,
}

impl Leases {
    /// The operator says that a pod elsewhere uses the address now.
    pub fn moved(&self, request: &LeaseMovedRequest) -> Result<(), Status> {
        let ip: IpAddr = request
            .ip
            .parse()
            .map_err(|_| Status::invalid_argument(format!("{:?} is not an address", request.ip)))?;
        let owner = LeaseOwner {
            pod_uid: request.pod_uid.clone(),
            pod_namespace: request.pod_namespace.clone(),
            pod_name: request.pod_name.clone(),
            node: request.node.clone(),
        };
        match lease::pass_on(&self.host, ip, &owner) {
            Ok(true) => Ok(()),
            // At home again, or never lent: nothing to move on, however often it is said.
            Ok(false) => {
                tracing::debug!(%ip, "an address that is not lent was said to have moved");
                Ok(())
            }
            Err(error @ transship_host::Error::Invalid { .. }) => {
                Err(Status::invalid_argument(error.chain()))
            }
            Err(error) => Err(Status::internal(error.chain())),
        }
    }

    /// Gives back every address whose pod is gone; returns how many.
    pub async fn collect(&self, cluster: &Cluster, relay: &Relay, node: &str) -> usize {
        let leases = match lease::list(&self.host) {
            Ok(leases) => leases,
            Err(error) => {
                tracing::warn!(error = error.chain(), "leases cannot be read");
                return 0;
            }
        };
        let mut given_back = 0;
        for lease in leases {
            match self.is_over(&lease, cluster, relay, node).await {
                Ok(false) => {}
                Ok(true) => match lease::give_back(&self.host, lease.ip) {
                    Ok(_) => {
                        tracing::info!(ip = %lease.ip, pod = lease.owner.pod_name, "an address came back");
                        given_back += 1;
                    }
                    Err(error) => {
                        tracing::warn!(ip = %lease.ip, error = error.chain(), "an address cannot be given back");
                    }
                },
                Err(error) => {
                    tracing::debug!(ip = %lease.ip, error = format!("{error:#}"), "an address stays lent");
                }
            }
        }
        given_back
    }

    async fn is_over(
        &self,
        lease: &Lease,
        cluster: &Cluster,
        relay: &Relay,
        node: &str,
    ) -> anyhow::Result<bool> {
        let owner = &lease.owner;
        let gone = cluster.pod_is_gone(&owner.pod_namespace, &owner.pod_name, &owner.pod_uid);
        if !gone.await? {
            return Ok(false);
        }
        if owner.node == node {
            return Ok(!relay.has_sandbox(&owner.pod_uid).await?);
        }
        if cluster.core_node(&owner.node).await?.is_none() {
            return Ok(true);
        }
        let other = cluster.node(&owner.node).await?.context("its node has no agent")?;
        let address = other
            .status
            .and_then(|status| status.agent)
            .map(|agent| agent.data_address)
            .context("its node's agent has no address")?;
        let present = relay.ask_for_sandbox(&owner.node, address.parse()?, &owner.pod_uid).await?;
        Ok(!present)
    }
}
