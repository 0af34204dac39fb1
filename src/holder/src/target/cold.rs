//! Cold, the target's side. Until the Commit: files are received and kept, in a pod that shows that its sandbox,
//! images and first container can come up there, and in which nothing is created. After it, for the pod that was
//! made again: its volumes get their files while its first container waits; each container's own files are put in
//! by the runtime's wrapper.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use transship_host::files;
use transship_host::markers::{Marker, Waiting};
use transship_protocol::TargetEvent;

use super::receive::{Arrivals, Tree};
use super::{apply, hold};
use crate::areas;
use crate::dirwatch::DirWatch;
use crate::holder::Holder;
use crate::signing::Contact;

/// How often markers are looked at without any event.
const TICK: Duration = Duration::from_millis(100);

/// Starts receiving, or preparing. What comes of it is an event. `stop` ends it without any. As with memory, a
/// target that cannot reach the API server promises nothing.
pub fn start(
    holder: Arc<Holder>,
    mut contact: Contact,
    stop: CancellationToken,
    events: mpsc::Sender<TargetEvent>,
) -> Result<()> {
    let (arrivals, listener) = hold::prepared(&holder)?;
    tokio::spawn(async move {
        let work = async {
            match listener {
                Some(listener) => {
                    let (owner, place) = (Arc::clone(&holder), Arc::clone(&arrivals));
                    let receiving = hold::receive_all(owner, listener, place, stop.clone());
                    tokio::select! {
                        received = receiving => received,
                        noted = note_for_ever(&holder, &arrivals) => noted,
                    }
                }
                None => fill_volumes(&holder, &arrivals).await,
            }
        };
        let all = async {
            work.await?;
            contact.is_made().await;
            anyhow::Ok(())
        };
        hold::conclude(&holder, all, &stop, &events).await;
    });
    Ok(())
}

/// Shows which containers' creation waits, until that fails.
async fn note_for_ever(holder: &Arc<Holder>, arrivals: &Arc<Arrivals>) -> Result<()> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    let watch = watch(holder)?;
    loop {
        hold::note_waiting(holder, &dir, arrivals).await?;
        watch.changed(TICK).await;
    }
}

fn watch(holder: &Holder) -> Result<DirWatch> {
    let watch = DirWatch::new()?;
    let path = holder.host.pod(&holder.task.pod.uid)?.path().join(Waiting::DIR);
    files::make_dir(&path)?;
    watch.add(&path)?;
    Ok(watch)
}

/// Puts the files of the pod's volumes into their places, as soon as these are there.
async fn fill_volumes(holder: &Arc<Holder>, arrivals: &Arc<Arrivals>) -> Result<()> {
    let dir = holder.host.pod(&holder.task.pod.uid)?;
    let watch = watch(holder)?;
    loop {
        hold::note_waiting(holder, &dir, arrivals).await?;
        let (owner, state) = (Arc::clone(holder), Arc::clone(arrivals));
        tokio::task::spawn_blocking(move || apply::apply_trees(&owner, &state)).await??;
        if may_start(holder, arrivals) {
            return Ok(());
        }
        watch.changed(TICK).await;
    }
}

/// Its sandbox and volumes are there, and the volumes have their files.
fn may_start(holder: &Holder, arrivals: &Arrivals) -> bool {
    let state = arrivals.state();
    let applied = |area| state.trees.get(area) == Some(&Tree::Applied);
    !state.waiting.is_empty() && areas::shared(&holder.task).iter().all(applied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::areas::tests::task;
    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_host::task::Part;
    use transship_runtime::Layout;
    use transship_transport::tree::capture_dir;

    #[test]
    fn a_pod_starts_when_its_volumes_have_their_files_and_its_containers_roots_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (host, mut task) = (HostRoot::at(root.path()), task());
        task.kubelet_root = root.path().join("kubelet");
        task.part = Part::ColdAgain;
        let dir = host.migration(&task.migration.uid, Role::Target).unwrap();
        let trees = dir.path().join("trees");
        std::fs::create_dir_all(&trees).unwrap();
        let holder = Holder::new(host, Layout::default(), dir, task);
        let from = root.path().join("from");
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("data"), "moved").unwrap();
        assert!(Arrivals::kept(&holder).is_err(), "nothing is kept");
        for area in areas::all(&holder.task) {
            let tree = std::fs::File::create(trees.join(areas::file_name(&area)));
            capture_dir(&from, &mut tree.unwrap()).unwrap();
        }
        let arrivals = Arrivals::kept(&holder).unwrap();
        apply::apply_trees(&holder, &arrivals).unwrap();
        assert!(!may_start(&holder, &arrivals), "its sandbox is not there");
        let place = root.path().join("rootfs");
        std::fs::create_dir(&place).unwrap();
        let waiting = Waiting {
            container_id: "c".into(),
            bundle: "/b".into(),
            rootfs: place.clone(),
            runc_root: "/r".into(),
            pid: 1,
            freezer: None,
        };
        arrivals.state().waiting.insert("web".into(), waiting);
        for volume in ["data", "mem"] {
            assert!(!may_start(&holder, &arrivals), "{volume} is not there");
            let path = holder.task.empty_dir_path(volume).unwrap();
            std::fs::create_dir_all(&path).unwrap();
            apply::apply_trees(&holder, &arrivals).unwrap();
            assert_eq!(std::fs::read_to_string(path.join("data")).unwrap(), "moved");
        }
        assert!(may_start(&holder, &arrivals));
        assert!(std::fs::read_dir(place).unwrap().next().is_none());
    }
}
