//! `transship-hold`: CRIU's action script, which leaves a restored container frozen.
//!
//! CRIU calls it at each stage of a restore. At `pre-resume` everything is rebuilt and every task is stopped
//! by ptrace, at the address where it will go on. CRIU and this program have left the container's freezer
//! cgroup before; now the cgroup is frozen, and once it *is* frozen this program ends; CRIU detaches from tasks
//! that cannot run. The script's exit status is ignored at this stage, so if holding fails every task is killed.
//!
//! Between CRIU's last stop and that freeze, which is as long as a program takes to start, tasks stand still by
//! ptrace alone. Whoever is killed then lets them run: CRIU, since the kernel detaches what a tracer has that is
//! gone; this program, since CRIU goes on without it; runc, since CRIU then goes on without calling it. That cannot
//! be met, but it is known:
//!
//! * Before it can happen, at `post-restore`, the container is marked as unheld. (CRIU ends the restore where that
//!   fails.) A restore that fails with this mark and without the one that it is held may have let something run,
//!   whoever was killed.
//! * CRIU detaches after `pre-resume` and attaches to nothing twice. So tasks that it traces still when they are
//!   frozen have stood still since it stopped them; of others that is not so, and they are killed.
//!
//! What a CRIU that has died leaves is killed by the wrapper, for which this program notes how far CRIU is. As long as
//! this program is at work the wrapper waits, so that it is still noted whether the tasks are held.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use transship_host::error::chain;
use transship_host::freezer::Freezer;
use transship_host::markers::{Held, Unheld};
use transship_host::paths::PodDir;
use transship_host::record::RecordState;

use crate::{limits, progress};

/// The name under which the wrapper's program is the action script.
pub const PROGRAM: &str = "transship-hold";

/// Set by the wrapper for its restore, and passed on by runc and CRIU: the pod's UID.
pub const POD_VARIABLE: &str = "TRANSSHIP_POD";

/// Likewise: the container's name.
pub const CONTAINER_VARIABLE: &str = "TRANSSHIP_CONTAINER";

/// Likewise: the container's bundle.
pub const BUNDLE_VARIABLE: &str = "TRANSSHIP_BUNDLE";

const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// The action script's `main`.
pub fn run() -> ExitCode {
    let bundle = std::env::var_os(BUNDLE_VARIABLE).map(PathBuf::from);
    // Until this program ends.
    let _tasks = bundle.as_deref().and_then(progress::see_to_tasks);
    match std::env::var("CRTOOLS_SCRIPT_ACTION").as_deref() {
        Ok("pre-restore") => {
            // Slower without these, and no reason to fail.
            let _ = lift_limits();
            if let (Some(bundle), Some(criu)) = (&bundle, criu()) {
                let _ = progress::begin(bundle, criu);
            }
            return ExitCode::SUCCESS;
        }
        Ok("post-restore") => {
            // Otherwise it is done in the next stage.
            let _ = step_aside();
            // At this stage a failure ends the restore, and nothing has run.
            return match mark_unheld() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tell("it cannot be noted that tasks may be let go from now on", error.as_ref());
                    ExitCode::FAILURE
                }
            };
        }
        Ok("pre-resume") => {}
        Ok("post-resume") => {
            let finished = bundle.as_deref().map_or(Ok(()), progress::finish);
            return if finished.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        _ => return ExitCode::SUCCESS,
    }
    let Some(init) = init_pid() else {
        // Without it there is no way to find the tasks; CRIU always sets it at this stage. Ending CRIU would
        // let them run, so stop it instead: the wrapper's limit ends it together with the tasks.
        stop_parent();
        return ExitCode::FAILURE;
    };
    // Looked up once, while CRIU holds the tasks: a task that has died is in the root cgroup, where everybody
    // else is.
    let freezer = Freezer::of(init);
    let held = freezer.as_ref().map_err(|error| error.chain().into()).and_then(|f| hold(f, init));
    match held {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            kill(freezer.as_ref().ok(), init);
            tell("the restored tasks were not held", error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Where this program says why it has failed. With CRIU's log, which it could write to, a full disk would take
/// the reason along; the bundle is in the memory of the node, and goes with the container.
fn reason_file(bundle: &Path) -> PathBuf {
    bundle.join("transship-hold.failed")
}

/// Leaves the reason for the wrapper. Where even that cannot be written, CRIU's log is all that there is.
fn tell(what: &str, error: &(dyn Error + 'static)) {
    if let Some(bundle) = std::env::var_os(BUNDLE_VARIABLE) {
        let reason = format!("{what}: {}", chain(error));
        let _ = std::fs::write(reason_file(Path::new(&bundle)), reason);
    }
}

/// Why the restore into this bundle was ended by this program, if it was.
pub(crate) fn told(bundle: &Path) -> Option<String> {
    let reason = std::fs::read_to_string(reason_file(bundle)).ok()?;
    (!reason.is_empty()).then_some(reason)
}

/// Forgets what an earlier restore into this bundle has left.
pub(crate) fn forget(bundle: &Path) -> std::io::Result<()> {
    progress::finish(bundle)?;
    match std::fs::remove_file(reason_file(bundle)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The first task of the container.
fn init_pid() -> Option<u32> {
    std::env::var("CRTOOLS_INIT_PID").ok().and_then(|pid| pid.parse().ok())
}

/// Leaves the container's cgroup before the tasks are stopped by ptrace. From then on until they are frozen
/// CRIU's end would let them run, so nothing else is left for that time.
fn step_aside() -> Result<(), Box<dyn Error>> {
    let init = init_pid().ok_or("CRIU does not name the first task")?;
    leave(&Freezer::of(init)?, criu().ok_or("CRIU has ended")?)
}

/// The pod and the container that this restore is for.
fn subject() -> Result<(PodDir, String), Box<dyn Error>> {
    let pod = crate::host().pod(&std::env::var(POD_VARIABLE)?)?;
    Ok((pod, std::env::var(CONTAINER_VARIABLE)?))
}

fn lift_limits() -> Result<(), Box<dyn Error>> {
    let (pod, container) = subject()?;
    let criu = criu().ok_or("CRIU has ended")?;
    limits::lift(criu, &pod.lifted_limits(&container)?)?;
    Ok(())
}

/// From now on somebody's death may let tasks run.
fn mark_unheld() -> Result<(), Box<dyn Error>> {
    let (pod, container) = subject()?;
    let pid = init_pid().ok_or("CRIU does not name the first task")?;
    pod.mark(&container, &Unheld { pid })?;
    Ok(())
}

/// The tasks are killed, and it is known that they have never run. Where that cannot be noted, they may have.
fn never_ran() {
    if let Ok((pod, container)) = subject() {
        let _ = pod.unmark::<Unheld>(&container);
    }
}

fn hold(freezer: &Freezer, init: u32) -> Result<(), Box<dyn Error>> {
    stop(freezer, init)?;
    keep(freezer, init).inspect_err(|_| never_ran())
}

/// Freezes the tasks. Without an error none of them has run, and none does from here on, whoever dies.
fn stop(freezer: &Freezer, init: u32) -> Result<(), Box<dyn Error>> {
    // Who has lost its parent has another one, which is not to be moved anywhere.
    let criu = criu().ok_or("CRIU has ended")?;
    check_traced(init, criu, true)?;
    leave(freezer, criu)?;
    freezer.freeze(FREEZE_LIMIT)?;
    check_traced(init, criu, true)?;
    freezer.tasks()?.into_iter().try_for_each(|pid| check_traced(pid, criu, false))
}

/// Every thread of a process is traced by CRIU, which does not trace what is dead: some processes were made to be
/// zombies, or the container had them. The first one, `alive`, must not have ended.
fn check_traced(pid: u32, criu: u32, alive: bool) -> Result<(), Box<dyn Error>> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        let is_dead = field(&status, "State:").is_some_and(|state| state.starts_with(['Z', 'X']));
        let tracer = field(&status, "TracerPid:").and_then(|pid| pid.parse().ok());
        if tracer != Some(criu) && (alive || !is_dead) {
            return Err(format!("process {pid} was let go before it was frozen").into());
        }
    }
    Ok(())
}

/// A line of a process' or thread's status.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Tells that the frozen tasks are held, if anybody still wants it.
fn keep(freezer: &Freezer, init: u32) -> Result<(), Box<dyn Error>> {
    let (pod, container) = subject()?;
    limits::reset(&pod.lifted_limits(&container)?)?;
    still_wanted(&pod)?;
    pod.mark(&container, &Held { pid: init, freezer: freezer.clone() })?;
    // Whoever gives a restore up writes the record first and then looks for what is held: one of the two sees the
    // other, even where nobody waits for this program any more.
    still_wanted(&pod)
}

fn still_wanted(pod: &PodDir) -> Result<(), Box<dyn Error>> {
    let record = pod.read_record()?.ok_or("the pod has no record")?;
    if record.state != RecordState::Restore {
        return Err("the restore was given up".into());
    }
    Ok(())
}

/// Moves CRIU and this program out of the container's freezer, to where runc is: that cgroup holds processes
/// already, so on cgroup v2 it takes more. Where CRIU has left, so has what it starts.
fn leave(freezer: &Freezer, criu: u32) -> Result<(), Box<dyn Error>> {
    if !Freezer::around(std::process::id())?.dir.starts_with(&freezer.dir) {
        return Ok(());
    }
    let outside = match parent_of(criu).map(Freezer::around) {
        Some(Ok(outside)) if !outside.dir.starts_with(&freezer.dir) => outside,
        _ => freezer.outside()?,
    };
    outside.admit(criu)?;
    outside.admit(std::process::id())?;
    Ok(())
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&status, "PPid:")?.parse().ok().filter(|pid| *pid > 0)
}

/// Kills every task of the container. They are stopped by ptrace or frozen, so they die before they run;
/// CRIU stays alive until they are dead, since its end would let them go. Then CRIU fails, and runc with it.
fn kill(freezer: Option<&Freezer>, init: u32) {
    let spare = [criu().unwrap_or(0), std::process::id()];
    let killed = freezer.is_some_and(|freezer| {
        freezer.kill_tasks(&spare).and_then(|()| freezer.thaw(FREEZE_LIMIT)).is_ok()
    });
    if !killed && let Some(init) = i32::try_from(init).ok().and_then(Pid::from_raw) {
        // Tasks of a PID namespace die with its first one.
        let _ = rustix::process::kill_process(init, Signal::KILL);
    }
}

/// CRIU's process: the one that called us.
fn criu() -> Option<u32> {
    rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned())
}

fn stop_parent() {
    if let Some(criu) = rustix::process::getppid() {
        let _ = rustix::process::kill_process(criu, Signal::STOP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failure_is_told_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(told(dir.path()), None);
        forget(dir.path()).unwrap();
        std::fs::write(reason_file(dir.path()), "no space left").unwrap();
        assert_eq!(told(dir.path()).as_deref(), Some("no space left"));
        forget(dir.path()).unwrap();
        assert_eq!(told(dir.path()), None);
    }

    #[test]
    fn what_criu_does_not_trace_was_let_go() {
        let own = std::process::id();
        let error = check_traced(own, own, true).unwrap_err().to_string();
        assert!(error.contains("let go"), "{error}");
        assert!(check_traced(0, own, false).is_err(), "what cannot be looked at is not held");
        let status = "Name:\tx\nState:\tt (tracing stop)\nPPid:\t12\nTracerPid:\t123\n";
        assert_eq!(field(status, "TracerPid:"), Some("123"));
        assert_eq!(field(status, "State:"), Some("t (tracing stop)"));
        assert_eq!(field("", "TracerPid:"), None);
    }

    #[test]
    fn a_zombie_counts_unless_it_was_the_first_task() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let own = std::process::id();
        let zombie = transship_host::markers::wait_for(Duration::from_secs(10), || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
            let status = status.unwrap_or_default();
            Ok(field(&status, "State:").is_some_and(|state| state.starts_with('Z')).then_some(()))
        });
        assert!(zombie.unwrap().is_some());
        check_traced(child.id(), own, false).unwrap();
        assert!(check_traced(child.id(), own, true).is_err());
        child.wait().unwrap();
    }
}
