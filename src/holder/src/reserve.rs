//! A little room on the disk that is given up when it has become full: to go back to an ordinary pod
//! needs a record to be written, whoever has filled the disk meanwhile. (The journal keeps room of
//! its own.)

use anyhow::{Context, Result};
use transship_host::files;
use transship_host::paths::MigrationDir;

/// Name of the file in the migration's directory.
const FILE: &str = "reserve";
/// Enough for a few small files and the directories' growth.
const SIZE: usize = 256 << 10;

/// Takes the room. Fails where there is none: then nothing should be begun.
pub fn keep(dir: &MigrationDir) -> Result<()> {
    let path = dir.path().join(FILE);
    files::write_atomic(&path, &[0; SIZE]).context("no room is left on the disk")
}

/// Gives the room up. Best effort: nothing else could be done.
pub fn give_up(dir: &MigrationDir) {
    match std::fs::remove_file(dir.path().join(FILE)) {
        Ok(()) => tracing::info!("gave up the room that was kept on the disk"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("the room kept on the disk cannot be given up: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_once_and_given_up_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = MigrationDir::at(root.path());
        keep(&dir).unwrap();
        keep(&dir).unwrap();
        let kept = std::fs::metadata(root.path().join(FILE)).unwrap();
        assert_eq!(kept.len(), SIZE as u64);
        give_up(&dir);
        give_up(&dir);
        assert!(!root.path().join(FILE).exists());
    }
}
