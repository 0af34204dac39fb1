//! Names for files that have lost the one by which a process opened them, and have others.
//!
//! glibc makes a named semaphore under a name of its own, links it to the wanted one and removes the
//! first: whoever has made one has it mapped as deleted. CRIU looks such a file up by the removed name
//! (with the kernel's mark behind it) and would have to leave a link in the application's directory.
//! So the file of a frozen source gets both names for as long as the dump takes. They travel with the
//! files, and go when the pod is restored.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use transship_host::files;

use crate::beside;
use crate::holder::Holder;
use crate::pod::{Pod, PodContainer};

/// Name of the list beside the pod's files.
const FILE: &str = "names.json";
/// How the kernel marks them.
const DELETED: &str = " (deleted)";

/// A name that was given back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Name {
    /// Container that sees it.
    container: String,
    /// Path as it is seen there.
    path: String,
}

/// Gives names back in a frozen pod.
pub fn give(holder: &Holder, pod: &Pod) -> Result<()> {
    let wanted = pod.containers.iter().flat_map(|container| {
        let pids = container.freezer.tasks().unwrap_or_default();
        pids.into_iter().flat_map(nameless).map(move |file| (container, file))
    });
    let wanted: Vec<_> = wanted.collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut given = BTreeSet::new();
    for (container, (file, path)) in wanted {
        let name = Name { container: container.name.clone(), path };
        if given.contains(&name) {
            continue;
        }
        let path = &name.path;
        match link(container, &file, path) {
            Ok(true) => {}
            Ok(false) => continue,
            // CRIU will say what it thinks of the file.
            Err(error) => {
                tracing::warn!(container = container.name, path, "stays unnamed: {error}");
                continue;
            }
        }
        tracing::info!(container = container.name, path, "has its name back");
        given.insert(name.clone());
        // Before anything else: an abort must find all of them.
        files::write_json(&beside::place(holder)?.join(FILE), &given)?;
        link(container, &file, &as_shown(path))?;
    }
    Ok(())
}

/// The name by which CRIU looks a file up that it is shown as deleted.
fn as_shown(path: &str) -> String {
    format!("{path}{DELETED}")
}

/// Mends a container's images: what was looked up under the name as it is shown is opened under the
/// one that was given back.
pub fn mend(holder: &Holder, container: &str, images: &Path) -> Result<()> {
    let given = given(holder)?;
    let names: Vec<(String, String)> = given
        .into_iter()
        .filter(|name| name.container == container)
        .map(|name| (as_shown(&name.path), name.path))
        .collect();
    if !names.is_empty() {
        transship_criu::repair::rename_files(images, &names)?;
    }
    Ok(())
}

fn given(holder: &Holder) -> Result<BTreeSet<Name>> {
    Ok(files::read_json_opt(&beside::place(holder)?.join(FILE))?.unwrap_or_default())
}

/// Takes them away again: from the source that goes on, or from the restored target.
pub fn take_back(holder: &Holder, pod: &Pod) {
    let given = match given(holder) {
        Ok(given) => given,
        Err(error) => return tracing::warn!("names stay: {error:#}"),
    };
    for name in &given {
        let container = pod.containers.iter().find(|container| container.name == name.container);
        let Some(container) = container else { continue };
        for path in [&name.path, &as_shown(&name.path)] {
            if let Err(error) = unlink(container, path) {
                tracing::warn!(?name, "stays: {error}");
            }
        }
    }
}

/// Files of a process that have no name where they were opened, and another elsewhere: a way to each
/// and its path.
fn nameless(pid: u32) -> Vec<(PathBuf, String)> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let maps = std::fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mapped = deleted_mappings(&maps)
        .map(|(range, path)| (process.join("map_files").join(range), path.to_owned()));
    let opened = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let opened = opened.filter_map(|entry| {
        let link = std::fs::read_link(entry.path()).ok()?;
        Some((entry.path(), link.to_str()?.strip_suffix(DELETED)?.to_owned()))
    });
    let has_another = |file: &Path| {
        std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.nlink() > 0)
    };
    mapped.chain(opened).filter(|(file, _)| has_another(file)).collect()
}

/// Ranges and paths of mappings whose file has lost its name. Paths that the kernel had to write
/// in another way are left out.
fn deleted_mappings(maps: &str) -> impl Iterator<Item = (&str, &str)> {
    maps.lines().filter_map(|line| {
        let mut fields = line.splitn(6, ' ').map(str::trim);
        let range = fields.next()?;
        let inode = fields.nth(3)?;
        let path = fields.next()?.strip_suffix(DELETED)?;
        (inode != "0" && path.starts_with('/') && !path.contains('\\')).then_some((range, path))
    })
}

/// The directory of a path, as the container sees it, and the last part. Whatever links a container
/// has made on the way, they lead nowhere but into itself.
fn parent<'a>(
    container: &PodContainer,
    path: &'a str,
) -> Result<(std::os::fd::OwnedFd, &'a str), Errno> {
    let root = File::open(format!("/proc/{}/root", container.pid))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let (directory, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    let directory = if directory.is_empty() { "/" } else { directory };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let directory = rustix::fs::openat2(&root, directory, flags, Mode::empty(), resolve)?;
    Ok((directory, name))
}

/// Whether the name was free and is the file's now.
fn link(container: &PodContainer, file: &Path, path: &str) -> Result<bool, Errno> {
    let (directory, name) = match parent(container, path) {
        // Its directory has gone with it.
        Err(Errno::NOENT) => return Ok(false),
        other => other?,
    };
    match rustix::fs::linkat(CWD, file, &directory, name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        // Given to an earlier process of the pod, or used for something else.
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn unlink(container: &PodContainer, path: &str) -> Result<(), Errno> {
    let (directory, name) = parent(container, path)?;
    match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_without_a_name_are_found() {
        let maps = "\
7f00-7f01 rw-s 00000000 00:41 2                          /dev/shm/sem.3hWYzW (deleted)
7f01-7f02 r-xp 00000000 08:01 42                         /usr/lib/libx.so
7f02-7f03 rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)
7f03-7f04 rw-p 00000000 08:01 43                         /tmp/a\\012b (deleted)
7f04-7f05 rw-p 00000000 00:00 0
";
        let found: Vec<_> = deleted_mappings(maps).collect();
        assert_eq!(found, [("7f00-7f01", "/dev/shm/sem.3hWYzW")]);
    }

    #[test]
    fn a_name_comes_back_and_goes_again() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        std::fs::write(&first, "x").unwrap();
        std::fs::hard_link(&first, &second).unwrap();
        let open = File::open(&first).unwrap();
        std::fs::remove_file(&first).unwrap();
        let unlinked = File::create(directory.path().join("third")).unwrap();
        std::fs::remove_file(directory.path().join("third")).unwrap();

        let me = crate::pod::tests::pod_of_self().containers[0].clone();
        let ours: Vec<_> = nameless(std::process::id())
            .into_iter()
            .filter(|(_, path)| Path::new(path).starts_with(directory.path()))
            .collect();
        assert_eq!(ours.len(), 1, "{ours:?}");
        let (file, path) = &ours[0];
        assert_eq!(Path::new(path), first);
        assert_eq!(link(&me, file, path), Ok(true));
        assert_eq!(link(&me, file, path), Ok(false), "it is there");
        assert_eq!(std::fs::metadata(&first).unwrap().nlink(), 2);
        unlink(&me, path).unwrap();
        unlink(&me, path).unwrap();
        assert!(!first.exists() && second.exists());
        drop((open, unlinked));
    }
}
