//! Which of the nodes that are left comes first.

use transship_api::Strategy;

use super::Filter;

/// How a decision is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How the nodes that are left are ranked.
    pub strategy: Strategy,
    /// The filters, in the order in which they run.
    pub filters: Vec<Filter>,
    /// What `random` draws from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { strategy: Strategy::default(), filters: Filter::ALL.to_vec(), seed: 0 }
    }
}
