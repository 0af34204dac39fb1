//! What holds for any request and nodes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use transship_api::Strategy as Ranking;

use super::symbol::Answers;
use super::tests::{by, decide, demand, node, reserved};
use super::*;

const PORTS: &[&str] = &["80/tcp", "53/udp"];
/// By id, by the beginning of one, and with the node.
const CONTAINERS: &[&str] = &["c0-0", "c1", "c1-0", "n0/c0-1", "n1-id/c1-0"];

fn any_node(index: usize) -> impl Strategy<Value = Node> {
    let label = |values: &'static [&'static str]| prop::option::of(prop::sample::select(values));
    let containers = prop::collection::vec(
        (
            prop::sample::select(&["web", "db"][..]),
            0..2i64,
            0..2i64,
            any::<bool>(),
            prop::sample::select(&["", "80"][..]),
            prop::option::of(prop::sample::select(PORTS)),
        ),
        0..5,
    );
    (
        prop::sample::select(&[0i64, 34, 100][..]),
        label(&["us-east", "eu"]),
        label(&["1", "3", "x"]),
        1..5i64,
        1..5i64,
        prop::collection::vec(prop::sample::select(&["redis:7", "nginx:1"][..]), 0..3),
        containers,
    )
        .prop_map(move |(health, region, slots, gib, cpus, images, containers)| {
            let mut node = node(&format!("n{index}"), gib, cpus);
            node.health = health;
            let labels = [("region", region), ("containerslots", slots)];
            let labels =
                labels.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
            node.set_labels(labels);
            let image = |tag: &str| Image { id: format!("id-of-{tag}"), tags: vec![tag.into()] };
            let images: Vec<Image> = images.into_iter().map(image).collect();
            node.set_images(&images);
            for (at, (app, gib, cpus, host_network, port, exposed)) in
                containers.into_iter().enumerate()
            {
                node.add(Container {
                    labels: BTreeMap::from([("app".to_owned(), app.to_owned())]).into(),
                    host_network,
                    ports: vec![PortBinding { host_port: port.into(), ..PortBinding::default() }],
                    exposed: exposed.into_iter().map(str::to_owned).collect(),
                    ..reserved(&format!("c{index}-{at}"), gib, cpus)
                });
            }
            node
        })
}

fn any_nodes() -> impl Strategy<Value = Vec<Node>> {
    (1..6usize).prop_flat_map(|count| (0..count).map(any_node).collect::<Vec<_>>())
}

fn any_network() -> impl Strategy<Value = Network> {
    prop_oneof![
        4 => Just(Network::Bridge),
        3 => Just(Network::Host),
        1 => prop::sample::select(CONTAINERS).prop_map(|name| Network::Container(name.into())),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let some = |texts: &'static [&'static str]| {
        prop::collection::vec(prop::sample::select(texts).prop_map(str::to_owned), 0..3)
    };
    // Few nodes have it.
    let dependency = |suffix: &'static str| {
        let one = prop::sample::select(CONTAINERS).prop_map(move |name| format!("{name}{suffix}"));
        prop::option::weighted(0.2, one)
    };
    (
        some(&["region==us*", "region!=eu", "region==~eu", "node!=~n0", "node==/n[0-3]/", "x==y"]),
        some(&[
            "app==web",
            "app!=db",
            "app==~db",
            "container!=c0-*",
            "container==~c1-0",
            "image==redis",
            "image!=nginx:1",
            "image==~id-of-nginx*",
        ]),
        some(&["node==n0|n1|n2", "node==~n1"]),
        (0..3i64, 0..3i64),
        any_network(),
        prop::option::of(prop::sample::select(&["80", "443"][..])),
        some(PORTS),
        (dependency(":ro"), dependency(":alias")),
    )
        .prop_map(
            |(
                constraints,
                affinities,
                whitelists,
                (gib, cpus),
                network,
                port,
                exposed,
                (volumes_from, link),
            )| Request {
                constraints,
                affinities,
                whitelists,
                network,
                ports: port
                    .map(|port| PortBinding { host_port: port.into(), ..PortBinding::default() })
                    .into_iter()
                    .collect(),
                exposed,
                volumes_from: volumes_from.into_iter().collect(),
                links: link.into_iter().collect(),
                ..demand(gib, cpus)
            },
        )
}

fn any_strategy() -> impl Strategy<Value = Ranking> {
    prop::sample::select(&[Ranking::Spread, Ranking::Binpack, Ranking::Random][..])
}

fn names(nodes: &[Node], decision: &Decision) -> Vec<String> {
    decision.ranking().map(|position| nodes[position].name.clone()).collect()
}

/// What became of each node, by its name, with Swarm's text and the groups of equal nodes: everything that
/// a decision says, without positions.
type Told = (BTreeMap<String, String>, Option<String>, Vec<Vec<String>>);

fn told(nodes: &[Node], decision: &Decision) -> Told {
    let verdict = |at: usize| match decision.verdict(at) {
        Verdict::Removed { by, reason } => format!("{}: {reason}", by.name()),
        Verdict::Ranked { weight, rank } => format!("{rank} with {weight}"),
    };
    let verdicts = (0..nodes.len()).map(|at| (nodes[at].name.clone(), verdict(at))).collect();
    let named = |group: Vec<usize>| group.into_iter().map(|at| nodes[at].name.clone()).collect();
    let groups = decision.order().map(named).collect();
    (verdicts, decision.error().map(str::to_owned), groups)
}

/// Swarm's way: filter by filter, and in each condition by condition, over the nodes that are left. Why
/// each node was removed, and Swarm's text where a filter left none.
fn one_after_the_other(
    nodes: &[Node],
    request: &Request,
    filters: &[Filter],
) -> (Vec<Option<(By, String)>>, Option<String>) {
    let mut removed: Vec<Option<(By, String)>> = vec![None; nodes.len()];
    let mut text = "Unable to find a node that satisfies the following conditions ".to_owned();
    for filter in filters {
        let compiled = filter.compile(request);
        for condition in &compiled.conditions {
            for (node, why) in nodes.iter().zip(&mut removed) {
                // Each node is asked for the first time.
                if why.is_none() && !condition.test.admits(node, true, &mut Answers::default()) {
                    *why = Some((By::Filter(*filter), condition.reason.clone()));
                }
            }
        }
        match &compiled.listing {
            Ok(listing) if listing.is_empty() => {}
            Ok(listing) => text.push_str(&format!("\n[{}]", listing.join(" "))),
            Err(error) => {
                text.push_str(&format!("\nerror from {} filter: {error}", filter.name()));
            }
        }
        if removed.iter().all(Option::is_some) {
            let error = match filter {
                Filter::Health => filters::NO_HEALTHY_NODE.to_owned(),
                _ => text,
            };
            return (removed, Some(error));
        }
    }
    (removed, None)
}

fn without_soft(request: &Request) -> Request {
    let hard = |texts: &[String]| texts.iter().filter(|t| !t.contains("=~")).cloned().collect();
    Request {
        constraints: hard(&request.constraints),
        affinities: hard(&request.affinities),
        whitelists: hard(&request.whitelists),
        ..request.clone()
    }
}

proptest! {
    /// One filter more leaves no node that was not left before.
    #[test]
    fn filters_only_shrink(nodes in any_nodes(), request in any_request(), count in 0..7usize) {
        let request = without_soft(&request);
        let left = |filters: &[Filter]| {
            let options = Options { filters: filters.to_vec(), ..by(Ranking::Random) };
            names(&nodes, &decide(&nodes, &request, &options))
        };
        let (before, after) = (left(&Filter::ALL[..count]), left(&Filter::ALL[..=count]));
        prop_assert!(after.iter().all(|name| before.contains(name)), "{after:?} of {before:?}");
    }

    /// Soft expressions never lead to an error, and what they leave the hard ones leave as well.
    #[test]
    fn soft_expressions_never_reject_a_request(
        nodes in any_nodes(), request in any_request(), strategy in any_strategy(),
    ) {
        let preferred = decide(&nodes, &request, &by(strategy));
        let hard = decide(&nodes, &without_soft(&request), &by(strategy));
        prop_assert_eq!(preferred.error().is_some(), hard.error().is_some());
        let left = names(&nodes, &hard);
        prop_assert!(names(&nodes, &preferred).iter().all(|name| left.contains(name)));
        if !preferred.soft() {
            prop_assert_eq!(names(&nodes, &preferred), left);
        }
    }

    /// The order of the nodes changes nothing, and that of the filters neither which nodes are left nor
    /// how they are ranked.
    #[test]
    fn orders_do_not_matter(
        (nodes, shuffled) in any_nodes().prop_flat_map(|n| (Just(n.clone()), Just(n).prop_shuffle())),
        request in any_request(),
        strategy in any_strategy(),
        filters in Just(Filter::ALL.to_vec()).prop_shuffle(),
    ) {
        let given = decide(&nodes, &request, &by(strategy));
        let other = decide(&shuffled, &request, &by(strategy));
        prop_assert_eq!(told(&nodes, &given), told(&shuffled, &other));
        let options = Options { filters, ..by(strategy) };
        let other = decide(&nodes, &request, &options);
        prop_assert_eq!(told(&nodes, &given).2, told(&nodes, &other).2);
        prop_assert_eq!(given.error().is_some(), other.error().is_some());
    }

    /// Asking each node everything at once removes the same nodes for the same reasons, and fails in the
    /// same words, as asking all nodes one thing after the other.
    #[test]
    fn filters_are_as_one_condition_after_the_other(
        nodes in any_nodes(),
        request in any_request(),
        malformed in prop::option::of(prop::sample::select(&["x==", "9==a"][..])),
        filters in Just(Filter::ALL.to_vec()).prop_shuffle(),
        count in 0..8usize,
    ) {
        let mut request = without_soft(&request);
        request.affinities.extend(malformed.map(str::to_owned));
        let filters = filters[..count.min(filters.len())].to_vec();
        // It looks at no room, so that the filters decide alone.
        let options = Options { filters, ..by(Ranking::Random) };
        let decision = decide(&nodes, &request, &options);
        let (removed, error) = one_after_the_other(&nodes, &request, &options.filters);
        prop_assert_eq!(decision.error(), error.as_deref());
        for (at, expected) in removed.iter().enumerate() {
            let found = match decision.verdict(at) {
                Verdict::Removed { by, reason } => Some((by, reason.to_owned())),
                Verdict::Ranked { .. } => None,
            };
            prop_assert_eq!(&found, expected, "{}", nodes[at].name);
        }
    }

    /// What is known of the beginnings of words saves looks and changes nothing.
    #[test]
    fn beginnings_of_words_change_nothing(
        nodes in any_nodes(),
        request in any_request(),
        affinity in prop::sample::select(
            &["container==c1*", "container!=c0-1", "container==/^c[01]-/", "container!=/-2$/"][..]
        ),
        link in prop::option::of(prop::sample::select(CONTAINERS)),
    ) {
        let mut request = request;
        request.affinities.push(affinity.to_owned());
        request.links.extend(link.map(str::to_owned));
        let prepared = prepare(&request, &Options::default());
        let given: Vec<&Node> = nodes.iter().collect();
        let begins = |node: &Node, with: &[&[u8]]| {
            let mut words = node.containers().iter().flat_map(Container::words);
            words.any(|word| with.iter().any(|begin| word.as_bytes().starts_with(begin)))
        };
        let known = prepared.place_among(
            &given,
            |_| false,
            |with| Some(nodes.iter().map(|node| begins(node, with)).collect()),
        );
        prop_assert_eq!(told(&nodes, &known), told(&nodes, &prepared.place(&given)));
    }

    /// Every node is either ranked or removed with a reason.
    #[test]
    fn every_node_is_answered_for(
        nodes in any_nodes(), request in any_request(), strategy in any_strategy(),
    ) {
        let decision = decide(&nodes, &request, &by(strategy));
        let ranked: Vec<usize> = decision.ranking().collect();
        for position in 0..nodes.len() {
            match decision.verdict(position) {
                Verdict::Ranked { .. } => prop_assert!(ranked.contains(&position)),
                Verdict::Removed { reason, .. } => {
                    prop_assert!(!ranked.contains(&position) && !reason.is_empty());
                }
            }
        }
        prop_assert_eq!(decision.error().is_some(), ranked.is_empty());
    }

    /// A node from which everything was removed is as it was without it.
    #[test]
    fn what_is_removed_leaves_no_trace(nodes in any_nodes(), request in any_request()) {
        let mut emptied = nodes.clone();
        for node in &mut emptied {
            let ids: Vec<String> = node.containers().iter().map(|c| c.id.clone()).collect();
            node.add(reserved("passing", 1, 1));
            prop_assert!(node.remove("passing").is_some());
            for id in ids {
                let container = node.remove(&id).unwrap();
                node.add(container);
            }
        }
        let options = by(Ranking::Spread);
        let (before, after) = (decide(&nodes, &request, &options), decide(&emptied, &request, &options));
        prop_assert_eq!(names(&nodes, &before), names(&emptied, &after));
        prop_assert_eq!(before.error(), after.error());
    }
}
