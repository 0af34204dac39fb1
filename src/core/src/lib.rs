//! Every decision of Transship that is not the commit protocol's, without input or output: facts in,
//! a plan or a verdict out. The clock is an argument.
//!
//! What may be recorded about a commit is decided by `transship-protocol`; here that is asked, not
//! decided.

pub mod facts;
pub mod liveness;
pub mod migration;
pub mod placement;
pub mod post_start;
pub mod preflight;
pub mod sequential_pod;
pub mod stateful_set;
pub mod static_list;
pub mod target_pod;
pub mod witness;
