//! What containerd says about itself and about all that runs on the node: version, effective
//! configuration, sandboxes of all pods, the image of a container.

use std::path::Path;

use k8s_cri::v1 as cri;
use serde_json::Value;

use crate::Result;
use crate::cri::{Cri, POD_UID, call};

/// Name and version of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Such as containerd.
    pub name: String,
    /// Such as 2.1.9, without a leading `v`.
    pub version: String,
}

/// The runtime's own view of its health, and the configuration in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Whether it can run containers.
    pub ready: bool,
    /// Why not, when it is not.
    pub message: String,
    /// The CRI plugin's configuration as it is in force, null where the runtime does not tell.
    pub config: Value,
}

/// A sandbox of some pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSandbox {
    /// The runtime's id of it.
    pub id: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Whether it is ready.
    pub ready: bool,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerImage {
    /// As written in the pod.
    pub image: String,
    /// By digest (`name@sha256:…`) where the runtime knows one, else the image's id.
    pub digest: String,
    /// Digest of its configuration; empty where the runtime does not tell.
    pub id: String,
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeImage {
    /// Digest of its configuration.
    pub id: String,
    /// Its names, with a tag or a digest.
    pub names: Vec<String>,
}

impl Cri {
    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<Version> {
        let request = cri::VersionRequest { version: "v1".into() };
        let reply =
            self.client.clone().version(request).await.map_err(call("Version"))?.into_inner();
        let version = reply.runtime_version.trim_start_matches('v').to_owned();
        Ok(Version { name: reply.runtime_name, version })
    }

    /// Health and configuration of the runtime.
    pub async fn status(&self) -> Result<Status> {
        let request = cri::StatusRequest { verbose: true };
        let reply = self.client.clone().status(request).await.map_err(call("Status"))?.into_inner();
        let conditions = reply.status.map(|status| status.conditions).unwrap_or_default();
        let runtime = conditions.into_iter().find(|condition| condition.r#type == "RuntimeReady");
        let config = reply
            .info
            .get("config")
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(Value::Null);
        Ok(Status {
            ready: runtime.as_ref().is_some_and(|condition| condition.status),
            message: runtime.map(|condition| condition.message).unwrap_or_default(),
            config,
        })
    }

    /// Name of what keeps the files of containers of the default runtime, such as overlayfs; none where
    /// the runtime does not tell.
    pub async fn snapshotter(&self) -> Result<Option<String>> {
        if let Some(name) = configured_snapshotter(&self.status().await?.config) {
            return Ok(Some(name.to_owned()));
        }
        let request = cri::ImageFsInfoRequest {};
        let reply =
            self.images.clone().image_fs_info(request).await.map_err(call("ImageFsInfo"))?;
        // The default's comes first: kubelet looks at that one alone.
        let first = reply.into_inner().image_filesystems.into_iter().next();
        let directory = first.and_then(|usage| usage.fs_id).map(|id| id.mountpoint);
        Ok(directory.as_deref().and_then(snapshotter_of).map(str::to_owned))
    }

    /// Every sandbox on the node, ready or not.
    pub async fn all_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        let request = cri::ListPodSandboxRequest { filter: None };
        let reply =
            self.client.clone().list_pod_sandbox(request).await.map_err(call("ListPodSandbox"))?;
        Ok(reply.into_inner().items.into_iter().map(sandbox).collect())
    }

    /// The image of a container.
    pub async fn image(&self, container_id: &str) -> Result<ContainerImage> {
        let request =
            cri::ContainerStatusRequest { container_id: container_id.to_owned(), verbose: false };
        let reply = self
            .client
            .clone()
            .container_status(request)
            .await
            .map_err(call("ContainerStatus"))?
            .into_inner();
        let status = reply.status.unwrap_or_default();
        let image = status.image.unwrap_or_default();
        let named = if image.user_specified_image.is_empty() {
            image.image
        } else {
            image.user_specified_image
        };
        Ok(ContainerImage { image: named, digest: status.image_ref, id: status.image_id })
    }

    /// Every image on the node.
    pub async fn node_images(&self) -> Result<Vec<NodeImage>> {
        let request = cri::ListImagesRequest { filter: None };
        let reply = self.images.clone().list_images(request).await.map_err(call("ListImages"))?;
        let images = reply.into_inner().images.into_iter();
        Ok(images
            .map(|image| NodeImage {
                id: image.id,
                names: [image.repo_tags, image.repo_digests].concat(),
            })
            .collect())
    }
}

/// The default runtime's part of the CRI plugin's configuration ([`Status::config`]); none where that is not
/// told.
pub fn default_runtime(config: &Value) -> Option<&Value> {
    const NAMES: [&str; 2] = ["defaultRuntimeName", "default_runtime_name"];
    let containerd = config.get("containerd")?;
    let name = NAMES.into_iter().find_map(|name| containerd.get(name))?.as_str()?;
    containerd.get("runtimes")?.get(name)
}

/// As the CRI plugin's configuration has it: that of the default runtime goes before that of all. Since
/// containerd 2 the latter belongs to the images, of whose configuration nothing is told.
fn configured_snapshotter(config: &Value) -> Option<&str> {
    let of_runtime = default_runtime(config).and_then(|runtime| runtime.get("snapshotter"));
    let of_all = config.get("containerd")?.get("snapshotter");
    let configured = of_runtime.into_iter().chain(of_all);
    configured.filter_map(Value::as_str).find(|name| !name.is_empty())
}

/// By containerd's name of the directory where a snapshotter keeps everything. One that was told to use
/// another directory is not known by it.
fn snapshotter_of(directory: &str) -> Option<&str> {
    Path::new(directory).file_name()?.to_str()?.strip_prefix("io.containerd.snapshotter.v1.")
}

fn sandbox(item: cri::PodSandbox) -> PodSandbox {
    let metadata = item.metadata.unwrap_or_default();
    let pod_uid = item.labels.get(POD_UID).cloned().unwrap_or(metadata.uid);
    PodSandbox {
        id: item.id,
        pod_uid,
        namespace: metadata.namespace,
        name: metadata.name,
        ready: item.state == cri::PodSandboxState::SandboxReady as i32,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_snapshotter_of_the_default_runtime_is_found() {
        let config = |of_runtime: &str, of_all: Value| {
            json!({"containerd": {"snapshotter": of_all, "defaultRuntimeName": "runc",
                "runtimes": {"runc": {"snapshotter": of_runtime}, "kata": {"snapshotter": "blockfile"}}}})
        };
        for (config, wanted) in [
            (config("", json!("overlayfs")), Some("overlayfs")),
            (config("zfs", json!("overlayfs")), Some("zfs")),
            (config("", Value::Null), None),
            (json!({"containerd": {"snapshotter": "native"}}), Some("native")),
            (Value::Null, None),
        ] {
            assert_eq!(configured_snapshotter(&config), wanted, "{config}");
        }
        for (directory, wanted) in [
            ("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs", Some("overlayfs")),
            ("/data/containerd/io.containerd.snapshotter.v1.btrfs/", Some("btrfs")),
            ("/mnt/snapshots", None),
            ("", None),
        ] {
            assert_eq!(snapshotter_of(directory), wanted, "{directory}");
        }
    }

    #[test]
    fn a_sandbox_belongs_to_the_pod_of_its_label() {
        let metadata = cri::PodSandboxMetadata {
            name: "web".into(),
            namespace: "shop".into(),
            uid: "u-meta".into(),
            attempt: 0,
        };
        let mut item = cri::PodSandbox {
            id: "s".into(),
            metadata: Some(metadata),
            state: cri::PodSandboxState::SandboxReady as i32,
            ..Default::default()
        };
        assert_eq!(sandbox(item.clone()).pod_uid, "u-meta");
        item.labels.insert(POD_UID.into(), "u-label".into());
        let found = sandbox(item);
        assert_eq!((found.pod_uid.as_str(), found.ready), ("u-label", true));
    }
}
