//! Operations on one inode through a file descriptor, and ways to it that a hostile tree cannot
//! bend.
//!
//! Metadata is read and written through `/proc/self/fd/N`: that reaches inodes of every type,
//! symbolic links among them, through descriptors that were opened with `O_PATH`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::{Errno, Result};

use super::record::{Entry, EntryType, MAX_XATTR_VALUE, Xattrs};

/// Never outside, never through a symbolic link, never onto another mount.
fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV
}

/// Opens `path` below `dir`. An empty path is `dir` itself.
pub(crate) fn open_beneath(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(dir.as_fd(), path, flags, Mode::empty(), beneath()) {
            // Something on the system was renamed while the kernel looked: it asks us to retry.
            Err(Errno::AGAIN | Errno::INTR) if attempts < 100 => attempts += 1,
            result => return result,
        }
    }
}

/// A directory, for use as the base of other operations.
pub(crate) fn open_dir(dir: impl AsFd, path: &[u8]) -> Result<OwnedFd> {
    open_beneath(dir, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Good for as long as the descriptor is open.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// All extended attributes for which `wanted` says yes, with their values.
pub(crate) fn xattrs(fd: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> Result<Xattrs> {
    let path = proc_path(fd.as_fd());
    let mut found = Vec::new();
    for name in xattr_names(&path)? {
        if !wanted(&name) {
            continue;
        }
        match xattr_value(&path, &name) {
            Ok(value) => found.push((name, value)),
            // Listed by a security module but without a value of its own.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn xattr_names(path: &str) -> Result<Vec<Vec<u8>>> {
    let mut list = vec![0; 1024];
    let len = loop {
        match rustix::fs::listxattr(path, &mut list[..]) {
            Ok(len) => break len,
            // The kernel allows 64 KiB of names.
            Err(Errno::RANGE) if list.len() < 1 << 16 => list.resize(1 << 16, 0),
            Err(Errno::OPNOTSUPP) => break 0,
            Err(e) => return Err(e),
        }
    };
    let names = list[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn xattr_value(path: &str, name: &[u8]) -> Result<Vec<u8>> {
    let mut value = vec![0; 256];
    loop {
        match rustix::fs::getxattr(path, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                return Ok(value);
            }
            Err(Errno::RANGE) if value.len() < MAX_XATTR_VALUE => value.resize(MAX_XATTR_VALUE, 0),
            Err(e) => return Err(e),
        }
    }
}

/// Gives an inode the owner, attributes, mode and time of `entry`, in the order in which none
/// undoes another: a change of owner clears setuid bits and file capabilities, and everything
/// else changes times.
pub(crate) fn set_metadata(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    let path = proc_path(fd);
    rustix::fs::chown(&*path, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    set_xattrs(&path, &entry.xattrs)?;
    if entry.kind != EntryType::Symlink {
        rustix::fs::chmod(&*path, Mode::from_raw_mode(u32::from(entry.mode)))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() },
    };
    rustix::fs::utimensat(CWD, &*path, &times, AtFlags::empty())
}

fn set_xattrs(path: &str, wanted: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    // An inode may have some already: inherited from a default ACL, or a directory of the image.
    for name in xattr_names(path)? {
        if !wanted.iter().any(|(w, _)| *w == name) && !is_system_given(&name) {
            match rustix::fs::removexattr(path, &*name) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
    }
    for (name, value) in wanted {
        if !is_system_given(name) {
            rustix::fs::setxattr(path, &**name, value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

/// Attributes that belong to the node and not to the tree: the labels of security modules (the
/// target's runtime gives its own) and overlayfs' notes.
pub(crate) fn is_system_given(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
        || matches!(name, b"security.selinux" | b"security.ima" | b"security.evm")
}
