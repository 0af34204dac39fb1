//! Events. Those of Migrations go through one recorder, so that repetitions are counted and not multiplied.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use transship_api::Migration;
use transship_api::conditions::{MAX_NOTE, bounded};
use transship_core::migration::events::Note;

/// Publishes events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    recorder: Recorder,
}

impl Events {
    /// A recorder that signs as the operator.
    pub fn new(client: Client, instance: String) -> Self {
        let controller = transship_api::names::OPERATOR.to_owned();
        let reporter = Reporter { controller, instance: Some(instance) };
        let recorder = Recorder::new(client.clone(), reporter.clone());
        Self { client, reporter, recorder }
    }

    /// Publishes notes about a Migration, with its pod beside it. An event that is lost is only
    /// logged: nothing depends on events.
    pub async fn publish(&self, migration: &Migration, notes: Vec<Note>) {
        let reference = migration.object_ref(&());
        let pod = migration.status.as_ref().and_then(|s| s.source.as_ref()).map(|source| {
            ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: migration.metadata.namespace.clone(),
                name: Some(source.pod_name.clone()),
                uid: Some(source.pod_uid.clone()).filter(|uid| !uid.is_empty()),
                ..ObjectReference::default()
            }
        });
        for note in notes {
            tell(&self.recorder, note, &reference, pod.clone()).await;
        }
    }

    /// As [`Events::publish`], about a pod whose Migration is there no more. The note says something new.
    pub async fn publish_of_pod(&self, pod: &Pod, note: Note) {
        // One that knows the pod's last event would count this as its repetition, and drop what it says.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        tell(&recorder, note, &pod.object_ref(&()), None).await;
    }
}

async fn tell(
    recorder: &Recorder,
    note: Note,
    about: &ObjectReference,
    secondary: Option<ObjectReference>,
) {
    let event = Event {
        type_: if note.warning { EventType::Warning } else { EventType::Normal },
        reason: note.reason,
        note: Some(bounded(&note.message, MAX_NOTE)),
        action: "Migrate".into(),
        secondary,
    };
    if let Err(error) = recorder.publish(&event, about).await {
        tracing::warn!(%error, reason = event.reason, "an event could not be published");
    }
}
