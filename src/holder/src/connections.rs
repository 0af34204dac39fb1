//! What becomes of the pod's connections with others. Those within the pod always go on.
//!
//! * Where the address moves along ([`NetworkMode::Preserve`]) they go on. The source's node knows where the
//!   translated ones really lead (a Service's address stands for one of its pods), and so must the target's
//!   before it opens. The source's must have forgotten it by then: it would take the packets that come by from
//!   the moved pod for others and change their port. If the source goes on it learns it again. One that left with
//!   the source node's own address cannot go on from another node; it is ended, so that the application sees it now
//!   and does not wait for an answer.
//! * With a new address ([`NetworkMode::Close`]) all are ended. The target's side is ended while it is held; the
//!   peers get their reset from the source, which alone has the address that they know.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use transship_host::files;
use transship_host::network::conntrack::{self, Tracked};
use transship_host::network::{End, Socket};
use transship_host::paths::MigrationDir;
use transship_host::record::{NetworkMode, RecordNetwork};

use crate::holder::Holder;
use crate::pod::Pod;

/// Directory in the migration's directory, on both sides.
pub const DIR: &str = "network";
/// Its one file.
const FILE: &str = "connections.json";
/// Some hundred bytes for each of very many connections.
const MAX_BYTES: u64 = 64 << 20;

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// Connections that the source's node translates.
    translated: Vec<Tracked>,
}

/// Notes what the source's node knows of the frozen and closed pod's connections, in the directory that is
/// returned, and makes it forget what the target's node is to know; [`translate`] undoes that.
pub fn note(holder: &Holder) -> Result<PathBuf> {
    let dir = holder.dir.path().join(DIR);
    files::make_dir(&dir)?;
    let mut noted = Noted::default();
    if let Some(network) = preserved(holder) {
        match conntrack::opened_from(&network.addresses()?) {
            Ok(tracked) => noted.translated = tracked,
            // A node without connection tracking translates nothing.
            Err(error) => tracing::warn!("translations are not known: {}", error.chain()),
        }
        noted.translated.retain(|c| c.changes_target() || c.changes_source());
    }
    tracing::info!(translated = noted.translated.len(), "connections");
    files::write_json(&dir.join(FILE), &noted)?;
    for tracked in noted.translated.iter().filter(|tracked| !tracked.changes_source()) {
        conntrack::forget(tracked)?;
    }
    Ok(dir)
}

/// Ends, in the restored and held pod, what cannot go on, and takes away the addresses that no socket needs.
pub fn end(holder: &Holder, pod: &Pod) -> Result<()> {
    let Some(network) = &holder.task.network else { return Ok(()) };
    let namespace = pod.network();
    let cannot_go_on: Box<dyn Fn(&Socket) -> bool + Send> = match network.mode {
        NetworkMode::Close => Box::new(outside(network)?),
        NetworkMode::Preserve => {
            let mut lost = noted(&holder.dir, network)?;
            lost.retain(Tracked::changes_source);
            let lost: HashSet<End> = lost.iter().flat_map(Tracked::ends).collect();
            Box::new(move |socket: &Socket| socket.end().is_some_and(|end| lost.contains(&end)))
        }
    };
    // Looked at before: a connection that was ended still passes for a socket that is bound.
    let mut staying = namespace.sockets()?;
    staying.retain(|socket| !cannot_go_on(socket));
    let ended = namespace.destroy_connections(cannot_go_on)?;
    if ended > 0 {
        tracing::info!(ended, "connections that cannot go on from here");
    }
    for ip in network.aliases()? {
        if !staying.iter().any(|socket| socket.local.ip() == ip) {
            namespace.remove_alias(ip)?;
        }
    }
    Ok(())
}

/// Lets this node translate as the source's did when it was frozen: before the network of the pod opens, on
/// either side. One that it refuses is a connection lost, and no reason to keep the pod from running.
pub fn translate(holder: &Holder) {
    let Some(network) = preserved(holder) else { return };
    let translated = match noted(&holder.dir, network) {
        Ok(translated) => translated,
        Err(error) => return tracing::warn!("translations are lost: {error:#}"),
    };
    let mut taken = 0;
    for tracked in translated.iter().filter(|tracked| !tracked.changes_source()) {
        match conntrack::replace(tracked) {
            Ok(()) => taken += 1,
            Err(error) => tracing::warn!("{}", error.chain()),
        }
    }
    if taken > 0 {
        tracing::info!(taken, "translated connections go on");
    }
}

/// Tells the peers of a source that has moved to another address that their connections have ended. Best
/// effort: what is lost now, the opened network of the ended pod makes up for.
pub fn reset(holder: &Holder, pod: &Pod, nft: &Path) {
    if !closes(holder) || !pod.network().exists() {
        return;
    }
    let told = pod
        .network()
        .let_resets_out(nft, &pod.devices)
        .map_err(anyhow::Error::from)
        .and_then(|()| destroy_outside(holder, pod));
    match told {
        Ok(told) => tracing::info!(told, "peers told that their connections have ended"),
        Err(error) => tracing::warn!("peers are not told yet: {error:#}"),
    }
}

/// Ends every connection of the pod with others; returns how many.
pub fn destroy_outside(holder: &Holder, pod: &Pod) -> Result<usize> {
    let Some(network) = &holder.task.network else { return Ok(0) };
    Ok(pod.network().destroy_connections(outside(network)?)?)
}

/// Whether the pod gets a new address.
pub fn closes(holder: &Holder) -> bool {
    holder.task.network.as_ref().is_some_and(|network| network.mode == NetworkMode::Close)
}

fn preserved(holder: &Holder) -> Option<&RecordNetwork> {
    holder.task.network.as_ref().filter(|network| network.mode == NetworkMode::Preserve)
}

/// What the source has noted. It comes from another node: only what concerns the pod counts.
fn noted(dir: &MigrationDir, network: &RecordNetwork) -> Result<Vec<Tracked>> {
    let path = dir.path().join(DIR).join(FILE);
    let text = match files::read_bounded(&path, MAX_BYTES) {
        Ok(text) => text,
        // It has not come to that.
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let Noted { mut translated } =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let own = network.addresses()?;
    translated.retain(|tracked| is_sound(tracked, &own));
    Ok(translated)
}

/// Opened from an address of the pod, and of one family of addresses throughout.
fn is_sound(tracked: &Tracked, own: &[IpAddr]) -> bool {
    let Tracked { original, reply, .. } = tracked;
    let is_of_its_family = |a: &SocketAddr| a.is_ipv4() == original.from.is_ipv4();
    own.contains(&original.from.ip())
        && [original.to, reply.from, reply.to].iter().all(is_of_its_family)
}

/// Connections whose peer is not the pod itself.
fn outside(network: &RecordNetwork) -> Result<impl Fn(&Socket) -> bool + Send + use<>> {
    let mut own = network.aliases()?;
    own.extend(network.addresses()?);
    Ok(move |socket: &Socket| {
        socket.peer.is_some_and(|peer| !peer.ip().is_loopback() && !own.contains(&peer.ip()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use transship_host::network::conntrack::Direction;

    fn tracked(from: &str, to: &str, reply_from: &str, reply_to: &str) -> Tracked {
        let direction = |from: &str, to: &str| Direction {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        };
        Tracked {
            protocol: 6,
            original: direction(from, to),
            reply: direction(reply_from, reply_to),
            timeout: 60,
            status: 14,
            mark: 0,
            tcp_state: Some(3),
        }
    }

    #[test]
    fn only_what_the_pod_has_opened_counts_of_what_another_node_says() {
        let root = tempfile::tempdir().unwrap();
        let dir = MigrationDir::at(root.path());
        let network = RecordNetwork {
            mode: NetworkMode::Preserve,
            ip: "10.244.1.5".into(),
            other_ips: vec![],
            mac: "02:00:00:00:00:05".into(),
            interface: "eth0".into(),
            aliases: vec![],
        };
        assert_eq!(noted(&dir, &network).unwrap(), [], "nothing has come");
        let own = tracked("10.244.1.5:4000", "10.96.0.7:80", "10.244.2.8:80", "10.244.1.5:4000");
        let foreign =
            tracked("10.244.1.6:4000", "10.96.0.7:80", "10.244.2.8:80", "10.244.1.6:4000");
        let mixed = tracked("10.244.1.5:4000", "10.96.0.7:80", "[fd00::8]:80", "10.244.1.5:4000");
        let all = Noted { translated: vec![own.clone(), foreign, mixed] };
        files::make_dir(&root.path().join(DIR)).unwrap();
        files::write_json(&root.path().join(DIR).join(FILE), &all).unwrap();
        assert_eq!(noted(&dir, &network).unwrap(), [own]);
    }
}
