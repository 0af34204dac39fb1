//! The sequential order and the cold one: a world with the source's machine, the trial's and those of the
//! pods that are made again, driven by the very transitions of the product.
//!
//! What must hold in every state: at most one copy runs; a voted source that has not ended still has its
//! state in memory or on a disk; from the source's end until the pod runs again the state is durable on
//! some disk; nothing starts afresh whose state is kept, and nothing that is not kept is collected.
//! No side goes on with what ran while it was dumped, or before it was frozen (see [`super::overlap`] for what
//! cannot be excluded there). A trial has none of the pod's persistent volumes. A pod that was made again has them,
//! and what a try wrote to them that was let go, or thawed and lost, stays written: it is restored once more only
//! when somebody wants it, or its node is gone for good; else the Migration waits, which is an end here.
//!
//! A pod that was made again is made once more when it is deleted before its node has it, or unseen; once that has been
//! seen on its node, whoever did it means the pod, and that it runs nowhere is an end. (What else tells the one from the
//! other, and who deletes the source, is the sequential plan's business.) A node's object that goes is taken for its
//! node's end, which it is for all of Kubernetes: here only `deaths` takes one away.
//!
//! A pod that was made again and whose tasks end after the last look at them and before the thaw counts as one
//! that ended right after it: kubelet starts it afresh.

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
