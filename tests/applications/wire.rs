//! Connections of the test program itself: protocols of lines, and HTTP/1.1.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use transship_tests::cluster::Pod;

/// How long an answer may take: more than a move.
const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP connection to a pod.
pub struct Wire {
    reader: BufReader<TcpStream>,
}

impl Wire {
    /// Connects.
    pub fn connect(pod: &Pod, port: u16) -> Result<Wire> {
        let stream = TcpStream::connect((pod.ip.as_str(), port))
            .with_context(|| format!("connecting to {}:{port}", pod.ip))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Wire { reader: BufReader::new(stream) })
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref()).context("sending")
    }

    /// Receives a line, without its end.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line).context("receiving")? > 0, "connection closed");
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Sends a line and receives one.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.send(format!("{line}\r\n"))?;
        self.line()
    }

    /// Receives so many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).context("receiving")?;
        Ok(bytes)
    }

    /// Receives up to and without a byte.
    pub fn until(&mut self, end: u8) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        self.reader.read_until(end, &mut bytes).context("receiving")?;
        ensure!(bytes.pop() == Some(end), "connection closed");
        Ok(bytes)
    }
}

/// An HTTP connection that is kept alive and keeps its cookie.
pub struct Http {
    wire: Wire,
    cookie: Option<String>,
}

impl Http {
    /// Connects.
    pub fn connect(pod: &Pod, port: u16) -> Result<Http> {
        Ok(Http { wire: Wire::connect(pod, port)?, cookie: None })
    }

    /// The body of a successful answer.
    pub fn get(&mut self, path: &str) -> Result<String> {
        self.request("GET", path, "")
    }

    /// Sends a request and returns the body of its answer, if that is a success.
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Result<String> {
        let cookie =
            self.cookie.as_ref().map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
        self.wire.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\n{cookie}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))?;
        let status = self.wire.line()?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.wire.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().context("Content-Length")?,
                "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
                "connection" => {
                    ensure!(!value.eq_ignore_ascii_case("close"), "{path}: the server will close");
                }
                "set-cookie" => self.cookie = value.split(';').next().map(ToOwned::to_owned),
                _ => {}
            }
        }
        let body = if chunked { self.chunks()? } else { self.wire.bytes(length)? };
        let body = String::from_utf8(body)?;
        match status.split(' ').nth(1) {
            Some(code) if code.starts_with('2') => Ok(body),
            _ => bail!("{method} {path}: {status}: {body}"),
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = vec![];
        loop {
            let line = self.wire.line()?;
            let length = usize::from_str_radix(&line, 16).context("length of a chunk")?;
            body.extend(self.wire.bytes(length)?);
            self.wire.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
}
