//! What goes through a [`Sender`](crate::Sender): bytes of trees and images, and pages. Each stream
//! collects frames of up to 1 MiB, and counts, hashes and compresses them without holding the
//! lock on the wire.

use std::io::{self, Read, Write};
use std::sync::Arc;

use transship_criu::PAGE_SIZE;
use transship_criu::pages::{DstId, PageRun, PageSink};

use crate::compress::Packer;
use crate::error::{Error, Result};
use crate::frame::{Kind, MAX_DATA, Outgoing};
use crate::message::{ItemCount, PagesStart, to_meta};
use crate::pages::PageBatch;
use crate::sender::Shared;

/// A stream of plain bytes (a tree's archive, an image file) in frames of up to 1 MiB.
pub(crate) struct ByteStream<'a> {
    shared: &'a Shared,
    id: u32,
    data_kind: Kind,
    end_kind: Kind,
    buffer: Vec<u8>,
    len: usize,
    packer: Packer,
    count: ItemCount,
    /// The error behind an `io::Error` that went through a capture.
    pub(crate) error: Option<Error>,
}

impl<'a> ByteStream<'a> {
    pub(crate) fn open(
        shared: &'a Shared,
        kinds: (Kind, Kind, Kind),
        start: &[u8],
    ) -> Result<Self> {
        let id = shared.next_stream();
        let mut count = ItemCount::default();
        count.frame(start, &[]);
        shared.send(&Outgoing::meta(kinds.0, id, start))?;
        Ok(Self {
            shared,
            id,
            data_kind: kinds.1,
            end_kind: kinds.2,
            buffer: Vec::new(),
            len: 0,
            packer: Packer::default(),
            count,
            error: None,
        })
    }

    fn emit(&mut self) -> Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let block = &self.buffer[..self.len];
        self.count.frame(&[], block);
        self.len = 0;
        self.shared.send_block((self.data_kind, self.id), &[], block, &mut self.packer)
    }

    pub(crate) fn copy_from(&mut self, contents: &mut dyn Read, what: &str) -> Result<u64> {
        let mut copied = 0;
        // Most images are small: the buffer grows with what there is to read.
        self.buffer.resize(64 << 10, 0);
        loop {
            if self.len == self.buffer.len() {
                if self.len == MAX_DATA {
                    self.emit()?;
                } else {
                    self.buffer.resize((self.len * 4).min(MAX_DATA), 0);
                }
            }
            match contents.read(&mut self.buffer[self.len..]) {
                Ok(0) => return Ok(copied),
                Ok(n) => {
                    self.len += n;
                    copied += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::File { what: what.into(), source }),
            }
        }
    }

    pub(crate) fn end(mut self, container: Option<&str>) -> Result<()> {
        self.emit()?;
        self.shared.end_item((self.end_kind, self.id), &self.count, container, 0)
    }
}

impl Write for ByteStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() < MAX_DATA {
            self.buffer.resize(MAX_DATA, 0);
        }
        if self.len == MAX_DATA
            && let Err(error) = self.emit()
        {
            let shown = io::Error::other(error.to_string());
            self.error = Some(error);
            return Err(shown);
        }
        let take = bytes.len().min(MAX_DATA - self.len);
        self.buffer[self.len..self.len + take].copy_from_slice(&bytes[..take]);
        self.len += take;
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The pages of one container on their way: what CRIU's page server writes to.
pub struct PageStream {
    shared: Arc<Shared>,
    id: u32,
    container: String,
    batch: PageBatch,
    packer: Packer,
    count: ItemCount,
    pages: u64,
    finished: bool,
}

impl PageStream {
    pub(crate) fn open(shared: Arc<Shared>, container: &str) -> Result<Self> {
        let id = shared.next_stream();
        let start = to_meta(&PagesStart { container: container.into() })?;
        let mut count = ItemCount::default();
        count.frame(&start, &[]);
        shared.send(&Outgoing::meta(Kind::PagesStart, id, &start))?;
        Ok(Self {
            shared,
            id,
            container: container.into(),
            batch: PageBatch::new(),
            packer: Packer::default(),
            count,
            pages: 0,
            finished: false,
        })
    }

    fn emit(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let (meta, data) = self.batch.finish();
        self.count.frame(meta, data);
        let sent = self.shared.send_block((Kind::Pages, self.id), meta, data, &mut self.packer);
        self.batch.clear();
        sent
    }

    fn announce(&mut self, run: PageRun) -> Result<()> {
        if self.batch.is_full() {
            self.emit()?;
        }
        self.batch.run(run);
        Ok(())
    }
}

impl PageSink for PageStream {
    fn open(&mut self, dst: DstId) -> io::Result<bool> {
        self.emit()?;
        let meta = dst.raw().to_le_bytes();
        self.count.frame(&meta, &[]);
        self.shared.send(&Outgoing::meta(Kind::PagesOpen, self.id, &meta))?;
        Ok(false)
    }

    fn hole(&mut self, run: PageRun) -> io::Result<()> {
        Ok(self.announce(run)?)
    }

    fn pages(&mut self, run: PageRun, data: &mut dyn Read) -> io::Result<()> {
        self.announce(run)?;
        let mut left = run.data_len();
        while left > 0 {
            let read = self.batch.read(data, left)?;
            left -= read;
            if self.batch.is_full() {
                self.emit()?;
            }
        }
        self.pages += run.data_len() / PAGE_SIZE;
        self.shared.progress.add_pages(run.data_len() / PAGE_SIZE);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.finished {
            return Ok(());
        }
        self.emit()?;
        let key = (Kind::PagesEnd, self.id);
        self.shared.end_item(key, &self.count, Some(&self.container), self.pages)?;
        self.finished = true;
        Ok(())
    }
}
