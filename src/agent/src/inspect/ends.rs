//! Things with two ends: Unix sockets, terminals, descriptors for processes. One whose other end is
//! outside the container cannot be saved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use transship_core::facts::{ContainerFacts, Resource, ResourceKind};

use super::descriptors::{Seen, socket_inode};
use super::netlink::UnixSocket;

/// Adds to the processes of a container what `seen` of each, and the Unix sockets of the pod's
/// network namespace, say about the other ends.
pub fn judge(
    proc: &Path,
    container: &mut ContainerFacts,
    seen: &[Seen],
    unix: Option<&BTreeMap<u64, UnixSocket>>,
) {
    let inside: Vec<(usize, &Seen)> =
        seen.iter().enumerate().filter(|(at, _)| !container.processes[*at].outside).collect();
    let pids: BTreeSet<i32> = inside.iter().map(|(at, _)| container.processes[*at].pid).collect();
    let masters: BTreeSet<u32> = inside.iter().flat_map(|(_, s)| &s.masters).copied().collect();
    let inodes = inside.iter().flat_map(|(_, s)| s.sockets.iter().map(|(_, inode)| *inode));
    let held: BTreeSet<u64> = inodes.collect();
    // What has come or gone since the descriptors were read, read when there is a doubt.
    let mut again = None;
    for (at, seen) in inside {
        let mut found = Vec::new();
        let mut add = |kind, fd, detail| found.push(Resource { kind, fd, detail, bytes: 0 });
        for (fd, path, number) in &seen.slaves {
            if !masters.contains(number) {
                add(ResourceKind::Terminal, *fd, path.clone());
            }
        }
        if let Some(fd) = seen.controlling.filter(|_| seen.slaves.is_empty()) {
            add(ResourceKind::InheritedTerminal, fd, "/dev/tty".to_owned());
        }
        for (fd, process) in &seen.processes {
            if *process > 0 && !pids.contains(process) {
                add(ResourceKind::ForeignProcess, *fd, format!("process {process} of the node"));
            }
        }
        for (fd, inode) in &seen.sockets {
            let Some(detail) = unix.and_then(|unix| foreign(*inode, unix, &held)) else { continue };
            let now = again.get_or_insert_with(|| sockets_of(proc, &pids));
            let gone = !now.contains(inode);
            let peer = unix.and_then(|unix| unix.get(inode)).map_or(0, |socket| socket.peer);
            if !gone && !now.contains(&peer) {
                add(ResourceKind::ForeignSocket, *fd, detail);
            }
        }
        container.processes[at].resources.extend(found);
    }
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
    use super::*;
    use transship_core::facts::ProcessFacts;

    fn container(processes: &[(i32, bool)]) -> ContainerFacts {
        let processes = processes.iter().map(|(pid, outside)| ProcessFacts {
            pid: *pid,
            outside: *outside,
            ..ProcessFacts::default()
        });
        ContainerFacts { processes: processes.collect(), ..ContainerFacts::default() }
    }

    fn kinds(container: &ContainerFacts) -> Vec<Vec<ResourceKind>> {
        let of = |p: &ProcessFacts| p.resources.iter().map(|r| r.kind).collect();
        container.processes.iter().map(of).collect()
    }

    #[test]
    fn terminals_and_processes_need_both_ends_inside() {
        use ResourceKind as K;
        let slave = |number| (0, format!("/dev/pts/{number}"), number);
        let seen = [
            Seen {
                masters: vec![1],
                processes: vec![(5, 11), (6, 77), (7, -1)],
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
        judge(Path::new("/nowhere"), &mut facts, &seen, None);
        assert_eq!(
            kinds(&facts),
            [
                vec![K::ForeignProcess],
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
    fn sockets_of_this_process_are_looked_at_again_before_anything_is_said() {
        use std::os::fd::AsRawFd;
        let (mine, foreign) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = |socket: &std::os::unix::net::UnixStream| {
            let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
            socket_inode(&std::fs::read_link(link).unwrap().to_string_lossy()).unwrap()
        };
        let (mine_inode, foreign_inode) = (inode(&mine), inode(&foreign));
        let me = std::process::id() as i32;
        let unix = BTreeMap::from([
            (mine_inode, UnixSocket { name: String::new(), peer: foreign_inode }),
            (u64::MAX, UnixSocket { name: String::new(), peer: 1 }),
        ]);
        // The peer was not seen in the first look, and one of the sockets is gone.
        let seen = [Seen { sockets: vec![(3, mine_inode), (4, u64::MAX)], ..Seen::default() }];
        let mut facts = container(&[(me, false)]);
        judge(Path::new("/proc"), &mut facts, &seen, Some(&unix));
        assert_eq!(kinds(&facts), [vec![]]);
    }
}
