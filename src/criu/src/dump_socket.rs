//! A socket that CRIU inherits, instead of a port that it connects to.
//!
//! `runc checkpoint` has no option for it, but CRIU reads a configuration file named by the
//! environment, and both pass descriptors on. With `page-server` and `ps-socket N` in that file CRIU
//! sends its pages through descriptor N and [`receive`](crate::page_server::receive) gets them from
//! the other end. Against `--page-server 127.0.0.1:PORT` this has two advantages: no other
//! process on the node can take part, and the dump does not end with a wait of up to 200 ms. (CRIU
//! corks its TCP socket; its last command then leaves only when the kernel's timer runs out.)

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::sockopt;

/// Below this, runc and CRIU use descriptors as they like (runc gives CRIU its channel as 3).
const FIRST_FD: i32 = 100;

/// How far CRIU may be ahead of us, in bytes. The kernel's default is some 200 KiB, with which both
/// sides wait for each other most of the time.
const SEND_BUFFER: usize = 4 << 20;

/// The environment variable that names a CRIU configuration file.
pub const CONFIG_ENV: &str = "CRIU_CONFIG_FILE";

/// CRIU's end of the connection.
#[derive(Debug)]
pub struct DumpSocket {
    fd: OwnedFd,
}

/// Makes a connection: our end, for [`receive`](crate::page_server::receive), and CRIU's.
pub fn dump_socket() -> io::Result<(UnixStream, DumpSocket)> {
    let (ours, theirs) = UnixStream::pair()?;
    // Without the privilege the system's limit holds; that costs time, nothing else.
    if sockopt::set_socket_send_buffer_size_force(&theirs, SEND_BUFFER).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&theirs, SEND_BUFFER);
    }
    let fd = fcntl_dupfd_cloexec(&theirs, FIRST_FD)?;
    Ok((ours, DumpSocket { fd }))
}

impl DumpSocket {
    /// The lines that CRIU's configuration file needs. Other options may stand beside them.
    pub fn config(&self) -> String {
        format!("page-server\nps-socket {}\n", self.fd.as_raw_fd())
    }

    /// Lets `command` (runc, or CRIU itself) inherit this end, and no other child of this process.
    ///
    /// The command keeps it open: drop the command after spawning it, otherwise a dump that fails
    /// is not seen as the end of the stream. The caller also sets [`CONFIG_ENV`] to a file with
    /// [`config`](Self::config).
    #[allow(unsafe_code)]
    pub fn inherit(self, command: &mut Command) {
        let pass_on = move || Ok(fcntl_setfd(&self.fd, FdFlags::empty())?);
        // SAFETY: between fork and exec the closure makes one system call (fcntl), which is
        // async-signal-safe; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(pass_on) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Stdio;

    #[test]
    fn only_the_chosen_child_inherits_the_socket_and_its_end_is_seen() {
        let (mut ours, theirs) = dump_socket().unwrap();
        let config = theirs.config();
        let fd = config.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(config.starts_with("page-server\nps-socket 1"), "{config}");
        let open = |n: &str| format!("test -e /proc/self/fd/{n}");
        let other = Command::new("sh").args(["-c", &open(&fd)]).status().unwrap();
        assert!(!other.success(), "another child must not have it");
        let mut command = Command::new("bash");
        command.args(["-c", &format!("echo hello >&{fd}")]).stdin(Stdio::null());
        theirs.inherit(&mut command);
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello\n");
        assert!(child.wait().unwrap().success());
    }
}
