//! What becomes of address and connections: which network is chosen and why, and what then stands in the way.

use std::net::IpAddr;

use transship_api::Network;

use super::{Check, Input, Violation, list_up_to, name_some};
use crate::facts::{CniFacts, ListenFacts, NetworkFacts, Part, PeerFacts, PodFacts};

/// The checks of the network.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "NetworkRules",
        finds: "rules of nftables or iptables that somebody put into the pod's network namespace",
        remedy: "run the pod without a mesh or init container that makes them",
        look: network_rules,
    },
    Check {
        name: "NetworkDevices",
        finds: "further addresses, interfaces, routes or routing rules in the pod's network namespace",
        remedy: "run the pod with its one interface, as its network plugin makes it",
        look: network_devices,
    },
    Check {
        name: "NetworkSettings",
        finds: "queueing disciplines (`tc`), static neighbours, states and policies of IPsec (`ip xfrm`) or kernel parameters that somebody set in the pod's network namespace",
        remedy: "take it away, or set it where every such pod gets it: parameters in securityContext.sysctls, a bandwidth by the annotations of the CNI plugin bandwidth, encryption in the network plugin",
        look: network_settings,
    },
    Check {
        name: "Address",
        finds: "with `network: Preserve`, an address that cannot be used on the target node",
        remedy: "choose a target on the same flat network, or write network: Close, which gives the pod a new address",
        look: |input| address_can_be_kept(input).into_iter().collect(),
    },
    Check {
        name: "NetworkPlugin",
        finds: "with a new address, a target node whose CNI configuration lacks transship-cni",
        remedy: "see 'kubectl get tn -o wide' for what keeps the agent from adding it, or choose another target",
        look: |input| network_can_be_closed(input).into_iter().collect(),
    },
    Check {
        name: "TranslatedConnections",
        finds: "with `network: Preserve`, connections that leave with the node's own address, or that the node's IPVS leads to a Service",
        remedy: "write network: Auto, with which they are closed for the application, or end them first",
        look: connections_can_be_kept,
    },
];

/// Types of CNI plugins whose pods share one layer-2 segment with those of other nodes, where the
/// subnet says so.
const FLAT_PLUGINS: [&str; 2] = ["bridge", "macvlan"];
/// Our plugin.
const OURS: &str = "transship-cni";
/// How many peers are named whose connections are lost: a violation and the choice's message have room for these.
const PEERS_SHOWN: usize = 100;

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkChoice {
    /// `Preserve` or `Close`.
    pub network: Network,
    /// Why, and which connections it costs; sentences without a full stop, separated by "; ".
    pub why: String,
}

/// `Preserve` where that is possible, unless the Migration says otherwise. `None` without facts.
pub fn choose(input: &Input<'_>) -> Option<NetworkChoice> {
    let facts = input.facts?;
    let (network, mut why) = match input.migration.spec.network {
        Network::Preserve => (Network::Preserve, "network: Preserve is asked for".to_owned()),
        Network::Close => (
            Network::Close,
            "network: Close is asked for, so the pod gets a new address and its connections are closed"
                .to_owned(),
        ),
        Network::Auto => match why_not_preserved(facts, input.target_facts) {
            None => (Network::Preserve, "the network is flat, so the address is kept".to_owned()),
            Some(why) => (
                Network::Close,
                format!(
                    "the address cannot be kept ({why}), so the pod gets a new one and its connections are closed"
                ),
            ),
        },
    };
    let costs: Vec<String> = match network {
        // What starts afresh has none to lose.
        _ if super::cold::is_cold(input) => Vec::new(),
        Network::Close => bound_sockets(facts).into_iter().collect(),
        _ => {
            let found =
                [translated(&facts.network), balanced(&facts.network)].into_iter().flatten();
            found.chain(unseen(facts)).collect()
        }
    };
    for cost in costs {
        why.push_str("; ");
        why.push_str(&cost);
    }
    Some(NetworkChoice { network, why })
}

/// Why the pod's address cannot go to the target node; `None` when it can, as far as is known.
fn why_not_preserved(source: &PodFacts, target: Option<&PodFacts>) -> Option<String> {
    let network = &source.network;
    let cni = &network.cni;
    let kind = cni.plugins.first().map_or("none", String::as_str);
    if !FLAT_PLUGINS.contains(&kind) {
        return Some(format!("the network plugin {kind} of the source is not known to be flat"));
    }
    if cni.ipam != "host-local" {
        return Some(format!("addresses come from {}, not from host-local", cni.ipam));
    }
    if !is_chained(cni) {
        return Some(format!("{OURS} is not in the source's CNI configuration"));
    }
    // An agent that could not say leaves the fields empty.
    let target = target.map(|t| &t.network.cni).filter(|t| !t.plugins.is_empty())?;
    if target.name != cni.name {
        return Some(format!(
            "the nodes' networks differ ({} on the source, {} on the target)",
            cni.name, target.name
        ));
    }
    if !is_chained(target) {
        return Some(format!("{OURS} is not in the target's CNI configuration"));
    }
    let is_held = |ip: &&str| target.subnets.iter().any(|subnet| contains(subnet, ip));
    let lost = [network.ip.as_str()].into_iter().chain(network.other_ips()).find(|ip| !is_held(ip));
    lost.map(|ip| format!("{ip} is not in the target's subnets ({})", target.subnets.join(", ")))
}

fn is_chained(cni: &CniFacts) -> bool {
    cni.plugins.iter().any(|plugin| plugin == OURS)
}

/// The pod's network, where it is its own: of the node's the manifest says it already, and better.
fn own<'a>(input: &Input<'a>) -> Option<&'a NetworkFacts> {
    input.facts.map(|facts| &facts.network).filter(|network| !network.host_network)
}

fn network_rules(input: &Input<'_>) -> Vec<Violation> {
    let ours = |table: &str| {
        let name = table.split(' ').next_back().unwrap_or_default();
        name.starts_with("transship") || name.starts_with("CRIU")
    };
    let tables = own(input).into_iter().flat_map(|network| &network.rule_tables);
    let tables: Vec<&str> = tables.map(String::as_str).filter(|table| !ours(table)).collect();
    if tables.is_empty() {
        return Vec::new();
    }
    vec![Violation::of_pod(format!(
        "packet filter tables were put into the pod's network ({}), and they do not move",
        tables.join(", ")
    ))]
}

fn network_devices(input: &Input<'_>) -> Vec<Violation> {
    let Some(network) = own(input) else { return Vec::new() };
    let closes = choose(input).is_some_and(|choice| choice.network == Network::Close);
    let mut addresses = network.further_addresses.clone();
    // With new addresses the target's plugin gives each anew.
    addresses.retain(|address| !(closes && is_given(network, address)));
    not_moved(&[
        ("further addresses", &addresses),
        ("further interfaces", &network.other_interfaces),
        ("further routes", &network.other_routes),
        ("further routing rules", &network.routing_rules),
    ])
}

fn network_settings(input: &Input<'_>) -> Vec<Violation> {
    let Some(network) = own(input) else { return Vec::new() };
    not_moved(&[
        ("queueing disciplines", &network.queueing_disciplines),
        ("static neighbours", &network.static_neighbours),
        ("IPsec states and policies", &network.ipsec),
        ("kernel parameters of its own", &network.kernel_parameters),
    ])
}

/// What was found of each kind.
fn not_moved(kinds: &[(&str, &Vec<String>)]) -> Vec<Violation> {
    let kinds = kinds.iter().filter(|(_, found)| !found.is_empty());
    kinds
        .map(|(what, found)| {
            let found = found.join(", ");
            Violation::of_pod(format!("the pod has {what} ({found}), and they do not move"))
        })
        .collect()
}

/// Whether an address (`address/prefix`) is the plugin's own, which gives one of each of its networks: it is of a
/// network of the plugin's, as long as that, of which the pod has no other.
fn is_given(network: &NetworkFacts, address: &str) -> bool {
    let Some((ip, length)) = address.split_once('/') else { return false };
    let has_other = |subnet: &str| {
        let mut all = [network.ip.as_str()].into_iter().chain(network.other_ips());
        all.any(|other| other != ip && contains(subnet, other))
    };
    network.cni.subnets.iter().any(|subnet| {
        let is_as_long = subnet.split_once('/').is_some_and(|(_, its)| its == length);
        is_as_long && contains(subnet, ip) && !has_other(subnet)
    })
}

fn address_can_be_kept(input: &Input<'_>) -> Option<Violation> {
    if input.migration.spec.network != Network::Preserve {
        return None;
    }
    // Of a network that could not be looked at that alone is told.
    let facts = input.facts.filter(|facts| facts.unseen.iter().all(|u| u.part != Part::Rest))?;
    let why = why_not_preserved(facts, input.target_facts)?;
    Some(Violation::of_pod(format!("the pod's address cannot be kept: {why}")))
}

/// Whatever address it gets: the target's pod must come up with its network closed.
fn network_can_be_closed(input: &Input<'_>) -> Option<Violation> {
    if choose(input)?.network != Network::Close {
        return None;
    }
    let cni = &input.target_facts?.network.cni;
    if cni.plugins.is_empty() || is_chained(cni) {
        return None;
    }
    let file = &cni.file;
    Some(Violation::of_pod(format!("{OURS} is not in the target's CNI configuration {file}")))
}

/// With `Preserve` written down, no connection may be lost.
fn connections_can_be_kept(input: &Input<'_>) -> Vec<Violation> {
    let Some(facts) = input.facts.filter(|_| input.migration.spec.network == Network::Preserve)
    else {
        return Vec::new();
    };
    let balanced = balanced(&facts.network).map(|found| Violation {
        // Nobody closes them.
        remedy: "write network: Auto, with which the pod moves all the same, or end them first"
            .into(),
        ..Violation::of_pod(found)
    });
    translated(&facts.network).map(Violation::of_pod).into_iter().chain(balanced).collect()
}

/// Connections that another node cannot go on with.
fn translated(network: &NetworkFacts) -> Option<String> {
    let peers = peers(&network.translated, network.translated_more)?;
    Some(format!(
        "connections to {peers} leave with the node's own address, and cannot go on from another node"
    ))
}

/// Connections of which only the source's IPVS knows where they lead.
fn balanced(network: &NetworkFacts) -> Option<String> {
    let peers = peers(&network.balanced, network.balanced_more)?;
    Some(format!(
        "connections to {peers} are led by the node's IPVS, and are not known to go on from another node"
    ))
}

/// The names of peers, each with how many connections there are; `more` are not among them.
fn peers(peers: &[PeerFacts], more: u64) -> Option<String> {
    let name = |peer: &PeerFacts| match peer.connections {
        1 => peer.address.clone(),
        many => format!("{} ({many})", peer.address),
    };
    let mut names: Vec<String> = peers.iter().map(name).collect();
    names.sort_unstable();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| list_up_to(PEERS_SHOWN, names, more))
}

/// Why it is not known which connections are lost.
fn unseen(facts: &PodFacts) -> impl Iterator<Item = String> {
    let of_connections = facts.unseen.iter().filter(|unseen| unseen.part == Part::Connections);
    of_connections.map(|unseen| unseen.message.clone())
}

/// Sockets that stay where nobody but the pod itself reaches them.
fn bound_sockets(facts: &PodFacts) -> Option<String> {
    let network = &facts.network;
    let is_bound = |socket: &ListenFacts| {
        let mut own = [network.ip.as_str()].into_iter().chain(network.other_ips());
        own.any(|ip| ip == socket.address)
    };
    let bound: Vec<String> = network
        .listening
        .iter()
        .filter(|socket| is_bound(socket))
        .map(|socket| match socket.address.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", socket.port),
            _ => format!("{}:{}", socket.address, socket.port),
        })
        .collect();
    (!bound.is_empty()).then(|| {
        format!(
            "what listens on {} stays bound to the old address, and is reached from within the pod alone until it listens anew",
            name_some(bound.iter().map(String::as_str))
        )
    })
}

/// Whether `subnet`, as `address/prefix`, contains `address`.
fn contains(subnet: &str, address: &str) -> bool {
    let Some((base, prefix)) = subnet.split_once('/') else { return false };
    let (Ok(base), Ok(prefix), Ok(address)) =
        (base.parse::<IpAddr>(), prefix.parse::<u32>(), address.parse::<IpAddr>())
    else {
        return false;
    };
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) if prefix <= 32 => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            u32::from(base) & mask == u32::from(address) & mask
        }
        (IpAddr::V6(base), IpAddr::V6(address)) if prefix <= 128 => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            u128::from(base) & mask == u128::from(address) & mask
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
