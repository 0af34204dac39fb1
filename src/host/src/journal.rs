//! The journal of a holder: what it has done, one JSON line each, durable before it acts on it.
//!
//! A line is `{"v":1,"boot_id":…,"at":…,"entry":…}`. The holder of a journal holds an exclusive lock on it, so
//! there are never two. A last line that was cut off by a crash was never acted upon: it is removed when the
//! journal is opened. Any other damage is an error, because a line that was acted upon must not be ignored.
//!
//! The entries belong to `transship-protocol`; this module knows nothing of their meaning.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;

/// The version of the line format that this program writes and understands.
pub const JOURNAL_VERSION: u32 = 1;

/// Kept free on the disk for what is still to be appended: a holder must be able to note its end
/// when the disk has become full.
const RESERVE: u64 = 64 << 10;
/// How long a lock that is held is waited for, and between two tries.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// A journal larger than this was not written by a holder.
const MAX_JOURNAL: u64 = 64 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line<E> {
    /// Format version, [`JOURNAL_VERSION`].
    pub v: u32,
    /// The boot in which it was written.
    pub boot_id: String,
    /// When, in microseconds since 1970 by the node's clock; for people, never for decisions.
    pub at: u64,
    /// What happened.
    pub entry: E,
}

/// An open and locked journal.
#[derive(Debug)]
pub struct Journal<E> {
    file: File,
    path: PathBuf,
    boot_id: String,
    entries: PhantomData<fn(E)>,
}

impl<E: Serialize + DeserializeOwned> Journal<E> {
    /// Opens (or makes) the journal, locks it, removes a torn last line and returns what it holds.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process has it open; [`Error::UnknownVersion`] or [`Error::Damaged`] if a
    /// line cannot be understood.
    pub fn open(path: &Path) -> Result<(Self, Vec<Line<E>>)> {
        Self::open_in_boot(path, files::boot_id()?)
    }

    /// As [`Journal::open`], for another boot than the present one (for tests of recovery).
    pub fn open_in_boot(path: &Path, boot_id: String) -> Result<(Self, Vec<Line<E>>)> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        files::make_dir(dir)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("open", path))?;
        lock(&file, path)?;
        files::sync_dir(dir)?;
        let content = files::read_bounded(path, MAX_JOURNAL)?;
        let (lines, whole) = parse(path, &content)?;
        if whole < content.len() {
            file.set_len(whole as u64).map_err(Error::io("truncate", path))?;
            file.sync_all().map_err(Error::io("fsync", path))?;
        }
        reserve(&file, whole as u64, path)?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("seek in", path))?;
        Ok((Self { file, path: path.to_path_buf(), boot_id, entries: PhantomData }, lines))
    }

    /// Appends an entry; when this returns it is durable.
    ///
    /// After an error the journal must not be used further: part of the line may have been written. Opening
    /// it again removes that part.
    pub fn append(&mut self, entry: &E) -> Result<()> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line {
            v: JOURNAL_VERSION,
            boot_id: self.boot_id.clone(),
            at: u64::try_from(at.as_micros()).unwrap_or(u64::MAX),
            entry,
        };
        let mut text = serde_json::to_vec(&line)
            .map_err(|source| Error::Damaged { path: self.path.clone(), source })?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::io("append to", &self.path))?;
        self.file.sync_data().map_err(Error::io("fsync", &self.path))
    }

    /// The boot that appended lines belong to.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }
}

/// Reads a journal without locking it, for status and support; a torn last line is left out.
pub fn read<E: DeserializeOwned>(path: &Path) -> Result<Vec<Line<E>>> {
    match files::read_bounded(path, MAX_JOURNAL) {
        Ok(content) => Ok(parse(path, &content)?.0),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether some process has the journal open and locked; a missing journal is free.
pub fn is_locked(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(Error::errno("lock", path)(errno)),
    }
}

/// Reserves room behind the `written` bytes, without making the file longer. Without room nothing
/// is begun; what was begun goes on with what it has. File systems that cannot do it do without.
fn reserve(file: &File, written: u64, path: &Path) -> Result<()> {
    use rustix::fs::FallocateFlags;
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, written, RESERVE) {
        Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) if written == 0 => {
            Err(Error::errno("reserve room for", path)(rustix::io::Errno::NOSPC))
        }
        _ => Ok(()),
    }
}

/// Locks against other holders. A holder keeps its lock for as long as it lives; somebody who only
/// looks ([`is_locked`]), or a process that was forked and has not yet become another program, has
/// it for a moment, and that moment is waited for.
fn lock(file: &File, path: &Path) -> Result<()> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::InUse { path: path.to_path_buf() });
            }
            Err(errno) => return Err(Error::errno("lock", path)(errno)),
        }
    }
}

/// The lines, and how many bytes of `content` they take (less than all if the last line is torn).
fn parse<E: DeserializeOwned>(path: &Path, content: &[u8]) -> Result<(Vec<Line<E>>, usize)> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let damaged = |source| Error::Damaged { path: path.to_path_buf(), source };
    let whole = content.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let mut lines = Vec::new();
    for text in content[..whole].split(|b| *b == b'\n').filter(|text| !text.is_empty()) {
        let Versioned { v } = serde_json::from_slice(text).map_err(damaged)?;
        if v != JOURNAL_VERSION {
            return Err(Error::UnknownVersion {
                path: path.to_path_buf(),
                found: v,
                known: JOURNAL_VERSION,
            });
        }
        lines.push(serde_json::from_slice(text).map_err(damaged)?);
    }
    Ok((lines, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
    enum Entry {
        Frozen,
        Voted { uid: String },
    }

    fn entries(lines: &[Line<Entry>]) -> Vec<Entry> {
        lines.iter().map(|l| l.entry.clone()).collect()
    }

    fn voted() -> Entry {
        Entry::Voted { uid: "m-1".into() }
    }

    #[test]
    fn entries_come_back_in_order_with_their_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m/journal");
        let (mut journal, lines) = Journal::open_in_boot(&path, "boot-1".into()).unwrap();
        assert!(lines.is_empty());
        journal.append(&Entry::Frozen).unwrap();
        drop(journal);
        let (mut journal, lines) = Journal::open_in_boot(&path, "boot-2".into()).unwrap();
        assert_eq!(entries(&lines), [Entry::Frozen]);
        journal.append(&voted()).unwrap();
        let lines = read::<Entry>(&path).unwrap();
        assert_eq!(entries(&lines), [Entry::Frozen, voted()]);
        assert_eq!((lines[0].boot_id.as_str(), lines[1].boot_id.as_str()), ("boot-1", "boot-2"));
    }

    #[test]
    fn a_second_holder_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(!is_locked(&path).unwrap());
        let first = Journal::<Entry>::open(&path).unwrap();
        assert!(matches!(Journal::<Entry>::open(&path), Err(Error::InUse { .. })));
        assert!(is_locked(&path).unwrap());
        drop(first);
        Journal::<Entry>::open(&path).unwrap();
    }

    #[test]
    fn a_torn_last_line_is_removed_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&Entry::Frozen).unwrap();
        let one = std::fs::metadata(&path).unwrap().len() as usize;
        journal.append(&voted()).unwrap();
        drop(journal);
        let full = std::fs::read(&path).unwrap();
        for cut in one + 1..full.len() {
            std::fs::write(&path, &full[..cut]).unwrap();
            let (mut journal, lines) = Journal::open(&path).unwrap();
            assert_eq!(entries(&lines), [Entry::Frozen], "cut at {cut}");
            journal.append(&voted()).unwrap();
            drop(journal);
            assert_eq!(entries(&read(&path).unwrap()), [Entry::Frozen, voted()], "cut at {cut}");
        }
    }

    #[test]
    fn room_is_kept_for_what_is_still_to_be_written() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let kept = || std::fs::metadata(&path).unwrap().blocks() * 512;
        let (mut journal, _) = Journal::<Entry>::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "it is not seen in the file");
        assert!(kept() >= RESERVE, "{}", kept());
        journal.append(&Entry::Frozen).unwrap();
        drop(journal);
        // What cuts a torn line off also gives the room back.
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend(b"{\"v\":1");
        std::fs::write(&path, torn).unwrap();
        Journal::<Entry>::open(&path).unwrap();
        assert!(kept() >= RESERVE, "{}", kept());
    }

    #[test]
    fn a_damaged_whole_line_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, "{\"v\":1,\"boot\n").unwrap();
        assert!(matches!(Journal::<Entry>::open(&path), Err(Error::Damaged { .. })));
    }

    #[test]
    fn an_unknown_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, "{\"v\":9,\"later\":[]}\n").unwrap();
        let error = Journal::<Entry>::open(&path).unwrap_err();
        assert!(matches!(error, Error::UnknownVersion { found: 9, known: 1, .. }), "{error}");
    }
}
