//! The accept loop: TCP, TLS, HTTP/1.1, and a limit for everything.
//!
//! The HTTP framework has no TLS of its own. Each connection's handshake and requests run in a task;
//! the identity in the peer's certificate goes with every request on that connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farshore_trust::clock_trouble;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::app::App;
use crate::entrance::{Entrance, raise_descriptors};
use crate::http::Service;
use crate::limits::{Host, Place, Places};
use crate::tls;
use crate::turnstile::Turnstiles;

/// Connections at one time of agents and nodes.
const PEERS_MAX: usize = 20_000;

/// Connections of one agent or node: a long poll, its reports, and those that it has lost and that
/// have not ended here.
const PEER_CONNECTIONS_MAX: usize = 16;

/// A connection on which nothing is said for so long is given up, and so is a handshake that takes
/// longer once its turn has come.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whoever waits longer for its turn is given up.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);

/// A request head that takes longer, or a connection that is idle for longer, is given up.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Handshakes that fail because of a clock are told once in this time, with their number.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Connections still at work this long after a stop are cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest request head in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// Serves until the application stops. `config` may change: new connections get the newest.
pub async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
) {
    raise_descriptors();
    let service = Service::new(&app);
    let room = Arc::new(Room {
        entrance: Entrance::default(),
        peers: Places::new(PEERS_MAX, PEER_CONNECTIONS_MAX),
        turnstiles: Turnstiles::default(),
        clocks: Clocks::default(),
    });
    let mut stop = app.changes.stopping();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener) => accepted,
        };
        let Some((stream, remote)) = accepted else { continue };
        // Dropping the stream ends the connection: others have no more than this one would.
        let host = remote.ip().into();
        let is_known = room.turnstiles.is_known(host);
        let Some(place) = room.entrance.enter(host, is_known) else { continue };
        let acceptor = TlsAcceptor::from(config.borrow().clone());
        let (service, room, stop) = (service.clone(), room.clone(), app.changes.stopping());
        connections.spawn(async move {
            let caller = Caller { stream, remote, place };
            if let Err(reason) = connection(acceptor, caller, &room, service, stop).await {
                debug!(%remote, reason, "connection ended");
            }
        });
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        info!(connections = connections.len(), "connections cut at stop");
    }
}

/// Who has how many connections.
struct Room {
    entrance: Entrance,
    peers: Places<Uuid>,
    turnstiles: Turnstiles,
    clocks: Clocks,
}

/// Tells now and then of handshakes that failed because of somebody's clock.
#[derive(Debug, Default)]
struct Clocks(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    number: u64,
    told: Option<Instant>,
}

impl Clocks {
    /// How many there were since it was told last, this one included, if it is time to tell.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untold.number += 1;
        if untold.told.is_some_and(|told| now.duration_since(told) < TELL_EVERY) {
            return None;
        }
        untold.told = Some(now);
        Some(std::mem::take(&mut untold.number))
    }

    fn tell(&self, remote: SocketAddr, error: &io::Error) {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let Some(trouble) =
            tls.and_then(|tls| clock_trouble(&format!("who calls from {remote}"), tls))
        else {
            return;
        };
        if let Some(number) = self.count(Instant::now()) {
            warn!(number, "handshake failed: {trouble}");
        }
    }
}

/// A connection on which nothing was said yet.
struct Caller {
    stream: TcpStream,
    remote: SocketAddr,
    place: Place<Host>,
}

async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        Err(error) => {
            // Out of file descriptors, most likely: a pause lets some come back.
            warn!(%error, "accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Makes the handshake when its turn has come. Whoever says nothing has no turn.
async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    room: &Room,
    remote: SocketAddr,
) -> Result<TlsStream<TcpStream>, String> {
    let first = tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut [0; 1])).await;
    match first.map_err(|_| "nothing was said".to_string())? {
        Ok(0) => return Err("it ended before it said anything".into()),
        said => said.map_err(|error| error.to_string())?,
    };
    let _turn = tokio::time::timeout(TURN_TIMEOUT, room.turnstiles.pass(remote.ip().into()))
        .await
        .map_err(|_| "its turn did not come".to_string())?;
    tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| "handshake took too long".to_string())?
        .inspect_err(|error| room.clocks.tell(remote, error))
        .map_err(|error| format!("handshake: {error}"))
}

async fn connection(
    acceptor: TlsAcceptor,
    caller: Caller,
    room: &Room,
    service: Service,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    const CROWD: &str = "others had no place";
    let Caller { stream, remote, place } = caller;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let host = remote.ip().into();
    let stream = tokio::select! {
        shaken = shake_hands(acceptor, stream, room, remote) => shaken?,
        () = place.lost() => return Err(CROWD.into()),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = match certificate {
        None => None,
        Some(certificate) => {
            Some(tls::peer(certificate).ok_or("the certificate holds no identity of ours")?)
        }
    };
    // Whoever is known stands in nobody's way any more.
    let (place, peer_place) = match peer {
        None => (Some(place), None),
        Some(peer) => {
            drop(place);
            room.turnstiles.know(host);
            (None, Some(room.peers.enter(peer.serial.as_key()).ok_or("there are too many peers")?))
        }
    };
    let lost = async {
        match (&place, &peer_place) {
            (Some(place), _) => place.lost().await,
            (None, Some(place)) => place.lost().await,
            (None, None) => std::future::pending().await,
        }
    };
    let service = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(peer, remote.ip(), request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended.map_err(|error| error.to_string()),
        () = lost => return Err(CROWD.into()),
        _ = stop.wait_for(|stop| *stop) => serving.as_mut().graceful_shutdown(),
    }
    serving.await.map_err(|error| error.to_string())
}
