//! The cables between nodes and host: a bridge with one veth pair per node.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{
    cmd::{ip, output, words},
    layout::{BRIDGE, HOST_ADDRESS, Node, SERVICE_NETWORK},
};

const BRIDGE_MAC: &str = "02:54:53:00:00:00";

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

/// Whether the node's cable is there.
pub fn connected(node: Node) -> bool {
    exists(&node.link())
}

/// Whether the node's cable is there but cut.
pub fn partitioned(node: Node) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{}/flags", node.link()));
    flags.is_ok_and(|flags| !has_up_flag(&flags))
}

fn has_up_flag(flags: &str) -> bool {
    let number = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    number.is_ok_and(|flags| flags & 1 == 1)
}

/// Makes the bridge, or completes it.
pub fn ensure_bridge() -> Result<()> {
    if !exists(BRIDGE) {
        ip(&["link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"])?;
    }
    ip(&["address", "replace", &format!("{HOST_ADDRESS}/24"), "dev", BRIDGE])?;
    // The host is on the pods' network, too: it reaches pods (webhooks), and they it.
    ip(&["address", "replace", "10.244.0.1/16", "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Plugs a new cable into the network namespace of process `pid`, where its end is called `eth0`.
pub fn connect(node: Node, pid: i32) -> Result<()> {
    disconnect(node)?;
    let (link, pid) = (node.link(), pid.to_string());
    ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid])
        .with_context(|| format!("connecting {}", node.name()))?;
    ip(&["link", "set", &link, "master", BRIDGE, "up"])
}

/// Removes the node's cable.
pub fn disconnect(node: Node) -> Result<()> {
    delete(&node.link())
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

/// Cuts (`false`) or repairs the node's cable.
pub fn set_up(node: Node, up: bool) -> Result<()> {
    ip(&["link", "set", &node.link(), if up { "up" } else { "down" }])
}

/// Lets the host reach ClusterIPs through this node, or not at all.
pub fn route_services(through: Option<Node>) -> Result<()> {
    match through {
        Some(node) => ip(&[
            "route", "replace", SERVICE_NETWORK, "via", &node.address(), "dev", BRIDGE, "src",
            HOST_ADDRESS,
        ]),
        None => {
            let route = output(&mut words("ip", &["route", "show", SERVICE_NETWORK]))?;
            let there = !route.trim().is_empty();
            if there { ip(&["route", "delete", SERVICE_NETWORK]) } else { Ok(()) }
        }
    }
}

/// All links of the sandbox on the host.
pub fn links() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net").context("listing network links")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == BRIDGE || name.strip_prefix("ts-").is_some_and(|name| Node::parse(name).is_ok())
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes all links of the sandbox.
pub fn remove() -> Result<()> {
    links()?.iter().try_for_each(|link| delete(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_up_when_the_lowest_flag_is_set() {
        assert!(has_up_flag("0x1003\n"));
        assert!(!has_up_flag("0x1002\n"));
        assert!(!has_up_flag(""));
    }
}
