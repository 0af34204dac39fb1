//! What goes along beside the pod's own files: a directory of the migration on both sides.

use std::path::PathBuf;

use anyhow::Result;
use transship_host::files;

use crate::holder::Holder;

/// The directory; it is there when this returns.
pub fn place(holder: &Holder) -> Result<PathBuf> {
    let place = holder.dir.path().join("beside");
    files::make_dir(&place)?;
    Ok(place)
}
