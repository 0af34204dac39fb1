//! Which of the nodes that are left comes first.

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
    /// How many of the best are to be in order to the last; of the others, those that share a rank
    /// may come in any order.
    pub ordered: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            filters: Filter::ALL.to_vec(),
            seed: 0,
            ordered: usize::MAX,
        }
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
        Strategy::Random => return shuffled(options, nodes, left),
    };
    // Smaller is better: binpack's order is the reverse of spread's.
    let sign = |number: i64| match options.strategy {
        Strategy::Binpack => !number,
        _ => number,
    };
    let mut weighed: Vec<(i64, i64, usize)> = left
        .iter()
        .filter_map(|&position| {
            let node = nodes[position];
            let weight = demand.load(node)?.wrapping_add(node.health.wrapping_mul(factor));
            Some((sign(weight), sign(node.containers().len() as i64), position))
        })
        .collect();
    let is_equal = |a: &(i64, i64, usize), b: &(i64, i64, usize)| (a.0, a.1) == (b.0, b.1);
    // Names are compared last and only where it matters: they are far away in memory.
    weighed.sort_unstable();
    let mut ordered = 0;
    for equal in weighed.chunk_by_mut(is_equal) {
        if ordered >= options.ordered {
            break;
        }
        order_by_name(equal, options.ordered - ordered, |&(_, _, position)| {
            (nodes[position].name.as_str(), position)
        });
        ordered += equal.len();
    }
    let mut ranked = Vec::with_capacity(weighed.len());
    for equal in weighed.chunk_by(is_equal) {
        let rank = ranked.len() + 1;
        ranked.extend(equal.iter().map(|&(weight, _, position)| Ranked {
            position,
            weight: sign(weight),
            rank,
        }));
    }
    ranked
}

/// Brings the first `count` in the order of their keys to the front.
fn order_by_name<'a, T>(items: &mut [T], count: usize, key: impl Fn(&T) -> (&'a str, usize)) {
    let first = match count < items.len() {
        true => items.select_nth_unstable_by(count, |a, b| key(a).cmp(&key(b))).0,
        false => items,
    };
    first.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
}

/// An order in which each node's place is drawn with its name: every order is as likely as any
/// other, as after Swarm's shuffle, and nodes that come or go do not change that of the others.
fn shuffled(options: &Options, nodes: &[&Node], left: &[usize]) -> Vec<Ranked> {
    let mut drawn: Vec<(u64, usize)> = left
        .iter()
        .map(|&position| (draw(options.seed, &nodes[position].name), position))
        .collect();
    drawn
        .sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| nodes[a.1].name.cmp(&nodes[b.1].name)));
    let ranked = |(index, (_, position))| Ranked { position, weight: 0, rank: index + 1 };
    drawn.into_iter().enumerate().map(ranked).collect()
}

/// A number that depends on seed and name alone: FNV-1a (Fowler, Noll and Vo) of the name, mixed
/// with the seed as SplitMix64 mixes its state (Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", 2014), before and after.
fn draw(seed: u64, name: &str) -> u64 {
    let mix = |state: u64| {
        let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mix(mix(seed) ^ fnv(name))
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What `random` draws from for a pod: another for each, and the same whoever asks about that pod.
pub(super) fn seed(uid: &str) -> u64 {
    fnv(uid)
}
