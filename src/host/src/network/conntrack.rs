//! The node's connection tracking, as far as it translates what a pod asked for (a Service's address) into
//! what it got (one of the Service's pods). The translation of a connection is kept by the node of the pod
//! that opened it, so it must be brought along when that pod moves.
//!
//! Everything here works in the network namespace of the calling thread: that of the node.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

use super::End;
use super::netlink::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Netlink, attribute, family, find, ip_of,
    nested, octets,
};

/// `NFNL_SUBSYS_CTNETLINK` in the upper byte.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// Length of `nfgenmsg`.
const HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_NAT_DST: u16 = 13;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// The filter looks at the source address alone.
const CTA_FILTER_IP_SRC: u32 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS: [u16; 2] = [4, 5];
const CTA_NAT_PROTO: u16 = 3;
const CTA_PROTONAT_PORTS: [u16; 2] = [1, 2];
/// Windows are not known to the new entry: no packet is out of one.
const TCP_BE_LIBERAL: u8 = 8;
/// Seen in both directions, worth keeping, and complete. What the kernel finds out by itself is left out.
const STATUS_MASK: u32 = 2 | 4 | 8;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Where its packets come from.
    pub from: SocketAddr,
    /// Where they go to.
    pub to: SocketAddr,
}

impl Direction {
    fn reversed(self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

/// A tracked connection of TCP or UDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracked {
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// As the one who opened it sees it.
    pub original: Direction,
    /// What answers look like before they are translated back.
    pub reply: Direction,
    /// Seconds until it is forgotten.
    pub timeout: u32,
    /// The kernel's status bits.
    pub status: u32,
    /// The packet mark that is kept with it.
    #[serde(default)]
    pub mark: u32,
    /// Where TCP stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_state: Option<u8>,
}

impl Tracked {
    /// Whether it goes to another place than its opener says: that of a Service.
    pub fn changes_target(&self) -> bool {
        self.reply.from != self.original.to
    }

    /// Whether its packets leave with another address than the opener's own: the node's.
    pub fn changes_source(&self) -> bool {
        self.reply.to.ip() != self.original.from.ip()
    }

    /// The connection as its opener and as whoever answers sees it. A pod may be both, when it reaches itself through
    /// a Service.
    pub fn ends(&self) -> [End; 2] {
        [self.original, self.reply].map(|way| (self.protocol, way.from, way.to))
    }
}

/// The connections that were opened from one of these addresses.
pub fn opened_from(ips: &[IpAddr]) -> Result<Vec<Tracked>> {
    let failed = || Error::network("read the tracked connections");
    let socket = Netlink::open(Some(netlink::NETFILTER)).map_err(failed())?;
    let mut found = Vec::new();
    for ip in ips {
        let answers = socket.request(GET, NLM_F_DUMP, &dump_request(*ip)).map_err(failed())?;
        let tracked = answers.iter().filter_map(|body| parse(body));
        // All of the family, where the kernel was not asked for less or does not know how to give less.
        found.extend(tracked.filter(|tracked| tracked.original.from.ip() == *ip));
    }
    Ok(found)
}

/// Makes this the entry for its connection, whatever was there. The target's address is translated as it
/// was; the source's never is.
pub fn replace(tracked: &Tracked) -> Result<()> {
    forget(tracked)?;
    let Direction { from, to } = tracked.original;
    let failed = || Error::network(format!("track the connection {from} → {to}"));
    let socket = Netlink::open(Some(netlink::NETFILTER)).map_err(failed())?;
    socket
        .request(NEW, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &new_request(tracked))
        .map_err(failed())?;
    Ok(())
}

/// Removes every entry that speaks of the connection, in whichever direction.
pub fn forget(tracked: &Tracked) -> Result<()> {
    let Direction { from, to } = tracked.original;
    let failed = || Error::network(format!("forget the connection {from} → {to}"));
    let socket = Netlink::open(Some(netlink::NETFILTER)).map_err(failed())?;
    for direction in [tracked.original, tracked.reply] {
        let mut body = header(direction.from.ip());
        nested(&mut body, CTA_TUPLE_ORIG, |body| tuple(body, tracked.protocol, direction));
        match socket.request(DELETE, NLM_F_ACK, &body) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
    }
    Ok(())
}

/// `struct nfgenmsg`.
fn header(ip: IpAddr) -> Vec<u8> {
    vec![family(ip), 0, 0, 0]
}

fn dump_request(ip: IpAddr) -> Vec<u8> {
    let mut body = header(ip);
    if ip.is_ipv6() {
        // Kernels take the comparison the wrong way round: asked for an address of IPv6, they leave out what
        // has it (`ctnetlink_filter_match_tuple` in net/netfilter/nf_conntrack_netlink.c).
        return body;
    }
    nested(&mut body, CTA_TUPLE_ORIG, |body| {
        nested(body, CTA_TUPLE_IP, |body| attribute(body, ip_attributes(ip)[0], &octets(ip)));
    });
    nested(&mut body, CTA_FILTER, |body| {
        attribute(body, CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_IP_SRC.to_ne_bytes());
        attribute(body, CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    });
    body
}

/// The reply is given as if nothing were translated; the kernel changes it by the translation.
fn new_request(tracked: &Tracked) -> Vec<u8> {
    let Tracked { protocol, original, reply, .. } = *tracked;
    let mut body = header(original.from.ip());
    nested(&mut body, CTA_TUPLE_ORIG, |body| tuple(body, protocol, original));
    nested(&mut body, CTA_TUPLE_REPLY, |body| tuple(body, protocol, original.reversed()));
    attribute(&mut body, CTA_STATUS, &(tracked.status & STATUS_MASK).to_be_bytes());
    attribute(&mut body, CTA_TIMEOUT, &tracked.timeout.to_be_bytes());
    if tracked.mark != 0 {
        attribute(&mut body, CTA_MARK, &tracked.mark.to_be_bytes());
    }
    if let Some(state) = tracked.tcp_state {
        nested(&mut body, CTA_PROTOINFO, |body| {
            nested(body, CTA_PROTOINFO_TCP, |body| {
                attribute(body, CTA_PROTOINFO_TCP_STATE, &[state]);
                for direction in CTA_PROTOINFO_TCP_FLAGS {
                    attribute(body, direction, &[TCP_BE_LIBERAL, TCP_BE_LIBERAL]);
                }
            });
        });
    }
    if tracked.changes_target() {
        nested(&mut body, CTA_NAT_DST, |body| {
            for kind in nat_attributes(reply.from.ip()) {
                attribute(body, kind, &octets(reply.from.ip()));
            }
            nested(body, CTA_NAT_PROTO, |body| {
                for kind in CTA_PROTONAT_PORTS {
                    attribute(body, kind, &reply.from.port().to_be_bytes());
                }
            });
        });
    }
    body
}

fn tuple(body: &mut Vec<u8>, protocol: u8, direction: Direction) {
    let Direction { from, to } = direction;
    nested(body, CTA_TUPLE_IP, |body| {
        let [source, target] = ip_attributes(from.ip());
        attribute(body, source, &octets(from.ip()));
        attribute(body, target, &octets(to.ip()));
    });
    nested(body, CTA_TUPLE_PROTO, |body| {
        attribute(body, CTA_PROTO_NUM, &[protocol]);
        attribute(body, CTA_PROTO_SRC_PORT, &from.port().to_be_bytes());
        attribute(body, CTA_PROTO_DST_PORT, &to.port().to_be_bytes());
    });
}

/// `CTA_IP_V…_SRC` and `…_DST`.
fn ip_attributes(ip: IpAddr) -> [u16; 2] {
    if ip.is_ipv4() { [1, 2] } else { [3, 4] }
}

/// `CTA_NAT_V…_MINIP` and `…_MAXIP`.
fn nat_attributes(ip: IpAddr) -> [u16; 2] {
    if ip.is_ipv4() { [1, 2] } else { [4, 5] }
}

/// An entry of TCP or UDP; `None` for others, and for those of a zone, which belong to a network of their
/// own.
fn parse(body: &[u8]) -> Option<Tracked> {
    if find(body, HEADER, CTA_ZONE).is_some() {
        return None;
    }
    let number = |kind| Some(u32::from_be_bytes(find(body, HEADER, kind)?.try_into().ok()?));
    let (protocol, original) = parse_tuple(find(body, HEADER, CTA_TUPLE_ORIG)?)?;
    let (_, reply) = parse_tuple(find(body, HEADER, CTA_TUPLE_REPLY)?)?;
    let tcp_state = || {
        let tcp = find(find(body, HEADER, CTA_PROTOINFO)?, 0, CTA_PROTOINFO_TCP)?;
        find(tcp, 0, CTA_PROTOINFO_TCP_STATE)?.first().copied()
    };
    Some(Tracked {
        protocol,
        original,
        reply,
        // One without a timeout is about to go.
        timeout: number(CTA_TIMEOUT)?,
        status: number(CTA_STATUS)?,
        mark: number(CTA_MARK).unwrap_or_default(),
        tcp_state: tcp_state(),
    })
}

fn parse_tuple(tuple: &[u8]) -> Option<(u8, Direction)> {
    let ips = find(tuple, 0, CTA_TUPLE_IP)?;
    let proto = find(tuple, 0, CTA_TUPLE_PROTO)?;
    let protocol = *find(proto, 0, CTA_PROTO_NUM)?.first()?;
    if !matches!(protocol, IPPROTO_TCP | IPPROTO_UDP) {
        return None;
    }
    let side = |which: usize, port| {
        let ip = [1, 3].iter().find_map(|first| find(ips, 0, first + which as u16))?;
        let port = find(proto, 0, port)?.try_into().map(u16::from_be_bytes).ok()?;
        Some(SocketAddr::new(ip_of(ip)?, port))
    };
    let from = side(0, CTA_PROTO_SRC_PORT)?;
    let to = side(1, CTA_PROTO_DST_PORT)?;
    Some((protocol, Direction { from, to }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(from: &str, to: &str) -> Direction {
        Direction { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    fn to_a_service() -> Tracked {
        Tracked {
            protocol: IPPROTO_TCP,
            original: direction("10.244.1.5:40000", "10.96.0.7:6379"),
            reply: direction("10.244.2.8:6379", "10.244.1.5:40000"),
            timeout: 86_400,
            status: 2 | 4 | 8 | 32,
            mark: 0,
            tcp_state: Some(3),
        }
    }

    #[test]
    fn what_is_written_is_read_back_but_for_the_translation() {
        for tracked in [
            to_a_service(),
            Tracked { protocol: IPPROTO_UDP, tcp_state: None, mark: 7, ..to_a_service() },
            Tracked {
                original: direction("[fd00::5]:40000", "[fd96::7]:6379"),
                reply: direction("[fd00:2::8]:6379", "[fd00::5]:40000"),
                ..to_a_service()
            },
        ] {
            let read = parse(&new_request(&tracked)).unwrap();
            assert_eq!(read.reply, tracked.original.reversed(), "the kernel translates");
            assert_eq!(Tracked { reply: tracked.reply, status: tracked.status, ..read }, tracked);
            assert_eq!(read.status, 2 | 4 | 8, "what is translated the kernel finds out");
        }
    }

    #[test]
    fn the_kernel_is_asked_to_compare_only_what_it_compares_rightly() {
        let asks =
            |ip: &str| find(&dump_request(ip.parse().unwrap()), HEADER, CTA_FILTER).is_some();
        assert!(asks("10.244.1.5") && !asks("fd00::5"));
    }

    #[test]
    fn the_translation_names_the_services_pod() {
        let body = new_request(&to_a_service());
        let nat = find(&body, HEADER, CTA_NAT_DST).unwrap();
        assert_eq!(find(nat, 0, 1), Some(&[10, 244, 2, 8][..]));
        assert_eq!(find(nat, 0, 2), Some(&[10, 244, 2, 8][..]));
        let ports = find(nat, 0, CTA_NAT_PROTO).unwrap();
        assert_eq!(find(ports, 0, 1), Some(&6379u16.to_be_bytes()[..]));
        let plain = Tracked { reply: to_a_service().original.reversed(), ..to_a_service() };
        assert_eq!(find(&new_request(&plain), HEADER, CTA_NAT_DST), None);
    }

    #[test]
    fn translations_of_target_and_source_are_told_apart() {
        let service = to_a_service();
        assert!(service.changes_target() && !service.changes_source());
        let outside = Tracked {
            original: direction("10.244.1.5:40000", "203.0.113.9:443"),
            reply: direction("203.0.113.9:443", "192.0.2.1:61000"),
            ..to_a_service()
        };
        assert!(!outside.changes_target() && outside.changes_source());
        let direct = Tracked { reply: service.original.reversed(), ..service };
        assert!(!direct.changes_target() && !direct.changes_source());
        let [opener, other] = direct.ends();
        assert_eq!(opener, (IPPROTO_TCP, direct.original.from, direct.original.to));
        assert_eq!((other.1, other.2), (opener.2, opener.1));
    }

    #[test]
    fn other_protocols_and_zones_are_left_alone() {
        let icmp = new_request(&Tracked { protocol: 1, ..to_a_service() });
        assert_eq!(parse(&icmp), None);
        let mut zoned = new_request(&to_a_service());
        attribute(&mut zoned, CTA_ZONE, &[0, 1]);
        assert_eq!(parse(&zoned), None);
        assert_eq!(parse(&[2, 0, 0]), None);
    }
}
