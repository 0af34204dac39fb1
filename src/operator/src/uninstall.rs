//! `transship-operator uninstall`, run by Helm before it deletes the chart: asks every agent to
//! take back what it put on its host, and waits for as long as it may.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use transship_api::conditions::{self as c, reasons};
use transship_api::{self as api, Migration, names};

use crate::controllers::node::remove_lease;

/// How often the nodes are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Asks and waits. A node that has been silent before is left: one that is off must not keep the
/// chart from being removed. One that answers and has not finished in time is a failure: without
/// the chart nobody would bring its host side to an end.
pub async fn run(client: Client, namespace: &str, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    await_migrations(&client, limit / 2).await?;
    let own = installation(&client).await.context("cannot tell this installation")?;
    let nodes: Api<api::Node> = Api::all(client.clone());
    let patch =
        json!({"metadata": {"annotations": {names::UNINSTALL: "true", names::UNINSTALL_BY: own}}});
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
            for node in &listed.items {
                remove_lease(&client, namespace, &node.name_any())
                    .await
                    .context("cannot remove a node's Lease")?;
            }
            tracing::info!("the host side is removed from every node that answers");
            return Ok(());
        }
        if Instant::now() >= deadline {
            anyhow::bail!(
                "nodes {} have not removed their host side in time; see why in `kubectl get tn`, then uninstall again, or with --no-hooks to leave it there",
                left.join(", ")
            );
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// What tells this installation from a former or a later one: the UID of the service account, which
/// is made with the chart, kept by its upgrades and removed with it.
pub async fn installation(client: &Client) -> anyhow::Result<String> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    let user = review.status.and_then(|status| status.user_info);
    user.and_then(|user| user.uid).context("the API server does not tell who we are")
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
    use jiff::Timestamp;
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
}
