//! Carries a migration's data from the source's holder to the target's.
//!
//! ```text
//! source holder → /run/transship/agent-data.sock → this node's agent ═ TLS ═ peer's agent :9441 → the target holder's data.sock
//! ```
//!
//! Each hop starts with one line of JSON. Beyond these lines the agents do not look into the data:
//! bytes are copied both ways, and the end of one direction is passed on alone. A target's agent
//! lets in only the node that the task (written on the operator's word) names as the peer.
//!
//! On the same port agents answer each other one question, likewise one line each way: whether the
//! node has a sandbox of a pod (for addresses that it uses and that belong to another node).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, bail};
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transship_host::HostRoot;
use transship_host::paths::Role;
use transship_runtime::cri::Remains;

use crate::certs::Current;
use crate::runtime::Runtime;
use crate::telemetry::{Kind, Telemetry};
use crate::tls;

/// How long connecting, the handshake and the first line may take together.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may be silent before its peer is probed, how often then, and how many times
/// in vain.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EACH: Duration = Duration::from_secs(3);
const PROBES: u32 = 4;
/// How long what was sent may go unacknowledged.
const SENT_LIMIT: Duration = Duration::from_secs(30);
/// The longest first line.
const MAX_LINE: usize = 4096;
/// Bytes moved at a time, each way.
const BUFFER: usize = 256 << 10;

/// First line of a source's holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outward {
    /// `IP:PORT` of the target's agent.
    peer: SocketAddr,
    /// The target's node.
    peer_node: String,
    /// UID of the Migration.
    migration: String,
}

/// First line between agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Inward {
    /// The data of a migration follows.
    Data {
        /// UID of the Migration.
        migration: String,
    },
    /// Is there a sandbox of this pod?
    Sandbox {
        /// UID of the pod.
        sandbox: String,
    },
}

/// The answer to [`Inward::Sandbox`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SandboxAnswer {
    present: bool,
}

/// Serves both ends.
#[derive(Clone)]
pub struct Relay {
    /// The host.
    pub host: HostRoot,
    /// TLS in force.
    pub tls: Current,
    /// kubelet's root directory, on the host.
    pub kubelet_root: PathBuf,
    /// containerd.
    pub runtime: Runtime,
    /// Counters.
    pub telemetry: Arc<Telemetry>,
}

impl Relay {
    /// Whether this node has a sandbox of the pod: one that runs or is on the network, or an ended one
    /// of a pod that kubelet has not let go, which may get another. The names of ended sandboxes that
    /// containerd keeps until kubelet's next collection, a minute later, are none.
    pub async fn has_sandbox(&self, pod_uid: &str) -> anyhow::Result<bool> {
        Ok(match self.runtime.cri().await?.remains(pod_uid).await? {
            Remains::Sandbox => true,
            Remains::Name => self.host.join(&self.kubelet_root).join("pods").join(pod_uid).exists(),
            Remains::Nothing => false,
        })
    }

    /// Whether another node has one, by its own word.
    pub async fn ask_for_sandbox(
        &self,
        node: &str,
        address: SocketAddr,
        pod_uid: &str,
    ) -> anyhow::Result<bool> {
        let ask = async {
            let mut stream = self.dial(node, address).await?;
            write_line(&mut stream, &Inward::Sandbox { sandbox: pod_uid.to_owned() }).await?;
            let answer: SandboxAnswer = read_line(&mut stream).await?;
            Ok(answer.present)
        };
        tokio::time::timeout(BEGIN_LIMIT, ask).await.context("no answer in time")?
    }

    /// A connection to another node's agent, which proved to be that node's.
    async fn dial(
        &self,
        node: &str,
        address: SocketAddr,
    ) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tls = self.tls.borrow().clone().context("this agent has no certificate yet")?;
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {node} at {address}"))?;
        prepare(&stream)?;
        let name = ServerName::try_from(tls::node_name(node))?;
        let connecting = TlsConnector::from(tls.client).connect(name, stream);
        connecting.await.with_context(|| format!("TLS with {node}"))
    }

    /// Takes the data of other agents until `stop`.
    pub async fn serve_peers(self, listener: TcpListener, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let Some((stream, from)) = taken(accepted).await else { continue };
            let relay = self.clone();
            tracker.spawn(async move {
                if let Err(error) = relay.inward(stream).await {
                    tracing::warn!(%from, error = format!("{error:#}"), "data from another node was refused or broke off");
                }
            });
        }
        // Connections that carry data end by themselves; the process' deadline bounds them.
        tracker.close();
        tracker.wait().await;
    }

    /// Takes the data of this node's holders until `stop`.
    pub async fn serve_holders(self, listener: UnixListener, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let Some((stream, _)) = taken(accepted).await else { continue };
            let relay = self.clone();
            tracker.spawn(async move {
                if let Err(error) = relay.outward(stream).await {
                    tracing::warn!(error = format!("{error:#}"), "data to another node broke off");
                }
            });
        }
        tracker.close();
        tracker.wait().await;
    }

    async fn outward(&self, mut holder: UnixStream) -> anyhow::Result<()> {
        let begin = async {
            let line: Outward = read_line(&mut holder).await?;
            let mut stream = self.dial(&line.peer_node, line.peer).await?;
            let first = Inward::Data { migration: line.migration.clone() };
            write_line(&mut stream, &first).await?;
            anyhow::Ok((line.migration, stream))
        };
        let (migration, mut stream) =
            tokio::time::timeout(BEGIN_LIMIT, begin).await.context("took too long to begin")??;
        tracing::info!(migration, "data flows to the peer");
        self.copy(&mut holder, &mut stream).await.with_context(|| format!("migration {migration}"))
    }

    async fn inward(&self, stream: TcpStream) -> anyhow::Result<()> {
        prepare(&stream)?;
        let begin = async {
            let tls = self.tls.borrow().clone().context("this agent has no certificate yet")?;
            let mut stream = TlsAcceptor::from(tls.server).accept(stream).await?;
            if stream.get_ref().1.alpn_protocol() != Some(tls::DATA_PROTOCOL) {
                bail!("the peer does not speak the data protocol");
            }
            let migration = match read_line(&mut stream).await? {
                Inward::Data { migration } => migration,
                Inward::Sandbox { sandbox } => {
                    transship_host::paths::check_uid("pod UID", &sandbox)?;
                    let present = self.has_sandbox(&sandbox).await?;
                    write_line(&mut stream, &SandboxAnswer { present }).await?;
                    stream.shutdown().await?;
                    return Ok(None);
                }
            };
            let task = self
                .host
                .migration(&migration, Role::Target)?
                .read_task()?
                .with_context(|| format!("no migration {migration} comes to this node"))?;
            let expected = tls::node_name(&task.peer.node);
            if !tls::peer_is(stream.get_ref().1.peer_certificates(), &expected) {
                bail!("migration {migration} comes from {}, not from this peer", task.peer.node);
            }
            let socket = self.host.holder(&migration, Role::Target)?.data();
            let holder = connect_holder(&socket).await?;
            anyhow::Ok(Some((migration, stream, holder)))
        };
        let begun = tokio::time::timeout(BEGIN_LIMIT, begin).await;
        let Some((migration, mut stream, mut holder)) =
            begun.context("took too long to begin")??
        else {
            return Ok(());
        };
        tracing::info!(migration, "data flows from the peer");
        self.copy(&mut holder, &mut stream).await.with_context(|| format!("migration {migration}"))
    }

    /// Copies both ways until both have ended.
    async fn copy(
        &self,
        holder: &mut UnixStream,
        peer: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> anyhow::Result<()> {
        self.telemetry.relays.inc();
        let count = |kind| self.telemetry.relayed.get_or_create_owned(&Kind { kind });
        let mut peer = Counted { inner: peer, read: count("in"), written: count("out") };
        let copied = tokio::io::copy_bidirectional_with_sizes(holder, &mut peer, BUFFER, BUFFER);
        let copied = copied.await;
        self.telemetry.relays.dec();
        copied?;
        Ok(())
    }
}

/// A small delay matters more than a few more packets; and a peer that is off or cut off is noticed,
/// whether something is to be sent to it or only awaited from it.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EACH)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_socket_keepalive(stream, true)?;
    let limit = u32::try_from(SENT_LIMIT.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(stream, limit)?)
}

/// A holder that was just started may not listen yet; the caller bounds the wait.
async fn connect_holder(socket: &Path) -> anyhow::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot connect to {}", socket.display()));
            }
        }
    }
}

/// An accepted connection; after an error (too many open files) a pause, so that it does not spin.
async fn taken<S, A>(accepted: std::io::Result<(S, A)>) -> Option<(S, A)> {
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            tracing::warn!(%error, "cannot take a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Reads exactly one line: what follows it belongs to the copy.
async fn read_line<T: for<'de> Deserialize<'de>>(
    stream: &mut (impl AsyncRead + Unpin),
) -> anyhow::Result<T> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await.context("the first line broke off")?;
        if byte == b'\n' {
            break;
        }
        if line.len() >= MAX_LINE {
            bail!("the first line is too long");
        }
        line.push(byte);
    }
    serde_json::from_slice(&line).context("the first line is not what it should be")
}

async fn write_line<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await?;
    Ok(())
}

/// Counts what passes.
struct Counted<'a, S> {
    inner: &'a mut S,
    read: Counter,
    written: Counter,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut *self.inner).poll_read(cx, buf);
        self.read.inc_by((buf.filled().len() - before) as u64);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut *self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            self.written.inc_by(written as u64);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
