//! Cold: what moves of an ended pod. Its containers' changes to their images and its emptyDirs go to the target
//! and to the source's own copy; where the pod goes on here, its own copy alone is enough, since its volumes
//! stay where they are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use transship_host::files;
use transship_rpc::Stage;
use transship_runtime::mounts::upper_of;
use transship_transport::tree::{capture_dir, capture_upper};
use transship_transport::{Area, Sender};

use super::keep::Keep;
use super::send::{acknowledge, send_tree};
use crate::durable::durable;
use crate::holder::Holder;
use crate::pod::{Pod, PodContainer, moving};

/// File in the migration's directory that names the containers' writable layers. The mounts that show them go
/// with the containers' tasks.
const UPPERS: &str = "uppers.json";
/// File in the source's own copy that says that it is whole, and on the disk.
const WHOLE: &str = "whole";

type Uppers = BTreeMap<String, PathBuf>;

/// Notes where the containers' changes lie, as long as that can be seen. Where it cannot, nothing stays noted:
/// what an earlier start has left is not a container's own.
pub fn note_uppers(holder: &Holder, containers: &[PodContainer]) -> Result<()> {
    let mountinfo = holder.layout.proc.join("self/mountinfo");
    let mut uppers = uppers(holder)?;
    let mut outcome = Ok(());
    for container in containers {
        match upper_of(&mountinfo, &container.rootfs) {
            Ok(upper) => drop(uppers.insert(container.name.clone(), upper)),
            Err(error) => {
                uppers.remove(&container.name);
                let what = format!("the files of {} are not found", container.name);
                outcome = Err(anyhow::Error::from(error).context(what));
            }
        }
    }
    files::write_json(&holder.dir.path().join(UPPERS), &uppers)?;
    outcome
}

fn uppers(holder: &Holder) -> Result<Uppers> {
    Ok(files::read_json_opt(&holder.dir.path().join(UPPERS))?.unwrap_or_default())
}

fn is_whole(holder: &Holder) -> bool {
    holder.dir.kept().join(WHOLE).exists()
}

/// The data comes to the disk before the word that it is there.
fn mark_whole(holder: &Holder) -> Result<()> {
    durable(&holder.dir)?;
    Ok(files::write_atomic(&holder.dir.kept().join(WHOLE), b"")?)
}

/// Sends and keeps everything of an ended pod. The end of the connection ends it; when this returns nobody
/// writes the source's own copy any more.
pub async fn transfer(holder: &Arc<Holder>, pod: &Pod, sender: &Arc<Sender>) -> Result<()> {
    let (far, pod) = (Arc::clone(sender), pod.clone());
    holder.blocking("files", move |holder| send(holder, &pod, &far)).await?;
    acknowledge(holder, sender).await?;
    holder.blocking("keep", mark_whole).await?;
    holder.board.update(|status| status.stage = status.stage.max(Stage::Sent as i32));
    Ok(())
}

fn send(holder: &Holder, pod: &Pod, sender: &Sender) -> Result<()> {
    let keep = Keep::new(&holder.dir)?;
    crate::logs::collect(holder, pod)?;
    let beside = crate::beside::place(holder)?;
    send_tree(sender, Some(&keep), &Area::Beside, capture_dir, &beside)?;
    for volume in crate::areas::volumes(&holder.task) {
        let path = holder.task.empty_dir_path(&volume)?;
        let summary = send_tree(sender, Some(&keep), &Area::EmptyDir(volume), capture_dir, &path)?;
        tracing::info!(path = %path.display(), ?summary, "sent");
    }
    let uppers = uppers(holder)?;
    for container in moving(&holder.task) {
        let upper = uppers.get(container);
        let upper = upper.with_context(|| format!("the files of {container} are not known"))?;
        let area = Area::Rootfs(container.to_owned());
        let summary = send_tree(sender, Some(&keep), &area, capture_upper, upper)?;
        tracing::info!(path = %upper.display(), ?summary, "sent");
        // It has nothing but files.
        sender.container_done(container)?;
    }
    Ok(())
}

/// Keeps the containers' changes for their start here, if that has not been done.
pub fn keep(holder: &Holder) -> Result<()> {
    if is_whole(holder) {
        return Ok(());
    }
    let keep = Keep::new(&holder.dir)?;
    for (container, upper) in uppers(holder)? {
        if !upper.is_dir() {
            // After a restart of the node, as after any other.
            tracing::error!(container, path = %upper.display(), "its files are gone");
            continue;
        }
        let area = Area::Rootfs(container);
        capture_upper(&upper, &mut keep.tree(&area)?)
            .with_context(|| format!("{area} cannot be kept"))?;
    }
    mark_whole(holder)
}

/// Whether a container has files that it can be started with here.
pub fn has_files(holder: &Holder, container: &str) -> bool {
    is_whole(holder) && holder.dir.rootfs_tree(container).is_ok_and(|tree| tree.is_file())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    use super::*;
    use crate::areas::tests::task;

    fn holder(root: &Path) -> Holder {
        let (host, mut task) = (HostRoot::at(root), task());
        task.role = Role::Source;
        let dir = host.migration(&task.migration.uid, Role::Source).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        Holder::new(host, Layout::default(), dir, task)
    }

    #[test]
    fn changes_are_kept_once_and_those_that_are_gone_are_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let upper = root.path().join("upper");
        std::fs::create_dir(&upper).unwrap();
        std::fs::write(upper.join("data"), "changed").unwrap();
        let noted = Uppers::from([
            ("web".to_owned(), upper.clone()),
            ("aux".to_owned(), root.path().join("gone")),
        ]);
        files::write_json(&holder.dir.path().join(UPPERS), &noted).unwrap();
        assert!(!has_files(&holder, "web"), "half a copy is none");
        keep(&holder).unwrap();
        assert!(has_files(&holder, "web") && !has_files(&holder, "aux"));
        std::fs::remove_dir_all(&upper).unwrap();
        keep(&holder).unwrap();
        let back = root.path().join("back");
        std::fs::create_dir(&back).unwrap();
        holder.dir.write_task(&holder.task).unwrap();
        crate::started::fill(&holder.host, &holder.dir, "web", &back).unwrap();
        assert_eq!(std::fs::read_to_string(back.join("data")).unwrap(), "changed");
    }
}
