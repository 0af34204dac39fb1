//! What the authority makes: itself, and leaves for operator, server and agents. Pure but for
//! random keys and the clock.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};

/// DNS name in the operator's client certificate; agents accept calls from it alone.
pub const OPERATOR_IDENTITY: &str = "operator.transship.internal";
/// An agent's certificate names `<node>.` and this.
pub const AGENT_DOMAIN: &str = "node.transship.internal";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// An authority lives so long …
const AUTHORITY_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// … and has a successor so long before its end.
const AUTHORITY_OVERLAP: Duration = Duration::from_secs(60 * 24 * 60 * 60);
/// Leaves; renewed after two thirds.
const LEAF_LIFE: Duration = DAY;
/// Clocks differ.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// One authority as it is kept in the Secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    certificate: String,
    key: String,
    /// Unix seconds.
    not_after: i64,
}

/// All authorities that count, newest first; the newest signs.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Authorities(Vec<Authority>);

impl Authorities {
    /// Whether there is none, or the newest will end soon.
    pub fn rotation_due(&self, now: Timestamp) -> bool {
        self.0
            .first()
            .is_none_or(|newest| newest.not_after - now.as_second() < seconds(AUTHORITY_OVERLAP))
    }

    /// With a new authority in front, and without those that have ended.
    pub fn rotated(&self, now: Timestamp) -> Result<Self> {
        let mut all = vec![Authority::make(now)?];
        all.extend(self.0.iter().filter(|old| old.not_after > now.as_second()).cloned());
        Ok(Self(all))
    }

    /// All certificates, PEM.
    pub fn bundle(&self) -> String {
        self.0.iter().map(|authority| authority.certificate.as_str()).collect()
    }

    /// The operator's certificate for calls to agents, and its key.
    pub fn issue_client(&self) -> Result<(String, String)> {
        self.issue(vec![OPERATOR_IDENTITY.to_owned()], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// The certificate of the operator's server, and its key.
    pub fn issue_serving(&self, namespace: &str) -> Result<(String, String)> {
        let service = format!("{}.{namespace}.svc", transship_api::names::OPERATOR);
        let names = vec![service.clone(), format!("{service}.cluster.local")];
        self.issue(names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Signs the key of an agent's request (PEM). Nothing else of the request is believed: the
    /// names are those of `node`.
    pub fn issue_for_agent(&self, request: &str, node: &str) -> Result<String> {
        ensure!(!node.is_empty(), "the token names no node");
        let request = CertificateSigningRequestParams::from_pem(request)
            .context("the body must be a PEM certificate signing request")?;
        let mut params = leaf(vec![format!("{node}.{AGENT_DOMAIN}")])?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let request = CertificateSigningRequestParams { params, public_key: request.public_key };
        Ok(request.signed_by(&self.issuer()?)?.pem())
    }

    fn issue(&self, names: Vec<String>, usage: ExtendedKeyUsagePurpose) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = leaf(names)?;
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer()?)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        let newest = self.0.first().context("there is no authority")?;
        let key = KeyPair::from_pem(&newest.key).context("the authority's key")?;
        Issuer::from_ca_cert_pem(&newest.certificate, key).context("the authority's certificate")
    }
}

impl Authority {
    fn make(now: Timestamp) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        // The serial tells generations apart where two have the same name.
        params.distinguished_name.push(DnType::CommonName, format!("transship {}", now.as_second()));
        params.serial_number = Some(SerialNumber::from(now.as_second().unsigned_abs()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, now, AUTHORITY_LIFE)?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            not_after: now.as_second() + seconds(AUTHORITY_LIFE),
        })
    }
}

fn leaf(names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    if let Some(name) = names.first() {
        // At most 64 characters are allowed in a common name; the names that count are below.
        params.distinguished_name.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    }
    params.subject_alt_names = names
        .into_iter()
        .map(|name| Ok(SanType::DnsName(name.try_into()?)))
        .collect::<Result<_, rcgen::Error>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, Timestamp::now(), LEAF_LIFE)?;
    Ok(params)
}

fn validity(params: &mut CertificateParams, now: Timestamp, life: Duration) -> Result<()> {
    let at = |time: i64| {
        time::OffsetDateTime::from_unix_timestamp(time).context("the clock is out of range")
    };
    params.not_before = at(now.as_second() - seconds(SKEW))?;
    params.not_after = at(now.as_second() + seconds(life))?;
    Ok(())
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_the_old_authority_until_it_has_ended() {
        let start = Timestamp::now();
        let first = Authorities::default().rotated(start).unwrap();
        assert!(Authorities::default().rotation_due(start));
        assert!(!first.rotation_due(start));
        let later = start + (AUTHORITY_LIFE - AUTHORITY_OVERLAP + DAY);
        assert!(first.rotation_due(later));
        let both = first.rotated(later).unwrap();
        assert_eq!(both.bundle().matches("BEGIN CERTIFICATE").count(), 2);
        assert!(both.bundle().ends_with(&first.bundle()));
        let much_later = start + (AUTHORITY_LIFE + DAY);
        assert_eq!(both.rotated(much_later).unwrap().0.len(), 2);
    }

    #[test]
    fn an_agents_certificate_names_the_tokens_node_and_not_what_it_asked_for() {
        let authorities = Authorities::default().rotated(Timestamp::now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let wish = CertificateParams::new(vec![OPERATOR_IDENTITY.to_owned()]).unwrap();
        let request = wish.serialize_request(&key).unwrap().pem().unwrap();
        let pem = authorities.issue_for_agent(&request, "node-a").unwrap();
        let der = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
        let certificate = webpki_names(&der);
        assert_eq!(certificate, ["node-a.node.transship.internal"]);
        assert!(authorities.issue_for_agent(&request, "").is_err());
        assert!(authorities.issue_for_agent("hello", "node-a").is_err());
    }

    /// DNS names in a certificate, read with the parser that rustls uses.
    fn webpki_names(der: &rustls::pki_types::CertificateDer<'_>) -> Vec<String> {
        let certificate = webpki::EndEntityCert::try_from(der).unwrap();
        certificate.valid_dns_names().map(ToOwned::to_owned).collect()
    }
}
