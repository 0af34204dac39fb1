//! Closing the pod's network at a good moment.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use transship_host::network::half_open_connections;

use crate::pod::Pod;

/// How long handshakes that are under way may take to end. Clients send a lost SYN again after a
/// second, so the wait must be short.
const HANDSHAKES: Duration = Duration::from_millis(100);
/// How often they are counted.
const LOOK: Duration = Duration::from_millis(2);

/// Lets handshakes end that are under way, then drops every frame of the pod in both directions.
/// A connection that is half open when the pod freezes would be lost.
pub async fn close_network(pod: &Pod, nft: &Path) -> Result<()> {
    let network = pod.network();
    if half_open_connections(pod.sandbox_pid)? > 0 {
        network.drop_new_syns(nft, &pod.devices).context("cannot hold back new connections")?;
        let deadline = Instant::now() + HANDSHAKES;
        while half_open_connections(pod.sandbox_pid)? > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
    network.close(nft, &pod.devices).context("cannot close the pod's network")
}
