//! The real runc: where it is, and handing over to it.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use transship_host::HostRoot;

/// Searched after PATH, which a service manager may have left empty.
const USUAL_PLACES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The runtime that the wrapper stands in front of: what containerd was configured with before (remembered
/// at the installation), or `runc` on the PATH.
pub fn find(host: &HostRoot) -> Option<PathBuf> {
    let mut name = PathBuf::from("runc");
    if let Ok(mut configured) = fs::read(host.runc_path_file()) {
        configured.truncate(configured.trim_ascii_end().len());
        if !configured.is_empty() {
            name = OsString::from_vec(configured).into();
        }
    }
    if name.is_absolute() {
        return Some(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = std::env::split_paths(USUAL_PLACES);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(&name))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(path, Access::EXEC_OK).is_ok() && path.is_file()
}

/// Has runc list a container's processes for a program, and tells of one where there is none: a containerd that
/// restarts takes a container without any for one that never came to life, and forgets it. The program reads both
/// streams as one: what runc says of its failure would make the answer none.
pub fn list_never_none(runc: &Path, arguments: &[OsString]) -> std::io::Result<ExitCode> {
    let output = Command::new(runc).args(arguments).output()?;
    let listed = serde_json::from_slice::<Vec<u32>>(&output.stdout).unwrap_or_default();
    if output.status.success() && !listed.is_empty() {
        std::io::stderr().write_all(&output.stderr)?;
        std::io::stdout().write_all(&output.stdout)?;
    } else {
        std::io::stdout().write_all(b"[1]\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes runc. Returns only if that fails.
pub fn become_runc(runc: &Path, arguments: &[OsString]) -> std::io::Error {
    Command::new(runc).args(arguments).exec()
}
