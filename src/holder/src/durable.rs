//! Makes everything that was written for a migration durable.

use anyhow::{Context, Result};
use transship_host::paths::MigrationDir;

/// All data and names of the file system that holds the migration's directory are on the disk when
/// this returns. One call for thousands of files; what others write waits with it.
pub fn durable(dir: &MigrationDir) -> Result<()> {
    let file = std::fs::File::open(dir.path())
        .with_context(|| format!("cannot open {}", dir.path().display()))?;
    rustix::fs::syncfs(&file).context("the state cannot be made durable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_durable_and_a_missing_one_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        durable(&MigrationDir::at(root.path())).unwrap();
        assert!(durable(&MigrationDir::at(root.path().join("missing"))).is_err());
    }
}
