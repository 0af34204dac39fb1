//! Kernel parameters that somebody has written into a pod's network namespace, as a comparison with a new one of the
//! same node shows. Only those are compared with which every namespace begins alike. Others differ without anybody's
//! doing: the kernel takes them from the node's own when it makes a namespace (buffers, congestion control) or
//! computes them from the memory, and network plugins write them (forwarding, and what belongs to a device).

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value;
use transship_host::error::chain;
use transship_host::files;

use super::network;

/// Their files below /proc/sys/net.
const NAMES: [&str; 28] = [
    "core/somaxconn",
    "ipv4/ip_default_ttl",
    "ipv4/ip_local_port_range",
    "ipv4/ip_local_reserved_ports",
    "ipv4/ip_nonlocal_bind",
    "ipv4/ip_unprivileged_port_start",
    "ipv4/ping_group_range",
    "ipv4/tcp_ecn",
    "ipv4/tcp_fastopen",
    "ipv4/tcp_fin_timeout",
    "ipv4/tcp_keepalive_intvl",
    "ipv4/tcp_keepalive_probes",
    "ipv4/tcp_keepalive_time",
    "ipv4/tcp_mtu_probing",
    "ipv4/tcp_no_metrics_save",
    "ipv4/tcp_notsent_lowat",
    "ipv4/tcp_orphan_retries",
    "ipv4/tcp_retries2",
    "ipv4/tcp_sack",
    "ipv4/tcp_slow_start_after_idle",
    "ipv4/tcp_syn_retries",
    "ipv4/tcp_synack_retries",
    "ipv4/tcp_syncookies",
    "ipv4/tcp_timestamps",
    "ipv4/tcp_tw_reuse",
    "ipv4/tcp_window_scaling",
    "ipv6/bindv6only",
    "ipv6/ip_nonlocal_bind",
];

/// Values by file.
pub type Values = BTreeMap<&'static str, String>;

/// Those of the calling thread's network namespace; what this kernel does not have is left out.
pub fn values(proc: &Path) -> std::io::Result<Values> {
    let mut found = Values::new();
    for name in NAMES {
        match read(&proc.join("sys/net").join(name)) {
            Ok(text) => {
                let words: Vec<&str> = text.split_whitespace().collect();
                found.insert(name, words.join(" "));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// At most so much of one as is told. The kernel gives all that it gives of one to the first question.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = [0; 256];
    let length = std::fs::File::open(path)?.read(&mut text)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// What somebody has written, as `name = value`, of the `found` values of a pod. `bundle` is that of its sandbox.
pub fn written(proc: &Path, bundle: &Path, found: &Values) -> Result<Vec<String>, String> {
    let config: Value =
        files::read_json(&bundle.join("config.json")).map_err(|error| chain(&error))?;
    let proc = proc.to_owned();
    let new =
        network::in_new_namespace(move || values(&proc)).map_err(|error| error.to_string())?;
    Ok(differing(found, &new, &config))
}

/// Those that are not as in a new namespace, and that the runtime was not told to write, as the manifest and its own
/// configuration have it: it writes them on the target as well.
fn differing(found: &Values, new: &Values, config: &Value) -> Vec<String> {
    let sysctl = config["linux"]["sysctl"].as_object();
    let asked: Vec<String> =
        sysctl.into_iter().flatten().map(|(name, _)| name.replace('/', ".")).collect();
    found
        .iter()
        .filter(|(name, value)| new.get(*name).is_some_and(|new| new != *value))
        .map(|(name, value)| (format!("net.{}", name.replace('/', ".")), value))
        .filter(|(name, _)| !asked.contains(name))
        .map(|(name, value)| format!("{name} = {value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_neither_the_kernel_nor_the_runtime_has_written_is_told() {
        let new = Values::from([
            ("core/somaxconn", "4096".to_owned()),
            ("ipv4/ip_unprivileged_port_start", "1024".to_owned()),
            ("ipv4/ping_group_range", "1 0".to_owned()),
            ("ipv4/tcp_fin_timeout", "60".to_owned()),
        ]);
        let config = json!({"linux": {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "0",
            "net/ipv4/ping_group_range": "0 2147483647"}}});
        let mut found = new.clone();
        assert!(differing(&found, &new, &config).is_empty());
        found.insert("ipv4/ip_unprivileged_port_start", "0".into());
        found.insert("ipv4/ping_group_range", "0 2147483647".into());
        found.insert("ipv4/tcp_fin_timeout", "59".into());
        // Such a parameter is not one of a new namespace here.
        found.insert("ipv4/tcp_sack", "0".into());
        assert_eq!(differing(&found, &new, &config), ["net.ipv4.tcp_fin_timeout = 59"]);
        assert_eq!(differing(&found, &new, &Value::Null).len(), 3);
    }

    #[test]
    fn what_is_written_in_a_namespace_sets_it_apart_from_a_new_one() {
        let look = |first: fn() -> std::io::Result<()>| {
            network::in_new_namespace(move || {
                first()?;
                values(Path::new("/proc"))
            })
        };
        // Needs the right to make namespaces; without it the error says so.
        let new = match look(|| Ok(())) {
            Ok(new) => new,
            Err(error) => return assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        };
        assert!(differing(&look(|| Ok(())).unwrap(), &new, &Value::Null).is_empty());
        let write = || {
            std::fs::write("/proc/sys/net/core/somaxconn", "17")?;
            std::fs::write(
                "/proc/sys/net/ipv4/ip_local_reserved_ports",
                "8000-8001,9000,9100,9200,9300,9400,9500",
            )?;
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 30000")
        };
        assert_eq!(
            differing(&look(write).unwrap(), &new, &Value::Null),
            [
                "net.core.somaxconn = 17",
                "net.ipv4.ip_local_port_range = 20000 30000",
                "net.ipv4.ip_local_reserved_ports = 8000-8001,9000,9100,9200,9300,9400,9500",
            ]
        );
    }
}
