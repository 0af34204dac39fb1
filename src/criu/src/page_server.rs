//! The receiving side of CRIU's page-server protocol. The client is a CRIU on this node that dumps
//! with an inherited socket ([`crate::dump_socket`]); one that dumps with `--page-server` and a port
//! speaks it too.
//!
//! ```text
//! CRIU                                      we
//!  │ OPEN2 dst                               │ sink.open(dst)
//!  │◄──────────────────────── u8 has parent ─┤
//!  │ ADD_F(flags) vaddr nr [+ nr·4096 bytes] │ sink.pages / sink.hole      (repeated)
//!  │ PARENT dst                              │ sink.has_parent(dst)
//!  │◄─────────────────────── i32 has parent ─┤
//!  │ CLOSE (port) or FORCE_CLOSE (inherited) │ sink.finish()
//!  │◄──────────────────────────── i32 zero ──┤
//!  │ end of stream (port) ──────────────────►│
//! ```
//! A command is `{u32 cmd; nr_pages; u64 vaddr; u64 dst_id}`, little-endian, flags in the upper
//! 16 bits of `cmd`. Up to CRIU 4.1 `nr_pages` has 32 bits (24 bytes in all), from 4.2 on 64
//! (32 bytes, 4 of padding). There is no handshake that tells which: see [`Dialect`].

use std::io::{self, BufRead, BufReader, Read, Write};

use thiserror::Error;

use crate::pages::{DstId, PageFlags, PageRun, PageSink};

const ADD: u32 = 1;
const HOLE: u32 = 2;
const OPEN: u32 = 3;
const OPEN2: u32 = 4;
const PARENT: u32 = 5;
const ADD_F: u32 = 6;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;

/// Bytes read ahead: enough for many small runs, little enough that the bulk of a long run is
/// read straight into the sink's buffer.
const READ_AHEAD: usize = 64 << 10;

/// The layout of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// CRIU up to 4.1: 24 bytes.
    Narrow,
    /// CRIU 4.2 and later: 32 bytes.
    Wide,
}

impl Dialect {
    /// The dialect of a CRIU version.
    pub fn of_version(major: u32, minor: u32) -> Self {
        if (major, minor) >= (4, 2) { Dialect::Wide } else { Dialect::Narrow }
    }

    fn command_len(self) -> usize {
        match self {
            Dialect::Narrow => 24,
            Dialect::Wide => 32,
        }
    }
}

/// Why a dump's pages could not be received.
#[derive(Debug, Error)]
pub enum PageServerError {
    /// The connection broke, or could not be made in time.
    #[error("connection from criu: {0}")]
    Io(#[source] io::Error),
    /// The stream ended before CLOSE: the dump failed.
    #[error("criu ended its page stream without closing it")]
    Unfinished,
    /// A command that a dump does not send.
    #[error("unknown page-server command {0:#x}")]
    Command(u32),
    /// A destination of unknown type.
    #[error("unknown page destination {0:#x}")]
    Destination(u64),
    /// Pages for another destination than the one opened last.
    #[error("pages for {0} before it was opened")]
    NotOpen(DstId),
    /// An empty, unaligned or overlong run.
    #[error("invalid run of {nr_pages} pages at {vaddr:#x}")]
    Run {
        /// Address of the run.
        vaddr: u64,
        /// Its length in pages.
        nr_pages: u64,
    },
    /// The sink failed.
    #[error("pages could not be stored: {0}")]
    Sink(#[source] io::Error),
}

/// What a completed dump sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// Destinations opened.
    pub destinations: u64,
    /// Runs, holes included.
    pub runs: u64,
    /// Bytes of page data.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Command {
    cmd: u32,
    nr_pages: u64,
    vaddr: u64,
    dst_id: u64,
}

impl Command {
    /// `raw` has the length of the dialect.
    fn parse(raw: &[u8], dialect: Dialect) -> Self {
        let u32_at = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&raw[at..at + 4]);
            u32::from_le_bytes(word)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        match dialect {
            Dialect::Narrow => Self {
                cmd: u32_at(0),
                nr_pages: u64::from(u32_at(4)),
                vaddr: u64_at(8),
                dst_id: u64_at(16),
            },
            Dialect::Wide => {
                Self { cmd: u32_at(0), nr_pages: u64_at(8), vaddr: u64_at(16), dst_id: u64_at(24) }
            }
        }
    }

    fn dst(&self) -> Result<DstId, PageServerError> {
        DstId::from_raw(self.dst_id).ok_or(PageServerError::Destination(self.dst_id))
    }
}

/// Receives one dump from `stream` into `sink`.
///
/// Returns when CRIU has closed its page stream and `sink.finish` has succeeded. That alone does not
/// mean that the dump succeeded: CRIU says goodbye in the same way when something else failed, so
/// ask for its exit status too. On an error the caller drops the stream, upon which CRIU fails
/// the dump.
pub fn receive<S: Read + Write>(
    stream: S,
    dialect: Dialect,
    sink: &mut dyn PageSink,
) -> Result<Received, PageServerError> {
    Session {
        stream: BufReader::with_capacity(READ_AHEAD, stream),
        dialect,
        sink,
        open: None,
        received: Received::default(),
    }
    .run()
}

struct Session<'a, S> {
    stream: BufReader<S>,
    dialect: Dialect,
    sink: &'a mut dyn PageSink,
    open: Option<DstId>,
    received: Received,
}

impl<S: Read + Write> Session<'_, S> {
    fn run(mut self) -> Result<Received, PageServerError> {
        loop {
            let command = self.command()?;
            match command.cmd & 0xffff {
                kind @ (OPEN | OPEN2) => {
                    let dst = command.dst()?;
                    let parent = self.sink.open(dst).map_err(PageServerError::Sink)?;
                    self.open = Some(dst);
                    self.received.destinations += 1;
                    if kind == OPEN2 {
                        self.reply(&[u8::from(parent)])?;
                    }
                }
                PARENT => {
                    let dst = command.dst()?;
                    let parent = self.sink.has_parent(dst).map_err(PageServerError::Sink)?;
                    self.reply(&i32::from(parent).to_le_bytes())?;
                }
                ADD_F => self.add(&command, PageFlags(command.cmd >> 16))?,
                ADD => self.add(&command, PageFlags::PRESENT)?,
                HOLE => self.add(&command, PageFlags::PARENT)?,
                kind @ (CLOSE | FORCE_CLOSE) => {
                    self.sink.finish().map_err(PageServerError::Sink)?;
                    self.reply(&0i32.to_le_bytes())?;
                    if kind == CLOSE {
                        self.await_end();
                    }
                    return Ok(self.received);
                }
                _ => return Err(PageServerError::Command(command.cmd)),
            }
        }
    }

    fn command(&mut self) -> Result<Command, PageServerError> {
        let mut raw = [0; 32];
        let raw = &mut raw[..self.dialect.command_len()];
        if self.stream.fill_buf().map_err(PageServerError::Io)?.is_empty() {
            return Err(PageServerError::Unfinished);
        }
        self.stream.read_exact(raw).map_err(PageServerError::Io)?;
        Ok(Command::parse(raw, self.dialect))
    }

    fn add(&mut self, command: &Command, flags: PageFlags) -> Result<(), PageServerError> {
        let dst = command.dst()?;
        if self.open != Some(dst) {
            return Err(PageServerError::NotOpen(dst));
        }
        let (vaddr, nr_pages) = (command.vaddr, command.nr_pages);
        let run = PageRun::checked(vaddr, nr_pages, flags)
            .ok_or(PageServerError::Run { vaddr, nr_pages })?;
        self.received.runs += 1;
        let len = run.data_len();
        if len == 0 {
            return self.sink.hole(run).map_err(PageServerError::Sink);
        }
        self.received.bytes += len;
        let mut data = Exact { inner: &mut self.stream, left: len, failed: None };
        let result = self.sink.pages(run, &mut data);
        if let Some(error) = data.failed {
            return Err(PageServerError::Io(error));
        }
        result.map_err(PageServerError::Sink)?;
        if data.left > 0 {
            return Err(PageServerError::Sink(io::Error::other("page data was not consumed")));
        }
        Ok(())
    }

    fn reply(&mut self, bytes: &[u8]) -> Result<(), PageServerError> {
        let stream = self.stream.get_mut();
        stream.write_all(bytes).and_then(|()| stream.flush()).map_err(PageServerError::Io)
    }

    /// CRIU closes first, so that our side has no connection in TIME_WAIT. Whatever happens now
    /// no longer matters: everything is stored and CRIU was told so.
    fn await_end(&mut self) {
        let _ = self.stream.fill_buf();
    }
}

/// Lets a sink read one run's data and no more, and keeps errors of the connection apart from
/// those of the sink.
struct Exact<'a, R> {
    inner: &'a mut R,
    left: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Exact<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        match self.inner.read(&mut buf[..len]) {
            Ok(0) => {
                let kind = io::ErrorKind::UnexpectedEof;
                self.failed = Some(io::Error::new(kind, "stream ended inside a run of pages"));
                Err(kind.into())
            }
            Ok(n) => {
                self.left -= n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let kind = e.kind();
                self.failed = Some(e);
                Err(kind.into())
            }
        }
    }
}

#[cfg(test)]
#[path = "page_server_tests.rs"]
mod tests;
