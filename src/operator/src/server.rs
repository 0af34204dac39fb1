//! What the operator serves: webhooks and certificates over TLS, health and metrics in the clear.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{pki::Pki, webhooks};

/// Audience of the tokens that agents show.
pub const AUDIENCE: &str = "transship";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// A signing request is about 500 bytes; an admission review may hold a whole pod, twice.
const LARGEST_BODY: usize = 8 << 20;

/// Serves webhooks and `/v1/certificates` until `stop`.
pub async fn serve_tls(
    port: u16,
    client: Client,
    namespace: &str,
    pki: Pki,
    stop: CancellationToken,
) -> Result<()> {
    let issuer = Issuer {
        client: client.clone(),
        pki: pki.clone(),
        agent: format!("system:serviceaccount:{namespace}:{}", transship_api::names::AGENT),
    };
    let router = Router::new()
        .route("/v1/certificates", post(certificates))
        .with_state(Arc::new(issuer))
        .merge(webhooks::router(client))
        .layer(axum::extract::DefaultBodyLimit::max(LARGEST_BODY));
    let acceptor = TlsAcceptor::from(Arc::new(pki.serving_config()));
    let listener = listen(port).await?;
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    continue;
                }
            },
        };
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let server = auto::Builder::new(TokioExecutor::new());
            let served = server.serve_connection(TokioIo::new(stream), service).await;
            if let Err(error) = served {
                tracing::debug!(error, "a connection ended");
            }
        });
    }
}

struct Issuer {
    client: Client,
    pki: Pki,
    /// User name of the agents' service account.
    agent: String,
}

/// Signs an agent's key for the node that its token names.
async fn certificates(State(issuer): State<Arc<Issuer>>, headers: HeaderMap, body: String) -> Response {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let Some(token) = token else {
        return (StatusCode::UNAUTHORIZED, "send the pod's token: Authorization: Bearer …\n").into_response();
    };
    let node = match issuer.node_of(token).await {
        Ok(Ok(node)) => node,
        Ok(Err(refusal)) => return (StatusCode::FORBIDDEN, format!("{refusal}\n")).into_response(),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "reviewing an agent's token");
            return (StatusCode::SERVICE_UNAVAILABLE, "the token could not be reviewed\n").into_response();
        }
    };
    match issuer.pki.issue(&body, &node) {
        Ok(certificate) => {
            tracing::info!(node, "issued a certificate");
            certificate.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")).into_response(),
    }
}

impl Issuer {
    /// The node that a token speaks for, or why it is refused.
    async fn node_of(&self, token: &str) -> Result<Result<String, String>> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await.context("TokenReview")?;
        Ok(speaks_for(&review, &self.agent))
    }
}

fn speaks_for(review: &TokenReview, agent: &str) -> Result<String, String> {
    let status = review.status.clone().unwrap_or_default();
    if status.authenticated != Some(true)
        || !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE)
    {
        return Err(format!("the token is not valid for the audience {AUDIENCE}"));
    }
    let user = status.user.unwrap_or_default();
    if user.username.as_deref() != Some(agent) {
        return Err(format!("certificates are for {agent} only"));
    }
    user.extra
        .as_ref()
        .and_then(|extra| extra.get(NODE_NAME)?.first())
        .filter(|node| !node.is_empty())
        .cloned()
        .ok_or_else(|| "the token names no node; it must be a pod's projected token".to_owned())
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop`. Ready once the caches are filled.
pub async fn serve_admin(
    port: u16,
    registry: Registry,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
) -> Result<()> {
    let registry = Arc::new(registry);
    let metrics = move || async move {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], text).into_response()
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    let readyz = move || async move {
        if *ready.borrow() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "starting\n") }
    };
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    axum::serve(listen(port).await?, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("serving health and metrics")
}

async fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from(([0, 0, 0, 0], port));
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

    use super::*;

    const AGENT: &str = "system:serviceaccount:transship-system:transship-agent";

    fn review(user: &str, audience: &str, node: Option<&str>) -> TokenReview {
        let extra = node.map(|node| [(NODE_NAME.to_owned(), vec![node.to_owned()])].into());
        TokenReview {
            status: Some(TokenReviewStatus {
                authenticated: Some(true),
                audiences: Some(vec![audience.to_owned()]),
                user: Some(UserInfo {
                    username: Some(user.to_owned()),
                    extra,
                    ..UserInfo::default()
                }),
                ..TokenReviewStatus::default()
            }),
            ..TokenReview::default()
        }
    }

    #[test]
    fn only_an_agents_pod_token_of_the_right_audience_gets_a_certificate() {
        assert_eq!(speaks_for(&review(AGENT, AUDIENCE, Some("a")), AGENT).as_deref(), Ok("a"));
        for refused in [
            review("system:serviceaccount:default:default", AUDIENCE, Some("a")),
            review(AGENT, "https://kubernetes.default.svc", Some("a")),
            review(AGENT, AUDIENCE, None),
            review(AGENT, AUDIENCE, Some("")),
            TokenReview::default(),
        ] {
            assert!(speaks_for(&refused, AGENT).is_err(), "{refused:?}");
        }
    }
}
