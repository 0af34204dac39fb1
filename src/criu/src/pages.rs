//! Page runs, where they belong, and the sink they go to.
//!
//! A dump is a sequence of destinations (a process or a shared memory object); each gets runs
//! of pages in ascending order. A run with [`PageFlags::PRESENT`] is followed by its bytes,
//! any other run (a hole that the parent fills, or pages that are restored lazily) has none.

use std::fmt;
use std::io::{self, Read};

use crate::PAGE_SIZE;

/// What a destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PageKind {
    /// The private memory of a process; the id is its pid in its own namespace.
    Process,
    /// A shared memory object; the id is CRIU's shmid.
    Shmem,
}

/// A destination of pages: CRIU's `dst_id`, `id << 8 | type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DstId {
    /// What it is.
    pub kind: PageKind,
    /// Which one of its kind.
    pub id: u64,
}

impl DstId {
    /// From CRIU's number. `None` for types that CRIU 4 does not send and ids beyond 48 bits.
    pub fn from_raw(raw: u64) -> Option<Self> {
        let kind = match raw & 0xff {
            1 => PageKind::Process,
            2 => PageKind::Shmem,
            _ => return None,
        };
        let id = raw >> 8;
        (id < 1 << 48).then_some(Self { kind, id })
    }

    /// CRIU's number.
    pub fn raw(self) -> u64 {
        let kind = match self.kind {
            PageKind::Process => 1,
            PageKind::Shmem => 2,
        };
        self.id << 8 | kind
    }

    /// The name of the pagemap image for this destination.
    pub fn pagemap_name(self) -> String {
        match self.kind {
            PageKind::Process => format!("pagemap-{}.img", self.id),
            PageKind::Shmem => format!("pagemap-shmem-{}.img", self.id),
        }
    }
}

impl fmt::Display for DstId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            PageKind::Process => write!(f, "process {}", self.id),
            PageKind::Shmem => write!(f, "shared memory {}", self.id),
        }
    }
}

/// The flags of a run, as in CRIU's pagemap entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageFlags(pub u32);

impl PageFlags {
    /// The pages are in the parent image.
    pub const PARENT: Self = Self(1);
    /// The pages may be restored lazily.
    pub const LAZY: Self = Self(2);
    /// The pages' bytes follow.
    pub const PRESENT: Self = Self(4);

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A run of adjacent pages with the same flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// Address (process) or offset (shared memory) of the first page, in bytes.
    pub vaddr: u64,
    /// Number of pages, at least 1.
    pub nr_pages: u64,
    /// What is known of them.
    pub flags: PageFlags,
}

impl PageRun {
    /// Checks alignment, that the run is not empty and that it ends below 2^63.
    pub fn checked(vaddr: u64, nr_pages: u64, flags: PageFlags) -> Option<Self> {
        let bytes = nr_pages.checked_mul(PAGE_SIZE)?;
        let end = vaddr.checked_add(bytes)?;
        (nr_pages > 0 && vaddr.is_multiple_of(PAGE_SIZE) && end < 1 << 63).then_some(Self {
            vaddr,
            nr_pages,
            flags,
        })
    }

    /// How many bytes of page data follow the run: 0 unless it is PRESENT.
    pub fn data_len(self) -> u64 {
        if self.flags.contains(PageFlags::PRESENT) { self.nr_pages * PAGE_SIZE } else { 0 }
    }
}

/// Receives the pages of one dump, in order: `open`, its runs, `open` of the next, …, `finish`.
///
/// Errors end the dump: CRIU sees its connection closed and fails, and the container thaws.
pub trait PageSink {
    /// Pages of `dst` follow. Returns whether a parent image of it exists (CRIU then sends
    /// holes for pages that did not change). An earlier destination is complete.
    fn open(&mut self, dst: DstId) -> io::Result<bool>;

    /// A run without data: a hole filled by the parent, or pages left for lazy restore.
    fn hole(&mut self, run: PageRun) -> io::Result<()>;

    /// A run with data: exactly [`PageRun::data_len`] bytes must be read from `data`.
    fn pages(&mut self, run: PageRun, data: &mut dyn Read) -> io::Result<()>;

    /// Whether a parent image of `dst` exists (asked before the pages are sent).
    fn has_parent(&mut self, dst: DstId) -> io::Result<bool> {
        let _ = dst;
        Ok(false)
    }

    /// CRIU has sent everything. When this returns, the pages must be safe with the sink:
    /// CRIU is told so.
    fn finish(&mut self) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_have_crius_numbers_and_names() {
        let cases = [
            (1 << 8 | 1, PageKind::Process, 1, "pagemap-1.img"),
            (0x1_0005 << 8 | 2, PageKind::Shmem, 0x1_0005, "pagemap-shmem-65541.img"),
        ];
        for (raw, kind, id, name) in cases {
            let dst = DstId::from_raw(raw).unwrap();
            assert_eq!((dst.kind, dst.id, dst.raw()), (kind, id, raw));
            assert_eq!(dst.pagemap_name(), name);
        }
        for raw in [0, 3, 10, 34, u64::MAX, (1 << 48) << 8 | 1] {
            assert_eq!(DstId::from_raw(raw), None, "{raw:#x}");
        }
    }

    #[test]
    fn impossible_runs_are_refused() {
        let ok = PageRun::checked(0x1000, 2, PageFlags::PRESENT).unwrap();
        assert_eq!(ok.data_len(), 8192);
        assert_eq!(PageRun::checked(0x1000, 2, PageFlags::LAZY).unwrap().data_len(), 0);
        for (vaddr, nr) in [(1, 1), (0, 0), (0, u64::MAX), (u64::MAX - 4095, 1), (1 << 62, 1 << 51)]
        {
            assert_eq!(PageRun::checked(vaddr, nr, PageFlags::PRESENT), None, "{vaddr:#x} {nr}");
        }
    }
}
