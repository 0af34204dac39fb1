//! The HTTP side: `POST …/filter` and `POST …/prioritize`. What cannot be read is answered with 400
//! and the reason, and everything with 503 until the cluster has been seen as a whole: kube-scheduler
//! then tries the pod again.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Serialize;

use crate::counters::Request;
use crate::extender::Extender;
use crate::mapping;
use crate::wire::{self, Args, Filtered, Reasons};

/// A pod of the API server's largest size and the names of all nodes of the largest cluster.
const MAX_QUESTION: usize = 8 << 20;

/// The routes below the extender's `urlPrefix`.
pub fn routes(extender: Arc<Extender>) -> Router {
    Router::new()
        .route(
            "/filter",
            post(async |State(e): State<Arc<Extender>>, body: Bytes| filter(&e, &body)),
        )
        .route(
            "/prioritize",
            post(async |State(e): State<Arc<Extender>>, body: Bytes| prioritize(&e, &body)),
        )
        .layer(DefaultBodyLimit::max(MAX_QUESTION))
        .with_state(extender)
}

fn filter(extender: &Extender, body: &[u8]) -> Response {
    answer(extender, "filter", body, |args| {
        let mut state = extender.state();
        let question = match mapping::question(&args.pod, &state) {
            Ok(question) => question,
            Err(reason) => {
                state.refuse(mapping::name(&args.pod), Instant::now());
                let nodes = args.node_names.iter().map(|name| (*name, reason.as_str()));
                let unresolvable = Reasons(nodes.collect());
                let filtered = Filtered { unresolvable, ..Filtered::default() };
                return ("refused", json(&filtered));
            }
        };
        let answer = state.filter(question, &args.node_names, Instant::now());
        drop(state);
        let outcome = if answer.best().is_some() { "placed" } else { "refused" };
        (outcome, json(&answer.filtered()))
    })
}

fn prioritize(extender: &Extender, body: &[u8]) -> Response {
    answer(extender, "prioritize", body, |args| {
        let mut state = extender.state();
        match mapping::question(&args.pod, &state) {
            Ok(question) => {
                let scores = state.prioritize(question, &args.node_names, Instant::now());
                drop(state);
                ("placed", json(&scores))
            }
            Err(_) => ("refused", json(&[(); 0])),
        }
    })
}

fn answer(
    extender: &Extender,
    verb: &'static str,
    body: &[u8],
    decide: impl FnOnce(&Args<'_>) -> (&'static str, Response),
) -> Response {
    let began = Instant::now();
    let (outcome, response) = if extender.is_complete() {
        match wire::parse(body) {
            Ok(args) => decide(&args),
            Err(reason) => {
                tracing::warn!(verb, reason, "a malformed question");
                ("malformed", (StatusCode::BAD_REQUEST, reason).into_response())
            }
        }
    } else {
        let reason = "the cluster has not been seen as a whole yet";
        ("unready", (StatusCode::SERVICE_UNAVAILABLE, reason).into_response())
    };
    extender.counters.requests.get_or_create(&Request { verb, outcome }).inc();
    extender.counters.duration.observe(began.elapsed().as_secs_f64());
    response
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
