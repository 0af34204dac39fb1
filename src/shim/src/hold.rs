//! `transship-hold`: CRIU's action script, which leaves a restored container frozen.
//!
//! CRIU calls it at each stage of a restore. At `pre-resume` everything is rebuilt and every task is stopped
//! by ptrace, at the address where it will go on. CRIU and this program have left the container's freezer
//! cgroup before; now the cgroup is frozen, and once it *is* frozen this program ends; CRIU detaches from tasks
//! that cannot run. A kill of CRIU in the moment between its last stop and that freeze, which is as long as a
//! program takes to start, cannot be met: the kernel lets the tasks of a tracer that is gone run on. The script's
//! exit status is ignored at this stage, so if holding fails every task is killed.

use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use transship_host::freezer::Freezer;
use transship_host::markers::Held;
use transship_host::paths::PodDir;
use transship_host::record::RecordState;

use crate::limits;

/// The name under which the wrapper's program is the action script.
pub const PROGRAM: &str = "transship-hold";

/// Set by the wrapper for its restore, and passed on by runc and CRIU: the pod's UID.
pub const POD_VARIABLE: &str = "TRANSSHIP_POD";

/// Likewise: the container's name.
pub const CONTAINER_VARIABLE: &str = "TRANSSHIP_CONTAINER";

const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// The action script's `main`.
pub fn run() -> ExitCode {
    match std::env::var("CRTOOLS_SCRIPT_ACTION").as_deref() {
        Ok("pre-restore") => {
            // Slower without it, and no reason to fail.
            let _ = lift_limits();
            return ExitCode::SUCCESS;
        }
        Ok("post-restore") => {
            // Otherwise it is done in the next stage.
            let _ = step_aside();
            return ExitCode::SUCCESS;
        }
        Ok("pre-resume") => {}
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
        Err(_) => {
            kill(freezer.as_ref().ok(), init);
            ExitCode::FAILURE
        }
    }
}

/// The first task of the container.
fn init_pid() -> Option<u32> {
    std::env::var("CRTOOLS_INIT_PID").ok().and_then(|pid| pid.parse().ok())
}

/// Leaves the container's cgroup before the tasks are stopped by ptrace. From then on until they are frozen
/// CRIU's end would let them run, so nothing else is left for that time.
fn step_aside() -> Result<(), Box<dyn std::error::Error>> {
    let init = init_pid().ok_or("CRIU does not name the first task")?;
    leave(&Freezer::of(init)?)
}

/// The pod and the container that this restore is for.
fn subject() -> Result<(PodDir, String), Box<dyn std::error::Error>> {
    let pod = crate::host().pod(&std::env::var(POD_VARIABLE)?)?;
    Ok((pod, std::env::var(CONTAINER_VARIABLE)?))
}

fn lift_limits() -> Result<(), Box<dyn std::error::Error>> {
    let (pod, container) = subject()?;
    let criu = criu().ok_or("CRIU has ended")?;
    limits::lift(criu, &pod.lifted_limits(&container)?)?;
    Ok(())
}

fn hold(freezer: &Freezer, init: u32) -> Result<(), Box<dyn std::error::Error>> {
    leave(freezer)?;
    freezer.freeze(FREEZE_LIMIT)?;

    // From here on nothing runs whoever dies. Now see whether anybody still wants it.
    let (pod, container) = subject()?;
    limits::reset(&pod.lifted_limits(&container)?)?;
    let record = pod.read_record()?.ok_or("the pod has no record")?;
    if record.state != RecordState::Restore {
        return Err("the restore was given up".into());
    }
    pod.mark(&container, &Held { pid: init, freezer: freezer.clone() })?;
    Ok(())
}

/// Moves CRIU and this program out of the container's freezer, to where runc is: that cgroup holds processes
/// already, so on cgroup v2 it takes more. Where CRIU has left, so has what it starts.
fn leave(freezer: &Freezer) -> Result<(), Box<dyn std::error::Error>> {
    if !Freezer::around(std::process::id())?.dir.starts_with(&freezer.dir) {
        return Ok(());
    }
    let criu = criu().ok_or("CRIU has ended")?;
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
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|pid| *pid > 0)
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
