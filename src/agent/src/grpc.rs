//! The service for the operator: inspects pods, hands tasks to holders, and passes commands and
//! status on. Calls are idempotent; none of them decides about a migration.
//!
//! Only the operator's certificate is let in, connection by connection, before any call.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use transship_core::facts::NodeFacts;
use transship_host::paths::{MigrationDir, Role};
use transship_host::record::{ContainerKind, RECORD_VERSION, Record, RecordState};
use transship_host::task::HolderTask;
use transship_host::{HostRoot, files};
use transship_rpc::agent_server::{Agent, AgentServer};
use transship_rpc::holder_client::HolderClient;
use transship_rpc::{
    CommandReply, CommandRequest, ForgetReply, ForgetRequest, InspectReply, InspectRequest,
    LeaseMovedReply, LeaseMovedRequest, SideStatus, StartReply, StartRequest, WatchRequest,
};

use crate::certs::Current;
use crate::inspect::Inspector;
use crate::install::HostSide;
use crate::leases::Leases;
use crate::migrations::{Side, host_role};
use crate::telemetry::{Call, Telemetry};
use crate::tls;

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a call to a holder that just started (or restarts) waits for its socket.
const HOLDER_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two tries to reach a holder.
const HOLDER_PAUSE: Duration = Duration::from_millis(50);

type Result<T, E = Status> = std::result::Result<T, E>;

/// The service.
#[derive(Clone)]
pub struct Service {
    /// This node's name.
    pub node: String,
    /// kubelet's root directory, which tasks must name.
    pub kubelet_root: std::path::PathBuf,
    /// The host.
    pub host: HostRoot,
    /// Looks at pods.
    pub inspector: Inspector,
    /// What is known of the node.
    pub facts: watch::Receiver<NodeFacts>,
    /// What is installed: while that is being removed nothing is started.
    pub side: watch::Receiver<HostSide>,
    /// Addresses lent away.
    pub leases: Leases,
    /// Counters.
    pub telemetry: Arc<Telemetry>,
    /// One start or removal at a time: they look and then write.
    pub writing: Arc<Mutex<()>>,
    /// Ends open streams.
    pub stop: CancellationToken,
}

/// Serves calls until `stop`, with the certificate in force at each connection.
pub async fn serve(service: Service, listener: TcpListener, tls: Current) -> anyhow::Result<()> {
    let (connected, incoming) = mpsc::channel::<std::io::Result<TlsStream<TcpStream>>>(16);
    let stop = service.stop.clone();
    tokio::spawn(accept(listener, tls, connected, stop.clone()));
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(AgentServer::new(service))
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.cancelled_owned())
        .await?;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    tls: Current,
    connected: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
    stop: CancellationToken,
) {
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => return,
        };
        // Without a certificate nobody can be let in; the caller tries again.
        let Some(config) = tls.borrow().as_ref().map(|tls| tls.server.clone()) else { continue };
        let connected = connected.clone();
        tokio::spawn(async move {
            // A small delay matters more than a few more packets.
            let _ = stream.set_nodelay(true);
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await {
                Ok(Ok(stream))
                    if tls::peer_is(stream.get_ref().1.peer_certificates(), tls::OPERATOR_NAME) =>
                {
                    let _ = connected.send(Ok(stream)).await;
                }
                Ok(Ok(_)) => tracing::warn!(%from, "refused a caller that is not the operator"),
                Ok(Err(error)) => tracing::debug!(%from, %error, "a handshake failed"),
                Err(_) => tracing::debug!(%from, "a handshake took too long"),
            }
        });
    }
}

/// Binds a socket that only root can reach, replacing one that a former agent left behind.
pub fn bind_local(socket: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(dir) = socket.parent() {
        files::make_dir(dir)?;
    }
    files::remove_durably(socket)?;
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn invalid(error: transship_host::Error) -> Status {
    Status::invalid_argument(error.chain())
}

/// A failure of this node.
fn failed(error: transship_host::Error) -> Status {
    Status::internal(error.chain())
}

fn role(role: i32) -> Result<Role> {
    host_role(role).ok_or_else(|| Status::invalid_argument("name a role, SOURCE or TARGET"))
}

impl Service {
    fn side(&self, uid: &str, role: i32) -> Result<MigrationDir> {
        let role = self::role(role)?;
        self.host.migration(uid, role).map_err(invalid)
    }

    /// Checks a task against this node and what is there already. `None`: the very same task has
    /// been taken before.
    fn admit(&self, task_json: &str, role: Role) -> Result<Option<(HolderTask, MigrationDir)>> {
        let mut task = HolderTask::from_json(task_json).map_err(invalid)?;
        if task.role != role {
            return Err(Status::invalid_argument(format!("this call is for the {role}")));
        }
        if task.node != self.node {
            return Err(Status::invalid_argument(format!(
                "the task is for node {}, and this is {}",
                task.node, self.node
            )));
        }
        // Only this node knows where its kubelet keeps volumes.
        task.kubelet_root = self.kubelet_root.clone();
        let dir = self.host.migration(&task.migration.uid, role).map_err(invalid)?;
        match dir.read_task().map_err(failed)? {
            _ if task.part.is_again() => {}
            Some(taken) if taken.pod.uid == task.pod.uid => return Ok(None),
            Some(taken) => {
                return Err(Status::already_exists(format!(
                    "migration {} has a {role} here already: pod {}",
                    task.migration.uid, taken.pod.uid
                )));
            }
            None => {}
        }
        // Looked at under the lock that a removal takes before it looks for open migrations.
        if !self.side.borrow().takes(task.part) {
            return Err(Status::unavailable(
                "the host side is being removed; take the annotation transship.dev/uninstall off",
            ));
        }
        let busy = crate::migrations::list(&self.host).map_err(failed)?.into_iter().find(|side| {
            let pod = side.task.as_ref().map(|task| task.pod.uid.as_str());
            !side.closed && pod == Some(task.pod.uid.as_str()) && side.uid != task.migration.uid
        });
        if let Some(busy) = busy {
            return Err(Status::failed_precondition(format!(
                "pod {} takes part in migration {} still",
                task.pod.uid, busy.uid
            )));
        }
        Ok(Some((task, dir)))
    }

    fn start_target(&self, task_json: &str) -> Result<()> {
        let Some((task, dir)) = self.admit(task_json, Role::Target)? else { return Ok(()) };
        if task.part.is_again() {
            return crate::again::start(&self.host, &dir, &task, || self.write_record(&task));
        }
        self.write_record(&task)?;
        dir.write_task(&task).map_err(failed)
    }

    fn write_record(&self, task: &HolderTask) -> Result<()> {
        let pod = self.host.pod(&task.pod.uid).map_err(invalid)?;
        // The record comes before the task, and the task before the answer: when the operator lets
        // kubelet see the pod, the wrapper knows it.
        match pod.read_record().map_err(failed)? {
            Some(record) if record.migration_uid == task.migration.uid => {}
            Some(record) => {
                return Err(Status::failed_precondition(format!(
                    "pod {} has a record of migration {}",
                    task.pod.uid, record.migration_uid
                )));
            }
            None => {
                let restored = task.containers.iter().filter(|c| c.kind != ContainerKind::Init);
                for container in restored {
                    pod.grant_ticket(&container.name).map_err(failed)?;
                }
                let record = Record {
                    version: RECORD_VERSION,
                    pod_uid: task.pod.uid.clone(),
                    pod_namespace: task.pod.namespace.clone(),
                    pod_name: task.pod.name.clone(),
                    migration_uid: task.migration.uid.clone(),
                    role: Role::Target,
                    state: match task.part.is_cold() {
                        true => RecordState::Prepared,
                        false => RecordState::Restore,
                    },
                    containers: task.containers.clone(),
                    network: task.network.clone(),
                };
                pod.write_record(&record).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn start_source(&self, task_json: &str) -> Result<()> {
        let Some((task, dir)) = self.admit(task_json, Role::Source)? else { return Ok(()) };
        dir.write_task(&task).map_err(failed)
    }

    fn forget(&self, uid: &str, role: Role) -> Result<()> {
        let dir = self.host.migration(uid, role).map_err(invalid)?;
        match dir.path().try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(Status::internal(error.to_string())),
        }
        if !dir.is_closed().map_err(failed)? {
            return Err(Status::failed_precondition(format!(
                "the {role} of migration {uid} is not closed"
            )));
        }
        crate::gc::remove_migration(&self.host, &dir).map_err(failed)
    }

    fn counted<T>(&self, method: &'static str, result: Result<T>) -> Result<Response<T>> {
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.telemetry.calls.get_or_create(&Call { method, code: format!("{code:?}") }).inc();
        if let Err(status) = &result {
            let message = status.message();
            // Not here yet or not here any more: the ordinary course of a migration.
            if matches!(code, Code::NotFound | Code::FailedPrecondition) {
                tracing::debug!(method, code = ?code, message, "a call was answered in the negative");
            } else {
                tracing::warn!(method, code = ?code, message, "a call failed");
            }
        }
        result.map(Response::new)
    }

    /// Files are written with fsync: not on a thread that serves others.
    async fn writing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let one = self.writing.clone().lock_owned().await;
        let service = self.clone();
        // Whoever called may go meanwhile; the work does not end by that, and nor does its turn.
        let work = move || {
            let _one = one;
            work(&service)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Status::internal(error.to_string()))?
    }

    async fn holder(&self, uid: &str, role: Role) -> Result<HolderClient<Channel>> {
        let socket = self.host.holder(uid, role).map_err(invalid)?.control();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .map_err(|error| Status::internal(error.to_string()))?
            .connect_timeout(Duration::from_secs(2));
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Status::unavailable(format!("the holder does not answer: {error}")))?;
        Ok(HolderClient::new(channel))
    }

    async fn command(&self, request: CommandRequest) -> Result<CommandReply> {
        let dir = self.side(&request.migration_uid, request.role)?;
        let role = role(request.role)?;
        let give_up = tokio::time::Instant::now() + HOLDER_LIMIT;
        loop {
            let side = existing(&dir)?;
            if side.closed {
                return Err(Status::failed_precondition(format!(
                    "the {role} of migration {} is closed",
                    side.uid
                )));
            }
            let sent = match self.holder(&request.migration_uid, role).await {
                Ok(mut holder) => {
                    let sent = holder.command(request.clone()).await;
                    sent.map(Response::into_inner)
                }
                Err(error) => Err(error),
            };
            match sent {
                // It starts, or is being restarted.
                Err(error)
                    if error.code() == Code::Unavailable
                        && tokio::time::Instant::now() < give_up =>
                {
                    tokio::time::sleep(HOLDER_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Passes snapshots on until the side is closed or forgotten, through restarts of its holder.
    async fn relay_status(&self, request: WatchRequest, to: &mpsc::Sender<Result<SideStatus>>) {
        let ended = async {
            let dir = self.side(&request.migration_uid, request.role)?;
            let role = role(request.role)?;
            let mut last: Option<SideStatus> = None;
            loop {
                // The file first: it is there before, between and after the holders' lives.
                let side = existing(&dir)?;
                if last.as_ref() != Some(&side.status) {
                    last = Some(side.status.clone());
                    if to.send(Ok(side.status)).await.is_err() {
                        return Ok(());
                    }
                }
                if side.closed {
                    return Ok(());
                }
                if let Ok(mut holder) = self.holder(&request.migration_uid, role).await
                    && let Ok(stream) = holder.watch(request.clone()).await
                {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(status)) = stream.message().await {
                        if last.as_ref() == Some(&status) {
                            continue;
                        }
                        last = Some(status.clone());
                        if to.send(Ok(status)).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                tokio::time::sleep(HOLDER_PAUSE).await;
            }
        };
        let ended: Result<()> = tokio::select! {
            ended = ended => ended,
            () = to.closed() => Ok(()),
            () = self.stop.cancelled() => Err(Status::unavailable("the agent is ending")),
        };
        if let Err(status) = ended {
            let _ = to.send(Err(status)).await;
        }
    }
}

/// The side as it is on disk; NotFound once it was forgotten.
fn existing(dir: &MigrationDir) -> Result<Side> {
    let gone = || Status::not_found(format!("{} is not here", dir.path().display()));
    if !dir.path().is_dir() {
        return Err(gone());
    }
    Side::read(dir.clone()).ok_or_else(gone)
}

#[tonic::async_trait]
impl Agent for Service {
    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectReply>> {
        let uid = request.into_inner().pod_uid;
        let node = self.facts.borrow().clone();
        let result = async {
            let facts = if uid.is_empty() {
                self.inspector.node(node).await
            } else {
                transship_host::paths::check_uid("pod UID", &uid).map_err(invalid)?;
                self.inspector.pod(&uid, node).await.map_err(|error| match error {
                    transship_runtime::Error::NoSandbox(_) => Status::not_found(error.to_string()),
                    other => Status::unavailable(format!("{:#}", anyhow::Error::from(other))),
                })?
            };
            let facts_json = serde_json::to_string(&facts)
                .map_err(|error| Status::internal(error.to_string()))?;
            Ok(InspectReply { facts_json })
        };
        self.counted("Inspect", result.await)
    }

    async fn start_target(&self, request: Request<StartRequest>) -> Result<Response<StartReply>> {
        let task = request.into_inner().task_json;
        let result = self.writing(move |service| service.start_target(&task)).await;
        self.counted("StartTarget", result.map(|()| StartReply {}))
    }

    async fn start_source(&self, request: Request<StartRequest>) -> Result<Response<StartReply>> {
        let task = request.into_inner().task_json;
        let result = self.writing(move |service| service.start_source(&task)).await;
        self.counted("StartSource", result.map(|()| StartReply {}))
    }

    async fn command(&self, request: Request<CommandRequest>) -> Result<Response<CommandReply>> {
        let result = Service::command(self, request.into_inner()).await;
        self.counted("Command", result)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<SideStatus>> + Send + 'static>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>> {
        let request = request.into_inner();
        let checked = self
            .side(&request.migration_uid, request.role)
            .and_then(|dir| existing(&dir).map(|_| ()));
        self.counted("Watch", checked)?;
        let (to, stream) = mpsc::channel(8);
        let service = self.clone();
        tokio::spawn(async move { service.relay_status(request, &to).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetReply>> {
        let request = request.into_inner();
        let result = match role(request.role) {
            Ok(role) => {
                self.writing(move |service| service.forget(&request.migration_uid, role)).await
            }
            Err(error) => Err(error),
        };
        self.counted("Forget", result.map(|()| ForgetReply {}))
    }

    async fn lease_moved(
        &self,
        request: Request<LeaseMovedRequest>,
    ) -> Result<Response<LeaseMovedReply>> {
        let request = request.into_inner();
        let result = {
            let _one = self.writing.lock().await;
            self.leases.moved(&request).await
        };
        self.counted("LeaseMoved", result.map(|()| LeaseMovedReply {}))
    }
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
