//! Whether compressing pays, and doing it.
//!
//! Compressing a block pays when `len/pack + ratio·len/wire < len/wire`: on a slow link nearly
//! always, on a fast one never. The three figures are moving averages of what was measured; every
//! 32 blocks a sample of 64 KiB renews those of the compressor. [`Pace`] only
//! reckons; [`Packer`] compresses and measures.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lz4_flex::block::{compress_into, get_maximum_output_size};

use crate::frame::Encoding;

/// Blocks between two samples.
const PROBE_EVERY: u32 = 32;
/// Length of a sample.
const SAMPLE: usize = 64 << 10;
/// Blocks below this length are never compressed.
const SMALL: usize = 512;
/// Weight of the newest measurement.
const WEIGHT: f64 = 0.25;

/// When to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Where it is measured to pay.
    #[default]
    Auto,
    /// Every block that gets smaller by it.
    Always,
    /// Never.
    Never,
}

/// What to do with the next block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Send it as it is.
    Raw,
    /// Measure a sample first, then ask [`Pace::pays`].
    Probe,
    /// Compress it.
    Pack,
}

/// The figures on which the decision rests.
#[derive(Debug, Clone)]
pub struct Pace {
    mode: Compression,
    /// Bytes a second that the link takes; 0 while unknown.
    wire: f64,
    /// Bytes a second that the compressor takes; 0 while unknown.
    pack: f64,
    /// Stored by plain length.
    ratio: f64,
    until_probe: u32,
}

impl Pace {
    /// Nothing is known yet.
    pub fn new(mode: Compression) -> Self {
        Self { mode, wire: 0.0, pack: 0.0, ratio: 1.0, until_probe: 0 }
    }

    /// What to do with a block of `len` bytes.
    pub fn plan(&mut self, len: usize) -> Plan {
        match self.mode {
            _ if len < SMALL => Plan::Raw,
            Compression::Never => Plan::Raw,
            Compression::Always => Plan::Pack,
            Compression::Auto if self.until_probe == 0 => {
                self.until_probe = PROBE_EVERY;
                Plan::Probe
            }
            Compression::Auto => {
                self.until_probe -= 1;
                if self.pays() { Plan::Pack } else { Plan::Raw }
            }
        }
    }

    /// Whether compressing pays by the figures so far.
    pub fn pays(&self) -> bool {
        self.wire > 0.0 && self.pack > 0.0 && self.wire < self.pack * (1.0 - self.ratio)
    }

    /// A block or sample was compressed.
    pub fn packed(&mut self, plain: usize, stored: usize, took: Duration) {
        let first = self.pack == 0.0;
        blend(&mut self.pack, rate(plain, took), first);
        blend(&mut self.ratio, stored as f64 / plain.max(1) as f64, first);
    }

    /// Bytes were handed to the link, waiting included.
    pub fn wrote(&mut self, bytes: usize, took: Duration) {
        let first = self.wire == 0.0;
        blend(&mut self.wire, rate(bytes, took), first);
    }
}

fn rate(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64().max(1e-9)
}

fn blend(average: &mut f64, newest: f64, first: bool) {
    let weight = if first { 1.0 } else { WEIGHT };
    *average += weight * (newest - *average);
}

/// Compresses blocks; one for each stream, sharing one [`Pace`].
#[derive(Debug, Default)]
pub struct Packer {
    out: Vec<u8>,
}

impl Packer {
    /// The block as it shall be stored: compressed where that pays and makes it smaller.
    pub fn pack<'a>(&'a mut self, block: &'a [u8], pace: &Mutex<Pace>) -> (Encoding, &'a [u8]) {
        let lock = || pace.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = lock().plan(block.len());
        let pack = match plan {
            Plan::Raw => false,
            Plan::Pack => true,
            Plan::Probe => {
                let middle = block.len().saturating_sub(SAMPLE) / 2;
                let sample = &block[middle..block.len().min(middle + SAMPLE)];
                self.measured(sample, pace);
                lock().pays()
            }
        };
        if pack {
            let len = self.measured(block, pace);
            // A gain of less than a sixteenth is not worth the decoding.
            if len < block.len() - block.len() / 16 {
                return (Encoding::Lz4, &self.out[..len]);
            }
        }
        (Encoding::Raw, block)
    }

    fn measured(&mut self, block: &[u8], pace: &Mutex<Pace>) -> usize {
        let needed = get_maximum_output_size(block.len());
        if self.out.len() < needed {
            self.out.resize(needed, 0);
        }
        let start = Instant::now();
        // The buffer is as large as the library asks for; if it ever were not, send as is.
        let len = compress_into(block, &mut self.out).unwrap_or(block.len());
        pace.lock().unwrap_or_else(PoisonError::into_inner).packed(
            block.len(),
            len,
            start.elapsed(),
        );
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn compressing_pays_on_slow_links_and_good_ratios_only() {
        for (wire, pack, stored, pays) in [
            (100, 1000, 50, true),
            (2000, 1000, 10, false),
            (100, 1000, 95, false),
            (600, 1000, 50, false),
        ] {
            let mut pace = Pace::new(Compression::Auto);
            assert!(!pace.pays(), "nothing is known");
            pace.wrote(wire, SECOND);
            pace.packed(pack, pack * stored / 100, SECOND);
            assert_eq!(pace.pays(), pays, "{wire} {pack} {stored}");
        }
    }

    #[test]
    fn the_decision_follows_the_link_and_is_probed_again() {
        let mut pace = Pace::new(Compression::Auto);
        assert_eq!(pace.plan(1 << 20), Plan::Probe);
        pace.packed(1000, 300, SECOND);
        pace.wrote(100, SECOND);
        assert_eq!(pace.plan(1 << 20), Plan::Pack);
        for _ in 0..30 {
            pace.wrote(5000, SECOND);
        }
        assert_eq!(pace.plan(1 << 20), Plan::Raw);
        let probes = (0..100).filter(|_| pace.plan(1 << 20) == Plan::Probe).count();
        assert_eq!(probes, 3);
        assert_eq!(pace.plan(100), Plan::Raw, "small blocks are never worth it");
    }

    #[test]
    fn incompressible_blocks_stay_as_they_are() {
        let pace = Mutex::new(Pace::new(Compression::Always));
        let mut packer = Packer::default();
        let zeroes = vec![0; 10_000];
        assert_eq!(packer.pack(&zeroes, &pace).0, Encoding::Lz4);
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .take(10_000)
        .collect();
        assert_eq!(packer.pack(&noise, &pace), (Encoding::Raw, &noise[..]));
    }
}
