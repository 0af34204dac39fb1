//! The transfer of a pod's state from the holder on its source node to the holder on its target
//! node. This page is the protocol's specification.
//!
//! ```text
//! source (Sender)                                             target (receive + Handler)
//!    │ Hello {version, migration, podUid, containers} ───────────────►│ handler.hello
//!    │◄──────────────────────────────────────────── Ack {stage: Hello} │
//!    │                                                                 │
//!    │ TreeStart {area}  TreeData*  TreeEnd {bytes, digest} ──────────►│ spool file or directory
//!    │ PagesStart {container}                                          │
//!    │   (PagesOpen dst  Pages*)*  PagesEnd {bytes, digest} ──────────►│ pagemap-*.img, pages-*.img
//!    │ ImageStart {container, name}  ImageData*  ImageEnd {…} ────────►│ image file
//!    │       … in any order, and at the same time on different streams │
//!    │ ContainerDone {container, totals} ─────────────────────────────►│ compared, container_done
//!    │ AllDone {totals} ──────────────────────────────────────────────►│ compared, all_done
//!    │◄───────────────────────────────────────── Ack {stage: Complete} │
//!    │ end of stream                                                   │
//! ```
//! Either side may send `Failed {reason, message}` at any time and then nothing more.
//!
//! # Frames
//! ```text
//!  0 u16 magic "TS"    2 u8 kind    3 u8 encoding (0 raw, 1 lz4 block)
//!  4 u32 stream (0: none)           8 u32 sequence, from 0, each direction for itself
//! 12 u32 length of meta            16 u32 length of data as stored    20 u32 … and decoded
//! 24 u64 check: xxh3-64 of bytes 0..24, seeded with the xxh3-64 of meta and stored data
//! 32 meta (≤ 256 KiB: JSON, or page runs), then data (≤ 1 MiB)
//! ```
//! Little-endian. A kind, an encoding or a length that is not known ends the transfer, and so do
//! a gap in the sequence and a wrong check, before the frame's contents are used.
//!
//! # Streams and totals
//! A tree, an image file and the pages of a container are *items*. Each has a stream number while
//! it is open. Its end carries the number of data bytes and an xxh3-128 of everything in it;
//! `ContainerDone` and `AllDone` carry sums over items that do not depend on their order. The
//! target acknowledges `Complete` only when all of it was right and its handler has agreed.
//! These digests find damage and omissions; who the peer is, TLS between the agents says.
//!
//! Pages are described in `pages`, trees in [`tree`]. Pages of zeroes are not sent. Each
//! container has at most one page stream and each area at most one tree. lz4 is used where it is
//! measured to pay ([`compress`]).
//!
//! # Versions
//! Both sides must speak the same [`VERSION`]; nodes are upgraded together, and a migration
//! between two versions is refused before anything is frozen (the hello comes first).
//!
//! Not decided here: what is sent and when, where it is stored, and what happens on an error.

pub mod compress;
mod error;
pub mod frame;
mod limit;
mod link;
pub mod message;
mod pages;
mod progress;
mod receiver;
mod sender;
mod streams;
pub mod tree;

pub use compress::Compression;
pub use error::{Corruption, Error, Refusal, Result};
pub use limit::TokenBucket;
pub use link::{Closer, Link};
pub use message::{Area, Hello, Totals, VERSION};
pub use progress::Progress;
pub use receiver::{Handler, TreeTarget, receive};
pub use sender::{Sender, SenderOptions, transfer_error};
pub use streams::PageStream;
