//! A connection to a pod that answers every byte with a line.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::cluster::Pod;

/// A connection.
pub struct Line {
    reader: BufReader<TcpStream>,
}

impl Line {
    /// Connects to a port of a pod.
    pub fn connect(pod: &Pod, port: u16) -> Result<Line> {
        let stream = TcpStream::connect((pod.ip.as_str(), port))
            .with_context(|| format!("connecting to {}:{port}", pod.ip))?;
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
