//! The model checker: every interleaving of the two machines, two operators, kubelet, the wrapper
//! and the faults of [`world::Fault`], crashes between any two effects included, up to a bound on
//! the number of faults.
//!
//! A message is only a hint here: loss and delay are that an action is taken late or never,
//! repetition that it is taken again, since every action whose guard holds stays enabled. What
//! somebody knows of others is read from published facts that are written once; a stale reading is
//! an old part of the truth, so it too is an action not yet taken. Where a newer truth would forbid
//! an action (an operator between its read and its write, a holder between its read and its thaw,
//! the wrapper between its verdict and runc) the two are separate steps. The two operators are
//! equals: either may be the stale leader.
//!
//! Checked in every state: at most one copy runs; the address is open on one node; nobody lies;
//! nothing is lost before the commit; the write-once fields change once. And from every state a
//! continuation without further faults leads to an end in which both sides are closed and the right
//! copy runs.
//!
//! `cargo test -p transship-protocol --release -- --ignored --nocapture` searches deeper.

mod actors;
mod cold;
mod faults;
mod host;
mod search;
mod sequential;
mod tests;
mod world;
