//! Events about this node, on its `Node` object: where something is wrong, and what to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::Mutex;
use transship_api::conditions::{MAX_NOTE, bounded};
use transship_api::{Node, names};

/// What passes by itself within this time is no event: the agent starts, something restarts.
const LASTING: Duration = Duration::from_secs(10);

/// What was last seen of a subject.
#[derive(Clone)]
struct Seen {
    saying: String,
    since: Instant,
    told: bool,
}

/// Says each thing once, until it is something else.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    seen: Arc<Mutex<HashMap<&'static str, Seen>>>,
}

impl Events {
    /// `node` is this node's name.
    pub fn new(client: Client, node: &str) -> Self {
        let reporter =
            Reporter { controller: names::AGENT.to_owned(), instance: Some(node.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), seen: Arc::default() }
    }

    /// Tells about `subject` (a condition) that it is well or not; to be called at each visit.
    pub async fn tell(
        &self,
        node: &Node,
        subject: &'static str,
        well: bool,
        reason: &str,
        note: &str,
    ) {
        let saying = format!("{reason}: {note}");
        if !is_due(&mut *self.seen.lock().await, subject, well, saying, Instant::now()) {
            return;
        }
        let event = Event {
            type_: if well { EventType::Normal } else { EventType::Warning },
            reason: reason.to_owned(),
            note: Some(bounded(note, MAX_NOTE)),
            action: subject.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference(node)).await {
            tracing::debug!(%error, "an event was not published");
        }
    }
}

/// Whether this is to be said now: it lasts, it was not said yet, and it is not merely that all is
/// well as it was from the beginning.
fn is_due(
    seen: &mut HashMap<&'static str, Seen>,
    subject: &'static str,
    well: bool,
    saying: String,
    now: Instant,
) -> bool {
    match seen.get_mut(subject) {
        Some(before) if before.saying == saying => {
            let due = !before.told && now.duration_since(before.since) >= LASTING;
            before.told |= due;
            due
        }
        before => {
            // Well again is worth an event only after something bad was said.
            let quiet = well && before.as_ref().is_none_or(|before| !before.told);
            seen.insert(subject, Seen { saying, since: now, told: quiet });
            false
        }
    }
}

fn reference(node: &Node) -> ObjectReference {
    ObjectReference {
        api_version: Some(Node::api_version(&()).into_owned()),
        kind: Some(Node::kind(&()).into_owned()),
        name: Some(node.name_any()),
        uid: node.uid(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_once_and_its_end_too() {
        let mut seen = HashMap::new();
        let start = Instant::now();
        let mut say = |well, text: &str, second| {
            is_due(&mut seen, "Ready", well, text.to_owned(), start + Duration::from_secs(second))
        };
        for (well, text, second, due) in [
            (false, "starting", 0, false),
            (false, "starting", 5, false),
            (true, "fine", 6, false),
            (true, "fine", 60, false),
            (false, "broken", 61, false),
            (false, "broken", 70, false),
            (false, "broken", 71, true),
            (false, "broken", 90, false),
            (true, "fine", 91, false),
            (true, "fine", 101, true),
            (true, "fine", 111, false),
        ] {
            assert_eq!(say(well, text, second), due, "{text} at {second}");
        }
    }
}
