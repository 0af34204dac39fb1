//! The structured parts of frames: JSON in the meta part.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use transship_protocol::{MAX_MESSAGE, MAX_REASON};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::tree::Kinds;

/// The version of the protocol. Both sides must speak the same one.
pub const VERSION: u32 = 1;

/// The first message: who is moving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// UID of the Migration.
    pub migration: String,
    /// UID of the source pod.
    pub pod_uid: String,
    /// The containers that will be sent, in the order of the pod's spec.
    pub containers: Vec<String>,
}

impl Hello {
    /// A hello of this version.
    pub fn new(
        migration: impl Into<String>,
        pod_uid: impl Into<String>,
        containers: Vec<String>,
    ) -> Self {
        Self { version: VERSION, migration: migration.into(), pod_uid: pod_uid.into(), containers }
    }
}

/// Where a file tree belongs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Area {
    /// The changes to a container's root file system: `rootfs/<container>`.
    Rootfs(String),
    /// An emptyDir volume: `emptydir/<volume>`.
    EmptyDir(String),
    /// The sandbox's /dev/shm: `shm`.
    Shm,
    /// What the source's node knows of the pod's connections: `network`.
    Network,
    /// What goes along beside the pod's own files: `beside`.
    Beside,
}

impl Area {
    /// What a tree of it may consist of. Those that the target's own programs read hold nothing that leads
    /// elsewhere.
    pub fn kinds(&self) -> Kinds {
        match self {
            Area::Rootfs(_) | Area::EmptyDir(_) | Area::Shm => Kinds::All,
            Area::Network | Area::Beside => Kinds::Plain,
        }
    }
}

/// Container and volume names are DNS labels; nothing else may become part of a path.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        && !name.starts_with(['.', '-'])
}

impl FromStr for Area {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            None if text == "shm" => Ok(Area::Shm),
            None if text == "network" => Ok(Area::Network),
            None if text == "beside" => Ok(Area::Beside),
            Some(("rootfs", name)) if is_name(name) => Ok(Area::Rootfs(name.into())),
            Some(("emptydir", name)) if is_name(name) => Ok(Area::EmptyDir(name.into())),
            _ => Err(format!("unknown area {:?}", text.chars().take(64).collect::<String>())),
        }
    }
}

impl TryFrom<String> for Area {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Area> for String {
    fn from(area: Area) -> Self {
        area.to_string()
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Area::Rootfs(container) => write!(f, "rootfs/{container}"),
            Area::EmptyDir(volume) => write!(f, "emptydir/{volume}"),
            Area::Shm => f.write_str("shm"),
            Area::Network => f.write_str("network"),
            Area::Beside => f.write_str("beside"),
        }
    }
}

/// Opens a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeStart {
    /// Where it belongs.
    pub area: Area,
}

/// Opens an image file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStart {
    /// Whose image.
    pub container: String,
    /// The file's name.
    pub name: String,
}

/// Opens the page stream of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesStart {
    /// Whose pages.
    pub container: String,
}

/// Ends a tree, image file or page stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemEnd {
    /// Plain bytes of data, without pages of zeroes.
    pub bytes: u64,
    /// xxh3-128 of the opening meta and of all metas and plain data after it, in hexadecimal.
    pub digest: Digest,
}

/// Counts and a digest over several items, independent of their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Trees, image files and page streams.
    pub items: u64,
    /// Their bytes added up.
    pub bytes: u64,
    /// Pages of memory, those of zeroes included.
    pub pages: u64,
    /// Their digests added up, modulo 2^128.
    pub digest: Digest,
}

impl Totals {
    /// Counts one more item.
    pub fn add(&mut self, end: &ItemEnd, pages: u64) {
        self.items += 1;
        self.bytes = self.bytes.wrapping_add(end.bytes);
        self.pages = self.pages.wrapping_add(pages);
        self.digest.0 = self.digest.0.wrapping_add(end.digest.0);
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { items, bytes, pages, digest } = self;
        write!(f, "{items} items, {bytes} bytes, {pages} pages, digest {digest}")
    }
}

/// Everything of a container has been sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDone {
    /// Which one.
    pub container: String,
    /// Its images and pages.
    pub totals: Totals,
}

/// Everything has been sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllDone {
    /// All containers and trees.
    pub totals: Totals,
}

/// What the target acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// It knows the migration and is ready to receive.
    Hello,
    /// It has everything, verified, and its handler accepted it.
    Complete,
}

/// The target has reached a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Which one.
    pub stage: Stage,
}

/// The sender of this message gives up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// A CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Failed {
    /// Cut to what a side may say: it comes to stand in the Migration's status.
    pub fn new(reason: &str, message: &str) -> Self {
        let cut = |text: &str, len| text.chars().take(len).collect();
        Self { reason: cut(reason, MAX_REASON), message: cut(message, MAX_MESSAGE) }
    }

    /// Cut as well: the peer may have written anything.
    pub(crate) fn received(meta: &[u8]) -> Result<Self> {
        let Self { reason, message } = from_meta(meta)?;
        Ok(Self::new(&reason, &message))
    }
}

/// A 128-bit digest, hexadecimal in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let valid = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        valid
            .then(|| u128::from_str_radix(&text, 16).ok())
            .flatten()
            .map(Digest)
            .ok_or("digest is not 32 hexadecimal digits")
    }
}

/// Adds up what an item's frames carry. Both sides run the same one.
#[derive(Clone, Default)]
pub(crate) struct ItemCount {
    hasher: Xxh3,
    bytes: u64,
}

impl ItemCount {
    pub(crate) fn frame(&mut self, meta: &[u8], data: &[u8]) {
        self.hasher.update(meta);
        self.hasher.update(data);
        self.bytes += data.len() as u64;
    }

    pub(crate) fn end(&self) -> ItemEnd {
        ItemEnd { bytes: self.bytes, digest: Digest(self.hasher.digest128()) }
    }
}

pub(crate) fn to_meta<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(message).map_err(|e| Error::Protocol(e.to_string()))
}

pub(crate) fn from_meta<'a, T: Deserialize<'a>>(meta: &'a [u8]) -> Result<T> {
    serde_json::from_slice(meta).map_err(|e| Error::Protocol(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_of_its_failure_is_cut() {
        let sent = Failed { reason: "<".repeat(1 << 16), message: "ü".repeat(1 << 15) };
        let received = Failed::received(&to_meta(&sent).unwrap()).unwrap();
        let lengths = (received.reason.chars().count(), received.message.chars().count());
        assert_eq!(lengths, (MAX_REASON, MAX_MESSAGE));
        let short = Failed::new("DiskFull", "no room");
        assert_eq!(Failed::received(&to_meta(&short).unwrap()).unwrap(), short);
    }

    #[test]
    fn areas_have_one_spelling_and_cannot_name_paths() {
        for (area, text) in [
            (Area::Rootfs("app".into()), "rootfs/app"),
            (Area::EmptyDir("data-1".into()), "emptydir/data-1"),
            (Area::Shm, "shm"),
            (Area::Network, "network"),
            (Area::Beside, "beside"),
        ] {
            assert_eq!(area.to_string(), text);
            assert_eq!(text.parse(), Ok(area));
        }
        for text in ["", "shm/x", "rootfs", "rootfs/", "rootfs/..", "rootfs/a/b", "emptydir/A"] {
            assert!(text.parse::<Area>().is_err(), "{text}");
        }
    }

    #[test]
    fn totals_do_not_depend_on_order() {
        let ends = [1u128, u128::MAX, 7].map(|d| ItemEnd { bytes: d as u64, digest: Digest(d) });
        let sum = |order: [usize; 3]| {
            let mut totals = Totals::default();
            order.iter().for_each(|i| totals.add(&ends[*i], 1));
            totals
        };
        assert_eq!(sum([0, 1, 2]), sum([2, 0, 1]));
        assert_eq!(sum([0, 1, 2]).digest, Digest(7));
    }

    #[test]
    fn digests_survive_json_and_nothing_else_passes() {
        let digest = Digest(0xab);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, "\"000000000000000000000000000000ab\"");
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        assert!(serde_json::from_str::<Digest>("\"+00000000000000000000000000000ab\"").is_err());
    }
}
