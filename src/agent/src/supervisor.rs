//! Keeps the supervisor of holders running on the host, outside this pod's cgroup and namespaces,
//! so that neither the end nor an upgrade of the agent touches a migration.
//!
//! Whether one runs is told by the lock it holds; a supervisor of another version is asked to end
//! (its holders run on) and replaced. Which holders run is the supervisor's business.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transship_host::{HostRoot, files};

use crate::hostns::HostNs;
use crate::telemetry::Telemetry;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(3);
/// How long a started supervisor may take to hold its lock.
const START_LIMIT: Duration = Duration::from_secs(5);
/// Log kept from one start to the next at most.
const MAX_LOG: u64 = 4 << 20;
/// Unit name under systemd.
const UNIT: &str = "transship-holders";

/// Nothing, or why no supervisor runs.
pub type State = Option<String>;

/// What is to become of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Not known yet: one that runs is left alone.
    Unknown,
    /// The host side is installed: one has to run.
    Running,
    /// The host side is being removed: none may run.
    Ended,
}

/// Keeps one supervisor running.
pub struct Supervisor {
    host: HostRoot,
    hostns: HostNs,
    telemetry: Arc<Telemetry>,
    wanted: watch::Receiver<Wanted>,
    state: watch::Sender<State>,
}

impl Supervisor {
    /// `wanted` follows the installation.
    pub fn new(
        host: HostRoot,
        hostns: HostNs,
        telemetry: Arc<Telemetry>,
        wanted: watch::Receiver<Wanted>,
    ) -> (Self, watch::Receiver<State>) {
        let (state, current) = watch::channel(Some("it was not started yet".to_owned()));
        (Self { host, hostns, telemetry, wanted, state }, current)
    }

    /// Runs until `stop`. The supervisor stays: it must outlive the agent.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let wanted = *self.wanted.borrow_and_update();
            let state = match self.round(wanted).await {
                Ok(()) if wanted == Wanted::Running => None,
                Ok(()) => Some("it is not wanted (yet)".to_owned()),
                Err(error) => Some(format!("{error:#}")),
            };
            if *self.state.borrow() != state {
                if let Some(problem) = state.as_ref().filter(|_| wanted == Wanted::Running) {
                    tracing::warn!(problem, "the supervisor does not run");
                }
                self.state.send_replace(state);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    async fn round(&self, wanted: Wanted) -> anyhow::Result<()> {
        let running = self.running();
        match wanted {
            Wanted::Unknown => return Ok(()),
            Wanted::Ended => {
                return running.map_or(Ok(()), end).context("cannot end the supervisor");
            }
            Wanted::Running => {}
        }
        if let Some(pid) = running {
            if self.is_current(pid) {
                return Ok(());
            }
            tracing::info!(pid, "replacing a supervisor of another version");
            end(pid).context("cannot end the old supervisor")?;
            self.wait_for(|pid| pid.is_none()).await.context("the old supervisor does not end")?;
        }
        let program = self.host.bin("transship-holder");
        if !program.is_file() {
            bail!("{} is not installed", program.display());
        }
        self.start().await?;
        self.telemetry.supervisor_starts.inc();
        self.wait_for(|pid| pid.is_some())
            .await
            .with_context(|| format!("it ended at once; see {} on the node", self.log_on_host()))?;
        tracing::info!("the supervisor of holders was started on the host");
        Ok(())
    }

    fn lock(&self) -> std::path::PathBuf {
        self.host.run().join("supervisor.lock")
    }

    /// The process that holds the lock.
    fn running(&self) -> Option<i32> {
        let metadata = std::fs::metadata(self.lock()).ok()?;
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        owner(&locks, metadata.dev(), metadata.ino())
    }

    /// Whether a process runs the installed program: an upgrade replaces the file.
    fn is_current(&self, pid: i32) -> bool {
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let installed = identity(&self.host.bin("transship-holder"));
        installed.is_some() && installed == identity(Path::new(&format!("/proc/{pid}/exe")))
    }

    async fn wait_for(&self, reached: impl Fn(Option<i32>) -> bool) -> anyhow::Result<()> {
        let wait = async {
            while !reached(self.running()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START_LIMIT, wait).await.context("waited in vain")
    }

    fn log_on_host(&self) -> String {
        HostRoot::host().state().join("supervisor.log").display().to_string()
    }

    async fn start(&self) -> anyhow::Result<()> {
        files::make_dir(&self.host.run())?;
        let program = HostRoot::host().bin("transship-holder");
        let program = program.to_string_lossy();
        if self.host.join("/run/systemd/system").is_dir() {
            return self.start_with_systemd(&program).await;
        }
        self.start_directly(&program)
    }

    /// As a transient unit. Ending the unit must not end the holders, hence KillMode=process.
    async fn start_with_systemd(&self, program: &str) -> anyhow::Result<()> {
        let unit = format!("--unit={UNIT}");
        let argv = [
            "systemd-run",
            "--quiet",
            "--collect",
            &unit,
            "--description=Supervisor of Transship's holders",
            "--property=KillMode=process",
            "--property=Delegate=yes",
            "--property=OOMScoreAdjust=-900",
            program,
            "supervise",
        ];
        // A unit of this name that failed, or whose holders still run, would be in the way.
        let reset = ["systemctl", "reset-failed", UNIT];
        let _ = self.hostns.run(&reset, START_LIMIT).await;
        let output = self.hostns.run(&argv, START_LIMIT).await?;
        if !output.success {
            bail!("systemd-run refused: {}", output.complaint());
        }
        Ok(())
    }

    /// As a process of its own session, in a cgroup of its own in every hierarchy.
    fn start_directly(&self, program: &str) -> anyhow::Result<()> {
        let log_path = self.host.state().join("supervisor.log");
        files::make_dir(&self.host.state())?;
        if std::fs::metadata(&log_path).is_ok_and(|metadata| metadata.len() > MAX_LOG) {
            std::fs::rename(&log_path, log_path.with_extension("log.old"))?;
        }
        let log = std::fs::File::options().create(true).append(true).open(&log_path)?;
        // The shell moves itself before it becomes the supervisor: no moment at which the
        // supervisor could start something within this pod's cgroup.
        let mut command = self.hostns.command("setsid");
        command
            .args(["--fork", "sh", "-c", &format!("{LEAVE_CGROUPS}{EXEC}"), "sh", program])
            .arg("supervise")
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null());
        let mut child = command.spawn().context("cannot run setsid on the host")?;
        // setsid --fork ends at once; whether the supervisor runs is told by its lock.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }
}

/// Moves the shell to `/transship` of every mounted cgroup hierarchy. A hierarchy that refuses (cpuset without
/// memory nodes) is given what its parent has first.
pub const LEAVE_CGROUPS: &str = r#"
for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -e "$root/cgroup.procs" ] || continue
  mkdir -p "$root/transship" 2>/dev/null || continue
  for file in cpuset.cpus cpuset.mems; do
    [ -e "$root/transship/$file" ] && [ -z "$(cat "$root/transship/$file")" ] &&
      cat "$root/$file" > "$root/transship/$file"
  done
  echo $$ > "$root/transship/cgroup.procs"
done 2>/dev/null
echo -900 2>/dev/null > /proc/$$/oom_score_adj
cd /
"#;

/// Becomes the program given.
const EXEC: &str = "exec \"$@\"\n";

fn end(pid: i32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid).context("impossible process id")?;
    match kill_process(pid, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The process in `/proc/locks` that holds a lock on this file:
/// `1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF`.
fn owner(locks: &str, device: u64, inode: u64) -> Option<i32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        // A waiting lock has an arrow in front.
        let kind = fields.next()?;
        let pid = fields.nth(2)?;
        let file = fields.next()?;
        (kind == "FLOCK" && file == wanted).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_device_and_inode() {
        let locks = "1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 360 00:13:11691 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 400 00:13:11692 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 77 fe:01:5 0 EOF\n";
        let device = rustix::fs::makedev(0, 0x13);
        assert_eq!(owner(locks, device, 11691), Some(359));
        assert_eq!(owner(locks, device, 11692), None);
        assert_eq!(owner(locks, rustix::fs::makedev(0xfe, 1), 5), Some(77));
        assert_eq!(owner("", device, 1), None);
    }

    #[test]
    fn a_real_lock_is_seen_in_the_kernels_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = std::fs::File::create(&path).unwrap();
        file.lock().unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        assert_eq!(owner(&locks, metadata.dev(), metadata.ino()), Some(std::process::id() as i32));
    }
}
