//! Keeps the state up to date from watches of pods and their claims, of both kinds of node, of
//! policies and of Migrations.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node as CoreNode, PersistentVolumeClaim, Pod};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use transship_api as api;

use crate::extender::Extender;
use crate::sources::Source;

/// Follows the cluster until `stop`. The extender answers once everything has been listed.
pub async fn feed(extender: Arc<Extender>, client: Client, stop: CancellationToken) {
    let following = async {
        tokio::join!(
            follow::<Pod>(&extender, &client),
            follow::<PersistentVolumeClaim>(&extender, &client),
            follow::<CoreNode>(&extender, &client),
            follow::<api::Node>(&extender, &client),
            follow::<api::MigrationPolicy>(&extender, &client),
            follow::<api::Migration>(&extender, &client),
        );
    };
    tokio::select! { () = stop.cancelled() => {}, () = following => {} }
}

async fn follow<K>(extender: &Extender, client: &Client)
where
    K: Source + Resource<DynamicType = ()> + Clone + Debug + Send + DeserializeOwned + 'static,
{
    let events = watcher(Api::<K>::all(client.clone()), Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listing = Listing::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => listing.take(event, extender),
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "a watch broke and is made anew");
            }
        }
    }
}

/// A list that is under way: what is not in it is gone when it ends.
#[derive(Debug, Default)]
struct Listing {
    keys: HashSet<String>,
    complete: bool,
}

impl Listing {
    fn take<K: Source>(&mut self, event: Event<K>, extender: &Extender) {
        match event {
            Event::Init => self.keys.clear(),
            Event::InitApply(object) => {
                self.keys.insert(object.key());
                object.apply(&mut extender.state());
            }
            Event::InitDone => {
                K::retain(&self.keys, &mut extender.state());
                self.keys = HashSet::new();
                if !std::mem::replace(&mut self.complete, true) {
                    extender.listed_one();
                }
            }
            Event::Apply(object) => object.apply(&mut extender.state()),
            Event::Delete(object) => object.remove(&mut extender.state()),
        }
    }
}
