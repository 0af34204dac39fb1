//! The overlapping order: the target is restored beside the source.
//!
//! # What cannot be excluded
//!
//! Between CRIU's last stop and the freeze of the cgroup tasks stand still only because CRIU traces them. If it
//! is killed then, the kernel lets them run; if runc or the script is killed, CRIU itself does. That is before
//! anything is decided, and perhaps beside a source that gives up and goes on
//! ([`Fault::RestoreLetsGo`](world::Fault::RestoreLetsGo)). The target is closed towards the network from before
//! its first restore, so nobody else takes part. What is checked instead of "nothing runs":
//!
//! * Such tasks never become the pod: the restore has failed, so their side does not vote, whether they were
//!   frozen afterwards or not.
//! * Nothing of theirs reaches the network, so the source's connections go on as they were.
//! * They are killed, by cgroup, without that anybody's patience has to run out; the side closes as
//!   `neverThawed`, which says that it was never let run and never will be.
//!
//! That it happened is known: see `src/shim/src/hold.rs`. What they did in that time to anything that is outside of
//! the container and not behind the network, a volume that both nodes mount for example, is done.

mod actors;
mod faults;
mod host;
mod operators;
mod role;
mod runs;
mod space;
mod world;
