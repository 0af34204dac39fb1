//! A pod with an address of each family keeps both, and the connections to both.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_tests::{cluster::Cluster, counter::Client};

/// The example, listening on both families, behind a Service of both.
fn manifest() -> String {
    include_str!("../../examples/counter.yaml")
        .replace(
            r#"create_server(("", 8080), backlog=128)"#,
            r#"create_server(("", 8080), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)"#,
        )
        .replace(
            "spec:\n  selector: {app: counter}\n",
            "spec:\n  ipFamilyPolicy: RequireDualStack\n  selector: {app: counter}\n",
        )
}

/// The texts of a list such as `status.podIPs`, by a key of its entries where they are objects.
fn addresses(list: &Value, key: Option<&str>) -> Result<Vec<IpAddr>> {
    let entries = list.as_array().context("no addresses")?;
    let text =
        |entry: &Value| key.map_or(entry.as_str(), |key| entry[key].as_str()).map(str::parse);
    entries.iter().map(|entry| Ok(text(entry).context("no text")??)).collect()
}

fn pod_addresses(cluster: &Cluster, name: &str) -> Result<Vec<IpAddr>> {
    addresses(&cluster.get("pod", name)?["status"]["podIPs"], Some("ip"))
}

#[test]
fn a_pod_keeps_its_addresses_of_both_families_and_their_connections() -> Result<()> {
    let cluster = Cluster::with_namespace("dual-stack")?;
    cluster.apply(&manifest())?;
    cluster.rolled_out("counter")?;
    let mut pod = cluster.pod("app=counter")?;
    let before = pod_addresses(&cluster, &pod.name)?;
    ensure!(before.len() == 2 && before[0].is_ipv4() && before[1].is_ipv6(), "{before:?}");

    // Away with a client of the one family, and home again with one of the other.
    for address in [before[1], before[0]] {
        let client = Client::connect(SocketAddr::new(address, 8080), Duration::from_millis(2))?;
        let migration = cluster.migrate(&pod.name, pod.other_node())?;
        let object = cluster.succeeded(&migration, Duration::from_secs(90))?;
        let others = addresses(&object["status"]["otherAddresses"], None)?;
        ensure!(others == before[1..], "{others:?}");
        let report = client.stop();
        ensure!(report.is_whole(), "{address}: {report:?}");
        pod = cluster.pod("app=counter")?;
        ensure!(
            pod_addresses(&cluster, &pod.name)? == before,
            "{:?}",
            cluster.get("pod", &pod.name)?
        );
    }

    let service = cluster.get("service", "counter")?;
    for address in addresses(&service["spec"]["clusterIPs"], None)? {
        cluster.await_that("the Service answers", Duration::from_secs(10), || {
            let to = SocketAddr::new(address, 8080);
            Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok())
        })?;
    }
    Ok(())
}
