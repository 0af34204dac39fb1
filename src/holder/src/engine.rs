//! The loop of a holder: events go into the protocol's machine, its effects are carried out one by
//! one, and one that fails is either told to the machine or tried again until it works.
//!
//! Which effects, in which order, is the machine's decision (crate `transship-protocol`); how each
//! is done is [`Hands`].

use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use transship_protocol::{Driver, Effect, Failure, Machine};

/// Pause before an effect that failed is tried again, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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

/// What carries effects out.
pub trait Hands {
    /// The machine it works for.
    type Machine: Machine;

    /// Does one effect; must succeed when it finds the work done. `Err(Stop)` ends the holder.
    async fn act(
        &mut self,
        effect: Effect<<Self::Machine as Machine>::Entry, <Self::Machine as Machine>::Word>,
    ) -> Result<Result<(), Failed>>;

    /// An effect failed; `again` says that it will be tried again.
    fn failed(&mut self, failed: &Failed, again: bool);

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
    loop {
        while let Some(effect) = driver.next_effect() {
            match hands.act(effect).await? {
                Ok(()) => {
                    driver.done();
                    pause = FIRST_PAUSE;
                }
                Err(failed) => {
                    let taken = driver.failed(failed.kind);
                    hands.failed(&failed, !taken);
                    if !taken {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use transship_protocol::{SourceEffect, SourceEvent, SourceMachine};

    /// Fails `CloseNetwork` as often as told, and notes every effect.
    struct Paper {
        done: Vec<String>,
        close_failures: u32,
        thaw_failures: u32,
    }

    impl Hands for Paper {
        type Machine = SourceMachine;

        async fn act(&mut self, effect: SourceEffect) -> Result<Result<(), Failed>> {
            let failures = match effect {
                Effect::CloseNetwork => &mut self.close_failures,
                Effect::ThawTasks(_) => &mut self.thaw_failures,
                _ => &mut 0,
            };
            if *failures > 0 {
                *failures -= 1;
                return Ok(Err(Failed::other("Test", anyhow::anyhow!("no"))));
            }
            self.done.push(format!("{effect:?}").split(['(', ' ']).next().unwrap().to_owned());
            Ok(Ok(()))
        }

        fn failed(&mut self, _: &Failed, again: bool) {
            self.done.push(if again { "again" } else { "told" }.into());
        }

        fn observe(&mut self, _: &SourceMachine, _: bool) {}

        fn is_closed(machine: &SourceMachine) -> bool {
            machine.is_closed()
        }
    }

    #[tokio::test]
    async fn a_failure_before_the_vote_opens_and_thaws_however_often_that_must_be_tried() {
        let mut hands = Paper { done: Vec::new(), close_failures: 1, thaw_failures: 2 };
        let (sender, mut events) = mpsc::channel(4);
        sender.send(SourceEvent::Begin).await.unwrap();
        sender.send(SourceEvent::FreezeNow).await.unwrap();
        let driver = Driver::new(SourceMachine::new(), Vec::new());
        drive(driver, &mut hands, &mut events).await.unwrap();
        let done = hands.done.join(" ");
        let abort = done.split_once("told ").expect("the machine was told").1;
        assert_eq!(
            abort,
            "Journal WriteRecord OpenNetwork Announce again again ThawTasks Journal Publish"
        );
    }
}
