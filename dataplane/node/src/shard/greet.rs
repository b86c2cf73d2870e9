//! The first seconds of a connection: TLS handshake, who it is, and the HTTP/1.1 upgrade.

use super::core::Core;
use super::strangers::Place;
use super::upgrade::{self, RequestError};
use super::{GREETING_MAX, Greeted, session};
use crate::identity::agent_of;
use crate::rt::{Rt, within};
use crate::tls::{TlsReader, TlsWriter, Use, attach, detach, fresh, handshake};
use farshore_proto::VolumeId;
use futures::future::{Either, select};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::rc::Rc;

/// The answer that turns the connection into a session.
pub(crate) const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: farshore/2\r\n\r\n";

const REQUEST_BYTES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error("no complete request within {} s", GREETING_MAX.as_secs())]
    Slow,
    #[error("others had no place")]
    Crowd,
    #[error("tls: {0}")]
    Tls(io::Error),
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("the certificate names no agent")]
    Stranger,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the request is longer than {REQUEST_BYTES_MAX} bytes")]
    Long,
    #[error("bytes came before the upgrade was answered")]
    Early,
}

impl GreetError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Crowd => "crowd",
            Self::Tls(_) => "tls",
            Self::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => "descriptors",
            Self::Io(_) => "connection",
            Self::Stranger => "identity",
            Self::Request(_) | Self::Long | Self::Early => "http",
        }
    }
}

/// Begins to greet a connection, unless too many strangers are being greeted already.
pub(crate) fn begin<R: Rt>(core: &Rc<Core<R>>, socket: TcpStream, peer: SocketAddr) {
    match core.strangers.enter(peer.ip().into()) {
        Some(place) => R::spawn(run(Rc::clone(core), socket, peer, place)),
        None => core.parts.metrics.refused("crowd"),
    }
}

/// Greets one connection and gives it to the shard that owns its volume.
async fn run<R: Rt>(core: Rc<Core<R>>, socket: TcpStream, peer: SocketAddr, place: Place) {
    let end = {
        let greeting = pin!(within::<R, _>(GREETING_MAX, greet(&core, socket, peer)));
        let lost = pin!(place.lost());
        match select(greeting, lost).await {
            Either::Left((Some(end), _)) => end,
            Either::Left((None, _)) => Err(GreetError::Slow),
            Either::Right(_) => Err(GreetError::Crowd),
        }
    };
    drop(place);
    let greeted = match end {
        Ok(greeted) => greeted,
        Err(error) => return count(&core, peer, &error),
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
    if let Some(unsaid) = core.refusals.borrow_mut().may_say(core.now()) {
        tracing::info!(%peer, reason = error.reason(), %error, unsaid, "connection refused");
    }
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
    let (mut reader, mut writer) =
        attach::<R>(fresh(socket, tls), Use::Greeting, core.parts.descriptors)?;
    handshake(&mut reader, &mut writer, &core.turnstile).await.map_err(GreetError::Tls)?;
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
        if let Some((volume, used)) = upgrade::parse(&bytes[..filled])? {
            return if used == filled { Ok(volume) } else { Err(GreetError::Early) };
        }
        if filled == bytes.len() {
            return Err(GreetError::Long);
        }
    }
}
