//! `nodes`: what the agents report, which containers are frozen or voted at this moment, and how the
//! nodes that are there differ from those that ought to be.

use anyhow::Result;
use clap::Args as ClapArgs;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt, api::ListParams};
use transship_api::{ActiveMigration, ConditionStatus, HolderState, Node, Role, conditions};

use crate::{Outcome, connect::explain, table};

/// `kubectl transship nodes`.
#[derive(ClapArgs)]
pub struct Args {
    /// Also say why a node is not ready.
    #[arg(long)]
    wide: bool,
}

/// Runs the command.
pub async fn run(args: Args, client: Client) -> Result<Outcome> {
    let api: Api<Node> = Api::all(client);
    let nodes = api
        .list(&ListParams::default())
        .await
        .map_err(|error| explain(error, "install Transship first"))?
        .items;
    if nodes.is_empty() {
        eprintln!(
            "No node has an agent yet: see `kubectl get daemonset -A -l app.kubernetes.io/name=transship`."
        );
        return Ok(Outcome::Failed);
    }
    print!("{}", show(&nodes, Timestamp::now(), args.wide));
    for line in remarks(&nodes) {
        eprintln!("{line}");
    }
    Ok(Outcome::Done)
}

/// A table of the nodes and, where migrations are under way, one of their containers.
fn show(nodes: &[Node], now: Timestamp, wide: bool) -> String {
    let mut heading = vec![
        "NAME",
        "READY",
        "HEALTH",
        "LISTED",
        "CRIU",
        "RUNTIME",
        "KERNEL",
        "HEARTBEAT",
        "MIGRATIONS",
    ];
    if wide {
        heading.push("MESSAGE");
    }
    let rows: Vec<Vec<String>> = nodes.iter().map(|node| row(node, now, wide)).collect();
    let mut text = table::format(&heading, &rows);
    let sides: Vec<Vec<String>> = nodes.iter().flat_map(|node| sides(node, now)).collect();
    if !sides.is_empty() {
        let heading = ["NODE", "MIGRATION", "SIDE", "CONTAINERS", "SINCE", "MESSAGE"];
        text += "\n";
        text += &table::format(&heading, &sides);
    }
    text
}

/// How reality differs from the static list, where there is one, and what is ignored; a line each.
fn remarks(nodes: &[Node]) -> Vec<String> {
    let names = |differs: fn(&[Condition]) -> bool| -> Vec<String> {
        let conditions = |n: &Node| n.status.as_ref().map(|s| s.conditions.clone());
        nodes
            .iter()
            .filter(|node| conditions(node).is_some_and(|c| differs(&c)))
            .map(ResourceExt::name_any)
            .collect()
    };
    let missing = names(|c| conditions::is_true(c, conditions::LISTED) && never_joined(c));
    let surplus = names(|c| conditions::has_status(c, conditions::LISTED, ConditionStatus::False));
    let labelled = nodes.iter().filter(|node| node.spec.labels.contains_key("node"));
    let labelled = labelled.map(ResourceExt::name_any).collect();
    [
        ("listed, but never joined", missing),
        ("joined, but not listed", surplus),
        ("the label `node` is ignored, as the key is the node's name or UID", labelled),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| format!("{what}: {}", names.join(", ")))
    .collect()
}

fn never_joined(all: &[Condition]) -> bool {
    conditions::find(all, conditions::READY)
        .is_none_or(|ready| ready.reason == conditions::reasons::NOT_JOINED)
}

fn row(node: &Node, now: Timestamp, wide: bool) -> Vec<String> {
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == conditions::READY);
    let listed = conditions::find(&status.conditions, conditions::LISTED);
    let health = status.health_indicator.map(|health| health.to_string());
    let heartbeat = status.heartbeat_time.as_ref().map(|time| format!("{} ago", age(time.0, now)));
    let migrations = status.active_migrations.len();
    let mut row = vec![
        node.name_any(),
        table::or_dash(ready.map(|condition| condition.status.as_str())),
        table::or_dash(health.as_deref()),
        table::or_dash(listed.map(|condition| condition.status.as_str())),
        table::or_dash(status.criu.as_ref().map(|criu| criu.version.as_str())),
        table::or_dash(
            status
                .runtime
                .as_ref()
                .map(|runtime| format!("{} {}", runtime.name, runtime.version))
                .as_deref(),
        ),
        table::or_dash(status.kernel.as_deref()),
        table::or_dash(heartbeat.as_deref()),
        if migrations == 0 { "-".to_owned() } else { migrations.to_string() },
    ];
    if wide {
        row.push(table::or_dash(ready.map(|condition| condition.message.as_str())));
    }
    row
}

/// A node's part in each migration that is under way.
fn sides(node: &Node, now: Timestamp) -> Vec<Vec<String>> {
    let active = node.status.iter().flat_map(|status| &status.active_migrations);
    let side = |active: &ActiveMigration| {
        let since = active.since.as_ref().map(|since| age(since.0, now));
        vec![
            node.name_any(),
            table::or_dash(Some(&active.migration)),
            match active.role {
                Role::Source => "source".to_owned(),
                Role::Target => "target".to_owned(),
            },
            containers(active).to_owned(),
            table::or_dash(since.as_deref()),
            table::or_dash(Some(&active.message)),
        ]
    };
    active.map(side).collect()
}

/// How the containers are, in people's words. *Voted* means that they wait for a decision that this
/// side cannot take itself.
fn containers(active: &ActiveMigration) -> &'static str {
    match (active.state, active.role) {
        (HolderState::Preparing, Role::Source) => "running",
        (HolderState::Preparing, Role::Target) => "not there yet",
        (HolderState::Frozen | HolderState::Held, _) => "frozen",
        (HolderState::Voted, _) => "frozen, voted",
        (HolderState::Thawing, _) => "resuming, voted",
        (HolderState::Resumed | HolderState::SourceResumed, _) => "running",
        (HolderState::NeverThawed | HolderState::Aborted | HolderState::Moved, _) => "ended",
        (HolderState::Kept, _) => "ended, kept on disk",
        (HolderState::Rebooted, _) => "lost in a restart of the node",
    }
}

fn age(time: Timestamp, now: Timestamp) -> String {
    format!("{}s", now.duration_since(time).as_secs().max(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use transship_api::{NodeSpec, NodeStatus};

    fn active(role: Role, state: HolderState) -> ActiveMigration {
        ActiveMigration {
            migration_uid: "u".into(),
            migration: "default/web".into(),
            role,
            pod_uid: "p".into(),
            state,
            voted: state == HolderState::Voted,
            resumed_at: None,
            since: Some(MicroTime(Timestamp::from_second(10).unwrap())),
            message: String::new(),
        }
    }

    #[test]
    fn a_node_without_a_report_shows_dashes() {
        let node = Node::new("node-a", NodeSpec::default());
        assert_eq!(
            row(&node, Timestamp::UNIX_EPOCH, true),
            ["node-a", "-", "-", "-", "-", "-", "-", "-", "-", "-"]
        );
        let text = show(&[node], Timestamp::UNIX_EPOCH, false);
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn frozen_and_voted_containers_are_shown_with_the_time_they_stand_still() {
        let mut status = NodeStatus::default();
        status.set_active(vec![active(Role::Source, HolderState::Voted)]);
        let mut node = Node::new("node-a", NodeSpec::default());
        node.status = Some(status);
        let text = show(&[node], Timestamp::from_second(14).unwrap(), false);
        assert!(
            text.ends_with(
                "\nNODE     MIGRATION     SIDE     CONTAINERS      SINCE   MESSAGE\n\
                 node-a   default/web   source   frozen, voted   4s      -\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_source_that_prepares_runs_and_a_target_does_not() {
        assert_eq!(containers(&active(Role::Source, HolderState::Preparing)), "running");
        assert_eq!(containers(&active(Role::Target, HolderState::Preparing)), "not there yet");
    }

    #[test]
    fn what_stands_still_and_has_not_voted_is_shown_as_frozen() {
        for (role, state) in
            [(Role::Source, HolderState::Frozen), (Role::Target, HolderState::Held)]
        {
            assert_eq!(containers(&active(role, state)), "frozen", "{role:?} {state:?}");
        }
    }

    #[test]
    fn the_list_and_reality_are_compared_only_where_there_is_a_list() {
        let node = |name: &str, listed: Option<bool>, reason: &str| {
            let mut node = Node::new(name, NodeSpec::default());
            let mut conditions = Vec::new();
            let mut set = |type_, status: bool, reason| {
                let now = Timestamp::UNIX_EPOCH;
                let status = status.into();
                conditions::set_condition(&mut conditions, type_, status, reason, "", None, now);
            };
            set(conditions::READY, reason == "Available", reason);
            if let Some(listed) = listed {
                set(conditions::LISTED, listed, "x");
            }
            node.status = Some(NodeStatus { conditions, ..NodeStatus::default() });
            node
        };
        let nodes = [
            node("a", Some(true), "Available"),
            node("b", Some(true), "NotJoined"),
            node("c", Some(false), "Available"),
            node("d", Some(true), "HeartbeatMissed"),
        ];
        assert_eq!(remarks(&nodes), ["listed, but never joined: b", "joined, but not listed: c"]);
        assert!(remarks(&[node("a", None, "Available")]).is_empty());
    }

    #[test]
    fn a_label_that_placement_never_looks_at_is_told() {
        let node = |name: &str, label: &str| {
            let labels = [(label.to_owned(), "x".to_owned())].into();
            Node::new(name, NodeSpec { labels, ..NodeSpec::default() })
        };
        let nodes = [node("a", "node"), node("b", "nodes"), node("c", "node")];
        let told = "the label `node` is ignored, as the key is the node's name or UID: a, c";
        assert_eq!(remarks(&nodes), [told]);
    }
}
