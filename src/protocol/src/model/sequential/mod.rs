//! The sequential order and the cold one: a world with the source's machine, the trial's and those of the
//! pods that are made again, driven by the very transitions of the product.
//!
//! What must hold in every state: at most one copy runs; a voted source that has not ended still has its
//! state in memory or on a disk; from the source's end until the pod runs again the state is durable on
//! some disk; nothing starts afresh whose state is kept, and nothing that is not kept is collected.

mod cold;
mod host;
mod kubelet;
mod operator;
mod runs;
mod sides;
mod space;
mod world;

/// The rules that are broken here.
pub(super) const BROKEN: [&[crate::rules::Rule]; 2] = [runs::BROKEN, cold::BROKEN];
