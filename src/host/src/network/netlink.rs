//! Speaking netlink: one request at a time, its answers, and attributes. Spoken directly, because a host may
//! lack the programs for it and the CNI plugin must start quickly.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// Marks an attribute that consists of attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// The part of an attribute's type that names it.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Length of a message's header.
const HEADER: usize = 16;

/// A socket to one of the kernel's families, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netlink {
    pub(super) socket: OwnedFd,
}

impl Netlink {
    /// `None` is rtnetlink, whose number is 0.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        Ok(Self { socket })
    }

    /// Sends a request and returns the bodies of the answers, up to the final acknowledgement. Either a
    /// dump or an acknowledgement must be asked for.
    pub(super) fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let length = (HEADER + body.len()) as u32;
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
            let datagram = buffer.get(..length).ok_or(io::ErrorKind::InvalidData)?;
            if collect(datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Takes the messages of a datagram apart; `true` after the last one of the answer.
fn collect(mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while datagram.len() >= HEADER {
        let length = u32_at(datagram, 0) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let body = datagram.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match kind {
            // A dump that fails in its course ends as others do, and says why.
            NLMSG_DONE | NLMSG_ERROR => {
                let code = body.get(..4).map_or(0, |_| u32_at(body, 0).cast_signed());
                if code < 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                return Ok(true);
            }
            _ => answers.push(body.to_vec()),
        }
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    Ok(false)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The kernel's number of an address's family.
pub(super) fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    family.as_raw() as u8
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The address of four or sixteen bytes.
pub(super) fn ip_of(octets: &[u8]) -> Option<IpAddr> {
    match octets {
        v4 @ [_, _, _, _] => Some(IpAddr::V4(Ipv4Addr::from([v4[0], v4[1], v4[2], v4[3]]))),
        v6 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(v6).ok()?))),
    }
}

pub(super) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// An attribute made of those that `fill` adds.
pub(super) fn nested(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(body, kind | NLA_F_NESTED, &inner);
}

/// The attributes after a header of `header` bytes: kind, and where the value lies in `body`.
pub(super) fn attributes(body: &[u8], header: usize) -> Vec<(u16, Range<usize>)> {
    let mut found = Vec::new();
    let mut at = header;
    while at + 4 <= body.len() {
        let length = usize::from(u16::from_ne_bytes([body[at], body[at + 1]]));
        if length < 4 || at + length > body.len() {
            break;
        }
        let kind = u16::from_ne_bytes([body[at + 2], body[at + 3]]) & NLA_TYPE_MASK;
        found.push((kind, at + 4..at + length));
        at += length.next_multiple_of(4);
    }
    found
}

/// The value of the first attribute of a kind after a header of `header` bytes.
pub(super) fn find(body: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    let found = attributes(body, header).into_iter().find(|(found, _)| *found == kind)?;
    body.get(found.1)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn attributes_within_attributes_are_found_by_their_plain_number() {
        let mut body = Vec::new();
        nested(&mut body, 3, |body| attribute(body, 5, &[6]));
        assert_eq!(find(&body, 0, 3).and_then(|inner| find(inner, 0, 5)), Some(&[6][..]));
        assert_eq!(find(&body, 0, 5), None);
    }

    #[test]
    fn an_error_answer_becomes_the_system_error_and_so_does_that_of_a_dump() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let mut message = Vec::new();
            message.extend(20u32.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend([0; 10]);
            message.extend((-17i32).to_ne_bytes());
            let error = collect(&message, &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{kind}");
            message[16..20].copy_from_slice(&0i32.to_ne_bytes());
            assert!(collect(&message, &mut Vec::new()).unwrap(), "{kind}");
        }
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
    fn addresses_have_four_or_sixteen_bytes() {
        for ip in ["10.0.0.1", "fd00::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(ip_of(&octets(ip)), Some(ip));
        }
        assert_eq!(ip_of(&[1, 2]), None);
    }
}
