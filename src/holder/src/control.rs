//! The control socket: the agent passes the operator's commands on and watches the status.
//!
//! Commands are queued and answered at once; what they lead to shows in the status. Nothing here
//! decides anything.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;

use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};
use transship_rpc::holder_server::{Holder, HolderServer};
use transship_rpc::{CommandReply, CommandRequest, SideStatus, Verb, WatchRequest};

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Source: close, freeze, dump and send now.
    Freeze,
    /// Something was recorded at the API server: read it.
    ReadDecision,
    /// Source: the commit is confirmed, kill the frozen tasks.
    Release,
    /// Abort this side if it has not voted.
    Abort,
}

struct Service {
    migration_uid: String,
    role: i32,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<SideStatus>,
    stopped: watch::Receiver<bool>,
}

impl Service {
    /// Refuses calls meant for another holder: a wrongly routed command must not do anything.
    fn check(&self, uid: &str, role: i32) -> std::result::Result<(), Status> {
        if uid == self.migration_uid && role == self.role {
            Ok(())
        } else {
            Err(Status::not_found(format!("this holder is for {}", self.migration_uid)))
        }
    }
}

fn command(verb: i32) -> std::result::Result<Command, Status> {
    match Verb::try_from(verb) {
        Ok(Verb::Freeze) => Ok(Command::Freeze),
        Ok(Verb::ReadDecision) => Ok(Command::ReadDecision),
        Ok(Verb::Release) => Ok(Command::Release),
        Ok(Verb::Abort) => Ok(Command::Abort),
        Ok(Verb::Unspecified) | Err(_) => {
            Err(Status::invalid_argument(format!("unknown verb {verb}")))
        }
    }
}

#[tonic::async_trait]
impl Holder for Service {
    async fn command(
        &self,
        request: Request<CommandRequest>,
    ) -> std::result::Result<Response<CommandReply>, Status> {
        let request = request.into_inner();
        self.check(&request.migration_uid, request.role)?;
        let command = command(request.verb)?;
        self.commands
            .send(command)
            .await
            .map_err(|_| Status::unavailable("the holder is ending"))?;
        Ok(Response::new(CommandReply {}))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = std::result::Result<SideStatus, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> std::result::Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        self.check(&request.migration_uid, request.role)?;
        let mut stopped = self.stopped.clone();
        // The last snapshot is on the board before the word to stop is given, and a stream that
        // has something to give is asked before its end is looked at.
        let stop = Box::pin(async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        let snapshots = until_idle(WatchStream::new(self.status.clone()), stop).map(Ok);
        Ok(Response::new(Box::pin(snapshots)))
    }
}

/// A stream that ends when `stop` has come and nothing more is ready.
fn until_idle<S: Stream + Unpin>(
    mut stream: S,
    mut stop: impl Future<Output = ()> + Unpin,
) -> impl Stream<Item = S::Item> {
    futures::stream::poll_fn(move |context| match stream.poll_next_unpin(context) {
        Poll::Ready(item) => Poll::Ready(item),
        Poll::Pending => Pin::new(&mut stop).poll(context).map(|()| None),
    })
}

/// A served control socket.
pub struct Server {
    task: tokio::task::JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Takes no more calls and waits until every watcher has the last snapshot, at most `limit`.
    pub async fn end(self, limit: std::time::Duration) {
        self.stop.send_replace(true);
        if tokio::time::timeout(limit, self.task).await.is_err() {
            tracing::info!("a watcher did not take the last status");
        }
    }
}

/// Serves the control socket. It is made anew: one that a crashed holder left behind is of no use
/// (the journal's lock keeps a second living holder out).
pub fn serve(
    socket: &Path,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<SideStatus>,
) -> Result<Server> {
    let listener = bind(socket)?;
    let (migration_uid, role) = {
        let status = status.borrow();
        (status.migration_uid.clone(), status.role)
    };
    let (stop, stopped) = watch::channel(false);
    let service = Service { migration_uid, role, commands, status, stopped: stopped.clone() };
    let mut ended = stopped;
    let server = tonic::transport::Server::builder()
        .add_service(HolderServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            // An end without the word means that the process ends.
            let _ = ended.wait_for(|stop| *stop).await;
        });
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the control socket failed");
        }
    });
    Ok(Server { task, stop })
}

/// Binds a Unix socket that only root can reach, replacing a stale one.
pub fn bind(socket: &Path) -> Result<tokio::net::UnixListener> {
    let directory = socket.parent().context("a socket needs a directory")?;
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove {socket:?}")),
    }
    tokio::net::UnixListener::bind(socket).with_context(|| format!("cannot bind {socket:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use transship_rpc::holder_client::HolderClient;
    use transship_rpc::{Role, Stage};

    async fn client(socket: &Path) -> HolderClient<tonic::transport::Channel> {
        let uri = format!("unix://{}", socket.display());
        let endpoint = tonic::transport::Endpoint::from_shared(uri).unwrap();
        HolderClient::new(endpoint.connect().await.unwrap())
    }

    #[tokio::test]
    async fn commands_are_queued_and_wrongly_addressed_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let (commands, mut queue) = mpsc::channel(4);
        let status = SideStatus {
            migration_uid: "u".into(),
            role: Role::Source as i32,
            ..Default::default()
        };
        let (_sender, receiver) = watch::channel(status);
        let server = serve(&socket, commands, receiver).unwrap();
        let mut client = client(&socket).await;
        let request = |uid: &str, role: Role, verb: i32| CommandRequest {
            migration_uid: uid.into(),
            role: role as i32,
            verb,
        };
        client.command(request("u", Role::Source, Verb::Freeze as i32)).await.unwrap();
        assert_eq!(queue.recv().await, Some(Command::Freeze));
        for wrong in [
            request("other", Role::Source, Verb::Abort as i32),
            request("u", Role::Target, Verb::Abort as i32),
            request("u", Role::Source, 99),
        ] {
            assert!(client.command(wrong).await.is_err());
        }
        assert!(queue.try_recv().is_err());
        drop(client);
        server.end(std::time::Duration::from_secs(10)).await;
    }

    #[tokio::test]
    async fn a_watcher_sees_the_present_state_and_each_change() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        std::fs::write(&socket, "left behind").unwrap();
        let (commands, _queue) = mpsc::channel(4);
        let status = SideStatus {
            migration_uid: "u".into(),
            role: Role::Target as i32,
            stage: Stage::Started as i32,
            ..Default::default()
        };
        let (sender, receiver) = watch::channel(status);
        let server = serve(&socket, commands, receiver).unwrap();
        let mut client = client(&socket).await;
        let request = WatchRequest { migration_uid: "u".into(), role: Role::Target as i32 };
        let mut snapshots = client.watch(request).await.unwrap().into_inner();
        assert_eq!(snapshots.message().await.unwrap().unwrap().stage, Stage::Started as i32);
        sender.send_modify(|status| status.stage = Stage::Voted as i32);
        assert_eq!(snapshots.message().await.unwrap().unwrap().stage, Stage::Voted as i32);
        sender.send_modify(|status| status.stage = Stage::Aborted as i32);
        let end = tokio::spawn(server.end(std::time::Duration::from_secs(10)));
        assert_eq!(snapshots.message().await.unwrap().unwrap().stage, Stage::Aborted as i32);
        assert!(snapshots.message().await.unwrap().is_none(), "the stream ends after the last");
        end.await.unwrap();
    }
}
