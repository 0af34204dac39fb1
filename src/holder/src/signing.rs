//! A target's sign of life: its Migration's UID with the time in its node's Lease, renewed until it
//! is closed. Written by the holder itself, so that it does not depend on any agent. Each good one
//! gives the dead-man more time; what their absence means, and whether the last one stays when it has
//! closed, is decided by `transship-protocol`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use transship_api::names;
use transship_protocol::RENEWAL;

use crate::deadman::{self, Deadman};
use crate::decision::connect;
use crate::holder::Holder;

/// How long one signature may take.
const LIMIT: Duration = Duration::from_secs(3);
/// How old the last good signature of a target may be that promises to obey the decision: it will have to
/// read it. One renewal may have failed.
const RECENT: Duration = Duration::from_secs(5);
/// How long taking the signature off may keep the holder from its end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Signs in the background.
pub struct Signing {
    stop: CancellationToken,
    task: JoinHandle<()>,
    contact: Contact,
}

/// Whether the API server can be reached from here: when the last good signature was sent, see
/// [`deadman::now`]; 0 before the first.
#[derive(Clone)]
pub struct Contact(watch::Receiver<u64>);

impl Contact {
    /// Waits until the API server has taken a signature a moment ago.
    pub async fn is_made(&mut self) {
        let recent = u64::try_from(RECENT.as_millis()).unwrap_or(u64::MAX);
        let is_recent = |sent: &u64| *sent > 0 && deadman::now().saturating_sub(*sent) < recent;
        if self.0.wait_for(is_recent).await.is_err() {
            // Nobody signs any more: the holder ends.
            std::future::pending().await
        }
    }

    /// As [`Contact::is_made`], for so long. One that is made already counts whatever is left of the patience.
    pub async fn is_made_within(&mut self, patience: Duration) -> Result<()> {
        let made = tokio::time::timeout(patience, self.is_made()).await;
        made.map_err(|_| anyhow!("it does not reach the API server"))
    }
}

impl Signing {
    /// Signs at once and then every [`RENEWAL`].
    pub fn start(holder: &Arc<Holder>, deadman: Deadman) -> Self {
        let stop = CancellationToken::new();
        let signer = Signer {
            files: holder.host.api(),
            node: holder.task.node.clone(),
            uid: holder.task.migration.uid.clone(),
            client: None,
        };
        let (signed, contact) = watch::channel(0);
        let task = tokio::spawn(run(signer, deadman, signed, stop.clone()));
        Signing { stop, task, contact: Contact(contact) }
    }

    /// What is known of the way to the API server.
    pub fn contact(&self) -> Contact {
        self.contact.clone()
    }

    /// Does not sign any more; the last signature stays.
    pub fn fall_silent(self) {
        self.task.abort();
    }

    /// Takes the signature off: nothing runs here unconfirmed. One that stays behind harms nobody,
    /// since it counts only while its Migration's Commit stands open.
    pub async fn end(self) {
        self.stop.cancel();
        if tokio::time::timeout(FAREWELL, self.task).await.is_err() {
            tracing::info!("the signature stays in the node's Lease");
        }
    }
}

async fn run(
    mut signer: Signer,
    deadman: Deadman,
    contact: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(RENEWAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => break,
        }
        // The API server may have taken it right when it was sent, however late the answer comes.
        let sent = deadman::now();
        let signed = signer.write(json!(MicroTime(Timestamp::now()))).await;
        match signed.and_then(|()| deadman.signed(sent)) {
            Ok(()) => drop(contact.send(sent)),
            Err(error) => tracing::warn!("this target's signature was not renewed: {error:#}"),
        }
    }
    if let Err(error) = signer.write(Value::Null).await {
        tracing::info!("the signature stays in the node's Lease: {error:#}");
    }
}

struct Signer {
    files: PathBuf,
    node: String,
    uid: String,
    client: Option<(Client, String)>,
}

impl Signer {
    /// Writes the signature; null takes it off.
    async fn write(&mut self, signature: Value) -> Result<()> {
        let outcome = tokio::time::timeout(LIMIT, self.patch(signature)).await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(anyhow!("the API server did not answer in {LIMIT:?}")));
        if outcome.is_err() {
            // A connection that hangs, or an address that has changed, is not tried again.
            self.client = None;
        }
        outcome
    }

    async fn patch(&mut self, signature: Value) -> Result<()> {
        let (client, namespace) = match &self.client {
            Some(known) => known.clone(),
            None => {
                let path = self.files.join("namespace");
                let namespace = tokio::fs::read_to_string(&path).await;
                let namespace =
                    namespace.with_context(|| format!("cannot read {}", path.display()))?;
                let made = (connect(&self.files).await?, namespace.trim().to_owned());
                self.client.insert(made).clone()
            }
        };
        let leases: Api<Lease> = Api::namespaced(client, &namespace);
        let lease = lease(&self.node, &self.uid, &signature);
        let name = names::node_lease(&self.node);
        match leases.patch(&name, &PatchParams::default(), &Patch::Merge(&lease)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() && signature.is_null() => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                let lease = serde_json::from_value(lease).context("not a Lease")?;
                leases
                    .create(&PostParams::default(), &lease)
                    .await
                    .context("cannot make the Lease")?;
                Ok(())
            }
            Err(error) => Err(error).context("cannot write the node's Lease"),
        }
    }
}

/// The node's Lease with one target's signature, as a merge patch and as a whole.
fn lease(node: &str, uid: &str, signature: &Value) -> Value {
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": names::node_lease(node),
            "annotations": {names::signature(uid): signature},
        },
    });
    if !signature.is_null() {
        lease["spec"] = json!({"holderIdentity": node, "renewTime": signature});
    }
    lease
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn a_signature_names_its_migration_and_leaves_those_of_others_alone() {
        let lease = lease("node-b", "uid-m", &json!("2026-01-01T00:00:00.000000Z"));
        assert_eq!(lease["metadata"]["name"], "transship-node-node-b");
        assert_eq!(
            lease["metadata"]["annotations"],
            json!({"transship.dev/target-uid-m": "2026-01-01T00:00:00.000000Z"})
        );
        let whole: Lease = serde_json::from_value(lease).unwrap();
        assert!(whole.spec.unwrap().renew_time.is_some());
    }

    #[test]
    fn signing_off_removes_the_one_signature_and_nothing_else() {
        let lease = lease("node-b", "uid-m", &Value::Null);
        assert_eq!(lease["metadata"]["annotations"], json!({"transship.dev/target-uid-m": null}));
        assert!(lease.get("spec").is_none());
    }

    #[tokio::test]
    async fn contact_is_made_by_a_signature_of_a_moment_ago() {
        let (signed, contact) = watch::channel(0);
        let mut contact = Contact(contact);
        let now = deadman::now();
        let old = now.saturating_sub(u64::try_from(RECENT.as_millis()).unwrap());
        for (sent, is_made) in [(0, false), (old, false), (now, true)] {
            signed.send(sent).unwrap();
            let made = tokio::time::timeout(Duration::from_millis(50), contact.is_made()).await;
            assert_eq!(made.is_ok(), is_made, "{sent}");
        }
    }

    #[tokio::test]
    async fn contact_that_is_there_needs_no_patience_and_one_that_is_not_is_given_up() {
        let (signed, contact) = watch::channel(0);
        let mut contact = Contact(contact);
        assert!(contact.is_made_within(Duration::from_millis(50)).await.is_err());
        signed.send(deadman::now()).unwrap();
        contact.is_made_within(Duration::ZERO).await.unwrap();
    }

    fn signer(files: &std::path::Path) -> Signer {
        let (node, uid) = ("node-b".into(), "uid-m".into());
        Signer { files: files.to_path_buf(), node, uid, client: None }
    }

    #[tokio::test]
    async fn without_the_agents_files_nothing_is_signed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(signer(dir.path()).write(json!("now")).await.is_err());
    }

    /// Answers each request with the next status, and gives the requests' first lines.
    async fn api_server(listener: TcpListener, statuses: &[u16]) -> Vec<String> {
        let mut lines = Vec::new();
        for status in statuses {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut request, mut buffer) = (String::new(), [0; 4096]);
            while !(request.contains("\r\n\r\n") && request.ends_with('}')) {
                let read = stream.read(&mut buffer).await.unwrap();
                request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
            lines.push(request.lines().next().unwrap().to_owned());
            let body = match status {
                200 => lease("node-b", "uid-m", &json!("2026-01-01T00:00:00.000000Z")),
                code => json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                    "status": "Failure", "reason": "NotFound", "code": code}),
            }
            .to_string();
            let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json");
            let length = body.len();
            let answer =
                format!("{head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        lines
    }

    #[tokio::test]
    async fn a_lease_that_is_not_there_is_made_and_later_only_changed() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        for (file, content) in
            [("server", server.as_str()), ("ca.crt", ""), ("namespace", "ts"), ("token", "t")]
        {
            std::fs::write(dir.path().join(file), content).unwrap();
        }
        let served = tokio::spawn(async move { api_server(listener, &[404, 200, 200, 404]).await });
        let mut signer = signer(dir.path());
        signer.write(json!(MicroTime(Timestamp::now()))).await.unwrap();
        signer.write(json!(MicroTime(Timestamp::now()))).await.unwrap();
        signer.write(Value::Null).await.unwrap();
        let leases = "/apis/coordination.k8s.io/v1/namespaces/ts/leases";
        let patch = format!("PATCH {leases}/transship-node-node-b? HTTP/1.1");
        let post = format!("POST {leases}? HTTP/1.1");
        let wanted = [patch.clone(), post, patch.clone(), patch];
        assert_eq!(served.await.unwrap(), wanted);
    }
}
