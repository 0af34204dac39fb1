//! The servers of every replica: HTTPS for the API server's webhooks and the agents' requests for
//! certificates, and plain HTTP for metrics and health and, on localhost, for the scheduler beside
//! it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use transship_extender::Extender;

use crate::metrics::Metrics;
use crate::pki::issue::{self, Issuer};
use crate::pki::serving::Identity;
use crate::webhooks::{self, Handover, Movable};

/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// How long a connection may be open: the API server makes another.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// The largest object that a webhook is sent, and some room.
const MAX_REVIEW: usize = 8 * 1024 * 1024;

/// What health depends on.
pub struct Health {
    /// The certificate, without which nothing is served.
    pub identity: watch::Receiver<Option<Identity>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Listens on every address, of both families where the node has both.
pub async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
    }
}

/// Listens for what runs in the same pod.
pub async fn listen_locally(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

/// What is served over HTTPS.
pub fn secure_routes(
    issuer: Issuer,
    handover: Handover,
    movable: Movable,
    metrics: Arc<Metrics>,
) -> Router {
    let certificates = Router::new()
        .route("/v1/certificates", post(issue::issue))
        .layer(DefaultBodyLimit::max(issue::MAX_REQUEST))
        .with_state(Arc::new(issuer));
    let handover = Router::new()
        .route("/v1/admit/handover", post(webhooks::handover))
        .with_state(Arc::new(handover));
    let movable = Router::new()
        .route("/v1/admit/movable", post(webhooks::movable))
        .with_state(Arc::new(movable));
    let placement =
        Router::new().route("/v1/admit/placement", post(webhooks::placement)).with_state(metrics);
    let webhooks =
        handover.merge(movable).merge(placement).layer(DefaultBodyLimit::max(MAX_REVIEW));
    certificates.merge(webhooks)
}

/// Serves over HTTPS with the certificate in force at each connection, until `stop`.
pub async fn serve_secure(
    listener: TcpListener,
    identity: watch::Receiver<Option<Identity>>,
    routes: Router,
    stop: CancellationToken,
) {
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Some(config) = identity.borrow().as_ref().map(|i| i.server.clone()) else { continue };
        let routes = routes.clone();
        tokio::spawn(async move {
            let served = serve_connection(stream, TlsAcceptor::from(config), routes);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIMIT, served).await {
                tracing::debug!(error, "a connection broke");
            }
        });
    }
}

async fn serve_connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    routes: Router,
) -> Result<(), String> {
    // A small delay matters more than a few more packets.
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
        .await
        .map_err(|_| "the handshake took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await
        .map_err(|error| error.to_string())
}

/// Serves metrics and health until `stop`.
pub async fn serve_admin(listener: TcpListener, health: Health, stop: CancellationToken) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(Arc::new(health));
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "metrics and health are not served any more");
    }
}

/// Serves the scheduler beside this process until `stop`.
pub async fn serve_extender(
    listener: TcpListener,
    extender: Arc<Extender>,
    stop: CancellationToken,
) {
    let routes = Router::new().nest("/v1/placement", transship_extender::routes(extender));
    let listener = listener.tap_io(|stream| {
        // A small delay matters more than a few more packets.
        let _ = stream.set_nodelay(true);
    });
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the scheduler is not served any more");
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics.text())
}

async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    match health.identity.borrow().is_some() {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the certificate is not there yet"),
    }
}
