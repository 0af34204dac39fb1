//! The operator's own certificate: renewed at two thirds of its life and whenever the authority
//! changes, and swapped under the running server.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::OPERATOR_NAME;
use super::ca::{Authority, KeyedCert, LEAF_LIFE};

/// Everything that servers and clients of this process need of the authority.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The authority itself, for signing.
    pub authority: Authority,
    /// Own certificate and key.
    pub own: KeyedCert,
    /// For the HTTPS server.
    pub server: Arc<ServerConfig>,
}

/// Why an identity could not be made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Ca(#[from] super::ca::Error),
    #[error("the operator's certificate is not valid PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the operator's certificate cannot be used")]
    Tls(#[from] rustls::Error),
}

/// Names under which the operator is called in `namespace`, and its own name as a client.
pub fn names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        OPERATOR_NAME.to_owned(),
    ]
}

/// Keeps `publish` filled until `stop`.
pub async fn keep(
    mut authority: watch::Receiver<Option<Authority>>,
    names: Vec<String>,
    publish: watch::Sender<Option<Identity>>,
    stop: CancellationToken,
) {
    loop {
        let current = authority.borrow_and_update().clone();
        let mut pause = LEAF_LIFE * 2 / 3;
        if let Some(authority) = current {
            match make(&authority, &names) {
                Ok(identity) => {
                    publish.send_replace(Some(identity));
                }
                Err(error) => {
                    tracing::error!(
                        error = format!("{:#}", anyhow::Error::from(error)),
                        "no certificate for the operator"
                    );
                    pause = Duration::from_secs(5);
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            changed = authority.changed() => if changed.is_err() { return },
        }
    }
}

fn make(authority: &Authority, names: &[String]) -> Result<Identity, Error> {
    let own = authority.leaf(names, SystemTime::now())?;
    let chain = vec![CertificateDer::from_pem_slice(own.cert.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes())?;
    let mut server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Identity { authority: authority.clone(), own, server: Arc::new(server) })
}
