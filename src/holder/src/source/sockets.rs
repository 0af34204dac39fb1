//! Destroying a pod's TCP connections, through the kernel's socket diagnosis: used when the source
//! goes on although the target may have answered on them. Listening sockets stay.

use std::io;

use anyhow::{Context, Result};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use transship_host::network::NetNs;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
const IPPROTO_TCP: u8 = 6;
/// Every state but TCP_LISTEN and TCP_CLOSE.
const CONNECTED: u32 = !(1 << 10 | 1 << 7);
/// Length of `inet_diag_sockid`; in a message it follows four bytes.
const SOCKET_ID: usize = 48;

/// Destroys every connection in the namespace. One that is gone has none.
pub fn destroy(network: &NetNs) -> Result<()> {
    if !network.exists() {
        return Ok(());
    }
    let destroyed = network
        .enter(|| {
            destroy_here()
                .map_err(transship_host::Error::network("destroy the pod's TCP connections"))
        })
        .context("connections are left")?;
    tracing::info!(destroyed, "connections destroyed");
    Ok(())
}

fn destroy_here() -> io::Result<usize> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let kernel = SocketAddrNetlink::new(0, 0);
    let mut destroyed = 0;
    for family in [2u8, 10] {
        let dump =
            request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, &[0; SOCKET_ID]);
        rustix::net::sendto(&socket, &dump, SendFlags::empty(), &kernel)?;
        for id in ids(|buffer| Ok(rustix::net::recv(&socket, buffer, RecvFlags::empty())?.0))? {
            let order = request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, &id);
            rustix::net::sendto(&socket, &order, SendFlags::empty(), &kernel)?;
            let mut answer = [0; 4096];
            let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
            match error_of(&answer[..length]) {
                // Gone meanwhile: as good.
                0 | 2 => destroyed += 1,
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
    Ok(destroyed)
}

/// A request with `inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let length = HEADER + 8 + SOCKET_ID;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend([family, IPPROTO_TCP, 0, 0]);
    message.extend(CONNECTED.to_ne_bytes());
    message.extend(id);
    message
}

/// The ids of all sockets of a dump, read until its end.
fn ids(mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<[u8; SOCKET_ID]>> {
    let mut found = Vec::new();
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let length = read(&mut buffer)?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => {
                    return Err(io::Error::from_raw_os_error(error_of(rest)));
                }
                _ => {
                    if let Some(id) = body.get(4..4 + SOCKET_ID).and_then(|id| id.try_into().ok()) {
                        found.push(id);
                    }
                }
            }
            rest = after;
        }
    }
}

/// The first message of a buffer: its type, its body, and what follows.
fn message(buffer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(buffer.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(buffer.get(4..6)?.try_into().ok()?);
    let body = buffer.get(HEADER..length)?;
    let after = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, after))
}

/// The error number of an acknowledgement; 0 is success.
fn error_of(buffer: &[u8]) -> i32 {
    message(buffer)
        .and_then(|(_, body, _)| body.get(..4)?.try_into().ok())
        .map_or(5, |raw| -i32::from_ne_bytes(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    #[test]
    fn the_ids_of_a_dump_are_collected_over_several_reads() {
        let socket = |byte: u8| {
            let mut body = vec![2, 1, 0, 0];
            body.extend([byte; SOCKET_ID]);
            body.extend([0; 20]);
            reply(SOCK_DIAG_BY_FAMILY, &body)
        };
        let mut reads =
            vec![[socket(1), socket(2)].concat(), socket(3), reply(NLMSG_DONE, &[0; 4])];
        let found = ids(|buffer| {
            let next = reads.remove(0);
            buffer[..next.len()].copy_from_slice(&next);
            Ok(next.len())
        });
        assert_eq!(found.unwrap(), [[1; SOCKET_ID], [2; SOCKET_ID], [3; SOCKET_ID]]);
    }

    #[test]
    fn refusals_of_the_kernel_are_errors() {
        let refused = reply(NLMSG_ERROR, &(-1i32).to_ne_bytes());
        assert_eq!(error_of(&refused), 1);
        assert_eq!(error_of(&reply(NLMSG_ERROR, &0i32.to_ne_bytes())), 0);
        assert_eq!(error_of(&[]), 5, "a cut message is an error");
    }

    #[test]
    fn a_namespace_that_is_gone_has_no_connections() {
        destroy(&NetNs::at("/nonexistent/netns")).unwrap();
    }
}
