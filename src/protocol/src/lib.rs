//! The commit protocol as pure transitions: used unchanged by the operator, by the holders on both
//! nodes, by the OCI wrapper and by the model checker in this crate's tests. No I/O, no clock.
//!
//! * [`wrapper_verdict`]: what the wrapper does under which record.
//! * [`SourceMachine`], [`TargetMachine`], run by a [`Driver`]: event in, ordered effects out. The
//!   state is the journal; `recover` rebuilds it after a crash or reboot.
//! * [`decide`] and the `may_…` functions: the operator.
//! * [`judge_read`]: what a quorum read of the Migration means to a holder; [`judge_node`]: one of the target's node.
//! * [`may_give_back`]: when an address that a pod took along is free again.
//! * [`Part`], [`may_yield`], [`may_make_again`], [`may_return`], [`must_be_asked_for`], [`gives_up_memory`]: the
//!   sequential order, for pods whose name or volume is exclusive; and the cold one, in which only files move.
//!
//! # Orders
//!
//! ```text
//! S freeze    journal Freezing → record frozen → wrapper quiet → network closed → tasks frozen
//! S vote      tasks verified → journal Voted → publish
//! S abort     journal Decided(Abort) | AbortedBeforeVote → record open → network open → announce → thaw → journal Opened
//! S commit    journal Decided(Commit) … resumedAt read, T's word `resumed` read → journal PeerResumed → record moved … release: kill frozen → journal Released
//!             … resolution read → journal Resolved → (connections destroyed) → as abort
//! T vote      record held → wrapper quiet → tasks verified → dead-man armed → journal Voted → publish
//! T abort     journal Decided(Abort) | AbortedBeforeVote | NeverThawed → publish → record aborted → wrapper quiet → kill frozen → journal Closed
//! T commit    journal Decided(Commit) → tasks verified → journal Thawing → guarded thaw → guarded network open → announce → journal Thawed → publish
//!             … resumedAt read → journal Confirmed → dead-man off → (thaw) → record open → journal Closed
//!             … resolution read → journal Stopping → freeze, close → record aborted → kill frozen → journal Closed → publish
//! ```
//!
//! # Where this is stricter than the first sketch of the protocol
//!
//! The model checker has a counter-example for each of these when the rule is broken.
//!
//! 1. **T's record is opened only when `resumedAt` was read**, not after the thaw. An open record
//!    lets kubelet start a fresh copy after a reboot of T's node (or a crash of the application),
//!    which no dead-man watches, while the operator, to whom the node looks dead, lets S go on.
//!    Between thaw and confirmation the record stays `held`: kubelet's verbs are refused for that
//!    moment.
//! 2. **An expired dead-man stays expired** from T's vote until it reads `resumedAt`. The operator
//!    reads a stale Lease and writes the resolution at some later moment; a T that came back in
//!    between, read "Commit, no resolution" and thawed would run beside S. So such a T says
//!    `neverThawed`, or, if it had run, stays frozen until the Migration settles it. For the same
//!    reason the dead-man is armed before the vote, and the thaw itself is guarded by it.
//! 3. **The signal is one**: what extends T's time is exactly what the operator looks at for its
//!    proof (T's own signature in its node's Lease, counted from the send time), not T's successful
//!    reads, nor the signatures of others on that node.
//! 4. **The wrapper judges and then acts**: a `kill` let through before S's record was `frozen`
//!    may reach runc afterwards, and `runc kill` thaws what it signals. So both sides wait until no
//!    such verb is at work ([`Effect::QuiesceWrapper`]) after their record is written and before
//!    they freeze (S) or vote (T).
//! 5. **A reboot of T after `thawing`** is neither `neverThawed` nor `resumed` but `lost`, which is
//!    not final while the Migration exists: `resumedAt` may have been recorded in that moment, and
//!    then T is the pod and starts fresh. Final words are `neverThawed`, `resumed`, `stopped`.
//!    Before it says `lost`, T closes its network and kills what is left: the sandbox may have outlived the
//!    tasks, and so may other tasks of the pod.
//! 6. **When the Migration has vanished** S acts only on such a final word (or on an
//!    administrator's, by removing T's node object), never on a stale Lease: a confirmed T is an
//!    ordinary pod and runs on when cut off. A T that runs closes as `resumed` only if its dead-man
//!    had not expired, asked *after* the read that found nothing ([`Effect::CheckDeadman`]);
//!    otherwise as `stopped`, since a resolution may have been recorded and read before.
//! 7. **`resumedAt` alone does not end S**; T's final word `resumed` must have been read too (or
//!    T's node object be gone). A T whose dead-man expired before it could read `resumedAt` stops
//!    for good if the Migration vanishes then, and S, killed on `resumedAt`, would be lost as well.
//! 8. **Votes follow a check** that the very tasks are there, whole and frozen, made after record
//!    and quiet: a kill let through under `restore` may have ended some.
//! 9. **Fail-over decides Commit with both votes in though S is being deleted**, if S's node is
//!    dead: the eviction of a dead node's pods sets that timestamp by itself. After `resumedAt` it
//!    restores a version only when S has been released (or is dead).
//!
//! 10. **The dead-man outlives the holder**: it counts and acts also while no holder runs and after
//!     one was started again, whatever the phase, until it is disarmed.
//! 11. **A dump counts only if nothing ran while it was taken.** CRIU thaws what it dumps and holds it by
//!     ptrace alone, so where it dies unguarded the source runs on under a record `frozen`. The tasks are frozen
//!     again, but what has been taken of them is not sent for good; and no dump outlives the thaw.
//! 12. **A target votes only in contact**: the API server could be reached since everything had arrived.
//!     A decision that cannot be read is one for which the source waits frozen. A target waits for that no longer
//!     than the pod may stand still, and gives up; a pod that was made again waits for as long as it takes.
//! 13. **A restore counts only if its CRIU lived until everything was frozen.** Killed just before that, it lets go
//!     what it had stopped. What runs then cannot be kept from it, but it reaches no network, it never
//!     becomes the pod though it be frozen afterwards, and it is killed by cgroup. Of a pod that was made again
//!     it is told (`Stopped` and not `NeverThawed`): such a one has its volumes, and older memory is restored on
//!     newer files only when somebody wants it.
//! 14. **The proof follows the Commit**: the operator counts a target's silence only from a read of
//!     an open Commit. A silence from before the vote, when no dead-man counted, proves nothing.
//! 15. **Tasks without their shim are lost** though they live, and so are those whose shim containerd could not
//!     reach and has forgotten: the runtime does not know them any more, and kubelet starts their containers
//!     afresh as soon as the record lets it. A target does not vote for them and never thaws them, and on both
//!     sides they are killed before the record opens. A source that is frozen keeps them until then, since its
//!     memory can still move; where it does not, its last word says that it is lost.
//! 16. **A node has left when the cluster has no object of it.** Where only ours is missing it registers anew, and
//!     what it has goes on there. And it does not leave while a Commit stands open for a target of it: with it would
//!     go the Lease by which its silence is counted.
//! 17. **A last word stays until it was heard.** Where the Migration has vanished the source has nothing else to go
//!     by.
//! 18. **A target that will never thaw does not sign off unless it has read an Abort.** Commit may be written at the
//!     moment at which it ends. Its word says so, but dies with the node where its agent has died before; the
//!     signature that does not change any more is a proof then.
//!
//! # What it takes for granted
//!
//! The API server's content is what the operator wrote (RBAC, admission); reads are linearizable;
//! the dead-man freezes in time (T₂ ≥ T₁ + its delay + drift); the wrapper is the only way to runc;
//! an fsynced entry stays. A source whose node is declared dead for fail-over without being off
//! (a lease-based proof) needs a mark of its own before a version is restored elsewhere: that
//! belongs to fail-over of protected pods and is not part of this protocol.
//!
//! Whoever deletes the cluster's object of a node vouches that it does not run. Where it does, no second copy comes of
//! it in the overlapping order as long as the Migration exists. But when that has vanished the source goes on, and in
//! the sequential order the pod is made again elsewhere, as Kubernetes' own controllers do with theirs.

mod cold;
mod effect;
mod lease;
mod lent;
mod operator;
mod record;
mod recorded;
mod rules;
mod sequential;
mod source;
mod target;
mod word;

#[cfg(test)]
mod model;
#[cfg(test)]
mod orders;

pub use effect::{Driver, Effect, Facts, Failure, Guard, Machine};
pub use lease::{PATIENCE, PROOF, RENEWAL, Signatures};
pub use lent::{SandboxSeen, UserSeen, may_give_back};
pub use operator::{
    DecisionInput, PodSeen, TargetProof, decide, may_leave, may_record_resumed, may_release_source,
    may_remove_finalizer, may_resolve_source_resumes, may_restore_version,
};
pub use record::{RecordState, Verb, Verdict, ends_leftovers, sandbox_verdict, wrapper_verdict};
pub use recorded::{Decision, Read, Recorded, Resolution, judge_read};
pub use sequential::{
    Part, gives_up_memory, has_failed, may_make_again, may_return, may_yield, must_be_asked_for,
};
pub use source::{
    Sockets, SourceEffect, SourceEntry, SourceEvent, SourceMachine, SourcePhase, may_begin,
};
pub use target::{TargetEffect, TargetEntry, TargetEvent, TargetMachine, TargetPhase};
pub use word::{
    MAX_MESSAGE, MAX_REASON, NodeSeen, SourceOutcome, SourceWord, TargetOutcome, TargetWord,
    judge_node,
};
