//! Reads the Migration from the API server: the only source of decisions.
//!
//! Each read is a GET by name without a resourceVersion, which the API server answers from a
//! quorum of its store, never from a cache. Address, authority and token come from files that the
//! node's agent keeps fresh; they are read again whenever they change, so a holder outlives any
//! number of agents. What follows from what is read is decided by `transship-protocol`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::{self as corev1, Pod};
use kube::config::AuthInfo;
use kube::{Api, Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use transship_api::{Decision, HolderState, Migration, NodeStatus, Resolution, Role};
use transship_protocol::{NodeSeen, PodSeen, TargetOutcome, TargetWord, judge_node};

use crate::reading::Reading;

/// How long one read may take. Shorter than the pace of reads would pile up nothing, since reads
/// follow one another.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// What a quorum read said about this Migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It exists, with this UID.
    Present {
        /// `status.decision`.
        decision: Option<Decision>,
        /// Whether `status.resumedAt` is written.
        resumed: bool,
        /// `status.resolution`.
        resolution: Option<Resolution>,
    },
    /// No Migration of this name and UID exists.
    Gone,
}

/// Reads one Migration.
pub struct Reader {
    files: PathBuf,
    namespace: String,
    name: String,
    uid: String,
    client: Option<(Stamp, Client)>,
}

/// When the files that a client was made from were last written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp([Option<SystemTime>; 2]);

impl Reader {
    /// A reader of Migration `namespace/name` with this UID, by the files in directory `files`.
    pub fn new(files: &Path, namespace: &str, name: &str, uid: &str) -> Self {
        Reader {
            files: files.to_path_buf(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            client: None,
        }
    }

    /// One quorum read. Any error means that nothing is known: no decision follows from it.
    pub async fn read(&mut self) -> Result<Seen> {
        let outcome = tokio::time::timeout(READ_TIMEOUT, self.get()).await;
        let outcome = outcome
            .unwrap_or_else(|_| Err(anyhow!("the API server did not answer in {READ_TIMEOUT:?}")));
        if outcome.is_err() {
            // A connection that hangs or a token that was refused is not tried again.
            self.client = None;
        }
        outcome
    }

    /// The UID of the Migration that counts.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// A quorum read of what the target's node has published for this Migration, or of that the cluster has no
    /// such node any more.
    pub async fn peer(&mut self, node: &str) -> Result<Reading> {
        let outcome = tokio::time::timeout(READ_TIMEOUT, async {
            let client = self.client().await?;
            let api: Api<transship_api::Node> = Api::all(client.clone());
            let found = api.get_opt(node).await.context("cannot read the target's Node")?;
            let told = found.and_then(|node| node.status).filter(NodeStatus::has_told);
            let word = told.map(|status| published(&status, &self.uid));
            let is_in_cluster = match word {
                Some(_) => true,
                None => {
                    let api: Api<corev1::Node> = Api::all(client);
                    let found = api.get_metadata_opt(node).await;
                    found.context("cannot read the target's node")?.is_some()
                }
            };
            match judge_node(word, is_in_cluster) {
                NodeSeen::Tells(word) => Ok(Reading::Peer(word)),
                NodeSeen::Anew => Err(anyhow!("{node} has not told anything yet")),
                NodeSeen::Left => Ok(Reading::PeerNodeGone),
            }
        })
        .await
        .unwrap_or_else(|_| Err(anyhow!("the API server did not answer in {READ_TIMEOUT:?}")));
        if outcome.is_err() {
            self.client = None;
        }
        outcome
    }

    /// A quorum read of the pod of this name and UID, in the Migration's namespace.
    pub async fn pod(&mut self, name: &str, uid: &str) -> Result<PodSeen> {
        let outcome = tokio::time::timeout(READ_TIMEOUT, async {
            let api: Api<Pod> = Api::namespaced(self.client().await?, &self.namespace);
            let found = api.get_opt(name).await.context("cannot read the pod")?;
            Ok(judge_pod(found.as_ref(), uid))
        })
        .await
        .unwrap_or_else(|_| Err(anyhow!("the API server did not answer in {READ_TIMEOUT:?}")));
        if outcome.is_err() {
            self.client = None;
        }
        outcome
    }

    async fn get(&mut self) -> Result<Seen> {
        let client = self.client().await?;
        let api: Api<Migration> = Api::namespaced(client, &self.namespace);
        let found = api.get_opt(&self.name).await.context("cannot read the Migration")?;
        Ok(seen(found, &self.uid))
    }

    async fn client(&mut self) -> Result<Client> {
        let stamp = self.stamp();
        if let Some((made, client)) = &self.client
            && *made == stamp
        {
            return Ok(client.clone());
        }
        let client = connect(&self.files).await?;
        self.client = Some((stamp, client.clone()));
        Ok(client)
    }

    fn stamp(&self) -> Stamp {
        Stamp(["server", "ca.crt"].map(|file| {
            std::fs::metadata(self.files.join(file)).and_then(|meta| meta.modified()).ok()
        }))
    }
}

fn judge_pod(found: Option<&Pod>, uid: &str) -> PodSeen {
    match found.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)) {
        None => PodSeen::Gone,
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => PodSeen::Deleting,
        Some(_) => PodSeen::Alive,
    }
}

fn seen(found: Option<Migration>, uid: &str) -> Seen {
    match found {
        Some(migration) if migration.metadata.uid.as_deref() == Some(uid) => {
            let status = migration.status.unwrap_or_default();
            Seen::Present {
                decision: status.decision,
                resumed: status.resumed_at.is_some(),
                resolution: status.resolution,
            }
        }
        Some(_) | None => Seen::Gone,
    }
}

/// The target's word for a migration, as far as its Node's status tells it. Only final words have
/// an outcome; a target that says nothing has said nothing.
fn published(status: &transship_api::NodeStatus, uid: &str) -> TargetWord {
    let found = status
        .active_migrations
        .iter()
        .find(|active| active.migration_uid == uid && active.role == Role::Target);
    let Some(active) = found else { return TargetWord::default() };
    let outcome = match active.state {
        HolderState::NeverThawed => Some(TargetOutcome::NeverThawed),
        HolderState::Resumed => Some(TargetOutcome::Resumed),
        HolderState::Aborted => Some(TargetOutcome::Stopped),
        HolderState::Kept => Some(TargetOutcome::Kept),
        _ => None,
    };
    TargetWord {
        begun: true,
        voted: active.voted,
        thawed: active.resumed_at.is_some() || outcome == Some(TargetOutcome::Resumed),
        lost: active.state == HolderState::Rebooted,
        outcome,
        closed: outcome.is_some(),
    }
}

/// A client by the files in directory `files`.
pub(crate) async fn connect(files: &Path) -> Result<Client> {
    let read = async |name: &str| {
        let path = files.join(name);
        tokio::fs::read(&path).await.with_context(|| format!("cannot read {}", path.display()))
    };
    let server = String::from_utf8(read("server").await?).context("server is not a text")?;
    let url = server.trim().parse().with_context(|| format!("{server:?} is not a URL"))?;
    let authorities = read("ca.crt").await?;
    let authorities = CertificateDer::pem_slice_iter(&authorities)
        .map(|certificate| certificate.map(|der| der.to_vec()))
        .collect::<std::result::Result<Vec<_>, _>>()
        .context("ca.crt holds no certificates")?;
    let mut config = Config::new(url);
    config.root_cert = Some(authorities);
    config.connect_timeout = Some(READ_TIMEOUT);
    // No limit for a connection's reads: it would count while the connection is idle, and end it
    // when a request has just been sent over it. Each caller bounds its whole request instead.
    config.auth_info = AuthInfo {
        // The client reads the file again as the agent renews it.
        token_file: Some(files.join("token").to_string_lossy().into_owned()),
        ..AuthInfo::default()
    };
    Client::try_from(config).context("cannot set up the API client")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use transship_api::{MigrationSpec, MigrationStatus};

    fn migration(uid: &str, status: Option<MigrationStatus>) -> Migration {
        let mut migration = Migration::new("m", MigrationSpec::for_pod("p"));
        migration.metadata.uid = Some(uid.into());
        migration.status = status;
        migration
    }

    #[test]
    fn only_a_migration_with_the_same_uid_counts() {
        assert_eq!(seen(None, "u"), Seen::Gone);
        assert_eq!(seen(Some(migration("other", None)), "u"), Seen::Gone);
        assert_eq!(
            seen(Some(migration("u", None)), "u"),
            Seen::Present { decision: None, resumed: false, resolution: None }
        );
    }

    #[test]
    fn another_pod_of_the_name_is_not_the_pod() {
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".into());
        assert_eq!(judge_pod(Some(&pod), "u"), PodSeen::Alive);
        assert_eq!(judge_pod(Some(&pod), "other"), PodSeen::Gone);
        assert_eq!(judge_pod(None, "u"), PodSeen::Gone);
        pod.metadata.deletion_timestamp = Some(Time(Default::default()));
        assert_eq!(judge_pod(Some(&pod), "u"), PodSeen::Deleting);
    }

    #[test]
    fn decision_and_outcome_are_read_from_the_status() {
        let status = MigrationStatus {
            decision: Some(Decision::Commit),
            resolution: Some(Resolution::SourceResumes),
            ..Default::default()
        };
        assert_eq!(
            seen(Some(migration("u", Some(status))), "u"),
            Seen::Present {
                decision: Some(Decision::Commit),
                resumed: false,
                resolution: Some(Resolution::SourceResumes)
            }
        );
    }

    #[test]
    fn a_target_has_an_outcome_only_when_its_state_is_final() {
        let active = |state, role| transship_api::ActiveMigration {
            migration_uid: "u".into(),
            migration: String::new(),
            role,
            pod_uid: "p".into(),
            state,
            voted: true,
            resumed_at: None,
            since: None,
            message: String::new(),
        };
        for (state, outcome) in [
            (HolderState::Voted, None),
            (HolderState::Thawing, None),
            (HolderState::Rebooted, None),
            (HolderState::Resumed, Some(TargetOutcome::Resumed)),
            (HolderState::NeverThawed, Some(TargetOutcome::NeverThawed)),
            (HolderState::Aborted, Some(TargetOutcome::Stopped)),
        ] {
            let mut status = transship_api::NodeStatus {
                active_migrations: vec![active(state, Role::Target)],
                ..Default::default()
            };
            assert_eq!(published(&status, "u").outcome, outcome, "{state:?}");
            assert_eq!(published(&status, "other"), TargetWord::default());
            status.active_migrations = vec![active(state, Role::Source)];
            assert_eq!(published(&status, "u"), TargetWord::default());
        }
    }

    #[tokio::test]
    async fn without_the_agents_files_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = Reader::new(dir.path(), "ns", "m", "u");
        let error = format!("{:#}", reader.read().await.unwrap_err());
        assert!(error.contains("server"), "{error}");
    }
}
