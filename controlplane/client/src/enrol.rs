//! From a token to an identity, and from one certificate to the next.

use crate::backoff::Backoff;
use crate::http::ControlClient;
use crate::identity::{Identity, IdentityError, read_text, request_pem};
use crate::trust::pinned_config;
use farshore_api::ErrorKind;
use farshore_api::identity::{Certificate, EnrolRequest, EnrolmentToken, Role};
use farshore_api::paths;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long enrolment is tried while the control plane does not answer.
const ENROL_TIME_MAX: Duration = Duration::from_secs(60);
/// Pause after a renewal that failed, and the longest sleep before one: timers stand still while
/// the machine sleeps, certificates do not.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The identity in `dir`, or a new one for the token in `token_file`.
///
/// A token is used if there is no identity yet, if its certificate has expired, or if the token is
/// another control plane's. An identity that has expired is returned if there is no token.
///
/// # Errors
/// By what went wrong. The token is used up only if the control plane answered.
pub async fn establish(
    dir: &Path,
    control_url: &str,
    token_file: Option<&Path>,
    role: Role,
) -> Result<Identity, IdentityError> {
    let held = Identity::load(dir)?;
    let token = token_file.map_or(Ok(None), read_token);
    if let Some(held) = held {
        let token = token.unwrap_or_else(|error| {
            tracing::warn!(%error, "the token is not needed and not used");
            None
        });
        return match token {
            Some(token) if held.is_expired() || !token.pins(held.ca()) => {
                enrol(dir, control_url, &token, role).await
            }
            _ => Ok(held),
        };
    }
    match token? {
        Some(token) => enrol(dir, control_url, &token, role).await,
        None => Err(IdentityError::NotEnrolled { dir: dir.to_owned(), role }),
    }
}

/// The token in a file; none if the file is gone, as it is once it was used.
fn read_token(path: &Path) -> Result<Option<EnrolmentToken>, IdentityError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let token = text.trim().parse();
    token.map(Some).map_err(|error| IdentityError::Token { path: path.to_owned(), error })
}

/// Has the key in `dir` certified, and keeps the certificate beside it.
async fn enrol(
    dir: &Path,
    control_url: &str,
    token: &EnrolmentToken,
    role: Role,
) -> Result<Identity, IdentityError> {
    if token.role != role {
        return Err(IdentityError::Role { token: token.role, wanted: role });
    }
    // Before the token is shown: a disk that takes no key would take no certificate either.
    let key = Identity::key(dir)?;
    let request = EnrolRequest { token: token.to_string(), csr_pem: request_pem(&key)? };
    let client = ControlClient::with_tls(control_url, pinned_config(token.clone())?)?;
    let deadline = Instant::now() + ENROL_TIME_MAX;
    let mut backoff = Backoff::default();
    let certificate: Certificate = loop {
        match client.post(paths::ENROL, &request).await {
            Ok(certificate) => break certificate,
            Err(error) => {
                let is_passing =
                    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Throttled);
                if !is_passing || Instant::now() > deadline {
                    return Err(error.into());
                }
                backoff.after("enrol", &error).await;
            }
        }
    };
    let ca = CertificateDer::from_pem_slice(certificate.ca_pem.as_bytes());
    if certificate.role != role || !ca.is_ok_and(|ca| token.pins(&ca)) {
        let what = "its role or CA is not the token's".to_owned();
        return Err(IdentityError::Answer { what });
    }
    Identity::keep(dir, key, &certificate)
}

/// Renews the certificate at half of its life, again and again.
pub async fn renew_until_dropped(identity: Arc<Identity>, client: ControlClient) {
    loop {
        let wait = identity.until_renewal();
        if !wait.is_zero() {
            tokio::time::sleep(wait.min(LOOK_EVERY)).await;
            continue;
        }
        match client.renew(&identity).await {
            Ok(()) => tracing::info!("the certificate was renewed"),
            Err(error) => {
                let is_expired = identity.is_expired();
                tracing::warn!(%error, is_expired, "the certificate was not renewed");
                let asked = match &error {
                    IdentityError::Control(error) => error.retry_after(),
                    _ => None,
                };
                tokio::time::sleep(LOOK_EVERY.max(asked.unwrap_or_default())).await;
            }
        }
    }
}
