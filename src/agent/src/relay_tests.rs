//! Two agents on the loopback, with a holder at each end.

use super::*;
use crate::migrations::tests::task;
use crate::tls::testing::Authority;
use clap::Parser;
use tokio::sync::watch;

struct Node {
    dir: tempfile::TempDir,
    relay: Relay,
    stop: CancellationToken,
}

fn node(authority: &Authority, name: &str) -> Node {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    // The sender may go: the receiver keeps the last value.
    let (_, tls) = watch::channel(Some(authority.tls(&tls::node_name(name))));
    let host = HostRoot::at(dir.path());
    let args = crate::args::Args::try_parse_from(["agent", "--node-name", name]).unwrap();
    let runtime = Runtime::new(&host, &args);
    let kubelet_root = args.kubelet_root.clone();
    let relay = Relay { host, tls, kubelet_root, runtime, telemetry: Telemetry::new() };
    Node { dir, relay, stop: CancellationToken::new() }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The source's socket for its holder, the target's for its own, and the target agent's address.
async fn connected(
    source: &Node,
    target: &Node,
    peer_node: &str,
) -> (std::path::PathBuf, UnixListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(target.relay.clone().serve_peers(listener, target.stop.clone()));
    let socket = source.dir.path().join("agent-data.sock");
    let holders = UnixListener::bind(&socket).unwrap();
    tokio::spawn(source.relay.clone().serve_holders(holders, source.stop.clone()));
    let mut task = task("m-1", Role::Target);
    task.peer.node = peer_node.into();
    let host = &target.relay.host;
    host.migration("m-1", Role::Target).unwrap().write_task(&task).unwrap();
    let run = host.holder("m-1", Role::Target).unwrap();
    std::fs::create_dir_all(run.path()).unwrap();
    (socket, UnixListener::bind(run.data()).unwrap(), address)
}

async fn dial(socket: &Path, peer: SocketAddr, peer_node: &str, migration: &str) -> UnixStream {
    let mut holder = UnixStream::connect(socket).await.unwrap();
    let line = Outward { peer, peer_node: peer_node.into(), migration: migration.into() };
    write_line(&mut holder, &line).await.unwrap();
    holder
}

#[tokio::test]
async fn data_and_the_end_of_one_direction_pass_through() {
    let authority = Authority::new();
    let (a, b) = (node(&authority, "node-a"), node(&authority, "node-b"));
    let (socket, holder_b, address) = connected(&a, &b, "node-a").await;
    let mut source = dial(&socket, address, "node-b", "m-1").await;
    source.write_all(b"hello").await.unwrap();
    let (mut target, _) = holder_b.accept().await.unwrap();
    let mut hello = [0; 5];
    target.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    // The source has said everything; the target's answer must still come through.
    source.shutdown().await.unwrap();
    assert_eq!(target.read(&mut hello).await.unwrap(), 0);
    target.write_all(b"thanks").await.unwrap();
    drop(target);
    let mut answer = String::new();
    source.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "thanks");
    let counted =
        |node: &Node, kind| node.relay.telemetry.relayed.get_or_create_owned(&Kind { kind }).get();
    assert_eq!((counted(&a, "out"), counted(&a, "in")), (5, 6));
    assert_eq!((counted(&b, "in"), counted(&b, "out")), (5, 6));
}

#[tokio::test]
async fn only_the_expected_peer_and_a_known_migration_are_let_in() {
    let authority = Authority::new();
    // The task says that the data comes from node-c.
    let (a, b) = (node(&authority, "node-a"), node(&authority, "node-b"));
    let (socket, _holder_b, address) = connected(&a, &b, "node-c").await;
    for migration in ["m-1", "m-unknown", "../m-1"] {
        let mut source = dial(&socket, address, "node-b", migration).await;
        let mut answer = Vec::new();
        // Cut off without a word, whichever end notices first.
        let _ = source.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{migration}");
    }
    // A node that pretends to be another fails in the handshake.
    let mut source = dial(&socket, address, "node-x", "m-1").await;
    let mut answer = Vec::new();
    let _ = source.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
}

#[tokio::test]
async fn an_agent_of_another_authority_is_refused() {
    let (a, b) = (node(&Authority::new(), "node-a"), node(&Authority::new(), "node-b"));
    let (socket, _holder_b, address) = connected(&a, &b, "node-a").await;
    let mut source = dial(&socket, address, "node-b", "m-1").await;
    let mut answer = Vec::new();
    let _ = source.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
}

/// `cargo test --release -p transship-agent -- --ignored relay_speed --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn relay_speed() {
    let authority = Authority::new();
    let (a, b) = (node(&authority, "node-a"), node(&authority, "node-b"));
    let (socket, holder_b, address) = connected(&a, &b, "node-a").await;
    let mut source = dial(&socket, address, "node-b", "m-1").await;
    let total: u64 = 2 << 30;
    let started = std::time::Instant::now();
    let writer = tokio::spawn(async move {
        let block = vec![7u8; 1 << 20];
        for _ in 0..total >> 20 {
            source.write_all(&block).await.unwrap();
        }
        source.shutdown().await.unwrap();
        source
    });
    let (mut target, _) = holder_b.accept().await.unwrap();
    let mut block = vec![0u8; 1 << 20];
    let mut received = 0;
    loop {
        match target.read(&mut block).await.unwrap() {
            0 => break,
            count => received += count as u64,
        }
    }
    writer.await.unwrap();
    assert_eq!(received, total);
    let rate = total as f64 / started.elapsed().as_secs_f64() / 1e6;
    eprintln!("both agents and both holders on this machine: {rate:.0} MB/s");
    assert!(rate > 500.0, "{rate:.0} MB/s");
}
