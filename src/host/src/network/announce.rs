//! Telling the network where an address is now: gratuitous ARP (IPv4) or unsolicited neighbour
//! advertisements (IPv6), sent as raw frames so that they go out whatever the kernel's own settings are.
//!
//! The frames also teach the switches and bridges on the way the hardware address's new port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, netdevice};

use crate::error::{Error, Result};
use crate::record::check_interface;

use super::NetNs;

/// Frames sent by one announcement.
pub const ANNOUNCEMENTS: usize = 3;

impl NetNs {
    /// Announces that `ip` is at `mac`, from `interface` of this namespace.
    pub fn announce(&self, interface: &str, ip: IpAddr, mac: [u8; 6]) -> Result<()> {
        check_interface(interface)?;
        let frames: Vec<Vec<u8>> = match ip {
            // Both forms, since some receivers honour only one; the request twice.
            IpAddr::V4(ip) => vec![arp(ip, mac, 1), arp(ip, mac, 2), arp(ip, mac, 1)],
            IpAddr::V6(ip) => vec![advertisement(ip, mac); ANNOUNCEMENTS],
        };
        let failed = |errno: rustix::io::Errno| {
            Error::network(format!("announce {ip} on {interface}"))(errno.into())
        };
        self.enter(|| {
            // Protocol 0: this socket receives nothing.
            let socket = rustix::net::socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            )
            .map_err(failed)?;
            let index = netdevice::name_to_index(&socket, interface).map_err(failed)?;
            for frame in &frames {
                let to = LinkAddress::new(index, [frame[12], frame[13]]);
                rustix::net::sendto(&socket, frame, SendFlags::empty(), &to).map_err(failed)?;
            }
            Ok(())
        })
    }
}

/// `struct sockaddr_ll`, of which sending needs the interface and the protocol.
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: [u8; 2],
    index: i32,
    hardware_type: u16,
    packet_type: u8,
    address_length: u8,
    address: [u8; 8],
}

const _: () = assert!(size_of::<LinkAddress>() == 20);

impl LinkAddress {
    fn new(index: u32, protocol: [u8; 2]) -> Self {
        Self {
            family: AddressFamily::PACKET.as_raw(),
            protocol,
            index: index.cast_signed(),
            hardware_type: 0,
            packet_type: 0,
            address_length: 6,
            address: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        }
    }
}

#[allow(unsafe_code)]
// SAFETY: the closure gets a pointer to a whole `sockaddr_ll` (repr(C), size asserted above) and its
// length; `self` outlives the call.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}

/// A gratuitous ARP frame; `operation` 1 is a request, 2 a reply.
fn arp(ip: Ipv4Addr, mac: [u8; 6], operation: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // Ethernet type ARP; hardware Ethernet, protocol IPv4, lengths 6 and 4.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend(if operation == 1 { [0; 6] } else { mac });
    frame.extend(ip.octets());
    frame
}

/// An unsolicited neighbour advertisement to all nodes, with the override flag.
fn advertisement(ip: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, code 0, checksum, override; target; option 2 (target link-layer address), length 1.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let sum = icmp6_checksum(ip, all_nodes, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    // Next header ICMPv6; hop limit 255, or receivers ignore it.
    frame.extend([58, 255]);
    frame.extend(ip.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

fn icmp6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut pseudo = Vec::from(from.octets());
    pseudo.extend(to.octets());
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(message);
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 10, 244, 1, 5];

    #[test]
    fn a_gratuitous_arp_names_the_address_as_sender_and_target() {
        let request = arp(Ipv4Addr::new(10, 244, 1, 5), MAC, 1);
        assert_eq!(
            request,
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 10, 244, 1, 5, 8, 6, 0, 1, 8, 0, 6, 4, 0,
                1, 2, 0, 10, 244, 1, 5, 10, 244, 1, 5, 0, 0, 0, 0, 0, 0, 10, 244, 1, 5
            ]
        );
        let reply = arp(Ipv4Addr::new(10, 244, 1, 5), MAC, 2);
        assert_eq!((reply.len(), reply[21], &reply[32..38]), (42, 2, &MAC[..]));
    }

    #[test]
    fn an_advertisement_carries_a_checksum_that_receivers_accept() {
        let ip: Ipv6Addr = "fd00::5".parse().unwrap();
        let frame = advertisement(ip, MAC);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let message = &frame[54..];
        let to = "ff02::1".parse().unwrap();
        // Over a message that includes its own checksum the sum is zero.
        assert_eq!(icmp6_checksum(ip, to, message), 0);
        assert_eq!(&message[26..], MAC);
    }
}
