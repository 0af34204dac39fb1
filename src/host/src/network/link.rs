//! The few requests to the kernel's rtnetlink that taking over an address needs: hardware address, addresses
//! and routes of one interface.
//!
//! [`Interface::take_over`] is the one operation with a meaning; it is made of the small ones.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use rustix::net::netdevice;

use crate::error::{Error, Result};
use crate::record::check_interface;

use super::NetNs;
use super::netlink::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, Netlink, attribute, attributes, family,
    ip_of, octets, u32_at,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
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
    netlink: Netlink,
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
        let failed = |error| Error::network(format!("find interface {name}"))(error);
        let netlink = Netlink::open(None).map_err(failed)?;
        let index = netdevice::name_to_index(&netlink.socket, name)
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { name: name.to_owned(), index, netlink })
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

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> std::io::Result<Vec<Vec<u8>>> {
        self.netlink.request(kind, flags, body)
    }
}

fn parse_address(body: &[u8], index: u32) -> Option<Address> {
    if body.len() < 8 || u32_at(body, 4) != index {
        return None;
    }
    let attributes = attributes(body, 8);
    // On IPv4 IFA_LOCAL is the address (IFA_ADDRESS may be a peer's); IPv6 has IFA_ADDRESS only.
    let value = |wanted: u16| attributes.iter().find(|(kind, _)| *kind == wanted);
    let (_, range) = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS))?;
    let ip = ip_of(&body[range.clone()])?;
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
