//! Tells where a cell's time goes.

use std::time::Instant;

/// Prints all laps when it is dropped.
pub struct Stopwatch {
    cell: String,
    begun: Instant,
    last: Instant,
    laps: Vec<String>,
}

impl Stopwatch {
    /// Begins with the cell's first lap.
    pub fn start(cell: String) -> Self {
        let now = Instant::now();
        Stopwatch { cell, begun: now, last: now, laps: Vec::new() }
    }

    /// Ends a lap, which is called so, and begins the next one.
    pub fn lap(&mut self, what: &str) {
        self.laps.push(format!("{what} {:.1}", self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        let all = self.begun.elapsed().as_secs_f64();
        eprintln!("{}: {all:.1} s ({})", self.cell, self.laps.join(", "));
    }
}
