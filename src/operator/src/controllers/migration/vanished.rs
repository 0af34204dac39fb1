//! Brings to an end what is left of Migrations that have vanished while they were under way: their pods bear their
//! marks, and nobody reconciles what is not there. What is to be done is decided in `core::migration::vanished`.
//!
//! Whichever Migration goes while the operator looks, its namespace is looked at; the marks of those that went unseen
//! (no operator ran, or a call was still under way) are looked for everywhere when the lead begins, and now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use transship_api::{self as api, Migration};
use transship_core::migration::vanished::{self, Fate};
use transship_core::migration::{Observed, Role, Side};

use super::watch_sides::{Places, Sides};
use super::{Error, LOOKS, apply, observe};
use crate::context::Context;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// For how long a namespace is looked at in every round; sides are mostly quick to say how they ended.
const SOON: Duration = Duration::from_secs(60);
/// How often after that.
const SELDOM: Duration = Duration::from_secs(30);
/// How often marks are looked for everywhere.
const SWEEP: Duration = Duration::from_secs(300);
/// Pods in one answer.
const PODS_AT_A_TIME: u32 = 500;

/// Settles, until `stop`, what has vanished.
pub async fn settle_vanished(context: Arc<Context>, stop: CancellationToken) {
    // By a cache that is not filled yet everything would be left behind.
    if context.migrations.wait_until_ready().await.is_err() {
        return;
    }
    let mut keeper = Keeper::default();
    loop {
        keeper.round(&context).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Remembers where is to be looked; nothing of it is needed to go on after a restart.
#[derive(Default)]
struct Keeper {
    /// Namespaces of the Migrations that were there at the last look, by UID.
    there: BTreeMap<String, String>,
    /// Those that are not there any more and may have left something, by UID.
    gone: BTreeMap<String, Gone>,
    /// Their namespaces.
    open: BTreeMap<String, Open>,
    /// When marks are looked for everywhere next; at once, if nothing is said.
    sweep: Option<Instant>,
}

struct Gone {
    namespace: String,
    /// What people were told last.
    told: String,
}

struct Open {
    since: Instant,
    looked: Option<Instant>,
}

impl Open {
    fn is_due(&self, now: Instant) -> bool {
        let pause = match now.duration_since(self.since) < SOON {
            true => Duration::ZERO,
            false => SELDOM,
        };
        self.looked.is_none_or(|at| now.duration_since(at) >= pause)
    }
}

impl Keeper {
    async fn round(&mut self, context: &Context) {
        self.notice(context);
        if self.sweep.is_none_or(|at| at <= Instant::now()) {
            let found = marks(&Api::all(context.client.clone())).await;
            // Where it breaks off it begins at the first page again.
            let pause = if found.is_ok() { SWEEP } else { SELDOM };
            self.sweep = Some(Instant::now() + pause);
            match found {
                Ok(marks) => {
                    for mark in marks {
                        if !self.there.contains_key(&mark.migration) {
                            self.look_for(mark.migration, mark.namespace);
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(error = error.chain(), "marks of pods are looked for later");
                }
            }
        }
        let now = Instant::now();
        let due = self.open.iter().filter(|(_, open)| open.is_due(now));
        let due: Vec<String> = due.map(|(namespace, _)| namespace.clone()).collect();
        for namespace in due {
            let settled = self.settle(&namespace, context).await.unwrap_or_else(|error| {
                let error = error.chain();
                tracing::warn!(namespace, error, "vanished Migrations are looked at later");
                false
            });
            if settled {
                self.open.remove(&namespace);
            } else if let Some(open) = self.open.get_mut(&namespace) {
                open.looked = Some(Instant::now());
            }
        }
    }

    /// Which Migrations have gone since the last round, by the cache. Most of them were over.
    fn notice(&mut self, context: &Context) {
        let migrations = context.migrations.state();
        let there = migrations.iter().filter_map(|m| Some((m.uid()?, m.namespace()?))).collect();
        for (uid, namespace) in std::mem::replace(&mut self.there, there) {
            if !self.there.contains_key(&uid) {
                self.look_for(uid, namespace);
            }
        }
    }

    /// Its namespace is looked at in every round again, also where another one is open there for long.
    fn look_for(&mut self, uid: String, namespace: String) {
        if self.gone.contains_key(&uid) && self.open.contains_key(&namespace) {
            return;
        }
        self.open.insert(namespace.clone(), Open { since: Instant::now(), looked: None });
        self.gone.entry(uid).or_insert_with(|| Gone { namespace, told: String::new() });
    }

    /// Forgets those of a namespace that have left nothing, or are `there` after all.
    fn forget(
        &mut self,
        namespace: &str,
        left: &Left<'_>,
        there: &BTreeSet<String>,
        context: &Context,
    ) {
        self.gone.retain(|uid, gone| {
            let stays = gone.namespace != namespace || left.contains_key(uid.as_str());
            if !stays && !there.contains(uid) && !self.there.contains_key(uid) {
                context.sides.drop_migration(uid);
                context.memory.forget(uid);
            }
            stays
        });
    }

    /// Whether nothing of a vanished Migration is left in the namespace.
    async fn settle(&mut self, namespace: &str, context: &Context) -> Result<bool, Error> {
        let marks = marks(&Api::namespaced(context.client.clone(), namespace)).await?;
        if marks.is_empty() {
            self.forget(namespace, &Left::new(), &BTreeSet::new(), context);
            return Ok(true);
        }
        let there = uids_there(namespace, context).await?;
        let mut left = left_behind(&marks, &there);
        // Whoever writes the UID of another namespace's Migration on a pod must not get at its sides.
        left.retain(|uid, _| self.there.get(*uid).is_none_or(|of| of == namespace));
        self.forget(namespace, &left, &there, context);
        for (uid, pods) in &left {
            self.look_for((*uid).to_owned(), namespace.to_owned());
            match self.settle_one(uid, namespace, pods, context).await {
                Ok(()) => {}
                // Somebody else wrote: the next look is at what is there then.
                Err(error) if error.is_conflict() => tracing::debug!(%error, "looking again"),
                Err(error) => {
                    let error = error.chain();
                    tracing::warn!(namespace, migration = uid, error, "a step failed");
                }
            }
        }
        Ok(left.is_empty())
    }

    /// Does what can be done at once for one that is not there any more.
    async fn settle_one(
        &mut self,
        uid: &str,
        namespace: &str,
        pods: &[&str],
        context: &Context,
    ) -> Result<(), Error> {
        let mut reached = None;
        for _ in 0..LOOKS {
            let mut observed = observe(uid, namespace, pods, context).await?;
            if observed.source_pod.is_none() && observed.target_pod.is_none() {
                return Ok(());
            }
            let now = Timestamp::now();
            let fate = vanished::settle(&mut observed, reached, now);
            self.tell(&observed, fate, context).await;
            let Some(fate) = fate else {
                return apply::apply(&observed, &vanished::meanwhile(&observed), context).await;
            };
            if fate == Fate::Moved {
                observe::observe_owner(&mut observed, context).await?;
            }
            let plan = vanished::plan(&observed, fate, now);
            if !plan.actions.is_empty() {
                let actions: Vec<&str> = plan.actions.iter().map(apply::name).collect();
                tracing::info!(namespace, migration = uid, ?fate, ?actions, "settling");
            }
            apply::apply(&observed, &plan.actions, context).await?;
            if !plan.again.is_some_and(|pause| pause.is_zero()) {
                return Ok(());
            }
            reached = plan.status.step;
        }
        Ok(())
    }

    /// Tells people at its pods, once.
    async fn tell(&mut self, observed: &Observed, fate: Option<Fate>, context: &Context) {
        let is_unasked = [&observed.source, &observed.target].contains(&&Side::Unknown);
        if fate.is_none() && is_unasked {
            return;
        }
        let note = vanished::told(observed, fate);
        let Some(gone) = self.gone.get_mut(observed.uid()) else { return };
        if gone.told == note.message {
            return;
        }
        gone.told.clone_from(&note.message);
        for pod in [&observed.source_pod, &observed.target_pod].into_iter().flatten() {
            context.events.publish_of_pod(pod, note.clone()).await;
        }
    }
}

/// The mark of a Migration on a pod.
#[derive(Debug)]
struct Mark {
    migration: String,
    namespace: String,
    pod: String,
}

/// All marks on pods.
async fn marks(pods: &Api<Pod>) -> Result<Vec<Mark>, Error> {
    let mut asked = ListParams::default().limit(PODS_AT_A_TIME);
    let mut marks = Vec::new();
    loop {
        let page = pods.list_metadata(&asked).await.map_err(Error::api("list the pods"))?;
        marks.extend(page.items.iter().filter_map(|pod| {
            let (migration, _) = vanished::marks_of(&pod.metadata)?;
            Some(Mark {
                migration: migration.to_owned(),
                namespace: pod.namespace()?,
                pod: pod.name_any(),
            })
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => asked = asked.continue_token(&token),
            None => return Ok(marks),
        }
    }
}

/// UIDs of the Migrations of a namespace, not of the cache. Asked for after marks have been read: a Migration for which
/// one was set has been there before.
pub(super) async fn uids_there(
    namespace: &str,
    context: &Context,
) -> Result<BTreeSet<String>, Error> {
    let migrations: Api<Migration> = Api::namespaced(context.client.clone(), namespace);
    let listed = migrations
        .list_metadata(&ListParams::default())
        .await
        .map_err(Error::api("list the Migrations"))?;
    Ok(listed.items.iter().filter_map(ResourceExt::uid).collect())
}

/// Names of pods by the UID of the Migration whose marks they bear.
type Left<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// Those that bear marks of Migrations that are not there.
fn left_behind<'a>(marks: &'a [Mark], there: &BTreeSet<String>) -> Left<'a> {
    let mut left = Left::new();
    for mark in marks.iter().filter(|mark| !there.contains(&mark.migration)) {
        left.entry(&mark.migration).or_default().push(&mark.pod);
    }
    left
}

/// What is left of it, read now, and what its sides said last.
async fn observe(
    uid: &str,
    namespace: &str,
    pods: &[&str],
    context: &Context,
) -> Result<Observed, Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let (mut source, mut target) = (None, None);
    for name in pods {
        let found = api.get_opt(name).await;
        let Some(pod) = found.map_err(Error::api("read a vanished Migration's pod"))? else {
            continue;
        };
        let mark = vanished::marks_of(&pod.metadata).filter(|(of, _)| *of == uid);
        match mark.map(|(_, role)| role) {
            Some(Role::Source) => source = Some(pod),
            Some(Role::Target) => target = Some(pod),
            None => {}
        }
    }
    let published = [api::Role::Source, api::Role::Target].map(|role| tells_of(uid, role, context));
    let both = [source.as_ref(), target.as_ref()];
    let nodes = vanished::nodes(both, published);
    let names = both.map(|pod| pod.map(ResourceExt::name_any).unwrap_or_default());
    let migration = vanished::put_together(uid, namespace, both, nodes.clone());
    let places = Places {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        nodes: nodes.clone(),
        pods: names,
    };
    let heard: Sides = context.sides.look(&ObjectRef::from_obj(&migration), &places);
    let [source_node, target_node] = &nodes;
    // Where neither a pod nor a node tells of a side, nobody has begun one.
    let side = |node: &str, heard| if node.is_empty() { Side::NotStarted } else { heard };
    let mut observed = Observed::of(migration);
    observed.vanished = true;
    observed.source = side(source_node, heard.source);
    observed.target = side(target_node, heard.target);
    observed.frozen_seen = heard.frozen_seen;
    observed.source_node_gone = observe::node_gone(source_node, context).await?;
    observed.target_node_gone = observe::node_gone(target_node, context).await?;
    observed.source_pod = source;
    observed.target_pod = target;
    Ok(observed)
}

/// The node that publishes this side.
fn tells_of(uid: &str, role: api::Role, context: &Context) -> Option<String> {
    let nodes = context.nodes.state();
    let node = nodes.iter().find(|node| {
        let mut sides = node.status.iter().flat_map(|status| &status.active_migrations);
        sides.any(|side| side.migration_uid == uid && side.role == role)
    })?;
    Some(node.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_left_behind_by_migrations_that_are_not_there() {
        let mark = |migration: &str, pod: &str| Mark {
            migration: migration.into(),
            namespace: "shop".into(),
            pod: pod.into(),
        };
        let marks = [mark("m-1", "web-1"), mark("m-2", "web-2"), mark("m-1", "web-3")];
        let there = BTreeSet::from(["m-2".to_owned()]);
        let expected = BTreeMap::from([("m-1", vec!["web-1", "web-3"])]);
        assert_eq!(left_behind(&marks, &there), expected);
    }

    #[test]
    fn one_that_has_just_vanished_is_looked_at_soon_where_another_is_open_for_long() {
        let mut keeper = Keeper::default();
        keeper.look_for("m-1".into(), "shop".into());
        let looked = Some(Instant::now());
        keeper.open.get_mut("shop").unwrap().looked = looked;
        keeper.look_for("m-1".into(), "shop".into());
        assert_eq!(keeper.open["shop"].looked, looked);
        keeper.look_for("m-2".into(), "shop".into());
        assert_eq!(keeper.open["shop"].looked, None);
    }

    #[test]
    fn what_is_not_settled_soon_is_looked_at_seldom() {
        let since = Instant::now();
        let open = |looked: Option<u64>| Open {
            since,
            looked: looked.map(|seconds| since + Duration::from_secs(seconds)),
        };
        let at = |seconds| since + Duration::from_secs(seconds);
        assert!(open(None).is_due(at(0)) && open(None).is_due(at(1000)));
        assert!(open(Some(10)).is_due(at(12)));
        assert!(!open(Some(70)).is_due(at(72)));
        assert!(open(Some(70)).is_due(at(100)));
    }
}
