//! Links that are cut, slowed down or damaged, by rules in the nodes.

use anyhow::Result;
use transship_api::Role;

use super::{driver::Scene, nodes};
use crate::cluster::Cluster;

/// The port on which agents take each other's data.
const DATA: u16 = 9441;
/// Of a slow way between nodes: a pod's state takes its time.
const STREAM_PACE: &str = "40mbit";
/// Of a slow way to the API server: every call takes its time, and none its caller's patience.
const CALLS_PACE: &str = "256kbit";

/// What can be cut or slowed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// Between the two nodes.
    Nodes,
    /// From a side's node (agent, holder and kubelet) to the API server.
    Api(Role),
    /// From a side's node to the API server and to the other node: it is alone, but for its pods' clients.
    All(Role),
    /// From the operators to the API server.
    Operators,
}

/// What happens to the stream of a pod's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Bytes in the middle of a packet are others.
    Corrupted,
    /// It ends in the middle.
    Truncated,
}

impl Link {
    /// How it stands in a test's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodes => "node_to_node",
            Self::Api(Role::Source) => "source_to_api",
            Self::Api(Role::Target) => "target_to_api",
            Self::All(Role::Source) => "source_to_all",
            Self::All(Role::Target) => "target_to_all",
            Self::Operators => "operators_to_api",
        }
    }

    /// Cuts it until [`mend`].
    pub fn cut(self, scene: &Scene) -> Result<()> {
        let cluster = scene.cluster;
        let api = || nodes::api_server(cluster);
        let from_peer = |peer: &str| chain("input", &format!("ip saddr {peer} drop"));
        match self {
            Self::Nodes => {
                let peer = nodes::address(cluster, scene.node(Role::Target))?;
                let to_peer = chain("output", &format!("ip daddr {peer} drop"));
                add(cluster, scene.node(Role::Source), &(to_peer + &from_peer(&peer)))
            }
            Self::All(role) => {
                let peer = nodes::address(cluster, scene.node(other(role)))?;
                let to_all = chain("output", &format!("ip daddr {{ {peer}, {} }} drop", api()?));
                add(cluster, scene.node(role), &(to_all + &from_peer(&peer)))
            }
            // What the node itself sends; its pods' packets are forwarded.
            Self::Api(role) => {
                let rule = chain("output", &format!("ip daddr {} drop", api()?));
                add(cluster, scene.node(role), &rule)
            }
            Self::Operators => nodes::operators(cluster)?.iter().try_for_each(|operator| {
                let rule = format!("ip saddr {} ip daddr {} drop", operator.ip, api()?);
                add(cluster, &operator.node, &chain("forward", &rule))
            }),
        }
    }

    /// Lets what its near end sends over it wait there until [`mend`]; what comes back waits for that.
    pub fn slow_down(self, scene: &Scene) -> Result<()> {
        let cluster = scene.cluster;
        let api = || nodes::api_server(cluster);
        let address = |role| nodes::address(cluster, scene.node(role));
        match self {
            Self::Nodes => {
                slow(cluster, scene.node(Role::Source), &[address(Role::Target)?], STREAM_PACE)
            }
            Self::Api(role) => slow(cluster, scene.node(role), &[api()?], CALLS_PACE),
            Self::All(role) => {
                slow(cluster, scene.node(role), &[api()?, address(other(role))?], CALLS_PACE)
            }
            Self::Operators => {
                let to = [api()?];
                let nodes = nodes::with_operators(cluster)?;
                nodes.iter().try_for_each(|node| slow(cluster, node, &to, CALLS_PACE))
            }
        }
    }
}

fn other(role: Role) -> Role {
    match role {
        Role::Source => Role::Target,
        Role::Target => Role::Source,
    }
}

impl Stream {
    /// How it stands in a test's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Corrupted => "corrupt_the_stream",
            Self::Truncated => "truncate_the_stream",
        }
    }

    /// Does it until [`mend`].
    pub fn disturb(self, scene: &Scene) -> Result<()> {
        let (cluster, node) = (scene.cluster, scene.node(Role::Source));
        let peer = nodes::address(cluster, scene.node(Role::Target))?;
        let stream = format!("ip daddr {peer} tcp dport {DATA}");
        match self {
            // Behind the longest TCP header. Its checksum is not made yet, or would tell the same: that
            // nothing whole comes through.
            Self::Corrupted => {
                let rule = format!("{stream} meta length > 1000 @th,480,32 set 0xdeadbeef");
                add(cluster, node, &chain("output", &rule))
            }
            Self::Truncated => {
                add(cluster, node, &chain("output", &format!("{stream} reject with tcp reset")))
            }
        }
    }
}

/// After routing and the translation of Services' addresses.
fn chain(hook: &str, rule: &str) -> String {
    format!("chain {hook} {{ type filter hook {hook} priority 0; {rule}; }}\n")
}

fn add(cluster: &Cluster, node: &str, chains: &str) -> Result<()> {
    let script = format!("nft -f - <<'END'\ntable inet test_fault {{\n{chains}}}\nEND\n");
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// What a node sends to these addresses goes at this pace, and all else as ever. The kernel has no netem, by
/// which it could come later or not at all.
fn slow(cluster: &Cluster, node: &str, to: &[String], pace: &str) -> Result<()> {
    let mut script = format!(
        "tc qdisc delete dev eth0 root 2>/dev/null; set -e; tc qdisc add dev eth0 root handle 1: htb; \
         tc class add dev eth0 parent 1: classid 1:1 htb rate {pace} quantum 1514"
    );
    for address in to {
        script += "; tc filter add dev eth0 parent 1: protocol ip u32 match ip dst ";
        script += &format!("{address}/32 flowid 1:1");
    }
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Everything is as it was, on a node that was disturbed or not.
pub fn mend(cluster: &Cluster, node: &str) -> Result<()> {
    let script = "nft add table inet test_fault && nft delete table inet test_fault && \
                  { tc qdisc delete dev eth0 root 2>/dev/null || true; }";
    cluster.on_node(node, &["sh", "-c", script]).map(drop)
}
