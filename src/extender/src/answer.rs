//! From the engine's decision to what kube-scheduler is told.
//!
//! kube-scheduler looks at the top score alone and breaks ties among it at random, so the winner
//! gets [`BEST`] and nobody else more than one less.

use std::collections::HashMap;

use foldhash::fast::RandomState;
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
    /// Whole reasons, by where the engine keeps its own: few, for thousands of nodes.
    reasons: Vec<(*const u8, String)>,
}

impl<'a> Answer<'a> {
    /// `positions`: where each of `names` stood among the nodes that were decided about.
    pub fn new(names: &'a [&'a str], positions: Vec<Option<usize>>, decision: Decision) -> Self {
        let sentence =
            decision.error().and_then(|text| text.lines().next()).map(|l| l.trim().to_owned());
        let known =
            names.iter().zip(&positions).filter(|(_, at)| at.is_some()).map(|(n, _)| *n).collect();
        let reasons = Vec::new();
        let mut answer = Self { names, positions, known, decision, sentence, reasons };
        for position in 0..answer.known.len() {
            if let Verdict::Removed { reason, .. } = answer.decision.verdict(position)
                && answer.reason(reason).is_none()
            {
                let whole = answer.whole(reason);
                answer.reasons.push((reason.as_ptr(), whole));
            }
        }
        answer
    }

    fn reason(&self, of_engine: &str) -> Option<&str> {
        let found = self.reasons.iter().find(|(at, _)| std::ptr::eq(*at, of_engine.as_ptr()));
        found.map(|(_, whole)| whole.as_str())
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

    /// What `prioritize` is answered from later: the nodes that can be used, in the order in which
    /// they are given back, each with its place among them, 0 for the best. Behind the places that
    /// get a score, nodes that share a rank have their places in any order.
    pub fn places(&self) -> Places {
        let mut of = vec![None; self.known.len()];
        for (place, position) in self.decision.ranking().enumerate() {
            of[position] = Some(place);
        }
        let names = self.known.iter().zip(of);
        names.filter_map(|(name, place)| Some((*name, place?))).collect()
    }

    /// `filter`'s answer.
    pub fn filtered(&self) -> Filtered<'_> {
        let mut filtered = Filtered::default();
        for (name, position) in self.names.iter().zip(&self.positions) {
            let Some(position) = position else {
                filtered.failed.0.push((name, UNKNOWN));
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
                    nodes.0.push((name, self.reason(reason).unwrap_or(reason)));
                }
            }
        }
        filtered
    }
}

/// Nodes that can be used, and the place of each among them, 0 for the best.
#[derive(Debug, Default)]
pub struct Places {
    /// All names, one after another: thousands of small pieces of memory would take their time.
    names: String,
    /// Where each name ends, and its place.
    places: Vec<(usize, usize)>,
}

impl<'a> FromIterator<(&'a str, usize)> for Places {
    fn from_iter<I: IntoIterator<Item = (&'a str, usize)>>(places: I) -> Self {
        let mut collected = Self::default();
        for (name, place) in places {
            collected.names.push_str(name);
            collected.places.push((collected.names.len(), place));
        }
        collected
    }
}

impl Places {
    fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        let mut begin = 0;
        self.places.iter().map(move |(end, place)| {
            let name = &self.names[begin..*end];
            begin = *end;
            (name, *place)
        })
    }

    /// `prioritize`'s answer: among `names`, the one with the best place gets [`BEST`], and those
    /// behind it less and less. The others are not named: to kube-scheduler that means 0.
    pub fn scores<'a>(&self, names: &[&'a str]) -> Vec<Score<'a>> {
        // kube-scheduler asks about what it was given, in that order, unless somebody else was asked
        // between.
        let same = self.places.len() == names.len()
            && self.iter().zip(names).all(|((known, _), name)| known == *name);
        let places: Vec<(&str, usize)> = if same {
            names.iter().zip(&self.places).map(|(name, (_, place))| (*name, *place)).collect()
        } else {
            let by_name: HashMap<&str, usize, RandomState> = self.iter().collect();
            names.iter().filter_map(|name| Some((*name, *by_name.get(name)?))).collect()
        };
        let first = places.iter().map(|(_, place)| *place).min().unwrap_or_default();
        let score = |place: usize| i64::try_from(place - first).map_or(0, |behind| BEST - behind);
        let scored = places.into_iter().map(|(host, place)| Score { host, score: score(place) });
        scored.filter(|scored| scored.score > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs<'a>(scores: &[Score<'a>]) -> Vec<(&'a str, i64)> {
        scores.iter().map(|s| (s.host, s.score)).collect()
    }

    fn ranked(names: &[&str]) -> Places {
        names.iter().enumerate().map(|(place, name)| (*name, place)).collect()
    }

    #[test]
    fn the_winner_alone_has_the_best_score() {
        let names: Vec<String> = (0..30).map(|n| format!("node-{n:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let reversed: Vec<&str> = names.iter().rev().copied().collect();
        for asked in [&names, &reversed] {
            let scores = ranked(&names).scores(asked);
            let of = |name: &str| scores.iter().find(|s| s.host == name).map(|s| s.score);
            let expected = [(0, Some(10)), (1, Some(9)), (9, Some(1)), (10, None), (29, None)];
            assert!(expected.iter().all(|(n, score)| of(names[*n]) == *score), "{scores:?}");
            assert_eq!(scores.len(), 10, "{scores:?}");
        }
    }

    #[test]
    fn the_first_of_those_that_are_asked_for_wins() {
        let places = ranked(&["a", "b", "c"]);
        assert_eq!(pairs(&places.scores(&["c", "b"])), [("c", 9), ("b", 10)]);
        assert_eq!(pairs(&places.scores(&["x", "c"])), [("c", 10)]);
        assert_eq!(pairs(&places.scores(&["x"])), []);
    }
}
