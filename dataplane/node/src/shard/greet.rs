//! The first seconds of a connection: TLS handshake, who it is, and the HTTP/1.1 upgrade.

use super::core::Core;
use super::{Greeted, session};
use crate::identity::agent_of;
use crate::rt::{Rt, within};
use crate::tls::{TlsReader, TlsWriter, attach, detach, fresh, handshake};
use farshore_proto::VolumeId;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// The answer that turns the connection into a session.
pub(crate) const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: farshore/1\r\n\r\n";

/// From accept to the end of the request; longer is slow on purpose.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Connections of one shard that have not shown who they are; each holds about 100 KiB.
const GREETINGS_MAX: usize = 1024;
const REQUEST_BYTES_MAX: usize = 4096;
const HEADERS_MAX: usize = 32;

#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error("no complete request within {} s", GREETING_MAX.as_secs())]
    Slow,
    #[error("tls: {0}")]
    Tls(io::Error),
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("the certificate names no agent")]
    Stranger,
    #[error("not an HTTP/1.1 request: {0}")]
    Http(#[from] httparse::Error),
    #[error("the request is longer than {REQUEST_BYTES_MAX} bytes")]
    Long,
    #[error("the request is not an upgrade to farshore/1 of a volume's stream")]
    Request,
    #[error("bytes came before the upgrade was answered")]
    Early,
}

impl GreetError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Tls(_) => "tls",
            Self::Io(_) => "connection",
            Self::Stranger => "identity",
            Self::Http(_) | Self::Long | Self::Request | Self::Early => "http",
        }
    }
}

/// Begins to greet a connection, unless too many strangers are being greeted already.
pub(crate) fn begin<R: Rt>(core: &Rc<Core<R>>, socket: TcpStream, peer: SocketAddr) {
    if core.greetings.get() >= GREETINGS_MAX {
        core.parts.metrics.refused("crowd");
        return;
    }
    core.greetings.set(core.greetings.get() + 1);
    R::spawn(run(Rc::clone(core), socket, peer));
}

/// Greets one connection and gives it to the shard that owns its volume.
async fn run<R: Rt>(core: Rc<Core<R>>, socket: TcpStream, peer: SocketAddr) {
    let end = within::<R, _>(GREETING_MAX, greet(&core, socket, peer)).await;
    core.greetings.set(core.greetings.get() - 1);
    let greeted = match end {
        Some(Ok(greeted)) => greeted,
        Some(Err(error)) => return count(&core, peer, &error),
        None => return count(&core, peer, &GreetError::Slow),
    };
    let owner = core.parts.assignments.owner(greeted.volume);
    if owner == core.id() {
        return session::run(core, greeted).await;
    }
    if !core.pass_on(owner, greeted) {
        core.parts.metrics.refused("busy");
        tracing::warn!(%peer, owner, "shard is too busy to take a session");
    }
}

fn count<R: Rt>(core: &Core<R>, peer: SocketAddr, error: &GreetError) {
    core.parts.metrics.refused(error.reason());
    tracing::info!(%peer, reason = error.reason(), %error, "connection refused");
}

async fn greet<R: Rt>(
    core: &Core<R>,
    socket: TcpStream,
    peer: SocketAddr,
) -> Result<Greeted, GreetError> {
    socket.set_nodelay(true)?;
    let tls = core
        .parts
        .tls
        .connection()
        .map_err(|error| GreetError::Tls(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let (mut reader, mut writer) = attach::<R>(fresh(socket, tls))?;
    handshake(&mut reader, &mut writer).await.map_err(GreetError::Tls)?;
    let agent = reader.peer_certificate().as_deref().and_then(agent_of);
    let Some(agent) = agent else { return Err(GreetError::Stranger) };
    match request(&mut reader).await {
        Ok(volume) => {
            let parked = detach(reader, writer)?;
            Ok(Greeted { parked, peer, agent, volume })
        }
        Err(error) => {
            answer_badly(&mut writer, &error).await;
            Err(error)
        }
    }
}

async fn answer_badly<R: Rt>(writer: &mut TlsWriter<R>, error: &GreetError) {
    let body = format!("{error}\n");
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // The peer may be gone; then there is nobody to tell.
    if writer.write_all(answer.as_bytes()).await.is_ok() {
        let _goodbye_arrived = writer.close().await;
    }
}

/// Reads the upgrade request; returns the volume it names.
async fn request<R: Rt>(reader: &mut TlsReader<R>) -> Result<VolumeId, GreetError> {
    let mut bytes = vec![0; REQUEST_BYTES_MAX];
    let mut filled = 0;
    loop {
        let count = reader.read(&mut bytes[filled..]).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        filled += count;
        if let Some((volume, used)) = parse(&bytes[..filled])? {
            return if used == filled { Ok(volume) } else { Err(GreetError::Early) };
        }
        if filled == bytes.len() {
            return Err(GreetError::Long);
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(VolumeId, usize)>, GreetError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(used) = request.parse(bytes)? else { return Ok(None) };
    let has = |name: &str, value: &str| {
        request.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case(name)
                && header.value.eq_ignore_ascii_case(value.as_bytes())
        })
    };
    let volume = request
        .path
        .and_then(|path| path.strip_prefix("/v1/volumes/"))
        .and_then(|rest| rest.strip_suffix("/stream"))
        .and_then(|id| Uuid::parse_str(id).ok());
    match volume {
        Some(volume)
            if request.method == Some("GET")
                && has("upgrade", "farshore/1")
                && has("connection", "upgrade") =>
        {
            Ok(Some((volume.into(), used)))
        }
        _ => Err(GreetError::Request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "6a1f0000-0000-4000-8000-000000000001";

    fn ask(path: &str, upgrade: &str) -> Result<Option<(VolumeId, usize)>, GreetError> {
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n"
        );
        parse(text.as_bytes())
    }

    #[test]
    fn reads_the_volume_of_an_upgrade() {
        let (volume, _) = ask(&format!("/v1/volumes/{VOLUME}/stream"), "farshore/1")
            .unwrap()
            .expect("the request is complete");
        assert_eq!(volume.to_string(), VOLUME);
    }

    #[test]
    fn waits_for_the_rest_of_a_request() {
        assert!(parse(b"GET /v1/volu").unwrap().is_none());
    }

    #[test]
    fn refuses_other_requests() {
        for (path, upgrade) in [
            ("/", "farshore/1"),
            ("/v1/volumes/../../etc/passwd/stream", "farshore/1"),
            (&format!("/v1/volumes/{VOLUME}/stream")[..], "websocket"),
        ] {
            assert!(ask(path, upgrade).is_err(), "{path} {upgrade}");
        }
        assert!(parse(b"\x16\x03\x01\x02\x00\x01").is_err());
    }
}
