//! The certificates of operator, agents and webhooks: one authority, short-lived leaves.
//!
//! The authority's key lies in the Secret `transship-ca`, which only the operator may read; its
//! certificates in the ConfigMap `transship-ca-bundle` and in the webhooks' `caBundle`. Both
//! replicas use the same Secret, and each makes its own leaf from it. A new authority is made
//! long before the old one ends, and both stay in the bundle until it has ended, so nobody is cut
//! off by a rotation.
//!
//! `ca` decides what is made and when; `store` reads and writes the API objects.

mod ca;
mod store;

use std::sync::{Arc, RwLock};

use anyhow::{Context, Result};
use kube::Client;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

pub use ca::{AGENT_DOMAIN, Authorities, OPERATOR_IDENTITY};

/// A certificate with its key and what it is checked against, all PEM.
#[derive(Clone)]
pub struct Identity {
    /// Leaf certificate.
    pub certificate: String,
    /// Its key, PKCS#8.
    pub key: String,
    /// All authorities that count at present.
    pub bundle: String,
}

/// The operator's certificates; clones share them.
#[derive(Clone)]
pub struct Pki {
    client: Client,
    namespace: String,
    current: Arc<RwLock<Current>>,
}

struct Current {
    authorities: Authorities,
    /// For calls to agents.
    identity: Identity,
    /// For our own server.
    serving: Arc<CertifiedKey>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Pki {
    /// Reads the authority, or makes the first one, and makes this process' leaves.
    pub async fn load_or_create(client: Client, namespace: &str) -> Result<Self> {
        let authorities = store::load_or_create(&client, namespace).await?;
        let current = Current::make(authorities, namespace)?;
        Ok(Self { client, namespace: namespace.to_owned(), current: Arc::new(RwLock::new(current)) })
    }

    /// What the operator shows to agents.
    pub fn identity(&self) -> Identity {
        self.read(|current| current.identity.clone())
    }

    /// Signs an agent's request: the certificate names `node`, whatever the request says. Returns
    /// PEM.
    pub fn issue(&self, request: &str, node: &str) -> Result<String> {
        self.read(|current| current.authorities.issue_for_agent(request, node))
    }

    /// The configuration of our own TLS server; it follows renewals by itself.
    pub fn serving_config(&self) -> ServerConfig {
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Serving(self.current.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    /// One round of renewal: follows what the other replica did, rotates, renews the leaves, and
    /// brings bundle and webhooks up to date. Called every few minutes and at the start.
    pub async fn maintain(&self) -> Result<()> {
        let authorities = store::load_or_create(&self.client, &self.namespace).await?;
        let rotated = store::rotate_if_due(&self.client, &self.namespace, authorities).await?;
        store::publish(&self.client, &self.namespace, &rotated.bundle()).await?;
        let renewed = Current::make(rotated, &self.namespace)?;
        match self.current.write() {
            Ok(mut current) => *current = renewed,
            Err(poisoned) => *poisoned.into_inner() = renewed,
        }
        Ok(())
    }

    fn read<T>(&self, what: impl FnOnce(&Current) -> T) -> T {
        match self.current.read() {
            Ok(current) => what(&current),
            // A panic while writing cannot leave a half-written value: it is replaced whole.
            Err(poisoned) => what(&poisoned.into_inner()),
        }
    }
}

impl Current {
    fn make(authorities: Authorities, namespace: &str) -> Result<Self> {
        let bundle = authorities.bundle();
        let (certificate, key) = authorities.issue_client()?;
        let (serving, serving_key) = authorities.issue_serving(namespace)?;
        Ok(Self {
            identity: Identity { certificate, key, bundle },
            serving: Arc::new(certified(&serving, &serving_key)?),
            authorities,
        })
    }
}

fn certified(certificate: &str, key: &str) -> Result<CertifiedKey> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).context("certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("key")?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(vec![certificate], key))
}

/// Gives each connection the newest certificate.
struct Serving(Arc<RwLock<Current>>);

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serving")
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().ok()?.serving.clone())
    }
}

/// The certificates of a bundle as roots, for tests and clients.
pub fn roots(bundle: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.context("bundle")?)?;
    }
    Ok(roots)
}
