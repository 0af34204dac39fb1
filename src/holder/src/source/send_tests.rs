//! The end of a transfer, however it comes, and what is told of it.

use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use transship_host::HostRoot;
use transship_host::paths::Role;
use transship_runtime::Layout;
use transship_transport::{Handler, Progress, Refusal, TreeTarget, receive};

use super::*;

/// A target that expects this pod and takes nothing.
struct Target;

impl Handler for Target {
    fn hello(&mut self, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }
    fn tree(&mut self, _: &Area) -> Result<TreeTarget, Refusal> {
        Err(Refusal::new("NotToday", "come back later"))
    }
    fn images_dir(&mut self, _: &str) -> Result<PathBuf, Refusal> {
        Err(Refusal::new("NotToday", "come back later"))
    }
}

/// A connection that takes nothing more from when `full` is set until it is closed.
struct Wire {
    stream: UnixStream,
    full: Arc<AtomicBool>,
    closed: UnixStream,
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.full.load(Ordering::SeqCst) {
            let _ = self.closed.read_exact(&mut [0]);
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

type Received = std::thread::JoinHandle<transship_transport::Error>;

fn peer(full: &Arc<AtomicBool>) -> (Peer, Received) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let received = std::thread::spawn(move || {
        let link = Link::unix(theirs).unwrap();
        receive(link, &mut Target, &Progress::default()).unwrap_err()
    });
    let (closed, close) = UnixStream::pair().unwrap();
    let (reader, third) = (ours.try_clone().unwrap(), ours.try_clone().unwrap());
    let link =
        Link::new(reader, Wire { stream: ours, full: Arc::clone(full), closed }, move || {
            let _ = close.shutdown(std::net::Shutdown::Both);
            let _ = third.shutdown(std::net::Shutdown::Both);
        });
    let closer = link.closer();
    let hello = Hello::new("m-uid", "p-uid", Vec::new());
    let sender = Sender::start(link, &hello, SenderOptions::default()).unwrap();
    (Peer { sender: Arc::new(sender), closer }, received)
}

/// A transfer whose dump fails.
fn failing(root: &Path, peer: Peer, events: mpsc::Sender<SourceEvent>) -> Transfer {
    let (host, task) = (HostRoot::at(root), crate::areas::tests::task());
    let dir = host.migration(&task.migration.uid, Role::Source).unwrap();
    std::fs::create_dir_all(dir.path()).unwrap();
    let holder = Holder::new(host, Layout::default(), dir, task);
    let course = Course::default();
    let (sender, its) = (Arc::clone(&peer.sender), course.clone());
    let task = tokio::spawn(async move {
        let error = transship_runtime::Error::NoSandbox("p".into()).into();
        conclude(&holder, &sender, &its, &events, Err(error)).await;
    });
    Transfer { course, task, peer }
}

// The limit passes only when nothing is at work any more, however busy the machine is.
#[tokio::test(start_paused = true)]
async fn a_target_is_told_why_the_dump_failed_although_the_transfer_is_ended_at_once() {
    let root = tempfile::tempdir().unwrap();
    let (peer, received) = peer(&Arc::default());
    let (events, mut queue) = mpsc::channel(1);
    let transfer = failing(root.path(), peer, events);
    assert_eq!(queue.recv().await, Some(SourceEvent::LocalFailure));
    transfer.end().await;
    assert_eq!(received.join().unwrap().reason(), "DumpFailed");
}

#[tokio::test]
async fn neither_a_target_that_takes_nothing_nor_a_full_queue_keeps_a_transfer_from_its_end() {
    let root = tempfile::tempdir().unwrap();
    let full = Arc::default();
    let (peer, received) = peer(&full);
    full.store(true, Ordering::SeqCst);
    let (events, mut queue) = mpsc::channel(1);
    events.send(SourceEvent::Poked).await.unwrap();
    let transfer = failing(root.path(), peer, events);
    while !transfer.course.failed.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_secs(60), transfer.end()).await.unwrap();
    assert_eq!(queue.recv().await, Some(SourceEvent::Poked));
    assert_eq!(received.join().unwrap().reason(), "ConnectionLost");
}

#[test]
fn the_agent_is_asked_in_the_documented_form() {
    let request = RelayRequest { peer: "10.0.0.2:9441", peer_node: "node-b", migration: "m" };
    assert_eq!(
        serde_json::to_string(&request).unwrap(),
        r#"{"peer":"10.0.0.2:9441","peerNode":"node-b","migration":"m"}"#
    );
}

#[test]
fn a_failed_transfer_is_called_by_its_cause() {
    let dump = anyhow::Error::from(transship_runtime::Error::NoSandbox("p".into()));
    assert_eq!(reason(&dump.context("container web")), "DumpFailed");
    let wire = anyhow::Error::from(transship_transport::Error::Closed);
    assert_eq!(reason(&wire), "TransferFailed");
    assert_eq!(reason(&anyhow::anyhow!("x")), "SourceFailed");
    assert_eq!(message(&wire, "node-b"), "the other node closed the connection");
    let (reason, told) = ("DiskFull".to_owned(), "no room".to_owned());
    let peer = anyhow::Error::from(transship_transport::Error::Peer { reason, message: told });
    assert_eq!(message(&peer.context("files"), "node-b"), "node-b failed: no room");
}
