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

/// Connections that wait to be accepted. One too many is not refused: its peer takes it for made, and the system says
/// so again after seconds and more seconds, in which nobody's deadline runs. All sources of a node come at
/// once when it starts; the system's own limit (`net.core.somaxconn`) may be lower.
const BACKLOG: i32 = 16_384;

/// Takes the port.
///
/// # Errors
/// `AddrInUse` if somebody has it, whatever options they set.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The library asks for 128; asked again, the system takes the new number.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Instant;

    /// N6: all sources of a node come at once, before it gets to accept the first.
    #[test]
    fn a_crowd_may_wait_to_be_accepted() {
        // At most what this system allows.
        let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let crowd = limit.trim().parse::<usize>().unwrap().min(400);
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(30)).unwrap();
        let crowd: Vec<TcpStream> = (0..crowd).map(|_| connect()).collect();
        // Those that were put off are not among them: accepting would wait.
        listener.set_nonblocking(true).unwrap();
        let (begin, mut accepted) = (Instant::now(), 0);
        // The last may still be on its way.
        while accepted < crowd.len() && begin.elapsed() < Duration::from_secs(5) {
            accepted += usize::from(listener.accept().is_ok());
        }
        assert_eq!(accepted, crowd.len());
    }
}
