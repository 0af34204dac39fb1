//! Things with two ends: Unix sockets, terminals, descriptors for processes. One whose other end is
//! outside the container cannot be saved.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use transship_core::facts::{ContainerFacts, ProcessState, Resource, ResourceKind};

use super::descriptors::{Seen, Terminal, socket_inode};
use super::netlink::UnixSocket;

/// How often a doubt is looked into: in the moments of one look a socket may pass from a parent to its child.
const LOOKS: usize = 2;

/// What a container has at one moment.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// Its processes, those from outside left out.
    pub pids: BTreeSet<i32>,
    /// Inodes of the sockets that they hold.
    pub held: BTreeSet<u64>,
    /// The Unix sockets of its network namespace.
    pub unix: BTreeMap<u64, UnixSocket>,
}

impl Now {
    /// What these processes have; `unix` is asked for after their descriptors.
    pub fn look(
        proc: &Path,
        pids: BTreeSet<i32>,
        unix: impl FnOnce() -> io::Result<BTreeMap<u64, UnixSocket>>,
    ) -> io::Result<Self> {
        let held = sockets_of(proc, &pids);
        Ok(Self { pids, held, unix: unix()? })
    }
}

/// The other end of something.
#[derive(Debug, Clone, Copy)]
enum Other {
    /// A process.
    Process(i32),
    /// That of the Unix socket with this inode.
    Socket(u64),
}

/// Adds to the processes of a container what `seen` of each, and the Unix sockets of the pod's
/// network namespace, say about the other ends. Children come and go meanwhile: where there is a doubt,
/// `look` tells what there is by then.
pub fn judge(
    proc: &Path,
    container: &mut ContainerFacts,
    seen: &[Seen],
    unix: Option<&BTreeMap<u64, UnixSocket>>,
    look: impl Fn() -> io::Result<Now>,
) -> io::Result<()> {
    let inside: Vec<(usize, &Seen)> =
        seen.iter().enumerate().filter(|(at, _)| !container.processes[*at].outside).collect();
    let pids: BTreeSet<i32> = inside.iter().map(|(at, _)| container.processes[*at].pid).collect();
    let masters: Vec<Terminal> = inside.iter().flat_map(|(_, s)| &s.masters).copied().collect();
    let inodes = inside.iter().flat_map(|(_, s)| s.sockets.iter().map(|(_, inode)| *inode));
    let held: BTreeSet<u64> = inodes.collect();
    let mut doubts: Vec<(usize, Other, Resource)> = Vec::new();
    for (at, seen) in inside {
        let found = &mut container.processes[at].resources;
        let resource = |kind, fd, detail| Resource { kind, fd, detail, bytes: 0 };
        for (fd, path, slave) in &seen.slaves {
            if !masters.iter().any(|master| master.is_same(*slave)) {
                found.push(resource(ResourceKind::Terminal, *fd, path.clone()));
            }
        }
        if let Some(fd) = seen.controlling.filter(|_| seen.slaves.is_empty()) {
            found.push(resource(ResourceKind::InheritedTerminal, fd, "/dev/tty".to_owned()));
        }
        for (fd, process) in &seen.processes {
            if *process > 0 && !pids.contains(process) {
                let detail = format!("process {process} of the node");
                let foreign = resource(ResourceKind::ForeignProcess, *fd, detail);
                doubts.push((at, Other::Process(*process), foreign));
            }
        }
        for (fd, inode) in &seen.sockets {
            let Some(detail) = unix.and_then(|unix| foreign(*inode, unix, &held)) else { continue };
            let foreign = resource(ResourceKind::ForeignSocket, *fd, detail);
            doubts.push((at, Other::Socket(*inode), foreign));
        }
    }
    for _ in 0..LOOKS {
        if doubts.is_empty() {
            break;
        }
        let now = look()?;
        doubts.retain(|(_, other, _)| match *other {
            Other::Process(process) => is_outside(proc, process, &now.pids),
            Other::Socket(inode) => {
                now.held.contains(&inode) && foreign(inode, &now.unix, &now.held).is_some()
            }
        });
    }
    for (at, _, foreign) in doubts {
        container.processes[at].resources.push(foreign);
    }
    Ok(())
}

/// Whether a process is there and is none of the container's. Those that have ended and whose parents have not
/// asked for them are in no list.
fn is_outside(proc: &Path, process: i32, pids: &BTreeSet<i32>) -> bool {
    if pids.contains(&process) {
        return false;
    }
    let status = super::processes::status(proc, process);
    status.is_ok_and(|s| s.state != ProcessState::Zombie || !pids.contains(&s.parent))
}

/// What a socket is called whose other end is not among those that are held.
fn foreign(inode: u64, unix: &BTreeMap<u64, UnixSocket>, held: &BTreeSet<u64>) -> Option<String> {
    let Some(socket) = unix.get(&inode) else {
        return Some("made outside the pod's network".into());
    };
    if socket.peer == 0 || held.contains(&socket.peer) {
        return None;
    }
    let peer = unix.get(&socket.peer).map(|peer| peer.name.as_str()).filter(|n| !n.is_empty());
    Some(match (peer, socket.name.as_str()) {
        (Some(peer), _) => format!("connected to {peer}"),
        (None, "") => "without a name".into(),
        (None, name) => format!("accepted on {name}"),
    })
}

/// Inodes of all sockets that processes hold now.
fn sockets_of(proc: &Path, pids: &BTreeSet<i32>) -> BTreeSet<u64> {
    let descriptors = pids.iter().flat_map(|pid| {
        std::fs::read_dir(proc.join(format!("{pid}/fd"))).into_iter().flatten().flatten()
    });
    descriptors
        .filter_map(|entry| socket_inode(&std::fs::read_link(entry.path()).ok()?.to_string_lossy()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::PathBuf;

    use transship_core::facts::ProcessFacts;

    use super::*;

    fn container(processes: &[(i32, bool)]) -> ContainerFacts {
        let processes = processes.iter().map(|(pid, outside)| ProcessFacts {
            pid: *pid,
            outside: *outside,
            ..ProcessFacts::default()
        });
        ContainerFacts { processes: processes.collect(), ..ContainerFacts::default() }
    }

    /// A `/proc` in which these processes say so of themselves.
    fn proc(statuses: &[(i32, &str)]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        for (pid, status) in statuses {
            let of_process = dir.path().join(pid.to_string());
            std::fs::create_dir(&of_process).unwrap();
            std::fs::write(of_process.join("status"), status).unwrap();
        }
        let path = dir.path().to_owned();
        (dir, path)
    }

    fn kinds(container: &ContainerFacts) -> Vec<Vec<ResourceKind>> {
        let of = |p: &ProcessFacts| p.resources.iter().map(|r| r.kind).collect();
        container.processes.iter().map(of).collect()
    }

    #[test]
    fn terminals_and_processes_need_both_ends_inside() {
        use ResourceKind as K;
        let terminal = |devpts, number| Terminal { devpts: Some(devpts), number };
        let slave = |number| (0, format!("/dev/pts/{number}"), terminal(9, number));
        let seen = [
            Seen {
                masters: vec![terminal(9, 1), terminal(8, 0)],
                processes: vec![(5, 11), (6, 77), (7, -1), (8, 78), (9, 79), (10, 80), (11, 81)],
                ..Seen::default()
            },
            Seen { slaves: vec![slave(1)], controlling: Some(3), ..Seen::default() },
            Seen { slaves: vec![slave(0)], ..Seen::default() },
            Seen { controlling: Some(3), ..Seen::default() },
            // A session that `kubectl exec -t` has brought.
            Seen { slaves: vec![slave(2)], ..Seen::default() },
        ];
        let mut facts =
            container(&[(10, false), (11, false), (12, false), (13, false), (14, true)]);
        // A child that was born since, one that has ended and waits to be asked for, one that is gone, and one of
        // the node's that waits for its parent.
        let (_dir, proc) = proc(&[
            (77, "State:\tS (sleeping)\nPPid:\t1\n"),
            (78, "State:\tS (sleeping)\nPPid:\t10\n"),
            (79, "State:\tZ (zombie)\nPPid:\t10\n"),
            (81, "State:\tZ (zombie)\nPPid:\t1\n"),
        ]);
        let now = Now { pids: BTreeSet::from([10, 11, 12, 13, 78]), ..Now::default() };
        judge(&proc, &mut facts, &seen, None, || Ok(now.clone())).unwrap();
        assert_eq!(
            kinds(&facts),
            [
                vec![K::ForeignProcess, K::ForeignProcess],
                vec![],
                vec![K::Terminal],
                vec![K::InheritedTerminal],
                vec![]
            ]
        );
    }

    #[test]
    fn a_unix_socket_is_foreign_when_no_process_inside_has_its_other_end() {
        let socket = |peer, name: &str| UnixSocket { peer, name: name.into() };
        let unix = BTreeMap::from([
            (1, socket(2, "")),
            (2, socket(1, "/run/a.sock")),
            (3, socket(4, "")),
            (4, socket(3, "/run/agent.sock")),
            (5, socket(0, "/run/listening")),
            (6, socket(9, "/run/mine.sock")),
        ]);
        let held = BTreeSet::from([1, 2, 3, 5, 6, 7]);
        let of = |inode| foreign(inode, &unix, &held);
        assert_eq!((of(1), of(2), of(5)), (None, None, None));
        assert_eq!(of(3).unwrap(), "connected to /run/agent.sock");
        assert_eq!(of(6).unwrap(), "accepted on /run/mine.sock");
        assert_eq!(of(7).unwrap(), "made outside the pod's network");
    }

    #[test]
    fn a_doubt_about_a_socket_is_looked_into_before_anything_is_said() {
        let unix = |peer| BTreeMap::from([(1, UnixSocket { name: String::new(), peer })]);
        let now = |held: &[u64], peer| {
            let held = held.iter().copied().collect();
            Now { held, unix: unix(peer), ..Now::default() }
        };
        let judged = |looks: [Now; 2]| {
            let (mut facts, at) = (container(&[(10, false)]), Cell::new(0usize));
            let seen = [Seen { sockets: vec![(3, 1)], ..Seen::default() }];
            let look = || Ok(looks[at.replace(at.get() + 1)].clone());
            judge(Path::new("/nowhere"), &mut facts, &seen, Some(&unix(2)), look).unwrap();
            (kinds(&facts).concat(), at.get())
        };
        let (stands, has_it, no_peer) = (now(&[1], 2), now(&[1, 2], 2), now(&[1], 0));
        let closed = now(&[], 2);
        let foreign = vec![ResourceKind::ForeignSocket];
        assert_eq!(judged([stands.clone(), stands.clone()]), (foreign, 2));
        // A child has it that was born since; it has ended; the socket itself is closed.
        for (first, second, looks) in [
            (&has_it, &stands, 1),
            (&stands, &has_it, 2),
            (&no_peer, &stands, 1),
            (&closed, &stands, 1),
        ] {
            assert_eq!(judged([first.clone(), second.clone()]), (vec![], looks));
        }
        let (mut facts, seen) = (container(&[(10, false)]), [Seen::default()]);
        let look = || -> io::Result<Now> { Err(io::ErrorKind::NotFound.into()) };
        judge(Path::new("/nowhere"), &mut facts, &seen, Some(&unix(2)), look).unwrap();
        let seen = [Seen { sockets: vec![(3, 1)], ..Seen::default() }];
        assert!(judge(Path::new("/nowhere"), &mut facts, &seen, Some(&unix(2)), look).is_err());
        assert_eq!(kinds(&facts), [vec![]]);
    }

    #[test]
    fn what_a_process_holds_now_is_told() {
        use std::os::fd::AsRawFd;
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = |socket: &std::os::unix::net::UnixStream| {
            let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
            socket_inode(&std::fs::read_link(link).unwrap().to_string_lossy()).unwrap()
        };
        let me = BTreeSet::from([std::process::id() as i32]);
        let now = Now::look(Path::new("/proc"), me, || Ok(BTreeMap::new())).unwrap();
        assert!(now.held.contains(&inode(&one)) && now.held.contains(&inode(&other)));
    }
}
