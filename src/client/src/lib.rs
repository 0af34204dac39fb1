//! How Transship's programs in the cluster reach the API server.
//!
//! [`connect`] gives kube's own client, without its trace spans, on connections that notice that nobody is at their
//! other end any more. A server whose machine has died, or that has died while nothing came through, says no farewell: who only
//! listens, as a watch does, would go on listening for minutes, and who has asked would wait for a quarter of an hour.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{Builder, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config, Error};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// How long connecting may take, TLS included: a packet that was lost is sent again ever more seldom, so that one long
/// wait takes longer than some short ones.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// After how long a silence the other end is asked for a sign of life, how often then, and how many times: Kubernetes'
/// own programs give up after 45 s, too.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(5), 3);
/// How long what was sent may stay without an acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(45);

/// A client for `config`, whose time limits of connections are replaced. TLS uses the provider that the program has
/// installed.
///
/// # Errors
/// What `config` names cannot be used: certificates, credentials, a proxy.
pub fn connect(config: Config) -> Result<Client, Error> {
    if let Some(proxy) = config.proxy_url {
        return Err(Error::ProxyProtocolUnsupported { proxy_url: Box::new(proxy) });
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(KEEP_ALIVE.0));
    tcp.set_keepalive_interval(Some(KEEP_ALIVE.1));
    tcp.set_keepalive_retries(Some(KEEP_ALIVE.2));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT_LIMIT));
    let http = Builder::new(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel will do of itself with the connection to `port`, and in how many hundredths of a second: the
    /// column `tr:tm->when` of proc(5), where 2 stands for asking for a sign of life.
    fn timer_of_connection_to(port: u16) -> Option<(u8, u64)> {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let remote = format!(":{port:04X}");
        let of_line = |line: &str| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let (kind, when) = columns.get(5)?.split_once(':')?;
            let timer = (kind.parse().ok()?, u64::from_str_radix(when, 16).ok()?);
            (columns[2].ends_with(&remote) && columns[3] == "01").then_some(timer)
        };
        table.lines().find_map(of_line)
    }

    #[tokio::test]
    async fn a_silent_connection_is_asked_for_a_sign_of_life() {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let client = connect(config).unwrap();
        let asking = tokio::spawn(async move { client.apiserver_version().await });
        let (accepted, _) = server.accept().await.unwrap();
        // The connection is set up when the request has come.
        accepted.readable().await.unwrap();
        let (kind, when) = timer_of_connection_to(address.port()).unwrap();
        assert_eq!(kind, 2);
        assert!(when <= KEEP_ALIVE.0.as_secs() * 100, "{when}");
        asking.abort();
    }

    #[test]
    fn a_proxy_is_refused_by_name() {
        let mut config = Config::new("https://10.0.0.1".parse().unwrap());
        config.proxy_url = Some("http://proxy.example:3128".parse().unwrap());
        let refused = connect(config).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("proxy.example"), "{refused}");
    }
}
