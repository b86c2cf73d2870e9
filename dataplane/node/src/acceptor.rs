//! The listening socket: plain accepts on a thread of its own, dealt out to the shards in turn.

use crate::descriptors::Descriptors;
use crate::metrics::Metrics;
use crate::rt::Post;
use crate::shard::Message;
use rustls::ServerConnection;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

/// The server's side of TLS; it shows whatever certificate the node has now.
#[derive(Debug)]
pub(crate) struct TlsSettings(Arc<rustls::ServerConfig>);

impl TlsSettings {
    /// With `config`, which learns of renewals by itself.
    pub(crate) fn new(config: rustls::ServerConfig) -> Self {
        Self(Arc::new(config))
    }

    /// The state of one new connection.
    pub(crate) fn connection(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(Arc::clone(&self.0))
    }
}

/// Takes the port.
///
/// # Errors
/// `AddrInUse` if somebody has it, whatever options they set.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

/// Accepts until the process ends.
pub(crate) fn run(
    listener: &TcpListener,
    shards: &[Post<Message>],
    metrics: &Metrics,
    descriptors: Descriptors,
) {
    let mut turn = 0;
    loop {
        match listener.accept() {
            Ok((socket, peer)) => {
                // Dropping a socket resets it; agents come back after a pause.
                let Ok(socket) = descriptors.take(socket) else {
                    metrics.refused("descriptors");
                    continue;
                };
                turn = (turn + 1) % shards.len();
                if shards[turn].offer(Message::Accepted { socket, peer }).is_err() {
                    metrics.refused("busy");
                    tracing::debug!(%peer, shard = turn, "shard is too busy for a connection");
                }
            }
            Err(error) => {
                // Out of descriptors or a connection that died in the queue: neither is final.
                metrics.refused("accept");
                tracing::warn!(%error, "cannot accept a connection");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
