//! Opens a new connection at a fixed rhythm and notes each refusal and time-out.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// One attempt that did not get its reply in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// When the attempt began, Unix time in milliseconds.
    pub at_unix_ms: u64,
    /// What went wrong.
    pub error: String,
}

/// What the prober saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Attempts made.
    pub attempts: u64,
    /// Attempts that got their reply.
    pub served: u64,
    /// The others, in order.
    pub misses: Vec<Miss>,
}

impl Report {
    /// Milliseconds from the first to the last miss (0 with fewer than two).
    pub fn outage_ms(&self) -> u64 {
        match (self.misses.first(), self.misses.last()) {
            (Some(first), Some(last)) => last.at_unix_ms - first.at_unix_ms,
            _ => 0,
        }
    }
}

/// Probes `address` every `interval` until `until`; each attempt may take `patience`.
///
/// Attempts run in threads of their own, so a slow one does not delay the next.
pub fn probe(
    address: SocketAddr,
    interval: Duration,
    patience: Duration,
    until: impl Fn() -> bool,
) -> Report {
    let mut report = Report::default();
    let mut running = Vec::new();
    while !until() {
        let begun = Instant::now();
        let at_unix_ms = unix_ms();
        report.attempts += 1;
        running.push(std::thread::spawn(move || (at_unix_ms, attempt(address, patience))));
        if running.len() > 64 {
            collect(&mut report, running.drain(..32));
        }
        std::thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
    collect(&mut report, running.drain(..));
    report.misses.sort_by_key(|miss| miss.at_unix_ms);
    report
}

type Attempt = std::thread::JoinHandle<(u64, std::io::Result<()>)>;

fn collect(report: &mut Report, attempts: impl Iterator<Item = Attempt>) {
    for attempt in attempts {
        match attempt.join() {
            Ok((_, Ok(()))) => report.served += 1,
            Ok((at_unix_ms, Err(error))) => {
                report.misses.push(Miss { at_unix_ms, error: error.to_string() });
            }
            Err(_) => report.misses.push(Miss { at_unix_ms: 0, error: "panic".into() }),
        }
    }
}

fn attempt(address: SocketAddr, patience: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"x")?;
    let mut reply = [0; 32];
    match stream.read(&mut reply)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
