//! The network of a pod, seen from within its namespace, and the node's CNI configuration.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;
use transship_core::facts::{CniFacts, MAX_PEERS, NetworkFacts, PeerFacts};
use transship_host::network::conntrack::{self, Tracked};
use transship_host::network::{End, NetNs};

use super::net_tables::{self, IPPROTO_UDP, Route, VirtualService};
use super::netlink::{self, UnixSocket};
use super::settings::{self, Neighbour, Settings};
use super::sysctls;

/// One interface with its addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: String,
    /// Global addresses with the length of their prefix.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// What is asked for within the namespaces of a process.
#[derive(Debug, Clone, Default)]
pub struct Within {
    pub interfaces: Vec<Interface>,
    /// Texts of `/proc/sysvipc/{shm,sem,msg}`.
    pub sysv: [String; 3],
    /// Unix sockets by inode.
    pub unix: BTreeMap<u64, UnixSocket>,
    /// Routing rules besides the kernel's own.
    pub rules: Vec<String>,
    /// What else was set.
    pub settings: Settings,
    /// Kernel parameters.
    pub parameters: sysctls::Values,
}

/// Looks around within the namespaces of a process.
pub fn look_within(proc: &Path, pid: i32) -> std::io::Result<Within> {
    let procfs = proc.to_owned();
    within(proc, pid, move || {
        let sysvipc = procfs.join("sysvipc");
        let read = |name: &str| std::fs::read_to_string(sysvipc.join(name)).unwrap_or_default();
        Ok(Within {
            interfaces: interfaces()?,
            sysv: [read("shm"), read("sem"), read("msg")],
            unix: netlink::unix_sockets()?,
            rules: netlink::routing_rules()?,
            settings: settings::settings()?,
            parameters: sysctls::values(&procfs)?,
        })
    })
}

/// The Unix sockets of a process's network namespace, by inode.
pub fn unix_sockets(proc: &Path, pid: i32) -> std::io::Result<BTreeMap<u64, UnixSocket>> {
    within(proc, pid, netlink::unix_sockets)
}

/// Looks around in a network namespace that is made for it.
pub fn in_new_namespace<T: Send + 'static>(
    look: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    apart(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        look()
    })
}

/// Enters the network and IPC namespaces of a process and looks around there.
fn within<T: Send + 'static>(
    proc: &Path,
    pid: i32,
    look: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let open = |kind: &str| std::fs::File::open(proc.join(format!("{pid}/ns/{kind}")));
    let namespaces = [open("net")?, open("ipc")?];
    apart(move || {
        use std::os::fd::AsFd;
        for namespace in &namespaces {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
        }
        look()
    })
}

/// On a thread of its own, which ends in the namespaces that it has entered.
fn apart<T: Send + 'static>(
    look: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let looking = std::thread::Builder::new().name("within".into()).spawn(look)?;
    looking.join().unwrap_or_else(|_| Err(std::io::Error::other("the looking thread failed")))
}

fn interfaces() -> std::io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in nix::ifaddrs::getifaddrs()? {
        let at = match found.iter().position(|i| i.name == entry.interface_name) {
            Some(at) => at,
            None => {
                let name = entry.interface_name.clone();
                found.push(Interface { name, ..Interface::default() });
                found.len() - 1
            }
        };
        let Some(address) = entry.address else { continue };
        if let Some(link) = address.as_link_addr() {
            let bytes = link.addr().unwrap_or_default();
            found[at].mac = bytes.map(|byte| format!("{byte:02x}")).join(":");
        }
        let mask = entry.netmask;
        if let Some(v4) = address.as_sockaddr_in() {
            let mask = mask.and_then(|m| m.as_sockaddr_in().map(|m| u32::from(m.ip())));
            let prefix = mask.unwrap_or(u32::MAX).count_ones() as u8;
            found[at].addresses.push((v4.ip().into(), prefix));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            let mask = mask.and_then(|m| m.as_sockaddr_in6().map(|m| u128::from(m.ip())));
            let prefix = mask.unwrap_or(u128::MAX).count_ones() as u8;
            // Link-local addresses follow from the hardware address.
            if !v6.ip().is_unicast_link_local() {
                found[at].addresses.push((v6.ip().into(), prefix));
            }
        }
    }
    Ok(found)
}

/// Puts together what was seen. `interfaces` and `routes` are those of the pod, and so are the addresses
/// that its kernel has `learned` by itself.
pub fn facts(
    interfaces: &[Interface],
    routes: &[Route],
    learned: &[IpAddr],
    tables: &[&str],
) -> NetworkFacts {
    let connections = net_tables::connections(tables);
    let default = routes.iter().find(|route| route.prefix == 0);
    let others = || interfaces.iter().filter(|interface| interface.name != "lo");
    let main = default
        .and_then(|route| others().find(|interface| interface.name == route.interface))
        .or_else(|| others().find(|interface| !interface.addresses.is_empty()));
    let mut facts = NetworkFacts {
        peers: connections.peers,
        connections: connections.established,
        listening: connections.listening,
        gateway: default
            .and_then(|route| route.gateway)
            .map(|gateway| gateway.to_string())
            .unwrap_or_default(),
        ..NetworkFacts::default()
    };
    // The first of each family, of those that were given. IPv4 before IPv6: it is the address that
    // `status.podIP` names in all but IPv6-only clusters.
    let mut own: Vec<&(IpAddr, u8)> = Vec::new();
    if let Some(main) = main {
        facts.interface = main.name.clone();
        facts.mac = main.mac.clone();
        let of = |v4: bool| {
            let of_family = main.addresses.iter().filter(|(ip, _)| ip.is_ipv4() == v4);
            of_family.min_by_key(|(ip, _)| learned.contains(ip))
        };
        own.extend(of(true).into_iter().chain(of(false)));
        let further = main.addresses.iter().filter(|address| !own.contains(address));
        facts.further_addresses = further
            .filter(|(ip, _)| !learned.contains(ip))
            .map(|(ip, prefix)| format!("{ip}/{prefix}"))
            .collect();
    }
    let first = own.first().copied();
    if let Some((ip, prefix)) = first {
        facts.ip = ip.to_string();
        facts.prefix = *prefix;
    }
    let loopback = interfaces.iter().filter(|interface| interface.name == "lo");
    facts.loopback_addresses = loopback
        .flat_map(|interface| &interface.addresses)
        .filter(|(ip, _)| !ip.is_loopback())
        .map(|(ip, _)| ip.to_string())
        .collect();
    for interface in others() {
        if interface.name != facts.interface {
            facts.other_interfaces.push(interface.name.clone());
        }
        for address in &interface.addresses {
            if Some(address) != first {
                facts.other_addresses.push(format!("{}/{}", address.0, address.1));
            }
        }
    }
    let addresses = main.map_or(&[][..], |main| &main.addresses);
    facts.other_routes = routes
        .iter()
        .filter(|route| route.prefix != 0 && !implied(route, addresses, routes))
        .map(|route| {
            let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            format!("{}/{}{via}", route.destination, route.prefix)
        })
        .collect();
    facts
}

/// Static neighbours, but for gateways: some network plugins set those themselves, and on the target anew.
pub fn static_neighbours(found: &[Neighbour], routes: &[Route]) -> Vec<String> {
    let is_gateway = |ip: IpAddr| routes.iter().any(|route| route.gateway == Some(ip));
    let others = found.iter().filter(|neighbour| !is_gateway(neighbour.ip));
    others.map(|neighbour| neighbour.text.clone()).collect()
}

/// Adds with whom the pod has connections that another node cannot go on with: of what the holder would end, those that
/// leave with the node's own address, and those that its IPVS leads. `pid` is in the pod's network namespace; the agent
/// is in the node's.
pub fn look_at_connections(
    proc: &Path,
    pid: i32,
    network: &mut NetworkFacts,
) -> Result<(), String> {
    let ips = addresses(network);
    if ips.is_empty() {
        return Ok(());
    }
    let namespace = NetNs::at(proc.join(format!("{pid}/ns/net")));
    let sockets = namespace.sockets().map_err(|error| error.chain())?;
    let held = sockets.iter().filter(|socket| socket.is_held);
    let open: HashSet<End> = held.filter_map(|socket| socket.end()).collect();
    let services = std::fs::read_to_string(proc.join("net/ip_vs")).unwrap_or_default();
    let services = net_tables::virtual_services(&services);
    let tracked = match conntrack::opened_from(&ips) {
        // A kernel that tracks nothing translates nothing.
        Err(_) if !proc.join("sys/net/netfilter/nf_conntrack_count").exists() => Vec::new(),
        tracked => tracked.map_err(|error| error.chain())?,
    };
    let translated = translated(&tracked, &open);
    let balanced = balanced(&open, &services, &translated);
    let openers = translated.iter().map(|tracked| tracked.ends()[0]);
    (network.translated, network.translated_more) = by_peer(openers);
    (network.balanced, network.balanced_more) = by_peer(balanced);
    Ok(())
}

/// What leaves with the node's own address, of connections that are open at the end that the pod has.
fn translated<'a>(tracked: &'a [Tracked], open: &HashSet<End>) -> Vec<&'a Tracked> {
    let is_open = |tracked: &Tracked| tracked.ends().iter().any(|end| open.contains(end));
    tracked.iter().filter(|tracked| tracked.changes_source() && is_open(tracked)).collect()
}

/// The other open connections that lead to a virtual service.
fn balanced(
    open: &HashSet<End>,
    services: &HashSet<VirtualService>,
    translated: &[&Tracked],
) -> Vec<End> {
    let ended: HashSet<End> = translated.iter().flat_map(|tracked| tracked.ends()).collect();
    let is_led = |(protocol, _, to): &End| services.contains(&(*protocol, *to));
    open.iter().filter(|end| is_led(end) && !ended.contains(*end)).copied().collect()
}

/// All addresses of the pod. None where they are the node's: of those there may be thousands, each of which
/// takes a walk through all that is tracked, and such a pod does not move.
fn addresses(network: &NetworkFacts) -> Vec<IpAddr> {
    if network.host_network {
        return Vec::new();
    }
    let texts = [network.ip.as_str()].into_iter().chain(network.other_ips());
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The first peers, and how many more there are.
fn by_peer(connections: impl IntoIterator<Item = End>) -> (Vec<PeerFacts>, u64) {
    let mut peers: BTreeMap<(SocketAddr, u8), PeerFacts> = BTreeMap::new();
    for (protocol, from, to) in connections {
        let peer = peers.entry((to, protocol)).or_insert_with(|| PeerFacts {
            address: if protocol == IPPROTO_UDP { format!("{to}/UDP") } else { to.to_string() },
            ..PeerFacts::default()
        });
        peer.connections += 1;
        if peer.local_ports.len() < 8 {
            peer.local_ports.push(from.port());
        }
    }
    let more = peers.len().saturating_sub(MAX_PEERS) as u64;
    (peers.into_values().take(MAX_PEERS).collect(), more)
}

/// Whether a route says nothing that the target's plugin and kernel do not say by themselves: the kernel makes
/// it for one of the addresses, it is the way to the gateway of another route, as plugins with addresses of full
/// length add it, or it leads where its family's default route leads anyhow, as those of flannel and ptp do.
fn implied(route: &Route, addresses: &[(IpAddr, u8)], routes: &[Route]) -> bool {
    let is_v4 = route.destination.is_ipv4();
    if route.gateway.is_some() {
        let mut of_family = routes.iter().filter(|other| other.destination.is_ipv4() == is_v4);
        let default = of_family.find(|other| other.prefix == 0);
        return default.is_some_and(|default| {
            (default.gateway, &default.interface) == (route.gateway, &route.interface)
        });
    }
    let is_way = |other: &Route| other.gateway == Some(route.destination);
    let is_net_of = |ip: IpAddr, prefix: u8| {
        route.prefix == prefix && Some(route.destination) == network_of(ip, prefix)
    };
    let is_to_gateway = route.is_to_one() && routes.iter().any(is_way);
    is_to_gateway || addresses.iter().any(|(ip, prefix)| is_net_of(*ip, *prefix))
}

/// The network that an address is in; `None` where the prefix is longer than the address.
fn network_of(ip: IpAddr, prefix: u8) -> Option<IpAddr> {
    let prefix = u32::from(prefix);
    Some(match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(prefix)?).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(prefix)?).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    })
}

/// The configuration that containerd uses: the first by name of the usable files.
pub fn cni(dir: &Path) -> Result<CniFacts, String> {
    let names = std::fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut files: Vec<PathBuf> = names
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .collect();
    files.sort();
    for file in &files {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        let Ok(value) = serde_json::from_str::<Value>(&text) else { continue };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        return Ok(cni_facts(&name, &value));
    }
    Err(format!("{} holds no CNI configuration", dir.display()))
}

fn cni_facts(file: &str, value: &Value) -> CniFacts {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let plugins = match value["plugins"].as_array() {
        Some(list) => list.clone(),
        None => vec![value.clone()],
    };
    let first = plugins.first().cloned().unwrap_or_default();
    let ipam = &first["ipam"];
    let mut subnets: Vec<String> = Vec::new();
    collect_subnets(ipam, &mut subnets);
    let device = ["bridge", "master"].iter().find_map(|key| first[key].as_str());
    CniFacts {
        file: file.to_owned(),
        name: text(&value["name"]),
        plugins: plugins.iter().map(|plugin| text(&plugin["type"])).collect(),
        ipam: text(&ipam["type"]),
        subnets,
        device: device.unwrap_or_default().to_owned(),
    }
}

/// `subnet` on top, or in `ranges`, which is a list of lists.
fn collect_subnets(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("subnet").and_then(Value::as_str).map(str::to_owned));
            if let Some(ranges) = map.get("ranges") {
                collect_subnets(ranges, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|item| collect_subnets(item, found)),
        _ => {}
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
