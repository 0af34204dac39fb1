//! A pod as the CRI knows it: its ready sandbox, its containers and their states.

use std::path::Path;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

use crate::{Error, Result};

/// How long containerd may take to answer one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Label by which kubelet tells containerd the pod a sandbox or container belongs to.
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";

/// A ready sandbox of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// containerd's id of it.
    pub id: String,
    /// kubelet's count of sandboxes made for this pod.
    pub attempt: u32,
}

/// What the CRI says about a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Made and not started.
    Created,
    /// Started and not ended.
    Running,
    /// Ended.
    Exited,
    /// containerd cannot tell.
    Unknown,
}

/// One container of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CriContainer {
    /// containerd's id of it.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Its state.
    pub state: State,
    /// kubelet's count of starts of this container.
    pub attempt: u32,
}

/// How a program ended that was run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to its standard output, then to its standard error.
    pub output: String,
}

/// What there is of a pod's sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// One that runs, or that is still on the network.
    Sandbox,
    /// Only what containerd remembers of ended ones until kubelet's next collection.
    Name,
    /// None.
    Nothing,
}

/// A connection to containerd's CRI service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cri {
    pub(crate) channel: Channel,
    pub(crate) client: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
}

impl Cri {
    /// Connects to containerd.
    pub async fn connect(socket: &Path) -> Result<Self> {
        Self::connect_for(socket, CALL_TIMEOUT).await
    }

    /// Connects to containerd for calls that may take up to `limit`.
    pub async fn connect_for(socket: &Path, limit: Duration) -> Result<Self> {
        let failed = |source| Error::Connect { socket: socket.to_path_buf(), source };
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .map_err(failed)?
            .connect_timeout(CALL_TIMEOUT)
            .timeout(limit)
            .connect()
            .await
            .map_err(failed)?;
        // Verbose statuses carry the whole runtime spec; pods with many mounts make them long.
        let client = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let images = ImageServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        Ok(Cri { channel, client, images })
    }

    /// Ready sandboxes of a pod, the newest attempt first. More than one is possible for a moment
    /// while kubelet replaces one.
    pub async fn sandboxes(&self, pod_uid: &str) -> Result<Vec<Sandbox>> {
        let filter = cri::PodSandboxFilter {
            label_selector: [(POD_UID.to_owned(), pod_uid.to_owned())].into(),
            ..Default::default()
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let reply = self
            .client
            .clone()
            .list_pod_sandbox(request)
            .await
            .map_err(call("ListPodSandbox"))?
            .into_inner();
        let mut found: Vec<Sandbox> = reply
            .items
            .into_iter()
            .filter(|item| item.state == cri::PodSandboxState::SandboxReady as i32)
            .map(|item| Sandbox {
                id: item.id,
                attempt: item.metadata.map_or(0, |metadata| metadata.attempt),
            })
            .collect();
        found.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.attempt));
        Ok(found)
    }

    /// The pod's ready sandbox.
    pub async fn sandbox(&self, pod_uid: &str) -> Result<Sandbox> {
        self.sandboxes(pod_uid)
            .await?
            .into_iter()
            .next()
            .ok_or_else(|| Error::NoSandbox(pod_uid.to_owned()))
    }

    /// What containerd still has of a pod's sandboxes.
    pub async fn remains(&self, pod_uid: &str) -> Result<Remains> {
        let filter = cri::PodSandboxFilter {
            label_selector: [(POD_UID.to_owned(), pod_uid.to_owned())].into(),
            ..Default::default()
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let reply =
            self.client.clone().list_pod_sandbox(request).await.map_err(call("ListPodSandbox"))?;
        let mut remains = Remains::Nothing;
        for item in reply.into_inner().items {
            if item.state == cri::PodSandboxState::SandboxReady as i32
                || !self.is_off_the_network(item.id).await?
            {
                return Ok(Remains::Sandbox);
            }
            remains = Remains::Name;
        }
        Ok(remains)
    }

    /// Whether a sandbox's network namespace has been removed. One of which containerd does not tell
    /// still has it.
    async fn is_off_the_network(&self, sandbox_id: String) -> Result<bool> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox_id, verbose: true };
        match self.client.clone().pod_sandbox_status(request).await {
            Ok(reply) => Ok(info_json(&reply.into_inner().info)
                .is_some_and(|info| info["netNamespaceClosed"] == true)),
            // Removed since it was listed.
            Err(status) if status.code() == tonic::Code::NotFound => Ok(true),
            Err(status) => Err(call("PodSandboxStatus")(status)),
        }
    }

    /// All containers of a sandbox, ended ones included.
    pub async fn containers(&self, sandbox_id: &str) -> Result<Vec<CriContainer>> {
        let pod_sandbox_id = sandbox_id.to_owned();
        self.list(cri::ContainerFilter { pod_sandbox_id, ..Default::default() }).await
    }

    /// All containers of a pod, whatever sandbox they were made in, ended ones included.
    pub async fn containers_of_pod(&self, pod_uid: &str) -> Result<Vec<CriContainer>> {
        let label_selector = [(POD_UID.to_owned(), pod_uid.to_owned())].into();
        self.list(cri::ContainerFilter { label_selector, ..Default::default() }).await
    }

    async fn list(&self, filter: cri::ContainerFilter) -> Result<Vec<CriContainer>> {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let reply =
            self.client.clone().list_containers(request).await.map_err(call("ListContainers"))?;
        Ok(reply.into_inner().containers.into_iter().map(container).collect())
    }

    /// The pid of a container's first process as containerd sees it; none when it has ended or
    /// containerd does not tell.
    pub async fn pid(&self, container_id: &str) -> Result<Option<i32>> {
        Ok(self.verbose(container_id).await?.and_then(|info| {
            info.get("pid")?.as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
        }))
    }

    /// The address of a sandbox, as kubelet learns it; none if it has none of its own.
    pub async fn address(&self, sandbox_id: &str) -> Result<Option<String>> {
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox_id.to_owned(), verbose: false };
        let reply = self
            .client
            .clone()
            .pod_sandbox_status(request)
            .await
            .map_err(call("PodSandboxStatus"))?
            .into_inner();
        let network = reply.status.and_then(|status| status.network);
        Ok(network.map(|network| network.ip).filter(|ip| !ip.is_empty()))
    }

    /// Runs a program in a container to its end. containerd kills it after `limit` (in whole seconds), and
    /// the call fails. Needs a connection for calls that take longer ([`Cri::connect_for`]).
    pub async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<Ended> {
        let request = cri::ExecSyncRequest {
            container_id: container_id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        };
        let reply =
            self.client.clone().exec_sync(request).await.map_err(call("ExecSync"))?.into_inner();
        let output = [reply.stdout, reply.stderr].concat();
        Ok(Ended { code: reply.exit_code, output: String::from_utf8_lossy(&output).into_owned() })
    }

    /// The extra facts of a container's status.
    async fn verbose(&self, container_id: &str) -> Result<Option<serde_json::Value>> {
        Ok(info_json(&self.container_status(container_id, true).await?.info))
    }

    pub(crate) async fn container_status(
        &self,
        container_id: &str,
        verbose: bool,
    ) -> Result<cri::ContainerStatusResponse> {
        let request =
            cri::ContainerStatusRequest { container_id: container_id.to_owned(), verbose };
        let reply = self.client.clone().container_status(request).await;
        Ok(reply.map_err(call("ContainerStatus"))?.into_inner())
    }
}

pub(crate) fn call(call: &'static str) -> impl FnOnce(tonic::Status) -> Error {
    move |status| Error::Call { call, source: Box::new(status) }
}

fn container(item: cri::Container) -> CriContainer {
    let (name, attempt) =
        item.metadata.map_or_else(Default::default, |metadata| (metadata.name, metadata.attempt));
    let state = match cri::ContainerState::try_from(item.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running,
        Ok(cri::ContainerState::ContainerExited) => State::Exited,
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => State::Unknown,
    };
    CriContainer { id: item.id, name, state, attempt }
}

/// containerd puts everything extra under the one key `info`, as JSON text.
pub(crate) fn info_json(
    info: &std::collections::HashMap<String, String>,
) -> Option<serde_json::Value> {
    serde_json::from_str(info.get("info")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart_and_strange_ones_are_unknown() {
        for (number, state) in
            [(0, State::Created), (1, State::Running), (2, State::Exited), (9, State::Unknown)]
        {
            let item = cri::Container { id: "x".into(), state: number, ..Default::default() };
            assert_eq!(container(item).state, state);
        }
    }
}
