//! What goes along beside the pod's own files: a directory of the migration on both sides.

use std::path::PathBuf;

use anyhow::Result;
use transship_host::files;
use transship_host::paths::MigrationDir;

use crate::holder::Holder;

/// The directory of a migration, whether it is there or not.
pub fn of(dir: &MigrationDir) -> PathBuf {
    dir.path().join("beside")
}

/// The directory; it is there when this returns.
pub fn place(holder: &Holder) -> Result<PathBuf> {
    let place = of(&holder.dir);
    files::make_dir(&place)?;
    Ok(place)
}
