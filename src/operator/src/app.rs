//! Puts the parts together: what every replica runs, what only the leader runs, and how all of it
//! ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node as CoreNode;
use kube::runtime::controller::Controller;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transship_api::{self as api, Migration, names};
use transship_core::static_list;
use transship_extender::Extender;

use crate::agents::Agents;
use crate::args::Args;
use crate::context::{Context, Memory};
use crate::controllers::migration::watch_sides::Registry;
use crate::controllers::node::Expectation;
use crate::controllers::{migration, node};
use crate::events::Events;
use crate::http::{self, Health};
use crate::leader::Elector;
use crate::metrics::Metrics;
use crate::pki::issue::Issuer;
use crate::pki::keeper::Keeper;
use crate::pki::serving;
use crate::webhooks::{Handover, Movable};

/// How long everything may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Runs until a signal.
pub async fn run(args: Args, client: Client) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::default());
    let instance = match args.pod_name.as_str() {
        "" => format!("{}-{}", names::OPERATOR, std::process::id()),
        name => name.to_owned(),
    };
    let (elector, leading) =
        Elector::new(client.clone(), &args.namespace, names::LEADER_LEASE, instance.clone());
    let (keeper, authority) = Keeper::new(client.clone(), args.namespace.clone(), leading.clone());
    let (publish, identity) = watch::channel(None);
    let own_names = serving::names(&args.service, &args.namespace);
    tokio::spawn(keeper.run(stop.clone()));
    tokio::spawn(serving::keep(authority, own_names, publish, stop.clone()));

    let issuer = Issuer {
        client: client.clone(),
        namespace: args.namespace.clone(),
        identity: identity.clone(),
    };
    let handover = Handover { client: client.clone(), metrics: metrics.clone() };
    let secure = http::listen(args.webhook_port).await.context("cannot listen for webhooks")?;
    let admin = http::listen(args.admin_port).await.context("cannot listen for metrics")?;
    let movable = Movable { client: client.clone(), metrics: metrics.clone() };
    let routes = http::secure_routes(issuer, handover, movable, metrics.clone());
    tokio::spawn(http::serve_secure(secure, identity.clone(), routes, stop.clone()));
    let health = Health { identity: identity.clone(), metrics: metrics.clone() };
    tokio::spawn(http::serve_admin(admin, health, stop.clone()));

    if args.extender_port != 0 {
        place(&args, client.clone(), &metrics, stop.clone()).await?;
    }

    let election = tokio::spawn(elector.run(stop.clone()));
    let lead = Lead {
        client,
        namespace: args.namespace.clone(),
        instance,
        expectation: Expectation {
            ttl: Duration::from_secs(args.node_ttl_seconds),
            listed: static_list::expand(args.static_nodes.iter().map(String::as_str)),
        },
        identity,
        metrics,
        overcommit_percent: args.overcommit_percent,
    };
    let mut leading_work = tokio::spawn(lead_while_elected(lead, leading));
    let mut election = election;
    tokio::select! {
        ended = &mut election => {
            ended?;
            anyhow::bail!("the election has ended")
        }
        ended = &mut leading_work => {
            // Whoever leads without working keeps others from leading.
            ended?;
            anyhow::bail!("the controllers have ended")
        }
        () = signalled() => {
            tracing::info!("ending");
            // First the leader's work, then the lead: the next leader begins when nothing is in
            // hand here.
            leading_work.abort();
            let _ = leading_work.await;
            stop.cancel();
            if tokio::time::timeout(END_LIMIT, election).await.is_err() {
                tracing::warn!("the lead could not be released in time");
            }
            Ok(())
        }
    }
}

/// Answers the kube-scheduler of the same pod. In every replica: which scheduler leads is their own
/// affair, and the one that takes over must find an extender that knows the cluster.
async fn place(
    args: &Args,
    client: Client,
    metrics: &Metrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = http::listen_locally(args.extender_port)
        .await
        .context("cannot listen for the scheduler")?;
    let extender = Arc::new(Extender::new(args.overcommit_percent, metrics.placement.clone()));
    tokio::spawn(transship_extender::feed(extender.clone(), client.clone(), stop.clone()));
    tokio::spawn(transship_extender::touch(extender.clone(), client, stop.clone()));
    tokio::spawn(http::serve_extender(listener, extender, stop));
    Ok(())
}

async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}

/// What only the leader does.
struct Lead {
    client: Client,
    namespace: String,
    instance: String,
    expectation: Expectation,
    identity: watch::Receiver<Option<serving::Identity>>,
    metrics: Arc<Metrics>,
    overcommit_percent: i64,
}

/// Leads whenever elected. With the lead everything goes that was in hand: another leader goes on
/// with it. Webhooks and placement are served meanwhile, as in every replica. Returns only when the
/// controllers end by themselves.
async fn lead_while_elected(lead: Lead, mut leading: watch::Receiver<bool>) {
    while leading.wait_for(|leads| *leads).await.is_ok() {
        lead.metrics.leader.set(1);
        let lost = tokio::select! {
            biased;
            changed = leading.changed() => changed.is_ok(),
            () = lead.run() => false,
        };
        lead.metrics.leader.set(0);
        if !lost {
            return;
        }
    }
}

impl Lead {
    /// One term.
    async fn run(&self) {
        let stop = CancellationToken::new();
        // Also where this is dropped: then nothing goes on.
        let _end = stop.clone().drop_guard();
        let core_nodes = cache::<CoreNode>(Api::all(self.client.clone()), stop.clone());
        let nodes = cache::<api::Node>(Api::all(self.client.clone()), stop.clone());
        let policies = cache::<api::MigrationPolicy>(Api::all(self.client.clone()), stop.clone());
        // Judging by half-filled caches would refuse migrations to nodes that exist.
        if core_nodes.wait_until_ready().await.is_err()
            || nodes.wait_until_ready().await.is_err()
            || policies.wait_until_ready().await.is_err()
        {
            return;
        }
        let agents = Agents::new(nodes.clone(), self.identity.clone());
        let (sides, triggers) = Registry::new(self.client.clone(), agents.clone());
        let controller =
            Controller::new(Api::<Migration>::all(self.client.clone()), watcher::Config::default());
        let context = Arc::new(Context {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            core_nodes,
            nodes,
            policies,
            migrations: controller.store(),
            agents,
            sides,
            events: Events::new(self.client.clone(), self.instance.clone()),
            metrics: self.metrics.clone(),
            overcommit_percent: self.overcommit_percent,
            choosing: tokio::sync::Mutex::default(),
            memory: Memory::default(),
        });
        tokio::join!(
            migration::run(controller, context.clone(), triggers, stop.clone()),
            migration::keep_names(context.clone(), stop.clone()),
            migration::settle_vanished(context.clone(), stop.clone()),
            node::run(context, self.expectation.clone(), stop.clone()),
        );
    }
}

/// All objects of a kind, kept up to date.
fn cache<K>(api: Api<K>, stop: CancellationToken) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + Sync + 'static,
    K: serde::de::DeserializeOwned,
{
    let (reader, writer) = reflector::store();
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        // Nobody looks at them, and they may be half of an object.
        .modify(|object: &mut K| object.managed_fields_mut().clear())
        .reflect(writer);
    tokio::spawn(async move {
        let mut events = events.boxed();
        let keep = async {
            while let Some(event) = events.next().await {
                if let Err(error) = event {
                    tracing::warn!(%error, "a watch broke and is made anew");
                }
            }
        };
        tokio::select! { () = stop.cancelled() => {}, () = keep => {} }
    });
    reader
}
