//! The static list of nodes, and how it differs from the nodes that are there.
//!
//! As in Swarm's `nodes://` and `file://` an entry may hold a range: `worker-[1:3]` stands for
//! three nodes, `worker-[08:11]` for four with two digits each.

use std::collections::BTreeSet;

/// The most names that one entry stands for: a slip of the pen must not fill the cluster.
const MOST: u64 = 10_000;

/// The names of all entries. An entry whose range cannot be read stands for itself, as in Swarm.
pub fn expand<'a>(entries: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    entries.into_iter().flat_map(|entry| names(entry.trim())).filter(|n| !n.is_empty()).collect()
}

fn names(entry: &str) -> Vec<String> {
    let Some((before, from, to, after)) = range(entry) else { return vec![entry.to_owned()] };
    let (Ok(first), Ok(last)) = (from.parse::<u64>(), to.parse::<u64>()) else {
        return vec![entry.to_owned()];
    };
    let width = if from.starts_with('0') { from.len() } else { 0 };
    let rest = names(after);
    (first..=last.min(first.saturating_add(MOST)))
        .flat_map(|n| rest.iter().map(move |rest| format!("{before}{n:0width$}{rest}")))
        .take(MOST as usize)
        .collect()
}

/// `a[b:c]d` in its four parts.
fn range(entry: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, rest) = entry.split_once('[')?;
    let (inside, after) = rest.split_once(']')?;
    let (from, to) = inside.split_once(':')?;
    Some((before, from, to, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_stands_for_its_names() {
        for (entry, expected) in [
            ("node-a", &["node-a"][..]),
            ("n[1:3]", &["n1", "n2", "n3"]),
            ("n[08:11].x", &["n08.x", "n09.x", "n10.x", "n11.x"]),
            ("r[1:2]n[1:2]", &["r1n1", "r1n2", "r2n1", "r2n2"]),
            ("n[3:1]", &[]),
            ("n[a:b]", &["n[a:b]"]),
            ("n[1:2", &["n[1:2"]),
            (" ", &[]),
        ] {
            let expected: BTreeSet<String> = expected.iter().map(|s| (*s).to_owned()).collect();
            assert_eq!(expand([entry]), expected, "{entry}");
        }
        assert_eq!(expand(["n[1:99999999999]"]).len(), MOST as usize);
    }
}
