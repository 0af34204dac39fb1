//! Waiting until no verb of runc is at work for a pod.
//!
//! The wrapper reads the record and then acts; a verb let through under an older record may still be at work
//! when a newer one has been written. Whoever writes a record and then needs its promise waits here. A wrapper
//! that starts after the record was written reads the new one, and every wrapper that read the old one is
//! visible in /proc: that is why looking once after the write is enough. Wrapper and runc are the same
//! process (exec), so both are found by their command line.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use transship_protocol::Verb;

use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::invocation::Invocation;
use crate::markers::wait_for;
use crate::paths::HostRoot;

/// A verb of runc at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtWork {
    /// Its process.
    pub pid: u32,
    /// What it does.
    pub verb: Verb,
    /// The container it does it to.
    pub bundle: Bundle,
}

/// The verbs that create, start, kill, delete or resume a container of the pod at this moment.
pub fn at_work(host: &HostRoot, pod_uid: &str) -> Result<Vec<AtWork>> {
    let programs = programs(host);
    let proc = Path::new("/proc");
    // Wrapper and runc run where we do; a process inside a container could call itself anything,
    // and name any path.
    let ours = fs::read_link(proc.join("self/ns/mnt")).map_err(Error::io("look at", proc))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(Error::io("list", proc))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Processes come and go: whatever cannot be read has ended.
        if fs::read_link(entry.path().join("ns/mnt")).ok().as_ref() != Some(&ours) {
            continue;
        }
        let Ok(command_line) = fs::read(entry.path().join("cmdline")) else { continue };
        let Some(invocation) = parse(&command_line, &programs) else { continue };
        let verb = invocation.protocol_verb();
        if verb == Verb::Other {
            continue;
        }
        let Ok(cwd) = fs::read_link(entry.path().join("cwd")) else { continue };
        let Some(bundle) = Bundle::of(&invocation, &cwd) else { continue };
        if bundle.pod_uid.as_deref() == Some(pod_uid) {
            found.push(AtWork { pid, verb, bundle });
        }
    }
    Ok(found)
}

/// Waits until none of the verbs at work for the pod *now* is at work any more.
pub fn wait(host: &HostRoot, pod_uid: &str, limit: Duration) -> Result<()> {
    let mut earlier: Option<Vec<u32>> = None;
    let mut left = Vec::new();
    let done = wait_for(limit, || {
        let now: Vec<u32> = at_work(host, pod_uid)?.into_iter().map(|w| w.pid).collect();
        // Those that came later have read the new record.
        left = match &earlier {
            None => now,
            Some(earlier) => now.into_iter().filter(|pid| earlier.contains(pid)).collect(),
        };
        earlier = Some(left.clone());
        Ok(left.is_empty().then_some(()))
    })?;
    done.ok_or_else(|| Error::TimedOut {
        what: format!("the end of the runtime's work on pod {pod_uid}"),
        millis: limit.as_millis(),
        state: format!("at work: {left:?}"),
    })
}

/// The names under which wrapper and runc run.
fn programs(host: &HostRoot) -> Vec<String> {
    let mut names = vec!["runc".to_owned(), "transship-runc".to_owned()];
    if let Ok(path) = fs::read_to_string(host.runc_path_file())
        && let Some(name) = PathBuf::from(path.trim()).file_name().and_then(|name| name.to_str())
    {
        names.push(name.to_owned());
    }
    names
}

fn parse(command_line: &[u8], programs: &[String]) -> Option<Invocation> {
    let mut arguments = command_line
        .strip_suffix(b"\0")?
        .split(|b| *b == 0)
        .map(|argument| OsString::from_vec(argument.to_vec()));
    let program = PathBuf::from(arguments.next()?);
    let name = program.file_name()?.to_str()?;
    programs.iter().any(|p| p == name).then(|| Invocation::parse(arguments))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_runc_and_the_wrapper_are_looked_at() {
        let programs = ["runc".to_owned(), "transship-runc".to_owned()];
        let verb = |line: &[u8]| parse(line, &programs).map(|i| i.protocol_verb());
        assert_eq!(verb(b"/usr/sbin/runc\0--root\0/r\0kill\0c1\09\0"), Some(Verb::Kill));
        assert_eq!(verb(b"transship-runc\0create\0c1\0"), Some(Verb::Create));
        assert_eq!(verb(b"runc\0init\0"), Some(Verb::Other));
        assert_eq!(verb(b"/bin/crun\0kill\0c1\0"), None);
        assert_eq!(verb(b""), None);
    }

    #[test]
    fn a_verb_at_work_is_found_by_its_pod_and_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        fs::write(
            dir.path().join("config.json"),
            r#"{"annotations":{"io.kubernetes.cri.sandbox-uid":"quiesce-test-pod"}}"#,
        )
        .unwrap();
        // A stand-in with runc's command line, which works until its input ends: `sh -s create …`.
        let mut runc = Command::new("sh")
            .arg0("runc")
            .args(["-s", "create", "--bundle"])
            .arg(dir.path())
            .arg("c1")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let found = wait_for(Duration::from_secs(10), || {
            let all = at_work(&host, "quiesce-test-pod")?;
            Ok((!all.is_empty()).then_some(all))
        });
        let found = found.unwrap().expect("the verb is found");
        assert_eq!((found[0].pid, found[0].verb), (runc.id(), Verb::Create));
        assert!(at_work(&host, "another-pod").unwrap().is_empty());
        let waiting = wait(&host, "quiesce-test-pod", Duration::from_millis(20));
        assert!(matches!(waiting, Err(Error::TimedOut { .. })), "{waiting:?}");
        drop(runc.stdin.take());
        runc.wait().unwrap();
        wait(&host, "quiesce-test-pod", Duration::from_secs(5)).unwrap();
    }
}
