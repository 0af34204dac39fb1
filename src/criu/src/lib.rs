//! What Transship knows about CRIU: its image files and its page-server dialect.
//!
//! | module | subject |
//! | --- | --- |
//! | [`image`] | the container format of an image file: magics and records |
//! | [`proto`] | a minimal walker and writer for protobuf fields |
//! | [`pages`] | page runs, destinations, and the [`pages::PageSink`] they go to |
//! | [`pagemap`] | pagemap and pages images, written as `criu page-server` writes them |
//! | [`page_server`] | the receiving side of CRIU's page-server protocol |
//! | [`dump_socket`] | the socket that a dump sends its pages through |
//! | [`repair`] | mending image sets before a restore |
//! | [`validate`] | refusing image sets that an ordinary container never has |
//! | [`stats`] | the figures CRIU leaves behind after a dump |
//!
//! Nothing here starts CRIU or decides when to: the holder does. Every parser takes untrusted
//! bytes: it never panics and never allocates more than its input's size suggests.

pub mod dump_socket;
pub mod image;
pub mod named_files;
pub mod page_server;
pub mod pagemap;
pub mod pages;
pub mod proto;
pub mod repair;
pub mod stats;
pub mod validate;

/// The size of a page in CRIU's images and in its protocol, in bytes (x86-64).
pub const PAGE_SIZE: u64 = 4096;
