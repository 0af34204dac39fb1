//! The control plane: etcd, API server, controller manager and scheduler on a machine of their own.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use super::{
    caches::Caches,
    cmd::write_file,
    layout::{
        API_SERVER, CONTROL_PLANE, CONTROL_PLANE_ADDRESS, CONTROL_PLANE_MACS,
        CONTROL_PLANE_POD_ADDRESS, HOST_ADDRESS, SERVICE_NETWORK, SERVICE_NETWORK_V6, machine, pki,
    },
    machine::{Bind, Condition, Interface, Network, Service, Specification},
};

const SCHEDULER: &str = include_str!("../../sandbox-assets/kube-scheduler.yaml");
const PKI: &str = "/etc/kubernetes/pki";
const ETCD: &str = "127.0.0.1:2379";

/// What the machine is.
pub fn specification(caches: &Caches, boot_id: String) -> Specification {
    Specification {
        name: CONTROL_PLANE.to_owned(),
        lower: caches.root.clone(),
        directory: machine(CONTROL_PLANE),
        binds: vec![
            Bind { source: caches.kubernetes.clone(), target: "/opt/kubernetes".into() },
            Bind { source: pki(), target: PKI.into() },
        ],
        network: Network {
            interfaces: vec![
                Interface {
                    cable: "eth0".into(),
                    bridge: None,
                    addresses: vec![format!("{CONTROL_PLANE_ADDRESS}/24")],
                    mac: CONTROL_PLANE_MACS[0].to_owned(),
                },
                Interface {
                    cable: "eth1".into(),
                    bridge: None,
                    addresses: vec![format!("{CONTROL_PLANE_POD_ADDRESS}/16")],
                    mac: CONTROL_PLANE_MACS[1].to_owned(),
                },
            ],
            gateway: HOST_ADDRESS.to_owned(),
        },
        sysctls: BTreeMap::new(),
        shielded: BTreeMap::new(),
        services: vec![etcd(), api_server(), controller_manager(), scheduler()],
        boot_id,
    }
}

/// Writes the machine's files onto its disk.
pub fn write_files(directory: &Path) -> Result<()> {
    let etc = directory.join("upper/etc");
    write_file(&etc.join("kubernetes/scheduler.yaml"), SCHEDULER, 0o644)?;
    write_file(&etc.join("hostname"), format!("{CONTROL_PLANE}\n"), 0o644)?;
    write_file(&etc.join("hosts"), format!("127.0.0.1 localhost {CONTROL_PLANE}\n"), 0o644)
}

fn service(name: &str, after: Vec<Condition>, command: Vec<String>) -> Service {
    Service { name: name.to_owned(), command, after, once: false }
}

fn etcd() -> Service {
    let command = vec![
        "etcd".into(),
        "--data-dir=/var/lib/etcd-sandbox".into(),
        // Only the real machine's loss of power could lose data, and the sandbox with it.
        "--unsafe-no-fsync".into(),
        format!("--listen-client-urls=http://{ETCD}"),
        format!("--advertise-client-urls=http://{ETCD}"),
    ];
    service("etcd", vec![], command)
}

fn api_server() -> Service {
    let command = vec![
        "/opt/kubernetes/kube-apiserver".into(),
        format!("--etcd-servers=http://{ETCD}"),
        "--secure-port=6443".into(),
        "--bind-address=0.0.0.0".into(),
        format!("--advertise-address={CONTROL_PLANE_ADDRESS}"),
        "--allow-privileged=true".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        // Webhooks are called at their pods' addresses: there is no kube-proxy here.
        "--enable-aggregator-routing=true".into(),
        format!("--service-cluster-ip-range={SERVICE_NETWORK},{SERVICE_NETWORK_V6}"),
        format!("--client-ca-file={PKI}/ca.crt"),
        format!("--tls-cert-file={PKI}/apiserver.crt"),
        format!("--tls-private-key-file={PKI}/apiserver.key"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={PKI}/sa.pub"),
        format!("--service-account-signing-key-file={PKI}/sa.key"),
        format!("--kubelet-certificate-authority={PKI}/ca.crt"),
        format!("--kubelet-client-certificate={PKI}/kubelet-client.crt"),
        format!("--kubelet-client-key={PKI}/kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP".into(),
    ];
    service("kube-apiserver", vec![Condition::Tcp(ETCD.into())], command)
}

fn controller_manager() -> Service {
    let kubeconfig = format!("{PKI}/controller-manager.kubeconfig");
    let command = vec![
        "/opt/kubernetes/kube-controller-manager".into(),
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        format!("--service-account-private-key-file={PKI}/sa.key"),
        format!("--root-ca-file={PKI}/ca.crt"),
        format!("--cluster-signing-cert-file={PKI}/ca.crt"),
        format!("--cluster-signing-key-file={PKI}/ca.key"),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        // A dead node is to be noticed within seconds, a busy machine is not a dead node.
        "--node-monitor-period=2s".into(),
        "--node-monitor-grace-period=16s".into(),
    ];
    service("kube-controller-manager", vec![api_port()], command)
}

fn scheduler() -> Service {
    let command = vec![
        "/opt/kubernetes/kube-scheduler".into(),
        "--config=/etc/kubernetes/scheduler.yaml".into(),
    ];
    service("kube-scheduler", vec![api_port()], command)
}

fn api_port() -> Condition {
    Condition::Tcp(API_SERVER.trim_start_matches("https://").to_owned())
}
