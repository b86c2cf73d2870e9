//! TLS 1.3 settings of both sides, and whom they trust.

use crate::identity::{Identity, IdentityError};
use farshore_api::identity::{EnrolmentToken, Role};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::Arc;
use uuid::Uuid;

/// Makes aws-lc-rs the process's cryptography; call once, before any TLS.
pub fn install_crypto() {
    // A second call finds the first one's choice, which is the same.
    let _already = aws_lc_rs::default_provider().install_default();
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| IdentityError::Pem)
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(identity.ca_pem())? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

fn own_chain(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem().as_bytes())
        .map_err(|_| IdentityError::Pem)?;
    Ok((certificates(identity.certificate_pem())?, key))
}

/// As a client with a certificate: towards the control plane and nodes.
///
/// # Errors
/// If the identity's texts are damaged.
pub fn client_config(identity: &Identity) -> Result<ClientConfig, IdentityError> {
    let (chain, key) = own_chain(identity)?;
    Ok(ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain, key)?)
}

/// As a server that takes only clients with a certificate of the same CA.
///
/// # Errors
/// If the identity's texts are damaged.
pub fn server_config(identity: &Identity) -> Result<ServerConfig, IdentityError> {
    let (chain, key) = own_chain(identity)?;
    let clients = WebPkiClientVerifier::builder(roots(identity)?)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    // No early data and no tickets: a resumed session would outlive a revoked certificate.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The role and id that a peer's certificate names.
#[must_use]
pub fn peer_of(certificate_der: &[u8]) -> Option<(Role, Uuid)> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate_der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Role::from_uri(uri),
        _ => None,
    }
}

/// As a client that knows nothing but an enrolment token.
pub(crate) fn pinned_config(token: EnrolmentToken) -> Result<ClientConfig, IdentityError> {
    Ok(ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { token }))
        .with_no_client_auth())
}

/// Trusts the one CA that the token names, if the server shows it.
#[derive(Debug)]
struct Pinned {
    token: EnrolmentToken,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| self.token.pins(certificate))
            .ok_or_else(|| rustls::Error::General("the server's CA is not the token's".into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
