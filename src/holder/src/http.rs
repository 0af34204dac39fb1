//! The HTTP request of a hook, from the node to the pod, as kubelet sends it: every answer is a good one,
//! whatever its code, and over TLS every certificate. Redirections are not followed.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use transship_host::hook::HttpGet;

const AGENT: &str = concat!("transship-lifecycle/", env!("CARGO_PKG_VERSION"));

/// Sends the request to `host`, an address or a name, and waits for an answer.
pub async fn get(host: &str, request: &HttpGet) -> Result<()> {
    let message = message(host, request)?;
    let place = place(host, request.port);
    let stream = TcpStream::connect((host, request.port))
        .await
        .with_context(|| format!("cannot connect to {place}"))?;
    if !request.https {
        return send(stream, message).await;
    }
    let name = ServerName::try_from(host.to_owned()).context("the host is no name")?;
    let connector = TlsConnector::from(Arc::new(config()?));
    let stream = connector
        .connect(name, stream)
        .await
        .with_context(|| format!("{place} does not speak TLS"))?;
    send(stream, message).await
}

async fn send<S>(stream: S, message: Request<Empty<Bytes>>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("the request cannot be sent")?;
    // It ends with the sender, or when the peer closes; either way there is nobody to tell.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender.send_request(message).await.context("there was no answer")?;
    Ok(())
}

fn place(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

fn message(host: &str, request: &HttpGet) -> Result<Request<Empty<Bytes>>> {
    let slash = if request.path.starts_with('/') { "" } else { "/" };
    let uri: Uri = format!("{slash}{}", request.path).parse().context("the path is malformed")?;
    let mut message = Request::new(Empty::new());
    *message.uri_mut() = uri;
    let headers = message.headers_mut();
    for (name, value) in &request.headers {
        let name: HeaderName = name.parse().with_context(|| format!("{name} is no header"))?;
        let value = HeaderValue::from_str(value)
            .with_context(|| format!("the value of the header {name} is malformed"))?;
        headers.append(name, value);
    }
    let defaults =
        [(HOST, place(host, request.port)), (USER_AGENT, AGENT.into()), (ACCEPT, "*/*".into())];
    for (name, value) in defaults {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_str(&value).context("the host is malformed")?);
        }
    }
    Ok(message)
}

fn config() -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("TLS cannot be used")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(config)
}

/// Takes every certificate: pods sign their own, and kubelet asks for none.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn request(port: u16) -> HttpGet {
        HttpGet {
            https: false,
            host: None,
            port,
            path: "up?x=1".into(),
            headers: vec![("x-a".into(), "1".into()), ("x-a".into(), "2".into())],
        }
    }

    #[tokio::test]
    async fn the_request_is_sent_and_any_answer_is_a_good_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                text.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(text).unwrap()
        });
        get("127.0.0.1", &request(port)).await.unwrap();
        let text = server.await.unwrap();
        assert!(text.starts_with("GET /up?x=1 HTTP/1.1\r\n"), "{text}");
        for line in [&format!("host: 127.0.0.1:{port}"), "accept: */*", "x-a: 1", "x-a: 2"] {
            assert!(text.contains(&format!("{line}\r\n")), "{text}");
        }
    }

    #[tokio::test]
    async fn no_answer_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let _ = listener.accept().await.unwrap();
        });
        assert!(get("127.0.0.1", &request(port)).await.is_err());
        server.await.unwrap();
    }

    #[test]
    fn headers_of_the_hook_come_before_ours() {
        let mut request = request(80);
        request.headers =
            vec![("Host".into(), "web".into()), ("Accept".into(), "text/html".into())];
        let message = message("fd00::5", &request).unwrap();
        assert_eq!(message.headers()[HOST], "web");
        assert_eq!(message.headers()[ACCEPT], "text/html");
        assert_eq!(message.uri().path(), "/up");
        assert_eq!(place("fd00::5", 80), "[fd00::5]:80");
    }
}
