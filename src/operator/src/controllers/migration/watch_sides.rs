//! What both sides of each migration say, as it comes: a stream from each agent and a watch of both
//! pods. Every change triggers the migration's reconciliation, so that a vote is handled within
//! milliseconds.
//!
//! Nothing is decided here. What a side has said is kept when its agent falls silent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use transship_api::Migration;
use transship_core::migration::{Report, Role, Side, Stage};
use transship_protocol::{Decision, MAX_MESSAGE, MAX_REASON};
use transship_rpc as rpc;

use crate::agents::{Agents, Error};

/// Pause before a side that does not answer, or has not begun, is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// A closed side says nothing new; it is asked again to see whether it was forgotten.
const CLOSED_PAUSE: Duration = Duration::from_secs(10);

/// The two sides of one migration.
#[derive(Clone, Debug, Default)]
pub struct Sides {
    /// The source.
    pub source: Side,
    /// The target.
    pub target: Side,
    /// When it was first heard here that the source is frozen.
    pub frozen_seen: Option<Timestamp>,
}

/// Names under which sides and pods are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// UID of the Migration.
    pub uid: String,
    /// Namespace of Migration and pods.
    pub namespace: String,
    /// Nodes, source first.
    pub nodes: [String; 2],
    /// Pods, source first.
    pub pods: [String; 2],
}

struct Watched {
    places: Places,
    sides: Arc<Mutex<Sides>>,
    kicks: [Arc<Notify>; 2],
    stop: CancellationToken,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All watched migrations, by UID.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    agents: Agents,
    trigger: mpsc::UnboundedSender<ObjectRef<Migration>>,
    watched: Arc<Mutex<HashMap<String, Watched>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked left whole values behind: they are replaced, never changed in part.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// An empty registry, and the triggers that it will send.
    pub fn new(
        client: Client,
        agents: Agents,
    ) -> (Self, mpsc::UnboundedReceiver<ObjectRef<Migration>>) {
        let (trigger, triggers) = mpsc::unbounded();
        (Self { client, agents, trigger, watched: Arc::default() }, triggers)
    }

    /// What the sides said last; begins to watch them if nobody does.
    pub fn look(&self, object: &ObjectRef<Migration>, places: &Places) -> Sides {
        let mut watched = locked(&self.watched);
        // Where the pod was made again its name is another, and perhaps its node.
        if let Some(known) = watched.get(&places.uid)
            && known.places != *places
        {
            let before = locked(&known.sides).clone();
            let moved = self.begin(object.clone(), places.clone());
            if known.places.nodes == places.nodes {
                *locked(&moved.sides) = before;
            } else {
                locked(&moved.sides).source = before.source;
                locked(&moved.sides).frozen_seen = before.frozen_seen;
            }
            watched.insert(places.uid.clone(), moved);
        }
        let entry = watched
            .entry(places.uid.clone())
            .or_insert_with(|| self.begin(object.clone(), places.clone()));
        locked(&entry.sides).clone()
    }

    /// Ask this side again now: something was started or forgotten there.
    pub fn kick(&self, uid: &str, role: Role) {
        if let Some(entry) = locked(&self.watched).get(uid) {
            entry.kicks[role as usize].notify_one();
        }
    }

    /// Nobody needs the sides any more.
    pub fn drop_migration(&self, uid: &str) {
        locked(&self.watched).remove(uid);
    }

    fn begin(&self, object: ObjectRef<Migration>, places: Places) -> Watched {
        let watched = Watched {
            places: places.clone(),
            sides: Arc::default(),
            kicks: [Arc::default(), Arc::default()],
            stop: CancellationToken::new(),
        };
        for role in Role::BOTH {
            let follower = Follower {
                agents: self.agents.clone(),
                node: places.nodes[role as usize].clone(),
                uid: places.uid.clone(),
                role,
                sides: watched.sides.clone(),
                kick: watched.kicks[role as usize].clone(),
                trigger: self.trigger.clone(),
                object: object.clone(),
            };
            spawn(watched.stop.clone(), follower.run());
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &places.namespace);
            let name = places.pods[role as usize].clone();
            spawn(
                watched.stop.clone(),
                watch_pod(pods, name, self.trigger.clone(), object.clone()),
            );
        }
        watched
    }
}

fn spawn(stop: CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        tokio::select! { () = stop.cancelled() => {}, () = work => {} }
    });
}

async fn watch_pod(
    pods: Api<Pod>,
    name: String,
    trigger: mpsc::UnboundedSender<ObjectRef<Migration>>,
    object: ObjectRef<Migration>,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(pods, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        if event.is_ok() && trigger.unbounded_send(object.clone()).is_err() {
            return;
        }
    }
}

/// Follows one side.
struct Follower {
    agents: Agents,
    node: String,
    uid: String,
    role: Role,
    sides: Arc<Mutex<Sides>>,
    kick: Arc<Notify>,
    trigger: mpsc::UnboundedSender<ObjectRef<Migration>>,
    object: ObjectRef<Migration>,
}

impl Follower {
    async fn run(self) {
        loop {
            let ended = self.follow().await;
            let pause = match &ended {
                Ok(()) if self.is_closed() => CLOSED_PAUSE,
                Ok(()) => RETRY,
                Err(error) if error.code() == Some(Code::NotFound) => {
                    self.set(|_| Side::NotStarted);
                    RETRY
                }
                Err(error) => {
                    tracing::debug!(node = self.node, role = %self.role, %error, "a side does not answer");
                    self.set(|side| match side {
                        Side::Unreachable { .. } => side.clone(),
                        side => Side::Unreachable {
                            since: Timestamp::now(),
                            last: side.report().cloned(),
                        },
                    });
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.kick.notified() => {}
            }
        }
    }

    /// Until the stream ends or breaks.
    async fn follow(&self) -> Result<(), Error> {
        let mut stream = self.agents.watch(&self.node, &self.uid, self.role).await?;
        loop {
            match stream.message().await {
                Ok(Some(status)) => self.set(|_| Side::Reporting(report(&status))),
                Ok(None) => return Ok(()),
                Err(status) => {
                    let status = Box::new(status);
                    return Err(Error::Call { node: self.node.clone(), status });
                }
            }
        }
    }

    fn is_closed(&self) -> bool {
        let sides = locked(&self.sides);
        let side = match self.role {
            Role::Source => &sides.source,
            Role::Target => &sides.target,
        };
        side.report().is_some_and(|r| r.closed)
    }

    /// Changes what is known of the side, and says so if it changed.
    fn set(&self, change: impl FnOnce(&Side) -> Side) {
        let changed = {
            let mut sides = locked(&self.sides);
            let side = match self.role {
                Role::Source => &mut sides.source,
                Role::Target => &mut sides.target,
            };
            let new = change(side);
            let changed = *side != new;
            *side = new;
            let frozen = sides.source.report().is_some_and(|r| r.frozen_at.is_some());
            if frozen && sides.frozen_seen.is_none() {
                sides.frozen_seen = Some(Timestamp::now());
            }
            changed
        };
        if changed {
            // Nobody listens when the process ends.
            let _ = self.trigger.unbounded_send(self.object.clone());
        }
    }
}

/// The word of a side, if the snapshot is that side's and has one.
fn word<W: serde::de::DeserializeOwned>(status: &rpc::SideStatus, role: rpc::Role) -> Option<W> {
    if status.role() != role || status.word_json.is_empty() {
        return None;
    }
    serde_json::from_str(&status.word_json).ok()
}

/// What a side calls its failure, as it may become the reason of conditions and events and the label of a metric.
/// It may come from the other node, and is written with the decision, which nothing must keep from being stored.
fn reason(said: &str) -> String {
    let is_word = said.len() <= MAX_REASON
        && said.starts_with(|c: char| c.is_ascii_alphabetic())
        && said.chars().all(|c| c.is_ascii_alphanumeric());
    let reason = if said.is_empty() || is_word { said } else { "PeerFailed" };
    reason.to_owned()
}

/// What a side says to people.
fn text(said: &str) -> String {
    said.chars().take(MAX_MESSAGE).collect()
}

/// A snapshot as `core` understands it.
fn report(status: &rpc::SideStatus) -> Report {
    let at = |micros: i64| Timestamp::from_microsecond(micros).ok().filter(|_| micros > 0);
    Report {
        pod_uid: status.pod_uid.clone(),
        stage: match status.stage() {
            rpc::Stage::Unspecified | rpc::Stage::Started => Stage::Started,
            rpc::Stage::Connected => Stage::Connected,
            rpc::Stage::Frozen => Stage::Frozen,
            rpc::Stage::Sent => Stage::Sent,
            rpc::Stage::Restored => Stage::Restored,
            rpc::Stage::Voted => Stage::Voted,
            rpc::Stage::Thawed => Stage::Thawed,
            rpc::Stage::Released => Stage::Released,
            rpc::Stage::Aborted => Stage::Aborted,
            rpc::Stage::Lost => Stage::Lost,
        },
        voted: status.voted,
        closed: status.closed,
        never_thawed: status.never_thawed,
        waiting: status.waiting.clone(),
        restored: status.restored.clone(),
        hooks: status.hooks.clone().into_iter().collect(),
        reason: reason(&status.reason),
        message: text(&status.message),
        files_lost: status.files_lost.clone(),
        stuck: text(&status.stuck),
        memory_lost: text(&status.memory_lost),
        frozen_at: at(status.frozen_at_unix_micros),
        thawed_at: at(status.thawed_at_unix_micros),
        bytes_total: status.bytes_total,
        bytes_sent: status.bytes_sent,
        decision_read: match status.decision_read.as_str() {
            "Commit" => Some(Decision::Commit),
            "Abort" => Some(Decision::Abort),
            _ => None,
        },
        source_word: word(status, rpc::Role::Source),
        target_word: word(status, rpc::Role::Target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_understood() {
        let status = rpc::SideStatus {
            stage: rpc::Stage::Voted.into(),
            voted: true,
            frozen_at_unix_micros: 1_000_001,
            decision_read: "Commit".into(),
            ..rpc::SideStatus::default()
        };
        let report = report(&status);
        assert_eq!(report.stage, Stage::Voted);
        assert!(report.voted && !report.closed);
        assert_eq!(report.frozen_at.map(Timestamp::as_microsecond), Some(1_000_001));
        assert_eq!(report.thawed_at, None);
        assert_eq!(report.decision_read, Some(Decision::Commit));
    }

    #[test]
    fn what_a_side_says_is_bounded() {
        let long = "x".repeat(MAX_REASON + 1);
        for (said, taken) in [
            ("", ""),
            ("DiskFull", "DiskFull"),
            ("<<<", "PeerFailed"),
            ("7Up", "PeerFailed"),
            ("Disk full", "PeerFailed"),
            (&long[..], "PeerFailed"),
            (&long[1..], &long[1..]),
        ] {
            assert_eq!(reason(said), taken, "{said}");
        }
        let (message, stuck) = ("<".repeat(1 << 18), "ü".repeat(1 << 18));
        let report = report(&rpc::SideStatus { message, stuck, ..rpc::SideStatus::default() });
        assert_eq!(report.message.chars().count(), MAX_MESSAGE);
        assert_eq!(report.stuck.chars().count(), MAX_MESSAGE);
    }
}
