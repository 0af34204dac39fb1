//! What must hold in every state, and what an end is.

use super::super::search::{Broken, Space, Steps};
use super::actors::{Action, successors};
use super::host::Which;
use super::world::{CONTAINERS, Env, Side, Tasks, World};
use crate::{Driver, SourceOutcome, SourcePhase, TargetOutcome, TargetPhase};

impl Space for World {
    type Action = Action;

    fn successors(&self, out: &mut Steps<Self>) {
        successors(self, out);
    }

    fn invariant(&self) -> Result<(), Broken> {
        // But for what a restore let go: see the module's head.
        let copies = [self.s.env.runs(), self.t.env.runs(), self.replica];
        if copies.into_iter().filter(|runs| *runs).count() > 1 {
            return Err("two copies run");
        }
        if self.s.env.net && self.t.env.net {
            return Err("the address is open on both nodes");
        }
        if self.t.env.loose && self.t.env.net {
            return Err("what ran on the target before it was frozen reaches the network");
        }
        if self.t.env.restored > CONTAINERS {
            return Err("a container was restored twice");
        }
        let recorded = self.api.recorded;
        if !recorded.is_lawful() {
            return Err("resumedAt and a resolution are recorded");
        }
        let t_phase = self.t_phase();
        let never = matches!(
            t_phase,
            TargetPhase::NeverThawed | TargetPhase::Closed(TargetOutcome::NeverThawed)
        ) || self.t.word.outcome == Some(TargetOutcome::NeverThawed);
        if never && self.t_ran {
            return Err("the target says that it never ran, but it did");
        }
        let s_phase = self.s_phase();
        let held_back =
            matches!(s_phase, SourcePhase::Voted | SourcePhase::Committed | SourcePhase::Moved);
        if held_back && self.s.env.runs() {
            return Err("a voted source runs undecided");
        }
        if self.s.env.runs() && self.t_ran && !self.s.env.sockets_destroyed && !self.s.env.rebooted
        {
            return Err("the source goes on with connections that the target has served");
        }
        Ok(())
    }

    /// Everything is closed and the right copy runs.
    fn is_end(&self) -> bool {
        let quiet = |env: &Env| {
            let moves = env.inflight.is_some() || env.dying || env.dumping;
            let left = env.residue || env.loose;
            env.dead || (env.tasks != Tasks::Frozen && !moves && !left)
        };
        let s_idle = self.s.holder.as_ref().is_none_or(Driver::is_idle);
        let t_idle = self.t.holder.as_ref().is_none_or(Driver::is_idle);
        let s_closed =
            self.s.env.dead || self.s.journal.is_empty() || self.s.word.outcome.is_some();
        let t_closed = self.t.env.dead || self.t.journal.is_empty() || self.t.word.closed;
        if self.api.exists
            || !quiet(&self.s.env)
            || !quiet(&self.t.env)
            || !(s_idle || self.s.env.dead)
            || !(t_idle || self.t.env.dead)
            || !s_closed
            || !t_closed
        {
            return false;
        }
        let resumed = self.t_phase() == TargetPhase::Closed(TargetOutcome::Resumed);
        let target_won = match self.s.word.outcome {
            // One whose pod has gone with its node's object ends without knowing.
            Some(SourceOutcome::Released) => resumed || !self.s.env.deleted,
            Some(SourceOutcome::Opened) => false,
            None => self.s.env.dead && resumed,
        };
        let winner = if target_won { Side::T } else { Side::S };
        let runs = self.env(winner).runs() || self.replica;
        let loser = if target_won { &self.s.env } else { &self.t.env };
        let excused = self.pod_deleting(winner) || self.env(winner).dead;
        (loser.dead || loser.tasks == Tasks::Absent) && (runs || excused)
    }
    fn is_sure(action: Action) -> bool {
        action.is_sure()
    }

    fn tell(&self, action: Action) -> String {
        match action {
            Action::DoEffect(Side::S, Which::First) => {
                let effect = self.s.holder.as_ref().and_then(Driver::next_effect);
                format!("{action:?} {effect:?}")
            }
            Action::DoEffect(Side::T, Which::First) => {
                let effect = self.t.holder.as_ref().and_then(Driver::next_effect);
                format!("{action:?} {effect:?}")
            }
            _ => format!("{action:?}"),
        }
    }

    fn show(&self) -> String {
        format!(
            "M {:?} exists {} | S {:?} {:?} {:?} | T {:?} {:?} {:?} ran {} | fail-over {}",
            self.api.recorded,
            self.api.exists,
            self.s_phase(),
            self.s.env.record,
            self.s.env.tasks,
            self.t_phase(),
            self.t.env.record,
            self.t.env.tasks,
            self.t_ran,
            self.replica,
        )
    }
}
