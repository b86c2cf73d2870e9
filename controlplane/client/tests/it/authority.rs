//! A certificate authority as the control plane's, in memory.

use farshore_api::identity::{
    CONTROL_SERVER_NAME, Certificate, EnrolmentToken, Role, certificate_fingerprint,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    PublicKeyData, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), der, pem }
    }

    pub(crate) fn token(&self, role: Role) -> EnrolmentToken {
        let ca_fingerprint = certificate_fingerprint(&self.der);
        EnrolmentToken { ca_fingerprint, role, secret: [7; 32] }
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    /// What the control plane answers to a request; the certificate began `age` ago and lives on
    /// for `left`.
    pub(crate) fn issue(
        &self,
        (role, id): (Role, Uuid),
        csr_pem: &str,
        (age, left): (Duration, Duration),
    ) -> Certificate {
        let key = CertificateSigningRequestParams::from_pem(csr_pem).unwrap().public_key;
        self.certify((role, id), &key, (age, left))
    }

    /// As [`Authority::issue`], by a clock that is `ahead`: the certificate begins that much later.
    pub(crate) fn issue_ahead(
        &self,
        (role, id): (Role, Uuid),
        csr_pem: &str,
        ahead: Duration,
        life: Duration,
    ) -> Certificate {
        let key = CertificateSigningRequestParams::from_pem(csr_pem).unwrap().public_key;
        let begins = SystemTime::now() + ahead;
        self.certify_between((role, id), &key, (begins, begins + life))
    }

    pub(crate) fn certify(
        &self,
        (role, id): (Role, Uuid),
        key: &impl PublicKeyData,
        (age, left): (Duration, Duration),
    ) -> Certificate {
        let now = SystemTime::now();
        self.certify_between((role, id), key, (now - age, now + left))
    }

    fn certify_between(
        &self,
        (role, id): (Role, Uuid),
        key: &impl PublicKeyData,
        (begins, ends): (SystemTime, SystemTime),
    ) -> Certificate {
        let mut params = CertificateParams::new(vec!["peer".to_owned()]).unwrap();
        params.not_before = begins.into();
        params.not_after = ends.into();
        params.subject_alt_names.push(SanType::URI(role.uri(id).try_into().unwrap()));
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        Certificate {
            id,
            role,
            certificate_pem: certificate.pem(),
            ca_pem: self.pem.clone(),
            expires_at_unix_s: ends.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
        }
    }

    /// TLS of the control plane; it shows its leaf and then `shown`.
    pub(crate) fn server(&self, shown: &CertificateDer<'static>) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        // Not the address that the tests connect to: clients ask for the name.
        let params = CertificateParams::new(vec![CONTROL_SERVER_NAME.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![leaf.der().clone(), shown.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_single_cert(chain, key)
            .unwrap()
    }
}
