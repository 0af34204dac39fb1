//! Pagemap and pages images, written as `criu page-server` writes them.
//!
//! Each destination gets `pagemap-<id>.img` (or `pagemap-shmem-<id>.img`): a head with the
//! number of its pages image, then one entry for each run; and `pages-<n>.img` with the bytes
//! of its PRESENT runs in order. The numbers start at 0x10001, above those that a dump without
//! page server uses in the same directory, and count up with each destination.
//!
//! Pages of zeroes may be left as holes of the file: CRIU reads them as any others.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::PAGE_SIZE;
use crate::image::{Header, ImageError, PAGEMAP_MAGIC, put_record};
use crate::pages::{DstId, PageFlags, PageRun, PageSink};
use crate::proto::{Field, Fields, ProtoError, Value, put_uint};

/// Number of the first pages image, as with CRIU's own page server.
pub const FIRST_PAGES_ID: u32 = 0x1_0001;
/// Most destinations in one image set; a container has no more processes and shared areas.
pub const MAX_DESTINATIONS: u32 = 65_536;
/// Pagemap bytes collected before they are written.
const PAGEMAP_BUFFER: usize = 64 << 10;
/// Size of one copy from a reader to a pages image.
const COPY_CHUNK: usize = 1 << 20;

/// Why a pagemap image cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PagemapError {
    /// Not an image of records.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A record is not a protobuf message.
    #[error(transparent)]
    Proto(#[from] ProtoError),
    /// The head or an entry misses a field or has an impossible value.
    #[error("invalid pagemap {0}")]
    Invalid(&'static str),
}

/// A pagemap image as read: the number of its pages image and its runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    /// The `n` of `pages-<n>.img`.
    pub pages_id: u32,
    /// The runs, in order.
    pub runs: Vec<PageRun>,
}

impl Pagemap {
    /// Reads a pagemap image.
    pub fn parse(image: &[u8]) -> Result<Self, PagemapError> {
        let mut records = Header::Common(PAGEMAP_MAGIC).open(image)?;
        let head = records.next().ok_or(PagemapError::Invalid("head"))??;
        let pages_id = crate::proto::find_varint(head, 1)?
            .and_then(|id| u32::try_from(id).ok())
            .ok_or(PagemapError::Invalid("head"))?;
        let mut runs = Vec::new();
        for record in records {
            runs.push(parse_entry(record?)?);
        }
        Ok(Self { pages_id, runs })
    }

    /// How many bytes the pages image must hold.
    pub fn data_len(&self) -> u64 {
        self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.data_len()))
    }
}

fn parse_entry(record: &[u8]) -> Result<PageRun, PagemapError> {
    let (mut vaddr, mut compat, mut in_parent, mut flags, mut nr) = (None, None, false, None, None);
    for field in Fields::new(record) {
        if let Field { number, value: Value::Varint(v) } = field? {
            match number {
                1 => vaddr = Some(v),
                2 => compat = Some(v),
                3 => in_parent = v != 0,
                4 => flags = Some(v as u32),
                5 => nr = Some(v),
                _ => {}
            }
        }
    }
    // As CRIU reads entries of older versions.
    let flags = match flags {
        None if in_parent => PageFlags::PARENT,
        None => PageFlags::PRESENT,
        Some(flags) if in_parent => PageFlags(flags).with(PageFlags::PARENT),
        Some(flags) => PageFlags(flags),
    };
    let vaddr = vaddr.ok_or(PagemapError::Invalid("entry without address"))?;
    let nr = nr.or(compat).ok_or(PagemapError::Invalid("entry without length"))?;
    PageRun::checked(vaddr, nr, flags).ok_or(PagemapError::Invalid("entry"))
}

fn put_entry(out: &mut Vec<u8>, run: PageRun) {
    let mut message = Vec::with_capacity(32);
    put_uint(&mut message, 1, run.vaddr);
    // Required by the schema; readers take field 5 when it is there.
    put_uint(&mut message, 2, 0);
    put_uint(&mut message, 4, u64::from(run.flags.0));
    put_uint(&mut message, 5, run.nr_pages);
    put_record(out, &message);
}

/// Writes pagemap and pages images into a directory.
///
/// Either as a [`PageSink`] behind the page server, or with [`open`](Self::open),
/// [`run`](Self::run), [`data`](Self::data) and [`zeroes`](Self::zeroes) for pages that come
/// from elsewhere. Files are created, never replaced: a destination that comes twice is an error.
#[derive(Debug)]
pub struct PageImages {
    dir: PathBuf,
    next_id: u32,
    current: Option<Current>,
    totals: PageTotals,
}

/// What has been written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageTotals {
    /// Destinations.
    pub destinations: u64,
    /// Runs of any kind.
    pub runs: u64,
    /// Pages with data.
    pub pages: u64,
}

#[derive(Debug)]
struct Current {
    dst: DstId,
    pagemap: File,
    buffer: Vec<u8>,
    pages: File,
    /// Bytes of the pages image that the runs so far stand for.
    expected: u64,
    /// Bytes of the pages image that are there, holes included.
    written: u64,
}

impl PageImages {
    /// Writes into `dir`, which must exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            next_id: FIRST_PAGES_ID,
            current: None,
            totals: PageTotals::default(),
        }
    }

    /// What has been written so far.
    pub fn totals(&self) -> PageTotals {
        self.totals
    }

    /// Completes the current destination and starts `dst`.
    pub fn open(&mut self, dst: DstId) -> io::Result<()> {
        self.close()?;
        if self.next_id - FIRST_PAGES_ID >= MAX_DESTINATIONS {
            return Err(io::Error::other("too many page destinations"));
        }
        let pages_id = self.next_id;
        self.next_id += 1;
        let pagemap = create(&self.dir, &dst.pagemap_name())?;
        let pages = create(&self.dir, &format!("pages-{pages_id}.img"))?;
        let mut buffer = Header::Common(PAGEMAP_MAGIC).bytes();
        let mut head = Vec::new();
        put_uint(&mut head, 1, u64::from(pages_id));
        put_record(&mut buffer, &head);
        self.current = Some(Current { dst, pagemap, buffer, pages, expected: 0, written: 0 });
        self.totals.destinations += 1;
        Ok(())
    }

    /// Notes a run of the current destination; a PRESENT one owes [`PageRun::data_len`] bytes.
    /// Data may lag behind the runs, as long as it comes in order.
    pub fn run(&mut self, run: PageRun) -> io::Result<()> {
        let current = current(&mut self.current)?;
        put_entry(&mut current.buffer, run);
        current.expected = current
            .expected
            .checked_add(run.data_len())
            .ok_or_else(|| io::Error::other("page data beyond 2^64 bytes"))?;
        if current.buffer.len() >= PAGEMAP_BUFFER {
            current.flush()?;
        }
        self.totals.runs += 1;
        self.totals.pages += run.data_len() / PAGE_SIZE;
        Ok(())
    }

    /// The next bytes of the runs noted before.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let current = current(&mut self.current)?;
        current.owe(bytes.len() as u64)?;
        current.pages.write_all(bytes)?;
        current.written += bytes.len() as u64;
        Ok(())
    }

    /// The next `len` bytes of the runs noted before are zero.
    pub fn zeroes(&mut self, len: u64) -> io::Result<()> {
        let current = current(&mut self.current)?;
        current.owe(len)?;
        current.written += len;
        current.pages.seek(SeekFrom::Start(current.written))?;
        Ok(())
    }

    /// Completes the current destination, if any. Missing data is an error.
    pub fn close(&mut self) -> io::Result<()> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        if current.written != current.expected {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{}: {} bytes of pages of {} announced",
                    current.dst, current.written, current.expected
                ),
            ));
        }
        current.flush()?;
        // A hole at the end has no byte that would extend the file.
        current.pages.set_len(current.written)
    }
}

fn current(current: &mut Option<Current>) -> io::Result<&mut Current> {
    current.as_mut().ok_or_else(|| io::Error::other("pages before their destination"))
}

impl Current {
    fn owe(&self, len: u64) -> io::Result<()> {
        if len > self.expected - self.written {
            return Err(io::Error::other(format!("{}: more page data than announced", self.dst)));
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pagemap.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl PageSink for PageImages {
    fn open(&mut self, dst: DstId) -> io::Result<bool> {
        PageImages::open(self, dst)?;
        Ok(false)
    }

    fn hole(&mut self, run: PageRun) -> io::Result<()> {
        self.run(run)
    }

    fn pages(&mut self, run: PageRun, data: &mut dyn Read) -> io::Result<()> {
        self.run(run)?;
        let mut left = run.data_len();
        let mut chunk = vec![0; COPY_CHUNK.min(usize::try_from(left).unwrap_or(COPY_CHUNK))];
        while left > 0 {
            let len = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            data.read_exact(&mut chunk[..len])?;
            self.data(&chunk[..len])?;
            left -= len as u64;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.close()
    }
}

fn create(dir: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(dir.join(name))
        .map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))
}

/// Reads the page of `vaddr` from an image set, following no parent. `None` when the pagemap
/// has no data for it.
pub fn read_page(dir: &Path, dst: DstId, vaddr: u64) -> io::Result<Option<Vec<u8>>> {
    let image = std::fs::read(dir.join(dst.pagemap_name()))?;
    let pagemap = Pagemap::parse(&image).map_err(io::Error::other)?;
    let mut offset = 0;
    for run in &pagemap.runs {
        let inside = vaddr >= run.vaddr && vaddr < run.vaddr + run.nr_pages * PAGE_SIZE;
        if inside {
            if run.data_len() == 0 {
                return Ok(None);
            }
            let mut page = vec![0; PAGE_SIZE as usize];
            let file = File::open(dir.join(format!("pages-{}.img", pagemap.pages_id)))?;
            let start = (vaddr - run.vaddr) / PAGE_SIZE * PAGE_SIZE;
            file.read_exact_at(&mut page, offset + start)?;
            return Ok(Some(page));
        }
        offset += run.data_len();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PageKind;
    use proptest::prelude::*;

    const DST: DstId = DstId { kind: PageKind::Process, id: 7 };

    fn run(vaddr: u64, nr: u64, flags: PageFlags) -> PageRun {
        PageRun::checked(vaddr, nr, flags).unwrap()
    }

    #[test]
    fn images_are_byte_for_byte_those_of_crius_page_server() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = PageImages::new(dir.path());
        images.open(DstId { kind: PageKind::Shmem, id: 41 }).unwrap();
        images.run(run(0, 2, PageFlags::PRESENT)).unwrap();
        images.data(&[9; 8192]).unwrap();
        images.close().unwrap();
        // As `criu page-server` 4.2.1 wrote it for a memfd of two pages: magics, head {1: 0x10001},
        // entry {1: 0, 2: 0, 4: PRESENT, 5: 2}.
        let expected = [
            0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 0x04, 0x00, 0x00, 0x00, 0x08, 0x81,
            0x80, 0x04, 0x08, 0x00, 0x00, 0x00, 0x08, 0x00, 0x10, 0x00, 0x20, 0x04, 0x28, 0x02,
        ];
        assert_eq!(std::fs::read(dir.path().join("pagemap-shmem-41.img")).unwrap(), expected);
        assert_eq!(std::fs::read(dir.path().join("pages-65537.img")).unwrap(), [9; 8192]);
    }

    #[test]
    fn destinations_have_their_own_pages_and_flags_survive() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = PageImages::new(dir.path());
        images.open(DST).unwrap();
        let runs = [
            run(0x1000, 2, PageFlags::PRESENT.with(PageFlags::LAZY)),
            run(0x9000, 5, PageFlags::PARENT),
            run(0x10_0000, 300, PageFlags::PRESENT),
            run(0x7fff_0000_0000, 1 << 33, PageFlags::LAZY),
        ];
        for r in runs {
            images.run(r).unwrap();
        }
        images.data(&[1; 8192]).unwrap();
        images.zeroes(299 * 4096).unwrap();
        images.data(&[2; 4096]).unwrap();
        let shm = DstId { kind: PageKind::Shmem, id: 3 };
        images.open(shm).unwrap();
        images.run(run(0, 1, PageFlags::PRESENT)).unwrap();
        images.zeroes(4096).unwrap();
        images.close().unwrap();

        let pagemap = Pagemap::parse(&std::fs::read(dir.path().join("pagemap-7.img")).unwrap());
        assert_eq!(pagemap, Ok(Pagemap { pages_id: FIRST_PAGES_ID, runs: runs.to_vec() }));
        let meta = std::fs::metadata(dir.path().join("pages-65537.img")).unwrap();
        assert_eq!(meta.len(), 302 * 4096);
        let page = |dst, vaddr| read_page(dir.path(), dst, vaddr).unwrap();
        assert_eq!(page(DST, 0x2000), Some(vec![1; 4096]));
        assert_eq!(page(DST, 0x9000), None);
        assert_eq!(page(DST, 0x10_0000), Some(vec![0; 4096]));
        assert_eq!(page(DST, 0x10_0000 + 299 * 4096), Some(vec![2; 4096]));
        assert_eq!(page(shm, 0), Some(vec![0; 4096]));
        assert_eq!(images.totals(), PageTotals { destinations: 2, runs: 5, pages: 303 });
    }

    #[test]
    fn missing_surplus_and_repeated_pages_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = PageImages::new(dir.path());
        assert!(images.run(run(0, 1, PageFlags::PRESENT)).is_err());
        images.open(DST).unwrap();
        images.run(run(0, 1, PageFlags::PRESENT)).unwrap();
        assert!(images.data(&[0; 4097]).is_err());
        images.data(&[0; 4095]).unwrap();
        assert_eq!(images.close().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let again = images.open(DST).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(again.to_string().starts_with("pagemap-7.img: "));
    }

    #[test]
    fn a_pagemap_of_criu_is_read_and_written_back_byte_for_byte() {
        let image = include_bytes!("../testdata/pagemap-1.img");
        let pagemap = Pagemap::parse(image).unwrap();
        assert_eq!(pagemap.pages_id, 1);
        let mut out = Header::Common(PAGEMAP_MAGIC).bytes();
        let mut head = Vec::new();
        put_uint(&mut head, 1, u64::from(pagemap.pages_id));
        put_record(&mut out, &head);
        pagemap.runs.iter().for_each(|run| put_entry(&mut out, *run));
        assert_eq!(out, image);
    }

    proptest! {
        #[test]
        fn any_bytes_after_the_magics_are_parsed_without_a_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut image = Header::Common(PAGEMAP_MAGIC).bytes();
            image.extend_from_slice(&tail);
            if let Ok(pagemap) = Pagemap::parse(&image) {
                let _ = pagemap.data_len();
                prop_assert!(pagemap.runs.len() <= tail.len());
            }
        }
    }
}
