//! A client of the counter application: one TCP connection, one number per request.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What one connection saw from its first to its last reply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Replies received.
    pub replies: u64,
    /// First and last number.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// Numbers that were skipped or came twice: each as (expected, got).
    pub jumps: Vec<(u64, u64)>,
    /// Longest time between sending a request and its reply, in milliseconds.
    pub longest_gap_ms: u64,
    /// Why the connection ended early, if it did.
    pub broken: Option<String>,
}

impl Report {
    /// Nothing was lost, repeated or broken.
    pub fn is_whole(&self) -> bool {
        self.replies > 0 && self.jumps.is_empty() && self.broken.is_none()
    }
}

/// A client that runs in a thread until it is stopped.
pub struct Client {
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    thread: JoinHandle<Report>,
}

impl Client {
    /// Connects, and returns when the first reply has come.
    pub fn connect(address: SocketAddr, interval: Duration) -> Result<Client> {
        Client::with_patience(address, interval, Duration::from_secs(60))
    }

    /// As [`Client::connect`], waiting so long for each reply.
    pub fn with_patience(
        address: SocketAddr,
        interval: Duration,
        patience: Duration,
    ) -> Result<Client> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        let first = request(&mut reader, &mut writer)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let replies = Arc::new(AtomicU64::new(1));
        let counted = replies.clone();
        let thread = std::thread::spawn(move || {
            let mut report = Report { replies: 1, first, last: first, ..Report::default() };
            while !stopped.load(Ordering::Relaxed) {
                let sent = Instant::now();
                match request(&mut reader, &mut writer) {
                    Ok(number) => {
                        let gap = sent.elapsed().as_millis() as u64;
                        report.longest_gap_ms = report.longest_gap_ms.max(gap);
                        if number != report.last + 1 {
                            report.jumps.push((report.last + 1, number));
                        }
                        report.replies += 1;
                        counted.store(report.replies, Ordering::Relaxed);
                        report.last = number;
                    }
                    Err(error) => {
                        report.broken = Some(format!("{error:#}"));
                        break;
                    }
                }
                std::thread::sleep(interval);
            }
            report
        });
        Ok(Client { stop, replies, thread })
    }

    /// Replies received so far.
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Ends the connection after the reply under way and returns what was seen.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Report {
            broken: Some("the client's thread panicked".into()),
            ..Report::default()
        })
    }
}

fn request(reader: &mut impl BufRead, writer: &mut impl Write) -> Result<u64> {
    writer.write_all(b"x").context("sending a request")?;
    let mut line = String::new();
    if reader.read_line(&mut line).context("waiting for a reply")? == 0 {
        bail!("the server closed the connection");
    }
    line.trim().parse().with_context(|| format!("reply {line:?} is not a number"))
}
