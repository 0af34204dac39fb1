//! What the containers have printed goes along: the target pod's logs begin with the source's.
//!
//! kubelet reads a container's newest log file, and containerd appends to it. While the target is
//! held nothing of it has run, so what is put into its file now stands before everything that it
//! will print. Logs are not state: where they cannot be carried the migration goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use transship_host::HostRoot;
use transship_host::files;
use transship_host::paths::MigrationDir;
use transship_host::task::ObjectRef;

use crate::beside;
use crate::holder::Holder;
use crate::pod::{Pod, PodContainer, moving};

/// Their directory on their way.
const LOGS: &str = "logs";
/// kubelet's directory of pods' logs.
const PODS: &str = "/var/log/pods";
/// The most that is carried of one container's log: more than kubelet lets a file grow to, by
/// default, before it begins another.
const LIMIT: u64 = 16 << 20;
/// How long what a frozen container has printed may take to arrive in its file.
const SETTLE: Duration = Duration::from_millis(200);
/// How long a file that does not grow counts as settled.
const QUIET: Duration = Duration::from_millis(10);

/// Where the logs lie on their way, by container.
fn place(holder: &Holder) -> Result<PathBuf> {
    let place = beside::place(holder)?.join(LOGS);
    files::make_dir(&place)?;
    Ok(place)
}

/// Copies the logs of a frozen pod to what goes along.
pub fn collect(holder: &Holder, pod: &Pod) -> Result<()> {
    let place = place(holder)?;
    for container in &pod.containers {
        let collected = newest(&holder.host, &holder.task.pod, &container.name)
            .and_then(|file| collect_one(&file, container, &place.join(&container.name)));
        if let Err(error) = collected {
            tracing::warn!(container = container.name, "its log stays behind: {error:#}");
        }
    }
    Ok(())
}

fn collect_one(file: &Path, container: &PodContainer, to: &Path) -> Result<()> {
    settle(file, container)?;
    copy_end(file, &mut File::create(to)?, LIMIT)
}

/// Puts what has arrived in front of everything that the held pod will print. May be done again.
pub fn carry_over(holder: &Holder) {
    for container in moving(&holder.task) {
        if let Err(error) = carry_one(&holder.host, &holder.dir, &holder.task.pod, container) {
            tracing::warn!(container, "its log begins with the move: {error:#}");
        }
    }
}

/// The same for one container, as long as nothing of it runs.
pub fn carry_one(
    host: &HostRoot,
    dir: &MigrationDir,
    pod: &ObjectRef,
    container: &str,
) -> Result<()> {
    let from = beside::of(dir).join(LOGS).join(container);
    if !from.is_file() {
        return Ok(());
    }
    let file = newest(host, pod, container)?;
    // containerd opened it to append, so that it may be written anew under its hands.
    let mut file = OpenOptions::new().write(true).truncate(true).open(file)?;
    copy_end(&from, &mut file, LIMIT)
}

/// The log file of a container's last start: `<pods>/<namespace>_<name>_<uid>/<container>/<n>.log`.
fn newest(host: &HostRoot, pod: &ObjectRef, container: &str) -> Result<PathBuf> {
    let directory =
        host.join(PODS).join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid)).join(container);
    let entries = std::fs::read_dir(&directory)
        .with_context(|| format!("reading {}", directory.display()))?;
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number: u32 = path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()?;
            Some((number, path))
        })
        .max()
        .map(|(_, path)| path)
        .with_context(|| format!("{} holds no log", directory.display()))
}

/// Waits until everything that a frozen container has printed is in its file.
fn settle(file: &Path, container: &PodContainer) -> Result<()> {
    let end = Instant::now() + SETTLE;
    while Instant::now() < end && !is_drained(container.pid) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut size = std::fs::metadata(file)?.len();
    while Instant::now() < end {
        std::thread::sleep(QUIET);
        let now = std::fs::metadata(file)?.len();
        if now == size {
            break;
        }
        size = now;
    }
    Ok(())
}

/// Whether the shim has taken all from the first process's standard streams.
fn is_drained(pid: u32) -> bool {
    [1, 2].into_iter().all(|stream| {
        let path = format!("/proc/{pid}/fd/{stream}");
        // Anything but a pipe is nobody's log.
        let is_pipe = std::fs::read_link(&path).is_ok_and(|to| to.starts_with("pipe:"));
        !is_pipe
            || OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(&path)
                .ok()
                .and_then(|pipe| rustix::io::ioctl_fionread(pipe.as_fd()).ok())
                .is_none_or(|waiting| waiting == 0)
    })
}

/// Copies the last `limit` bytes of a file, from the beginning of a line.
fn copy_end(from: &Path, to: &mut File, limit: u64) -> Result<()> {
    let mut from = File::open(from)?;
    let length = from.metadata()?.len();
    if length > limit {
        from.seek(SeekFrom::Start(length - limit - 1))?;
        let mut byte = [0];
        while from.read(&mut byte)? == 1 && byte != *b"\n" {}
    }
    std::io::copy(&mut from.take(length.min(limit)), to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::areas::tests::task;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    fn holder(root: &Path) -> Holder {
        let (host, task) = (HostRoot::at(root), task());
        let dir = host.migration(&task.migration.uid, Role::Target).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        Holder::new(host, Layout::default(), dir, task)
    }

    #[test]
    fn a_held_pods_log_begins_with_what_was_printed_before() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let logs = root.path().join("var/log/pods/ns_p_p-uid/web");
        std::fs::create_dir_all(&logs).unwrap();
        for older in ["2.log", "9.log.20260101-000000"] {
            std::fs::write(logs.join(older), "older\n").unwrap();
        }
        let log = logs.join("10.log");
        let mut containerd = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        std::fs::write(place(&holder).unwrap().join("web"), "before\n").unwrap();
        carry_over(&holder);
        carry_over(&holder);
        std::io::Write::write_all(&mut containerd, b"after\n").unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "before\nafter\n");
        assert_eq!(std::fs::read_to_string(logs.join("2.log")).unwrap(), "older\n");
    }

    #[test]
    fn a_log_that_is_too_long_is_carried_from_the_beginning_of_a_line() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        std::fs::write(&from, "one\ntwo\nthree\n").unwrap();
        for (limit, expected) in
            [(100, "one\ntwo\nthree\n"), (10, "two\nthree\n"), (9, "three\n"), (6, "three\n")]
        {
            copy_end(&from, &mut File::create(&to).unwrap(), limit).unwrap();
            assert_eq!(std::fs::read_to_string(&to).unwrap(), expected, "{limit}");
        }
    }
}
