//! JSON over HTTPS.

use farshore_api::error::{ErrorBody, ErrorCode};
use farshore_proto::ErrorKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Time to connect.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Time for an answer, beyond what the request asked the server to wait.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

/// Why the control plane did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// It cannot be reached, or the answer broke off.
    #[error("the control plane at {url} cannot be reached: {}", root(source))]
    Unreachable {
        /// Where it was tried.
        url: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// It refused.
    #[error("the control plane refused: {message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("the control plane at {url} gave an answer that this agent does not understand")]
    Answer {
        /// Where from.
        url: String,
    },
}

impl ControlError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        use farshore_api::ErrorKind as Api;
        match self {
            Self::Unreachable { .. } => ErrorKind::Unavailable,
            Self::Answer { .. } => ErrorKind::Internal,
            Self::Refused { code, .. } => match code.kind() {
                Api::Unavailable => ErrorKind::Unavailable,
                Api::Throttled => ErrorKind::Throttled,
                Api::Fenced => ErrorKind::Fenced,
                Api::Conflict => ErrorKind::Conflict,
                Api::Invalid => ErrorKind::Invalid,
                Api::NotFound => ErrorKind::NotFound,
                Api::Corrupt => ErrorKind::Corrupt,
                Api::Limit => ErrorKind::Limit,
                Api::Internal | Api::Unknown => ErrorKind::Internal,
            },
        }
    }
}

/// The innermost cause, which is the one that tells something.
fn root(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Talks to one control plane.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    /// A client for the control plane at `base`, such as `https://127.0.0.1:9442`.
    ///
    /// # Errors
    /// `Unreachable` if no client can be made.
    pub fn new(base: &str, tls: rustls::ClientConfig) -> Result<Self, ControlError> {
        let base = base.trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .connect_timeout(CONNECT_TIME_MAX)
            .build();
        match http {
            Ok(http) => Ok(Self { base, http }),
            Err(source) => Err(ControlError::Unreachable { url: base, source }),
        }
    }

    /// GETs a path with its query; the server may wait up to `wait` before it answers.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        wait: Duration,
    ) -> Result<T, ControlError> {
        let request = self.http.get(format!("{}{path}", self.base));
        self.send(request.timeout(wait + ANSWER_TIME_MAX)).await
    }

    /// POSTs a body.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ControlError> {
        let request = self.http.post(format!("{}{path}", self.base)).json(body);
        self.send(request.timeout(ANSWER_TIME_MAX)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ControlError> {
        let unreachable = |source| ControlError::Unreachable { url: self.base.clone(), source };
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(unreachable)? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(ControlError::Answer { url: self.base.clone() });
            }
            body.extend_from_slice(&piece);
        }
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|_| ControlError::Answer { url: self.base.clone() });
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody { error }) => {
                Err(ControlError::Refused { code: error.code, message: error.message })
            }
            Err(_) => Err(ControlError::Answer { url: self.base.clone() }),
        }
    }
}
