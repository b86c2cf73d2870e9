//! The control plane's REST API as its operator: tokens and machines.

use crate::limits::{ANSWER_BYTES_MAX, CONTROL_TRIES_MAX};
use crate::site::Site;
use farshore_api::identity::{CreateToken, Token};
use farshore_api::machine::{Capture, CreateMachine, Machine, Machines};
use farshore_api::{ErrorBody, ErrorCode, ErrorKind, Role, paths};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Time for one request.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Time to connect.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause before a request that failed for the moment is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// Why the control plane did not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// A file that should hold the CA or the token does not.
    #[error("{} {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No HTTP client can be made.
    #[error("cannot ask the control plane at {url}: {reason}; say --control https://HOST:PORT")]
    Client {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// No answer, or one that is not the API's.
    #[error("the control plane at {url} gives no answer: {reason}; check that `farshore up` runs")]
    Unreachable {
        /// Where it was tried.
        url: String,
        /// Why.
        reason: String,
    },
    /// An error as an answer.
    #[error("the control plane refused: {message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

impl OperatorError {
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { code, .. } => {
                matches!(code.kind(), ErrorKind::Unavailable | ErrorKind::Throttled)
            }
            _ => false,
        }
    }
}

/// A connection to the control plane as its operator.
#[derive(Clone)]
pub struct Operator {
    http: reqwest::Client,
    url: String,
    ca: CertificateDer<'static>,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Operator").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Operator {
    /// For a site. Connects to nothing yet. Blocks.
    ///
    /// # Errors
    /// [`OperatorError`] if CA, token or URL are of no use.
    pub fn of(site: &Site) -> Result<Self, OperatorError> {
        let url = site.control.trim_end_matches('/').to_owned();
        let failed = |reason: String| OperatorError::Client { url: site.control.clone(), reason };
        let ca = ca(&site.ca_file)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).map_err(|error| failed(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| failed(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization(&site.token_file)?);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME_MAX)
            .timeout(REQUEST_TIME_MAX)
            .default_headers(headers)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { http, url, ca })
    }

    /// URL of the control plane.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The CA of the site.
    #[must_use]
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// A token that enrols one agent, or the identity again.
    ///
    /// # Errors
    /// [`OperatorError`] if there is none.
    pub async fn token(&self, identity: Option<Uuid>) -> Result<String, OperatorError> {
        let request = CreateToken { role: Role::Agent, identity, ttl_seconds: None };
        let token: Token = self.post(paths::TOKENS, &request).await?;
        Ok(token.token)
    }

    /// All machines.
    ///
    /// # Errors
    /// [`OperatorError`] if they are not told.
    pub async fn machines(&self) -> Result<Vec<Machine>, OperatorError> {
        let machines: Machines = self.send(|| self.request(Method::GET, paths::MACHINES)).await?;
        Ok(machines.machines)
    }

    /// Protects a machine of an agent.
    ///
    /// # Errors
    /// [`OperatorError`] if the control plane does not.
    pub async fn protect(
        &self,
        name: &str,
        disk: &str,
        agent: Uuid,
        mark_interval: Duration,
    ) -> Result<(), OperatorError> {
        let request = CreateMachine {
            name: name.to_owned(),
            disk: disk.to_owned(),
            // Nobody opens the disk: the sources make up what is written to it.
            capture: Capture::Scan,
            policy: None,
            mark_interval_ms: u64::try_from(mark_interval.as_millis()).ok(),
            nbd_port: None,
            agent_id: Some(agent),
        };
        self.post::<serde_json::Value>(paths::MACHINES, &request).await.map(drop)
    }

    /// Ends the protection of a machine.
    ///
    /// # Errors
    /// [`OperatorError`] if the control plane does not.
    pub async fn unprotect(&self, name: &str) -> Result<(), OperatorError> {
        let path = paths::machine(name);
        self.send::<serde_json::Value>(|| self.request(Method::DELETE, &path)).await.map(drop)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, OperatorError> {
        self.send(|| self.request(Method::POST, path).json(body)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Sends, and again a few times if it fails for the moment.
    async fn send<T: DeserializeOwned>(
        &self,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, OperatorError> {
        let mut tries = 1;
        loop {
            match self.send_once(request()).await {
                Err(error) if error.is_passing() && tries < CONTROL_TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn send_once<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, OperatorError> {
        let unreachable = |reason| OperatorError::Unreachable { url: self.url.clone(), reason };
        let unanswered = |error: reqwest::Error| unreachable(innermost(&error));
        let mut response = request.send().await.map_err(unanswered)?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(part) = response.chunk().await.map_err(unanswered)? {
            if bytes.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(unreachable(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&part);
        }
        let strange = |_| unreachable(format!("status {status} without a word of Farshore's"));
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(strange);
        }
        let body: ErrorBody = serde_json::from_slice(&bytes).map_err(strange)?;
        Err(OperatorError::Refused { code: body.error.code, message: body.error.message })
    }
}

/// The outer texts only say "error sending request"; the innermost says why.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn ca(path: &Path) -> Result<CertificateDer<'static>, OperatorError> {
    let unusable = |what: String| OperatorError::File { path: path.to_owned(), what };
    let pem = std::fs::read(path).map_err(|error| unusable(format!("cannot be read: {error}")))?;
    CertificateDer::from_pem_slice(&pem).map_err(|_| {
        unusable("holds no certificate: --ca-file takes the PEM file of the CA".to_owned())
    })
}

fn authorization(path: &Path) -> Result<HeaderValue, OperatorError> {
    let unusable = |what: String| OperatorError::File { path: path.to_owned(), what };
    let text = std::fs::read_to_string(path)
        .map_err(|error| unusable(format!("cannot be read: {error}")))?;
    let token = text.trim();
    let value = (!token.is_empty()).then(|| HeaderValue::try_from(format!("Bearer {token}")).ok());
    let mut value = value.flatten().ok_or_else(|| {
        unusable("does not hold a token: --token-file takes the operator's token file".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}
