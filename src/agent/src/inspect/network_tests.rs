//! A pod's network as it is put together from what was seen.

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
        addresses: ["127.0.0.1", "::1", "10.244.9.9"].map(|ip| (ip.parse().unwrap(), 32)).to_vec(),
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
        // Of no other route are these the way.
        route("10.9.9.9", 32, None),
        route("fd09::9", 128, None),
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
        [
            "10.9.0.0/16 via 10.244.1.9",
            "fd00::/48",
            "fd09::/64 via fd00::9",
            "10.9.9.9/32",
            "fd09::9/128"
        ]
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
    let routes =
        [route("10.244.0.0", 16, None), route("fd00::", 64, None), route("2001:db8::", 64, None)];
    let facts = facts(&[both], &routes, &[], &[]);
    assert!(facts.other_routes.is_empty(), "{:?}", facts.other_routes);
    assert_eq!(facts.other_addresses, ["fd00::5/64", "2001:db8::5/64"]);
}

#[test]
fn a_neighbour_that_is_no_gateway_was_set_by_somebody() {
    let neighbours = ["169.254.1.1", "10.244.1.9", "fe80::1", "fd00::9"]
        .map(|ip| Neighbour { ip: ip.parse().unwrap(), text: format!("{ip} dev eth0") });
    let routes = [
        route("0.0.0.0", 0, Some("169.254.1.1")),
        route("169.254.1.1", 32, None),
        route("::", 0, Some("fe80::1")),
    ];
    assert_eq!(
        static_neighbours(&neighbours, &routes),
        ["10.244.1.9 dev eth0", "fd00::9 dev eth0"]
    );
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

fn tracked(protocol: u8, original: [&str; 2], reply: [&str; 2]) -> Tracked {
    let [from, to] = original;
    let [reply_from, reply_to] = reply;
    serde_json::from_value(serde_json::json!({
        "protocol": protocol, "timeout": 9, "status": 14,
        "original": {"from": from, "to": to},
        "reply": {"from": reply_from, "to": reply_to},
    }))
    .unwrap()
}

/// A connection to the outside, which the node gives its own address where `masked`.
fn outgoing(protocol: u8, from: &str, to: &str, masked: bool) -> Tracked {
    tracked(protocol, [from, to], [to, if masked { "192.0.2.1:61000" } else { from }])
}

fn peer(address: &str, local_ports: &[u16]) -> PeerFacts {
    PeerFacts {
        address: address.into(),
        connections: local_ports.len() as u64,
        local_ports: local_ports.to_vec(),
    }
}

#[test]
fn open_connections_that_leave_with_the_nodes_address_are_told_by_peer_whatever_their_protocol() {
    let (web, dns) = ("203.0.113.9:443", "203.0.113.53:53");
    // A pod that reaches itself through its Service: of the first it has the opener's end, of the second the other's.
    let own = ["10.96.0.7:80", "10.244.1.5:8080"];
    let through_itself = |from| tracked(6, [from, own[0]], [own[1], "10.244.1.1:61001"]);
    let all = [
        outgoing(6, "10.244.1.5:4000", web, true),
        outgoing(6, "10.244.1.5:4001", web, true),
        outgoing(6, "10.244.1.5:4002", web, false),
        outgoing(6, "10.244.1.5:4003", web, true),
        outgoing(17, "10.244.1.5:4004", dns, true),
        tracked(
            6,
            ["[fd00::5]:4005", "[2001:db8::9]:443"],
            ["[2001:db8::9]:443", "[2001:db8::1]:4005"],
        ),
        through_itself("10.244.1.5:4006"),
        through_itself("10.244.1.5:4007"),
    ];
    // All but that of port 4003, which was closed a moment ago.
    let mut open: HashSet<End> = all.iter().map(|tracked| tracked.ends()[0]).collect();
    open.remove(&all[3].ends()[0]);
    open.remove(&all[7].ends()[0]);
    open.insert(all[7].ends()[1]);
    let translated = translated(&all, &open);
    let (found, more) = by_peer(translated.iter().map(|tracked| tracked.ends()[0]));
    assert_eq!(
        found,
        [
            peer("10.96.0.7:80", &[4006, 4007]),
            peer("203.0.113.9:443", &[4000, 4001]),
            peer("203.0.113.53:53/UDP", &[4004]),
            peer("[2001:db8::9]:443", &[4005]),
        ]
    );
    assert_eq!(more, 0);

    // Of the virtual services of IPVS, those that are not among them already.
    let services = [(6, own[0]), (6, web), (17, web), (6, dns)];
    let services = services.map(|(protocol, to)| (protocol, to.parse().unwrap()));
    let (found, _) = by_peer(balanced(&open, &HashSet::from(services), &translated));
    assert_eq!(found, [peer(web, &[4002])]);
}

#[test]
fn peers_beyond_the_most_that_are_told_are_counted() {
    let connections = (0..300_u16).map(|n| -> End {
        let to = SocketAddr::from(([198, 51, (n / 256) as u8, n as u8], 443));
        (6, SocketAddr::from(([10, 244, 1, 5], 4000 + n)), to)
    });
    let (found, more) = by_peer(connections.clone().chain(connections));
    assert_eq!((found.len(), more), (MAX_PEERS, 300 - MAX_PEERS as u64));
    assert!(found.iter().all(|peer| peer.connections == 2));
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
    write("20-later.conf", r#"{"type":"macvlan","master":"eth1","ipam":{"subnet":"10.0.0.0/8"}}"#);
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
