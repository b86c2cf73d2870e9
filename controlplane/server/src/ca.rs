//! The certificate authority: one self-signed CA, short-lived certificates under it.
//!
//! The CA's key never leaves the data directory. Everything in a certificate but the public key is
//! written here: a request's names, usages and constraints are ignored.

use std::path::Path;
use std::time::{Duration, SystemTime};

use farshore_api::Role;
use farshore_api::identity::{
    CONTROL_SERVER_NAME, Certificate, EnrolmentToken, SERIAL_BYTES, Serial,
    certificate_fingerprint, node_server_name,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use uuid::Uuid;

use crate::clock;
use crate::data_dir::{read_secret, write_public, write_secret};
use crate::db::Issued;
use crate::error::ControlError;
use crate::fatal::Fatal;

/// Life of the CA: ten years.
const CA_LIFE: Duration = Duration::from_secs(3650 * 86_400);

/// Life of an agent's or node's certificate.
const PEER_LIFE: Duration = Duration::from_secs(86_400);

/// Life of the control plane's own certificate; it is renewed daily.
const SERVER_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// Certificates begin this long before they are made, for peers whose clock is behind.
const SKEW: Duration = Duration::from_secs(300);

/// The certificate authority.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    /// Loads `ca.key` and `ca.pem` from the data directory, or makes them if neither is there.
    ///
    /// # Errors
    /// `Exposed` if others may read the key, `Damaged` if one of the files is missing or wrong,
    /// `Create` if they cannot be written.
    pub fn open(dir: &Path) -> Result<Self, Fatal> {
        let (key_path, pem_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        let damaged = |path: &Path, why: String| Fatal::Damaged { path: path.into(), why };
        let Some(key_pem) = read_secret(&key_path)? else {
            if pem_path.exists() {
                return Err(damaged(&key_path, "it is missing beside ca.pem".into()));
            }
            return Self::create(&key_path, &pem_path);
        };
        let key = KeyPair::from_pem(&key_pem).map_err(|e| damaged(&key_path, e.to_string()))?;
        // The key is written first: a crash before the certificate leaves a key without one, which
        // nobody has seen yet.
        if !pem_path.exists() {
            return Self::with_key(key, &pem_path);
        }
        let pem = std::fs::read_to_string(&pem_path)
            .map_err(|error| Fatal::file("read", &pem_path, error))?;
        let der = der_of(&pem).ok_or_else(|| damaged(&pem_path, "it holds no PEM".into()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| damaged(&pem_path, error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(damaged(&pem_path, "it does not belong to ca.key".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|error| damaged(&pem_path, error.to_string()))?;
        Ok(Self { issuer, der, pem })
    }

    fn create(key_path: &Path, pem_path: &Path) -> Result<Self, Fatal> {
        let key = KeyPair::generate().map_err(|error| tls(&error))?;
        write_secret(key_path, key.serialize_pem().as_bytes())?;
        Self::with_key(key, pem_path)
    }

    fn with_key(key: KeyPair, pem_path: &Path) -> Result<Self, Fatal> {
        let mut params = params(CA_LIFE, "Farshore CA").map_err(|error| tls(&error))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = false;
        let certificate = params.self_signed(&key).map_err(|error| tls(&error))?;
        write_public(pem_path, certificate.pem().as_bytes())?;
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Ok(Self { issuer: Issuer::new(params, key), der, pem })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The CA's certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What enrolment tokens pin.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        certificate_fingerprint(&self.der)
    }

    /// A new enrolment token of this CA.
    #[must_use]
    pub fn token(&self, role: Role) -> EnrolmentToken {
        EnrolmentToken { ca_fingerprint: self.fingerprint(), role, secret: random() }
    }

    /// Signs a certificate for an identity. Only the public key is taken from the request.
    ///
    /// # Errors
    /// `Certificate` if the request does not parse, or its signature does not fit its key.
    pub fn issue(
        &self,
        role: Role,
        id: Uuid,
        generation: u64,
        csr_pem: &str,
    ) -> Result<(Certificate, Issued), ControlError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let serial = Serial::new(generation, random::<{ SERIAL_BYTES - 9 }>());
        let mut params = params(PEER_LIFE, &format!("{role} {id}"))?;
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.subject_alt_names.push(SanType::URI(role.uri(id).try_into()?));
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        if role == Role::Node {
            params.subject_alt_names.push(SanType::DnsName(node_server_name(id).try_into()?));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let expires_at_unix_s = clock::now_s() + PEER_LIFE.as_secs();
        let key = blake3::hash(&request.public_key.subject_public_key_info());
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        let certificate = Certificate {
            id,
            role,
            certificate_pem: certificate.pem(),
            ca_pem: self.pem.clone(),
            expires_at_unix_s,
        };
        Ok((certificate, Issued { serial, key, not_after_s: expires_at_unix_s }))
    }

    /// A fresh certificate and key for the control plane itself. The chain ends with the CA's own
    /// certificate, which those who enrol compare with their token.
    ///
    /// # Errors
    /// `Tls` if it cannot be made.
    pub fn server_certificate(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Fatal> {
        let make = || -> Result<_, rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = params(SERVER_LIFE, "Farshore control plane")?;
            let names = ["localhost", "127.0.0.1", "::1", CONTROL_SERVER_NAME];
            params.subject_alt_names =
                CertificateParams::new(names.map(String::from))?.subject_alt_names;
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            let certificate = params.signed_by(&key, &self.issuer)?;
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            Ok((vec![certificate.der().clone(), self.der.clone()], key.into()))
        };
        make().map_err(|error| tls(&error))
    }
}

/// What all our certificates have in common.
fn params(life: Duration, common_name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + life).into();
    let mut serial: [u8; 16] = random();
    // Positive and not zero, as RFC 5280 §4.1.2.2 has it.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Bytes from the system's random number generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random number generator always answers");
    bytes
}

fn der_of(pem: &str) -> Option<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

fn tls(error: &rcgen::Error) -> Fatal {
    Fatal::Tls { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateParams;
    use x509_parser::extensions::GeneralName;

    use super::*;

    #[test]
    fn the_same_ca_is_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open(dir.path()).unwrap();
        let second = Ca::open(dir.path()).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert!(first.token(Role::Agent).pins(second.certificate()));
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Ca::open(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = Ca::open(dir.path()).unwrap_err();
        assert_eq!(error.exit(), farshore_api::Exit::DataInvalid);
        let other = tempfile::tempdir().unwrap();
        Ca::open(other.path()).unwrap();
        std::fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
        assert!(matches!(Ca::open(dir.path()), Err(Fatal::Damaged { .. })));
    }

    #[test]
    fn a_request_gives_its_key_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::new(vec!["evil.example".to_string()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy
            .subject_alt_names
            .push(SanType::URI(Role::Node.uri(Uuid::from_u128(1)).try_into().unwrap()));
        let csr = greedy.serialize_request(&key).unwrap().pem().unwrap();
        let id = Uuid::from_u128(7);
        let (certificate, issued) = ca.issue(Role::Agent, id, 7, &csr).unwrap();
        let der = der_of(&certificate.certificate_pem).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(Serial::from_bytes(parsed.raw_serial()), Some(issued.serial));
        assert_eq!(issued.serial.generation(), 7);
        assert_eq!(issued.key, blake3::hash(parsed.public_key().raw));
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.as_slice(), [GeneralName::URI(&Role::Agent.uri(id))]);
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
    }

    #[test]
    fn garbage_is_not_a_request() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        for bad in
            ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"]
        {
            assert!(ca.issue(Role::Agent, Uuid::from_u128(1), 1, bad).is_err());
        }
    }
}
