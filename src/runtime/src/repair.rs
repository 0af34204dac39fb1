//! TCP's repair mode, in which CRIU has the connections of the tasks that it dumps. One that was killed leaves them in
//! it, where a process that sends or receives is told an error (`tcp_sendmsg_locked` and `tcp_recvmsg_locked` in Linux'
//! net/ipv4/tcp.c).

use std::collections::{HashMap, HashSet};
use std::io::Result;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::socket::sockopt::{AcceptConn, ReuseAddr, TcpRepair};
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, setsockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::Layout;

/// Ends it for every connection of these processes; gives how many were in it. What cannot be looked at is left as it
/// is, and told in the log.
pub fn end(layout: &Layout, processes: &[u32]) -> usize {
    let mut repaired = 0;
    let mut listeners = HashMap::new();
    each_socket(layout, processes, |socket| {
        repaired += usize::from(is_repaired(socket));
        if let (true, Some(port)) = (getsockopt(socket, AcceptConn)?, port(socket)) {
            *listeners.entry(port).or_insert(false) |= getsockopt(socket, ReuseAddr)?;
        }
        Ok(())
    });
    if repaired == 0 {
        return 0;
    }
    tracing::info!(repaired, "connections are in repair mode, which is ended");
    each_socket(layout, processes, |socket| {
        if !is_repaired(socket) {
            return Ok(());
        }
        setsockopt(socket, TcpRepair, &0)?;
        // The kernel forgets whether the address may be used again. A connection that was accepted has it from its
        // listener; to any other it makes no difference.
        let reuse = port(socket).and_then(|port| listeners.get(&port).copied()).unwrap_or(true);
        Ok(setsockopt(socket, ReuseAddr, &reuse)?)
    });
    repaired
}

/// Calls it for a duplicate of every socket of these processes, one after another, each as short as possible: what
/// somebody has a duplicate of is not closed when its process closes it, and there may be more than one may have open.
fn each_socket(layout: &Layout, processes: &[u32], mut with: impl FnMut(&OwnedFd) -> Result<()>) {
    let mut known = HashSet::new();
    for process in processes {
        if let Err(error) = sockets_of(layout, *process, &mut known, &mut with) {
            tracing::warn!(process, %error, "the connections of a process could not be looked at");
        }
    }
}

/// Each socket that is not known yet; the last error.
fn sockets_of(
    layout: &Layout,
    process: u32,
    known: &mut HashSet<PathBuf>,
    with: &mut impl FnMut(&OwnedFd) -> Result<()>,
) -> Result<()> {
    let process = process.cast_signed();
    let Some(pid) = Pid::from_raw(process) else { return Ok(()) };
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut outcome = Ok(());
    for descriptor in std::fs::read_dir(layout.of_process(process, "fd"))? {
        let path = descriptor?.path();
        let Ok(file) = std::fs::read_link(&path) else { continue };
        let is_socket = file.to_str().is_some_and(|file| file.starts_with("socket:"));
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let (true, Some(number)) = (is_socket && !known.contains(&file), number) else { continue };
        let seen = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map_err(Into::into);
        let done = seen.and_then(|socket| {
            known.insert(file);
            with(&socket)
        });
        outcome = done.and(outcome);
    }
    outcome
}

/// Sockets of other kinds have no such mode.
fn is_repaired(socket: &OwnedFd) -> bool {
    getsockopt(socket, TcpRepair).is_ok_and(|mode| mode > 0)
}

fn port(socket: &OwnedFd) -> Option<u16> {
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
        assert_eq!(end(&layout, &processes), 0);
    }
}
