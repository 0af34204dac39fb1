//! What is told of descriptors and mappings, of made-up ones and of those of this process.

use super::*;

fn kinds(link: &str, file: Option<File>, info: &proc::FdInfo) -> Vec<ResourceKind> {
    let around = Surroundings {
        rootfs_device: Some(50),
        mount_ids: vec![7],
        projected: Projected::of(&["/etc/c"], [(60, 3, "/etc/c/..1/k")]),
        remade: vec!["/labels".into(), "/part".into()],
    };
    let removed = link.starts_with("/removed");
    let found = judge(link, file.as_ref(), removed, info, &around);
    found.into_iter().map(|(kind, _)| kind).collect()
}

fn inside() -> proc::FdInfo {
    proc::FdInfo { mount_id: 7, ..Default::default() }
}

#[test]
fn each_descriptor_is_told_by_what_it_points_to() {
    use ResourceKind as K;
    let device = |major, minor| File { character_device: Some((major, minor)), ..File::default() };
    let regular = File { regular: true, links: 1, ..File::default() };
    for (link, file, wanted) in [
        ("anon_inode:[io_uring]", None, vec![K::IoUring]),
        ("anon_inode:[userfaultfd]", None, vec![K::Userfaultfd]),
        ("anon_inode:[eventpoll]", None, vec![]),
        ("anon_inode:[pidfd]", None, vec![]),
        ("pidfd:[77]", Some(regular), vec![]),
        ("net:[4026531840]", Some(regular), vec![]),
        ("anon_inode:bpf-map", None, vec![K::Bpf]),
        ("anon_inode:[kvm-vm]", None, vec![K::AnonymousInode]),
        ("anon_inode:[fanotify]", None, vec![K::Fanotify]),
        ("/secretmem (deleted)", None, vec![K::SecretMemory]),
        ("/dev/null", Some(device(1, 3)), vec![]),
        ("/dev/kmsg", Some(device(1, 11)), vec![]),
        ("/dev/pts/3", Some(device(136, 3)), vec![K::Pty]),
        ("/dev/ptmx", Some(device(5, 2)), vec![K::Pty]),
        ("/dev/console", Some(device(5, 1)), vec![K::Terminal]),
        ("/dev/net/tun", Some(device(10, 200)), vec![K::Device]),
        ("/queue", Some(File { kind: MQUEUE_MAGIC, ..regular }), vec![K::MessageQueue]),
        ("/tmp/x (deleted)", Some(File { links: 0, ..regular }), vec![K::UnlinkedFile]),
        ("/memfd:x (deleted)", Some(File { links: 0, ..regular }), vec![]),
        ("/proc/9/stat", Some(File { links: 0, kind: PROC_MAGIC, ..regular }), vec![]),
        ("/removed/x (deleted)", Some(regular), vec![K::RemovedName]),
        ("/etc/c/..2026_11_25_18_00_00.1/key", Some(regular), vec![K::ProjectedFile]),
        ("/etc/c/..data", Some(regular), vec![]),
        ("/labels", Some(regular), vec![K::RemadeFile]),
        ("/labels (deleted)", Some(File { links: 0, ..regular }), vec![K::RemadeFile]),
        ("/part/key", Some(regular), vec![K::RemadeFile]),
        // A directory is opened by its name, and that is all.
        ("/part", Some(File { directory: true, ..File::default() }), vec![]),
        ("/labels-of-mine", Some(regular), vec![]),
        ("/tmp/x", Some(regular), vec![]),
    ] {
        assert_eq!(kinds(link, file, &inside()), wanted, "{link}");
    }
}

#[test]
fn watches_and_files_from_outside_are_seen() {
    let watch = |device, inode| proc::FdInfo { watches: vec![Watch { device, inode }], ..inside() };
    assert_eq!(kinds("anon_inode:inotify", None, &watch(50, 1)), [ResourceKind::RootfsWatch]);
    assert!(kinds("anon_inode:inotify", None, &watch(51, 1)).is_empty());
    assert_eq!(kinds("anon_inode:inotify", None, &watch(60, 3)), [ResourceKind::ProjectedFile]);
    assert!(kinds("anon_inode:inotify", None, &watch(60, 4)).is_empty());
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
        (F::INET, T::STREAM, 6, None),
        (F::INET6, T::DGRAM, 17, None),
        (F::INET, T::RAW, 89, None),
        (F::NETLINK, T::RAW, 0, None),
        (F::INET, T::STREAM, 262, Some(ResourceKind::Mptcp)),
        (F::INET, T::STREAM, 132, Some(ResourceKind::UnsupportedSocket)),
        (F::VSOCK, T::STREAM, 0, Some(ResourceKind::UnsupportedSocket)),
        (F::PACKET, T::RAW, 0, Some(ResourceKind::PacketSocket)),
    ] {
        let found = match judge_socket(family, kind, protocol) {
            Socket::Other(kind, _) => Some(kind),
            Socket::Plain => None,
            Socket::Unix => panic!("not a Unix socket"),
        };
        assert_eq!(found, wanted, "{family:?} {kind:?} {protocol}");
    }
    assert_eq!(judge_socket(F::UNIX, T::STREAM, 0), Socket::Unix);
}

#[test]
fn this_process_own_descriptors_are_found() {
    use std::os::fd::AsRawFd;
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &[1; 8192]).unwrap();
    file.sync_all().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let me = std::process::id() as i32;
    let dir = tempfile::tempdir().unwrap();
    let named = dir.path().join("a");
    let open = std::fs::File::create(&named).unwrap();
    std::fs::hard_link(&named, dir.path().join("b")).unwrap();
    std::fs::remove_file(&named).unwrap();
    let odd = std::fs::File::create(dir.path().join("x (deleted)")).unwrap();

    let seen = of_process(Path::new("/proc"), me, &Surroundings::default());
    assert!(seen.count >= 2);
    let of = |fd: i32| seen.resources.iter().find(|r| r.fd == fd).map(|r| (r.kind, r.bytes));
    let unlinked = of(file.as_raw_fd()).unwrap();
    assert_eq!(unlinked.0, ResourceKind::UnlinkedFile);
    assert_eq!(unlinked.1, file.metadata().unwrap().blocks() * 512);
    assert_eq!(of(open.as_raw_fd()).unwrap().0, ResourceKind::RemovedName);
    assert_eq!(of(odd.as_raw_fd()), None);
    assert_eq!(of(listener.as_raw_fd()), None);
    let sockets: Vec<i32> = seen.sockets.iter().map(|(fd, _)| *fd).collect();
    assert!(sockets.contains(&one.as_raw_fd()) && sockets.contains(&other.as_raw_fd()));
    assert_eq!(seen.denied, None);
}

#[test]
fn what_cannot_be_looked_at_is_told_and_what_is_gone_is_not() {
    let mut seen = Seen::default();
    for gone in [Errno::NOENT, Errno::SRCH, Errno::BADF, Errno::NOTSOCK] {
        seen.deny("a descriptor", &gone.into());
    }
    assert_eq!(seen, Seen::default());
    seen.deny("a socket", &Errno::PERM.into());
    seen.deny("its mappings", &Errno::ACCESS.into());
    let denied = seen.denied.unwrap();
    assert!(
        denied.starts_with("a socket cannot be looked at: Operation not permitted"),
        "{denied}"
    );

    // A process without a directory has ended.
    let proc = tempfile::tempdir().unwrap();
    assert_eq!(of_process(proc.path(), 7, &Surroundings::default()), Seen::default());
    std::fs::create_dir(proc.path().join("7")).unwrap();
    std::fs::write(proc.path().join("7/fd"), "").unwrap();
    let denied = of_process(proc.path(), 7, &Surroundings::default()).denied;
    assert!(denied.unwrap().starts_with("its descriptors cannot be looked at: Not a directory"));
}

#[test]
fn a_descriptor_that_becomes_another_while_it_is_looked_at_is_looked_at_again() {
    let looked = |links: &[&str]| {
        let (mut links, mut looks) = (links.iter(), 0);
        let found = steady(
            || links.next().map(PathBuf::from).ok_or(Errno::NOENT.into()),
            |link| {
                looks += 1;
                if link == Path::new("/denied") { Err(Errno::ACCESS.into()) } else { Ok(looks) }
            },
        );
        found.map(|found| found.map(|(link, look)| (link.to_string_lossy().into_owned(), look)))
    };
    assert_eq!(looked(&["/a", "/a"]).unwrap(), Some(("/a".into(), 1)));
    assert_eq!(looked(&["/a", "/b", "/b"]).unwrap(), Some(("/b".into(), 2)));
    assert_eq!(looked(&["/denied", "/b", "/b"]).unwrap(), Some(("/b".into(), 2)));
    assert_eq!(looked(&["/a", "/b", "/a", "/b"]).unwrap(), None);
    assert!(!is_gone(&looked(&["/denied", "/denied"]).unwrap_err()));
    assert!(is_gone(&looked(&["/a"]).unwrap_err()), "closed");
}

#[test]
fn a_file_is_from_outside_only_where_its_mount_is_known() {
    let proc = tempfile::tempdir().unwrap();
    let dir = proc.path().join("7");
    for sub in ["fd", "fdinfo"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    std::fs::write(dir.join("file"), "").unwrap();
    for fd in ["fd/3", "fd/4"] {
        std::os::unix::fs::symlink(dir.join("file"), dir.join(fd)).unwrap();
    }
    std::fs::write(dir.join("fdinfo/3"), "mnt_id:\t9\n").unwrap();
    let around = Surroundings { mount_ids: vec![7], ..Surroundings::default() };
    let look = || of_process(proc.path(), 7, &around);
    let seen = look();
    let found: Vec<_> = seen.resources.iter().map(|r| (r.fd, r.kind)).collect();
    assert_eq!((found, seen.denied), (vec![(3, ResourceKind::OutsideFile)], None));

    // What is there and cannot be read is told.
    std::fs::create_dir(dir.join("fdinfo/4")).unwrap();
    let denied = look().denied.unwrap();
    assert!(denied.starts_with("a descriptor cannot be looked at: Is a directory"), "{denied}");
    std::fs::remove_file(dir.join("fd/4")).unwrap();
    std::fs::write(dir.join("cwd"), "").unwrap();
    let denied = look().denied.unwrap();
    assert!(denied.starts_with("its working directory cannot be looked at: Invalid"), "{denied}");
}
