//! What Transship keeps and touches on a node: records, markers, journals, tasks, leases of addresses,
//! the freezer of a container, the network of a pod, and the installed files.
//!
//! Everything here is synchronous and small, because the OCI runtime wrapper links it and every container
//! start on the node goes through that wrapper. This crate decides nothing about a migration: which state
//! allows what is `transship-protocol`'s business, and when to do it is the holder's and the agent's.
//!
//! All paths are derived from one [`paths::HostRoot`], so that tests (and the agent, which sees the host
//! under a mount) use another root.

pub mod bundle;
pub mod cgroup;
pub mod ending;
pub mod error;
pub mod files;
pub mod freezer;
pub mod hook;
#[cfg(feature = "install")]
pub mod install;
pub mod invocation;
pub mod journal;
pub mod lease;
pub mod markers;
pub mod network;
pub mod paths;
pub mod quiesce;
pub mod record;
pub mod task;
pub mod unfinished;

pub use error::{Error, Result};
pub use paths::HostRoot;
