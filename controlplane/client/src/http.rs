//! The control plane's REST API, as a client with a certificate: JSON over HTTPS.

use crate::identity::{Identity, IdentityError};
use crate::trust::{Peer, client_config};
use farshore_api::error::{ErrorBody, ErrorCode, ErrorDetail, ErrorKind};
use farshore_api::identity::{Certificate, RenewRequest};
use farshore_api::paths;
use farshore_trust::clock_trouble;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Time to connect.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Time for an answer, beyond what the request asked the control plane to wait.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// Longest pause that an answer may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No answer.
    #[error("the control plane at {url} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was tried.
        url: String,
        /// The innermost reason.
        reason: String,
    },
    /// Somebody answered whose certificate is not the control plane's.
    #[error(
        "the server at {url} does not prove to be this system's control plane: {reason}; check \
         --control"
    )]
    Untrusted {
        /// Where it was tried.
        url: String,
        /// What is wrong with its certificate.
        reason: String,
    },
    /// A certificate is not valid by a clock.
    #[error("{reason}")]
    Clock {
        /// Whose, and what both say.
        reason: String,
    },
    /// Nothing can be asked at such an address.
    #[error("{url:?} is not the address of a control plane: {reason}; give https://HOST:PORT")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An error as an answer.
    #[error("the control plane refused: {message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
        /// When to try again, if it says so.
        retry_after: Option<Duration>,
    },
    /// An answer that is not the API's.
    #[error("the answer of {url} is not one of a Farshore control plane (HTTP {status})")]
    Strange {
        /// Where from.
        url: String,
        /// The HTTP status.
        status: u16,
    },
}

impl ClientError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::Strange { status: 500.., .. } => {
                ErrorKind::Unavailable
            }
            Self::Clock { .. } => ErrorKind::Unavailable,
            Self::Untrusted { .. } | Self::Address { .. } => ErrorKind::Invalid,
            Self::Refused { code, .. } => code.kind(),
            Self::Strange { .. } => ErrorKind::Internal,
        }
    }
}

impl ClientError {
    /// How long to wait before the next attempt, if the control plane said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A client of one control plane.
#[derive(Debug, Clone)]
pub struct ControlClient {
    url: String,
    client: Client,
    identity: Option<Arc<Identity>>,
}

impl ControlClient {
    /// A client of the control plane at `url` (`https://host:port`) that shows the identity's
    /// newest certificate.
    ///
    /// # Errors
    /// `Tls` or `Control` if no client can be made.
    pub fn new(url: &str, identity: &Arc<Identity>) -> Result<Self, IdentityError> {
        let client = Self::with_tls(url, client_config(identity, Peer::Control)?)?;
        Ok(Self { identity: Some(Arc::clone(identity)), ..client })
    }

    pub(crate) fn with_tls(url: &str, tls: rustls::ClientConfig) -> Result<Self, ClientError> {
        let url = url.trim_end_matches('/').to_owned();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME_MAX)
            .build();
        match client {
            Ok(client) => Ok(Self { url, client, identity: None }),
            Err(error) => Err(unanswered(&url, &error)),
        }
    }

    /// `GET path`; the control plane may wait up to `wait` before it answers.
    ///
    /// # Errors
    /// `ClientError` by what went wrong.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        wait: Duration,
    ) -> Result<T, ClientError> {
        let request = self.client.get(format!("{}{path}", self.url));
        self.send(request.timeout(wait + ANSWER_TIME_MAX)).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// `ClientError` by what went wrong.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        self.send(request.timeout(ANSWER_TIME_MAX)).await
    }

    /// `POST path` with a JSON body, for an answer within `longest`: what hangs is given up, and the
    /// next call takes another connection.
    ///
    /// # Errors
    /// `ClientError` by what went wrong.
    pub async fn post_within<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
        longest: Duration,
    ) -> Result<T, ClientError> {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        self.send(request.timeout(longest.min(ANSWER_TIME_MAX))).await
    }

    /// Gets a new certificate for the identity, which keeps it and shows it from then on.
    ///
    /// # Errors
    /// If the control plane gives none, or none that fits, or it cannot be kept; the old one stays.
    pub async fn renew(&self, identity: &Arc<Identity>) -> Result<(), IdentityError> {
        let request = RenewRequest { csr_pem: identity.request_pem()? };
        let certificate: Certificate = self.post(paths::RENEW, &request).await?;
        let identity = Arc::clone(identity);
        let taken = tokio::task::spawn_blocking(move || identity.take(certificate)).await;
        taken.unwrap_or_else(|error| Err(IdentityError::Answer { what: error.to_string() }))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let unanswered = |error| unanswered(&self.url, &error);
        let mut response = request.send().await.map_err(unanswered)?;
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let strange = || ClientError::Strange { url: self.url.clone(), status: status.as_u16() };
        let mut bytes = Vec::new();
        while let Some(part) = response.chunk().await.map_err(unanswered)? {
            if bytes.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(strange());
            }
            bytes.extend_from_slice(&part);
        }
        let tell = |what: fn(&Identity)| self.identity.as_deref().into_iter().for_each(what);
        if status.is_success() {
            let value = serde_json::from_slice(&bytes).map_err(|_| strange())?;
            tell(Identity::control_answered);
            tell(Identity::control_took);
            return Ok(value);
        }
        let body: ErrorBody = serde_json::from_slice(&bytes).map_err(|_| strange())?;
        // One that cannot do its work renews no certificates either.
        if body.error.kind != ErrorKind::Unavailable && body.error.kind != ErrorKind::Internal {
            tell(Identity::control_answered);
        }
        let ErrorDetail { code, message, .. } = body.error;
        if code == ErrorCode::Unauthenticated {
            tell(Identity::control_refused);
        }
        Err(ClientError::Refused { code, message, retry_after })
    }
}

/// The seconds in `Retry-After`, as far as they are reasonable.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn unanswered(url: &str, error: &reqwest::Error) -> ClientError {
    // The outer texts only say "error sending request"; the innermost says why.
    let mut cause: &(dyn Error + 'static) = error;
    while let Some(inner) = inner(cause) {
        cause = inner;
    }
    let clock = cause
        .downcast_ref()
        .and_then(|error| clock_trouble(&format!("the control plane at {url}"), error));
    if let Some(reason) = clock {
        return ClientError::Clock { reason };
    }
    let (url, reason) = (url.to_owned(), cause.to_string());
    match cause.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(_)) => ClientError::Untrusted { url, reason },
        _ if error.is_builder() => ClientError::Address { url, reason },
        _ => ClientError::Unreachable { url, reason },
    }
}

/// The cause of an error; an `io::Error` hides what it wraps from `source`.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let Some(error) = error.downcast_ref::<io::Error>() else { return error.source() };
    error.get_ref().map(|inner| inner as _)
}
