//! Containers that have ended and are kept: a containerd that restarts might forget them.

use transship_host::HostRoot;
use transship_host::paths::Role;
use transship_host::record::{self, RecordState};

use crate::migrations::Side;

/// A migration under way whose pod's containers end, or have ended and are kept. In any other state of the pod
/// nothing is lost with them. The task would tell which pod it is and whether its containers end: where it
/// cannot be read, any of the migration's counts that stands still.
pub fn ended_pod<'a>(host: &HostRoot, sides: &'a [Side]) -> Option<&'a Side> {
    let is_kept = |pod_uid: &str, uid: &str| {
        match host.pod(pod_uid).and_then(|pod| pod.read_record()) {
            Ok(record) => record.is_some_and(|record| {
                let state = (record.role, record.state);
                state == (Role::Source, RecordState::Frozen) && record.migration_uid == uid
            }),
            // Its holder writes it again.
            Err(_) => true,
        }
    };
    let is_any_kept = |uid: &str| match record::list_pods(host) {
        Ok(pods) => pods.iter().any(|pod_uid| is_kept(pod_uid, uid)),
        Err(_) => true,
    };
    let has_ended = |side: &&Side| match &side.task {
        _ if side.closed => false,
        Some(task) => task.part.is_cold() && is_kept(&task.pod.uid, &side.uid),
        None => side.role == Role::Source && is_any_kept(&side.uid),
    };
    sides.iter().find(has_ended)
}

/// What a restart of containerd waits for, for people: `side` is what [`ended_pod`] has found.
pub fn awaited(side: &Side) -> String {
    let (uid, dir) = (&side.uid, side.dir.path().display());
    match side.task {
        Some(_) => format!(
            "containerd is restarted when cold migration {uid} is over on this node: it might forget the containers that have ended"
        ),
        // No holder can end it.
        None => format!(
            "the task of migration {uid} cannot be read ({dir}), and containerd might forget containers of its pod that have ended: mend the file, or delete the pod (with --force where it does not go) and then remove the directory; containerd is restarted after it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use transship_host::record::{RECORD_VERSION, Record};
    use transship_host::task::Part;

    use super::*;
    use crate::migrations;

    #[test]
    fn containerd_is_not_restarted_under_containers_that_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        let waits_for = || {
            let sides = migrations::list(&host).unwrap();
            ended_pod(&host, &sides).map(|side| (side.uid.clone(), awaited(side)))
        };
        let is_told = |what: &str| {
            let (uid, told) = waits_for().unwrap();
            assert!(uid == "m-1" && told.contains(what), "{uid}: {told}");
        };
        let set = |migration_uid: &str, role, state| {
            let record = Record {
                version: RECORD_VERSION,
                pod_uid: "p-1".into(),
                pod_namespace: "shop".into(),
                pod_name: "web-7".into(),
                migration_uid: migration_uid.into(),
                role,
                state,
                containers: Vec::new(),
                network: None,
            };
            host.pod("p-1").unwrap().write_record(&record).unwrap();
        };
        set("m-1", Role::Source, RecordState::Frozen);
        let migration = host.migration("m-1", Role::Source).unwrap();
        let mut task = migrations::tests::task("m-1", Role::Source);
        migration.write_task(&task).unwrap();
        assert_eq!(waits_for(), None, "frozen ones are found again");
        task.part = Part::Cold;
        migration.write_task(&task).unwrap();
        is_told("when cold migration m-1 is over");
        for (role, state) in [
            (Role::Source, RecordState::Starting),
            (Role::Source, RecordState::Moved),
            (Role::Target, RecordState::Frozen),
        ] {
            set("m-1", role, state);
            assert_eq!(waits_for(), None, "{role} {state:?}");
        }
        std::fs::write(migration.task(), "{").unwrap();
        assert_eq!(waits_for(), None, "nothing of it stands still");
        set("m-2", Role::Source, RecordState::Frozen);
        assert_eq!(waits_for(), None, "it is another migration's");
        set("m-1", Role::Source, RecordState::Frozen);
        // It may be a cold one.
        is_told(&format!("cannot be read ({})", migration.path().display()));
        migration.write_task(&task).unwrap();
        is_told("when cold migration m-1 is over");
        migration.close().unwrap();
        assert_eq!(waits_for(), None);
    }
}
