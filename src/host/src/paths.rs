//! Where everything lies on a node. The only module that spells these paths.
//!
//! Names that come from outside (UIDs, container names, addresses) are checked here before they become part
//! of a path, so no other module can be led out of its directory.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A side of a migration; each has its own directory and its own holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The node where the pod runs.
    Source,
    /// The node to which it moves.
    Target,
}

impl Role {
    /// `source` or `target`, as in file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Checks a Kubernetes UID: letters, digits and dashes, 1 to 64 of them.
pub fn check_uid(what: &'static str, uid: &str) -> Result<()> {
    let fine = !uid.is_empty()
        && uid.len() <= 64
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fine {
        return Ok(());
    }
    Err(Error::Invalid {
        what,
        value: shorten(uid),
        rule: "must consist of 1 to 64 letters, digits and dashes",
    })
}

/// Checks a name that becomes one component of a path (a container, a volume, an interface, a node).
pub fn check_name(what: &'static str, name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && name.len() <= 253
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && !name.contains("..");
    if fine {
        return Ok(());
    }
    Err(Error::Invalid {
        what,
        value: shorten(name),
        rule: "must consist of 1 to 253 letters, digits, dashes, dots and underscores, without a leading dot or two dots in a row",
    })
}

/// At most 80 characters of a value, for an error message.
fn shorten(value: &str) -> String {
    value.chars().take(80).collect()
}

/// The root under which a node's files are seen: `/` on the host, `/host` in the agent's pod, a temporary
/// directory in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoot(PathBuf);

impl Default for HostRoot {
    fn default() -> Self {
        Self::host()
    }
}

impl HostRoot {
    /// The host itself.
    pub fn host() -> Self {
        Self(PathBuf::from("/"))
    }

    /// The host as seen under `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The directory that stands for `/`.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// `path`, an absolute path on the host, as seen from here.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// `/opt/transship`: everything installed.
    pub fn opt(&self) -> PathBuf {
        self.join("/opt/transship")
    }

    /// An installed library.
    pub fn lib(&self, library: &str) -> PathBuf {
        self.opt().join("lib").join(library)
    }

    /// An installed program.
    pub fn bin(&self, program: &str) -> PathBuf {
        self.opt().join("bin").join(program)
    }

    /// The path of the runc that the wrapper stands in front of, where containerd was configured with
    /// another than the one on its PATH.
    pub fn runc_path_file(&self) -> PathBuf {
        self.opt().join("runc.path")
    }

    /// `/var/lib/transship`: everything that outlives a process.
    pub fn state(&self) -> PathBuf {
        self.join("/var/lib/transship")
    }

    /// The directory of all host records.
    pub fn pods(&self) -> PathBuf {
        self.state().join("pods")
    }

    /// The directory of one pod's record.
    pub fn pod(&self, uid: &str) -> Result<PodDir> {
        check_uid("pod UID", uid)?;
        Ok(PodDir(self.pods().join(uid)))
    }

    /// The directory of all migrations that this node has a part in.
    pub fn migrations(&self) -> PathBuf {
        self.state().join("migrations")
    }

    /// The directory of one side of a migration.
    pub fn migration(&self, uid: &str, role: Role) -> Result<MigrationDir> {
        check_uid("migration UID", uid)?;
        Ok(MigrationDir(self.migrations().join(format!("{uid}.{role}"))))
    }

    /// The directory of addresses lent to pods elsewhere.
    pub fn leases(&self) -> PathBuf {
        self.state().join("leases")
    }

    /// `/run/transship`: everything that a reboot may forget.
    pub fn run(&self) -> PathBuf {
        self.join("/run/transship")
    }

    /// What holders need to read the API: `server`, `ca.crt`, `token`, `namespace`.
    pub fn api(&self) -> PathBuf {
        self.run().join("api")
    }

    /// The sockets of a holder.
    pub fn holder(&self, uid: &str, role: Role) -> Result<HolderRun> {
        check_uid("migration UID", uid)?;
        Ok(HolderRun(self.run().join("holders").join(format!("{uid}.{role}"))))
    }

    /// The directory of all holders' sockets.
    pub fn holders(&self) -> PathBuf {
        self.run().join("holders")
    }

    /// The agent's socket to which a source holder connects for its data.
    pub fn agent_data_socket(&self) -> PathBuf {
        self.run().join("agent-data.sock")
    }
}

/// One pod's directory under [`HostRoot::pods`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The record.
    pub fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// The ticket with which `container` may be restored once.
    pub fn ticket(&self, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        Ok(self.0.join("tickets").join(container))
    }

    /// Where a used ticket goes.
    pub fn consumed(&self, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        Ok(self.0.join("consumed").join(container))
    }

    /// A marker file; `kind` is the directory.
    pub fn marker(&self, kind: &str, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        Ok(self.0.join(kind).join(format!("{container}.json")))
    }

    /// The CRIU options file of `container`'s restore, written by the wrapper.
    pub fn criu_options(&self, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        Ok(self.0.join("criu").join(format!("{container}.conf")))
    }
}

impl PodDir {
    /// What the action script has to set again after `container`'s restore.
    pub fn lifted_limits(&self, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        Ok(self.0.join("criu").join(format!("{container}.limits")))
    }
}

/// One side's directory under [`HostRoot::migrations`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationDir(PathBuf);

impl MigrationDir {
    /// A directory found by listing; its name is checked with [`MigrationDir::identify`].
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The migration's UID and the role, from the directory's name.
    pub fn identify(&self) -> Option<(&str, Role)> {
        let (uid, role) = self.0.file_name()?.to_str()?.rsplit_once('.')?;
        check_uid("migration UID", uid).ok()?;
        let role = match role {
            "source" => Role::Source,
            "target" => Role::Target,
            _ => return None,
        };
        Some((uid, role))
    }

    /// What the holder has to do.
    pub fn task(&self) -> PathBuf {
        self.0.join("task.json")
    }

    /// The journal.
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    /// Target: the received CRIU images of `container`.
    pub fn images(&self, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        Ok(self.0.join("images").join(container))
    }

    /// The working directory of CRIU for `container`.
    pub fn work(&self, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        Ok(self.0.join("work").join(container))
    }

    /// The source's own copy of the state, in a sequential hand-over.
    pub fn kept(&self) -> PathBuf {
        self.0.join("kept")
    }

    /// The files of a container as they wait to be put into its root, on this side.
    pub fn rootfs_tree(&self, container: &str) -> Result<PathBuf> {
        check_name("container name", container)?;
        let trees = match self.identify() {
            Some((_, Role::Source)) => self.kept().join("trees"),
            _ => self.0.join("trees"),
        };
        Ok(trees.join(format!("rootfs.{container}")))
    }

    /// Marker: the Migration has vanished; its content is for how many seconds that has been seen.
    pub fn vanished(&self) -> PathBuf {
        self.0.join("vanished")
    }

    /// Marker: finished, nothing to supervise.
    pub fn closed(&self) -> PathBuf {
        self.0.join("closed")
    }
}

/// One holder's directory under [`HostRoot::holders`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderRun(PathBuf);

impl HolderRun {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The socket for commands and status.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// Target: the socket for the source's data.
    pub fn data(&self) -> PathBuf {
        self.0.join("data.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_derived_from_the_root() {
        let host = HostRoot::at("/host");
        assert_eq!(
            host.pod("0a-1").unwrap().record(),
            Path::new("/host/var/lib/transship/pods/0a-1/record.json")
        );
        assert_eq!(host.bin("runc"), Path::new("/host/opt/transship/bin/runc"));
        assert_eq!(
            host.migration("m-1", Role::Target).unwrap().images("web").unwrap(),
            Path::new("/host/var/lib/transship/migrations/m-1.target/images/web")
        );
        let tree = |role| host.migration("m-1", role).unwrap().rootfs_tree("web").unwrap();
        assert!(tree(Role::Target).ends_with("m-1.target/trees/rootfs.web"));
        assert!(tree(Role::Source).ends_with("m-1.source/kept/trees/rootfs.web"));
        assert_eq!(HostRoot::host().join("/a/b"), Path::new("/a/b"));
    }

    #[test]
    fn a_uid_or_name_cannot_leave_its_directory() {
        let host = HostRoot::host();
        for uid in ["", "..", "a/b", "a.b", "x\0", &"a".repeat(65)] {
            assert!(host.pod(uid).is_err(), "{uid:?}");
            assert!(host.migration(uid, Role::Source).is_err(), "{uid:?}");
        }
        let pod = host.pod("a").unwrap();
        for name in ["", "..", ".", "a/b", ".hidden", "a..b", "a b", "ä"] {
            assert!(pod.ticket(name).is_err(), "{name:?}");
            assert!(pod.marker("held", name).is_err(), "{name:?}");
        }
        assert!(pod.ticket("web-0.main_1").is_ok());
    }

    #[test]
    fn a_migration_directory_tells_its_uid_and_role() {
        let dir = MigrationDir::at("/x/2f-1.target");
        assert_eq!(dir.identify(), Some(("2f-1", Role::Target)));
        assert_eq!(MigrationDir::at("/x/2f-1.other").identify(), None);
        assert_eq!(MigrationDir::at("/x/task").identify(), None);
        assert_eq!(MigrationDir::at("/x/a b.source").identify(), None);
    }
}
