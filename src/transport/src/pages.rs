//! Frames of memory pages: many runs in one frame, pages of zeroes left out.
//!
//! ```text
//! meta   u16 number of runs, u16 number of pages P in the frame (0: no map, all data is there)
//!        runs: u64 vaddr, u64 nr_pages, u32 flags
//!        map of zero pages: P bits, least significant first, 1 = zero and not in the data
//! data   the pages that are not zero, in order
//! ```
//! The data of PRESENT runs is one continuous sequence over all frames of a destination: a long
//! run goes on in the frames after it, without being announced again.

use std::io::{self, Read};

use transship_criu::PAGE_SIZE;
use transship_criu::pagemap::PageImages;
use transship_criu::pages::{PageFlags, PageRun};

use crate::error::{Error, Result};
use crate::frame::{MAX_DATA, MAX_META};

const PAGE: usize = PAGE_SIZE as usize;
const RUN_LEN: usize = 20;
/// Most runs in one frame.
const MAX_RUNS: usize = 8192;
const MAX_PAGES: usize = MAX_DATA / PAGE;

const _: () = assert!(4 + MAX_RUNS * RUN_LEN + MAX_PAGES / 8 <= MAX_META);

/// A frame of pages being filled.
pub(crate) struct PageBatch {
    runs: Vec<u8>,
    nr_runs: usize,
    data: Vec<u8>,
    len: usize,
    meta: Vec<u8>,
}

impl PageBatch {
    pub(crate) fn new() -> Self {
        Self { runs: Vec::new(), nr_runs: 0, data: vec![0; MAX_DATA], len: 0, meta: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nr_runs == 0 && self.len == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.nr_runs == MAX_RUNS || self.len == MAX_DATA
    }

    /// Announces a run. The batch must not be full.
    pub(crate) fn run(&mut self, run: PageRun) {
        self.runs.extend_from_slice(&run.vaddr.to_le_bytes());
        self.runs.extend_from_slice(&run.nr_pages.to_le_bytes());
        self.runs.extend_from_slice(&run.flags.0.to_le_bytes());
        self.nr_runs += 1;
    }

    /// Reads at most `left` bytes of whole pages, as many as there is room for. Returns how many.
    pub(crate) fn read(&mut self, data: &mut dyn Read, left: u64) -> io::Result<u64> {
        let room = MAX_DATA - self.len;
        let take = room.min(usize::try_from(left).unwrap_or(room));
        data.read_exact(&mut self.data[self.len..self.len + take])?;
        self.len += take;
        Ok(take as u64)
    }

    /// The frame's meta and data; the batch is to be [`clear`](Self::clear)ed after that.
    pub(crate) fn finish(&mut self) -> (&[u8], &[u8]) {
        let pages = self.len / PAGE;
        let mut map = [0u8; MAX_PAGES / 8];
        let mut kept = 0;
        for page in 0..pages {
            let range = page * PAGE..(page + 1) * PAGE;
            if is_zero(&self.data[range.clone()]) {
                map[page / 8] |= 1 << (page % 8);
            } else {
                if kept < page {
                    self.data.copy_within(range, kept * PAGE);
                }
                kept += 1;
            }
        }
        let mapped = if kept < pages { pages } else { 0 };
        self.meta.clear();
        // Both are bounded by constants below 2^16.
        self.meta.extend_from_slice(&(self.nr_runs as u16).to_le_bytes());
        self.meta.extend_from_slice(&(mapped as u16).to_le_bytes());
        self.meta.extend_from_slice(&self.runs);
        self.meta.extend_from_slice(&map[..mapped.div_ceil(8)]);
        (&self.meta, &self.data[..kept * PAGE])
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.nr_runs = 0;
        self.len = 0;
    }
}

/// Most pages differ from zero in their first bytes, so this seldom reads far.
fn is_zero(page: &[u8]) -> bool {
    static ZEROES: [u8; PAGE] = [0; PAGE];
    page == ZEROES
}

/// Where decoded pages go.
pub(crate) trait PageTarget {
    fn run(&mut self, run: PageRun) -> io::Result<()>;
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn zeroes(&mut self, len: u64) -> io::Result<()>;
}

impl PageTarget for PageImages {
    fn run(&mut self, run: PageRun) -> io::Result<()> {
        PageImages::run(self, run)
    }
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        PageImages::data(self, bytes)
    }
    fn zeroes(&mut self, len: u64) -> io::Result<()> {
        PageImages::zeroes(self, len)
    }
}

/// Hands a received frame's runs and pages to `target`; returns how many pages it held.
pub(crate) fn decode(meta: &[u8], data: &[u8], target: &mut impl PageTarget) -> Result<u64> {
    let bad = |what: &str| Error::Protocol(format!("page frame with {what}"));
    let stored = |source| Error::File { what: "pages".into(), source };
    let (head, rest) = meta.split_at_checked(4).ok_or_else(|| bad("no head"))?;
    let nr_runs = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let mapped = usize::from(u16::from_le_bytes([head[2], head[3]]));
    let (runs, map) =
        rest.split_at_checked(nr_runs * RUN_LEN).ok_or_else(|| bad("missing runs"))?;
    if mapped > MAX_PAGES || map.len() != mapped.div_ceil(8) {
        return Err(bad("an invalid map"));
    }
    if !data.len().is_multiple_of(PAGE) {
        return Err(bad("part of a page"));
    }
    for raw in runs.chunks_exact(RUN_LEN) {
        let long = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&raw[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let flags = PageFlags(u32::from_le_bytes([raw[16], raw[17], raw[18], raw[19]]));
        let run = PageRun::checked(long(0), long(8), flags).ok_or_else(|| bad("an invalid run"))?;
        target.run(run).map_err(stored)?;
    }
    if mapped == 0 {
        if !data.is_empty() {
            target.data(data).map_err(stored)?;
        }
        return Ok((data.len() / PAGE) as u64);
    }
    let is_zero = |page: usize| map[page / 8] >> (page % 8) & 1 == 1;
    if (0..mapped).filter(|page| !is_zero(*page)).count() * PAGE != data.len() {
        return Err(bad("a map that does not fit its data"));
    }
    // Neighbours of a kind go together.
    let (mut page, mut offset) = (0, 0);
    while page < mapped {
        let zero = is_zero(page);
        let len = (page..mapped).take_while(|p| is_zero(*p) == zero).count();
        if zero {
            target.zeroes((len * PAGE) as u64).map_err(stored)?;
        } else {
            target.data(&data[offset..offset + len * PAGE]).map_err(stored)?;
            offset += len * PAGE;
        }
        page += len;
    }
    Ok(mapped as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Flat {
        runs: Vec<PageRun>,
        bytes: Vec<u8>,
    }

    impl PageTarget for Flat {
        fn run(&mut self, run: PageRun) -> io::Result<()> {
            self.runs.push(run);
            Ok(())
        }
        fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.bytes.extend_from_slice(bytes);
            Ok(())
        }
        fn zeroes(&mut self, len: u64) -> io::Result<()> {
            self.bytes.extend(std::iter::repeat_n(0, len as usize));
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn pages_come_back_whatever_lies_between_zeroes(kinds in proptest::collection::vec(0u8..3, 0..40)) {
            let plain: Vec<u8> = kinds.iter().flat_map(|kind| {
                let mut page = vec![0; PAGE];
                match kind {
                    0 => {}
                    1 => page[PAGE - 1] = 1,
                    _ => page.fill(*kind),
                }
                page
            }).collect();
            let mut batch = PageBatch::new();
            let run = PageRun { vaddr: 0x5000, nr_pages: kinds.len() as u64, flags: PageFlags::PRESENT };
            let hole = PageRun { vaddr: 0x5_0000_0000, nr_pages: 9, flags: PageFlags::PARENT };
            let mut runs = vec![hole];
            batch.run(hole);
            if !kinds.is_empty() {
                batch.run(run);
                runs.push(run);
            }
            batch.read(&mut &plain[..], plain.len() as u64).unwrap();
            let (meta, data) = batch.finish();
            let zero_pages = kinds.iter().filter(|kind| **kind == 0).count();
            prop_assert_eq!(data.len(), (kinds.len() - zero_pages) * PAGE);
            let mut flat = Flat::default();
            prop_assert_eq!(decode(meta, data, &mut flat).unwrap(), kinds.len() as u64);
            prop_assert_eq!(flat.runs, runs);
            prop_assert_eq!(flat.bytes, plain);
        }

        #[test]
        fn any_page_frame_is_decoded_or_refused(meta in proptest::collection::vec(any::<u8>(), 0..100), pages in 0usize..4) {
            let mut flat = Flat::default();
            let _ = decode(&meta, &vec![1; pages * PAGE], &mut flat);
            prop_assert!(flat.bytes.len() <= MAX_DATA);
        }
    }

    #[test]
    fn a_full_batch_fits_a_frame() {
        let mut batch = PageBatch::new();
        for n in 0..MAX_RUNS as u64 {
            assert!(!batch.is_full());
            batch.run(PageRun { vaddr: n * PAGE_SIZE, nr_pages: 1, flags: PageFlags::LAZY });
        }
        assert!(batch.is_full());
        let mut endless = io::repeat(0);
        assert_eq!(batch.read(&mut endless, u64::MAX).unwrap(), MAX_DATA as u64);
        let (meta, data) = batch.finish();
        assert!(meta.len() <= MAX_META);
        assert!(data.is_empty(), "all pages are zero");
    }
}
