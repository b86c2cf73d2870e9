//! From a token to an identity, and from one certificate to the next.

use super::tls::enrolling_config;
use super::{Identity, IdentityError};
use crate::control::{Client, ControlError};
use farshore_api::identity::{
    Certificate, EnrolRequest, EnrolmentToken, RenewRequest, Role, certificate_fingerprint,
};
use farshore_api::paths;
use farshore_proto::ErrorKind;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Pause after a renewal that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// Why the agent was not enrolled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// The token is of another role.
    #[error("this token enrols a {role}, not an agent: create one with `farshore agent token`")]
    Role {
        /// What it enrols.
        role: Role,
    },
    /// The control plane answered with another CA than the token pins.
    #[error("the control plane answered with a CA that the token does not name")]
    Ca,
    /// The control plane refused or did not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS cannot be set up.
    #[error("tls cannot be set up")]
    Tls(#[from] rustls::Error),
}

impl EnrolError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Role { .. } | Self::Ca => ErrorKind::Invalid,
            Self::Control(error) => error.kind(),
            Self::Identity(error) => error.kind(),
            Self::Tls(_) => ErrorKind::Internal,
        }
    }
}

/// Enrols the agent: makes its key, has it certified, keeps the result in `dir`.
///
/// # Errors
/// [`EnrolError`]. The token is used up only if the control plane had answered.
pub async fn enrol(
    dir: &Path,
    control: &str,
    token: &EnrolmentToken,
) -> Result<Identity, EnrolError> {
    if token.role != Role::Agent {
        return Err(EnrolError::Role { role: token.role });
    }
    let key = Identity::key(dir)?;
    let request = EnrolRequest { token: token.to_string(), csr_pem: Identity::request(&key)? };
    let client = Client::new(control, enrolling_config(token.clone())?)?;
    let certificate: Certificate = client.post(paths::ENROL, &request).await?;
    let ca = CertificateDer::from_pem_slice(certificate.ca_pem.as_bytes());
    if !ca.is_ok_and(|ca| certificate_fingerprint(&ca) == token.ca_fingerprint) {
        return Err(EnrolError::Ca);
    }
    Ok(Identity::save(dir, &certificate.certificate_pem, &certificate.ca_pem)?)
}

/// Renews the certificate at half of its life, again and again.
pub async fn renew_until_dropped(identity: Arc<Identity>, client: Client) {
    loop {
        tokio::time::sleep(identity.until_renewal()).await;
        match renew(&identity, &client).await {
            Ok(()) => tracing::info!("the agent's certificate was renewed"),
            Err(error) => {
                let is_expired = identity.is_expired();
                tracing::warn!(%error, is_expired, "the agent's certificate was not renewed");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn renew(identity: &Identity, client: &Client) -> Result<(), EnrolError> {
    let request = RenewRequest { csr_pem: identity.renewal()? };
    let certificate: Certificate = client.post(paths::RENEW, &request).await?;
    Ok(identity.renew(&certificate.certificate_pem)?)
}
