//! Removes what nothing needs any more: records of pods that are gone, directories of migrations
//! that are over and forgotten, addresses that are free again, shims that containerd has forgotten.
//!
//! A record protects its pod from being created a second time, so it stays until a quorum read
//! says that the pod's object is gone and containerd says that it has no sandbox of it; and as long
//! as a migration of it is open. In doubt everything stays.
//!
//! What is kept of a migration whose Migration has vanished: see [`kept`].

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;
use transship_host::paths::MigrationDir;
use transship_host::record::{self, Record, RecordState};
use transship_host::{HostRoot, files};

use crate::cluster::Cluster;
use crate::kept;
use crate::leases::Leases;
use crate::migrations::{self, Side};
use crate::need::{self, Need};
use crate::relay::Relay;
use crate::shims::Shims;
use crate::telemetry::{Kind, Telemetry};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);
/// How long one look may take, other nodes' answers included.
const ROUND_LIMIT: Duration = Duration::from_secs(120);
/// What is younger and has no record yet may be about to get one.
const YOUNG: Duration = Duration::from_secs(20);
/// Prefix of a directory on its way out; no migration has such a name.
const GOING: &str = ".gone-";

/// Collects.
pub struct Collector {
    /// The host.
    pub host: HostRoot,
    /// The API.
    pub cluster: Cluster,
    /// For asking other nodes and the own containerd.
    pub relay: Relay,
    /// Addresses.
    pub leases: Leases,
    /// Counters.
    pub telemetry: Arc<Telemetry>,
}

impl Collector {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut watch = kept::Watch::start();
        let mut shims = Shims::new(&self.relay.runtime.layout);
        for round in 1u64.. {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
            let collecting = self.round(round, watch.passed(), &mut shims);
            match tokio::time::timeout(ROUND_LIMIT, collecting).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = format!("{error:#}"), "collecting was put off");
                }
                Err(_) => tracing::warn!("collecting took too long and was put off"),
            }
        }
    }

    async fn round(
        &self,
        round: u64,
        passed: Option<Duration>,
        shims: &mut Shims,
    ) -> anyhow::Result<()> {
        remove_going(&self.host)?;
        let sides = migrations::list(&self.host)?;
        let pods = record::list_pods(&self.host)?;
        if let Err(error) = self.end_shims(shims, &pods).await {
            tracing::debug!(
                error = format!("{error:#}"),
                "looking for forgotten shims was put off"
            );
        }
        for uid in pods {
            if self.record_is_over(&uid, &sides).await? {
                self.host.pod(&uid)?.remove()?;
                self.count("record");
                tracing::info!(pod_uid = uid, "the record of a pod that is gone was removed");
            }
        }
        for side in &sides {
            if self.side_is_over(side, &sides, passed).await? {
                remove_migration(&self.host, &side.dir)?;
                self.count("migration");
                tracing::info!(migration = side.uid, role = %side.role, "a migration that is over was removed");
            }
        }
        for _ in 0..self.leases.collect(&self.cluster, &self.relay, round).await {
            self.count("lease");
        }
        Ok(())
    }

    /// `pods`: those with a record.
    async fn end_shims(&self, shims: &mut Shims, pods: &[String]) -> anyhow::Result<()> {
        for (shim, pod_uid) in shims.look(pods) {
            let gone = !self.relay.has_sandbox(&pod_uid).await?;
            if shims.judge(shim, gone, Instant::now()) && shims.end(shim)? {
                self.count("shim");
                tracing::info!(pod_uid, ?shim, "a shim that containerd has forgotten is ended");
            }
        }
        Ok(())
    }

    fn count(&self, kind: &'static str) {
        self.telemetry.collected.get_or_create(&Kind { kind }).inc();
    }

    async fn record_is_over(&self, uid: &str, sides: &[Side]) -> anyhow::Result<bool> {
        let pod = self.host.pod(uid)?;
        let record = match pod.read_record() {
            Ok(record) => record,
            // It refuses its pod, and tells no name by which the pod could be looked for.
            Err(error) => {
                tracing::warn!(
                    pod_uid = uid,
                    error = error.chain(),
                    "a record is damaged; remove its directory when the pod is gone"
                );
                return Ok(false);
            }
        };
        if record.is_none() && is_young(pod.path()) || !may_go(uid, record.as_ref(), sides) {
            return Ok(false);
        }
        // The cheap question first, of the cache; then the ones that count.
        let Some(pods) = self.cluster.pods().await else { return Ok(false) };
        if pods.iter().any(|pod| pod.metadata.uid.as_deref() == Some(uid)) {
            return Ok(false);
        }
        if let Some(record) = &record
            && !self.cluster.pod_is_gone(&record.pod_namespace, &record.pod_name, uid).await?
        {
            return Ok(false);
        }
        Ok(!self.relay.has_sandbox(uid).await?)
    }

    /// The operator forgets sides that are over; this is for those of which it does not know any more: their
    /// Migration has vanished, or has ended with the pod on another node. `passed`: see [`kept::Watch`].
    async fn side_is_over(
        &self,
        side: &Side,
        sides: &[Side],
        passed: Option<Duration>,
    ) -> anyhow::Result<bool> {
        if !side.closed && side.vanished.is_none() {
            return Ok(false);
        }
        let need = need::of(&self.cluster, side, sides).await?;
        // Perhaps again: restored from a backup, or seen by another API server.
        if need == Need::Migration && side.vanished.is_some() {
            files::remove_durably(&side.dir.vanished())?;
        }
        if !side.closed {
            return Ok(false);
        }
        match need {
            Need::Nobody => Ok(true),
            Need::Vanished => Ok(kept::time_is_up(side, passed)?),
            Need::Unknown | Need::Migration | Need::Peer | Need::Marks => Ok(false),
        }
    }
}

/// Whether a record may go once its pod is gone.
fn may_go(pod_uid: &str, record: Option<&Record>, sides: &[Side]) -> bool {
    let of_pod = |side: &&Side| {
        let pod = side.task.as_ref().map(|task| task.pod.uid.as_str());
        pod == Some(pod_uid) || pod.is_none()
    };
    if sides.iter().filter(of_pod).any(|side| !side.closed) {
        return false;
    }
    match record.map(|record| record.state) {
        // Written before its task, which then never came.
        None => true,
        Some(RecordState::Open | RecordState::Aborted | RecordState::Moved) => true,
        // Undecided: only if there is no migration at all that could decide it.
        Some(
            RecordState::Restore
            | RecordState::Prepared
            | RecordState::Held
            | RecordState::Frozen
            | RecordState::Starting,
        ) => {
            let migration = record.map(|record| record.migration_uid.as_str());
            !sides.iter().any(|side| Some(side.uid.as_str()) == migration)
        }
    }
}

/// By the directory's last change; in doubt young.
fn is_young(dir: &std::path::Path) -> bool {
    let changed = std::fs::metadata(dir).and_then(|metadata| metadata.modified());
    changed.map_or(true, |changed| {
        SystemTime::now().duration_since(changed).map_or(true, |age| age < YOUNG)
    })
}

/// Removes a side's directory and its sockets. Renamed first: a directory that lost its marker
/// `closed` before its task would look like one that needs a holder.
pub fn remove_migration(host: &HostRoot, dir: &MigrationDir) -> transship_host::Result<()> {
    if let Some((uid, role)) = dir.identify() {
        files::remove_tree(host.holder(uid, role)?.path())?;
        let going = host.migrations().join(format!("{GOING}{uid}.{role}"));
        files::remove_tree(&going)?;
        files::rename_durably(dir.path(), &going)?;
        files::remove_tree(&going)?;
    }
    Ok(())
}

/// Removals that were interrupted.
fn remove_going(host: &HostRoot) -> transship_host::Result<()> {
    // Hidden names are not listed elsewhere; a missing directory has nothing to remove.
    for entry in std::fs::read_dir(host.migrations()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(GOING) {
            files::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrations::tests::task;
    use transship_host::paths::Role;
    use transship_host::record::RECORD_VERSION;

    fn record(state: RecordState) -> Record {
        Record {
            version: RECORD_VERSION,
            pod_uid: "p-1".into(),
            pod_namespace: "shop".into(),
            pod_name: "web-7".into(),
            migration_uid: "m-1".into(),
            role: Role::Target,
            state,
            containers: Vec::new(),
            network: None,
        }
    }

    fn sides(closed: Option<bool>) -> (tempfile::TempDir, HostRoot, Vec<Side>) {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        if let Some(closed) = closed {
            let migration = host.migration("m-1", Role::Target).unwrap();
            migration.write_task(&task("m-1", Role::Target)).unwrap();
            if closed {
                migration.close().unwrap();
            }
        }
        let sides = migrations::list(&host).unwrap();
        (dir, host, sides)
    }

    #[test]
    fn a_record_goes_only_when_no_migration_can_need_it() {
        use RecordState::{Aborted, Frozen, Held, Moved, Open, Prepared, Restore, Starting};
        for (state, none, open, closed) in [
            (Open, true, false, true),
            (Aborted, true, false, true),
            (Moved, true, false, true),
            (Restore, true, false, false),
            (Held, true, false, false),
            (Frozen, true, false, false),
            (Prepared, true, false, false),
            (Starting, true, false, false),
        ] {
            for (migration, wanted) in [(None, none), (Some(false), open), (Some(true), closed)] {
                let (_dir, _, sides) = sides(migration);
                let got = may_go("p-1", Some(&record(state)), &sides);
                assert_eq!(got, wanted, "{state:?}, closed: {migration:?}");
            }
        }
        let (_dir, _, open) = sides(Some(false));
        assert!(!may_go("p-1", None, &open));
        assert!(may_go("p-2", None, &open), "another pod's migration");
    }

    #[test]
    fn a_removed_migration_leaves_nothing_and_needs_no_holder_meanwhile() {
        let (_dir, host, sides) = sides(Some(true));
        let run = host.holder("m-1", Role::Target).unwrap();
        std::fs::create_dir_all(run.path()).unwrap();
        remove_migration(&host, &sides[0].dir).unwrap();
        assert!(!run.path().exists());
        assert!(files::list(&host.migrations()).unwrap().is_empty());
        // Interrupted half-way: nobody takes what is left for a migration.
        let left = host.migrations().join(".gone-m-9.source");
        std::fs::create_dir_all(&left).unwrap();
        assert!(MigrationDir::at(&left).identify().is_none());
        assert!(migrations::list(&host).unwrap().is_empty());
        remove_going(&host).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn what_was_just_made_is_young() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_young(dir.path()));
        assert!(is_young(&dir.path().join("missing")));
    }
}
