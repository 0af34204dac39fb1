//! What holders need to read the API by themselves, whether an agent runs or not: the server's
//! address, its authority, and a token bound to the core Node object, renewed at half its life.
//! The token dies with the node's object; it can do what the agents' service account can.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest, TokenRequestSpec, TokenRequestStatus,
};
use k8s_openapi::api::core::v1 as corev1;
use kube::api::PostParams;
use kube::{Api, Client, Config};
use tokio_util::sync::CancellationToken;
use transship_host::{HostRoot, files};

use crate::args::Args;
use crate::identity::Identity;
use crate::telemetry::Telemetry;

/// Life asked for. A holder that outlives its agent can work this long, less the time since the
/// last renewal.
const LIFE: Duration = Duration::from_secs(3600);
/// How long asking may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Pause after a first failure, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Keeps the files up to date.
pub struct Tokens {
    /// What the agent was told.
    pub args: Args,
    /// Client of the API.
    pub client: Client,
    /// The host.
    pub host: HostRoot,
    /// Who this is.
    pub identity: Arc<Identity>,
    /// Gauges.
    pub telemetry: Arc<Telemetry>,
}

impl Tokens {
    /// Runs until `stop`. The files stay: holders go on with them.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY.0;
        loop {
            let renewed = tokio::time::timeout(REQUEST_LIMIT, self.renew()).await;
            let next = match renewed.map_err(anyhow::Error::from).and_then(|result| result) {
                Ok(life) => {
                    pause = RETRY.0;
                    life / 2
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), again_in = ?pause, "the holders' token could not be renewed");
                    let next = pause;
                    pause = (pause * 2).min(RETRY.1);
                    next
                }
            };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Asks for a token and writes everything; returns how long the token lives.
    async fn renew(&self) -> anyhow::Result<Duration> {
        let status = self.request().await?;
        let end = status.expiration_timestamp.context("the token has no end")?.0;
        let token = status.token.context("the answer has no token")?;
        let life = end.duration_since(jiff::Timestamp::now());
        let life = Duration::try_from(life).unwrap_or_default().max(Duration::from_secs(20));
        let config = Config::infer().await.context("no configuration for the API server")?;
        self.write(&config, &token)?;
        self.telemetry.token_end.set(end.as_second());
        tracing::debug!(until = %end, "the holders' token was renewed");
        Ok(life)
    }

    async fn request(&self) -> anyhow::Result<TokenRequestStatus> {
        let accounts: Api<corev1::ServiceAccount> =
            Api::namespaced(self.client.clone(), &self.args.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: Some(self.identity.node.clone()),
                    uid: Some(self.identity.node_uid.clone()),
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
        for (name, content) in [
            ("server", server.trim_end_matches('/')),
            ("ca.crt", &ca),
            ("namespace", &self.args.namespace),
            ("token", token),
        ] {
            let path = dir.join(name);
            if std::fs::read(&path).is_ok_and(|now| now == content.as_bytes()) {
                continue;
            }
            files::write_atomic(&path, content.as_bytes())?;
        }
        Ok(())
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
