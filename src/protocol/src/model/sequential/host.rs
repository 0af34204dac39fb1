//! A node, as far as one pod on it goes, and what effects do there.

use crate::effect::{Effect, Facts, Failure, Machine};
use crate::rules::{Rule, holds};
use crate::{Driver, Part, PodSeen, RecordState};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tasks {
    Absent,
    Running,
    Frozen,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host<M: Machine> {
    pub tasks: Tasks,
    pub record: Option<RecordState>,
    /// The state has arrived on the disk.
    pub stored: bool,
    /// It is durable there.
    pub durable: bool,
    pub rebooted: bool,
    /// It is down for ever.
    pub dead: bool,
    pub journal: Vec<M::Entry>,
    pub holder: Option<Driver<M>>,
    /// A second one beside it (there should be none).
    pub second: Option<Driver<M>>,
    pub word: M::Word,
    /// Only files move.
    pub cold: bool,
    /// A pod made again, on the source's node.
    pub at_source: bool,
    /// A pod made again: its object.
    pub pod: PodSeen,
    /// Its one restore has been made.
    pub restored: bool,
    /// CRIU dumps it.
    pub dumping: bool,
    /// It ran while it was dumped.
    pub torn: bool,
    /// Its restore died; nobody says so.
    pub died: bool,
    /// Among its tasks are some that ran before they were frozen (ghost).
    pub loose: bool,
    /// Something of it has run, be it that it was thawed or let go.
    pub ran: bool,
    /// A container's root is mounted in runc's state of it.
    pub residue: bool,
    /// Of the source: its tasks still are the state that moves when their shim has died.
    pub source: bool,
    /// Its tasks live without their shim.
    pub orphan: bool,
    /// A container was made beside them.
    pub beside: bool,
    /// Nothing has been heard of it for long.
    pub silent: bool,
    /// None of our objects was there when somebody looked at its node: that registers anew.
    pub anew: bool,
    /// The API server cannot be reached.
    pub cut: bool,
    /// It could be reached since everything arrived.
    pub heard: bool,
    /// Cold: its tasks were ended, or have not begun here, and its files are to be put into their place.
    pub unfilled: bool,
    /// Cold: it was started with its files.
    pub started_again: bool,
    /// Cold: and ended again.
    pub ended_again: bool,
    /// Cold: the ended containers were deleted before their files were kept.
    pub collected: bool,
}

impl<M: Machine<Word: Default>> Host<M> {
    pub fn new(tasks: Tasks, machine: M, part: Part) -> Self {
        Self {
            tasks,
            record: None,
            stored: false,
            durable: false,
            rebooted: false,
            dead: false,
            journal: Vec::new(),
            holder: Some(Driver::new(machine, Vec::new())),
            second: None,
            word: M::Word::default(),
            cold: part.is_cold(),
            at_source: part.is_at_source(),
            pod: PodSeen::Alive,
            restored: false,
            dumping: false,
            torn: false,
            died: false,
            loose: false,
            ran: false,
            residue: false,
            source: false,
            orphan: false,
            beside: false,
            silent: false,
            anew: false,
            cut: false,
            heard: false,
            unfilled: part.is_cold() && part.is_again(),
            started_again: false,
            ended_again: false,
            collected: false,
        }
    }

    pub fn runs(&self) -> bool {
        self.tasks == Tasks::Running && !self.dead
    }

    /// A target has lost what lives without its shim.
    pub fn is_lost_with_its_shim(&self) -> bool {
        self.orphan && !self.source && holds(Rule::OrphansAreLost)
    }

    pub fn facts(&self) -> Facts {
        let tasks = self.tasks != Tasks::Absent && !self.is_lost_with_its_shim();
        Facts { same_boot: !self.rebooted, tasks, lapsed: false }
    }

    /// The node loses its power.
    pub fn power_cut(&mut self) {
        self.holder = None;
        self.second = None;
        self.tasks = Tasks::Absent;
        self.dumping = false;
        self.loose = false;
        self.residue = false;
        self.orphan = false;
        self.stored = self.durable;
    }

    /// Cold: the application ends, asked to or killed; its files stay where they are.
    pub fn end_tasks(&mut self) {
        self.ended_again |= self.started_again && self.tasks == Tasks::Running;
        self.unfilled |= self.tasks != Tasks::Absent;
        self.tasks = Tasks::Absent;
    }

    /// SIGKILL while frozen.
    pub fn kill_frozen(&mut self) {
        self.tasks = Tasks::Absent;
        self.orphan = false;
        self.loose &= !holds(Rule::KillsByCgroup);
    }

    /// One effect; `Err` is the failure that the machine is told.
    fn perform(&mut self, effect: Effect<M::Entry, M::Word>) -> Result<(), Failure> {
        match effect {
            Effect::Journal(entry) => self.journal.push(entry),
            Effect::Publish(word) => self.word = word,
            Effect::WriteRecord(state) => {
                if state == RecordState::Open && self.orphan && holds(Rule::OrphansEndFirst) {
                    self.kill_frozen();
                }
                self.record = Some(state);
            }
            Effect::FreezeTasks => match self.tasks {
                Tasks::Absent => return Err(Failure::TasksLost),
                Tasks::Running | Tasks::Frozen => self.tasks = Tasks::Frozen,
            },
            Effect::FindTasks if self.tasks != Tasks::Running => return Err(Failure::TasksLost),
            Effect::EndTasks => {
                // Those that were found and have ended by themselves since have files too.
                self.unfilled |= !self.rebooted && !self.started_again;
                self.end_tasks();
            }
            // What a reboot has taken cannot be kept any more.
            Effect::KeepFiles => {
                self.stored |= !self.rebooted;
                self.durable = self.stored;
            }
            Effect::VerifyTasks if self.cold && self.tasks == Tasks::Absent => {}
            Effect::VerifyTasks if self.tasks != Tasks::Frozen => return Err(Failure::TasksLost),
            Effect::VerifyTasks | Effect::ThawTasks(_) if self.is_lost_with_its_shim() => {
                return Err(Failure::TasksLost);
            }
            Effect::SyncState => self.durable = self.stored,
            // What has ended meanwhile is thawed: so may end any application that was.
            Effect::ThawTasks(_) => {
                self.dumping &= !holds(Rule::DumpEndsBeforeThaw);
                if self.tasks == Tasks::Frozen {
                    self.tasks = Tasks::Running;
                    self.ran = true;
                }
            }
            Effect::VerifyNeverRan if self.ran => return Err(Failure::MayHaveRun),
            Effect::KillTasksFrozen => {
                self.kill_frozen();
                self.residue &= !holds(Rule::LoserLeavesNothing);
            }
            _ => {}
        }
        Ok(())
    }
}

impl<M: Machine<Word: Default> + Clone> Host<M> {
    /// The holder does its next effect.
    pub fn work(&self) -> Option<Self> {
        self.work_of(self.holder.as_ref()?, |host| &mut host.holder)
    }

    /// The second holder does its next effect.
    pub fn second_works(&self) -> Option<Self> {
        self.work_of(self.second.as_ref()?, |host| &mut host.second)
    }

    fn work_of(
        &self,
        driver: &Driver<M>,
        of: fn(&mut Self) -> &mut Option<Driver<M>>,
    ) -> Option<Self> {
        let effect = driver.next_effect()?;
        let mut next = self.clone();
        let done = next.perform(effect);
        let driver = of(&mut next).as_mut()?;
        // Freezing what is gone is done, but for a source before its vote.
        if done.map_or_else(|failure| !driver.failed(failure), |()| true) {
            driver.done();
        }
        Some(next)
    }

    /// A second holder, rebuilt from the journal like any other: only if nothing keeps it from being started.
    pub fn beside(&self, second: impl FnOnce() -> Driver<M>) -> Option<Self> {
        let may = !holds(Rule::OneHolder) && self.holder.is_some() && self.second.is_none();
        may.then(|| Self { second: Some(second()), ..self.clone() })
    }

    /// The holder's next effect cannot be done.
    pub fn fail(&self) -> Option<Self> {
        let mut next = self.clone();
        let driver = next.holder.as_mut()?;
        if matches!(driver.next_effect()?, Effect::Journal(_) | Effect::Publish(_)) {
            return None;
        }
        driver.failed(Failure::Other).then_some(next)
    }

    /// Cold: the holder has asked the application to end, and it does; the holder has not noticed yet.
    pub fn ends(&self) -> Option<Self> {
        let asked = matches!(self.holder.as_ref()?.next_effect(), Some(Effect::EndTasks));
        (asked && self.tasks != Tasks::Absent).then(|| {
            let mut next = self.clone();
            next.end_tasks();
            next
        })
    }
}
