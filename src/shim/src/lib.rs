//! What runs inside the start and end of every container of a node: the OCI runtime wrapper, CRIU's action
//! script and the CNI plugin. Small and quick, without threads where it can be helped, and harmless to pods
//! that Transship has nothing to do with: those are handed on before anything is parsed that could be broken.
//!
//! None of this decides: the record of the pod and `transship_protocol`'s tables do.

pub mod cni;
pub mod fill;
pub mod hold;
mod leftovers;
mod limits;
pub mod log;
pub mod noop;
mod process;
mod progress;
pub mod restore;
pub mod runc;
pub mod wrapper;

use transship_host::HostRoot;

/// The variable that names another root than `/` for the host's files. Only tests set it; whoever can set it
/// for containerd is root already.
pub const ROOT_VARIABLE: &str = "TRANSSHIP_ROOT";

/// The host, as the environment shows it.
pub fn host() -> HostRoot {
    match std::env::var_os(ROOT_VARIABLE) {
        Some(root) if !root.is_empty() => HostRoot::at(root),
        _ => HostRoot::host(),
    }
}
