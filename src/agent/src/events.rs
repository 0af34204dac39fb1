//! Events about this node, on its `Node` object: where something is wrong, and what to do.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::Mutex;
use transship_api::{Node, names};

/// Says each thing once, until it is something else.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    said: Arc<Mutex<HashMap<&'static str, String>>>,
}

impl Events {
    /// `node` is this node's name.
    pub fn new(client: Client, node: &str) -> Self {
        let reporter =
            Reporter { controller: names::AGENT.to_owned(), instance: Some(node.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), said: Arc::default() }
    }

    /// Tells about `subject` (a condition) that it is well or not. Nothing is published when the
    /// same was said last, nor when all was well from the beginning.
    pub async fn tell(
        &self,
        node: &Node,
        subject: &'static str,
        well: bool,
        reason: &str,
        note: &str,
    ) {
        let mut said = self.said.lock().await;
        let saying = format!("{reason}: {note}");
        let before = said.insert(subject, saying.clone());
        if before.as_deref() == Some(&saying) || (well && before.is_none()) {
            return;
        }
        drop(said);
        let event = Event {
            type_: if well { EventType::Normal } else { EventType::Warning },
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: subject.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference(node)).await {
            tracing::debug!(%error, "an event was not published");
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
