//! What the descriptors and mappings of a process mean for a move: finds those that CRIU refuses
//! or that need care. Which of them forbid a move is not decided here.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use transship_core::facts::{REMOVED_NAME, Resource, ResourceKind};

use super::proc::{self, Mapping, Watch};
use super::projected::Projected;
use super::watched;

/// What surrounds a process, by which its descriptors are judged.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Device number of the container's root file system (kernel's packing).
    pub rootfs_device: Option<u64>,
    /// Ids of the mounts in the process's mount namespace.
    pub mount_ids: Vec<u64>,
    /// What lies in the container's projected volumes.
    pub projected: Projected,
    /// Where files are mounted that are written anew on the target.
    pub remade: Vec<String>,
}

impl Surroundings {
    /// Whether a path, as the kernel shows it of an open or mapped file, is one of those or below it.
    fn is_remade(&self, path: &str) -> bool {
        let path = path.strip_suffix(REMOVED_NAME).unwrap_or(path);
        let below = |mount: &String| path.strip_prefix(mount.as_str());
        self.remade.iter().filter_map(below).any(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// What was seen of a process's descriptors and mappings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// What matters by itself.
    pub resources: Vec<Resource>,
    /// Descriptors in all.
    pub count: u64,
    /// Unix sockets: descriptor and inode.
    pub sockets: Vec<(i32, u64)>,
    /// Pseudo terminals whose master it holds.
    pub masters: Vec<Terminal>,
    /// Slaves of pseudo terminals: descriptor, path, which.
    pub slaves: Vec<(i32, String, Terminal)>,
    /// A descriptor of `/dev/tty`.
    pub controlling: Option<i32>,
    /// Descriptors for processes: descriptor, process (-1 for one that has ended).
    pub processes: Vec<(i32, i32)>,
    /// What could not be looked at first, and why.
    pub denied: Option<String>,
}

impl Seen {
    /// Notes what could not be looked at, but for what was there no longer.
    fn deny(&mut self, what: &str, error: &std::io::Error) {
        // Of the last: its descriptor stands for something else now.
        const GONE: [Errno; 4] = [Errno::NOENT, Errno::SRCH, Errno::BADF, Errno::NOTSOCK];
        if !GONE.iter().any(|gone| Some(gone.raw_os_error()) == error.raw_os_error()) {
            self.denied.get_or_insert_with(|| format!("{what} cannot be looked at: {error}"));
        }
    }
}

/// A pseudo terminal: the file system that it belongs to, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Device of the devpts; none for a master opened through a device file elsewhere.
    pub devpts: Option<u64>,
    /// Number.
    pub number: u32,
}

impl Terminal {
    /// Whether both may be ends of the same terminal.
    pub fn is_same(self, other: Self) -> bool {
        let somewhere = self.devpts.is_none() || other.devpts.is_none();
        self.number == other.number && (somewhere || self.devpts == other.devpts)
    }
}

/// Looks at one process.
pub fn of_process(proc: &Path, pid: i32, around: &Surroundings) -> Seen {
    let dir = proc.join(pid.to_string());
    let mut seen = Seen::default();
    let pidfd = Pid::from_raw(pid)
        .ok_or(Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    let descriptors = std::fs::read_dir(dir.join("fd"));
    if let Err(error) = &descriptors {
        seen.deny("its descriptors", error);
    }
    for entry in descriptors.into_iter().flatten().flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        seen.count += 1;
        let link = match std::fs::read_link(entry.path()) {
            Ok(link) => link,
            Err(error) => {
                seen.deny("a descriptor", &error);
                continue;
            }
        };
        let link = link.to_string_lossy();
        if let Some(inode) = socket_inode(&link) {
            let pidfd = pidfd.as_ref().map_err(|error| *error);
            match pidfd.and_then(|pidfd| socket(pidfd.as_fd(), fd)) {
                Ok(Socket::Unix) => seen.sockets.push((fd, inode)),
                Ok(Socket::Other(kind, detail)) => {
                    seen.resources.push(Resource { kind, fd, detail, bytes: 0 });
                }
                Ok(Socket::Plain) => {}
                Err(error) => seen.deny("a socket", &error.into()),
            }
            continue;
        }
        if link.starts_with("pipe:") {
            continue;
        }
        let text = std::fs::read_to_string(dir.join("fdinfo").join(fd.to_string()));
        let info = proc::fdinfo(&text.unwrap_or_default());
        let file = std::fs::metadata(entry.path()).ok().map(|m| File::of(&m, &entry.path()));
        if let Some(file) = &file {
            terminal(&mut seen, file, fd, &link, &info);
        }
        if link.starts_with("pidfd:") || link == "anon_inode:[pidfd]" {
            seen.processes.extend(info.process.map(|process| (fd, process)));
        }
        let removed = is_removed(&dir, &link, file.as_ref());
        let root = dir.join("root");
        let mut info = info;
        info.watches.retain(|watch| {
            Some(watch.device) != around.rootfs_device || !watched::is_found(&root, *watch)
        });
        for (kind, bytes) in judge(&link, file.as_ref(), removed, &info, around) {
            let detail = match kind {
                ResourceKind::RootfsWatch => {
                    let on_rootfs = |w: &&Watch| Some(w.device) == around.rootfs_device;
                    let watch = info.watches.iter().find(on_rootfs);
                    watch.map(|w| format!("inode {}", w.inode)).unwrap_or_default()
                }
                ResourceKind::ProjectedFile if !info.watches.is_empty() => {
                    let held = |w: &Watch| around.projected.holds(w.device, w.inode);
                    let path = info.watches.iter().find_map(held).unwrap_or_default();
                    format!("a watch of {path}")
                }
                _ => name_of(kind, &link),
            };
            seen.resources.push(Resource { kind, fd, detail, bytes });
        }
    }
    seen.resources.extend(directories(&dir, around));
    match super::read(&dir.join("maps")) {
        Ok(maps) => {
            let mappings = proc::mappings(&maps);
            let mapped = mappings.iter().filter_map(|mapping| mapped(&dir, mapping, around));
            seen.resources.extend(mapped);
        }
        Err(error) => seen.deny("its mappings", &error),
    }
    seen
}

/// The inode in `socket:[…]`.
pub fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Notes the ends of terminals.
fn terminal(seen: &mut Seen, file: &File, fd: i32, link: &str, info: &proc::FdInfo) {
    let devpts = (file.kind == DEVPTS_MAGIC).then_some(file.identity.0);
    match file.character_device {
        Some((5, 0)) => seen.controlling = Some(fd),
        Some((5, 2)) => {
            seen.masters.extend(info.terminal.map(|number| Terminal { devpts, number }));
        }
        Some((major @ 136..=143, minor)) => {
            let number = (major - 136) * 256 + minor;
            seen.slaves.push((fd, link.to_owned(), Terminal { devpts, number }));
        }
        _ => {}
    }
}

/// What `stat` and `statfs` say about an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct File {
    regular: bool,
    directory: bool,
    character_device: Option<(u32, u32)>,
    block_device: bool,
    links: u64,
    /// What it occupies, as CRIU measures it against its limit.
    bytes: u64,
    identity: (u64, u64),
    kind: i64,
}

/// Numbers of file systems (linux/magic.h).
const MQUEUE_MAGIC: i64 = 0x1980_0202;
const PROC_MAGIC: i64 = 0x9fa0;
const DEVPTS_MAGIC: i64 = 0x1cd1;

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
            bytes: metadata.blocks() * 512,
            identity: (metadata.dev(), metadata.ino()),
            kind: rustix::fs::statfs(path).map_or(0, |fs| {
                #[allow(clippy::unnecessary_cast, reason = "its width differs by architecture")]
                let kind = fs.f_type as i64;
                kind
            }),
        }
    }

    fn is_named(&self) -> bool {
        (self.regular || self.directory) && self.kind != PROC_MAGIC
    }
}

/// Whether the name by which a file was opened is gone, though the file has others.
fn is_removed(dir: &Path, link: &str, file: Option<&File>) -> bool {
    let Some(file) = file.filter(|file| file.is_named() && file.links > 0) else { return false };
    if !link.ends_with(REMOVED_NAME) || link.starts_with("/memfd:") {
        return false;
    }
    // A file may really be called so.
    let there = std::fs::symlink_metadata(in_root(dir, link));
    !there.is_ok_and(|there| (there.dev(), there.ino()) == file.identity)
}

/// A path of the process, seen from here.
fn in_root(dir: &Path, path: &str) -> PathBuf {
    dir.join("root").join(path.trim_start_matches('/'))
}

/// Anonymous inodes that CRIU restores.
const KNOWN_ANONYMOUS: [&str; 7] =
    ["[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]"];

/// Judges one descriptor that is neither a socket nor a pipe.
fn judge(
    link: &str,
    file: Option<&File>,
    removed: bool,
    info: &proc::FdInfo,
    around: &Surroundings,
) -> Vec<(ResourceKind, u64)> {
    let mut found = Vec::new();
    let mut add = |kind| found.push((kind, 0));
    if info.locks > 0 {
        add(ResourceKind::FileLock);
    }
    if let Some(name) = link.strip_prefix("anon_inode:") {
        if let Some(kind) = anonymous(name) {
            add(kind);
        }
        if name == "[timerfd]" && info.periodic_timer {
            add(ResourceKind::PeriodicTimer);
        }
        let watches = |device: Option<u64>| info.watches.iter().any(|w| Some(w.device) == device);
        if watches(around.rootfs_device) {
            add(ResourceKind::RootfsWatch);
        }
        if info.watches.iter().any(|w| around.projected.holds(w.device, w.inode).is_some()) {
            add(ResourceKind::ProjectedFile);
        }
        return found;
    }
    if link.starts_with("/secretmem") {
        add(ResourceKind::SecretMemory);
        return found;
    }
    if !link.starts_with('/') {
        // Namespaces and descriptors for processes are restored.
        let known = ["pidfd:", "net:", "mnt:", "uts:", "ipc:", "pid:", "user:", "cgroup:", "time:"];
        if !known.iter().any(|prefix| link.starts_with(prefix)) {
            add(ResourceKind::AnonymousInode);
        }
        return found;
    }
    let Some(file) = file else { return found };
    let memory = link.starts_with("/memfd:");
    if let Some(device) = file.character_device {
        match device {
            // What comes with every container: the memory devices (null, zero, random, ...), tty.
            (1, _) | (5, 0) => {}
            // ptmx, and the slaves
            (5, 2) | (136..=143, _) => add(ResourceKind::Pty),
            (4 | 5 | 204, _) => add(ResourceKind::Terminal),
            _ => add(ResourceKind::Device),
        }
    } else if file.block_device {
        add(ResourceKind::Device);
    } else if file.kind == MQUEUE_MAGIC {
        if file.regular {
            add(ResourceKind::MessageQueue);
        }
    } else if file.regular && around.is_remade(link) {
        add(ResourceKind::RemadeFile);
    } else if file.regular && file.links == 0 && !memory && file.kind != PROC_MAGIC {
        found.push((ResourceKind::UnlinkedFile, file.bytes));
    } else if removed {
        add(ResourceKind::RemovedName);
    } else if around.projected.names(link) {
        add(ResourceKind::ProjectedFile);
    } else if (file.regular || file.directory)
        && !memory
        && !around.mount_ids.is_empty()
        && !around.mount_ids.contains(&info.mount_id)
    {
        add(ResourceKind::OutsideFile);
    }
    found
}

/// What an anonymous inode is, where that matters.
fn anonymous(name: &str) -> Option<ResourceKind> {
    match name {
        "[io_uring]" => Some(ResourceKind::IoUring),
        "[userfaultfd]" => Some(ResourceKind::Userfaultfd),
        "[perf_event]" => Some(ResourceKind::PerfEvent),
        "[fanotify]" => Some(ResourceKind::Fanotify),
        name if name.starts_with("bpf") || name.starts_with("[bpf") => Some(ResourceKind::Bpf),
        name if KNOWN_ANONYMOUS.contains(&name) => None,
        _ => Some(ResourceKind::AnonymousInode),
    }
}

/// What a person would recognise it by; nothing where the kind says it all.
fn name_of(kind: ResourceKind, link: &str) -> String {
    use ResourceKind as K;
    match kind {
        K::IoUring | K::Userfaultfd | K::PerfEvent | K::Fanotify | K::SecretMemory => String::new(),
        _ => link.strip_prefix("anon_inode:").unwrap_or(link).to_owned(),
    }
}

/// The working directory.
fn directories(dir: &Path, around: &Surroundings) -> Option<Resource> {
    let path = dir.join("cwd");
    let link = std::fs::read_link(&path).ok()?.to_string_lossy().into_owned();
    let file = std::fs::metadata(&path).ok().map(|m| File::of(&m, &path));
    let kind = if is_removed(dir, &link, file.as_ref()) {
        ResourceKind::RemovedName
    } else if around.projected.names(&link) {
        ResourceKind::ProjectedFile
    } else {
        return None;
    };
    Some(Resource { kind, fd: -1, detail: link, bytes: 0 })
}

/// What is mapped and matters.
fn mapped(dir: &Path, mapping: &Mapping, around: &Surroundings) -> Option<Resource> {
    /// Memory that only looks like a file.
    const MEMORY: [&str; 6] = ["/dev/zero", "/SYSV", "/memfd:", "/dev/shm/", "/[aio]", "/drm"];
    let path = mapping.path.as_str();
    let resource =
        |kind, bytes| Some(Resource { kind, fd: -1, detail: name_of(kind, path), bytes });
    if let Some(name) = path.strip_prefix("anon_inode:") {
        return resource(anonymous(name)?, 0);
    }
    if path.starts_with("/secretmem") {
        return resource(ResourceKind::SecretMemory, 0);
    }
    if path.starts_with("/anon_hugepage") {
        return resource(ResourceKind::HugePages, mapping.bytes);
    }
    if !path.starts_with('/') || MEMORY.iter().any(|prefix| path.starts_with(prefix)) {
        return None;
    }
    if around.is_remade(path) {
        return resource(ResourceKind::RemadeFile, 0);
    }
    if around.projected.names(path) {
        return resource(ResourceKind::ProjectedFile, 0);
    }
    let link = dir.join("map_files").join(&mapping.range);
    if path.starts_with("/dev/") {
        let file = std::fs::metadata(link).ok().map(|m| m.file_type())?;
        let device = file.is_char_device() || file.is_block_device();
        return if device { resource(ResourceKind::Device, 0) } else { None };
    }
    if path.ends_with(REMOVED_NAME) {
        let file = File::of(&std::fs::metadata(&link).ok()?, &link);
        if file.links == 0 {
            return resource(ResourceKind::UnlinkedFile, file.bytes);
        }
        if is_removed(dir, path, Some(&file)) {
            return resource(ResourceKind::RemovedName, 0);
        }
    }
    None
}

/// What a socket is.
#[derive(Debug, PartialEq)]
enum Socket {
    /// A Unix socket: with whom it is connected is looked at elsewhere.
    Unix,
    /// One that moves.
    Plain,
    /// One that matters.
    Other(ResourceKind, String),
}

/// Looks at a socket through a duplicate of the descriptor, which is closed at once.
fn socket(pidfd: std::os::fd::BorrowedFd<'_>, fd: i32) -> rustix::io::Result<Socket> {
    let copy = rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty())?;
    let family = sockopt::socket_domain(&copy)?;
    let kind = sockopt::socket_type(&copy)?;
    let protocol = sockopt::socket_protocol(&copy)?;
    Ok(judge_socket(family, kind, protocol.map_or(0, |p| p.as_raw().get())))
}

fn judge_socket(family: AddressFamily, kind: SocketType, protocol: u32) -> Socket {
    let unsupported = |what: String| Socket::Other(ResourceKind::UnsupportedSocket, what);
    let mptcp = ipproto::MPTCP.as_raw().get();
    match family {
        AddressFamily::UNIX => Socket::Unix,
        AddressFamily::NETLINK => Socket::Plain,
        AddressFamily::PACKET => Socket::Other(ResourceKind::PacketSocket, "packet socket".into()),
        AddressFamily::INET | AddressFamily::INET6 => {
            if protocol == mptcp {
                return Socket::Other(ResourceKind::Mptcp, String::new());
            }
            let known = match kind {
                SocketType::STREAM => protocol == ipproto::TCP.as_raw().get(),
                // UDP, UDP-Lite and the ping sockets of ICMP
                SocketType::DGRAM => matches!(protocol, 17 | 136 | 1 | 58),
                SocketType::RAW => true,
                _ => false,
            };
            if known { Socket::Plain } else { unsupported(format!("protocol {protocol}")) }
        }
        AddressFamily::VSOCK => unsupported("VSOCK".into()),
        other => unsupported(format!("address family {}", other.as_raw())),
    }
}

#[cfg(test)]
#[path = "descriptors_tests.rs"]
mod tests;
