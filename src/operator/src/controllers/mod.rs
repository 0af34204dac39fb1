//! One module per kind that is reconciled.

pub mod migration;
pub mod node;
