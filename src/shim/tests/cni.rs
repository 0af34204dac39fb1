//! The CNI plugin as a program, on a network namespace made for the test.
//!
//! Needs root, `ip` and `nft`; without them a test says so and passes.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use transship_host::HostRoot;
use transship_host::network::NetNs;
use transship_host::paths::Role;
use transship_host::record::{
    ContainerKind, ContainerRef, NetworkMode, RECORD_VERSION, Record, RecordNetwork, RecordState,
};

const POD: &str = "cni-test-pod";

struct Namespace(String);

impl Namespace {
    /// `of` tells the tests of this program apart.
    fn make(of: &str) -> Option<Self> {
        let can = rustix::process::geteuid().is_root()
            && Command::new("ip").arg("-V").output().is_ok()
            && Command::new("nft").arg("-V").output().is_ok();
        if !can {
            eprintln!("skipped: needs root, ip and nft");
            return None;
        }
        let name = format!("tscni{}-{of}", std::process::id());
        let namespace = Self(name.clone());
        for line in [
            format!("netns add {name}"),
            format!("-n {name} link add eth0 type veth peer name peer0"),
            format!("-n {name} link set peer0 up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} addr add 10.244.2.9/16 dev eth0"),
            format!("-n {name} route add default via 10.244.2.1"),
        ] {
            ip(&line);
        }
        Some(namespace)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn call(host: &HostRoot, command: &str, netns: &str, config: &Value) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_transship-cni"))
        .env("TRANSSHIP_ROOT", host.root())
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_UID={POD}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn config(netns: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "ts", "type": "transship-cni",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "mac": "cc:cc:cc:cc:cc:cc", "sandbox": netns}],
            "ips": [{"interface": 0, "address": "10.244.2.9/16", "gateway": "10.244.2.1"}],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    })
}

fn record(state: RecordState) -> Record {
    Record {
        version: RECORD_VERSION,
        pod_uid: POD.into(),
        pod_namespace: "shop".into(),
        pod_name: "web".into(),
        migration_uid: "m-1".into(),
        role: Role::Target,
        state,
        containers: vec![ContainerRef { name: "web".into(), kind: ContainerKind::App }],
        network: Some(RecordNetwork {
            mode: NetworkMode::Preserve,
            ip: "10.244.1.5".into(),
            other_ips: vec![],
            mac: "02:00:00:00:00:05".into(),
            interface: "eth0".into(),
            aliases: vec!["10.244.9.9".into()],
        }),
    }
}

#[test]
fn a_target_comes_up_closed_with_the_old_identity() {
    let Some(namespace) = Namespace::make("kept") else { return };
    let netns = namespace.path();
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    let ordinary = call(&host, "ADD", &netns, &config(&netns));
    assert!(ordinary.status.success());
    let result: Value = serde_json::from_slice(&ordinary.stdout).unwrap();
    assert_eq!(result, config(&netns)["prevResult"]);

    let pod = host.pod(POD).unwrap();
    pod.write_record(&record(RecordState::Restore)).unwrap();
    let restored = call(&host, "ADD", &netns, &config(&netns));
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stdout));
    let result: Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.244.1.5/16");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:05");
    assert_eq!(result["ips"][0]["gateway"], "10.244.2.1");
    let addresses = ip(&format!("-n {} addr show dev eth0", namespace.0));
    assert!(
        addresses.contains("10.244.1.5/16") && !addresses.contains("10.244.2.9"),
        "{addresses}"
    );
    assert!(addresses.contains("02:00:00:00:00:05"), "{addresses}");
    let routes = ip(&format!("-n {} route show default", namespace.0));
    assert!(routes.contains("via 10.244.2.1"), "{routes}");
    let loopback = ip(&format!("-n {} addr show dev lo", namespace.0));
    assert!(loopback.contains("10.244.9.9/32"), "{loopback}");
    let ns = NetNs::at(&netns);
    let devices = ns.devices().unwrap();
    assert!(ns.is_closed("nft".as_ref(), &devices).unwrap());

    pod.write_record(&record(RecordState::Aborted)).unwrap();
    let refused = call(&host, "ADD", &netns, &config(&netns));
    assert!(!refused.status.success());
    let error: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(11), &json!("1.0.0")));
    let removed = call(&host, "DEL", &netns, &config(&netns));
    assert!(removed.status.success() && removed.stdout.is_empty());
}

#[test]
fn a_target_with_a_new_address_keeps_the_old_one_for_sockets_alone() {
    let Some(namespace) = Namespace::make("closed") else { return };
    let netns = namespace.path();
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    let mut record = record(RecordState::Restore);
    let network = record.network.as_mut().unwrap();
    network.mode = NetworkMode::Close;
    network.aliases = vec!["10.244.1.5".into(), "fd00::5".into()];
    host.pod(POD).unwrap().write_record(&record).unwrap();
    let added = call(&host, "ADD", &netns, &config(&netns));
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stdout));
    let result: Value = serde_json::from_slice(&added.stdout).unwrap();
    assert_eq!(result, config(&netns)["prevResult"], "the new address stays");
    let ns = NetNs::at(&netns);
    assert!(ns.is_closed("nft".as_ref(), &ns.devices().unwrap()).unwrap());
    let own = ip(&format!("-n {} addr show dev eth0", namespace.0));
    assert!(own.contains("10.244.2.9") && !own.contains("10.244.1.5"), "{own}");
    let loopback = || ip(&format!("-n {} addr show dev lo", namespace.0));
    assert!(loopback().contains("10.244.1.5/32") && loopback().contains("fd00::5/128"));
    ns.remove_alias("10.244.1.5".parse().unwrap()).unwrap();
    ns.remove_alias("10.244.1.5".parse().unwrap()).unwrap();
    assert!(!loopback().contains("10.244.1.5"), "{}", loopback());
}
