//! Cold: the application ends gracefully, its files move, and it starts afresh with them. The order is the
//! sequential one with these differences.
//!
//! ```text
//! S end       journal Freezing → record frozen → wrapper quiet → tasks found → journal Ending → tasks ended … files
//!             kept and sent
//! S vote      nothing is left of the tasks → files durable → journal Voted → publish
//! S abort     before Ending: as in the other orders, nothing was touched
//!             journal Decided(Abort) | AbortedBeforeVote → tasks ended → files kept durably → journal Starting
//!             → record starting → network open … all started: record open → journal Opened
//! place vote  record held → wrapper quiet → files durable → journal Voted → publish
//! again       journal Begun → record prepared … its sandbox is up: read Commit → journal Thawing → network open
//!             → record starting … all started: journal Thawed → Confirmed → record open → journal Closed(Resumed)
//! ```
//!
//! * `Ending` is journalled when the record refuses what kubelet might do and what is to end was found: from there
//!   on the way back is through the end, before it nothing has happened to the containers.
//! * An ended container stays *running* for kubelet as long as the wrapper refuses runc's `delete`: nobody
//!   starts it anew, and nobody collects the directory with its changes. That it has no process must be kept
//!   from a containerd that restarts, which would take it for one that never came to life. A shim that dies takes
//!   the directory along all the same; whose files are lost is told.
//! * What ended and was not moved is started again by kubelet, as after any end, but with its files: a record
//!   `starting` has the wrapper put them into each container's new root before runc creates it. They are put
//!   there as often as that takes; only when every container was started with them the record is opened.
//! * Once containers may start again nobody ends them any more: `Starting` is journalled before the record.
//! * A pod that was made again and may have begun to start goes on after a reboot: its files are still there.

use crate::effect::{Effect, Guard};
use crate::record::RecordState;
use crate::rules::{Rule, holds};
use crate::source::{Plan, SourceEntry};
use crate::target;

impl Plan {
    /// To the end of the containers, with their network: they may have things to finish.
    pub(crate) fn end(self) -> Self {
        self.with(Effect::FindTasks).journal(SourceEntry::Ending).with(Effect::EndTasks)
    }

    /// From wherever containers stand that were to end, under the record `frozen`, to ended ones that kubelet
    /// starts again.
    pub(crate) fn give_back(self) -> Self {
        let mut plan = self.with(Effect::EndTasks);
        if holds(Rule::StartNeedsFiles) {
            plan = plan.with(Effect::KeepFiles);
        }
        if holds(Rule::StartIsJournalledFirst) {
            plan = plan.journal(SourceEntry::Starting);
        }
        plan.start_again()
    }

    /// After `Starting`.
    pub(crate) fn start_again(self) -> Self {
        let plan = self
            .with(Effect::WriteRecord(RecordState::Starting))
            .with(Effect::OpenNetwork(Guard::None))
            .with(Effect::Announce);
        let plan = match holds(Rule::StartIsJournalledFirst) {
            true => plan,
            false => plan.journal(SourceEntry::Starting),
        };
        if holds(Rule::OpensOnlyStarted) { plan } else { plan.started() }
    }

    /// Every container was started, or none will be any more.
    pub(crate) fn started(self) -> Self {
        let memory_lost = self.memory_lost();
        self.with(Effect::WriteRecord(RecordState::Open))
            .journal(SourceEntry::Opened { memory_lost })
            .publish()
    }
}

impl target::Plan {
    /// After `Thawing` of a pod that was made again.
    pub(crate) fn start_with_files(self) -> Self {
        let plan = self
            .with(Effect::OpenNetwork(Guard::None))
            .with(Effect::Announce)
            .with(Effect::WriteRecord(RecordState::Starting));
        match holds(Rule::OpensOnlyStarted) {
            true => plan,
            false => plan.with(Effect::WriteRecord(RecordState::Open)),
        }
    }
}
