//! `runc checkpoint`: memory goes through an inherited socket, the small images to a directory, and
//! the container is left as it was (frozen when it was frozen).
//!
//! Not decided here: who freezes, and what happens after a failure. CRIU may thaw the container
//! while it dumps and freezes it again at the end; whoever froze it checks that.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use transship_criu::dump_socket::{CONFIG_ENV, DumpSocket};

use crate::container::{children, is_zombie};
use crate::{Error, Layout, Result};

/// CRIU's settings that runc has no option for, as a CRIU configuration file. `network-lock skip`:
/// the pod's devices are closed before; CRIU's own lock would cost time and leave rules behind
/// when it dies. `ghost-limit`: unlinked files that are still open travel in the images.
pub const CRIU_CONFIG: &str = "network-lock skip\nghost-limit 268435456\n";

/// How long runc may take to notice the end of its CRIU.
const NOTICE: Duration = Duration::from_secs(1);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);

/// One dump of one container.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Where the images (all but the memory's pages) are written.
    pub images: &'a Path,
    /// Where CRIU writes its log.
    pub work: &'a Path,
    /// Where the pages go.
    pub page_socket: DumpSocket,
    /// Directory with the `criu` to use, put first in runc's PATH.
    pub bin: &'a Path,
    /// The runc to call.
    pub runc: &'a Path,
}

impl Checkpoint<'_> {
    /// The arguments for runc.
    pub fn arguments(&self, layout: &Layout) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--root".into(), layout.runc_root.clone().into()];
        arguments.extend(["--log".into(), self.work.join("runc.log").into()]);
        arguments.extend(["--log-format", "json", "checkpoint", "--leave-running"].map(Into::into));
        arguments.extend(["--image-path".into(), self.images.into()]);
        arguments.extend(["--work-path".into(), self.work.into()]);
        arguments.extend(
            [
                "--tcp-established",
                "--tcp-skip-in-flight",
                "--file-locks",
                "--manage-cgroups-mode",
                "ignore",
                self.id,
            ]
            .map(Into::into),
        );
        arguments
    }

    /// Starts the dump, in a process group of its own so that it can be ended with its CRIU.
    ///
    /// runc and its CRIU then hold the only copies of their end of the page socket, so that their
    /// end is the end of the page stream.
    pub fn start(self, layout: &Layout) -> Result<Running> {
        for directory in [self.images, self.work] {
            std::fs::create_dir_all(directory)
                .map_err(|source| Error::Read { path: directory.to_path_buf(), source })?;
        }
        let config = config_of(self.work);
        std::fs::write(&config, CRIU_CONFIG.to_owned() + &self.page_socket.config())
            .map_err(|source| Error::Read { path: config.clone(), source })?;
        let log = self.work.join("runc.stderr");
        let stderr =
            std::fs::File::create(&log).map_err(|source| Error::Read { path: log, source })?;
        let path = match std::env::var_os("PATH") {
            Some(path) => {
                let mut joined = OsString::from(self.bin);
                joined.push(":");
                joined.push(path);
                joined
            }
            None => self.bin.into(),
        };
        let mut command = Command::new(self.runc);
        command
            .args(self.arguments(layout))
            .env("PATH", path)
            .env(CONFIG_ENV, &config)
            .current_dir(self.work)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0);
        self.page_socket.inherit(command.as_std_mut());
        let child = command
            .spawn()
            .map_err(|source| Error::Run { program: self.runc.display().to_string(), source })?;
        // The command holds a copy of the socket.
        drop(command);
        Ok(Running { child, id: self.id.to_owned(), work: self.work.to_path_buf() })
    }
}

/// The dump's CRIU configuration. Its path is in the environment of everything that a dump starts.
fn config_of(work: &Path) -> PathBuf {
    work.join("criu.conf")
}

/// Every process of a dump with one of these work directories, with the directory's place in
/// `works`: known by its environment, so from its first moment on and whoever started it. A CRIU at work has put its
/// title in the place of that; it is known by the directory in which it works, until nothing is left of it.
pub fn processes_of(layout: &Layout, works: &[PathBuf]) -> Vec<(usize, i32)> {
    let marks: Vec<Vec<u8>> = works
        .iter()
        .map(|work| format!("{CONFIG_ENV}={}", config_of(work).display()).into_bytes())
        .collect();
    let Ok(processes) = std::fs::read_dir(&layout.proc) else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            let mut variables = environment.split(|byte| *byte == 0);
            let told =
                variables.find_map(|variable| marks.iter().position(|mark| mark == variable));
            let works_in = || {
                let directory = std::fs::read_link(process.path().join("cwd")).ok()?;
                works.iter().position(|work| *work == directory)
            };
            Some((told.or_else(works_in)?, pid))
        })
        .collect()
}

/// Kills a process. Gone is as good.
pub fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Whether any process of the process group `group` (see [`Running::group`]) still exists.
pub fn group_is_alive(group: i32) -> bool {
    rustix::process::Pid::from_raw(group)
        .is_some_and(|group| rustix::process::test_kill_process_group(group).is_ok())
}

/// Kills every process of a process group. Gone is as good.
pub fn kill_group(group: i32) {
    if let Some(group) = rustix::process::Pid::from_raw(group) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// Waits until the CRIU of a dump has ended and its runc (see [`Running::group`]) does not notice: as long as a child of
/// that CRIU lives, one that tries what the kernel can do and waits for its parent, say, so does the connection to it.
/// Does not return when runc ends.
pub async fn lose_criu(layout: &Layout, runc: i32) {
    let mut since = None;
    loop {
        let children = children(layout, runc).unwrap_or_default();
        if !children.is_empty() && children.iter().all(|child| is_zombie(layout, *child)) {
            let since = *since.get_or_insert_with(Instant::now);
            if since.elapsed() >= NOTICE {
                return;
            }
        } else {
            since = None;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A dump that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    id: String,
    work: PathBuf,
}

impl Running {
    /// Waits for its end.
    pub async fn wait(&mut self) -> Result<()> {
        let status = self
            .child
            .wait()
            .await
            .map_err(|source| Error::Run { program: "runc".into(), source })?;
        if status.success() {
            return Ok(());
        }
        let message = why(&self.work).unwrap_or_else(|| status.to_string());
        Err(Error::Checkpoint { container: self.id.clone(), message })
    }

    /// The process group of runc and the CRIU it started.
    pub fn group(&self) -> Option<i32> {
        self.child.id().and_then(|pid| i32::try_from(pid).ok())
    }
}

/// The reason of a failed dump: CRIU's own errors when there are some, else runc's.
fn why(work: &Path) -> Option<String> {
    let criu =
        std::fs::read_to_string(work.join("dump.log")).ok().and_then(|log| errors_of_criu(&log));
    let runc = || {
        let text = std::fs::read_to_string(work.join("runc.stderr")).ok()?;
        text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
    };
    criu.or_else(runc)
}

/// The first errors of a CRIU log: the first is the cause, those after it its consequences.
pub fn errors_of_criu(log: &str) -> Option<String> {
    let errors: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("Error (").map(|(_, rest)| rest))
        // Harmless: it comes with every dump without CAP_SYS_RESOURCE.
        .filter(|rest| !rest.contains("Can't setup RLIMIT_NOFILE for self"))
        .filter_map(|rest| rest.split_once("): ").map(|(_, message)| message.trim()))
        .take(2)
        .collect();
    let meanings = MEANINGS.iter().filter(|(error, _)| errors.contains(error));
    let words: Vec<&str> = errors.iter().copied().chain(meanings.map(|(_, m)| *m)).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// What errors mean that tell nothing of their cause, and that nothing in /proc shows beforehand.
const MEANINGS: [(&str, &str); 1] = [(
    "Unable to connect a transport socket: Operation not permitted",
    "a process has confined itself with Landlock (as xz does), which cannot be moved; run it without",
)];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use transship_criu::dump_socket::dump_socket;

    #[test]
    fn runc_is_called_with_everything_a_moving_container_needs() {
        let checkpoint = Checkpoint {
            id: "c1",
            images: Path::new("/i"),
            work: Path::new("/w"),
            page_socket: dump_socket().unwrap().1,
            bin: Path::new("/opt/transship/bin"),
            runc: Path::new("runc"),
        };
        let arguments = checkpoint.arguments(&Layout::default());
        let line = arguments.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            line,
            "--root /run/containerd/runc/k8s.io --log /w/runc.log --log-format json checkpoint \
             --leave-running --image-path /i --work-path /w --tcp-established \
             --tcp-skip-in-flight --file-locks --manage-cgroups-mode ignore c1"
        );
    }

    #[test]
    fn everything_that_a_dump_started_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        std::fs::create_dir(&ours).unwrap();
        let sleep = || {
            let mut command = std::process::Command::new("sleep");
            command.arg("60");
            command
        };
        let mut first = sleep().env(CONFIG_ENV, config_of(&ours)).spawn().unwrap();
        let mut titled = sleep().env_clear().current_dir(&ours).spawn().unwrap();
        let mut second = sleep().env(CONFIG_ENV, config_of(&other)).spawn().unwrap();
        let works = [dir.path().join("none"), ours];
        // A process shows its environment a moment after its start has returned.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let found = loop {
            let found = processes_of(&Layout::default(), &works);
            if found.len() > 1 || std::time::Instant::now() > end {
                break found;
            }
            std::thread::yield_now();
        };
        let wanted = [&first, &titled].map(|child| (1, child.id().cast_signed()));
        assert!(found.len() == 2 && wanted.iter().all(|one| found.contains(one)), "{found:?}");
        for (_, pid) in found {
            kill(pid);
        }
        first.wait().unwrap();
        titled.wait().unwrap();
        assert!(processes_of(&Layout::default(), &works).is_empty());
        second.kill().unwrap();
        second.wait().unwrap();
    }

    #[test]
    fn the_cause_is_the_first_error_in_the_log() {
        let log = "(00.0) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: no\n\
                   (00.1) Something\n(00.2) Error (criu/files-ext.c:96): Can't dump file 7 of that type\n\
                   (00.3) Error (criu/cr-dump.c:1737): Dump files failed\n(00.4) Error (x): third\n";
        assert_eq!(
            errors_of_criu(log).unwrap(),
            "Can't dump file 7 of that type; Dump files failed"
        );
        assert_eq!(errors_of_criu("(00.1) fine\n"), None);
        let landlock = "(00.2) Error (compel/src/lib/infect.c:712): Unable to connect a transport \
                        socket: Operation not permitted\n";
        assert!(errors_of_criu(landlock).unwrap().contains("Landlock"));
    }

    #[tokio::test]
    async fn a_criu_that_has_ended_is_missed_where_runc_waits_for_a_child_of_it() {
        for (criu, is_lost) in [("true", true), ("sleep 60", false)] {
            // What becomes of the shell waits for no child.
            let mut runc = std::process::Command::new("sh")
                .args(["-c", &format!("{criu} & exec sleep 60")])
                .process_group(0)
                .spawn()
                .unwrap();
            let layout = Layout::default();
            let lose = lose_criu(&layout, runc.id().cast_signed());
            assert_eq!(tokio::time::timeout(3 * NOTICE, lose).await.is_ok(), is_lost);
            kill_group(runc.id().cast_signed());
            runc.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn a_failing_runc_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ours, theirs) = dump_socket().unwrap();
        let wanted = theirs.config();
        let checkpoint = Checkpoint {
            id: "c1",
            images: &dir.path().join("i"),
            work: &dir.path().join("w"),
            page_socket: theirs,
            bin: dir.path(),
            runc: Path::new("/bin/false"),
        };
        let mut running = checkpoint.start(&Layout::default()).unwrap();
        let config = std::fs::read_to_string(dir.path().join("w/criu.conf")).unwrap();
        assert_eq!(config, CRIU_CONFIG.to_owned() + &wanted);
        let error = running.wait().await.unwrap_err().to_string();
        assert_eq!(ours.read(&mut [0]).unwrap(), 0, "its end is the end of the page stream");
        assert!(error.starts_with("runc checkpoint of c1 failed: exit status: 1"), "{error}");
    }
}
