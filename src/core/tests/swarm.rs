//! The engine decides as Docker Swarm classic did: 1,500 recorded decisions of its scheduler.

use std::io::{BufRead, BufReader};

use flate2::read::GzDecoder;
use serde_json::Value;
use transship_core::placement::simulate::{self, Outcome};

#[test]
fn every_recorded_decision_is_reproduced() {
    let file = std::fs::File::open("tests/data/swarm/vectors.jsonl.gz").unwrap();
    let mut differing = Vec::new();
    let mut count = 0;
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let line = line.unwrap();
        let case: Value = serde_json::from_str(&line).unwrap();
        let expected: Outcome = serde_json::from_value(case["expect"].clone()).unwrap();
        let answer = simulate::answer(&line).unwrap();
        count += 1;
        if comparable(&answer.outcome) != comparable(&expected) {
            differing.push(format!("{}: {:?}, Swarm: {expected:?}", answer.id, answer.outcome));
        }
    }
    assert_eq!(count, 1500);
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
}

/// Swarm kept ports in a map, so the order in which it lists several is not defined. The order of
/// equal nodes is not either.
fn comparable(outcome: &Outcome) -> Outcome {
    match outcome {
        Outcome::Order(groups) => {
            let mut groups = groups.clone();
            groups.iter_mut().for_each(|group| group.sort());
            Outcome::Order(groups)
        }
        Outcome::Error(text) => {
            let lines = text.lines().map(|line| {
                let Some(ports) = line.strip_prefix("[port ").and_then(|l| l.strip_suffix(']'))
                else {
                    return line.to_owned();
                };
                let mut ports: Vec<&str> = ports.split(" port ").collect();
                ports.sort_unstable();
                format!("[port {}]", ports.join(" port "))
            });
            Outcome::Error(lines.collect::<Vec<_>>().join("\n"))
        }
    }
}
