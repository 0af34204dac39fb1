//! Keeps the authority in the cluster: reads or makes the Secret, publishes the bundle, and hands
//! the authority to whoever signs or serves in this process.
//!
//! Every replica reads it; only the leader renews and publishes, except that whoever finds no
//! Secret makes it, since replicas must serve before anybody leads (the API server lets only one
//! of them win).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transship_api::names;

use super::ca::{self, Authority, KeyedCert};

/// How often the Secret is looked at.
const PERIOD: Duration = Duration::from_secs(20);
/// How soon after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Why the authority could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate is damaged or cannot be made.
    #[error(transparent)]
    Ca(#[from] ca::Error),
    /// The API server refused.
    #[error("cannot {what}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
}

fn api(what: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { what, source }
}

/// The cluster's copy of the authority.
pub struct Keeper {
    client: Client,
    namespace: String,
    leading: watch::Receiver<bool>,
    publish: watch::Sender<Option<Authority>>,
}

impl Keeper {
    /// A keeper for the operator's namespace, and where the authority can be watched.
    pub fn new(
        client: Client,
        namespace: String,
        leading: watch::Receiver<bool>,
    ) -> (Self, watch::Receiver<Option<Authority>>) {
        let (publish, watched) = watch::channel(None);
        (Self { client, namespace, leading, publish }, watched)
    }

    /// Keeps it until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let pause = match self.pass().await {
                Ok(()) => PERIOD,
                Err(error) => {
                    tracing::warn!(
                        error = format!("{:#}", anyhow::Error::from(error)),
                        "the authority could not be kept"
                    );
                    RETRY
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                changed = self.leading.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn pass(&self) -> Result<(), Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = secrets.get_opt(names::CA_SECRET).await.map_err(api("read the authority"))?;
        let now = SystemTime::now();
        let leads = *self.leading.borrow();
        let authority = match found {
            None => {
                let authority = Authority::new(now)?;
                let secret = to_secret(&authority, None);
                match secrets.create(&PostParams::default(), &secret).await {
                    Ok(_) => tracing::info!("made the authority of the certificates"),
                    Err(kube::Error::Api(status)) if status.is_already_exists() => {
                        return Box::pin(self.pass()).await;
                    }
                    Err(error) => return Err(api("store the authority")(error)),
                }
                authority
            }
            Some(secret) => match from_secret(&secret) {
                Some(authority) => match authority.rotated(now)? {
                    Some(renewed) if leads => {
                        self.store(&secrets, &renewed, &secret).await?;
                        tracing::info!("renewed the authority of the certificates");
                        renewed
                    }
                    _ => authority,
                },
                // Made by hand, or cut off: a new one is better than none.
                None if leads => {
                    let authority = Authority::new(now)?;
                    self.store(&secrets, &authority, &secret).await?;
                    authority
                }
                None => return Ok(()),
            },
        };
        let bundle = authority.bundle();
        self.publish.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&authority);
            *current = Some(authority);
            changed
        });
        if leads {
            self.publish_bundle(&bundle).await?;
            self.inject(&bundle).await?;
        }
        Ok(())
    }

    async fn store(
        &self,
        secrets: &Api<Secret>,
        authority: &Authority,
        old: &Secret,
    ) -> Result<(), Error> {
        let secret = to_secret(authority, Some(old));
        secrets
            .replace(names::CA_SECRET, &PostParams::default(), &secret)
            .await
            .map_err(api("store the authority"))?;
        Ok(())
    }

    async fn publish_bundle(&self, bundle: &str) -> Result<(), Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = maps.get_opt(names::CA_BUNDLE).await.map_err(api("read the bundle"))?;
        let data = BTreeMap::from([(names::CA_BUNDLE_KEY.to_owned(), bundle.to_owned())]);
        match found {
            Some(map) if map.data.as_ref() == Some(&data) => {}
            Some(_) => {
                let patch = Patch::Merge(json!({"data": data}));
                maps.patch(names::CA_BUNDLE, &PatchParams::default(), &patch)
                    .await
                    .map_err(api("publish the bundle"))?;
            }
            None => {
                let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
                map.metadata.name = Some(names::CA_BUNDLE.into());
                map.metadata.labels = Some(our_labels());
                maps.create(&PostParams::default(), &map)
                    .await
                    .map_err(api("publish the bundle"))?;
            }
        }
        Ok(())
    }

    /// Puts the bundle into the chart's webhooks. Without the chart there are none.
    async fn inject(&self, bundle: &str) -> Result<(), Error> {
        let hooks: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let found =
            hooks.get_opt(names::OPERATOR).await.map_err(api("read the webhook configuration"))?;
        let Some(mut configuration) = found else { return Ok(()) };
        let wanted = ByteString(bundle.as_bytes().to_vec());
        let mut changed = false;
        for hook in configuration.webhooks.iter_mut().flatten() {
            if hook.client_config.ca_bundle.as_ref() != Some(&wanted) {
                hook.client_config.ca_bundle = Some(wanted.clone());
                changed = true;
            }
        }
        if changed {
            hooks
                .replace(names::OPERATOR, &PostParams::default(), &configuration)
                .await
                .map_err(api("put the bundle into the webhook configuration"))?;
            tracing::info!("put the authority's bundle into the webhook configuration");
        }
        Ok(())
    }
}

fn our_labels() -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "transship"),
        ("app.kubernetes.io/managed-by", names::OPERATOR),
        ("app.kubernetes.io/part-of", "transship"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn to_secret(authority: &Authority, old: Option<&Secret>) -> Secret {
    let mut data =
        BTreeMap::from([("tls.crt", &authority.active.cert), ("tls.key", &authority.active.key)]);
    if let Some(next) = &authority.next {
        data.insert("next.crt", &next.cert);
        data.insert("next.key", &next.key);
    }
    if let Some(previous) = &authority.previous {
        data.insert("previous.crt", previous);
    }
    let mut secret = old.cloned().unwrap_or_default();
    secret.metadata.name = Some(names::CA_SECRET.into());
    secret.metadata.labels.get_or_insert_with(our_labels);
    secret.data = Some(
        data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.as_bytes().to_vec()))).collect(),
    );
    secret
}

fn from_secret(secret: &Secret) -> Option<Authority> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
    let keyed = |name: &str| {
        Some(KeyedCert { cert: text(&format!("{name}.crt"))?, key: text(&format!("{name}.key"))? })
    };
    let active = keyed("tls").filter(|active| ca::validity(&active.cert).is_ok())?;
    Some(Authority { active, next: keyed("next"), previous: text("previous.crt") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_survives_its_secret() {
        let mut authority = Authority::new(SystemTime::now()).unwrap();
        assert_eq!(from_secret(&to_secret(&authority, None)).as_ref(), Some(&authority));
        let other = Authority::new(SystemTime::now()).unwrap();
        authority.next = Some(other.active.clone());
        authority.previous = Some(other.active.cert);
        assert_eq!(from_secret(&to_secret(&authority, None)).as_ref(), Some(&authority));
        assert_eq!(from_secret(&Secret::default()), None);
    }
}
