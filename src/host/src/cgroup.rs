//! Finding cgroups: of a process, or of a container that runc makes, on cgroup v1, v2 and hybrid hosts.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which interface a cgroup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum CgroupVersion {
    /// `freezer.state`.
    V1,
    /// `cgroup.freeze`.
    V2,
}

impl TryFrom<u8> for CgroupVersion {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            _ => Err(format!("cgroup version {number} does not exist")),
        }
    }
}

impl From<CgroupVersion> for u8 {
    fn from(version: CgroupVersion) -> Self {
        match version {
            CgroupVersion::V1 => 1,
            CgroupVersion::V2 => 2,
        }
    }
}

/// The cgroup of a process in which `controller` works on it: of its v1 hierarchy if there is one (hybrid
/// hosts have a v2 tree too, which runc does not use), else of the v2 tree.
pub fn cgroup_of(pid: u32, controller: &str) -> Result<(PathBuf, CgroupVersion)> {
    let nowhere = |reason: &str| Error::NoFreezer { pid, reason: reason.to_owned() };
    let cgroup = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let cgroup = fs::read_to_string(&cgroup).map_err(Error::io("read", &cgroup))?;
    let mounts = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(mounts).map_err(Error::io("read", mounts))?;
    let (dir, version) = locate(controller, &cgroup, &mounts).map_err(nowhere)?;
    if !dir.is_dir() {
        return Err(nowhere(&format!("{} is not there", dir.display())));
    }
    Ok((dir, version))
}

/// The cgroup in which `controller` works that runc makes for a bundle's `linux.cgroupsPath` (`/a/b` with the
/// cgroupfs driver, `slice:prefix:name` with systemd's). It may not exist.
pub fn cgroup_at(controller: &str, cgroups_path: &str) -> Result<(PathBuf, CgroupVersion)> {
    let mounts = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(mounts).map_err(Error::io("read", mounts))?;
    let path = expand(cgroups_path).ok_or_else(|| Error::Invalid {
        what: "cgroupsPath",
        value: cgroups_path.chars().take(80).collect(),
        rule: "must be an absolute path or SLICE:PREFIX:NAME",
    })?;
    let v1 = format!("1:{controller}:{path}");
    let v2 = format!("0::{path}");
    locate(controller, &v1, &mounts)
        .or_else(|_| locate(controller, &v2, &mounts))
        .map_err(|reason| Error::NoFreezer { pid: 0, reason: reason.to_owned() })
}

/// Finds the cgroup from the texts of `/proc/PID/cgroup` and `/proc/self/mountinfo`.
fn locate(
    controller: &str,
    cgroup: &str,
    mountinfo: &str,
) -> Result<(PathBuf, CgroupVersion), &'static str> {
    let mut v2 = None;
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if controllers.split(',').any(|c| c == controller) {
            let dir = mounted(mountinfo, "cgroup", Some(controller), path)?;
            return Ok((dir, CgroupVersion::V1));
        }
        if id == "0" && controllers.is_empty() {
            v2 = Some(path);
        }
    }
    let path = v2.ok_or("it is in no such v1 cgroup and in no v2 cgroup")?;
    Ok((mounted(mountinfo, "cgroup2", None, path)?, CgroupVersion::V2))
}

/// The cgroup path that a `linux.cgroupsPath` stands for: `a-b.slice:p:n` is `/a.slice/a-b.slice/p-n.scope`.
fn expand(cgroups_path: &str) -> Option<String> {
    if cgroups_path.starts_with('/') {
        return Some(cgroups_path.to_owned());
    }
    let mut parts = cgroups_path.splitn(3, ':');
    let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
    let stem = slice.strip_suffix(".slice")?;
    let mut path = String::new();
    if stem != "-" {
        for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
            path.push('/');
            path.push_str(&stem[..end]);
            path.push_str(".slice");
        }
    }
    let unit =
        if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    Some(format!("{path}/{unit}"))
}

/// Where `path` of a cgroup hierarchy is visible in the file system.
fn mounted(
    mountinfo: &str,
    fs_type: &str,
    option: Option<&str>,
    path: &str,
) -> Result<PathBuf, &'static str> {
    if path.split('/').any(|part| part == "..") {
        return Err("its cgroup lies outside this cgroup namespace");
    }
    for line in mountinfo.lines() {
        // ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAGS…] - TYPE SOURCE SUPER_OPTIONS
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        if right.next() != Some(fs_type) {
            continue;
        }
        let super_options = right.nth(1).unwrap_or_default();
        if option.is_some_and(|wanted| !super_options.split(',').any(|o| o == wanted)) {
            continue;
        }
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(mount_point)) = (left.next(), left.next()) else { continue };
        let below = if root == "/" {
            path
        } else if let Some(below) = path.strip_prefix(root)
            && (below.is_empty() || below.starts_with('/'))
        {
            below
        } else {
            continue;
        };
        return Ok(Path::new(&unescape(mount_point)).join(below.trim_start_matches('/')));
    }
    Err("its cgroup hierarchy is not mounted here")
}

/// Undoes mountinfo's octal escapes (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
30 25 0:26 / /sys/fs/cgroup/freezer rw,relatime shared:9 - cgroup cgroup rw,freezer
31 25 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "30 25 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
    const BOUND: &str =
        "30 25 0:26 /kube /mnt/my\\040cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_freezer_is_found_on_each_layout() {
        let cases = [
            ("6:freezer:/a/b\n0::/x\n", HYBRID, "/sys/fs/cgroup/freezer/a/b", CgroupVersion::V1),
            ("3:cpu:/q\n0::/a/b\n", UNIFIED, "/sys/fs/cgroup/a/b", CgroupVersion::V2),
            ("0::/\n", UNIFIED, "/sys/fs/cgroup/", CgroupVersion::V2),
            ("0::/kube/p1\n", BOUND, "/mnt/my cgroup/p1", CgroupVersion::V2),
        ];
        for (cgroup, mounts, dir, version) in cases {
            assert_eq!(locate("freezer", cgroup, mounts), Ok((dir.into(), version)), "{cgroup}");
        }
    }

    #[test]
    fn a_cgroup_that_is_not_visible_is_an_error() {
        assert!(locate("freezer", "6:freezer:/a\n", UNIFIED).is_err());
        assert!(locate("freezer", "0::/../a\n", UNIFIED).is_err());
        assert!(
            locate("freezer", "0::/kubepods\n", BOUND).is_err(),
            "a common prefix is not a parent"
        );
        assert!(locate("freezer", "3:cpu:/a\n", UNIFIED).is_err());
    }

    #[test]
    fn another_controller_is_found_in_its_own_hierarchy() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(
            locate("cpu", "3:cpu,cpuacct:/q\n6:freezer:/r\n", mounts),
            Ok(("/sys/fs/cgroup/cpu,cpuacct/q".into(), CgroupVersion::V1))
        );
    }

    #[test]
    fn a_cgroups_path_of_either_driver_is_understood() {
        let cases = [
            ("/kubepods/pod1/c1", Some("/kubepods/pod1/c1")),
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:c1",
                Some(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-c1.scope",
                ),
            ),
            ("-.slice:runc:c1", Some("/runc-c1.scope")),
            ("c1", None),
            ("", None),
        ];
        for (given, wanted) in cases {
            assert_eq!(expand(given).as_deref(), wanted, "{given}");
        }
    }
}
