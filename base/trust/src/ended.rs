//! Certificates that have ended, taken for as long as somebody says so.

use crate::shown_by;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Says which certificates are taken although they have ended.
pub trait TakesEnded: Debug + Send + Sync {
    /// Whether one is taken that ended at `ends_s` (Unix time), when it is `now`.
    fn takes(&self, ends_s: u64, now: UnixTime) -> bool;
}

/// Takes what the library takes, and certificates that have ended while that is allowed. Everything else
/// about them is verified as ever.
#[derive(Debug)]
pub struct WhileAllowed<V: ?Sized, T> {
    library: Arc<V>,
    allows: T,
}

impl<V: ?Sized, T: TakesEnded> WhileAllowed<V, T> {
    /// Takes what `library` takes, and what ended while `allows` says so.
    #[must_use]
    pub fn new(library: Arc<V>, allows: T) -> Self {
        Self { library, allows }
    }

    /// Verifies now, and if that fails only because the certificate ended, a moment before its end.
    fn verified<R>(
        &self,
        leaf: &CertificateDer<'_>,
        now: UnixTime,
        verify: impl Fn(UnixTime) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let verified = verify(now);
        let Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) = verified
        else {
            return verified;
        };
        match shown_by(leaf).map(|shown| shown.ends_s) {
            Some(ends_s) if self.allows.takes(ends_s, now) => {
                let before = Duration::from_secs(ends_s.saturating_sub(1));
                verify(UnixTime::since_unix_epoch(before))
            }
            _ => verified,
        }
    }
}

/// What the two kinds of verifiers ask the library in the same words.
macro_rules! as_the_library {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.library.verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.library.verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.library.supported_verify_schemes()
        }
    };
}

impl<V, T> ClientCertVerifier for WhileAllowed<V, T>
where
    V: ClientCertVerifier + ?Sized,
    T: TakesEnded,
{
    fn offer_client_auth(&self) -> bool {
        self.library.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.library.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.library.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verified(leaf, now, |now| self.library.verify_client_cert(leaf, chain, now))
    }

    as_the_library!();
}

impl<V, T> ServerCertVerifier for WhileAllowed<V, T>
where
    V: ServerCertVerifier + ?Sized,
    T: TakesEnded,
{
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verified(leaf, now, |now| {
            self.library.verify_server_cert(leaf, chain, name, ocsp, now)
        })
    }

    as_the_library!();
}
