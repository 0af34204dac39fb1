//! The nodes that may be used, as `node==a|b`: exact names. As in Swarm, neither the key nor the
//! operator is looked at.

use super::{Compiled, Condition, Test, listed_with_softness};
use crate::placement::expression::Expression;
use crate::placement::model::Request;

pub(super) fn compile(request: &Request) -> Compiled {
    Compiled::from_expressions(&request.whitelists, condition, listed_with_softness)
}

fn condition(expression: Expression) -> Condition {
    let reason = format!("unable to find a node that satisfies the whitelist {expression}");
    let names = expression.value.split('|').map(str::to_owned).collect();
    Condition { soft: expression.soft, test: Test::Listed(names), reason }
}
