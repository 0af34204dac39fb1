//! The controller of Migrations: observe → plan (pure, in `transship-core`) → write the status →
//! act. Nothing that matters is kept in memory: a new leader goes on from the status and from what
//! it observes.

mod admit;
mod apply;
mod ask;
mod claims;
mod ending;
mod error;
mod held_name;
mod manifest;
mod observe;
mod owner;
mod sequential;
mod status;
mod task;
mod vanished;
pub mod watch_sides;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc;
use jiff::Timestamp;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use transship_api::{Migration, Step, names};
use transship_core::migration::{Observed, Plan, Role, admission, plan};
use transship_core::placement::Pending;

use crate::context::{Context, Notes};
use crate::metrics::{Kind, KindReason};
pub use error::{Class, Error};
pub use held_name::keep_names;
pub use observe::node_gone;
pub use vanished::settle_vanished;

/// Migrations reconciled at a time.
const CONCURRENCY: u16 = 16;
/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(2);
/// A freeze that lasts longer is shown in the status before it ends.
const SHORT_FREEZE: Duration = Duration::from_secs(1);
/// Looks in a row that one reconciliation may take.
const LOOKS: usize = 32;

const KIND: Kind = Kind { kind: "migration" };

/// Runs the controller until `stop`.
pub async fn run(
    controller: Controller<Migration>,
    context: Arc<Context>,
    triggers: mpsc::UnboundedReceiver<ObjectRef<Migration>>,
    stop: CancellationToken,
) {
    controller
        .with_config(Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
        .reconcile_on(triggers)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, error_policy, context)
        .for_each(|result| async {
            match result {
                Ok((object, _)) => tracing::trace!(%object, "reconciled"),
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::debug!(error, "a reconciliation failed");
                }
            }
        })
        .await;
}

async fn reconcile(migration: Arc<Migration>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let uid = migration.uid().unwrap_or_default();
    let result = look_until_settled(&migration, &context).await;
    context.metrics.reconciles.get_or_create(&KIND).inc();
    context.metrics.reconcile_duration.observe(begun.elapsed().as_secs_f64());
    if result.is_ok() {
        context.memory.note(&uid, Notes::succeed);
    }
    result
}

async fn look_until_settled(migration: &Migration, context: &Context) -> Result<Action, Error> {
    for _ in 0..LOOKS {
        match look(migration, context).await {
            Ok(Next::Now) => {}
            Ok(Next::After(pause)) => return Ok(Action::requeue(pause)),
            Ok(Next::WhenChanged) => return Ok(Action::await_change()),
            // Somebody else wrote: look at what is there now.
            Err(error) if error.is_conflict() => tracing::debug!(%error, "looking again"),
            Err(error) => return Err(error),
        }
    }
    Ok(Action::requeue(Duration::from_millis(100)))
}

/// When to look next.
enum Next {
    Now,
    After(Duration),
    WhenChanged,
}

async fn look(cached: &Migration, context: &Context) -> Result<Next, Error> {
    let namespace = cached.namespace().unwrap_or_default();
    let api: Api<Migration> = Api::namespaced(context.client.clone(), &namespace);
    let uid = cached.uid().unwrap_or_default();
    // Uncached, and before the pods: what is recorded is written with this read's version.
    let found = api.get_opt(&cached.name_any()).await.map_err(Error::api("read the Migration"))?;
    let Some(migration) = found.filter(|m| m.uid().as_deref() == Some(uid.as_str())) else {
        // Somebody took its finalizer off: neither a name nor a manifest must stay for it.
        held_name::free(&namespace, &uid, context).await?;
        context.sides.drop_migration(&uid);
        context.memory.forget(&uid);
        return Ok(Next::WhenChanged);
    };
    let status = migration.status.as_ref();
    let is_final = status.and_then(|s| s.step).is_some_and(|s| s.is_final());
    let is_admitted = status.and_then(|s| s.source.as_ref()).is_some();
    if !is_final && !is_admitted {
        if migration.annotations().get(names::PAUSED).is_some_and(|v| v == "true") {
            let message = "it is paused; take the annotation transship.dev/paused off to go on";
            let waiting = admission::waiting(&migration, Step::Pending, message, Timestamp::now());
            status::patch(&migration, &waiting, context).await?;
            context.memory.note(&uid, |notes| notes.pending = None);
            return Ok(Next::WhenChanged);
        }
        return admit::admit(&migration, context).await;
    }
    if is_final && !migration.finalizers().iter().any(|f| f == names::FINALIZER) {
        context.sides.drop_migration(&uid);
        context.memory.forget(&uid);
        return Ok(Next::WhenChanged);
    }
    let observed = observe::observe(migration, context).await?;
    context.memory.note(&uid, |notes| {
        notes.pending = expected(&observed, is_final, notes.pending.take());
    });
    let now = Timestamp::now();
    let plan = plan(&observed, now);
    if plan.record.is_none() && plan.actions.is_empty() && is_being_moved(&observed, now) {
        // Only people would be told: what is written with the decision tells them as well, and
        // a write now would make the vote that is about to come wait for it.
        return Ok(Next::After(SHORT_FREEZE));
    }
    log(&observed.migration, &plan);
    status::write(&observed.migration, &plan, context).await?;
    apply::apply(&observed, &plan.actions, context).await?;
    Ok(match plan.again {
        Some(pause) if pause.is_zero() => Next::Now,
        Some(pause) => Next::After(pause),
        None => Next::WhenChanged,
    })
}

/// Until the migration has ended its pod counts where it is to go, whichever operator has chosen that: on the target, or
/// where it came from once it is to be made again there.
fn expected(observed: &Observed, is_final: bool, before: Option<Pending>) -> Option<Pending> {
    if is_final {
        return None;
    }
    let known = before.map(|pending| pending.pod);
    Some(Pending {
        migration: observed.uid().to_owned(),
        node: observed.node(Role::Target).to_owned(),
        pod: known.or_else(|| observed.source_pod.clone().map(Arc::new))?,
    })
}

/// The application stands still, and has not for long.
fn is_being_moved(observed: &Observed, now: Timestamp) -> bool {
    let frozen = observed.frozen_seen.map(|at| now.duration_since(at).unsigned_abs());
    observed.recorded().decision.is_none() && frozen.is_some_and(|time| time < SHORT_FREEZE)
}

fn log(migration: &Migration, plan: &Plan) {
    let step = plan.status.step.map(|s| s.as_str()).unwrap_or_default();
    let actions: Vec<&str> = plan.actions.iter().map(apply::name).collect();
    let name = migration.name_any();
    let namespace = migration.namespace().unwrap_or_default();
    if let Some(record) = plan.record {
        tracing::info!(namespace, name, step, ?record, "recording");
    }
    if !actions.is_empty() {
        tracing::debug!(namespace, name, step, ?actions, "acting");
    }
}

/// Transient errors are tried again, ever more slowly; what cannot be mended by trying is noted
/// and ends the attempt at the next look.
fn error_policy(migration: Arc<Migration>, error: &Error, context: Arc<Context>) -> Action {
    let uid = migration.uid().unwrap_or_default();
    let reason = error.reason();
    context.metrics.errors.get_or_create(&KindReason { kind: KIND.kind, reason }).inc();
    let text = error.chain();
    let errors = context.memory.note(&uid, |notes| {
        if error.class() == Class::Permanent {
            notes.failure.get_or_insert((error.condition_reason(), text.clone()));
        }
        if let Some(refusal) = error.refusal() {
            notes.refuse(refusal, error.is_unheard(), Instant::now());
        }
        notes.errors += 1;
        notes.errors
    });
    let name = migration.name_any();
    let namespace = migration.namespace().unwrap_or_default();
    tracing::warn!(namespace, name, reason, error = text, "a step failed");
    if error.class() == Class::Permanent {
        return Action::requeue(Duration::from_millis(1));
    }
    Action::requeue(Duration::from_millis(100 << errors.min(6)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use transship_api::{MigrationSpec, MigrationStatus, PodRef};

    use super::*;

    #[test]
    fn a_pod_is_expected_where_it_is_to_go_and_also_when_it_goes_back() {
        let mut observed = Observed::of(Migration::new("m", MigrationSpec::for_pod("p")));
        observed.source_pod = Some(Pod::default());
        let to = |observed: &mut Observed, node: &str| {
            let target = PodRef { node: node.into(), ..PodRef::default() };
            observed.migration.status =
                Some(MigrationStatus { target: Some(target), ..MigrationStatus::default() });
        };
        to(&mut observed, "node-b");
        let first = expected(&observed, false, None);
        assert_eq!(first.as_ref().map(|pending| pending.node.as_str()), Some("node-b"));
        // Its source has ended, and its object is gone.
        observed.source_pod = None;
        assert_eq!(expected(&observed, false, None), None, "nobody knows what it asks for");
        to(&mut observed, "node-a");
        let back = expected(&observed, false, first.clone());
        assert_eq!(back.as_ref().map(|pending| pending.node.as_str()), Some("node-a"));
        assert_eq!(expected(&observed, true, back), None);
    }
}
