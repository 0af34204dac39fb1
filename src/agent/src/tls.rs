//! Mutual TLS: configurations made of one certificate and the authority's bundle, and the rules
//! who may talk to whom. The operator's certificate carries the DNS name `operator.transship.internal`,
//! an agent's `<node>.node.transship.internal`; every peer is checked for the exact name expected.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// DNS name in the operator's client certificate.
pub const OPERATOR_NAME: &str = "operator.transship.internal";

/// DNS name in the certificate of a node's agent.
pub fn node_name(node: &str) -> String {
    format!("{node}.node.transship.internal")
}

/// Why a configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Text that should be PEM is not.
    #[error("the {what} is not valid PEM")]
    Pem {
        /// Certificate, key or bundle.
        what: &'static str,
        /// Where it fails.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("the {0} holds no certificate")]
    Empty(&'static str),
    /// TLS refuses what it was given.
    #[error("the {what} cannot be used")]
    Tls {
        /// Which part.
        what: &'static str,
        /// What TLS says.
        #[source]
        source: rustls::Error,
    },
    /// No client of this authority could be verified.
    #[error("the authority's bundle cannot be used")]
    Bundle(#[source] rustls::server::VerifierBuilderError),
}

/// Configurations for both directions. Replaced as a whole at each renewal.
#[derive(Debug, Clone)]
pub struct Tls {
    /// For both servers of the agent; demands a client certificate of the authority.
    pub server: Arc<ServerConfig>,
    /// For data connections to other agents.
    pub client: Arc<ClientConfig>,
}

/// The certificates of a PEM text, at least one.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Pem { what, source })?;
    if certificates.is_empty() { Err(Error::Empty(what)) } else { Ok(certificates) }
}

/// The trust anchors of the authority's bundle.
pub fn roots(bundle: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(bundle, "authority's bundle")? {
        roots
            .add(certificate)
            .map_err(|source| Error::Tls { what: "authority's certificate", source })?;
    }
    Ok(roots)
}

/// Makes both configurations of a certificate chain, its key and the authority's bundle, all PEM.
pub fn build(chain: &str, key: &str, bundle: &str) -> Result<Tls, Error> {
    let roots = Arc::new(roots(bundle)?);
    let chain = certificates(chain, "agent's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|source| Error::Pem { what: "agent's key", source })?;
    let unusable = |source| Error::Tls { what: "agent's certificate", source };
    let verifier = WebPkiClientVerifier::builder(roots.clone()).build().map_err(Error::Bundle)?;
    let mut server = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(unusable)?;
    server.alpn_protocols = vec![b"h2".to_vec(), DATA_PROTOCOL.to_vec()];
    let mut client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    client.alpn_protocols = vec![DATA_PROTOCOL.to_vec()];
    Ok(Tls { server: Arc::new(server), client: Arc::new(client) })
}

/// What data connections call themselves, so that a mix-up of ports fails in the handshake.
pub const DATA_PROTOCOL: &[u8] = b"transship-data/1";

/// Whether the peer's certificate (verified by TLS already) is valid for `name`.
pub fn peer_is(certificates: Option<&[CertificateDer<'_>]>, name: &str) -> bool {
    let Some(certificate) = certificates.and_then(|chain| chain.first()) else { return false };
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
    let Ok(name) = ServerName::try_from(name) else { return false };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}

/// An authority and certificates of it, for tests here and in other modules.
#[cfg(test)]
pub mod testing {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    /// An authority.
    pub struct Authority {
        issuer: Issuer<'static, KeyPair>,
        /// Its certificate, PEM.
        pub pem: String,
    }

    impl Authority {
        /// A fresh one.
        pub fn new() -> Self {
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), pem }
        }

        /// A certificate and its key for `name`, PEM.
        pub fn issue(&self, name: &str) -> (String, String) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            (certificate.pem(), key.serialize_pem())
        }

        /// Signs a certificate request (PEM), as it is.
        pub fn sign(&self, request: &str) -> String {
            let request = rcgen::CertificateSigningRequestParams::from_pem(request).unwrap();
            request.signed_by(&self.issuer).unwrap().pem()
        }

        /// Both configurations for `name`.
        pub fn tls(&self, name: &str) -> super::Tls {
            let (chain, key) = self.issue(name);
            super::build(&chain, &key, &self.pem).unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_known_by_its_exact_name() {
        let (chain, _) = testing::Authority::new().issue(&node_name("node-a.example.com"));
        let chain = certificates(&chain, "test").unwrap();
        assert!(peer_is(Some(&chain), "node-a.example.com.node.transship.internal"));
        for other in [OPERATOR_NAME, "node-b.node.transship.internal", "", "*", "a b"] {
            assert!(!peer_is(Some(&chain), other), "{other}");
        }
        assert!(!peer_is(None, OPERATOR_NAME));
        assert!(!peer_is(Some(&[]), OPERATOR_NAME));
    }

    #[test]
    fn what_is_not_a_certificate_is_refused_by_name() {
        let authority = testing::Authority::new();
        let (chain, key) = authority.issue("x.node.transship.internal");
        assert!(build(&chain, &key, &authority.pem).is_ok());
        assert!(build("", &key, &authority.pem).unwrap_err().to_string().contains("agent's cert"));
        assert!(build(&chain, "", &authority.pem).unwrap_err().to_string().contains("key"));
        assert!(build(&chain, &key, "").unwrap_err().to_string().contains("bundle"));
        let (_, other) = authority.issue("y.node.transship.internal");
        assert!(build(&chain, &other, &authority.pem).is_err(), "key of another certificate");
    }
}
