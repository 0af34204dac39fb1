//! Kills a process that takes part in holding a restored container, in the very moment of the hold.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Name of CRIU's action script.
const SCRIPT: &str = "transship-hold";
/// In its environment while every task is restored and none runs yet.
const MOMENT: &[u8] = b"CRTOOLS_SCRIPT_ACTION=pre-resume";

/// Awaits the script in that moment and sends SIGKILL to the process `callers` above it. Returns the victim's
/// name.
pub fn kill(callers: u32, patience: Duration) -> Result<String> {
    let end = Instant::now() + patience;
    loop {
        if let Some(script) = holding() {
            let mut victim = script;
            for _ in 0..callers {
                victim = parent(victim).context("the script's callers have ended")?;
            }
            let name = name(victim).context("the victim has ended")?;
            let pid = Pid::from_raw(victim.cast_signed()).context("no process id")?;
            kill_process(pid, Signal::KILL).with_context(|| format!("killing {name}"))?;
            return Ok(name);
        }
        if Instant::now() >= end {
            bail!("no restored container was held within {patience:?}");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The script's process id, if it runs in that moment.
fn holding() -> Option<u32> {
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| name(*pid).as_deref() == Some(SCRIPT))
        .find(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == MOMENT)
        })
}

fn name(pid: u32) -> Option<String> {
    let name = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|pid| *pid > 0)
}
