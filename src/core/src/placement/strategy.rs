//! Which of the nodes that are left comes first.

use std::cmp::Reverse;

use transship_api::Strategy;

use super::Filter;
use super::model::{Node, Request};

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

/// The strategy of this name; `binpacking` is Swarm's old name of `binpack`.
pub fn strategy_named(name: &str) -> Option<Strategy> {
    match name {
        "spread" => Some(Strategy::Spread),
        "binpack" | "binpacking" => Some(Strategy::Binpack),
        "random" => Some(Strategy::Random),
        _ => None,
    }
}

/// A node that can be used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    /// Its position among the nodes given.
    pub(super) position: usize,
    /// Swarm's weight; 0 with `random`.
    pub(super) weight: i64,
    /// 1 for the best; equal nodes share a rank.
    pub(super) rank: usize,
}

/// What is to be reserved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    cpus: i64,
    memory: i64,
}

impl Demand {
    pub(super) fn of(request: &Request) -> Self {
        Self { cpus: request.cpus, memory: request.memory }
    }

    /// Percents of CPU and memory that would be reserved on the node, together; 100 for each that is
    /// not asked for. None if it does not fit.
    fn load(self, node: &Node) -> Option<i64> {
        if node.total_memory < self.memory || node.total_cpus < self.cpus {
            return None;
        }
        let cpu = percent(node.used_cpus(), self.cpus, node.total_cpus);
        let memory = percent(node.used_memory(), self.memory, node.total_memory);
        (cpu <= 100 && memory <= 100).then(|| cpu.wrapping_add(memory))
    }
}

/// Whole percents, rounded towards nothing. `total` is at least `wanted`.
fn percent(used: i64, wanted: i64, total: i64) -> i64 {
    match wanted > 0 {
        true => used.wrapping_add(wanted).wrapping_mul(100) / total,
        false => 100,
    }
}

/// The nodes at these positions that have room, best first.
///
/// `spread` and `binpack` weigh load and health; a step of health outweighs any load. Among equal
/// weights the fewest containers come first with `spread` and the most with `binpack`; what is
/// equal then shares a rank and is ordered by name. `random` looks at no resources.
pub(super) fn rank(
    options: &Options,
    demand: Demand,
    nodes: &[&Node],
    left: &[usize],
) -> Vec<Ranked> {
    let factor = match options.strategy {
        Strategy::Spread => -10,
        Strategy::Binpack => 10,
        Strategy::Random => return shuffled(options.seed, nodes, left),
    };
    // Smaller is better: binpack's order is the reverse of spread's, but for names.
    let mut weighed: Vec<(i64, i64, &str, usize)> = left
        .iter()
        .filter_map(|&position| {
            let node = nodes[position];
            let weight = demand.load(node)?.wrapping_add(node.health.wrapping_mul(factor));
            let containers = node.containers().len() as i64;
            Some((weight, containers, node.name.as_str(), position))
        })
        .collect();
    match options.strategy {
        Strategy::Binpack => weighed.sort_unstable_by_key(|&(weight, count, name, at)| {
            (Reverse((weight, count)), name, at)
        }),
        _ => weighed.sort_unstable(),
    }
    let mut rank = 0;
    let mut before = None;
    weighed
        .into_iter()
        .enumerate()
        .map(|(index, (weight, containers, _, position))| {
            if before.replace((weight, containers)) != Some((weight, containers)) {
                rank = index + 1;
            }
            Ranked { position, weight, rank }
        })
        .collect()
}

/// Fisher and Yates' shuffle of the nodes in the order of their names.
fn shuffled(seed: u64, nodes: &[&Node], left: &[usize]) -> Vec<Ranked> {
    let mut order = left.to_vec();
    order.sort_unstable_by_key(|&position| nodes[position].name.as_str());
    let mut state = seed;
    for last in (1..order.len()).rev() {
        // The high half of the product: a number below last + 1.
        let drawn = (u128::from(draw(&mut state)) * (last as u128 + 1)) >> 64;
        order.swap(last, drawn as usize);
    }
    let ranked = |(index, position)| Ranked { position, weight: 0, rank: index + 1 };
    order.into_iter().enumerate().map(ranked).collect()
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
