//! Puts refused pods before their scheduler again: a changed annotation is a change of the pod, and
//! that is what kube-scheduler looks at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use transship_api::names;

use crate::extender::Extender;
use crate::waiting::PodName;

/// How often refused pods are looked at. Changes come in crowds: one look serves them all.
const PERIOD: Duration = Duration::from_secs(1);
/// How often in a row; others have their turn between.
const TURNS: usize = 8;

/// Touches until `stop`.
pub async fn touch(extender: Arc<Extender>, client: Client, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let mut due = Vec::new();
        for _ in 0..TURNS {
            due.extend(extender.state().due(Instant::now()));
            tokio::task::yield_now().await;
        }
        count(&extender);
        for pod in due {
            match touch_one(&client, &pod).await {
                Ok(()) => {
                    extender.counters.touched.inc();
                    tracing::info!(
                        pod = pod.name,
                        namespace = pod.namespace,
                        "a pod that waits may go now"
                    );
                }
                Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => {}
                Err(error) => {
                    tracing::warn!(pod = pod.name, %error, "a waiting pod could not be touched");
                }
            }
        }
    }
}

fn count(extender: &Extender) {
    let state = extender.state();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    extender.counters.assumed.set(count(state.cluster.assumptions()));
    extender.counters.waiting.set(count(state.waiting.count()));
}

async fn touch_one(client: &Client, pod: &PodName) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let now = Timestamp::now().to_string();
    let patch = json!({"metadata": {"uid": pod.uid, "annotations": {names::TOUCHED: now}}});
    pods.patch(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}
