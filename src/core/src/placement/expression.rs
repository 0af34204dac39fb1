//! Swarm's expressions: `KEY==VALUE` and `KEY!=VALUE`.

/// Why an expression is none, in Swarm's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Neither operator is in it.
    #[error("One of operator ==, != is expected")]
    NoOperator,
    /// What stands before the operator.
    #[error("Key '{0}' is invalid")]
    Key(String),
    /// What stands behind the operator.
    #[error("Value '{0}' is invalid")]
    Value(String),
}
