//! In which order faults are tried, so that nobody waits for another who need not.

use std::collections::BTreeMap;

use super::fault::Fault;

/// Parts of the whole order in which each kind of fault has its places.
const PARTS: usize = 1 << 16;

/// Those that concern the whole cluster come last, when no other one has to wait for them. Losses of power, of which
/// there is one at a time, are spread among the others. Apart from that everything stays in its order.
pub fn in_order<T>(tasks: Vec<T>, fault: impl Fn(&T) -> Fault) -> Vec<T> {
    let kind = |task: &T| {
        let fault = fault(task);
        (fault.concerns_all(), matches!(fault, Fault::PowerOff(..)))
    };
    let mut counts: BTreeMap<(bool, bool), usize> = BTreeMap::new();
    for task in &tasks {
        *counts.entry(kind(task)).or_default() += 1;
    }
    let mut placed: BTreeMap<(bool, bool), usize> = BTreeMap::new();
    let mut places: Vec<((bool, usize), T)> = Vec::new();
    for task in tasks {
        let kind = kind(&task);
        let before = placed.entry(kind).or_default();
        // In the middle of its part.
        let place = (2 * *before + 1) * PARTS / (2 * counts[&kind]);
        *before += 1;
        places.push(((kind.0, place), task));
    }
    places.sort_by_key(|(place, _)| *place);
    places.into_iter().map(|(_, task)| task).collect()
}

#[cfg(test)]
mod tests {
    use transship_api::Role::Target;

    use super::*;
    use crate::{
        faults::fault::{
            Fault::{Kill, KillLeader, KillOperators, PowerOff},
            Length::{Briefly, Long},
        },
        node::process::Victim::{Agent, Holder},
    };

    #[test]
    fn losses_of_power_stand_apart_and_what_concerns_all_at_the_end() {
        let (agent, holder) = (Kill(Target, Agent), Kill(Target, Holder));
        let (briefly, long) = (PowerOff(Target, Briefly), PowerOff(Target, Long));
        let tasks = vec![briefly, long, KillLeader, agent, KillOperators, holder, agent, holder];
        let expected = vec![agent, briefly, holder, agent, long, holder, KillLeader, KillOperators];
        assert_eq!(in_order(tasks, |fault| *fault), expected);
    }
}
