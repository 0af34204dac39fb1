//! Texts of `/proc`, parsed. Pure; fields that are missing or strange become zero or empty, since
//! a process may end while it is looked at.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use transship_core::facts::{ListenFacts, MAX_PEERS, PeerFacts, ProcessState};

/// What `/proc/PID/status` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub name: String,
    pub state: ProcessState,
    pub tracer_pid: i32,
    pub uid: u32,
    pub container_pid: i32,
    pub parent: i32,
    pub threads: u32,
    pub rss_bytes: u64,
    pub anonymous_bytes: u64,
    pub huge_bytes: u64,
}

/// Reads `/proc/PID/status`.
pub fn status(text: &str) -> Status {
    let mut found = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let first = || value.split_ascii_whitespace().next().unwrap_or_default();
        match key {
            "Name" => found.name = value.to_owned(),
            "State" => found.state = state(first()),
            "PPid" => found.parent = value.parse().unwrap_or(0),
            "RssAnon" => found.anonymous_bytes = first().parse().unwrap_or(0u64) * 1024,
            "TracerPid" => found.tracer_pid = value.parse().unwrap_or(0),
            "Uid" => found.uid = first().parse().unwrap_or(0),
            "NSpid" => {
                let last = value.split_ascii_whitespace().next_back().unwrap_or_default();
                found.container_pid = last.parse().unwrap_or(0);
            }
            "Threads" => found.threads = value.parse().unwrap_or(0),
            "VmRSS" => found.rss_bytes = first().parse().unwrap_or(0u64) * 1024,
            "HugetlbPages" => found.huge_bytes = first().parse().unwrap_or(0u64) * 1024,
            _ => {}
        }
    }
    found
}

fn state(letter: &str) -> ProcessState {
    match letter {
        "D" => ProcessState::Uninterruptible,
        "T" => ProcessState::Stopped,
        "t" => ProcessState::Traced,
        "Z" | "X" => ProcessState::Zombie,
        _ => ProcessState::Running,
    }
}

/// What `/proc/PID/fdinfo/N` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    pub mount_id: u64,
    /// What inotify and fanotify watch.
    pub watches: Vec<Watch>,
    pub locks: usize,
    pub periodic_timer: bool,
    /// Number of the pseudo terminal whose master it is.
    pub terminal: Option<u32>,
    /// The process that a pidfd stands for; -1 when it has ended.
    pub process: Option<i32>,
}

/// A watched inode, with the device number as the kernel packs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    pub device: u64,
    pub inode: u64,
}

/// Reads `/proc/PID/fdinfo/N`.
pub fn fdinfo(text: &str) -> FdInfo {
    let mut found = FdInfo::default();
    for line in text.lines() {
        if let Some(id) = line.strip_prefix("mnt_id:") {
            found.mount_id = id.trim().parse().unwrap_or(0);
        } else if line.starts_with("inotify ") || line.starts_with("fanotify ") {
            let field = |name: &str| {
                let text =
                    line.split_ascii_whitespace().find_map(|part| part.strip_prefix(name))?;
                u64::from_str_radix(text, 16).ok()
            };
            found.watches.extend(
                field("sdev:").map(|device| Watch { device, inode: field("ino:").unwrap_or(0) }),
            );
        } else if line.starts_with("lock:") {
            found.locks += 1;
        } else if let Some(index) = line.strip_prefix("tty-index:") {
            found.terminal = index.trim().parse().ok();
        } else if let Some(pid) = line.strip_prefix("Pid:") {
            found.process = pid.trim().parse().ok();
        } else if let Some(interval) = line.strip_prefix("it_interval:") {
            found.periodic_timer = interval.chars().any(|c| ('1'..='9').contains(&c));
        }
    }
    found
}

/// The kernel's packed form of `major:minor` as in mountinfo.
pub fn packed_device(device: &str) -> Option<u64> {
    let (major, minor) = device.split_once(':')?;
    Some(major.parse::<u64>().ok()? << 20 | minor.parse::<u64>().ok()?)
}

/// The kernel's packed form of a device number as `stat` tells it.
pub fn kernel_device(device: u64) -> u64 {
    u64::from(rustix::fs::major(device)) << 20 | u64::from(rustix::fs::minor(device))
}

/// Something mapped that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses, as the entry in `map_files` is called.
    pub range: String,
    /// The kernel's name for it.
    pub path: String,
    /// Bytes mapped, where it is mapped first.
    pub bytes: u64,
}

/// What `/proc/PID/maps` names, each inode once; the kernel's own areas (`[heap]`) left out.
pub fn mappings(maps: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ').map(str::trim);
        let Some((start, end)) = fields.next().and_then(|range| range.split_once('-')) else {
            continue;
        };
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
        let (start, end) = (hex(start), hex(end));
        let (Some(device), Some(inode), Some(path)) = (fields.nth(2), fields.next(), fields.next())
        else {
            continue;
        };
        if path.is_empty() || path.starts_with('[') || !seen.insert((device, inode, path)) {
            continue;
        }
        found.push(Mapping {
            range: format!("{start:x}-{end:x}"),
            path: path.to_owned(),
            bytes: end.saturating_sub(start),
        });
    }
    found
}

/// The share of mapped shared memory that falls to a process, from `/proc/PID/smaps_rollup`.
pub fn shared_bytes(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss_Shmem:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Memory that programs can still get, from `/proc/meminfo`.
pub fn available_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Connections and listeners of one or two tables (`tcp`, `tcp6`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Connections {
    pub peers: Vec<PeerFacts>,
    pub established: u64,
    pub half_open: u64,
    pub listening: Vec<ListenFacts>,
}

/// Reads `/proc/PID/net/tcp` and `tcp6`. Connections within the pod are left out.
pub fn connections(tables: &[&str]) -> Connections {
    let mut found = Connections::default();
    let mut peers: BTreeMap<IpAddr, PeerFacts> = BTreeMap::new();
    for line in tables.iter().flat_map(|table| table.lines().skip(1)) {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ends = (fields.next().and_then(socket), fields.next().and_then(socket));
        let (Some((local, port)), Some((remote, _))) = ends else { continue };
        match fields.next().unwrap_or_default() {
            "0A" => {
                found.listening.push(ListenFacts { address: local.to_string(), port });
            }
            "03" | "0C" => found.half_open += 1,
            // Established, and closed by one side only: both carry data still.
            "01" | "04" | "05" | "08" if local != remote && !local.is_loopback() => {
                found.established += 1;
                let peer = peers.entry(remote).or_insert_with(|| PeerFacts {
                    address: remote.to_string(),
                    ..PeerFacts::default()
                });
                peer.connections += 1;
                if peer.local_ports.len() < 8 && !peer.local_ports.contains(&port) {
                    peer.local_ports.push(port);
                }
            }
            _ => {}
        }
    }
    found.peers = peers.into_values().collect();
    found.peers.sort_by_key(|peer| std::cmp::Reverse(peer.connections));
    found.peers.truncate(MAX_PEERS);
    found
}

/// `0100007F:1F90`, as the kernel keeps addresses: words of 32 bits in the machine's order.
fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let hex = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0u8; 16];
            for index in 0..4 {
                bytes[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
            }
            let address = Ipv6Addr::from(bytes);
            address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
        }
        _ => return None,
    };
    Some((address, port))
}

/// A route of `/proc/PID/net/route` or `/proc/PID/net/ipv6_route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub interface: String,
    pub destination: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
}

/// Reads `/proc/PID/net/route`; routes that are down are left out.
pub fn routes(table: &str) -> Vec<Route> {
    let address =
        |hex: &str| u32::from_str_radix(hex, 16).ok().map(|w| Ipv4Addr::from(w.to_ne_bytes()));
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
            let gateway = address(fields.get(2)?)?;
            (flags & 1 == 1).then_some(Route {
                interface: (*fields.first()?).to_owned(),
                destination: address(fields.get(1)?)?.into(),
                prefix: u32::from(address(fields.get(7)?)?).count_ones() as u8,
                gateway: (!gateway.is_unspecified()).then_some(gateway.into()),
            })
        })
        .collect()
}

/// Reads `/proc/PID/net/ipv6_route`; routes that are down are left out, and those that the kernel makes or
/// learns by itself on every node: of its own addresses, of groups and links, from advertisements.
pub fn ipv6_routes(table: &str) -> Vec<Route> {
    /// Flags of linux/route.h and linux/ipv6_route.h.
    const UP: u32 = 1;
    const REJECT: u32 = 0x200;
    const LEARNED: u32 = 0x4_0000;
    const ANYCAST: u32 = 0x10_0000;
    const LOCAL: u32 = 0x8000_0000;
    let address = |hex: &str| u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from);
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let destination = address(fields.first()?)?;
            let gateway = address(fields.get(4)?)?;
            let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
            let interface = (*fields.get(9)?).to_owned();
            // What is refused stands there as a route of the loopback device.
            let loopback = interface == "lo" && flags & REJECT == 0;
            let own = loopback || destination.is_multicast() || destination.is_unicast_link_local();
            if flags & UP == 0 || flags & (LEARNED | ANYCAST | LOCAL) != 0 || own {
                return None;
            }
            Some(Route {
                interface,
                destination: destination.into(),
                prefix: u8::from_str_radix(fields.get(1)?, 16).ok()?,
                gateway: (!gateway.is_unspecified()).then_some(gateway.into()),
            })
        })
        .collect()
}

/// Those addresses of `/proc/PID/net/if_inet6` that the kernel has learned from advertisements, as it does
/// on every node: all others were given to stay.
pub fn learned_addresses(table: &str) -> Vec<IpAddr> {
    /// `IFA_F_PERMANENT` of linux/if_addr.h.
    const PERMANENT: u32 = 0x80;
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let address = u128::from_str_radix(fields.first()?, 16).ok()?;
            let flags = u32::from_str_radix(fields.get(4)?, 16).ok()?;
            (flags & PERMANENT == 0).then_some(IpAddr::V6(Ipv6Addr::from(address)))
        })
        .collect()
}

/// Sums of a `/proc/sysvipc` table: rows, and the total of the column called `size`.
pub fn sysv(table: &str) -> (u64, u64) {
    let mut lines = table.lines();
    let size =
        lines.next().and_then(|head| head.split_ascii_whitespace().position(|name| name == "size"));
    lines.fold((0, 0), |(rows, bytes), line| {
        let value = size.and_then(|at| line.split_ascii_whitespace().nth(at));
        (rows + 1, bytes + value.and_then(|v| v.parse::<u64>().ok()).unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let text = "Name:\tredis server\nUmask:\t0022\nState:\tT (stopped)\nTgid:\t99\nPid:\t99\n\
            PPid:\t98\nTracerPid:\t0\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t99\t7\nVmRSS:\t  2048 kB\n\
            RssAnon:\t  1024 kB\n\
            HugetlbPages:\t       4 kB\nThreads:\t5\n";
        assert_eq!(
            status(text),
            Status {
                name: "redis server".into(),
                state: ProcessState::Stopped,
                tracer_pid: 0,
                uid: 1000,
                container_pid: 7,
                parent: 98,
                threads: 5,
                rss_bytes: 2 << 20,
                anonymous_bytes: 1 << 20,
                huge_bytes: 4096,
            }
        );
        assert_eq!(status(""), Status::default());
    }

    #[test]
    fn each_state_is_told_apart() {
        for (letter, wanted) in [
            ("R", ProcessState::Running),
            ("S", ProcessState::Running),
            ("I", ProcessState::Running),
            ("D", ProcessState::Uninterruptible),
            ("T", ProcessState::Stopped),
            ("t", ProcessState::Traced),
            ("Z", ProcessState::Zombie),
        ] {
            assert_eq!(state(letter), wanted, "{letter}");
        }
    }

    #[test]
    fn watches_locks_and_timers_are_read_from_fdinfo() {
        let inotify = "pos:\t0\nflags:\t02000000\nmnt_id:\t15\nino:\t9\n\
            inotify wd:1 ino:2b sdev:32 mask:fce ignored_mask:0 fhandle-bytes:8\n";
        let found = fdinfo(inotify);
        assert_eq!(
            (found.mount_id, found.watches),
            (15, vec![Watch { device: 0x32, inode: 0x2b }])
        );
        assert_eq!(fdinfo("pos:\t0\ntty-index:\t3\n").terminal, Some(3));
        assert_eq!(fdinfo("Pid:\t-1\nNSpid:\t-1\n").process, Some(-1));
        assert_eq!(packed_device("0:50"), Some(0x32));
        assert_eq!(packed_device("8:1"), Some(0x80_0001));
        let locked = "pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n";
        assert_eq!(fdinfo(locked).locks, 1);
        for (line, periodic) in [
            ("it_interval: (0, 0)", false),
            ("it_interval: (1, 0)", true),
            ("it_interval: (0, 50)", true),
        ] {
            assert_eq!(fdinfo(line).periodic_timer, periodic, "{line}");
        }
    }

    #[test]
    fn what_is_mapped_is_named_once() {
        let maps = "\
7f00-7f01 r-xp 00000000 08:01 42                         /usr/lib/libx.so (deleted)
7f01-7f02 r--p 00000000 08:01 42                         /usr/lib/libx.so (deleted)
07f04-7f05 rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)
7f05-7f06 rw-p 00000000 00:00 0                          [heap]
7f06-7f07 rw-p 00000000 00:00 0
7f07-7f09 rw-s 00000000 00:0f 45                         anon_inode:[io_uring]
broken
";
        let found = mappings(maps);
        let seen: Vec<_> = found.iter().map(|m| (m.range.as_str(), m.path.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("7f00-7f01", "/usr/lib/libx.so (deleted)"),
                ("7f04-7f05", "/SYSV00000000 (deleted)"),
                ("7f07-7f09", "anon_inode:[io_uring]"),
            ]
        );
        assert_eq!(found[2].bytes, 2);
    }

    #[test]
    fn addresses_that_stay_are_not_learned() {
        let table = "\
00000000000000000000000000000001 01 80 10 80       lo
fd000001000000000000000000000005 03 40 00 00     eth0
fd000001000000000000000000000006 03 40 00 80     eth0
broken
";
        assert_eq!(learned_addresses(table), ["fd00:1::5".parse::<IpAddr>().unwrap()]);
        assert!(learned_addresses("").is_empty());
    }

    #[test]
    fn amounts_are_read_in_kib() {
        assert_eq!(shared_bytes("7f00-7fff ---p\nPss_Shmem:          12 kB\n"), 12 << 10);
        assert_eq!(shared_bytes(""), 0);
        assert_eq!(available_memory("MemFree: 1 kB\nMemAvailable:   2048 kB\n"), 2 << 20);
    }

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 0500F40A:1F90 0C00FA0A:C350 01 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0500F40A:1F90 0C00FA0A:C351 01 00000000:00000000 00:00000000 00000000     0        0 13 1
   3: 0500F40A:1F91 0D00FA0A:C350 08 00000000:00000000 00:00000000 00000000     0        0 14 1
   4: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 15 1
   5: 0500F40A:1F90 0C00FA0A:C352 03 00000000:00000000 00:00000000 00000000     0        0 0 1
   6: 0500F40A:1F90 0C00FA0A:C353 06 00000000:00000000 00:00000000 00000000     0        0 0 1
";
    const TCP6: &str = "head
   0: 0000000000000000FFFF00000500F40A:1F90 0000000000000000FFFF00000C00FA0A:C360 01 0:0 00:0 0 0 0 16 1
   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 17 1
   broken
";

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_counted_by_peer() {
        let found = connections(&[TCP, TCP6]);
        assert_eq!((found.established, found.half_open), (4, 1));
        assert_eq!(
            found.peers,
            [
                PeerFacts {
                    address: "10.250.0.12".into(),
                    connections: 3,
                    local_ports: vec![8080]
                },
                PeerFacts {
                    address: "10.250.0.13".into(),
                    connections: 1,
                    local_ports: vec![8081]
                },
            ]
        );
        let ports: Vec<_> = found.listening.iter().map(|l| (l.address.as_str(), l.port)).collect();
        assert_eq!(ports, [("0.0.0.0", 8080), ("::", 80)]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read_with_their_prefix() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0101F40A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0000F40A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t00000B0A\t0101F40A\t0002\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let found = routes(table);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].gateway, Some(Ipv4Addr::new(10, 244, 1, 1).into()));
        assert_eq!((found[0].prefix, found[1].prefix), (0, 16));
        assert_eq!(found[1].destination, Ipv4Addr::new(10, 244, 0, 0));
    }

    #[test]
    fn routes_of_ipv6_are_those_that_somebody_has_made() {
        const NONE: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000";
        let line = |destination: &str, flags: &str, interface: &str| {
            format!("{destination} {NONE} 00000100 00000001 00000000 {flags} {interface}\n")
        };
        let table = [
            line("fd000000000000000000000000000000 40", "00000001", "eth0"),
            "fd090000000000000000000000000000 30 00000000000000000000000000000000 00 \
             fd000000000000000000000000000009 00000400 00000002 00000000 00000003     eth0\n"
                .to_owned(),
            line("fd070000000000000000000000000000 10", "00000201", "lo"),
            // The kernel's own.
            line("00000000000000000000000000000000 00", "00200200", "lo"),
            line("00000000000000000000000000000001 80", "80200001", "lo"),
            line("fd000000000000000000000000000008 80", "00000001", "lo"),
            line("fd000000000000000000000000000005 80", "80200001", "eth0"),
            line("fd000000000000000000000000000000 80", "80300001", "eth0"),
            line("fe800000000000000000000000000000 40", "00000001", "eth0"),
            line("ff000000000000000000000000000000 08", "00000001", "eth0"),
            line("fd010000000000000000000000000000 40", "00040001", "eth0"),
        ];
        let found = ipv6_routes(&table.concat());
        let told: Vec<String> = found
            .iter()
            .map(|r| format!("{}/{} {:?} {}", r.destination, r.prefix, r.gateway, r.interface))
            .collect();
        assert_eq!(
            told,
            ["fd00::/64 None eth0", "fd09::/48 Some(fd00::9) eth0", "fd07::/16 None lo"]
        );
    }

    #[test]
    fn system_v_tables_are_summed() {
        let table = "       key      shmid perms                  size  cpid\n\
            0 1 600 4096 77\n 0 2 600 8192 77\n";
        assert_eq!(sysv(table), (2, 12288));
        assert_eq!(sysv("key semid perms nsems\n1 2 600 3\n"), (1, 0));
        assert_eq!(sysv(""), (0, 0));
    }
}
