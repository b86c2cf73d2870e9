//! Requests to the control plane.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farshore_api::{ErrorBody, Exit, limits};
use farshore_trust::clock_trouble;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::Global;
use crate::endpoints::Endpoints;
use crate::failure::{Failure, Outcome};

/// Time for everything but a long poll.
const REQUEST_SECONDS: u64 = 30;
const CONNECT_SECONDS: u64 = 5;
/// Pause before a control plane that is away is asked again.
const AWAY_RETRY: Duration = Duration::from_millis(300);
/// How often what carries an id is said again.
const POST_TRIES_MAX: u32 = 3;
/// Largest reply: far above 10 000 recovery points.
const REPLY_BYTES_MAX: usize = 64 << 20;
const TOKEN_BYTES_MAX: usize = 4096;

/// Where the control plane is and what it is to be told and shown.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// URL without a path.
    pub(crate) control: String,
    /// The only CA to trust.
    pub(crate) ca_file: PathBuf,
    /// The operator's token.
    pub(crate) token_file: PathBuf,
}

impl Target {
    /// From the command line, and for what it leaves out from endpoints.json.
    fn of(global: &Global) -> Outcome<Self> {
        if let (Some(control), Some(ca_file), Some(token_file)) =
            (&global.control, &global.ca_file, &global.token_file)
        {
            let (ca_file, token_file) = (ca_file.clone(), token_file.clone());
            return Ok(Self { control: control.clone(), ca_file, token_file });
        }
        let endpoints = Endpoints::of(global)?.ok_or_else(|| {
            Failure::new(Exit::Usage, "it is not said which control plane is meant").hint(
                "set FARSHORE_DATA=DIR or say --data DIR of a running `farshore up`; or say \
                 --control URL, --ca-file FILE and --token-file FILE",
            )
        })?;
        Ok(Self {
            control: global.control.clone().unwrap_or(endpoints.control),
            ca_file: global.ca_file.clone().unwrap_or(endpoints.ca_file),
            token_file: global.token_file.clone().unwrap_or(endpoints.token_file),
        })
    }
}

/// A connection to the control plane as its operator.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    target: Target,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Client {
    /// The client that the command line asks for.
    pub(crate) fn of(global: &Global) -> Outcome<Self> {
        Self::new(Target::of(global)?)
    }

    /// A client for `target`. Connects to nothing yet.
    pub(crate) fn new(target: Target) -> Outcome<Self> {
        if !target.control.starts_with("https://") {
            let message = format!("`{}` is not an https:// URL", target.control);
            return Err(Failure::new(Exit::Usage, message)
                .hint("the control plane only speaks TLS: say --control https://HOST:PORT"));
        }
        let tls = tls_config(&target.ca_file)?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization(&target.token_file)?);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .default_headers(headers)
            .user_agent(concat!("farshore/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                Failure::new(Exit::Internal, format!("cannot make an HTTP client: {error}"))
            })?;
        Ok(Self { http, target })
    }

    /// Whether the control plane is on this machine, so that paths mean the same to both.
    pub(crate) fn is_local(&self) -> bool {
        let host = reqwest::Url::parse(&self.target.control)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned));
        matches!(host.as_deref(), Some("127.0.0.1" | "[::1]" | "localhost"))
    }

    /// GET.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Outcome<T> {
        let request = self.request(Method::GET, path, Duration::ZERO);
        read(self.send(request).await?).await
    }

    /// GET that the control plane may answer only after `wait`, which is cut to what it grants.
    /// `path` has no query.
    pub(crate) async fn get_waiting<T: DeserializeOwned>(
        &self,
        path: &str,
        wait: Duration,
    ) -> Outcome<T> {
        let wait = wait.min(Duration::from_millis(limits::WAIT_MS_MAX));
        let path = match wait.as_millis() {
            0 => path.to_owned(),
            ms => format!("{path}?wait_ms={ms}"),
        };
        let request = self.request(Method::GET, &path, wait);
        read(self.send(request).await?).await
    }

    /// Like [`Client::get_waiting`], but while the control plane is away (it may just be started
    /// again) this asks again, until `longest` is over.
    pub(crate) async fn get_patiently<T: DeserializeOwned>(
        &self,
        path: &str,
        wait: Duration,
        longest: Duration,
    ) -> Outcome<T> {
        let started = Instant::now();
        loop {
            match self.get_waiting(path, wait).await {
                Err(failure) if failure.is_passing() && started.elapsed() < longest => {
                    tokio::time::sleep(AWAY_RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// POST of a JSON body.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Outcome<T> {
        self.post_waiting(path, body, Duration::ZERO).await
    }

    /// Like [`Client::post`], for an answer that may take `wait` longer.
    pub(crate) async fn post_waiting<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        wait: Duration,
    ) -> Outcome<T> {
        let request = self.request(Method::POST, path, wait).json(body);
        read(self.send(request).await?).await
    }

    /// Like [`Client::post`], but an answer that is lost is asked for again: for bodies that carry an
    /// id of ours, so that nothing is done twice.
    pub(crate) async fn post_again<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Outcome<T> {
        let mut tries = 0;
        loop {
            match self.post(path, body).await {
                Err(failure) if failure.is_passing() && tries < POST_TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(AWAY_RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// DELETE; the reply's body does not matter.
    pub(crate) async fn delete(&self, path: &str) -> Outcome {
        self.send(self.request(Method::DELETE, path, Duration::ZERO)).await.map(drop)
    }

    fn request(&self, method: Method, path: &str, wait: Duration) -> RequestBuilder {
        let url = format!("{}{path}", self.target.control.trim_end_matches('/'));
        self.http.request(method, url).timeout(Duration::from_secs(REQUEST_SECONDS) + wait)
    }

    /// Sends and turns every reply that is not 2xx into the failure that it tells of.
    async fn send(&self, request: RequestBuilder) -> Outcome<Response> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = body(response).await?;
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => body.error.into(),
            Err(_) => self.stranger(status),
        })
    }

    fn stranger(&self, status: StatusCode) -> Failure {
        let message = format!(
            "{} answered with status {status} and without a word of Farshore's",
            self.target.control
        );
        Failure::new(Exit::Protocol, message)
            .hint("check that this is the address of a Farshore control plane")
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let control = &self.target.control;
        if let Some(cause) = cause::<rustls::Error>(error) {
            let whose = format!("the control plane at {control}");
            if let Some(trouble) = clock_trouble(&whose, cause) {
                return Failure::new(Exit::Denied, trouble).hint(
                    "set the clock that is wrong; if it is the control plane's, start that again \
                     afterwards: it makes itself a new certificate",
                );
            }
            let ca_file = self.target.ca_file.display();
            let message = format!("the control plane at {control} is not trusted: {cause}");
            return Failure::new(Exit::Denied, message).hint(format!(
                "check that {ca_file} is the CA of this control plane, and not an older one"
            ));
        }
        if error.is_timeout() {
            return Failure::new(
                Exit::Unavailable,
                format!("the control plane at {control} did not answer in time"),
            )
            .hint("it may be overloaded: look into its log, then try again");
        }
        let cause =
            cause::<io::Error>(error).map_or_else(|| error.to_string(), crate::failure::reason);
        Failure::new(
            Exit::Unavailable,
            format!("cannot reach the control plane at {control}: {cause}"),
        )
        .hint("check that `farshore up` runs, and that this is its address")
    }
}

fn tls_config(ca_file: &Path) -> Outcome<ClientConfig> {
    let unusable = |what: String| {
        Failure::new(Exit::DataInvalid, format!("{} {what}", ca_file.display()))
            .hint("--ca-file takes the PEM file of the control plane's CA")
    };
    let pem = std::fs::read(ca_file)
        .map_err(|error| Failure::io("read", ca_file, &error, Exit::InputOutput))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| unusable("is not a PEM file".to_owned()))?;
        roots.add(certificate).map_err(|error| unusable(format!("holds no usable CA: {error}")))?;
    }
    if roots.is_empty() {
        return Err(unusable("holds no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot set up TLS: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn authorization(token_file: &Path) -> Outcome<HeaderValue> {
    let text = std::fs::read_to_string(token_file)
        .map_err(|error| Failure::io("read", token_file, &error, Exit::InputOutput))?;
    let token = text.trim();
    let value = (!token.is_empty() && token.len() <= TOKEN_BYTES_MAX)
        .then(|| HeaderValue::try_from(format!("Bearer {token}")).ok())
        .flatten();
    let mut value = value.ok_or_else(|| {
        let message = format!("{} does not hold a token", token_file.display());
        Failure::new(Exit::DataInvalid, message)
            .hint("--token-file takes the file that the control plane wrote for its operator")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read<T: DeserializeOwned>(response: Response) -> Outcome<T> {
    let bytes = body(response).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(Exit::Protocol, format!("the control plane's reply makes no sense: {error}"))
            .hint("use the `farshore` of the same version as the control plane")
    })
}

async fn body(mut response: Response) -> Outcome<Vec<u8>> {
    let broken = |what: String| {
        Failure::new(Exit::Unavailable, format!("the control plane's reply {what}"))
            .hint("try again in a moment")
    };
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| broken(format!("broke off: {error}")))?
    {
        if bytes.len() + chunk.len() > REPLY_BYTES_MAX {
            return Err(Failure::new(
                Exit::Protocol,
                format!("the control plane's reply is larger than {REPLY_BYTES_MAX} bytes"),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The first error of type `E` among the causes of `error`, also inside of I/O errors.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}
