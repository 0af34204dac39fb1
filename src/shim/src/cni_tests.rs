//! What becomes of a call of the network plugin, with and without a record of its pod.

use transship_host::files;
use transship_host::record::{ContainerKind, ContainerRef, RECORD_VERSION};

use super::*;

fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cni0", "mac": "aa:aa:aa:aa:aa:aa"},
            {"name": "eth0", "mac": "bb:bb:bb:bb:bb:bb"},
            {"name": "eth0", "mac": "cc:cc:cc:cc:cc:cc", "sandbox": "/var/run/netns/x"}
        ],
        "ips": [{"interface": 2, "address": "10.244.2.9/16", "gateway": "10.244.2.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {}
    })
}

fn call(command: &str, uid: &str) -> Call {
    Call {
        command: command.into(),
        netns: "/nonexistent/netns".into(),
        interface: "eth0".into(),
        container_id: "sandbox".into(),
        arguments: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_UID={uid}"),
    }
}

fn input() -> Vec<u8> {
    json!({"cniVersion": "1.0.0", "name": "ts", "type": "transship-cni", "prevResult": previous()})
        .to_string()
        .into_bytes()
}

fn network() -> RecordNetwork {
    RecordNetwork {
        mode: NetworkMode::Preserve,
        ip: "10.244.1.5".into(),
        other_ips: vec![],
        mac: "02:00:00:00:00:05".into(),
        interface: "eth0".into(),
        aliases: vec![],
    }
}

fn record(role: Role, state: RecordState) -> Record {
    Record {
        version: RECORD_VERSION,
        pod_uid: "p-1".into(),
        pod_namespace: "shop".into(),
        pod_name: "web-7".into(),
        migration_uid: "m-1".into(),
        role,
        state,
        containers: vec![ContainerRef { name: "web".into(), kind: ContainerKind::App }],
        network: Some(network()),
    }
}

fn json_of(text: Option<String>) -> Value {
    serde_json::from_str(&text.unwrap()).unwrap()
}

#[test]
fn a_pod_without_a_record_gets_the_previous_result() {
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    let got = answer(&host, &call("ADD", "p-1"), &input()).unwrap();
    assert_eq!(json_of(got), previous());
    // Neither a missing UID nor an impossible one, nor a damaged record of another pod, is in the way.
    let other = host.pod("p-2").unwrap();
    files::write_atomic(&other.record(), b"{").unwrap();
    for arguments in ["", "K8S_POD_UID=", "K8S_POD_UID=../x", "K8S_POD_UID=p-1"] {
        let call = Call { arguments: arguments.into(), ..call("ADD", "p-1") };
        assert_eq!(json_of(answer(&host, &call, &input()).unwrap()), previous(), "{arguments}");
    }
}

#[test]
fn a_damaged_records_directory_stops_no_ordinary_pod() {
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    files::write_atomic(&host.pods(), b"not a directory").unwrap();
    let got = answer(&host, &call("ADD", "p-1"), &input()).unwrap();
    assert_eq!(json_of(got), previous());
}

#[test]
fn only_an_open_record_and_the_restore_of_a_target_get_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    let pod = host.pod("p-1").unwrap();
    use RecordState::{Aborted, Frozen, Held, Moved, Open, Restore};
    for (role, state, passes) in [
        (Role::Source, Open, true),
        (Role::Target, Open, true),
        (Role::Source, Frozen, false),
        (Role::Source, Moved, false),
        (Role::Source, Restore, false),
        (Role::Target, Held, false),
        (Role::Target, Aborted, false),
    ] {
        pod.write_record(&record(role, state)).unwrap();
        let got = answer(&host, &call("ADD", "p-1"), &input());
        assert_eq!(got.is_ok(), passes, "{role} {state:?}");
        if let Err(error) = got {
            assert_eq!(error.code, 11);
            assert!(error.details.contains("m-1"), "{error:?}");
        }
        for command in ["DEL", "CHECK", "GC", "STATUS"] {
            assert!(answer(&host, &call(command, "p-1"), b"").unwrap().is_none());
        }
    }
}

#[test]
fn a_target_whose_network_cannot_be_closed_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    host.pod("p-1").unwrap().write_record(&record(Role::Target, RecordState::Restore)).unwrap();
    let error = answer(&host, &call("ADD", "p-1"), &input()).unwrap_err();
    assert!(error.details.contains("/nonexistent/netns"), "{error:?}");
}

#[test]
fn an_own_damaged_record_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let host = HostRoot::at(dir.path());
    files::write_atomic(&host.pod("p-1").unwrap().record(), b"{").unwrap();
    assert_eq!(answer(&host, &call("ADD", "p-1"), &input()).unwrap_err().code, 11);
    assert!(answer(&host, &call("DEL", "p-1"), &input()).unwrap().is_none());
}

#[test]
fn the_result_names_the_old_identity_and_keeps_the_rest() {
    let mut result = previous();
    let changes = rewrite(&mut result, &call("ADD", "p-1"), &network()).unwrap();
    assert_eq!(texts(&changes), [("10.244.2.9/16".into(), "10.244.1.5/16".into())]);
    let mut wanted = previous();
    wanted["ips"][0]["address"] = json!("10.244.1.5/16");
    wanted["interfaces"][2]["mac"] = json!("02:00:00:00:00:05");
    assert_eq!(result, wanted);
}

fn texts(changes: &[(Address, Address)]) -> Vec<(String, String)> {
    changes.iter().map(|(given, kept)| (given.to_string(), kept.to_string())).collect()
}

#[test]
fn on_a_dual_stack_network_each_family_keeps_its_address() {
    let network = RecordNetwork { other_ips: vec!["fd00::1:5".into()], ..network() };
    let mut result = previous();
    let v6 = json!({"interface": 2, "address": "fd00::2:9/64", "gateway": "fd00::2:1"});
    result["ips"].as_array_mut().unwrap().insert(0, v6);
    let changes = rewrite(&mut result, &call("ADD", "p-1"), &network).unwrap();
    assert_eq!(
        texts(&changes),
        [
            ("fd00::2:9/64".into(), "fd00::1:5/64".into()),
            ("10.244.2.9/16".into(), "10.244.1.5/16".into())
        ]
    );
    assert_eq!(result["ips"][0]["address"], "fd00::1:5/64");
    assert_eq!(result["ips"][1]["address"], "10.244.1.5/16");
    let missing = rewrite(&mut previous(), &call("ADD", "p-1"), &network).unwrap_err();
    assert!(missing.contains("fd00::1:5"), "{missing}");
}

#[test]
fn a_result_without_a_fitting_address_is_an_error() {
    let mut result = previous();
    result["ips"][0]["address"] = json!("fd00::9/64");
    assert!(rewrite(&mut result, &call("ADD", "p-1"), &network()).is_err());
    let mut result = previous();
    result["ips"][0]["interface"] = json!(0);
    assert!(rewrite(&mut result, &call("ADD", "p-1"), &network()).is_err());
}

#[test]
fn the_plugin_says_what_it_speaks_and_refuses_to_be_first() {
    let host = HostRoot::at("/nonexistent");
    let version = answer(&host, &call("VERSION", ""), br#"{"cniVersion":"0.4.0"}"#).unwrap();
    let version = json_of(version);
    assert_eq!(version["cniVersion"], "0.4.0");
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
    let first = answer(&host, &call("ADD", ""), br#"{"cniVersion":"1.0.0"}"#).unwrap_err();
    assert_eq!(first.code, 7);
    assert_eq!(answer(&host, &call("ADD", ""), b"{").unwrap_err().code, 6);
    assert_eq!(answer(&host, &call("FLY", ""), b"").unwrap_err().code, 4);
}
