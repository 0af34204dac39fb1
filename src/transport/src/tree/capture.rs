//! Reading a tree.
//!
//! The tree is expected to stand still (its processes are frozen). If it does not, the worst is
//! an error: nothing waits, and no more is read of a file than its size at the start.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, OFlags, SeekFrom, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::inode::{is_system_given, open_beneath, xattrs};
use super::record::{
    Entry, EntryType, HEAD_LEN, MAGIC, MAX_CONTENTS, MAX_PATH, RecordKind, put_head,
};
use super::{MAX_DEPTH, TreeError};

/// Files up to this size are read whole: looking for holes would take longer than it saves.
const DENSE: u64 = 64 << 10;

/// What a capture found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSummary {
    /// Files, directories and so on, the root included.
    pub entries: u64,
    /// Removed names (only in upper directories).
    pub whiteouts: u64,
    /// Bytes of contents, without holes.
    pub bytes: u64,
    /// Mount points left out.
    pub mounts_skipped: u64,
}

/// Captures everything in `root`. Applied, the destination has exactly that content.
pub fn capture_dir(root: &Path, out: &mut dyn Write) -> Result<TreeSummary, TreeError> {
    capture(root, out, false, Contents::Read)
}

/// Captures an overlay's upper directory: new and changed files, and whiteouts for removed ones.
/// Applied to the merged mount of the same lower directories, it makes the same files visible.
///
/// Directories that were renamed (`trusted.overlay.redirect`) and files of which only the metadata
/// was copied up (`trusted.overlay.metacopy`) cannot be carried without their lower directories and
/// are refused by name; containerd's snapshotter mounts with both features off.
/// So are attributes of an overlay that was mounted inside of this one: they would become another's.
pub fn capture_upper(upper: &Path, out: &mut dyn Write) -> Result<TreeSummary, TreeError> {
    capture(upper, out, true, Contents::Read)
}

/// What [`capture_dir`] would find, and whether it could carry it, without reading contents. The tree may be in
/// use: what comes or goes meanwhile is found or not. `bytes` of a file with holes are those that lie on the disk.
pub fn measure_dir(root: &Path) -> Result<TreeSummary, TreeError> {
    capture(root, &mut std::io::sink(), false, Contents::Weighed)
}

/// As [`measure_dir`], for [`capture_upper`].
pub fn measure_upper(upper: &Path) -> Result<TreeSummary, TreeError> {
    capture(upper, &mut std::io::sink(), true, Contents::Weighed)
}

/// What is done about the contents of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    /// They go into the archive.
    Read,
    /// Their size counts, and nothing must stand still.
    Weighed,
}

fn capture(
    root: &Path,
    out: &mut dyn Write,
    upper: bool,
    contents: Contents,
) -> Result<TreeSummary, TreeError> {
    let fail = |e: Errno| TreeError::Io { path: root.display().to_string(), source: e.into() };
    // The way to the root is the caller's; only what is below it is untrusted.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, rustix::fs::Mode::empty()).map_err(fail)?;
    let mut capture = Capture {
        out,
        upper,
        contents,
        summary: TreeSummary::default(),
        seen: HashSet::new(),
        head: Vec::new(),
        buffer: Vec::new(),
    };
    capture.write(MAGIC)?;
    let stat = stat(&fd, b"", b"")?;
    capture.directory(fd, &mut Vec::new(), &stat, 0)?;
    let summary = capture.summary;
    let count = (summary.entries + summary.whiteouts).to_le_bytes();
    capture.record(RecordKind::End, &count, &[])?;
    capture.out.flush().map_err(TreeError::Output)?;
    Ok(summary)
}

struct Capture<'a> {
    out: &'a mut dyn Write,
    upper: bool,
    contents: Contents,
    summary: TreeSummary,
    /// Inodes with several names that have been written once: device and inode.
    seen: HashSet<(u32, u32, u64)>,
    head: Vec<u8>,
    buffer: Vec<u8>,
}

fn stat(dir: impl AsFd, name: &[u8], path: &[u8]) -> Result<Statx, TreeError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS).map_err(|e| TreeError::io(path, e))
}

impl Capture<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.out.write_all(bytes).map_err(TreeError::Output)
    }

    fn record(&mut self, kind: RecordKind, start: &[u8], rest: &[u8]) -> Result<(), TreeError> {
        self.head.clear();
        put_head(&mut self.head, kind, start.len() + rest.len());
        debug_assert_eq!(self.head.len(), HEAD_LEN);
        self.head.extend_from_slice(start);
        self.out.write_all(&self.head).map_err(TreeError::Output)?;
        self.write(rest)
    }

    /// A directory, then everything in it. `dir` is open for reading.
    fn directory(
        &mut self,
        dir: OwnedFd,
        path: &mut Vec<u8>,
        stat_: &Statx,
        depth: usize,
    ) -> Result<(), TreeError> {
        if depth > MAX_DEPTH {
            return Err(TreeError::unsupported(path, "directories are nested too deeply"));
        }
        self.entry(&dir, path, stat_, EntryType::Dir, Vec::new())?;
        for name in names(&dir, path)? {
            let name = name.as_bytes();
            let parent = path.len();
            if parent > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if path.len() > MAX_PATH {
                return Err(TreeError::unsupported(path, "path is too long"));
            }
            match self.child(&dir, name, path, stat_, depth) {
                Err(error) if self.contents == Contents::Weighed && is_gone(&error) => {}
                outcome => outcome?,
            }
            path.truncate(parent);
        }
        Ok(())
    }

    fn child(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &mut Vec<u8>,
        parent: &Statx,
        depth: usize,
    ) -> Result<(), TreeError> {
        let found = stat(dir, name, path)?;
        let other_device = (found.stx_dev_major, found.stx_dev_minor)
            != (parent.stx_dev_major, parent.stx_dev_minor);
        if other_device || found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            self.summary.mounts_skipped += 1;
            return Ok(());
        }
        let file_type = FileType::from_raw_mode(found.stx_mode.into());
        let device = (found.stx_rdev_major, found.stx_rdev_minor);
        if self.upper && file_type == FileType::CharacterDevice && device == (0, 0) {
            return self.whiteout(path);
        }
        let kind = match file_type {
            FileType::Directory => EntryType::Dir,
            FileType::RegularFile => EntryType::File,
            FileType::Symlink => EntryType::Symlink,
            FileType::Fifo => EntryType::Fifo,
            FileType::Socket => EntryType::Socket,
            FileType::CharacterDevice => EntryType::CharDevice,
            FileType::BlockDevice => EntryType::BlockDevice,
            FileType::Unknown => return Err(TreeError::unsupported(path, "unknown type of file")),
        };
        // Not opened for reading unless that cannot block or have effects.
        let flags = match kind {
            EntryType::Dir => OFlags::RDONLY | OFlags::DIRECTORY,
            EntryType::File => OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK,
            _ => OFlags::PATH,
        };
        let fd = open_beneath(dir, name, flags).map_err(|e| TreeError::io(path, e))?;
        // The same inode still, now that it is held.
        let held = stat(&fd, b"", path)?;
        let is_same = (held.stx_ino, held.stx_mode) == (found.stx_ino, found.stx_mode);
        if !is_same && self.contents == Contents::Read {
            return Err(TreeError::unsupported(path, "changed while it was read"));
        }
        match kind {
            EntryType::Dir => self.directory(fd, path, &held, depth + 1),
            EntryType::File => self.file(fd, path, &held),
            EntryType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())
                    .map_err(|e| TreeError::io(path, e))?;
                self.named(&fd, path, &held, kind, target.into_bytes())
            }
            _ => self.named(&fd, path, &held, kind, Vec::new()),
        }
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.summary.whiteouts += 1;
        self.record(RecordKind::Whiteout, path, &[])
    }

    /// Writes the entry of something that is not a directory, or a hard link to an earlier one.
    /// Returns whether it was the first name of its inode.
    fn once(
        &mut self,
        fd: &OwnedFd,
        path: &[u8],
        stat: &Statx,
        kind: EntryType,
        target: Vec<u8>,
    ) -> Result<bool, TreeError> {
        let inode = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        if stat.stx_nlink > 1 && !self.seen.insert(inode) {
            let entry = Entry {
                kind: EntryType::HardLink,
                clear: false,
                mode: 0,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                device: (0, 0),
                size: 0,
                link: stat.stx_ino,
                path: path.to_vec(),
                target: Vec::new(),
                xattrs: Vec::new(),
            };
            self.summary.entries += 1;
            self.record(RecordKind::Entry, &entry.encode()?, &[])?;
            return Ok(false);
        }
        self.entry(fd, path, stat, kind, target)
    }

    fn named(
        &mut self,
        fd: &OwnedFd,
        path: &[u8],
        stat: &Statx,
        kind: EntryType,
        target: Vec<u8>,
    ) -> Result<(), TreeError> {
        self.once(fd, path, stat, kind, target).map(|_| ())
    }

    /// Writes an entry with its metadata. Returns false for what turned out to be a whiteout.
    fn entry(
        &mut self,
        fd: &OwnedFd,
        path: &[u8],
        stat: &Statx,
        kind: EntryType,
        target: Vec<u8>,
    ) -> Result<bool, TreeError> {
        let io = |e| TreeError::io(path, e);
        let mut clear = !self.upper && kind == EntryType::Dir;
        let wanted = |name: &[u8]| !is_system_given(name);
        let mut found = if self.upper {
            xattrs(fd, |name| wanted(name) || name.starts_with(b"trusted.overlay.")).map_err(io)?
        } else {
            xattrs(fd, wanted).map_err(io)?
        };
        if self.upper {
            for (name, value) in &found {
                match name.strip_prefix(b"trusted.overlay.") {
                    Some(b"whiteout") if stat.stx_size == 0 && kind == EntryType::File => {
                        self.whiteout(path)?;
                        return Ok(false);
                    }
                    // "x" says that whiteouts are attributes in there; it hides nothing itself.
                    Some(b"opaque") if value == b"y" => clear = kind == EntryType::Dir,
                    Some(b"redirect") => {
                        return Err(TreeError::unsupported(path, "overlay redirect (renamed)"));
                    }
                    Some(b"metacopy") => {
                        return Err(TreeError::unsupported(path, "overlay metadata-only copy"));
                    }
                    Some(name) if name.starts_with(b"overlay.") => {
                        return Err(TreeError::unsupported(path, "overlay within an overlay"));
                    }
                    _ => {}
                }
            }
            found.retain(|(name, _)| wanted(name));
        }
        let is_file = kind == EntryType::File;
        let has_names = kind != EntryType::Dir && stat.stx_nlink > 1;
        let entry = Entry {
            kind,
            clear,
            mode: stat.stx_mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
            size: if is_file { stat.stx_size } else { 0 },
            link: if has_names { stat.stx_ino } else { 0 },
            path: path.to_vec(),
            target,
            xattrs: found,
        };
        self.summary.entries += 1;
        self.record(RecordKind::Entry, &entry.encode()?, &[])?;
        Ok(true)
    }

    fn file(&mut self, fd: OwnedFd, path: &[u8], stat: &Statx) -> Result<(), TreeError> {
        if !self.once(&fd, path, stat, EntryType::File, Vec::new())? {
            return Ok(());
        }
        let size = stat.stx_size;
        if self.contents == Contents::Weighed {
            let blocks = stat.stx_blocks.saturating_mul(512);
            // Fewer blocks than bytes are no holes where the file system compresses.
            let has_holes =
                blocks < size && rustix::fs::seek(&fd, SeekFrom::Hole(0)).is_ok_and(|at| at < size);
            self.summary.bytes += if has_holes { blocks } else { size };
            return Ok(());
        }
        let file = File::from(fd);
        if size <= DENSE {
            return self.extent(&file, 0, size, path);
        }
        let mut offset = 0;
        while offset < size {
            let Some((start, end)) = next_extent(&file, offset, size, path)? else { break };
            self.extent(&file, start, end, path)?;
            offset = end;
        }
        Ok(())
    }

    fn extent(
        &mut self,
        file: &File,
        mut offset: u64,
        end: u64,
        path: &[u8],
    ) -> Result<(), TreeError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(MAX_CONTENTS, 0);
        while offset < end {
            let want = usize::try_from(end - offset).unwrap_or(MAX_CONTENTS).min(MAX_CONTENTS);
            let len = match file.read_at(&mut buffer[..want], offset) {
                Ok(0) => return Err(TreeError::Shrunk { path: super::shown(path) }),
                Ok(len) => len,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(TreeError::io(path, e)),
            };
            self.record(RecordKind::Data, &offset.to_le_bytes(), &buffer[..len])?;
            self.summary.bytes += len as u64;
            offset += len as u64;
        }
        self.buffer = buffer;
        Ok(())
    }
}

/// Whether something went away, or became something else, between two looks at it.
fn is_gone(error: &TreeError) -> bool {
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::STALE].map(Errno::raw_os_error);
    matches!(error, TreeError::Io { source, .. } if source.raw_os_error().is_some_and(|e| gone.contains(&e)))
}

/// The next part of a file that is not a hole, within `size`.
fn next_extent(
    fd: &File,
    offset: u64,
    size: u64,
    path: &[u8],
) -> Result<Option<(u64, u64)>, TreeError> {
    let start = match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
        Ok(start) => start,
        // Only a hole is left.
        Err(Errno::NXIO) => return Ok(None),
        // A file system without holes.
        Err(Errno::INVAL) => return Ok(Some((offset, size))),
        Err(e) => return Err(TreeError::io(path, e)),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(fd, SeekFrom::Hole(start)).map_err(|e| TreeError::io(path, e))?;
    if end <= start {
        return Err(TreeError::Shrunk { path: super::shown(path) });
    }
    Ok(Some((start, end.min(size))))
}

/// The names in a directory, sorted: equal trees make equal archives.
fn names(dir: &OwnedFd, path: &[u8]) -> Result<Vec<CString>, TreeError> {
    let io = |e| TreeError::io(path, e);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
