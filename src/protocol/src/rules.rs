//! The rules of the protocol, by name. In the product every rule holds. The model checker breaks
//! them one at a time, to show that each is needed and that the search would notice.

/// One rule.
#[cfg_attr(not(test), allow(dead_code, reason = "some are broken by the model's actors only"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// The decision, `resumedAt` and the resolution are written with the resourceVersion read, and the API server
    /// refuses to change them.
    ConditionalWrites,
    /// The operator re-reads Migration and pods uncached before it decides.
    UncachedReads,
    /// Commit needs both votes.
    CommitNeedsBothVotes,
    /// Commit needs S's claim.
    CommitNeedsClaim,
    /// A resolution needs a proof that the target stopped or never ran.
    ResolutionNeedsProof,
    /// Fail-over writes the decision before it restores a version.
    FailoverDecidesFirst,
    /// Fail-over restores a version only if neither side can run.
    FailoverOnlyIfNeitherRuns,
    /// A holder acts on a decision it has itself read, never on a call.
    HintsAreNotDecisions,
    /// A decision of another Migration with the same name is not ours.
    DecisionIsOfOwnUid,
    /// Commit counts only if the own vote is journalled.
    CommitNeedsOwnVote,
    /// A vote is journalled before it is published.
    VoteIsJournalledFirst,
    /// A side votes only after it has checked that its tasks are there, whole and frozen.
    VotesOnlyWhenVerified,
    /// After its vote the source does not give up by itself.
    SourceObeysAfterVote,
    /// After a reboot the source stays refused until the decision.
    SourceWaitsAfterReboot,
    /// The source's record is open, and the network, before it thaws.
    SourceOpensBeforeThaw,
    /// The source waits for verbs already let through before it freezes.
    SourceQuiesces,
    /// A Migration that vanished is not an abort.
    VanishedIsNotAbort,
    /// When the Migration has vanished, only the target's final word counts.
    OnlyTheLastWordCounts,
    /// When the Migration has vanished, a final word stays until the other side has heard it.
    WordsStayUntilHeard,
    /// A source that comes back after its node was given up, and finds the other side forgotten, ends with its pod.
    ForgottenEndsWithPod,
    /// A node that has nothing published while the cluster has it registers anew, and has not left.
    AnewIsNotGone,
    /// A node does not leave, and its targets' signatures with it, while a Commit of theirs stands open.
    LeavesOnlyWhenSettled,
    /// The source is killed only after `resumedAt`.
    KilledOnlyAfterResumed,
    /// The source is killed only after the target's last word `resumed`.
    KilledOnlyAfterLastWord,
    /// When the target may have run, the source's connections are destroyed before it goes on.
    UnknownDestroysSockets,
    /// The target's record is `held` before it votes.
    TargetHoldsBeforeVote,
    /// The target waits for verbs already let through before it votes.
    TargetQuiesces,
    /// `thawing` is journalled before the thaw.
    ThawingIsJournalledFirst,
    /// The target thaws only while its dead-man has not expired.
    ThawIsGuarded,
    /// A dead-man that has expired since the vote stays expired until `resumedAt` is read.
    LapseIsSticky,
    /// The dead-man freezes an unconfirmed target in time.
    DeadmanFreezes,
    /// The dead-man acts also after its holder has died.
    DeadmanOutlivesHolder,
    /// The operator counts a target's silence only while a Commit stands open.
    ProofFollowsCommit,
    /// A target that will never thaw signs off only if it has read an Abort, or had not voted.
    SignsOffOnlySettled,
    /// The target's record is not opened before the thaw.
    TargetOpensAfterThaw,
    /// The target's record is opened only when `resumedAt` was read.
    TargetOpensOnlyConfirmed,
    /// After a reboot a target that had begun to thaw does not say that it never ran.
    RebootIsNotNeverThawed,
    /// A target whose dead-man expired stops for good when the Migration has vanished.
    LapsedStopsWhenVanished,
    /// The loser's tasks are killed.
    LoserIsReaped,
    /// Before a target says that its tasks are lost, whatever is left of them is killed.
    LostIsReaped,
    /// A target's tasks whose shim has died are lost: they are not voted for and never thawed.
    OrphansAreLost,
    /// Tasks whose shim has died are killed before the record opens, which lets kubelet start their container afresh;
    /// where it dies later and containerd does not have them deleted, before that container is made.
    OrphansEndFirst,
    /// Wrapper: no create on an undecided source.
    FrozenRefusesCreate,
    /// Wrapper: no kill on an undecided source.
    FrozenRefusesKill,
    /// Wrapper: no delete on an undecided source, whose files may be the only ones.
    FrozenRefusesDelete,
    /// Wrapper: no create on a held target.
    HeldRefusesCreate,
    /// Wrapper: no kill on a held target.
    HeldRefusesKill,
    /// Wrapper: no create on a source that has moved.
    MovedRefusesCreate,
    /// Wrapper: no create on a target that lost.
    AbortedRefusesCreate,
    /// Wrapper: a loser's tasks are killed while frozen, never thawed by runc's kill.
    LoserIsKilledFrozen,
    /// A container is restored at most once.
    TicketIsConsumed,
    /// T's pod is not bound to a node before its record is there (scheduling gate).
    GateUntilRecord,
    /// One holder per journal (flock).
    OneHolder,
    /// One migration per pod: none begins while another's journal is open.
    OneMigration,
    /// A dump during which tasks ran is not sent: CRIU thaws them for it, and lets go when it dies.
    DumpIsWhole,
    /// The source thaws only when no dump is at work any more, which would freeze it once more.
    DumpEndsBeforeThaw,
    /// A target votes only if the API server could be reached since everything arrived.
    VotesOnlyInContact,
    /// A restore that ends without a word is a failure, and not a wait.
    RestoresAreWatched,
    /// Wrapper: runc deletes nothing while a container's root is mounted in its state.
    DeleteDetaches,
    /// A target that gives up leaves nothing of a restore behind.
    LoserLeavesNothing,
    /// A restore whose CRIU died does not count, though what it let go be frozen afterwards: it has run.
    RestoreIsWhole,
    /// Sequential: a pod made again of which something may have run does not say that it never thawed.
    WhatRanIsToldOf,
    /// Sequential: memory is not restored on volumes that may be newer unless somebody wants it.
    NewerVolumesAreAskedFor,
    /// Sequential: a try of which its node has not told before it left the cluster may have run.
    GoneNodesAreAskedFor,
    /// Sequential: a deletion that nobody has asked for gives no memory up.
    OnlyTheAskedGiveUp,
    /// What is killed is whatever the cgroups hold, not only what was held.
    KillsByCgroup,
    /// A side whose tasks have ended before its vote says so, and does not wait.
    TasksAreWatched,
    /// Sequential: a side votes only when the whole state is durable on its disk.
    StateIsDurable,
    /// Sequential: a trial has no way to a thaw.
    TrialNeverThaws,
    /// Sequential: the source ends only after it has itself read Commit.
    YieldsOnlyAfterCommit,
    /// Sequential: the pod is made again only after the source's word `Released`.
    AgainOnlyAfterReleased,
    /// Sequential: a further try is made only after the last word of the one before.
    AgainOnlyAfterLastWord,
    /// Sequential: a pod made again runs only when it has itself read what calls for it.
    AgainNeedsCommit,
    /// Sequential: nobody takes a target for gone because nothing is heard of it.
    SilenceIsNoProof,
    /// Sequential: a Migration that is deleted after the Commit goes when the pod runs again.
    DeletedFinishesFirst,
    /// The address of a pod that is gone stays lent until its node has nothing of it.
    GoneNeedsItsSandboxGone,
    /// The address of a pod that says none stays lent.
    SilenceKeepsTheAddress,
    /// The address of a pod that says others only is over.
    LeavingGivesBack,
    /// An address is given back only if it is still lent to the pod that was asked about.
    OnlyTheAskedIsGivenBack,
    /// Cold: that containers end is journalled only under a record that refuses their creation.
    EndsOnlyRefused,
    /// Cold: containers are started again only when their files are kept.
    StartNeedsFiles,
    /// Cold: the record is opened only when every container was started with its files.
    OpensOnlyStarted,
    /// Cold: a pod that is removed meanwhile is not waited for.
    StartEndsWithPod,
    /// Cold: that containers may start again is journalled first, so that nobody ends them once more.
    StartIsJournalledFirst,
}

/// Whether the rule holds: always, but in the model checker's own thread.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn holds(_: Rule) -> bool {
    true
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// Whether the rule holds on this thread.
#[cfg(test)]
pub(crate) fn holds(rule: Rule) -> bool {
    BROKEN.get() != Some(rule)
}

/// Breaks one rule on this thread, or none.
#[cfg(test)]
pub(crate) fn break_rule(rule: Option<Rule>) {
    BROKEN.set(rule);
}

#[cfg(test)]
impl Rule {
    /// Every rule.
    pub(crate) const ALL: &'static [Rule] = &[
        Rule::ConditionalWrites,
        Rule::UncachedReads,
        Rule::CommitNeedsBothVotes,
        Rule::CommitNeedsClaim,
        Rule::ResolutionNeedsProof,
        Rule::FailoverDecidesFirst,
        Rule::FailoverOnlyIfNeitherRuns,
        Rule::HintsAreNotDecisions,
        Rule::DecisionIsOfOwnUid,
        Rule::CommitNeedsOwnVote,
        Rule::VoteIsJournalledFirst,
        Rule::VotesOnlyWhenVerified,
        Rule::SourceObeysAfterVote,
        Rule::SourceWaitsAfterReboot,
        Rule::SourceOpensBeforeThaw,
        Rule::SourceQuiesces,
        Rule::VanishedIsNotAbort,
        Rule::OnlyTheLastWordCounts,
        Rule::WordsStayUntilHeard,
        Rule::ForgottenEndsWithPod,
        Rule::AnewIsNotGone,
        Rule::LeavesOnlyWhenSettled,
        Rule::KilledOnlyAfterResumed,
        Rule::KilledOnlyAfterLastWord,
        Rule::UnknownDestroysSockets,
        Rule::TargetHoldsBeforeVote,
        Rule::TargetQuiesces,
        Rule::ThawingIsJournalledFirst,
        Rule::ThawIsGuarded,
        Rule::LapseIsSticky,
        Rule::DeadmanFreezes,
        Rule::DeadmanOutlivesHolder,
        Rule::ProofFollowsCommit,
        Rule::SignsOffOnlySettled,
        Rule::TargetOpensAfterThaw,
        Rule::TargetOpensOnlyConfirmed,
        Rule::RebootIsNotNeverThawed,
        Rule::LapsedStopsWhenVanished,
        Rule::LoserIsReaped,
        Rule::LostIsReaped,
        Rule::OrphansAreLost,
        Rule::OrphansEndFirst,
        Rule::FrozenRefusesCreate,
        Rule::FrozenRefusesKill,
        Rule::FrozenRefusesDelete,
        Rule::HeldRefusesCreate,
        Rule::HeldRefusesKill,
        Rule::MovedRefusesCreate,
        Rule::AbortedRefusesCreate,
        Rule::LoserIsKilledFrozen,
        Rule::TicketIsConsumed,
        Rule::GateUntilRecord,
        Rule::OneHolder,
        Rule::OneMigration,
        Rule::DumpIsWhole,
        Rule::DumpEndsBeforeThaw,
        Rule::VotesOnlyInContact,
        Rule::RestoresAreWatched,
        Rule::DeleteDetaches,
        Rule::LoserLeavesNothing,
        Rule::RestoreIsWhole,
        Rule::WhatRanIsToldOf,
        Rule::NewerVolumesAreAskedFor,
        Rule::GoneNodesAreAskedFor,
        Rule::OnlyTheAskedGiveUp,
        Rule::KillsByCgroup,
        Rule::TasksAreWatched,
        Rule::StateIsDurable,
        Rule::TrialNeverThaws,
        Rule::YieldsOnlyAfterCommit,
        Rule::AgainOnlyAfterReleased,
        Rule::AgainOnlyAfterLastWord,
        Rule::AgainNeedsCommit,
        Rule::SilenceIsNoProof,
        Rule::DeletedFinishesFirst,
        Rule::GoneNeedsItsSandboxGone,
        Rule::SilenceKeepsTheAddress,
        Rule::LeavingGivesBack,
        Rule::OnlyTheAskedIsGivenBack,
        Rule::EndsOnlyRefused,
        Rule::StartNeedsFiles,
        Rule::OpensOnlyStarted,
        Rule::StartEndsWithPod,
        Rule::StartIsJournalledFirst,
    ];
}
