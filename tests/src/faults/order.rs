//! In which order faults are tried, so that nobody waits for another who need not.

use std::collections::BTreeMap;

use super::fault::Fault;

/// Parts of the whole order in which each kind of fault has its places.
const PARTS: usize = 1 << 16;

/// Those that concern the whole cluster come last, when no other one has to wait for them. Losses of power, of which
/// there is one at a time, are spread among the others. Of those of the whole cluster the ones that stop agents are
/// spread: beside the rest goes what the cell before has left. Apart from that everything stays in its order.
pub fn in_order<T>(tasks: Vec<T>, fault: impl Fn(&T) -> Fault) -> Vec<T> {
    let kind = |task: &T| {
        let fault = fault(task);
        let is_apart = matches!(fault, Fault::PowerOff(..)) || fault.stops_agents();
        (fault.concerns_all(), is_apart)
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
            Fault::{Kill, KillLeader, KillOperators, PauseApi, PowerOff},
            Length::{Briefly, Long},
        },
        node::process::Victim::{Agent, Holder},
    };

    #[test]
    fn losses_of_power_stand_apart_and_what_concerns_all_at_the_end_in_turns() {
        let (agent, holder) = (Kill(Target, Agent), Kill(Target, Holder));
        let (briefly, long) = (PowerOff(Target, Briefly), PowerOff(Target, Long));
        let of_lanes = vec![briefly, long, agent, holder, agent, holder];
        let of_all = vec![PauseApi(Briefly), KillLeader, KillOperators];
        let tasks = [of_all, of_lanes].concat();
        let of_lanes = vec![agent, briefly, holder, agent, long, holder];
        let of_all = vec![KillLeader, PauseApi(Briefly), KillOperators];
        assert_eq!(in_order(tasks, |fault| *fault), [of_lanes, of_all].concat());
    }
}
