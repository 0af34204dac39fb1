//! Cold: what is found right before the containers end, under a record that keeps kubelet from changing it: the
//! containers that end and move, where their files lie, and that nothing keeps these from moving. Whatever speaks
//! against it costs nothing here.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::statvfs;
use transship_api::limits::{ROOT_BYTES, ROOT_ENTRIES, room_for};
use transship_api::quantity::human_bytes;
use transship_runtime::container::Container;
use transship_runtime::cri::{Cri, CriContainer, State};
use transship_transport::tree::{measure_dir, measure_upper};

use super::files;
use crate::areas;
use crate::durable::note_volumes;
use crate::engine::Failed;
use crate::holder::Holder;
use crate::pod::{Pod, PodContainer};

/// Finds everything; what is noted of it is durable when this returns.
pub async fn find(holder: &Arc<Holder>, pod: &mut Pod) -> Result<(), Failed> {
    let now = look_again(holder, pod).await.map_err(|error| Failed::other("NotRunning", error))?;
    let found = now.clone();
    holder
        .blocking("find", move |holder| {
            // The mounts and the bundle go when a container ends by itself.
            files::note_uppers(holder, &found.containers)?;
            note_volumes(holder, &found)
        })
        .await
        .map_err(|error| Failed::other("FilesNotFound", error))?;
    if now != *pod {
        now.save(&holder.dir).map_err(|error| Failed::other("PodNotNoted", error))?;
        *pod = now;
    }
    holder
        .blocking("measure", |holder| Ok(check(holder)))
        .await
        .map_err(|error| Failed::other("FilesCannotMove", error))?
}

/// kubelet may have started a container anew since the pod was looked up: those that run are the ones that end
/// and move. One that does not run would move without what its next start has had.
async fn look_again(holder: &Holder, pod: &Pod) -> Result<Pod> {
    let cri = Cri::connect(&holder.layout.containerd_socket).await?;
    let mut now = Pod::find_sandbox(&cri, &holder.layout, &holder.task.pod.uid).await?;
    let known = cri.containers(&now.sandbox_id).await?;
    for noted in &pod.containers {
        let newest = running(&noted.name, &known)?;
        now.containers.push(if newest.id == noted.id {
            noted.clone()
        } else {
            let found = Container::find(&holder.layout, &newest.id)?;
            PodContainer::of(&holder.layout, &noted.name, &found)?
        });
    }
    if let Some(dead) = now.containers.iter().find(|one| !one.is_alive(&holder.layout)) {
        bail!("container {} has just ended; move the pod when all of it runs", dead.name);
    }
    Ok(now)
}

/// The last start of a container, if it runs.
fn running<'a>(name: &str, known: &'a [CriContainer]) -> Result<&'a CriContainer> {
    let newest = known.iter().filter(|one| one.name == name).max_by_key(|one| one.attempt);
    let newest = newest.with_context(|| format!("container {name} is not there any more"))?;
    if newest.state != State::Running {
        bail!(
            "container {name} does not run ({:?}); move the pod when all of it runs",
            newest.state
        );
    }
    Ok(newest)
}

/// All that moves can be carried, will be put into its place in time, and finds room here.
fn check(holder: &Holder) -> Result<(), Failed> {
    let immovable = |what: &str, error: anyhow::Error| {
        Failed::other("FilesCannotMove", error.context(format!("{what} cannot be moved")))
    };
    let mut bytes = 0;
    for volume in areas::volumes(&holder.task) {
        let what = format!("emptyDir {volume}");
        let path = holder.task.empty_dir_path(&volume).map_err(|e| immovable(&what, e.into()))?;
        bytes += measure_dir(&path).map_err(|e| immovable(&what, e.into()))?.bytes;
    }
    let uppers = files::uppers(holder).map_err(|error| Failed::other("FilesNotFound", error))?;
    for (container, upper) in &uppers {
        let what = format!("what container {container} has changed outside of volumes");
        let found = measure_upper(upper).map_err(|e| immovable(&what, e.into()))?;
        let entries = found.entries + found.whiteouts;
        if found.bytes > ROOT_BYTES || entries > ROOT_ENTRIES {
            let error = anyhow!(
                "{what} is {} in {entries} files, more than {} or {ROOT_ENTRIES}, and might not be in its place in time; keep the data in a volume",
                human_bytes(found.bytes),
                human_bytes(ROOT_BYTES)
            );
            return Err(Failed::other("RootFilesystem", error));
        }
        bytes += found.bytes;
    }
    let disk = statvfs(holder.dir.path()).map_err(|errno| {
        Failed::other("DiskFull", anyhow!("how full the disk is cannot be told: {errno}"))
    })?;
    let (free, wanted) = (disk.f_bavail.saturating_mul(disk.f_frsize), room_for(bytes));
    if free < wanted {
        let error = anyhow!(
            "the pod has {} of files, and to keep them /var/lib/transship needs {} and has {} free; make room there",
            human_bytes(bytes),
            human_bytes(wanted),
            human_bytes(free)
        );
        return Err(Failed::other("DiskFull", error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use transship_host::HostRoot;
    use transship_host::paths::Role;
    use transship_runtime::Layout;

    use super::*;
    use crate::areas::tests::task;

    fn holder(root: &Path) -> Holder {
        let (host, mut task) = (HostRoot::at(root), task());
        task.role = Role::Source;
        task.kubelet_root = root.join("kubelet");
        for volume in ["data", "mem"] {
            std::fs::create_dir_all(task.empty_dir_path(volume).unwrap()).unwrap();
        }
        let dir = host.migration(&task.migration.uid, Role::Source).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        Holder::new(host, Layout::default(), dir, task)
    }

    #[test]
    fn only_a_last_start_that_runs_is_moved() {
        let known = |containers: &[(&str, u32, State)]| -> Vec<CriContainer> {
            let one = |(id, attempt, state): &(&str, u32, State)| CriContainer {
                id: (*id).to_owned(),
                name: "web".into(),
                state: *state,
                attempt: *attempt,
            };
            containers.iter().map(one).collect()
        };
        let ended = ("c", 0, State::Exited);
        for (containers, wanted) in [
            (vec![("c", 0, State::Running)], Some("c")),
            (vec![ended], None),
            (vec![], None),
            (vec![ended, ("d", 1, State::Running)], Some("d")),
            (vec![("e", 2, State::Running), ended, ("d", 1, State::Exited)], Some("e")),
            (vec![ended, ("d", 1, State::Created)], None),
            (vec![("c", 0, State::Running), ("d", 1, State::Exited)], None),
        ] {
            let known = known(&containers);
            let found = running("web", &known);
            assert_eq!(found.ok().map(|one| one.id.as_str()), wanted, "{containers:?}");
        }
    }

    #[test]
    fn what_cannot_be_carried_is_told_by_its_name_before_anything_ends() {
        let root = tempfile::tempdir().unwrap();
        let holder = holder(root.path());
        let upper = root.path().join("upper");
        std::fs::create_dir(&upper).unwrap();
        let noted = BTreeMap::<String, PathBuf>::from([("web".into(), upper.clone())]);
        files::write_uppers(&holder, &noted).unwrap();
        // How full the machine's disk is does not matter here.
        let reason = |outcome: Result<(), Failed>| match outcome {
            Err(failed) if failed.reason != "DiskFull" => {
                Some((failed.reason, format!("{:#}", failed.error)))
            }
            _ => None,
        };
        assert_eq!(reason(check(&holder)), None);
        let deep = holder.task.empty_dir_path("data").unwrap().join("d/".repeat(300));
        std::fs::create_dir_all(deep).unwrap();
        let (name, message) = reason(check(&holder)).unwrap();
        assert_eq!(name, "FilesCannotMove");
        assert!(message.starts_with("emptyDir data cannot be moved: "), "{message}");
        assert!(message.contains("nested too deeply"), "{message}");
        std::fs::remove_dir_all(holder.task.empty_dir_path("data").unwrap().join("d")).unwrap();
        std::fs::create_dir_all(upper.join("d/".repeat(300))).unwrap();
        let (_, message) = reason(check(&holder)).unwrap();
        assert!(message.contains("container web"), "{message}");
    }
}
