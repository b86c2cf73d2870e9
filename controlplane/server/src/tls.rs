//! TLS 1.3 only; a client certificate is optional, but if one is given it must be ours.

use std::sync::Arc;

use farshore_api::Role;
use farshore_api::identity::Serial;
use farshore_api::limits::EXPIRED_SECONDS_MAX;
use farshore_trust::{Shown, TakesEnded, WhileAllowed, shown_by};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use uuid::Uuid;

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
    /// The certificate's serial number, which holds its generation.
    pub serial: Serial,
    /// BLAKE3 of the public key that the certificate is for.
    pub key: blake3::Hash,
}

/// Certificates that have ended not too long ago: a server that was off for a day, or that could not
/// reach the control plane for one, must be able to renew with the key that it has. Each request says
/// whether it is content with such a one.
#[derive(Debug)]
struct Renewable;

impl TakesEnded for Renewable {
    fn takes(&self, ends_s: u64, now: UnixTime) -> bool {
        now.as_secs() <= ends_s.saturating_add(EXPIRED_SECONDS_MAX)
    }
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
        .with_client_cert_verifier(Arc::new(WhileAllowed::new(verifier, Renewable)))
        .with_single_cert(chain, key)
        .map_err(|error| tls(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Every connection proves its identity anew.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Reads the identity from a verified certificate of ours.
#[must_use]
pub fn peer(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let Shown { role, id, ends_s, serial, key, .. } = shown_by(certificate)?;
    Some(Peer { role, id, expires_at_unix_s: ends_s, serial: serial?, key })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::pem::PemObject;
    use rustls::server::danger::ClientCertVerifier;
    use std::time::Duration;

    use super::*;

    #[test]
    fn identity_is_read_back_from_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        server_config(&ca).unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let id = Uuid::from_u128(3);
        let (issued, kept) = ca.issue(Role::Node, id, 4, &csr).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let peer = peer(&der).unwrap();
        assert_eq!((peer.role, peer.id), (Role::Node, id));
        assert_eq!((peer.serial, peer.key), (kept.serial, kept.key));
        assert!(peer.expires_at_unix_s.abs_diff(issued.expires_at_unix_s) <= 1);
    }

    #[test]
    fn a_certificate_without_our_uri_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        assert_eq!(peer(ca.certificate()), None);
        assert_eq!(peer(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    #[test]
    fn a_certificate_that_ended_is_let_in_for_a_while_to_be_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let (issued, _) = ca.issue(Role::Agent, Uuid::from_u128(3), 1, &csr).unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let library = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let clients = WhileAllowed::new(library.build().unwrap(), Renewable);
        let ends = peer(&leaf).unwrap().expires_at_unix_s;
        let at = |seconds| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            clients.verify_client_cert(&leaf, &[], now).is_ok()
        };
        assert!(at(ends - 1) && at(ends + 1) && at(ends + EXPIRED_SECONDS_MAX));
        assert!(!at(ends + EXPIRED_SECONDS_MAX + 1), "nothing is let in for ever");
        assert!(!at(ends - 3 * 86_400), "nor before it began");
        let elsewhere = tempfile::tempdir().unwrap();
        let stranger = Ca::open(elsewhere.path()).unwrap();
        let (issued, _) = stranger.issue(Role::Agent, Uuid::from_u128(3), 1, &csr).unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(ends + 1));
        assert!(clients.verify_client_cert(&leaf, &[], now).is_err(), "of another CA");
    }
}
