//! The wrapper's way from a command line to an act.
//!
//! The order matters. Everything that an ordinary pod passes comes first and costs a few system calls: the
//! verb, whether any pod has a record at all, whether this one has. Only then is a record read, and from
//! there on a doubt stops the pod, because only pods of a migration get there.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use transship_host::bundle::Bundle;
use transship_host::invocation::Invocation;
use transship_host::markers::{Restored, Waiting};
use transship_host::paths::{PodDir, Role};
use transship_host::record::{ContainerKind, Record, RecordState};
use transship_host::{HostRoot, unfinished};
use transship_protocol::{Verb, Verdict, ends_leftovers, sandbox_verdict, wrapper_verdict};

use crate::{fill, leftovers, log, noop, restore, runc};

/// How long the end of killed tasks is awaited; kubelet tries again after that.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What the wrapper does, and for whom.
#[derive(Debug)]
pub(crate) enum Act {
    /// Hand over to runc.
    Pass,
    /// End what an earlier container has left alive, then hand over to runc.
    Afresh(Box<Subject>),
    /// Restore the container.
    Restore(Box<Subject>),
    /// Have runc list the container's processes, and never none.
    List,
    /// The same as [`Act::Afresh`], and put the container's files into its root in between.
    Fill(Box<Subject>),
    /// Replace the program of an init container, then hand over to runc.
    Noop(Box<Subject>),
    /// The container is restored and held already.
    SkipStart(Box<Subject>),
    /// Exit 1, with this reason.
    Refuse(String),
    /// Kill the container's tasks while they are frozen, then hand over to runc.
    KillFrozen(Box<Bundle>),
}

/// A container of a pod with a record.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) pod: PodDir,
    pub(crate) pod_uid: String,
    pub(crate) container: String,
    pub(crate) bundle: Bundle,
}

impl Subject {
    /// Says to the holder that a `create` waits for it, and where the container's files belong.
    pub(crate) fn waiting(&self, invocation: &Invocation, id: &str) -> Waiting {
        Waiting {
            container_id: id.to_owned(),
            bundle: self.bundle.dir.clone(),
            rootfs: self.bundle.rootfs.clone(),
            runc_root: invocation.root.clone().unwrap_or_default(),
            pid: std::process::id(),
            freezer: self.bundle.freezer().ok(),
        }
    }
}

/// The wrapper's `main`; `arguments` are those after the program's name.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let host = crate::host();
    let invocation = Invocation::parse(arguments.iter().cloned());
    let fail = |reason: &str| {
        log::error(&invocation, reason);
        ExitCode::FAILURE
    };
    let Some(runc) = runc::find(&host) else {
        return fail("the real runc is neither on PATH nor named in /opt/transship/runc.path");
    };
    let hand_over = || {
        let error = runc::become_runc(&runc, &arguments);
        fail(&format!("cannot run {}: {error}", runc.display()))
    };
    let hand_over_after =
        |done: Result<(), String>| done.map_or_else(|reason| fail(&reason), |()| hand_over());
    match judge(&host, &invocation) {
        Act::Pass => hand_over(),
        Act::Refuse(reason) => fail(&reason),
        Act::List => runc::list_never_none(&runc, &arguments)
            .unwrap_or_else(|error| fail(&format!("cannot list processes: {error}"))),
        Act::Restore(subject) => match restore::run(&host, &runc, &invocation, &subject) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => fail(&reason),
        },
        Act::Afresh(subject) => hand_over_after(leftovers::end(&invocation, &subject)),
        Act::Fill(subject) => hand_over_after(fill::run(&host, &invocation, &subject)),
        Act::Noop(subject) => {
            let replaced = noop::replace_program(&host, &subject.bundle.dir);
            hand_over_after(replaced.map_err(|error| {
                format!("init container {}: {}", subject.container, error.chain())
            }))
        }
        Act::SkipStart(subject) => match subject.pod.marked::<Restored>(&subject.container) {
            Ok(Some(_)) => ExitCode::SUCCESS,
            Ok(None) => fail(&format!("container {} was not restored", subject.container)),
            Err(error) => fail(&error.chain()),
        },
        Act::KillFrozen(bundle) => {
            let killed = bundle.freezer().and_then(|freezer| freezer.kill_all_frozen(KILL_LIMIT));
            // runc's `delete` would go through the root of a killed restore and empty it.
            let state = invocation.state_dir();
            let detached =
                killed.and_then(|()| state.as_deref().map_or(Ok(()), unfinished::detach));
            hand_over_after(detached.map_err(|error| error.chain()))
        }
    }
}

/// What is to be done about a command line.
pub(crate) fn judge(host: &HostRoot, invocation: &Invocation) -> Act {
    let verb = invocation.protocol_verb();
    let lists = invocation.lists_processes();
    if (verb == Verb::Other && !lists) || !any_record(host) {
        return Act::Pass;
    }
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let Some(bundle) = Bundle::of(invocation, &cwd) else { return Act::Pass };
    let Some(pod_uid) = bundle.pod_uid.clone() else { return Act::Pass };
    // A UID that cannot be a directory's name has no directory.
    let Ok(pod) = host.pod(&pod_uid) else { return Act::Pass };
    // Whatever is wrong above the pod's own directory does not concern an ordinary pod.
    if !pod.exists().unwrap_or(false) {
        return Act::Pass;
    }
    if lists {
        let is_frozen = |record: Record| record.state == RecordState::Frozen;
        let frozen = pod.read_record().ok().flatten().is_some_and(is_frozen);
        return if frozen && !bundle.sandbox { Act::List } else { Act::Pass };
    }
    let record = match pod.read_record() {
        Ok(Some(record)) => record,
        Ok(None) if is_prepared(&pod) => {
            return damaged(verb, bundle, "the pod's host record is missing");
        }
        Ok(None) => return Act::Pass,
        Err(error) => {
            let reason = format!("the pod's host record is unusable: {}", error.chain());
            return damaged(verb, bundle, &reason);
        }
    };
    if bundle.sandbox {
        let verdict = sandbox_verdict(Some(record.state), verb);
        return act(
            verdict,
            &record,
            verb,
            Subject { pod, pod_uid, container: String::from("(sandbox)"), bundle },
        );
    }
    let Some(container) = bundle.container.clone() else { return Act::Pass };
    // In doubt nothing is restored, and nothing starts without its files.
    let ticket = pod.has_ticket(&container).unwrap_or(record.state == RecordState::Starting);
    let subject = Subject { pod, pod_uid, container, bundle };
    let init = record.kind_of(&subject.container) == Some(ContainerKind::Init);
    // A new sandbox of a pod that starts with moved files, which init containers would change again.
    let moved = record.state == RecordState::Starting && record.role == Role::Target;
    if init && moved && verb == Verb::Create {
        return Act::Noop(Box::new(subject));
    }
    if init && matches!(record.state, RecordState::Restore | RecordState::Prepared) {
        match verb {
            Verb::Create => return Act::Noop(Box::new(subject)),
            Verb::Start => return Act::Pass,
            _ => {}
        }
    }
    let verdict = wrapper_verdict(Some(record.state), verb, ticket);
    act(verdict, &record, verb, subject)
}

fn act(verdict: Verdict, record: &Record, verb: Verb, subject: Subject) -> Act {
    match verdict {
        Verdict::Pass if ends_leftovers(record.state, verb) => Act::Afresh(Box::new(subject)),
        Verdict::Pass => Act::Pass,
        Verdict::Restore => Act::Restore(Box::new(subject)),
        Verdict::Fill => Act::Fill(Box::new(subject)),
        Verdict::SkipStart => Act::SkipStart(Box::new(subject)),
        Verdict::KillFrozen => Act::KillFrozen(Box::new(subject.bundle)),
        Verdict::Refuse => Act::Refuse(format!(
            "{} of {} is refused: the pod is the {} of migration {} in state {}",
            name(verb),
            subject.container,
            record.role,
            record.migration_uid,
            state_name(record.state),
        )),
    }
}

/// A pod of a migration whose record cannot be read: nothing of it may come to life, and it may be ended,
/// since ending it never makes a second copy.
fn damaged(verb: Verb, bundle: Bundle, reason: &str) -> Act {
    match verb {
        Verb::Kill | Verb::Delete => Act::KillFrozen(Box::new(bundle)),
        _ => Act::Refuse(reason.to_owned()),
    }
}

/// Whether any pod on this node has a directory. An error means that no pod can be stopped by it.
fn any_record(host: &HostRoot) -> bool {
    fs::read_dir(host.pods()).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether a pod's directory without a record once had one.
fn is_prepared(pod: &PodDir) -> bool {
    ["tickets", "consumed"].iter().any(|dir| pod.path().join(dir).exists())
}

fn name(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "create",
        Verb::Start => "start",
        Verb::Kill => "kill",
        Verb::Delete => "delete",
        Verb::Resume => "resume",
        Verb::Other => "command",
    }
}

fn state_name(state: RecordState) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("{state:?}"))
}

#[cfg(test)]
#[path = "wrapper_tests.rs"]
mod tests;
