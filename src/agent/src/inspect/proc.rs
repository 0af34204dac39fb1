//! Texts of `/proc`, parsed. Pure; fields that are missing or strange become zero or empty, since
//! a process may end while it is looked at.

use transship_core::facts::ProcessState;

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
    fn amounts_are_read_in_kib() {
        assert_eq!(shared_bytes("7f00-7fff ---p\nPss_Shmem:          12 kB\n"), 12 << 10);
        assert_eq!(shared_bytes(""), 0);
        assert_eq!(available_memory("MemFree: 1 kB\nMemAvailable:   2048 kB\n"), 2 << 20);
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
