//! Where kube-scheduler asks where Docker Swarm would put a pod.
//!
//! ```text
//! kube-scheduler ── filter, prioritize ──▶ server ──▶ State::filter ──▶ placement engine
//!  (same pod,          (localhost, wire)                  │  ▲
//!   profile transship)                            Cluster ┘  └ Waiting
//!                                                    ▲            │
//!     watches of pods, claims, nodes, policies, Migrations      touch: a refused pod
//!                                  (feed)                      is tried again
//! ```
//!
//! The engine decides; here is what surrounds it: the [`cluster`] as it is at this moment, choices
//! that are not facts yet and pods that are [`expected`] of Migrations included, the [`answer`] in
//! kube-scheduler's form, and the pods that were refused ([`waiting`]). All of that is pure. `server`,
//! `feed` and `touch` do the input and output.
//!
//! `filter` does the whole decision, resources included: with a single feasible node kube-scheduler
//! never calls `prioritize`, and Swarm's two passes end with the strategy. `prioritize` repeats what
//! `filter` has found.

pub mod answer;
mod beginnings;
pub mod catalog;
pub mod cluster;
mod counters;
pub mod expected;
mod extender;
mod feed;
pub mod mapping;
mod server;
pub mod sources;
pub mod state;
mod touch;
pub mod waiting;
pub mod wire;

pub use counters::Counters;
pub use extender::Extender;
pub use feed::feed;
pub use server::routes;
pub use touch::touch;
