//! containerd and runc as Transship sees them: which sandbox and containers a pod has, where their
//! bundles, root file systems, writable layers, freezer cgroups and network namespaces are, and
//! how `runc checkpoint` is called.
//!
//! This crate looks and calls; it decides nothing, and changes nothing but the container that runc is asked to
//! dump, to signal or to delete, the connections of its tasks, and the task that containerd is asked to delete.
//! Freezing, records and networks are `transship-host`.
//!
//! * [`cri`]: the pod as the CRI knows it (asynchronous, gRPC over containerd's socket);
//! * [`container`]: a container as runc's `state.json` and its bundle describe it (synchronous);
//! * [`ending`]: a container's stop signal, runc's `kill` and `delete` of it;
//! * [`tasks`]: what containerd may have left of a container that has ended;
//! * [`mounts`]: `mountinfo`, and the writable layer of an overlay;
//! * [`node`]: the runtime as a whole: version, configuration, all sandboxes, images;
//! * [`pod`]: the paths of a pod's volumes, its sandbox's `/dev/shm` and its network namespace;
//! * [`checkpoint`]: `runc checkpoint`;
//! * [`guard`], [`repair`]: what a CRIU that was killed would do to the tasks that it dumps.

pub mod checkpoint;
pub mod container;
pub mod cri;
pub mod ending;
pub mod guard;
pub mod layout;
pub mod mounts;
pub mod node;
pub mod pod;
pub mod repair;
pub mod tasks;

use std::path::PathBuf;

pub use layout::Layout;

/// Why the runtime could not be asked or understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of runc, containerd or the kernel could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A file of runc, containerd or the kernel does not say what it should.
    #[error("{path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// containerd did not accept a connection.
    #[error("cannot connect to containerd at {socket}")]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// What the transport said.
        #[source]
        source: tonic::transport::Error,
    },
    /// containerd refused a call.
    #[error("containerd answered {call} with an error: {}", source.message())]
    Call {
        /// The CRI's or containerd's own name of the call.
        call: &'static str,
        /// Its status.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The pod has no ready sandbox.
    #[error("pod {0} has no ready sandbox")]
    NoSandbox(String),
    /// A program could not be started or waited for.
    #[error("cannot run {program}")]
    Run {
        /// Its name.
        program: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// `runc checkpoint` failed.
    #[error("runc checkpoint of {container} failed: {message}")]
    Checkpoint {
        /// The container's id.
        container: String,
        /// What runc or CRIU said last.
        message: String,
    },
}

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reads a file, naming it in the error.
fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}
