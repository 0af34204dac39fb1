//! The target's holder: recovers or begins, receives the pod's state, prepares each container for its restore,
//! checks that all are restored and frozen, and makes of that, and of what it is asked and reads, events of the
//! protocol's machine. What that orders is carried out by [`hands`]. The restores themselves are kubelet's and the
//! runtime wrapper's.

mod apply;
mod cold;
mod hands;
mod hold;
mod hooks;
mod receive;
mod stand_in;
mod undo;

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use transship_host::journal::{Journal, Line};
use transship_host::paths::Role;
use transship_protocol::{Driver, Facts, TargetEntry, TargetEvent, TargetMachine, TargetPhase};

use crate::control::Command;
use crate::deadman::Deadman;
use crate::engine::drive;
use crate::holder::Holder;
use crate::pod::Pod;
use crate::reading::Reading;
use crate::reserve;
use crate::signing::{Contact, Signing};

use hands::TargetHands;

/// Runs the target's side of a migration to its end.
pub async fn run(
    holder: Arc<Holder>,
    journal: Journal<TargetEntry>,
    lines: Vec<Line<TargetEntry>>,
    commands: mpsc::Receiver<Command>,
) -> Result<()> {
    let entries: Vec<TargetEntry> = lines.iter().map(|line| line.entry).collect();
    let (events, mut received) = mpsc::channel(64);
    let pod = Pod::load(&holder.dir)?;
    let deadman = Deadman::of(&holder.host.holder(&holder.task.migration.uid, Role::Target)?);
    let facts = Facts {
        same_boot: lines.iter().all(|line| line.boot_id == journal.boot_id()),
        tasks: pod.as_ref().is_some_and(|pod| pod.lost(&holder.layout).is_none()),
        // Asked before this holder signs anything. One that is lost after the vote has expired.
        lapsed: deadman.has_lapsed()?
            || (entries.contains(&TargetEntry::Voted) && !deadman.is_armed()?),
    };
    let (machine, effects) = TargetMachine::recover_as(holder.task.part, &entries, facts);
    if is_guarded(&machine) {
        deadman.arm_expired()?;
    }
    tracing::info!(phase = ?machine.phase(), ?facts, "target");
    holder.start_reading(events.clone(), |reading| match reading {
        Reading::Migration(read) => Some(TargetEvent::from(read)),
        // A target asks for no one's word, nor for its pod.
        Reading::Peer(_) | Reading::PeerNodeGone | Reading::Pod(_) => None,
    });
    holder.start_clock(events.clone(), TargetEvent::DeadlinePassed, TargetEvent::Poked);
    tokio::spawn(take_commands(commands, events.clone()));
    let signing = Signing::start(&holder, deadman.clone());
    let stop = CancellationToken::new();
    if machine.phase() == TargetPhase::Idle {
        events.send(TargetEvent::Begin).await.context("no events")?;
        if let Err(error) = reserve::keep(&holder.dir) {
            holder.board.failed("DiskFull", &format!("{error:#}"));
            events.send(TargetEvent::LocalFailure).await.context("no events")?;
        } else if let Err(error) =
            begin(Arc::clone(&holder), signing.contact(), stop.clone(), events.clone())
        {
            holder.board.failed("TargetFailed", &format!("{error:#}"));
            events.send(TargetEvent::LocalFailure).await.context("no events")?;
        }
    }
    let mut hands =
        TargetHands::new(Arc::clone(&holder), journal, facts.same_boot, pod, deadman, stop, events);
    let driver = Driver::new(machine, effects);
    drive(driver, &mut hands, &mut received).await?;
    match hands.signs_off {
        true => signing.end().await,
        false => signing.fall_silent(),
    }
    if hands.resumed {
        // The last word is spoken and the record open: the pod is one like any other, and nothing of the
        // protocol waits for its hooks. Whoever still has news for the machine is not to be held up.
        tokio::spawn(async move { while received.recv().await.is_some() {} });
        hooks::run(&holder, hands.pod()).await;
    }
    Ok(())
}

/// Starts what leads to the vote, or to the pod's own start.
fn begin(
    holder: Arc<Holder>,
    contact: Contact,
    stop: CancellationToken,
    events: mpsc::Sender<TargetEvent>,
) -> Result<()> {
    match holder.task.part.is_cold() {
        true => cold::start(holder, contact, stop, events),
        false => hold::start(holder, contact, stop, events),
    }
}

/// Whether the dead-man must count: it may run, or be about to, and has not read `resumedAt`. In the
/// sequential order nothing runs beside it, and nothing is concluded from its silence.
fn is_guarded(machine: &TargetMachine) -> bool {
    !machine.part().is_sequential()
        && matches!(
            machine.phase(),
            TargetPhase::Voted
                | TargetPhase::Committed
                | TargetPhase::Thawing
                | TargetPhase::Thawed
        )
}

/// Turns the operator's commands into events.
async fn take_commands(mut commands: mpsc::Receiver<Command>, events: mpsc::Sender<TargetEvent>) {
    while let Some(command) = commands.recv().await {
        tracing::info!(?command, "asked");
        let event = match command {
            Command::ReadDecision => TargetEvent::Poked,
            Command::Abort => TargetEvent::LocalFailure,
            // Only a source freezes and releases.
            Command::Freeze | Command::Release => continue,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use transship_protocol::{Decision, TargetOutcome};

    use super::*;

    #[test]
    fn the_dead_man_counts_from_the_vote_until_the_end_is_known_also_after_a_restart() {
        let entries = [
            (TargetEntry::Begun, false),
            (TargetEntry::Voted, true),
            (TargetEntry::Decided { decision: Decision::Commit }, true),
            (TargetEntry::Thawing, true),
            (TargetEntry::Thawed, true),
            (TargetEntry::Confirmed, false),
            (TargetEntry::Closed { outcome: TargetOutcome::Resumed }, false),
        ];
        let facts = Facts { same_boot: true, tasks: true, lapsed: false };
        for (index, (entry, guarded)) in entries.iter().enumerate() {
            let journal: Vec<_> = entries[..=index].iter().map(|(entry, _)| *entry).collect();
            let (machine, _) = TargetMachine::recover(&journal, facts);
            assert_eq!(is_guarded(&machine), *guarded, "after {entry:?}");
        }
    }
}
