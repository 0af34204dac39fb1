//! Keys and certificates: what an authority is, when it is renewed, and how it signs. No input or
//! output; the clock is an argument.
//!
//! ```text
//! bundle   [A]        [A, B]                [A, B]               [B]
//! signs     A          A                     B                    B
//!           |— 2/3 of A's life —|— OVERLAP —|— until A has ended —|
//! ```
//! B signs only after everybody has had time to learn of it, and A stays in the bundle for as long
//! as something signed by it may be shown.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// How long an authority lives.
pub const CA_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long leaf certificates live.
pub const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long a new authority is published before it signs.
pub const OVERLAP: Duration = Duration::from_secs(2 * 24 * 3600);
/// Certificates begin a little earlier, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Making or signing failed.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A stored certificate is damaged.
    #[error("the authority's stored certificate is damaged: {0}")]
    Damaged(String),
    /// A request asks for something that is not signed.
    #[error("the request is refused: {0}")]
    Refused(String),
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// A certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedCert {
    /// Certificate.
    pub cert: String,
    /// Private key.
    pub key: String,
}

/// The authority: what the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// What signs.
    pub active: KeyedCert,
    /// What will sign next; published already.
    pub next: Option<KeyedCert>,
    /// What signed before; still published.
    pub previous: Option<String>,
}

impl Authority {
    /// A new authority.
    pub fn new(now: SystemTime) -> Result<Self> {
        Ok(Self { active: new_ca(now)?, next: None, previous: None })
    }

    /// The authority as it should be now, if it should be another one.
    pub fn rotated(&self, now: SystemTime) -> Result<Option<Self>> {
        let (begin, end) = validity(&self.active.cert)?;
        if end <= now {
            // Nobody was there to renew it in time: everything signed by it has ended too.
            let active = match &self.next {
                Some(next) if validity(&next.cert)?.1 > now => next.clone(),
                _ => new_ca(now)?,
            };
            return Ok(Some(Self { active, next: None, previous: None }));
        }
        if let Some(next) = &self.next {
            let published_for = now.duration_since(validity(&next.cert)?.0).unwrap_or_default();
            if published_for >= OVERLAP + BACKDATED {
                return Ok(Some(Self {
                    active: next.clone(),
                    next: None,
                    previous: Some(self.active.cert.clone()),
                }));
            }
            return Ok(None);
        }
        if let Some(previous) = &self.previous
            && (validity(previous)?.1 <= now
                || now.duration_since(begin).unwrap_or_default() >= 2 * (OVERLAP + LEAF_LIFE))
        {
            return Ok(Some(Self { previous: None, ..self.clone() }));
        }
        let life = end.duration_since(begin).unwrap_or_default();
        if now.duration_since(begin).unwrap_or_default() >= life * 2 / 3 {
            return Ok(Some(Self { next: Some(new_ca(now)?), ..self.clone() }));
        }
        Ok(None)
    }

    /// All certificates to be trusted, PEM.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|n| n.cert.as_str());
        [Some(self.active.cert.as_str()), next, self.previous.as_deref()]
            .into_iter()
            .flatten()
            .map(|cert| format!("{}\n", cert.trim_end()))
            .collect()
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        let key = KeyPair::from_pem(&self.active.key)?;
        Ok(Issuer::from_ca_cert_pem(&self.active.cert, key)?)
    }

    /// A key and certificate for the operator itself.
    pub fn leaf(&self, names: &[String], now: SystemTime) -> Result<KeyedCert> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        limit(&mut params, now);
        let cert = params.signed_by(&key, &self.issuer()?)?;
        Ok(KeyedCert { cert: cert.pem(), key: key.serialize_pem() })
    }

    /// Signs a request for exactly `name`. Everything else that the request asks for is ignored.
    pub fn sign(&self, request: &str, name: &str, now: SystemTime) -> Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| Error::Refused(error.to_string()))?;
        let mut params = CertificateParams::new([name.to_owned()])?;
        limit(&mut params, now);
        request.params = params;
        Ok(request.signed_by(&self.issuer()?)?.pem())
    }
}

fn limit(params: &mut CertificateParams, now: SystemTime) {
    params.distinguished_name.push(DnType::CommonName, "transship");
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + LEAF_LIFE).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
}

fn new_ca(now: SystemTime) -> Result<KeyedCert> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    // A name of its own, so that verifiers tell overlapping authorities apart.
    let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    params.distinguished_name.push(DnType::CommonName, format!("transship-ca-{second}"));
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + CA_LIFE).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let cert = params.self_signed(&key)?;
    Ok(KeyedCert { cert: cert.pem(), key: key.serialize_pem() })
}

/// When a certificate begins and ends.
pub fn validity(pem: &str) -> Result<(SystemTime, SystemTime)> {
    let damaged = |error: &dyn std::fmt::Display| Error::Damaged(error.to_string());
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(&e))?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|e| damaged(&e))?;
    let at = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    let validity = cert.validity();
    Ok((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn begin() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    #[test]
    fn an_authority_is_renewed_with_an_overlap_in_which_both_are_trusted() {
        let first = Authority::new(begin()).unwrap();
        assert_eq!(first.rotated(begin() + DAY * 100).unwrap(), None);
        let renewal = begin() + DAY * 244;
        let both = first.rotated(renewal).unwrap().unwrap();
        assert_eq!(both.active, first.active, "the new one does not sign yet");
        assert_eq!(both.bundle().matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(both.rotated(renewal + DAY).unwrap(), None);
        let second = both.rotated(renewal + DAY * 3).unwrap().unwrap();
        assert_eq!(Some(&second.active), both.next.as_ref());
        assert_eq!(second.previous.as_deref(), Some(first.active.cert.as_str()));
        assert_eq!(second.rotated(renewal + DAY * 4).unwrap(), None);
        let alone = second.rotated(renewal + DAY * 8).unwrap().unwrap();
        assert_eq!(alone.bundle(), second.active.cert.trim_end().to_owned() + "\n");
    }

    #[test]
    fn an_authority_that_has_ended_is_replaced_at_once() {
        let first = Authority::new(begin()).unwrap();
        let later = begin() + CA_LIFE + DAY;
        let fresh = first.rotated(later).unwrap().unwrap();
        assert_ne!(fresh.active, first.active);
        assert!(validity(&fresh.active.cert).unwrap().1 > later);
    }

    #[test]
    fn a_request_is_signed_for_the_name_that_was_proven_and_no_other() {
        let authority = Authority::new(begin()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(["operator.transship.internal".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let cert = authority.sign(&request, "node-a.node.transship.internal", begin()).unwrap();
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!parsed.is_ca());
        let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value);
        assert!(names.contains("node-a.node"), "{names}");
        assert!(!names.contains("operator"), "{names}");
        assert_eq!(validity(&cert).unwrap().1, begin() + LEAF_LIFE);
        assert!(matches!(authority.sign("nonsense", "x", begin()), Err(Error::Refused(_))));
    }
}
