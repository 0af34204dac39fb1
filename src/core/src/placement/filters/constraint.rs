//! What the node must be: its name or id (`node`), or the value of a label (any other key).

use super::{Compiled, Condition, Test};
use crate::placement::expression::Expression;
use crate::placement::model::Request;

pub(super) fn compile(request: &Request) -> Compiled {
    Compiled::from_expressions(&request.constraints, condition, Expression::to_string)
}

fn condition(expression: Expression) -> Condition {
    let reason = format!("unable to find a node that satisfies the constraint {expression}");
    let soft = expression.soft;
    let test = match expression.key.as_str() {
        "node" => Test::NodeName(expression),
        _ => Test::NodeLabel(expression),
    };
    Condition { soft, test, reason }
}
