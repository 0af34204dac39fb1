//! From the engine's decision to what kube-scheduler is told.
//!
//! kube-scheduler looks at the top score alone and breaks ties among it at random, so the winner
//! gets [`BEST`] and nobody else more than one less.

use std::collections::HashMap;

use transship_core::placement::{By, Decision, Filter, Verdict};

use crate::wire::{BEST, Filtered, Score};

/// What is said of nodes that kube-scheduler knows before we do.
pub const UNKNOWN: &str = "the node is not known to Transship yet";

/// A decision among the nodes of one question.
#[derive(Debug)]
pub struct Answer<'a> {
    names: &'a [&'a str],
    /// Position in the decision of each name, if the node is known.
    positions: Vec<Option<usize>>,
    /// The name at each position.
    known: Vec<&'a str>,
    decision: Decision,
    /// First line of Swarm's text, if no node can be used.
    sentence: Option<String>,
    /// Whole reasons by the engine's reason: few, for thousands of nodes.
    reasons: HashMap<String, String>,
}

impl<'a> Answer<'a> {
    /// `positions`: where each of `names` stood among the nodes that were decided about.
    pub fn new(names: &'a [&'a str], positions: Vec<Option<usize>>, decision: Decision) -> Self {
        let sentence =
            decision.error().and_then(|text| text.lines().next()).map(|l| l.trim().to_owned());
        let known =
            names.iter().zip(&positions).filter(|(_, at)| at.is_some()).map(|(n, _)| *n).collect();
        let reasons = HashMap::new();
        let mut answer = Self { names, positions, known, decision, sentence, reasons };
        for position in 0..answer.known.len() {
            if let Verdict::Removed { reason, .. } = answer.decision.verdict(position)
                && !answer.reasons.contains_key(reason)
            {
                let whole = answer.whole(reason);
                answer.reasons.insert(reason.to_owned(), whole);
            }
        }
        answer
    }

    /// The sentence goes before the node's own reason, unless they are the same.
    fn whole(&self, reason: &str) -> String {
        let reason = reason.lines().next().unwrap_or_default().trim();
        match &self.sentence {
            Some(sentence) if sentence != reason => format!("{sentence}: {reason}"),
            _ => reason.to_owned(),
        }
    }

    /// The node that the pod is to go to.
    pub fn best(&self) -> Option<&'a str> {
        self.decision.best().map(|position| self.known[position])
    }

    /// The nodes that can be used, best first, to answer `prioritize` from later.
    pub fn ranking(&self) -> Vec<String> {
        self.decision.ranking().map(|position| self.known[position].to_owned()).collect()
    }

    /// `filter`'s answer.
    pub fn filtered(&self) -> Filtered<'_> {
        let mut filtered = Filtered::default();
        for (name, position) in self.names.iter().zip(&self.positions) {
            let Some(position) = position else {
                filtered.failed.insert(name, UNKNOWN);
                continue;
            };
            match self.decision.verdict(*position) {
                Verdict::Ranked { .. } => filtered.node_names.push(name),
                Verdict::Removed { by, reason } => {
                    let nodes = match by {
                        By::Filter(
                            Filter::Constraint
                            | Filter::Whitelist
                            | Filter::Health
                            | Filter::Dependency,
                        ) => &mut filtered.unresolvable,
                        _ => &mut filtered.failed,
                    };
                    nodes.insert(name, self.reasons.get(reason).map_or(reason, String::as_str));
                }
            }
        }
        filtered
    }
}

/// `prioritize`'s answer: among `names`, the one that comes first in `ranking` gets [`BEST`], and
/// the others less and less. Those that are not in it get nothing.
pub fn scores<'a>(names: &[&'a str], ranking: &[String]) -> Vec<Score<'a>> {
    let rank: HashMap<&str, usize> =
        ranking.iter().enumerate().map(|(rank, name)| (name.as_str(), rank)).collect();
    let first = names.iter().filter_map(|name| rank.get(name)).min();
    let score = |name: &str| match (rank.get(name), first) {
        (Some(rank), Some(first)) if rank == first => BEST,
        (Some(rank), Some(first)) => {
            let behind = i64::try_from(rank - first).unwrap_or(i64::MAX);
            BEST.saturating_sub(behind).max(0)
        }
        _ => 0,
    };
    names.iter().map(|name| Score { host: name, score: score(name) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs<'a>(scores: &[Score<'a>]) -> Vec<(&'a str, i64)> {
        scores.iter().map(|s| (s.host, s.score)).collect()
    }

    #[test]
    fn the_winner_alone_has_the_best_score() {
        let names: Vec<String> = (0..30).map(|n| format!("node-{n:02}")).collect();
        let asked: Vec<&str> = names.iter().rev().map(String::as_str).collect();
        let scores = scores(&asked, &names);
        assert_eq!(scores.len(), 30);
        assert_eq!(scores[29].score, BEST);
        assert!(scores[..29].iter().all(|s| (0..BEST).contains(&s.score)));
        assert_eq!((scores[28].score, scores[27].score, scores[0].score), (9, 8, 0));
    }

    #[test]
    fn the_first_of_those_that_are_asked_for_wins() {
        let ranking = ["a", "b", "c"].map(String::from);
        assert_eq!(pairs(&scores(&["c", "b"], &ranking)), [("c", 9), ("b", 10)]);
        assert_eq!(pairs(&scores(&["x", "c"], &ranking)), [("x", 0), ("c", 10)]);
        assert_eq!(pairs(&scores(&["x"], &ranking)), [("x", 0)]);
    }
}
