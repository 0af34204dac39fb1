//! What arrives from the source, and where it goes: images to the migration's directory, trees to
//! their places where these exist already, else to files until they do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use transship_host::files;
use transship_host::markers::Waiting;
use transship_transport::{Area, Hello, Refusal, Totals};
use transship_transport::{Handler, TreeTarget};

use crate::holder::Holder;
use crate::pod::{Pod, moving, sandbox_shm};
use crate::{areas, beside, connections};

/// Where a tree stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// It goes straight to its place.
    Arriving,
    /// It goes to a file.
    Spooling(PathBuf),
    /// It is whole, in a file.
    Spooled(PathBuf),
    /// It is where it belongs.
    Applied,
}

/// What has arrived, and what is known of the pod.
#[derive(Debug, Default)]
pub struct State {
    /// The pod's sandbox, once it is there.
    pub sandbox: Option<Pod>,
    /// Containers whose `create` waits.
    pub waiting: BTreeMap<String, Waiting>,
    /// Trees that have at least begun to arrive.
    pub trees: BTreeMap<Area, Tree>,
    /// Containers whose images and pages are complete.
    pub images: BTreeSet<String>,
}

/// The state, shared between the receiving thread and the preparing task.
#[derive(Default)]
pub struct Arrivals {
    state: Mutex<State>,
    /// Something has arrived.
    pub changed: Notify,
}

impl Arrivals {
    /// The state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before the lock is released.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrivals {
    /// For a pod that is made again: everything has arrived before, and lies in files.
    pub fn kept(holder: &Holder) -> anyhow::Result<Self> {
        let trees = kept_trees(holder);
        let mut state = State::default();
        for area in areas::all(&holder.task) {
            let file = trees.join(areas::file_name(&area));
            anyhow::ensure!(file.is_file(), "{area} is not kept here");
            state.trees.insert(area, Tree::Spooled(file));
        }
        if holder.task.part.is_cold() {
            return Ok(Self { state: Mutex::new(state), changed: Notify::new() });
        }
        for container in moving(&holder.task) {
            let images = holder.dir.images(container)?;
            anyhow::ensure!(images.is_dir(), "images of container {container} are not kept here");
            state.images.insert(container.to_owned());
        }
        Ok(Self { state: Mutex::new(state), changed: Notify::new() })
    }
}

/// Where trees wait in files.
fn kept_trees(holder: &Holder) -> PathBuf {
    holder.dir.path().join("trees")
}

impl State {
    /// Where a tree belongs, if that place exists already.
    pub fn place(&self, holder: &Holder, area: &Area) -> Option<PathBuf> {
        match area {
            Area::Rootfs(container) => Some(self.waiting.get(container)?.rootfs.clone()),
            Area::EmptyDir(volume) => {
                let path = holder.task.empty_dir_path(volume).ok()?;
                (!self.waiting.is_empty() && path.is_dir()).then_some(path)
            }
            Area::Shm => sandbox_shm(&holder.layout, &self.sandbox.as_ref()?.sandbox_id),
            Area::Network => {
                let path = holder.dir.path().join(connections::DIR);
                files::make_dir(&path).ok().map(|()| path)
            }
            Area::Beside => beside::place(holder).ok(),
        }
    }
}

/// Receives for one migration.
pub struct Receiver {
    /// The migration.
    pub holder: Arc<Holder>,
    /// What has arrived.
    pub arrivals: Arc<Arrivals>,
}

impl Handler for Receiver {
    fn hello(&mut self, hello: &Hello) -> Result<(), Refusal> {
        let task = &self.holder.task;
        if hello.migration != task.migration.uid {
            return Err(Refusal::new("WrongMigration", "another migration is expected here"));
        }
        if !moving(task).eq(hello.containers.iter().map(String::as_str)) {
            return Err(Refusal::new(
                "WrongContainers",
                format!("the source sends containers {:?}", hello.containers),
            ));
        }
        Ok(())
    }

    fn tree(&mut self, area: &Area) -> Result<TreeTarget, Refusal> {
        if !areas::is_expected(&self.holder.task, area) {
            return Err(Refusal::new("UnexpectedFiles", format!("the pod has no {area}")));
        }
        let mut state = self.arrivals.state();
        // What the pod may be made of again stays in a file.
        if let Some(place) = state.place(&self.holder, area)
            && !self.holder.task.part.is_sequential()
        {
            state.trees.insert(area.clone(), Tree::Arriving);
            return Ok(TreeTarget::Apply(place));
        }
        let spool = kept_trees(&self.holder);
        files::make_dir(&spool).map_err(refuse)?;
        let spool = spool.join(areas::file_name(area));
        state.trees.insert(area.clone(), Tree::Spooling(spool.clone()));
        Ok(TreeTarget::Spool(spool))
    }

    fn tree_done(&mut self, area: &Area) -> Result<(), Refusal> {
        let mut state = self.arrivals.state();
        let now = match state.trees.get(area) {
            Some(Tree::Spooling(path)) => Tree::Spooled(path.clone()),
            _ => Tree::Applied,
        };
        state.trees.insert(area.clone(), now);
        self.arrivals.changed.notify_one();
        Ok(())
    }

    fn images_dir(&mut self, container: &str) -> Result<PathBuf, Refusal> {
        let dir = self.holder.dir.images(container).map_err(refuse)?;
        files::make_dir(&dir).map_err(refuse)?;
        Ok(dir)
    }

    fn container_done(&mut self, container: &str, totals: &Totals) -> Result<(), Refusal> {
        tracing::info!(container, %totals, "received");
        self.arrivals.state().images.insert(container.to_owned());
        self.arrivals.changed.notify_one();
        Ok(())
    }

    fn all_done(&mut self, totals: &Totals) -> Result<(), Refusal> {
        let state = self.arrivals.state();
        let missing =
            areas::all(&self.holder.task).into_iter().find(|area| !state.trees.contains_key(area));
        if let Some(area) = missing {
            return Err(Refusal::new("FilesMissing", format!("{area} was not sent")));
        }
        tracing::info!(%totals, "everything is received");
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn refuse(error: transship_host::Error) -> Refusal {
    Refusal::new("StorageFailed", error.chain())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::areas::tests::task;
    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    fn receiver(root: &std::path::Path) -> Receiver {
        let host = HostRoot::at(root);
        let mut task = task();
        task.kubelet_root = root.join("kubelet");
        let dir = host.migration(&task.migration.uid, Role::Target).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let layout = Layout { sandboxes: root.join("sandboxes"), ..Layout::default() };
        Receiver {
            holder: Arc::new(Holder::new(host, layout, dir, task)),
            arrivals: Arc::default(),
        }
    }

    #[test]
    fn a_source_that_is_not_expected_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut receiver = receiver(root.path());
        let both = vec!["web".to_owned(), "aux".to_owned()];
        receiver.hello(&Hello::new("m-uid", "s", both.clone())).unwrap();
        for hello in [
            Hello::new("other", "s", both),
            Hello::new("m-uid", "s", vec!["web".into()]),
            Hello::new("m-uid", "s", vec!["aux".into(), "web".into()]),
        ] {
            assert!(receiver.hello(&hello).is_err());
        }
    }

    #[test]
    fn a_tree_goes_to_its_place_only_when_the_pod_is_there() {
        let root = tempfile::tempdir().unwrap();
        let mut receiver = receiver(root.path());
        let rootfs = Area::Rootfs("web".into());
        assert!(matches!(receiver.tree(&rootfs).unwrap(), TreeTarget::Spool(_)));
        receiver.tree_done(&rootfs).unwrap();
        assert!(matches!(receiver.arrivals.state().trees[&rootfs], Tree::Spooled(_)));

        let waiting = Waiting {
            container_id: "c".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            runc_root: "/r".into(),
            pid: 1,
            freezer: None,
        };
        receiver.arrivals.state().waiting.insert("aux".into(), waiting);
        let aux = Area::Rootfs("aux".into());
        assert_eq!(receiver.tree(&aux).unwrap(), TreeTarget::Apply("/b/rootfs".into()));
        receiver.tree_done(&aux).unwrap();
        assert_eq!(receiver.arrivals.state().trees[&aux], Tree::Applied);

        let data = Area::EmptyDir("data".into());
        assert!(matches!(receiver.tree(&data).unwrap(), TreeTarget::Spool(_)));
        let place = receiver.holder.task.empty_dir_path("mem").unwrap();
        std::fs::create_dir_all(&place).unwrap();
        let mem = Area::EmptyDir("mem".into());
        assert_eq!(receiver.tree(&mem).unwrap(), TreeTarget::Apply(place));
    }

    #[test]
    fn trees_that_are_foreign_or_missing_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut receiver = receiver(root.path());
        assert!(receiver.tree(&Area::EmptyDir("foreign".into())).is_err());
        assert!(receiver.tree(&Area::Rootfs("setup".into())).is_err());
        let refusal = receiver.all_done(&Totals::default()).unwrap_err();
        assert_eq!(refusal.reason, "FilesMissing");
    }
}
