//! What must hold in every state, and what an end is.

use super::super::search::{Broken, Space, Steps};
use super::host::{Host, Tasks};
use super::world::{Moves, Step, TARGETS, World};
use super::{kubelet, operator, sides};
use crate::{
    Decision, PodSeen, SourceOutcome, SourcePhase, TargetMachine, TargetOutcome, TargetPhase,
};

/// It has voted, or is about to thaw.
fn goes_on(host: &Host<TargetMachine>) -> bool {
    use TargetPhase::{Committed, Confirmed, Thawed, Thawing, Voted};
    let phase = host.holder.as_ref().map(|driver| driver.machine().phase());
    matches!(phase, Some(Voted | Committed | Thawing | Thawed | Confirmed))
}

impl World {
    /// The Migration has vanished, no Commit is known, and somebody has removed S's object.
    fn is_removed_undecided(&self) -> bool {
        let committed = self.recorded.decision == Some(Decision::Commit);
        !self.exists && !committed && !self.s_object
    }
}

impl Space for World {
    type Action = Step;

    fn successors(&self, out: &mut Steps<Self>) {
        let mut moves = Moves { out };
        sides::sources(self, &mut moves);
        kubelet::source_pod(self, &mut moves);
        for place in TARGETS {
            sides::targets(self, place, &mut moves);
        }
        kubelet::target_pods(self, &mut moves);
        operator::operator(self, &mut moves);
        operator::forge(self, &mut moves);
    }

    fn invariant(&self) -> Result<(), Broken> {
        let targets = TARGETS.into_iter().filter_map(|place| self.target(place));
        let copies = usize::from(self.s.runs()) + targets.filter(|host| host.runs()).count();
        if copies > 1 {
            return Err("two copies run");
        }
        if self.trial.runs() {
            return Err("the trial runs");
        }
        let mut targets = TARGETS.into_iter().filter_map(|place| self.target(place));
        if self.s.beside || targets.any(|host| host.beside) {
            return Err("a container is made anew beside its tasks");
        }
        if self.dated {
            return Err("older memory is restored on newer volumes and nobody wanted it");
        }
        if self.unmeant {
            return Err("memory is given up and nobody who was asked has said so");
        }
        if self.afresh {
            return Err("a pod starts afresh though its state is kept");
        }
        if self.s.ended_again {
            return Err("a source that goes on is ended once more");
        }
        if self.s.collected {
            return Err("the files of an ended pod are removed before they are kept");
        }
        if self.through_mount {
            return Err("runc's delete goes through the mounted root of the container");
        }
        let mut targets = TARGETS.into_iter().filter_map(|place| self.target(place));
        if targets.any(|host| host.loose && goes_on(host)) {
            return Err("a target goes on with tasks that ran before they were frozen");
        }
        let committed = self.recorded.decision == Some(Decision::Commit);
        if committed && !self.trial.heard {
            return Err("Commit though the target has never been able to learn it");
        }
        let s_phase = self.s.holder.as_ref().map(|d| d.machine().phase());
        if s_phase == Some(SourcePhase::Voted) && self.s.torn {
            return Err("the source votes for a dump during which it ran");
        }
        if s_phase == Some(SourcePhase::Voted) && self.s.runs() {
            return Err("a voted source runs undecided");
        }
        let ended = matches!(s_phase, Some(SourcePhase::Moved | SourcePhase::Released));
        if ended && !committed && self.exists {
            return Err("the source ends without a Commit");
        }
        let in_two_places = self.s.durable && (self.trial.durable || self.trial.dead);
        // Of what has vanished undecided, its pod removed, nobody wants anything.
        if ended && !self.resumed && !in_two_places && !self.is_removed_undecided() {
            return Err("the state is not durable in two places when the source ends");
        }
        Ok(())
    }

    /// Everything is over and one copy runs, or was lost or removed as an ordinary pod may be; or somebody is asked.
    fn is_end(&self) -> bool {
        let closed =
            |host: &Host<TargetMachine>| host.dead || host.word.closed || host.journal.is_empty();
        let s_over = self.s.dead || self.s.word.outcome.is_some() || self.s.journal.is_empty();
        let released = self.s.word.outcome == Some(SourceOutcome::Released);
        let s_runs = self.s.runs() && !released;
        let again_runs = self.again.as_ref().is_some_and(|host| {
            host.word.outcome == Some(TargetOutcome::Resumed) && host.tasks != Tasks::Frozen
        });
        let trial_gone = self.trial.dead || self.trial.tasks == Tasks::Absent;
        // Without its Migration nobody makes the pod again; its state stays on the disks.
        let durable = self.s.durable && (self.trial.durable || self.trial.dead);
        let none_again = self.again.as_ref().is_none_or(|host| {
            let has_begun = host.pod != PodSeen::Gone || !host.journal.is_empty();
            let is_over = matches!(
                host.word.outcome,
                Some(TargetOutcome::NeverThawed | TargetOutcome::Stopped)
            );
            host.dead || !has_begun || is_over
        });
        let orphaned = self.stripped && released && none_again && durable;
        let undecided = self.recorded.decision != Some(Decision::Commit) || !self.exists;
        // It is lost with the node on which it was, or had been confirmed, like any other pod there.
        let lost = (self.s.dead && undecided && none_again)
            || (self.resumed && self.again.as_ref().is_some_and(|host| host.dead));
        // It went back to a node that is gone: nobody but an administrator can help.
        let nowhere = self.s.dead && self.recorded.resolution.is_some();
        let given_up = operator::is_given_up(self);
        let asked = self.asked && operator::is_asked_for(self);
        let removed = match released {
            true => self.is_removed_undecided(),
            false => self.s_deleting && !self.s_object && undecided,
        };
        let unwanted = operator::is_unwanted(self);
        let over = orphaned || lost || nowhere || removed || asked || given_up;
        let clean = |host: &Host<TargetMachine>| !host.loose && !host.residue;
        s_over
            && !self.s.dumping
            && (!self.deleting || !self.exists || (asked && !given_up))
            && clean(&self.trial)
            && self.again.as_ref().is_none_or(clean)
            && closed(&self.trial)
            && trial_gone
            && (s_runs != again_runs || over || unwanted)
    }

    fn is_sure(step: Step) -> bool {
        step.sure
    }

    fn tell(&self, step: Step) -> String {
        step.what.to_owned()
    }

    fn show(&self) -> String {
        let target = |host: &Host<TargetMachine>| {
            let phase = host.holder.as_ref().map(|d| d.machine().phase());
            format!("{phase:?} {:?} {:?}", host.record, host.tasks)
        };
        format!(
            "M {:?} exists {} | S {:?} {:?} {:?} | trial {} | again {:?}",
            self.recorded,
            self.exists,
            self.s.holder.as_ref().map(|d| d.machine().phase()),
            self.s.record,
            self.s.tasks,
            target(&self.trial),
            self.again.as_ref().map(target),
        )
    }
}
