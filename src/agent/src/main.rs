//! The agent of Transship: one on each node. It reports the node, keeps the host side in place,
//! looks at pods, starts holders and carries calls and data for them. It decides nothing about a
//! migration, and a migration does not notice its end.

mod again;
mod args;
mod certs;
mod cluster;
mod ended;
mod events;
mod gc;
mod grpc;
mod hostns;
mod identity;
mod inspect;
mod install;
mod kept;
mod leases;
mod migrations;
mod need;
mod node_report;
mod relay;
mod runtime;
mod shims;
mod supervisor;
mod telemetry;
mod tls;
mod token;
mod uninstall;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transship_core::facts::NodeFacts;
use transship_host::HostRoot;

use crate::args::Args;
use crate::telemetry::Telemetry;

/// How long data connections may go on after the agent was told to end.
const GRACE: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    // The one provider in this process; a second would make the first use panic.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args = Args::parse();
    telemetry::start_log(args.log_format, &args.log_level);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = args.node_name, "agent starts");
    tokio::runtime::Runtime::new()?.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    tokio::spawn(signals(stop.clone()));
    let started = tokio::select! {
        started = start(args, &tracker, &stop) => started,
        () = stop.cancelled() => Ok(()),
    };
    if started.is_ok() {
        stop.cancelled().await;
    }
    stop.cancel();
    tracing::info!("agent ends; holders go on");
    tracker.close();
    if tokio::time::timeout(GRACE, tracker.wait()).await.is_err() {
        tracing::warn!("data connections were cut off");
    }
    started
}

/// Starts everything; what fails to start ends the agent.
async fn start(args: Args, tracker: &TaskTracker, stop: &CancellationToken) -> anyhow::Result<()> {
    let host = HostRoot::at(&args.host_root);
    let hostns = hostns::HostNs::new(&args.host_root);
    let telemetry = Telemetry::new();
    let runtime = runtime::Runtime::new(&host, &args);
    let config = kube::Config::infer().await.context("no way to the API server")?;
    let client = transship_client::connect(config)?;
    let cluster = cluster::Cluster::start(client.clone(), &args.node_name, stop.clone());
    let (asked_sender, asked) = watch::channel(uninstall::Asked::Unknown);
    let (supervise, supervise_wanted) = watch::channel(supervisor::Wanted::Unknown);
    let writing = Arc::default();
    let (installer, side) = install::Installer::new(
        args.clone(),
        host.clone(),
        runtime.clone(),
        cluster.clone(),
        asked,
        supervise,
        Arc::clone(&writing),
    );
    let (keeper, supervisor) = supervisor::Supervisor::new(
        host.clone(),
        hostns.clone(),
        telemetry.clone(),
        supervise_wanted,
    );
    // Holders do without the API server for a while, and must not wait until it tells who this node is.
    tracker.spawn(installer.run(stop.clone()));
    tracker.spawn(keeper.run(stop.clone()));

    let identity = Arc::new(identity::discover(&client, &args).await?);
    tracing::info!(control = %identity.control, data = %identity.data, "this node");

    let (certificates, tls) =
        certs::Certificates::new(args.clone(), client.clone(), telemetry.clone(), &host.run());
    let (facts_sender, facts) =
        watch::channel(NodeFacts { name: identity.node.clone(), ..NodeFacts::default() });
    let relay = relay::Relay {
        host: host.clone(),
        tls: tls.clone(),
        kubelet_root: args.kubelet_root.clone(),
        runtime: runtime.clone(),
        telemetry: telemetry.clone(),
    };
    let leases = leases::Leases {
        node: identity.node.clone(),
        host: host.clone(),
        runtime: runtime.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
    };
    let inspector = inspect::Inspector {
        host: host.clone(),
        hostns: hostns.clone(),
        runtime,
        kubelet_root: args.kubelet_root.clone(),
        cni_conf_dir: args.cni_conf_dir.clone(),
    };
    let service = grpc::Service {
        node: identity.node.clone(),
        kubelet_root: args.kubelet_root.clone(),
        host: host.clone(),
        inspector,
        facts,
        side: side.clone(),
        leases: leases.clone(),
        telemetry: telemetry.clone(),
        writing,
        stop: stop.clone(),
    };

    // Ports first: a port in use is a reason not to start.
    let bind = async |address| {
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
    };
    let control = bind(identity.control).await?;
    let peers = bind(identity.data).await?;
    let admin = bind(identity.admin).await?;
    let holders = grpc::bind_local(&host.agent_data_socket())?;

    let ended = |what: &'static str, stop: CancellationToken| {
        move |result: anyhow::Result<()>| {
            if let Err(error) = result {
                tracing::error!(error = format!("{error:#}"), "{what} failed");
                stop.cancel();
            }
        }
    };
    use futures::FutureExt;
    tracker.spawn(
        telemetry::serve(telemetry.clone(), admin, stop.clone())
            .map(ended("the port for metrics", stop.clone())),
    );
    tracker.spawn(
        grpc::serve(service, control, tls.clone())
            .map(ended("the service for the operator", stop.clone())),
    );
    tracker.spawn(relay.clone().serve_peers(peers, stop.clone()));
    tracker.spawn(relay.clone().serve_holders(holders, stop.clone()));
    tracker.spawn(certificates.run(stop.clone()));
    tracker.spawn(
        token::Tokens {
            args: args.clone(),
            cluster: cluster.clone(),
            host: host.clone(),
            telemetry: telemetry.clone(),
            side: side.clone(),
        }
        .run(stop.clone()),
    );
    tracker.spawn(
        gc::Collector {
            host: host.clone(),
            cluster: cluster.clone(),
            relay,
            leases,
            telemetry: telemetry.clone(),
        }
        .run(stop.clone()),
    );
    tracker.spawn(
        node_report::Reporter {
            events: events::Events::new(client, &identity.node),
            args,
            identity,
            cluster,
            host,
            hostns,
            side,
            supervisor,
            tls,
            asked: asked_sender,
            facts: facts_sender,
            telemetry,
        }
        .run(stop.clone()),
    );
    Ok(())
}

async fn signals(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    stop.cancel();
}
