//! The task that reads the API server for the machine: when asked, and at a pace of its own.
//!
//! A read that fails is no reading: it is tried again and never becomes an event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use transship_host::task::HolderTask;
use transship_protocol::{PodSeen, Read, Recorded, TargetWord, judge_read};

use crate::decision::{Reader, Seen};

/// Pace of reads after the vote.
const PACE: Duration = Duration::from_secs(1);
/// Pace before the vote: only to notice that the Migration was deleted or decided unheard.
const SLOW_PACE: Duration = Duration::from_secs(5);

/// Least time between two reads of the target's word, which is asked for until it is there.
const PEER_PACE: Duration = Duration::from_millis(300);

/// What was read.
#[derive(Debug, Clone, Copy)]
pub enum Reading {
    /// The Migration.
    Migration(Read),
    /// What the target published.
    Peer(TargetWord),
    /// The target's node object does not exist.
    PeerNodeGone,
    /// The own pod.
    Pod(PodSeen),
}

/// Asks the reading task for something. Cheap to clone.
#[derive(Clone, Default)]
pub struct Asker(Arc<Wishes>);

#[derive(Default)]
struct Wishes {
    wake: Notify,
    migration: AtomicBool,
    peer: AtomicBool,
    pod: AtomicBool,
    voted: AtomicBool,
}

impl Asker {
    /// Read the Migration now.
    pub fn migration(&self) {
        self.0.migration.store(true, Ordering::SeqCst);
        self.0.wake.notify_one();
    }

    /// Read the target's word now.
    pub fn peer(&self) {
        self.0.peer.store(true, Ordering::SeqCst);
        self.0.wake.notify_one();
    }

    /// Read the own pod now.
    pub fn pod(&self) {
        self.0.pod.store(true, Ordering::SeqCst);
        self.0.wake.notify_one();
    }

    /// From now on read the Migration every second (or no more so).
    pub fn voted(&self, voted: bool) {
        if self.0.voted.swap(voted, Ordering::SeqCst) != voted {
            self.0.wake.notify_one();
        }
    }
}

/// Reads for as long as somebody listens.
pub async fn read<E>(
    mut reader: Reader,
    task: HolderTask,
    asker: Asker,
    events: mpsc::Sender<E>,
    into_event: impl Fn(Reading) -> Option<E>,
) {
    let wishes = asker.0;
    let (mut migration_due, mut peer_due) = (Instant::now(), Instant::now());
    let mut pod_due = Instant::now();
    loop {
        if wishes.migration.swap(false, Ordering::SeqCst) || migration_due <= Instant::now() {
            match reader.read().await {
                Ok(seen) => {
                    let reading = Reading::Migration(judge(reader.uid(), seen));
                    if !pass_on(&events, into_event(reading)).await {
                        return;
                    }
                }
                Err(error) => tracing::warn!("{error:#}"),
            }
            let voted = wishes.voted.load(Ordering::SeqCst);
            migration_due = Instant::now() + if voted { PACE } else { SLOW_PACE };
        }
        if wishes.peer.load(Ordering::SeqCst) && peer_due <= Instant::now() {
            match reader.peer(&task.peer.node).await {
                Ok(reading) => {
                    // Asked for until it is the last word.
                    let last = !matches!(&reading, Reading::Peer(word) if word.outcome.is_none());
                    wishes.peer.store(!last, Ordering::SeqCst);
                    if !pass_on(&events, into_event(reading)).await {
                        return;
                    }
                }
                Err(error) => tracing::warn!("cannot read what the target published: {error:#}"),
            }
            peer_due = Instant::now() + PEER_PACE;
        }
        // Asked for once per reading of the Migration or of the peer, and the peer is read more often than is needed here.
        if pod_due <= Instant::now() && wishes.pod.swap(false, Ordering::SeqCst) {
            match reader.pod(&task.pod.name, &task.pod.uid).await {
                Ok(seen) => {
                    if !pass_on(&events, into_event(Reading::Pod(seen))).await {
                        return;
                    }
                }
                Err(error) => tracing::warn!("{error:#}"),
            }
            pod_due = Instant::now() + PACE;
        }
        if wishes.voted.load(Ordering::SeqCst) {
            migration_due = migration_due.min(Instant::now() + PACE);
        }
        let peer_asked = wishes.peer.load(Ordering::SeqCst);
        let due = if peer_asked { migration_due.min(peer_due) } else { migration_due };
        tokio::select! {
            () = wishes.wake.notified() => {}
            () = tokio::time::sleep_until(due) => {}
            () = events.closed() => return,
        }
    }
}

/// Hands an event over; false when nobody listens any more.
async fn pass_on<E>(events: &mpsc::Sender<E>, event: Option<E>) -> bool {
    match event {
        Some(event) => events.send(event).await.is_ok(),
        None => true,
    }
}

/// The protocol's view of a read.
fn judge(uid: &str, seen: Seen) -> Read {
    match seen {
        Seen::Present { decision, resumed, resolution } => {
            let recorded = Recorded {
                decision: decision.map(|decision| match decision {
                    transship_api::Decision::Commit => transship_protocol::Decision::Commit,
                    transship_api::Decision::Abort => transship_protocol::Decision::Abort,
                }),
                resumed_at: resumed,
                resolution: resolution.map(|resolution| match resolution {
                    transship_api::Resolution::SourceResumes => {
                        transship_protocol::Resolution::SourceResumes
                    }
                }),
            };
            judge_read(uid, Some((uid, recorded)))
        }
        Seen::Gone => judge_read(uid, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::areas::tests::task;
    use transship_protocol::Decision;

    #[test]
    fn a_read_is_judged_by_the_protocol() {
        assert_eq!(judge("u", Seen::Gone), Read::Gone);
        let seen = Seen::Present {
            decision: Some(transship_api::Decision::Abort),
            resumed: false,
            resolution: None,
        };
        let Read::Recorded(recorded) = judge("u", seen) else { panic!("it exists") };
        assert_eq!(recorded.decision, Some(Decision::Abort));
    }

    #[tokio::test]
    async fn nothing_is_reported_while_the_api_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let reader = Reader::new(dir.path(), "ns", "m", "u");
        let (events, mut received) = mpsc::channel::<()>(1);
        let asker = Asker::default();
        asker.peer();
        asker.pod();
        let task = tokio::spawn(read(reader, task(), asker.clone(), events, |_| Some(())));
        asker.migration();
        assert!(
            tokio::time::timeout(Duration::from_millis(200), received.recv()).await.is_err(),
            "a failed read became an event"
        );
        received.close();
        asker.migration();
        task.await.unwrap();
    }
}
