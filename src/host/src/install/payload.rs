//! Programs and libraries: copied beside and renamed into place, so a program that is being started is
//! either the old or the new one, and one that runs keeps its file.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;

use super::Plan;

pub(super) const CNI_PLUGIN: &str = "transship-cni";

/// Installs what is missing or different, and removes from `bin` and `lib` what the payload does not have.
pub(super) fn install(plan: &Plan, changed: &mut Vec<PathBuf>) -> Result<()> {
    // Everybody has to be able to run what is mounted into containers.
    make_public_dir(&plan.host.opt())?;
    for part in ["lib", "bin"] {
        let from = plan.payload.join(part);
        let to = plan.host.opt().join(part);
        make_public_dir(&to)?;
        let names = files::list(&from)?;
        for name in &names {
            if copy(&from.join(name), &to.join(name))? {
                changed.push(host_path(plan, &to.join(name)));
            }
        }
        for name in files::list(&to)? {
            let link = part == "bin" && name == HOLD;
            if !link && !names.contains(&name) {
                files::remove_durably(&to.join(&name))?;
                changed.push(host_path(plan, &to.join(&name)));
            }
        }
    }
    let hold = plan.host.bin(HOLD);
    if fs::read_link(&hold).ok().as_deref() != Some(Path::new(WRAPPER)) {
        replace_by_link(&hold, Path::new(WRAPPER))?;
        changed.push(host_path(plan, &hold));
    }
    let plugin = plan.cni_bin_dir.join(CNI_PLUGIN);
    let on_host = plan.host.join(&plugin);
    if let Some(dir) = on_host.parent() {
        make_public_dir(dir)?;
    }
    if copy(&plan.payload.join("bin").join(CNI_PLUGIN), &on_host)? {
        changed.push(plugin);
    }
    Ok(())
}

const WRAPPER: &str = "transship-runc";
const HOLD: &str = "transship-hold";

fn host_path(plan: &Plan, path: &Path) -> PathBuf {
    Path::new("/").join(path.strip_prefix(plan.host.root()).unwrap_or(path))
}

fn make_public_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    files::make_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(Error::io("set the mode of", path))
}

/// Copies a file (or link) if it is different; returns whether it was.
fn copy(from: &Path, to: &Path) -> Result<bool> {
    let metadata = fs::symlink_metadata(from).map_err(Error::io("look at", from))?;
    if metadata.is_symlink() {
        let target = fs::read_link(from).map_err(Error::io("read link", from))?;
        if fs::read_link(to).is_ok_and(|present| present == target) {
            return Ok(false);
        }
        replace_by_link(to, &target)?;
        return Ok(true);
    }
    let content = fs::read(from).map_err(Error::io("read", from))?;
    let mode = metadata.permissions().mode() & 0o777;
    let same = fs::symlink_metadata(to).is_ok_and(|present| {
        present.is_file()
            && present.len() == metadata.len()
            && present.permissions().mode() & 0o777 == mode
            && fs::read(to).is_ok_and(|bytes| bytes == content)
    });
    if same {
        return Ok(false);
    }
    files::write_atomic_mode(to, &content, mode)?;
    Ok(true)
}

/// Puts a symbolic link in the place of whatever is at `path`.
pub(super) fn replace_by_link(path: &Path, target: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    symlink(target, &temporary).map_err(Error::io("link", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("replace", path))?;
    files::sync_dir(dir)
}
