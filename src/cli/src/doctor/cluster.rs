//! The whole installation in one table.

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use transship_api::names;
use transship_core::preflight::{self, NodeView};

use crate::{Outcome, table};

/// A line of the table.
struct Line {
    part: String,
    /// None where it could not be found out.
    well: Option<bool>,
    message: String,
}

/// Runs the command.
pub async fn run(client: Client) -> Result<Outcome> {
    let nodes = super::nodes(&client).await?;
    let mut lines = vec![operator(&client).await, agents(&client).await, webhooks(&client).await];
    lines.extend(nodes.iter().map(node));
    lines.extend(pairs(&nodes));
    print!("{}", show(&lines));
    let well = lines.iter().all(|line| line.well != Some(false));
    if !well {
        println!("\n`kubectl transship doctor node/NAME` says more about a node.");
    }
    Ok(if well { Outcome::Done } else { Outcome::Failed })
}

fn show(lines: &[Line]) -> String {
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let state = match line.well {
                Some(true) => "ok",
                Some(false) => "no",
                None => "?",
            };
            vec![line.part.clone(), state.into(), line.message.clone()]
        })
        .collect();
    table::format(&["PART", "STATE", "MESSAGE"], &rows)
}

fn of_ours() -> ListParams {
    ListParams::default().labels("app.kubernetes.io/name=transship")
}

fn unknown(part: &str, error: &kube::Error) -> Line {
    let message = match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    Line { part: part.into(), well: None, message: format!("cannot be looked at: {message}") }
}

async fn operator(client: &Client) -> Line {
    const PART: &str = "operator";
    let deployments: Api<Deployment> = Api::all(client.clone());
    match deployments.list(&of_ours()).await {
        Ok(listed) => {
            let found = listed.items.iter().find(|d| d.name_any() == names::OPERATOR);
            let ready = |d: &Deployment| d.status.as_ref().and_then(|s| s.ready_replicas);
            let wanted = |d: &Deployment| d.spec.replicas;
            counted(PART, found.map(|d| (place(d), ready(d), wanted(d).or(Some(1)))))
        }
        Err(error) => unknown(PART, &error),
    }
}

async fn agents(client: &Client) -> Line {
    const PART: &str = "agents";
    let sets: Api<DaemonSet> = Api::all(client.clone());
    match sets.list(&of_ours()).await {
        Ok(listed) => {
            let found = listed.items.iter().find(|d| d.name_any() == names::AGENT);
            let status = |d: &DaemonSet| d.status.clone().unwrap_or_default();
            counted(
                PART,
                found.map(|d| {
                    let status = status(d);
                    (place(d), Some(status.number_ready), Some(status.desired_number_scheduled))
                }),
            )
        }
        Err(error) => unknown(PART, &error),
    }
}

fn place(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Ready of wanted.
fn counted(part: &str, found: Option<(String, Option<i32>, Option<i32>)>) -> Line {
    let Some((place, ready, wanted)) = found else {
        let message = "is not installed: helm install transship charts/transship, see its README";
        return Line { part: part.into(), well: Some(false), message: message.into() };
    };
    let (ready, wanted) = (ready.unwrap_or(0), wanted.unwrap_or(0));
    // One replica of the operator is enough to work.
    let well = ready >= wanted || (part == "operator" && ready > 0);
    let mut message = format!("{place}: {ready} of {wanted} ready");
    if ready < wanted {
        message += "; see `kubectl get pods -A -l app.kubernetes.io/name=transship`";
    }
    Line { part: part.into(), well: Some(well), message }
}

async fn webhooks(client: &Client) -> Line {
    const PART: &str = "webhooks";
    let line =
        |well, message: &str| Line { part: PART.into(), well: Some(well), message: message.into() };
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    match api.get_opt(names::OPERATOR).await {
        Ok(None) => line(false, "are not installed: helm upgrade puts them back"),
        Ok(Some(found)) => {
            let hooks = found.webhooks.unwrap_or_default();
            let certified = hooks.iter().filter(|hook| hook.client_config.ca_bundle.is_some());
            match certified.count() == hooks.len() {
                true => line(true, &format!("{} webhooks have their certificate", hooks.len())),
                false => {
                    line(false, "have no certificate yet: the operator writes it when it leads")
                }
            }
        }
        Err(error) => unknown(PART, &error),
    }
}

fn node(node: &NodeView) -> Line {
    let status = node.agent.as_ref().and_then(|node| node.status.as_ref());
    let part = format!("node {}", node.name);
    if let Some(why) = preflight::objection(node) {
        return Line { part, well: Some(false), message: why };
    }
    let criu = status.and_then(|s| s.criu.as_ref()).map(|criu| format!("CRIU {}", criu.version));
    let runtime = status.and_then(|s| s.runtime.as_ref());
    let runtime = runtime.map(|r| format!("{} {}, runc {}", r.name, r.version, r.runc));
    let kernel = status.and_then(|s| s.kernel.as_ref()).map(|kernel| format!("Linux {kernel}"));
    let parts: Vec<String> = [criu, runtime, kernel].into_iter().flatten().collect();
    Line { part, well: Some(true), message: parts.join(", ") }
}

/// Nodes between which no pod can move, each way by itself; those that take no part left out.
fn pairs(nodes: &[NodeView]) -> Vec<Line> {
    const SHOWN: usize = 20;
    let able: Vec<&NodeView> =
        nodes.iter().filter(|node| preflight::objection(node).is_none()).collect();
    let ways = able.iter().flat_map(|from| able.iter().map(move |to| (*from, *to)));
    ways.filter(|(from, to)| from.name != to.name)
        .filter_map(|(from, to)| {
            let found = preflight::between(from, to);
            (!found.is_empty()).then(|| Line {
                part: format!("{} to {}", from.name, to.name),
                well: Some(false),
                message: preflight::summary(&found),
            })
        })
        .take(SHOWN)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ready_operator_is_enough_and_every_agent_is_wanted() {
        let found = |ready, wanted| Some(("t/x".to_owned(), Some(ready), Some(wanted)));
        for (part, found, well) in [
            ("operator", found(2, 2), true),
            ("operator", found(1, 2), true),
            ("operator", found(0, 2), false),
            ("operator", None, false),
            ("agents", found(2, 2), true),
            ("agents", found(1, 2), false),
        ] {
            let line = counted(part, found.clone());
            assert_eq!(line.well, Some(well), "{part} {found:?}: {}", line.message);
        }
    }
}
