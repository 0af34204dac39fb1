//! `transship-operator uninstall`, run by Helm before it deletes the chart: asks every agent to
//! take back what it put on its host, and waits for as long as it may.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use transship_api::conditions::{self as c, reasons};
use transship_api::{self as api, Migration, names};

/// Annotation on a Node: when its host side was asked to go. An operator that was started later
/// belongs to another installation and takes the request back.
pub const ASKED_AT: &str = "transship.dev/uninstall-at";
/// How far two clocks may be apart.
const CLOCKS: Duration = Duration::from_secs(5);
/// How often the nodes are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Asks and waits. Nodes that do not answer in time are named, and left: a node that is off must
/// not keep the chart from being removed.
pub async fn run(client: Client, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    await_migrations(&client, limit / 2).await?;
    let nodes: Api<api::Node> = Api::all(client);
    let now = Timestamp::now().to_string();
    let patch = json!({"metadata": {"annotations": {names::UNINSTALL: "true", ASKED_AT: now}}});
    let listed = match nodes.list(&ListParams::default()).await {
        Ok(listed) => listed,
        // The definitions were removed before: there is nobody to be asked.
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
        Err(error) => return Err(error).context("cannot list the nodes"),
    };
    for node in listed.items {
        let name = node.name_any();
        match nodes.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => tracing::info!(node = name, "asked to remove the host side"),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot ask {name}")),
        }
    }
    loop {
        let listed = nodes.list(&ListParams::default()).await.context("cannot list the nodes")?;
        let left: Vec<String> = listed
            .items
            .iter()
            .filter(|node| !is_removed(node) && !is_silent(node))
            .map(ResourceExt::name_any)
            .collect();
        if left.is_empty() {
            tracing::info!("the host side is removed from every node that answers");
            return Ok(());
        }
        if Instant::now() >= deadline {
            tracing::warn!(
                nodes = left.join(", "),
                "these nodes have not removed their host side in time; see the documentation on removing it by hand"
            );
            return Ok(());
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Whether a node's host side was asked to go before `started`, when this operator began: the Nodes
/// outlive the chart, and a new installation must not be undone by the end of the former.
pub fn is_of_former_installation(node: &api::Node, started: Timestamp) -> bool {
    let asked = node.annotations().get(ASKED_AT).and_then(|t| t.parse::<Timestamp>().ok());
    asked.is_some_and(|asked| {
        started.duration_since(asked) > SignedDuration::try_from(CLOCKS).unwrap_or_default()
    })
}

fn ready(node: &api::Node) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    c::find(&node.status.as_ref()?.conditions, c::READY)
}

fn is_removed(node: &api::Node) -> bool {
    ready(node).is_some_and(|r| r.status == "False" && r.reason == reasons::UNINSTALLED)
}

/// The node fell silent before it was asked.
fn is_silent(node: &api::Node) -> bool {
    ready(node).is_some_and(|r| r.status == "False" && r.reason == reasons::HEARTBEAT_MISSED)
}

/// Migrations under way come to their end while somebody is there to bring them to it.
async fn await_migrations(client: &Client, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let migrations: Api<Migration> = Api::all(client.clone());
    loop {
        let listed = match migrations.list(&ListParams::default()).await {
            Ok(listed) => listed,
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            Err(error) => return Err(error).context("cannot list the migrations"),
        };
        let open: Vec<String> = listed
            .items
            .iter()
            .filter(|m| m.finalizers().iter().any(|f| f == names::FINALIZER))
            .map(|m| format!("{}/{}", m.namespace().unwrap_or_default(), m.name_any()))
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            anyhow::bail!(
                "migrations are under way ({}); wait until they have ended, or delete those that have not committed, then uninstall again",
                open.join(", ")
            );
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use transship_api::ConditionStatus;

    use super::*;

    #[test]
    fn a_node_is_done_when_it_says_so_and_a_silent_one_is_not_waited_for() {
        let node = |status, reason| {
            let mut node = api::Node::new("node-a", api::NodeSpec::default());
            let conditions = &mut node.status.get_or_insert_default().conditions;
            let now = Timestamp::UNIX_EPOCH;
            c::set_condition(conditions, c::READY, status, reason, "", None, now);
            node
        };
        assert!(is_removed(&node(ConditionStatus::False, reasons::UNINSTALLED)));
        assert!(!is_removed(&node(ConditionStatus::True, reasons::AVAILABLE)));
        assert!(is_silent(&node(ConditionStatus::False, reasons::HEARTBEAT_MISSED)));
        assert!(!is_silent(&node(ConditionStatus::False, reasons::INSTALLING)));
    }
    #[test]
    fn a_request_ends_with_the_installation_that_it_was_made_for() {
        let started: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        for (asked, former) in [
            (Some("2026-01-01T00:00:30Z"), true),
            (Some("2026-01-01T00:00:58Z"), false),
            (Some("2026-01-01T00:02:00Z"), false),
            (None, false),
        ] {
            let mut node = api::Node::new("node-a", api::NodeSpec::default());
            node.annotations_mut().insert(names::UNINSTALL.into(), "true".into());
            if let Some(asked) = asked {
                node.annotations_mut().insert(ASKED_AT.into(), asked.into());
            }
            assert_eq!(is_of_former_installation(&node, started), former, "{asked:?}");
        }
    }
}
