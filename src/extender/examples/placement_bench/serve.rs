//! The server: the extender as the operator runs it, fed without an API server, and beside it the
//! same exchange without a decision.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::serve::ListenerExt;
use transship_extender::sources::Source;
use transship_extender::wire::{self, Filtered, Score};
use transship_extender::{Counters, Extender, routes};

use super::{LEFT, Size, objects, pin};

pub fn run(size: Size) {
    pin(0);
    let began = Instant::now();
    let extender = Arc::new(Extender::new(0, Counters::default()));
    for number in 0..size.nodes {
        let (core, ours) = objects::node(number);
        core.apply(&mut extender.state());
        ours.apply(&mut extender.state());
    }
    for number in 0..size.pods {
        objects::pod(number, size.nodes).apply(&mut extender.state());
    }
    while !extender.is_complete() {
        extender.listed_one();
    }
    let seconds = began.elapsed().as_secs_f64();
    let routes = Router::new()
        .nest("/v1/placement", routes(extender))
        .route("/wire/filter", post(async |head: HeaderMap, body: Bytes| filter(&head, &body)))
        .route("/wire/prioritize", post(async |body: Bytes| prioritize(&body)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{} {seconds:.1}", listener.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        axum::serve(listener, routes).await.unwrap();
    });
}

/// Gives back as many nodes as the real answer leaves.
fn filter(head: &HeaderMap, body: &[u8]) -> impl IntoResponse + use<> {
    let left: usize = head[LEFT].to_str().unwrap().parse().unwrap();
    let args = wire::parse(body).unwrap();
    let node_names = args.node_names.into_iter().take(left).collect();
    let filtered = Filtered { node_names, ..Filtered::default() };
    ([(header::CONTENT_TYPE, "application/json")], serde_json::to_vec(&filtered).unwrap())
}

fn prioritize(body: &[u8]) -> impl IntoResponse + use<> {
    let args = wire::parse(body).unwrap();
    let scores: Vec<Score<'_>> =
        args.node_names.iter().take(10).map(|host| Score { host, score: 1 }).collect();
    ([(header::CONTENT_TYPE, "application/json")], serde_json::to_vec(&scores).unwrap())
}
