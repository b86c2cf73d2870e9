//! The accept loop: TCP, TLS, HTTP/1.1, and a limit for everything.
//!
//! The HTTP framework has no TLS of its own. Each connection's handshake and requests run in a task;
//! the identity in the peer's certificate goes with every request on that connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::app::App;
use crate::http::Service;
use crate::tls;

/// Connections at one time: every agent and node may hold two (a long poll and its reports), and
/// there are some hundreds of them to a control plane.
const CONNECTIONS_MAX: usize = 2048;

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A request head that takes longer, or a connection that is idle for longer, is given up.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

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
    let service = Service::new(&app);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut stop = app.changes.stopping();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, remote, permit)) = accepted else { continue };
        let acceptor = TlsAcceptor::from(config.borrow().clone());
        let (service, stop) = (service.clone(), app.changes.stopping());
        connections.spawn(async move {
            if let Err(reason) = connection(acceptor, stream, remote, service, stop).await {
                debug!(%remote, reason, "connection ended");
            }
            drop(permit);
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

/// Waits for room first, so that a flood stays in the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, remote)) => Some((stream, remote, permit)),
        Err(error) => {
            // Out of file descriptors, most likely: a pause lets some come back.
            warn!(%error, "accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
    service: Service,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| "handshake took too long".to_string())?
        .map_err(|error| format!("handshake: {error}"))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = match certificate {
        None => None,
        Some(certificate) => {
            Some(tls::peer(certificate).ok_or("the certificate holds no identity of ours")?)
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
        _ = stop.wait_for(|stop| *stop) => serving.as_mut().graceful_shutdown(),
    }
    serving.await.map_err(|error| error.to_string())
}
