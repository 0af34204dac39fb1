//! `create` of a container that is to be restored.
//!
//! ```text
//! remove answers to an earlier try → write waiting → wait for ready → consume the ticket (durably)
//!   → runc restore, supervised → check that the tasks are frozen → write restored
//! ```
//!
//! If anything fails after runc was started, every task of the container is killed while frozen before the
//! wrapper ends, so kubelet never sees a failed `create` that left something alive; and what runc was kept from
//! removing is removed. The standard streams are not touched: runc, and through it the restored tasks, inherit
//! them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::{Value, json};
use transship_host::freezer::{Freezer, FreezerState};
use transship_host::invocation::Invocation;
use transship_host::markers::{Failed, Held, Ready, Restored, Waiting, wait_for};
use transship_host::record::RecordState;
use transship_host::{HostRoot, files, unfinished};

use crate::process::{die_with_parent, has_zombie, wait_readable};
use crate::wrapper::Subject;
use crate::{hold, limits, noop, progress};

/// How long `create` waits for images. kubelet gives it two minutes in all.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long the restore itself may take; what is left of kubelet's two minutes, less the time to kill.
const RESTORE_LIMIT: Duration = Duration::from_secs(50);

/// How often a supervisor looks whether the restore was given up, or abandoned by CRIU.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

const KILL_LIMIT: Duration = Duration::from_secs(5);

/// In how many looks runc may not have noticed the end of its CRIU; they come later where the whole machine stands
/// still. It does not before the end of what that CRIU has started, such as a process that tries what the kernel can do
/// and waits for its parent.
const NOTICE_LOOKS: u32 = 100;

/// How long what CRIU has abandoned is killed before the wrapper looks at the rest again.
const ABANDONED_LIMIT: Duration = Duration::from_secs(1);

/// The part of CRIU's log that a failure marker carries, in bytes.
const LOG_TAIL: u64 = 4096;

/// Restores the container; the error is the sentence for runc's log.
pub(crate) fn run(
    host: &HostRoot,
    runc: &Path,
    invocation: &Invocation,
    subject: &Subject,
) -> Result<(), String> {
    let id = invocation.id.as_deref().ok_or("create without a container id")?;
    let ready = wait_until_ready(host, invocation, subject, id)?;
    match subject.pod.consume_ticket(&subject.container) {
        Ok(true) => {}
        Ok(false) => return Err(format!("{} was restored before", subject.container)),
        Err(error) => return Err(error.chain()),
    }
    let restored = restore(host, runc, invocation, subject, id, &ready);
    let result = restored.and_then(|restored| {
        subject.pod.mark(&subject.container, &restored).map_err(|error| error.chain())
    });
    let result = result.map_err(|why| subject.pod.told_of_failure(&subject.container, &why));
    if let Err(message) = &result {
        // The pod's cgroup stays. The holder closes the pod anyway, so a failure here changes nothing.
        let _ =
            subject.pod.lifted_limits(&subject.container).and_then(|memory| limits::reset(&memory));
        // Restored or not: nothing may be left alive behind an error.
        let killed = subject.bundle.freezer().and_then(|f| f.kill_all_frozen(KILL_LIMIT));
        // No `delete` follows a `create` that failed.
        let state = invocation.state_dir();
        let removed = killed.and_then(|()| state.as_deref().map_or(Ok(()), unfinished::remove));
        let message = match removed {
            Ok(()) => message.clone(),
            Err(error) => format!("{message}; and something of it is left: {}", error.chain()),
        };
        let failed = Failed { message, log: log_tail(&ready.work) };
        // The holder sees a wrapper that ended without a marker, too.
        let _ = subject.pod.mark(&subject.container, &failed);
    }
    result
}

fn wait_until_ready(
    host: &HostRoot,
    invocation: &Invocation,
    subject: &Subject,
    id: &str,
) -> Result<Ready, String> {
    let Subject { pod, container, .. } = subject;
    let chain = |error: transship_host::Error| error.chain();
    pod.unmark::<Ready>(container).map_err(chain)?;
    pod.unmark::<Failed>(container).map_err(chain)?;
    write_options(host, subject)?;
    pod.mark(container, &subject.waiting(invocation, id)).map_err(chain)?;
    let mut looked = Instant::now();
    let found = wait_for(READY_LIMIT, || {
        if let Some(ready) = pod.marked::<Ready>(container)?
            && ready.container_id == id
        {
            return Ok(Some(Ok(ready)));
        }
        if looked.elapsed() >= WATCH_INTERVAL {
            looked = Instant::now();
            if given_up(subject) {
                return Ok(Some(Err(format!("the restore of {container} was given up"))));
            }
        }
        Ok(None)
    });
    let result = match found {
        Ok(Some(result)) => result,
        Ok(None) => Err(format!(
            "the images of {container} did not arrive within {} s",
            READY_LIMIT.as_secs()
        )),
        Err(error) => Err(error.chain()),
    };
    if result.is_err() {
        let _ = pod.unmark::<Waiting>(container);
    }
    result
}

/// Whether the record no longer asks for a restore. A record that cannot be read is not a reason to go on.
fn given_up(subject: &Subject) -> bool {
    !matches!(subject.pod.read_record(), Ok(Some(record)) if record.state == RecordState::Restore)
}

/// Writes CRIU's options, and names them in the bundle: runc hands the file of this annotation to CRIU.
/// Whatever the pod's author may have put there is overwritten.
fn write_options(host: &HostRoot, subject: &Subject) -> Result<(), String> {
    let options = subject.pod.criu_options(&subject.container).map_err(|error| error.chain())?;
    let text = criu_options(&host.bin(hold::PROGRAM));
    files::write_atomic(&options, text.as_bytes()).map_err(|error| error.chain())?;
    noop::edit_config(&subject.bundle.dir, |config| set_options_file(config, &options))
        .map_err(|error| error.chain())
}

fn set_options_file(config: &mut Value, options: &Path) {
    if !config["annotations"].is_object() {
        config["annotations"] = json!({});
    }
    config["annotations"]["org.criu.config"] = json!(options);
}

/// The network is closed below CRIU's reach, so CRIU needs no lock of its own (nor the programs for it).
fn criu_options(hold: &Path) -> String {
    format!("action-script {}\nnetwork-lock skip\nskip-in-flight\n", hold.display())
}

fn restore(
    host: &HostRoot,
    runc: &Path,
    invocation: &Invocation,
    subject: &Subject,
    id: &str,
    ready: &Ready,
) -> Result<Restored, String> {
    files::make_dir(&ready.work).map_err(|error| error.chain())?;
    let bundle = &subject.bundle.dir;
    hold::forget(bundle).map_err(|error| {
        format!("cannot forget how an earlier restore into {} failed: {error}", bundle.display())
    })?;
    let mut command = Command::new(runc);
    command
        .args(arguments(invocation, subject, id, ready))
        .env("PATH", search_path(host))
        .env(hold::POD_VARIABLE, &subject.pod_uid)
        .env(hold::CONTAINER_VARIABLE, &subject.container)
        .env(hold::BUNDLE_VARIABLE, bundle);
    let adopt = host.lib("adopt-segments.so");
    if adopt.exists() {
        command.env("LD_PRELOAD", adopt);
    }
    // With all that it starts, but for tasks that are restored.
    command.process_group(0);
    die_with_parent(&mut command);
    let child = command.spawn().map_err(|e| format!("cannot run {}: {e}", runc.display()))?;
    let status = supervise(child, subject, &ready.work)?;
    if !status.success() {
        let reason = cause(bundle, &ready.work).unwrap_or_else(|| status.to_string());
        return Err(format!("restoring {} failed: {reason}", subject.container));
    }
    check(invocation, subject, id)
}

fn arguments(invocation: &Invocation, subject: &Subject, id: &str, ready: &Ready) -> Vec<OsString> {
    let mut arguments = invocation.globals.clone();
    let mut add = |words: &[&std::ffi::OsStr]| {
        arguments.extend(words.iter().map(|word| (*word).to_owned()));
    };
    add(&["restore".as_ref(), "--detach".as_ref()]);
    add(&["--bundle".as_ref(), subject.bundle.dir.as_ref()]);
    if let Some(pid_file) = &invocation.pid_file {
        add(&["--pid-file".as_ref(), pid_file.as_ref()]);
    }
    if let Some(socket) = &invocation.console_socket {
        add(&["--console-socket".as_ref(), socket.as_ref()]);
    }
    if invocation.no_pivot {
        add(&["--no-pivot".as_ref()]);
    }
    add(&["--image-path".as_ref(), ready.images.as_ref()]);
    add(&["--work-path".as_ref(), ready.work.as_ref()]);
    add(&["--tcp-established".as_ref(), "--file-locks".as_ref()]);
    add(&["--manage-cgroups-mode".as_ref(), "ignore".as_ref(), id.as_ref()]);
    arguments
}

/// The installed programs come first: CRIU is ours, whatever the node has.
fn search_path(host: &HostRoot) -> OsString {
    let mut path = host.opt().join("bin").into_os_string();
    let inherited = std::env::var_os("PATH").filter(|path| !path.is_empty());
    path.push(":");
    path.push(
        inherited.unwrap_or_else(|| {
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
        }),
    );
    path
}

/// Waits for runc; ends the restore when it is given up or takes too long.
fn supervise(mut child: Child, subject: &Subject, work: &Path) -> Result<ExitStatus, String> {
    let start = Instant::now();
    let container = &subject.container;
    let failed = |error: std::io::Error| format!("cannot wait for runc: {error}");
    let runc = Pid::from_child(&child);
    let pidfd = match pidfd_open(runc, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(errno) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(errno.into()));
        }
    };
    let mut looks_without_criu = 0;
    let (reason, patience) = loop {
        if wait_readable(&pidfd, WATCH_INTERVAL).map_err(failed)? {
            return child.wait().map_err(failed);
        }
        if progress::is_abandoned(&subject.bundle.dir) {
            // runc tries to remove the cgroups of these, and ends as soon as they are dead. What lives on all the
            // same is killed after that.
            let _ = subject.bundle.freezer().and_then(|f| f.kill_all_frozen(ABANDONED_LIMIT));
        }
        if given_up(subject) {
            break (format!("the restore of {container} was given up"), KILL_LIMIT);
        }
        if !has_zombie(child.id(), "criu") {
            looks_without_criu = 0;
        } else {
            looks_without_criu += 1;
        }
        if looks_without_criu >= NOTICE_LOOKS {
            let cause = cause(&subject.bundle.dir, work);
            let cause = cause.unwrap_or_else(|| "CRIU has ended in the middle of it".into());
            break (format!("restoring {container} failed: {cause}"), Duration::ZERO);
        }
        if start.elapsed() >= RESTORE_LIMIT {
            let limit = RESTORE_LIMIT.as_secs();
            break (format!("the restore of {container} did not end within {limit} s"), KILL_LIMIT);
        }
    };
    // The half-made tasks are in the container's cgroup, and CRIU with them until it stands aside. Killing them
    // frozen keeps a task from running when CRIU lets go of it; then CRIU ends by itself, and runc with it.
    let killed = subject.bundle.freezer().and_then(|f| f.kill_all_frozen(KILL_LIMIT));
    if killed.is_err() || !wait_readable(&pidfd, patience).map_err(failed)? {
        if killed.is_ok() {
            let _ = kill_process_group(runc, Signal::KILL);
        } else {
            // The end of the tasks that are left may depend on CRIU.
            let _ = child.kill();
        }
    }
    child.wait().map_err(failed)?;
    Err(reason)
}

/// runc reported success: that counts only if the tasks are there and frozen, by the mark that the action
/// script left and by the kernel's word now.
fn check(invocation: &Invocation, subject: &Subject, id: &str) -> Result<Restored, String> {
    let container = &subject.container;
    let held: Held = subject
        .pod
        .marked(container)
        .map_err(|error| error.chain())?
        .ok_or_else(|| format!("{container} was restored without being held"))?;
    // Where it is missing chance decides whether the tasks were taken for abandoned, so it never counts.
    if progress::is_unfinished(&subject.bundle.dir) {
        return Err(format!("{container} was restored, but CRIU's last word is missing"));
    }
    let freezer: Freezer = held.freezer;
    let state = freezer.state().map_err(|error| error.chain())?;
    if state != FreezerState::Frozen {
        return Err(format!("{container} was restored but is {state:?}"));
    }
    let tasks = freezer.tasks().map_err(|error| error.chain())?;
    if !tasks.contains(&held.pid) {
        return Err(format!("{container} was restored but its first process is not in its cgroup"));
    }
    if let Some(pid_file) = &invocation.pid_file {
        let pid = fs::read_to_string(pid_file).map_err(|e| format!("no pid file: {e}"))?;
        if pid.trim().parse() != Ok(held.pid) {
            return Err(format!("runc reports process {pid} and CRIU {}", held.pid));
        }
    }
    Ok(Restored {
        container_id: id.to_owned(),
        pid: held.pid,
        freezer,
        runc_root: invocation.root.clone().unwrap_or_default(),
        bundle: subject.bundle.dir.clone(),
    })
}

fn restore_log(work: &Path) -> PathBuf {
    work.join("restore.log")
}

/// The end of CRIU's log.
fn log_tail(work: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(restore_log(work))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    read().unwrap_or_default()
}

/// Why a restore has failed, as far as anybody has told.
fn cause(bundle: &Path, work: &Path) -> Option<String> {
    // CRIU knows no more of it than that its script has failed.
    hold::told(bundle).or_else(|| last_error(work))
}

/// The last error in CRIU's log, which is usually the general one; the first is usually the cause.
fn last_error(work: &Path) -> Option<String> {
    let log = fs::read(restore_log(work)).ok()?;
    first_cause(&String::from_utf8_lossy(&log))
}

/// The first error line that is not one of CRIU's harmless complaints.
fn first_cause(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("Error (") && !line.contains("RLIMIT"))?;
    // (00.012345)      7: Error (criu/files-reg.c:2170): File x has bad size
    let message = line.split_once("): ").map_or(line, |(_, message)| message);
    Some(message.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use transship_host::bundle::Bundle;

    fn subject(root: &Path) -> Subject {
        Subject {
            pod: HostRoot::at(root).pod("p-1").unwrap(),
            pod_uid: "p-1".into(),
            container: "web".into(),
            bundle: Bundle { dir: "/b".into(), ..Bundle::default() },
        }
    }

    #[test]
    fn runc_is_called_with_the_shims_own_options_and_ours() {
        let line = "--root /r --log /l --log-format json create --bundle /b --pid-file /p --console-socket /s c1";
        let invocation = Invocation::parse(line.split(' ').map(OsString::from));
        let ready = Ready { container_id: "c1".into(), images: "/i".into(), work: "/w".into() };
        let got = arguments(&invocation, &subject(Path::new("/")), "c1", &ready);
        let got: Vec<_> = got.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(
            got.join(" "),
            "--root /r --log /l --log-format json restore --detach --bundle /b --pid-file /p \
             --console-socket /s --image-path /i --work-path /w --tcp-established --file-locks \
             --manage-cgroups-mode ignore c1"
        );
    }

    #[test]
    fn the_pods_own_criu_options_are_overwritten() {
        let mut config = json!({"annotations": {"org.criu.config": "/evil", "a": "b"}});
        set_options_file(&mut config, Path::new("/ours"));
        assert_eq!(config, json!({"annotations": {"org.criu.config": "/ours", "a": "b"}}));
        let mut config = json!({});
        set_options_file(&mut config, Path::new("/ours"));
        assert_eq!(config["annotations"]["org.criu.config"], "/ours");
    }

    #[test]
    fn the_cause_of_a_failed_restore_is_its_first_real_error() {
        let log = "(00.1) fine\n\
            (00.2)      1: Error (criu/cr-restore.c:1): Can't set RLIMIT\n\
            (00.3)      1: Error (criu/files-reg.c:2170): File x has bad size 3 (expect 4)\n\
            (00.4) Error (criu/cr-restore.c:2): Restoring FAILED.\n";
        assert_eq!(first_cause(log).as_deref(), Some("File x has bad size 3 (expect 4)"));
        assert_eq!(first_cause("(00.1) fine\n"), None);
    }

    #[test]
    fn a_wait_ends_when_the_record_no_longer_asks_for_a_restore() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        let bundle = dir.path().join("b");
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), "{}").unwrap();
        let mut subject = subject(dir.path());
        subject.bundle.dir = bundle.clone();
        let invocation = Invocation::parse(["create", "c1"].map(OsString::from));
        let error = wait_until_ready(&host, &invocation, &subject, "c1").unwrap_err();
        assert!(error.contains("given up"), "{error}");
        assert_eq!(subject.pod.marked::<Waiting>("web").unwrap(), None);
        let config: Value = files::read_json(&bundle.join("config.json")).unwrap();
        assert_eq!(
            config["annotations"]["org.criu.config"],
            json!(subject.pod.criu_options("web").unwrap())
        );
    }
}
