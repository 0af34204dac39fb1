use std::collections::BTreeMap;
use std::sync::Arc;

use rstest::rstest;
use serde_json::{Value, json};
use transship_api::conditions::{self as c, reasons};
use transship_api::{self as api, Migration, MigrationSpec};

use super::super::testing::{preserved, source_pod};
use super::*;
use crate::placement::Pending;
use crate::placement::volumes::Volumes;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn migration(target: Option<&str>) -> Migration {
    let mut migration = Migration::new("move", MigrationSpec::for_pod("web-1"));
    migration.metadata.namespace = Some("shop".into());
    migration.metadata.uid = Some("uid-m".into());
    migration.metadata.generation = Some(1);
    migration.spec.target_node = target.map(str::to_owned);
    migration
}

fn node(name: &str, labels: Value) -> NodeView {
    let core = json!({"metadata": {"name": name, "labels": labels},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let agent = json!({"apiVersion": "transship.dev/v1alpha1", "kind": "Node",
        "metadata": {"name": name}, "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Available",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    NodeView {
        name: name.into(),
        core: serde_json::from_value(core).unwrap(),
        agent: serde_json::from_value(agent).unwrap(),
    }
}

fn screen_with(
    migration: &Migration,
    pod: &Pod,
    nodes: &[NodeView],
    active: &[(&str, usize)],
) -> Screening {
    screen_among(migration, pod, nodes, active, &BTreeMap::new(), 0)
}

fn screen_among(
    migration: &Migration,
    pod: &Pod,
    nodes: &[NodeView],
    active: &[(&str, usize)],
    loads: &BTreeMap<String, Load>,
    overcommit_percent: i64,
) -> Screening {
    let owner = super::super::testing::owner();
    let input = Input {
        migration,
        pod: Some(pod),
        owner: Some(&owner),
        claims: &[],
        policy: None,
        volumes: &Volumes::default(),
        nodes,
        target: None,
        facts: None,
        target_facts: None,
        answer: None,
    };
    let active = active.iter().map(|(n, count)| ((*n).to_owned(), *count)).collect();
    screen(&input, &active, loads, overcommit_percent)
}

fn nodes() -> Vec<NodeView> {
    vec![
        node("node-a", json!({})),
        node("node-b", json!({"disk": "ssd"})),
        node("node-c", json!({})),
    ]
}

#[rstest]
#[case(Some("node-c"), "node-c", true)]
#[case(None, "node-b", false)]
fn a_target_is_taken_or_chosen(
    #[case] wanted: Option<&str>,
    #[case] target: &str,
    #[case] given: bool,
) {
    let screening = screen_with(&migration(wanted), &source_pod(), &nodes(), &[]);
    assert_eq!(screening, Screening::Ready { target: target.into(), given });
}

#[test]
fn migrations_that_begin_together_go_where_they_would_have_gone_one_after_another() {
    let (nodes, pod) = (nodes(), source_pod());
    let mut loads = Load::by_node([&pod]);
    let targets = ["uid-1", "uid-2", "uid-3"].map(|uid| {
        let screening = screen_among(&migration(None), &pod, &nodes, &[], &loads, 0);
        let Screening::Ready { target, .. } = &screening else { panic!("{screening:?}") };
        let pending =
            Pending { migration: uid.into(), node: target.clone(), pod: Arc::new(pod.clone()) };
        Load::add_pending(&mut loads, &pending, &nodes);
        target.clone()
    });
    assert_eq!(targets, ["node-b", "node-c", "node-b"]);
}

/// A pod for which each node has room once.
fn large_pod_and_nodes() -> (Pod, Vec<NodeView>) {
    let mut pod = source_pod();
    let wants = json!({"requests": {"cpu": "600m"}});
    pod.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(wants).unwrap();
    let mut nodes = nodes();
    for node in &mut nodes {
        let status = node.core.as_mut().unwrap().status.as_mut().unwrap();
        status.allocatable = serde_json::from_value(json!({"cpu": "1", "memory": "1Gi"})).unwrap();
    }
    (pod, nodes)
}

#[rstest]
#[case(-40, true)]
#[case(-41, false)]
fn a_reserve_of_each_node_is_kept_free(#[case] overcommit_percent: i64, #[case] fits: bool) {
    let (pod, nodes) = large_pod_and_nodes();
    let none = BTreeMap::new();
    let screening = screen_among(&migration(None), &pod, &nodes, &[], &none, overcommit_percent);
    match &screening {
        Screening::Ready { .. } => assert!(fits, "{screening:?}"),
        Screening::Refused(refusal) => {
            assert_eq!((fits, refusal.reason), (false, reasons::NO_NODE_FITS), "{screening:?}");
        }
        Screening::Busy(_) => panic!("{screening:?}"),
    }
}

#[test]
fn a_node_that_is_taken_by_pods_that_are_still_to_come_is_waited_for() {
    let (pod, nodes) = large_pod_and_nodes();
    let pending = |node: &str| Pending {
        migration: format!("uid-{node}"),
        node: node.into(),
        pod: Arc::new(pod.clone()),
    };
    let owner = super::super::testing::owner();
    let screened = |there: &[Pod], expected: &[Pending]| {
        let migration = migration(None);
        let input = Input {
            migration: &migration,
            pod: Some(&pod),
            owner: Some(&owner),
            claims: &[],
            policy: None,
            volumes: &Volumes::default(),
            nodes: &nodes,
            target: None,
            facts: None,
            target_facts: None,
            answer: None,
        };
        screen_beside(&input, &BTreeMap::new(), &Load::by_node(there), expected, 0)
    };
    let both = ["node-b", "node-c"].map(pending);
    for expected in [&both[..0], &both[..1]] {
        assert!(matches!(screened(&[], expected), Screening::Ready { .. }), "{expected:?}");
    }
    let Screening::Busy(why) = screened(&[], &both) else { panic!("the others may never come") };
    assert!(why.contains("Migrations under way") && why.contains("node-b"), "{why}");
    // What is there stays.
    let there = ["node-b", "node-c"].map(|node| {
        let mut pod = pod.clone();
        pod.spec.as_mut().unwrap().node_name = Some(node.into());
        pod
    });
    assert!(matches!(screened(&there, &both), Screening::Refused(_)));
}

#[test]
fn a_named_node_must_be_one_that_the_pod_accepts() {
    let mut pod = source_pod();
    pod.spec.as_mut().unwrap().node_selector = Some([("disk".into(), "ssd".into())].into());
    let fits = screen_with(&migration(Some("node-b")), &pod, &nodes(), &[]);
    assert!(matches!(fits, Screening::Ready { .. }), "{fits:?}");
    let Screening::Refused(refusal) = screen_with(&migration(Some("node-c")), &pod, &nodes(), &[])
    else {
        panic!("must be refused")
    };
    assert_eq!(refusal.reason, reasons::NO_NODE_FITS);
    assert!(refusal.message.contains("disk=ssd"), "{}", refusal.message);
}

#[test]
fn without_a_node_that_fits_each_says_why() {
    let mut pod = source_pod();
    pod.spec.as_mut().unwrap().node_selector = Some([("disk".into(), "tape".into())].into());
    let Screening::Refused(refusal) = screen_with(&migration(None), &pod, &nodes(), &[]) else {
        panic!("must be refused")
    };
    assert!(refusal.message.contains("node-b lacks") && refusal.message.contains("node-c lacks"));
    let Screening::Refused(alone) = screen_with(&migration(None), &pod, &nodes()[..1], &[]) else {
        panic!("must be refused")
    };
    assert!(alone.message.contains("no other node"), "{}", alone.message);
}

#[rstest]
#[case(
    "region=us",
    "spec.placement.constraints: One of operator ==, != is expected in \"region=us\""
)]
#[case("region==/(/", "spec.placement.constraints: \"region==/(/\" has a malformed pattern; ")]
fn a_placement_that_cannot_be_read_is_refused(#[case] constraint: &str, #[case] told: &str) {
    let mut migration = migration(None);
    placed(&mut migration, constraint);
    let Screening::Refused(refusal) = screen_with(&migration, &source_pod(), &nodes(), &[]) else {
        panic!("must be refused")
    };
    assert_eq!(refusal.reason, reasons::INVALID_SPEC);
    assert!(refusal.message.starts_with(told), "{}", refusal.message);
}

fn placed(migration: &mut Migration, constraint: &str) {
    let constraints = vec![constraint.to_owned()];
    migration.spec.placement = Some(api::Placement { constraints, ..Default::default() });
}

#[test]
fn the_placement_is_obeyed_and_a_failure_told_in_swarms_words() {
    let mut migration = migration(None);
    placed(&mut migration, "node==node-c");
    let screening = screen_with(&migration, &source_pod(), &nodes(), &[]);
    assert_eq!(screening, Screening::Ready { target: "node-c".into(), given: false });
    placed(&mut migration, "disk==tape");
    let Screening::Refused(refusal) = screen_with(&migration, &source_pod(), &nodes(), &[]) else {
        panic!("must be refused")
    };
    assert_eq!(
        refusal.message,
        "no node can take the pod: Unable to find a node that satisfies the following conditions \n\
         [available container slots]\n[disk==tape]; \
         node-b: unable to find a node that satisfies the constraint disk==tape, \
         node-c: unable to find a node that satisfies the constraint disk==tape; \
         mend one of them, or name it in targetNode"
    );
}

#[test]
fn a_named_node_is_checked_against_the_placement() {
    let mut migration = migration(Some("node-b"));
    placed(&mut migration, "disk!=ssd");
    let Screening::Refused(refusal) = screen_with(&migration, &source_pod(), &nodes(), &[]) else {
        panic!("must be refused")
    };
    assert!(refusal.message.starts_with("node-b: unable to find"), "{}", refusal.message);
    placed(&mut migration, "disk!=~ssd");
    let preferred = screen_with(&migration, &source_pod(), &nodes(), &[]);
    assert!(matches!(preferred, Screening::Ready { .. }), "{preferred:?}");
}

#[rstest]
#[case(&[("node-a", 2)], true)]
#[case(&[("node-b", 2)], true)]
#[case(&[("node-a", 1), ("node-b", 1), ("node-c", 9)], false)]
fn a_node_takes_part_in_two_migrations_at_a_time(
    #[case] active: &[(&str, usize)],
    #[case] busy: bool,
) {
    let screening = screen_with(&migration(Some("node-b")), &source_pod(), &nodes(), active);
    assert_eq!(matches!(screening, Screening::Busy(_)), busy, "{screening:?}");
}

fn condition<'a>(
    status: &'a MigrationStatus,
    type_: &str,
) -> &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
    c::find(&status.conditions, type_).unwrap()
}

#[test]
fn a_refusal_ends_the_migration_with_every_condition_set() {
    let refusal = Refusal { reason: reasons::SAME_NODE, message: "write another".into() };
    let status = refused(&migration(None), &refusal, Found::default(), now());
    for type_ in [c::ADMITTED, c::SUCCEEDED] {
        let condition = condition(&status, type_);
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", reasons::SAME_NODE)
        );
        assert_eq!(condition.observed_generation, Some(1));
    }
    for type_ in c::MIGRATION_TYPES {
        assert_ne!(condition(&status, type_).status, "Unknown", "{type_}");
    }
    assert_eq!(status.step, Some(Step::Failed));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
}

#[test]
fn violations_are_listed_and_summed_up() {
    let violation = Violation {
        check: "IoUring",
        container: "web".into(),
        process: "node (1)".into(),
        message: "it uses io_uring".into(),
        remedy: "block it".into(),
    };
    let status = violated(
        &migration(None),
        "node-b",
        Found { violations: &vec![violation; 40], bytes: Some(300 << 20) },
        now(),
    );
    assert_eq!(status.violations.len(), MAX_VIOLATIONS);
    assert_eq!(condition(&status, c::ADMITTED).reason, reasons::PREFLIGHT_FAILED);
    assert!(condition(&status, c::SUCCEEDED).message.contains("block it"));
}

#[test]
fn an_admitted_migration_names_both_sides_and_what_comes_next() {
    let pod = source_pod();
    let mut network = preserved();
    let decided = Admitted {
        pod: &pod,
        sandbox: "s-1",
        target: "node-b",
        given: false,
        bytes: 300 << 20,
        network: &network,
        unknown: None,
        incomplete: &[],
    };
    let status = admitted(&migration(None), &decided, now());
    let (source, target) = (status.source.as_ref().unwrap(), status.target.as_ref().unwrap());
    assert_eq!((source.node.as_str(), source.pod_uid.as_str()), ("node-a", "uid-s"));
    assert!(target.pod_name.starts_with("web-") && target.pod_uid.is_empty());
    assert_eq!(status.address.as_deref(), Some("10.244.1.5"));
    assert_eq!(status.source_sandbox.as_deref(), Some("s-1"));
    assert_eq!(status.step, Some(Step::PreparingTarget));
    assert_eq!(condition(&status, c::SCHEDULED).reason, reasons::TARGET_NODE_CHOSEN);
    assert_eq!(condition(&status, c::SUCCEEDED).status, "Unknown");
    assert_eq!(status.forecast.as_ref().unwrap().freeze, "1.15s");

    network = NetworkChoice { network: Network::Close, why: "x".repeat(MAX_CHOICE_MESSAGE) };
    let decided = Admitted {
        pod: &pod,
        sandbox: "s-1",
        target: "node-b",
        given: true,
        bytes: 0,
        network: &network,
        unknown: Some("no endpoints"),
        incomplete: &["emptyDir data has too many files".into()],
    };
    let status = admitted(&migration(None), &decided, now());
    let told = &condition(&status, c::ADMITTED).message;
    assert!(told.contains("made again") && told.contains("not known (no endpoints)"), "{told}");
    assert!(told.ends_with("; the forecast may be too low: emptyDir data has too many files"));
    assert_eq!((status.chosen_network, status.address), (Some(Network::Close), None));
    let told = status.choice_message.unwrap();
    assert!(told.len() == MAX_CHOICE_MESSAGE && told.ends_with("x…"));
}

#[test]
fn a_dry_run_ends_with_the_forecast() {
    let mut migration = migration(Some("node-b"));
    migration.spec.dry_run = true;
    let pod = source_pod();
    let decided = Admitted {
        pod: &pod,
        sandbox: "s-1",
        target: "node-b",
        given: true,
        bytes: 0,
        network: &preserved(),
        unknown: None,
        incomplete: &["container web has too many files".into()],
    };
    let status = admitted(&migration, &decided, now());
    let succeeded = condition(&status, c::SUCCEEDED);
    assert_eq!((succeeded.status.as_str(), succeeded.reason.as_str()), ("True", reasons::DRY_RUN));
    assert!(succeeded.message.contains("150 ms; the forecast may be too low: container web"));
    assert_eq!(status.step, Some(Step::Succeeded));
    assert!(status.target.unwrap().pod_name.is_empty(), "no pod was made");
}

#[rstest]
#[case(None, 0, "150ms")]
#[case(Some("30Mi"), 60 << 20, "2.15s")]
#[case(Some("100Gi"), 300 << 20, "1.15s")]
fn the_forecast_counts_with_the_slowest_part(
    #[case] limit: Option<&str>,
    #[case] bytes: u64,
    #[case] freeze: &str,
) {
    let mut migration = migration(None);
    migration.spec.bandwidth_limit = limit.map(str::to_owned);
    assert_eq!(forecast(&migration, bytes).freeze, freeze);
}
