//! Which calls of runc are answered how, by the record of the pod that they are for.

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
        for (id, name, kind) in
            [("web", "web", "container"), ("setup", "setup", "container"), ("s1", "", "sandbox")]
        {
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
            Act::Afresh(_) => "afresh",
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
const AFRESH: [&str; 5] = ["afresh", "pass", "pass", "pass", "pass"];

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
        (Role::Target, Held, ["refuse", "skip", "refuse", "kill", "refuse"]),
        (Role::Target, Aborted, ["refuse", "refuse", "kill", "kill", "refuse"]),
        (Role::Source, Frozen, ["refuse"; 5]),
        (Role::Source, Moved, ["refuse", "refuse", "kill", "kill", "refuse"]),
        (Role::Source, Open, AFRESH),
        (Role::Target, Open, AFRESH),
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
    assert_eq!(node.act("create", "web"), "afresh", "it was started with its files");
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
    assert_eq!(node.acts("setup"), AFRESH, "as in any pod whose sandbox is made anew");
    assert_eq!(node.acts("s1"), AFRESH);
    node.record(Role::Target, RecordState::Held);
    let lost = ["refuse", "refuse", "refuse", "kill", "refuse"];
    assert_eq!(node.acts("s1"), lost, "deleted only when its shim has died");
    assert_eq!(node.act("create", "setup"), "refuse");
    node.record(Role::Target, RecordState::Open);
    assert_eq!(node.acts("setup"), AFRESH);
    assert_eq!(node.acts("s1"), AFRESH);
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
