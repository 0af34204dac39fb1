//! The tables of `/proc/PID/net`, parsed: connections, routes and addresses of a network namespace. Pure; lines
//! that are strange are left out.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use transship_core::facts::{ListenFacts, MAX_PEERS, PeerFacts};

/// Flag of linux/route.h, for both families.
const UP: u32 = 1;
const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;

/// A virtual service of IPVS: protocol and address.
pub type VirtualService = (u8, SocketAddr);

/// Connections and listeners of one or two tables (`tcp`, `tcp6`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Connections {
    pub peers: Vec<PeerFacts>,
    pub established: u64,
    pub listening: Vec<ListenFacts>,
}

/// Reads `/proc/PID/net/tcp` and `tcp6`. Connections within the pod are left out.
pub fn connections(tables: &[&str]) -> Connections {
    let mut found = Connections::default();
    let mut peers: BTreeMap<IpAddr, PeerFacts> = BTreeMap::new();
    for line in tables.iter().flat_map(|table| table.lines().skip(1)) {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ends = (fields.next().and_then(socket), fields.next().and_then(socket));
        let (Some((local, port)), Some((remote, _))) = ends else { continue };
        match fields.next().unwrap_or_default() {
            "0A" => {
                found.listening.push(ListenFacts { address: local.to_string(), port });
            }
            // Established, and closed by one side only: both carry data still.
            "01" | "04" | "05" | "08" if local != remote && !local.is_loopback() => {
                found.established += 1;
                let peer = peers.entry(remote).or_insert_with(|| PeerFacts {
                    address: remote.to_string(),
                    ..PeerFacts::default()
                });
                peer.connections += 1;
                if peer.local_ports.len() < 8 && !peer.local_ports.contains(&port) {
                    peer.local_ports.push(port);
                }
            }
            _ => {}
        }
    }
    found.peers = peers.into_values().collect();
    found.peers.sort_by_key(|peer| std::cmp::Reverse(peer.connections));
    found.peers.truncate(MAX_PEERS);
    found
}

/// `0100007F:1F90`, as the kernel keeps addresses: words of 32 bits in the machine's order.
fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let hex = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0u8; 16];
            for index in 0..4 {
                bytes[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
            }
            let address = Ipv6Addr::from(bytes);
            address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
        }
        _ => return None,
    };
    Some((address, port))
}

/// A route of `/proc/PID/net/route` or `/proc/PID/net/ipv6_route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub interface: String,
    pub destination: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
}

impl Route {
    /// Whether it leads to one address on the link itself.
    pub fn is_to_one(&self) -> bool {
        let full = if self.destination.is_ipv4() { 32 } else { 128 };
        self.gateway.is_none() && self.prefix == full
    }
}

/// Reads `/proc/PID/net/route`; routes that are down are left out.
pub fn routes(table: &str) -> Vec<Route> {
    let address =
        |hex: &str| u32::from_str_radix(hex, 16).ok().map(|w| Ipv4Addr::from(w.to_ne_bytes()));
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
            let gateway = address(fields.get(2)?)?;
            (flags & UP != 0).then_some(Route {
                interface: (*fields.first()?).to_owned(),
                destination: address(fields.get(1)?)?.into(),
                prefix: u32::from(address(fields.get(7)?)?).count_ones() as u8,
                gateway: (!gateway.is_unspecified()).then_some(gateway.into()),
            })
        })
        .collect()
}

/// Reads `/proc/PID/net/ipv6_route`; routes that are down are left out, and those that the kernel makes or
/// learns by itself on every node: of its own addresses, of groups and links, from advertisements.
pub fn ipv6_routes(table: &str) -> Vec<Route> {
    /// Flags of linux/route.h and linux/ipv6_route.h.
    const REJECT: u32 = 0x200;
    const LEARNED: u32 = 0x4_0000;
    const ANYCAST: u32 = 0x10_0000;
    const LOCAL: u32 = 0x8000_0000;
    let address = |hex: &str| u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from);
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let destination = address(fields.first()?)?;
            let gateway = address(fields.get(4)?)?;
            let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
            let interface = (*fields.get(9)?).to_owned();
            // What is refused stands there as a route of the loopback device.
            let loopback = interface == "lo" && flags & REJECT == 0;
            let own = loopback || destination.is_multicast() || destination.is_unicast_link_local();
            if flags & UP == 0 || flags & (LEARNED | ANYCAST | LOCAL) != 0 || own {
                return None;
            }
            Some(Route {
                interface,
                destination: destination.into(),
                prefix: u8::from_str_radix(fields.get(1)?, 16).ok()?,
                gateway: (!gateway.is_unspecified()).then_some(gateway.into()),
            })
        })
        .collect()
}

/// Those addresses of `/proc/PID/net/if_inet6` that the kernel has learned from advertisements, as it does
/// on every node: all others were given to stay.
pub fn learned_addresses(table: &str) -> Vec<IpAddr> {
    /// `IFA_F_PERMANENT` of linux/if_addr.h.
    const PERMANENT: u32 = 0x80;
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let address = u128::from_str_radix(fields.first()?, 16).ok()?;
            let flags = u32::from_str_radix(fields.get(4)?, 16).ok()?;
            (flags & PERMANENT == 0).then_some(IpAddr::V6(Ipv6Addr::from(address)))
        })
        .collect()
}

/// Reads `/proc/net/ip_vs`. Services by packet mark are left out: they have no address.
pub fn virtual_services(table: &str) -> HashSet<VirtualService> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let protocol = match fields.next()? {
                "TCP" => IPPROTO_TCP,
                "UDP" => IPPROTO_UDP,
                _ => return None,
            };
            let (ip, port) = fields.next()?.rsplit_once(':')?;
            let ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
                Some(v6) => IpAddr::V6(v6.parse().ok()?),
                None => IpAddr::V4(u32::from_str_radix(ip, 16).ok()?.into()),
            };
            Some((protocol, SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 0500F40A:1F90 0C00FA0A:C350 01 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0500F40A:1F90 0C00FA0A:C351 01 00000000:00000000 00:00000000 00000000     0        0 13 1
   3: 0500F40A:1F91 0D00FA0A:C350 08 00000000:00000000 00:00000000 00000000     0        0 14 1
   4: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 15 1
   5: 0500F40A:1F90 0C00FA0A:C352 03 00000000:00000000 00:00000000 00000000     0        0 0 1
   6: 0500F40A:1F90 0C00FA0A:C353 06 00000000:00000000 00:00000000 00000000     0        0 0 1
";
    const TCP6: &str = "head
   0: 0000000000000000FFFF00000500F40A:1F90 0000000000000000FFFF00000C00FA0A:C360 01 0:0 00:0 0 0 0 16 1
   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 17 1
   broken
";

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_counted_by_peer() {
        let found = connections(&[TCP, TCP6]);
        assert_eq!(found.established, 4);
        assert_eq!(
            found.peers,
            [
                PeerFacts {
                    address: "10.250.0.12".into(),
                    connections: 3,
                    local_ports: vec![8080]
                },
                PeerFacts {
                    address: "10.250.0.13".into(),
                    connections: 1,
                    local_ports: vec![8081]
                },
            ]
        );
        let ports: Vec<_> = found.listening.iter().map(|l| (l.address.as_str(), l.port)).collect();
        assert_eq!(ports, [("0.0.0.0", 8080), ("::", 80)]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read_with_their_prefix() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0101F40A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0000F40A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t00000B0A\t0101F40A\t0002\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let found = routes(table);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].gateway, Some(Ipv4Addr::new(10, 244, 1, 1).into()));
        assert_eq!((found[0].prefix, found[1].prefix), (0, 16));
        assert_eq!(found[1].destination, Ipv4Addr::new(10, 244, 0, 0));
    }

    #[test]
    fn routes_of_ipv6_are_those_that_somebody_has_made() {
        const NONE: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000";
        let line = |destination: &str, flags: &str, interface: &str| {
            format!("{destination} {NONE} 00000100 00000001 00000000 {flags} {interface}\n")
        };
        let table = [
            line("fd000000000000000000000000000000 40", "00000001", "eth0"),
            "fd090000000000000000000000000000 30 00000000000000000000000000000000 00 \
             fd000000000000000000000000000009 00000400 00000002 00000000 00000003     eth0\n"
                .to_owned(),
            line("fd070000000000000000000000000000 10", "00000201", "lo"),
            // The kernel's own.
            line("00000000000000000000000000000000 00", "00200200", "lo"),
            line("00000000000000000000000000000001 80", "80200001", "lo"),
            line("fd000000000000000000000000000008 80", "00000001", "lo"),
            line("fd000000000000000000000000000005 80", "80200001", "eth0"),
            line("fd000000000000000000000000000000 80", "80300001", "eth0"),
            line("fe800000000000000000000000000000 40", "00000001", "eth0"),
            line("ff000000000000000000000000000000 08", "00000001", "eth0"),
            line("fd010000000000000000000000000000 40", "00040001", "eth0"),
        ];
        let found = ipv6_routes(&table.concat());
        let told: Vec<String> = found
            .iter()
            .map(|r| format!("{}/{} {:?} {}", r.destination, r.prefix, r.gateway, r.interface))
            .collect();
        assert_eq!(
            told,
            ["fd00::/64 None eth0", "fd09::/48 Some(fd00::9) eth0", "fd07::/16 None lo"]
        );
    }

    #[test]
    fn virtual_services_are_read_with_protocol_and_address() {
        let table = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0AF40105:192B      Masq    1      1          0
UDP  0A60000A:0035 rr ops
TCP  [fd96:0000:0000:0000:0000:0000:0000:0007]:0050 rr
FWM  00000001 rr
broken
";
        let service = |protocol: u8, address: &str| -> VirtualService {
            (protocol, address.parse().unwrap())
        };
        let wanted = [
            service(IPPROTO_TCP, "10.96.0.1:443"),
            service(IPPROTO_UDP, "10.96.0.10:53"),
            service(IPPROTO_TCP, "[fd96::7]:80"),
        ];
        assert_eq!(virtual_services(table), HashSet::from(wanted));
        assert!(virtual_services("").is_empty());
    }

    #[test]
    fn addresses_that_stay_are_not_learned() {
        let table = "\
00000000000000000000000000000001 01 80 10 80       lo
fd000001000000000000000000000005 03 40 00 00     eth0
fd000001000000000000000000000006 03 40 00 80     eth0
broken
";
        assert_eq!(learned_addresses(table), ["fd00:1::5".parse::<IpAddr>().unwrap()]);
        assert!(learned_addresses("").is_empty());
    }
}
