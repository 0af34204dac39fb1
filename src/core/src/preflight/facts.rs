//! What the pod's network has that cannot be moved, as the agents found it.

use transship_api::Network;

use super::{Check, Input, Violation};
use crate::facts::{CniFacts, PodFacts};

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
        finds: "further interfaces, routes or routing rules in the pod's network namespace",
        remedy: "run the pod with its one interface",
        look: network_devices,
    },
    Check {
        name: "Address",
        finds: "an address that cannot be used on the target node",
        remedy: "choose a target on the same flat network",
        look: |input| address_can_be_kept(input).into_iter().collect(),
    },
];

fn violation(check: &'static str, message: impl Into<String>, remedy: &str) -> Option<Violation> {
    Some(Violation {
        check,
        message: message.into(),
        remedy: remedy.to_owned(),
        ..Violation::default()
    })
}

fn network_rules(input: &Input<'_>) -> Vec<Violation> {
    let ours = |table: &str| {
        let name = table.split(' ').next_back().unwrap_or_default();
        name.starts_with("transship") || name.starts_with("CRIU")
    };
    let tables = input.facts.into_iter().flat_map(|facts| &facts.network.rule_tables);
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
    let Some(network) = input.facts.map(|facts| &facts.network) else { return Vec::new() };
    [
        ("interfaces", &network.other_interfaces),
        ("routes", &network.other_routes),
        ("routing rules", &network.routing_rules),
    ]
    .into_iter()
    .filter(|(_, found)| !found.is_empty())
    .map(|(what, found)| {
        Violation::of_pod(format!(
            "the pod has further {what} ({}), and they do not move",
            found.join(", ")
        ))
    })
    .collect()
}

/// Types of CNI plugins whose pods share one layer-2 segment with those of other nodes, where the
/// subnet says so.
const FLAT_PLUGINS: [&str; 2] = ["bridge", "macvlan"];

/// Why the pod's address cannot go to the target node; `None` when it can, as far as is known.
pub(crate) fn why_not_preserved(source: &PodFacts, target: Option<&PodFacts>) -> Option<String> {
    let network = &source.network;
    let cni = &network.cni;
    let chained = |cni: &CniFacts| cni.plugins.iter().any(|p| p == "transship-cni");
    let kind = cni.plugins.first().map_or("none", String::as_str);
    if !FLAT_PLUGINS.contains(&kind) {
        return Some(format!("the network plugin {kind} of the source is not known to be flat"));
    }
    if cni.ipam != "host-local" {
        return Some(format!("addresses come from {}, not from host-local", cni.ipam));
    }
    if !chained(cni) {
        return Some("transship-cni is not in the source's CNI configuration".into());
    }
    // An agent that could not say leaves the fields empty.
    let target = target.map(|t| &t.network.cni).filter(|t| !t.plugins.is_empty())?;
    if target.name != cni.name {
        return Some(format!(
            "the nodes' networks differ ({} on the source, {} on the target)",
            cni.name, target.name
        ));
    }
    if !chained(target) {
        return Some("transship-cni is not in the target's CNI configuration".into());
    }
    let is_held = |ip: &&str| target.subnets.iter().any(|subnet| contains(subnet, ip));
    let lost = [network.ip.as_str()].into_iter().chain(network.other_ips()).find(|ip| !is_held(ip));
    lost.map(|ip| format!("{ip} is not in the target's subnets ({})", target.subnets.join(", ")))
}

fn address_can_be_kept(input: &Input<'_>) -> Option<Violation> {
    let why = why_not_preserved(input.facts?, input.target_facts)?;
    let remedy = match input.migration.spec.network {
        Network::Preserve => "choose a target on the same flat network",
        _ => {
            "choose a target on the same flat network; moving with a new address is not available in this version"
        }
    };
    violation("Address", format!("the pod's address cannot be kept: {why}"), remedy)
}

/// Whether `subnet`, as `address/prefix`, contains `address`.
pub(crate) fn contains(subnet: &str, address: &str) -> bool {
    use std::net::IpAddr;
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
