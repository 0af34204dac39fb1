//! The cables between machines and host.
//!
//! Two networks, each a bridge on the host with a veth pair to every machine: one for the nodes, one
//! flat for all pods. On one and the same bridge a node could not pass a client of a Service from
//! outside on to a pod of another node, since a bridge does not send a frame back where it came from.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{
    cmd::{ip, output, words},
    layout::{
        CONTROL_PLANE_SHORT, HOST_ADDRESS, HOST_ADDRESS_V6, Node, SERVICE_NETWORK,
        SERVICE_NETWORK_V6,
    },
};

/// A network as the host sees it.
struct Network {
    bridge: &'static str,
    mac: &'static str,
    /// The host in it.
    addresses: [&'static str; 2],
    /// Begins the names of the cables on the host's side.
    prefix: &'static str,
    /// The cables' other ends, in the machines.
    end: &'static str,
}

const NETWORKS: [Network; 2] = [
    Network {
        bridge: "ts0",
        mac: "02:54:53:00:ff:00",
        addresses: ["10.250.0.1/24", "fd00:10:250::1/64"],
        prefix: "ts-",
        end: "eth0",
    },
    // The host reaches pods, and they it.
    Network {
        bridge: "ts1",
        mac: "02:54:53:00:ff:01",
        addresses: ["10.244.0.1/16", "fd00:10:244::1/64"],
        prefix: "tp-",
        end: "eth1",
    },
];

/// Options for an address that nobody else has: until that were proven it could not be used.
pub fn no_probing(address: &str) -> &'static [&'static str] {
    if address.contains(':') { &["nodad"] } else { &[] }
}

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

fn cables(machine: &str) -> [String; 2] {
    NETWORKS.map(|network| format!("{}{machine}", network.prefix))
}

/// Whether the machine's cables are there.
pub fn connected(machine: &str) -> bool {
    cables(machine).iter().all(|link| exists(link))
}

/// Whether a cable of the machine is there but cut.
pub fn partitioned(machine: &str) -> bool {
    cables(machine).iter().any(|link| {
        let flags = fs::read_to_string(format!("/sys/class/net/{link}/flags"));
        flags.is_ok_and(|flags| !has_up_flag(&flags))
    })
}

fn has_up_flag(flags: &str) -> bool {
    let number = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    number.is_ok_and(|flags| flags & 1 == 1)
}

/// Makes the bridges, or completes them.
pub fn ensure_bridges() -> Result<()> {
    for network in NETWORKS {
        if !exists(network.bridge) {
            ip(&["link", "add", network.bridge, "address", network.mac, "type", "bridge"])?;
        }
        for address in network.addresses {
            ip(&[&["address", "replace", address, "dev", network.bridge], no_probing(address)]
                .concat())?;
        }
        ip(&["link", "set", network.bridge, "up"])?;
    }
    Ok(())
}

/// Plugs new cables into the network namespace of process `pid`.
pub fn connect(machine: &str, pid: i32) -> Result<()> {
    disconnect(machine)?;
    let pid = pid.to_string();
    for (network, link) in NETWORKS.iter().zip(cables(machine)) {
        ip(&["link", "add", &link, "type", "veth", "peer", "name", network.end, "netns", &pid])
            .with_context(|| format!("plugging in {link}"))?;
    }
    set_up(machine, true)
}

/// Removes the machine's cables.
pub fn disconnect(machine: &str) -> Result<()> {
    cables(machine).iter().try_for_each(|link| delete(link))
}

fn delete(link: &str) -> Result<()> {
    if !exists(link) {
        return Ok(());
    }
    match ip(&["link", "delete", link]) {
        // It goes by itself when the namespace at its other end does.
        Err(_) if !exists(link) => Ok(()),
        result => result,
    }
}

/// Cuts (`false`) or repairs the cables that a machine has.
pub fn set_up(machine: &str, up: bool) -> Result<()> {
    for (network, link) in NETWORKS.iter().zip(cables(machine)) {
        match (exists(&link), up) {
            (false, _) => {}
            (true, false) => ip(&["link", "set", &link, "down"])?,
            // Also plugs in what somebody began to plug in.
            (true, true) => ip(&["link", "set", &link, "master", network.bridge, "up"])?,
        }
    }
    Ok(())
}

/// Lets the host reach ClusterIPs through this node, or not at all.
pub fn route_services(through: Option<Node>) -> Result<()> {
    let v4 = through.map(|node| [node.address(), HOST_ADDRESS.to_owned()]);
    let v6 = through.map(|node| [node.address_v6(), HOST_ADDRESS_V6.to_owned()]);
    for (family, network, way) in [("-4", SERVICE_NETWORK, v4), ("-6", SERVICE_NETWORK_V6, v6)] {
        match way {
            Some([node, host]) => {
                ip(&[family, "route", "replace", network, "via", &node, "src", &host])?;
            }
            None => {
                let show = [family, "route", "show", network];
                if !output(&mut words("ip", &show))?.trim().is_empty() {
                    ip(&[family, "route", "delete", network])?;
                }
            }
        }
    }
    Ok(())
}

/// All links of the sandbox on the host.
pub fn links() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net").context("listing network links")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if is_ours(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_ours(name: &str) -> bool {
    NETWORKS.iter().any(|network| {
        let machine = name.strip_prefix(network.prefix);
        name == network.bridge
            || machine.is_some_and(|machine| {
                machine == CONTROL_PLANE_SHORT || Node::parse(machine).is_ok()
            })
    })
}

/// Removes all links of the sandbox.
pub fn remove() -> Result<()> {
    links()?.iter().try_for_each(|link| delete(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_ours_by_name_and_short_enough() {
        for node in Node::first(u8::MAX) {
            for link in cables(&node.name()) {
                assert!(is_ours(&link) && link.len() <= 15, "{link}");
            }
        }
        for link in cables(CONTROL_PLANE_SHORT) {
            assert!(is_ours(&link) && link.len() <= 15, "{link}");
        }
        assert!(is_ours("ts0") && is_ours("ts1"));
        assert!(!is_ours("eth0") && !is_ours("ts-other") && !is_ours("ts2"));
    }

    #[test]
    fn a_link_is_up_when_the_lowest_flag_is_set() {
        assert!(has_up_flag("0x1003\n"));
        assert!(!has_up_flag("0x1002\n"));
        assert!(!has_up_flag(""));
    }
}
