//! Files that are either whole and durable, or absent: written beside, fsynced, renamed, and the directory
//! fsynced. Readers never see half a file; after a power loss a file that was reported written is there.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// No file read by [`read_json`] is ever as large; a larger one is not ours.
const MAX_JSON: u64 = 4 << 20;

/// Makes a directory and its parents, readable by root only. Existing ones stay as they are.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("create directory", path))
}

/// Makes the entries of a directory durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("fsync directory", path))
}

/// Replaces `path` by `content` (mode 0600), durably; the directory is made if it is missing.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    write_atomic_mode(path, content, 0o600)
}

/// As [`write_atomic`], with the file's mode.
pub fn write_atomic_mode(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    if !dir.is_dir() {
        make_dir(dir)?;
        // The new directory's own entry has to survive as well.
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
    }
    // The process id keeps two writers from sharing a temporary file; the leading dot keeps directory
    // watchers that look at suffixes (CNI configuration) from taking it for the real one.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)
            .map_err(Error::io("create", &temporary))?;
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))
            .map_err(Error::errno("set the mode of", &temporary))?;
        file.write_all(content).map_err(Error::io("write", &temporary))?;
        file.sync_all().map_err(Error::io("fsync", &temporary))?;
        fs::rename(&temporary, path).map_err(Error::io("replace", path))
    })();
    if written.is_err() {
        // Best effort: the error that matters is the one above.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_dir(dir)
}

/// Writes `value` as JSON with [`write_atomic`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec(value)
        .map_err(|source| Error::Damaged { path: path.to_path_buf(), source })?;
    text.push(b'\n');
    write_atomic(path, &text)
}

/// Reads a file, at most `limit` bytes of it; a longer one is an error.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(Error::io("read", path))?;
    if content.len() as u64 > limit {
        return Err(Error::Io {
            action: "read",
            path: path.to_path_buf(),
            source: std::io::Error::new(std::io::ErrorKind::FileTooLarge, "unexpectedly large"),
        });
    }
    Ok(content)
}

/// Reads a JSON file of bounded size.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let content = read_bounded(path, MAX_JSON)?;
    serde_json::from_slice(&content)
        .map_err(|source| Error::Damaged { path: path.to_path_buf(), source })
}

/// As [`read_json`], but a missing file is `None`.
pub fn read_json_opt<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read_json(path) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renames durably within one file system; the destination's directory is made if it is missing.
/// Returns whether `from` existed.
pub fn rename_durably(from: &Path, to: &Path) -> Result<bool> {
    let to_dir = to.parent().unwrap_or(Path::new("/"));
    make_dir(to_dir)?;
    match fs::rename(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("rename", from)(error)),
    }
    sync_dir(to_dir)?;
    if let Some(from_dir) = from.parent()
        && from_dir != to_dir
    {
        sync_dir(from_dir)?;
    }
    Ok(true)
}

/// Removes a file durably; returns whether it was there.
pub fn remove_durably(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("remove", path)(error)),
    }
    sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    Ok(true)
}

/// Removes a directory and all in it; a missing one is fine.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The names in a directory, sorted; a missing directory is empty. Names that are not UTF-8 and temporary
/// files (leading dot) are left out.
pub fn list(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", path))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The id of this boot; processes of another boot are gone.
pub fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let id = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_atomic_write_makes_directories_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c.json");
        write_json(&path, &vec![1, 2]).unwrap();
        write_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), [3]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, "[").unwrap();
        let error = read_json::<Vec<i32>>(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }));
        assert!(error.chain().contains("x.json is damaged: EOF"), "{}", error.chain());
    }

    #[test]
    fn a_file_beyond_the_bound_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(read_bounded(&path, 4).is_err());
    }

    #[test]
    fn removing_and_renaming_what_is_missing_is_told_and_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let a = dir.path().join("a");
        let b = dir.path().join("sub/b");
        assert!(!remove_durably(&a).unwrap());
        assert!(!rename_durably(&a, &b).unwrap());
        fs::write(&a, "").unwrap();
        assert!(rename_durably(&a, &b).unwrap());
        assert!(remove_durably(&b).unwrap());
        assert_eq!(list(&dir.path().join("missing")).unwrap(), Vec::<String>::new());
    }
}
