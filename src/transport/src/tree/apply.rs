//! Writing a tree.
//!
//! [`Applier`] takes the archive in pieces of any size. Whatever stands in an entry's way is
//! removed first, so an archive may be applied again after a failure. Directories get their
//! metadata at the very end, since everything done inside them changes their times.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::inode::{open_beneath, open_dir, set_metadata};
use super::record::{
    Entry, EntryType, HEAD_LEN, MAGIC, MAX_PAYLOAD, RecordKind, check_path, parse_head,
};
use super::{MAX_DEPTH, TreeError};

/// Most directories and files with several names that are kept in memory.
const MAX_KEPT: usize = 4 << 20;

/// What a tree may consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Whatever a file system holds.
    All,
    /// Directories and files: programs of the node will read them by their names.
    Plain,
}

/// Applies the archive in the file `spool` to the directory `dest`.
pub fn apply_spool(spool: &Path, dest: &Path, kinds: Kinds) -> Result<(), TreeError> {
    let mut file = File::open(spool).map_err(TreeError::Input)?;
    let mut applier = Applier::new(dest, kinds)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return applier.finish(),
            Ok(len) => applier.push(&buffer[..len])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(TreeError::Input(e)),
        }
    }
}

/// Applies an archive to a directory, piece by piece.
#[derive(Debug)]
pub struct Applier {
    root: OwnedFd,
    kinds: Kinds,
    state: State,
    /// The start of a record that has not arrived whole.
    pending: Vec<u8>,
    count: u64,
    file: Option<OpenFile>,
    /// Directories that wait for their metadata.
    directories: Vec<Entry>,
    /// First names of files that may have more.
    links: HashMap<u64, Vec<u8>>,
    /// The directory used last: most entries share it with the one before.
    parent: Option<(Vec<u8>, OwnedFd)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Magic,
    Records,
    End,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    entry: Entry,
    /// Contents come in ascending order, so that no more than the size is ever written.
    written_to: u64,
}

impl Applier {
    /// Applies to `dest`, which must exist.
    pub fn new(dest: &Path, kinds: Kinds) -> Result<Self, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dest, flags, Mode::empty())
            .map_err(|e| TreeError::Io { path: dest.display().to_string(), source: e.into() })?;
        Ok(Self {
            root,
            kinds,
            state: State::Magic,
            pending: Vec::new(),
            count: 0,
            file: None,
            directories: Vec::new(),
            links: HashMap::new(),
            parent: None,
        })
    }

    /// The next bytes of the archive.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), TreeError> {
        // Complete what was begun, with as little copying as possible.
        while !self.pending.is_empty() {
            let needed = self.needed(&self.pending)?;
            let take = (needed - self.pending.len()).min(bytes.len());
            let (head, tail) = bytes.split_at(take);
            self.pending.extend_from_slice(head);
            bytes = tail;
            // The head may only now say how long the record is.
            if self.pending.len() < self.needed(&self.pending)? {
                if bytes.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let mut record = std::mem::take(&mut self.pending);
            self.take(&record)?;
            record.clear();
            self.pending = record;
        }
        while !bytes.is_empty() {
            let needed = self.needed(bytes)?;
            let Some((record, tail)) = bytes.split_at_checked(needed) else {
                self.pending.extend_from_slice(bytes);
                return Ok(());
            };
            self.take(record)?;
            bytes = tail;
        }
        Ok(())
    }

    /// How many bytes from the start of `bytes` make a whole unit, as far as can be told yet.
    fn needed(&self, bytes: &[u8]) -> Result<usize, TreeError> {
        match self.state {
            State::Magic => Ok(MAGIC.len()),
            State::End => Err(TreeError::format("bytes after the end")),
            State::Records => match bytes.first_chunk::<HEAD_LEN>() {
                None => Ok(HEAD_LEN),
                Some(head) => Ok(HEAD_LEN + parse_head(head)?.1),
            },
        }
    }

    /// One whole unit: the magic or a record.
    fn take(&mut self, unit: &[u8]) -> Result<(), TreeError> {
        if self.state == State::Magic {
            if unit != MAGIC {
                return Err(TreeError::format("not an archive of a tree"));
            }
            self.state = State::Records;
            return Ok(());
        }
        let (head, payload) = unit
            .split_first_chunk::<HEAD_LEN>()
            .ok_or_else(|| TreeError::format("truncated record"))?;
        debug_assert!(payload.len() <= MAX_PAYLOAD);
        match parse_head(head)?.0 {
            RecordKind::Entry => {
                self.count += 1;
                self.entry(Entry::decode(payload)?)
            }
            RecordKind::Data => self.data(payload),
            RecordKind::Whiteout => {
                self.count += 1;
                self.close_file()?;
                check_path(payload)?;
                if payload.is_empty() {
                    return Err(TreeError::format("whiteout of the root"));
                }
                self.whiteout(payload)
            }
            RecordKind::End => {
                self.close_file()?;
                if payload != self.count.to_le_bytes() {
                    return Err(TreeError::format("wrong number of entries"));
                }
                self.state = State::End;
                Ok(())
            }
        }
    }

    /// Everything has been pushed: gives directories their metadata. An archive that ended early
    /// is an error.
    pub fn finish(&mut self) -> Result<(), TreeError> {
        if self.state != State::End || !self.pending.is_empty() {
            return Err(TreeError::format("archive ends early"));
        }
        while let Some(entry) = self.directories.pop() {
            let dir =
                open_dir(&self.root, &entry.path).map_err(|e| TreeError::io(&entry.path, e))?;
            set_metadata(dir.as_fd(), &entry).map_err(|e| TreeError::io(&entry.path, e))?;
        }
        Ok(())
    }

    fn keep(&self) -> Result<(), TreeError> {
        if self.directories.len() + self.links.len() >= MAX_KEPT {
            return Err(TreeError::format("too many directories and links"));
        }
        Ok(())
    }

    /// The directory that holds `path`, and the last part of `path`.
    fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(BorrowedFd<'_>, &'p [u8]), TreeError> {
        let (dir, name) = split(path);
        let cached = matches!(&self.parent, Some((open, _)) if open == dir);
        if !cached {
            let fd = open_dir(&self.root, dir).map_err(|e| TreeError::io(path, e))?;
            self.parent = Some((dir.to_vec(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok((fd.as_fd(), name)),
            None => Err(TreeError::io(path, Errno::NOENT)),
        }
    }

    /// Removes whatever has this name. A directory that was open may be among it.
    fn clear_name(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let (dir, name) = self.parent(path)?;
        let removed_dir = remove(dir, name, 0).map_err(|e| TreeError::io(path, e))?;
        if removed_dir {
            self.parent = None;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        match self.parent(path) {
            Ok(_) => self.clear_name(path),
            // Then the name is gone as well.
            Err(TreeError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<(), TreeError> {
        self.close_file()?;
        let is_plain = matches!(entry.kind, EntryType::Dir | EntryType::File);
        if self.kinds == Kinds::Plain && !is_plain {
            return Err(TreeError::unsupported(&entry.path, "neither a directory nor a file"));
        }
        match entry.kind {
            EntryType::Dir => self.directory(entry),
            EntryType::File => self.begin_file(entry),
            EntryType::HardLink => self.hard_link(&entry),
            _ => self.special(&entry),
        }
    }

    fn directory(&mut self, entry: Entry) -> Result<(), TreeError> {
        let io = |e| TreeError::io(&entry.path, e);
        self.keep()?;
        if entry.path.is_empty() {
            if entry.clear {
                remove_contents(&self.root, 0).map_err(io)?;
                self.parent = None;
            }
        } else {
            let (dir, name) = self.parent(&entry.path)?;
            if entry.clear || !is_dir(dir, name).map_err(io)? {
                self.clear_name(&entry.path)?;
                let (dir, name) = self.parent(&entry.path)?;
                rustix::fs::mkdirat(dir, name, Mode::RWXU).map_err(io)?;
            }
        }
        self.directories.push(entry);
        Ok(())
    }

    fn begin_file(&mut self, entry: Entry) -> Result<(), TreeError> {
        let io = |e| TreeError::io(&entry.path, e);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let (dir, name) = self.parent(&entry.path)?;
        // Mostly there is nothing to clear away.
        let fd = match rustix::fs::openat(dir, name, flags, mode) {
            Err(Errno::EXIST) => {
                self.clear_name(&entry.path)?;
                let (dir, name) = self.parent(&entry.path)?;
                rustix::fs::openat(dir, name, flags, mode).map_err(io)?
            }
            result => result.map_err(io)?,
        };
        self.remember(&entry)?;
        self.file = Some(OpenFile { file: File::from(fd), entry, written_to: 0 });
        Ok(())
    }

    fn remember(&mut self, entry: &Entry) -> Result<(), TreeError> {
        if entry.link != 0 {
            self.keep()?;
            self.links.insert(entry.link, entry.path.clone());
        }
        Ok(())
    }

    fn data(&mut self, payload: &[u8]) -> Result<(), TreeError> {
        let (offset, bytes) = payload
            .split_first_chunk::<8>()
            .ok_or_else(|| TreeError::format("truncated contents"))?;
        let offset = u64::from_le_bytes(*offset);
        let open = self.file.as_mut().ok_or_else(|| TreeError::format("contents of no file"))?;
        let end = offset.checked_add(bytes.len() as u64);
        match end {
            Some(end) if offset >= open.written_to && end <= open.entry.size => {
                open.written_to = end;
            }
            _ => {
                let path = super::shown(&open.entry.path);
                return Err(TreeError::format(format!("{path}: contents out of place")));
            }
        }
        open.file.write_all_at(bytes, offset).map_err(|e| TreeError::io(&open.entry.path, e))
    }

    fn close_file(&mut self) -> Result<(), TreeError> {
        let Some(OpenFile { file, entry, .. }) = self.file.take() else { return Ok(()) };
        file.set_len(entry.size).map_err(|e| TreeError::io(&entry.path, e))?;
        set_metadata(file.as_fd(), &entry).map_err(|e| TreeError::io(&entry.path, e))
    }

    fn hard_link(&mut self, entry: &Entry) -> Result<(), TreeError> {
        let io = |e| TreeError::io(&entry.path, e);
        let first = self
            .links
            .get(&entry.link)
            .ok_or_else(|| TreeError::format("hard link to an unknown file"))?;
        let (first_dir, first_name) = split(first);
        let first_dir = open_dir(&self.root, first_dir).map_err(io)?;
        let first_name = first_name.to_vec();
        self.clear_name(&entry.path)?;
        let (dir, name) = self.parent(&entry.path)?;
        rustix::fs::linkat(first_dir, &first_name, dir, name, AtFlags::empty()).map_err(io)
    }

    fn special(&mut self, entry: &Entry) -> Result<(), TreeError> {
        let io = |e| TreeError::io(&entry.path, e);
        self.clear_name(&entry.path)?;
        let (dir, name) = self.parent(&entry.path)?;
        let node = |file_type, (major, minor): (u32, u32)| {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(dir, name, file_type, Mode::RUSR | Mode::WUSR, device)
        };
        match entry.kind {
            EntryType::Symlink => rustix::fs::symlinkat(&entry.target, dir, name),
            EntryType::Fifo => node(FileType::Fifo, (0, 0)),
            EntryType::Socket => node(FileType::Socket, (0, 0)),
            EntryType::CharDevice => node(FileType::CharacterDevice, entry.device),
            EntryType::BlockDevice => node(FileType::BlockDevice, entry.device),
            EntryType::Dir | EntryType::File | EntryType::HardLink => Err(Errno::INVAL),
        }
        .map_err(io)?;
        // O_PATH without following opens a symbolic link itself.
        let fd = open_beneath(dir, name, OFlags::PATH).map_err(io)?;
        set_metadata(fd.as_fd(), entry).map_err(io)?;
        self.remember(entry)
    }
}

/// The parent's path and the name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn is_dir(dir: impl AsFd, name: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes a name and everything under it; nothing is fine too. Returns whether it was a directory.
fn remove(dir: impl AsFd, name: &[u8], depth: usize) -> Result<bool, Errno> {
    let dir = dir.as_fd();
    if !is_dir(dir, name)? {
        return match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        };
    }
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    // Fails at a mount point: what is mounted there is not ours to clear.
    let inner = open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    remove_contents(&inner, depth)?;
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

fn remove_contents(dir: &OwnedFd, depth: usize) -> Result<(), Errno> {
    // Collected first: a directory must not change under its reader.
    let names: Vec<CString> = rustix::fs::Dir::read_from(dir)?
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for name in &names {
        let name = name.as_bytes();
        if name != b"." && name != b".." {
            remove(dir, name, depth + 1)?;
        }
    }
    Ok(())
}
