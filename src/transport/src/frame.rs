//! Frames: the unit of everything that crosses the wire, in both directions.
//!
//! Reading is bounded: a header that announces more than [`MAX_META`] or [`MAX_DATA`] bytes is
//! refused before anything is allocated, and buffers are reused.

use std::io::{self, IoSlice, Read, Write};

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::error::{Corruption, Error};

/// Largest meta part of a frame, in bytes.
pub const MAX_META: usize = 256 << 10;
/// Largest data part of a frame, in bytes, plain and as stored.
pub const MAX_DATA: usize = 1 << 20;
/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 32;

const MAGIC: u16 = 0x5354;
/// The part of the header that the check covers.
const CHECKED_LEN: usize = 24;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Meta: JSON [`Hello`](crate::Hello). The first frame.
    Hello = 1,
    /// Meta: JSON [`TreeStart`](crate::message::TreeStart).
    TreeStart = 2,
    /// Data: bytes of the tree's archive.
    TreeData = 3,
    /// Meta: JSON [`ItemEnd`](crate::message::ItemEnd).
    TreeEnd = 4,
    /// Meta: JSON [`ImageStart`](crate::message::ImageStart).
    ImageStart = 5,
    /// Data: bytes of the image file.
    ImageData = 6,
    /// Meta: JSON [`ItemEnd`](crate::message::ItemEnd).
    ImageEnd = 7,
    /// Meta: JSON [`PagesStart`](crate::message::PagesStart).
    PagesStart = 8,
    /// Meta: CRIU's destination, u64.
    PagesOpen = 9,
    /// Meta: runs and a map of zero pages; data: the other pages' bytes. See module `pages`.
    Pages = 10,
    /// Meta: JSON [`ItemEnd`](crate::message::ItemEnd).
    PagesEnd = 11,
    /// Meta: JSON [`ContainerDone`](crate::message::ContainerDone).
    ContainerDone = 12,
    /// Meta: JSON [`AllDone`](crate::message::AllDone). The last frame of the source.
    AllDone = 13,
    /// Meta: JSON [`Ack`](crate::message::Ack). Target to source only.
    Ack = 32,
    /// Meta: JSON [`Failed`](crate::message::Failed). Either direction; nothing follows.
    Failed = 33,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 15] = [
            Kind::Hello,
            Kind::TreeStart,
            Kind::TreeData,
            Kind::TreeEnd,
            Kind::ImageStart,
            Kind::ImageData,
            Kind::ImageEnd,
            Kind::PagesStart,
            Kind::PagesOpen,
            Kind::Pages,
            Kind::PagesEnd,
            Kind::ContainerDone,
            Kind::AllDone,
            Kind::Ack,
            Kind::Failed,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// How a frame's data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As it is.
    Raw = 0,
    /// One lz4 block.
    Lz4 = 1,
}

/// A frame ready to be written, but for its place in the sequence.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// What it carries.
    pub kind: Kind,
    /// The item it belongs to; 0 for none.
    pub stream: u32,
    /// Small structured part, never compressed.
    pub meta: &'a [u8],
    /// Bulk part as stored.
    pub data: &'a [u8],
    /// How `data` is stored.
    pub encoding: Encoding,
    /// Length of the data when decoded.
    pub plain_len: usize,
}

impl<'a> Outgoing<'a> {
    /// A frame without data.
    pub fn meta(kind: Kind, stream: u32, meta: &'a [u8]) -> Self {
        Self { kind, stream, meta, data: &[], encoding: Encoding::Raw, plain_len: 0 }
    }
}

fn hash(meta: &[u8], data: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(meta);
    hasher.update(data);
    hasher.digest()
}

fn header(frame: &Outgoing<'_>, sequence: u32, hash: u64) -> [u8; HEADER_LEN] {
    let mut raw = [0; HEADER_LEN];
    raw[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    raw[2] = frame.kind as u8;
    raw[3] = frame.encoding as u8;
    raw[4..8].copy_from_slice(&frame.stream.to_le_bytes());
    raw[8..12].copy_from_slice(&sequence.to_le_bytes());
    // All three are bounded far below 4 GiB.
    raw[12..16].copy_from_slice(&(frame.meta.len() as u32).to_le_bytes());
    raw[16..20].copy_from_slice(&(frame.data.len() as u32).to_le_bytes());
    raw[20..24].copy_from_slice(&(frame.plain_len as u32).to_le_bytes());
    let check = xxh3_64_with_seed(&raw[..CHECKED_LEN], hash);
    raw[24..32].copy_from_slice(&check.to_le_bytes());
    raw
}

/// A frame with its contents hashed; hashing needs no lock on the writer.
#[derive(Debug, Clone, Copy)]
pub struct Hashed<'a> {
    frame: Outgoing<'a>,
    hash: u64,
}

impl<'a> Hashed<'a> {
    /// Hashes the contents.
    pub fn new(frame: Outgoing<'a>) -> Self {
        debug_assert!(frame.meta.len() <= MAX_META && frame.data.len() <= MAX_DATA);
        Self { frame, hash: hash(frame.meta, frame.data) }
    }

    /// Length on the wire.
    pub fn wire_len(&self) -> usize {
        HEADER_LEN + self.frame.meta.len() + self.frame.data.len()
    }
}

/// Writes frames in sequence.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    sequence: u32,
}

impl<W: Write> FrameWriter<W> {
    /// The first frame gets number 0.
    pub fn new(inner: W) -> Self {
        Self { inner, sequence: 0 }
    }

    /// Writes one frame whole.
    pub fn write(&mut self, hashed: &Hashed<'_>) -> io::Result<()> {
        let header = header(&hashed.frame, self.sequence, hashed.hash);
        self.sequence = self.sequence.wrapping_add(1);
        let mut slices = [
            IoSlice::new(&header),
            IoSlice::new(hashed.frame.meta),
            IoSlice::new(hashed.frame.data),
        ];
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.inner.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.inner.flush()
    }
}

/// A frame as received. It borrows the reader's buffers.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// What it carries.
    pub kind: Kind,
    /// The item it belongs to; 0 for none.
    pub stream: u32,
    /// Its structured part.
    pub meta: &'a [u8],
    /// Its bulk part, decoded.
    pub data: &'a [u8],
    /// Its length on the wire.
    pub wire_len: usize,
}

/// Reads frames and checks their sequence and contents.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    sequence: u32,
    meta: Vec<u8>,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// Expects frame number 0 first.
    pub fn new(inner: R) -> Self {
        Self { inner, sequence: 0, meta: Vec::new(), stored: Vec::new(), plain: Vec::new() }
    }

    /// The next frame; `None` when the stream ends between frames.
    pub fn read(&mut self) -> Result<Option<Incoming<'_>>, Error> {
        let mut raw = [0; HEADER_LEN];
        if !read_or_end(&mut self.inner, &mut raw)? {
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        if raw[0..2] != MAGIC.to_le_bytes() {
            return Err(Corruption::Magic.into());
        }
        let kind = Kind::from_byte(raw[2]).ok_or(Corruption::Kind(raw[2]))?;
        let encoding = match raw[3] {
            0 => Encoding::Raw,
            1 => Encoding::Lz4,
            other => return Err(Corruption::Encoding(other).into()),
        };
        let (stream, sequence) = (word(4), word(8));
        let (meta_len, stored_len, plain_len) =
            (word(12) as usize, word(16) as usize, word(20) as usize);
        if meta_len > MAX_META || stored_len > MAX_DATA || plain_len > MAX_DATA {
            return Err(Corruption::Length.into());
        }
        if sequence != self.sequence {
            return Err(Corruption::Sequence { found: sequence, expected: self.sequence }.into());
        }
        self.sequence = self.sequence.wrapping_add(1);
        fill(&mut self.inner, &mut self.meta, meta_len)?;
        fill(&mut self.inner, &mut self.stored, stored_len)?;
        let check = xxh3_64_with_seed(&raw[..CHECKED_LEN], hash(&self.meta, &self.stored));
        if raw[24..32] != check.to_le_bytes() {
            return Err(Corruption::Check.into());
        }
        let data = match encoding {
            Encoding::Raw if stored_len == plain_len => &self.stored,
            Encoding::Raw => return Err(Corruption::Length.into()),
            Encoding::Lz4 => {
                self.plain.resize(plain_len, 0);
                match lz4_flex::block::decompress_into(&self.stored, &mut self.plain) {
                    Ok(len) if len == plain_len => &self.plain,
                    _ => return Err(Corruption::Lz4.into()),
                }
            }
        };
        let wire_len = HEADER_LEN + meta_len + stored_len;
        Ok(Some(Incoming { kind, stream, meta: &self.meta, data, wire_len }))
    }
}

/// Fills `raw`; `false` when the stream ended before its first byte.
fn read_or_end(reader: &mut impl Read, raw: &mut [u8]) -> Result<bool, Error> {
    let mut have = 0;
    while have < raw.len() {
        match reader.read(&mut raw[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::Io(e)),
        }
    }
    Ok(true)
}

/// Sets `buffer` to the next `len` bytes, without clearing what is overwritten anyway.
fn fill(reader: &mut impl Read, buffer: &mut Vec<u8>, len: usize) -> Result<(), Error> {
    buffer.resize(len, 0);
    reader.read_exact(buffer).map_err(Error::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(frames: &[Outgoing<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = FrameWriter::new(&mut out);
        for frame in frames {
            writer.write(&Hashed::new(*frame)).unwrap();
        }
        out
    }

    fn sample() -> Vec<u8> {
        let packed = lz4_flex::block::compress(&[5; 300]);
        wire(&[
            Outgoing::meta(Kind::Hello, 0, b"{}"),
            Outgoing { data: b"data", plain_len: 4, ..Outgoing::meta(Kind::TreeData, 3, b"m") },
            Outgoing {
                data: &packed,
                plain_len: 300,
                encoding: Encoding::Lz4,
                ..Outgoing::meta(Kind::Pages, 4, b"runs")
            },
        ])
    }

    type Owned = (Kind, u32, Vec<u8>, Vec<u8>);

    fn read_all(bytes: &[u8]) -> Result<Vec<Owned>, Error> {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        while let Some(f) = reader.read()? {
            frames.push((f.kind, f.stream, f.meta.to_vec(), f.data.to_vec()));
        }
        Ok(frames)
    }

    #[test]
    fn frames_come_back_decoded_and_in_order() {
        let frames = read_all(&sample()).unwrap();
        assert_eq!(
            frames,
            [
                (Kind::Hello, 0, b"{}".to_vec(), vec![]),
                (Kind::TreeData, 3, b"m".to_vec(), b"data".to_vec()),
                (Kind::Pages, 4, b"runs".to_vec(), vec![5; 300]),
            ]
        );
    }

    #[test]
    fn every_cut_inside_a_frame_is_an_error() {
        let bytes = sample();
        let (first, second) = (HEADER_LEN + 2, HEADER_LEN + 2 + HEADER_LEN + 5);
        for cut in 0..bytes.len() {
            let result = read_all(&bytes[..cut]);
            let between = [0, first, second].contains(&cut);
            assert_eq!(result.is_ok(), between, "cut at {cut}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(read_all(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn repeated_and_missing_frames_are_noticed() {
        let bytes = sample();
        let second = HEADER_LEN + 2;
        assert!(matches!(
            read_all(&bytes[second..]),
            Err(Error::Corrupt(Corruption::Sequence { found: 1, expected: 0 }))
        ));
        let twice = [&bytes[..second], &bytes[..second]].concat();
        assert!(read_all(&twice).is_err());
    }

    #[test]
    fn announced_lengths_beyond_the_bounds_are_refused_before_they_are_read() {
        for at in [12, 16, 20] {
            let mut bytes = sample();
            bytes[at..at + 4].copy_from_slice(&(MAX_DATA as u32 + 1).to_le_bytes());
            let result = read_all(&bytes[..HEADER_LEN]);
            assert!(matches!(result, Err(Error::Corrupt(Corruption::Length))), "{result:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&bytes);
        }
    }
}
