//! The source's holder: recovers or begins, connects to the peer, turns what it is asked and what it reads into
//! events of the protocol's machine. What that orders is carried out by [`hands`].

mod dump;
mod end;
pub mod files;
mod find;
mod freeze;
mod hands;
mod keep;
mod send;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use transship_criu::page_server::Dialect;
use transship_host::journal::{Journal, Line};
use transship_host::paths::MigrationDir;
use transship_protocol::{
    Driver, Facts, PodSeen, SourceEntry, SourceEvent, SourceMachine, SourcePhase, may_begin,
};
use transship_rpc::Stage;
use transship_runtime::cri::Cri;

use crate::control::Command;
use crate::engine::drive;
use crate::holder::Holder;
use crate::pod::{AnotherSandbox, Pod, runc_program};
use crate::reading::Reading;
use crate::reserve;

use dump::Dumper;
use hands::SourceHands;

/// How long a Freeze command waits for the connection to the peer.
const CONNECT: Duration = Duration::from_secs(30);

/// Runs the source's side of a migration to its end.
pub async fn run(
    holder: Arc<Holder>,
    journal: Journal<SourceEntry>,
    lines: Vec<Line<SourceEntry>>,
    commands: mpsc::Receiver<Command>,
) -> Result<()> {
    let entries: Vec<SourceEntry> = lines.iter().map(|line| line.entry).collect();
    if entries.is_empty()
        && let Some(reason) = refusal(&holder)?
    {
        holder.board.failed("PodBusy", &reason);
        holder.board.update(|status| {
            status.stage = Stage::Aborted as i32;
            status.closed = true;
        });
        return Ok(());
    }
    let (events, mut received) = mpsc::channel(64);
    let pod = Pod::load(&holder.dir)?;
    let facts = Facts {
        same_boot: lines.iter().all(|line| line.boot_id == journal.boot_id()),
        // What was let go on may end as it likes.
        tasks: holder.board.was_thawed()
            || pod.as_ref().is_some_and(|pod| pod.is_alive(&holder.layout)),
        lapsed: false,
    };
    let (machine, effects) = SourceMachine::recover_as(holder.task.part, &entries, facts);
    tracing::info!(phase = ?machine.phase(), ?facts, "source");
    // What has gone with the node's power needs no other reason.
    if machine.has_lost_memory()
        && facts.same_boot
        && let Some(how) = pod.as_ref().and_then(|pod| pod.lost(&holder.layout))
    {
        holder.board.memory_lost(&how);
    }
    let fresh = machine.phase() == SourcePhase::Idle;
    if !fresh {
        // Before the vote everything is undone, after it everything has been sent: images are
        // worthless, and perhaps what fills the disk. A dump that still runs fails for want of them.
        if let Err(error) = transship_host::files::remove_tree(&holder.dir.path().join("images")) {
            tracing::warn!("{}", error.chain());
        }
    }
    let (connected, connection) = watch::channel(false);
    let mut hands = SourceHands::new(
        Arc::clone(&holder),
        journal,
        pod,
        machine.has_lost_memory(),
        events.clone(),
    );
    holder.start_reading(events.clone(), |reading| {
        Some(match reading {
            Reading::Migration(read) => SourceEvent::from(read),
            Reading::Peer(word) => SourceEvent::PeerRead(word),
            Reading::PeerNodeGone => SourceEvent::PeerNodeGone,
            Reading::Pod(PodSeen::Gone) => SourceEvent::PodGone,
            Reading::Pod(PodSeen::Deleting) => SourceEvent::PodGoes,
            Reading::Pod(PodSeen::Alive) => return None,
        })
    });
    holder.start_clock(events.clone(), SourceEvent::DeadlinePassed, SourceEvent::PeerNodeGone);
    tokio::spawn(take_commands(commands, events.clone(), connection));
    if fresh {
        events.send(SourceEvent::Begin).await.context("no events")?;
        match prepare(&holder).await {
            Ok((pod, dumper)) => {
                let place = hands.prepared(pod, dumper);
                let holder = Arc::clone(&holder);
                send::connect_in_background(holder, place, connected, events.clone());
            }
            Err(error) => {
                holder.board.failed("PodNotReady", &format!("{error:#}"));
                let event = match has_lost_sandbox(&error) {
                    true => {
                        holder.board.memory_lost("the pod's sandbox has ended");
                        SourceEvent::TasksLost
                    }
                    false => SourceEvent::LocalFailure,
                };
                events.send(event).await.context("no events")?;
            }
        }
    }
    let driver = Driver::new(machine, effects);
    drive(driver, &mut hands, &mut received).await
}

/// Why this pod must not be taken on, if so: another migration of it is not finished.
fn refusal(holder: &Holder) -> Result<Option<String>> {
    let task = &holder.task;
    let record = holder.host.pod(&task.pod.uid)?.read_record()?.map(|record| record.state);
    let mut another = None;
    for name in transship_host::files::list(&holder.host.migrations())? {
        let other = MigrationDir::at(holder.host.migrations().join(&name));
        if other.path() == holder.dir.path() || other.is_closed()? {
            continue;
        }
        if let Ok(Some(theirs)) = other.read_task()
            && theirs.pod.uid == task.pod.uid
        {
            another = Some(name);
        }
    }
    Ok((!may_begin(record, another.is_some())).then(|| match another {
        Some(name) => format!("migration {name} of this pod is not finished"),
        None => format!("the pod's record says {record:?}"),
    }))
}

/// Everything that can be looked up before anything is touched.
async fn prepare(holder: &Holder) -> Result<(Pod, Option<Dumper>)> {
    reserve::keep(&holder.dir)?;
    let cri = Cri::connect(&holder.layout.containerd_socket).await?;
    let pod = Pod::find(&cri, &holder.layout, &holder.task).await?;
    pod.save(&holder.dir)?;
    if holder.task.part.is_cold() {
        holder.host.pod(&holder.task.pod.uid)?.clear_markers()?;
        return Ok((pod, None));
    }
    let criu = holder.host.bin("criu");
    let criu = if criu.exists() { criu } else { PathBuf::from("criu") };
    let dumper = Dumper {
        host: holder.host.clone(),
        layout: holder.layout.clone(),
        dir: holder.dir.clone(),
        runc: runc_program(&holder.host.runc_path_file()),
        dialect: dialect(&criu).await?,
    };
    Ok((pod, Some(dumper)))
}

/// A pod that was found ready by the checks, and has no sandbox now or another one, has lost its tasks with that: its node
/// has lost its power before this was begun, or its sandbox was killed. (So has one that is being deleted, of which nothing
/// is told.)
fn has_lost_sandbox(error: &anyhow::Error) -> bool {
    error.is::<AnotherSandbox>()
        || matches!(error.downcast_ref(), Some(transship_runtime::Error::NoSandbox(_)))
}

/// What the node's CRIU speaks to page servers.
async fn dialect(criu: &std::path::Path) -> Result<Dialect> {
    let output = tokio::process::Command::new(criu)
        .arg("--version")
        .output()
        .await
        .with_context(|| format!("cannot run {}", criu.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (major, minor) = version(&text).with_context(|| format!("no version in {text:?}"))?;
    Ok(Dialect::of_version(major, minor))
}

/// `Version: 4.2.1` and further lines.
fn version(text: &str) -> Option<(u32, u32)> {
    let version = text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// Turns the operator's commands into events.
async fn take_commands(
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<SourceEvent>,
    mut connected: watch::Receiver<bool>,
) {
    while let Some(command) = commands.recv().await {
        tracing::info!(?command, "asked");
        let event = match command {
            Command::Freeze => {
                // A failure to connect has become an event of its own.
                let up = connected.wait_for(|connected| *connected);
                match tokio::time::timeout(CONNECT, up).await {
                    Ok(Ok(_)) => SourceEvent::FreezeNow,
                    Ok(Err(_)) | Err(_) => SourceEvent::LocalFailure,
                }
            }
            Command::ReadDecision => SourceEvent::Poked,
            Command::Release => SourceEvent::ReleaseRequested,
            Command::Abort => SourceEvent::LocalFailure,
        };
        // While containers end nobody takes them. Whoever waits for something asks again.
        if let Err(mpsc::error::TrySendError::Closed(_)) = events.try_send(event) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_the_sandbox_that_was_checked_has_lost_its_memory_whatever_stands_around_that()
    {
        let error = anyhow::Error::new(transship_runtime::Error::NoSandbox("uid".into()));
        assert!(has_lost_sandbox(&error));
        assert!(has_lost_sandbox(&error.context("node-b")));
        assert!(has_lost_sandbox(&AnotherSandbox.into()));
        assert!(!has_lost_sandbox(&anyhow::anyhow!("no version")));
    }

    #[test]
    fn crius_version_is_read() {
        assert_eq!(version("Version: 4.2.1\nGitID: x\n"), Some((4, 2)));
        assert_eq!(version("Version: 4.1\n"), Some((4, 1)));
        assert_eq!(version("criu\n"), None);
    }

    #[tokio::test]
    async fn a_freeze_waits_for_the_connection() {
        let (commands, queue) = mpsc::channel(4);
        let (events, mut received) = mpsc::channel(4);
        let (connected, connection) = watch::channel(false);
        tokio::spawn(take_commands(queue, events, connection));
        commands.send(Command::Freeze).await.unwrap();
        commands.send(Command::Release).await.unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(50), received.recv()).await.is_err(),
            "it froze without a connection"
        );
        connected.send_replace(true);
        assert_eq!(received.recv().await, Some(SourceEvent::FreezeNow));
        assert_eq!(received.recv().await, Some(SourceEvent::ReleaseRequested));
    }

    #[tokio::test]
    async fn a_freeze_without_any_hope_of_a_connection_fails() {
        let (commands, queue) = mpsc::channel(4);
        let (events, mut received) = mpsc::channel(4);
        let (connected, connection) = watch::channel(false);
        tokio::spawn(take_commands(queue, events, connection));
        drop(connected);
        commands.send(Command::Freeze).await.unwrap();
        assert_eq!(received.recv().await, Some(SourceEvent::LocalFailure));
    }
}
