//! The model checker: every interleaving of the two machines, two operators, kubelet and the
//! faults of [`world::Fault`], crashes between any two effects included, up to a bound on faults.
//!
//! A message is only a hint here: loss and delay are that an action is taken late or never, repetition that it
//! is taken again, since every action whose guard holds stays enabled. What somebody knows of
//! others is read from published, write-once facts; a stale reading is an old part of the truth, so
//! it too is an action not yet taken; where a newer truth would forbid an action (an operator
//! between its read and its write, a holder between its read and its thaw) the two are separate
//! steps.
//!
//! Checked in every state: at most one copy runs; one network is open; nobody lies; nothing is lost
//! before the commit; the write-once fields change once. And from every state a continuation
//! without further faults leads to an end in which both sides are closed and the right copy runs.

mod actors;
mod host;
mod search;
mod tests;
mod world;
