//! One container's dump: runc and CRIU write the small images to a directory, and the memory's
//! pages come to us over CRIU's page-server protocol and go straight on to the peer.
//!
//! The container is frozen before and must be frozen afterwards; CRIU thaws the cgroup in between
//! and holds the tasks by ptrace. A dump must never outlive its usefulness: a CRIU that ends late
//! would freeze a container that was thawed meanwhile. So every dump leaves the number of its
//! process group in a file, and nothing is thawed before that group is empty ([`end_leftovers`]).

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio_util::sync::CancellationToken;
use transship_criu::page_server::{self, Dialect, Received};
use transship_criu::pages::PageSink;
use transship_host::freezer::FreezerState;
use transship_host::paths::{HostRoot, MigrationDir};
use transship_runtime::Layout;
use transship_runtime::checkpoint::{CRIU_CONFIG, Checkpoint, Running, group_is_alive, kill_group};

use crate::dirwatch::DirWatch;
use crate::pod::{FREEZER_LIMIT, Pod, PodContainer};

/// How long CRIU may take to connect to the page server.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a dump whose page stream was cut may take to undo itself.
const UNDO: Duration = Duration::from_secs(3);
/// How long killed processes may take to vanish.
const REAP: Duration = Duration::from_secs(2);
/// Name of the file in the work directory with the dump's process group.
const GROUP_FILE: &str = "dump.group";
/// The image that CRIU writes last, after all pages.
const LAST_IMAGE: &str = "inventory.img";

/// What every dump of a migration has in common.
#[derive(Debug, Clone)]
pub struct Dumper {
    /// The node.
    pub host: HostRoot,
    /// containerd's and runc's directories.
    pub layout: Layout,
    /// The migration.
    pub dir: MigrationDir,
    /// The runc to call.
    pub runc: PathBuf,
    /// What the node's CRIU speaks.
    pub dialect: Dialect,
}

impl Dumper {
    /// The directory with the images of a container (without pages).
    pub fn images(&self, container: &str) -> Result<PathBuf> {
        Ok(self.dir.images(container)?)
    }

    /// Dumps one frozen container; its pages go to `sink`. `stop` ends it early.
    pub async fn dump<S: PageSink + Send + 'static>(
        &self,
        container: &PodContainer,
        sink: S,
        stop: &CancellationToken,
    ) -> Result<Received> {
        let images = self.images(&container.name)?;
        let work = self.dir.work(&container.name)?;
        for directory in [&images, &work] {
            transship_host::files::remove_tree(directory)?;
            transship_host::files::make_dir(directory)?;
        }
        let config = work.join("criu.conf");
        std::fs::write(&config, CRIU_CONFIG).context("cannot write CRIU's options")?;
        let (listener, port) = page_server::listen().context("cannot listen for pages")?;
        let last_image = DirWatch::new()?;
        last_image.add(&images)?;
        let mut running = Checkpoint {
            id: &container.id,
            images: &images,
            work: &work,
            page_server: ([127, 0, 0, 1], port).into(),
            criu_config: &config,
            bin: &self.host.opt().join("bin"),
            runc: &self.runc,
        }
        .start(&self.layout)?;
        let group = running.group().context("runc has no process id")?;
        std::fs::write(work.join(GROUP_FILE), group.to_string()).context("cannot note the dump")?;

        let connection = Connection::default();
        let server = {
            let (connection, dialect) = (connection.clone(), self.dialect);
            tokio::task::spawn_blocking(move || {
                let trusted = |ours: SocketAddr, peer: SocketAddr| {
                    page_server::owned_by_descendant(group.unsigned_abs(), ours, peer)
                        .unwrap_or(false)
                };
                let stream =
                    page_server::accept(&listener, CONNECT, trusted, || connection.is_over())
                        .context("CRIU did not connect to send its pages")?;
                drop(listener);
                let mut sink = sink;
                let stream = connection.adopt(stream)?;
                page_server::receive(stream, dialect, &mut sink).context("pages were not received")
            })
        };
        let outcome = tokio::select! {
            outcome = running.wait() => outcome.map_err(anyhow::Error::from),
            () = answer_early(&images, &last_image, &connection) => {
                running.wait().await.map_err(anyhow::Error::from)
            }
            () = stop.cancelled() => Err(anyhow!("the dump was called off")),
        };
        if outcome.is_err() {
            connection.cut();
            end(&mut running, group, container).await;
        }
        connection.over();
        let received = server.await.context("the page server failed")?;
        // What the page server says is the cause where CRIU only says that its peer went away.
        let received = match (outcome, received) {
            (Ok(()), received) => received?,
            (Err(error), Err(cause)) if !stop.is_cancelled() && is_cause(&cause) => {
                return Err(cause.context(error));
            }
            (Err(error), _) => return Err(error),
        };
        let _ = std::fs::remove_file(work.join(GROUP_FILE));
        // CRIU puts the freezer back as it was; a program that came between is made up for.
        if container.freezer.state()? != FreezerState::Frozen {
            tracing::warn!("container {} was not frozen after its dump", container.name);
            container.freezer.freeze(FREEZER_LIMIT)?;
            return Err(anyhow!("container {} ran during its dump", container.name));
        }
        Ok(received)
    }
}

/// Whether an error of the page server is more than CRIU's own end.
fn is_cause(error: &anyhow::Error) -> bool {
    use page_server::PageServerError as E;
    matches!(error.downcast_ref::<E>(), Some(E::Sink(_) | E::Command(_) | E::Run { .. }))
}

/// CRIU's last command, CLOSE, stays in its corked socket for up to 200 ms while it waits for the
/// answer. By then it has written its last image, and no page can follow: so the answer is sent as
/// soon as that image is whole. Never returns before.
async fn answer_early(images: &Path, watch: &DirWatch, connection: &Connection) {
    let image = images.join(LAST_IMAGE);
    while !std::fs::read(&image).is_ok_and(|bytes| is_whole(&bytes)) {
        watch.changed(Duration::from_millis(100)).await;
    }
    connection.answer_close();
}

/// Whether an image with two magics and one record is complete.
fn is_whole(image: &[u8]) -> bool {
    image.get(8..12).is_some_and(|length| {
        let length = length.iter().rev().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
        image.len() == 12 + length
    })
}

/// Waits until a dump whose page stream is cut has undone itself. One that does not is killed,
/// with the container frozen first: CRIU's death would let its tasks run.
async fn end(running: &mut Running, group: i32, container: &PodContainer) {
    if tokio::time::timeout(UNDO, running.wait()).await.is_err() {
        tracing::warn!("the dump of {} does not end and is killed", container.name);
        if let Err(error) = container.freezer.freeze(FREEZER_LIMIT) {
            tracing::warn!("{}", error.chain());
        }
        kill_group(group);
        let _ = running.wait().await;
    }
    await_group(group).await;
}

async fn await_group(group: i32) {
    let deadline = Instant::now() + REAP;
    while group_is_alive(group) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ends what dumps of an earlier holder may have left: without it their page streams are cut, so
/// they undo themselves; if not they are killed while their container is frozen.
pub async fn end_leftovers(dir: &MigrationDir, pod: &Pod) {
    for container in &pod.containers {
        let Ok(work) = dir.work(&container.name) else { continue };
        let file = work.join(GROUP_FILE);
        let Some(group) = std::fs::read_to_string(&file).ok().and_then(|t| t.trim().parse().ok())
        else {
            continue;
        };
        let deadline = Instant::now() + UNDO;
        while group_is_alive(group) && is_dump(group) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if group_is_alive(group) && is_dump(group) {
            if let Err(error) = container.freezer.freeze(FREEZER_LIMIT) {
                tracing::warn!("{}", error.chain());
            }
            kill_group(group);
            await_group(group).await;
        }
        let _ = std::fs::remove_file(&file);
    }
}

/// Whether a process group still holds runc or CRIU: after a long time its number may belong to
/// somebody else.
fn is_dump(group: i32) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { return false };
        let Some((head, rest)) = stat.rsplit_once(')') else { return false };
        let name = head.split_once('(').map_or("", |(_, name)| name);
        // After the name: state, parent, process group.
        let its_group = rest.split_ascii_whitespace().nth(2).and_then(|g| g.parse::<i32>().ok());
        its_group == Some(group) && ["runc", "criu"].iter().any(|known| name.starts_with(known))
    })
}

/// The connection from CRIU, shared between the page server and those who watch the dump.
#[derive(Clone, Default)]
struct Connection(Arc<Shared>);

#[derive(Default)]
struct Shared {
    stream: Mutex<Option<TcpStream>>,
    /// The answer to CLOSE has been sent.
    answered: AtomicBool,
    over: AtomicBool,
}

impl Connection {
    /// Takes the accepted stream; what the page server reads and writes goes through the result.
    fn adopt(&self, stream: TcpStream) -> io::Result<PageStream> {
        let clone = stream.try_clone()?;
        *self.0.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(clone);
        if self.is_over() {
            stream.shutdown(Shutdown::Both)?;
        }
        Ok(PageStream { stream, shared: Arc::clone(&self.0) })
    }

    /// Answers CLOSE before it has arrived.
    fn answer_close(&self) {
        let guard = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = guard.as_ref()
            && !self.0.answered.swap(true, Ordering::SeqCst)
        {
            // A connection that is gone needs no answer.
            let _ = (&mut &*stream).write_all(&0i32.to_le_bytes());
        }
    }

    /// Cuts the stream: CRIU fails the dump and undoes it.
    fn cut(&self) {
        self.over();
        let guard = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = guard.as_ref() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The dump has ended: nobody will connect any more.
    fn over(&self) {
        self.0.over.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.0.over.load(Ordering::SeqCst)
    }
}

/// CRIU's stream without the answer that was sent early.
struct PageStream {
    stream: TcpStream,
    shared: Arc<Shared>,
}

impl Read for PageStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for PageStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.shared.answered.load(Ordering::SeqCst) {
            return Ok(buffer.len());
        }
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn an_image_is_whole_when_its_record_is() {
        let mut image = vec![0u8; 8];
        assert!(!is_whole(&image));
        image.extend([3, 0, 0, 0]);
        assert!(!is_whole(&image));
        image.extend([1, 2, 3]);
        assert!(is_whole(&image));
        image.push(4);
        assert!(!is_whole(&image));
    }

    #[test]
    fn an_early_answer_to_close_takes_the_place_of_the_later_one() {
        let (mut criu, ours) = pair();
        let connection = Connection::default();
        let mut stream = connection.adopt(ours).unwrap();
        stream.write_all(&[7]).unwrap();
        connection.answer_close();
        connection.answer_close();
        stream.write_all(&0i32.to_le_bytes()).unwrap();
        drop(stream);
        connection.cut();
        let mut answers = Vec::new();
        criu.read_to_end(&mut answers).unwrap();
        assert_eq!(answers, [7, 0, 0, 0, 0]);
    }

    #[test]
    fn a_connection_that_comes_after_the_end_is_cut() {
        let (mut criu, ours) = pair();
        let connection = Connection::default();
        connection.cut();
        let _stream = connection.adopt(ours).unwrap();
        assert_eq!(criu.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_foreign_process_group_is_not_taken_for_a_dump() {
        let group = rustix::process::getpgrp().as_raw_nonzero().get();
        assert!(!is_dump(group));
        assert!(!is_dump(i32::MAX));
    }
}
