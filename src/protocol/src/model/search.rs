//! Breadth-first search over all states of a model, with shortest traces and a check that every state can
//! reach an end.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::Instant;

use crate::rules::{Rule, break_rule};

/// A broken invariant.
pub type Broken = &'static str;

/// Successors of a state, each with the action that leads to it.
pub type Steps<S> = Vec<(<S as Space>::Action, Result<S, Broken>)>;

/// The states of a model.
pub trait Space: Clone + Hash {
    /// What leads from one to the next.
    type Action: Copy;

    /// Everything that can happen next, always in the same order.
    fn successors(&self, out: &mut Steps<Self>);

    /// What must hold in every state.
    fn invariant(&self) -> Result<(), Broken>;

    /// Everything has come to a right end.
    fn is_end(&self) -> bool;

    /// It happens by itself: nothing goes wrong, nobody's patience has to run out. Such actions alone
    /// must lead to an end, from wherever.
    fn is_sure(action: Self::Action) -> bool;

    /// A line of a trace: the action, taken here.
    fn tell(&self, action: Self::Action) -> String;

    /// The last line of a trace.
    fn show(&self) -> String;
}

/// What a search found.
#[derive(Debug)]
struct Report {
    states: usize,
    transitions: usize,
    ends: usize,
    depth: usize,
    broken: Option<Trace>,
}

/// The shortest way to a broken invariant, or to a state without an end.
#[derive(Debug)]
struct Trace {
    invariant: Broken,
    steps: String,
}

/// 128 bits: two states of millions share one with a probability of about 1e-25.
#[derive(Clone, Copy)]
struct Fingerprint {
    a: u64,
    b: u64,
}

impl Fingerprint {
    fn mix(&mut self, value: u64) {
        let wide = u128::from(self.a ^ value) * u128::from(0x9E37_79B9_7F4A_7C15_u64 | 1);
        self.a = (wide as u64) ^ ((wide >> 64) as u64);
        self.b = (self.b ^ value).wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(29);
        self.b ^= self.b >> 32;
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.a
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte) + 1);
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value) + 0x100);
    }
    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64 + 0x1000);
    }
    fn write_isize(&mut self, value: isize) {
        self.mix((value as u64).wrapping_add(0x1_0000));
    }
}

fn fingerprint(state: &impl Hash) -> u128 {
    let mut hasher = Fingerprint { a: 0x243F_6A88_85A3_08D3, b: 0x1319_8A2E_0370_7344 };
    state.hash(&mut hasher);
    u128::from(hasher.a) << 64 | u128::from(hasher.b)
}

/// A fingerprint is its own hash.
#[derive(Default)]
struct Own(u64);

impl Hasher for Own {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

type Seen = HashMap<u128, u32, BuildHasherDefault<Own>>;

/// How a state was reached first: from which one, and by which of its successors.
type Came = (u32, u32);

/// Explores everything reachable from `start`; stops at the first broken invariant.
fn explore<S: Space>(start: &S) -> Report {
    let mut seen = Seen::default();
    let mut came: Vec<Came> = vec![(0, 0)];
    let mut ends: Vec<bool> = Vec::new();
    let mut sure: Vec<(u32, u32)> = Vec::new();
    let mut queue = VecDeque::from([(0_u32, 0_usize, start.clone())]);
    let (mut transitions, mut depth) = (0, 0);
    let mut next = Vec::new();
    seen.insert(fingerprint(start), 0);
    while let Some((index, level, state)) = queue.pop_front() {
        depth = level;
        ends.push(state.is_end());
        next.clear();
        state.successors(&mut next);
        for (nth, (action, result)) in (0_u32..).zip(next.drain(..)) {
            transitions += 1;
            let checked = result.and_then(|after| after.invariant().map(|()| after));
            let after = match checked {
                Ok(after) => after,
                Err(invariant) => {
                    let steps = trace(start, &came, index, Some(nth));
                    let broken = Some(Trace { invariant, steps });
                    return Report { states: came.len(), transitions, ends: 0, depth, broken };
                }
            };
            let known = came.len() as u32;
            let target = *seen.entry(fingerprint(&after)).or_insert(known);
            if target == known {
                came.push((index, nth));
                queue.push_back((target, level + 1, after));
            }
            if S::is_sure(action) && target != index {
                sure.push((index, target));
            }
        }
    }
    let stuck = first_without_end(&ends, &sure);
    let broken = stuck.map(|index| Trace {
        invariant: "no end can be reached unless somebody loses patience",
        steps: trace(start, &came, index as u32, None),
    });
    let count = ends.iter().filter(|end| **end).count();
    Report { states: came.len(), transitions, ends: count, depth, broken }
}

/// The first state (in breadth-first order) from which no end is reachable by these steps.
fn first_without_end(ends: &[bool], steps: &[(u32, u32)]) -> Option<usize> {
    let mut offset = vec![0_u32; ends.len() + 1];
    for (_, to) in steps {
        offset[*to as usize + 1] += 1;
    }
    for index in 0..ends.len() {
        offset[index + 1] += offset[index];
    }
    let mut fill = offset.clone();
    let mut back = vec![0_u32; steps.len()];
    for (from, to) in steps {
        let place = &mut fill[*to as usize];
        back[*place as usize] = *from;
        *place += 1;
    }
    let mut good = ends.to_vec();
    let mut work: Vec<usize> = (0..ends.len()).filter(|index| ends[*index]).collect();
    while let Some(to) = work.pop() {
        for from in &back[offset[to] as usize..offset[to + 1] as usize] {
            if !std::mem::replace(&mut good[*from as usize], true) {
                work.push(*from as usize);
            }
        }
    }
    good.iter().position(|good| !good)
}

fn trace<S: Space>(start: &S, came: &[Came], mut index: u32, last: Option<u32>) -> String {
    let mut choices: Vec<u32> = last.into_iter().collect();
    while index != 0 {
        let (from, nth) = came[index as usize];
        choices.push(nth);
        index = from;
    }
    let mut text = String::new();
    let mut state = start.clone();
    for nth in choices.into_iter().rev() {
        let mut next = Vec::new();
        state.successors(&mut next);
        let Some((action, after)) = next.into_iter().nth(nth as usize) else { break };
        let _ = writeln!(text, "  {}", state.tell(action));
        match after {
            Ok(after) => state = after,
            Err(_) => break,
        }
    }
    let _ = writeln!(text, "  => {}", state.show());
    text
}

fn search<S: Space>(name: &str, start: &S) -> Report {
    let started = Instant::now();
    let report = explore(start);
    println!(
        "{name}: {} states, {} transitions, {} ends, depth {}, {:.1} s",
        report.states,
        report.transitions,
        report.ends,
        report.depth,
        started.elapsed().as_secs_f64()
    );
    report
}

/// Nothing reachable from `start` is wrong.
pub fn passes<S: Space>(name: &str, start: &S) {
    let report = search(name, start);
    if let Some(broken) = report.broken {
        panic!("{name}: {}\n{}", broken.invariant, broken.steps);
    }
    assert!(report.ends > 0, "{name}: nothing ever ends");
}

/// Such a state can be reached.
pub fn reaches<S: Space>(name: &str, start: &S, is_it: impl Fn(&S) -> bool) {
    let mut seen = Seen::default();
    let mut queue = VecDeque::from([start.clone()]);
    let mut next = Vec::new();
    while let Some(state) = queue.pop_front() {
        if is_it(&state) {
            return println!("{name}: reached after {} states: {}", seen.len(), state.show());
        }
        state.successors(&mut next);
        let after = next.drain(..).filter_map(|(_, after)| after.ok());
        queue.extend(after.filter(|after| seen.insert(fingerprint(after), 0).is_none()));
    }
    panic!("{name}: it never comes to that");
}

/// Breaks `rule`: from one of `starts`, tried in turn, something wrong can be reached.
pub fn fails<S: Space>(rule: Rule, starts: impl IntoIterator<Item = S>) {
    break_rule(Some(rule));
    let found = starts
        .into_iter()
        .zip(0..)
        .find_map(|(start, nth)| search(&format!("{rule:?} broken, {nth}"), &start).broken);
    break_rule(None);
    let Some(broken) = found else { panic!("{rule:?} can be broken and nobody notices") };
    println!("{rule:?} broken: {}\n{}", broken.invariant, broken.steps);
}
