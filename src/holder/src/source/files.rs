//! Cold: what moves of an ended pod. Its containers' changes to their images and its emptyDirs go to the target
//! and to the source's own copy; where the pod goes on here, its own copy alone is enough, since its volumes
//! stay where they are.
//!
//! The runtime removes a container's writable layer with the container. It is kept from that while containers have
//! ended, but for the death of a shim; so a copy counts only when its layer was there all the while.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use transship_host::files;
use transship_host::paths::MigrationDir;
use transship_rpc::Stage;
use transship_runtime::mounts::upper_of;
use transship_transport::tree::{TreeSummary, capture_dir, capture_upper, measure_upper};
use transship_transport::{Area, Sender};

use super::keep::Keep;
use super::send::{acknowledge, send_tree};
use crate::durable::durable;
use crate::holder::Holder;
use crate::pod::{Pod, PodContainer, moving};

/// File in the migration's directory that names the containers' writable layers. The mounts that show them go
/// with the containers' tasks.
const UPPERS: &str = "uppers.json";
/// File in the source's own copy that says that it is whole, and on the disk; but for the containers that it
/// names, whose files are lost.
const WHOLE: &str = "whole";
/// An administrator's word that files which cannot be kept are given up: this file in the migration's directory.
pub const GIVEN_UP: &str = "files-given-up";

/// The containers' writable layers.
pub type Uppers = BTreeMap<String, PathBuf>;

/// Notes where the containers' changes lie, as long as that can be seen.
pub fn note_uppers(holder: &Holder, containers: &[PodContainer]) -> Result<()> {
    let mountinfo = holder.layout.proc.join("self/mountinfo");
    let mut uppers = Uppers::new();
    for container in containers {
        let upper = upper_of(&mountinfo, &container.rootfs)
            .with_context(|| format!("the files of {} are not found", container.name))?;
        uppers.insert(container.name.clone(), upper);
    }
    write_uppers(holder, &uppers)
}

/// Keeps what was noted, durably.
pub fn write_uppers(holder: &Holder, uppers: &Uppers) -> Result<()> {
    Ok(files::write_json(&holder.dir.path().join(UPPERS), uppers)?)
}

/// What was noted; nothing before that.
pub fn uppers(holder: &Holder) -> Result<Uppers> {
    Ok(files::read_json_opt(&holder.dir.path().join(UPPERS))?.unwrap_or_default())
}

fn is_whole(holder: &Holder) -> bool {
    holder.dir.kept().join(WHOLE).exists()
}

/// The containers whose files are not in the source's own copy, because they are lost.
pub fn lost(dir: &MigrationDir) -> Vec<String> {
    files::read_json_opt(&dir.kept().join(WHOLE)).ok().flatten().unwrap_or_default()
}

/// The data comes to the disk before the word that it is there.
fn mark_whole(holder: &Holder, lost: &[String]) -> Result<()> {
    durable(&holder.dir)?;
    Ok(files::write_json(&holder.dir.kept().join(WHOLE), &lost)?)
}

/// Sends and keeps everything of an ended pod. The end of the connection ends it; when this returns nobody
/// writes the source's own copy any more.
pub async fn transfer(holder: &Arc<Holder>, pod: &Pod, sender: &Arc<Sender>) -> Result<()> {
    let (far, pod) = (Arc::clone(sender), pod.clone());
    holder.blocking("files", move |holder| send(holder, &pod, &far)).await?;
    acknowledge(holder, sender).await?;
    holder.blocking("keep", |holder| mark_whole(holder, &[])).await?;
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
        let layer = Layer::of(upper)?.with_context(|| format!("{area} is gone"))?;
        let summary = send_tree(sender, Some(&keep), &area, capture_upper, upper)?;
        layer.was_whole(upper, &summary).with_context(|| area.to_string())?;
        tracing::info!(path = %upper.display(), ?summary, "sent");
        // It has nothing but files.
        sender.container_done(container)?;
    }
    Ok(())
}

/// Keeps the containers' changes for their start here, if that has not been done, and shows whose are lost.
pub fn keep(holder: &Holder) -> Result<()> {
    if !is_whole(holder) {
        let keep = Keep::new(&holder.dir)?;
        let given_up = holder.dir.path().join(GIVEN_UP).exists();
        let mut lost = Vec::new();
        for (container, upper) in uppers(holder)? {
            let area = Area::Rootfs(container.clone());
            match keep_one(&keep, &area, &upper) {
                Ok(true) => continue,
                Ok(false) => {
                    tracing::error!(container, path = %upper.display(), "its files are gone")
                }
                Err(error) if given_up => {
                    tracing::error!(container, "its files are given up: {error:#}");
                }
                Err(error) => return Err(error.context(format!("{area} cannot be kept"))),
            }
            keep.discard(&area)?;
            lost.push(container);
        }
        mark_whole(holder, &lost)?;
    }
    show_lost(holder);
    Ok(())
}

/// Shows whose files are lost, as it was noted durably.
pub fn show_lost(holder: &Holder) {
    let lost = lost(&holder.dir);
    holder.board.update(|status| status.files_lost = lost);
}

/// Whether a container's changes were still there to be kept.
fn keep_one(keep: &Keep, area: &Area, upper: &Path) -> Result<bool> {
    let Some(layer) = Layer::of(upper)? else { return Ok(false) };
    let summary = capture_upper(upper, &mut keep.tree(area)?)?;
    layer.was_whole(upper, &summary)?;
    Ok(true)
}

/// Which directory a writable layer is.
#[derive(PartialEq, Eq)]
struct Layer(u64, u64);

impl Layer {
    /// None if it is gone. An error where the snapshotter's directory is not there either, two levels above
    /// (`<number>/fs`): nothing is known of the layer then, a disk may not be mounted.
    fn of(upper: &Path) -> Result<Option<Self>> {
        let snapshots = upper.ancestors().nth(2).unwrap_or(upper);
        match std::fs::symlink_metadata(upper) {
            Ok(meta) => Ok(Some(Self(meta.dev(), meta.ino()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && snapshots.is_dir() => {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| upper.display().to_string()),
        }
    }

    /// Fails unless it is there as it was captured: the runtime may be removing it, piece by piece.
    fn was_whole(&self, upper: &Path, captured: &TreeSummary) -> Result<()> {
        let now = measure_upper(upper)?;
        let is_same = (now.entries, now.whiteouts) == (captured.entries, captured.whiteouts);
        if !is_same || Self::of(upper)?.as_ref() != Some(self) {
            bail!("{} was removed while it was read", upper.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
        write_uppers(&holder, &noted).unwrap();
        keep(&holder).unwrap();
        assert_eq!(lost(&holder.dir), ["aux"]);
        assert_eq!(holder.board.subscribe().borrow().files_lost, ["aux"]);
        std::fs::remove_dir_all(&upper).unwrap();
        keep(&holder).unwrap();
        assert_eq!(lost(&holder.dir), ["aux"], "what was kept stays kept");
        let back = root.path().join("back");
        std::fs::create_dir(&back).unwrap();
        holder.dir.write_task(&holder.task).unwrap();
        crate::started::fill(&holder.host, &holder.dir, "web", &back).unwrap();
        assert_eq!(std::fs::read_to_string(back.join("data")).unwrap(), "changed");
        // What is lost keeps nobody from being started.
        crate::started::fill(&holder.host, &holder.dir, "aux", &back).unwrap();
    }

    #[test]
    fn files_that_cannot_be_kept_are_tried_again_until_they_are_given_up() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let upper = root.path().join("upper");
        std::fs::create_dir_all(upper.join("d/".repeat(300))).unwrap();
        write_uppers(&holder, &Uppers::from([("web".to_owned(), upper)])).unwrap();
        let error = format!("{:#}", keep(&holder).unwrap_err());
        assert!(error.starts_with("rootfs/web cannot be kept: "), "{error}");
        assert!(!is_whole(&holder) && lost(&holder.dir).is_empty());
        files::write_atomic(&holder.dir.path().join(GIVEN_UP), b"").unwrap();
        keep(&holder).unwrap();
        assert_eq!(lost(&holder.dir), ["web"]);
        assert!(!holder.dir.rootfs_tree("web").unwrap().exists(), "half a copy is none");
    }

    #[test]
    fn a_layer_is_not_lost_while_nothing_can_be_seen_of_any() {
        let root = tempfile::tempdir().unwrap();
        let snapshots = root.path().join("snapshots");
        let upper = snapshots.join("7/fs");
        assert!(Layer::of(&upper).is_err(), "the disk may not be mounted");
        std::fs::create_dir(&snapshots).unwrap();
        assert!(Layer::of(&upper).unwrap().is_none());
        std::fs::create_dir_all(&upper).unwrap();
        assert!(Layer::of(&upper).unwrap().is_some());
    }

    #[test]
    fn a_layer_that_is_removed_meanwhile_was_not_whole() {
        let root = tempfile::tempdir().unwrap();
        let upper = root.path().join("upper");
        let make = || {
            std::fs::create_dir(&upper).unwrap();
            std::fs::write(upper.join("data"), "changed").unwrap();
        };
        make();
        let layer = Layer::of(&upper).unwrap().unwrap();
        let summary = measure_upper(&upper).unwrap();
        layer.was_whole(&upper, &summary).unwrap();
        std::fs::remove_file(upper.join("data")).unwrap();
        assert!(layer.was_whole(&upper, &summary).is_err(), "half of it is gone");
        // Kept, so that its number is not given to the next.
        std::fs::rename(&upper, root.path().join("former")).unwrap();
        assert!(layer.was_whole(&upper, &summary).is_err(), "it is gone");
        make();
        assert!(layer.was_whole(&upper, &summary).is_err(), "it is another one");
    }
}
