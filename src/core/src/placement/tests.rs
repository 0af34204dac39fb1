//! Swarm's own unit tests as tables.

use std::collections::BTreeMap;

use transship_api::Strategy as Ranking;

use super::*;

const GIB: i64 = 1 << 30;

pub(super) fn node(name: &str, gib: i64, cpus: i64) -> Node {
    let mut node = Node::new(name, format!("{name}-id"));
    (node.total_memory, node.total_cpus, node.health) = (gib * GIB, cpus, 100);
    node
}

pub(super) fn by(strategy: Ranking) -> Options {
    Options { strategy, ..Options::default() }
}

pub(super) fn demand(gib: i64, cpus: i64) -> Request {
    Request { memory: gib * GIB, cpus, ..Request::default() }
}

pub(super) fn reserved(id: &str, gib: i64, cpus: i64) -> Container {
    Container { id: id.into(), name: id.into(), memory: gib * GIB, cpus, ..Container::default() }
}

pub(super) fn decide(nodes: &[Node], request: &Request, options: &Options) -> Decision {
    prepare(request, options).place(&nodes.iter().collect::<Vec<_>>())
}

/// Places and creates a container; gives the node's position, or Swarm's text.
fn put(nodes: &mut [Node], id: &str, gib: i64, cpus: i64, by: &Options) -> Result<usize, String> {
    let decision = decide(nodes, &demand(gib, cpus), by);
    let position = decision.best().ok_or_else(|| decision.error().unwrap().to_owned())?;
    nodes[position].add(reserved(id, gib, cpus));
    Ok(position)
}

#[test]
fn spread_follows_the_containers_without_reservations_and_the_cpus_with_them() {
    for (cpus, wanted) in [(0, [30, 30]), (1, [20, 40])] {
        let mut nodes = [node("n0", 64, 21), node("n1", 128, 42)];
        for count in 0..60 {
            put(&mut nodes, &format!("c{count}"), 0, cpus, &by(Ranking::Spread)).unwrap();
        }
        assert_eq!(nodes.map(|n| n.containers().len()), wanted);
    }
}

#[test]
fn ties_go_to_the_fewest_containers_with_spread_and_to_the_most_with_binpack() {
    let mut nodes = [node("n0", 4, 4), node("n1", 4, 4)];
    nodes[0].add(reserved("big", 2, 0));
    nodes[1].add(reserved("small-1", 1, 0));
    nodes[1].add(reserved("small-2", 1, 0));
    let best = |strategy| decide(&nodes, &demand(1, 0), &by(strategy)).best();
    assert_eq!((best(Ranking::Spread), best(Ranking::Binpack)), (Some(0), Some(1)));
}

#[test]
fn what_is_bigger_than_the_node_does_not_fit() {
    let node = || [node("n", 100, 8)];
    for gib in [90, 100] {
        assert_eq!(put(&mut node(), "c", gib, 0, &by(Ranking::Binpack)), Ok(0), "{gib}");
    }
    let refused = Err("no resources available to schedule container".to_owned());
    assert_eq!(put(&mut node(), "c", 106, 0, &by(Ranking::Binpack)), refused);
    // With Swarm's default overcommit of 5 %.
    let overcommitted = || {
        let mut nodes = node();
        nodes[0].total_memory = with_overcommit(nodes[0].total_memory, 5);
        nodes
    };
    assert_eq!(put(&mut overcommitted(), "c", 105, 0, &by(Ranking::Binpack)), Ok(0));
    assert_eq!(put(&mut overcommitted(), "c", 106, 0, &by(Ranking::Binpack)), refused);
}

#[test]
fn the_third_container_joins_the_less_or_the_more_loaded_node() {
    for (strategy, beside) in [(Ranking::Spread, "2g"), (Ranking::Binpack, "3g")] {
        let mut nodes = [node("n0", 4, 4), node("n1", 4, 4)];
        let first = put(&mut nodes, "2g", 2, 0, &by(strategy)).unwrap();
        let second = put(&mut nodes, "3g", 3, 0, &by(strategy)).unwrap();
        assert_ne!(first, second);
        let third = put(&mut nodes, "1g", 1, 0, &by(strategy)).unwrap();
        assert!(nodes[third].containers().iter().any(|c| c.id == beside), "{strategy:?}");
    }
}

#[test]
fn binpack_fills_one_node_after_another() {
    let options = by(Ranking::Binpack);
    let mut nodes = [node("n0", 2, 8), node("n1", 2, 8), node("n2", 2, 8)];
    let put = |nodes: &mut [Node], id: &str, gib| put(nodes, id, gib, 0, &options);
    let first = put(&mut nodes, "a", 1).unwrap();
    assert_eq!(put(&mut nodes, "b", 1), Ok(first));
    let second = put(&mut nodes, "c", 2).unwrap();
    let third = put(&mut nodes, "d", 1).unwrap();
    assert_eq!(put(&mut nodes, "e", 1), Ok(third));
    assert!(first != second && second != third && first != third);
    assert!(put(&mut nodes, "f", 1).is_err());
    assert_eq!(nodes[second].remove("c").unwrap().id, "c");
    assert_eq!(put(&mut nodes, "g", 1), Ok(second));
}

#[test]
fn a_hundred_nodes_take_exactly_a_hundred_containers_of_each_kind() {
    let mut nodes: Vec<Node> = (0..100).map(|n| node(&format!("n{n}"), 1, 1)).collect();
    for (gib, cpus) in [(0, 1), (1, 0)] {
        for count in 0..100 {
            put(&mut nodes, &format!("{gib}-{count}"), gib, cpus, &by(Ranking::Binpack)).unwrap();
        }
        assert!(put(&mut nodes, "more", gib, cpus, &by(Ranking::Binpack)).is_err());
    }
}

#[test]
fn constraints_leave_the_nodes_that_swarms_tests_expect() {
    let labelled = |index: usize, labels: &[(&str, &str)]| {
        let mut node = Node::new(format!("node-{index}-name"), format!("node-{index}-id"));
        node.health = 100;
        node.set_labels(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        node
    };
    let nodes = |of_last: &[(&str, &str)]| {
        [
            labelled(0, &[("name", "node0"), ("group", "1"), ("region", "us-west")]),
            labelled(1, &[("name", "node1"), ("group", "1"), ("region", "us-east")]),
            labelled(2, &[("name", "node2"), ("group", "2"), ("region", "eu")]),
            labelled(3, of_last),
        ]
    };
    let left = |nodes: &[Node], constraint: &str| {
        let constraints = vec![constraint.to_owned()];
        let request = Request { constraints, ..Request::default() };
        decide(nodes, &request, &Options::default()).ranking().count()
    };
    for (constraint, wanted) in [
        ("group==1", 2),
        ("region==us", 0),
        ("region==us*", 2),
        ("name!=n*", 1),
        ("region!=us*", 2),
        ("name==/node[12]/", 2),
        ("name!=/node[12]/", 2),
        ("node!=/node-[01]-id/", 2),
        ("node==node-0-id", 1),
        ("node==node-0-name", 1),
        ("name=node0", 0),
        ("region!=~us*", 2),
        ("region==~us~", 0),
        // Preferred, and nowhere to be had: the second pass leaves it out.
        ("region==~mars", 4),
    ] {
        assert_eq!(left(&nodes(&[]), constraint), wanted, "{constraint}");
    }
    for (constraint, wanted) in [("name==/abcdef/", 0), ("name==/(?i)abcdef/", 1)] {
        assert_eq!(left(&nodes(&[("name", "aBcDeF")]), constraint), wanted, "{constraint}");
    }
    // A label of this name is never looked at.
    for (constraint, wanted) in [("node==mars", 0), ("node!=mars", 4)] {
        assert_eq!(left(&nodes(&[("node", "mars")]), constraint), wanted, "{constraint}");
    }
}

#[test]
fn a_preferred_node_without_room_falls_through_to_the_second_pass() {
    let mut nodes = [node("a", 1, 1), node("b", 4, 4)];
    nodes[0].set_labels([("disk".to_owned(), "ssd".to_owned())]);
    let request = |gib| Request { constraints: vec!["disk==~ssd".into()], ..demand(gib, 0) };
    let decision = decide(&nodes, &request(1), &Options::default());
    assert_eq!((decision.best(), decision.soft()), (Some(0), true));
    assert_eq!(
        decision.verdict(1),
        Verdict::Removed {
            by: By::Filter(Filter::Constraint),
            reason: "unable to find a node that satisfies the constraint disk==ssd"
        }
    );
    let decision = decide(&nodes, &request(2), &Options::default());
    assert_eq!((decision.best(), decision.soft()), (Some(1), false));
    let Verdict::Removed { by, .. } = decision.verdict(0) else { panic!("it has no room") };
    assert_eq!(by, By::Strategy);
}

#[test]
fn without_nodes_the_first_filter_that_minds_answers() {
    let error = |filters: &[Filter], request: &Request| {
        let options = Options { filters: filters.to_vec(), ..Options::default() };
        decide(&[], request, &options).error().unwrap().to_owned()
    };
    let linked = Request { links: vec!["db".into()], ..Request::default() };
    let nobody = "No nodes available in the cluster";
    assert_eq!(error(&[], &linked), nobody);
    assert_eq!(error(&[Filter::Dependency], &linked), nobody);
    assert_eq!(error(&Filter::ALL, &linked), "No healthy node available in the cluster");
    let conditions = "Unable to find a node that satisfies the following conditions ";
    assert_eq!(
        error(&[Filter::Dependency, Filter::ContainerSlots], &linked),
        format!("{conditions}\n[--link=db]\n[available container slots]")
    );
}

#[test]
fn a_container_is_found_by_id_by_name_or_by_the_beginning_of_an_id() {
    let mut node = node("node0", 1, 1);
    let swarm_id = ("com.docker.swarm.id".to_owned(), "feedfacefeedface".to_owned());
    for (id, name) in
        [("0123456789abcdef", "db"), ("0199", "web"), ("sha256:77", "twin"), ("8", "twin")]
    {
        node.add(Container { id: id.into(), name: name.into(), ..Container::default() });
    }
    let labels = BTreeMap::from([swarm_id]).into();
    node.add(Container { id: "9a".into(), name: "known".into(), labels, ..Container::default() });
    node.add(Container { id: "ended".into(), ended: true, ..Container::default() });
    for (wanted, found) in [
        ("0123456789abcdef", true),
        ("0123456789ab", true),
        ("0123", true),
        ("01", false),
        ("77", true),
        ("db", true),
        ("node0/db", true),
        ("node0-id/db", true),
        ("node1/db", false),
        ("d", false),
        ("twin", false),
        ("feedfacefeed", true),
        ("feed", true),
        ("ended", false),
        ("", false),
    ] {
        assert_eq!(node.has_container(wanted), found, "{wanted:?}");
    }
}

#[test]
fn a_volume_for_one_node_binds_to_the_node_where_it_is_in_use_and_else_to_none() {
    let claim = "shop/data".to_owned();
    let mut nodes = [node("n0", 4, 4), node("n1", 4, 4), node("n2", 4, 4)];
    let request = Request { claims: vec![claim.clone()], ..demand(1, 0) };
    let usable =
        |nodes: &[Node]| decide(nodes, &request, &Options::default()).ranking().collect::<Vec<_>>();
    assert_eq!(usable(&nodes), [0, 1, 2], "in use nowhere");
    nodes[1].add(Container { claims: vec![claim.clone()], ..reserved("db", 1, 0) });
    nodes[2].add(Container { claims: vec!["shop/other".into()], ..reserved("other", 1, 0) });
    assert_eq!(usable(&nodes), [1]);
    let elsewhere = prepare(&request, &Options::default()).place_where(&[&nodes[0]], |_| true);
    assert_eq!(
        elsewhere.error().unwrap(),
        "Unable to find a node that satisfies the following conditions \n\
         [available container slots]\n[--volumes-from=shop/data]"
    );
    let Verdict::Removed { by, reason } = elsewhere.verdict(0) else { panic!("{elsewhere:?}") };
    assert_eq!(by, By::Filter(Filter::Dependency));
    assert_eq!(
        reason,
        "Unable to find a node fulfilling all dependencies: --volumes-from=shop/data"
    );
    nodes[1].remove("db");
    nodes[1].add(Container { claims: vec![claim], ended: true, ..reserved("done", 0, 0) });
    assert_eq!(usable(&nodes).len(), 3, "a pod that has ended mounts nothing");
}

#[test]
fn ports_clash_on_any_protocol_and_on_all_addresses() {
    let port = |ip: &str, port: &str| PortBinding { host_ip: ip.into(), host_port: port.into() };
    for (a, b, wanted) in [
        (port("", "80"), port("10.0.0.1", "80"), true),
        (port("10.0.0.1", "80"), port("0.0.0.0", "80"), true),
        (port("10.0.0.1", "80"), port("::", "80"), true),
        (port("10.0.0.1", "80"), port("::ffff:0.0.0.0", "80"), true),
        (port("10.0.0.1", "80"), port("10.0.0.2", "80"), false),
        (port("10.0.0.1", "80"), port("10.0.0.1", "80"), true),
        (port("", "80"), port("", "8080"), false),
        (port("", ""), port("", ""), false),
    ] {
        assert_eq!((a.clashes(&b), b.clashes(&a)), (wanted, wanted), "{a:?} {b:?}");
    }
}

#[test]
fn health_falls_with_each_failure() {
    assert_eq!([0, 1, 2, 3].map(|failures| health_indicator(true, failures, 3)), [100, 67, 34, 0]);
    assert_eq!(health_indicator(false, 0, 3), 0);
}

#[test]
fn a_few_cpus_gain_nothing_by_overcommit() {
    assert_eq!([4, 20, 40].map(|cpus| with_overcommit(cpus, 5)), [4, 21, 42]);
    assert_eq!(with_overcommit(1000, -10), 900);
}

#[test]
fn random_repeats_with_its_seed() {
    let nodes: Vec<Node> = (0..20).map(|n| node(&format!("n{n:02}"), 1, 1)).collect();
    let order = |seed| {
        let options = Options { seed, ..by(Ranking::Random) };
        // It looks at no resources.
        decide(&nodes, &demand(9, 9), &options).ranking().collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    let firsts: std::collections::BTreeSet<usize> = (0..400).map(|seed| order(seed)[0]).collect();
    assert_eq!(firsts.len(), 20, "every node may come first");
}

#[test]
fn the_first_are_in_the_same_order_when_the_others_may_be_in_any() {
    let nodes: Vec<Node> =
        (0..60).map(|n| node(&format!("n{:02}", n * 37 % 60), 1 + n % 3, 4)).collect();
    for strategy in [Ranking::Spread, Ranking::Binpack, Ranking::Random] {
        let decided = |ordered| decide(&nodes, &demand(1, 1), &Options { ordered, ..by(strategy) });
        let all = decided(usize::MAX);
        for ordered in [1, 2, 10, 30, 59, 60, 61] {
            let some = decided(ordered);
            let first =
                |decision: &Decision| -> Vec<usize> { decision.ranking().take(ordered).collect() };
            assert_eq!(first(&some), first(&all), "{strategy:?}, {ordered}");
            assert_eq!(some.ranking().count(), 60);
            // Of those that share a rank random has none.
            if strategy != Ranking::Random {
                assert!((0..60).all(|at| some.verdict(at) == all.verdict(at)), "{ordered}");
            }
        }
    }
}
