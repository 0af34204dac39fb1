//! Calls to the agents: one channel per node with mutual TLS, made anew when the node's address or
//! our certificate changes. Nothing is decided here; errors say whether trying again can help.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};
use tonic::{Code, Status, Streaming};
use transship_api as api;
use transship_core::facts::PodFacts;
use transship_core::migration::Role;
use transship_rpc as rpc;
use transship_rpc::agent_client::AgentClient;

use crate::pki::node_name;
use crate::pki::serving::Identity;

/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The longest answer: facts about a pod of very many processes.
const MAX_ANSWER: usize = 64 << 20;
/// How soon a dead connection is noticed: interval of pings, and how long an answer may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(5));

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its Node has no address, or we have no certificate yet.
    #[error("{node} cannot be called: {why}")]
    NotReachable {
        /// The node.
        node: String,
        /// What is missing.
        why: &'static str,
    },
    /// The agent refused, or did not answer.
    #[error("{node}: {}", .status.message())]
    Call {
        /// The node.
        node: String,
        /// Its answer.
        status: Box<Status>,
    },
    /// The answer could not be read.
    #[error("{node} gave an answer that cannot be read")]
    Answer {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// gRPC's code, where there is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Trying the same again cannot help.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self.code(),
            Some(
                Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::AlreadyExists
                    | Code::Unimplemented
                    | Code::OutOfRange
            )
        )
    }
}

/// All agents.
#[derive(Clone)]
pub struct Agents {
    nodes: Store<api::Node>,
    identity: watch::Receiver<Option<Identity>>,
    channels: Arc<Mutex<HashMap<String, Known>>>,
}

struct Known {
    address: String,
    certificate: String,
    channel: Channel,
}

fn client(channel: Channel) -> AgentClient<Channel> {
    AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// `rpc`'s number of a role.
pub fn rpc_role(role: Role) -> rpc::Role {
    match role {
        Role::Source => rpc::Role::Source,
        Role::Target => rpc::Role::Target,
    }
}

impl Agents {
    /// Agents as their Nodes name them, called with our own certificate.
    pub fn new(nodes: Store<api::Node>, identity: watch::Receiver<Option<Identity>>) -> Self {
        Self { nodes, identity, channels: Arc::default() }
    }

    /// What a node says about its agent.
    pub fn node(&self, name: &str) -> Option<Arc<api::Node>> {
        self.nodes.get(&ObjectRef::new(name))
    }

    fn client(&self, node: &str) -> Result<AgentClient<Channel>, Error> {
        let missing = |why| Error::NotReachable { node: node.to_owned(), why };
        let address = self
            .node(node)
            .and_then(|n| n.status.as_ref()?.agent.as_ref().map(|a| a.address.clone()))
            .filter(|address| !address.is_empty())
            .ok_or_else(|| missing("its agent has not reported an address"))?;
        let identity = self.identity.borrow().clone();
        let identity = identity.ok_or_else(|| missing("the operator has no certificate yet"))?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = channels.get(node)
            && known.address == address
            && known.certificate == identity.own.cert
        {
            return Ok(client(known.channel.clone()));
        }
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(identity.authority.bundle()))
            .identity(TlsIdentity::from_pem(&identity.own.cert, &identity.own.key))
            .domain_name(node_name(node));
        let channel = Endpoint::from_shared(format!("https://{address}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|_| missing("its address is not valid"))?
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true)
            .connect_lazy();
        let certificate = identity.own.cert.clone();
        let known = Known { address, certificate, channel: channel.clone() };
        channels.insert(node.to_owned(), known);
        Ok(client(channel))
    }

    async fn call<T>(
        &self,
        node: &str,
        call: impl AsyncFnOnce(AgentClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Error> {
        let client = self.client(node)?;
        let failed = |status| Error::Call { node: node.to_owned(), status: Box::new(status) };
        match tokio::time::timeout(CALL_LIMIT, call(client)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(failed),
            Err(_) => Err(failed(Status::deadline_exceeded("it did not answer in time"))),
        }
    }

    /// Facts about a pod, or about the node alone where `pod_uid` is empty.
    pub async fn inspect(&self, node: &str, pod_uid: &str) -> Result<PodFacts, Error> {
        let request = rpc::InspectRequest { pod_uid: pod_uid.to_owned() };
        let reply = self.call(node, async |mut c| c.inspect(request).await).await?;
        PodFacts::from_json(&reply.facts_json)
            .map_err(|source| Error::Answer { node: node.to_owned(), source })
    }

    /// Starts the holder of a side.
    pub async fn start(&self, node: &str, role: Role, task_json: String) -> Result<(), Error> {
        let request = rpc::StartRequest { task_json };
        match role {
            Role::Source => self.call(node, async |mut c| c.start_source(request).await).await,
            Role::Target => self.call(node, async |mut c| c.start_target(request).await).await,
        }
        .map(|_| ())
    }

    /// Asks a holder for something. A side that is closed needs nothing any more.
    pub async fn command(
        &self,
        node: &str,
        migration_uid: &str,
        role: Role,
        verb: rpc::Verb,
    ) -> Result<(), Error> {
        let request = rpc::CommandRequest {
            migration_uid: migration_uid.to_owned(),
            role: rpc_role(role).into(),
            verb: verb.into(),
        };
        match self.call(node, async |mut c| c.command(request).await).await {
            Err(error)
                if matches!(error.code(), Some(Code::FailedPrecondition | Code::NotFound)) =>
            {
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// Snapshots of a side, one at once and then one at each change.
    pub async fn watch(
        &self,
        node: &str,
        migration_uid: &str,
        role: Role,
    ) -> Result<Streaming<rpc::SideStatus>, Error> {
        let request = rpc::WatchRequest {
            migration_uid: migration_uid.to_owned(),
            role: rpc_role(role).into(),
        };
        self.call(node, async |mut c| c.watch(request).await).await
    }

    /// Lets an agent forget a closed side.
    pub async fn forget(&self, node: &str, migration_uid: &str, role: Role) -> Result<(), Error> {
        let request = rpc::ForgetRequest {
            migration_uid: migration_uid.to_owned(),
            role: rpc_role(role).into(),
        };
        match self.call(node, async |mut c| c.forget(request).await).await {
            Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Tells an address's home node who uses it now.
    pub async fn lease_moved(
        &self,
        home: &str,
        request: rpc::LeaseMovedRequest,
    ) -> Result<(), Error> {
        self.call(home, async |mut c| c.lease_moved(request).await).await.map(|_| ())
    }
}
