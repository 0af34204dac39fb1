//! A connection to a pod that answers every byte with a line.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::cluster::Pod;

/// A connection.
pub struct Line {
    reader: BufReader<TcpStream>,
}

/// How long a container may run before its server listens.
const START: Duration = Duration::from_secs(20);

impl Line {
    /// Connects to a port of a pod, once something listens there: a pod may be Ready before.
    pub fn connect(pod: &Pod, port: u16) -> Result<Line> {
        let end = Instant::now() + START;
        let stream = loop {
            match TcpStream::connect((pod.ip.as_str(), port)) {
                Err(error)
                    if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < end =>
                {
                    thread::sleep(Duration::from_millis(50));
                }
                outcome => {
                    break outcome.with_context(|| format!("connecting to {}:{port}", pod.ip))?;
                }
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Line { reader: BufReader::new(stream) })
    }

    /// Sends one byte and returns the line that answers it.
    pub fn ask(&mut self) -> Result<String> {
        self.reader.get_mut().write_all(b"x")?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the connection was closed");
        Ok(line.trim().to_owned())
    }
}
