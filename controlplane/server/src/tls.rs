//! TLS 1.3 only; a client certificate is optional, but if one is given it must be ours.

use std::sync::Arc;

use farshore_api::Role;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use uuid::Uuid;
use x509_parser::extensions::GeneralName;

use crate::ca::Ca;
use crate::fatal::Fatal;

/// Who is at the other end of a connection, according to a certificate that was verified when the
/// connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its role.
    pub role: Role,
    /// Its identity.
    pub id: Uuid,
    /// When its certificate ends. A connection may outlive that, so every request compares.
    pub expires_at_unix_s: u64,
}

/// The server's settings, with a fresh certificate.
///
/// # Errors
/// `Tls` if the library refuses them.
pub fn server_config(ca: &Ca) -> Result<Arc<ServerConfig>, Fatal> {
    let (chain, key) = ca.server_certificate()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = |why: String| Fatal::Tls { why };
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).map_err(|error| tls(error.to_string()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| tls(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| tls(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Every connection proves its identity anew.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Reads the identity from a verified certificate: its only URI, in exactly our form.
#[must_use]
pub fn peer(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (uri, None) = (uris.next()?, uris.next()) else { return None };
    let (role, id) = Role::from_uri(uri)?;
    let expires_at_unix_s = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(Peer { role, id, expires_at_unix_s })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn identity_is_read_back_from_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        server_config(&ca).unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let id = Uuid::from_u128(3);
        let issued = ca.issue(Role::Node, id, &csr).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let peer = peer(&der).unwrap();
        assert_eq!((peer.role, peer.id), (Role::Node, id));
        assert!(peer.expires_at_unix_s.abs_diff(issued.expires_at_unix_s) <= 1);
    }

    #[test]
    fn a_certificate_without_our_uri_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        assert_eq!(peer(ca.certificate()), None);
        assert_eq!(peer(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
