//! What holders need to read the API by themselves, whether an agent runs or not: the server's
//! address, its authority, and a token bound to the core Node object, renewed at half its life.
//! The token dies with the node's object, and is renewed when there is another one of that name; it can do
//! what the agents' service account can.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus,
};
use k8s_openapi::api::core::v1 as corev1;
use kube::api::PostParams;
use kube::{Api, Config};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transship_host::{HostRoot, files};

use crate::args::Args;
use crate::cluster::Cluster;
use crate::install::HostSide;
use crate::telemetry::Telemetry;

/// Life asked for. A holder that outlives its agent can work this long, less the time since the
/// last renewal.
const LIFE: Duration = Duration::from_secs(3600);
/// How long asking may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Pause after a first failure, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often is looked whether the files are still there.
const LOOK: Duration = Duration::from_secs(5);
/// How often is looked whether the node's object is still the one that the token is bound to.
const NODE_LOOK: Duration = Duration::from_secs(30);
/// The files, see [`HostRoot::api`]. The token last: it is of use with the others alone.
const FILES: [&str; 4] = ["server", "ca.crt", "namespace", "token"];

/// Keeps the files up to date.
pub struct Tokens {
    /// What the agent was told.
    pub args: Args,
    /// The API.
    pub cluster: Cluster,
    /// The host.
    pub host: HostRoot,
    /// Gauges.
    pub telemetry: Arc<Telemetry>,
    /// What is installed: what goes with it is not made again.
    pub side: watch::Receiver<HostSide>,
}

/// A token that was had.
struct Renewed {
    /// How long it lives.
    life: Duration,
    /// The UID of the core Node that it is bound to.
    node_uid: String,
}

impl Tokens {
    /// Runs until `stop`. The files stay: holders go on with them.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.keep() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Ends with the agent's other parts only.
    async fn keep(&self) {
        let dir = self.host.api();
        let mut side = self.side.clone();
        let mut pause = RETRY.0;
        while side.wait_for(|side| !side.tearing_down).await.is_ok() {
            let renewed = tokio::time::timeout(REQUEST_LIMIT, self.renew()).await;
            match renewed.map_err(anyhow::Error::from).and_then(|result| result) {
                Ok(Renewed { life, node_uid }) => {
                    pause = RETRY.0;
                    tokio::select! {
                        () = tokio::time::sleep(life / 2) => {}
                        () = missing(&dir, LOOK) => {
                            tracing::warn!(dir = %dir.display(), "what holders need to read the API is gone, and is made again");
                        }
                        () = self.replaced(&node_uid) => {
                            tracing::warn!(node_uid, "the node has another object, to which the holders' token is bound from now on");
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), again_in = ?pause, "the holders' token could not be renewed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Returns when the node has another object than that of this UID. While it has none no token is to be had.
    async fn replaced(&self, uid: &str) {
        loop {
            tokio::time::sleep(NODE_LOOK).await;
            if self.node_uid().await.is_ok_and(|now| now != uid) {
                return;
            }
        }
    }

    async fn node_uid(&self) -> anyhow::Result<String> {
        let name = &self.args.node_name;
        let uid = self.cluster.core_node_uid(name).await?;
        uid.with_context(|| format!("the cluster has no node {name}"))
    }

    /// Asks for a token and writes everything.
    async fn renew(&self) -> anyhow::Result<Renewed> {
        let node_uid = self.node_uid().await?;
        let status = self.request(&node_uid).await?;
        let end = status.expiration_timestamp.context("the token has no end")?.0;
        let token = status.token.context("the answer has no token")?;
        let life = end.duration_since(jiff::Timestamp::now());
        let life = Duration::try_from(life).unwrap_or_default().max(Duration::from_secs(20));
        let config = Config::infer().await.context("no configuration for the API server")?;
        // It may have taken a while.
        anyhow::ensure!(!self.side.borrow().tearing_down, "the host side is being removed");
        self.write(&config, &token)?;
        self.telemetry.token_end.set(end.as_second());
        tracing::debug!(until = %end, "the holders' token was renewed");
        Ok(Renewed { life, node_uid })
    }

    async fn request(&self, node_uid: &str) -> anyhow::Result<TokenRequestStatus> {
        let accounts: Api<corev1::ServiceAccount> =
            Api::namespaced(self.cluster.client.clone(), &self.args.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: Some(self.args.node_name.clone()),
                    uid: Some(node_uid.to_owned()),
                }),
                expiration_seconds: Some(LIFE.as_secs() as i64),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let account = &self.args.service_account;
        let answer: TokenRequest = accounts
            .create_subresource("token", account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("no token for service account {account}"))?;
        answer.status.context("the API server answered without a token")
    }

    fn write(&self, config: &Config, token: &str) -> anyhow::Result<()> {
        let dir = self.host.api();
        files::make_dir(&dir)?;
        let server = config.cluster_url.to_string();
        let ca = match &config.root_cert_file {
            Some(file) => std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?,
            None => pem(config.root_cert.as_deref().unwrap_or_default())?,
        };
        // Only the token changes as a rule; holders look at the times of the others.
        let contents: [&str; 4] = [server.trim_end_matches('/'), &ca, &self.args.namespace, token];
        for (name, content) in FILES.into_iter().zip(contents) {
            let path = dir.join(name);
            if std::fs::read(&path).is_ok_and(|now| now == content.as_bytes()) {
                continue;
            }
            files::write_atomic(&path, content.as_bytes())?;
        }
        Ok(())
    }
}

/// Returns when one of the files is not there.
async fn missing(dir: &Path, look: Duration) {
    // One that cannot be looked at is there for all that is known.
    while FILES.iter().all(|name| dir.join(name).try_exists().unwrap_or(true)) {
        tokio::time::sleep(look).await;
    }
}

/// Certificates as PEM.
fn pem(certificates: &[Vec<u8>]) -> anyhow::Result<String> {
    let mut text = String::new();
    for der in certificates {
        // The API's own base64 saves a library.
        let encoded = serde_json::to_value(ByteString(der.clone()))?;
        let encoded = encoded.as_str().context("not a text")?;
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = encoded;
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;

    #[tokio::test]
    async fn a_file_that_goes_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        for name in FILES {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let missed = async |limit| {
            let missing = missing(dir.path(), Duration::from_millis(1));
            tokio::time::timeout(limit, missing).await.is_ok()
        };
        assert!(!missed(Duration::from_millis(50)).await, "all are there");
        for name in FILES {
            std::fs::remove_file(dir.path().join(name)).unwrap();
            assert!(missed(Duration::from_secs(10)).await, "{name}");
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(missed(Duration::from_secs(10)).await, "the directory");
    }

    #[test]
    fn certificates_survive_their_pem() {
        let authority = tls::testing::Authority::new();
        let ders = tls::certificates(&authority.pem, "test").unwrap();
        let text = pem(&[ders[0].to_vec(), ders[0].to_vec()]).unwrap();
        assert!(text.lines().all(|line| line.len() <= 64));
        assert_eq!(tls::certificates(&text, "test").unwrap(), [ders[0].clone(), ders[0].clone()]);
        assert_eq!(pem(&[]).unwrap(), "");
    }
}
