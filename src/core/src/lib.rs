//! Every decision, without input or output.
pub mod facts;
