//! TLS as agents and nodes speak it: 1.3 only, our CA only, our newest certificate.

use crate::identity::Identity;
use farshore_api::identity::{CONTROL_SERVER_NAME, EnrolmentToken};
use farshore_trust::{TakesEnded, WhileAllowed};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::sync::Arc;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Shows whatever certificate the identity has now.
#[derive(Debug)]
struct Show(Arc<Identity>);

impl rustls::client::ResolvesClientCert for Show {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Show {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }
}

/// Which name the server's certificate must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The control plane's own, whatever address it is reached at.
    Control,
    /// The one that the caller asks for: a node's.
    Node,
}

/// As a client with the identity's certificate: towards the control plane or nodes.
///
/// # Errors
/// If the library refuses the settings.
pub fn client_config(identity: &Arc<Identity>, peer: Peer) -> Result<ClientConfig, Error> {
    let chain = verifier_of(identity.roots())?;
    let verifier: Arc<dyn ServerCertVerifier> = match peer {
        Peer::Node => Arc::new(WhileAllowed::new(chain, MayNotRenew(Arc::clone(identity)))),
        Peer::Control => Arc::new(Control { trust: Trust::Ca(chain) }),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Show(Arc::clone(identity))));
    // A resumed session would go on with the certificate that it began with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// As a server with the identity's certificate that takes only clients of the same CA. One whose
/// certificate has ended is taken while [`Identity::takes`] says so.
///
/// # Errors
/// If the library refuses the settings.
pub fn server_config(identity: &Arc<Identity>) -> Result<ServerConfig, Error> {
    let clients = WebPkiClientVerifier::builder_with_provider(identity.roots(), provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let clients = WhileAllowed::new(clients, MayNotRenew(Arc::clone(identity)));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(Arc::new(Show(Arc::clone(identity))));
    // Every connection proves its identity anew: a resumed one would outlive its certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// As a client that knows nothing but an enrolment token.
pub(crate) fn pinned_config(token: EnrolmentToken) -> Result<ClientConfig, Error> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Control { trust: Trust::Pin(token) }))
        .with_no_client_auth())
}

fn verifier_of(roots: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

/// While others may have been unable to renew.
#[derive(Debug)]
struct MayNotRenew(Arc<Identity>);

impl TakesEnded for MayNotRenew {
    fn takes(&self, ends_s: u64, _: UnixTime) -> bool {
        self.0.takes(ends_s)
    }
}

/// What the control plane's certificate is measured by.
#[derive(Debug)]
enum Trust {
    /// The CA of the identity.
    Ca(Arc<WebPkiServerVerifier>),
    /// The CA that the token pins, if the server sends it along.
    Pin(EnrolmentToken),
}

/// Asks for the control plane's name instead of the address in the URL.
#[derive(Debug)]
struct Control {
    trust: Trust,
}

impl ServerCertVerifier for Control {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = match &self.trust {
            Trust::Ca(verifier) => Arc::clone(verifier),
            Trust::Pin(token) => {
                let ca = chain.iter().find(|certificate| token.pins(certificate));
                let ca = ca.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                verifier_of(Arc::new(roots))?
            }
        };
        let name =
            ServerName::try_from(CONTROL_SERVER_NAME).expect("the constant is a server name");
        verifier.verify_server_cert(leaf, chain, &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
