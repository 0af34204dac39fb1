//! The few requests to the kernel's rtnetlink that taking over an address needs: hardware address, addresses
//! and routes of one interface. Spoken directly, because a host may lack the `ip` program and the CNI plugin
//! must start quickly.
//!
//! [`Interface::take_over`] is the one operation with a meaning; it is made of the small ones.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

use crate::error::{Error, Result};
use crate::record::check_interface;

use super::NetNs;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;
const IFA_F_PERMANENT: u32 = 0x80;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_KERNEL: u8 = 2;
const RTN_UNICAST: u8 = 1;

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The prefix length.
    pub prefix: u8,
}

impl std::str::FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::Invalid {
            what: "address",
            value: text.chars().take(80).collect(),
            rule: "must be IP/PREFIX-LENGTH",
        };
        let (ip, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let ip: IpAddr = ip.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        if prefix > if ip.is_ipv4() { 32 } else { 128 } {
            return Err(invalid());
        }
        Ok(Self { ip, prefix })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// An interface of the calling thread's network namespace; use within [`NetNs::enter`].
#[derive(Debug)]
pub struct Interface {
    name: String,
    index: u32,
    socket: OwnedFd,
}

impl NetNs {
    /// Gives `interface` of this namespace the address `new` instead of `old`, and the hardware address
    /// `mac`; see [`Interface::take_over`].
    pub fn take_over(
        &self,
        interface: &str,
        old: Address,
        new: Address,
        mac: [u8; 6],
    ) -> Result<()> {
        self.enter(|| Interface::find(interface)?.take_over(old, new, mac))
    }
}

impl Interface {
    /// The interface with this name.
    pub fn find(name: &str) -> Result<Self> {
        check_interface(name)?;
        let failed = |errno: rustix::io::Errno| {
            Error::network(format!("find interface {name}"))(errno.into())
        };
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE is protocol 0
        )
        .map_err(failed)?;
        let index = netdevice::name_to_index(&socket, name).map_err(failed)?;
        Ok(Self { name: name.to_owned(), index, socket })
    }

    /// Replaces address and hardware address without a word on the wire (no gratuitous ARP, no duplicate
    /// address detection), and puts back the routes which the kernel drops with the old address. Addresses
    /// and routes of the other family stay. Repeating it is fine.
    pub fn take_over(&self, old: Address, new: Address, mac: [u8; 6]) -> Result<()> {
        self.be_quiet(new.ip)?;
        self.set_hardware_address(mac)?;
        let routes = self.routes(new.ip)?;
        let present = self.addresses()?;
        // First away with the old: the new one, if added before, would be its secondary and go with it.
        for address in &present {
            if *address != new && (*address == old || address.ip == new.ip) {
                self.remove_address(*address)?;
            }
        }
        if !present.contains(&new) {
            self.add_address(new)?;
        }
        for route in routes {
            self.add_route(&route, old.ip, new.ip)?;
        }
        Ok(())
    }

    /// Keeps the kernel from announcing or probing addresses of this interface by itself.
    fn be_quiet(&self, ip: IpAddr) -> Result<()> {
        let name = &self.name;
        let settings: &[(&str, &str)] = match ip {
            IpAddr::V4(_) => &[("ipv4", "arp_notify")],
            IpAddr::V6(_) => &[("ipv6", "ndisc_notify"), ("ipv6", "accept_dad")],
        };
        for (family, setting) in settings {
            let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{name}/{setting}"));
            fs::write(&path, "0").map_err(Error::io("write", &path))?;
        }
        Ok(())
    }

    /// Sets the hardware address.
    pub fn set_hardware_address(&self, mac: [u8; 6]) -> Result<()> {
        let mut body = self.link_header();
        attribute(&mut body, IFLA_ADDRESS, &mac);
        self.request(RTM_NEWLINK, NLM_F_ACK, &body)
            .map_err(Error::network(format!("set the hardware address of {}", self.name)))?;
        Ok(())
    }

    /// The addresses of this interface, link-local ones included.
    pub fn addresses(&self) -> Result<Vec<Address>> {
        let answers = self
            .request(RTM_GETADDR, NLM_F_DUMP, &[0; 8])
            .map_err(Error::network(format!("read the addresses of {}", self.name)))?;
        Ok(answers.iter().filter_map(|body| parse_address(body, self.index)).collect())
    }

    /// Adds an address without duplicate address detection.
    pub fn add_address(&self, address: Address) -> Result<()> {
        let mut body = self.address_header(address);
        if let IpAddr::V4(ip) = address.ip
            && address.prefix < 31
        {
            let host_bits = u32::MAX.checked_shr(u32::from(address.prefix)).unwrap_or(0);
            attribute(&mut body, IFA_BROADCAST, &(u32::from(ip) | host_bits).to_be_bytes());
        }
        attribute(&mut body, IFA_FLAGS, &(IFA_F_NODAD | IFA_F_PERMANENT).to_ne_bytes());
        self.request(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &body)
            .map_err(Error::network(format!("add {address} to {}", self.name)))?;
        Ok(())
    }

    /// Removes an address.
    pub fn remove_address(&self, address: Address) -> Result<()> {
        self.request(RTM_DELADDR, NLM_F_ACK, &self.address_header(address))
            .map_err(Error::network(format!("remove {address} from {}", self.name)))?;
        Ok(())
    }

    /// The routes through this interface that somebody set (not the kernel's own), as raw messages.
    fn routes(&self, family_of: IpAddr) -> Result<Vec<Vec<u8>>> {
        let mut body = vec![0; 12];
        body[0] = family(family_of);
        let answers = self
            .request(RTM_GETROUTE, NLM_F_DUMP, &body)
            .map_err(Error::network(format!("read the routes of {}", self.name)))?;
        Ok(answers.into_iter().filter(|route| is_set_route(route, self.index)).collect())
    }

    fn add_route(&self, route: &[u8], old: IpAddr, new: IpAddr) -> Result<()> {
        let route = with_source(route, old, new);
        self.request(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &route)
            .map_err(Error::network(format!("put a route through {} back", self.name)))?;
        Ok(())
    }

    /// `struct ifinfomsg`.
    fn link_header(&self) -> Vec<u8> {
        let mut body = vec![0; 16];
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        body
    }

    /// `struct ifaddrmsg` and the address.
    fn address_header(&self, address: Address) -> Vec<u8> {
        let mut body = vec![family(address.ip), address.prefix, 0, 0];
        body.extend(self.index.to_ne_bytes());
        let octets = octets(address.ip);
        attribute(&mut body, IFA_LOCAL, &octets);
        attribute(&mut body, IFA_ADDRESS, &octets);
        body
    }

    /// Sends a request and returns the bodies of the answers, up to the final acknowledgement.
    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> std::io::Result<Vec<Vec<u8>>> {
        let length = (16 + body.len()) as u32;
        let mut message = Vec::with_capacity(length as usize);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend([0; 8]); // sequence and port: one request at a time on a socket of its own
        message.extend(body);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &message, SendFlags::empty(), &kernel)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let (_, length) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC)?;
            let datagram = buffer.get(..length).ok_or(std::io::ErrorKind::InvalidData)?;
            if collect(datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes the messages of a datagram apart; `true` after the last one of the answer.
fn collect(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> std::io::Result<bool> {
    while datagram.len() >= 16 {
        let length = u32_at(datagram, 0) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let body = datagram.get(16..length).ok_or(std::io::ErrorKind::InvalidData)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.get(..4).map_or(0, |_| u32_at(body, 0).cast_signed());
                if code == 0 {
                    return Ok(true);
                }
                return Err(std::io::Error::from_raw_os_error(-code));
            }
            _ => answers.push(body.to_vec()),
        }
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    Ok(false)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    family.as_raw() as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes after a header of `header` bytes: kind, and where the value lies in `body`.
fn attributes(body: &[u8], header: usize) -> Vec<(u16, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    let mut at = header;
    while at + 4 <= body.len() {
        let length = usize::from(u16::from_ne_bytes([body[at], body[at + 1]]));
        if length < 4 || at + length > body.len() {
            break;
        }
        found.push((u16::from_ne_bytes([body[at + 2], body[at + 3]]), at + 4..at + length));
        at += length.next_multiple_of(4);
    }
    found
}

fn parse_address(body: &[u8], index: u32) -> Option<Address> {
    if body.len() < 8 || u32_at(body, 4) != index {
        return None;
    }
    let attributes = attributes(body, 8);
    // On IPv4 IFA_LOCAL is the address (IFA_ADDRESS may be a peer's); IPv6 has IFA_ADDRESS only.
    let value = |wanted: u16| attributes.iter().find(|(kind, _)| *kind == wanted);
    let (_, range) = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS))?;
    let ip = match &body[range.clone()] {
        v4 @ [_, _, _, _] => IpAddr::V4(Ipv4Addr::from([v4[0], v4[1], v4[2], v4[3]])),
        v6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(v6).ok()?)),
    };
    Some(Address { ip, prefix: body[1] })
}

/// Whether a route message is a unicast route through the interface that was set by somebody.
fn is_set_route(route: &[u8], index: u32) -> bool {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags (4)
    if route.len() < 12
        || route[4] == RT_TABLE_LOCAL
        || route[5] == RTPROT_KERNEL
        || route[7] != RTN_UNICAST
    {
        return false;
    }
    attributes(route, 12).iter().any(|(kind, range)| {
        *kind == RTA_OIF && range.len() == 4 && u32_at(route, range.start) == index
    })
}

/// The route with its preferred source changed from `old` to `new`, where it was `old`; and without the
/// state flags of the header, which the kernel reports but does not accept.
fn with_source(route: &[u8], old: IpAddr, new: IpAddr) -> Vec<u8> {
    let mut route = route.to_vec();
    const RTNH_F_ONLINK: u32 = 4;
    let flags = u32_at(&route, 8) & RTNH_F_ONLINK;
    route[8..12].copy_from_slice(&flags.to_ne_bytes());
    for (kind, range) in attributes(&route, 12) {
        if kind == RTA_PREFSRC && route[range.clone()] == octets(old)[..] {
            let new = octets(new);
            if new.len() == range.len() {
                route[range].copy_from_slice(&new);
            }
        }
    }
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_written_form() {
        let address: Address = "10.244.1.5/16".parse().unwrap();
        assert_eq!(address, Address { ip: "10.244.1.5".parse().unwrap(), prefix: 16 });
        assert_eq!(address.to_string(), "10.244.1.5/16");
        for bad in ["10.0.0.1", "10.0.0.1/33", "fd00::1/129", "/8", "x/8"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut body = vec![0; 8];
        attribute(&mut body, 7, &[1, 2, 3, 4, 5, 6]);
        attribute(&mut body, 9, &[8]);
        assert_eq!(body.len(), 8 + 12 + 8);
        assert_eq!(attributes(&body, 8), [(7, 12..18), (9, 24..25)]);
        // A length that points beyond the message ends the walk.
        body[20] = 200;
        assert_eq!(attributes(&body, 8), [(7, 12..18)]);
    }

    #[test]
    fn an_error_answer_becomes_the_system_error() {
        let mut message = Vec::new();
        message.extend(20u32.to_ne_bytes());
        message.extend(NLMSG_ERROR.to_ne_bytes());
        message.extend([0; 10]);
        message.extend((-17i32).to_ne_bytes());
        let error = collect(&message, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        message[16..20].copy_from_slice(&0i32.to_ne_bytes());
        assert!(collect(&message, &mut Vec::new()).unwrap());
    }

    #[test]
    fn a_truncated_datagram_is_an_error_and_not_a_panic() {
        let mut message = Vec::new();
        message.extend(64u32.to_ne_bytes());
        message.extend([0; 12]);
        assert!(collect(&message, &mut Vec::new()).is_err());
        assert!(!collect(&message[..8], &mut Vec::new()).unwrap());
    }

    #[test]
    fn only_routes_that_somebody_set_are_kept_and_their_source_follows() {
        let old: IpAddr = "10.0.0.2".parse().unwrap();
        let new: IpAddr = "10.0.0.9".parse().unwrap();
        let mut route = vec![2, 0, 0, 0, 254, 3, 0, RTN_UNICAST, 16, 0, 0, 0];
        attribute(&mut route, RTA_OIF, &5u32.to_ne_bytes());
        attribute(&mut route, RTA_PREFSRC, &octets(old));
        assert!(is_set_route(&route, 5));
        assert!(!is_set_route(&route, 6));
        let moved = with_source(&route, old, new);
        assert_eq!(moved[24..28], octets(new)[..]);
        assert_eq!(moved[8..12], [0; 4]);
        route[5] = RTPROT_KERNEL;
        assert!(!is_set_route(&route, 5));
    }
}
