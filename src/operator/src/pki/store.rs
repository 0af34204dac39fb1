//! Where the authority is kept and published.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        core::v1::{ConfigMap, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use transship_api::names::OPERATOR;

use super::ca::Authorities;

const SECRET: &str = "transship-ca";
const CONFIG_MAP: &str = "transship-ca-bundle";
const SECRET_KEY: &str = "authorities.json";
const BUNDLE_KEY: &str = "ca.crt";

/// Reads the authorities, or makes the first. Two replicas may try at once: the one whose create is
/// refused reads what the other made.
pub async fn load_or_create(client: &Client, namespace: &str) -> Result<Authorities> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = api.get_opt(SECRET).await.context("reading secret transship-ca")? {
        return parse(&secret);
    }
    let authorities = Authorities::default().rotated(Timestamp::now())?;
    let secret = Secret {
        metadata: metadata(SECRET),
        data: Some(encode(&authorities)?),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(authorities),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            parse(&api.get(SECRET).await.context("reading secret transship-ca")?)
        }
        Err(error) => Err(error).context("writing secret transship-ca"),
    }
}

/// Puts a new authority in front when it is time; a conflict means that the other replica did.
pub async fn rotate_if_due(
    client: &Client,
    namespace: &str,
    authorities: Authorities,
) -> Result<Authorities> {
    let now = Timestamp::now();
    if !authorities.rotation_due(now) {
        return Ok(authorities);
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut secret = api.get(SECRET).await?;
    let found = parse(&secret)?;
    if !found.rotation_due(now) {
        return Ok(found);
    }
    let rotated = found.rotated(now)?;
    secret.data = Some(encode(&rotated)?);
    match api.replace(SECRET, &PostParams::default(), &secret).await {
        Ok(_) => Ok(rotated),
        Err(kube::Error::Api(status)) if status.code == 409 => parse(&api.get(SECRET).await?),
        Err(error) => Err(error).context("rotating secret transship-ca"),
    }
}

/// Writes the bundle where agents and the API server look for it.
pub async fn publish(client: &Client, namespace: &str, bundle: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let data = BTreeMap::from([(BUNDLE_KEY.to_owned(), bundle.to_owned())]);
    match maps.get_opt(CONFIG_MAP).await.context("reading configmap transship-ca-bundle")? {
        Some(map) if map.data.as_ref() == Some(&data) => {}
        Some(mut map) => {
            map.data = Some(data);
            maps.replace(CONFIG_MAP, &PostParams::default(), &map).await?;
        }
        None => {
            let map = ConfigMap {
                metadata: metadata(CONFIG_MAP),
                data: Some(data),
                ..ConfigMap::default()
            };
            match maps.create(&PostParams::default(), &map).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error).context("writing configmap transship-ca-bundle"),
            }
        }
    }

    // Absent where the operator runs without the chart.
    let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let Some(mut configuration) = webhooks.get_opt(OPERATOR).await.context("reading the webhooks")? else {
        return Ok(());
    };
    let bundle = Some(ByteString(bundle.as_bytes().to_vec()));
    let mut changed = false;
    for webhook in configuration.webhooks.iter_mut().flatten() {
        if webhook.client_config.ca_bundle != bundle {
            webhook.client_config.ca_bundle.clone_from(&bundle);
            changed = true;
        }
    }
    if changed {
        webhooks.replace(OPERATOR, &PostParams::default(), &configuration).await?;
    }
    Ok(())
}

fn parse(secret: &Secret) -> Result<Authorities> {
    let data = secret.data.as_ref().and_then(|data| data.get(SECRET_KEY)).with_context(|| {
        format!("secret {SECRET} has no key {SECRET_KEY}; delete the secret, a new one is made")
    })?;
    serde_json::from_slice(&data.0).with_context(|| {
        format!("secret {SECRET} is damaged; delete it, a new one is made and agents renew theirs")
    })
}

fn encode(authorities: &Authorities) -> Result<BTreeMap<String, ByteString>> {
    Ok(BTreeMap::from([(SECRET_KEY.to_owned(), ByteString(serde_json::to_vec(authorities)?))]))
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(BTreeMap::from([
            ("app.kubernetes.io/part-of".to_owned(), "transship".to_owned()),
            ("app.kubernetes.io/managed-by".to_owned(), OPERATOR.to_owned()),
        ])),
        ..ObjectMeta::default()
    }
}
