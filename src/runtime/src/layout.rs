//! Where containerd and runc keep things. One value per node, so that tests can point elsewhere.

use std::path::{Path, PathBuf};

/// Directories and sockets of a node's runtime. The default is containerd's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// containerd's gRPC socket.
    pub containerd_socket: PathBuf,
    /// runc's `--root` for CRI containers.
    pub runc_root: PathBuf,
    /// containerd's tasks of CRI containers; one bundle per container id.
    pub tasks: PathBuf,
    /// The CRI plugin's volatile state: one directory per sandbox id.
    pub sandboxes: PathBuf,
    /// The process file system in which the runtime's pids mean something.
    pub proc: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Layout {
            containerd_socket: "/run/containerd/containerd.sock".into(),
            runc_root: "/run/containerd/runc/k8s.io".into(),
            tasks: "/run/containerd/io.containerd.runtime.v2.task/k8s.io".into(),
            sandboxes: "/run/containerd/io.containerd.grpc.v1.cri/sandboxes".into(),
            proc: "/proc".into(),
        }
    }
}

impl Layout {
    /// The bundle of a container or sandbox, as containerd makes it.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.tasks.join(id)
    }

    /// The shared memory that all containers of a sandbox see at `/dev/shm` (unless the pod uses
    /// the node's IPC namespace, where containerd makes none).
    pub fn sandbox_shm(&self, sandbox_id: &str) -> PathBuf {
        self.sandboxes.join(sandbox_id).join("shm")
    }

    /// A file of a process.
    pub fn of_process(&self, pid: i32, file: impl AsRef<Path>) -> PathBuf {
        self.proc.join(pid.to_string()).join(file)
    }
}
