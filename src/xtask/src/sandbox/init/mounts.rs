//! The mounts of a machine, seen from its first process.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::{
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
    },
    process::{chdir, pivot_root},
};

use super::super::{cgroup::Hierarchy, cmd::write_file, machine::Specification};

/// Replaced kernel settings.
pub const SETTINGS: &str = "/run/sandbox/settings";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Builds the machine's root and makes it this process's root.
pub fn enter_root(machine: &Specification, hierarchies: &[Hierarchy]) -> Result<()> {
    let directory = &machine.directory;
    let root = directory.join("root");
    overlay(machine, &root)?;
    bind(&directory.join("var"), &root.join("var"))?;

    // /dev is the host's (devices have no namespace), apart from what belongs to a machine.
    for (kind, target, options) in [
        ("proc", "proc", ""),
        ("sysfs", "sys", ""),
        ("devtmpfs", "dev", ""),
        ("devpts", "dev/pts", "mode=620,ptmxmode=666"),
        ("tmpfs", "dev/shm", "mode=1777"),
        ("mqueue", "dev/mqueue", ""),
        ("tmpfs", "run", "mode=755"),
        ("tmpfs", "tmp", "mode=1777"),
    ] {
        mount_new(kind, &root.join(target), options)?;
    }
    mount_cgroups(&root, hierarchies)?;
    for each in &machine.binds {
        bind(&each.source, &under(&root, &each.target))?;
    }

    chdir(&root).context("entering the root")?;
    pivot_root(".", ".").context("changing the root")?;
    unmount(".", UnmountFlags::DETACH).context("leaving the old root")?;
    chdir("/").context("entering the root")?;
    // Otherwise the mounts that kubelet makes for a volume do not reach the containers.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .context("sharing the mounts")?;

    replace_setting("kernel.random.boot_id", &machine.boot_id)?;
    machine.shielded.iter().try_for_each(|(name, value)| replace_setting(name, value))
}

/// Puts a file of the machine in the place of a kernel setting.
fn replace_setting(name: &str, value: &str) -> Result<()> {
    let setting = Path::new("/proc/sys").join(name.replace('.', "/"));
    if !setting.exists() {
        return Ok(());
    }
    let file = Path::new(SETTINGS).join(name);
    write_file(&file, format!("{value}\n"), 0o644)?;
    bind(&file, &setting)
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn overlay(machine: &Specification, root: &Path) -> Result<()> {
    let mut options = b"lowerdir=".to_vec();
    options.extend(machine.lower.as_os_str().as_bytes());
    for (name, part) in [(",upperdir=", "upper"), (",workdir=", "work")] {
        options.extend(name.as_bytes());
        options.extend(machine.directory.join(part).as_os_str().as_bytes());
    }
    let options = CString::new(options).context("a path with a zero byte")?;
    mount("overlay", root, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mounting the root at {}", root.display()))
}

fn mount_new(kind: &str, target: &Path, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    let options = CString::new(options).context("options with a zero byte")?;
    mount(kind, target, kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mounting {kind} at {}", target.display()))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    if source.is_dir() {
        fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    }
    mount_bind(source, target)
        .with_context(|| format!("mounting {} at {}", source.display(), target.display()))
}

/// The host's hierarchies at their usual places; each begins at the machine's group.
fn mount_cgroups(root: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let only_v2 = hierarchies.iter().any(|hierarchy| hierarchy.mount == Path::new(CGROUPS));
    if !only_v2 {
        mount_new("tmpfs", &under(root, CGROUPS.as_ref()), "mode=755")?;
    }
    for hierarchy in hierarchies {
        let target = under(root, &hierarchy.mount);
        match &hierarchy.v1 {
            Some(options) => mount_new("cgroup", &target, options)?,
            None => mount_new("cgroup2", &target, "")?,
        }
    }
    if !only_v2 {
        // cpu -> cpu,cpuacct and the like.
        for entry in fs::read_dir(CGROUPS)? {
            let entry = entry?;
            if entry.file_type()?.is_symlink() {
                symlink(fs::read_link(entry.path())?, under(root, &entry.path()))?;
            }
        }
    }
    Ok(())
}
