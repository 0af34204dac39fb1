//! What must or must not be on the node: containers (`container`), images (`image`), or containers
//! with a label (any other key).

use super::{Compiled, Condition, Test, listed_with_softness};
use crate::placement::expression::Expression;
use crate::placement::model::Request;

pub(super) fn compile(request: &Request) -> Compiled {
    Compiled::from_expressions(&request.affinities, condition, listed_with_softness)
}

fn condition(expression: Expression) -> Condition {
    let reason = format!("unable to find a node that satisfies the affinity {expression}");
    let soft = expression.soft;
    let test = match expression.key.as_str() {
        "container" => Test::ContainerWords(expression),
        "image" => Test::ImageWords(expression),
        _ => Test::ContainerLabel(expression),
    };
    Condition { soft, test, reason }
}
