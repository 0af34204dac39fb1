//! The container format of a CRIU image file.
//!
//! ```text
//! u32  0x54564319 (common) or 0x55105940 (service); the inventory has neither
//! u32  magic of the type
//! then records:  u32 length, length bytes of protobuf
//! ```
//! All little-endian. Raw images (`pages-*`, tar archives) have no magic at all, and a few
//! types put raw data between records (`ghost-file`, `pipes-data`, `sk-queues`, `tty-data`,
//! `ipcns-shm`): this module reads only images that are records throughout.

use thiserror::Error;

/// First word of every image but the inventory and service files.
pub const COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of service files such as `stats-dump`.
pub const SERVICE_MAGIC: u32 = 0x5510_5940;
/// Type of `pagemap-*.img` and `pagemap-shmem-*.img`.
pub const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// First and only magic of `inventory.img`.
pub const INVENTORY_MAGIC: u32 = 0x5831_3116;
/// Type of `files.img`.
pub const FILES_MAGIC: u32 = 0x5630_3138;
/// Type of `remap-fpath.img`.
pub const REMAP_FPATH_MAGIC: u32 = 0x5913_3954;
/// Type of `timerfd.img` (images older than CRIU 3.0).
pub const TIMERFD_MAGIC: u32 = 0x5049_3712;
/// Type of `stats-dump` and `stats-restore`.
pub const STATS_MAGIC: u32 = 0x5709_3306;

/// Why bytes are not an image of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ImageError {
    /// Shorter than its magics.
    #[error("image is shorter than its header")]
    Short,
    /// The magic words are not those of the expected type.
    #[error("unexpected magic {found:#010x}, expected {expected:#010x}")]
    Magic {
        /// The word that was found.
        found: u32,
        /// The word that belongs there.
        expected: u32,
    },
    /// A record's length runs past the end of the image.
    #[error("record at byte {offset} runs past the end of the image")]
    Record {
        /// Where the record's length word starts.
        offset: usize,
    },
}

/// Where an image's records begin, and which magics come before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// `COMMON_MAGIC`, then this type.
    Common(u32),
    /// `SERVICE_MAGIC`, then this type.
    Service(u32),
    /// Only [`INVENTORY_MAGIC`].
    Inventory,
}

impl Header {
    /// The header's bytes.
    pub fn bytes(self) -> Vec<u8> {
        let words: &[u32] = match self {
            Header::Common(magic) => &[COMMON_MAGIC, magic],
            Header::Service(magic) => &[SERVICE_MAGIC, magic],
            Header::Inventory => &[INVENTORY_MAGIC],
        };
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Checks that `image` starts with this header and returns its records.
    pub fn open(self, image: &[u8]) -> Result<Records<'_>, ImageError> {
        let header = self.bytes();
        for (index, expected) in header.chunks_exact(4).enumerate() {
            let found = word(image, index * 4).ok_or(ImageError::Short)?;
            let expected = word(expected, 0).unwrap_or_default();
            if found != expected {
                return Err(ImageError::Magic { found, expected });
            }
        }
        Ok(Records { image, offset: header.len() })
    }
}

/// The little-endian word at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let raw = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(raw.try_into().ok()?))
}

/// The records of an image, in order. Ends after the first error.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    image: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.image.len() {
            return None;
        }
        let offset = self.offset;
        let record = word(self.image, offset).and_then(|len| {
            let start = offset + 4;
            let end = start.checked_add(usize::try_from(len).ok()?)?;
            self.image.get(start..end)
        });
        match record {
            Some(record) => {
                self.offset = offset + 4 + record.len();
                Some(Ok(record))
            }
            None => {
                self.offset = self.image.len();
                Some(Err(ImageError::Record { offset }))
            }
        }
    }
}

/// Appends one record to `out`. Records over 4 GiB cannot be expressed; none come near.
pub fn put_record(out: &mut Vec<u8>, message: &[u8]) {
    out.extend_from_slice(&(message.len() as u32).to_le_bytes());
    out.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_come_back_after_the_right_magics() {
        for header in [Header::Common(FILES_MAGIC), Header::Service(STATS_MAGIC), Header::Inventory]
        {
            let mut image = header.bytes();
            put_record(&mut image, b"one");
            put_record(&mut image, b"");
            put_record(&mut image, b"three");
            let records: Vec<_> = header.open(&image).unwrap().map(Result::unwrap).collect();
            assert_eq!(records, [&b"one"[..], b"", b"three"]);
        }
    }

    #[test]
    fn a_wrong_type_is_named() {
        let image = Header::Common(FILES_MAGIC).bytes();
        assert_eq!(
            Header::Common(TIMERFD_MAGIC).open(&image).unwrap_err(),
            ImageError::Magic { found: FILES_MAGIC, expected: TIMERFD_MAGIC }
        );
        assert_eq!(Header::Common(FILES_MAGIC).open(&image[..7]).unwrap_err(), ImageError::Short);
    }

    #[test]
    fn every_cut_of_a_record_is_an_error_or_the_end() {
        let header = Header::Common(FILES_MAGIC);
        let mut image = header.bytes();
        put_record(&mut image, b"hello");
        for cut in 9..image.len() {
            let last = header.open(&image[..cut]).unwrap().last();
            assert_eq!(last, Some(Err(ImageError::Record { offset: 8 })), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut image = Header::Common(FILES_MAGIC).bytes();
            image.extend_from_slice(&tail);
            let records = Header::Common(FILES_MAGIC).open(&image).unwrap();
            let bytes: usize = records.flatten().map(<[u8]>::len).sum();
            prop_assert!(bytes <= tail.len());
            let _ = Header::Inventory.open(&tail);
        }
    }
}
