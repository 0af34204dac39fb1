//! Counters that other threads may read while a transfer runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// How much has been transferred.
#[derive(Debug, Default)]
pub struct Progress {
    plain: AtomicU64,
    wire: AtomicU64,
    pages: AtomicU64,
}

impl Progress {
    pub(crate) fn add(&self, plain: usize, wire: usize) {
        self.plain.fetch_add(plain as u64, Ordering::Relaxed);
        self.wire.fetch_add(wire as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_pages(&self, pages: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Bytes of data before compression, without pages of zeroes.
    pub fn plain_bytes(&self) -> u64 {
        self.plain.load(Ordering::Relaxed)
    }

    /// Bytes on the wire, frames included.
    pub fn wire_bytes(&self) -> u64 {
        self.wire.load(Ordering::Relaxed)
    }

    /// Pages of memory, those of zeroes included.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }
}
