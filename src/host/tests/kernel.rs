//! Freezer, mounts and network against the running kernel: cgroups, mounts and network namespaces made for
//! each test.
//!
//! Needs root, a cgroup file system, and the programs `ip` and `nft`; without them a test says so and passes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use transship_host::freezer::{CgroupVersion, Freezer, FreezerState};
use transship_host::markers::wait_for;
use transship_host::network::{Address, NetNs};
use transship_host::{Error, unfinished};

const LIMIT: Duration = Duration::from_secs(10);
const A_WHILE: Duration = Duration::from_millis(100);

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn unique(prefix: &str) -> String {
    format!("{prefix}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

// ---- freezer

/// A cgroup with a counting process in a child cgroup of it.
struct Frozen {
    freezer: Freezer,
    counter: Child,
    file: tempfile::NamedTempFile,
}

/// The cgroups of each version that this machine has.
fn cgroups() -> Vec<Freezer> {
    let mut found = Vec::new();
    if !rustix::process::geteuid().is_root() {
        return found;
    }
    for (root, version) in [
        ("/sys/fs/cgroup/freezer", CgroupVersion::V1),
        ("/sys/fs/cgroup/unified", CgroupVersion::V2),
        ("/sys/fs/cgroup", CgroupVersion::V2),
    ] {
        let dir = Path::new(root).join(unique("transship-kernel-test-"));
        let is_cgroup = Path::new(root).join("cgroup.procs").exists();
        if is_cgroup && fs::create_dir(&dir).is_ok() && fs::create_dir(dir.join("inner")).is_ok() {
            found.push(Freezer { dir, version });
        }
    }
    found
}

impl Frozen {
    fn start(freezer: Freezer) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let counter = Command::new("sh")
            .args(["-c", "trap '' TERM; n=0; while :; do n=$((n+1)); echo $n > \"$0\"; done"])
            .arg(file.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let inner = Freezer { dir: freezer.dir.join("inner"), version: freezer.version };
        inner.admit(counter.id()).unwrap();
        let frozen = Self { freezer, counter, file };
        assert!(frozen.counts_within(LIMIT), "the counter does not count");
        frozen
    }

    /// Whether the counter moves, looking for a while.
    fn counts(&self) -> bool {
        self.counts_within(A_WHILE)
    }

    fn counts_within(&self, limit: Duration) -> bool {
        let read = || fs::read_to_string(self.file.path()).unwrap();
        let before = read();
        wait_for(limit, || Ok((read() != before).then_some(()))).unwrap().is_some()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.counter.kill();
        let _ = self.freezer.thaw(LIMIT);
        let _ = self.counter.wait();
        let _ = fs::remove_dir(self.freezer.dir.join("inner"));
        let _ = fs::remove_dir(&self.freezer.dir);
    }
}

#[test]
fn a_frozen_cgroup_runs_nothing_until_it_is_thawed() {
    let cgroups = cgroups();
    if cgroups.is_empty() {
        return skipped("no writable cgroup file system");
    }
    for freezer in cgroups {
        let version = freezer.version;
        let frozen = Frozen::start(freezer);
        let pid = frozen.counter.id();
        assert_eq!(frozen.freezer.tasks().unwrap(), [pid], "{version:?}");
        assert_eq!(frozen.freezer.state().unwrap(), FreezerState::Thawed);
        frozen.freezer.freeze(LIMIT).unwrap();
        frozen.freezer.freeze(LIMIT).unwrap();
        assert_eq!(frozen.freezer.state().unwrap(), FreezerState::Frozen);
        assert!(!frozen.counts(), "{version:?}: counts while frozen");
        frozen.freezer.thaw(LIMIT).unwrap();
        frozen.freezer.thaw(LIMIT).unwrap();
        assert_eq!(frozen.freezer.state().unwrap(), FreezerState::Thawed);
        assert!(frozen.counts_within(LIMIT), "{version:?}: does not count after the thaw");
    }
}

#[test]
fn tasks_that_are_killed_frozen_do_not_run_again() {
    for freezer in cgroups() {
        let version = freezer.version;
        let mut frozen = Frozen::start(freezer);
        frozen.freezer.freeze(LIMIT).unwrap();
        let before = fs::read_to_string(frozen.file.path()).unwrap();
        frozen.freezer.kill_all_frozen(LIMIT).unwrap();
        assert!(frozen.freezer.tasks().unwrap().is_empty(), "{version:?}");
        let status = frozen.counter.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        let after = fs::read_to_string(frozen.file.path()).unwrap();
        assert_eq!(before, after, "{version:?}: an instruction ran");
        assert_eq!(frozen.freezer.state().unwrap(), FreezerState::Thawed);
        // Running ones are frozen first; an empty cgroup is fine.
        frozen.freezer.kill_all_frozen(LIMIT).unwrap();
    }
}

#[test]
fn a_process_that_has_died_is_in_no_containers_cgroup() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id();
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let dead = wait_for(LIMIT, || Ok(stat().contains(") Z ").then_some(())));
    assert!(dead.unwrap().is_some());
    let error = Freezer::of(pid).unwrap_err();
    assert!(matches!(error, Error::NoFreezer { .. }), "{error}");
    child.wait().unwrap();
}

#[test]
fn the_cgroup_of_a_process_is_found_and_left() {
    for freezer in cgroups() {
        let version = freezer.version;
        let frozen = Frozen::start(freezer);
        let pid = frozen.counter.id();
        let inner = Freezer { dir: frozen.freezer.dir.join("inner"), version };
        if version == CgroupVersion::V1 {
            assert_eq!(Freezer::of(pid).unwrap(), inner);
        }
        let outside = inner.outside().unwrap();
        assert!(inner.dir.starts_with(&outside.dir) && inner.dir != outside.dir, "{outside:?}");
        outside.admit(pid).unwrap();
        assert!(inner.tasks().unwrap().is_empty());
    }
}

// ---- mounts

#[test]
fn what_a_killed_restore_has_mounted_is_detached_and_keeps_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let [rootfs, state, other] = ["rootfs", "c1", "other"].map(|name| dir.path().join(name));
    let criu_root = state.join("criu-root");
    for path in [&rootfs, &criu_root, &other] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(rootfs.join("file"), "").unwrap();
    if rustix::mount::mount_bind(&rootfs, &criu_root).is_err() {
        return skipped("nothing can be mounted");
    }
    unfinished::detach(&state).unwrap();
    assert!(state.exists() && !criu_root.exists());
    fs::create_dir(&criu_root).unwrap();
    unfinished::detach(&state).unwrap();
    fs::create_dir(&criu_root).unwrap();
    rustix::mount::mount_bind(&rootfs, &criu_root).unwrap();
    unfinished::remove(&state).unwrap();
    assert!(!state.exists());
    assert!(rootfs.join("file").exists(), "the container's files were removed");

    // A link in its place leads nowhere.
    rustix::mount::mount_bind(&rootfs, &other).unwrap();
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::symlink(&other, &criu_root).unwrap();
    let refused = unfinished::remove(&state);
    let still_there = other.join("file").exists();
    rustix::mount::unmount(&other, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(refused.is_err() && still_there, "{refused:?}");
}

// ---- network

/// Two network namespaces joined by a pair of devices: `pod` has eth0, `peer` has peer0.
struct Wire {
    pod: String,
    peer: String,
}

const POD_IP: &str = "10.99.0.2";
const PEER_IP: &str = "10.99.0.1";
const MOVED_IP: &str = "10.99.0.9";
const MOVED_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
        || Command::new(program).arg("-V").output().is_ok_and(|o| o.status.success())
}

impl Wire {
    fn lay() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !runs("ip") || !runs("nft") {
            skipped("needs root, ip and nft");
            return None;
        }
        let wire = Self { pod: unique("tspod"), peer: unique("tspeer") };
        let (pod, peer) = (&wire.pod, &wire.peer);
        ip(&format!("netns add {pod}"));
        ip(&format!("netns add {peer}"));
        ip(&format!("-n {pod} link add eth0 type veth peer name peer0 netns {peer}"));
        for (namespace, device, address) in [(pod, "eth0", POD_IP), (peer, "peer0", PEER_IP)] {
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} addr add {address}/24 dev {device}"));
            ip(&format!("-n {namespace} link set {device} up"));
        }
        ip(&format!("-n {pod} route add default via {PEER_IP}"));
        Some(wire)
    }

    fn pod(&self) -> NetNs {
        NetNs::at(format!("/run/netns/{}", self.pod))
    }

    fn peer(&self) -> NetNs {
        NetNs::at(format!("/run/netns/{}", self.peer))
    }

    /// Whether a datagram from the peer reaches `to` in the pod.
    fn reaches(&self, to: &str) -> bool {
        let receiver = self.pod().enter(|| Ok(UdpSocket::bind((to, 7000)).unwrap())).unwrap();
        let sender = self.peer().enter(|| Ok(UdpSocket::bind((PEER_IP, 0)).unwrap())).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let arrived = wait_for(Duration::from_millis(500), || {
            // While ARP has no answer sending fails or is queued.
            let _ = sender.send_to(b"x", (to, 7000));
            Ok(receiver.recv(&mut [0; 8]).is_ok().then_some(()))
        });
        arrived.unwrap().is_some()
    }

    fn neighbours(&self) -> String {
        ip(&format!("-n {} neigh show", self.peer))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

fn nft() -> PathBuf {
    PathBuf::from("nft")
}

#[test]
fn a_closed_pod_neither_hears_nor_answers_and_an_open_one_does() {
    let Some(wire) = Wire::lay() else { return };
    let pod = wire.pod();
    let devices = pod.devices().unwrap();
    assert_eq!(devices, ["eth0"]);
    assert!(!pod.is_closed(&nft(), &devices).unwrap());
    pod.open(&nft()).unwrap();

    pod.close(&nft(), &devices).unwrap();
    pod.close(&nft(), &devices).unwrap();
    assert!(pod.is_closed(&nft(), &devices).unwrap());
    assert!(!wire.reaches(POD_IP));
    assert!(!wire.neighbours().contains("lladdr"), "ARP was answered: {}", wire.neighbours());

    pod.open(&nft()).unwrap();
    assert!(!pod.is_closed(&nft(), &devices).unwrap());
    assert!(wire.reaches(POD_IP));
}

#[test]
fn new_connections_alone_can_be_kept_out() {
    let Some(wire) = Wire::lay() else { return };
    let pod = wire.pod();
    let listener = pod.enter(|| Ok(std::net::TcpListener::bind((POD_IP, 8080)).unwrap())).unwrap();
    let to: std::net::SocketAddr = format!("{POD_IP}:8080").parse().unwrap();
    let connect = || {
        let connect = || Ok(std::net::TcpStream::connect_timeout(&to, Duration::from_millis(400)));
        wire.peer().enter(connect).unwrap()
    };
    let mut established = connect().unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    pod.drop_new_syns(&nft(), &pod.devices().unwrap()).unwrap();
    assert!(connect().is_err(), "a new connection got through");
    std::io::Write::write_all(&mut established, b"still here").unwrap();
    let mut buffer = [0; 10];
    std::io::Read::read_exact(&mut accepted, &mut buffer).unwrap();
    assert!(!pod.is_closed(&nft(), &["eth0".into()]).unwrap());
    pod.open(&nft()).unwrap();
    assert!(connect().is_ok());
}

#[test]
fn a_taken_over_identity_is_silent_until_it_is_announced() {
    let Some(wire) = Wire::lay() else { return };
    let pod = wire.pod();
    // The peer accepts what gratuitous ARP says about addresses it does not know yet.
    wire.peer()
        .enter(|| {
            fs::write("/proc/sys/net/ipv4/conf/peer0/arp_accept", "1")
                .map_err(Error::io("write", Path::new("arp_accept")))
        })
        .unwrap();
    let old: Address = format!("{POD_IP}/24").parse().unwrap();
    let new: Address = format!("{MOVED_IP}/24").parse().unwrap();
    pod.take_over("eth0", old, new, MOVED_MAC).unwrap();
    pod.take_over("eth0", old, new, MOVED_MAC).unwrap();

    let pod_name = &wire.pod;
    let addresses = ip(&format!("-n {pod_name} -4 addr show dev eth0"));
    assert!(addresses.contains("10.99.0.9/24 brd 10.99.0.255"), "{addresses}");
    assert!(!addresses.contains("10.99.0.2/24"), "{addresses}");
    assert!(ip(&format!("-n {pod_name} link show dev eth0")).contains("02:00:00:00:00:09"));
    let routes = ip(&format!("-n {pod_name} route show"));
    assert!(routes.contains("default via 10.99.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("10.99.0.0/24"), "{routes}");
    assert!(!wire.neighbours().contains(MOVED_IP), "the kernel announced it by itself");

    let address: IpAddr = MOVED_IP.parse().unwrap();
    pod.announce("eth0", address, MOVED_MAC).unwrap();
    let learnt = wait_for(LIMIT, || {
        let neighbours = wire.neighbours();
        Ok(neighbours.contains("10.99.0.9 dev peer0 lladdr 02:00:00:00:00:09").then_some(()))
    });
    assert!(learnt.unwrap().is_some(), "{}", wire.neighbours());
    assert!(wire.reaches(MOVED_IP));
}

#[test]
fn an_ipv6_identity_is_taken_over_without_duplicate_address_detection() {
    let Some(wire) = Wire::lay() else { return };
    let pod = wire.pod();
    let pod_name = &wire.pod;
    ip(&format!("-n {pod_name} -6 addr add fd00::2/64 dev eth0 nodad"));
    ip(&format!("-n {pod_name} -6 route add default via fd00::1 dev eth0"));
    let old: Address = "fd00::2/64".parse().unwrap();
    let new: Address = "fd00::9/64".parse().unwrap();
    pod.take_over("eth0", old, new, MOVED_MAC).unwrap();
    let addresses = ip(&format!("-n {pod_name} -6 addr show dev eth0 scope global"));
    assert!(addresses.contains("fd00::9/64") && !addresses.contains("fd00::2"), "{addresses}");
    assert!(!addresses.contains("tentative"), "{addresses}");
    let routes = ip(&format!("-n {pod_name} -6 route show default"));
    assert!(routes.contains("via fd00::1"), "{routes}");
    assert!(ip(&format!("-n {pod_name} -4 addr show dev eth0")).contains(POD_IP));
    pod.announce("eth0", new.ip, MOVED_MAC).unwrap();
}
