//! What is chosen for a pod's network, and what the choice forbids.

use rstest::rstest;
use serde_json::{Value, json};
use transship_api::{Migration, MigrationSpec};

use super::*;
use crate::facts::Unseen;
use crate::placement::volumes::Volumes;

fn facts(network: Value) -> PodFacts {
    let mut facts = json!({"network": {"interface": "eth0", "ip": "10.244.1.5",
        "cni": {"name": "flat", "plugins": ["bridge", "transship-cni"], "ipam": "host-local",
            "subnets": ["10.244.0.0/16"]}}});
    for (key, value) in network.as_object().unwrap() {
        facts["network"][key] = value.clone();
    }
    serde_json::from_value(facts).unwrap()
}

fn look<T>(network: Network, [source, target]: [Value; 2], look: impl Fn(&Input<'_>) -> T) -> T {
    let mut migration = Migration::new("move", MigrationSpec::for_pod("web-1"));
    migration.spec.network = network;
    look(&Input {
        migration: &migration,
        pod: None,
        owner: None,
        policy: None,
        claims: &[],
        volumes: &Volumes::default(),
        nodes: &[],
        target: None,
        facts: Some(&facts(source)),
        target_facts: Some(&facts(target)),
        answer: None,
    })
}

fn calico() -> Value {
    json!({"cni": {"name": "k8s-pod-network", "plugins": ["calico", "portmap", "transship-cni"],
        "ipam": "calico-ipam"}})
}

fn outgoing() -> Value {
    json!({"translated": [{"address": "203.0.113.9:443", "connections": 2},
        {"address": "203.0.113.7:443", "connections": 1}]})
}

/// A pod whose connections to a Service are led by the node's IPVS.
fn balanced() -> Value {
    json!({"balanced": [{"address": "10.96.0.10:53/UDP", "connections": 1}]})
}

/// A pod with a further address, where the plugin has two networks of a family.
fn further(address: &str) -> Value {
    json!({"furtherAddresses": [address], "otherAddresses": [address],
        "cni": {"name": "flat", "plugins": ["bridge", "transship-cni"], "ipam": "host-local",
            "subnets": ["10.244.0.0/16", "10.99.0.0/16"]}})
}

fn added(host_network: bool) -> Value {
    json!({"hostNetwork": host_network, "ruleTables": ["ip mesh"], "otherRoutes": ["10.9.0.0/16"],
        "queueingDisciplines": ["tbf dev eth0"]})
}

#[rstest]
#[case(Network::Auto, json!({}), json!({}), Network::Preserve, "the network is flat")]
#[case(Network::Preserve, json!({}), json!({}), Network::Preserve, "asked for")]
#[case(Network::Close, json!({}), json!({}), Network::Close, "asked for, so the pod gets a new address")]
#[case(
    Network::Auto,
    calico(),
    calico(),
    Network::Close,
    "plugin calico of the source is not known to be flat"
)]
#[case(Network::Auto, json!({}), calico(), Network::Close, "differ (flat on the source, k8s-pod-network on the target)")]
#[case(Network::Auto, json!({"otherAddresses": ["fd00::5/64"]}), json!({}), Network::Close, "fd00::5 is not in the target's subnets")]
#[case(Network::Auto, outgoing(), json!({}), Network::Preserve, "connections to 203.0.113.7:443, 203.0.113.9:443 (2) leave with the node's own address")]
#[case(Network::Auto, balanced(), json!({}), Network::Preserve, "connections to 10.96.0.10:53/UDP are led by the node's IPVS")]
#[case(Network::Close, json!({"listening": [{"address": "10.244.1.5", "port": 80}, {"address": "0.0.0.0", "port": 81}]}), json!({}), Network::Close, "what listens on 10.244.1.5:80 stays bound")]
fn the_choice_says_why(
    #[case] asked: Network,
    #[case] source: Value,
    #[case] target: Value,
    #[case] network: Network,
    #[case] words: &str,
) {
    let choice = look(asked, [source, target], |input| choose(input).unwrap());
    assert_eq!(choice.network, network);
    assert!(choice.why.contains(words), "{}", choice.why);
}

#[rstest]
#[case(Network::Preserve, calico(), calico(), &["Address"])]
#[case(Network::Auto, calico(), calico(), &[])]
#[case(Network::Close, calico(), calico(), &[])]
#[case(Network::Preserve, outgoing(), json!({}), &["TranslatedConnections"])]
#[case(Network::Auto, outgoing(), json!({}), &[])]
#[case(Network::Close, outgoing(), json!({}), &[])]
#[case(Network::Preserve, balanced(), json!({}), &["TranslatedConnections"])]
#[case(Network::Auto, balanced(), json!({}), &[])]
#[case(Network::Close, json!({}), json!({"cni": {"plugins": ["calico"]}}), &["NetworkPlugin"])]
#[case(Network::Close, json!({}), json!({"cni": {}}), &[])]
#[case(Network::Auto, added(false), json!({}), &["NetworkRules", "NetworkDevices", "NetworkSettings"])]
#[case(Network::Auto, added(true), json!({}), &[])]
#[case(Network::Close, further("10.99.0.7/16"), json!({}), &[])]
#[case(Network::Auto, further("10.99.0.7/16"), json!({}), &[])]
#[case(Network::Preserve, further("10.99.0.7/16"), further("10.99.0.8/16"), &["NetworkDevices"])]
#[case(Network::Close, further("10.99.0.7/32"), json!({}), &["NetworkDevices"])]
#[case(Network::Close, further("10.244.9.9/16"), json!({}), &["NetworkDevices"])]
#[case(Network::Close, further("192.0.2.7/24"), json!({}), &["NetworkDevices"])]
fn what_the_choice_forbids_is_found(
    #[case] asked: Network,
    #[case] source: Value,
    #[case] target: Value,
    #[case] checks: &[&str],
) {
    let found: Vec<&str> = look(asked, [source, target], |input| {
        CHECKS.iter().flat_map(|check| check.run(input)).map(|v| v.check).collect()
    });
    assert_eq!(found, checks);
}

#[test]
fn a_hundred_peers_are_named_wherever_they_are_told_and_the_rest_is_counted() {
    let peers: Vec<Value> = (100..256)
        .map(|last| json!({"address": format!("[2001:db8:1111:2222:3333:4444:5555:6{last}]:50443/UDP"), "connections": 12345}))
        .collect();
    let many = || json!({"translated": peers, "translatedMore": 44, "balanced": peers});
    let told = "5555:6199]:50443/UDP (12345) and 100 more leave with the node's own address";
    let [why, violation] = [Network::Auto, Network::Preserve].map(|network| {
        look(network, [many(), json!({})], |input| match network {
            Network::Auto => choose(input).unwrap().why,
            _ => {
                let check = CHECKS.iter().find(|check| check.name == "TranslatedConnections");
                let found: Vec<Violation> = check.unwrap().run(input).collect();
                assert_eq!(found.len(), 2, "those of IPVS, too");
                assert!(found.iter().all(|violation| !violation.remedy.is_empty()));
                found[0].to_status().message
            }
        })
    });
    for text in [&why, &violation] {
        assert!(text.contains(told) && text.contains("5555:6100]:50443"), "{text}");
        assert!(!text.contains("5555:6200]:50443"), "{text}");
    }
    assert!(why.contains("and 56 more are led by the node's IPVS"), "{why}");
    assert!(why.chars().count() < transship_api::migration::MAX_CHOICE_MESSAGE);
}

#[test]
fn where_it_is_not_known_which_connections_are_lost_the_choice_says_so() {
    let mut facts = facts(json!({}));
    facts.unseen = vec![Unseen::of_pod(Part::Connections, "what is tracked cannot be read")];
    let migration = Migration::new("move", MigrationSpec::for_pod("web-1"));
    let volumes = Volumes::default();
    let input = Input { facts: Some(&facts), ..Input::of(&migration, &volumes) };
    assert!(choose(&input).unwrap().why.ends_with("; what is tracked cannot be read"));
}

#[rstest]
#[case("10.244.0.0/16", "10.244.9.1", true)]
#[case("10.244.1.0/24", "10.244.9.1", false)]
#[case("0.0.0.0/0", "10.244.9.1", true)]
#[case("10.244.9.1/32", "10.244.9.1", true)]
#[case("fd00::/8", "fd12::1", true)]
#[case("fd00::/8", "10.0.0.1", false)]
#[case("10.244.0.0", "10.244.0.1", false)]
#[case("10.244.0.0/99", "10.244.0.1", false)]
fn subnets_are_compared(#[case] subnet: &str, #[case] address: &str, #[case] within: bool) {
    assert_eq!(contains(subnet, address), within);
}
