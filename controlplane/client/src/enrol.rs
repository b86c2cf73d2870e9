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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long enrolment is tried while the control plane does not answer.
const ENROL_TIME_MAX: Duration = Duration::from_secs(60);
/// Pause after a renewal that failed, and the longest sleep before one: timers stand still while
/// the machine sleeps, certificates do not.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between renewals that bring certificates of another time than this machine's clock shows.
const CLOCK_PAUSE: Duration = Duration::from_secs(600);
const OF_ANOTHER_TIME: &str = "the certificate was renewed, and by this machine's clock the new one is \
     over or nearly so, or not valid yet: check the clocks of this machine and of the control plane";
/// Between two looks for a token once the certificate has expired.
const TOKEN_EVERY: Duration = Duration::from_secs(1);

/// The identity in `dir`, or a new one for the token in `token_file`.
///
/// A token is used if there is no identity yet, if its certificate is not valid now, or if the token is
/// another control plane's. An identity that is not valid now is returned if there is no token.
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
            Some(token) if held.trouble().is_some() || !token.pins(held.ca()) => {
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

/// As [`establish`], for a process that others depend on: an identity that is there is returned
/// whatever is wrong with its time, and so it is when a token for another control plane cannot be used.
///
/// The token is one that the identity needs; it goes to [`renew_until_dropped`].
///
/// # Errors
/// If there is no identity and none can be had, or it is damaged.
pub async fn go_on(
    dir: &Path,
    control_url: &str,
    token_file: Option<&Path>,
    role: Role,
) -> Result<(Identity, Option<EnrolmentToken>), IdentityError> {
    let Some(held) = Identity::load(dir)? else {
        return Ok((establish(dir, control_url, token_file, role).await?, None));
    };
    let token = token_file.map_or(Ok(None), read_token).unwrap_or_else(|error| {
        tracing::warn!(%error, "the token cannot be read and is not used");
        None
    });
    match token {
        Some(token) if !token.pins(held.ca()) => {
            match enrol(dir, control_url, &token, role).await {
                Ok(identity) => Ok((identity, None)),
                Err(error) => {
                    tracing::error!(%error, "not enrolled anew: the identity that is there is used");
                    Ok((held, None))
                }
            }
        }
        token => {
            let token = token.filter(|_| held.trouble().is_some());
            Ok((held, token))
        }
    }
}

/// Where a new identity comes from when the certificate has expired.
#[derive(Debug)]
pub struct Tokens {
    /// URL of the control plane.
    control_url: String,
    /// The file in which a token may appear at any time.
    path: PathBuf,
    /// A token that was there at the start; its file may be gone by now.
    first: Option<EnrolmentToken>,
    /// The text of the last one that was used or refused.
    used: Option<String>,
}

impl Tokens {
    /// Tokens that appear at `path`; `first` was there at the start.
    #[must_use]
    pub fn new(control_url: &str, path: &Path, first: Option<EnrolmentToken>) -> Self {
        let (control_url, path) = (control_url.to_owned(), path.to_owned());
        Self { control_url, path, first, used: None }
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
    // Before the token is shown: a disk that takes no key would take no certificate either.
    if token.role != role {
        return Err(IdentityError::Role { token: token.role, wanted: role });
    }
    let key = Identity::key(dir)?;
    let certificate = certify(control_url, token, request_pem(&key)?).await?;
    Identity::keep(dir, key, &certificate)
}

/// Has a certificate request signed for a token.
async fn certify(
    control_url: &str,
    token: &EnrolmentToken,
    csr_pem: String,
) -> Result<Certificate, IdentityError> {
    let request = EnrolRequest { token: token.to_string(), csr_pem };
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
    if certificate.role != token.role || !ca.is_ok_and(|ca| token.pins(&ca)) {
        let what = "its role or CA is not the token's".to_owned();
        return Err(IdentityError::Answer { what });
    }
    Ok(certificate)
}

/// Renews the certificate at half of its life, again and again, and when the control plane took it after it
/// had refused it. Once it has expired, a token brings the next one, at any time.
pub async fn renew_until_dropped(
    identity: Arc<Identity>,
    client: ControlClient,
    mut tokens: Option<Tokens>,
) {
    loop {
        let wait = identity.until_renewal();
        let trouble = identity.trouble();
        if !wait.is_zero() && trouble.is_none() {
            identity.wait_until_due(wait.min(LOOK_EVERY)).await;
            continue;
        }
        let asked = match client.renew(&identity).await {
            Ok(()) if is_good(&identity) => {
                tracing::info!("the certificate was renewed");
                continue;
            }
            // Another one would be no better: somebody's clock is wrong.
            Ok(()) => {
                let trouble = identity.trouble();
                tracing::error!(trouble, "{OF_ANOTHER_TIME}");
                Some(CLOCK_PAUSE)
            }
            Err(error) => {
                match trouble {
                    None => tracing::warn!(%error, "the certificate was not renewed"),
                    Some(trouble) => {
                        let token_file = tokens.as_ref().map(|tokens| tokens.path.display());
                        let token_file = token_file.map(tracing::field::display);
                        tracing::error!(trouble, token_file, %error, "replication waits");
                    }
                }
                match error {
                    IdentityError::Control(error) => error.retry_after(),
                    _ => None,
                }
            }
        };
        let again = Instant::now() + LOOK_EVERY.max(asked.unwrap_or_default());
        while Instant::now() < again && !is_good(&identity) {
            let is_tried = identity.trouble().is_some();
            if is_tried
                && let Some(tokens) = &mut tokens
                && tokens.enrol(&identity).await
            {
                break;
            }
            if identity.wait_until_due(TOKEN_EVERY).await {
                break;
            }
        }
    }
}

/// Whether the certificate is valid now and not yet due to be renewed.
fn is_good(identity: &Identity) -> bool {
    !identity.until_renewal().is_zero() && identity.trouble().is_none()
}

impl Tokens {
    /// Uses a token if there is one that was not used before; whether that brought a certificate.
    async fn enrol(&mut self, identity: &Arc<Identity>) -> bool {
        let found = match read_token(&self.path) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the token cannot be read");
                None
            }
        };
        let Some(token) = self.first.take().or(found) else { return false };
        if self.used.as_deref() == Some(&*token.to_string()) {
            return false;
        }
        match self.enrol_with(identity, &token).await {
            Ok(()) => {
                tracing::info!("enrolled again");
                self.used = Some(token.to_string());
                true
            }
            Err(error) => {
                tracing::error!(%error, "not enrolled again");
                match error {
                    IdentityError::Control(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::Unavailable | ErrorKind::Throttled
                        ) =>
                    {
                        self.first = Some(token);
                    }
                    // It is used up, or never was for this identity.
                    _ => self.used = Some(token.to_string()),
                }
                false
            }
        }
    }

    async fn enrol_with(
        &self,
        identity: &Arc<Identity>,
        token: &EnrolmentToken,
    ) -> Result<(), IdentityError> {
        let wanted = identity.role();
        if token.role != wanted {
            return Err(IdentityError::Role { token: token.role, wanted });
        }
        let certificate = certify(&self.control_url, token, identity.request_pem()?).await?;
        let identity = Arc::clone(identity);
        let taken = tokio::task::spawn_blocking(move || identity.take(certificate)).await;
        taken.unwrap_or_else(|error| Err(IdentityError::Answer { what: error.to_string() }))
    }
}
