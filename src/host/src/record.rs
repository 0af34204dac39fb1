//! The host record of a pod: what the runtime wrapper and the CNI plugin obey.
//!
//! Only root on this host writes records (the agent at the start of a target, the holder afterwards); nothing
//! that a user can put into the API reaches them unchecked. A record names a pod by UID, so it can never
//! apply to another pod. What a state allows is decided by `transship_protocol::wrapper_verdict`.
//!
//! Every write is durable before it returns: a state that was announced holds after a power loss.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use transship_protocol::RecordState;

use crate::error::{Error, Result};
use crate::files;
use crate::paths::{HostRoot, PodDir, Role, check_name, check_uid};

/// The version that this program writes and understands.
pub const RECORD_VERSION: u32 = 1;

/// The kind of a container within its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    /// An ordinary container.
    App,
    /// An init container that has finished in the source; it is not restored, but made a no-op.
    Init,
    /// An init container with restart policy Always; it runs in the source and is restored.
    Sidecar,
}

/// One container of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRef {
    /// Its name in the pod.
    pub name: String,
    /// Its kind.
    pub kind: ContainerKind,
}

/// Whether the address moves along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// Address, hardware address and connections are kept.
    Preserve,
    /// A new address; established connections are closed.
    Close,
}

/// The network identity that the target takes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordNetwork {
    /// Whether it is taken over at all.
    pub mode: NetworkMode,
    /// The address, without a prefix length.
    pub ip: String,
    /// Its further addresses, without prefix lengths: that of the other family on a dual-stack network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_ips: Vec<String>,
    /// The hardware address, colon-separated.
    pub mac: String,
    /// The interface in the pod that carries it.
    pub interface: String,
    /// Addresses that sockets may be bound to although the pod does not have them any more, without prefix
    /// lengths: those of earlier moves, and where the address does not move along, the address itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

/// `record.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Format version, [`RECORD_VERSION`].
    pub version: u32,
    /// The pod's UID; also the directory's name.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The migration it belongs to.
    #[serde(rename = "migrationUID")]
    pub migration_uid: String,
    /// Which side of the migration this pod is.
    pub role: Role,
    /// What the wrapper may do.
    pub state: RecordState,
    /// The pod's containers.
    pub containers: Vec<ContainerRef>,
    /// The address that moves along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<RecordNetwork>,
}

impl Record {
    /// The kind of a container, if the record names it.
    pub fn kind_of(&self, container: &str) -> Option<ContainerKind> {
        self.containers.iter().find(|c| c.name == container).map(|c| c.kind)
    }

    /// Checks everything that becomes a path, an address or an argument.
    pub fn validate(&self) -> Result<()> {
        check_uid("podUID", &self.pod_uid)?;
        check_uid("migrationUID", &self.migration_uid)?;
        check_name("podName", &self.pod_name)?;
        check_name("podNamespace", &self.pod_namespace)?;
        for container in &self.containers {
            check_name("container name", &container.name)?;
        }
        if let Some(network) = &self.network {
            network.validate()?;
        }
        Ok(())
    }
}

impl RecordNetwork {
    /// Checks addresses, hardware address and interface name.
    pub fn validate(&self) -> Result<()> {
        self.addresses()?;
        self.hardware_address()?;
        self.aliases()?;
        check_interface(&self.interface)
    }

    /// All addresses.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        [&self.ip].into_iter().chain(&self.other_ips).map(|ip| parse_ip(ip)).collect()
    }

    /// The addresses that only sockets know any more.
    pub fn aliases(&self) -> Result<Vec<IpAddr>> {
        self.aliases.iter().map(|ip| parse_ip(ip)).collect()
    }

    /// The hardware address as six bytes.
    pub fn hardware_address(&self) -> Result<[u8; 6]> {
        parse_mac(&self.mac)
    }
}

fn parse_ip(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| Error::Invalid {
        what: "network ip",
        value: text.chars().take(80).collect(),
        rule: "must be an IP address without a prefix length",
    })
}

/// Parses `02:00:0a:f4:01:05`.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let invalid = || Error::Invalid {
        what: "network mac",
        value: text.chars().take(80).collect(),
        rule: "must be six pairs of hexadecimal digits separated by colons",
    };
    let mut mac = [0u8; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(invalid)?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
    }
    if parts.next().is_some() {
        return Err(invalid());
    }
    Ok(mac)
}

/// Checks the name of a network interface (1 to 15 characters, nothing that a rule set could misread).
pub fn check_interface(name: &str) -> Result<()> {
    check_name("interface", name)?;
    if name.len() > 15 {
        return Err(Error::Invalid {
            what: "interface",
            value: name.to_owned(),
            rule: "must have at most 15 characters",
        });
    }
    Ok(())
}

/// Only the version, read before anything else of a record is trusted.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl PodDir {
    /// Reads and checks the record. `None`: the pod has no directory or its directory has no record yet
    /// (see [`PodDir::exists`] to tell these apart).
    pub fn read_record(&self) -> Result<Option<Record>> {
        let path = self.record();
        let content = match files::read_bounded(&path, 1 << 20) {
            Ok(content) => content,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |source| Error::Damaged { path: path.clone(), source };
        let Versioned { version } = serde_json::from_slice(&content).map_err(damaged)?;
        if version != RECORD_VERSION {
            return Err(Error::UnknownVersion {
                path: path.clone(),
                found: version,
                known: RECORD_VERSION,
            });
        }
        let record: Record = serde_json::from_slice(&content).map_err(damaged)?;
        record.validate()?;
        if self.path().file_name().is_none_or(|name| name != record.pod_uid.as_str()) {
            return Err(Error::Invalid {
                what: "podUID",
                value: record.pod_uid,
                rule: "must be the name of the record's directory",
            });
        }
        Ok(Some(record))
    }

    /// Whether the pod has a directory at all.
    pub fn exists(&self) -> Result<bool> {
        self.path().try_exists().map_err(Error::io("look at", self.path()))
    }

    /// Writes the record durably, in whatever state it is.
    pub fn write_record(&self, record: &Record) -> Result<()> {
        record.validate()?;
        files::write_json(&self.record(), record)
    }

    /// Changes the state of the record durably; `Ok(false)` where there is no record.
    pub fn set_state(&self, state: RecordState) -> Result<bool> {
        let Some(mut record) = self.read_record()? else { return Ok(false) };
        if record.state != state {
            record.state = state;
            files::write_json(&self.record(), &record)?;
        }
        Ok(true)
    }

    /// Removes the whole directory. The record goes first, so that a crash in between leaves no record
    /// with half its markers.
    pub fn remove(&self) -> Result<()> {
        files::remove_durably(&self.record())?;
        files::remove_tree(self.path())
    }
}

/// All pods that have a directory, by UID. Entries with impossible names are left out.
pub fn list_pods(host: &HostRoot) -> Result<Vec<String>> {
    let mut uids = files::list(&host.pods())?;
    uids.retain(|uid| check_uid("pod UID", uid).is_ok());
    Ok(uids)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(uid: &str) -> Record {
        Record {
            version: RECORD_VERSION,
            pod_uid: uid.into(),
            pod_namespace: "shop".into(),
            pod_name: "web-7".into(),
            migration_uid: "m-1".into(),
            role: Role::Target,
            state: RecordState::Restore,
            containers: vec![
                ContainerRef { name: "web".into(), kind: ContainerKind::App },
                ContainerRef { name: "setup".into(), kind: ContainerKind::Init },
            ],
            network: Some(RecordNetwork {
                mode: NetworkMode::Preserve,
                ip: "10.244.1.5".into(),
                other_ips: vec![],
                mac: "02:00:0a:f4:01:05".into(),
                interface: "eth0".into(),
                aliases: vec![],
            }),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let pod = HostRoot::at(dir.path()).pod("p-1").unwrap();
        assert!(!pod.exists().unwrap());
        assert_eq!(pod.read_record().unwrap(), None);
        pod.write_record(&record("p-1")).unwrap();
        assert_eq!(pod.read_record().unwrap(), Some(record("p-1")));
        assert!(pod.set_state(RecordState::Held).unwrap());
        assert_eq!(pod.read_record().unwrap().unwrap().state, RecordState::Held);
        pod.remove().unwrap();
        assert!(!pod.exists().unwrap());
        assert!(!pod.set_state(RecordState::Open).unwrap());
    }

    #[test]
    fn the_written_form_is_the_documented_one() {
        let text = serde_json::to_string(&record("p-1")).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"version":1,"podUID":"p-1","podNamespace":"shop","podName":"web-7","#,
                r#""migrationUID":"m-1","role":"target","state":"restore","#,
                r#""containers":[{"name":"web","kind":"app"},{"name":"setup","kind":"init"}],"#,
                r#""network":{"mode":"Preserve","ip":"10.244.1.5","mac":"02:00:0a:f4:01:05","interface":"eth0"}}"#
            )
        );
    }

    #[test]
    fn an_unknown_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let pod = HostRoot::at(dir.path()).pod("p-1").unwrap();
        files::write_atomic(&pod.record(), br#"{"version":2,"new":true}"#).unwrap();
        let error = pod.read_record().unwrap_err();
        assert!(matches!(error, Error::UnknownVersion { found: 2, known: 1, .. }), "{error}");
    }

    #[test]
    fn a_record_in_another_pods_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pod = HostRoot::at(dir.path()).pod("p-2").unwrap();
        pod.write_record(&record("p-1")).unwrap();
        assert!(matches!(pod.read_record(), Err(Error::Invalid { .. })));
    }

    #[test]
    fn hardware_addresses_are_parsed_strictly() {
        assert_eq!(parse_mac("02:00:0a:f4:01:FF").unwrap(), [2, 0, 10, 0xf4, 1, 255]);
        for bad in [
            "",
            "02:00:0a:f4:01",
            "02:00:0a:f4:01:05:06",
            "2:0:a:f4:1:5",
            "02-00-0a-f4-01-05",
            "+2:00:0a:f4:01:05",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn values_that_could_escape_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pod = HostRoot::at(dir.path()).pod("p-1").unwrap();
        let cases: [fn(&mut Record); 7] = [
            |r| r.containers[0].name = "../x".into(),
            |r| r.network.as_mut().unwrap().interface = "eth0\" drop".into(),
            |r| r.network.as_mut().unwrap().interface = "a234567890123456".into(),
            |r| r.network.as_mut().unwrap().ip = "10.0.0.1/8".into(),
            |r| r.network.as_mut().unwrap().other_ips = vec!["../fd00::1".into()],
            |r| r.network.as_mut().unwrap().aliases = vec!["lo; drop".into()],
            |r| r.migration_uid = "a/b".into(),
        ];
        for change in cases {
            let mut bad = record("p-1");
            change(&mut bad);
            assert!(pod.write_record(&bad).is_err(), "{bad:?}");
        }
    }
}
