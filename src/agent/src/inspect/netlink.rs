//! Questions to the kernel's netlink, asked from within a pod's network namespace. Two of them are here: which
//! Unix sockets there are and with whom they are connected, and by which rules routes are chosen.

use std::collections::BTreeMap;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const RTM_GETRULE: u16 = 34;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER: usize = 16;
/// Length of `unix_diag_msg`.
const UNIX_MESSAGE: usize = 16;
/// Length of `fib_rule_hdr`.
const RULE_MESSAGE: usize = 12;

/// A Unix socket as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its name: a path, or an abstract one with a leading `@`.
    pub name: String,
    /// Inode of the socket it is connected with; 0 for none, or for one that nobody has accepted.
    pub peer: u64,
}

/// The Unix sockets of the calling thread's network namespace, by inode.
pub fn unix_sockets() -> std::io::Result<BTreeMap<u64, UnixSocket>> {
    // struct unix_diag_req: family, protocol, pad, states, inode, show (name, peer), cookie
    let mut request = vec![1u8, 0, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend((1u32 | 4).to_ne_bytes());
    request.extend([0u8; 8]);
    let mut found = BTreeMap::new();
    dump(Some(netlink::SOCK_DIAG), SOCK_DIAG_BY_FAMILY, &request, |message| {
        found.extend(unix_socket(message));
    })?;
    Ok(found)
}

fn unix_socket(message: &[u8]) -> Option<(u64, UnixSocket)> {
    const NAME: u16 = 0;
    const PEER: u16 = 2;
    let inode = u32_at(message, 4)?;
    let mut socket = UnixSocket::default();
    for (kind, value) in attributes(message.get(UNIX_MESSAGE..)?) {
        match kind {
            NAME => socket.name = name(value),
            PEER => socket.peer = u64::from(u32_at(value, 0)?),
            _ => {}
        }
    }
    Some((u64::from(inode), socket))
}

/// A name: that of a socket, or of anything else up to its final zero byte.
pub fn name(bytes: &[u8]) -> String {
    match bytes.split_first() {
        Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
        _ => String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned(),
    }
}

/// The routing rules of the calling thread's network namespace, the kernel's own left out.
pub fn routing_rules() -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut request = vec![0u8; RULE_MESSAGE];
        request[0] = family;
        // NETLINK_ROUTE is protocol 0.
        or_nothing(dump(None, RTM_GETRULE, &request, |message| {
            found.extend(rule(message).filter(|rule| !is_kernels(rule)).map(|rule| rule.text));
        }))?;
    }
    Ok(found)
}

/// Of what a kernel does not know there is nothing: one without IPv6, without rules, without IPsec.
pub fn or_nothing(asked: std::io::Result<()>) -> std::io::Result<()> {
    /// EPROTONOSUPPORT, EOPNOTSUPP and EAFNOSUPPORT.
    const UNKNOWN: [i32; 3] = [93, 95, 97];
    match asked {
        Err(error) if error.raw_os_error().is_some_and(|code| UNKNOWN.contains(&code)) => Ok(()),
        asked => asked,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    priority: u32,
    table: u32,
    text: String,
}

/// Every namespace begins with a rule for the local table, one for main and one for default.
fn is_kernels(rule: &Rule) -> bool {
    matches!((rule.priority, rule.table), (0, 255) | (32766, 254) | (32767, 253))
}

fn rule(message: &[u8]) -> Option<Rule> {
    const DST: u16 = 1;
    const SRC: u16 = 2;
    const IIFNAME: u16 = 3;
    const PRIORITY: u16 = 6;
    const FWMARK: u16 = 10;
    const TABLE: u16 = 15;
    let header = message.get(..RULE_MESSAGE)?;
    let (to_length, from_length) = (header[1], header[2]);
    let mut rule = Rule { priority: 0, table: u32::from(header[4]), text: String::new() };
    let mut parts = Vec::new();
    for (kind, value) in attributes(&message[RULE_MESSAGE..]) {
        match kind {
            DST => parts.push(format!("to {}/{to_length}", address(value)?)),
            SRC => parts.push(format!("from {}/{from_length}", address(value)?)),
            IIFNAME => parts.push(format!("iif {}", name(value))),
            FWMARK => parts.push(format!("fwmark {:#x}", u32_at(value, 0)?)),
            PRIORITY => rule.priority = u32_at(value, 0)?,
            TABLE => rule.table = u32_at(value, 0)?,
            _ => {}
        }
    }
    if parts.is_empty() {
        parts.push("from all".into());
    }
    rule.text = format!("{}: {} lookup {}", rule.priority, parts.join(" "), rule.table);
    Some(rule)
}

/// The address of four or sixteen bytes.
pub fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    let v4 = || Some(<[u8; 4]>::try_from(bytes).ok()?.into());
    v4().or_else(|| Some(<[u8; 16]>::try_from(bytes).ok()?.into()))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Attributes by their numbers; what is malformed ends them.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Asks for a dump and gives each message's payload to `take`.
pub fn dump(
    protocol: Option<rustix::net::Protocol>,
    kind: u16,
    payload: &[u8],
    mut take: impl FnMut(&[u8]),
) -> std::io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    let mut request = Vec::with_capacity(HEADER + payload.len());
    let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0u8; 8]);
    request.extend(payload);
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &kernel)?;
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
            let length = length as usize;
            let Some(body) = rest.get(HEADER..length) else { break };
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return ended(body),
                _ => take(body),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if length == 0 {
            return Ok(());
        }
    }
}

/// How a dump has ended: one that fails in its course ends as others do, and says why.
fn ended(body: &[u8]) -> std::io::Result<()> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code < 0 { Err(std::io::Error::from_raw_os_error(-code)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let link = link.to_string_lossy().into_owned();
        link.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap()
    }

    #[test]
    fn both_ends_of_a_connection_know_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let waiting = UnixStream::connect(&path).unwrap();
        let before = unix_sockets().unwrap();
        assert_eq!(before[&inode(&waiting)].peer, 0, "nobody has accepted it yet");
        let (accepted, _) = listener.accept().unwrap();
        let (one, other) = UnixDatagram::pair().unwrap();
        let found = unix_sockets().unwrap();
        assert_eq!(found[&inode(&waiting)].peer, inode(&accepted));
        assert_eq!(found[&inode(&accepted)].name, path.to_string_lossy());
        assert_eq!(found[&inode(&one)].peer, inode(&other));
        assert_eq!(found[&inode(&listener)].peer, 0);
    }

    #[test]
    fn a_dump_that_failed_does_not_pass_for_an_empty_one() {
        assert_eq!(ended(&(-97i32).to_ne_bytes()).unwrap_err().raw_os_error(), Some(97));
        assert!(ended(&0i32.to_ne_bytes()).is_ok() && ended(&[]).is_ok());
    }

    #[test]
    fn of_what_the_kernel_does_not_know_there_is_nothing_and_other_errors_stay() {
        let failed = |code: i32| or_nothing(Err(std::io::Error::from_raw_os_error(code)));
        assert!([93, 95, 97].into_iter().all(|code| failed(code).is_ok()));
        assert_eq!(failed(1).unwrap_err().raw_os_error(), Some(1));
    }

    #[test]
    fn the_kernels_own_rules_are_left_out_and_others_are_told() {
        let header = |table: u8, from: u8| [AF_INET, 0, from, 0, table, 0, 0, 1, 0, 0, 0, 0];
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(4 + value.len()).unwrap();
            let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let main = [&header(254, 0)[..], &attribute(6, &32766u32.to_ne_bytes())].concat();
        assert!(is_kernels(&rule(&main).unwrap()));
        let mesh = [
            &header(0, 8)[..],
            &attribute(6, &100u32.to_ne_bytes()),
            &attribute(2, &[10, 0, 0, 0]),
            &attribute(10, &0x539u32.to_ne_bytes()),
            &attribute(15, &133u32.to_ne_bytes()),
        ]
        .concat();
        let found = rule(&mesh).unwrap();
        assert!(!is_kernels(&found));
        assert_eq!(found.text, "100: from 10.0.0.0/8 fwmark 0x539 lookup 133");
        assert_eq!(rule(&[0; 3]), None);
        assert!(routing_rules().is_ok());
    }
}
