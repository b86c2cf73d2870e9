//! The control plane's REST API, as a client with a certificate.

use crate::identity::{Identity, IdentityError};
use crate::trust::client_config;
use farshore_api::error::{ErrorBody, ErrorCode};
use farshore_api::identity::{Certificate, RenewRequest};
use farshore_api::paths;
use reqwest::{Client, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Longer than any long poll.
const REQUEST_MAX: Duration = Duration::from_secs(90);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No answer.
    #[error("the control plane at {url} does not answer: {reason}")]
    Unreachable {
        /// Its address.
        url: String,
        /// The innermost reason.
        reason: String,
    },
    /// An error as an answer.
    #[error("the control plane refuses: {message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
    /// An answer that is not the API's.
    #[error("the answer of {url} is not one of a Farshore control plane (HTTP {status})")]
    Strange {
        /// Its address.
        url: String,
        /// The HTTP status.
        status: u16,
    },
}

impl ClientError {
    /// Whether calling again later can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { code, .. } => code.status() >= 500 || code.status() == 429,
            Self::Strange { status, .. } => *status >= 500,
        }
    }
}

/// A client of one control plane under one identity.
#[derive(Debug, Clone)]
pub struct ControlClient {
    url: String,
    client: Client,
}

impl ControlClient {
    /// A client of the control plane at `url` (`https://host:port`).
    ///
    /// # Errors
    /// If the identity's texts are damaged.
    pub fn new(url: &str, identity: &Identity) -> Result<Self, IdentityError> {
        let client = bare_client(client_config(identity)?)?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), client })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// `ClientError` by what went wrong.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let sent = self.client.get(format!("{}{path}", self.url)).send().await;
        answer(&self.url, sent).await
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
        post(&self.client, &self.url, path, body).await
    }

    /// A new certificate for `identity`, which takes it.
    ///
    /// # Errors
    /// If the control plane gives none or it cannot be kept.
    pub async fn renew(&self, identity: &mut Identity) -> Result<(), IdentityError> {
        let request = RenewRequest { csr_pem: identity.request_pem()? };
        let certificate: Certificate = self.post(paths::RENEW, &request).await?;
        identity.replace(certificate)
    }
}

pub(crate) fn bare_client(config: rustls::ClientConfig) -> Result<Client, ClientError> {
    Client::builder()
        .tls_backend_preconfigured(config)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .timeout(REQUEST_MAX)
        .build()
        .map_err(|error| unreachable_at("", &error))
}

pub(crate) async fn post<T: DeserializeOwned>(
    client: &Client,
    url: &str,
    path: &str,
    body: &(impl Serialize + Sync),
) -> Result<T, ClientError> {
    let url = url.trim_end_matches('/');
    let sent = client.post(format!("{url}{path}")).json(body).send().await;
    answer(url, sent).await
}

async fn answer<T: DeserializeOwned>(
    url: &str,
    sent: Result<Response, reqwest::Error>,
) -> Result<T, ClientError> {
    let mut response = sent.map_err(|error| unreachable_at(url, &error))?;
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| unreachable_at(url, &error))? {
        if bytes.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Strange { url: url.to_owned(), status: status.as_u16() });
        }
        bytes.extend_from_slice(&part);
    }
    let strange = || ClientError::Strange { url: url.to_owned(), status: status.as_u16() };
    if status.is_success() {
        return serde_json::from_slice(&bytes).map_err(|_| strange());
    }
    let body: ErrorBody = serde_json::from_slice(&bytes).map_err(|_| strange())?;
    Err(ClientError::Refused { code: body.error.code, message: body.error.message })
}

fn unreachable_at(url: &str, error: &reqwest::Error) -> ClientError {
    // The outer texts only say "error sending request"; the innermost says why.
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    ClientError::Unreachable { url: url.to_owned(), reason: inner.to_string() }
}
