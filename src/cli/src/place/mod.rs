//! `place`: where the placement engine would put a pod and why not elsewhere, or what it answers to
//! recorded cases.

mod simulate;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node as CoreNode, PersistentVolume, PersistentVolumeClaim, Pod,
};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use transship_api::{Migration, MigrationPolicy, Node, names};
use transship_core::placement::volumes::{self, Volumes};
use transship_core::placement::{
    self, Candidate, Choice, Fate, Load, NO_LOAD, Pending, kubernetes, policy,
};
use transship_core::preflight::NodeView;

use crate::connect::explain;
use crate::{Outcome, table};

pub use simulate::run as simulate;

/// `kubectl transship place`.
#[derive(ClapArgs)]
#[group(required = true, multiple = false)]
pub struct Args {
    /// Name of the pod, as a Migration without targetNode would move it.
    #[arg(value_name = "POD")]
    pod: Option<String>,
    /// Answer the cases in this file instead (`-` for standard input), one JSON object a line;
    /// needs no cluster.
    #[arg(long, value_name = "FILE")]
    pub simulate: Option<PathBuf>,
}

/// Shows the choice for a pod of the cluster.
pub async fn run(args: Args, client: Client, namespace: &str) -> Result<Outcome> {
    let name = args.pod.context("name a pod")?;
    let name = name.strip_prefix("pod/").unwrap_or(&name);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = pods.get(name).await.map_err(|error| {
        explain(error, "write the name of a pod as `kubectl get pods` prints it")
    })?;
    let policies: Vec<MigrationPolicy> = list(Api::namespaced(client.clone(), namespace)).await?;
    let policy = policy::applying(&policies, &pod);
    let volumes = mounted(&pod, &client, namespace).await?;
    let asked = kubernetes::asked(&pod, policy, None)?
        .with_volumes(volumes)
        .with_overcommit(overcommit_percent(&client).await?);
    let nodes = NodeView::join(
        list::<CoreNode>(Api::all(client.clone())).await?,
        list::<Node>(Api::all(client.clone())).await?,
    );
    let migrations: Vec<Migration> = list(Api::all(client.clone())).await?;
    let pods: Vec<Pod> = list(Api::all(client)).await?;
    let mut loads = Load::by_node(&pods);
    // Nor is the pod in its own way, whether it is to be moved or was made for that.
    let made_for = pod.labels().get(names::MIGRATION_LABEL);
    let others = migrations.iter().filter_map(|migration| Pending::of(migration, &pods));
    let is_other =
        |pending: &Pending| pending.pod.uid() != pod.uid() && made_for != Some(&pending.migration);
    for pending in others.filter(is_other) {
        Load::add_pending(&mut loads, &pending, &nodes);
    }
    let candidates: Vec<Candidate<'_>> = nodes
        .iter()
        .map(|node| Candidate { node, load: loads.get(&node.name).unwrap_or(&NO_LOAD) })
        .collect();
    let choice = placement::choose(&pod, &asked, &candidates);
    if let Some(policy) = policy {
        eprintln!("MigrationPolicy {} applies.", policy.name_any());
    }
    print!("{}", show(&choice, pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())));
    if let Some(error) = &choice.error {
        eprintln!("{error}");
    }
    Ok(if choice.order.is_empty() { Outcome::Failed } else { Outcome::Done })
}

/// The chart's value `scheduler.overcommitPercent`, by which the operator measures nodes, as the chart
/// publishes it; 0 where it does not, or where the user may not know.
async fn overcommit_percent(client: &Client) -> Result<i64> {
    const COMPONENT: &str =
        "app.kubernetes.io/part-of=transship,app.kubernetes.io/component=placement";
    const KEY: &str = "overcommitPercent";
    let published: Api<ConfigMap> = Api::all(client.clone());
    let found = match published.list(&ListParams::default().labels(COMPONENT)).await {
        Ok(found) => found.items.into_iter().find_map(|map| map.data?.remove(KEY)),
        Err(kube::Error::Api(answer)) if answer.code == 403 => {
            eprintln!(
                "Reckoned without scheduler.overcommitPercent, which may keep a part of each node free: {}.",
                answer.message
            );
            None
        }
        Err(error) => return Err(explain(error, "install Transship first")),
    };
    found.map_or(Ok(0), |text| {
        text.parse::<i64>().with_context(|| {
            format!(
                "the ConfigMap of the component placement says {KEY}: {text:?}, which is no number"
            )
        })
    })
}

/// The pod's volumes, as far as there are any yet.
async fn mounted(pod: &Pod, client: &Client, namespace: &str) -> Result<Volumes> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let bound: Api<PersistentVolume> = Api::all(client.clone());
    let explain = |error| explain(error, "have somebody give you the right to read it");
    let mut mounted = Volumes::default();
    for name in volumes::claims(pod) {
        let claim = name.rsplit('/').next().unwrap_or_default();
        let Some(claim) = claims.get_opt(claim).await.map_err(explain)? else { continue };
        let volume = match Volumes::bound_to(&claim) {
            Some(volume) => bound.get_opt(volume).await.map_err(explain)?,
            None => None,
        };
        mounted.add(name, &claim, volume.as_ref());
    }
    Ok(mounted)
}

async fn list<K>(api: Api<K>) -> Result<Vec<K>>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + kube::Resource,
{
    let found = api.list(&ListParams::default()).await;
    Ok(found.map_err(|error| explain(error, "install Transship first"))?.items)
}

/// The nodes that can be used, best first, then the others in the order of their names.
fn show(choice: &Choice, own_node: Option<&str>) -> String {
    let mut rows: Vec<(usize, &str, Vec<String>)> = choice
        .fates
        .iter()
        .map(|(node, fate)| {
            let (place, cells) = match fate {
                Fate::Ranked { weight, rank } => {
                    (*rank, [rank.to_string(), weight.to_string(), "-".into(), "-".into()])
                }
                Fate::Removed { by, reason } => {
                    (usize::MAX, ["-".into(), "-".into(), (*by).to_owned(), reason.clone()])
                }
            };
            (place, node.as_str(), [vec![node.clone()], cells.to_vec()].concat())
        })
        .collect();
    if let Some(node) = own_node {
        let cells = [node, "-", "-", "-", "the pod runs here"].map(str::to_owned);
        rows.push((usize::MAX, node, cells.to_vec()));
    }
    rows.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, _, cells)| cells).collect();
    table::format(&["NODE", "RANK", "WEIGHT", "REMOVED BY", "REASON"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_nodes_come_first_and_every_node_is_there() {
        let removed = Fate::Removed { by: "constraint", reason: "not us".into() };
        let choice = Choice {
            order: vec!["c".into(), "b".into()],
            fates: vec![
                ("a".into(), removed),
                ("b".into(), Fate::Ranked { weight: -800, rank: 2 }),
                ("c".into(), Fate::Ranked { weight: -850, rank: 1 }),
            ],
            error: None,
        };
        assert_eq!(
            show(&choice, Some("d")),
            "NODE   RANK   WEIGHT   REMOVED BY   REASON\n\
             c      1      -850     -            -\n\
             b      2      -800     -            -\n\
             a      -      -        constraint   not us\n\
             d      -      -        -            the pod runs here\n"
        );
    }
}
