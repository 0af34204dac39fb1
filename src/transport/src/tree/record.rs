//! The archive format.
//!
//! ```text
//! "TSTREE\0\x01"
//! records:  u8 kind, three zero bytes, u32 length, payload
//!   1 entry      u8 type, u8 flags (1: clear the directory first), u16 mode, u32 uid, u32 gid,
//!                i64 mtime seconds, u32 nanoseconds, u32 major, u32 minor, u64 size, u64 link,
//!                u32 length + path, u32 length + target of a symbolic link,
//!                u16 number of xattrs, each u16 length + name, u32 length + value
//!   2 data       u64 offset, bytes: contents of the file entered last
//!   3 whiteout   path: remove it
//!   4 end        u64 number of entries and whiteouts; the last record
//! ```
//! Little-endian. A path is relative, `/` between its parts, empty for the root; parents come
//! before their children. A file with several names has a `link` number; further names are entries
//! of type hard link with the same number. Parts of a file that no data record covers are holes.

use super::TreeError;

/// The archive's first bytes.
pub const MAGIC: &[u8; 8] = b"TSTREE\0\x01";
/// Length of a record's head.
pub const HEAD_LEN: usize = 8;
/// Most bytes of contents in one record.
pub const MAX_CONTENTS: usize = 1 << 20;
/// Largest payload of a record.
pub const MAX_PAYLOAD: usize = MAX_CONTENTS + 8;
/// Longest path, as the kernel has it.
pub const MAX_PATH: usize = 4095;
/// Longest name of an extended attribute.
const MAX_XATTR_NAME: usize = 255;
/// Longest value of an extended attribute.
pub const MAX_XATTR_VALUE: usize = 64 << 10;

/// Type of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A file of any type.
    Entry,
    /// Contents.
    Data,
    /// A removed name.
    Whiteout,
    /// The end.
    End,
}

/// Type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EntryType {
    Dir = 1,
    File,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
    /// Another name of an earlier entry; only `path` and `link` mean something.
    HardLink,
}

impl EntryType {
    fn from_byte(byte: u8) -> Option<Self> {
        use EntryType::{BlockDevice, CharDevice, Dir, Fifo, File, HardLink, Socket, Symlink};
        [Dir, File, Symlink, Fifo, Socket, CharDevice, BlockDevice, HardLink]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Extended attributes: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One file, directory or other inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryType,
    /// For directories: whatever else the destination has in it goes away.
    pub clear: bool,
    /// Permission bits, 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number of device nodes: major and minor.
    pub device: (u32, u32),
    /// Length of files.
    pub size: u64,
    /// Not 0: the file has several names in this tree, or may have.
    pub link: u64,
    /// Relative path.
    pub path: Vec<u8>,
    /// Where a symbolic link points.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// Appends a record's head.
pub fn put_head(out: &mut Vec<u8>, kind: RecordKind, len: usize) {
    let kind = match kind {
        RecordKind::Entry => 1,
        RecordKind::Data => 2,
        RecordKind::Whiteout => 3,
        RecordKind::End => 4,
    };
    out.extend_from_slice(&[kind, 0, 0, 0]);
    // Payloads are bounded by MAX_PAYLOAD.
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

/// Reads a record's head: its kind and the length of its payload.
pub fn parse_head(raw: &[u8; HEAD_LEN]) -> Result<(RecordKind, usize), TreeError> {
    let len = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]) as usize;
    let kind = match raw[..4] {
        [1, 0, 0, 0] => RecordKind::Entry,
        [2, 0, 0, 0] => RecordKind::Data,
        [3, 0, 0, 0] => RecordKind::Whiteout,
        [4, 0, 0, 0] => RecordKind::End,
        _ => return Err(TreeError::format("unknown record")),
    };
    if len > MAX_PAYLOAD {
        return Err(TreeError::format("overlong record"));
    }
    Ok((kind, len))
}

impl Entry {
    /// The payload of an entry record.
    pub fn encode(&self) -> Result<Vec<u8>, TreeError> {
        let too_big = || TreeError::unsupported(&self.path, "too many extended attributes");
        let mut out = Vec::with_capacity(96 + self.path.len() + self.target.len());
        out.extend_from_slice(&[self.kind as u8, u8::from(self.clear)]);
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.mtime.0.to_le_bytes());
        out.extend_from_slice(&self.mtime.1.to_le_bytes());
        out.extend_from_slice(&self.device.0.to_le_bytes());
        out.extend_from_slice(&self.device.1.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.link.to_le_bytes());
        put_bytes(&mut out, &self.path);
        put_bytes(&mut out, &self.target);
        let count = u16::try_from(self.xattrs.len()).map_err(|_| too_big())?;
        out.extend_from_slice(&count.to_le_bytes());
        for (name, value) in &self.xattrs {
            let len = u16::try_from(name.len()).map_err(|_| too_big())?;
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(name);
            put_bytes(&mut out, value);
        }
        if out.len() > MAX_PAYLOAD {
            return Err(too_big());
        }
        Ok(out)
    }

    /// Reads an entry, whole and valid in itself.
    pub fn decode(payload: &[u8]) -> Result<Self, TreeError> {
        let mut raw = Cursor(payload);
        let kind = EntryType::from_byte(raw.array::<1>()?[0])
            .ok_or_else(|| TreeError::format("unknown type of entry"))?;
        let clear = match raw.array::<1>()?[0] {
            0 => false,
            1 if kind == EntryType::Dir => true,
            _ => return Err(TreeError::format("unknown flags of entry")),
        };
        let entry = Self {
            kind,
            clear,
            mode: u16::from_le_bytes(raw.array()?),
            uid: u32::from_le_bytes(raw.array()?),
            gid: u32::from_le_bytes(raw.array()?),
            mtime: (i64::from_le_bytes(raw.array()?), u32::from_le_bytes(raw.array()?)),
            device: (u32::from_le_bytes(raw.array()?), u32::from_le_bytes(raw.array()?)),
            size: u64::from_le_bytes(raw.array()?),
            link: u64::from_le_bytes(raw.array()?),
            path: raw.bytes(MAX_PATH)?.to_vec(),
            target: raw.bytes(MAX_PATH)?.to_vec(),
            xattrs: raw.xattrs()?,
        };
        if !raw.0.is_empty() {
            return Err(TreeError::format("surplus bytes after an entry"));
        }
        entry.check()?;
        Ok(entry)
    }

    fn check(&self) -> Result<(), TreeError> {
        let bad =
            |what: &str| Err(TreeError::format(format!("{}: {what}", super::shown(&self.path))));
        check_path(&self.path)?;
        if self.path.is_empty() && self.kind != EntryType::Dir {
            return bad("root is not a directory");
        }
        if self.mode & !0o7777 != 0 {
            return bad("invalid mode");
        }
        if self.mtime.1 >= 1_000_000_000 {
            return bad("invalid time");
        }
        if self.size > i64::MAX as u64 || (self.size != 0 && self.kind != EntryType::File) {
            return bad("invalid size");
        }
        let is_link = self.kind == EntryType::Symlink;
        if self.target.is_empty() == is_link || self.target.contains(&0) {
            return bad("invalid target");
        }
        if self.kind == EntryType::HardLink && self.link == 0 {
            return bad("hard link to nothing");
        }
        Ok(())
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Callers keep these below MAX_PAYLOAD.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Accepts the root ("") and relative paths of ordinary names.
pub fn check_path(path: &[u8]) -> Result<(), TreeError> {
    let name_is_fine = |name: &[u8]| {
        !name.is_empty() && name.len() <= 255 && name != b"." && name != b".." && !name.contains(&0)
    };
    let fine =
        path.is_empty() || (path.len() <= MAX_PATH && path.split(|b| *b == b'/').all(name_is_fine));
    if fine {
        return Ok(());
    }
    let shown: Vec<u8> = path.iter().copied().take(256).collect();
    Err(TreeError::format(format!("path {:?}", String::from_utf8_lossy(&shown))))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], TreeError> {
        let (head, tail) =
            self.0.split_at_checked(len).ok_or_else(|| TreeError::format("truncated entry"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TreeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn bytes(&mut self, max: usize) -> Result<&'a [u8], TreeError> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        if len > max {
            return Err(TreeError::format("overlong field"));
        }
        self.take(len)
    }

    fn xattrs(&mut self) -> Result<Xattrs, TreeError> {
        let count = u16::from_le_bytes(self.array()?);
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let len = usize::from(u16::from_le_bytes(self.array()?));
            let name = self.take(len)?;
            let value = self.bytes(MAX_XATTR_VALUE)?;
            if name.is_empty() || len > MAX_XATTR_NAME || name.contains(&0) {
                return Err(TreeError::format("invalid name of an extended attribute"));
            }
            xattrs.push((name.to_vec(), value.to_vec()));
        }
        Ok(xattrs)
    }
}
