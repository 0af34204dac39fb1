//! What a network namespace holds that matters before a freeze: its devices, and connections
//! whose handshake has not ended. Read through a process that lives in it.

use crate::{Layout, Result};

/// The kernel's number for a connection whose handshake has not ended (TCP_SYN_RECV).
const SYN_RECV: &str = "03";

/// Half-open connections in the network namespace of process `pid`. Each of them would make CRIU
/// refuse its listening socket, or be lost.
pub fn half_open(layout: &Layout, pid: i32) -> Result<usize> {
    let mut count = 0;
    for file in ["net/tcp", "net/tcp6"] {
        let path = layout.of_process(pid, file);
        match std::fs::read_to_string(&path) {
            Ok(text) => count += count_half_open(&text),
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file == "net/tcp6" => {}
            Err(source) => return Err(crate::Error::Read { path, source }),
        }
    }
    Ok(count)
}

fn count_half_open(table: &str) -> usize {
    table
        .lines()
        .skip(1)
        .filter(|line| line.split_ascii_whitespace().nth(3) == Some(SYN_RECV))
        .count()
}

/// Names of the devices in the network namespace of process `pid`, without `lo`.
pub fn devices(layout: &Layout, pid: i32) -> Result<Vec<String>> {
    Ok(device_names(&crate::read(&layout.of_process(pid, "net/dev"))?))
}

fn device_names(table: &str) -> Vec<String> {
    table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .filter(|name| name != "lo")
        .collect()
}

/// User id of the process that owns the local TCP socket `127.0.0.1:port` connected to
/// `127.0.0.1:peer_port`; none when there is no such connection.
pub fn owner_of_local_connection(
    layout: &Layout,
    port: u16,
    peer_port: u16,
) -> Result<Option<u32>> {
    let path = layout.proc.join("self/net/tcp");
    Ok(owner_in(&crate::read(&path)?, port, peer_port))
}

fn owner_in(table: &str, port: u16, peer_port: u16) -> Option<u32> {
    // The kernel prints addresses as it keeps them: 127.0.0.1 in network order.
    let loopback = u32::from_ne_bytes([127, 0, 0, 1]);
    let local = format!("{loopback:08X}:{port:04X}");
    let remote = format!("{loopback:08X}:{peer_port:04X}");
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let found = fields.nth(1)? == local && fields.next()? == remote;
        // After the remote address: state, queues, timer, retransmits, uid.
        found.then(|| fields.nth(4)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 0100007F:1F90 0100007F:C350 03 00000000:00000000 00:00000000 00000000     0        0 0 1
   2: 0100007F:C351 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 12 1
";

    #[test]
    fn only_half_open_connections_are_counted() {
        assert_eq!(count_half_open(TCP), 1);
        assert_eq!(count_half_open("header\n"), 0);
    }

    #[test]
    fn every_device_but_the_loopback_is_named() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0: 3 4\nnet1:5 6\n";
        assert_eq!(device_names(table), ["eth0", "net1"]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_owner_of_a_local_connection_is_found_by_both_ports() {
        assert_eq!(owner_in(TCP, 0xC351, 0x1F90), Some(1000));
        assert_eq!(owner_in(TCP, 0xC352, 0x1F90), None);
    }

    #[test]
    fn this_process_has_no_half_open_connections_it_does_not_know_of() {
        let layout = Layout::default();
        let me = std::process::id() as i32;
        assert!(half_open(&layout, me).is_ok());
        assert!(devices(&layout, me).is_ok());
    }
}
