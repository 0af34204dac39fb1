//! `create` of a container that starts afresh with files that were moved, or kept while it was ended.
//!
//! ```text
//! write waiting → wait until the record is `starting` → end what an earlier one has left → put the files into the root
//!   → write filled → runc create
//! ```
//!
//! Nothing has been created before the files are whole in their place; if anything fails kubelet tries again with a
//! new container and an empty root, and the files are put there again. The ticket stays until the holder has seen the
//! container started. How files are put into a root is the holder's knowledge, so its program does it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use transship_host::HostRoot;
use transship_host::invocation::Invocation;
use transship_host::markers::{Filled, wait_for};
use transship_host::record::{Record, RecordState};

use crate::leftovers;
use crate::process::{die_with_parent, wait_readable};
use crate::wrapper::Subject;

/// How long `create` waits for the record. kubelet gives it two minutes in all.
const STARTING_LIMIT: Duration = Duration::from_secs(60);

/// How long everything may take together, which leaves runc some of the two minutes.
const WHOLE_LIMIT: Duration = Duration::from_secs(110);

/// How often the record is looked at while files are put into their place.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Puts the files into the container's root; the error is the sentence for runc's log.
pub(crate) fn run(
    host: &HostRoot,
    invocation: &Invocation,
    subject: &Subject,
) -> Result<(), String> {
    let began = Instant::now();
    let Subject { pod, container, bundle, .. } = subject;
    let id = invocation.id.as_deref().ok_or("create without a container id")?;
    pod.mark(container, &subject.waiting(invocation, id)).map_err(|error| error.chain())?;
    let record = await_starting(subject)?;
    leftovers::end(invocation, subject)?;
    let migration =
        host.migration(&record.migration_uid, record.role).map_err(|error| error.chain())?;
    let mut program = Command::new(host.bin("transship-holder"));
    program.arg("fill").arg(migration.path()).arg(container).arg(&bundle.rootfs);
    // What it says goes to the log by our own words; the container's streams are not its business.
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    die_with_parent(&mut program);
    let child =
        program.spawn().map_err(|error| format!("cannot put files into {container}: {error}"))?;
    supervise(child, subject, migration.path(), began)?;
    pod.mark(container, &Filled { container_id: id.to_owned() }).map_err(|error| error.chain())
}

/// The record, once it lets the container start.
fn await_starting(subject: &Subject) -> Result<Record, String> {
    let container = &subject.container;
    let found = wait_for(STARTING_LIMIT, || match subject.pod.read_record()? {
        Some(record) if record.state == RecordState::Starting => Ok(Some(Ok(record))),
        Some(record) if record.state == RecordState::Prepared => Ok(None),
        _ => Ok(Some(Err(format!("the start of {container} was given up")))),
    });
    match found {
        Ok(Some(result)) => result,
        Ok(None) => Err(format!(
            "{container} could not be started within {} s: the pod is not to run yet",
            STARTING_LIMIT.as_secs()
        )),
        Err(error) => Err(error.chain()),
    }
}

/// Waits for the program; ends it when the start is given up or takes too long.
fn supervise(
    mut child: Child,
    subject: &Subject,
    migration: &Path,
    began: Instant,
) -> Result<(), String> {
    let container = &subject.container;
    let failed =
        |error: std::io::Error| format!("cannot wait for the files of {container}: {error}");
    let pidfd = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.into())));
    let reason = loop {
        // Without a descriptor its end is awaited without a limit; kubelet has one.
        let ended = pidfd.as_ref().map_or(Ok(true), |fd| wait_readable(fd, WATCH_INTERVAL));
        if ended.map_err(failed)? {
            let status = child.wait().map_err(failed)?;
            let migration = migration.display();
            return match status.success() {
                true => Ok(()),
                false => Err(format!(
                    "the files of {container} in {migration} were not put in: {status}"
                )),
            };
        }
        let starts = matches!(subject.pod.read_record(),
            Ok(Some(record)) if record.state == RecordState::Starting);
        if !starts {
            break format!("the start of {container} was given up");
        }
        if began.elapsed() >= WHOLE_LIMIT {
            break format!(
                "the files of {container} were not in their place within {} s",
                WHOLE_LIMIT.as_secs()
            );
        }
    };
    let _ = child.kill();
    child.wait().map_err(failed)?;
    Err(reason)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use transship_host::bundle::Bundle;
    use transship_host::files;
    use transship_host::markers::Waiting;
    use transship_host::paths::Role;
    use transship_host::record::RECORD_VERSION;

    use super::*;

    struct Node {
        dir: tempfile::TempDir,
        host: HostRoot,
        subject: Subject,
    }

    impl Node {
        /// The program in the holder's place copies what the source has kept to a file in the root.
        fn new(state: RecordState) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = HostRoot::at(dir.path().join("host"));
            let program = host.bin("transship-holder");
            let text =
                "#!/bin/sh\n[ \"$1\" = fill ] && cp \"$2/kept/trees/rootfs.$3\" \"$4/file\"\n";
            files::write_atomic(&program, text.as_bytes()).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let rootfs = dir.path().join("rootfs");
            fs::create_dir(&rootfs).unwrap();
            let subject = Subject {
                pod: host.pod("p-1").unwrap(),
                pod_uid: "p-1".into(),
                container: "web".into(),
                bundle: Bundle { dir: dir.path().into(), rootfs, ..Bundle::default() },
            };
            let node = Self { dir, host, subject };
            node.record(state);
            node
        }

        fn record(&self, state: RecordState) {
            let record = Record {
                version: RECORD_VERSION,
                pod_uid: "p-1".into(),
                pod_namespace: "shop".into(),
                pod_name: "web-7".into(),
                migration_uid: "m-1".into(),
                role: Role::Source,
                state,
                containers: Vec::new(),
                network: None,
            };
            self.subject.pod.write_record(&record).unwrap();
        }

        fn keep(&self) {
            let tree =
                self.host.migration("m-1", Role::Source).unwrap().rootfs_tree("web").unwrap();
            files::write_atomic(&tree, b"kept").unwrap();
        }

        fn run(&self) -> Result<(), String> {
            let invocation = Invocation::parse(["create", "c1"].map(OsString::from));
            run(&self.host, &invocation, &self.subject)
        }

        fn file(&self) -> Option<String> {
            fs::read_to_string(self.dir.path().join("rootfs/file")).ok()
        }
    }

    #[test]
    fn a_container_has_its_files_before_it_is_created() {
        let node = Node::new(RecordState::Starting);
        node.keep();
        node.run().unwrap();
        assert_eq!(node.file().as_deref(), Some("kept"));
        let filled: Filled = node.subject.pod.marked("web").unwrap().unwrap();
        assert_eq!(filled.container_id, "c1");
        let waiting: Waiting = node.subject.pod.marked("web").unwrap().unwrap();
        assert_eq!(waiting.rootfs, node.subject.bundle.rootfs);
    }

    #[test]
    fn a_container_whose_files_are_missing_does_not_start_without_them() {
        let node = Node::new(RecordState::Starting);
        let error = node.run().unwrap_err();
        assert!(error.contains("were not put in"), "{error}");
        assert_eq!(node.subject.pod.marked::<Filled>("web").unwrap(), None);
    }

    #[test]
    fn a_container_waits_until_its_pod_may_start_or_never_will() {
        let node = Node::new(RecordState::Prepared);
        node.keep();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| node.run());
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(node.file(), None);
            node.record(RecordState::Starting);
            running.join().unwrap().unwrap();
        });
        assert_eq!(node.file().as_deref(), Some("kept"));
        for state in [RecordState::Held, RecordState::Aborted] {
            node.record(state);
            assert!(node.run().unwrap_err().contains("given up"), "{state:?}");
        }
    }
}
