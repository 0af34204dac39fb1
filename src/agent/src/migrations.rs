//! The migrations in which this node has a part, by their directories: what their holders wrote
//! down last. Reads only; the directories belong to the holders.

use std::path::PathBuf;
use std::time::Duration;

use transship_api::conditions::bounded;
use transship_api::node::{ActiveMigration, HolderState, Role as ApiRole};
use transship_host::HostRoot;
use transship_host::files;
use transship_host::paths::{MigrationDir, Role};
use transship_host::task::HolderTask;
use transship_rpc::{SideStatus, Stage};

use crate::kept::kept_for;

/// One side of a migration on this node.
#[derive(Debug, Clone)]
pub struct Side {
    /// Its directory.
    pub dir: MigrationDir,
    /// UID of the Migration.
    pub uid: String,
    /// The side.
    pub role: Role,
    /// What the holder has to do; none while the agent writes it, or if it is damaged.
    pub task: Option<HolderTask>,
    /// The holder's last word, or its beginning.
    pub status: SideStatus,
    /// Whether nothing is left to do.
    pub closed: bool,
    /// For how long its Migration has been seen to have vanished.
    pub vanished: Option<Duration>,
}

impl Side {
    /// Reads one directory; none if its name is not that of a migration.
    pub fn read(dir: MigrationDir) -> Option<Self> {
        let (uid, role) = dir.identify().map(|(uid, role)| (uid.to_owned(), role))?;
        let task = dir.read_task().unwrap_or_else(|error| {
            tracing::warn!(migration = uid, error = error.chain(), "a task cannot be read");
            None
        });
        let closed = dir.is_closed().unwrap_or(false);
        let mut status: SideStatus =
            files::read_json(&dir.path().join("status.json")).unwrap_or_default();
        // What has no journal and is closed is a further life that is being begun: its word was another's.
        let is_half_begun = closed && !dir.journal().exists();
        status.migration_uid = uid.clone();
        status.role = rpc_role(role) as i32;
        if let (true, Some(task)) = (status.pod_uid.is_empty() && !is_half_begun, &task) {
            status.pod_uid = task.pod.uid.clone();
        }
        if status.stage == Stage::Unspecified as i32 {
            status.stage = Stage::Started as i32;
        }
        status.closed |= closed;
        let vanished = std::fs::read(dir.vanished()).ok().map(|marker| kept_for(&marker));
        Some(Self { dir, uid, role, task, status, closed, vanished })
    }

    /// Where its holder stands, as it wrote it down last.
    pub fn state(&self) -> HolderState {
        serde_json::from_value(self.status.holder_state.clone().into())
            .unwrap_or(HolderState::Preparing)
    }

    /// Its pod and its Migration, for people.
    pub fn names(&self) -> [String; 2] {
        let task = self.task.as_ref();
        [task.map(|t| &t.pod), task.map(|t| &t.migration)]
            .map(|object| object.map_or("?".into(), |o| format!("{}/{}", o.namespace, o.name)))
    }

    /// Its directory as the node itself sees it, for people.
    pub fn dir_on_host(&self) -> PathBuf {
        HostRoot::host().migrations().join(format!("{}.{}", self.uid, self.role))
    }

    /// As published in the Node's status.
    pub fn published(&self) -> ActiveMigration {
        let status = &self.status;
        let time = |micros: i64| {
            (micros > 0)
                .then(|| jiff::Timestamp::from_microsecond(micros).ok())
                .flatten()
                .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime)
        };
        let migration = self.task.as_ref().map(|task| &task.migration);
        ActiveMigration {
            migration_uid: self.uid.clone(),
            migration: migration.map(|m| format!("{}/{}", m.namespace, m.name)).unwrap_or_default(),
            role: match self.role {
                Role::Source => ApiRole::Source,
                Role::Target => ApiRole::Target,
            },
            pod_uid: status.pod_uid.clone(),
            state: self.state(),
            voted: status.voted,
            resumed_at: match self.role {
                Role::Target => time(status.thawed_at_unix_micros),
                Role::Source => None,
            },
            since: time(status.since_unix_micros),
            message: bounded(&status.message, 1024),
        }
    }
}

/// The role as it travels.
pub fn rpc_role(role: Role) -> transship_rpc::Role {
    match role {
        Role::Source => transship_rpc::Role::Source,
        Role::Target => transship_rpc::Role::Target,
    }
}

/// The role of a call; none if it names none.
pub fn host_role(role: i32) -> Option<Role> {
    match transship_rpc::Role::try_from(role) {
        Ok(transship_rpc::Role::Source) => Some(Role::Source),
        Ok(transship_rpc::Role::Target) => Some(Role::Target),
        Ok(transship_rpc::Role::Unspecified) | Err(_) => None,
    }
}

/// All sides on this node, sorted by directory. A list that cannot be read is an error: it must
/// not be taken for an empty one.
pub fn list(host: &HostRoot) -> transship_host::Result<Vec<Side>> {
    let dir = host.migrations();
    let mut names = files::list(&dir)?;
    names.sort();
    Ok(names.into_iter().filter_map(|name| Side::read(MigrationDir::at(dir.join(name)))).collect())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use transship_host::record::{ContainerKind, ContainerRef};
    use transship_host::task::{ObjectRef, Peer, TASK_VERSION};

    /// A task for tests.
    pub fn task(uid: &str, role: Role) -> HolderTask {
        HolderTask {
            version: TASK_VERSION,
            migration: ObjectRef { namespace: "shop".into(), name: "move".into(), uid: uid.into() },
            role,
            node: "node-a".into(),
            pod: ObjectRef { namespace: "shop".into(), name: "web-7".into(), uid: "p-1".into() },
            peer: Peer { node: "node-b".into(), data_address: "10.250.0.12:9441".into() },
            containers: vec![
                ContainerRef { name: "setup".into(), kind: ContainerKind::Init },
                ContainerRef { name: "web".into(), kind: ContainerKind::App },
            ],
            empty_dirs: Vec::new(),
            sandbox: None,
            part: Default::default(),
            stand_ins: Vec::new(),
            hooks: Vec::new(),
            ending: None,
            network: None,
            host_name: None,
            max_frozen_millis: 8000,
            bandwidth_limit: 0,
            timeout_at_unix_millis: 1,
            kubelet_root: "/var/lib/kubelet".into(),
        }
    }

    #[test]
    fn a_side_says_what_its_holder_wrote_last() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        assert!(list(&host).unwrap().is_empty());
        let migration = host.migration("m-1", Role::Target).unwrap();
        migration.write_task(&task("m-1", Role::Target)).unwrap();
        let side = list(&host).unwrap().remove(0);
        let published = side.published();
        assert_eq!((published.state, published.role), (HolderState::Preparing, ApiRole::Target));
        assert_eq!(published.migration, "shop/move");
        assert_eq!(published.pod_uid, "p-1");
        let said = SideStatus {
            holder_state: "Resumed".into(),
            voted: true,
            thawed_at_unix_micros: 1_700_000_000_000_000,
            pod_uid: "p-1".into(),
            ..SideStatus::default()
        };
        files::write_json(&migration.path().join("status.json"), &said).unwrap();
        migration.close().unwrap();
        let side = list(&host).unwrap().remove(0);
        assert!(side.closed && side.status.closed);
        let published = side.published();
        assert_eq!(published.state, HolderState::Resumed);
        assert!(published.voted && published.resumed_at.is_some());
    }

    #[test]
    fn strange_directories_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        std::fs::create_dir_all(host.migrations().join("x y.source")).unwrap();
        std::fs::create_dir_all(host.migrations().join("m-2.source")).unwrap();
        let sides = list(&host).unwrap();
        assert_eq!(sides.len(), 1);
        assert_eq!(sides[0].published().state, HolderState::Preparing);
    }
}
