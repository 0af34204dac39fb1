//! The source's side. One [`Sender`] serves several threads: trees, images and pages may be sent
//! at the same time, each through a stream of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use transship_criu::validate::is_allowed_name;

use crate::compress::{Compression, Pace, Packer};
use crate::error::{Error, Result};
use crate::frame::{FrameReader, FrameWriter, Hashed, Kind, Outgoing};
use crate::limit::TokenBucket;
use crate::link::{Closer, Link};
use crate::message::{
    Ack, AllDone, Area, ContainerDone, Failed, Hello, ImageStart, ItemCount, Stage, Totals,
    TreeStart, from_meta, to_meta,
};
use crate::progress::Progress;
use crate::streams::{ByteStream, PageStream};
use crate::tree::{TreeError, TreeSummary};

/// How to send.
#[derive(Debug, Clone, Copy)]
pub struct SenderOptions {
    /// Bytes a second on the wire; 0 for no limit.
    pub bandwidth_limit: u64,
    /// When to compress.
    pub compression: Compression,
    /// How long to wait for the target's first acknowledgement.
    pub hello_patience: Duration,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self {
            bandwidth_limit: 0,
            compression: Compression::Auto,
            hello_patience: Duration::from_secs(30),
        }
    }
}

/// Sends one pod's state. Dropping it closes the connection.
pub struct Sender {
    shared: Arc<Shared>,
}

/// What a sender and its streams share.
pub(crate) struct Shared {
    wire: Mutex<Wire>,
    pace: Mutex<Pace>,
    back: Mutex<Back>,
    back_changed: Condvar,
    streams: AtomicU32,
    totals: Mutex<Counted>,
    containers: Vec<String>,
    pub(crate) progress: Arc<Progress>,
    started: Instant,
    closer: Closer,
}

struct Wire {
    frames: FrameWriter<Box<dyn Write + Send>>,
    limit: Option<TokenBucket>,
    /// A frame was written in part: nothing can follow it.
    broken: bool,
}

#[derive(Default)]
struct Counted {
    all: Totals,
    containers: BTreeMap<String, Totals>,
}

/// What the target has said so far.
#[derive(Default)]
struct Back {
    stages: Vec<Stage>,
    end: Option<BackEnd>,
}

enum BackEnd {
    Failed(Failed),
    Closed,
}

impl BackEnd {
    fn error(&self) -> Error {
        match self {
            BackEnd::Failed(Failed { reason, message }) => {
                Error::Peer { reason: reason.clone(), message: message.clone() }
            }
            BackEnd::Closed => Error::Closed,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every update below is whole before the lock is released.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender {
    /// Says hello and waits until the target is ready.
    pub fn start(link: Link, hello: &Hello, options: SenderOptions) -> Result<Self> {
        let Link { reader, writer, closer } = link;
        let shared = Arc::new(Shared {
            wire: Mutex::new(Wire {
                frames: FrameWriter::new(writer),
                limit: TokenBucket::new(options.bandwidth_limit),
                broken: false,
            }),
            pace: Mutex::new(Pace::new(options.compression)),
            back: Mutex::default(),
            back_changed: Condvar::new(),
            streams: AtomicU32::new(1),
            totals: Mutex::default(),
            containers: hello.containers.clone(),
            progress: Arc::default(),
            started: Instant::now(),
            closer,
        });
        let sender = Self { shared: Arc::clone(&shared) };
        std::thread::Builder::new()
            .name("transport-back".into())
            .spawn(move || shared.listen(reader))
            .map_err(Error::Io)?;
        sender.shared.send(&Outgoing::meta(Kind::Hello, 0, &to_meta(hello)?))?;
        sender.shared.await_stage(Stage::Hello, options.hello_patience)?;
        Ok(sender)
    }

    /// Sends one file tree: `capture` writes its archive (see [`crate::tree`]).
    pub fn send_tree(
        &self,
        area: &Area,
        capture: impl FnOnce(&mut dyn Write) -> Result<TreeSummary, TreeError>,
    ) -> Result<TreeSummary> {
        let start = to_meta(&TreeStart { area: area.clone() })?;
        let kinds = (Kind::TreeStart, Kind::TreeData, Kind::TreeEnd);
        let mut stream = ByteStream::open(&self.shared, kinds, &start)?;
        let summary = match capture(&mut stream) {
            Ok(summary) => summary,
            Err(source) => {
                return Err(stream
                    .error
                    .take()
                    .unwrap_or_else(|| Error::Tree { area: area.to_string(), source }));
            }
        };
        stream.end(None)?;
        Ok(summary)
    }

    /// Sends one image file of a container. Returns its length.
    pub fn send_image(&self, container: &str, name: &str, contents: &mut dyn Read) -> Result<u64> {
        if !is_allowed_name(name) {
            return Err(Error::ImageName(name.into()));
        }
        let start = to_meta(&ImageStart { container: container.into(), name: name.into() })?;
        let kinds = (Kind::ImageStart, Kind::ImageData, Kind::ImageEnd);
        let mut stream = ByteStream::open(&self.shared, kinds, &start)?;
        let copied = stream.copy_from(contents, name)?;
        stream.end(Some(container))?;
        Ok(copied)
    }

    /// Sends all images that a dump left in `dir`. `cgroup.img` stays behind: it is written even
    /// where cgroups are ignored, and runc makes the target's. Any other file that a checkpoint
    /// must not have is an error that names it. Returns how many files were sent.
    pub fn send_image_dir(&self, container: &str, dir: &Path) -> Result<usize> {
        let failed = |what: &Path, source| Error::File { what: what.display().to_string(), source };
        let mut sent = 0;
        for entry in fs::read_dir(dir).map_err(|e| failed(dir, e))? {
            let path = entry.map_err(|e| failed(dir, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name == "cgroup.img" {
                continue;
            }
            let mut file = File::open(&path).map_err(|e| failed(&path, e))?;
            self.send_image(container, &name, &mut file)?;
            sent += 1;
        }
        Ok(sent)
    }

    /// The page stream of a container, to be given to CRIU's page server. It must be
    /// [`finish`](transship_criu::pages::PageSink::finish)ed before [`container_done`](Self::container_done).
    pub fn pages(&self, container: &str) -> Result<PageStream> {
        PageStream::open(Arc::clone(&self.shared), container)
    }

    /// All images and pages of a container have been sent.
    pub fn container_done(&self, container: &str) -> Result<()> {
        let totals = lock(&self.shared.totals).containers.get(container).copied();
        let done =
            ContainerDone { container: container.into(), totals: totals.unwrap_or_default() };
        self.shared.send(&Outgoing::meta(Kind::ContainerDone, 0, &to_meta(&done)?))
    }

    /// Everything has been sent. Waits until the target has verified and accepted all of it.
    pub fn all_done(&self, patience: Duration) -> Result<Totals> {
        let totals = lock(&self.shared.totals).all;
        self.shared.send(&Outgoing::meta(Kind::AllDone, 0, &to_meta(&AllDone { totals })?))?;
        self.shared.await_stage(Stage::Complete, patience)?;
        Ok(totals)
    }

    /// Tells the target that this side gives up. The connection cannot be used afterwards.
    pub fn give_up(&self, reason: &str, message: &str) -> Result<()> {
        let failed = to_meta(&Failed::new(reason, message))?;
        self.shared.send(&Outgoing::meta(Kind::Failed, 0, &failed))?;
        lock(&self.shared.wire).broken = true;
        Ok(())
    }

    /// Counters of what has been sent.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.shared.progress)
    }

    /// The containers said in the hello.
    pub fn containers(&self) -> &[String] {
        &self.shared.containers
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        (self.shared.closer)();
    }
}

impl Shared {
    pub(crate) fn next_stream(&self) -> u32 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn send(&self, frame: &Outgoing<'_>) -> Result<()> {
        let hashed = Hashed::new(*frame);
        let mut wire = lock(&self.wire);
        if let Some(end) = &lock(&self.back).end {
            return Err(end.error());
        }
        if wire.broken {
            return Err(Error::Closed);
        }
        let start = self.started.elapsed();
        let len = hashed.wire_len();
        if let Some(limit) = &mut wire.limit {
            let wait = limit.take(len, start);
            self.pause(wait)?;
        }
        let written = wire.frames.write(&hashed);
        wire.broken = written.is_err();
        drop(wire);
        if let Err(error) = written {
            return Err(self.explain(error));
        }
        self.progress.add(frame.plain_len, len);
        if !frame.data.is_empty() {
            let took = self.started.elapsed().saturating_sub(start);
            lock(&self.pace).wrote(len, took);
        }
        Ok(())
    }

    /// Waits, unless the target ends the transfer meanwhile.
    fn pause(&self, wait: Duration) -> Result<()> {
        if wait.is_zero() {
            return Ok(());
        }
        let ended = |back: &mut Back| back.end.is_none();
        let (back, _) = self
            .back_changed
            .wait_timeout_while(lock(&self.back), wait, ended)
            .unwrap_or_else(PoisonError::into_inner);
        match &back.end {
            Some(end) => Err(end.error()),
            None => Ok(()),
        }
    }

    /// A write failed. The target may have said why before it closed; give that a moment.
    fn explain(&self, error: io::Error) -> Error {
        let (back, _) = self
            .back_changed
            .wait_timeout_while(lock(&self.back), Duration::from_secs(1), |b| b.end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match &back.end {
            Some(end @ BackEnd::Failed(_)) => end.error(),
            _ => Error::Io(error),
        }
    }

    fn await_stage(&self, stage: Stage, patience: Duration) -> Result<()> {
        let (back, _) = self
            .back_changed
            .wait_timeout_while(lock(&self.back), patience, |back| {
                !back.stages.contains(&stage) && back.end.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        // An acknowledgement counts even if the target closed right after it.
        match &back.end {
            _ if back.stages.contains(&stage) => Ok(()),
            Some(end) => Err(end.error()),
            None => Err(Error::Timeout(patience)),
        }
    }

    /// Reads what the target says, until it has nothing more to say.
    fn listen(&self, reader: Box<dyn Read + Send>) {
        let mut frames = FrameReader::new(reader);
        let end = loop {
            let message = match frames.read() {
                Ok(Some(frame)) if frame.kind == Kind::Ack => {
                    from_meta::<Ack>(frame.meta).map(|ack| Ok(ack.stage))
                }
                Ok(Some(frame)) if frame.kind == Kind::Failed => {
                    Failed::received(frame.meta).map(Err)
                }
                Ok(_) | Err(_) => break BackEnd::Closed,
            };
            match message {
                Ok(Ok(stage)) => {
                    lock(&self.back).stages.push(stage);
                    self.back_changed.notify_all();
                }
                Ok(Err(failed)) => break BackEnd::Failed(failed),
                Err(_) => break BackEnd::Closed,
            }
        };
        lock(&self.back).end = Some(end);
        self.back_changed.notify_all();
    }

    pub(crate) fn send_block(
        &self,
        (kind, stream): (Kind, u32),
        meta: &[u8],
        block: &[u8],
        packer: &mut Packer,
    ) -> Result<()> {
        let (encoding, data) = packer.pack(block, &self.pace);
        self.send(&Outgoing { kind, stream, meta, data, encoding, plain_len: block.len() })
    }

    pub(crate) fn end_item(
        &self,
        (kind, stream): (Kind, u32),
        count: &ItemCount,
        container: Option<&str>,
        pages: u64,
    ) -> Result<()> {
        let end = count.end();
        {
            let mut totals = lock(&self.totals);
            totals.all.add(&end, pages);
            if let Some(container) = container {
                totals.containers.entry(container.into()).or_default().add(&end, pages);
            }
        }
        self.send(&Outgoing::meta(kind, stream, &to_meta(&end)?))
    }
}

impl From<Error> for io::Error {
    /// For sinks and writers whose trait speaks of `io::Error`; the error is its inner one.
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

/// The transfer's error inside an `io::Error` that came through a page sink, if there is one.
pub fn transfer_error(error: io::Error) -> Result<Error, io::Error> {
    error.downcast::<Error>()
}
