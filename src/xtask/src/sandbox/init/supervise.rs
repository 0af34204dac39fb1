//! Starts services, starts them again when they end, and reaps everything else.
//!
//! A service has a session and a control group of its own. Only the service's own process is
//! watched: what it has started (containerd's shims and their containers) goes on when it ends.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    process::{WaitOptions, WaitStatus, wait},
};

use super::super::{
    cgroup::{Hierarchy, seed_cpuset},
    cmd::write_file,
    machine::{Condition, SERVICES_FILE, Service, ServiceStatus},
};

/// Where services write.
pub const LOGS: &str = "/var/log/sandbox";
const LARGEST_LOG: u64 = 64 << 20;
/// A service that ran this long begins again at once.
const STEADY: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the conditions of waiting services are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Enters the control groups named in the environment, then becomes the service.
const ENTER: &str = "for group in $SERVICE_GROUPS; do echo 0 > $group/cgroup.procs; done; \
                     unset SERVICE_GROUPS; exec setsid \"$@\"";

struct Supervised<'a> {
    service: &'a Service,
    status: ServiceStatus,
    started: Instant,
    pause: Duration,
    not_before: Instant,
}

/// Supervises `services` for ever.
pub fn run(services: &[Service], hierarchies: &[Hierarchy]) -> Result<ExitCode> {
    fs::create_dir_all(LOGS)?;
    let groups = service_groups(services, hierarchies)?;
    let now = Instant::now();
    let mut all: Vec<Supervised> = services
        .iter()
        .map(|service| Supervised {
            service,
            status: ServiceStatus { name: service.name.clone(), ..ServiceStatus::default() },
            started: now,
            pause: FIRST_PAUSE,
            not_before: now,
        })
        .collect();
    let (sender, ended) = mpsc::channel();
    let mut reaper = Some(sender);
    let mut told = None;
    loop {
        for each in &mut all {
            if each.due() {
                each.start(&groups[&each.service.name])?;
            }
        }
        if let Some(sender) = reaper.take() {
            thread::spawn(move || reap(&sender));
        }
        let status: Vec<&ServiceStatus> = all.iter().map(|each| &each.status).collect();
        let text = serde_json::to_string_pretty(&status)?;
        if told.as_ref() != Some(&text) {
            write_file(Path::new(SERVICES_FILE), &text, 0o644)?;
            told = Some(text);
        }
        let idle = all.iter().all(|each| each.status.pid.is_some() || each.status.done);
        let patience = if idle { Duration::from_secs(3600) } else { LOOK };
        match ended.recv_timeout(patience) {
            Ok((pid, status)) => {
                if let Some(each) = all.iter_mut().find(|each| each.status.pid == Some(pid)) {
                    each.ended(status);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the reaper is gone"),
        }
    }
}

impl Supervised<'_> {
    fn due(&self) -> bool {
        self.status.pid.is_none()
            && !self.status.done
            && Instant::now() >= self.not_before
            && self.service.after.iter().all(holds)
    }

    fn start(&mut self, groups: &str) -> Result<()> {
        let log = open_log(&self.service.name)?;
        let child = Command::new("/bin/sh")
            .args(["-c", ENTER, "sh"])
            .args(&self.service.command)
            .env_clear()
            .envs(super::environment())
            .env("SERVICE_GROUPS", groups)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.service.name))?;
        self.status.pid = Some(i32::try_from(child.id())?);
        self.status.starts += 1;
        self.started = Instant::now();
        Ok(())
    }

    fn ended(&mut self, status: WaitStatus) {
        let ran = self.started.elapsed();
        eprintln!(
            "{}: ended after {:.1} s (exit code {:?}, signal {:?})",
            self.service.name,
            ran.as_secs_f64(),
            status.exit_status(),
            status.terminating_signal()
        );
        self.status.pid = None;
        self.status.done = self.service.once && status.exit_status() == Some(0);
        self.pause = next_pause(self.pause, ran);
        self.not_before = Instant::now() + self.pause;
    }
}

/// A service that keeps failing is started ever less often.
fn next_pause(last: Duration, ran: Duration) -> Duration {
    if ran >= STEADY { FIRST_PAUSE } else { (last * 2).min(LONGEST_PAUSE) }
}

fn holds(condition: &Condition) -> bool {
    match condition {
        Condition::Socket(path) => UnixStream::connect(path).is_ok(),
        Condition::Tcp(address) => TcpStream::connect(address).is_ok(),
        Condition::File(path) => path.exists(),
    }
}

fn open_log(name: &str) -> Result<File> {
    let path = Path::new(LOGS).join(format!("{name}.log"));
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LARGEST_LOG) {
        fs::rename(&path, path.with_extension("log.1"))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Makes `/system/SERVICE` in every hierarchy; gives the directories by service, as the shell reads
/// them.
fn service_groups(
    services: &[Service],
    hierarchies: &[Hierarchy],
) -> Result<HashMap<String, String>> {
    let mut groups: HashMap<String, String> = HashMap::new();
    for hierarchy in hierarchies {
        let system = hierarchy.mount.join("system");
        make_group(&system)?;
        if hierarchy.v1.is_none() {
            super::super::cgroup::delegate_controllers(&system)?;
        }
        for service in services {
            let group: PathBuf = system.join(&service.name);
            make_group(&group)?;
            let list = groups.entry(service.name.clone()).or_default();
            *list += &format!(" {}", group.display());
        }
    }
    Ok(groups)
}

fn make_group(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    seed_cpuset(directory)
}

/// Tells about every child that ends: services, and orphans that fell to the first process.
fn reap(sender: &Sender<(i32, WaitStatus)>) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                if sender.send((pid.as_raw_nonzero().get(), status)).is_err() {
                    return;
                }
            }
            // Nobody to wait for, until the next start.
            Ok(None) | Err(Errno::CHILD) => thread::sleep(LOOK),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_service_waits_longer_each_time_and_a_steady_one_hardly() {
        let mut pause = FIRST_PAUSE;
        for _ in 0..20 {
            pause = next_pause(pause, Duration::from_secs(1));
        }
        assert_eq!(pause, LONGEST_PAUSE);
        assert_eq!(next_pause(pause, STEADY), FIRST_PAUSE);
    }

    #[test]
    fn conditions_hold_once_somebody_listens() {
        let work = tempfile::tempdir().unwrap();
        let path = work.path().join("socket");
        assert!(!holds(&Condition::Socket(path.clone())));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(holds(&Condition::Socket(path.clone())));
        assert!(holds(&Condition::File(path.clone())));
        drop(listener);
        assert!(!holds(&Condition::Socket(path)));
    }
}
