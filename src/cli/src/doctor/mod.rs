//! `doctor`: what would stop a migration here? Of a pod, of a node, or of the whole installation.
//!
//! What the agents know of a pod is asked for as anybody may ask: by Migrations with `dryRun`, which
//! touch nothing and are deleted again.

mod cluster;
mod node;
mod pod;

use std::time::Duration;

use anyhow::Result;
use clap::Args as ClapArgs;
use k8s_openapi::api::core::v1::{Node as CoreNode, Pod};
use kube::{Api, Client, api::ListParams};
use transship_api::{Node, duration};
use transship_core::preflight::NodeView;

use crate::Outcome;
use crate::connect::explain;

/// `kubectl transship doctor [POD|NODE]`.
#[derive(ClapArgs)]
pub struct Args {
    /// A pod or a node: NAME, pod/NAME or node/NAME; without it the whole cluster is looked at.
    #[arg(value_name = "POD|NODE")]
    name: Option<String>,
    /// Ask about this target node alone.
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// How long to wait for the answer about a pod, such as 30s.
    #[arg(long, default_value = "30s", value_parser = |text: &str| duration::parse(text))]
    timeout: Duration,
}

/// What is asked about.
#[derive(Debug, PartialEq, Eq)]
enum Subject<'a> {
    Cluster,
    Pod(&'a str),
    Node(&'a str),
    Either(&'a str),
}

fn subject(name: Option<&str>) -> Subject<'_> {
    let Some(name) = name else { return Subject::Cluster };
    match name.split_once('/') {
        Some(("pod" | "pods" | "po", name)) => Subject::Pod(name),
        Some(("node" | "nodes" | "no" | "tn", name)) => Subject::Node(name),
        _ => Subject::Either(name),
    }
}

/// Runs the command.
pub async fn run(args: Args, client: Client, namespace: &str) -> Result<Outcome> {
    match subject(args.name.as_deref()) {
        Subject::Cluster => cluster::run(client).await,
        Subject::Node(name) => node::run(client, name).await,
        Subject::Pod(name) => pod::run(&args, client, namespace, name).await,
        Subject::Either(name) => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            match pods.get_opt(name).await {
                Ok(None) => node::run(client, name).await.map_err(|error| {
                    error.context(format!("there is no pod {name} in namespace {namespace} either"))
                }),
                // Whoever may not read the pod may still be told about it.
                _ => pod::run(&args, client, namespace, name).await,
            }
        }
    }
}

/// All nodes, as both kinds show them.
async fn nodes(client: &Client) -> Result<Vec<NodeView>> {
    let everything = ListParams::default();
    let (core, agents): (Api<CoreNode>, Api<Node>) =
        (Api::all(client.clone()), Api::all(client.clone()));
    let failed = |error| explain(error, "install Transship first, see its README");
    let agents = agents.list(&everything).await.map_err(failed)?.items;
    let core = core.list(&everything).await.map_err(failed)?.items;
    Ok(NodeView::join(core, agents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_pod_or_a_node() {
        for (name, wanted) in [
            (None, Subject::Cluster),
            (Some("pod/web"), Subject::Pod("web")),
            (Some("node/a"), Subject::Node("a")),
            (Some("web"), Subject::Either("web")),
        ] {
            assert_eq!(subject(name), wanted, "{name:?}");
        }
    }
}
