//! The end of the host side. Shims that were alive go on calling the wrapper's path, which is a
//! link to runc by now; a process on the host, which outlives the agent, removes /opt/transship
//! when the last of them has ended.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use transship_api::{Node, names};
use transship_host::{HostRoot, files, lease, record};

use crate::cluster::Cluster;
use crate::hostns::HostNs;
use crate::migrations;
use crate::need;

/// What is to become of the host side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The Node was not read yet, so nobody knows: what is there goes on, and is left as it is.
    Unknown,
    /// It is to be in place.
    Stay,
    /// It is to be removed.
    Go,
}

/// What a Node asks for. `installation`: see [`Cluster::installation`]; where there is none, nobody is left whom the
/// request of a former one could undo.
pub fn asked(node: &Node, installation: Option<&str>) -> Asked {
    let annotations = node.metadata.annotations.as_ref();
    let asks = annotations.and_then(|all| all.get(names::UNINSTALL)).is_some_and(|v| v == "true");
    let former = installation.is_some_and(|own| node.is_asked_by_another(own));
    if asks && !former { Asked::Go } else { Asked::Stay }
}

/// What a removal waits for, for people; none: nobody needs what this node keeps.
pub async fn awaited(host: &HostRoot, cluster: &Cluster) -> transship_host::Result<Option<String>> {
    let sides = migrations::list(host)?;
    if let Some(open) = sides.iter().find(|side| !side.closed) {
        return Ok(Some(format!("migration {} is not over on this node", open.uid)));
    }
    for side in &sides {
        let awaited = match need::of(cluster, side, &sides).await {
            Ok(need) => need.awaited(side),
            Err(error) => Some(format!(
                "nobody can tell whether what is kept here of migration {} is still needed: {error:#}",
                side.uid
            )),
        };
        if awaited.is_some() {
            return Ok(awaited);
        }
    }
    Ok(None)
}

/// Present while the process of a removal should go on; an installation removes it.
const MARKER: &str = ".removing";

/// Waits until the bundles have gone (each belongs to a task whose shim calls the wrapper), then
/// removes the programs, unless something was installed again meanwhile.
const REMOVE_LATER: &str = r#"
marker=$1; shift
token=$(cat "$marker") || exit 0
for bundle in "$@"; do
  while [ -d "$bundle" ]; do
    [ "$(cat "$marker" 2>/dev/null)" = "$token" ] || exit 0
    sleep "${REMOVE_PAUSE:-5}"
  done
done
[ "$(cat "$marker" 2>/dev/null)" = "$token" ] || exit 0
rm -rf "${marker%/*}"
"#;

/// The last process leaves the cgroups that [`crate::supervisor::LEAVE_CGROUPS`] made, and removes
/// them.
const REMOVE_CGROUPS: &str = r#"
for root in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -d "$root/transship" ] || continue
  echo $$ > "$root/cgroup.procs"
  rmdir "$root/transship"
done
"#;

/// A new installation: a removal that still waits must not end it.
pub fn cancel(host: &HostRoot) -> transship_host::Result<()> {
    files::remove_durably(&host.opt().join(MARKER)).map(|_| ())
}

/// Forgets what is kept for migrations (nobody needs it, see [`awaited`]) and leaves the process that removes the rest.
/// `used`: bundles of tasks whose shims go on calling the wrapper, as the agent sees them.
pub async fn finish(host: &HostRoot, hostns: &HostNs, used: &[PathBuf]) -> anyhow::Result<()> {
    for uid in record::list_pods(host)? {
        host.pod(&uid)?.remove()?;
    }
    // Addresses that pods elsewhere still use stay reserved, and known.
    if lease::list(host)?.is_empty() {
        files::remove_tree(&host.state())?;
    }
    files::remove_tree(&host.run())?;
    let token = format!("{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
    files::write_atomic(&host.opt().join(MARKER), token.as_bytes())?;
    let marker = HostRoot::host().opt().join(MARKER);
    let mut command = hostns.command("setsid");
    command
        .args(["--fork", "sh", "-c"])
        .arg(format!("{}{REMOVE_LATER}{REMOVE_CGROUPS}", crate::supervisor::LEAVE_CGROUPS))
        .arg("sh")
        .arg(&marker)
        .args(used.iter().map(|bundle| on_host(host, bundle)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let status = command.status().await.context("cannot run setsid on the host")?;
    anyhow::ensure!(status.success(), "the process that removes /opt/transship did not start");
    Ok(())
}

/// A path that the agent sees, as the host sees it.
fn on_host(host: &HostRoot, path: &Path) -> PathBuf {
    HostRoot::host().join(Path::new("/").join(path.strip_prefix(host.root()).unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn bundles_are_named_as_the_host_sees_them() {
        let seen = Path::new("/host/run/containerd/x");
        assert_eq!(on_host(&HostRoot::at("/host"), seen), Path::new("/run/containerd/x"));
        assert_eq!(on_host(&HostRoot::host(), Path::new("/run/x")), Path::new("/run/x"));
    }

    #[test]
    fn a_former_installations_request_is_not_obeyed_where_there_is_a_new_one() {
        for (request, by, installation, expected) in [
            (None, None, Some("uid-2"), Asked::Stay),
            (Some("true"), None, Some("uid-2"), Asked::Go),
            (Some("false"), None, Some("uid-2"), Asked::Stay),
            (Some("true"), Some("uid-2"), Some("uid-2"), Asked::Go),
            (Some("true"), Some("uid-1"), Some("uid-2"), Asked::Stay),
            (Some("true"), Some("uid-1"), None, Asked::Go),
        ] {
            let mut node = Node::new("node-a", transship_api::NodeSpec::default());
            let annotations = node.metadata.annotations.get_or_insert_default();
            for (name, value) in [(names::UNINSTALL, request), (names::UNINSTALL_BY, by)] {
                annotations.extend(value.map(|value| (name.to_owned(), value.to_owned())));
            }
            let got = asked(&node, installation);
            assert_eq!(got, expected, "{request:?} by {by:?}, installed by {installation:?}");
        }
    }

    fn remove_later(marker: &Path, bundles: &[PathBuf]) -> std::process::Child {
        Command::new("sh")
            .args(["-c", REMOVE_LATER, "sh"])
            .arg(marker)
            .args(bundles)
            .env("REMOVE_PAUSE", "0.05")
            .spawn()
            .unwrap()
    }

    #[test]
    fn the_programs_go_when_the_last_shim_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let opt = dir.path().join("opt");
        let marker = opt.join(MARKER);
        files::write_atomic(&marker, b"t-1").unwrap();
        let bundle = dir.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let mut removing = remove_later(&marker, &[dir.path().join("ended"), bundle.clone()]);
        // Long enough for several looks.
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(removing.try_wait().unwrap().is_none(), "it waits for the living shim");
        assert!(marker.exists());
        std::fs::remove_dir(&bundle).unwrap();
        assert!(removing.wait().unwrap().success());
        assert!(!opt.exists());
    }

    #[test]
    fn a_new_installation_keeps_its_programs() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        let marker = host.opt().join(MARKER);
        files::write_atomic(&marker, b"t-1").unwrap();
        cancel(&host).unwrap();
        assert!(remove_later(&marker, &[]).wait().unwrap().success());
        assert!(host.opt().exists());
        // Installed again while it waits: it ends, though the bundle is still there.
        files::write_atomic(&marker, b"t-2").unwrap();
        let bundle = dir.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let mut waiting = remove_later(&marker, &[bundle]);
        cancel(&host).unwrap();
        assert!(waiting.wait().unwrap().success());
        assert!(host.opt().exists());
    }
}
