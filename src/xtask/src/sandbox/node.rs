//! A worker node: containerd, kubelet and kube-proxy on a machine with a cable of its own.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use super::{
    caches::{Caches, PAUSE_REFERENCE},
    cmd::{fill, write_file, write_new_file},
    images,
    layout::{self, HOST_ADDRESS, Node, POD_NETWORK, POD_NETWORK_V6},
    machine::{Bind, Condition, Interface, Network, Service, Specification, fresh_boot_id},
};

const CNI: &str = include_str!("../../sandbox-assets/cni.conflist");
const CONTAINERD: &str = include_str!("../../sandbox-assets/containerd.toml");
const KUBELET: &str = include_str!("../../sandbox-assets/kubelet.yaml");
const KUBE_PROXY: &str = include_str!("../../sandbox-assets/kube-proxy.yaml");
const DNS_SERVICE: &str = "10.96.0.10";
/// Where each node sees the directory that all of them share.
const SHARED_DIRECTORY: &str = "/var/lib/transship-shared";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// What the machine is.
pub fn specification(node: Node, caches: &Caches, boot_id: String) -> Specification {
    let sysctls = [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        // A node forwards between neighbours of one link (a client of a Service and its pod); told to
        // speak to each other directly, they would pass by the translation of addresses.
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.default.send_redirects", "0"),
        // Replies of a Service over the flat network have to pass conntrack.
        ("net.bridge.bridge-nf-call-iptables", "1"),
        ("net.bridge.bridge-nf-call-ip6tables", "1"),
    ];
    // What kubelet sets on a machine of its own; here it would decide for the host.
    let shielded = [
        ("vm.overcommit_memory", "1"),
        ("vm.panic_on_oom", "0"),
        ("kernel.panic", "10"),
        ("kernel.panic_on_oops", "1"),
        ("kernel.keys.root_maxkeys", "1000000"),
        ("kernel.keys.root_maxbytes", "25000000"),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Specification {
        name: node.name(),
        lower: caches.root.clone(),
        directory: layout::machine(&node.name()),
        binds: vec![
            Bind { source: caches.kubernetes.clone(), target: "/opt/kubernetes".into() },
            Bind { source: layout::state("bin"), target: images::PROGRAM_DIRECTORY.into() },
            Bind { source: layout::images(), target: images::DIRECTORY.into() },
            // In the place of network storage: what `local` volumes of both nodes lie in.
            Bind { source: layout::state("shared"), target: SHARED_DIRECTORY.into() },
        ],
        network: Network {
            interfaces: vec![
                Interface {
                    cable: "eth0".into(),
                    bridge: None,
                    addresses: vec![
                        format!("{}/24", node.address()),
                        format!("{}/64", node.address_v6()),
                    ],
                    mac: node.mac(),
                },
                Interface {
                    cable: "eth1".into(),
                    bridge: Some("cni0".into()),
                    addresses: vec![
                        format!("{}/16", node.gateway()),
                        format!("{}/64", node.gateway_v6()),
                    ],
                    mac: node.bridge_mac(),
                },
            ],
            gateway: HOST_ADDRESS.to_owned(),
        },
        sysctls: sysctls.map(owned).into(),
        shielded: shielded.map(owned).into(),
        services: services(node),
        boot_id,
    }
}

fn services(node: Node) -> Vec<Service> {
    let name = node.name();
    let socket = || Condition::Socket(CONTAINERD_SOCKET.into());
    vec![
        Service {
            name: "containerd".into(),
            command: vec!["containerd".into()],
            after: vec![],
            once: false,
        },
        Service {
            name: "images".into(),
            command: vec![images::program(), "sandbox".into(), "import-images".into()],
            after: vec![socket()],
            once: true,
        },
        Service {
            name: "kubelet".into(),
            command: vec![
                "/opt/kubernetes/kubelet".into(),
                "--config=/etc/kubernetes/kubelet.yaml".into(),
                "--kubeconfig=/etc/kubernetes/kubelet.conf".into(),
                format!("--node-ip={},{}", node.address(), node.address_v6()),
                format!("--hostname-override={name}"),
            ],
            after: vec![Condition::File(images::IMPORTED.into()), socket()],
            once: false,
        },
        Service {
            name: "kube-proxy".into(),
            command: vec![
                "/opt/kubernetes/kube-proxy".into(),
                "--config=/etc/kubernetes/kube-proxy.yaml".into(),
            ],
            after: vec![],
            once: false,
        },
    ]
}

/// Writes the node's files onto its disk. What an operator of a real node may edit (CNI and
/// containerd) is written once and survives every later start; the rest belongs to the sandbox.
pub fn write_files(node: Node, directory: &Path) -> Result<()> {
    let name = node.name();
    let shared = layout::state("shared");
    fs::create_dir_all(&shared).with_context(|| format!("making {}", shared.display()))?;
    let etc = directory.join("upper/etc");
    let (first, last) = node.pod_range();
    let (first_v6, last_v6) = node.pod_range_v6();
    let cni = fill(
        CNI,
        &[
            ("POD_NETWORK", POD_NETWORK),
            ("FIRST", &first),
            ("LAST", &last),
            ("GATEWAY", &node.gateway()),
            ("POD_NETWORK_V6", POD_NETWORK_V6),
            ("FIRST_V6", &first_v6),
            ("LAST_V6", &last_v6),
            ("GATEWAY_V6", &node.gateway_v6()),
        ],
    );
    write_new_file(&etc.join("cni/net.d/10-sandbox.conflist"), cni, 0o644)?;
    let containerd = fill(CONTAINERD, &[("PAUSE", PAUSE_REFERENCE)]);
    write_new_file(&etc.join("containerd/config.toml"), containerd, 0o644)?;
    let machine_id = fresh_boot_id()?.replace('-', "");
    write_new_file(&etc.join("machine-id"), format!("{machine_id}\n"), 0o444)?;

    write_file(&etc.join("hostname"), format!("{name}\n"), 0o644)?;
    write_file(
        &etc.join("hosts"),
        format!("127.0.0.1 localhost\n{} {name}\n", node.address()),
        0o644,
    )?;
    write_file(&etc.join("resolv.conf"), "# The sandbox has no name service.\n", 0o644)?;
    let kubernetes = etc.join("kubernetes");
    let static_pods = kubernetes.join("manifests");
    fs::create_dir_all(&static_pods)
        .with_context(|| format!("creating {}", static_pods.display()))?;
    write_file(&kubernetes.join("kubelet.yaml"), fill(KUBELET, &[("DNS", DNS_SERVICE)]), 0o644)?;
    let pods = format!("{POD_NETWORK},{POD_NETWORK_V6}");
    let proxy = fill(KUBE_PROXY, &[("NODE", &name), ("POD_NETWORKS", &pods)]);
    write_file(&kubernetes.join("kube-proxy.yaml"), proxy, 0o644)?;
    for (from, to, mode) in [
        ("ca.crt".to_owned(), "ca.crt", 0o644),
        (format!("{name}.crt"), "node.crt", 0o644),
        (format!("{name}.key"), "node.key", 0o600),
        (format!("{name}.kubeconfig"), "kubelet.conf", 0o600),
        ("proxy.kubeconfig".to_owned(), "proxy.conf", 0o600),
    ] {
        let from = layout::pki().join(from);
        let content = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        write_file(&kubernetes.join(to), content, mode)?;
    }
    Ok(())
}

/// Everything that is written, in one text: a part of the sandbox's recipe.
pub fn templates() -> String {
    [CNI, CONTAINERD, KUBELET, KUBE_PROXY].concat()
}

/// The specification of a node in general, without what differs at each start.
pub fn recipe(caches: &Caches) -> BTreeMap<String, Specification> {
    Node::first(1).map(|node| (node.name(), specification(node, caches, String::new()))).collect()
}
