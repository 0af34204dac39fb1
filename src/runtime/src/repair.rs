//! TCP's repair mode, in which CRIU has the connections of the tasks that it dumps. One that was killed leaves them in it,
//! where a process that sends or receives is told an error (`tcp_sendmsg_locked` and `tcp_recvmsg_locked` in Linux'
//! net/ipv4/tcp.c).

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::socket::sockopt::{AcceptConn, ReuseAddr, TcpRepair};
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, setsockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::Layout;

/// Ends it for every connection of these processes; gives how many were in it. What cannot be looked at is left as it is,
/// and told in the log.
pub fn end(layout: &Layout, processes: &[u32]) -> usize {
    let mut known = HashSet::new();
    let sockets: Vec<OwnedFd> =
        processes.iter().flat_map(|process| sockets(layout, *process, &mut known)).collect();
    let is_repaired = |socket: &&OwnedFd| getsockopt(socket, TcpRepair).is_ok_and(|mode| mode > 0);
    let repaired: Vec<&OwnedFd> = sockets.iter().filter(is_repaired).collect();
    if repaired.is_empty() {
        return 0;
    }
    // The kernel forgets whether an address may be used again. A connection that was accepted has it from its listener.
    let listeners: HashMap<u16, bool> = sockets
        .iter()
        .filter(|socket| getsockopt(socket, AcceptConn).unwrap_or(false))
        .filter_map(|socket| Some((port(socket)?, getsockopt(socket, ReuseAddr).ok()?)))
        .collect();
    for socket in &repaired {
        let reuse = port(socket).and_then(|port| listeners.get(&port).copied()).unwrap_or(false);
        let ended =
            setsockopt(socket, TcpRepair, &0).and_then(|()| setsockopt(socket, ReuseAddr, &reuse));
        if let Err(error) = ended {
            tracing::warn!(%error, "a connection stays in repair mode");
        }
    }
    repaired.len()
}

/// Duplicates of a process's sockets, each once.
fn sockets(layout: &Layout, process: u32, known: &mut HashSet<PathBuf>) -> Vec<OwnedFd> {
    let process = process.cast_signed();
    let Some(pid) = Pid::from_raw(process) else { return Vec::new() };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Vec::new() };
    let descriptors = std::fs::read_dir(layout.of_process(process, "fd"));
    let descriptors = descriptors.into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| {
            let file = std::fs::read_link(descriptor.path()).ok()?;
            let is_new = file.to_str()?.starts_with("socket:") && known.insert(file);
            is_new.then_some(())?;
            let number = descriptor.file_name().to_str()?.parse().ok()?;
            pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok()
        })
        .collect()
}

fn port(socket: &OwnedFd) -> Option<u16> {
    use std::os::fd::AsRawFd;
    let address: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let v4 = address.as_sockaddr_in().map(|address| address.port());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.port()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_goes_on_as_it_was() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let (processes, layout) = ([std::process::id()], Layout::default());
        assert!(getsockopt(&accepted, ReuseAddr).unwrap(), "the library sets it for listeners");
        assert_eq!(end(&layout, &processes), 0);
        for end in [&accepted, &client] {
            setsockopt(end, TcpRepair, &1).unwrap();
        }
        assert!(accepted.write_all(b"x").is_err() && client.read(&mut [0]).is_err());
        assert_eq!(end(&layout, &processes), 2);
        accepted.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        assert!(getsockopt(&accepted, ReuseAddr).unwrap());
        assert!(!getsockopt(&client, ReuseAddr).unwrap());
        assert_eq!(end(&layout, &processes), 0);
    }
}
