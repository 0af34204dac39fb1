//! A program of our own in C: threads, and timers of every kind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    frame::{Application, Session, nothing},
    wire::Wire,
};

/// How long a timer of 10 ms may stand still, and its connection answer all the same.
const STILL: Duration = Duration::from_secs(20);

/// What turns on, by its own clock, from one write to the next.
pub struct Wheels {
    names: &'static [&'static str],
    seen: Vec<u64>,
}

impl Wheels {
    /// Such wheels, not yet seen.
    pub fn new(names: &'static [&'static str]) -> Wheels {
        Wheels { names, seen: vec![0; names.len()] }
    }

    /// Looks, by a function that reads their positions, until every one has turned on.
    pub fn turn(&mut self, mut look: impl FnMut() -> Result<Vec<u64>>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let now = look()?;
            ensure!(now.len() == self.names.len(), "{} positions", now.len());
            let wheels = self.names.iter().zip(&self.seen).zip(&now);
            let mut standing = wheels.filter(|((_, seen), now)| now <= seen);
            let Some(((name, seen), now_at)) = standing.next() else {
                self.seen = now;
                return Ok(());
            };
            ensure!(now_at == seen, "{name} went back from {seen} to {now_at}");
            ensure!(begun.elapsed() < STILL, "{name} has stood at {seen} for {STILL:?}");
        }
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
        setting: None,
        // Four threads serve one connection each, and the probe needs one.
        sessions: 3,
        prepare: nothing,
        open: |_, pod, _| {
            let names = &["the timerfd", "the eventfd", "the condition", "the timer", "the itimer"];
            let wire = Wire::connect(pod, 8080)?;
            Ok(Box::new(Threads { wire, wheels: Wheels::new(names), asked: 0 }))
        },
        // What a session was told was the program's whole state.
        verify: |_, _, _| Ok(()),
    }
}

struct Threads {
    wire: Wire,
    wheels: Wheels,
    asked: u64,
}

impl Session for Threads {
    fn write(&mut self, _: u64) -> Result<()> {
        let Threads { wire, wheels, asked } = self;
        wheels.turn(|| {
            *asked += 1;
            wire.send("x")?;
            let line = wire.line()?;
            let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let (number, positions) = numbers.split_first().context("an empty answer")?;
            ensure!(number == asked, "answer {asked} has the number {number}");
            Ok(positions.to_vec())
        })
    }
}
