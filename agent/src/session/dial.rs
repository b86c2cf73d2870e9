//! Opening a transport to a node: TCP, mutual TLS 1.3, HTTP/1.1 `Upgrade: farshore/2`.

use farshore_client::{Identity, clock_trouble, shown_by};
use farshore_proto::{ErrorKind, VolumeId};
use futures::future::BoxFuture;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The protocol that the upgrade asks for.
const PROTOCOL: &str = "farshore/2";
/// From the first packet to the upgraded connection.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest body of a refusal that is read.
const REASON_BYTES_MAX: usize = 1024;

/// Which node, for which volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `ip:port` to connect to.
    pub address: String,
    /// TLS server name to ask for.
    pub server_name: String,
    /// Certificates of the node of an older generation are over.
    pub generation_min: u64,
    /// The volume of the session.
    pub volume: VolumeId,
}

/// A connection that carries frames.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Why there is no transport.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The node cannot be reached, or TLS failed.
    #[error("node {address} cannot be reached: {source}")]
    Io {
        /// Where it was tried.
        address: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The node was revoked, or is another holder of an old certificate.
    #[error("node {address} shows a certificate that is over: it was revoked, or enrolled again")]
    Over {
        /// Where it was tried.
        address: String,
    },
    /// This agent's certificate, or the node's, is not valid by a clock.
    #[error("{what}")]
    Clock {
        /// Whose, and what both say.
        what: String,
    },
    /// The server name is no name.
    #[error("{name:?} is no server name")]
    Name {
        /// What the control plane gave.
        name: String,
    },
    /// The node answered something else than an upgrade.
    #[error("node {address} refused the session with status {status}: {reason}")]
    Status {
        /// Where it was tried.
        address: String,
        /// HTTP status.
        status: u16,
        /// First line of the body.
        reason: String,
    },
}

impl DialError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. }
            | Self::Over { .. }
            | Self::Clock { .. }
            | Self::Status { status: 500.., .. } => ErrorKind::Unavailable,
            Self::Name { .. } | Self::Status { .. } => ErrorKind::Invalid,
        }
    }
}

/// Opens transports.
pub trait Dial: Send + Sync + 'static {
    /// Opens one.
    fn dial(&self, target: Target) -> BoxFuture<'static, Result<Box<dyn Transport>, DialError>>;
}

/// Opens transports to real nodes.
#[derive(Clone)]
pub struct TlsDial {
    config: Arc<rustls::ClientConfig>,
    identity: Arc<Identity>,
}

impl std::fmt::Debug for TlsDial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TlsDial").finish_non_exhaustive()
    }
}

impl TlsDial {
    /// With the agent's certificate and the CA to trust.
    #[must_use]
    pub fn new(config: Arc<rustls::ClientConfig>, identity: Arc<Identity>) -> Self {
        Self { config, identity }
    }

    /// What to say of an error: that of a clock if it is one.
    fn told(address: &str, identity: &Identity, error: DialError) -> DialError {
        if let Some(what) = identity.trouble() {
            return DialError::Clock { what };
        }
        let DialError::Io { source, .. } = &error else { return error };
        let tls = source.get_ref().and_then(|inner| inner.downcast_ref());
        let clock = tls.and_then(|tls| clock_trouble(&format!("the node at {address}"), tls));
        clock.map_or(error, |what| DialError::Clock { what })
    }

    async fn open(self, target: Target) -> Result<Box<dyn Transport>, DialError> {
        let address = target.address.clone();
        let failed = |source| DialError::Io { address: target.address.clone(), source };
        let name = ServerName::try_from(target.server_name.clone())
            .map_err(|_| DialError::Name { name: target.server_name.clone() })?;
        let stream = TcpStream::connect(&target.address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let stream = TlsConnector::from(self.config).connect(name, stream).await.map_err(failed)?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let generation = certificate.and_then(|leaf| shown_by(leaf)).map_or(0, |s| s.generation);
        if generation < target.generation_min {
            return Err(DialError::Over { address });
        }
        let broken = |error| failed(io::Error::other(error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, String>(TokioIo::new(stream))
                .await
                .map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        let request = hyper::Request::get(format!("/v1/volumes/{}/stream", target.volume))
            .header(HOST, &target.server_name)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, PROTOCOL)
            .body(String::new())
            .map_err(|error| failed(io::Error::other(error)))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let agreed = response.headers().get(UPGRADE).is_some_and(|value| value == PROTOCOL);
        if status != StatusCode::SWITCHING_PROTOCOLS || !agreed {
            let reason = reason_of(response.into_body()).await;
            return Err(DialError::Status { address, status: status.as_u16(), reason });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }
}

impl Dial for TlsDial {
    fn dial(&self, target: Target) -> BoxFuture<'static, Result<Box<dyn Transport>, DialError>> {
        let dial = self.clone();
        Box::pin(async move {
            let address = target.address.clone();
            let late = |_| DialError::Io { address, source: io::ErrorKind::TimedOut.into() };
            let (identity, at) = (Arc::clone(&dial.identity), target.address.clone());
            let opened = tokio::time::timeout(DIAL_TIME_MAX, dial.open(target)).await;
            let opened = opened.map_err(late).flatten();
            opened.map_err(|error| TlsDial::told(&at, &identity, error))
        })
    }
}

/// The first line of a body, as far as it is text.
async fn reason_of(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    let mut body = std::pin::Pin::new(&mut body);
    while bytes.len() < REASON_BYTES_MAX {
        match std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    let room = REASON_BYTES_MAX - bytes.len();
                    bytes.extend_from_slice(&data[..data.len().min(room)]);
                }
            }
            Some(Err(_)) | None => break,
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|character| !character.is_control()).take(200).collect()
}
