//! Sending: one connection through the agent to the target's holder, opened long before the
//! freeze; after it, dumps and file trees go over it at the same time.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Timeout;
use tokio_util::sync::CancellationToken;
use transship_host::record::ContainerKind;
use transship_protocol::SourceEvent;
use transship_rpc::Stage;
use transship_transport::tree::{TreeError, TreeSummary, capture_dir, capture_upper};
use transship_transport::{Area, Closer, Hello, Link, Sender, SenderOptions};

use super::dump::Dumper;
use super::keep::{Both, Keep};
use crate::holder::Holder;
use crate::pod::{Pod, moving, sandbox_shm};

/// How long the target may take to verify what it has received.
const ACKNOWLEDGE: Duration = Duration::from_secs(60);
/// How often progress is shown. Each time the operator looks at the migration, which takes from the
/// machine what the dump needs, and a look under way delays the one that sees a vote.
const PROGRESS: Duration = Duration::from_millis(500);
/// How long telling the target that we give up may take: the source's containers stand still meanwhile.
const GIVE_UP: Duration = Duration::from_millis(100);

/// A connection that the target has answered.
pub struct Peer {
    sender: Arc<Sender>,
    closer: Closer,
}

/// The place where the connection waits until the freeze.
pub type Connected = Arc<Mutex<Option<Peer>>>;

/// What the agent is asked for, as one line of JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RelayRequest<'a> {
    peer: &'a str,
    peer_node: &'a str,
    migration: &'a str,
}

/// Connects; puts the connection into `place` and says so, or becomes a failure of this side.
pub fn connect_in_background(
    holder: Arc<Holder>,
    place: Connected,
    connected: watch::Sender<bool>,
    events: mpsc::Sender<SourceEvent>,
) {
    tokio::spawn(async move {
        let connecting = holder.blocking("connect", connect).await;
        match connecting {
            Ok(peer) => {
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
                holder.board.update(|status| {
                    status.stage = status.stage.max(Stage::Connected as i32);
                });
                connected.send_replace(true);
                // Kept open: its end would tell a waiting command that there is no hope.
                events.closed().await;
            }
            Err(error) => {
                holder.board.failed("NotConnected", &format!("{error:#}"));
                let _ = events.send(SourceEvent::LocalFailure).await;
            }
        }
    });
}

fn connect(holder: &Holder) -> Result<Peer> {
    let task = &holder.task;
    let socket = holder.host.agent_data_socket();
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("the agent does not answer at {}", socket.display()))?;
    let request = RelayRequest {
        peer: &task.peer.data_address,
        peer_node: &task.peer.node,
        migration: &task.migration.uid,
    };
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line).context("the agent does not relay")?;
    let link = Link::unix(stream)?;
    let closer = link.closer();
    let hello =
        Hello::new(&task.migration.uid, &task.pod.uid, moving(task).map(str::to_owned).collect());
    let options = SenderOptions { bandwidth_limit: task.bandwidth_limit, ..Default::default() };
    let sender = Sender::start(link, &hello, options)
        .with_context(|| format!("node {} does not answer", task.peer.node))?;
    Ok(Peer { sender: Arc::new(sender), closer })
}

/// The transfer of a frozen pod.
pub struct Transfer {
    course: Course,
    task: JoinHandle<()>,
    peer: Peer,
}

/// What a transfer and whoever ends it tell each other.
#[derive(Clone, Default)]
struct Course {
    /// It is called off.
    stop: CancellationToken,
    /// It has failed by itself, and tells the target why.
    failed: Arc<AtomicBool>,
}

impl Transfer {
    /// Dumps and sends everything of the frozen pod, or without a dumper the files of the ended one, then tells
    /// the machine.
    pub fn start(
        holder: Arc<Holder>,
        dumper: Option<Dumper>,
        pod: Pod,
        peer: Peer,
        events: mpsc::Sender<SourceEvent>,
    ) -> Self {
        let course = Course::default();
        let (sender, its) = (Arc::clone(&peer.sender), course.clone());
        let task = tokio::spawn(async move {
            let progress = tokio::spawn(show_progress(Arc::clone(&holder), Arc::clone(&sender)));
            let outcome = match &dumper {
                Some(dumper) => transfer(&holder, dumper, &pod, &sender, &its.stop).await,
                None => super::files::transfer(&holder, &pod, &sender).await,
            };
            progress.abort();
            show(&holder, &sender);
            conclude(&holder, &sender, &its, &events, outcome).await;
        });
        Transfer { course, task, peer }
    }

    /// Ends it, wherever it stands. When this returns no dump is at work any more. For the target it waits no
    /// longer than [`GIVE_UP`].
    pub async fn end(self) {
        self.course.stop.cancel();
        if !self.course.failed.load(Ordering::SeqCst) {
            if !self.task.is_finished() {
                let why = "the source has given up".into();
                let _ = give_up(&self.peer.sender, "SourceAborted", why).await;
            }
            // A thread that is blocked in a write or waits for an answer comes back now.
            (self.peer.closer)();
        }
        // One that has failed ends by itself, when the target was told why or cannot be.
        if self.task.await.is_err() {
            tracing::error!("the transfer has panicked");
        }
        (self.peer.closer)();
    }
}

/// Tells the machine what has come of a transfer, and the target where it has failed.
async fn conclude(
    holder: &Holder,
    sender: &Arc<Sender>,
    course: &Course,
    events: &mpsc::Sender<SourceEvent>,
    outcome: Result<()>,
) {
    match outcome {
        Ok(()) => say(events, SourceEvent::AllFrozenAndSent, course).await,
        Err(error) if course.stop.is_cancelled() => {
            tracing::info!("the transfer has ended: {error:#}");
        }
        Err(error) => {
            let (reason, message) = (reason(&error), message(&error, &holder.task.peer.node));
            holder.board.failed(reason, &message);
            course.failed.store(true, Ordering::SeqCst);
            // Whichever side is heard first, the cause is heard. Undoing the freeze does not wait for that.
            let told = give_up(sender, reason, message);
            say(events, SourceEvent::LocalFailure, course).await;
            let _ = told.await;
        }
    }
}

/// Tells the machine of an event, if the transfer is not called off before there is room for it: whoever calls
/// it off takes no events until it has ended, and needs none of it.
async fn say(events: &mpsc::Sender<SourceEvent>, event: SourceEvent, course: &Course) {
    tokio::select! {
        () = course.stop.cancelled() => {}
        _ = events.send(event) => {}
    }
}

/// Begins to tell the target that this side gives up, and why; to be awaited, which takes [`GIVE_UP`] at most. A
/// target that cannot be told sees the connection end.
fn give_up(
    sender: &Arc<Sender>,
    reason: &'static str,
    message: String,
) -> Timeout<JoinHandle<transship_transport::Result<()>>> {
    let sender = Arc::clone(sender);
    let told = tokio::task::spawn_blocking(move || sender.give_up(reason, &message));
    tokio::time::timeout(GIVE_UP, told)
}

/// The reason shown for a failed transfer.
fn reason(error: &anyhow::Error) -> &'static str {
    if error.chain().any(|cause| cause.is::<transship_runtime::Error>()) {
        "DumpFailed"
    } else if error.chain().any(|cause| cause.is::<transship_transport::Error>()) {
        "TransferFailed"
    } else {
        "SourceFailed"
    }
}

/// What is shown of it: what the peer has said of itself is told under its name.
fn message(error: &anyhow::Error, peer: &str) -> String {
    use transship_transport::Error;
    match error.chain().find_map(|cause| cause.downcast_ref::<Error>()) {
        Some(Error::Peer { message, .. }) => format!("{peer} failed: {message}"),
        _ => format!("{error:#}"),
    }
}

async fn transfer(
    holder: &Arc<Holder>,
    dumper: &Dumper,
    pod: &Pod,
    sender: &Arc<Sender>,
    stop: &CancellationToken,
) -> Result<()> {
    // Dumps and trees alike must see the names.
    let named = pod.clone();
    holder.blocking("names", move |holder| crate::names::give(holder, &named)).await?;
    let keep = match holder.task.part.is_sequential() {
        true => Some(Keep::new(&holder.dir)?),
        false => None,
    };
    let trees = {
        let (pod, sender, keep) = (pod.clone(), Arc::clone(sender), keep.clone());
        let holder = Arc::clone(holder);
        tokio::spawn(async move {
            holder
                .blocking("files", move |holder| send_trees(holder, &pod, &sender, keep.as_ref()))
                .await
        })
    };
    let dumps = async {
        for container in &pod.containers {
            let name = container.name.clone();
            let began = Instant::now();
            let pages = sender.pages(&name)?;
            let received = match &keep {
                Some(keep) => dumper.dump(container, keep.pages(&name, pages)?, stop).await,
                None => dumper.dump(container, pages, stop).await,
            };
            let received =
                received.with_context(|| format!("container {name} cannot be dumped"))?;
            if let Some(keep) = &keep {
                keep.link_images(&name, &dumper.images(&name)?)?;
            }
            tracing::info!(container = name, ?received, "dumped");
            holder.board.took(&format!("dump/{name}"), began.elapsed());
            let (sender, images) = (Arc::clone(sender), dumper.images(&name)?);
            holder
                .blocking(&format!("images/{name}"), move |_| {
                    sender.send_image_dir(&name, &images)?;
                    Ok(sender.container_done(&name)?)
                })
                .await?;
        }
        anyhow::Ok(())
    };
    let dumped = dumps.await;
    if dumped.is_err() {
        // The trees' thread ends with the connection, which the caller closes.
        trees.abort();
        return dumped;
    }
    tokio::select! {
        sent = trees => sent.context("sending files ended unexpectedly")??,
        () = stop.cancelled() => anyhow::bail!("the transfer was called off"),
    }
    acknowledge(holder, sender).await?;
    holder.board.update(|status| status.stage = status.stage.max(Stage::Sent as i32));
    Ok(())
}

/// Waits until the target has everything.
pub(super) async fn acknowledge(holder: &Arc<Holder>, sender: &Arc<Sender>) -> Result<()> {
    let sender = Arc::clone(sender);
    holder.blocking("acknowledge", move |_| Ok(sender.all_done(ACKNOWLEDGE)?)).await?;
    Ok(())
}

type Capture = fn(&Path, &mut dyn Write) -> Result<TreeSummary, TreeError>;

/// Captures a tree to the target and to the source's own copy.
pub(super) fn send_tree(
    sender: &Sender,
    keep: Option<&Keep>,
    area: &Area,
    capture: Capture,
    path: &Path,
) -> Result<TreeSummary> {
    let mut near = keep.map(|keep| keep.tree(area)).transpose()?;
    let summary =
        sender.send_tree(area, |far| capture(path, &mut Both { near: near.as_mut(), far }))?;
    Ok(summary)
}

/// Sends every tree that the target expects: each container's changes to its image, each
/// emptyDir, the sandbox's shared memory (empty if it has none), what is beside.
fn send_trees(holder: &Holder, pod: &Pod, sender: &Sender, keep: Option<&Keep>) -> Result<()> {
    let send =
        |area: &Area, capture: Capture, path: &Path| send_tree(sender, keep, area, capture, path);
    match &sandbox_shm(&holder.layout, &pod.sandbox_id) {
        Some(shm) => send(&Area::Shm, capture_dir, shm)?,
        None => {
            let empty = holder.dir.path().join("empty");
            transship_host::files::make_dir(&empty)?;
            send(&Area::Shm, capture_dir, &empty)?
        }
    };
    let noted = crate::connections::note(holder)?;
    send(&Area::Network, capture_dir, &noted)?;
    for volume in crate::areas::volumes(&holder.task) {
        let path = holder.task.empty_dir_path(&volume)?;
        let summary = send(&Area::EmptyDir(volume), capture_dir, &path)?;
        tracing::info!(path = %path.display(), ?summary, "sent");
    }
    for container in &pod.containers {
        let upper = transship_runtime::mounts::upper_of(
            &holder.layout.proc.join("self/mountinfo"),
            &container.rootfs,
        )?;
        let area = Area::Rootfs(container.name.clone());
        let summary = send(&area, capture_upper, &upper)?;
        tracing::info!(path = %upper.display(), ?summary, "sent");
    }
    crate::logs::collect(holder, pod)?;
    let beside = crate::beside::place(holder)?;
    send(&Area::Beside, capture_dir, &beside)?;
    debug_assert!(
        holder.task.containers.iter().filter(|c| c.kind != ContainerKind::Init).count()
            == pod.containers.len()
    );
    Ok(())
}

async fn show_progress(holder: Arc<Holder>, sender: Arc<Sender>) {
    let mut tick = tokio::time::interval(PROGRESS);
    loop {
        tick.tick().await;
        show(&holder, &sender);
    }
}

fn show(holder: &Holder, sender: &Sender) {
    let progress = sender.progress();
    holder.board.update(|status| {
        status.bytes_total = progress.pages() * transship_criu::PAGE_SIZE;
        status.bytes_total = status.bytes_total.max(progress.plain_bytes());
        status.bytes_sent = progress.wire_bytes();
    });
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
