//! `nodes`: what the agents report, and which containers are frozen or voted at this moment.

use anyhow::Result;
use clap::Args as ClapArgs;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt, api::ListParams};
use transship_api::{Node, conditions};

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
    let mut heading = vec!["NAME", "READY", "CRIU", "RUNTIME", "KERNEL", "HEARTBEAT", "MIGRATIONS"];
    if args.wide {
        heading.push("MESSAGE");
    }
    let rows: Vec<Vec<String>> = nodes.iter().map(|node| row(node, now, args.wide)).collect();
    print!("{}", table::format(&heading, &rows));
    Ok(Outcome::Done)
}

fn row(node: &Node, now: Timestamp, wide: bool) -> Vec<String> {
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == conditions::READY);
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
    use transship_api::NodeSpec;

    #[test]
    fn a_node_without_a_report_shows_dashes() {
        let node = Node::new("node-a", NodeSpec::default());
        assert_eq!(
            row(&node, Timestamp::UNIX_EPOCH, true),
            ["node-a", "-", "-", "-", "-", "-", "-", "-"]
        );
    }
}
