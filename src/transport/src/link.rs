//! A two-way connection: a reader, a writer, and a way to close both from outside.
//!
//! Time limits are the caller's: a read timeout set on the target's socket ends [`receive`]
//! with an error. On the source's socket only a write timeout makes sense, since the target is
//! silent for most of a transfer.
//!
//! [`receive`]: crate::receive

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Shuts a connection down; may be called more than once, from any thread.
pub type Closer = Arc<dyn Fn() + Send + Sync>;

/// Both directions of a connection.
pub struct Link {
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) writer: Box<dyn Write + Send>,
    pub(crate) closer: Closer,
}

impl Link {
    /// Any reader and writer. `closer` must make a blocked read and a blocked write return.
    pub fn new(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        closer: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer), closer: Arc::new(closer) }
    }

    /// A Unix socket.
    pub fn unix(stream: UnixStream) -> io::Result<Self> {
        let (reader, third) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Self::new(reader, stream, move || {
            // It may be closed already.
            let _ = third.shutdown(Shutdown::Both);
        }))
    }

    /// A TCP connection. Frames are whole messages, so nothing waits to be filled up.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (reader, third) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Self::new(reader, stream, move || {
            let _ = third.shutdown(Shutdown::Both);
        }))
    }

    /// Ends the connection from another thread: whoever sends or receives gets an error.
    pub fn closer(&self) -> Closer {
        Arc::clone(&self.closer)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}
