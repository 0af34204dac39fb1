//! The host record and the announcement of the pod's address, the same for both sides.

use anyhow::{Context, Result};
use transship_host::record::{NetworkMode, RECORD_VERSION, Record};
use transship_protocol::RecordState;

use crate::holder::Holder;
use crate::pod::Pod;
use crate::reserve;

/// Writes the pod's record with this state, durably. One of another migration is never touched
/// unless it leaves the pod an ordinary one.
pub fn write(holder: &Holder, state: RecordState) -> Result<()> {
    let task = &holder.task;
    let dir = holder.host.pod(&task.pod.uid)?;
    let present = dir.read_record()?;
    if let Some(present) = &present
        && present.migration_uid != task.migration.uid
        && present.state != RecordState::Open
    {
        anyhow::bail!("the pod's record belongs to migration {}", present.migration_uid);
    }
    let record = Record {
        version: RECORD_VERSION,
        pod_uid: task.pod.uid.clone(),
        pod_namespace: task.pod.namespace.clone(),
        pod_name: task.pod.name.clone(),
        migration_uid: task.migration.uid.clone(),
        role: task.role,
        state,
        containers: task.containers.clone(),
        network: task.network.clone(),
    };
    if present.as_ref() == Some(&record) {
        return Ok(());
    }
    tracing::info!(?state, "record");
    let written = dir.write_record(&record);
    if written.is_err() {
        // The next try finds a little more room, if that was what was missing.
        reserve::give_up(&holder.dir);
    }
    written.context("cannot write the pod's record")
}

/// Whether the pod's record is in this state. One that cannot be read is in none.
pub fn is(holder: &Holder, state: RecordState) -> bool {
    let record = holder.host.pod(&holder.task.pod.uid).and_then(|dir| dir.read_record());
    record.is_ok_and(|record| record.is_some_and(|record| record.state == state))
}

/// Tells the network where the addresses are. Best effort: the next frame of the pod tells it too,
/// and nothing may wait for it.
pub fn announce(holder: &Holder, pod: Option<&Pod>) {
    let (Some(pod), Some(network)) = (pod, &holder.task.network) else { return };
    if network.mode != NetworkMode::Preserve {
        return;
    }
    let namespace = pod.network();
    if !namespace.exists() {
        return;
    }
    let told = network.hardware_address().and_then(|mac| {
        let announce = |ip| namespace.announce(&network.interface, ip, mac);
        network.addresses()?.into_iter().try_for_each(announce)
    });
    if let Err(error) = told {
        tracing::warn!("the pod's address is not announced: {}", error.chain());
    }
}
