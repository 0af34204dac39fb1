//! What a sandbox that was taken down has left on the host: nothing, or an error that lists it.
//!
//! Looks by other means than those that clean up: names and mounts, not what was recorded.

use std::{fs, path::Path};

use anyhow::{Result, bail};

use super::{cgroup::Group, layout, network};

/// Fails if a process, mount, namespace, link or control group of the sandbox is left.
pub fn none_left() -> Result<()> {
    let mut left: Vec<String> =
        network::links()?.into_iter().map(|link| format!("link {link}")).collect();
    left.extend(
        Group::sandbox()?.present().map(|directory| format!("cgroup {}", directory.display())),
    );
    left.extend(mounts("self").into_iter().map(|mount| format!("mount {mount}")));
    left.extend(strangers());
    if !left.is_empty() {
        bail!("the sandbox is down, but something of it is left:\n{}", left.join("\n"));
    }
    Ok(())
}

/// Mount points in a process's namespace that show the sandbox's state or caches.
fn mounts(process: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    text.lines()
        .filter(|line| line.contains(layout::STATE) || line.contains(layout::CACHE))
        .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
        .collect()
}

/// Processes in a mount namespace that is made of the sandbox's files.
fn strangers() -> Vec<String> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let ours = namespace("self");
    let Ok(entries) = fs::read_dir(Path::new("/proc")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| namespace(pid) != ours && !mounts(pid).is_empty())
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({}) and its namespaces", name.trim_end())
        })
        .collect()
}
