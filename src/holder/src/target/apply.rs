//! Preparing one container for its restore: its files are where they belong, its images are
//! mended and checked.

use std::path::Path;

use anyhow::{Context, Result};
use transship_criu::{repair, validate};
use transship_host::files;
use transship_host::markers::Ready;
use transship_transport::Area;
use transship_transport::tree::apply_spool;

use super::receive::{Arrivals, Tree};
use super::stand_in;
use crate::areas;
use crate::holder::Holder;
use crate::pod::moving;

/// Brings every tree that waits in a file to its place, where that exists by now.
pub fn apply_trees(holder: &Holder, arrivals: &Arrivals) -> Result<()> {
    let cold = holder.task.part.is_cold();
    loop {
        let next = {
            let state = arrivals.state();
            // What goes to the root of a container that starts afresh is put there by the runtime's wrapper.
            let ours = |area: &Area| !(cold && matches!(area, Area::Rootfs(_)));
            state.trees.iter().find_map(|(area, tree)| match tree {
                Tree::Spooled(spool) if ours(area) => {
                    Some((area.clone(), spool.clone(), state.place(holder, area)?))
                }
                _ => None,
            })
        };
        let Some((area, spool, place)) = next else { return Ok(()) };
        apply_spool(&spool, &place, area.kinds())
            .with_context(|| format!("{area} cannot be applied to {}", place.display()))?;
        if !holder.task.part.is_sequential() {
            // It is only a copy; a leftover goes with the migration's directory.
            let _ = std::fs::remove_file(&spool);
        }
        arrivals.state().trees.insert(area, Tree::Applied);
    }
}

/// The containers that can be restored now and were not told so yet: their `create` waits, their
/// images are complete, their files and those of the whole pod are in place.
pub fn preparable(holder: &Holder, arrivals: &Arrivals, told: &[String]) -> Vec<String> {
    let state = arrivals.state();
    let applied = |area: &Area| state.trees.get(area) == Some(&Tree::Applied);
    if !areas::shared(&holder.task).iter().all(applied) {
        return Vec::new();
    }
    moving(&holder.task)
        .filter(|name| state.waiting.contains_key(*name) && state.images.contains(*name))
        .filter(|name| applied(&Area::Rootfs((*name).to_owned())))
        .filter(|name| !told.iter().any(|told| told == name))
        .map(str::to_owned)
        .collect()
}

/// Mends and checks a container's images and lets its restore go on.
pub fn prepare(holder: &Holder, arrivals: &Arrivals, container: &str) -> Result<()> {
    let waiting = arrivals.state().waiting.get(container).cloned();
    let waiting = waiting.with_context(|| format!("container {container} does not wait"))?;
    let images = holder.dir.images(container)?;
    let work = holder.dir.work(container)?;
    files::make_dir(&work)?;
    stand_in::prepare(holder, &waiting.bundle, &images)?;
    mend(&images, moving(&holder.task).next() == Some(container))?;
    crate::names::mend(holder, container, &images).context("files cannot be renamed")?;
    let ready = Ready { container_id: waiting.container_id, images, work };
    holder.host.pod(&holder.task.pod.uid)?.mark(container, &ready)?;
    tracing::info!(container, "ready to be restored");
    Ok(())
}

/// `first`: the pod's System V objects are created with this container, and with no other.
fn mend(images: &Path, first: bool) -> Result<()> {
    validate::validate_image_set(images).context("the images are refused")?;
    let timers = repair::fix_timerfds(images)?;
    if timers > 0 {
        tracing::info!(timers, "periodic timers armed again");
    }
    if !first {
        repair::drop_ipc_objects(images).context("IPC objects cannot be left out")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::areas::tests::task;
    use std::sync::Arc;
    use transship_host::HostRoot;
    use transship_host::markers::Waiting;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    fn holder(root: &Path) -> Arc<Holder> {
        let host = HostRoot::at(root);
        let task = task();
        let dir = host.migration(&task.migration.uid, Role::Target).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        Arc::new(Holder::new(host, Layout::default(), dir, task))
    }

    #[test]
    fn a_container_is_prepared_when_everything_of_it_and_of_the_pod_is_there() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let arrivals = Arrivals::default();
        let waiting = Waiting {
            container_id: "c".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            runc_root: "/r".into(),
            pid: 1,
            freezer: None,
        };
        let none: [String; 0] = [];
        let steps: [&dyn Fn(); 4] = [
            &|| {
                arrivals.state().waiting.insert("web".into(), waiting.clone());
            },
            &|| {
                arrivals.state().images.insert("web".into());
            },
            &|| {
                arrivals.state().trees.insert(Area::Rootfs("web".into()), Tree::Applied);
            },
            &|| {
                for area in areas::shared(&holder.task) {
                    arrivals.state().trees.insert(area, Tree::Applied);
                }
            },
        ];
        for step in steps {
            assert_eq!(preparable(&holder, &arrivals, &[]), none);
            step();
        }
        assert_eq!(preparable(&holder, &arrivals, &[]), ["web"]);
        assert_eq!(preparable(&holder, &arrivals, &["web".into()]), none);
        arrivals.state().trees.insert(Area::Shm, Tree::Arriving);
        assert_eq!(preparable(&holder, &arrivals, &[]), none);
    }
}
