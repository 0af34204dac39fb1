//! CPU limits during a restore. CRIU rebuilds the tasks inside the container's cgroup, where a small quota
//! would stretch the outage many times over; so the quota of container and pod is lifted while CRIU works and
//! set again before the tasks are let go.
//!
//! The memory limit stays: what is restored is what was within it before.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use transship_host::cgroup::{CgroupVersion, cgroup_of};
use transship_host::error::{Error, Result};
use transship_host::files;

/// A setting of a cgroup and what it was.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    path: PathBuf,
    value: String,
}

/// Lifts the CPU quota of the cgroup of `pid` and of its parent; what was set is kept in `memory`.
pub(crate) fn lift(pid: u32, memory: &Path) -> Result<()> {
    let (dir, version) = cgroup_of(pid, "cpu")?;
    let settings = [Some(dir.as_path()), dir.parent()];
    let limited: Vec<(Saved, String)> =
        settings.into_iter().flatten().filter_map(|dir| quota(dir, version)).collect();
    if limited.is_empty() {
        return Ok(());
    }
    let saved: Vec<&Saved> = limited.iter().map(|(saved, _)| saved).collect();
    files::write_json(memory, &saved)?;
    for (saved, unlimited) in &limited {
        fs::write(&saved.path, unlimited).map_err(Error::io("write", &saved.path))?;
    }
    Ok(())
}

/// Sets again what [`lift`] has lifted.
pub(crate) fn reset(memory: &Path) -> Result<()> {
    let saved: Option<Vec<Saved>> = files::read_json_opt(memory)?;
    // The pod's first: a container may not have more than its pod.
    for Saved { path, value } in saved.unwrap_or_default().iter().rev() {
        match fs::write(path, value) {
            // After a failed restore the container's cgroup may be gone.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => result.map_err(Error::io("write", path))?,
        }
    }
    files::remove_durably(memory).map(drop)
}

/// The quota of a cgroup if it has one, and the text that lifts it.
fn quota(dir: &Path, version: CgroupVersion) -> Option<(Saved, String)> {
    let path = dir.join(match version {
        CgroupVersion::V1 => "cpu.cfs_quota_us",
        CgroupVersion::V2 => "cpu.max",
    });
    let value = fs::read_to_string(&path).ok()?.trim().to_owned();
    let unlimited = match version {
        CgroupVersion::V1 if value.starts_with('-') => return None,
        CgroupVersion::V1 => "-1".to_owned(),
        CgroupVersion::V2 if value.starts_with("max") => return None,
        CgroupVersion::V2 => format!("max {}", value.split(' ').nth(1)?),
    };
    Some((Saved { path, value }, unlimited))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_quota_that_is_set_is_lifted() {
        let dir = tempfile::tempdir().unwrap();
        let of = |file: &str, text: &str, version| {
            fs::write(dir.path().join(file), text).unwrap();
            quota(dir.path(), version).map(|(saved, unlimited)| (saved.value, unlimited))
        };
        use CgroupVersion::{V1, V2};
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(of("cpu.cfs_quota_us", "50000\n", V1), pair("50000", "-1"));
        assert_eq!(of("cpu.cfs_quota_us", "-1\n", V1), None);
        assert_eq!(of("cpu.max", "50000 100000\n", V2), pair("50000 100000", "max 100000"));
        assert_eq!(of("cpu.max", "max 100000\n", V2), None);
        assert_eq!(quota(&dir.path().join("missing"), V2), None);
    }

    #[test]
    fn what_was_lifted_is_set_again_once() {
        let dir = tempfile::tempdir().unwrap();
        let setting = dir.path().join("cpu.max");
        let memory = dir.path().join("memory");
        reset(&memory).unwrap();
        let saved = [Saved { path: setting.clone(), value: "50000 100000".into() }];
        files::write_json(&memory, &saved).unwrap();
        fs::write(&setting, "max 100000").unwrap();
        reset(&memory).unwrap();
        assert_eq!(fs::read_to_string(&setting).unwrap(), "50000 100000");
        assert!(!memory.exists());
    }
}
