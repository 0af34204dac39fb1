//! What is remembered about the present sandbox, and the lock that guards it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    cmd::{note, write_file},
    layout::{self, Node},
};

/// The present sandbox.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// What it is made from. A sandbox of another recipe is made anew, not repaired.
    pub recipe: String,
    /// How many nodes it has.
    pub nodes: u8,
    /// Digest of chart, values and images that were installed last.
    pub chart: Option<String>,
}

impl State {
    /// What the file says; nothing if there is none, or if it is not of this version.
    pub fn load() -> Option<Self> {
        serde_json::from_slice(&fs::read(layout::state("state.json")).ok()?).ok()
    }

    /// Writes the file.
    pub fn save(&self) -> Result<()> {
        write_file(&layout::state("state.json"), serde_json::to_vec_pretty(self)?, 0o644)
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        Node::first(self.nodes)
    }
}

/// The right to change the sandbox. The kernel takes it back when its holder ends, however it does.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock.
    pub fn take() -> Result<Self> {
        fs::create_dir_all(layout::CACHE)
            .with_context(|| format!("creating {} (are you root?)", layout::CACHE))?;
        let path = layout::cache("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                note(format!("waiting for another sandbox command ({})", holder.trim()));
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        file.rewind()?;
        file.set_len(0)?;
        let command: Vec<String> = std::env::args().skip(1).collect();
        writeln!(file, "process {}: {}", std::process::id(), command.join(" "))?;
        Ok(Self { _file: file })
    }
}
