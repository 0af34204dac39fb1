//! Kernel settings of the host that the nodes need, and their return to what they were.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cmd::write_file;

/// Not with the sandbox's state: settings outlive it, and a boot resets them.
const MEMORY: &str = "/run/transship-sandbox-sysctls.json";

/// Settings as they were before there was a sandbox.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    /// The host's boot in which they were.
    boot_id: String,
    values: BTreeMap<String, String>,
}

/// Raised to at least this. CRIU keeps pages in pipes, and without CAP_SYS_RESOURCE it may not
/// exceed the limits; several kubelets and container runtimes share the inotify instances.
const RAISED: &[(&str, u64)] = &[
    ("fs.pipe-max-size", 64 << 20),
    ("fs.inotify.max_user_instances", 4096),
    ("fs.inotify.max_user_watches", 524_288),
];
/// 0 means no limit.
const UNLIMITED: &[&str] = &["fs.pipe-user-pages-soft", "fs.pipe-user-pages-hard"];

fn file(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

fn read(name: &str) -> Option<String> {
    fs::read_to_string(file(name)).ok().map(|text| text.trim().to_owned())
}

fn write(name: &str, value: &str) -> Result<()> {
    fs::write(file(name), value).with_context(|| format!("setting {name} to {value}"))
}

fn remembered() -> Result<Option<Memory>> {
    let memory = fs::read(MEMORY).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let boot_id = boot_id()?;
    Ok(memory.filter(|memory: &Memory| memory.boot_id == boot_id))
}

fn boot_id() -> Result<String> {
    read("kernel.random.boot_id").context("reading the boot ID")
}

/// Remembers the present values, unless some are remembered.
fn remember() -> Result<()> {
    if remembered()?.is_some() {
        return Ok(());
    }
    let names = RAISED.iter().map(|(name, _)| name);
    let values =
        names.chain(UNLIMITED).filter_map(|&name| Some((name.to_owned(), read(name)?))).collect();
    let memory = Memory { boot_id: boot_id()?, values };
    write_file(MEMORY.as_ref(), serde_json::to_vec_pretty(&memory)?, 0o644)
}

/// Sets what the nodes need, after remembering what was.
pub fn apply() -> Result<()> {
    remember()?;
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
pub fn restore() -> Result<()> {
    if let Some(memory) = remembered()? {
        for (name, value) in &memory.values {
            if read(name).is_some_and(|now| now != *value) {
                write(name, value)?;
            }
        }
    }
    match fs::remove_file(MEMORY) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
