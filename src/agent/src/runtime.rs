//! The connection to containerd, made when it is first needed and kept; containerd may restart.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;
use transship_host::HostRoot;
use transship_runtime::cri::Cri;
use transship_runtime::{Layout, Result};

use crate::args::Args;

/// containerd on this node.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Where containerd and runc keep what, as seen by the agent.
    pub layout: Layout,
    socket: PathBuf,
    connected: Arc<Mutex<Option<Cri>>>,
}

impl Runtime {
    /// Connects to nothing yet.
    pub fn new(host: &HostRoot, args: &Args) -> Self {
        let usual = Layout::default();
        let socket = host.join(&args.containerd_socket);
        let layout = Layout {
            containerd_socket: socket.clone(),
            runc_root: host.join(&usual.runc_root),
            tasks: host.join(&usual.tasks),
            sandboxes: host.join(&usual.sandboxes),
            // The agent shares the host's process namespace.
            proc: usual.proc,
        };
        Self { layout, socket, connected: Arc::default() }
    }

    /// The CRI service. The channel reconnects by itself once it was connected.
    pub async fn cri(&self) -> Result<Cri> {
        let mut connected = self.connected.lock().await;
        if let Some(cri) = connected.as_ref() {
            return Ok(cri.clone());
        }
        let cri = Cri::connect(&self.socket).await?;
        *connected = Some(cri.clone());
        Ok(cri)
    }
}
