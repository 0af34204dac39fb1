//! The cluster's credentials: one authority, certificates signed by it, kubeconfigs.
//!
//! What is there is kept, so that a repaired sandbox keeps its identity.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use super::{
    cmd::write_file,
    layout::{API_SERVER, API_SERVICE, CONTROL_PLANE_ADDRESS, Node, kubeconfig, pki},
};

/// Who a certificate is for.
struct Subject<'a> {
    user: &'a str,
    group: Option<&'a str>,
    /// Host names and addresses of a server.
    names: &'a [&'a str],
}

fn path(name: &str) -> PathBuf {
    pki().join(name)
}

/// Credentials of the control plane and the administrator's kubeconfig.
pub fn ensure() -> Result<()> {
    if !path("ca.crt").exists() {
        authority()?;
    }
    if !path("sa.pub").exists() {
        let key = KeyPair::generate()?;
        write_file(&path("sa.key"), key.serialize_pem(), 0o600)?;
        write_file(&path("sa.pub"), key.public_key_pem(), 0o644)?;
    }
    let names = [
        CONTROL_PLANE_ADDRESS,
        "127.0.0.1",
        API_SERVICE,
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    certificate("apiserver", &Subject { user: "kube-apiserver", group: None, names: &names })?;
    let masters = Some("system:masters");
    for (file, user, group) in [
        ("kubelet-client", "kube-apiserver-kubelet-client", masters),
        ("admin", "admin", masters),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("proxy", "system:kube-proxy", None),
    ] {
        certificate(file, &Subject { user, group, names: &[] })?;
        write_kubeconfig(file, &path(&format!("{file}.kubeconfig")))?;
    }
    write_kubeconfig("admin", &kubeconfig())
}

/// Credentials of a node: `NODE.crt`, `NODE.key`, `NODE.kubeconfig`.
pub fn ensure_node(node: Node) -> Result<()> {
    let (name, address) = (node.name(), node.address());
    let user = format!("system:node:{name}");
    let names = [name.as_str(), address.as_str()];
    certificate(&name, &Subject { user: &user, group: Some("system:nodes"), names: &names })?;
    write_kubeconfig(&name, &path(&format!("{name}.kubeconfig")))
}

fn authority() -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "transship-sandbox");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    write_file(&path("ca.key"), key.serialize_pem(), 0o600)?;
    write_file(&path("ca.crt"), certificate.pem(), 0o644)
}

fn certificate(name: &str, subject: &Subject) -> Result<()> {
    // The certificate is written last.
    if path(&format!("{name}.crt")).exists() {
        return Ok(());
    }
    let ca_key = KeyPair::from_pem(&read("ca.key")?).context("the authority's key")?;
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, ca_key).context("the authority")?;
    let key = KeyPair::generate()?;
    let names: Vec<String> = subject.names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.user);
    if let Some(group) = subject.group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !subject.names.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    write_file(&path(&format!("{name}.key")), key.serialize_pem(), 0o600)?;
    write_file(&path(&format!("{name}.crt")), certificate.pem(), 0o644)
}

fn read(name: &str) -> Result<String> {
    let path = path(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// A kubeconfig with everything inside it. JSON is YAML.
fn write_kubeconfig(name: &str, to: &std::path::Path) -> Result<()> {
    let data = |file: String| read(&file).map(|pem| base64(pem.as_bytes()));
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": {
            "server": API_SERVER,
            "certificate-authority-data": data("ca.crt".into())?,
        }}],
        "users": [{"name": name, "user": {
            "client-certificate-data": data(format!("{name}.crt"))?,
            "client-key-data": data(format!("{name}.key"))?,
        }}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": name}}],
        "current-context": "sandbox",
    });
    let text = serde_json::to_string_pretty(&config)?;
    if fs::read_to_string(to).is_ok_and(|old| old == text) {
        return Ok(());
    }
    write_file(to, text, 0o600)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, &byte| group << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let digit = (group >> (18 - 6 * position)) & 63;
            let filled = position <= chunk.len();
            text.push(if filled { char::from(DIGITS[digit as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", "")]
    #[case("f", "Zg==")]
    #[case("fo", "Zm8=")]
    #[case("foo", "Zm9v")]
    #[case("foobar", "Zm9vYmFy")]
    fn base64_is_that_of_rfc_4648(#[case] plain: &str, #[case] encoded: &str) {
        assert_eq!(base64(plain.as_bytes()), encoded);
    }
}
