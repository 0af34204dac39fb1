//! Addresses lent away: the lease of an address whose pod has moved to another node stays reserved on its
//! home node, the one whose IPAM gave it out.
//!
//! The IPAM plugin `host-local` keeps one file for each address, named by it, with the text
//! `CONTAINER_ID\r\nINTERFACE`; deleting a sandbox removes the files with its id. So the file is re-owned
//! *before* the source's sandbox is deleted, and the true owner is kept in `leases/<ip>.json`. When the pod
//! comes home the file is re-owned to its sandbox, and the ordinary DEL frees it.
//!
//! When an address may be given back is not decided here.

use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::paths::{HostRoot, check_name, check_uid};

/// Where `host-local` keeps its files unless its configuration names another directory.
pub const HOST_LOCAL_DIR: &str = "/var/lib/cni/networks";

/// The version that this program writes and understands.
pub const LEASE_VERSION: u32 = 1;

/// The pod that uses a lent address, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseOwner {
    /// The pod's UID.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The node on which it runs.
    pub node: String,
}

/// `leases/<ip>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Format version, [`LEASE_VERSION`].
    pub version: u32,
    /// The address.
    pub ip: IpAddr,
    /// The IPAM plugin's file, as a path on the host.
    pub file: PathBuf,
    /// The interface named in that file.
    pub interface: String,
    /// Who uses the address.
    pub owner: LeaseOwner,
}

impl LeaseOwner {
    fn validate(&self) -> Result<()> {
        check_uid("pod UID", &self.pod_uid)?;
        check_name("pod name", &self.pod_name)?;
        check_name("pod namespace", &self.pod_namespace)?;
        check_name("node", &self.node)
    }
}

/// The owner written into the IPAM's file for a lent address; no container has such an id.
fn marker(ip: IpAddr) -> String {
    format!("transship-lease-{ip}")
}

fn content(owner: &str, interface: &str) -> String {
    format!("{owner}\r\n{interface}")
}

/// Owner and interface of an IPAM file. Old versions of the plugin wrote no interface.
fn parse(text: &str) -> (&str, &str) {
    let mut lines = text.trim().lines();
    let owner = lines.next().unwrap_or_default().trim();
    (owner, lines.next().unwrap_or_default().trim())
}

fn path(host: &HostRoot, ip: IpAddr) -> PathBuf {
    host.leases().join(format!("{ip}.json"))
}

/// The IPAM file of an address on this node, if this node is its home: searched in every network under
/// `data_dirs` (host paths; [`HOST_LOCAL_DIR`] and what the CNI configuration names).
pub fn find(host: &HostRoot, ip: IpAddr, data_dirs: &[PathBuf]) -> Result<Option<PathBuf>> {
    for data_dir in data_dirs {
        for network in files::list(&host.join(data_dir))? {
            let file = data_dir.join(&network).join(ip.to_string());
            if host.join(&file).is_file() {
                return Ok(Some(file));
            }
        }
    }
    Ok(None)
}

/// Reads the lease of an address.
pub fn read(host: &HostRoot, ip: IpAddr) -> Result<Option<Lease>> {
    let path = path(host, ip);
    let Some(lease) = files::read_json_opt::<Lease>(&path)? else { return Ok(None) };
    if lease.version != LEASE_VERSION {
        return Err(Error::UnknownVersion { path, found: lease.version, known: LEASE_VERSION });
    }
    Ok(Some(lease))
}

/// All addresses lent away by this node.
pub fn list(host: &HostRoot) -> Result<Vec<Lease>> {
    let mut leases = Vec::new();
    for name in files::list(&host.leases())? {
        let Some(ip) = name.strip_suffix(".json").and_then(|ip| ip.parse().ok()) else { continue };
        leases.extend(read(host, ip)?);
    }
    Ok(leases)
}

/// Lends the address of the sandbox `sandbox` to a pod elsewhere: from now on no DEL on this node frees it.
/// Call it before the sandbox is deleted. Repeating it is fine. `Ok(false)`: this node is not the address's
/// home, or the address has another user by now.
///
/// The lease is recorded before the file is re-owned, so a crash in between never leaves an address that is
/// reserved for nobody.
pub fn lend(
    host: &HostRoot,
    ip: IpAddr,
    sandbox: &str,
    owner: &LeaseOwner,
    data_dirs: &[PathBuf],
) -> Result<bool> {
    owner.validate()?;
    let Some(file) = find(host, ip, data_dirs)? else { return Ok(false) };
    let on_host = host.join(&file);
    let _lock = lock(&on_host)?;
    let text = match fs::read_to_string(&on_host) {
        Ok(text) => text,
        // Freed between finding and locking.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("read", &on_host)(error)),
    };
    let (found, interface) = parse(&text);
    if found != sandbox && found != marker(ip) {
        return Ok(false);
    }
    let interface = if interface.is_empty() { "eth0" } else { interface };
    let lease = Lease {
        version: LEASE_VERSION,
        ip,
        file,
        interface: interface.to_owned(),
        owner: owner.clone(),
    };
    files::write_json(&path(host, ip), &lease)?;
    files::write_atomic_mode(&on_host, content(&marker(ip), interface).as_bytes(), 0o644)?;
    Ok(true)
}

/// A lent address has moved on to another pod. `Ok(false)`: it is not lent by this node.
pub fn pass_on(host: &HostRoot, ip: IpAddr, owner: &LeaseOwner) -> Result<bool> {
    owner.validate()?;
    let Some(seen) = read(host, ip)? else { return Ok(false) };
    let _lock = lock(&host.join(&seen.file))?;
    // It may have been given back meanwhile.
    let Some(mut lease) = read(host, ip)? else { return Ok(false) };
    lease.owner = owner.clone();
    files::write_json(&path(host, ip), &lease)?;
    Ok(true)
}

/// The pod with this address is back on its home node, in the sandbox `container_id`: its DEL frees the
/// address as for any other pod. `Ok(false)`: the address is not lent (not this node's, or home already).
pub fn come_home(host: &HostRoot, ip: IpAddr, container_id: &str, interface: &str) -> Result<bool> {
    check_name("container id", container_id)?;
    crate::record::check_interface(interface)?;
    let Some(lease) = read(host, ip)? else { return Ok(false) };
    let on_host = host.join(&lease.file);
    let _lock = lock(&on_host)?;
    files::write_atomic_mode(&on_host, content(container_id, interface).as_bytes(), 0o644)?;
    files::remove_durably(&path(host, ip))?;
    Ok(true)
}

/// The pod that this lease names does not use its address any more: it may be given out again. `Ok(false)`: it
/// is not lent, or it has moved on to another pod since the lease was read. A file that has another owner by
/// now is left alone.
pub fn give_back(host: &HostRoot, lease: &Lease) -> Result<bool> {
    let ip = lease.ip;
    let on_host = host.join(&lease.file);
    let _lock = lock(&on_host)?;
    if read(host, ip)?.as_ref() != Some(lease) {
        return Ok(false);
    }
    match fs::read_to_string(&on_host) {
        Ok(text) if parse(&text).0 == marker(ip) => {
            files::remove_durably(&on_host)?;
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", &on_host)(error)),
    }
    files::remove_durably(&path(host, ip))?;
    Ok(true)
}

/// An address that the IPAM gave to the sandbox `container_id`, which does not use it, is free again.
/// `Ok(false)`: there is no file of it, or it belongs to somebody else.
pub fn release_unused(host: &HostRoot, ip: IpAddr, container_id: &str) -> Result<bool> {
    let Some(file) = find(host, ip, &[HOST_LOCAL_DIR.into()])? else { return Ok(false) };
    let on_host = host.join(&file);
    let _lock = lock(&on_host)?;
    match fs::read_to_string(&on_host) {
        Ok(text) if parse(&text).0 == container_id => {
            files::remove_durably(&on_host)?;
            Ok(true)
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", &on_host)(error)),
    }
}

/// The IPAM plugin's own lock on the network that the file belongs to; released when dropped.
fn lock(file: &Path) -> Result<File> {
    let path = file.with_file_name("lock");
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(Error::errno("lock", &path))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SANDBOX: &str = "0123abcd";

    #[test]
    fn an_unused_address_is_freed_for_its_own_sandbox_only() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        let file = host.join(HOST_LOCAL_DIR).join("net").join(ip().to_string());
        files::write_atomic(&file, content(SANDBOX, "eth0").as_bytes()).unwrap();
        assert!(!release_unused(&host, ip(), "another").unwrap());
        assert!(file.exists());
        assert!(release_unused(&host, ip(), SANDBOX).unwrap());
        assert!(!file.exists());
        assert!(!release_unused(&host, ip(), SANDBOX).unwrap());
    }

    fn ip() -> IpAddr {
        "10.244.1.5".parse().unwrap()
    }

    fn owner(uid: &str) -> LeaseOwner {
        LeaseOwner {
            pod_uid: uid.into(),
            pod_namespace: "shop".into(),
            pod_name: "web-7".into(),
            node: "node-b".into(),
        }
    }

    fn dirs() -> Vec<PathBuf> {
        vec![HOST_LOCAL_DIR.into()]
    }

    /// A node that is home to the address, which a sandbox uses.
    fn home() -> (tempfile::TempDir, HostRoot, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        let file = host.join(HOST_LOCAL_DIR).join("ts/10.244.1.5");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("{SANDBOX}\r\neth0")).unwrap();
        (dir, host, file)
    }

    fn text(file: &Path) -> String {
        fs::read_to_string(file).unwrap()
    }

    #[test]
    fn a_lent_address_belongs_to_no_sandbox_until_it_comes_home() {
        let (_dir, host, file) = home();
        assert!(lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap());
        assert_eq!(text(&file), "transship-lease-10.244.1.5\r\neth0");
        assert!(lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap(), "repeating is fine");
        assert_eq!(list(&host).unwrap()[0].owner, owner("p-2"));

        assert!(pass_on(&host, ip(), &owner("p-3")).unwrap());
        assert_eq!(read(&host, ip()).unwrap().unwrap().owner, owner("p-3"));

        assert!(come_home(&host, ip(), "4567", "eth0").unwrap());
        assert_eq!(text(&file), "4567\r\neth0");
        assert!(list(&host).unwrap().is_empty());
        assert!(!come_home(&host, ip(), "4567", "eth0").unwrap());
    }

    #[test]
    fn an_address_with_another_user_is_not_lent() {
        let (_dir, host, file) = home();
        fs::write(&file, "other\r\neth0").unwrap();
        assert!(!lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap());
        assert_eq!(text(&file), "other\r\neth0");
        assert!(list(&host).unwrap().is_empty());
    }

    #[test]
    fn a_node_that_is_not_the_home_lends_and_passes_on_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let host = HostRoot::at(dir.path());
        assert!(!lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap());
        assert!(!pass_on(&host, ip(), &owner("p-2")).unwrap());
    }

    #[test]
    fn an_address_that_has_moved_on_is_not_given_back_for_its_former_user() {
        let (_dir, host, file) = home();
        lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap();
        let asked_about = read(&host, ip()).unwrap().unwrap();
        assert!(pass_on(&host, ip(), &owner("p-3")).unwrap());
        assert!(!give_back(&host, &asked_about).unwrap());
        assert_eq!(text(&file), "transship-lease-10.244.1.5\r\neth0");
        assert_eq!(read(&host, ip()).unwrap().unwrap().owner, owner("p-3"));
    }

    #[test]
    fn giving_back_frees_the_address_but_never_a_newer_users() {
        let (_dir, host, file) = home();
        lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap();
        let lease = read(&host, ip()).unwrap().unwrap();
        assert!(give_back(&host, &lease).unwrap());
        assert!(!file.exists());
        assert!(!give_back(&host, &lease).unwrap());

        fs::write(&file, format!("{SANDBOX}\r\neth0")).unwrap();
        lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap();
        fs::write(&file, "newer\r\neth0").unwrap();
        assert!(give_back(&host, &lease).unwrap());
        assert_eq!(text(&file), "newer\r\neth0");
    }

    #[test]
    fn a_crash_between_record_and_file_is_repaired_by_repeating() {
        let (_dir, host, file) = home();
        lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap();
        fs::write(&file, format!("{SANDBOX}\r\neth0")).unwrap();
        assert!(lend(&host, ip(), SANDBOX, &owner("p-2"), &dirs()).unwrap());
        assert_eq!(text(&file), "transship-lease-10.244.1.5\r\neth0");
    }
}
