//! Whether anybody still needs a closed side of a migration: what the collector goes by, and what a removal of the
//! host side waits for.

use transship_api::HolderState;
use transship_host::task::HolderTask;

use crate::cluster::{Cluster, MigrationSeen};
use crate::kept::{self, Verdict};
use crate::migrations::Side;

/// Who needs a closed side, as far as the API server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nobody.
    Nobody,
    /// Nobody knows whose it is: its task cannot be read.
    Unknown,
    /// Its Migration, which is not over: the state of its pod may be nowhere else.
    Migration,
    /// The other side may still have to read how this one ended; the Migration has vanished.
    Peer,
    /// The operator, which goes by how this side ended when it takes the marks of the vanished Migration off its pod.
    Marks,
    /// The Migration has vanished and left the state of a pod that runs nowhere, see [`kept`].
    Vanished,
}

/// Asks. In doubt (the API server does not answer) an error.
pub async fn of(cluster: &Cluster, side: &Side, sides: &[Side]) -> anyhow::Result<Need> {
    let Some(task) = &side.task else { return Ok(Need::Unknown) };
    match cluster.migration_of(task).await? {
        MigrationSeen::Gone => {}
        // Where the operator's word to forget it was lost, too.
        MigrationSeen::Over => return Ok(Need::Nobody),
        MigrationSeen::There => return Ok(Need::Migration),
    }
    let published = match task.peer.node == task.node {
        // A pod that went back to its source's node has both sides here.
        true => Some(Vec::new()),
        false => kept::published(cluster.peer(&task.peer.node).await?, &side.uid),
    };
    let beside: Vec<HolderState> = kept::beside(side, sides).collect();
    match kept::verdict(task.part, side.state(), published.as_deref(), &beside) {
        Verdict::Over => when_over(cluster, task).await,
        Verdict::Waits => Ok(Need::Peer),
        Verdict::Kept { heard } => {
            // This node was perhaps cut off when the migration ended well, and was not waited for.
            let pod = &task.pod;
            let moved = heard
                && cluster.pod_has_moved(&pod.namespace, &pod.name, &task.migration.uid).await?;
            if moved { when_over(cluster, task).await } else { Ok(Need::Vanished) }
        }
    }
}

/// Who needs a side that is good for nothing any more but for its word.
async fn when_over(cluster: &Cluster, task: &HolderTask) -> anyhow::Result<Need> {
    let pod = &task.pod;
    let marked =
        cluster.pod_is_marked(&pod.namespace, &pod.name, &pod.uid, &task.migration.uid).await?;
    Ok(if marked { Need::Marks } else { Need::Nobody })
}

impl Need {
    /// Why the host side has to stay for this side, and what ends that, for people; none where it need not. A state
    /// whose Migration has vanished nobody can ask for any more, so it goes with the host side.
    pub fn awaited(self, side: &Side) -> Option<String> {
        let [pod, migration] = side.names();
        match self {
            Self::Nobody | Self::Marks | Self::Vanished => None,
            Self::Unknown => Some(format!(
                "the task of migration {} cannot be read, so nobody can tell whose state is kept beside it: mend {dir}/task.json on the node, or remove {dir} if its pod runs or is not wanted any more",
                side.uid,
                dir = side.dir_on_host().display()
            )),
            Self::Migration => Some(format!(
                "what is kept here of pod {pod} belongs to Migration {migration}, which is not over, and may be the only copy of the pod's memory: see what it waits for (kubectl transship describe, in its namespace), or delete it, which cancels it unless it has committed"
            )),
            Self::Peer => {
                let peer = side.task.as_ref().map_or("?", |task| task.peer.node.as_str());
                Some(format!(
                    "node {peer} has still to read how Migration {migration} of pod {pod} ended here: see that its agent runs, or delete the Node object {peer} (kubectl delete node and tn) if it will not come back"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use transship_host::HostRoot;
    use transship_host::paths::Role;

    use super::*;
    use crate::migrations::tests::task;

    #[test]
    fn a_removal_waits_for_what_somebody_can_still_ask_for_and_says_who() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        let migration = host.migration("m-1", Role::Source).unwrap();
        migration.write_task(&task("m-1", Role::Source)).unwrap();
        migration.close().unwrap();
        let side = Side::read(migration.clone()).unwrap();
        for need in [Need::Nobody, Need::Marks, Need::Vanished] {
            assert_eq!(need.awaited(&side), None, "{need:?}");
        }
        let told = Need::Migration.awaited(&side).unwrap();
        assert!(told.contains("pod shop/web-7") && told.contains("Migration shop/move"), "{told}");
        let told = Need::Peer.awaited(&side).unwrap();
        assert!(told.contains("node node-b") && told.contains("Migration shop/move"), "{told}");
        std::fs::write(migration.task(), "{").unwrap();
        let told = Need::Unknown.awaited(&Side::read(migration).unwrap()).unwrap();
        assert!(told.contains("mend /var/lib/transship/migrations/m-1.source/task.json"), "{told}");
    }
}
