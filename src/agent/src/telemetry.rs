//! Log, metrics and health of the agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Starts the log on standard error.
pub fn start_log(format: LogFormat, filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.with_ansi(false).init(),
    }
}

/// A label with the kind of thing counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// One of a few fixed words.
    pub kind: &'static str,
}

/// A label pair for calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Call {
    /// Name of the call.
    pub method: &'static str,
    /// gRPC's name of the result.
    pub code: String,
}

/// What is counted and whether the agent is well.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    /// Reports to the API server, `kind` ok or error.
    pub heartbeats: Family<Kind, Counter>,
    /// Calls by the operator.
    pub calls: Family<Call, Counter>,
    /// Bytes passed between nodes, `kind` in or out.
    pub relayed: Family<Kind, Counter>,
    /// Data connections that are open.
    pub relays: Gauge,
    /// Starts of the host's supervisor.
    pub supervisor_starts: Counter,
    /// What was collected on the node, by kind.
    pub collected: Family<Kind, Counter>,
    /// Seconds since the epoch at which the agent's certificate ends.
    pub certificate_end: Gauge,
    /// Seconds since the epoch at which the holders' token ends.
    pub token_end: Gauge,
    /// Migrations in which this node has an open part.
    pub active: Gauge,
    reported: AtomicBool,
    /// When the reporting loop last went round, in milliseconds of this process' life.
    last_round: AtomicI64,
    started: std::time::Instant,
}

/// The reporting loop must go round at least this often, whether its reports arrive or not.
const STUCK_AFTER: Duration = Duration::from_secs(120);

impl Telemetry {
    /// Everything at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("transship_agent");
        let telemetry = Self {
            heartbeats: Family::default(),
            calls: Family::default(),
            relayed: Family::default(),
            relays: Gauge::default(),
            supervisor_starts: Counter::default(),
            collected: Family::default(),
            certificate_end: Gauge::default(),
            token_end: Gauge::default(),
            active: Gauge::default(),
            registry: Registry::default(),
            reported: AtomicBool::new(false),
            last_round: AtomicI64::new(0),
            started: std::time::Instant::now(),
        };
        let r = &mut registry;
        r.register("heartbeats", "Reports of the node", telemetry.heartbeats.clone());
        r.register("calls", "Calls by the operator", telemetry.calls.clone());
        r.register_with_unit(
            "relayed",
            "Migration data passed between nodes",
            Unit::Bytes,
            telemetry.relayed.clone(),
        );
        r.register("relays", "Open data connections", telemetry.relays.clone());
        r.register(
            "supervisor_starts",
            "Starts of the supervisor on the host",
            telemetry.supervisor_starts.clone(),
        );
        r.register(
            "collected",
            "Records, migrations, leases and shims removed when nothing needed them",
            telemetry.collected.clone(),
        );
        r.register_with_unit(
            "certificate_end_timestamp",
            "When the agent's certificate ends",
            Unit::Seconds,
            telemetry.certificate_end.clone(),
        );
        r.register_with_unit(
            "token_end_timestamp",
            "When the holders' token ends",
            Unit::Seconds,
            telemetry.token_end.clone(),
        );
        r.register(
            "active_migrations",
            "Migrations in which the node has an open part",
            telemetry.active.clone(),
        );
        Arc::new(Self { registry, ..telemetry })
    }

    /// The reporting loop went round.
    pub fn round(&self) {
        let now = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.last_round.store(now, Ordering::Relaxed);
    }

    /// The API server took a report.
    pub fn reported(&self) {
        self.reported.store(true, Ordering::Relaxed);
    }

    fn is_live(&self) -> bool {
        let now = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        now - self.last_round.load(Ordering::Relaxed) < STUCK_AFTER.as_millis() as i64
    }

    fn is_ready(&self) -> bool {
        self.reported.load(Ordering::Relaxed) && self.certificate_end.get() > 0
    }
}

/// Serves `/metrics`, `/livez` and `/readyz` until `stop`.
pub async fn serve(
    telemetry: Arc<Telemetry>,
    listener: tokio::net::TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|State(t): State<Arc<Telemetry>>| async move { health(t.is_live()) }))
        .route(
            "/readyz",
            get(|State(t): State<Arc<Telemetry>>| async move { health(t.is_ready()) }),
        )
        .with_state(telemetry);
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

fn health(well: bool) -> (StatusCode, &'static str) {
    if well { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ok\n") }
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &telemetry.registry) {
        Ok(()) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        ),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            String::new(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_once_it_has_reported_and_has_a_certificate() {
        let telemetry = Telemetry::new();
        assert!(!telemetry.is_ready());
        telemetry.reported();
        assert!(!telemetry.is_ready());
        telemetry.certificate_end.set(1);
        assert!(telemetry.is_ready());
        assert!(telemetry.is_live());
    }

    #[test]
    fn metrics_have_their_prefix_and_units() {
        let telemetry = Telemetry::new();
        telemetry.relayed.get_or_create(&Kind { kind: "in" }).inc_by(7);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &telemetry.registry).unwrap();
        assert!(text.contains(r#"transship_agent_relayed_bytes_total{kind="in"} 7"#), "{text}");
    }
}
