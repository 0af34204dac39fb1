//! The model checker: every interleaving of the two machines, two operators, kubelet, the wrapper
//! and the faults of [`overlap`] and [`sequential`], crashes between any two effects included, up to a
//! bound on the number of faults. Addresses that are lent have a small model of their own ([`lent`]).
//!
//! A message is only a hint here: loss and delay are that an action is taken late or never,
//! repetition that it is taken again, since every action whose guard holds stays enabled. What
//! somebody knows of others is read from published facts that are written once; a stale reading is
//! an old part of the truth, so it too is an action not yet taken. Where a newer truth would forbid
//! an action (an operator between its read and its write, a holder between its read and its thaw,
//! the wrapper between its verdict and runc) the two are separate steps. The two operators are
//! equals: either may be the stale leader.
//!
//! Checked in every state: at most one copy runs (but see [`overlap`]); the address is open on one node; nobody
//! lies; nothing is lost before the commit; the write-once fields change once. And from every state a continuation
//! leads to an end in which both sides are closed, nothing is frozen and the right copy runs: without further
//! faults, **and without that anybody's patience has to run out**. There is no clock, so how long something takes
//! is not told apart; but a failure that nobody notices before a time-out is found.
//!
//! # Which fault stands for what
//!
//! | on a cluster | here |
//! | --- | --- |
//! | the API server stands still, a link between nodes or to the operators is cut and mended | nothing of its own: actions are taken late, patience may run out at any time before (`Deadline`, "loses patience", "gives up") |
//! | a target is cut off from the API server when it should vote | `CutOff`, `cuts` |
//! | a target is cut off while it runs unconfirmed | `Lapse`; in the sequential order, where silence proves nothing, `silences` |
//! | a disk is full, a page stream breaks, a transfer ends | `EffectFails`, `failures`; where the journal cannot be written: `Crash` |
//! | agent, supervisor or operator die or are upgraded | nothing of its own: none of them keeps a state that decides; the holder: `Crash` |
//! | containerd dies or is restarted | kubelet asks for containers and kills others: what it may ask for under the record is asked in every state, `KubeletKill`, `kills` |
//! | kubelet dies or is restarted | what it asks for is asked late. The container in whose start it dies is ended by containerd, as by kubelet: `KubeletKill`, `kills`; the task that may be left of it: below |
//! | the wrapper, runc, the script or CRIU die in a restore | `RestoreDies`, `restores`; CRIU just before the freeze, so that tasks run: `RestoreLetsGo`, `let_go` (what holds then: [`overlap`]) |
//! | CRIU or runc die in a dump | `DumpDies`, `dumps`; a dump that outlives its holder: `DumpEnds` |
//! | a shim dies, or containerd takes it for dead | `ShimDies`, `shims`; the `delete` that follows may be cut off, or never come: `Forget` |
//! | a node loses power for a while, for ever | `Reboot`; `Die`, `deaths`; when its agent had died before, so that nobody has heard what its target had to say after the vote: `DieUnheard` |
//! | a node's object is deleted while the node lives | `NodeDeleted`; in the sequential order, and where the Migration has vanished: below |
//! | a node registers anew, and none of our objects tells of it for a while | `NodeAnew`, `anew` |
//! | a node that is gone leaves our list, and its word and its Lease go | `NodeLeaves` |
//! | a node forgets a side that is over | nothing of its own: what everybody has heard makes no difference, and a node that is never told to forget: below; before it was heard, by a source whose node had left the cluster: `ForgetWord` |
//! | the memory limit ends an application | `TasksDie`, `ends`. That a source's tasks have ended is sure to be noticed before its vote, when its freeze or its dump fails; after the vote perhaps late, perhaps never (`LearnTasksLost`, "S notices its end late"), and nobody has to wait for it |
//! | a user deletes the Migration, makes another one, removes the finalizer or the namespace | `DeleteMigration`, `cancels`; `SecondMigration`, `others`; `Strip`, `strips` |
//! | a supervisor starts a holder beside one that lives | `SecondHolder`, `seconds` |
//! | a probe fails in the long frozen wait, and kubelet kills for it even after the thaw | `KubeletKill` at any time |
//! | a user, drain or controller deletes the pod | `DeletePod`, `deletes`: also the pod that was made again, behind its gate and after it |
//! | a pod is deleted by force, gets another address in a reboot, or moves on while its home asks | [`lent`] |
//! | an application ends in the grace period of a cold move, and then its holder dies | "ends, as it was asked to" and a crash |
//!
//! # What the protocol cannot see
//!
//! What the operator keeps for itself in the status, how many restores have failed above all, is no part of
//! the commit: the world of the sequential plan in `transship-core` carries plans out, each status written
//! to it as the API server would take it. There it is also told whom a deletion means, the pod or its node. What
//! becomes of the pods of a Migration that has vanished, of their marks and owners, is shown in
//! `src/core/src/migration/vanished_tests.rs`.
//!
//! Nor can it see
//!
//! * whether a source's memory was lost between its vote and the decision: what its word says of that may be wrong, and
//!   no rule goes by it;
//! * whether a node runs whose object somebody has deleted. In the overlapping order that does no harm as long as the
//!   Migration exists: the source goes on only when that says so. When it has vanished, too, the source has nobody else
//!   to ask; and in the sequential order the pod is made again elsewhere. Kubernetes' own controllers replace the pods
//!   of such a node as well;
//! * that nothing holds a pod whose sandbox was made before the runtime's wrapper was in effect. The checks refuse it:
//!   `src/core/src/preflight/pod.rs`, `tests/cluster/uninstall.rs`;
//! * an effect that never returns: its machine hears of nothing meanwhile, its deadline included. What may hang has a
//!   limit, above all `src/holder/src/durable.rs`.
//!
//! Effects on the host that are right or wrong by themselves have tests where they are made:
//!
//! * A dead task is in the root cgroup, which must never be frozen: `src/host/tests/kernel.rs`; nor must that of a node
//!   that is a container itself: `src/host/src/freezer.rs`.
//! * That a restore's mount is detached and the files below it stay: `src/host/tests/kernel.rs`,
//!   `src/shim/tests/restore.rs`.
//! * What a closed pod has sent is lost as on a wire and sent again until it is open; a peer that has missed the end of
//!   its connection learns of it: `src/host/tests/connections.rs`.
//! * That tasks stay frozen when CRIU, the script, the wrapper or runc is killed in the hold:
//!   `src/shim/tests/restore.rs`, `tests/cluster/hold.rs`.
//! * That a wrapper which ended without a word is noticed at once: `src/holder/src/target/hold.rs`.
//! * That a dump which fails leaves the container frozen, and processes of a dump are found and ended:
//!   `src/holder/src/source/dump.rs` and the fault matrix (`tests/faults`); that one whose CRIU has died ends though a
//!   child of it lives: `src/runtime/src/checkpoint.rs`, and a restore: `src/shim/tests/restore.rs`. As long as its
//!   holder lives, what a dead CRIU has stopped stays frozen all the same, and its connections are as they were:
//!   `src/runtime/src/guard.rs`, `src/runtime/src/repair.rs`.
//! * That a shim which containerd has forgotten is ended: `src/agent/src/shims_tests.rs`.
//! * What runc leaves of containers that have lost their shim, and containerd of one in whose start kubelet died, with
//!   which the pod could not be removed: `src/holder/src/leftovers.rs`, `src/runtime/src/tasks.rs`.
//! * That a side is collected when it is over, though nobody has told its node to forget it; that it is not while the
//!   other one may still have to hear of it, and that the host side stays as long: `src/agent/src/need.rs`; how long
//!   the state of a pod is kept that runs nowhere: `src/agent/src/kept.rs`.
//! * A process stopped between vfork and exec is let go on before the dump: `src/holder/src/source/freeze.rs`.
//! * What contact is, in seconds: `src/holder/src/signing.rs`; what silence proves: [`crate::Signatures`].
//!
//! `cargo test -p transship-protocol --release -- --ignored --nocapture` searches deeper.

mod lent;
mod overlap;
mod search;
mod sequential;
