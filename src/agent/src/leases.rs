//! Addresses of this node that pods on other nodes use: lent when their pod leaves, moved on when it
//! moves again, taken back when it comes home or is gone for certain.
//!
//! What is certain is decided by `transship-protocol` ([`may_give_back`]); here it is asked for. A pod that
//! lives may have left its address, too, after a loss of power. In doubt an address stays lent.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tonic::Status;
use transship_host::HostRoot;
use transship_host::lease::{self, Lease, LeaseOwner};
use transship_host::paths::Role;
use transship_host::record::RecordState;
use transship_protocol::{SandboxSeen, UserSeen, may_give_back};
use transship_rpc::LeaseMovedRequest;

use crate::cluster::Cluster;
use crate::migrations;
use crate::relay::Relay;
use crate::runtime::Runtime;

/// So few addresses are all asked about in one round.
const AT_ONCE: usize = 4;
/// Every address is asked about once in so many rounds.
const ROUNDS: u64 = 6;

/// Lends and gives back.
#[derive(Clone)]
pub struct Leases {
    /// This node.
    pub node: String,
    /// The host.
    pub host: HostRoot,
    /// containerd.
    pub runtime: Runtime,
    /// CNI configuration, on the host.
    pub cni_conf_dir: PathBuf,
}

impl Leases {
    /// The operator says that a pod uses the address now; this node is the address's home. Comes
    /// before the source's sandbox is deleted, which would free the address.
    pub async fn moved(&self, request: &LeaseMovedRequest) -> Result<(), Status> {
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
        if owner.node == self.node && !self.is_not_the_pod_yet(&owner.pod_uid)? {
            return self.home(ip, &owner.pod_uid).await;
        }
        if lease::pass_on(&self.host, ip, &owner).map_err(refused)? {
            tracing::info!(%ip, pod = owner.pod_name, node = owner.node, "a lent address moved on");
            return Ok(());
        }
        if self.lend(ip, &owner).await? {
            tracing::info!(%ip, pod = owner.pod_name, node = owner.node, "an address was lent");
        } else {
            // Nothing that a repetition could change, and the pod runs with it already.
            tracing::warn!(%ip, pod = owner.pod_name, "an address that moved is not reserved here: no file of host-local names it for the source's sandbox");
        }
        Ok(())
    }

    /// A restore on trial, or a pod that is about to be restored: the address is kept for it, and comes
    /// home when it runs. Its sandbox must not free it by then.
    fn is_not_the_pod_yet(&self, pod_uid: &str) -> Result<bool, Status> {
        let pod = self.host.pod(pod_uid).map_err(refused)?;
        let record = pod.read_record().map_err(refused)?;
        let is_not_yet = |state| {
            matches!(state, RecordState::Restore | RecordState::Prepared | RecordState::Aborted)
        };
        Ok(record.is_some_and(|r| is_not_yet(r.state)))
    }

    /// Back on this node, where its sandbox's own DEL frees it.
    async fn home(&self, ip: IpAddr, pod_uid: &str) -> Result<(), Status> {
        let Some(lease) = lease::read(&self.host, ip).map_err(refused)? else { return Ok(()) };
        let sandbox = self.sandboxes(pod_uid).await?.into_iter().next().ok_or_else(|| {
            Status::failed_precondition(format!("pod {pod_uid} has no sandbox here"))
        })?;
        lease::come_home(&self.host, ip, &sandbox, &lease.interface).map_err(refused)?;
        tracing::info!(%ip, "an address came home");
        Ok(())
    }

    /// The first time that the address leaves: it belongs to the sandbox of a migration's source.
    async fn lend(&self, ip: IpAddr, owner: &LeaseOwner) -> Result<bool, Status> {
        let sides = migrations::list(&self.host).map_err(refused)?;
        let sources = sides.iter().filter(|side| side.role == Role::Source).filter_map(|side| {
            let task = side.task.as_ref()?;
            let network = task.network.as_ref()?;
            network.addresses().ok()?.contains(&ip).then_some(&task.pod.uid)
        });
        let dirs = data_dirs(&self.host.join(&self.cni_conf_dir));
        for pod_uid in sources {
            for sandbox in self.sandboxes(pod_uid).await? {
                if lease::lend(&self.host, ip, &sandbox, owner, &dirs).map_err(refused)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Ids of a pod's sandboxes, ready or not: a failed one may still hold the address.
    async fn sandboxes(&self, pod_uid: &str) -> Result<Vec<String>, Status> {
        let away = |error: transship_runtime::Error| Status::unavailable(error.to_string());
        let mut all =
            self.runtime.cri().await.map_err(away)?.all_sandboxes().await.map_err(away)?;
        all.retain(|sandbox| sandbox.pod_uid == pod_uid);
        all.sort_by_key(|sandbox| !sandbox.ready);
        Ok(all.into_iter().map(|sandbox| sandbox.id).collect())
    }

    /// Whether a sandbox of the pod on this node has the address, whatever the pod's status says.
    async fn sandbox_with(&self, owner: &LeaseOwner, ip: IpAddr) -> anyhow::Result<SandboxSeen> {
        let cri = self.runtime.cri().await?;
        for sandbox in cri.sandboxes(&owner.pod_uid).await? {
            let address = cri.address(&sandbox.id).await?;
            if address.and_then(|address| address.parse::<IpAddr>().ok()) == Some(ip) {
                return Ok(SandboxSeen::There);
            }
        }
        Ok(SandboxSeen::Free)
    }

    /// Gives back every address whose pod is gone or has left it, of those whose turn it is; returns how many.
    pub async fn collect(&self, cluster: &Cluster, relay: &Relay, round: u64) -> usize {
        let leases = match lease::list(&self.host) {
            Ok(leases) => leases,
            Err(error) => {
                tracing::warn!(error = error.chain(), "leases cannot be read");
                return 0;
            }
        };
        let mut given_back = 0;
        for lease in turn(leases, round) {
            match self.is_over(&lease, cluster, relay).await {
                Ok(false) => {}
                Ok(true) => match lease::give_back(&self.host, &lease) {
                    // Moved on since it was listed.
                    Ok(false) => {}
                    Ok(true) => {
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
    ) -> anyhow::Result<bool> {
        let owner = &lease.owner;
        let said = cluster.pod_addresses(&owner.pod_namespace, &owner.pod_name, &owner.pod_uid);
        let (user, sandbox) = match said.await? {
            None => (UserSeen::Gone, self.sandbox_of_gone(owner, cluster, relay).await?),
            Some(said) => {
                let user = UserSeen::saying(lease.ip, &said);
                // Nobody can tell more of another node.
                let here = user == UserSeen::SaysOthers && owner.node == self.node;
                let sandbox = match here {
                    true => self.sandbox_with(owner, lease.ip).await?,
                    false => SandboxSeen::Unknown,
                };
                (user, sandbox)
            }
        };
        Ok(may_give_back(user, sandbox))
    }

    /// What the node of a pod that does not exist any more says of its sandbox.
    async fn sandbox_of_gone(
        &self,
        owner: &LeaseOwner,
        cluster: &Cluster,
        relay: &Relay,
    ) -> anyhow::Result<SandboxSeen> {
        let there = if owner.node == self.node {
            relay.has_sandbox(&owner.pod_uid).await?
        } else if cluster.core_node(&owner.node).await?.is_none() {
            false
        } else {
            let other = cluster.node(&owner.node).await?.context("its node has no agent")?;
            let address = other
                .status
                .and_then(|status| status.agent)
                .map(|agent| agent.data_address)
                .context("its node's agent has no address")?;
            relay.ask_for_sandbox(&owner.node, address.parse()?, &owner.pod_uid).await?
        };
        Ok(if there { SandboxSeen::There } else { SandboxSeen::Free })
    }
}

/// Those that are asked about in this round. Each costs a question to the API server, so that of many
/// a part is asked about at a time; every one has its turn in [`ROUNDS`] rounds.
fn turn(leases: Vec<Lease>, round: u64) -> impl Iterator<Item = Lease> {
    let parts = u64::try_from(leases.len() / AT_ONCE).unwrap_or(ROUNDS).clamp(1, ROUNDS);
    let its_turn = move |place: u64| place % parts == round % parts;
    (0..).zip(leases).filter(move |(place, _)| its_turn(*place)).map(|(_, lease)| lease)
}

fn refused(error: transship_host::Error) -> Status {
    match error {
        transship_host::Error::Invalid { .. } => Status::invalid_argument(error.chain()),
        _ => Status::internal(error.chain()),
    }
}

/// Where `host-local` keeps its files: its default, and what the CNI configuration names.
fn data_dirs(cni_conf_dir: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![PathBuf::from(lease::HOST_LOCAL_DIR)];
    for entry in std::fs::read_dir(cni_conf_dir).into_iter().flatten().flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
        let plugins = value["plugins"].as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for plugin in plugins {
            let named = plugin.pointer("/ipam/dataDir").and_then(|dir| dir.as_str());
            let named = named.map(PathBuf::from).filter(|dir| dir.is_absolute());
            dirs.extend(named.filter(|dir| !dirs.contains(dir)));
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_addresses_have_their_turn_in_each_round_and_many_in_some() {
        let lease = |last: u8| Lease {
            version: lease::LEASE_VERSION,
            ip: IpAddr::from([10, 0, 0, last]),
            file: PathBuf::new(),
            interface: "eth0".into(),
            owner: LeaseOwner {
                pod_uid: String::new(),
                pod_namespace: String::new(),
                pod_name: String::new(),
                node: String::new(),
            },
        };
        for (count, most) in [(0, 0), (3, 3), (7, 7), (8, 4), (100, 17)] {
            let leases: Vec<Lease> = (0..count).map(lease).collect();
            let mut asked = vec![0; usize::from(count)];
            for round in 1..=ROUNDS {
                let turn: Vec<Lease> = turn(leases.clone(), round).collect();
                assert!(turn.len() <= most, "{} of {count}", turn.len());
                for lease in turn {
                    let place = leases.iter().position(|other| *other == lease).unwrap();
                    asked[place] += 1;
                }
            }
            assert!(asked.iter().all(|times| *times >= 1), "{count}: {asked:?}");
        }
    }

    #[test]
    fn the_directories_of_host_local_are_those_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "10.conflist",
            r#"{"plugins":[{"ipam":{"dataDir":"/srv/ipam"}},{"type":"portmap"}]}"#,
        );
        write("20.conf", r#"{"type":"x","ipam":{"dataDir":"relative"}}"#);
        write("30.conflist", "{");
        assert_eq!(
            data_dirs(dir.path()),
            [PathBuf::from(lease::HOST_LOCAL_DIR), PathBuf::from("/srv/ipam")]
        );
        assert_eq!(data_dirs(&dir.path().join("missing")).len(), 1);
    }
}
