//! The loop of a holder: events go into the protocol's machine, its effects are carried out one by
//! one, and one that fails is either told to the machine or tried again until it works.
//!
//! Which effects, in which order, is the machine's decision (crate `transship-protocol`); how each
//! is done is [`Hands`].

use std::fmt::Debug;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::Instant;
use transship_protocol::{Driver, Effect, Failure, Machine};

use crate::status::Board;

/// Pause before an effect that failed is tried again, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long something may fail again and again before that is shown.
const STUCK: Duration = Duration::from_secs(5);

/// Why an effect could not be done.
#[derive(Debug)]
pub struct Failed {
    /// What the machine is told.
    pub kind: Failure,
    /// A CamelCase word for status and events.
    pub reason: &'static str,
    /// The details, for people.
    pub error: anyhow::Error,
}

impl Failed {
    /// A failure of an ordinary kind.
    pub fn other(reason: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Failed { kind: Failure::Other, reason, error: error.into() }
    }

    /// The tasks are gone or not whole.
    pub fn tasks_lost(error: impl Into<anyhow::Error>) -> Self {
        Failed { kind: Failure::TasksLost, reason: "TasksLost", error: error.into() }
    }
}

/// A machine's effects.
type EffectOf<M> = Effect<<M as Machine>::Entry, <M as Machine>::Word>;

/// What carries effects out.
pub trait Hands {
    /// The machine it works for.
    type Machine: Machine<Entry: Debug, Word: Debug>;

    /// Makes an entry of the journal durable. An error ends the holder.
    fn journal(&mut self, entry: <Self::Machine as Machine>::Entry) -> Result<()>;

    /// Does one effect, any but [`Effect::Journal`]; must succeed when it finds the work done.
    async fn work(&mut self, effect: EffectOf<Self::Machine>) -> Result<(), Failed>;

    /// Where failures are shown.
    fn board(&self) -> &Board;

    /// The machine has changed, and nothing is queued when `idle`.
    fn observe(&mut self, machine: &Self::Machine, idle: bool);

    /// Whether nothing is left to do.
    fn is_closed(machine: &Self::Machine) -> bool;
}

/// Runs until the machine is closed. An error ends the process: the journal could not be written,
/// and what follows must come from reading it anew.
pub async fn drive<H: Hands>(
    mut driver: Driver<H::Machine>,
    hands: &mut H,
    events: &mut mpsc::Receiver<<H::Machine as Machine>::Event>,
) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    // Since when the effect at hand does not succeed.
    let mut failing_since: Option<Instant> = None;
    loop {
        while let Some(effect) = driver.next_effect() {
            let outcome = act(hands, effect).await?;
            let again = match &outcome {
                Ok(()) => {
                    driver.done();
                    false
                }
                Err(failed) => !driver.failed(failed.kind),
            };
            if !again {
                pause = FIRST_PAUSE;
                if failing_since.take().is_some() {
                    hands.board().stuck("");
                }
            }
            if let Err(failed) = outcome {
                let message = format!("{:#}", failed.error);
                if again {
                    tracing::error!(reason = failed.reason, "will be tried again: {message}");
                    if failing_since.get_or_insert_with(Instant::now).elapsed() >= STUCK {
                        hands.board().stuck(&format!("{}: {message}", failed.reason));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                } else {
                    hands.board().failed(failed.reason, &message);
                }
            }
            hands.observe(driver.machine(), driver.is_idle());
        }
        if H::is_closed(driver.machine()) {
            return Ok(());
        }
        hands.observe(driver.machine(), true);
        let Some(event) = events.recv().await else {
            anyhow::bail!("nothing can happen any more: all sources of events have ended");
        };
        driver.feed(event);
    }
}

async fn act<H: Hands>(hands: &mut H, effect: EffectOf<H::Machine>) -> Result<Result<(), Failed>> {
    if let Effect::Journal(entry) = effect {
        tracing::info!(?entry, "journal");
        hands.journal(entry)?;
        return Ok(Ok(()));
    }
    let began = Instant::now();
    let outcome = hands.work(effect).await;
    tracing::debug!(?effect, took = ?began.elapsed(), ok = outcome.is_ok(), "effect");
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use transship_host::paths::MigrationDir;
    use transship_protocol::{SourceEffect, SourceEntry, SourceEvent, SourceMachine};

    /// Fails `CloseNetwork` and `ThawTasks` as often as told, and notes every effect.
    struct Paper {
        board: Board,
        done: Vec<String>,
        close_failures: u32,
        thaw_failures: u32,
    }

    impl Hands for Paper {
        type Machine = SourceMachine;

        fn journal(&mut self, _: SourceEntry) -> Result<()> {
            self.done.push("Journal".into());
            Ok(())
        }

        async fn work(&mut self, effect: SourceEffect) -> Result<(), Failed> {
            let failures = match effect {
                Effect::CloseNetwork => &mut self.close_failures,
                Effect::ThawTasks(_) => &mut self.thaw_failures,
                _ => &mut 0,
            };
            if *failures > 0 {
                *failures -= 1;
                self.done.push("failed".into());
                return Err(Failed::other("Test", anyhow::anyhow!("no")));
            }
            self.done.push(format!("{effect:?}").split(['(', ' ']).next().unwrap().to_owned());
            Ok(())
        }

        fn board(&self) -> &Board {
            &self.board
        }

        fn observe(&mut self, _: &SourceMachine, _: bool) {}

        fn is_closed(machine: &SourceMachine) -> bool {
            machine.is_closed()
        }
    }

    fn board(root: &Path) -> Board {
        Board::new(&MigrationDir::at(root), &crate::areas::tests::task())
    }

    /// A source begins, is to freeze, and goes its way.
    async fn freeze(hands: &mut Paper) -> Result<()> {
        let (sender, mut events) = mpsc::channel(4);
        sender.send(SourceEvent::Begin).await.unwrap();
        sender.send(SourceEvent::FreezeNow).await.unwrap();
        let driver = Driver::new(SourceMachine::new(), Vec::new());
        drive(driver, hands, &mut events).await
    }

    #[tokio::test]
    async fn a_failure_before_the_vote_opens_and_thaws_however_often_that_must_be_tried() {
        let root = tempfile::tempdir().unwrap();
        let board = board(root.path());
        let mut hands = Paper { board, done: Vec::new(), close_failures: 1, thaw_failures: 2 };
        freeze(&mut hands).await.unwrap();
        let done = hands.done.join(" ");
        let abort = done.split_once("failed ").expect("the network was to be closed").1;
        assert_eq!(
            abort,
            "Journal WriteRecord OpenNetwork Announce failed failed ThawTasks Journal Publish"
        );
        let told = hands.board.subscribe().borrow().clone();
        assert_eq!((told.reason.as_str(), told.stuck.as_str()), ("Test", ""));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_tried_in_vain_is_shown_until_it_succeeds() {
        let root = tempfile::tempdir().unwrap();
        let board = board(root.path());
        let mut shown = board.subscribe();
        let mut hands = Paper { board, done: Vec::new(), close_failures: 1, thaw_failures: 20 };
        let stuck = async {
            shown.wait_for(|status| !status.stuck.is_empty()).await.map(|s| s.stuck.clone())
        };
        let (driven, stuck) = tokio::join!(freeze(&mut hands), stuck);
        driven.unwrap();
        assert_eq!(stuck.unwrap(), "Test: no");
        assert_eq!(hands.board.subscribe().borrow().stuck, "");
    }
}
