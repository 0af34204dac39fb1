//! Sockets, aliases and translations against the running kernel, in network namespaces made for each test.
//!
//! Needs root and the programs `ip` and `nft`; without them a test says so and passes.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use transship_host::network::conntrack::{self, Direction, Tracked};
use transship_host::network::{NetNs, Socket};

static NUMBER: AtomicU32 = AtomicU32::new(0);

const POD: &str = "10.99.1.2";
const NODE: &str = "10.99.1.1";

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success())
}

/// A pod's namespace, whose way out is the node's.
struct Cable {
    pod: String,
    node: String,
}

impl Cable {
    fn lay() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !runs("ip") || !runs("nft") {
            eprintln!("skipped: needs root, ip and nft");
            return None;
        }
        let unique = |name: &str| {
            format!("{name}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
        };
        let cable = Self { pod: unique("tscp"), node: unique("tscn") };
        let (pod, node) = (&cable.pod, &cable.node);
        ip(&format!("netns add {pod}"));
        ip(&format!("netns add {node}"));
        ip(&format!("-n {pod} link add eth0 type veth peer name pod0 netns {node}"));
        for (namespace, device, address) in [(pod, "eth0", POD), (node, "pod0", NODE)] {
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} addr add {address}/24 dev {device}"));
            ip(&format!("-n {namespace} link set {device} up"));
        }
        ip(&format!("-n {pod} route add default via {NODE}"));
        Some(cable)
    }

    fn pod(&self) -> NetNs {
        NetNs::at(format!("/run/netns/{}", self.pod))
    }

    fn node(&self) -> NetNs {
        NetNs::at(format!("/run/netns/{}", self.node))
    }

    /// Runs `nft -f -` in the node's namespace.
    fn rules(&self, rules: &str) {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.node, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.node] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// A connection from one namespace to a listener in another: both ends.
fn connect(from: &NetNs, to: &NetNs, address: &str) -> (TcpStream, TcpStream) {
    let listener = to.enter(|| Ok(TcpListener::bind(address).unwrap())).unwrap();
    let to: SocketAddr = listener.local_addr().unwrap();
    let limit = Duration::from_secs(5);
    let stream = from.enter(|| Ok(TcpStream::connect_timeout(&to, limit).unwrap())).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    for end in [&stream, &accepted] {
        end.set_read_timeout(Some(limit)).unwrap();
    }
    (stream, accepted)
}

fn is_outside(socket: &Socket) -> bool {
    socket.peer.is_some_and(|peer| !peer.ip().is_loopback())
}

#[test]
fn both_ends_learn_of_a_destroyed_connection_and_other_sockets_stay() {
    let Some(cable) = Cable::lay() else { return };
    let (pod, node) = (cable.pod(), cable.node());
    let (mut client, mut served) = connect(&node, &pod, &format!("{POD}:0"));
    let (mut local, mut peer) = connect(&pod, &pod, "127.0.0.1:0");
    let (waiting, unconnected, asking) = pod
        .enter(|| {
            let waiting = TcpListener::bind((POD, 8080)).unwrap();
            let unconnected = UdpSocket::bind((POD, 5353)).unwrap();
            let asking = UdpSocket::bind((POD, 0)).unwrap();
            asking.connect((NODE, 53)).unwrap();
            Ok((waiting, unconnected, asking))
        })
        .unwrap();

    // Closed but for resets, as a source is that has moved to another address.
    pod.let_resets_out("nft".as_ref(), &["eth0".into()]).unwrap();
    assert_eq!(pod.destroy_connections(is_outside).unwrap(), 2);

    let mut buffer = [0; 8];
    let error = client.read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the peer was not told");
    let error = served.read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(asking.send(b"x").is_err(), "a connected socket of UDP has ended too");
    local.write_all(b"stays").unwrap();
    assert_eq!(peer.read(&mut buffer).unwrap(), 5);
    let sockets = pod.sockets().unwrap();
    for address in [waiting.local_addr().unwrap(), unconnected.local_addr().unwrap()] {
        assert!(sockets.iter().any(|s| s.local == address && s.peer.is_none()), "{sockets:?}");
    }
}

#[test]
fn a_peer_that_has_missed_an_answer_learns_of_the_end_all_the_same() {
    let Some(cable) = Cable::lay() else { return };
    let (pod, node) = (cable.pod(), cable.node());
    let (mut client, mut served) = connect(&node, &pod, &format!("{POD}:0"));
    pod.close("nft".as_ref(), &["eth0".into()]).unwrap();
    served.write_all(b"missed").unwrap();
    pod.let_resets_out("nft".as_ref(), &["eth0".into()]).unwrap();
    assert_eq!(pod.destroy_connections(is_outside).unwrap(), 1);
    let error = client.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the peer was not told");
}

/// What TCP waits for on a connection of the namespace, by the port at this end: 1 is the time to send again, 4 the
/// time to try what could not be sent.
fn timer(namespace: &NetNs, port: u16) -> String {
    let table = namespace.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")));
    let table = table.unwrap().unwrap();
    let end = format!(":{port:04X}");
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Second field: the local end; fourth: state, 01 is established; sixth: timer and time.
    let line = lines.find(|fields| fields[1].ends_with(&end) && fields[3] == "01");
    line.unwrap()[5].split(':').next().unwrap().to_owned()
}

#[test]
fn an_answer_that_a_closed_pod_gives_is_sent_again_until_it_is_open() {
    let Some(cable) = Cable::lay() else { return };
    let (pod, node) = (cable.pod(), cable.node());
    let (mut client, mut served) = connect(&node, &pod, &format!("{POD}:0"));
    pod.close("nft".as_ref(), &["eth0".into()]).unwrap();
    served.write_all(b"answer").unwrap();
    // Of tries to send it the kernel allows a few; it would end the connection within seconds.
    assert_eq!(timer(&pod, served.local_addr().unwrap().port()), "01");
    pod.open("nft".as_ref()).unwrap();
    let mut buffer = [0; 6];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"answer");
}

#[test]
fn sockets_can_be_bound_to_an_alias_of_which_nobody_outside_hears() {
    let Some(cable) = Cable::lay() else { return };
    let (pod, node) = (cable.pod(), cable.node());
    let alias: IpAddr = "10.99.1.9".parse().unwrap();
    let bind = || pod.enter(|| Ok(UdpSocket::bind((alias, 7000)))).unwrap();
    assert!(bind().is_err());
    pod.add_aliases("eth0", &[alias, "fd00::9".parse().unwrap()]).unwrap();
    pod.add_aliases("eth0", &[alias]).unwrap();
    let bound = bind().unwrap();
    let sockets = pod.sockets().unwrap();
    assert!(sockets.iter().any(|socket| socket.local.ip() == alias), "{sockets:?}");
    // The neighbours ask for it in vain.
    let sender = node.enter(|| Ok(UdpSocket::bind((NODE, 0)).unwrap())).unwrap();
    let _ = sender.send_to(b"x", (alias, 7000));
    bound.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(bound.recv(&mut [0; 8]).is_err());
    let neighbours = ip(&format!("-n {} neigh show {alias}", cable.node));
    assert!(!neighbours.contains("lladdr"), "{neighbours}");
    drop(bound);
    pod.remove_alias(alias).unwrap();
    pod.remove_alias(alias).unwrap();
    assert!(bind().is_err());
}

#[test]
fn a_translation_that_was_brought_along_is_carried_out() {
    let Some(cable) = Cable::lay() else { return };
    let (pod, node) = (cable.pod(), cable.node());
    // Another Service's rule, so that connections are tracked: without the entry nothing is translated.
    cable.rules(
        "table ip nat {\n\
         chain in { type nat hook prerouting priority dstnat; ip daddr 10.96.0.8 dnat to 10.99.1.1; }\n\
         chain out { type nat hook postrouting priority srcnat; }\n}\n",
    );
    let asked: SocketAddr = "10.96.0.7:53".parse().unwrap();
    let service = node.enter(|| Ok(UdpSocket::bind((NODE, 5300)).unwrap())).unwrap();
    let client = pod.enter(|| Ok(UdpSocket::bind((POD, 4000)).unwrap())).unwrap();
    for socket in [&service, &client] {
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    }
    let mut buffer = [0; 8];
    client.send_to(b"lost", asked).unwrap();
    assert!(service.recv(&mut buffer).is_err(), "translated without an entry");

    let own = client.local_addr().unwrap();
    let tracked = Tracked {
        protocol: 17,
        original: Direction { from: own, to: asked },
        reply: Direction { from: service.local_addr().unwrap(), to: own },
        timeout: 60,
        status: 2 | 4 | 8,
        mark: 7,
        tcp_state: None,
    };
    // The second replaces the first.
    for _ in 0..2 {
        node.enter(|| conntrack::replace(&tracked)).unwrap();
    }
    let found = node.enter(|| conntrack::opened_from(&[own.ip()])).unwrap();
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((found.original, found.reply), (tracked.original, tracked.reply));
    assert_eq!(found.mark, 7);
    assert!(found.changes_target() && !found.changes_source());
    let others = node.enter(|| conntrack::opened_from(&["10.99.1.77".parse().unwrap()])).unwrap();
    assert_eq!(others, []);

    client.send_to(b"hello", asked).unwrap();
    let (length, from) = service.recv_from(&mut buffer).unwrap();
    assert_eq!((length, from), (5, own));
    service.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, asked), "the answer is translated back");

    for _ in 0..2 {
        node.enter(|| conntrack::forget(&tracked)).unwrap();
    }
    assert_eq!(node.enter(|| conntrack::opened_from(&[own.ip()])).unwrap(), []);
}

#[test]
fn what_leaves_with_the_nodes_address_is_told_apart() {
    let Some(cable) = Cable::lay() else { return };
    let (pod, node) = (cable.pod(), cable.node());
    ip(&format!("-n {} addr add 10.99.9.9/32 dev lo", cable.node));
    cable.rules(
        "table ip nat {\n\
         chain in { type nat hook prerouting priority dstnat; ip daddr 10.96.0.7 tcp dport 80 dnat to 10.99.9.9:8080; }\n\
         chain local { type nat hook input priority 100; ip saddr 10.99.1.2 tcp dport 8081 snat to 10.99.1.1; }\n}\n",
    );
    let (_service, _client) = {
        let listener = node.enter(|| Ok(TcpListener::bind("10.99.9.9:8080").unwrap())).unwrap();
        let to: SocketAddr = "10.96.0.7:80".parse().unwrap();
        let limit = Duration::from_secs(5);
        let stream = pod.enter(|| Ok(TcpStream::connect_timeout(&to, limit).unwrap())).unwrap();
        (listener.accept().unwrap(), stream)
    };
    let (_direct, _accepted) = connect(&pod, &node, "10.99.9.9:8082");
    let (_masked, _accepted) = connect(&pod, &node, "10.99.9.9:8081");
    let found = node.enter(|| conntrack::opened_from(&[POD.parse().unwrap()])).unwrap();
    let of = |port: u16| found.iter().find(|t| t.original.to.port() == port).unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    for (port, target, source) in [(80, true, false), (8082, false, false), (8081, false, true)] {
        let tracked = of(port);
        // The opener's end is the pod's own.
        let open = pod.sockets().unwrap();
        let opener = open.iter().find(|socket| socket.end() == Some(tracked.ends()[0]));
        assert!(opener.is_some_and(|socket| socket.is_held), "{tracked:?}: {open:?}");
        assert_eq!(
            (tracked.changes_target(), tracked.changes_source()),
            (target, source),
            "{port}"
        );
    }
}
