//! What the descriptors and mappings of a process mean for a move: finds those that CRIU refuses
//! or that need care. Which of them forbid a move is not decided here.

use std::fs::DirEntry;
use std::io;
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
    pub fn deny(&mut self, what: &str, error: &io::Error) {
        if !is_gone(error) {
            self.denied.get_or_insert_with(|| format!("{what} cannot be looked at: {error}"));
        }
    }
}

/// Whether something was there no longer when it was looked at.
pub fn is_gone(error: &io::Error) -> bool {
    // Of the last: its descriptor stands for something else now.
    const GONE: [Errno; 4] = [Errno::NOENT, Errno::SRCH, Errno::BADF, Errno::NOTSOCK];
    GONE.iter().any(|gone| Some(gone.raw_os_error()) == error.raw_os_error())
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
    let entries: Vec<io::Result<DirEntry>> = match std::fs::read_dir(dir.join("fd")) {
        Ok(entries) => entries.collect(),
        Err(error) => vec![Err(error)],
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                seen.deny("its descriptors", &error);
                continue;
            }
        };
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let Some(fd) = number else { continue };
        seen.count += 1;
        let look = |link: &Path| -> io::Result<Open> {
            let link = link.to_string_lossy();
            if let Some(inode) = socket_inode(&link) {
                let pidfd = pidfd.as_ref().map_err(|error| *error)?;
                return Ok(Open::Socket(inode, socket(pidfd.as_fd(), fd)?));
            }
            if link.starts_with("pipe:") {
                return Ok(Open::Pipe);
            }
            let info = std::fs::read_to_string(dir.join(format!("fdinfo/{fd}")))?;
            Ok(Open::Other(proc::fdinfo(&info), File::look(&path)?))
        };
        match steady(|| std::fs::read_link(&path), look) {
            Ok(Some((link, open))) => {
                descriptor(&mut seen, &dir, fd, &link.to_string_lossy(), open, around);
            }
            Ok(None) => {}
            Err(error) => seen.deny("a descriptor", &error),
        }
    }
    match directory(&dir, around) {
        Ok(found) => seen.resources.extend(found),
        Err(error) => seen.deny("its working directory", &error),
    }
    match super::read(&dir.join("maps")) {
        Ok(maps) => {
            for mapping in proc::mappings(&maps) {
                match mapped(&dir, &mapping, around) {
                    Ok(found) => seen.resources.extend(found),
                    Err(error) => seen.deny("a mapping", &error),
                }
            }
        }
        Err(error) => seen.deny("its mappings", &error),
    }
    seen
}

/// What a descriptor stands for.
enum Open {
    /// A socket, by its inode.
    Socket(u64, Socket),
    Pipe,
    Other(proc::FdInfo, File),
}

/// What is found behind a link that is the same before and after: a descriptor may stand for another file at any
/// moment. Nothing of one that is another each time, as that is not open for long.
fn steady<T>(
    mut link: impl FnMut() -> io::Result<PathBuf>,
    mut look: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<Option<(PathBuf, T)>> {
    const LOOKS: usize = 3;
    let mut before = link()?;
    for _ in 0..LOOKS {
        let found = look(&before);
        let after = link()?;
        if after == before {
            return Ok(Some((before, found?)));
        }
        before = after;
    }
    Ok(None)
}

/// Notes what matters about a descriptor.
fn descriptor(seen: &mut Seen, dir: &Path, fd: i32, link: &str, open: Open, around: &Surroundings) {
    let (mut info, file) = match open {
        Open::Socket(inode, Socket::Unix) => return seen.sockets.push((fd, inode)),
        Open::Socket(_, Socket::Other(kind, detail)) => {
            return seen.resources.push(Resource { kind, fd, detail, bytes: 0 });
        }
        Open::Socket(_, Socket::Plain) | Open::Pipe => return,
        Open::Other(info, file) => (info, file),
    };
    terminal(seen, &file, fd, link, &info);
    if link.starts_with("pidfd:") || link == "anon_inode:[pidfd]" {
        seen.processes.extend(info.process.map(|process| (fd, process)));
    }
    let removed = is_removed(dir, link, &file);
    let root = dir.join("root");
    info.watches.retain(|watch| {
        Some(watch.device) != around.rootfs_device || !watched::is_found(&root, *watch)
    });
    for (kind, bytes) in judge(link, Some(&file), removed, &info, around) {
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
            _ => name_of(kind, link),
        };
        seen.resources.push(Resource { kind, fd, detail, bytes });
    }
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
    fn look(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        let kind = metadata.file_type();
        let device = metadata.rdev();
        Ok(Self {
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
        })
    }

    fn is_named(&self) -> bool {
        (self.regular || self.directory) && self.kind != PROC_MAGIC
    }
}

/// Whether the name by which a file was opened is gone, though the file has others.
fn is_removed(dir: &Path, link: &str, file: &File) -> bool {
    let has_names = file.is_named() && file.links > 0;
    if !has_names || !link.ends_with(REMOVED_NAME) || link.starts_with("/memfd:") {
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

/// The working directory, where it matters.
fn directory(dir: &Path, around: &Surroundings) -> io::Result<Option<Resource>> {
    let path = dir.join("cwd");
    let found = steady(|| std::fs::read_link(&path), |_| File::look(&path))?;
    let Some((link, file)) = found else { return Ok(None) };
    let link = link.to_string_lossy().into_owned();
    let kind = if is_removed(dir, &link, &file) {
        ResourceKind::RemovedName
    } else if around.projected.names(&link) {
        ResourceKind::ProjectedFile
    } else {
        return Ok(None);
    };
    Ok(Some(Resource { kind, fd: -1, detail: link, bytes: 0 }))
}

/// What is mapped, where it matters.
fn mapped(dir: &Path, mapping: &Mapping, around: &Surroundings) -> io::Result<Option<Resource>> {
    /// Memory that only looks like a file.
    const MEMORY: [&str; 6] = ["/dev/zero", "/SYSV", "/memfd:", "/dev/shm/", "/[aio]", "/drm"];
    let path = mapping.path.as_str();
    let resource =
        |kind, bytes| Ok(Some(Resource { kind, fd: -1, detail: name_of(kind, path), bytes }));
    if let Some(name) = path.strip_prefix("anon_inode:") {
        return anonymous(name).map_or(Ok(None), |kind| resource(kind, 0));
    }
    if path.starts_with("/secretmem") {
        return resource(ResourceKind::SecretMemory, 0);
    }
    if path.starts_with("/anon_hugepage") {
        return resource(ResourceKind::HugePages, mapping.bytes);
    }
    if !path.starts_with('/') || MEMORY.iter().any(|prefix| path.starts_with(prefix)) {
        return Ok(None);
    }
    if around.is_remade(path) {
        return resource(ResourceKind::RemadeFile, 0);
    }
    if around.projected.names(path) {
        return resource(ResourceKind::ProjectedFile, 0);
    }
    let link = dir.join("map_files").join(&mapping.range);
    if path.starts_with("/dev/") {
        let file = File::look(&link)?;
        if file.character_device.is_some() || file.block_device {
            return resource(ResourceKind::Device, 0);
        }
    } else if path.ends_with(REMOVED_NAME) {
        let file = File::look(&link)?;
        if file.links == 0 {
            return resource(ResourceKind::UnlinkedFile, file.bytes);
        }
        if is_removed(dir, path, &file) {
            return resource(ResourceKind::RemovedName, 0);
        }
    }
    Ok(None)
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
