//! How long a cluster takes to schedule many pods, with the scheduler `transship` (which asks the
//! extender) and with the cluster's own, side by side: `cargo xtask bench scheduling`.
//!
//! API server and schedulers are real; the nodes are objects without kubelets, kept alive by this
//! program, tainted and labelled so that only its pods go there.

#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement that may stop at once")]

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node as CoreNode, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use transship_api as api;

const MARK: &str = "transship.dev/bench";
const NAMESPACE: &str = "bench-scheduling";
/// The one that asks the extender, and the one that does not.
const SCHEDULERS: [&str; 2] = [api::names::SCHEDULER, "default-scheduler"];
/// Requests under way at a time.
const PARALLEL: usize = 32;
/// Whoever writes our Nodes' status.
const OPERATOR: &str = "system:serviceaccount:transship-system:transship-operator";

#[derive(Parser)]
struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Pods in each round.
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// Rounds for each scheduler.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that anything may take: the nodes to become usable, or a round.
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let config = Config::infer().await.unwrap();
    let mut as_operator = config.clone();
    as_operator.auth_info.impersonate = Some(OPERATOR.into());
    as_operator.auth_info.impersonate_groups = Some(vec!["system:masters".into()]);
    let client = Client::try_from(config)?;
    let operator = Client::try_from(as_operator)?;
    let names: Vec<String> = (0..args.nodes).map(|n| format!("bench-{n:04}")).collect();
    remove(&client, &names).await;
    let measured = async {
        make(&client, &operator, &names).await?;
        tokio::select! {
            done = measure(&client, &args) => done,
            () = beat(&client, &operator, &names) => Ok(()),
        }
    };
    let measured = measured.await;
    // Whatever came of it.
    remove(&client, &names).await;
    measured
}

async fn measure(client: &Client, args: &Args) -> anyhow::Result<()> {
    let limit = Duration::from_secs(args.limit);
    tokio::time::timeout(limit, usable(client)).await.context("the nodes are not usable")??;
    println!(
        "{} pods on {} nodes, {} rounds for each scheduler",
        args.pods, args.nodes, args.rounds
    );
    println!(
        "{:<20} {:>16} {:>16} {:>10}",
        "scheduler", "all created (s)", "all bound (s)", "pods/s"
    );
    let mut taken = [const { Vec::new() }; 2];
    for round in 0..args.rounds {
        // Which one goes first changes, so that warmth favours neither.
        for index in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let scheduler = SCHEDULERS[index];
            let scheduled = schedule(client, scheduler, args.pods);
            let scheduled = tokio::time::timeout(limit, scheduled).await;
            let (created, bound) =
                scheduled.with_context(|| format!("{scheduler} has not bound all in time"))??;
            let rate = args.pods as f64 / bound;
            println!("{scheduler:<20} {created:>16.2} {bound:>16.2} {rate:>10.0}");
            taken[index].push(bound);
        }
    }
    let [with, without] = taken.map(median);
    println!(
        "median until all are bound: {with:.2} s with the extender, {without:.2} s without, {:+.2} ms \
         for each pod",
        (with - without) * 1000.0 / args.pods as f64
    );
    Ok(())
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

async fn make(client: &Client, operator: &Client, names: &[String]) -> anyhow::Result<()> {
    let post = PostParams::default();
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    Api::<Namespace>::all(client.clone()).create(&post, &object(namespace)).await?;
    each(names, async |name| {
        let node = json!({
            "metadata": {"name": name, "labels": {MARK: "true"}},
            "spec": {"taints": [{"key": MARK, "effect": "NoSchedule"}]},
        });
        let nodes: Api<CoreNode> = Api::all(client.clone());
        nodes.create(&PostParams::default(), &object(node)).await?;
        let now = Timestamp::now();
        let resources = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
        let ready = json!({"type": "Ready", "status": "True", "reason": "Bench", "message": "",
            "lastHeartbeatTime": now.to_string(), "lastTransitionTime": now.to_string()});
        let status = json!({"status":
            {"capacity": resources, "allocatable": resources, "conditions": [ready]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        let ours: Api<api::Node> = Api::all(operator.clone());
        let node = api::Node::new(name, api::NodeSpec::default());
        ours.create(&PostParams::default(), &node).await?;
        let ready = json!({"type": "Ready", "status": "True", "reason": "Available", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"status": {"conditions": [ready], "heartbeatTime": micros(now)}});
        ours.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    })
    .await
    .context("the nodes could not be made")
}

/// Kubelets' leases and agents' heartbeats.
async fn beat(client: &Client, operator: &Client, names: &[String]) {
    loop {
        let beaten = each(names, async |name| {
            let now = micros(Timestamp::now());
            let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now},
            });
            leases.patch(name, &PatchParams::apply("bench").force(), &Patch::Apply(lease)).await?;
            let ours: Api<api::Node> = Api::all(operator.clone());
            let status = json!({"status": {"heartbeatTime": now}});
            ours.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
            Ok(())
        });
        if let Err(error) = beaten.await {
            eprintln!("the nodes could not be kept alive: {error}");
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Waits until every node has its own taint alone and our Node counts it as healthy.
async fn usable(client: &Client) -> kube::Result<()> {
    let marked = ListParams::default().labels(&format!("{MARK}=true"));
    loop {
        let nodes = Api::<CoreNode>::all(client.clone()).list(&marked).await?;
        let clean = |node: &CoreNode| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
            taints.unwrap_or_default().iter().all(|taint| taint.key == MARK)
        };
        let ours = Api::<api::Node>::all(client.clone()).list(&ListParams::default()).await?;
        let healthy = |node: &api::Node| {
            let status = node.status.as_ref();
            status.and_then(|s| s.health_indicator) == Some(100)
        };
        if nodes.iter().all(clean) && ours.iter().all(healthy) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Seconds until all pods are created, and until all are bound.
async fn schedule(client: &Client, scheduler: &str, count: usize) -> kube::Result<(f64, f64)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let names: Vec<String> = (0..count).map(|n| format!("bench-{n:05}")).collect();
    let began = Instant::now();
    each(&names, async |name| {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "schedulerName": scheduler,
                "nodeSelector": {MARK: "true"},
                "tolerations": [{"key": MARK, "operator": "Exists"}],
                "containers": [{"name": "c", "image": "none",
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}],
            },
        });
        pods.create(&PostParams::default(), &object(pod)).await.map(drop)
    })
    .await?;
    let created = began.elapsed().as_secs_f64();
    let unbound = ListParams::default().fields("spec.nodeName=").limit(1);
    while !pods.list_metadata(&unbound).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let bound = began.elapsed().as_secs_f64();
    let now = DeleteParams::default().grace_period(0);
    pods.delete_collection(&now, &ListParams::default()).await?;
    while !pods.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok((created, bound))
}

/// Everything that this program makes; what is not there is not missed.
async fn remove(client: &Client, names: &[String]) {
    let now = DeleteParams::default().grace_period(0);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let _ = pods.delete_collection(&now, &ListParams::default()).await;
    let _ = Api::<Namespace>::all(client.clone()).delete(NAMESPACE, &now).await;
    let _ = each(names, async |name| {
        let _ = Api::<CoreNode>::all(client.clone()).delete(name, &now).await;
        let _ = Api::<api::Node>::all(client.clone()).delete(name, &now).await;
        let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
        let _ = leases.delete(name, &now).await;
        Ok(())
    })
    .await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    while let Ok(Some(_)) = namespaces.get_opt(NAMESPACE).await {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn each(names: &[String], work: impl AsyncFn(&str) -> kube::Result<()>) -> kube::Result<()> {
    let all = stream::iter(names).map(|name| work(name)).buffer_unordered(PARALLEL);
    all.try_collect::<()>().await
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// With six digits, as Kubernetes reads them.
fn micros(time: Timestamp) -> String {
    format!("{time:.6}")
}
