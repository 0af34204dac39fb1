//! How much a directory holds: blocks in use (sparse files count what they occupy), entries.
//! Bounded, because somebody waits for the answer.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Entries looked at before the count is given up.
pub const MAX_ENTRIES: u64 = 500_000;

/// What a directory holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes in use, files with several names counted once.
    pub bytes: u64,
    /// Entries below the directory.
    pub entries: u64,
    /// Whether there were more than [`MAX_ENTRIES`], so that the numbers are too low.
    pub cut: bool,
}

/// Adds up everything below `root`, without leaving its file system. Entries that vanish while
/// they are looked at do not count; a missing directory is empty.
pub fn of(root: &Path) -> Size {
    let mut size = Size::default();
    let Ok(device) = std::fs::metadata(root).map(|metadata| metadata.dev()) else { return size };
    let mut linked = std::collections::HashSet::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if size.entries >= MAX_ENTRIES {
                size.cut = true;
                return size;
            }
            size.entries += 1;
            if metadata.is_dir() {
                if metadata.dev() == device {
                    pending.push(entry.path());
                }
            } else if metadata.nlink() == 1 || linked.insert(metadata.ino()) {
                size.bytes += metadata.blocks() * 512;
            }
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_file_count_once_and_holes_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/a"), vec![1u8; 1 << 20]).unwrap();
        std::fs::hard_link(dir.path().join("sub/a"), dir.path().join("b")).unwrap();
        std::fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        let size = of(dir.path());
        assert_eq!(size.entries, 4);
        assert!((1 << 20..2 << 20).contains(&size.bytes), "{size:?}");
        assert!(!size.cut);
        assert_eq!(of(&dir.path().join("missing")), Size::default());
    }
}
