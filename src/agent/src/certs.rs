//! The agent's certificate: asked of the operator with a request for a key that never leaves this
//! node, renewed after two thirds of its life and whenever the authority's bundle changes, and
//! kept on the node's volatile file system so that a restarted agent can serve while the operator
//! is away.
//!
//! Who may have which name is the operator's decision: it takes the node's name from the token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as corev1;
use kube::{Api, Client};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use transship_api::names;
use transship_host::files;

use crate::args::Args;
use crate::telemetry::Telemetry;
use crate::tls::{self, Tls};

/// The configurations in force; none until the first certificate.
pub type Current = watch::Receiver<Option<Tls>>;

/// How long one exchange with the operator may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// How often the mounted bundle is looked at.
const BUNDLE_LOOK: Duration = Duration::from_secs(10);
/// An answer longer than this is not a certificate chain.
const MAX_ANSWER: usize = 64 << 10;
/// Pause after a first failure, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));

/// A certificate chain and its key, PEM.
#[derive(Clone)]
struct Certificate {
    chain: String,
    key: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Certificate {
    fn new(chain: String, key: String) -> anyhow::Result<Self> {
        let first = tls::certificates(&chain, "agent's certificate")?.remove(0);
        let (_, parsed) = x509_parser::parse_x509_certificate(&first)?;
        let at = |time: &x509_parser::time::ASN1Time| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        let validity = parsed.validity();
        let (not_before, not_after) = (at(&validity.not_before), at(&validity.not_after));
        Ok(Self { chain, key, not_before, not_after })
    }

    /// After two thirds of its life.
    fn renewal(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life * 2 / 3
    }
}

/// Where a certificate outlives the agent: on the node's /run, readable by root alone.
#[derive(Clone)]
struct Cache(PathBuf);

impl Cache {
    fn load(&self, now: SystemTime) -> Option<Certificate> {
        let chain = std::fs::read_to_string(self.0.join("tls.crt")).ok()?;
        let key = std::fs::read_to_string(self.0.join("tls.key")).ok()?;
        // A chain and a key of different renewals (a crash in between) are refused by tls::build.
        Certificate::new(chain, key).ok().filter(|certificate| certificate.not_after > now)
    }

    fn store(&self, certificate: &Certificate) {
        let stored = files::write_atomic(&self.0.join("tls.key"), certificate.key.as_bytes())
            .and_then(|()| {
                files::write_atomic(&self.0.join("tls.crt"), certificate.chain.as_bytes())
            });
        if let Err(error) = stored {
            tracing::warn!(error = error.chain(), "the certificate could not be kept on the node");
        }
    }
}

/// What asks for certificates.
pub struct Certificates {
    args: Args,
    client: Client,
    telemetry: Arc<Telemetry>,
    cache: Cache,
    publish: watch::Sender<Option<Tls>>,
}

impl Certificates {
    /// `run` is the node's `/run/transship` as seen by the agent.
    pub fn new(
        args: Args,
        client: Client,
        telemetry: Arc<Telemetry>,
        run: &Path,
    ) -> (Self, Current) {
        let (publish, current) = watch::channel(None);
        let cache = Cache(run.join("agent"));
        (Self { args, client, telemetry, cache, publish }, current)
    }

    /// Keeps a valid certificate in force until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let keep = async {
            let mut held: Option<Certificate> = self.cache.load(SystemTime::now());
            let mut in_force: Option<(String, SystemTime)> = None;
            let mut pause = RETRY.0;
            let mut waiting_told = false;
            loop {
                let Some(bundle) = self.bundle().await else {
                    if !std::mem::replace(&mut waiting_told, true) {
                        tracing::info!(file = %self.args.ca_file.display(), "waiting for the authority's certificate");
                    }
                    tokio::time::sleep(RETRY.0 * 2).await;
                    continue;
                };
                // A kept certificate, or the old one under a new bundle, is in force at once;
                // asking for the next may take a while.
                if let Some(certificate) = &held
                    && in_force.as_ref() != Some(&(bundle.clone(), certificate.not_after))
                    && self.put_in_force(certificate, &bundle)
                {
                    in_force = Some((bundle.clone(), certificate.not_after));
                }
                let due = held.as_ref().is_none_or(|c| c.renewal() <= SystemTime::now());
                if !due && in_force.is_some() {
                    tokio::time::sleep(BUNDLE_LOOK).await;
                    if self.bundle().await.is_some_and(|now| now != bundle) {
                        // Another authority may sign now: both ends must change over in time.
                        held = None;
                    }
                    continue;
                }
                match self.ask(&bundle).await {
                    Ok(certificate) => {
                        pause = RETRY.0;
                        self.cache.store(&certificate);
                        if self.put_in_force(&certificate, &bundle) {
                            in_force = Some((bundle, certificate.not_after));
                            tracing::info!(
                                until = %jiff::Timestamp::try_from(certificate.not_after).unwrap_or_default(),
                                "the operator issued a certificate"
                            );
                        }
                        held = Some(certificate);
                    }
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), again_in = ?pause, "no certificate from the operator yet");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(RETRY.1);
                    }
                }
            }
        };
        tokio::select! { () = keep => {}, () = stop.cancelled() => {} }
    }

    /// The mounted bundle; where kubelet has not filled the volume in yet (it takes its time when
    /// the operator made the ConfigMap after the pod started), the ConfigMap itself.
    async fn bundle(&self) -> Option<String> {
        let mounted = tokio::fs::read_to_string(&self.args.ca_file).await;
        if let Some(text) = mounted.ok().filter(|text| !text.is_empty()) {
            return Some(text);
        }
        let maps: Api<corev1::ConfigMap> =
            Api::namespaced(self.client.clone(), &self.args.namespace);
        let map = maps.get_opt(names::CA_BUNDLE);
        let map = tokio::time::timeout(REQUEST_LIMIT, map).await.ok()?.ok()??;
        map.data?.remove(names::CA_BUNDLE_KEY).filter(|text| !text.is_empty())
    }

    fn put_in_force(&self, certificate: &Certificate, bundle: &str) -> bool {
        match tls::build(&certificate.chain, &certificate.key, bundle) {
            Ok(tls) => {
                self.publish.send_replace(Some(tls));
                let end = certificate.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
                self.telemetry
                    .certificate_end
                    .set(i64::try_from(end.as_secs()).unwrap_or(i64::MAX));
                true
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "a certificate cannot be used"
                );
                false
            }
        }
    }

    async fn ask(&self, bundle: &str) -> anyhow::Result<Certificate> {
        let key = rcgen::KeyPair::generate()?;
        let name = tls::node_name(&self.args.node_name);
        let request = rcgen::CertificateParams::new([name])?.serialize_request(&key)?.pem()?;
        let chain = tokio::time::timeout(REQUEST_LIMIT, self.post(bundle, request))
            .await
            .context("the operator did not answer in time")??;
        let certificate = Certificate::new(chain, key.serialize_pem())?;
        if certificate.not_after <= SystemTime::now() {
            bail!("the operator issued a certificate that has ended already; compare the clocks");
        }
        Ok(certificate)
    }

    /// One HTTP/1.1 exchange on a connection of its own: it happens a few times a day.
    async fn post(&self, bundle: &str, request: String) -> anyhow::Result<String> {
        let token = tokio::fs::read_to_string(&self.args.token_file)
            .await
            .with_context(|| format!("cannot read {}", self.args.token_file.display()))?;
        let address = self.operator().await?;
        let host = format!("{}.{}.svc", self.args.operator_service, self.args.namespace);
        let stream = TcpStream::connect(&address)
            .await
            .with_context(|| format!("cannot connect to the operator at {address}"))?;
        let config = ClientConfig::builder()
            .with_root_certificates(tls::roots(bundle)?)
            .with_no_client_auth();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(host.clone())?, stream)
            .await
            .context("the operator's certificate was refused")?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends by itself when the answer is read and the sender is dropped.
        tokio::spawn(connection);
        let request = hyper::Request::post("/v1/certificates")
            .header(hyper::header::HOST, host)
            .header(hyper::header::CONTENT_TYPE, "application/x-pem-file")
            .header(hyper::header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .body(Full::new(Bytes::from(request)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("the operator's answer broke off: {error}"))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if !status.is_success() {
            bail!("the operator answered {status}: {}", text.trim());
        }
        Ok(text)
    }

    /// The operator's address: the agent is on the node's network, where the cluster's DNS need
    /// not be known, but Service addresses are.
    async fn operator(&self) -> anyhow::Result<String> {
        if let Some(address) = &self.args.operator_address {
            return Ok(address.clone());
        }
        let services: Api<corev1::Service> =
            Api::namespaced(self.client.clone(), &self.args.namespace);
        let service = services.get(&self.args.operator_service).await.with_context(|| {
            format!("cannot read Service {}/{}", self.args.namespace, self.args.operator_service)
        })?;
        let ip = service
            .spec
            .and_then(|spec| spec.cluster_ip)
            .filter(|ip| !ip.is_empty() && ip != "None")
            .with_context(|| format!("Service {} has no ClusterIP", self.args.operator_service))?;
        Ok(if ip.contains(':') { format!("[{ip}]:443") } else { format!("{ip}:443") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let (chain, key) = Authority::new().issue("a.node.transship.internal");
        let mut certificate = Certificate::new(chain, key).unwrap();
        certificate.not_before = UNIX_EPOCH + Duration::from_secs(1000);
        certificate.not_after = UNIX_EPOCH + Duration::from_secs(1000 + 86_400);
        assert_eq!(certificate.renewal(), UNIX_EPOCH + Duration::from_secs(1000 + 57_600));
    }

    #[test]
    fn a_kept_certificate_is_used_again_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache(dir.path().join("agent"));
        assert!(cache.load(SystemTime::now()).is_none());
        let (chain, key) = Authority::new().issue("a.node.transship.internal");
        let certificate = Certificate::new(chain.clone(), key).unwrap();
        cache.store(&certificate);
        assert_eq!(cache.load(SystemTime::now()).unwrap().chain, chain);
        assert!(cache.load(certificate.not_after).is_none());
    }

    /// Answers one request as the operator does: signs what it is asked to, for the right token.
    async fn operator(listener: tokio::net::TcpListener, tls: Tls, authority: Arc<Authority>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut config = (*tls.server).clone();
        config.alpn_protocols.clear();
        // The agent has no certificate to show yet.
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(config.cert_resolver);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut text = String::new();
            while !text.contains("-----END CERTIFICATE REQUEST-----") {
                let mut block = [0; 4096];
                let count = stream.read(&mut block).await.unwrap();
                assert_ne!(count, 0, "the request broke off: {text}");
                text.push_str(std::str::from_utf8(&block[..count]).unwrap());
            }
            assert!(text.starts_with("POST /v1/certificates HTTP/1.1\r\n"), "{text}");
            let answer = if text.contains("Bearer good-token\r\n") {
                let request = &text[text.find("-----BEGIN").unwrap()..];
                let chain = authority.sign(request);
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{chain}", chain.len())
            } else {
                "HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\nbad token".to_owned()
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    }

    #[tokio::test]
    async fn a_certificate_is_asked_for_until_the_operator_issues_one() {
        use clap::Parser;
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let authority = Arc::new(Authority::new());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = authority.tls("transship-operator.ns-1.svc");
        tokio::spawn(operator(listener, serving, authority.clone()));
        let dir = tempfile::tempdir().unwrap();
        let (ca, token) = (dir.path().join("ca.crt"), dir.path().join("token"));
        let argv = ["agent", "--node-name", "node-a", "--namespace", "ns-1"];
        let mut args = Args::try_parse_from(argv).unwrap();
        args.operator_address = Some(address);
        args.ca_file = ca.clone();
        args.token_file = token.clone();
        // Answers nothing: the operator's address is given, and the bundle is mounted.
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap()));
        let telemetry = Telemetry::new();
        let (certificates, mut current) =
            Certificates::new(args, client.unwrap(), telemetry.clone(), dir.path());
        // Bundle and token come later, as in a fresh cluster; the first token is refused.
        std::fs::write(&token, "bad-token\n").unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(certificates.run(stop.clone()));
        std::fs::write(&ca, &authority.pem).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(current.borrow().is_none());
        std::fs::write(&token, "good-token\n").unwrap();
        tokio::time::timeout(Duration::from_secs(20), current.wait_for(Option::is_some))
            .await
            .expect("in time")
            .unwrap();
        assert!(telemetry.certificate_end.get() > 0);
        let kept = std::fs::read_to_string(dir.path().join("agent/tls.crt")).unwrap();
        let kept = tls::certificates(&kept, "test").unwrap();
        assert!(tls::peer_is(Some(&kept), "node-a.node.transship.internal"));
        stop.cancel();
        running.await.unwrap();
    }
}
