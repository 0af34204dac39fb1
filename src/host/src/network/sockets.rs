//! The Internet sockets of a network namespace, through the kernel's socket diagnosis, and ending those that
//! have a peer: the application sees them aborted, and the peer gets a reset where frames pass.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink;

use crate::error::{Error, Result};

use super::NetNs;
use super::netlink::{NLM_F_ACK, NLM_F_DUMP, Netlink, ip_of};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// States of a socket that has no peer. An unconnected UDP socket is "closed".
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
/// Length of `inet_diag_sockid`; in a message it follows four bytes.
const SOCKET_ID: usize = 48;
/// Where a message has the inode: after the id, a time, two queues and a user.
const INODE: std::ops::Range<usize> = 4 + SOCKET_ID + 16..4 + SOCKET_ID + 20;

/// A connection as one of its ends sees it: protocol, own address, the other's.
pub type End = (u8, SocketAddr, SocketAddr);

/// A TCP or UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// What it is bound to.
    pub local: SocketAddr,
    /// The other side, of a socket that has one.
    pub peer: Option<SocketAddr>,
    /// Some process has it. The kernel keeps others a while, which wait for the last packets of what was closed.
    pub is_held: bool,
    family: u8,
    /// As the kernel names it.
    id: [u8; SOCKET_ID],
}

impl Socket {
    /// The connection that it is an end of.
    pub fn end(&self) -> Option<End> {
        Some((self.protocol, self.local, self.peer?))
    }
}

impl NetNs {
    /// All TCP and UDP sockets.
    pub fn sockets(&self) -> Result<Vec<Socket>> {
        self.enter(|| {
            let failed = Error::network("read the pod's sockets");
            let socket = Netlink::open(Some(netlink::SOCK_DIAG)).map_err(failed)?;
            list(&socket).map_err(Error::network("read the pod's sockets"))
        })
    }

    /// Destroys every connection, of TCP and of UDP, that `chosen` says; returns how many. A namespace that
    /// is gone has none.
    pub fn destroy_connections(&self, chosen: impl Fn(&Socket) -> bool + Send) -> Result<usize> {
        if !self.exists() {
            return Ok(0);
        }
        self.enter(|| destroy(chosen).map_err(Error::network("destroy the pod's connections")))
    }
}

fn destroy(chosen: impl Fn(&Socket) -> bool) -> io::Result<usize> {
    let socket = Netlink::open(Some(netlink::SOCK_DIAG))?;
    let mut destroyed = 0;
    for found in list(&socket)? {
        if found.peer.is_none() || !chosen(&found) {
            continue;
        }
        let order = request(found.family, found.protocol, &found.id);
        match socket.request(SOCK_DESTROY, NLM_F_ACK, &order) {
            Ok(_) => destroyed += 1,
            // Gone meanwhile: as good.
            Err(error) if error.kind() == io::ErrorKind::NotFound => destroyed += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(destroyed)
}

fn list(socket: &Netlink) -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        for family in [AF_INET, AF_INET6] {
            let dump = request(family, protocol, &[0; SOCKET_ID]);
            let answers = match socket.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &dump) {
                // A kernel without the diagnosis of this protocol: CRIU moves no socket of it either.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                answers => answers?,
            };
            found.extend(answers.iter().filter_map(|body| parse(body, protocol)));
        }
    }
    Ok(found)
}

/// `inet_diag_req_v2`, for all states.
fn request(family: u8, protocol: u8, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(id);
    body
}

/// `inet_diag_msg`: family, state, two more bytes, the id.
fn parse(body: &[u8], protocol: u8) -> Option<Socket> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let id: [u8; SOCKET_ID] = body.get(4..4 + SOCKET_ID)?.try_into().ok()?;
    let address = |port: usize, ip: usize| -> Option<SocketAddr> {
        let length = if family == AF_INET { 4 } else { 16 };
        let ip: IpAddr = ip_of(&id[ip..ip + length])?.to_canonical();
        Some(SocketAddr::new(ip, u16::from_be_bytes([id[port], id[port + 1]])))
    };
    let connected = !matches!(state, TCP_CLOSE | TCP_LISTEN);
    Some(Socket {
        protocol,
        local: address(0, 4)?,
        peer: if connected { Some(address(2, 20)?) } else { None },
        is_held: body.get(INODE).is_some_and(|inode| inode.iter().any(|byte| *byte != 0)),
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: u8, state: u8, local: &str, peer: &str) -> Vec<u8> {
        let (local, peer): (SocketAddr, SocketAddr) =
            (local.parse().unwrap(), peer.parse().unwrap());
        let octets = |ip: IpAddr| {
            let mut octets = match (ip, family) {
                (IpAddr::V4(ip), AF_INET6) => ip.to_ipv6_mapped().octets().to_vec(),
                (ip, _) => super::super::netlink::octets(ip),
            };
            octets.resize(16, 0);
            octets
        };
        let mut body = vec![family, state, 0, 0];
        body.extend(local.port().to_be_bytes());
        body.extend(peer.port().to_be_bytes());
        body.extend(octets(local.ip()));
        body.extend(octets(peer.ip()));
        body.extend([0; 12 + 20]);
        body
    }

    #[test]
    fn a_socket_has_a_peer_unless_it_listens_or_is_unconnected() {
        for (family, state, local, peer, connected) in [
            (AF_INET, 1, "10.0.0.5:8080", "10.0.0.9:5000", true),
            (AF_INET, TCP_LISTEN, "0.0.0.0:8080", "0.0.0.0:0", false),
            (AF_INET, TCP_CLOSE, "10.0.0.5:53", "0.0.0.0:0", false),
            (AF_INET6, 1, "[fd00::5]:8080", "[fd00::9]:5000", true),
        ] {
            let found = parse(&message(family, state, local, peer), IPPROTO_TCP).unwrap();
            assert_eq!(found.local, local.parse().unwrap());
            assert_eq!(found.peer, connected.then(|| peer.parse().unwrap()));
        }
        let mut mapped = message(AF_INET6, 1, "10.0.0.5:1", "10.0.0.9:2");
        let found = parse(&mapped, IPPROTO_TCP).unwrap();
        assert_eq!(found.local, "10.0.0.5:1".parse().unwrap(), "IPv4 behind an IPv6 socket");
        let end: End = (IPPROTO_TCP, "10.0.0.5:1".parse().unwrap(), "10.0.0.9:2".parse().unwrap());
        assert_eq!(found.end(), Some(end));
        assert!(!found.is_held, "it has no inode");
        mapped[INODE.start] = 7;
        assert!(parse(&mapped, IPPROTO_TCP).unwrap().is_held);
        assert_eq!(parse(&mapped[..20], IPPROTO_TCP), None);
    }

    #[test]
    fn a_namespace_that_is_gone_has_no_connections() {
        let gone = NetNs::at("/nonexistent/netns");
        assert_eq!(gone.destroy_connections(|_| true).unwrap(), 0);
    }
}
