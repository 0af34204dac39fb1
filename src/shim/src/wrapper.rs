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
use transship_protocol::{Verb, Verdict, sandbox_verdict, wrapper_verdict};

use crate::{fill, log, noop, restore, runc};

/// How long the end of killed tasks is awaited; kubelet tries again after that.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What the wrapper does, and for whom.
#[derive(Debug)]
pub(crate) enum Act {
    /// Hand over to runc.
    Pass,
    /// Restore the container.
    Restore(Box<Subject>),
    /// Have runc list the container's processes, and never none.
    List,
    /// Put the container's files into its root, then hand over to runc.
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
    let Some(runc) = runc::find(&host) else {
        log::error(
            &invocation,
            "the real runc is neither on PATH nor named in /opt/transship/runc.path",
        );
        return ExitCode::FAILURE;
    };
    let hand_over = || {
        let error = runc::become_runc(&runc, &arguments);
        log::error(&invocation, &format!("cannot run {}: {error}", runc.display()));
        ExitCode::FAILURE
    };
    match judge(&host, &invocation) {
        Act::Pass => hand_over(),
        Act::Refuse(reason) => {
            log::error(&invocation, &reason);
            ExitCode::FAILURE
        }
        Act::List => runc::list_never_none(&runc, &arguments).unwrap_or_else(|error| {
            log::error(&invocation, &format!("cannot list processes: {error}"));
            ExitCode::FAILURE
        }),
        Act::Restore(subject) => match restore::run(&host, &runc, &invocation, &subject) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                log::error(&invocation, &reason);
                ExitCode::FAILURE
            }
        },
        Act::Fill(subject) => match fill::run(&host, &invocation, &subject) {
            Ok(()) => hand_over(),
            Err(reason) => {
                log::error(&invocation, &reason);
                ExitCode::FAILURE
            }
        },
        Act::Noop(subject) => match noop::replace_program(&host, &subject.bundle.dir) {
            Ok(()) => hand_over(),
            Err(error) => {
                let container = &subject.container;
                log::error(&invocation, &format!("init container {container}: {}", error.chain()));
                ExitCode::FAILURE
            }
        },
        Act::SkipStart(subject) => match subject.pod.marked::<Restored>(&subject.container) {
            Ok(Some(_)) => ExitCode::SUCCESS,
            Ok(None) => {
                let container = &subject.container;
                log::error(&invocation, &format!("container {container} was not restored"));
                ExitCode::FAILURE
            }
            Err(error) => {
                log::error(&invocation, &error.chain());
                ExitCode::FAILURE
            }
        },
        Act::KillFrozen(bundle) => {
            let killed = bundle.freezer().and_then(|freezer| freezer.kill_all_frozen(KILL_LIMIT));
            // runc's `delete` would go through the root of a killed restore and empty it.
            let state = invocation.state_dir();
            match killed.and_then(|()| state.as_deref().map_or(Ok(()), unfinished::detach)) {
                Ok(()) => hand_over(),
                Err(error) => {
                    log::error(&invocation, &error.chain());
                    ExitCode::FAILURE
                }
            }
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
mod tests {
    use std::path::Path;

    use serde_json::json;
    use transship_host::files;
    use transship_host::record::{ContainerRef, RECORD_VERSION};

    use super::*;

    const POD: &str = "p-1";

    /// A node with a bundle of container `web` and one of the sandbox of pod p-1.
    struct Node {
        dir: tempfile::TempDir,
        host: HostRoot,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = HostRoot::at(dir.path().join("host"));
            for (id, name, kind) in [
                ("web", "web", "container"),
                ("setup", "setup", "container"),
                ("s1", "", "sandbox"),
            ] {
                let mut annotations = json!({
                    "io.kubernetes.cri.sandbox-uid": POD,
                    "io.kubernetes.cri.container-type": kind,
                });
                if !name.is_empty() {
                    annotations["io.kubernetes.cri.container-name"] = json!(name);
                }
                let bundle = dir.path().join(id);
                fs::create_dir(&bundle).unwrap();
                let config = json!({"annotations": annotations}).to_string();
                fs::write(bundle.join("config.json"), config).unwrap();
            }
            Self { dir, host }
        }

        fn record(&self, role: Role, state: RecordState) {
            let record = Record {
                version: RECORD_VERSION,
                pod_uid: POD.into(),
                pod_namespace: "shop".into(),
                pod_name: "web-7".into(),
                migration_uid: "m-1".into(),
                role,
                state,
                containers: vec![
                    ContainerRef { name: "web".into(), kind: ContainerKind::App },
                    ContainerRef { name: "setup".into(), kind: ContainerKind::Init },
                ],
                network: None,
            };
            self.pod().write_record(&record).unwrap();
        }

        fn pod(&self) -> PodDir {
            self.host.pod(POD).unwrap()
        }

        /// The act for `verb` on the container with this id, in one word.
        fn act(&self, verb: &str, id: &str) -> &'static str {
            let bundle = self.dir.path().join(id);
            let line: [&Path; 4] = [Path::new(verb), Path::new("--bundle"), &bundle, Path::new(id)];
            let invocation = Invocation::parse(line.map(|word| word.as_os_str().to_owned()));
            match judge(&self.host, &invocation) {
                Act::Pass => "pass",
                Act::Restore(_) => "restore",
                Act::List => "list",
                Act::Fill(_) => "fill",
                Act::Noop(_) => "noop",
                Act::SkipStart(_) => "skip",
                Act::Refuse(_) => "refuse",
                Act::KillFrozen(_) => "kill",
            }
        }

        fn acts(&self, id: &str) -> [&'static str; 5] {
            ["create", "start", "kill", "delete", "resume"].map(|verb| self.act(verb, id))
        }
    }

    const ALL_PASS: [&str; 5] = ["pass"; 5];

    #[test]
    fn ordinary_pods_pass_whatever_is_wrong_elsewhere() {
        let node = Node::new();
        assert_eq!(node.acts("web"), ALL_PASS, "nothing installed");
        files::write_atomic(&node.host.pods(), b"not a directory").unwrap();
        assert_eq!(node.acts("web"), ALL_PASS, "damaged directory of records");
        fs::remove_file(node.host.pods()).unwrap();
        files::write_atomic(&node.host.pod("p-2").unwrap().record(), b"{").unwrap();
        assert_eq!(node.acts("web"), ALL_PASS, "damaged record of another pod");
        assert_eq!(node.acts("s1"), ALL_PASS);
        files::write_atomic(&node.host.pods().join("p-1"), b"").unwrap();
        fs::remove_file(node.host.pods().join("p-1")).unwrap();
        fs::create_dir(node.host.pods().join("p-1")).unwrap();
        assert_eq!(node.acts("web"), ALL_PASS, "an empty directory");
        fs::write(node.dir.path().join("web/config.json"), "{").unwrap();
        assert_eq!(node.acts("web"), ALL_PASS, "a bundle that runc will refuse itself");
    }

    #[test]
    fn an_own_record_that_cannot_be_used_lets_nothing_live_and_everything_end() {
        let stopped = ["refuse", "refuse", "kill", "kill", "refuse"];
        let node = Node::new();
        for content in [&b"{"[..], b"", br#"{"version":2}"#] {
            files::write_atomic(&node.pod().record(), content).unwrap();
            assert_eq!(node.acts("web"), stopped, "{content:?}");
        }
        fs::remove_file(node.pod().record()).unwrap();
        node.pod().grant_ticket("web").unwrap();
        assert_eq!(node.acts("web"), stopped, "a lost record");
        fs::remove_dir_all(node.pod().path()).unwrap();
        fs::write(node.pod().path(), "").unwrap();
        assert_eq!(node.acts("web"), stopped, "a file in the directory's place");
    }

    #[test]
    fn each_state_leads_to_its_acts() {
        use RecordState::{Aborted, Frozen, Held, Moved, Open, Prepared, Restore, Starting};
        let node = Node::new();
        node.pod().grant_ticket("web").unwrap();
        let table = [
            (Role::Target, Restore, ["restore", "skip", "kill", "kill", "refuse"]),
            (Role::Target, Held, ["refuse", "skip", "refuse", "refuse", "refuse"]),
            (Role::Target, Aborted, ["refuse", "refuse", "kill", "kill", "refuse"]),
            (Role::Source, Frozen, ["refuse"; 5]),
            (Role::Source, Moved, ["refuse", "refuse", "kill", "kill", "refuse"]),
            (Role::Source, Open, ALL_PASS),
            (Role::Target, Open, ALL_PASS),
            (Role::Target, Prepared, ["fill", "refuse", "kill", "kill", "refuse"]),
            (Role::Target, Starting, ["fill", "pass", "pass", "pass", "pass"]),
            (Role::Source, Starting, ["fill", "pass", "pass", "pass", "pass"]),
        ];
        for (role, state, wanted) in table {
            node.record(role, state);
            assert_eq!(node.acts("web"), wanted, "{role} {state:?}");
            assert_eq!(node.act("state", "web"), "pass");
        }
        node.record(Role::Target, Restore);
        node.pod().consume_ticket("web").unwrap();
        assert_eq!(node.act("create", "web"), "refuse", "a ticket is good once");
        node.record(Role::Target, Starting);
        assert_eq!(node.act("create", "web"), "pass", "it was started with its files");
    }

    #[test]
    fn a_sandbox_and_init_containers_come_up_before_a_restore() {
        let node = Node::new();
        node.record(Role::Target, RecordState::Restore);
        assert_eq!(node.acts("s1"), ["pass", "pass", "kill", "kill", "refuse"]);
        assert_eq!(node.acts("setup"), ["noop", "pass", "kill", "kill", "refuse"]);
        node.record(Role::Target, RecordState::Prepared);
        assert_eq!(node.acts("s1"), ["pass", "pass", "kill", "kill", "refuse"]);
        assert_eq!(node.acts("setup"), ["noop", "pass", "kill", "kill", "refuse"]);
        node.record(Role::Target, RecordState::Starting);
        let acts = ["noop", "pass", "pass", "pass", "pass"];
        assert_eq!(node.acts("setup"), acts, "its files have moved, also for a new sandbox");
        node.record(Role::Source, RecordState::Starting);
        assert_eq!(node.acts("setup"), ALL_PASS, "as in any pod whose sandbox is made anew");
        node.record(Role::Target, RecordState::Held);
        assert_eq!(node.act("create", "s1"), "refuse");
        assert_eq!(node.act("create", "setup"), "refuse");
        node.record(Role::Target, RecordState::Open);
        assert_eq!(node.acts("setup"), ALL_PASS);
    }

    #[test]
    fn a_container_of_a_frozen_source_is_never_listed_as_without_processes() {
        let node = Node::new();
        let act = |id: &str| {
            let bundle = node.dir.path().join(id).into_os_string();
            let line = ["ps".into(), "--bundle".into(), bundle, "--format=json".into(), id.into()];
            judge(&node.host, &Invocation::parse(line))
        };
        assert!(matches!(act("web"), Act::Pass));
        for (role, state, lists) in [
            (Role::Source, RecordState::Frozen, true),
            (Role::Source, RecordState::Moved, false),
            (Role::Source, RecordState::Starting, false),
            (Role::Target, RecordState::Prepared, false),
        ] {
            node.record(role, state);
            assert_eq!(matches!(act("web"), Act::List), lists, "{state:?}");
            assert!(matches!(act("s1"), Act::Pass), "{state:?}");
        }
        files::write_atomic(&node.pod().record(), b"{").unwrap();
        assert!(matches!(act("web"), Act::Pass), "a list brings nobody to life");
    }

    /// containerd takes an error with one of these words for a container that has gone by itself.
    #[test]
    fn no_refusal_sounds_like_success() {
        let node = Node::new();
        for (role, state) in [
            (Role::Source, RecordState::Frozen),
            (Role::Source, RecordState::Moved),
            (Role::Target, RecordState::Restore),
            (Role::Target, RecordState::Held),
            (Role::Target, RecordState::Aborted),
            (Role::Target, RecordState::Prepared),
        ] {
            node.record(role, state);
            for verb in ["create", "start", "kill", "delete", "resume"] {
                let bundle = node.dir.path().join("web").into_os_string();
                let line = [verb.into(), "--bundle".into(), bundle, "web".into()];
                let Act::Refuse(reason) = judge(&node.host, &Invocation::parse(line)) else {
                    continue;
                };
                let reason = reason.to_lowercase();
                for word in [
                    "does not exist",
                    "no such process",
                    "container not running",
                    "process already finished",
                    "not found",
                ] {
                    assert!(!reason.contains(word), "{verb} under {state:?}: {reason}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_what_and_why() {
        let node = Node::new();
        node.record(Role::Source, RecordState::Frozen);
        let bundle = node.dir.path().join("web");
        let line = ["create".into(), "--bundle".into(), bundle.into_os_string(), "web".into()];
        let Act::Refuse(reason) = judge(&node.host, &Invocation::parse(line)) else {
            panic!("not refused");
        };
        assert_eq!(
            reason,
            "create of web is refused: the pod is the source of migration m-1 in state frozen"
        );
    }
}
