//! The network of a pod, seen from within its namespace, and the node's CNI configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde_json::Value;
use transship_core::facts::{CniFacts, MAX_PEERS, NetworkFacts, PeerFacts};
use transship_host::network::conntrack::{self, Tracked};

use super::netlink::{self, UnixSocket};
use super::proc::{self, Route};

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
}

/// Enters the network and IPC namespaces of a process with a thread of its own, which ends there.
pub fn look_within(proc: &Path, pid: i32) -> std::io::Result<Within> {
    let open = |kind: &str| std::fs::File::open(proc.join(format!("{pid}/ns/{kind}")));
    let namespaces = [open("net")?, open("ipc")?];
    let proc = proc.to_path_buf();
    let looking = std::thread::Builder::new().name("within".into()).spawn(move || {
        use std::os::fd::AsFd;
        for namespace in &namespaces {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
        }
        let read = |name: &str| {
            std::fs::read_to_string(proc.join("sysvipc").join(name)).unwrap_or_default()
        };
        Ok(Within {
            interfaces: interfaces()?,
            sysv: [read("shm"), read("sem"), read("msg")],
            unix: netlink::unix_sockets()?,
            rules: netlink::routing_rules()?,
        })
    })?;
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
    let connections = proc::connections(tables);
    let default = routes.iter().find(|route| route.prefix == 0);
    let others = || interfaces.iter().filter(|interface| interface.name != "lo");
    let main = default
        .and_then(|route| others().find(|interface| interface.name == route.interface))
        .or_else(|| others().find(|interface| !interface.addresses.is_empty()));
    let mut facts = NetworkFacts {
        peers: connections.peers,
        connections: connections.established,
        half_open: connections.half_open,
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

/// Peers of established TCP connections that were opened from one of the pod's addresses and leave with the
/// node's own. The agent is in the node's network namespace.
pub fn translated(network: &NetworkFacts) -> Result<Vec<PeerFacts>, String> {
    let ips = addresses(network);
    if ips.is_empty() {
        return Ok(Vec::new());
    }
    let tracked = conntrack::opened_from(&ips).map_err(|error| error.chain())?;
    Ok(by_peer(&tracked))
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

fn by_peer(tracked: &[Tracked]) -> Vec<PeerFacts> {
    let mut peers: BTreeMap<String, PeerFacts> = BTreeMap::new();
    for tracked in tracked.iter().filter(|t| t.changes_source() && t.is_established()) {
        let address = tracked.original.to.to_string();
        if peers.len() >= MAX_PEERS && !peers.contains_key(&address) {
            continue;
        }
        let peer = peers.entry(address.clone()).or_default();
        peer.address = address;
        peer.connections += 1;
        if peer.local_ports.len() < 8 {
            peer.local_ports.push(tracked.original.from.port());
        }
    }
    peers.into_values().collect()
}

/// Whether a route says nothing that the target's plugin and kernel do not say by themselves: the kernel makes
/// it for one of the addresses, it is the way to the gateway that plugins with addresses of full length add,
/// or it leads where its family's default route leads anyhow, as those of flannel and ptp do.
fn implied(route: &Route, addresses: &[(IpAddr, u8)], routes: &[Route]) -> bool {
    let is_v4 = route.destination.is_ipv4();
    if route.gateway.is_some() {
        let mut of_family = routes.iter().filter(|other| other.destination.is_ipv4() == is_v4);
        let default = of_family.find(|other| other.prefix == 0);
        return default.is_some_and(|default| {
            (default.gateway, &default.interface) == (route.gateway, &route.interface)
        });
    }
    let full = if is_v4 { 32 } else { 128 };
    let is_net_of = |ip: IpAddr, prefix: u8| {
        route.prefix == prefix && Some(route.destination) == network_of(ip, prefix)
    };
    route.prefix == full || addresses.iter().any(|(ip, prefix)| is_net_of(*ip, *prefix))
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
mod tests {
    use super::*;

    fn eth0() -> Interface {
        Interface {
            name: "eth0".into(),
            mac: "02:00:0a:f4:01:05".into(),
            addresses: vec![("fd00::5".parse().unwrap(), 64), ("10.244.1.5".parse().unwrap(), 16)],
        }
    }

    fn route(destination: &str, prefix: u8, gateway: Option<&str>) -> Route {
        Route {
            interface: "eth0".into(),
            destination: destination.parse().unwrap(),
            prefix,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        }
    }

    #[test]
    fn the_main_interface_is_that_of_the_default_route() {
        let lo = Interface {
            name: "lo".into(),
            addresses: ["127.0.0.1", "::1", "10.244.9.9"]
                .map(|ip| (ip.parse().unwrap(), 32))
                .to_vec(),
            ..Interface::default()
        };
        let second = Interface { name: "net1".into(), ..Interface::default() };
        let routes = [
            route("0.0.0.0", 0, Some("10.244.1.1")),
            route("10.244.0.0", 16, None),
            route("10.244.1.1", 32, None),
            route("10.9.0.0", 16, Some("10.244.1.9")),
            route("::", 0, Some("fd00::1")),
            route("fd00::", 64, None),
            route("fd00::1", 128, None),
            route("fd00::", 48, None),
            route("fd09::", 64, Some("fd00::9")),
        ];
        let facts = facts(&[lo, second, eth0()], &routes, &[], &[]);
        assert_eq!(
            (facts.interface.as_str(), facts.ip.as_str(), facts.prefix),
            ("eth0", "10.244.1.5", 16)
        );
        assert_eq!(facts.mac, "02:00:0a:f4:01:05");
        assert_eq!(facts.gateway, "10.244.1.1");
        assert_eq!(facts.other_interfaces, ["net1"]);
        assert_eq!(facts.other_addresses, ["fd00::5/64"]);
        assert!(facts.further_addresses.is_empty(), "{:?}", facts.further_addresses);
        assert_eq!(
            facts.other_routes,
            ["10.9.0.0/16 via 10.244.1.9", "fd00::/48", "fd09::/64 via fd00::9"]
        );
        assert_eq!(facts.loopback_addresses, ["10.244.9.9"]);
        let ips: Vec<String> = addresses(&facts).iter().map(IpAddr::to_string).collect();
        assert_eq!(ips, ["10.244.1.5", "fd00::5"]);
    }

    #[rstest::rstest]
    // flannel: the cluster's networks, beside the node's own.
    #[case(route("10.0.0.0", 8, Some("10.244.1.1")), true)]
    #[case(route("fd00::", 48, Some("fd00::1")), true)]
    // ptp: the own network, in the place of the kernel's route.
    #[case(route("10.244.0.0", 16, Some("10.244.1.1")), true)]
    #[case(route("fd00::", 64, Some("fd00::1")), true)]
    #[case(route("10.9.0.0", 16, Some("10.244.1.9")), false)]
    #[case(route("10.244.0.0", 16, Some("10.244.1.9")), false)]
    #[case(route("fd09::", 64, Some("fd00::9")), false)]
    #[case(route("10.9.0.0", 16, None), false)]
    #[case(Route { interface: "net1".into(), ..route("10.9.0.0", 16, Some("10.244.1.1")) }, false)]
    fn a_route_through_the_default_gateway_of_its_family_says_nothing_more(
        #[case] further: Route,
        #[case] implied: bool,
    ) {
        let defaults = [route("0.0.0.0", 0, Some("10.244.1.1")), route("::", 0, Some("fd00::1"))];
        let of = |defaults: &[Route]| {
            let routes = [defaults, std::slice::from_ref(&further)].concat();
            facts(&[eth0()], &routes, &[], &[]).other_routes
        };
        assert_eq!(of(&defaults).is_empty(), implied, "{:?}", of(&defaults));
        // That of the other family does not count.
        let others = defaults
            .iter()
            .filter(|other| other.destination.is_ipv4() != further.destination.is_ipv4());
        let others: Vec<Route> = others.cloned().collect();
        assert_eq!(of(&others).len(), 1);
    }

    #[test]
    fn the_network_of_each_address_is_implied() {
        let mut both = eth0();
        both.addresses.push(("2001:db8::5".parse().unwrap(), 64));
        let routes = [
            route("10.244.0.0", 16, None),
            route("fd00::", 64, None),
            route("2001:db8::", 64, None),
        ];
        let facts = facts(&[both], &routes, &[], &[]);
        assert!(facts.other_routes.is_empty(), "{:?}", facts.other_routes);
        assert_eq!(facts.other_addresses, ["fd00::5/64", "2001:db8::5/64"]);
    }

    #[test]
    fn what_is_tracked_of_the_nodes_own_addresses_is_not_looked_at() {
        let mut facts = NetworkFacts { ip: "192.0.2.1".into(), ..NetworkFacts::default() };
        facts.other_addresses = vec!["10.96.0.1/32".into(), "10.96.0.10/32".into()];
        assert_eq!(addresses(&facts).len(), 3);
        facts.host_network = true;
        assert!(addresses(&facts).is_empty());
    }

    #[test]
    fn a_pod_of_ipv6_alone_has_its_address_and_gateway_from_there() {
        let only = Interface { addresses: vec![("fd00::5".parse().unwrap(), 64)], ..eth0() };
        let facts =
            facts(&[only], &[route("::", 0, Some("fd00::1")), route("fd00::", 64, None)], &[], &[]);
        assert_eq!((facts.ip.as_str(), facts.prefix), ("fd00::5", 64));
        assert_eq!(facts.gateway, "fd00::1");
        assert!(facts.other_routes.is_empty(), "{:?}", facts.other_routes);
    }

    #[test]
    fn an_address_that_somebody_added_is_told_and_one_that_was_learned_is_not() {
        let [learned, mine, given]: [IpAddr; 3] =
            ["2001:db8::5", "fd00::6", "10.244.99.99"].map(|ip| ip.parse().unwrap());
        let mut interface = eth0();
        interface.addresses.insert(0, (learned, 64));
        interface.addresses.extend([(mine, 128), (given, 32)]);
        let facts = facts(&[interface], &[], &[learned], &[]);
        assert_eq!(facts.further_addresses, ["fd00::6/128", "10.244.99.99/32"]);
        assert_eq!(facts.ip, "10.244.1.5");
        assert_eq!(facts.other_addresses.len(), 4);
    }

    #[rstest::rstest]
    #[case("10.244.1.5", 16, Some("10.244.0.0"))]
    #[case("10.244.1.5", 0, Some("0.0.0.0"))]
    #[case("10.244.1.5", 33, None)]
    #[case("fd00:1::5", 64, Some("fd00:1::"))]
    #[case("fd00:1::5", 128, Some("fd00:1::5"))]
    fn an_address_is_in_its_network(
        #[case] ip: &str,
        #[case] prefix: u8,
        #[case] network: Option<&str>,
    ) {
        let found = network_of(ip.parse().unwrap(), prefix).map(|ip| ip.to_string());
        assert_eq!(found.as_deref(), network);
    }

    #[test]
    fn peers_that_see_the_nodes_address_are_counted() {
        let tracked = |port: u16, reply_to: &str, state: u8| -> Tracked {
            serde_json::from_value(serde_json::json!({
                "protocol": 6,
                "original": {"from": format!("10.244.1.5:{port}"), "to": "203.0.113.9:443"},
                "reply": {"from": "203.0.113.9:443", "to": reply_to},
                "timeout": 9, "status": 14, "tcpState": state
            }))
            .unwrap()
        };
        let found = by_peer(&[
            tracked(4000, "192.0.2.1:4000", 3),
            tracked(4001, "192.0.2.1:61000", 3),
            tracked(4002, "192.0.2.1:4002", 7),
            tracked(4003, "10.244.1.5:4003", 3),
            serde_json::from_value(serde_json::json!({
                "protocol": 6,
                "original": {"from": "[fd00::5]:4004", "to": "[2001:db8::9]:443"},
                "reply": {"from": "[2001:db8::9]:443", "to": "[2001:db8::1]:4004"},
                "timeout": 9, "status": 14, "tcpState": 3
            }))
            .unwrap(),
        ]);
        let peer = |address: &str, local_ports: Vec<u16>| PeerFacts {
            address: address.into(),
            connections: local_ports.len() as u64,
            local_ports,
        };
        assert_eq!(
            found,
            [peer("203.0.113.9:443", vec![4000, 4001]), peer("[2001:db8::9]:443", vec![4004])]
        );
    }

    #[test]
    fn a_pod_without_network_has_no_address() {
        let facts = facts(&[], &[], &[], &[]);
        assert_eq!(facts, NetworkFacts::default());
    }

    #[test]
    fn the_cni_configuration_is_the_first_usable_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(cni(dir.path()).is_err());
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("00-broken.conflist", "{");
        write("05-readme.txt", "{}");
        write(
            "10-flat.conflist",
            r#"{"cniVersion":"1.0.0","name":"flat","plugins":[
                {"type":"bridge","bridge":"cni0","ipam":{"type":"host-local",
                 "ranges":[[{"subnet":"10.244.0.0/16"}],[{"subnet":"fd00::/64"}]]}},
                {"type":"transship-cni"}]}"#,
        );
        write(
            "20-later.conf",
            r#"{"type":"macvlan","master":"eth1","ipam":{"subnet":"10.0.0.0/8"}}"#,
        );
        let found = cni(dir.path()).unwrap();
        assert_eq!(found.name, "flat");
        assert_eq!(found.plugins, ["bridge", "transship-cni"]);
        assert_eq!((found.ipam.as_str(), found.device.as_str()), ("host-local", "cni0"));
        assert_eq!(found.subnets, ["10.244.0.0/16", "fd00::/64"]);
        std::fs::remove_file(dir.path().join("10-flat.conflist")).unwrap();
        let found = cni(dir.path()).unwrap();
        assert_eq!(found.plugins, ["macvlan"]);
        assert_eq!((found.device.as_str(), found.subnets.len()), ("eth1", 1));
    }

    #[test]
    fn this_process_own_namespaces_can_be_looked_into() {
        // Needs the right to enter namespaces; without it the error says so.
        match look_within(Path::new("/proc"), std::process::id() as i32) {
            Ok(within) => assert!(within.interfaces.iter().any(|i| i.name == "lo")),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        }
    }
}
