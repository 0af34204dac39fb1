//! Names, addresses and paths of the sandbox: one per machine, outside every checkout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Everything that belongs to the present sandbox; `down` removes it.
pub const STATE: &str = "/var/lib/transship-sandbox";
/// What is slow to make and outlives a sandbox.
pub const CACHE: &str = "/var/cache/transship-sandbox";

/// The machine (namespaces and supervisor) that runs etcd, API server, controllers and scheduler.
pub const CONTROL_PLANE: &str = "control-plane";
/// The host in the node network.
pub const HOST_ADDRESS: &str = "10.250.0.1";
/// See [`HOST_ADDRESS`].
pub const HOST_ADDRESS_V6: &str = "fd00:10:250::1";
/// The control plane in the node network.
pub const CONTROL_PLANE_ADDRESS: &str = "10.250.0.2";
/// The control plane in the pod network, so that it reaches webhooks at their pods' addresses.
pub const CONTROL_PLANE_POD_ADDRESS: &str = "10.244.0.2";
/// MACs of the control plane in both networks.
pub const CONTROL_PLANE_MACS: [&str; 2] = ["02:54:53:00:fe:00", "02:54:53:00:fe:01"];
/// The control plane in the names of its links, which have at most 15 characters.
pub const CONTROL_PLANE_SHORT: &str = "control";
/// The API server.
pub const API_SERVER: &str = "https://10.250.0.2:6443";
/// All pods of all nodes: one flat layer-2 network, of both families.
pub const POD_NETWORK: &str = "10.244.0.0/16";
/// See [`POD_NETWORK`].
pub const POD_NETWORK_V6: &str = "fd00:10:244::/64";
/// ClusterIPs.
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// See [`SERVICE_NETWORK`].
pub const SERVICE_NETWORK_V6: &str = "fd00:10:96::/112";
/// ClusterIP of the API server.
pub const API_SERVICE: &str = "10.96.0.1";
/// Addresses are made from one byte and names from one letter.
pub const MAX_NODES: u8 = 26;

/// `STATE/…`
pub fn state(path: &str) -> PathBuf {
    Path::new(STATE).join(path)
}

/// `CACHE/…`
pub fn cache(path: &str) -> PathBuf {
    Path::new(CACHE).join(path)
}

/// The administrator's kubeconfig.
pub fn kubeconfig() -> PathBuf {
    state("kubeconfig")
}

/// kubectl of the cluster's version.
pub fn kubectl() -> PathBuf {
    super::caches::kubernetes_directory().join("kubectl")
}

/// Helm.
pub fn helm() -> PathBuf {
    super::caches::kubernetes_directory().join("helm")
}

/// Image archives that every node is to have.
pub fn images() -> PathBuf {
    state("images")
}

/// Credentials of the cluster.
pub fn pki() -> PathBuf {
    state("pki")
}

/// The copy of this program that runs in the machines, since a build replaces the original.
pub fn program() -> PathBuf {
    state("bin/xtask")
}

/// Disk and papers of one machine.
pub fn machine(name: &str) -> PathBuf {
    state("machines").join(name)
}

/// The checkout that this program was run from.
pub fn checkout() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .with_context(|| format!("{} is not in a checkout", manifest.display()))
}

/// A worker node: its number (from 1) gives name and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node(u8);

impl Node {
    /// The first `count` nodes.
    pub fn first(count: u8) -> impl Iterator<Item = Self> {
        (1..=count.min(MAX_NODES)).map(Self)
    }

    /// `node-a`, `node-b`, …
    pub fn parse(name: &str) -> Result<Self> {
        match name.strip_prefix("node-").map(str::as_bytes) {
            Some([letter @ b'a'..=b'z']) => Ok(Self(letter - b'a' + 1)),
            _ => bail!("{name:?} is not a node of the sandbox: they are called node-a, node-b, …"),
        }
    }

    /// `node-a`, …
    pub fn name(self) -> String {
        format!("node-{}", char::from(b'a' + self.0 - 1))
    }

    /// The node's own address.
    pub fn address(self) -> String {
        format!("10.250.0.{}", 10 + self.0)
    }

    /// See [`Self::address`].
    pub fn address_v6(self) -> String {
        format!("fd00:10:250::{:x}", 10 + self.0)
    }

    /// Its address in the pod network, which is the gateway of its pods.
    pub fn gateway(self) -> String {
        format!("10.244.{}.1", self.0)
    }

    /// See [`Self::gateway`].
    pub fn gateway_v6(self) -> String {
        format!("fd00:10:244::{:x}:1", self.0)
    }

    /// First and last address of its pods.
    pub fn pod_range(self) -> (String, String) {
        (format!("10.244.{}.2", self.0), format!("10.244.{}.254", self.0))
    }

    /// See [`Self::pod_range`].
    pub fn pod_range_v6(self) -> (String, String) {
        (format!("fd00:10:244::{:x}:2", self.0), format!("fd00:10:244::{:x}:fe", self.0))
    }

    /// MAC in the node network.
    pub fn mac(self) -> String {
        format!("02:54:53:00:00:{:02x}", self.0)
    }

    /// MAC of the node's bridge for pods. A bridge without one of its own takes the lowest of its
    /// ports' and changes it when a pod comes or goes.
    pub fn bridge_mac(self) -> String {
        format!("02:54:53:00:01:{:02x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn names_are_read_back_and_addresses_differ() {
        let nodes: Vec<Node> = Node::first(u8::MAX).collect();
        assert_eq!(nodes.len(), usize::from(MAX_NODES));
        for node in &nodes {
            assert_eq!(Node::parse(&node.name()).unwrap(), *node);
        }
        assert_eq!(nodes[1].name(), "node-b");
        assert_eq!(nodes[1].address(), "10.250.0.12");
        assert_eq!(nodes[1].pod_range().1, "10.244.2.254");
        assert_eq!(nodes[25].pod_range_v6().1, "fd00:10:244::1a:fe");
    }

    #[rstest]
    #[case("node-")]
    #[case("node-A")]
    #[case("node-ab")]
    #[case("control-plane")]
    fn other_names_are_refused(#[case] name: &str) {
        assert!(Node::parse(name).is_err());
    }
}
