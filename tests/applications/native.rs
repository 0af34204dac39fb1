//! A program of our own in C: threads, and timers of every kind.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    frame::{Application, Session, nothing},
    wire::Wire,
};

/// Writes of a session within which every timer must have gone on.
const STILL: u64 = 40;

/// What turns on, by its own clock, from one write to the next.
pub struct Wheels {
    names: &'static [&'static str],
    /// Position of each, and the write at which it was first seen there.
    seen: Vec<(u64, u64)>,
}

impl Wheels {
    /// Such wheels, not yet seen.
    pub fn new(names: &'static [&'static str]) -> Wheels {
        Wheels { names, seen: vec![(0, 0); names.len()] }
    }

    /// Their positions, as text, at the n-th write: none may go back or stand still.
    pub fn turn<'a>(&mut self, n: u64, positions: impl Iterator<Item = &'a str>) -> Result<()> {
        let positions: Vec<u64> = positions.map(str::parse).collect::<Result<_, _>>()?;
        ensure!(positions.len() == self.names.len(), "{} positions", positions.len());
        for ((name, seen), now) in self.names.iter().zip(&mut self.seen).zip(positions) {
            ensure!(now >= seen.0, "{name} went back from {} to {now}", seen.0);
            if now > seen.0 {
                *seen = (now, n);
            }
            ensure!(n - seen.1 < STILL, "{name} has stood at {now} since write {}", seen.1);
        }
        Ok(())
    }
}

/// The program; see `files/threads.c`. It is in the applications' image.
pub fn threads() -> Application {
    Application {
        name: "threads",
        script: "exec threads",
        port: Some(8080),
        files: &[],
        container: Value::Null,
        pod: Value::Null,
        // Four threads serve one connection each, and the probe needs one.
        sessions: 3,
        prepare: nothing,
        open: |_, pod, _| {
            let names = &["the timerfd", "the eventfd", "the condition", "the timer", "the itimer"];
            Ok(Box::new(Threads { wire: Wire::connect(pod, 8080)?, wheels: Wheels::new(names) }))
        },
        // What a session was told was the program's whole state.
        verify: |_, _, _| Ok(()),
    }
}

struct Threads {
    wire: Wire,
    wheels: Wheels,
}

impl Session for Threads {
    fn write(&mut self, n: u64) -> Result<()> {
        self.wire.send("x")?;
        let line = self.wire.line()?;
        let mut words = line.split(' ');
        let number = words.next().context("an empty answer")?;
        ensure!(number == n.to_string(), "the number is {number}");
        self.wheels.turn(n, words)
    }
}
