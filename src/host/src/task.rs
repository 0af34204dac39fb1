//! What a holder has to do: written once by the agent on the operator's word, read by the holder whenever it
//! starts. The operator's `StartRequest.task_json` is this type.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ending::Ending;
use crate::error::{Error, Result};
use crate::files;
use crate::hook::Hook;
use crate::paths::{MigrationDir, Role, check_name, check_uid};
use crate::record::{ContainerKind, ContainerRef, RecordNetwork};

pub use transship_protocol::Part;

/// The version that this program writes and understands.
pub const TASK_VERSION: u32 = 1;

/// An object of the API, by all three names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// The node on the other side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its name in the cluster.
    pub node: String,
    /// `IP:PORT` of its agent's data port.
    pub data_address: String,
}

/// An emptyDir volume of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyDir {
    /// The volume's name.
    pub name: String,
    /// `""` (disk), `Memory` or `HugePages…`, as in the pod.
    #[serde(default)]
    pub medium: String,
}

/// `task.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HolderTask {
    /// Format version, [`TASK_VERSION`].
    pub version: u32,
    /// The Migration.
    pub migration: ObjectRef,
    /// This side.
    pub role: Role,
    /// This node's name.
    pub node: String,
    /// The pod on this side.
    pub pod: ObjectRef,
    /// The other side.
    pub peer: Peer,
    /// The pod's containers, in kubelet's starting order.
    pub containers: Vec<ContainerRef>,
    /// The pod's emptyDir volumes.
    #[serde(default)]
    pub empty_dirs: Vec<EmptyDir>,
    /// Source: the sandbox that was checked (only compared, and from the status). Where there is another one, nothing was
    /// checked of the pod as it is, and its memory is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Which part this side plays.
    #[serde(default)]
    pub part: Part,
    /// Persistent volumes, in whose place a restore on trial has an empty directory.
    #[serde(default)]
    pub stand_ins: Vec<String>,
    /// postStart hooks that a target's holder runs once the pod is an ordinary one, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Cold: how the source's containers are ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// The address that moves along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<RecordNetwork>,
    /// The host name that the application had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// How long either side's containers may stay frozen before it has voted, in milliseconds.
    pub max_frozen_millis: u64,
    /// In bytes a second; 0 is none.
    #[serde(default)]
    pub bandwidth_limit: u64,
    /// When the whole migration is given up before the vote, in milliseconds since 1970.
    pub timeout_at_unix_millis: u64,
    /// Where kubelet keeps pods' volumes.
    #[serde(default = "default_kubelet_root")]
    pub kubelet_root: PathBuf,
}

fn default_kubelet_root() -> PathBuf {
    PathBuf::from("/var/lib/kubelet")
}

impl HolderTask {
    /// Parses and checks a task.
    pub fn from_json(text: &str) -> Result<Self> {
        let task: Self = serde_json::from_str(text)
            .map_err(|source| Error::Damaged { path: PathBuf::from("task"), source })?;
        task.validate()?;
        Ok(task)
    }

    /// Checks everything that becomes a path or an address, and what must not be empty.
    pub fn validate(&self) -> Result<()> {
        if self.version != TASK_VERSION {
            return Err(Error::UnknownVersion {
                path: PathBuf::from("task.json"),
                found: self.version,
                known: TASK_VERSION,
            });
        }
        check_uid("migration.uid", &self.migration.uid)?;
        check_name("migration.name", &self.migration.name)?;
        check_name("migration.namespace", &self.migration.namespace)?;
        check_uid("pod.uid", &self.pod.uid)?;
        check_name("pod.name", &self.pod.name)?;
        check_name("pod.namespace", &self.pod.namespace)?;
        check_name("node", &self.node)?;
        check_name("peer.node", &self.peer.node)?;
        if self.peer.data_address.parse::<std::net::SocketAddr>().is_err() {
            return Err(invalid("peer.dataAddress", &self.peer.data_address, "must be IP:PORT"));
        }
        if self.containers.is_empty() {
            return Err(invalid("containers", "", "must name at least one container"));
        }
        for (index, container) in self.containers.iter().enumerate() {
            check_name("container name", &container.name)?;
            if self.containers[..index].iter().any(|other| other.name == container.name) {
                return Err(invalid("container name", &container.name, "must not occur twice"));
            }
        }
        for volume in &self.empty_dirs {
            check_name("emptyDir name", &volume.name)?;
        }
        for volume in &self.stand_ins {
            check_name("stand-in name", volume)?;
        }
        for (index, hook) in self.hooks.iter().enumerate() {
            hook.validate()?;
            let name = &hook.container;
            let moves = |c: &ContainerRef| c.name == *name && c.kind != ContainerKind::Init;
            if !self.containers.iter().any(moves) {
                return Err(invalid("hook", name, "must be of a container that moves"));
            }
            if self.hooks[..index].iter().any(|other| other.container == *name) {
                return Err(invalid("hook", name, "must not occur twice"));
            }
        }
        if let Some(ending) = &self.ending {
            ending.validate()?;
        }
        if let Some(network) = &self.network {
            network.validate()?;
        }
        if let Some(name) = &self.host_name {
            check_name("hostName", name)?;
        }
        let root = &self.kubelet_root;
        if !root.is_absolute()
            || root.components().any(|c| matches!(c, std::path::Component::ParentDir))
        {
            return Err(invalid(
                "kubeletRoot",
                &root.to_string_lossy(),
                "must be an absolute path without `..`",
            ));
        }
        Ok(())
    }

    /// The directory of an emptyDir volume of this side's pod.
    pub fn empty_dir_path(&self, name: &str) -> Result<PathBuf> {
        check_name("emptyDir name", name)?;
        check_uid("pod.uid", &self.pod.uid)?;
        Ok(self
            .kubelet_root
            .join("pods")
            .join(&self.pod.uid)
            .join("volumes/kubernetes.io~empty-dir")
            .join(name))
    }
}

fn invalid(what: &'static str, value: &str, rule: &'static str) -> Error {
    Error::Invalid { what, value: value.chars().take(80).collect(), rule }
}

impl MigrationDir {
    /// Reads and checks the task.
    pub fn read_task(&self) -> Result<Option<HolderTask>> {
        let Some(task) = files::read_json_opt::<HolderTask>(&self.task())? else {
            return Ok(None);
        };
        task.validate()?;
        Ok(Some(task))
    }

    /// Checks and writes the task durably.
    pub fn write_task(&self, task: &HolderTask) -> Result<()> {
        task.validate()?;
        files::write_json(&self.task(), task)
    }

    /// Marks the migration as finished on this side.
    pub fn close(&self) -> Result<()> {
        files::write_atomic(&self.closed(), b"")
    }

    /// Whether it is finished on this side.
    pub fn is_closed(&self) -> Result<bool> {
        let path = self.closed();
        path.try_exists().map_err(Error::io("look at", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostRoot;
    use crate::hook::HookAction;
    use crate::record::NetworkMode;

    /// Makes a task wrong in one way.
    type Change = fn(&mut HolderTask);

    fn task() -> HolderTask {
        HolderTask {
            version: TASK_VERSION,
            migration: ObjectRef {
                namespace: "shop".into(),
                name: "move".into(),
                uid: "m-1".into(),
            },
            role: Role::Source,
            node: "node-a".into(),
            pod: ObjectRef { namespace: "shop".into(), name: "web-7".into(), uid: "p-1".into() },
            peer: Peer { node: "node-b".into(), data_address: "10.250.0.12:9441".into() },
            containers: vec![ContainerRef { name: "web".into(), kind: ContainerKind::App }],
            empty_dirs: vec![EmptyDir { name: "cache".into(), medium: String::new() }],
            sandbox: Some("s-1".into()),
            part: Default::default(),
            stand_ins: Vec::new(),
            hooks: vec![Hook {
                container: "web".into(),
                action: HookAction::Exec { command: vec!["x".into()] },
            }],
            ending: None,
            network: Some(RecordNetwork {
                mode: NetworkMode::Preserve,
                ip: "10.244.1.5".into(),
                other_ips: vec![],
                mac: "02:00:00:00:00:05".into(),
                interface: "eth0".into(),
                aliases: vec![],
            }),
            host_name: Some("web-7".into()),
            max_frozen_millis: 8000,
            bandwidth_limit: 0,
            timeout_at_unix_millis: 1,
            kubelet_root: "/var/lib/kubelet".into(),
        }
    }

    #[test]
    fn a_task_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let migration = HostRoot::at(dir.path()).migration("m-1", Role::Source).unwrap();
        assert_eq!(migration.read_task().unwrap(), None);
        migration.write_task(&task()).unwrap();
        assert_eq!(migration.read_task().unwrap(), Some(task()));
        assert!(!migration.is_closed().unwrap());
        migration.close().unwrap();
        assert!(migration.is_closed().unwrap());
        let text = serde_json::to_string(&task()).unwrap();
        assert_eq!(HolderTask::from_json(&text).unwrap(), task());
    }

    #[test]
    fn each_bad_field_is_refused_and_named() {
        let cases: [(Change, &str); 15] = [
            (|t| t.version = 2, "version 2"),
            (|t| t.migration.uid = "../m".into(), "migration.uid"),
            (|t| t.pod.uid = String::new(), "pod.uid"),
            (|t| t.pod.name = "a/b".into(), "pod.name"),
            (|t| t.peer.node = "..".into(), "peer.node"),
            (|t| t.peer.data_address = "node-b:9441".into(), "peer.dataAddress"),
            (|t| t.containers.clear(), "containers"),
            (|t| t.containers.push(t.containers[0].clone()), "twice"),
            (|t| t.empty_dirs[0].name = "../../etc".into(), "emptyDir name"),
            (|t| t.hooks[0].container = "other".into(), "container that moves"),
            (|t| t.hooks.push(t.hooks[0].clone()), "twice"),
            (|t| t.hooks[0].action = HookAction::Exec { command: vec![] }, "command"),
            (|t| t.network.as_mut().unwrap().mac = "x".into(), "network mac"),
            (|t| t.host_name = Some("a b".into()), "hostName"),
            (|t| t.kubelet_root = "/var/../etc".into(), "kubeletRoot"),
        ];
        for (change, expected) in cases {
            let mut bad = task();
            change(&mut bad);
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should speak of {expected}");
        }
    }

    #[test]
    fn an_empty_dir_lies_where_kubelet_keeps_it() {
        assert_eq!(
            task().empty_dir_path("cache").unwrap(),
            PathBuf::from("/var/lib/kubelet/pods/p-1/volumes/kubernetes.io~empty-dir/cache")
        );
        assert!(task().empty_dir_path("../x").is_err());
    }
}
