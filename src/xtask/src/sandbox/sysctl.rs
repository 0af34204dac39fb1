//! Kernel settings of the host that the nodes change or need, and their return to what they were.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use super::state::State;

/// Raised to at least this. CRIU keeps pages in pipes, and without CAP_SYS_RESOURCE it may not
/// exceed the limits; several kubelets and container runtimes share the inotify instances.
const RAISED: &[(&str, u64)] = &[
    ("fs.pipe-max-size", 64 << 20),
    ("fs.inotify.max_user_instances", 4096),
    ("fs.inotify.max_user_watches", 524_288),
];
/// 0 means no limit.
const UNLIMITED: &[&str] = &["fs.pipe-user-pages-soft", "fs.pipe-user-pages-hard"];
/// Set by kubelet, and remembered so that `down` can put them back.
const CHANGED_BY_KUBELET: &[&str] = &[
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
];

fn file(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

fn read(name: &str) -> Option<String> {
    fs::read_to_string(file(name)).ok().map(|text| text.trim().to_owned())
}

fn write(name: &str, value: &str) -> Result<()> {
    fs::write(file(name), value).with_context(|| format!("setting {name} to {value}"))
}

/// Remembers the present values, unless they are remembered already.
pub fn remember(state: &mut State) {
    let names = RAISED.iter().map(|(name, _)| name);
    for &name in names.chain(UNLIMITED).chain(CHANGED_BY_KUBELET) {
        if let (false, Some(value)) = (state.sysctls.contains_key(name), read(name)) {
            state.sysctls.insert(name.to_owned(), value);
        }
    }
}

/// Sets what the nodes need.
pub fn apply() -> Result<()> {
    for (name, least) in RAISED {
        if read(name).and_then(|value| value.parse::<u64>().ok()).is_some_and(|now| now < *least) {
            write(name, &least.to_string())?;
        }
    }
    for name in UNLIMITED {
        if read(name).is_some_and(|value| value != "0") {
            write(name, "0")?;
        }
    }
    Ok(())
}

/// Puts everything back.
pub fn restore(state: &State) -> Result<()> {
    for (name, value) in &state.sysctls {
        if read(name).is_some_and(|now| now != *value) {
            write(name, value)?;
        }
    }
    Ok(())
}
