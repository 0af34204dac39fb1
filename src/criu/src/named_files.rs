//! The files that a dump refers to by name: opened, mapped, or a working directory. On a restore CRIU
//! opens each by its name and checks type and size.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use crate::image::{FILES_MAGIC, Header, ImageError, REMAP_FPATH_MAGIC};
use crate::proto::{ProtoError, find_bytes, find_varint};

/// Largest image that is read.
const MAX_IMAGE: u64 = 256 << 20;
/// `reg` in a `file_entry`.
const FILE_ENTRY_REG: u32 = 3;
/// Fields of a `reg_file_entry`.
const REG_ID: u32 = 1;
const REG_NAME: u32 = 6;
const REG_SIZE: u32 = 8;
const REG_MODE: u32 = 10;
/// `orig_id` in a `remap_file_path_entry`.
const REMAP_ORIG_ID: u32 = 1;

/// Why the files of a dump cannot be told.
#[derive(Debug, Error)]
pub enum NamedFilesError {
    /// An image cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// Name of the image.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not an image of its type.
    #[error("{file}: {source}")]
    Image {
        /// Name of the image.
        file: &'static str,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A record cannot be understood.
    #[error("{file}: {source}")]
    Proto {
        /// Name of the image.
        file: &'static str,
        /// Why.
        #[source]
        source: ProtoError,
    },
}

/// A file that must be there under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// Absolute, as the container sees it.
    pub path: PathBuf,
    /// Its length when it was dumped.
    pub size: u64,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
}

/// The files of an image set. Those that CRIU makes itself (deleted ones, kept as ghosts) are left
/// out.
pub fn named_files(dir: &Path) -> Result<Vec<NamedFile>, NamedFilesError> {
    const REMAPS: &str = "remap-fpath.img";
    const FILES: &str = "files.img";
    let mut remapped = BTreeSet::new();
    each(dir, REMAPS, REMAP_FPATH_MAGIC, |record| {
        remapped.extend(find_varint(record, REMAP_ORIG_ID)?);
        Ok(())
    })?;
    let mut found = Vec::new();
    each(dir, FILES, FILES_MAGIC, |record| {
        let Some(file) = find_bytes(record, FILE_ENTRY_REG)? else { return Ok(()) };
        let (Some(id), Some(name)) = (find_varint(file, REG_ID)?, find_bytes(file, REG_NAME)?)
        else {
            return Ok(());
        };
        if remapped.contains(&id) {
            return Ok(());
        }
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new("/").join(std::ffi::OsStr::from_bytes(name));
        let size = find_varint(file, REG_SIZE)?.unwrap_or(0);
        let mode = find_varint(file, REG_MODE)?.and_then(|mode| u32::try_from(mode).ok());
        found.push(NamedFile { path, size, mode: mode.unwrap_or(0o100_600) });
        Ok(())
    })?;
    Ok(found)
}

fn each(
    dir: &Path,
    file: &'static str,
    magic: u32,
    mut work: impl FnMut(&[u8]) -> Result<(), ProtoError>,
) -> Result<(), NamedFilesError> {
    let io_error = |source| NamedFilesError::Io { file, source };
    let path = dir.join(file);
    let image = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(error)),
        Ok(meta) if meta.len() > MAX_IMAGE || !meta.is_file() => {
            return Err(io_error(io::ErrorKind::InvalidData.into()));
        }
        Ok(_) => fs::read(&path).map_err(io_error)?,
    };
    let image_error = |source| NamedFilesError::Image { file, source };
    for record in Header::Common(magic).open(&image).map_err(image_error)? {
        let record = record.map_err(image_error)?;
        work(record).map_err(|source| NamedFilesError::Proto { file, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::put_record;
    use crate::proto::{Field, Value, put_field, put_uint};

    fn reg(id: u64, name: &str, size: u64, mode: u64) -> Vec<u8> {
        let mut file = Vec::new();
        put_uint(&mut file, REG_ID, id);
        put_field(&mut file, &Field { number: REG_NAME, value: Value::Bytes(name.as_bytes()) });
        put_uint(&mut file, REG_SIZE, size);
        put_uint(&mut file, REG_MODE, mode);
        let mut entry = Vec::new();
        put_uint(&mut entry, 1, 1);
        put_uint(&mut entry, 2, id);
        put_field(&mut entry, &Field { number: FILE_ENTRY_REG, value: Value::Bytes(&file) });
        entry
    }

    #[test]
    fn files_are_told_with_size_and_type_and_ghosts_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Header::Common(FILES_MAGIC).bytes();
        for entry in [
            reg(7, "data/log", 4096, 0o100_644),
            reg(8, "/data", 0, 0o040_755),
            reg(9, "/data/gone", 1, 0o100_644),
        ] {
            put_record(&mut files, &entry);
        }
        let mut pipe = Vec::new();
        put_uint(&mut pipe, 1, 2);
        put_record(&mut files, &pipe);
        fs::write(dir.path().join("files.img"), files).unwrap();
        let mut remaps = Header::Common(REMAP_FPATH_MAGIC).bytes();
        let mut remap = Vec::new();
        put_uint(&mut remap, REMAP_ORIG_ID, 9);
        put_record(&mut remaps, &remap);
        fs::write(dir.path().join("remap-fpath.img"), remaps).unwrap();
        let file = |path: &str, size, mode| NamedFile { path: path.into(), size, mode };
        assert_eq!(
            named_files(dir.path()).unwrap(),
            [file("/data/log", 4096, 0o100_644), file("/data", 0, 0o040_755)]
        );
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(named_files(dir.path()).unwrap().is_empty());
        fs::write(dir.path().join("files.img"), "no").unwrap();
        assert!(named_files(dir.path()).is_err());
    }
}
