//! The network namespace of a pod: closing and opening it, announcing its address, changing address and
//! hardware address of an interface, its sockets, and what the node tracks of its connections.
//!
//! Work in another network namespace is done on a thread made for it: a thread has its own namespace, and
//! ending it is the only reliable way back. Programs started by such a thread start in the pod's namespace
//! but in the host's mount namespace.

mod alias;
mod announce;
pub mod conntrack;
mod filter;
mod link;
mod netlink;
mod sockets;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use announce::ANNOUNCEMENTS;
pub use filter::{TABLE, nft_program};
pub use link::{Address, Interface};
pub use sockets::{End, Socket};

use crate::error::{Error, Result};

/// A network namespace, by a path that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetNs(PathBuf);

impl NetNs {
    /// The namespace that a process is in.
    pub fn of_process(pid: u32) -> Self {
        Self(PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// The namespace at a path (as CNI and the CRI name it).
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether there is such a namespace.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Runs `work` on a thread in this namespace and waits for it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(&self.0).map_err(Error::io("open", &self.0))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(Error::errno("enter network namespace", &self.0))?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                // A panic in `work` is a bug there; pass it on instead of hiding it.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The names of all devices but the loopback device, sorted.
    pub fn devices(&self) -> Result<Vec<String>> {
        self.enter(|| {
            let path = Path::new("/proc/thread-self/net/dev");
            let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
            Ok(device_names(&text))
        })
    }
}

/// How many TCP connections of a process's network namespace are half open (SYN received). A half-open
/// connection would be lost, or make CRIU refuse its listening socket, so one waits for these to finish first.
pub fn half_open_connections(pid: u32) -> Result<usize> {
    let mut count = 0;
    for family in ["tcp", "tcp6"] {
        let path = PathBuf::from(format!("/proc/{pid}/net/{family}"));
        match fs::read_to_string(&path) {
            Ok(text) => count += half_open_in(&text),
            // No IPv6 on this host.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && family == "tcp6" => {}
            Err(error) => return Err(Error::io("read", &path)(error)),
        }
    }
    Ok(count)
}

fn half_open_in(proc_net_tcp: &str) -> usize {
    // Fourth field: state; 03 is TCP_SYN_RECV and 0C TCP_NEW_SYN_RECV, which the kernel shows as the former.
    proc_net_tcp
        .lines()
        .skip(1)
        .filter(|line| matches!(line.split_whitespace().nth(3), Some("03" | "0C")))
        .count()
}

fn device_names(proc_net_dev: &str) -> Vec<String> {
    let mut names: Vec<String> = proc_net_dev
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .filter(|name| name != "lo")
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_without_the_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0: 3 4\n dummy0:0 0\n";
        assert_eq!(device_names(text), ["dummy0", "eth0"]);
    }

    #[test]
    fn only_half_open_connections_count() {
        let text = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 0A 0\n   1: 0100007F:1F90 0100007F:9C4E 03 0\n   2: 0100007F:1F90 0100007F:9C4E 01 0\n";
        assert_eq!(half_open_in(text), 1);
    }

    #[test]
    fn a_missing_namespace_is_an_error_that_names_it() {
        let error = NetNs::at("/nonexistent/ns").devices().unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ns"), "{error}");
    }
}
