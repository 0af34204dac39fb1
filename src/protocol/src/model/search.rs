//! Breadth-first search over all states, with shortest traces and a check that every state can
//! reach an end.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::actors::{Action, successors};
use super::host::Broken;
use super::world::World;

/// What a search found.
#[derive(Debug)]
pub struct Report {
    pub states: usize,
    pub transitions: usize,
    pub ends: usize,
    pub depth: usize,
    pub broken: Option<Trace>,
}

/// The shortest way to a broken invariant, or to a state without an end.
#[derive(Debug)]
pub struct Trace {
    pub invariant: Broken,
    pub steps: String,
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

fn fingerprint(world: &World) -> u128 {
    let mut hasher = Fingerprint { a: 0x243F_6A88_85A3_08D3, b: 0x1319_8A2E_0370_7344 };
    world.hash(&mut hasher);
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

/// Explores everything reachable from `start`; stops at the first broken invariant.
pub fn explore(start: &World) -> Report {
    let mut seen = Seen::default();
    let mut came: Vec<(u32, Option<Action>)> = vec![(0, None)];
    let mut ends: Vec<bool> = Vec::new();
    let mut benign: Vec<(u32, u32)> = Vec::new();
    let mut queue = VecDeque::from([(0_u32, 0_usize, start.clone())]);
    let (mut transitions, mut depth) = (0, 0);
    let mut next = Vec::new();
    seen.insert(fingerprint(start), 0);
    while let Some((index, level, world)) = queue.pop_front() {
        depth = level;
        ends.push(world.is_terminal());
        next.clear();
        successors(&world, &mut next);
        for (action, result) in next.drain(..) {
            transitions += 1;
            let checked = result.and_then(|after| after.invariant().map(|()| after));
            let after = match checked {
                Ok(after) => after,
                Err(invariant) => {
                    let steps = trace(start, &came, index, Some(action));
                    let broken = Some(Trace { invariant, steps });
                    return Report { states: came.len(), transitions, ends: 0, depth, broken };
                }
            };
            let known = came.len() as u32;
            let target = *seen.entry(fingerprint(&after)).or_insert(known);
            if target == known {
                came.push((index, Some(action)));
                queue.push_back((target, level + 1, after));
            }
            if action.is_benign() && target != index {
                benign.push((index, target));
            }
        }
    }
    let stuck = first_without_end(&ends, &benign);
    let broken = stuck.map(|index| Trace {
        invariant: "no end can be reached",
        steps: trace(start, &came, index as u32, None),
    });
    let count = ends.iter().filter(|end| **end).count();
    Report { states: came.len(), transitions, ends: count, depth, broken }
}

/// The first state (in breadth-first order) from which no end is reachable by benign steps.
fn first_without_end(ends: &[bool], benign: &[(u32, u32)]) -> Option<usize> {
    let mut offset = vec![0_u32; ends.len() + 1];
    for (_, to) in benign {
        offset[*to as usize + 1] += 1;
    }
    for index in 0..ends.len() {
        offset[index + 1] += offset[index];
    }
    let mut fill = offset.clone();
    let mut back = vec![0_u32; benign.len()];
    for (from, to) in benign {
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

fn trace(
    start: &World,
    came: &[(u32, Option<Action>)],
    mut index: u32,
    last: Option<Action>,
) -> String {
    let mut actions: Vec<Action> = last.into_iter().collect();
    while let (from, Some(action)) = came[index as usize] {
        actions.push(action);
        index = from;
    }
    let mut text = String::new();
    let mut world = start.clone();
    for action in actions.into_iter().rev() {
        let mut next = Vec::new();
        successors(&world, &mut next);
        let what = match action {
            Action::DoEffect(super::world::Side::S, super::host::Which::First) => {
                format!("{:?}", world.s.holder.as_ref().and_then(|d| d.next_effect()))
            }
            Action::DoEffect(super::world::Side::T, super::host::Which::First) => {
                format!("{:?}", world.t.holder.as_ref().and_then(|d| d.next_effect()))
            }
            _ => String::new(),
        };
        let _ = writeln!(text, "  {action:?} {what}");
        match next.into_iter().find(|(taken, _)| *taken == action) {
            Some((_, Ok(after))) => world = after,
            _ => break,
        }
    }
    let _ = writeln!(
        text,
        "  => M {:?} exists {} | S {:?} {:?} {:?} | T {:?} {:?} {:?} ran {} | fail-over {}",
        world.api.recorded,
        world.api.exists,
        world.s_phase(),
        world.s.env.record,
        world.s.env.tasks,
        world.t_phase(),
        world.t.env.record,
        world.t.env.tasks,
        world.t_ran,
        world.replica,
    );
    text
}
