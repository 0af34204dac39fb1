//! `nodes`: what the agents report, which containers are frozen or voted at this moment, and how the
//! nodes that are there differ from those that ought to be.

use anyhow::Result;
use clap::Args as ClapArgs;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt, api::ListParams};
use transship_api::{ConditionStatus, Node, conditions};

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
    let now = Timestamp::now();
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
    if args.wide {
        heading.push("MESSAGE");
    }
    let rows: Vec<Vec<String>> = nodes.iter().map(|node| row(node, now, args.wide)).collect();
    print!("{}", table::format(&heading, &rows));
    for line in differences(&nodes) {
        eprintln!("{line}");
    }
    Ok(Outcome::Done)
}

/// How reality differs from the static list, a line each; nothing where there is no list.
fn differences(nodes: &[Node]) -> Vec<String> {
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
    [("listed, but never joined", missing), ("joined, but not listed", surplus)]
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
    let heartbeat = status
        .heartbeat_time
        .as_ref()
        .map(|time| format!("{}s ago", now.duration_since(time.0).as_secs().max(0)));
    let migrations: Vec<String> = status
        .active_migrations
        .iter()
        .map(|active| format!("{} ({:?} {:?})", active.migration, active.role, active.state))
        .collect();
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
        table::or_dash(Some(migrations.join(", ").as_str())),
    ];
    if wide {
        row.push(table::or_dash(ready.map(|condition| condition.message.as_str())));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use transship_api::{NodeSpec, NodeStatus};

    #[test]
    fn a_node_without_a_report_shows_dashes() {
        let node = Node::new("node-a", NodeSpec::default());
        assert_eq!(
            row(&node, Timestamp::UNIX_EPOCH, true),
            ["node-a", "-", "-", "-", "-", "-", "-", "-", "-", "-"]
        );
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
        assert_eq!(
            differences(&nodes),
            ["listed, but never joined: b", "joined, but not listed: c"]
        );
        assert!(differences(&[node("a", None, "Available")]).is_empty());
    }
}
