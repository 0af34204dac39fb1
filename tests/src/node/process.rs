//! Finds the processes that take part in a migration, and kills them.

use std::{
    fs,
    path::Path,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::side::Side;

/// CRIU's action script, which holds a restored container.
const SCRIPT: &str = "transship-hold";
/// In its environment: what it is called for.
const STAGE: &str = "CRTOOLS_SCRIPT_ACTION";
/// While every task is restored and none runs yet.
const HOLDING: &str = "pre-resume";
/// Likewise: the container's first task.
const FIRST_TASK: &str = "CRTOOLS_INIT_PID";
/// How the title begins that a CRIU at work gives itself. Before that it tries what the kernel can do, with helpers of
/// its name; and holders ask one for its version.
const DUMP: &str = "criu: dump";
/// Likewise.
const RESTORE: &str = "criu: restore";
/// Where freezers are.
const FREEZER: &str = "/sys/fs/cgroup/freezer";
/// Where containerd's shims keep their containers' bundles.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// Whom to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Victim {
    /// CRIU's action script.
    Script,
    /// The CRIU that dumps or restores.
    Criu,
    /// The runc that called it.
    Runc,
    /// The runtime wrapper in front of that.
    Wrapper,
    /// The shim of the migration's pod.
    Shim,
    /// The migration's holder.
    Holder,
    /// The supervisor of holders.
    Supervisor,
    /// The agent.
    Agent,
    /// Every operator on the node.
    Operator,
    /// containerd.
    Containerd,
    /// kubelet.
    Kubelet,
}

impl Victim {
    /// Its name, as in a test's name and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Script => "script",
            Self::Criu => "criu",
            Self::Runc => "runc",
            Self::Wrapper => "wrapper",
            Self::Shim => "shim",
            Self::Holder => "holder",
            Self::Supervisor => "supervisor",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
        }
    }

    const ALL: [Self; 11] = [
        Self::Script,
        Self::Criu,
        Self::Runc,
        Self::Wrapper,
        Self::Shim,
        Self::Holder,
        Self::Supervisor,
        Self::Agent,
        Self::Operator,
        Self::Containerd,
        Self::Kubelet,
    ];

    fn find(self, side: Option<&Side>) -> Result<Vec<u32>> {
        let side = || side.context("this node has no part in the migration");
        Ok(match self {
            Self::Script => caller(SCRIPT).into_iter().collect(),
            Self::Criu => caller("criu").into_iter().collect(),
            Self::Runc => caller("runc").into_iter().collect(),
            Self::Wrapper => match caller("transship-runc") {
                Some(pid) => vec![pid],
                // The one that waits in `create` has no CRIU yet.
                None => side().map(|side| creating(&side.pod_uid)).unwrap_or_default(),
            },
            Self::Shim => shims(&side()?.pod_uid),
            Self::Holder => {
                let directory = side()?.directory().to_string_lossy().into_owned();
                by_command(&["transship-holder", "run", &directory])
            }
            Self::Supervisor => by_command(&["transship-holder", "supervise"]),
            Self::Agent => by_command(&["/usr/bin/transship-agent"]),
            Self::Operator => by_command(&["/usr/bin/transship-operator"]),
            Self::Containerd => by_name("containerd"),
            Self::Kubelet => by_name("kubelet"),
        })
    }
}

impl FromStr for Victim {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|victim| victim.as_str() == text);
        found.with_context(|| format!("nobody is called {text:?}"))
    }
}

/// How long a victim may take to come: at some moments the pod's shim is only about to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends SIGKILL, where `is_in_time` when it is known who is to get it; an error if there is nobody.
pub fn kill(
    victim: Victim,
    side: Option<&Side>,
    is_in_time: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let found = loop {
        let found = victim.find(side)?;
        if !found.is_empty() {
            break found;
        }
        ensure!(Instant::now() < end, "there is no {} here", victim.as_str());
        thread::sleep(Duration::from_millis(5));
    };
    is_in_time()?;
    if victim == Victim::Holder
        && let Some(criu) = titled(&[DUMP])
    {
        // The kernel ends a process group that stands still and has lost whom it belongs to.
        signal(criu, Signal::CONT)?;
    }
    for pid in found {
        signal(pid, Signal::KILL).with_context(|| format!("killing {}", victim.as_str()))?;
    }
    Ok(())
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else { bail!("{pid} is no process") };
    Ok(kill_process(pid, signal)?)
}

/// Stops the CRIU that is at work, so that a dump stands still in its middle; tells whether it does.
pub fn stop_criu() -> bool {
    criu().is_some_and(stop)
}

/// Stops a process, and whoever waits for it; tells whether it does.
pub fn stop(pid: u32) -> bool {
    if signal(pid, Signal::STOP).is_err() {
        return false;
    }
    let end = Instant::now() + PATIENCE;
    // It stops on its way out of the kernel, or ends there.
    loop {
        let [state] = status(pid, ["State:"]);
        match state {
            // The source's CRIU is traced itself.
            Some(state) if state.starts_with(['T', 't']) => return true,
            Some(state) if !state.starts_with(['Z', 'X']) && Instant::now() < end => {}
            _ => return false,
        }
        thread::yield_now();
    }
}

/// Lets what was stopped go on. If it has been killed it is gone.
pub fn go_on() {
    for pid in criu().into_iter().chain(holding()) {
        let _ = signal(pid, Signal::CONT);
    }
}

/// The script, in the moment in which every task is restored and none runs yet.
pub fn holding() -> Option<u32> {
    by_name(SCRIPT).into_iter().find(|pid| variable(*pid, STAGE).as_deref() == Some(HOLDING))
}

/// The same once the tasks are frozen: before that whoever dies lets them go.
pub fn holding_frozen() -> Option<u32> {
    holding().filter(|script| {
        let Some(first) = variable(*script, FIRST_TASK) else { return false };
        let groups = fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap_or_default();
        let group = groups.lines().find_map(|line| Some(line.split_once(":freezer:/")?.1));
        let state =
            |group| fs::read_to_string(Path::new(FREEZER).join(group).join("freezer.state"));
        group.is_some_and(|group| state(group).is_ok_and(|state| state.trim() == "FROZEN"))
    })
}

/// A variable of a process's environment.
fn variable(pid: u32, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    variables.find_map(|variable| Some(variable.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// A CRIU that dumps or restores. Tasks that it rebuilds bear its name and its title until they have their own back;
/// they have come after it.
pub fn criu() -> Option<u32> {
    titled(&[DUMP, RESTORE])
}

fn titled(titles: &[&str]) -> Option<u32> {
    by_name("criu").into_iter().find(|pid| {
        let title = command(*pid).into_iter().next().unwrap_or_default();
        titles.iter().any(|begin| title.starts_with(begin))
    })
}

/// Whether the CRIU at work has begun to rebuild tasks: there is a container's first one. What else bears CRIU's name
/// are programs that it is about to call.
pub fn criu_rebuilds() -> bool {
    let is_first = |pid: u32| {
        let [ids] = status(pid, ["NSpid:"]);
        ids.is_some_and(|ids| ids.split_whitespace().skip(1).last() == Some("1"))
    };
    criu().is_some() && by_name("criu").into_iter().any(is_first)
}

/// The nearest process of this name on the way up from the script that holds, or from the CRIU that
/// works: others of the same name may be at work for other pods.
fn caller(wanted: &str) -> Option<u32> {
    std::iter::successors(holding().or_else(criu), |pid| parent(*pid))
        .find(|pid| name(*pid).as_deref() == Some(wanted))
}

/// Shims of a pod: known by their containers' bundles.
fn shims(pod_uid: &str) -> Vec<u32> {
    let of_pod = |pid: &u32| {
        let id = option(*pid, "-id");
        id.is_some_and(|id| names_pod(&Path::new(BUNDLES).join(id), pod_uid))
    };
    by_name("containerd-shim").into_iter().filter(of_pod).collect()
}

/// Wrappers at work for a pod's containers: known by these' bundles.
fn creating(pod_uid: &str) -> Vec<u32> {
    let of_pod = |pid: &u32| {
        let bundle = option(*pid, "--bundle");
        bundle.is_some_and(|bundle| names_pod(Path::new(&bundle), pod_uid))
    };
    by_name("transship-runc").into_iter().filter(of_pod).collect()
}

/// What follows an option among a process's arguments.
fn option(pid: u32, name: &str) -> Option<String> {
    command(pid).into_iter().skip_while(|argument| argument != name).nth(1)
}

/// Whether a container's bundle names the pod.
fn names_pod(bundle: &Path, pod_uid: &str) -> bool {
    let specification = fs::read_to_string(bundle.join("config.json"));
    specification.is_ok_and(|text| text.contains(pod_uid))
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// By name, of which the kernel keeps 15 characters.
fn by_name(wanted: &str) -> Vec<u32> {
    let wanted = &wanted[..wanted.len().min(15)];
    processes().filter(|pid| name(*pid).as_deref() == Some(wanted)).collect()
}

/// By the first arguments; the program may stand anywhere.
fn by_command(wanted: &[&str]) -> Vec<u32> {
    let begins = |arguments: &[String]| {
        arguments.len() >= wanted.len()
            && arguments[0].ends_with(wanted[0])
            && wanted[1..].iter().zip(&arguments[1..]).all(|(wanted, is)| wanted == is)
    };
    processes().filter(|pid| begins(&command(*pid))).collect()
}

/// A process's arguments; none of one that has ended.
pub fn command(pid: u32) -> Vec<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments = text.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
    arguments.map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

fn name(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn parent(pid: u32) -> Option<u32> {
    let [parent] = status(pid, ["PPid:"]);
    parent?.parse().ok().filter(|pid| *pid > 0)
}

/// Fields of a process's status at one time.
pub fn status<const N: usize>(pid: u32, fields: [&str; N]) -> [Option<String>; N] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    fields.map(|field| {
        let value = status.lines().find_map(|line| line.strip_prefix(field))?;
        Some(value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_victim_has_a_name_of_its_own() {
        for victim in Victim::ALL {
            assert_eq!(victim.as_str().parse::<Victim>().unwrap(), victim);
        }
        assert!("init".parse::<Victim>().is_err());
    }

    #[test]
    fn processes_are_found_by_name_and_by_their_first_arguments() {
        let mut child = std::process::Command::new("sleep").arg("60.25").spawn().unwrap();
        // The kernel gives it its name before its arguments.
        let end = Instant::now() + PATIENCE;
        while !by_command(&["sleep", "60.25"]).contains(&child.id()) && Instant::now() < end {
            thread::yield_now();
        }
        assert!(by_command(&["sleep", "60.25"]).contains(&child.id()));
        assert!(by_name("sleep").contains(&child.id()));
        assert!(!by_command(&["sleep", "60"]).contains(&child.id()));
        assert_eq!(parent(child.id()), Some(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
