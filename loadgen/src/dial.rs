//! Opening a connection to a node as agents do: TCP, mutual TLS 1.3, HTTP/1.1 `Upgrade: farshore/2`.

use crate::limits::{DIAL_TIME_MAX, HEAD_BYTES_MAX};
use farshore_proto::{Epoch, VolumeId};
use futures::future::BoxFuture;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The protocol that the upgrade asks for.
const PROTOCOL: &str = "farshore/2";
/// Time in which the text of a refusal comes, if there is one.
const REASON_TIME_MAX: Duration = Duration::from_secs(1);
/// Headers of an answer that are looked at.
const HEADERS_MAX: usize = 32;

/// Where the control plane wants a volume's stream to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `ip:port` of the node.
    pub address: String,
    /// Name in its certificate.
    pub server_name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Under which epoch to write.
    pub epoch: Epoch,
}

/// A connection that carries frames.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The node cannot be reached.
    #[error("node {address} cannot be reached: {source}; check that it runs")]
    Connect {
        /// Where it was tried.
        address: String,
        /// What went wrong.
        source: io::Error,
    },
    /// TLS failed.
    #[error("node {address} and this source do not trust each other: {source}")]
    Tls {
        /// Where it was tried.
        address: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The node hung up in the middle of the upgrade.
    #[error("node {address} did not answer the upgrade: {source}")]
    Upgrade {
        /// Where it was tried.
        address: String,
        /// What went wrong.
        source: io::Error,
    },
    /// It took too long in all.
    #[error(
        "node {address} took no session within {} s; a node that recovers listens and does not answer \
         yet", DIAL_TIME_MAX.as_secs()
    )]
    Slow {
        /// Where it was tried.
        address: String,
    },
    /// The node answered with something else than an upgrade.
    #[error("node {address} refused the session with status {status}: {reason}")]
    Status {
        /// Where it was tried.
        address: String,
        /// HTTP status; 0 if the answer was no HTTP.
        status: u16,
        /// First line of the body.
        reason: String,
    },
    /// The server name is no name.
    #[error("the control plane gave {name:?}, which is no server name")]
    Name {
        /// What was given.
        name: String,
    },
}

impl DialError {
    /// The word under which it is counted.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Self::Connect { source, .. } => format!("connect: {}", source.kind()),
            Self::Tls { source, .. } => format!("tls: {}", source.kind()),
            Self::Upgrade { source, .. } => format!("upgrade: {}", source.kind()),
            Self::Slow { .. } => "no session in time".to_owned(),
            Self::Status { status, .. } => format!("http {status}"),
            Self::Name { .. } => "server name".to_owned(),
        }
    }
}

/// Opens connections.
pub trait Dial: Send + Sync + 'static {
    /// Opens one that has been upgraded: the next word is the hello.
    fn dial(&self, route: Route) -> BoxFuture<'static, Result<Box<dyn Transport>, DialError>>;
}

/// Opens connections to real nodes.
#[derive(Clone)]
pub struct TlsDial {
    config: Arc<rustls::ClientConfig>,
}

impl std::fmt::Debug for TlsDial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TlsDial").finish_non_exhaustive()
    }
}

impl TlsDial {
    /// With a source's certificate and the CA to trust.
    #[must_use]
    pub fn new(config: Arc<rustls::ClientConfig>) -> Self {
        Self { config }
    }

    async fn open(self, route: &Route) -> Result<Box<dyn Transport>, DialError> {
        let address = || route.address.clone();
        let name = ServerName::try_from(route.server_name.clone())
            .map_err(|_| DialError::Name { name: route.server_name.clone() })?;
        let connect = |source| DialError::Connect { address: address(), source };
        let tcp = TcpStream::connect(&route.address).await.map_err(connect)?;
        tcp.set_nodelay(true).map_err(connect)?;
        let tls = TlsConnector::from(self.config).connect(name, tcp).await;
        let mut tls = tls.map_err(|source| DialError::Tls { address: address(), source })?;
        upgrade(&mut tls, route).await?;
        Ok(Box::new(tls))
    }
}

impl Dial for TlsDial {
    fn dial(&self, route: Route) -> BoxFuture<'static, Result<Box<dyn Transport>, DialError>> {
        let dial = self.clone();
        Box::pin(async move {
            let opening = tokio::time::timeout(DIAL_TIME_MAX, dial.open(&route)).await;
            opening.unwrap_or(Err(DialError::Slow { address: route.address }))
        })
    }
}

/// Asks for the volume's stream and reads the answer's head, and nothing behind it: a node says
/// nothing more before the hello.
async fn upgrade(stream: &mut (impl Transport + ?Sized), route: &Route) -> Result<(), DialError> {
    let failed = |source| DialError::Upgrade { address: route.address.clone(), source };
    let Route { server_name, volume, .. } = route;
    let request = format!(
        "GET /v1/volumes/{volume}/stream HTTP/1.1\r\nHost: {server_name}\r\n\
         Connection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX {
            return Err(failed(io::Error::other("its answer has no end")));
        }
        head.push(stream.read_u8().await.map_err(failed)?);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let is_http = answer.parse(&head).is_ok_and(|status| status.is_complete());
    let agrees = answer.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("upgrade") && header.value == PROTOCOL.as_bytes()
    });
    match answer.code {
        Some(101) if is_http && agrees => Ok(()),
        code => {
            let (address, status) = (route.address.clone(), code.unwrap_or(0));
            Err(DialError::Status { address, status, reason: first_line(stream).await })
        }
    }
}

/// The line of text that an HTTP error of a node has as its body.
async fn first_line(stream: &mut (impl Transport + ?Sized)) -> String {
    let mut text = Vec::new();
    // As much as comes at once is enough for a line; an error here hides nothing, and neither does
    // silence.
    let _ = tokio::time::timeout(REASON_TIME_MAX, stream.read_buf(&mut text)).await;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn route() -> Route {
        Route {
            address: "127.0.0.1:9443".to_owned(),
            server_name: "x.node.farshore".to_owned(),
            volume: VolumeId([1; 16]),
            epoch: Epoch(1),
        }
    }

    /// What [`upgrade`] makes of an answer; the request, and what is left to read.
    async fn answered(answer: &str) -> (Result<(), DialError>, String, String) {
        let (mut ours, mut theirs) = duplex(1 << 14);
        theirs.write_all(answer.as_bytes()).await.unwrap();
        let result = upgrade(&mut ours, &route()).await;
        let mut asked = vec![0; 1 << 12];
        let count = theirs.read(&mut asked).await.unwrap();
        drop(theirs);
        let mut left = String::new();
        ours.read_to_string(&mut left).await.unwrap();
        (result, String::from_utf8_lossy(&asked[..count]).into_owned(), left)
    }

    #[tokio::test]
    async fn asks_as_the_format_says_and_leaves_frames_alone() {
        let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: farshore/2\r\n\r\nFSF2";
        let (result, asked, left) = answered(answer).await;
        result.unwrap();
        assert_eq!(left, "FSF2");
        let start = "GET /v1/volumes/01010101-0101-0101-0101-010101010101/stream HTTP/1.1\r\n";
        assert!(asked.starts_with(start) && asked.ends_with("\r\n\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn an_error_is_told_with_its_line() {
        let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nnot yours\n";
        let (result, ..) = answered(answer).await;
        let error = result.unwrap_err();
        assert_eq!(error.word(), "http 403");
        assert!(error.to_string().ends_with("status 403: not yours"), "{error}");
    }

    #[tokio::test]
    async fn another_protocol_and_no_protocol_are_refused() {
        for answer in ["HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n", "no\r\n\r\n"] {
            let (result, ..) = answered(answer).await;
            assert!(matches!(result, Err(DialError::Status { .. })), "{answer}");
        }
        let (result, ..) = answered(&"x".repeat(HEAD_BYTES_MAX + 1)).await;
        assert!(matches!(result, Err(DialError::Upgrade { .. })));
    }
}
