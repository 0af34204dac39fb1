//! The two passes and their answer.

use std::sync::Arc;

use super::filters::{Compiled, Condition, Filter, Test};
use super::model::{Node, Request};
use super::strategy::{self, Demand, Options, Ranked};
use super::symbol::Answers;

const NO_NODE: &str = "No nodes available in the cluster";
const NO_RESOURCES: &str = "no resources available to schedule container";

/// Who removed a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// A filter.
    Filter(Filter),
    /// The strategy: what is asked for does not fit.
    Strategy,
}

impl By {
    /// The filter's name, or `strategy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter(filter) => filter.name(),
            Self::Strategy => "strategy",
        }
    }
}

/// What became of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is left out.
    Removed {
        /// Who removed it.
        by: By,
        /// Swarm's sentence for the condition that it does not meet; the same for all nodes that
        /// the condition removed.
        reason: &'a str,
    },
    /// It can be used.
    Ranked {
        /// Swarm's weight; 0 with `random`.
        weight: i64,
        /// 1 for the best; equal nodes share a rank.
        rank: usize,
    },
}

/// The answer to a request. Nodes are named by their positions among the nodes given.
#[derive(Clone, Debug)]
pub struct Decision {
    ranked: Vec<Ranked>,
    outcomes: Vec<Outcome>,
    reasons: Arc<[(By, String)]>,
    error: Option<String>,
    soft: bool,
}

/// What became of one node, in few bytes.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Not decided yet; no node is left like this.
    Open,
    /// By the reason at this position.
    Removed(u32),
    /// At this position of the ranking.
    Ranked(u32),
}

impl Decision {
    /// The best node.
    pub fn best(&self) -> Option<usize> {
        self.ranked.first().map(|best| best.position)
    }

    /// The nodes that can be used, best first.
    pub fn ranking(&self) -> impl Iterator<Item = usize> {
        self.ranked.iter().map(|ranked| ranked.position)
    }

    /// Groups of equal nodes, best first; by name within a group, as far as [`Options::ordered`] asks for
    /// an order. None if no node can be used.
    pub fn order(&self) -> impl Iterator<Item = Vec<usize>> {
        let groups = self.ranked.chunk_by(|a, b| a.rank == b.rank);
        groups.map(|group| group.iter().map(|ranked| ranked.position).collect())
    }

    /// Swarm's text when no node can be used; it may have several lines.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether soft expressions were enforced: the decision is the first pass's.
    pub fn soft(&self) -> bool {
        self.soft
    }

    /// What became of the node at a position.
    pub fn verdict(&self, position: usize) -> Verdict<'_> {
        match self.outcomes[position] {
            Outcome::Ranked(index) => {
                let Ranked { weight, rank, .. } = self.ranked[index as usize];
                Verdict::Ranked { weight, rank }
            }
            Outcome::Removed(index) => {
                let (by, reason) = &self.reasons[index as usize];
                Verdict::Removed { by: *by, reason }
            }
            Outcome::Open => Verdict::Removed { by: By::Strategy, reason: NO_NODE },
        }
    }
}

/// A request with everything parsed and compiled.
#[derive(Clone, Debug)]
pub struct Prepared {
    options: Options,
    demand: Demand,
    stages: Vec<(Filter, Compiled)>,
    /// Of all conditions of all stages, one after another; the strategy's is the last.
    reasons: Arc<[(By, String)]>,
}

/// Parses and compiles a request. A malformed expression is no error here: as in Swarm, it fails
/// the request when its filter's turn comes, so an earlier filter's error wins.
pub fn prepare(request: &Request, options: &Options) -> Prepared {
    let stages: Vec<(Filter, Compiled)> =
        options.filters.iter().map(|filter| (*filter, filter.compile(request))).collect();
    let of_filters = stages.iter().flat_map(|(filter, compiled)| {
        compiled.conditions.iter().map(|c| (By::Filter(*filter), c.reason.clone()))
    });
    let reasons = of_filters.chain([(By::Strategy, NO_RESOURCES.to_owned())]).collect();
    Prepared { options: options.clone(), demand: Demand::of(request), stages, reasons }
}

/// What is known of all nodes before any is looked at.
struct Known<'a> {
    /// Volumes that are mounted nowhere.
    idle: Vec<&'a str>,
    /// Of each condition of all stages: whether each node may have a word that begins as the condition
    /// needs it; none if any may.
    begins: Vec<Option<Vec<bool>>>,
}

/// A condition that each node is asked about.
struct Asked<'a> {
    /// Position of its reason.
    reason: u32,
    filter: Filter,
    test: &'a Test,
    /// See [`Known::begins`].
    begins: Option<&'a [bool]>,
    answers: Answers,
}

impl Prepared {
    /// Decides among nodes with different names, which are all there are: first with soft
    /// expressions enforced, and if that leaves no node, without any of them.
    pub fn place(&self, nodes: &[&Node]) -> Decision {
        self.place_where(nodes, |claim| nodes.iter().any(|node| node.mounts(claim)))
    }

    /// Like [`Self::place`], where there may be more nodes: `in_use` says whether a container on any
    /// of them mounts a volume.
    pub fn place_where(&self, nodes: &[&Node], in_use: impl Fn(&str) -> bool) -> Decision {
        self.place_among(nodes, in_use, |_| None)
    }

    /// Like [`Self::place_where`], where the words of all containers are known in order: `begins` says
    /// of each node whether a container on it may have a word ([`Container::words`]), or a line of one,
    /// that begins with one of these. It saves a look at the others, and changes nothing.
    ///
    /// [`Container::words`]: super::Container::words
    pub fn place_among(
        &self,
        nodes: &[&Node],
        in_use: impl Fn(&str) -> bool,
        begins: impl Fn(&[&[u8]]) -> Option<Vec<bool>>,
    ) -> Decision {
        let conditions = || self.stages.iter().flat_map(|(_, compiled)| &compiled.conditions);
        let idle = conditions().filter_map(|condition| match &condition.test {
            Test::Mounted(claim) if !in_use(claim) => Some(claim.as_str()),
            _ => None,
        });
        let begins = conditions().map(|condition| begins(&condition.test.beginnings()?));
        let known = Known { idle: idle.collect(), begins: begins.collect() };
        let first = self.pass(nodes, true, &known);
        if first.error.is_none() || !self.has_soft() {
            return first;
        }
        self.pass(nodes, false, &known)
    }

    /// Without soft expressions the second pass is the first.
    fn has_soft(&self) -> bool {
        self.stages.iter().any(|(_, compiled)| compiled.conditions.iter().any(|c| c.soft))
    }

    /// Filters and ranks once.
    fn pass(&self, nodes: &[&Node], soft: bool, known: &Known<'_>) -> Decision {
        let asked = |condition: &Condition| match &condition.test {
            Test::Mounted(claim) => !known.idle.contains(&claim.as_str()),
            _ => soft || !condition.soft,
        };
        let mut outcomes = vec![Outcome::Open; nodes.len()];
        let mut ranked = Vec::new();
        let error = match self.filter(nodes, asked, known, &mut outcomes) {
            Err(error) => Some(error),
            Ok(left) => {
                ranked = strategy::rank(&self.options, self.demand, nodes, &left);
                for &position in &left {
                    outcomes[position] = Outcome::Removed(self.reasons.len() as u32 - 1);
                }
                for (index, of) in ranked.iter().enumerate() {
                    outcomes[of.position] = Outcome::Ranked(index as u32);
                }
                match (left.is_empty(), ranked.is_empty()) {
                    (true, _) => Some(NO_NODE.to_owned()),
                    (false, true) => Some(NO_RESOURCES.to_owned()),
                    (false, false) => None,
                }
            }
        };
        Decision { ranked, outcomes, reasons: self.reasons.clone(), error, soft }
    }

    /// The positions of the nodes that meet all conditions that are `asked`, or Swarm's text for the
    /// filter that left none. Swarm asks all nodes one thing after the other; here each node is asked
    /// all things at once, because it is far away in memory, and the last thing that removed a node is
    /// what left none.
    fn filter(
        &self,
        nodes: &[&Node],
        asked: impl Fn(&Condition) -> bool,
        known: &Known<'_>,
        outcomes: &mut [Outcome],
    ) -> Result<Vec<usize>, String> {
        let conditions = self.stages.iter().flat_map(|(filter, compiled)| {
            compiled.conditions.iter().map(|condition| (*filter, condition))
        });
        let mut asked: Vec<Asked<'_>> = (0..)
            .zip(conditions.zip(&known.begins))
            .filter(|(_, ((_, condition), _))| asked(condition))
            .map(|(reason, ((filter, condition), begins))| Asked {
                reason,
                filter,
                test: &condition.test,
                begins: begins.as_deref(),
                answers: Answers::default(),
            })
            .collect();
        let mut left = Vec::with_capacity(nodes.len());
        let mut last = None;
        for (position, node) in nodes.iter().enumerate() {
            let objection = asked.iter_mut().position(|Asked { test, begins, answers, .. }| {
                let begins = begins.is_none_or(|begins| begins[position]);
                !test.admits(node, begins, answers)
            });
            match objection {
                Some(index) => {
                    outcomes[position] = Outcome::Removed(asked[index].reason);
                    last = last.max(Some(index));
                }
                None => left.push(position),
            }
        }
        if !left.is_empty() {
            return Ok(left);
        }
        let failed = match last {
            Some(index) => Some(asked[index].filter),
            // Alone among the filters, that of dependencies has no objection to no node.
            None => asked.iter().map(|asked| asked.filter).find(|f| *f != Filter::Dependency),
        };
        failed.map_or(Ok(left), |filter| Err(self.failure(filter)))
    }

    /// Swarm's text when a filter leaves no node: what all filters up to it ask for.
    fn failure(&self, failed: Filter) -> String {
        if failed == Filter::Health {
            return super::filters::NO_HEALTHY_NODE.to_owned();
        }
        let mut text = "Unable to find a node that satisfies the following conditions ".to_owned();
        for (filter, compiled) in &self.stages {
            match &compiled.listing {
                Ok(listing) if listing.is_empty() => {}
                Ok(listing) => text.push_str(&format!("\n[{}]", listing.join(" "))),
                Err(error) => {
                    text.push_str(&format!("\nerror from {} filter: {error}", filter.name()));
                    break;
                }
            }
            if *filter == failed {
                break;
            }
        }
        text
    }
}
