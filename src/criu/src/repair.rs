//! Mending image sets before a restore.
//!
//! * A periodic timerfd that has expired while its process was frozen has `it_value` 0 in its
//!   image; CRIU restores that as a disarmed timer and reports success (their issue 3162).
//!   [`fix_timerfds`] sets it to one nanosecond: it fires at once, and its interval goes on.
//! * Every container of a pod carries the pod's System V objects, and only the first restore may
//!   create them. [`drop_ipc_objects`] removes queues and semaphores from the other sets. Memory
//!   segments stay: CRIU attaches processes by them, and `preload/adopt-segments.c` gives it those
//!   that exist.
//! * Files whose name was given back for the dump stand in it under another one. [`rename_files`] has
//!   them opened under theirs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use thiserror::Error;

use crate::image::{FILES_MAGIC, Header, ImageError, TIMERFD_MAGIC, put_record};
use crate::proto::{Field, Fields, ProtoError, Value, put_field};

/// Largest image that is read into memory to be mended.
const MAX_IMAGE: u64 = 256 << 20;
/// `file_entry.reg`, and `reg_file_entry.name`.
const FILE_ENTRY_REG: u32 = 3;
const REG_NAME: u32 = 6;
/// `file_entry.tfd`.
const FILE_ENTRY_TFD: u32 = 12;
/// `timerfd_entry`: vsec, vnsec, isec, insec.
const VSEC: u32 = 7;
const VNSEC: u32 = 8;
const ISEC: u32 = 9;
const INSEC: u32 = 10;

/// Why an image set could not be mended.
#[derive(Debug, Error)]
pub enum RepairError {
    /// A file could not be read or written.
    #[error("{file}: {source}")]
    Io {
        /// The image's name.
        file: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The image is not one of its type.
    #[error("{file}: {source}")]
    Image {
        /// The image's name.
        file: String,
        /// What is wrong.
        #[source]
        source: ImageError,
    },
    /// A record of the image is not a message.
    #[error("{file}: {source}")]
    Proto {
        /// The image's name.
        file: String,
        /// What is wrong.
        #[source]
        source: ProtoError,
    },
}

/// Re-arms the periodic timerfds that expired while frozen. Returns how many there were.
pub fn fix_timerfds(dir: &Path) -> Result<usize, RepairError> {
    let in_files = fix_file(dir, "files.img", FILES_MAGIC, fix_file_entry)?;
    let on_their_own = fix_file(dir, "timerfd.img", TIMERFD_MAGIC, fix_timerfd_entry)?;
    Ok(in_files + on_their_own)
}

/// Removes the System V shared memory, message queues and semaphores from an image set, and
/// returns how many images that were. The namespace's variables (`ipcns-var`) stay: CRIU
/// insists on them, and setting them again changes nothing.
pub fn drop_ipc_objects(dir: &Path) -> io::Result<usize> {
    let mut dropped = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_object = name.to_str().is_some_and(|name| {
            ["ipcns-msg-", "ipcns-sem-"].iter().any(|kind| name.starts_with(kind))
        });
        if is_object {
            fs::remove_file(entry.path())?;
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// Has files opened under other names: pairs of the name in the image and the one to be opened.
/// Returns how many there were.
pub fn rename_files(dir: &Path, names: &[(String, String)]) -> Result<usize, RepairError> {
    fix_file(dir, "files.img", FILES_MAGIC, |entry| {
        fix_field(entry, FILE_ENTRY_REG, |file| {
            fix_field(file, REG_NAME, |name| {
                let renamed = names.iter().find(|(from, _)| from.as_bytes() == name);
                Ok(renamed.map(|(_, to)| to.clone().into_bytes()))
            })
        })
    })
}

/// A message or a field, rewritten; `None` when nothing changes.
type Mended = Result<Option<Vec<u8>>, ProtoError>;

fn fix_file(
    dir: &Path,
    file: &str,
    magic: u32,
    fix: impl Fn(&[u8]) -> Mended,
) -> Result<usize, RepairError> {
    let io_error = |source| RepairError::Io { file: file.into(), source };
    let path = dir.join(file);
    let image = match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(io_error(e)),
        Ok(meta) if meta.len() > MAX_IMAGE || !meta.is_file() => {
            return Err(io_error(io::ErrorKind::InvalidData.into()));
        }
        Ok(_) => fs::read(&path).map_err(io_error)?,
    };
    let header = Header::Common(magic);
    let image_error = |source| RepairError::Image { file: file.into(), source };
    let mut out = header.bytes();
    let mut fixed = 0;
    for record in header.open(&image).map_err(image_error)? {
        let record = record.map_err(image_error)?;
        let mended =
            fix(record).map_err(|source| RepairError::Proto { file: file.into(), source })?;
        fixed += usize::from(mended.is_some());
        put_record(&mut out, mended.as_deref().unwrap_or(record));
    }
    if fixed > 0 {
        replace(&path, &out).map_err(io_error)?;
    }
    Ok(fixed)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("mended");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

fn fix_file_entry(message: &[u8]) -> Mended {
    fix_field(message, FILE_ENTRY_TFD, fix_timerfd_entry)
}

/// Rewrites the fields of this number.
fn fix_field(message: &[u8], wanted: u32, fix: impl Fn(&[u8]) -> Mended) -> Mended {
    let mut out = Vec::new();
    let mut changed = false;
    for field in Fields::new(message) {
        let field = field?;
        let mended = match field {
            Field { number, value: Value::Bytes(bytes) } if number == wanted => fix(bytes)?,
            _ => None,
        };
        match mended {
            Some(bytes) => {
                changed = true;
                put_field(&mut out, &Field { value: Value::Bytes(&bytes), ..field });
            }
            None => put_field(&mut out, &field),
        }
    }
    Ok(changed.then_some(out))
}

fn fix_timerfd_entry(message: &[u8]) -> Mended {
    let (mut value, mut interval) = (0, 0);
    for field in Fields::new(message) {
        match field? {
            Field { number: VSEC | VNSEC, value: Value::Varint(v) } => value |= v,
            Field { number: ISEC | INSEC, value: Value::Varint(v) } => interval |= v,
            _ => {}
        }
    }
    if value != 0 || interval == 0 {
        return Ok(None);
    }
    let mut out = Vec::new();
    for field in Fields::new(message) {
        let field = field?;
        if field.number != VNSEC {
            put_field(&mut out, &field);
        }
    }
    put_field(&mut out, &Field { number: VNSEC, value: Value::Varint(1) });
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{find_bytes, find_varint, put_uint};
    use proptest::prelude::*;

    fn timer(value: u64, interval: u64) -> Vec<u8> {
        let mut message = Vec::new();
        for (number, v) in [(1, 9), (VSEC, 0), (VNSEC, value), (ISEC, 0), (INSEC, interval)] {
            put_uint(&mut message, number, v);
        }
        message
    }

    fn files_image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut image = Header::Common(FILES_MAGIC).bytes();
        for entry in entries {
            put_record(&mut image, entry);
        }
        image
    }

    fn file_entry(timer: &[u8]) -> Vec<u8> {
        let mut entry = Vec::new();
        put_uint(&mut entry, 1, 17);
        put_uint(&mut entry, 2, 9);
        put_field(&mut entry, &Field { number: FILE_ENTRY_TFD, value: Value::Bytes(timer) });
        entry
    }

    #[test]
    fn only_expired_periodic_timers_are_re_armed() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            file_entry(&timer(0, 50)),
            file_entry(&timer(0, 0)),
            file_entry(&timer(3, 50)),
            b"".to_vec(),
        ];
        fs::write(dir.path().join("files.img"), files_image(&entries)).unwrap();
        assert_eq!(fix_timerfds(dir.path()).unwrap(), 1);
        let image = fs::read(dir.path().join("files.img")).unwrap();
        let records: Vec<_> =
            Header::Common(FILES_MAGIC).open(&image).unwrap().map(Result::unwrap).collect();
        let mended = find_bytes(records[0], FILE_ENTRY_TFD).unwrap().unwrap();
        assert_eq!(find_varint(mended, VNSEC), Ok(Some(1)));
        assert_eq!(find_varint(mended, INSEC), Ok(Some(50)));
        assert_eq!(find_varint(mended, 1), Ok(Some(9)));
        assert_eq!(records[1..], [&entries[1][..], &entries[2], &entries[3]]);
        assert_eq!(fix_timerfds(dir.path()).unwrap(), 0, "mending again changes nothing");
    }

    #[test]
    fn a_real_dump_with_an_expired_timer_is_mended_where_it_is_broken_and_nowhere_else() {
        // A files.img of CRIU 4.2.1: 23 descriptors of many kinds, one periodic timerfd that
        // expired while the container was frozen.
        let image = include_bytes!("../testdata/files-expired-timerfd.img");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files.img");
        fs::write(&path, image).unwrap();
        assert_eq!(fix_timerfds(dir.path()).unwrap(), 1);
        let mended = fs::read(&path).unwrap();
        assert_eq!(mended.len(), image.len());
        let records = |image: &[u8]| -> Vec<Vec<u8>> {
            let records = Header::Common(FILES_MAGIC).open(image).unwrap();
            records.map(|record| record.unwrap().to_vec()).collect()
        };
        let changed = records(image).iter().zip(records(&mended)).filter(|(a, b)| *a != b).count();
        assert_eq!(changed, 1);
        assert_eq!(fix_timerfds(dir.path()).unwrap(), 0);
    }

    #[test]
    fn a_file_of_a_real_dump_is_renamed_and_nothing_else_changes() {
        let image = include_bytes!("../testdata/files-expired-timerfd.img");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files.img");
        fs::write(&path, image).unwrap();
        let names = [(String::from("/tmp/lock"), String::from("/renamed"))];
        assert_eq!(rename_files(dir.path(), &names).unwrap(), 1);
        let mended = fs::read(&path).unwrap();
        let name = |record: &[u8]| -> Option<String> {
            let file = find_bytes(record, FILE_ENTRY_REG).unwrap()?;
            let name = find_bytes(file, REG_NAME).unwrap()?;
            Some(String::from_utf8_lossy(name).into_owned())
        };
        let header = Header::Common(FILES_MAGIC);
        let before = header.open(image).unwrap().map(Result::unwrap);
        let after = header.open(&mended).unwrap().map(Result::unwrap);
        let changed: Vec<_> = before.zip(after).filter(|(a, b)| a != b).collect();
        assert_eq!(changed.len(), 1);
        assert_eq!(name(changed[0].0).as_deref(), Some("/tmp/lock"));
        assert_eq!(name(changed[0].1).as_deref(), Some("/renamed"));
        assert_eq!(rename_files(dir.path(), &names).unwrap(), 0);
    }

    #[test]
    fn a_set_without_timers_is_left_alone_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(fix_timerfds(dir.path()).unwrap(), 0);
        let mut image = Header::Common(TIMERFD_MAGIC).bytes();
        put_record(&mut image, &timer(0, 1));
        fs::write(dir.path().join("timerfd.img"), &image).unwrap();
        assert_eq!(fix_timerfds(dir.path()).unwrap(), 1);
        image.pop();
        fs::write(dir.path().join("timerfd.img"), &image).unwrap();
        let error = fix_timerfds(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("timerfd.img: record at byte 8"), "{error}");
    }

    #[test]
    fn only_ipc_queues_and_semaphores_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["ipcns-shm-9.img", "ipcns-msg-9.img", "ipcns-sem-9.img", "ipcns-var-9.img"];
        for name in names {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(drop_ipc_objects(dir.path()).unwrap(), 2);
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["ipcns-shm-9.img", "ipcns-var-9.img"]);
    }

    proptest! {
        #[test]
        fn any_message_is_mended_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = fix_file_entry(&bytes);
            let _ = fix_timerfd_entry(&bytes);
        }
    }
}
