//! Round trips through real file systems, and archives that mean harm. Run as root: owners, device
//! nodes, trusted attributes and overlay mounts need it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::record::{Entry, EntryType, MAGIC, RecordKind, put_head};
use super::*;

fn set_mtime(path: &Path, sec: i64, nsec: i64) {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 7, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec },
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..len].to_vec())
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// What the tests compare of a tree: a line for each inode, sorted.
fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<String>) {
        let add = |path: &Path, out: &mut Vec<String>| {
            let meta = fs::symlink_metadata(path).unwrap();
            let kind = meta.file_type();
            let content = if kind.is_file() {
                format!("{:x}", xxhash_rust::xxh3::xxh3_64(&fs::read(path).unwrap()))
            } else if kind.is_symlink() {
                fs::read_link(path).unwrap().display().to_string()
            } else {
                String::new()
            };
            let mut names = vec![0; 4096];
            let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
            let mut attributes: Vec<String> = names[..len]
                .split(|b| *b == 0)
                .filter(|n| !n.is_empty() && !n.starts_with(b"trusted.overlay."))
                .map(|n| {
                    let name = String::from_utf8(n.to_vec()).unwrap();
                    format!("{name}={:?}", xattr(path, &name))
                })
                .collect();
            attributes.sort();
            out.push(format!(
                "{:?} mode {:o} owner {}:{} links {} size {} rdev {} mtime {}.{} {content} {attributes:?}",
                path.strip_prefix(root).unwrap(),
                meta.mode(),
                meta.uid(),
                meta.gid(),
                if kind.is_dir() { 0 } else { meta.nlink() },
                if kind.is_dir() { 0 } else { meta.size() },
                meta.rdev(),
                meta.mtime(),
                meta.mtime_nsec(),
            ));
        };
        add(dir, out);
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                walk(root, &entry.path(), out);
            } else {
                add(&entry.path(), out);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.sort();
    out
}

/// One of everything.
fn furnish(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("a/b/c")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("a/plain"), b"hello").unwrap();
    fs::write(path("a/b/setuid"), b"#!").unwrap();
    std::os::unix::fs::chown(path("a/b/setuid"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(path("a/b/setuid"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(path("a/plain"), path("a/b/c/other-name")).unwrap();
    fs::write(path("zero"), b"").unwrap();
    let name = OsStr::from_bytes(b"not \xff utf-8\n");
    fs::write(root.join(name), b"x").unwrap();
    symlink("../../../../etc/passwd", path("a/link")).unwrap();
    symlink("loop", path("loop")).unwrap();
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    fs::write(path("big"), vec![3; (2 << 20) + 17]).unwrap();
    let node = |name: &str, kind, device| {
        mknodat(CWD, path(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("loop0", FileType::BlockDevice, makedev(7, 0));
    fs::hard_link(path("fifo"), path("a/fifo-too")).unwrap();
    set_xattr(&path("a/plain"), "user.note", b"value\0with zero");
    set_xattr(&path("a"), "trusted.test", b"");
    set_xattr(&path("a/link"), "trusted.on-link", b"1");
    // cap_net_raw=ep, and an ACL: user 77 rwx on a directory, with a default for new files.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&path("a/b/setuid"), "security.capability", &capability);
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 7u16, u32::MAX), (2, 7, 77), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
    {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    fs::create_dir(path("acl")).unwrap();
    fs::write(path("acl/before"), b"").unwrap();
    set_xattr(&path("acl"), "system.posix_acl_default", &acl);
    set_xattr(&path("acl"), "system.posix_acl_access", &acl);
    fs::set_permissions(path("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    set_mtime(&path("a/plain"), 1, 999_999_999);
    set_mtime(&path("a/link"), -5, 1);
    set_mtime(&path("fifo"), 12, 13);
    set_mtime(&path("a/b"), 1_600_000_000, 123_456_789);
    set_mtime(root, 1_500_000_000, 1);
}

fn captured(root: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    capture_dir(root, &mut archive).unwrap();
    archive
}

fn apply(archive: &[u8], dest: &Path) -> Result<(), TreeError> {
    let mut applier = Applier::new(dest, Kinds::All)?;
    applier.push(archive)?;
    applier.finish()
}

#[test]
fn a_directory_comes_back_exactly_and_again_when_applied_twice() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    furnish(source.path());
    let mut archive = Vec::new();
    let summary = capture_dir(source.path(), &mut archive).unwrap();
    assert!(archive.len() < 4 << 20, "holes are not in the archive: {}", archive.len());
    assert_eq!(summary.whiteouts, 0);
    // What was there before goes away.
    fs::create_dir_all(dest.path().join("a/b/setuid/was a directory")).unwrap();
    symlink("/nonexistent", dest.path().join("empty")).unwrap();
    fs::write(dest.path().join("stale"), b"").unwrap();
    for _ in 0..2 {
        apply(&archive, dest.path()).unwrap();
        assert_eq!(listing(dest.path()), listing(source.path()));
    }
    let sparse = fs::metadata(dest.path().join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    assert_eq!(
        fs::metadata(dest.path().join("a/plain")).unwrap().ino(),
        fs::metadata(dest.path().join("a/b/c/other-name")).unwrap().ino(),
    );
    assert!(fs::metadata(dest.path().join("socket")).unwrap().file_type().is_socket());
    assert_eq!(captured(dest.path()).len(), archive.len());
}

#[test]
fn an_archive_in_pieces_of_any_size_is_the_same() {
    let source = tempfile::tempdir().unwrap();
    furnish(source.path());
    fs::remove_file(source.path().join("big")).unwrap();
    let archive = captured(source.path());
    let expected = listing(source.path());
    for piece in [1, 7, 4096] {
        let dest = tempfile::tempdir().unwrap();
        let mut applier = Applier::new(dest.path(), Kinds::All).unwrap();
        for part in archive.chunks(piece) {
            applier.push(part).unwrap();
        }
        applier.finish().unwrap();
        assert_eq!(listing(dest.path()), expected, "pieces of {piece}");
    }
}

#[test]
fn a_spool_file_is_applied_like_a_stream() {
    let (source, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    furnish(source.path());
    let spool = tempfile::NamedTempFile::new().unwrap();
    fs::write(spool.path(), captured(source.path())).unwrap();
    apply_spool(spool.path(), dest.path(), Kinds::All).unwrap();
    assert_eq!(listing(dest.path()), listing(source.path()));
}

#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    fs::write(source.path().join("d/f"), b"content").unwrap();
    let archive = captured(source.path());
    for cut in 0..archive.len() {
        let dest = tempfile::tempdir().unwrap();
        assert!(apply(&archive[..cut], dest.path()).is_err(), "cut at {cut}");
    }
    let dest = tempfile::tempdir().unwrap();
    assert!(apply(&[&archive[..], b"x"].concat(), dest.path()).is_err(), "surplus");
}

#[test]
fn mounts_below_the_source_are_left_out() {
    let (source, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["tmpfs", "bind"] {
        fs::create_dir(source.path().join(name)).unwrap();
    }
    fs::write(source.path().join("bound-file"), b"").unwrap();
    fs::write(other.path().join("secret"), b"secret").unwrap();
    let _tmpfs = Mounted::tmpfs(&source.path().join("tmpfs"));
    let _bind = Mounted::bind(other.path(), &source.path().join("bind"));
    let _file = Mounted::bind(&other.path().join("secret"), &source.path().join("bound-file"));
    let mut archive = Vec::new();
    let summary = capture_dir(source.path(), &mut archive).unwrap();
    assert_eq!((summary.entries, summary.mounts_skipped, summary.bytes), (1, 3, 0));
}

/// Unmounts when dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(at.into())
    }
    fn bind(what: &Path, at: &Path) -> Self {
        rustix::mount::mount_bind(what, at).unwrap();
        Self(at.into())
    }
    fn overlay(lower: &Path, upper: &Path, work: &Path, at: &Path) -> Self {
        let data = format!(
            "lowerdir={},upperdir={},workdir={},index=off,redirect_dir=off,metacopy=off",
            lower.display(),
            upper.display(),
            work.display()
        );
        let data = std::ffi::CString::new(data).unwrap();
        mount("overlay", at, "overlay", MountFlags::empty(), Some(&*data)).unwrap();
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// An overlay with a lower directory of its own content, on a tmpfs (overlayfs cannot use another
/// overlay as its upper layer).
struct Overlay {
    dir: tempfile::TempDir,
    _mounts: [Mounted; 2],
}

impl Overlay {
    fn new(lower: impl Fn(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tmpfs = Mounted::tmpfs(dir.path());
        let [low, up, work, merged] = ["low", "up", "work", "merged"].map(|n| dir.path().join(n));
        for path in [&low, &up, &work, &merged] {
            fs::create_dir(path).unwrap();
        }
        lower(&low);
        let overlay = Mounted::overlay(&low, &up, &work, &merged);
        Self { _mounts: [overlay, tmpfs], dir }
    }
    fn upper(&self) -> std::path::PathBuf {
        self.dir.path().join("up")
    }
    fn merged(&self) -> std::path::PathBuf {
        self.dir.path().join("merged")
    }
}

fn image(root: &Path) {
    for dir in ["etc/conf.d", "var/lib/app/old", "opt/gone/deep", "usr/bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in [
        "etc/passwd",
        "etc/conf.d/a",
        "etc/conf.d/b",
        "var/lib/app/old/x",
        "opt/gone/deep/f",
        "usr/bin/tool",
    ] {
        fs::write(root.join(file), file).unwrap();
        set_mtime(&root.join(file), 1000, 1);
    }
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/tool2")).unwrap();
    for dir in [
        "etc/conf.d",
        "etc",
        "var/lib/app/old",
        "var/lib/app",
        "var/lib",
        "var",
        "opt",
        "usr/bin",
        "usr",
    ] {
        set_mtime(&root.join(dir), 2000, 2);
    }
    set_mtime(root, 3000, 3);
}

#[test]
fn the_changes_of_a_container_make_the_same_root_file_system_elsewhere() {
    let source = Overlay::new(image);
    let root = source.merged();
    let at = |name: &str| root.join(name);
    fs::remove_file(at("etc/conf.d/a")).unwrap();
    fs::remove_dir_all(at("opt/gone")).unwrap();
    // Removed and made again: opaque.
    fs::remove_dir_all(at("var/lib/app")).unwrap();
    fs::create_dir(at("var/lib/app")).unwrap();
    fs::write(at("var/lib/app/new"), b"new").unwrap();
    // A directory in place of a file, and the other way round.
    fs::remove_file(at("etc/conf.d/b")).unwrap();
    fs::create_dir(at("etc/conf.d/b")).unwrap();
    fs::write(at("etc/passwd"), b"changed, longer than before").unwrap();
    std::os::unix::fs::chown(at("usr/bin/tool"), Some(9), Some(9)).unwrap();
    fs::set_permissions(at("usr"), fs::Permissions::from_mode(0o700)).unwrap();
    furnish(&root);
    fs::remove_file(at("zero")).unwrap();

    let mut archive = Vec::new();
    let summary = capture_upper(&source.upper(), &mut archive).unwrap();
    assert!(summary.whiteouts >= 2, "{summary:?}");

    let dest = Overlay::new(image);
    for _ in 0..2 {
        apply(&archive, &dest.merged()).unwrap();
        assert_eq!(listing(&dest.merged()), listing(&source.merged()));
    }
    // And it can move on from there.
    let mut second = Vec::new();
    capture_upper(&dest.upper(), &mut second).unwrap();
    let third = Overlay::new(image);
    apply(&second, &third.merged()).unwrap();
    assert_eq!(listing(&third.merged()), listing(&source.merged()));
}

#[test]
fn whiteouts_kept_as_attributes_are_understood() {
    let upper = tempfile::tempdir().unwrap();
    let up = |name: &str| upper.path().join(name);
    fs::create_dir(up("etc")).unwrap();
    set_xattr(&up("etc"), "trusted.overlay.opaque", b"x");
    fs::write(up("etc/passwd"), b"").unwrap();
    set_xattr(&up("etc/passwd"), "trusted.overlay.whiteout", b"");
    let mut archive = Vec::new();
    let summary = capture_upper(upper.path(), &mut archive).unwrap();
    assert_eq!((summary.whiteouts, summary.entries), (1, 2));
    let dest = tempfile::tempdir().unwrap();
    image(dest.path());
    apply(&archive, dest.path()).unwrap();
    assert!(!dest.path().join("etc/passwd").exists());
    assert!(dest.path().join("etc/conf.d/a").exists(), "\"x\" does not make opaque");
}

#[test]
fn what_needs_the_lower_layers_is_refused_by_name() {
    for (attribute, word) in [
        ("trusted.overlay.redirect", "etc/renamed: overlay redirect"),
        ("trusted.overlay.metacopy", "etc/renamed: overlay metadata-only copy"),
        ("trusted.overlay.overlay.opaque", "etc/renamed: overlay within an overlay"),
    ] {
        let upper = tempfile::tempdir().unwrap();
        fs::create_dir_all(upper.path().join("etc/renamed")).unwrap();
        set_xattr(&upper.path().join("etc/renamed"), attribute, b"/x");
        let error = capture_upper(upper.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with(word), "{error}");
        assert_eq!(measure_upper(upper.path()).unwrap_err().to_string(), error);
    }
}

#[test]
fn a_measure_finds_what_a_capture_carries_and_refuses_what_it_cannot() {
    let source = tempfile::tempdir().unwrap();
    furnish(source.path());
    let captured = capture_dir(source.path(), &mut Vec::new()).unwrap();
    let measured = measure_dir(source.path()).unwrap();
    assert_eq!((measured.entries, measured.whiteouts), (captured.entries, captured.whiteouts));
    assert!((2 << 20..64 << 20).contains(&measured.bytes), "{measured:?}");
    fs::create_dir_all(source.path().join("d/".repeat(300))).unwrap();
    for error in [
        measure_dir(source.path()).unwrap_err(),
        measure_upper(source.path()).unwrap_err(),
        capture_dir(source.path(), &mut Vec::new()).unwrap_err(),
    ] {
        assert!(error.to_string().contains("nested too deeply"), "{error}");
    }
}

#[test]
fn a_tree_in_use_is_measured() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let source = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for name in 0..50 {
                    let dir = source.path().join(name.to_string());
                    fs::create_dir_all(&dir).unwrap();
                    fs::write(dir.join("file"), b"x").unwrap();
                }
                for name in 0..50 {
                    fs::remove_dir_all(source.path().join(name.to_string())).unwrap();
                }
            }
        });
        let measured: Vec<_> = (0..100).map(|_| measure_dir(source.path())).collect();
        done.store(true, Ordering::Relaxed);
        assert!(measured.iter().all(Result::is_ok), "{measured:?}");
    });
}

// === hostile archives ===

fn entry(kind: EntryType, path: &[u8]) -> Entry {
    Entry {
        kind,
        clear: false,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        device: (0, 0),
        size: 0,
        link: 0,
        path: path.to_vec(),
        target: if kind == EntryType::Symlink { b"/".to_vec() } else { Vec::new() },
        xattrs: Vec::new(),
    }
}

enum Part {
    Entry(Entry),
    Data(u64, Vec<u8>),
    Whiteout(Vec<u8>),
}

fn archive(parts: &[Part]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mut record = |kind, payload: &[u8]| {
        put_head(&mut out, kind, payload.len());
        out.extend_from_slice(payload);
    };
    let mut count = 0u64;
    for part in parts {
        match part {
            Part::Entry(entry) => {
                count += 1;
                record(RecordKind::Entry, &entry.encode().unwrap());
            }
            Part::Data(offset, bytes) => {
                record(RecordKind::Data, &[&offset.to_le_bytes()[..], bytes].concat());
            }
            Part::Whiteout(path) => {
                count += 1;
                record(RecordKind::Whiteout, path);
            }
        }
    }
    record(RecordKind::End, &count.to_le_bytes());
    out
}

#[test]
fn nothing_is_written_or_removed_outside_the_destination() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, b"untouched").unwrap();
    let away = outside.path().as_os_str().as_bytes();
    let link = Entry { target: away.to_vec(), ..entry(EntryType::Symlink, b"exit") };
    let through = |path: &[u8]| entry(EntryType::File, path);
    let absolute = [away, b"/victim"].concat();
    let up = b"../../../../../../../../tmp/victim".to_vec();
    let cases: Vec<(&str, Vec<Part>)> = vec![
        (
            "a file through a link",
            vec![Part::Entry(link.clone()), Part::Entry(through(b"exit/victim"))],
        ),
        (
            "a whiteout through a link",
            vec![Part::Entry(link.clone()), Part::Whiteout(b"exit/victim".to_vec())],
        ),
        (
            "a directory below a link",
            vec![Part::Entry(link.clone()), Part::Entry(entry(EntryType::Dir, b"exit/new"))],
        ),
        (
            "a hard link from a link's target",
            vec![
                Part::Entry(Entry { link: 5, ..through(b"real") }),
                Part::Entry(Entry { link: 6, ..entry(EntryType::HardLink, b"exit/hard") }),
            ],
        ),
        ("an absolute file", vec![Part::Entry(through(&absolute))]),
        ("a file above", vec![Part::Entry(through(&up))]),
        ("a whiteout above", vec![Part::Whiteout(up.clone())]),
        ("an absolute whiteout", vec![Part::Whiteout(absolute.clone())]),
        ("a whiteout of the root", vec![Part::Whiteout(Vec::new())]),
        ("a dot", vec![Part::Entry(entry(EntryType::Dir, b"./a"))]),
        ("an empty part", vec![Part::Entry(entry(EntryType::Dir, b"a//b"))]),
        ("a zero byte", vec![Part::Entry(through(b"a\0b"))]),
        ("the root as a file", vec![Part::Entry(through(b""))]),
        ("contents of nothing", vec![Part::Data(0, vec![1])]),
        (
            "contents beyond the size",
            vec![Part::Entry(Entry { size: 3, ..through(b"f") }), Part::Data(2, vec![1, 2])],
        ),
        (
            "contents backwards",
            vec![
                Part::Entry(Entry { size: 9, ..through(b"f") }),
                Part::Data(4, vec![1]),
                Part::Data(0, vec![1]),
            ],
        ),
    ];
    for (name, parts) in cases {
        let dest = tempfile::tempdir().unwrap();
        let result = apply(&archive(&parts), dest.path());
        assert!(result.is_err(), "{name}");
        assert_eq!(fs::read(&victim).unwrap(), b"untouched", "{name}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{name}");
    }
}

#[test]
fn what_the_node_reads_itself_holds_nothing_that_leads_elsewhere() {
    for kind in [
        EntryType::Symlink,
        EntryType::HardLink,
        EntryType::Fifo,
        EntryType::Socket,
        EntryType::CharDevice,
        EntryType::BlockDevice,
    ] {
        let dest = tempfile::tempdir().unwrap();
        let parts = [
            Part::Entry(entry(EntryType::Dir, b"logs")),
            Part::Entry(Entry { link: 3, ..entry(EntryType::File, b"logs/web") }),
            Part::Entry(Entry { link: 3, ..entry(kind, b"logs/aux") }),
        ];
        let mut applier = Applier::new(dest.path(), Kinds::Plain).unwrap();
        let error = applier.push(&archive(&parts)).unwrap_err();
        assert!(error.to_string().starts_with("logs/aux: neither"), "{kind:?}: {error}");
        assert!(dest.path().join("logs/web").is_file());
        assert!(fs::symlink_metadata(dest.path().join("logs/aux")).is_err());
    }
}

#[test]
fn a_link_that_was_already_in_the_destination_is_not_followed() {
    let (outside, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("f"), b"untouched").unwrap();
    symlink(outside.path(), dest.path().join("dir")).unwrap();
    symlink(outside.path().join("f"), dest.path().join("file")).unwrap();
    let parts = [
        Part::Entry(Entry { clear: true, ..entry(EntryType::Dir, b"dir") }),
        Part::Entry(Entry { size: 1, ..entry(EntryType::File, b"dir/f") }),
        Part::Entry(Entry { size: 1, ..entry(EntryType::File, b"file") }),
    ];
    apply(&archive(&parts), dest.path()).unwrap();
    assert_eq!(fs::read(outside.path().join("f")).unwrap(), b"untouched");
    assert!(fs::symlink_metadata(dest.path().join("dir")).unwrap().is_dir(), "replaced");
    assert!(fs::symlink_metadata(dest.path().join("file")).unwrap().is_file(), "replaced");
}

#[test]
fn what_is_mounted_in_the_destination_is_not_cleared() {
    let (other, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(other.path().join("kept"), b"").unwrap();
    fs::create_dir_all(dest.path().join("d/mnt")).unwrap();
    let _bind = Mounted::bind(other.path(), &dest.path().join("d/mnt"));
    let error = apply(&archive(&[Part::Whiteout(b"d".to_vec())]), dest.path()).unwrap_err();
    assert!(other.path().join("kept").exists(), "{error}");
}

#[test]
fn a_file_that_shrinks_is_an_error_and_not_a_hang() {
    /// Truncates the file as soon as its entry is written.
    struct Shrinks(std::path::PathBuf, usize);
    impl std::io::Write for Shrinks {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 += bytes.len();
            if self.1 > 1 << 20 {
                fs::File::options().write(true).open(&self.0).unwrap().set_len(10).unwrap();
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("f");
    fs::write(&file, vec![1; 8 << 20]).unwrap();
    let error = capture_dir(source.path(), &mut Shrinks(file, 0)).unwrap_err();
    assert!(matches!(error, TreeError::Shrunk { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_record_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(entry) = Entry::decode(&bytes) {
            prop_assert_eq!(Entry::decode(&entry.encode().unwrap()).unwrap(), entry);
        }
    }

    #[test]
    fn a_damaged_archive_never_reaches_outside(at in 0usize..600, bit in 0u8..8) {
        let outer = tempfile::tempdir().unwrap();
        let dest = outer.path().join("dest");
        fs::create_dir(&dest).unwrap();
        let mut bytes = archive(&[
            Part::Entry(entry(EntryType::Dir, b"")),
            Part::Entry(Entry { clear: true, ..entry(EntryType::Dir, b"d") }),
            Part::Entry(Entry { size: 4, link: 3, ..entry(EntryType::File, b"d/f") }),
            Part::Data(0, vec![1; 4]),
            Part::Entry(Entry { link: 3, ..entry(EntryType::HardLink, b"d/g") }),
            Part::Entry(entry(EntryType::Symlink, b"d/s")),
            Part::Whiteout(b"d/g".to_vec()),
        ]);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let _ = apply(&bytes, &dest);
        let names: Vec<_> = fs::read_dir(outer.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert_eq!(names, [OsStr::new("dest")]);
    }
}
