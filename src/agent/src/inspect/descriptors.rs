//! What the descriptors and mappings of a process mean for a move: finds those that CRIU refuses
//! or that need care. Which of them forbid a move is not decided here.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use transship_core::facts::{Resource, ResourceKind};

use super::proc;

/// Device number of a container's root file system (kernel's packing) and the ids of its mounts,
/// by which descriptors are judged.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub rootfs_device: Option<u64>,
    pub mount_ids: Vec<u64>,
}

/// Descriptors of one process that matter, and how many it has.
pub fn of_process(proc: &Path, pid: i32, around: &Surroundings) -> (Vec<Resource>, u64) {
    let dir = proc.join(pid.to_string());
    let mut found = Vec::new();
    let mut count = 0;
    let pidfd = Pid::from_raw(pid)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    for entry in std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        count += 1;
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        let link = link.to_string_lossy();
        if link.starts_with("socket:") {
            let kind = pidfd.as_ref().and_then(|pidfd| socket(pidfd.as_fd(), fd));
            found.extend(kind.map(|(kind, detail)| Resource { kind, fd, detail, bytes: 0 }));
            continue;
        }
        if link.starts_with("pipe:") {
            continue;
        }
        let text = std::fs::read_to_string(dir.join("fdinfo").join(fd.to_string()));
        let info = proc::fdinfo(&text.unwrap_or_default());
        let metadata = std::fs::metadata(entry.path()).ok();
        let file = metadata.as_ref().map(|metadata| File::of(metadata, &entry.path()));
        for (kind, bytes) in judge(&link, file.as_ref(), &info, around) {
            found.push(Resource { kind, fd, detail: link.clone().into_owned(), bytes });
        }
    }
    found.extend(mappings(&dir));
    (found, count)
}

/// What `stat` and `statfs` say about an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct File {
    regular: bool,
    directory: bool,
    character_device: Option<(u32, u32)>,
    block_device: bool,
    links: u64,
    bytes: u64,
    message_queue: bool,
}

/// Number of the message queues' file system (linux/magic.h).
const MQUEUE_MAGIC: i64 = 0x1980_0202;

impl File {
    fn of(metadata: &std::fs::Metadata, path: &Path) -> Self {
        let kind = metadata.file_type();
        let device = metadata.rdev();
        Self {
            regular: kind.is_file(),
            directory: kind.is_dir(),
            character_device: kind
                .is_char_device()
                .then(|| (rustix::fs::major(device), rustix::fs::minor(device))),
            block_device: kind.is_block_device(),
            links: metadata.nlink(),
            bytes: metadata.len(),
            message_queue: rustix::fs::statfs(path).is_ok_and(|fs| {
                #[allow(clippy::unnecessary_cast, reason = "its width differs by architecture")]
                let kind = fs.f_type as i64;
                kind == MQUEUE_MAGIC
            }),
        }
    }
}

/// Anonymous inodes that CRIU restores.
const KNOWN_ANONYMOUS: [&str; 7] =
    ["[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]"];

/// Judges one descriptor that is neither a socket nor a pipe.
fn judge(
    link: &str,
    file: Option<&File>,
    info: &proc::FdInfo,
    around: &Surroundings,
) -> Vec<(ResourceKind, u64)> {
    let mut found = Vec::new();
    let mut add = |kind| found.push((kind, 0));
    if info.locks > 0 {
        add(ResourceKind::FileLock);
    }
    if let Some(name) = link.strip_prefix("anon_inode:") {
        match name {
            "[io_uring]" => add(ResourceKind::IoUring),
            "[userfaultfd]" => add(ResourceKind::Userfaultfd),
            "[perf_event]" => add(ResourceKind::PerfEvent),
            "[fanotify]" => add(ResourceKind::Fanotify),
            "[timerfd]" if info.periodic_timer => add(ResourceKind::PeriodicTimer),
            name if name.starts_with("bpf") => add(ResourceKind::Bpf),
            name if !KNOWN_ANONYMOUS.contains(&name) => add(ResourceKind::AnonymousInode),
            _ => {}
        }
        let on_rootfs =
            info.watched_devices.iter().any(|device| Some(*device) == around.rootfs_device);
        if on_rootfs {
            add(ResourceKind::RootfsWatch);
        }
        return found;
    }
    if link.starts_with("/secretmem") {
        add(ResourceKind::SecretMemory);
        return found;
    }
    let Some(file) = file else { return found };
    if let Some(device) = file.character_device {
        match device {
            // null, zero, full, random, urandom, tty
            (1, 3 | 5 | 7 | 8 | 9) | (5, 0) => {}
            // ptmx, and the slaves
            (5, 2) | (136..=143, _) => add(ResourceKind::Pty),
            (4 | 5 | 204, _) => add(ResourceKind::Terminal),
            _ => add(ResourceKind::Device),
        }
    } else if file.block_device {
        add(ResourceKind::Device);
    } else if file.message_queue {
        add(ResourceKind::MessageQueue);
    } else if file.regular && file.links == 0 && !link.starts_with("/memfd:") {
        found.push((ResourceKind::UnlinkedFile, file.bytes));
    } else if (file.regular || file.directory)
        && !link.starts_with("/memfd:")
        && !around.mount_ids.is_empty()
        && !around.mount_ids.contains(&info.mount_id)
    {
        add(ResourceKind::OutsideFile);
    }
    found
}

/// Mapped files without a name, by their size where it can be found.
fn mappings(dir: &Path) -> Vec<Resource> {
    let Ok(maps) = std::fs::read_to_string(dir.join("maps")) else { return Vec::new() };
    proc::unlinked_mappings(&maps)
        .into_iter()
        .map(|(path, _)| Resource {
            kind: ResourceKind::UnlinkedFile,
            fd: -1,
            detail: path,
            bytes: 0,
        })
        .collect()
}

/// Looks at a socket through a duplicate of the descriptor, which is closed at once.
fn socket(pidfd: std::os::fd::BorrowedFd<'_>, fd: i32) -> Option<(ResourceKind, String)> {
    let copy = rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).ok()?;
    let family = sockopt::socket_domain(&copy).ok()?;
    let kind = sockopt::socket_type(&copy).ok()?;
    let protocol = sockopt::socket_protocol(&copy).ok()?;
    judge_socket(family, kind, protocol.map_or(0, |p| p.as_raw().get()))
}

fn judge_socket(
    family: AddressFamily,
    kind: SocketType,
    protocol: u32,
) -> Option<(ResourceKind, String)> {
    let unsupported = |what: String| Some((ResourceKind::UnsupportedSocket, what));
    let mptcp = ipproto::MPTCP.as_raw().get();
    match family {
        AddressFamily::UNIX | AddressFamily::NETLINK => None,
        AddressFamily::PACKET => Some((ResourceKind::PacketSocket, "packet socket".into())),
        AddressFamily::INET | AddressFamily::INET6 => {
            if protocol == mptcp {
                return Some((ResourceKind::Mptcp, "MPTCP socket".into()));
            }
            let known = match kind {
                SocketType::STREAM => protocol == ipproto::TCP.as_raw().get(),
                // UDP, UDP-Lite and the ping sockets of ICMP
                SocketType::DGRAM => matches!(protocol, 17 | 136 | 1 | 58),
                SocketType::RAW => true,
                _ => false,
            };
            if known { None } else { unsupported(format!("protocol {protocol}")) }
        }
        other => unsupported(format!("address family {}", other.as_raw())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(link: &str, file: Option<File>, info: &proc::FdInfo) -> Vec<ResourceKind> {
        let around = Surroundings { rootfs_device: Some(50), mount_ids: vec![7] };
        judge(link, file.as_ref(), info, &around).into_iter().map(|(kind, _)| kind).collect()
    }

    fn inside() -> proc::FdInfo {
        proc::FdInfo { mount_id: 7, ..Default::default() }
    }

    #[test]
    fn each_descriptor_is_told_by_what_it_points_to() {
        use ResourceKind as K;
        let device =
            |major, minor| File { character_device: Some((major, minor)), ..File::default() };
        let regular = File { regular: true, links: 1, ..File::default() };
        for (link, file, wanted) in [
            ("anon_inode:[io_uring]", None, vec![K::IoUring]),
            ("anon_inode:[userfaultfd]", None, vec![K::Userfaultfd]),
            ("anon_inode:[eventpoll]", None, vec![]),
            ("anon_inode:[pidfd]", None, vec![]),
            ("anon_inode:bpf-map", None, vec![K::Bpf]),
            ("anon_inode:[kvm-vm]", None, vec![K::AnonymousInode]),
            ("anon_inode:[fanotify]", None, vec![K::Fanotify]),
            ("/secretmem (deleted)", None, vec![K::SecretMemory]),
            ("/dev/null", Some(device(1, 3)), vec![]),
            ("/dev/pts/3", Some(device(136, 3)), vec![K::Pty]),
            ("/dev/ptmx", Some(device(5, 2)), vec![K::Pty]),
            ("/dev/console", Some(device(5, 1)), vec![K::Terminal]),
            ("/dev/net/tun", Some(device(10, 200)), vec![K::Device]),
            ("/queue", Some(File { message_queue: true, ..regular }), vec![K::MessageQueue]),
            ("/tmp/x (deleted)", Some(File { links: 0, ..regular }), vec![K::UnlinkedFile]),
            ("/memfd:x (deleted)", Some(File { links: 0, ..regular }), vec![]),
            ("/tmp/x", Some(regular), vec![]),
        ] {
            assert_eq!(kinds(link, file, &inside()), wanted, "{link}");
        }
    }

    #[test]
    fn watches_on_the_root_file_system_and_files_from_outside_are_seen() {
        let watch = |device| proc::FdInfo { watched_devices: vec![device], ..inside() };
        assert_eq!(kinds("anon_inode:inotify", None, &watch(50)), [ResourceKind::RootfsWatch]);
        assert!(kinds("anon_inode:inotify", None, &watch(51)).is_empty());
        let outside = proc::FdInfo { mount_id: 9, locks: 1, ..Default::default() };
        let regular = File { regular: true, links: 1, ..File::default() };
        assert_eq!(
            kinds("/x", Some(regular), &outside),
            [ResourceKind::FileLock, ResourceKind::OutsideFile]
        );
    }

    #[test]
    fn sockets_are_judged_by_family_and_protocol() {
        use AddressFamily as F;
        use SocketType as T;
        for (family, kind, protocol, wanted) in [
            (F::UNIX, T::STREAM, 0, None),
            (F::INET, T::STREAM, 6, None),
            (F::INET6, T::DGRAM, 17, None),
            (F::INET, T::RAW, 89, None),
            (F::NETLINK, T::RAW, 0, None),
            (F::INET, T::STREAM, 262, Some(ResourceKind::Mptcp)),
            (F::INET, T::STREAM, 132, Some(ResourceKind::UnsupportedSocket)),
            (F::VSOCK, T::STREAM, 0, Some(ResourceKind::UnsupportedSocket)),
            (F::PACKET, T::RAW, 0, Some(ResourceKind::PacketSocket)),
        ] {
            let found = judge_socket(family, kind, protocol).map(|(kind, _)| kind);
            assert_eq!(found, wanted, "{family:?} {kind:?} {protocol}");
        }
    }

    #[test]
    fn this_process_own_descriptors_are_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let me = std::process::id() as i32;
        let (found, count) = of_process(Path::new("/proc"), me, &Surroundings::default());
        assert!(count >= 2);
        use std::os::fd::AsRawFd;
        let of = |fd: i32| found.iter().find(|r| r.fd == fd).map(|r| (r.kind, r.bytes));
        assert_eq!(of(file.as_raw_fd()), Some((ResourceKind::UnlinkedFile, 4096)));
        assert_eq!(of(listener.as_raw_fd()), None);
    }
}
