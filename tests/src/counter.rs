//! A client of the counter application: one TCP connection, one number per request.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::net::sockopt::set_socket_linger;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Pod};

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

/// How long the reply under way may take when a client is stopped.
const LAST: Duration = Duration::from_secs(2);
/// So many replies more are none that were under way already.
const FURTHER: u64 = 50;

/// A client that runs in a thread until it is stopped.
pub struct Client {
    stop: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    connection: TcpStream,
    thread: Option<JoinHandle<Report>>,
}

impl Client {
    /// A busy client of the example application's pod.
    pub fn of(pod: &Pod) -> Result<Client> {
        Client::connect(format!("{}:8080", pod.ip).parse()?, Duration::from_millis(2))
    }

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
        let connection = stream.try_clone()?;
        let mut writer = stream;
        let first = request(&mut reader, &mut writer)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let cut = Arc::new(AtomicBool::new(false));
        let ended = cut.clone();
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
                    // By ourselves: see `Client::stop`.
                    Err(_) if ended.load(Ordering::Relaxed) => break,
                    Err(error) => {
                        report.broken = Some(format!("{error:#}"));
                        break;
                    }
                }
                std::thread::sleep(interval);
            }
            report
        });
        Ok(Client { stop, cut, replies, connection, thread: Some(thread) })
    }

    /// Replies received so far.
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Waits until the connection is answered again.
    pub fn goes_on(&self, cluster: &Cluster, patience: Duration) -> Result<()> {
        let so_far = self.replies();
        let goes_on = || Ok(self.replies() > so_far + FURTHER);
        cluster.await_that("the connection goes on", patience, goes_on).with_context(|| {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            let address = self.connection.peer_addr().map(|peer| peer.ip().to_string());
            let address = address.unwrap_or_default();
            // Whether it stands still, and on whose side, is for these to show.
            let connection = said("ss", &["-tinoe", "dst", &address]);
            let neighbour = said("ip", &["-statistics", "neighbour", "show", "to", &address]);
            format!("the client has ended: {ended}\n{connection}{neighbour}")
        })
    }

    /// Ends the connection after the reply under way and returns what was seen. A server that does not
    /// answer any more is not waited for.
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let end = Instant::now() + LAST;
        let is_over = || self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        while !is_over() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.end();
        let seen = self.thread.take().and_then(|thread| thread.join().ok());
        seen.unwrap_or_else(|| Report {
            broken: Some("the client's thread panicked".into()),
            ..Report::default()
        })
    }

    fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.cut.store(true, Ordering::Relaxed);
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            // The request under way is forgotten, once the thread has closed its side, too. It would be sent again
            // and again, and be counted when the application no longer stands still, among those of the next client.
            let _ = set_socket_linger(&self.connection, Some(Duration::ZERO));
            let _ = self.connection.shutdown(Shutdown::Read);
        }
    }
}

impl Drop for Client {
    /// One that is forgotten would go on counting beside the next one.
    fn drop(&mut self) {
        self.end();
    }
}

/// What a program of this machine says, for a reader.
fn said(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output();
    output.map_or_else(
        |error| format!("{program}: {error}\n"),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

fn request(reader: &mut impl BufRead, writer: &mut impl Write) -> Result<u64> {
    writer.write_all(b"x").context("sending a request")?;
    let mut line = String::new();
    if reader.read_line(&mut line).context("waiting for a reply")? == 0 {
        bail!("the server closed the connection");
    }
    line.trim().parse().with_context(|| format!("reply {line:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;

    #[test]
    fn a_client_whose_server_is_silent_ends_soon_and_keeps_what_it_has_counted() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let (is_under_way, third) = mpsc::channel();
        let serving = std::thread::spawn(move || {
            let (mut connection, _) = server.accept().unwrap();
            for number in 1..=2 {
                connection.read_exact(&mut [0]).unwrap();
                writeln!(connection, "{number}").unwrap();
            }
            // Silent from the third request on, until the client goes, which takes along what is under way.
            connection.read_exact(&mut [0]).unwrap();
            is_under_way.send(()).unwrap();
            let end = connection.read_to_end(&mut Vec::new());
            assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        });
        let client =
            Client::with_patience(address, Duration::ZERO, Duration::from_secs(240)).unwrap();
        third.recv_timeout(Duration::from_secs(60)).expect("the third request comes");
        let begun = Instant::now();
        let report = client.stop();
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        assert_eq!((report.replies, report.first, report.last), (2, 1, 2));
        assert!(report.is_whole(), "{report:?}");
        serving.join().unwrap();
    }
}
